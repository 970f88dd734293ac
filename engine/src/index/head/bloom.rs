//! Which ids a generation may hold, in memory: spares sled the question for nearly all that it does not hold.
//!
//! 16 bits an id and 8 probes: one false positive in about 1 700. No false negatives: a bit is set before the
//! id is stored, and never cleared.

use std::sync::atomic::{AtomicU64, Ordering};

const BITS_PER_ID: u64 = 16;
const PROBES: u64 = 8;

pub(super) struct Bloom {
    words: Box<[AtomicU64]>,
}

impl Bloom {
    pub(super) fn for_ids(count: u64) -> Self {
        let words = count.saturating_mul(BITS_PER_ID).div_ceil(64).max(1);
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The words and bits of an id. Ids are keyed hashes, so their own bytes are as good as further hashes.
    fn probes(&self, id: &[u8; 32]) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let half = |bytes: [u8; 8]| u64::from_le_bytes(bytes);
        let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7, ..] = *id;
        let (first, step) = (half([a0, a1, a2, a3, a4, a5, a6, a7]), half([b0, b1, b2, b3, b4, b5, b6, b7]) | 1);
        let bits = self.words.len() as u64 * 64;
        (0..PROBES).filter_map(move |n| {
            let bit = first.wrapping_add(step.wrapping_mul(n)) % bits;
            Some((self.words.get((bit / 64) as usize)?, 1 << (bit % 64)))
        })
    }

    pub(super) fn add(&self, id: &[u8; 32]) {
        for (word, bit) in self.probes(id) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    pub(super) fn may_hold(&self, id: &[u8; 32]) -> bool {
        self.probes(id).all(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_added_and_little_else() {
        let id = |n: u32| *blake3::hash(&n.to_le_bytes()).as_bytes();
        let bloom = Bloom::for_ids(10_000);
        (0..10_000).for_each(|n| bloom.add(&id(n)));
        assert!((0..10_000).all(|n| bloom.may_hold(&id(n))));
        let wrong = (10_000..110_000).filter(|n| bloom.may_hold(&id(*n))).count();
        assert!(wrong < 200, "{wrong} of 100000");
    }
}
