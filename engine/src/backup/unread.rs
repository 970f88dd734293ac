//! What need not be read of a relation file, because WAL summaries say that it did not change.
//!
//! Units of decision are the parent's extents: one that holds no changed block is taken over as it is, and all others
//! are read whole, so that the chunks of a file are cut where they would be if all of it had been read.

use super::plan::Plan;
use super::task::{ParentFile, What};
use crate::pg::datadir;
use crate::pg::summaries::{BlockSet, Verdict};
use crate::repository::manifests::FileRecord;
use pgkeep_formats::pg::path::{PathClass, classify};
use pgkeep_formats::repo::manifest::{Content, ExtentAt};
use std::sync::Arc;

/// What is known of a file before it is opened.
pub(super) enum Known {
    /// Nothing: its size and time decide.
    Nothing,
    /// That it is what the parent holds.
    Unchanged,
    /// That it changed in these blocks.
    Changed(Arc<BlockSet>),
    /// That it must be read, whatever its size and time.
    Other,
}

impl Plan {
    /// What summaries tell of a file of which the parent has `record`.
    pub(super) fn known(&self, path: &str, now: &datadir::Entry, record: &FileRecord) -> Known {
        let (Some(changed), PathClass::Relation(file)) = (&self.changed, classify(path)) else { return Known::Nothing };
        let set = match changed.verdict(&file, now.size) {
            Verdict::Blocks(set) => set,
            Verdict::ReadAll(reason) if reason.is_silent() => return Known::Nothing,
            Verdict::ReadAll(reason) => {
                tracing::trace!("read all of {path}: {reason}");
                return Known::Other;
            }
        };
        if !matches!(record.entry.content, Content::Extents { unit, .. } if unit == self.page_size) {
            return Known::Other;
        }
        let blocks = |size: u64| (size / u64::from(self.page_size.max(1))) as u32;
        let set = set.within(blocks(record.entry.size), &record.entry.bad_pages);
        if now.size == record.entry.size && !set.touches(0..blocks(now.size)) {
            return Known::Unchanged;
        }
        Known::Changed(Arc::new(set))
    }
}

/// A part of a stretch, in units.
pub(super) enum Part {
    /// The parent's.
    Take { units: u32, what: What },
    /// To be read.
    Read { first: u64, units: u64 },
}

/// Splits `units` units of a file from `first` on into what is the parent's and what must be read, in file order.
pub(super) fn split(parent: &ParentFile, set: &BlockSet, first: u64, units: u64) -> Vec<Part> {
    let (mut parts, end) = (Vec::new(), first + units);
    let mut read = first;
    for (start, extent) in parent.extents_from(first).take_while(|(start, _)| *start < end) {
        let (from, to) = (start.max(first), (start + u64::from(extent.units)).min(end));
        if from >= to || set.touches(from as u32..to as u32) {
            continue;
        }
        if read < from {
            parts.push(Part::Read { first: read, units: from - read });
        }
        let what = match extent.at {
            ExtentAt::Zero => What::Zero,
            ExtentAt::Chunk { ordinal, offset } => What::Parent { ordinal, offset: offset + (from - start) as u32 },
        };
        parts.push(Part::Take { units: (to - from) as u32, what });
        read = to;
    }
    if read < end {
        parts.push(Part::Read { first: read, units: end - read });
    }
    parts
}
