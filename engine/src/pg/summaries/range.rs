//! Which WAL lies between two backups, and which summaries cover it.

use super::{Since, Until};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::summary::SummaryName;
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use std::fmt;

/// WAL of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) timeline: TimelineId,
    pub(super) start: Lsn,
    pub(super) end: Lsn,
}

/// WAL that no summary covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    /// The range that it lies in.
    pub(super) needed: Range,
    /// Where it begins.
    pub(super) missing: Lsn,
    /// False if summaries of later WAL are there: the server writes them in order.
    pub(super) may_be_filled: bool,
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { timeline, start, end } = self.needed;
        write!(f, "no summary covers WAL at {} on timeline {timeline}, of {start} to {end}", self.missing)
    }
}

/// The WAL from the start of one backup to the start of another, oldest first. `Err` says why there is no way from one
/// to the other.
pub(super) fn ranges(history: &TimelineHistory, since: &Since, until: &Until) -> Result<Vec<Range>, String> {
    let Since { timeline, start, stop } = *since;
    if history.own != until.timeline || !history.contains(timeline, stop) {
        return Err(format!(
            "the prior backup ended at {stop} on timeline {timeline}, which is not in the history of timeline {}",
            until.timeline
        ));
    }
    let before = history.parents.iter().take_while(|p| p.timeline < timeline).last();
    if before.is_some_and(|p| start < p.switch) || start > stop || stop > until.start {
        return Err(format!(
            "the prior backup's WAL, {start} to {stop} on timeline {timeline}, is not before {}",
            until.start
        ));
    }
    let mut ranges = Vec::new();
    let mut from = start;
    for parent in history.parents.iter().filter(|p| p.timeline >= timeline) {
        ranges.push(Range { timeline: parent.timeline, start: from, end: parent.switch });
        from = parent.switch;
    }
    ranges.push(Range { timeline: until.timeline, start: from, end: until.start });
    if ranges.iter().any(|r| r.start > r.end) {
        return Err(format!("the history of timeline {} does not lead to {}", until.timeline, until.start));
    }
    ranges.retain(|r| r.start < r.end);
    Ok(ranges)
}

/// The summaries that tell of `needed`, or the first hole.
pub(super) fn covering(names: &[SummaryName], needed: &[Range]) -> Result<Vec<SummaryName>, Hole> {
    let mut all = Vec::new();
    for (n, range) in needed.iter().enumerate() {
        let mut here: Vec<SummaryName> = names
            .iter()
            .filter(|s| s.timeline == range.timeline && s.end > range.start && s.start < range.end)
            .copied()
            .collect();
        here.sort_unstable();
        let mut covered = range.start;
        for summary in &here {
            if summary.start > covered {
                break;
            }
            covered = covered.max(summary.end);
        }
        if covered < range.end {
            let later = |s: &SummaryName| {
                s.timeline == range.timeline && s.start > covered
                    || needed.iter().skip(n + 1).any(|r| s.timeline == r.timeline && s.start >= r.start)
            };
            let may_be_filled = !names.iter().any(later);
            return Err(Hole { needed: *range, missing: covered, may_be_filled });
        }
        all.append(&mut here);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_formats::pg::timeline::TimelineSwitch;

    fn history(own: u32, parents: &[(u32, u64)]) -> TimelineHistory {
        let parent = |(timeline, switch): &(u32, u64)| TimelineSwitch {
            timeline: TimelineId(*timeline),
            switch: Lsn(*switch),
            reason: String::new(),
        };
        TimelineHistory { own: TimelineId(own), parents: parents.iter().map(parent).collect() }
    }

    fn way(h: &TimelineHistory, since: (u32, u64, u64), until: u64) -> Result<Vec<(u32, u64, u64)>, String> {
        let since = Since { timeline: TimelineId(since.0), start: Lsn(since.1), stop: Lsn(since.2) };
        let found = ranges(h, &since, &Until { timeline: h.own, start: Lsn(until) })?;
        Ok(found.iter().map(|r| (r.timeline.0, r.start.0, r.end.0)).collect())
    }

    fn name(timeline: u32, start: u64, end: u64) -> SummaryName {
        SummaryName { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) }
    }

    #[test]
    fn the_way_follows_the_timelines() {
        let h = history(5, &[(1, 100), (2, 200), (4, 200), (3, 0)][..3]);
        assert_eq!(way(&h, (1, 50, 60), 300), Ok(vec![(1, 50, 100), (2, 100, 200), (5, 200, 300)]));
        assert_eq!(way(&h, (2, 100, 200), 200), Ok(vec![(2, 100, 200)]));
        assert_eq!(way(&h, (5, 250, 260), 300), Ok(vec![(5, 250, 300)]));
        assert_eq!(way(&history(1, &[]), (1, 7, 9), 9), Ok(vec![(1, 7, 9)]));
    }

    #[test]
    fn there_is_no_way_from_another_branch_or_from_the_future() {
        let h = history(5, &[(1, 100), (2, 200)]);
        for (since, until, what) in [
            ((3, 50, 60), 300, "not an ancestor"),
            ((1, 50, 101), 300, "ended after the branch was left"),
            ((2, 99, 150), 300, "began before its timeline"),
            ((5, 250, 260), 255, "ended after this began"),
            ((5, 250, 240), 300, "ended before it began"),
            ((2, 150, 160), 180, "this began before its timeline"),
        ] {
            assert!(way(&h, since, until).is_err(), "{what}");
        }
    }

    #[test]
    fn summaries_must_cover_all_of_it() {
        let needed = [
            Range { timeline: TimelineId(1), start: Lsn(50), end: Lsn(100) },
            Range { timeline: TimelineId(2), start: Lsn(100), end: Lsn(300) },
        ];
        // In no order, with overlaps, one before, one past the switch point, one of another timeline.
        let all = [
            name(2, 200, 300),
            name(1, 10, 40),
            name(1, 40, 70),
            name(1, 60, 120),
            name(2, 100, 200),
            name(3, 100, 300),
        ];
        let found = covering(&all, &needed).unwrap();
        assert_eq!(found, [name(1, 40, 70), name(1, 60, 120), name(2, 100, 200), name(2, 200, 300)]);

        let without = |n: usize| {
            let rest: Vec<SummaryName> = all.iter().filter(|s| **s != all[n]).copied().collect();
            covering(&rest, &needed).map_err(|h| (h.needed.timeline.0, h.missing.0, h.may_be_filled))
        };
        assert_eq!(without(0), Err((2, 200, true)));
        assert_eq!(without(2), Err((1, 50, false)));
        assert_eq!(without(3), Err((1, 70, false)));
        assert_eq!(without(4), Err((2, 100, false)));
        let hole = covering(&[], &needed).unwrap_err();
        assert!(hole.may_be_filled);
        assert_eq!(hole.to_string(), "no summary covers WAL at 0/32 on timeline 1, of 0/32 to 0/64");
    }
}
