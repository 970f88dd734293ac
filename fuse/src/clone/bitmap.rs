//! Which pages of a base-backed file are present in the clone: one bit a page, in memory.
//!
//! Bits are set one by one and cleared all at once, by [`Bitmap::become_equal`]. Any thread may call anything; who needs "absent, so I write" to be one step holds the
//! file's fill lock (see [`super::base`]).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD_BITS: u64 = 64;

/// A set of page numbers below a fixed bound.
pub(super) struct Bitmap {
    pages: u64,
    words: Box<[AtomicU64]>,
    present: AtomicU64,
}

impl Bitmap {
    /// Bytes a map of `pages` pages takes in its stored form.
    pub(super) fn stored_bytes(pages: u64) -> u64 {
        pages.div_ceil(WORD_BITS) * 8
    }

    /// From stored little-endian words; bits at and above `pages` are ignored, missing words are absent pages.
    pub(super) fn from_bytes(pages: u64, bytes: &[u8]) -> Self {
        let mut words = Vec::with_capacity(usize::try_from(pages.div_ceil(WORD_BITS)).unwrap_or(0));
        let (chunks, _) = bytes.as_chunks::<8>();
        let mut chunks = chunks.iter();
        let mut present = 0u64;
        for number in 0..pages.div_ceil(WORD_BITS) {
            let mut word = chunks.next().map_or(0, |chunk| u64::from_le_bytes(*chunk));
            word &= mask(0, (pages - number * WORD_BITS).min(WORD_BITS));
            present += u64::from(word.count_ones());
            words.push(AtomicU64::new(word));
        }
        Self { pages, words: words.into_boxed_slice(), present: AtomicU64::new(present) }
    }

    /// The stored form.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect()
    }

    /// The stored form of the words that hold `pages` as it is once they are set, and the number of the first word.
    pub(super) fn to_bytes_with(&self, pages: Range<u64>) -> (u64, Vec<u8>) {
        let pages = pages.start..pages.end.min(self.pages);
        let first = pages.start / WORD_BITS;
        let mut bytes = Vec::new();
        for number in first..pages.end.div_ceil(WORD_BITS) {
            let start = number * WORD_BITS;
            let set = mask(pages.start.saturating_sub(start), (pages.end - start).min(WORD_BITS));
            bytes.extend_from_slice(&(self.word(number) | set).to_le_bytes());
        }
        (first, bytes)
    }

    /// True when every page is present.
    pub(super) fn is_full(&self) -> bool {
        self.present.load(Ordering::Acquire) == self.pages
    }

    /// True when all of `pages` are present; pages at and above the bound do not count.
    pub(super) fn covers(&self, pages: Range<u64>) -> bool {
        self.is_full() || self.first_absent(pages).is_none()
    }

    /// The first absent page of `pages`.
    pub(super) fn first_absent(&self, pages: Range<u64>) -> Option<u64> {
        let end = pages.end.min(self.pages);
        let mut page = pages.start;
        while page < end {
            let number = page / WORD_BITS;
            let within = page % WORD_BITS;
            let upto = (end - number * WORD_BITS).min(WORD_BITS);
            let absent = !self.word(number) & mask(within, upto);
            if absent != 0 {
                return Some(number * WORD_BITS + u64::from(absent.trailing_zeros()));
            }
            page = (number + 1) * WORD_BITS;
        }
        None
    }

    /// The first page at or above `page` that is present, or `end`.
    fn first_present(&self, page: u64, end: u64) -> u64 {
        let end = end.min(self.pages);
        let mut page = page;
        while page < end {
            let number = page / WORD_BITS;
            let upto = (end - number * WORD_BITS).min(WORD_BITS);
            let present = self.word(number) & mask(page % WORD_BITS, upto);
            if present != 0 {
                return number * WORD_BITS + u64::from(present.trailing_zeros());
            }
            page = (number + 1) * WORD_BITS;
        }
        end
    }

    /// The first run of absent pages inside `pages`.
    pub(super) fn absent_run(&self, pages: Range<u64>) -> Option<Range<u64>> {
        let start = self.first_absent(pages.clone())?;
        Some(start..self.first_present(start, pages.end))
    }

    /// Marks pages present; returns whether any bit was new.
    pub(super) fn set(&self, pages: Range<u64>) -> bool {
        let end = pages.end.min(self.pages);
        let mut page = pages.start;
        let mut new = 0u64;
        while page < end {
            let number = page / WORD_BITS;
            let bits = mask(page % WORD_BITS, (end - number * WORD_BITS).min(WORD_BITS));
            if let Some(word) = usize::try_from(number).ok().and_then(|at| self.words.get(at)) {
                let before = word.fetch_or(bits, Ordering::AcqRel);
                new += u64::from((bits & !before).count_ones());
            }
            page = (number + 1) * WORD_BITS;
        }
        self.present.fetch_add(new, Ordering::AcqRel);
        new != 0
    }

    /// Adds the pages of another map of the same bound.
    pub(super) fn add_all(&self, other: &Self) {
        for (word, added) in self.words.iter().zip(&other.words) {
            let added = added.load(Ordering::Acquire);
            let before = word.fetch_or(added, Ordering::AcqRel);
            self.present.fetch_add(u64::from((added & !before).count_ones()), Ordering::AcqRel);
        }
    }

    /// Takes the pages of another map of the same bound and drops all others. Nobody may set bits meanwhile.
    pub(super) fn become_equal(&self, other: &Self) {
        // First the number, so that a map that is no longer full is not taken for one.
        self.present.store(0, Ordering::Release);
        let mut present = 0;
        for (word, wanted) in self.words.iter().zip(&other.words) {
            let wanted = wanted.load(Ordering::Acquire);
            word.store(wanted, Ordering::Release);
            present += u64::from(wanted.count_ones());
        }
        self.present.store(present, Ordering::Release);
    }

    /// Pages present.
    pub(super) fn present_pages(&self) -> u64 {
        self.present.load(Ordering::Acquire)
    }

    /// A copy as of now.
    pub(super) fn snapshot(&self) -> Self {
        Self::from_bytes(self.pages, &self.to_bytes())
    }

    fn word(&self, number: u64) -> u64 {
        usize::try_from(number).ok().and_then(|at| self.words.get(at)).map_or(0, |word| word.load(Ordering::Acquire))
    }
}

/// Bits `from..to` of a word.
fn mask(from: u64, to: u64) -> u64 {
    let below = |bits: u64| if bits >= WORD_BITS { u64::MAX } else { (1u64 << bits) - 1 };
    below(to) & !below(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(
            pages in 0u64..300,
            ranges in proptest::collection::vec((0u64..320, 0u64..100), 0..20),
            probe in (0u64..320, 0u64..320),
        ) {
            let map = Bitmap::from_bytes(pages, &[]);
            let mut model = BTreeSet::new();
            for (start, len) in ranges {
                let (first, bytes) = map.to_bytes_with(start..start + len);
                let mut whole = map.to_bytes();
                if !bytes.is_empty() {
                    whole[first as usize * 8..][..bytes.len()].copy_from_slice(&bytes);
                }
                let new = (start..start + len).filter(|page| *page < pages && model.insert(*page)).count();
                prop_assert_eq!(map.set(start..start + len), new != 0);
                prop_assert_eq!(map.to_bytes(), whole);
            }
            let range = probe.0.min(probe.1)..probe.0.max(probe.1);
            let absent = range.clone().find(|page| *page < pages && !model.contains(page));
            prop_assert_eq!(map.first_absent(range.clone()), absent);
            prop_assert_eq!(map.covers(range.clone()), absent.is_none());
            prop_assert_eq!(map.is_full(), model.len() as u64 == pages);
            if let Some(run) = map.absent_run(range.clone()) {
                prop_assert!(run.clone().all(|page| !model.contains(&page)) && Some(run.start) == absent);
                prop_assert!(run.end == range.end.min(pages) || model.contains(&run.end));
            }
            let bytes = map.to_bytes();
            prop_assert_eq!(bytes.len() as u64, Bitmap::stored_bytes(pages));
            let again = Bitmap::from_bytes(pages, &bytes);
            prop_assert!((0..pages).all(|page| again.covers(page..page + 1) == model.contains(&page)));
        }
    }

    #[test]
    fn maps_are_added_and_taken_over() {
        let (a, b) = (Bitmap::from_bytes(130, &[]), Bitmap::from_bytes(130, &[]));
        a.set(0..65);
        b.set(64..130);
        a.add_all(&b);
        assert!(a.is_full() && a.snapshot().is_full());
        a.become_equal(&b);
        assert!(!a.is_full() && a.covers(64..130));
        assert_eq!(a.absent_run(0..130), Some(0..64));
        a.set(0..64);
        assert!(a.is_full());
    }

    #[test]
    fn bits_beyond_the_bound_are_ignored() {
        let map = Bitmap::from_bytes(3, &[0xff; 8]);
        assert!(map.is_full());
        assert_eq!(map.to_bytes(), [7, 0, 0, 0, 0, 0, 0, 0]);
    }
}
