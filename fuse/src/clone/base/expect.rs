//! What of a file is expected to be read soon, and is fetched by the threads of [`super::super::ahead`].
//!
//! Who reads on where the block before is here already gets what follows, in windows that double from [`WINDOW_MIN`] to
//! [`WINDOW_MAX`]: while one is read the next one is decoded, on other cores.
//!
//! Who reads here and there gets nothing but what he asks for, until it is more than a few look-ups: then the file is one
//! that is worked on. Each further miss has one more block fetched, the next one that is absent behind it, so a reader of
//! random pages, who uses one core, finds more there than he has waited for.

use super::fetch::{BLOCK_BYTES, BLOCKS_MAX};
use super::{BaseFile, lock};
use crate::clone::ahead::Job;
use crate::clone::nodes::OpenFile;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Blocks fetched ahead of a reader that has just begun to read on.
const WINDOW_MIN: u64 = 2;
/// And of one that goes on: 4 MiB, some milliseconds of decoding on each of a few cores.
const WINDOW_MAX: u64 = 16;
/// Misses here and there that are look-ups still: 16 MiB of a file.
const SCATTERED_MIN: u64 = 64;

/// Where readers of the file are expected next.
pub(super) struct Stream {
    /// Reading at or behind this byte, and before `end`, asks for the next window; `u64::MAX` if nothing is expected.
    trigger: AtomicU64,
    /// First byte that was not asked for yet.
    end: AtomicU64,
    /// Blocks of the last window.
    window: Mutex<u64>,
    /// Misses that went on with nothing.
    scattered: AtomicU64,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            trigger: AtomicU64::new(u64::MAX),
            end: AtomicU64::new(0),
            window: Mutex::new(0),
            scattered: AtomicU64::new(0),
        }
    }
}

impl BaseFile {
    /// Called with what is read and not here: has fetched what will be read after it.
    pub(super) fn expect(self: &Arc<Self>, open: &Arc<OpenFile>, range: &Range<u64>) {
        if self.goes_on(range.start) {
            self.expect_more(open, range.end.div_ceil(BLOCK_BYTES));
        } else if self.stream.scattered.fetch_add(1, Ordering::Relaxed) >= SCATTERED_MIN {
            self.expect_anything(open, range.end.div_ceil(BLOCK_BYTES));
        }
    }

    /// Has one block fetched that lacks something: the first from block `next` on, or of those before.
    fn expect_anything(self: &Arc<Self>, open: &Arc<OpenFile>, next: u64) {
        let bytes = next * BLOCK_BYTES;
        let absent = |bytes| self.bits.first_absent(self.pages(bytes));
        if let Some(page) = absent(bytes..u64::MAX).or_else(|| absent(0..bytes.saturating_sub(BLOCK_BYTES))) {
            let block = page * self.page / BLOCK_BYTES;
            self.fetch_later(open, block..block + 1);
        }
    }

    fn fetch_later(self: &Arc<Self>, open: &Arc<OpenFile>, blocks: Range<u64>) {
        self.shared.ahead.add(Job { base: Arc::clone(self), open: Arc::clone(open), blocks });
    }

    /// True if a reader at `offset` has the block before it already: it reads on.
    fn goes_on(&self, offset: u64) -> bool {
        let block = offset / BLOCK_BYTES;
        block.checked_sub(1).is_some_and(|before| {
            self.holds(before * BLOCK_BYTES..block * BLOCK_BYTES) || lock(&self.flights).contains(&before)
        })
    }

    /// Called with what is read and here already: a reader inside a window asks for the next one.
    pub(in crate::clone) fn read_on(self: &Arc<Self>, open: &Arc<OpenFile>, range: &Range<u64>) {
        let stream = &self.stream;
        if range.end > stream.trigger.load(Ordering::Acquire) && range.start < stream.end.load(Ordering::Acquire) {
            self.expect_more(open, range.end.div_ceil(BLOCK_BYTES));
        }
    }

    /// Has the window after `next` fetched, or the one after what was asked for already.
    fn expect_more(self: &Arc<Self>, open: &Arc<OpenFile>, next: u64) {
        let stream = &self.stream;
        let mut window = lock(&stream.window);
        let (trigger, asked) =
            (stream.trigger.load(Ordering::Acquire), stream.end.load(Ordering::Acquire) / BLOCK_BYTES);
        let expected = trigger != u64::MAX;
        if expected && next * BLOCK_BYTES < trigger && asked.saturating_sub(next) <= 2 * WINDOW_MAX {
            // One of several requests of the same reader: the window it asks for is under way.
            return;
        }
        let continues = expected && next * BLOCK_BYTES >= trigger && next <= asked + 1;
        *window = if continues { (*window * 2).clamp(WINDOW_MIN, WINDOW_MAX) } else { WINDOW_MIN };
        let begin = if continues { asked.max(next) } else { next };
        let blocks = self.limit().div_ceil(BLOCK_BYTES);
        let end = (begin + *window).min(blocks);
        stream.end.store(end * BLOCK_BYTES, Ordering::Release);
        // Nothing is behind the file's end.
        stream.trigger.store(if end < blocks { begin * BLOCK_BYTES } else { u64::MAX }, Ordering::Release);
        let mut at = begin;
        while at < end {
            let upto = (at + BLOCKS_MAX).min(end);
            if !self.holds(at * BLOCK_BYTES..upto * BLOCK_BYTES) {
                self.fetch_later(open, at..upto);
            }
            at = upto;
        }
    }
}
