//! Segments that an archive lacks behind the start of its newest backup: what recovery from there needs, and cannot get.
//!
//! Works by names, from the newest backup's start on, so it costs a list for each directory of 4 GiB of WAL behind that; and a
//! read for each later timeline, whose history says whether it goes on from the backup. What is missing before that backup
//! is another matter (`verify`): the backup needs none of it.

use super::WalRange;
use super::path::{Part, is_on_path, path, timeline_at};
use crate::repository::{Backup, Repository};
use crate::{Error, Result};
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use pgkeep_formats::pg::wal::{SegmentName, WalSegment, WalSegmentSize};
use std::collections::BTreeMap;

/// Seconds that a segment may take longer than the one behind it, which was stored beside it.
pub(crate) const ON_ITS_WAY: i64 = 120;

/// Segments in a row that are missing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalHole {
    /// The first one.
    pub first: String,
    /// The last one.
    pub last: String,
    /// How many.
    pub segments: u64,
    /// Label of the backup whose recovery ends before them.
    pub backup: String,
    /// Whether the backup itself needs them: without, it never becomes consistent.
    pub is_needed: bool,
}

/// Numbers of segments that are there, and when the store took them; by timeline, ascending.
type Present = BTreeMap<u32, Vec<(u64, i64)>>;

impl Repository {
    /// The holes between the start of the newest of these backups and the newest segment, on every timeline that goes on from
    /// it, or on the way to timeline `to` alone. A server stores some segments side by side: one that follows a hole and came
    /// later than `before`, in seconds since the Unix epoch, proves nothing yet.
    ///
    /// # Errors
    /// What the store said.
    pub fn wal_holes<'b>(
        &self,
        stanza: &str,
        archive_id: &str,
        backups: impl IntoIterator<Item = &'b Backup>,
        before: Option<i64>,
        to: Option<TimelineId>,
    ) -> Result<Vec<WalHole>> {
        let own = backups.into_iter().filter(|b| b.wal.is_some() && b.archive_id() == archive_id);
        let Some(backup) = own.max_by_key(|b| b.stop) else { return Ok(Vec::new()) };
        let Some((size, start, stop)) = range_of(backup) else { return Ok(Vec::new()) };
        let mut present = Present::new();
        // What it keeps itself it needs no archive for: the server takes that from 'pg_wal' and goes on with the archive.
        let first = if backup.keeps_wal { stop.next() } else { start };
        let from = first.name(size);
        self.wal_list(stanza, archive_id, WalRange { from: Some(&from), to: None }, &mut |entry| {
            if let Some(segment) = SegmentName::parse(&entry.name).ok().and_then(|name| name.segment(size).ok())
                && segment.number >= first.number
            {
                present.entry(segment.timeline.0).or_default().push((segment.number, entry.modified));
            }
            Ok(())
        })?;
        let later = present.keys().copied().filter(|t| *t > start.timeline.0);
        let timelines = [start.timeline.0].into_iter().chain(later).filter(|t| to.is_none_or(|to| to.0 == *t));
        let mut found = Vec::new();
        for timeline in timelines {
            let is_own = timeline == start.timeline.0;
            let history = if is_own { None } else { self.history(stanza, archive_id, TimelineId(timeline)) };
            let parts = path(timeline, history.as_ref(), size);
            if is_on_path(&parts, start.timeline.0, start.number, stop.number) {
                found.extend(holes(&present, &parts, first, stop, backup.stop));
            }
        }
        found.retain(|hole| before.is_none_or(|before| hole.proof <= before));
        let mut found: Vec<_> = found.into_iter().map(|hole| hole.named(backup, stop, size)).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The history of a timeline; none if nobody knows it: 'verify' says what is wrong with it.
    fn history(&self, stanza: &str, archive_id: &str, timeline: TimelineId) -> Option<TimelineHistory> {
        let read = || -> Result<Option<TimelineHistory>> {
            let name = timeline.history_file_name();
            let Some(content) = self.wal_get(stanza, archive_id, &name)? else { return Ok(None) };
            TimelineHistory::parse(timeline, &content).map(Some).map_err(Error::damaged(&name))
        };
        read().unwrap_or_else(|e| {
            tracing::debug!("{}", e.chain());
            None
        })
    }
}

/// The segments a backup needs, if it says what is a range.
fn range_of(backup: &Backup) -> Option<(WalSegmentSize, WalSegment, WalSegment)> {
    let size = WalSegmentSize::new(backup.wal_segment_size)?;
    let (start, stop) = backup.wal.as_ref()?;
    let (start, stop) = (WalSegment::parse(start, size).ok()?, WalSegment::parse(stop, size).ok()?);
    (start.timeline == stop.timeline && start.number <= stop.number).then_some((size, start, stop))
}

/// A hole by numbers.
struct Hole {
    first: (u32, u64),
    last: (u32, u64),
    /// When the segment behind it came; if there is none, when the backup ended that needs it.
    proof: i64,
}

impl Hole {
    fn named(&self, backup: &Backup, stop: WalSegment, size: WalSegmentSize) -> WalHole {
        let name = |(timeline, number): (u32, u64)| WalSegment { timeline: TimelineId(timeline), number }.name(size);
        WalHole {
            first: name(self.first),
            last: name(self.last),
            segments: self.last.1 - self.first.1 + 1,
            backup: backup.label.clone(),
            // A descendant's copy of its last segment it can do without: what its own timeline lacks is found on that.
            is_needed: self.first.1 <= stop.number && self.first.0 <= stop.timeline.0,
        }
    }
}

/// What is missing on a path, from `start` to its last segment; on the backup's own timeline to `stop` at least, if that is
/// not before `start`. On another one the segment of the stop may be the one that is written now.
fn holes(present: &Present, parts: &[Part], start: WalSegment, stop: WalSegment, ended: i64) -> Vec<Hole> {
    let mut found = Vec::new();
    let at = |number: u64| (timeline_at(parts, number), number);
    let mut next = start.number;
    for part in parts {
        for (number, modified) in present.get(&part.timeline).into_iter().flatten() {
            if *number < next.max(part.first) || *number > part.last {
                continue;
            }
            if *number > next {
                found.push(Hole { first: at(next), last: at(*number - 1), proof: *modified });
            }
            next = number.saturating_add(1);
        }
    }
    if next <= stop.number && parts.last().is_some_and(|p| p.timeline == start.timeline.0) {
        found.push(Hole { first: at(next), last: at(stop.number), proof: ended });
    }
    found
}
