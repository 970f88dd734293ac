//! Summaries merged: the union of their blocks, the least of their limits.
//!
//! Neither depends on the order of the summaries. The server drops blocks past a limit that comes later; here they
//! stay listed, which is the same, since everything from the limit on is read anyway.

use pgkeep_formats::pg::summary::{CHUNK_BLOCKS, ChunkBlocks, RelationLocator, WalSummary};
use std::collections::{BTreeMap, HashMap, HashSet};

/// More is not kept: at 16 MiB per TiB that is 8 TiB of relations changed between two backups.
const BYTES_MAX: usize = 128 << 20;
/// A chunk with more blocks is kept as a bitmap.
const OFFSETS_MAX: usize = 4096;
const BITMAP_WORDS: usize = CHUNK_BLOCKS as usize / 64;
/// What an entry of a map costs beside its content.
const ENTRY_BYTES: usize = 150;
const MAIN_FORK: u32 = 0;

#[derive(Debug, Default)]
pub(super) struct BlockTable {
    relations: HashMap<RelationLocator, Changes>,
    /// Databases of which all relations are new, with relfilenode 0.
    databases: HashSet<RelationLocator>,
    bytes: usize,
}

/// What happened to the main fork of one relation.
#[derive(Debug, Default)]
pub(super) struct Changes {
    limit: Option<u32>,
    /// By number of the chunk.
    chunks: BTreeMap<u32, Chunk>,
}

#[derive(Debug)]
enum Chunk {
    /// Ascending.
    Offsets(Vec<u16>),
    Bitmap(Box<[u64; BITMAP_WORDS]>),
}

impl BlockTable {
    /// Adds what a summary says of main forks. `Err` says that there is too much.
    pub(super) fn add(&mut self, summary: &WalSummary<'_>) -> Result<(), &'static str> {
        for entry in summary.entries() {
            if entry.relation.filenode == 0 {
                self.databases.insert(entry.relation);
                continue;
            }
            if entry.fork != MAIN_FORK {
                continue;
            }
            let changes = self.relations.entry(entry.relation).or_insert_with(|| {
                self.bytes += ENTRY_BYTES;
                Changes::default()
            });
            changes.limit = changes.limit.into_iter().chain(entry.limit).min();
            for chunk in entry.chunks() {
                let mine = changes.chunks.entry(chunk.first_block / CHUNK_BLOCKS).or_insert_with(|| {
                    self.bytes += ENTRY_BYTES;
                    Chunk::Offsets(Vec::new())
                });
                let before = mine.bytes();
                mine.add(chunk.blocks);
                self.bytes += mine.bytes().saturating_sub(before);
            }
            if self.bytes > BYTES_MAX {
                return Err("too much has changed to keep a list of it in memory");
            }
        }
        Ok(())
    }

    /// Gives back what was allocated in advance.
    pub(super) fn finish(&mut self) {
        for chunk in self.relations.values_mut().flat_map(|c| c.chunks.values_mut()) {
            if let Chunk::Offsets(offsets) = chunk {
                offsets.shrink_to_fit();
            }
        }
    }

    /// True if all files of the relation's database in its tablespace may be other ones than before.
    pub(super) fn is_new_database(&self, relation: RelationLocator) -> bool {
        self.databases.contains(&relation.whole_database())
    }

    /// `None` if nothing happened to the relation.
    pub(super) fn get(&self, relation: RelationLocator) -> Option<&Changes> {
        self.relations.get(&relation)
    }
}

impl Changes {
    /// The shortest length that the relation had, if it was cut.
    pub(super) fn limit(&self) -> Option<u32> {
        self.limit
    }

    /// Changed blocks from `first` to before `end`, counted from `first`, ascending.
    pub(super) fn blocks_in(&self, first: u32, end: u32) -> Vec<u32> {
        let mut blocks = Vec::new();
        if first >= end {
            return blocks;
        }
        for (number, chunk) in self.chunks.range(first / CHUNK_BLOCKS..=(end - 1) / CHUNK_BLOCKS) {
            let base = number * CHUNK_BLOCKS;
            chunk.each(|offset| {
                let block = base + u32::from(offset);
                if (first..end).contains(&block) {
                    blocks.push(block - first);
                }
            });
        }
        blocks
    }
}

impl Chunk {
    fn add(&mut self, blocks: ChunkBlocks<'_>) {
        if let Self::Offsets(offsets) = self {
            if let ChunkBlocks::Offsets(_) = blocks {
                offsets.extend(blocks.iter());
                offsets.sort_unstable();
                offsets.dedup();
                if offsets.len() <= OFFSETS_MAX {
                    return;
                }
            }
            let mut bitmap = Box::new([0; BITMAP_WORDS]);
            offsets.iter().for_each(|offset| set(&mut bitmap, *offset));
            *self = Self::Bitmap(bitmap);
        }
        if let Self::Bitmap(bitmap) = self {
            blocks.iter().for_each(|offset| set(bitmap, offset));
        }
    }

    fn each(&self, mut f: impl FnMut(u16)) {
        match self {
            Self::Offsets(offsets) => offsets.iter().for_each(|offset| f(*offset)),
            Self::Bitmap(bitmap) => {
                for (word, n) in bitmap.iter().zip(0u16..) {
                    let mut rest = *word;
                    while rest != 0 {
                        f(n * 64 + rest.trailing_zeros() as u16);
                        rest &= rest - 1;
                    }
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Offsets(offsets) => 2 * offsets.capacity(),
            Self::Bitmap(_) => 8 * BITMAP_WORDS,
        }
    }
}

fn set(bitmap: &mut [u64; BITMAP_WORDS], offset: u16) {
    if let Some(word) = bitmap.get_mut(usize::from(offset / 64)) {
        *word |= 1 << (offset % 64);
    }
}
