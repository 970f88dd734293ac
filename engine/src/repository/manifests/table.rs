//! The chunk table of a manifest being built: chunks get ordinals, ids go into pieces.
//!
//! A child's table begins with its parent's, unless most of the parent's ids are dead: it is *extended*, and what is an
//! ordinal there is the same ordinal here. New ids follow in pieces of their own, merged with the last ones like the runs
//! of a log-structured tree, so that a small increment adds a small piece.
//!
//! Memory: a bit a chunk, one piece of ids, and ids and ordinals met lately, so that a repeated chunk gets its ordinal
//! again. What has been forgotten costs 32 bytes in the table when it is met again, and nothing else.

use super::Manifest;
use crate::chunk::Encoder;
use crate::repository::WriterSession;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt, TABLE_PIECE_IDS_MAX, TablePiece};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Ids remembered: some 5 MiB. Between one and two times as many are.
const RECENT_IDS_MAX: usize = 7 << 13;
/// Ordinals of a parent remembered when its table is not extended: some 19 MiB. Between one and two times as many are.
const MOVED_MAX: usize = 7 << 17;
/// Table pieces of a parent below this are always extended: nothing is gained by rewriting them.
const SMALL_TABLE: u64 = 4 * TABLE_PIECE_IDS_MAX as u64;

/// What was met lately: when there is no room, the older half goes.
struct Lately<K> {
    newer: HashMap<K, u32>,
    older: HashMap<K, u32>,
    max: usize,
}

impl<K: Hash + Eq> Lately<K> {
    fn new(max: usize) -> Self {
        Self { newer: HashMap::new(), older: HashMap::new(), max }
    }

    fn get(&self, key: &K) -> Option<u32> {
        self.newer.get(key).or_else(|| self.older.get(key)).copied()
    }

    fn insert(&mut self, key: K, value: u32) {
        if self.newer.len() >= self.max {
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.clear();
        }
        self.newer.insert(key, value);
    }
}

/// A finished table.
pub(super) struct FinishedTable {
    pub(super) pieces: Vec<TablePiece>,
    /// One bit an ordinal: it is used.
    pub(super) used: Vec<u64>,
}

/// A chunk table being built.
pub(super) struct TableWriter {
    parent: Option<Arc<Manifest>>,
    extended: bool,
    pieces: Vec<TablePiece>,
    /// Ids in `pieces`.
    count: u64,
    new_ids: Vec<ChunkId>,
    recent: Lately<ChunkId>,
    /// Ordinals of the parent in this table, if it is not extended.
    moved: Lately<u32>,
    used: Vec<u64>,
}

impl TableWriter {
    /// Starts a table. With a parent, its table is extended if at least half of it is in use, or a quarter of a small one.
    pub(super) fn new(parent: Option<Arc<Manifest>>) -> Self {
        let extend = |m: &Arc<Manifest>| {
            let (ids, live) = (m.root().ids(), m.root().ids_live);
            ids <= SMALL_TABLE && live * 4 >= ids || live * 2 >= ids
        };
        let extended = parent.as_ref().is_some_and(extend);
        let pieces = match &parent {
            Some(parent) if extended => parent.root().table.clone(),
            _ => Vec::new(),
        };
        Self {
            parent,
            extended,
            count: pieces.iter().map(|p| u64::from(p.ids)).sum(),
            pieces,
            new_ids: Vec::new(),
            recent: Lately::new(RECENT_IDS_MAX),
            moved: Lately::new(MOVED_MAX),
            used: Vec::new(),
        }
    }

    /// True if it begins with the parent's: all of the parent's ordinals are the same here.
    pub(super) fn is_extended(&self) -> bool {
        self.extended
    }

    /// Notes that the chunks of these extents are used.
    pub(super) fn mark(&mut self, extents: &[Extent]) {
        for e in extents {
            let ExtentAt::Chunk { ordinal, .. } = e.at else { continue };
            let word = ordinal as usize / 64;
            if self.used.len() <= word {
                self.used.resize(word + 1, 0);
            }
            if let Some(word) = self.used.get_mut(word) {
                *word |= 1 << (ordinal % 64);
            }
        }
    }

    /// The ordinal of a chunk.
    pub(super) fn ordinal(&mut self, session: &mut WriterSession, encoder: &mut Encoder, id: ChunkId) -> Result<u32> {
        if let Some(known) = self.recent.get(&id) {
            return Ok(known);
        }
        let next = self.count + self.new_ids.len() as u64;
        let next = u32::try_from(next)
            .map_err(|_| Error::refused(Kind::Runtime, "a manifest cannot name more than 2^32 chunks"))?;
        self.new_ids.push(id);
        self.recent.insert(id, next);
        if self.new_ids.len() >= TABLE_PIECE_IDS_MAX {
            self.write_piece(session, encoder)?;
        }
        Ok(next)
    }

    /// The ordinal here of a chunk that the parent names with `ordinal`.
    pub(super) fn parent_ordinal(
        &mut self,
        session: &mut WriterSession,
        encoder: &mut Encoder,
        ordinal: u32,
    ) -> Result<u32> {
        if self.extended {
            return Ok(ordinal);
        }
        if let Some(known) = self.moved.get(&ordinal) {
            return Ok(known);
        }
        let Some(parent) = self.parent.clone() else { return Ok(ordinal) };
        let here = self.ordinal(session, encoder, parent.chunk_id(ordinal)?)?;
        self.moved.insert(ordinal, here);
        Ok(here)
    }

    /// The parent's extents with the ordinals of this table.
    pub(super) fn parent_extents(
        &mut self,
        session: &mut WriterSession,
        encoder: &mut Encoder,
        extents: &[Extent],
    ) -> Result<Vec<Extent>> {
        let mut out = extents.to_vec();
        for e in &mut out {
            if let ExtentAt::Chunk { ordinal, .. } = &mut e.at {
                *ordinal = self.parent_ordinal(session, encoder, *ordinal)?;
            }
        }
        Ok(out)
    }

    fn write_piece(&mut self, session: &mut WriterSession, encoder: &mut Encoder) -> Result<()> {
        let mut ids = std::mem::take(&mut self.new_ids);
        if ids.is_empty() {
            return Ok(());
        }
        self.count += ids.len() as u64;
        // Merge with the parent's last pieces while they are not much larger: their number stays logarithmic.
        while let (Some(last), Some(parent)) = (self.pieces.last(), &self.parent)
            && (last.ids as usize) < 2 * ids.len()
            && last.ids as usize + ids.len() <= TABLE_PIECE_IDS_MAX
        {
            let number = self.pieces.len() - 1;
            if !self.extended || parent.root().table.get(number) != Some(last) {
                break;
            }
            let mut merged = parent.table_piece(number)?.as_ref().clone();
            merged.append(&mut ids);
            ids = merged;
            self.pieces.pop();
        }
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
        let (id, _) = session.add_metadata(encoder, &bytes)?;
        self.pieces.push(TablePiece { id, ids: ids.len() as u32 });
        Ok(())
    }

    /// Writes what is left.
    pub(super) fn finish(mut self, session: &mut WriterSession, encoder: &mut Encoder) -> Result<FinishedTable> {
        self.write_piece(session, encoder)?;
        Ok(FinishedTable { pieces: self.pieces, used: self.used })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_met_lately_is_known_and_the_rest_is_forgotten() {
        let mut lately = Lately::new(10);
        (0..100u32).for_each(|n| lately.insert(n, n + 1));
        assert!((90..100).all(|n| lately.get(&n) == Some(n + 1)));
        assert_eq!((lately.get(&79), lately.get(&0)), (None, None));
        assert!(lately.newer.len() <= 10 && lately.older.len() <= 10);
    }
}
