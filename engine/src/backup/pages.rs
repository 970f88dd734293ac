//! What earlier backups know of a file's pages: where each is, its hash, and the old page a delta of it can build on.
//!
//! A page is looked for in the manifest that the new one is built on first, as places it has cost nothing to write down
//! again, and then in the page parent's, which is newer. The delta of a page that is in neither builds on the latter.
//!
//! Places come from the manifests' extents, hashes from the packs' hash sections ([`crate::pack::PackContents`]): nothing of
//! a chunk is read or decoded to find out what changed. The hashes are keyed and authenticated with their pack; a page is
//! taken to be unchanged on the strength of 64 bits, which only who holds the id key could aim at.

use super::task::What;
use crate::Result;
use crate::index::{ChunkAt, ChunkIndex, Encoding};
use crate::pack::{BasePages, PackContents};
use crate::repository::RepositoryIndex;
use crate::repository::manifests::Manifest;
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt};
use std::collections::HashMap;
use std::sync::Arc;

/// Chunks of earlier backups a worker remembers.
const KNOWN_MAX: usize = 2048;

/// A file as one earlier backup has it.
pub(super) struct ParentFile {
    manifest: Arc<Manifest>,
    /// First unit of each extent, and the extent.
    extents: Vec<(u64, Extent)>,
    units: u64,
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

    /// Ordinal and number of the page that was in this place, unless that was nothing or zeros.
    fn page(&self, unit: u64) -> Option<(u32, u32)> {
        match self.at(unit) {
            Some((start, Extent { at: ExtentAt::Chunk { ordinal, offset }, .. })) => {
                Some((*ordinal, offset.saturating_add((unit - start) as u32)))
            }
            _ => None,
        }
    }

    /// The extents from the one that holds `unit` on, each with its first unit.
    pub(super) fn extents_from(&self, unit: u64) -> impl Iterator<Item = (u64, Extent)> {
        let at = self.extents.partition_point(|(start, e)| start + u64::from(e.units) <= unit);
        self.extents.get(at..).unwrap_or_default().iter().copied()
    }

    /// The ordinal of these very units, if they are chunk `id`.
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

/// A file as earlier backups have it; at least one has.
pub(super) struct EarlierFile {
    /// In the manifest that the new one is built on: its ordinals are [`What::Parent`]'s.
    pub(super) own: Option<ParentFile>,
    /// In the page parent's manifest, if that is another.
    pub(super) newest: Option<ParentFile>,
}

impl EarlierFile {
    /// True if all of them ended before this unit.
    pub(super) fn is_behind(&self, unit: u64) -> bool {
        [&self.own, &self.newest].into_iter().flatten().all(|file| unit >= file.units)
    }
}

/// A chunk of an earlier backup, with what its pack tells of its pages: some 3 KiB of a gathered one.
pub(super) struct Known {
    id: ChunkId,
    hashes: Box<[u64]>,
    /// `None` of a chunk that is stored in full, else the old page of each of its own, in runs.
    bases: Option<Box<[BasePages]>>,
}

impl Known {
    fn new(id: ChunkId, at: &ChunkAt, contents: &PackContents) -> Self {
        let hashes: Box<[u64]> = contents.hashes(at.ordinal).into();
        let bases = match at.encoding {
            Encoding::Raw | Encoding::Zstd => None,
            Encoding::ZstdPrefix | Encoding::Patch | Encoding::ZstdDictionary => {
                let runs = contents.bases(at.ordinal);
                let pages: u64 = runs.iter().map(|r| u64::from(r.pages)).sum();
                // As many old pages as hashes, which is one a page: then they belong together in their order.
                Some(if pages == hashes.len() as u64 { runs.into() } else { Box::default() })
            }
        };
        Self { id, hashes, bases }
    }

    /// Hash of a page, if there is one.
    pub(super) fn hash(&self, page: u32) -> Option<u64> {
        self.hashes.get(page as usize).copied()
    }

    /// The page a delta of this page is to be encoded against: itself or, as depth is one, what it was encoded against.
    pub(super) fn base(&self, page: u32) -> Option<(ChunkId, u32)> {
        let Some(bases) = &self.bases else { return Some((self.id, page)) };
        let mut rest = page;
        for run in bases {
            if rest < run.pages {
                return Some((run.chunk, run.first.checked_add(rest)?));
            }
            rest -= run.pages;
        }
        None
    }
}

/// What became of a page.
pub(super) enum Sought {
    /// It is where it was.
    Unchanged(What),
    /// It changed. The chunk and number of the page to encode it against, if there is one.
    Changed { base: Option<(ChunkId, u32)> },
}

/// Chunks that a worker met last, by manifest (true: the page parent's) and ordinal there.
#[derive(Default)]
pub(super) struct KnownPages(HashMap<(bool, u32), Option<Arc<Known>>>);

impl KnownPages {
    /// Looks for a page in the place where it was.
    pub(super) fn find(&mut self, index: &RepositoryIndex, file: &EarlierFile, unit: u64, hash: u64) -> Result<Sought> {
        let mut base = None;
        if let Some(own) = &file.own
            && let Some((ordinal, offset)) = own.page(unit)
            && let Some(known) = self.of(index, &own.manifest, false, ordinal)?
        {
            if known.hash(offset) == Some(hash) {
                return Ok(Sought::Unchanged(What::Parent { ordinal, offset }));
            }
            base = known.base(offset);
        }
        if let Some(newest) = &file.newest
            && let Some((ordinal, offset)) = newest.page(unit)
            && let Some(known) = self.of(index, &newest.manifest, true, ordinal)?
        {
            if known.hash(offset) == Some(hash) {
                return Ok(Sought::Unchanged(What::Kept { id: known.id, offset }));
            }
            base = known.base(offset).or(base);
        }
        Ok(Sought::Changed { base })
    }

    /// The chunk under an ordinal of a manifest; `None` if it cannot be built on.
    fn of(
        &mut self,
        index: &RepositoryIndex,
        manifest: &Arc<Manifest>,
        is_newest: bool,
        ordinal: u32,
    ) -> Result<Option<Arc<Known>>> {
        let key = (is_newest, ordinal);
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let known = match manifest.chunk_id(ordinal) {
            Ok(id) => known(index, manifest, id)?,
            // It was read before copying began. Of the manifest that is built on, nothing can be missing.
            Err(e) if is_newest && !e.concerns_the_run() => {
                tracing::warn!("{}: pages that are in it are stored again", e.chain());
                None
            }
            Err(e) => return Err(e),
        };
        if self.0.len() >= KNOWN_MAX {
            self.0.clear();
        }
        self.0.insert(key, known.clone());
        Ok(known)
    }
}

/// A chunk with what its pack tells; `None` if it cannot be built on.
fn known(index: &RepositoryIndex, manifest: &Arc<Manifest>, id: ChunkId) -> Result<Option<Arc<Known>>> {
    // Of packs that are lost or condemned the index does not speak.
    let Some(at) = index.lookup(&id)? else { return Ok(None) };
    let repository = manifest.source().repository();
    let contents = repository.is_complete(index, &at).and_then(|complete| {
        // A delta whose base is gone, or is a delta itself, is as good as gone.
        if complete { repository.pack_contents(&at.pack).map(Some) } else { Ok(None) }
    });
    match contents {
        Ok(contents) => {
            let contents = contents.filter(|contents| contents.id(at.ordinal) == Some(id));
            Ok(contents.map(|contents| Arc::new(Known::new(id, &at, &contents))))
        }
        Err(e) if e.concerns_the_run() => Err(e),
        Err(e) => {
            // Its pages are then stored again, which is all that a backup can do about it.
            tracing::warn!("{}: pages that were in it are stored again", e.chain());
            Ok(None)
        }
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
