//! The way of recovery through segments: a timeline and its ancestors, each up to the segment in which it was left.

use pgkeep_formats::pg::timeline::TimelineHistory;
use pgkeep_formats::pg::wal::WalSegmentSize;

/// The part of a path on one timeline: segments `first..=last`.
pub(crate) struct Part {
    pub(crate) timeline: u32,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// The path to the end of a timeline; without a history it has no ancestors.
pub(crate) fn path(timeline: u32, history: Option<&TimelineHistory>, size: WalSegmentSize) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut first = 0;
    for parent in history.map_or(&[][..], |h| &h.parents) {
        // The descendant begins with a copy of the segment in which it left.
        let switch = parent.switch.segment_number(size);
        if switch > first {
            parts.push(Part { timeline: parent.timeline.0, first, last: switch - 1 });
        }
        first = first.max(switch);
    }
    parts.push(Part { timeline, first, last: u64::MAX });
    parts
}

/// Whether a backup that needs `first..=last` of a timeline is on a path: it is if it ended before its timeline was left. Its
/// last segment may be the one in which that happened; the descendant's copy then serves it.
pub(crate) fn is_on_path(parts: &[Part], timeline: u32, first: u64, last: u64) -> bool {
    parts.iter().any(|p| p.timeline == timeline && first >= p.first && last <= p.last.saturating_add(1))
}

/// The timeline that a segment is of on a path, which has all numbers.
pub(crate) fn timeline_at(parts: &[Part], number: u64) -> u32 {
    parts.iter().find(|p| p.first <= number && number <= p.last).map_or(0, |p| p.timeline)
}
