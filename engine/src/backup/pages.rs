//! What the parent knows of a file's pages: where each is, its hash, and the old page a delta of it can build on.
//!
//! Places come from the parent's extents, hashes from the packs' hash sections ([`crate::pack::PackContents`]): nothing of
//! a chunk is read or decoded to find out what changed. The hashes are keyed and authenticated with their pack; a page is
//! taken to be unchanged on the strength of 64 bits, which only who holds the id key could aim at.

use crate::Result;
use crate::index::{ChunkIndex, Encoding};
use crate::pack::PackContents;
use crate::repository::RepositoryIndex;
use crate::repository::manifests::Manifest;
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt};
use std::collections::HashMap;
use std::sync::Arc;

/// Chunks of the parent a worker remembers.
const KNOWN_MAX: usize = 4096;

/// A file as the parent has it.
pub(super) struct ParentFile {
    manifest: Arc<Manifest>,
    /// First unit of each extent, and the extent.
    extents: Vec<(u64, Extent)>,
    units: u64,
}

/// What was in a page's place.
#[derive(Clone, Copy)]
pub(super) enum Then<'a> {
    /// Nothing, or zeros.
    Nothing,
    /// A page of a chunk.
    At { manifest: &'a Arc<Manifest>, ordinal: u32, offset: u32 },
}

impl ParentFile {
    pub(super) fn new(manifest: &Arc<Manifest>, extents: &[Extent]) -> Self {
        let mut start = 0;
        let mut placed = Vec::with_capacity(extents.len());
        for e in extents {
            placed.push((start, *e));
            start += u64::from(e.units);
        }
        Self { manifest: Arc::clone(manifest), extents: placed, units: start }
    }

    fn at(&self, unit: u64) -> Option<&(u64, Extent)> {
        let after = self.extents.partition_point(|(start, _)| *start <= unit);
        self.extents.get(after.checked_sub(1)?).filter(|(start, e)| unit - start < u64::from(e.units))
    }

    /// What was in the place of a page.
    pub(super) fn page(&self, unit: u64) -> Then<'_> {
        match self.at(unit) {
            Some((start, Extent { at: ExtentAt::Chunk { ordinal, offset }, .. })) => {
                let offset = offset.saturating_add((unit - start) as u32);
                Then::At { manifest: &self.manifest, ordinal: *ordinal, offset }
            }
            _ => Then::Nothing,
        }
    }

    /// The extents from the one that holds `unit` on, each with its first unit.
    pub(super) fn extents_from(&self, unit: u64) -> impl Iterator<Item = (u64, Extent)> {
        let at = self.extents.partition_point(|(start, e)| start + u64::from(e.units) <= unit);
        self.extents.get(at..).unwrap_or_default().iter().copied()
    }

    /// True if the parent's file ended before this unit.
    pub(super) fn is_behind(&self, unit: u64) -> bool {
        unit >= self.units
    }

    /// The parent's ordinal of these very units, if it is chunk `id` there.
    pub(super) fn ordinal_of(&self, start: u64, units: u32, id: &ChunkId) -> Result<Option<u32>> {
        match self.at(start) {
            Some((first, Extent { units: n, at: ExtentAt::Chunk { ordinal, offset: 0 } }))
                if *first == start && *n == units =>
            {
                Ok((self.manifest.chunk_id(*ordinal)? == *id).then_some(*ordinal))
            }
            _ => Ok(None),
        }
    }
}

/// A chunk of the parent, with what its pack tells of its pages.
pub(super) struct Known {
    id: ChunkId,
    contents: Arc<PackContents>,
    ordinal: u16,
    encoding: Encoding,
}

impl Known {
    /// Hash of a page, if there is one.
    pub(super) fn hash(&self, page: u32) -> Option<u64> {
        self.contents.hashes(self.ordinal).get(page as usize).copied()
    }

    /// The page a delta of this page is to be encoded against: itself or, as depth is one, what it was encoded against.
    pub(super) fn base(&self, page: u32) -> Option<(ChunkId, u32)> {
        match self.encoding {
            Encoding::Raw | Encoding::Zstd => Some((self.id, page)),
            Encoding::ZstdPrefix | Encoding::Patch => self.contents.base_of_page(self.ordinal, page),
            Encoding::ZstdDictionary => None,
        }
    }
}

/// Chunks of the parent that a worker met last, by their ordinals there.
#[derive(Default)]
pub(super) struct KnownPages(HashMap<u32, Option<Arc<Known>>>);

impl KnownPages {
    /// The chunk under an ordinal of the parent; `None` if it cannot be built on.
    pub(super) fn of(
        &mut self,
        index: &RepositoryIndex,
        manifest: &Arc<Manifest>,
        ordinal: u32,
    ) -> Result<Option<Arc<Known>>> {
        if let Some(known) = self.0.get(&ordinal) {
            return Ok(known.clone());
        }
        let id = manifest.chunk_id(ordinal)?;
        // Of packs that are lost or condemned the index does not speak.
        let known = match index.lookup(&id)? {
            Some(at) => match manifest.source().repository().pack_contents(&at.pack) {
                Ok(contents) => {
                    let (ordinal, encoding) = (at.ordinal, at.encoding);
                    (contents.id(ordinal) == Some(id)).then(|| Arc::new(Known { id, contents, ordinal, encoding }))
                }
                Err(e) => {
                    // Its pages are then stored again, which is all that a backup can do about it.
                    tracing::warn!("{}: pages that were in it are stored again", e.chain());
                    None
                }
            },
            None => None,
        };
        if self.0.len() >= KNOWN_MAX {
            self.0.clear();
        }
        self.0.insert(ordinal, known.clone());
        Ok(known)
    }
}

/// A page that changed, beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChangedPage {
    pub(super) hash: u64,
    /// Chunk and number of the page to encode it against.
    pub(super) base: Option<(ChunkId, u32)>,
}

/// Pages that changed, in file order.
#[derive(Debug, Default)]
pub(super) struct ChangedPages {
    /// Their bytes, joined.
    pub(super) bytes: Vec<u8>,
    pub(super) pages: Vec<ChangedPage>,
}

impl ChangedPages {
    /// Appends one and returns its number.
    pub(super) fn push(&mut self, page: &[u8], hash: u64, base: Option<(ChunkId, u32)>) -> usize {
        self.bytes.extend_from_slice(page);
        self.pages.push(ChangedPage { hash, base });
        self.pages.len() - 1
    }
}
