//! Whether recovery has got to where the archive ends.
//!
//! A server that is told to recover as far as it can takes the first segment that is missing for the end: it promotes,
//! and all looks well. So what the archive has is noted before, and compared with where the server says recovery ended.

use crate::error::Failure;
use pgkeep_engine::repository::Repository;
use pgkeep_engine::restore::Choice;
use pgkeep_engine::restore::recovery::RecoveryType;
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use pgkeep_formats::pg::wal::{WalSegment, WalSegmentSize};
use std::sync::Arc;

/// A record that begins at the end of the last segment goes on in one that is not there yet: recovery then ends in the
/// segment before the last.
const BEHIND_MAX: u64 = 1;

/// Says which timeline recovery follows, not how far.
const TIMELINE: &str = "recovery_target_timeline";

/// The end of an archive before recovery.
#[derive(Debug)]
pub(super) struct ArchiveEnd {
    repository: Arc<Repository>,
    stanza: String,
    archive_id: String,
    size: WalSegmentSize,
    /// The newest segment of each timeline.
    newest: Vec<WalSegment>,
    /// The timeline that recovery must get to, if it is the newest.
    timeline: Option<TimelineId>,
}

impl ArchiveEnd {
    /// The end of the archive that the backup needs; none if recovery is told to end elsewhere.
    ///
    /// # Errors
    /// What the repository said.
    pub(super) fn of(stanza: &str, choice: &Choice) -> Result<Option<Self>, Failure> {
        let recovery = &choice.recovery;
        let has_target = recovery.settings.iter().any(|(name, _)| {
            let name = name.replace('-', "_").to_ascii_lowercase();
            name.starts_with("recovery_target") && name != TIMELINE
        });
        let Some(size) = WalSegmentSize::new(choice.backup.wal_segment_size) else { return Ok(None) };
        if recovery.recovery_type != RecoveryType::Default || has_target {
            return Ok(None);
        }
        let (repository, archive_id) = (Arc::clone(&choice.repository), choice.backup.archive_id());
        let newest = repository.wal_newest(stanza, &archive_id)?;
        let newest = newest.iter().filter_map(|name| name.segment(size).ok()).collect();
        let latest = matches!(recovery.timeline.as_deref(), None | Some("latest"))
            && !recovery.settings.iter().any(|(name, _)| name.replace('-', "_").eq_ignore_ascii_case(TIMELINE));
        let timeline = match latest {
            true => repository.wal_timelines(stanza, &archive_id)?.last().copied(),
            false => None,
        };
        Ok(Some(Self { repository, stanza: stanza.to_owned(), archive_id, size, newest, timeline }))
    }

    /// What recovery has not got to, in words. `history` is that of the timeline the server is on since.
    ///
    /// # Errors
    /// What the repository said.
    pub(super) fn missed(&self, history: &TimelineHistory) -> Result<Option<String>, Failure> {
        let missed = compared(&self.newest, self.timeline, self.size, history);
        let Some(missed) = missed else { return Ok(None) };
        Ok(Some(match missed {
            Missed::Timeline { reached, newest } => {
                format!("the archive has timeline {newest}, but recovery has ended on timeline {reached}")
            }
            Missed::Segments { next, last } => {
                let gap = self.repository.wal_gaps(&self.stanza, &self.archive_id, next, next, self.size).next();
                let next = next.name(self.size);
                let why = match gap.transpose()? {
                    Some(_) => format!("segment {next} is missing, as 'verify' tells too"),
                    None => format!("segment {next}, which is there, was not replayed"),
                };
                let last = last.name(self.size);
                format!("the archive goes on to {last}, but {why}; --type=immediate recovers to the backup's end only")
            }
        }))
    }
}

/// How recovery came short.
#[derive(Debug, PartialEq, Eq)]
enum Missed {
    Timeline {
        reached: TimelineId,
        newest: TimelineId,
    },
    /// The first segment that it has not got to, and the last one there is.
    Segments {
        next: WalSegment,
        last: WalSegment,
    },
}

/// What recovery has missed: of these segments, the newest of their timelines, and of this timeline. `history` is that of
/// the timeline the server went on to.
fn compared(
    newest: &[WalSegment],
    timeline: Option<TimelineId>,
    size: WalSegmentSize,
    history: &TimelineHistory,
) -> Option<Missed> {
    // The line the server has added when it went on as a primary: from where to where.
    let (ended, ancestors) = history.parents.split_last()?;
    let path = TimelineHistory { own: ended.timeline, parents: ancestors.to_vec() };
    if let Some(newest) = timeline.filter(|newest| *newest > ended.timeline) {
        return Some(Missed::Timeline { reached: ended.timeline, newest });
    }
    let reached = ended.switch.segment_number_before(size);
    let last = newest.iter().filter_map(|newest| on_path(&path, *newest, size)).max_by_key(|s| s.number)?;
    if last.number <= reached.saturating_add(BEHIND_MAX) {
        return None;
    }
    let number = reached.saturating_add(1);
    // On a path the descendant has a copy of the segment in which it left.
    let end = Lsn(number.saturating_add(1).saturating_mul(size.bytes()).saturating_sub(1));
    Some(Missed::Segments { next: WalSegment { timeline: path.timeline_at(end), number }, last })
}

/// The last segment of a timeline's that counts on the way of a history, if it is on it.
fn on_path(path: &TimelineHistory, newest: WalSegment, size: WalSegmentSize) -> Option<WalSegment> {
    if newest.timeline == path.own {
        return Some(newest);
    }
    let switch = path.switch_point(newest.timeline)?;
    // What was archived of it after it was left leads elsewhere.
    let last = switch.segment_number(size).checked_sub(1)?;
    Some(WalSegment { number: newest.number.min(last), ..newest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_formats::pg::timeline::TimelineSwitch;

    const SEGMENT: u64 = 16 << 20;

    fn history(own: u32, parents: &[(u32, u64)]) -> TimelineHistory {
        let parent = |(timeline, switch): &(u32, u64)| TimelineSwitch {
            timeline: TimelineId(*timeline),
            switch: Lsn(*switch),
            reason: String::new(),
        };
        TimelineHistory { own: TimelineId(own), parents: parents.iter().map(parent).collect() }
    }

    fn segment(timeline: u32, number: u64) -> WalSegment {
        WalSegment { timeline: TimelineId(timeline), number }
    }

    #[test]
    fn recovery_that_ends_before_the_archive_does_is_seen() {
        let size = WalSegmentSize::new(SEGMENT).unwrap();
        let missed = |newest: &[(u32, u64)], latest: Option<u32>, history: &TimelineHistory| {
            let newest: Vec<_> = newest.iter().map(|(t, n)| segment(*t, *n)).collect();
            compared(&newest, latest.map(TimelineId), size, history)
        };
        let segments = |next, last| Some(Missed::Segments { next, last });
        // Inside the last segment, on its very end, and in the one before, whose last record goes on.
        for end in [9 * SEGMENT + 40, 10 * SEGMENT, 8 * SEGMENT + 40] {
            assert_eq!(missed(&[(1, 9)], None, &history(2, &[(1, end)])), None);
        }
        assert_eq!(missed(&[(1, 9)], None, &history(2, &[(1, 8 * SEGMENT)])), segments(segment(1, 8), segment(1, 9)));
        assert_eq!(missed(&[], None, &history(2, &[(1, 8 * SEGMENT)])), None);
        // On the way to timeline 2, which left 1 in segment 6: what 1 wrote after it does not count, what 2 wrote does.
        let left = 6 * SEGMENT + 100;
        let ended = |at| history(3, &[(1, left), (2, at)]);
        assert_eq!(missed(&[(1, 20), (2, 9)], Some(2), &ended(9 * SEGMENT + 1)), None);
        assert_eq!(missed(&[(1, 20), (2, 9)], Some(2), &ended(4 * SEGMENT)), segments(segment(1, 4), segment(2, 9)));
        assert_eq!(missed(&[(1, 20), (2, 9)], Some(2), &ended(6 * SEGMENT)), segments(segment(2, 6), segment(2, 9)));
        // Nothing of 2 is archived yet.
        assert_eq!(missed(&[(1, 20)], Some(2), &ended(6 * SEGMENT)), None);
        // The history of 2 is not found by the server, or nobody asked for the newest.
        let on_first = history(2, &[(1, 9 * SEGMENT)]);
        let newer = Missed::Timeline { reached: TimelineId(1), newest: TimelineId(3) };
        assert_eq!(missed(&[(1, 9), (3, 12)], Some(3), &on_first), Some(newer));
        assert_eq!(missed(&[(1, 9), (3, 12)], None, &on_first), None);
    }
}
