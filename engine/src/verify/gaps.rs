//! Gaps in archived WAL, and what they cost. Pure: works on segment numbers that were found whole.
//!
//! Recovery follows a *path*: a timeline and its ancestors, each up to the segment in which it was left; that segment is
//! read from the descendant, which begins with a copy of it. On each path the numbers between the first and the last
//! segment that is archived or needed should all be there. Runs that are not are holes. Retention makes holes on
//! purpose: it keeps of an older backup just what makes it consistent, so such a hole begins directly behind a
//! backup's last segment and ends directly before a later backup's first one, and before it there is nothing but what backups
//! need: retention would have taken that first. A backup that keeps the WAL it needs among its
//! files gets past holes there: its server takes from `pg_wal` what the archive lacks.
//!
//! Whether a backup becomes consistent is judged on the path of its own timeline. On that of a descendant only what lies before
//! the segment in which its timeline was left: a server that has only just begun a timeline may not have archived any of it.

use super::report::GapKind;
use crate::repository::wal::path::{Part, is_on_path, path, timeline_at};
use pgkeep_formats::pg::timeline::TimelineHistory;
use pgkeep_formats::pg::wal::WalSegmentSize;
use std::collections::{BTreeMap, BTreeSet};

/// Runs of whole segments, both ends included, ascending and apart, by timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Present(BTreeMap<u32, Vec<(u64, u64)>>);

impl Present {
    /// Adds a segment; they come in ascending order.
    pub(super) fn add(&mut self, timeline: u32, number: u64) {
        let runs = self.0.entry(timeline).or_default();
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }

    pub(super) fn timelines(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.keys().copied()
    }
}

/// What a backup needs to become consistent: segments of one timeline, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) backup: usize,
    pub(super) timeline: u32,
    pub(super) first: u64,
    pub(super) last: u64,
    /// It has them among its own files.
    pub(super) is_kept: bool,
}

/// A hole, on one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hole {
    pub(super) timeline: u32,
    pub(super) first: u64,
    pub(super) last: u64,
}

/// What a hole costs a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cost {
    /// It never becomes consistent.
    Consistency(Hole),
    /// Recovery on the path of `timeline` ends with segment `reaches` and cannot get to `resumes`, each of its own timeline.
    Window { timeline: u32, reaches: (u32, u64), resumes: (u32, u64) },
}

/// All holes, and what they cost whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gaps {
    pub(super) holes: BTreeMap<Hole, GapKind>,
    /// By number of the backup.
    pub(super) costs: BTreeMap<usize, BTreeSet<Cost>>,
}

/// Finds the holes on every path. `former` are the ranges of backups that have expired.
pub(super) fn find(
    present: &Present,
    needs: &[Need],
    former: &[Need],
    histories: &BTreeMap<u32, TimelineHistory>,
    size: WalSegmentSize,
) -> Gaps {
    let mut gaps = Gaps::default();
    let timelines: BTreeSet<u32> = present.timelines().chain(needs.iter().map(|n| n.timeline)).collect();
    for timeline in timelines {
        let parts = path(timeline, histories.get(&timeline), size);
        on_path(timeline, &parts, present, needs, former, &mut gaps);
    }
    gaps
}

/// What a backup needs of the path of `timeline`; none if that is nothing but a descendant's copy of its segment.
fn on_this(timeline: u32, parts: &[Part], need: &Need) -> Option<(u64, u64)> {
    let end = parts.iter().find(|p| p.timeline == need.timeline).map_or(u64::MAX, |p| p.last);
    let last = if need.timeline == timeline { need.last } else { need.last.min(end) };
    (need.first <= last).then_some((need.first, last))
}

fn on_path(timeline: u32, parts: &[Part], present: &Present, needs: &[Need], former: &[Need], gaps: &mut Gaps) {
    let mut covered: Vec<(u64, u64)> = Vec::new();
    for part in parts {
        for (first, last) in present.0.get(&part.timeline).into_iter().flatten() {
            let (first, last) = ((*first).max(part.first), (*last).min(part.last));
            match covered.last_mut() {
                _ if first > last => {}
                Some(before) if before.1 + 1 == first => before.1 = last,
                _ => covered.push((first, last)),
            }
        }
    }
    let on_path = |n: &&Need| is_on_path(parts, n.timeline, n.first, n.last);
    let needs: Vec<&Need> = needs.iter().filter(on_path).collect();
    // Retention that was applied while they were there made holes beside them.
    let beside: Vec<&Need> = former.iter().filter(on_path).chain(needs.iter().copied()).collect();
    let Some(oldest) = needs.iter().map(|n| n.first).min() else {
        holes(&covered, None).for_each(|h| note(parts, h, GapKind::Unused, gaps));
        return;
    };
    let of = |need: &Need| on_this(timeline, parts, need);
    let end = needs.iter().filter_map(|n| of(n)).map(|(_, last)| last).max();
    let mut judged = Vec::new();
    let kept: Vec<&Need> = needs.iter().copied().filter(|n| n.is_kept).collect();
    for hole in holes(&covered, end.map(|end| (oldest, end))).flat_map(|hole| cut(hole, &kept)) {
        let meets = |n: &&&Need| of(n).is_some_and(|(first, last)| first <= hole.1 && hole.0 <= last);
        let needed: Vec<&&Need> = needs.iter().filter(|n| !n.is_kept).filter(meets).collect();
        let kind = if !needed.is_empty() {
            GapKind::Needed
        } else if kept.iter().any(|n| meets(&n)) {
            GapKind::Kept
        } else if hole.1 < oldest {
            GapKind::Unused
        } else if beside.iter().any(|n| of(n).map_or(n.first, |(_, last)| last + 1) == hole.0)
            && beside.iter().any(|n| n.first == hole.1 + 1)
            && is_all_needed(&covered, hole.0, &beside)
        {
            GapKind::Expired
        } else {
            GapKind::Lost
        };
        note(parts, hole, kind, gaps);
        judged.push((hole, kind));
        for need in needed {
            let Some((first, last)) = of(need) else { continue };
            let part = (hole.0.max(first), hole.1.min(last));
            for hole in split(parts, part) {
                gaps.costs.entry(need.backup).or_default().insert(Cost::Consistency(hole));
            }
        }
    }
    let at = |number| (timeline_at(parts, number), number);
    for need in needs {
        // The first hole behind a backup ends its window; if retention made it, that is as it should be.
        let behind = of(need).map_or(need.first, |(_, last)| last + 1);
        let Some((hole, kind)) = judged.iter().find(|(hole, _)| hole.0 >= behind) else { continue };
        if *kind != GapKind::Expired
            && let Some((resumes, _)) = covered.iter().find(|c| c.0 > hole.1)
        {
            let cost = Cost::Window { timeline, reaches: at(hole.0 - 1), resumes: at(*resumes) };
            gaps.costs.entry(need.backup).or_default().insert(cost);
        }
    }
}

/// Whether all segments before this one are needed by a backup.
fn is_all_needed(covered: &[(u64, u64)], before: u64, needs: &[&Need]) -> bool {
    covered.iter().filter(|run| run.0 < before).all(|(first, last)| {
        let mut next = *first;
        while next <= (*last).min(before.saturating_sub(1)) {
            let Some(end) = needs.iter().filter(|n| n.first <= next && next <= n.last).map(|n| n.last).max() else {
                return false;
            };
            next = end.saturating_add(1);
        }
        true
    })
}

/// Runs between what is covered, and of `wanted` before and behind it.
fn holes(covered: &[(u64, u64)], wanted: Option<(u64, u64)>) -> impl Iterator<Item = (u64, u64)> {
    let mut out = Vec::new();
    let mut next = wanted.map(|w| w.0).into_iter().chain(covered.first().map(|c| c.0)).min();
    for (first, last) in covered {
        if let Some(next) = next.filter(|next| next < first) {
            out.push((next, first - 1));
        }
        next = Some(last + 1);
    }
    if let (Some(next), Some((_, end))) = (next, wanted)
        && next <= end
    {
        out.push((next, end));
    }
    out.into_iter()
}

/// A hole in pieces, none of which is partly in and partly out of what one of these backups keeps.
fn cut(hole: (u64, u64), kept: &[&Need]) -> Vec<(u64, u64)> {
    let ends = kept.iter().flat_map(|n| [n.first, n.last.saturating_add(1)]);
    let starts: BTreeSet<u64> = ends.filter(|n| hole.0 < *n && *n <= hole.1).chain([hole.0]).collect();
    let behind = starts.iter().skip(1).map(|next| next - 1).chain([hole.1]);
    starts.iter().copied().zip(behind).collect()
}

fn split(parts: &[Part], (first, last): (u64, u64)) -> impl Iterator<Item = Hole> {
    parts.iter().filter_map(move |p| {
        let hole = Hole { timeline: p.timeline, first: first.max(p.first), last: last.min(p.last) };
        (hole.first <= hole.last).then_some(hole)
    })
}

/// A hole seen from several paths is as bad as the worst of them says.
fn note(parts: &[Part], hole: (u64, u64), kind: GapKind, gaps: &mut Gaps) {
    let rank = |k: GapKind| match k {
        GapKind::Needed => 4,
        GapKind::Lost => 3,
        GapKind::Kept => 2,
        GapKind::Expired => 1,
        GapKind::Unused => 0,
    };
    for hole in split(parts, hole) {
        let known = gaps.holes.entry(hole).or_insert(kind);
        if rank(kind) > rank(*known) {
            *known = kind;
        }
    }
}
