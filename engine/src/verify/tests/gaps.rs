//! Holes in WAL, without a repository.

use crate::verify::gaps::{Cost, Hole, Need, Present, find};
use crate::verify::report::GapKind;
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId, TimelineSwitch};
use pgkeep_formats::pg::wal::WalSegmentSize;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SIZE: WalSegmentSize = WalSegmentSize::MIN;

fn present(timelines: &[(u32, &[u64])]) -> Present {
    let mut out = Present::default();
    for (timeline, numbers) in timelines {
        numbers.iter().for_each(|n| out.add(*timeline, *n));
    }
    out
}

/// `parents`: timeline, and the segment in which it was left, in its middle.
fn history(own: u32, parents: &[(u32, u64)]) -> (u32, TimelineHistory) {
    let parent = |(timeline, segment): &(u32, u64)| TimelineSwitch {
        timeline: TimelineId(*timeline),
        switch: Lsn((segment << 20) + 500),
        reason: String::new(),
    };
    (own, TimelineHistory { own: TimelineId(own), parents: parents.iter().map(parent).collect() })
}

fn need(backup: usize, timeline: u32, first: u64, last: u64) -> Need {
    Need { backup, timeline, first, last, is_kept: false }
}

fn hole(timeline: u32, first: u64, last: u64) -> Hole {
    Hole { timeline, first, last }
}

#[test]
fn holes_that_retention_leaves_are_told_from_losses() {
    // Three backups: the first two keep only what they need, the third one all that follows.
    let needs = [need(0, 1, 10, 11), need(1, 1, 20, 20), need(2, 1, 30, 31)];
    let wal = present(&[(1, &[10, 11, 20, 30, 31, 32, 33, 35])]);
    let gaps = find(&wal, &needs, &[], &BTreeMap::new(), SIZE);
    let expected =
        [(hole(1, 12, 19), GapKind::Expired), (hole(1, 21, 29), GapKind::Expired), (hole(1, 34, 34), GapKind::Lost)];
    assert_eq!(gaps.holes, BTreeMap::from(expected));
    // The loss is not the older backups': retention has ended their windows before.
    let window = |reaches, resumes| Cost::Window { timeline: 1, reaches: (1, reaches), resumes: (1, resumes) };
    assert_eq!(gaps.costs, BTreeMap::from([(2, BTreeSet::from([window(33, 35)]))]));
    // Retention takes what nobody needs before it makes a hole.
    let more = present(&[(1, &[9, 10, 11, 20, 30, 31])]);
    let gaps = find(&more, &needs, &[], &BTreeMap::new(), SIZE);
    assert_eq!((gaps.holes[&hole(1, 12, 19)], gaps.holes[&hole(1, 21, 29)]), (GapKind::Lost, GapKind::Lost));
    let less = present(&[(1, &[10, 11, 20, 21, 30, 31, 32])]);
    let gaps = find(&less, &needs, &[], &BTreeMap::new(), SIZE);
    assert_eq!(gaps.holes[&hole(1, 22, 29)], GapKind::Lost);
    assert_eq!(gaps.costs, BTreeMap::from([(1, BTreeSet::from([window(21, 30)]))]));
}

#[test]
fn holes_before_the_first_backup_do_no_harm() {
    let gaps = find(&present(&[(1, &[1, 3, 5, 6])]), &[need(0, 1, 5, 6)], &[], &BTreeMap::new(), SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(1, 2, 2), GapKind::Unused), (hole(1, 4, 4), GapKind::Unused)]));
    assert!(gaps.costs.is_empty());
    let gaps = find(&present(&[(1, &[1, 3])]), &[], &[], &BTreeMap::new(), SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(1, 2, 2), GapKind::Unused)]));
}

#[test]
fn a_path_over_timelines_takes_each_segment_from_the_timeline_that_owns_it() {
    // Timeline 1 went on to 6 after 2 had left it in segment 5.
    let histories = BTreeMap::from([history(2, &[(1, 5)])]);
    let wal = present(&[(1, &[3, 4, 5, 6]), (2, &[5, 6, 7])]);
    assert!(find(&wal, &[need(0, 1, 3, 3)], &[], &histories, SIZE).holes.is_empty());
    // Without 4 nothing behind it is reached, on either timeline.
    let wal = present(&[(1, &[3, 5, 6]), (2, &[5, 6, 7])]);
    let gaps = find(&wal, &[need(0, 1, 3, 3)], &[], &histories, SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(1, 4, 4), GapKind::Lost)]));
    let window = |timeline| Cost::Window { timeline, reaches: (1, 3), resumes: (timeline, 5) };
    assert_eq!(gaps.costs[&0], BTreeSet::from([window(1), window(2)]));
    // The old timeline ended early: the hole is on it, though it has nothing behind the hole.
    let wal = present(&[(1, &[3]), (2, &[5, 6])]);
    let gaps = find(&wal, &[need(0, 1, 3, 3)], &[], &histories, SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(1, 4, 4), GapKind::Lost)]));
    // The new timeline lacks its first segment.
    let wal = present(&[(1, &[3, 4, 5]), (2, &[6])]);
    let gaps = find(&wal, &[need(0, 1, 3, 3)], &[], &histories, SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(2, 5, 5), GapKind::Lost)]));
    // A backup of timeline 2 does not care for what timeline 1 did later.
    let wal = present(&[(1, &[3, 4, 8]), (2, &[5, 6, 7])]);
    let gaps = find(&wal, &[need(0, 2, 6, 7)], &[], &histories, SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(1, 5, 7), GapKind::Unused)]));
    assert!(gaps.costs.is_empty());
}

#[test]
fn a_backup_is_whole_on_its_own_timeline_whatever_a_descendant_lacks() {
    // Timeline 2 left 1 in the last segment of the backup, and nothing of it was archived; then 3 went on from it.
    let histories = BTreeMap::from([history(2, &[(1, 5)]), history(3, &[(1, 5), (2, 7)])]);
    let wal = present(&[(1, &[3, 4, 5]), (3, &[7, 8])]);
    let gaps = find(&wal, &[need(0, 1, 3, 5)], &[], &histories, SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(2, 5, 6), GapKind::Lost)]));
    let window = Cost::Window { timeline: 3, reaches: (1, 4), resumes: (3, 7) };
    assert_eq!(gaps.costs, BTreeMap::from([(0, BTreeSet::from([window]))]));
    // All of the backup lies in that segment.
    let gaps = find(&wal, &[need(0, 1, 5, 5)], &[], &histories, SIZE);
    assert!(!gaps.costs.values().flatten().any(|cost| matches!(cost, Cost::Consistency(_))), "{gaps:?}");
    // What its own timeline lacks it lacks.
    let gaps = find(&present(&[(1, &[3, 5]), (3, &[7])]), &[need(0, 1, 3, 5)], &[], &histories, SIZE);
    assert!(gaps.costs[&0].contains(&Cost::Consistency(hole(1, 4, 4))), "{gaps:?}");
}

#[test]
fn a_needed_hole_is_split_by_backup() {
    let needs = [need(0, 1, 2, 5), need(1, 1, 4, 8)];
    let gaps = find(&present(&[(1, &[2, 3, 8, 9])]), &needs, &[], &BTreeMap::new(), SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(1, 4, 7), GapKind::Needed)]));
    assert_eq!(gaps.costs[&0], BTreeSet::from([Cost::Consistency(hole(1, 4, 5))]));
    assert_eq!(gaps.costs[&1], BTreeSet::from([Cost::Consistency(hole(1, 4, 7))]));
}

#[test]
fn a_backup_that_keeps_its_wal_gets_past_holes_in_it() {
    let kept = |backup, first, last| Need { is_kept: true, ..need(backup, 1, first, last) };
    let window = |reaches, resumes| Cost::Window { timeline: 1, reaches: (1, reaches), resumes: (1, resumes) };
    // The one before it does not get further than to the hole.
    let wal = present(&[(1, &[1, 2, 3, 7, 8])]);
    let gaps = find(&wal, &[need(0, 1, 1, 2), kept(1, 4, 6)], &[], &BTreeMap::new(), SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(1, 4, 6), GapKind::Kept)]));
    assert_eq!(gaps.costs, BTreeMap::from([(0, BTreeSet::from([window(3, 7)]))]));
    // What is missing behind it ends its recovery there, and another may need what it keeps.
    let wal = present(&[(1, &[3, 9])]);
    let gaps = find(&wal, &[kept(0, 3, 6)], &[], &BTreeMap::new(), SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(1, 4, 6), GapKind::Kept), (hole(1, 7, 8), GapKind::Lost)]));
    assert_eq!(gaps.costs, BTreeMap::from([(0, BTreeSet::from([window(6, 9)]))]));
    let gaps = find(&wal, &[kept(0, 3, 6), need(1, 1, 6, 7)], &[], &BTreeMap::new(), SIZE);
    assert_eq!(gaps.holes, BTreeMap::from([(hole(1, 4, 6), GapKind::Needed), (hole(1, 7, 8), GapKind::Needed)]));
    assert_eq!(gaps.costs[&1], BTreeSet::from([Cost::Consistency(hole(1, 6, 6)), Cost::Consistency(hole(1, 7, 7))]));
    let gaps = find(&present(&[]), &[kept(0, 3, 6)], &[], &BTreeMap::new(), SIZE);
    assert_eq!((gaps.holes, gaps.costs), (BTreeMap::from([(hole(1, 3, 6), GapKind::Kept)]), BTreeMap::new()));
}

proptest! {
    /// Against counting: on one timeline every number between the ends is either there or in exactly one hole, holes
    /// are as wide as they can be, and a backup is hit iff a number it needs is not there.
    #[test]
    fn holes_are_what_is_missing(
        there in proptest::collection::btree_set(0u64..60, 0..50),
        backups in proptest::collection::vec((0u64..60, 0u64..5), 0..5),
    ) {
        let needs: Vec<Need> =
            backups.iter().enumerate().map(|(n, (first, len))| need(n, 1, *first, first + len)).collect();
        let numbers: Vec<u64> = there.iter().copied().collect();
        let gaps = find(&present(&[(1, &numbers)]), &needs, &[], &BTreeMap::new(), SIZE);
        let ends = there.iter().copied().chain(needs.iter().flat_map(|n| [n.first, n.last]));
        let (low, high) = (ends.clone().min().unwrap_or(0), ends.max().unwrap_or(0));
        let in_hole = |n: u64| gaps.holes.keys().filter(|h| h.first <= n && n <= h.last).count();
        let any = !there.is_empty() || !needs.is_empty();
        for n in low..=high {
            prop_assert_eq!(in_hole(n), usize::from(any && !there.contains(&n)), "{}", n);
        }
        for h in gaps.holes.keys() {
            prop_assert!(h.first >= low && h.last <= high);
            prop_assert!(h.first == low || there.contains(&(h.first - 1)));
            prop_assert!(h.last == high || there.contains(&(h.last + 1)));
        }
        for n in &needs {
            let lacks = (n.first..=n.last).any(|s| !there.contains(&s));
            let hit = gaps.costs.get(&n.backup).is_some_and(|c| c.iter().any(|c| matches!(c, Cost::Consistency(_))));
            prop_assert_eq!(hit, lacks);
        }
    }
}
