//! An earlier backup that both repositories have: what of it both have alike is not read.

use crate::Result;
use crate::repository::manifests::{FileRecord, Manifest};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{Content, Extent, ExtentAt};
use std::sync::Arc;

/// An earlier backup that both repositories have.
pub(super) struct Twins {
    pub(super) theirs: Arc<Manifest>,
    pub(super) ours: Arc<Manifest>,
}

impl Twins {
    /// What both have under a path.
    pub(super) fn find(&self, path: &str) -> Result<Option<Twin<'_>>> {
        let (Some(theirs), Some(ours)) = (self.theirs.find(path)?, self.ours.find(path)?) else { return Ok(None) };
        Ok(Some(Twin { of: self, theirs, ours }))
    }
}

/// A file as an earlier backup has it, in either repository.
pub(super) struct Twin<'a> {
    pub(super) of: &'a Twins,
    pub(super) theirs: FileRecord,
    pub(super) ours: FileRecord,
}

impl Twin<'_> {
    /// Whether both have the file as it is.
    pub(super) fn is_as_in(&self, manifest: &Manifest, record: &FileRecord) -> Result<bool> {
        let Self { of, theirs, ours } = self;
        let size = record.entry.size;
        let is_alike = theirs.entry.size == size
            && ours.entry.size == size
            && unit(theirs) == unit(record)
            && unit(ours) == unit(record)
            && theirs.entry.bad_pages == record.entry.bad_pages
            && ours.entry.bad_pages == record.entry.bad_pages
            && theirs.extents.len() == record.extents.len();
        if !is_alike {
            return Ok(false);
        }
        for (was, is) in theirs.extents.iter().zip(&record.extents) {
            if was.units != is.units || place(&of.theirs, was)? != place(manifest, is)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Calls `each` for the names of a chunk in both, as far as they cut the file alike.
    pub(super) fn names(&self, each: &mut dyn FnMut(ChunkId, ChunkId) -> Result<()>) -> Result<()> {
        let Self { of, theirs, ours } = self;
        if unit(theirs) != unit(ours) {
            return Ok(());
        }
        for (their, our) in theirs.extents.iter().zip(&ours.extents) {
            if their.units != our.units {
                break;
            }
            match (place(&of.theirs, their)?, place(&of.ours, our)?) {
                (Some((theirs, a)), Some((ours, b))) if a == b => each(theirs, ours)?,
                (None, None) => {}
                _ => break,
            }
        }
        Ok(())
    }
}

fn unit(record: &FileRecord) -> Option<u32> {
    match record.entry.content {
        Content::Extents { unit, .. } => Some(unit),
        _ => None,
    }
}

/// The chunk of an extent, and where in it; none for zeros.
pub(super) fn place(manifest: &Manifest, extent: &Extent) -> Result<Option<(ChunkId, u32)>> {
    match extent.at {
        ExtentAt::Zero => Ok(None),
        ExtentAt::Chunk { ordinal, offset } => manifest.chunk_id(ordinal).map(|id| Some((id, offset))),
    }
}
