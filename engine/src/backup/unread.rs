//! What need not be read of a relation file, because WAL summaries say that it did not change.
//!
//! Blocks that summaries do not name keep the parent's places; runs of the others are read, with small gaps between them.

use super::plan::Plan;
use super::task::What;
use crate::pg::datadir;
use crate::pg::summaries::{BlockSet, Verdict};
use crate::repository::manifests::{BAD_PAGES_MAX, FileRecord};
use pgkeep_formats::pg::path::{PathClass, classify};
use pgkeep_formats::repo::manifest::{Content, Extent, ExtentAt};
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
        // Of a file with more damage than its record has room for, not all pages that may have been repaired are known.
        let told = record.entry.bad_pages.len() < BAD_PAGES_MAX;
        if !told || !matches!(record.entry.content, Content::Extents { unit, .. } if unit == self.page_size) {
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

/// Blocks between two changed ones that are read along: a read more costs as much.
pub(super) const GAP_BLOCKS: u32 = 4;

/// Splits `units` units of a file from `first` on into what is the parent's and what must be read, in file order.
/// `extents` are the parent's, each with its first unit, from the one that holds `first` on.
pub(super) fn split(extents: impl Iterator<Item = (u64, Extent)>, set: &BlockSet, first: u64, units: u64) -> Vec<Part> {
    let (mut parts, end) = (Vec::new(), first + units);
    let (mut runs, mut extents) = (set.runs(first as u32..end as u32, GAP_BLOCKS).into_iter(), extents.peekable());
    let mut at = first;
    while at < end {
        let run = runs.next().map_or(end..end, |r| u64::from(r.start)..u64::from(r.end));
        while at < run.start {
            while extents.next_if(|(start, e)| start + u64::from(e.units) <= at).is_some() {}
            let Some((start, extent)) = extents.peek().filter(|(start, _)| *start <= at) else { break };
            let to = (start + u64::from(extent.units)).min(run.start);
            let what = match extent.at {
                ExtentAt::Zero => What::Zero,
                ExtentAt::Chunk { ordinal, offset } => What::Parent { ordinal, offset: offset + (at - start) as u32 },
            };
            parts.push(Part::Take { units: (to - at) as u32, what });
            at = to;
        }
        // What the parent has nothing of is read as well, whatever the set says.
        if at < run.end {
            parts.push(Part::Read { first: at, units: run.end - at });
            at = run.end;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_starts(extents: &[Extent]) -> Vec<(u64, Extent)> {
        let mut start = 0;
        let place = |e: &Extent| {
            let at = start;
            start += u64::from(e.units);
            (at, *e)
        };
        extents.iter().map(place).collect()
    }

    fn chunk(units: u32, ordinal: u32, offset: u32) -> Extent {
        Extent { units, at: ExtentAt::Chunk { ordinal, offset } }
    }

    /// Parts as text: `r4` reads four units, `z` is zeros, `c7+2` is chunk 7 from its unit 2 on.
    fn shown(parts: &[Part]) -> Vec<String> {
        let show = |part: &Part| match part {
            Part::Read { first, units } => format!("{first}: r{units}"),
            Part::Take { units, what: What::Zero } => format!("z{units}"),
            Part::Take { units, what: What::Parent { ordinal, offset } } => format!("c{ordinal}+{offset}/{units}"),
            Part::Take { .. } => "a new chunk".to_owned(),
        };
        parts.iter().map(show).collect()
    }

    #[test]
    fn extents_without_changes_are_taken_over() {
        let extents =
            with_starts(&[chunk(4, 1, 0), Extent { units: 4, at: ExtentAt::Zero }, chunk(4, 7, 2), chunk(4, 8, 0)]);
        let split = |changed: &[u32], end, first: u64, units| {
            let from = extents.iter().copied().filter(move |(start, e)| start + u64::from(e.units) > first);
            shown(&split(from, &BlockSet::of(end, changed), first, units))
        };
        assert_eq!(split(&[], 16, 0, 16), ["c1+0/4", "z4", "c7+2/4", "c8+0/4"]);
        assert_eq!(split(&[9], 16, 0, 16), ["c1+0/4", "z4", "c7+2/1", "9: r1", "c7+4/2", "c8+0/4"]);
        assert_eq!(split(&[3, 4], 16, 0, 16), ["c1+0/3", "3: r2", "z3", "c7+2/4", "c8+0/4"]);
        // A small gap is read along.
        assert_eq!(split(&[2, 6, 12], 16, 0, 16), ["c1+0/2", "2: r5", "z1", "c7+2/4", "12: r1", "c8+1/3"]);
        // The file was cut to 9 units and grew again; and it is longer than the parent's.
        assert_eq!(split(&[], 9, 0, 16), ["c1+0/4", "z4", "c7+2/1", "9: r7"]);
        assert_eq!(split(&[], 16, 8, 12), ["c7+2/4", "c8+0/4", "16: r4"]);
        // A stretch that begins and ends inside extents.
        assert_eq!(split(&[], 16, 2, 8), ["c1+2/2", "z4", "c7+2/2"]);
        assert_eq!(split(&[], 16, 20, 4), ["20: r4"]);
    }

    proptest! {
        #[test]
        fn nothing_is_left_out_and_nothing_that_changed_is_taken(
            lengths in proptest::collection::vec(1u32..20, 0..12),
            changed in proptest::collection::btree_set(0u32..200, 0..10),
            end in 0u32..200, first in 0u64..150, units in 1u64..60,
        ) {
            let extents: Vec<Extent> = lengths.iter().zip(0..).map(|(units, n)| chunk(*units, n, n)).collect();
            let extents = with_starts(&extents);
            let set = BlockSet::of(end, &changed.into_iter().collect::<Vec<_>>());
            let mut at = first;
            for part in split(extents.iter().copied(), &set, first, units) {
                match part {
                    Part::Read { first, units } => {
                        prop_assert_eq!(first, at);
                        at += units;
                    }
                    Part::Take { units, what } => {
                        prop_assert!(!set.touches(at as u32..at as u32 + units));
                        let (start, extent) = *extents.iter().rfind(|(start, _)| *start <= at).unwrap();
                        prop_assert!(at + u64::from(units) <= start + u64::from(extent.units));
                        let ordinal = extents.iter().position(|(s, _)| *s == start).unwrap() as u32;
                        let expected = (ordinal, ordinal + (at - start) as u32);
                        let as_expected = matches!(what, What::Parent { ordinal, offset } if (ordinal, offset) == expected);
                        prop_assert!(as_expected);
                        at += u64::from(units);
                    }
                }
            }
            prop_assert_eq!(at, first + units);
        }
    }
}
