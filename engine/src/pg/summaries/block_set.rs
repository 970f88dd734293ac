//! Blocks of one relation segment that must be read.

use std::ops::Range;

/// Which blocks of a relation segment must be read; all others are the prior backup's. Numbers count from the
/// segment's first block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSet {
    /// From here on everything must be read.
    end: u32,
    /// Ascending, below `end`.
    changed: Vec<u32>,
}

impl BlockSet {
    /// Blocks from `end` on, and `changed`, which are ascending.
    pub(super) fn new(end: u32, mut changed: Vec<u32>) -> Self {
        changed.retain(|block| *block < end);
        Self { end, changed }
    }

    /// A set of any make, for tests of those who use it.
    #[cfg(test)]
    pub(crate) fn of(end: u32, changed: &[u32]) -> Self {
        Self::new(end, changed.to_vec())
    }

    pub(super) fn unchanged(end: u32) -> Self {
        Self { end, changed: Vec::new() }
    }

    /// The same, where the prior backup has only `length` blocks, and of those `damaged` ones are not to be taken over.
    #[must_use]
    pub fn within(mut self, length: u32, damaged: &[u32]) -> Self {
        self.end = self.end.min(length);
        let end = self.end;
        self.changed.extend(damaged);
        self.changed.retain(|block| *block < end);
        self.changed.sort_unstable();
        self.changed.dedup();
        self
    }

    /// True if the block must be read.
    #[must_use]
    pub fn contains(&self, block: u32) -> bool {
        block >= self.end || self.changed.binary_search(&block).is_ok()
    }

    /// True if some block of the range must be read.
    #[must_use]
    pub fn touches(&self, range: Range<u32>) -> bool {
        self.count_in(range) > 0
    }

    /// How many blocks of the range must be read.
    #[must_use]
    pub fn count_in(&self, range: Range<u32>) -> u32 {
        let listed = self.listed(&range).len() as u32;
        listed + range.end.saturating_sub(range.start.max(self.end))
    }

    /// What of the range must be read, ascending. Runs with at most `gap` blocks between them are one: that many blocks
    /// are read faster than left out.
    #[must_use]
    pub fn runs(&self, range: Range<u32>, gap: u32) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let tail = range.start.max(self.end)..range.end;
        let listed = self.listed(&range).iter().map(|block| *block..block + 1);
        for next in listed.chain((!tail.is_empty()).then_some(tail)) {
            match runs.last_mut() {
                Some(last) if next.start - last.end <= gap => last.end = next.end,
                _ => runs.push(next),
            }
        }
        runs
    }

    fn listed(&self, range: &Range<u32>) -> &[u32] {
        let from = self.changed.partition_point(|block| *block < range.start);
        let to = self.changed.partition_point(|block| *block < range.end);
        self.changed.get(from..to).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_are_joined_across_small_gaps() {
        let set = BlockSet::new(100, vec![3, 4, 9, 14, 98]);
        assert_eq!(set.runs(0..128, 0), [3..5, 9..10, 14..15, 98..99, 100..128]);
        assert_eq!(set.runs(0..128, 4), [3..15, 98..128]);
        assert_eq!(set.runs(4..14, 0), [4..5, 9..10]);
        assert_eq!((set.count_in(0..100), set.count_in(90..110), set.count_in(110..120)), (5, 11, 10));
        assert!(!set.touches(15..98) && set.touches(15..99) && !set.touches(5..5));
    }

    #[test]
    fn the_prior_backup_ends_somewhere_and_may_be_damaged() {
        let set = BlockSet::new(100, vec![3, 50]).within(40, &[7, 3, 60]);
        assert_eq!(set, BlockSet { end: 40, changed: vec![3, 7] });
        assert!(set.contains(40) && set.contains(7) && !set.contains(39));
    }

    proptest! {
        #[test]
        fn runs_hold_what_must_be_read_and_little_else(
            end in 0u32..200, blocks in proptest::collection::btree_set(0u32..200, 0..30),
            from in 0u32..200, len in 0u32..200, gap in 0u32..6,
        ) {
            let set = BlockSet::new(end, blocks.into_iter().collect());
            let range = from..from + len;
            let runs = set.runs(range.clone(), gap);
            let inside = |block: u32| runs.iter().any(|run| run.contains(&block));
            prop_assert!(range.clone().all(|block| !set.contains(block) || inside(block)));
            prop_assert_eq!(set.count_in(range.clone()) as usize, range.clone().filter(|b| set.contains(*b)).count());
            prop_assert!(runs.iter().all(|r| r.start >= range.start && r.end <= range.end));
            prop_assert!(runs.iter().all(|r| set.contains(r.start) && set.contains(r.end - 1)));
            prop_assert!(runs.windows(2).all(|w| w[1].start - w[0].end > gap));
        }
    }
}
