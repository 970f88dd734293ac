//! Fetching pages of a base-backed file: how much, in which order, and by whom.
//!
//! A page that is waited for comes with its *block*, which is what a chunk holds of a relation: decoding a chunk is most
//! of what a miss costs, and a second miss in it would decode it again. More is not fetched for one page: who looks up a
//! row waits for three or four blocks in different places, and neighbours of each would only be in its way. What is
//! expected to be read soon (`expect.rs`) is fetched in the background, while what is here is read.
//!
//! One thread fetches a block (a *flight*), others that want it wait for that. A request for several blocks fetches those
//! that follow each other with one read of the backup.

use super::{BaseFile, lock};
use crate::clone::nodes::OpenFile;
use crate::errno::{self, Outcome, chain};
use fuser::Errno;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// What one miss fetches: what a chunk of a relation holds.
pub(in crate::clone) const BLOCK_BYTES: u64 = 256 << 10;
/// Most blocks of one read of the backup: a MiB in the hands of each thread that fetches.
pub(super) const BLOCKS_MAX: u64 = 4;

thread_local! {
    /// Clearing a new buffer would cost as much as copying into it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A file that is worth being made durable soon once it is whole; the many small ones become so all at once.
const LARGE_BYTES: u64 = 8 << 20;

/// Who wants a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::clone) enum Wanted {
    /// A read, which can do without its being kept.
    ToRead,
    /// Whoever cannot: a write of a part of a page, and hydration, which sees to the room itself.
    ToKeep,
    /// Nobody waits; whoever will is told of a failure then.
    Ahead,
}

impl BaseFile {
    /// As [`Self::ensure`], for a request that waits for it: hydration gives way. ENOSPC also if it is to be read only and
    /// what the disk has left is for others.
    pub(in crate::clone) fn ensure_now(
        self: &Arc<Self>,
        open: &Arc<OpenFile>,
        range: Range<u64>,
        wanted: Wanted,
    ) -> Outcome<()> {
        self.shared.recorder.read(&self.entry.path, &self.seen, range.start..range.end.min(self.limit()));
        if self.holds(range.clone()) {
            self.read_on(open, &range);
            return Ok(());
        }
        let _waiting = self.shared.demand.enter();
        // Before this thread begins: the others need not wait for it.
        self.expect(open, &range);
        self.ensure_for(open, range, wanted)
    }

    /// Fetches what is absent of `range`. Blocks on the store. EROFS if nothing can be kept in the sparse file.
    pub(in crate::clone) fn ensure(self: &Arc<Self>, open: &Arc<OpenFile>, range: Range<u64>) -> Outcome<()> {
        self.ensure_for(open, range, Wanted::ToKeep)
    }

    /// As [`Self::ensure`], for what nobody has asked for yet.
    pub(in crate::clone) fn ensure_ahead(self: &Arc<Self>, open: &Arc<OpenFile>, range: Range<u64>) -> Outcome<()> {
        self.ensure_for(open, range, Wanted::Ahead)
    }

    /// Fetches what is absent of some blocks that are expected to be read.
    pub(in crate::clone) fn fetch_ahead(self: &Arc<Self>, open: &Arc<OpenFile>, blocks: Range<u64>) {
        if let Err(error) = self.ensure_ahead(open, blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES) {
            tracing::debug!("'{}' is not fetched ahead (errno {})", self.entry.path, error.code());
        }
    }

    fn ensure_for(self: &Arc<Self>, open: &Arc<OpenFile>, range: Range<u64>, wanted: Wanted) -> Outcome<()> {
        while let Some(page) = self.bits.first_absent(self.pages(range.clone())) {
            if self.has_failed() {
                return Err(Errno::EIO);
            }
            if !open.writable {
                return Err(Errno::EROFS);
            }
            let first = page * self.page / BLOCK_BYTES;
            let end = range.end.min(self.limit()).div_ceil(BLOCK_BYTES).min(first + BLOCKS_MAX);
            if let Some(flight) = self.take_off(first..end.max(first + 1)) {
                let bytes = self.absent_bytes(flight.blocks.start * BLOCK_BYTES..flight.blocks.end * BLOCK_BYTES);
                let taken = self.shared.room.take(&open.file, bytes);
                if taken.is_none() && wanted != Wanted::ToKeep {
                    return Err(Errno::ENOSPC);
                }
                self.fetch(open, &flight.blocks, &range, wanted)?;
            }
        }
        Ok(())
    }

    /// Claims the first of the blocks and those behind it that lack something and nobody fetches; `None` if another thread
    /// had the first and is done by now.
    fn take_off(&self, blocks: Range<u64>) -> Option<Flight<'_>> {
        let mut flights = lock(&self.flights);
        if flights.insert(blocks.start) {
            let mut end = blocks.start + 1;
            while end < blocks.end && !self.holds(end * BLOCK_BYTES..(end + 1) * BLOCK_BYTES) && flights.insert(end) {
                end += 1;
            }
            return Some(Flight { base: self, blocks: blocks.start..end });
        }
        while flights.contains(&blocks.start) {
            flights = self.landed.wait(flights).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Fetches what is absent of the blocks, of which somebody needs the bytes `needed`.
    fn fetch(
        self: &Arc<Self>,
        open: &Arc<OpenFile>,
        blocks: &Range<u64>,
        needed: &Range<u64>,
        wanted: Wanted,
    ) -> Outcome<()> {
        let bytes = blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES;
        let Some(all) = self.absent(bytes.clone()) else { return Ok(()) };
        let result = match self.fetch_pages(open, &all) {
            // What is around them may be of other chunks: damage there must not reach further than it does.
            Err(Failure::Base(place, error)) if wanted != Wanted::Ahead && is_of_content(&error) => {
                match self.absent(needed.start.max(bytes.start)..needed.end.min(bytes.end)) {
                    Some(few) if few != all => self.fetch_pages(open, &few),
                    _ => Err(Failure::Base(place, error)),
                }
            }
            other => other,
        };
        result.map_err(|failure| match failure {
            Failure::Disk(errno) => errno,
            Failure::Base(place, error) => {
                match wanted {
                    Wanted::ToRead | Wanted::ToKeep => tracing::error!("cannot fetch {place}: {}", chain(&error)),
                    Wanted::Ahead => tracing::debug!("cannot fetch {place} ahead: {}", chain(&error)),
                }
                Errno::EIO
            }
        })
    }

    /// The pages from the first absent one of `bytes` to the last.
    fn absent(&self, bytes: Range<u64>) -> Option<Range<u64>> {
        let pages = self.pages(bytes);
        let first = self.bits.first_absent(pages.clone())?;
        let mut end = first;
        while let Some(run) = self.bits.absent_run(end..pages.end) {
            end = run.end;
        }
        Some(first..end)
    }

    /// Fetches these pages with one read of the backup.
    fn fetch_pages(self: &Arc<Self>, open: &Arc<OpenFile>, pages: &Range<u64>) -> Result<(), Failure> {
        let start = pages.start * self.page;
        let stop = (pages.end * self.page).min(self.entry.size);
        let bytes = usize::try_from(stop - start).map_err(|_| Failure::Disk(Errno::EIO))?;
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < bytes {
                buffer.resize(bytes, 0);
            }
            let buffer = buffer.get_mut(..bytes).ok_or(Failure::Disk(Errno::EIO))?;
            self.read_base(start, buffer).map_err(|error| Failure::Base(self.place(start..stop), error))?;
            let result = self.fill_in(&open.file, start, buffer);
            // Also if it stopped half way: what it has written is present.
            self.enqueue(open);
            if self.entry.size >= LARGE_BYTES && self.bits.is_full() {
                self.shared.queue.is_whole();
            }
            result.map_err(Failure::Disk)
        })
    }

    /// Writes what is still absent of the base's bytes from `start`.
    fn fill_in(&self, file: &File, start: u64, buffer: &[u8]) -> Outcome<()> {
        let _fill = lock(&self.fill);
        let stop = start + buffer.len() as u64;
        let times = self.times(file);
        // The limit may have shrunk and pages may have been written since the fetch began.
        let pages = self.pages(start..stop);
        let mut from = pages.start;
        while let Some(run) = self.bits.absent_run(from..pages.end) {
            from = run.end;
            let at = run.start * self.page;
            let upto = (run.end * self.page).min(self.limit());
            let within = usize::try_from(at - start).ok().zip(usize::try_from(upto - start).ok());
            let bytes = within.and_then(|(at, upto)| buffer.get(at..upto)).ok_or(Errno::EIO)?;
            file.write_all_at(bytes, at).map_err(errno::io)?;
            self.bits.set(run);
            self.unrecorded.store(true, Ordering::Release);
        }
        if let Some(times) = times {
            self.restore_times(file, &times);
        }
        Ok(())
    }

    /// The time of the last change, if no change by the server is under way. The fill lock is held.
    fn times(&self, file: &File) -> Option<Quiet> {
        let begun = self.begun.load(Ordering::Acquire);
        if self.done.load(Ordering::Acquire) != begun {
            return None;
        }
        let stat = rustix::fs::fstat(file).ok()?;
        let modified = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).ok()? };
        Some(Quiet { begun, modified })
    }

    /// Fetching is not a change: the file keeps its time, unless the server changed it meanwhile.
    fn restore_times(&self, file: &File, quiet: &Quiet) {
        let is_quiet = || self.begun.load(Ordering::Acquire) == quiet.begun;
        if !is_quiet() {
            return;
        }
        let omit = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let set = |last_modification| {
            let times = Timestamps { last_access: omit(UTIME_OMIT), last_modification };
            if let Err(error) = rustix::fs::futimens(file, &times) {
                tracing::debug!("cannot keep the time of '{}': {error}", self.entry.path);
            }
        };
        set(quiet.modified);
        if !is_quiet() {
            set(omit(UTIME_NOW));
        }
    }

    pub(super) fn read_base(&self, offset: u64, buffer: &mut [u8]) -> pgkeep_engine::Result<()> {
        let content = match self.content.get() {
            Some(content) => content,
            None => {
                let content = self.shared.snapshot.open(&self.entry.path)?;
                self.content.get_or_init(|| content)
            }
        };
        let refuse = |message: String| pgkeep_engine::Error::refused(pgkeep_engine::Kind::FileInvalid, message);
        if content.size() != self.entry.size {
            let (size, expected) = (content.size(), self.entry.size);
            return Err(refuse(format!("the backup's file has {size} bytes, the clone was made from {expected}")));
        }
        let read = content.read_at(offset, buffer)?;
        if read != buffer.len() {
            return Err(refuse(format!("the backup gave {read} bytes instead of {}", buffer.len())));
        }
        Ok(())
    }
}

/// Why pages are still absent.
enum Failure {
    /// The backup did not give them; which they are.
    Base(String, pgkeep_engine::Error),
    Disk(Errno),
}

/// True if a read of fewer bytes may succeed: a store that is out of reach is asked once.
fn is_of_content(error: &pgkeep_engine::Error) -> bool {
    !matches!(error.kind(), pgkeep_engine::Kind::Service | pgkeep_engine::Kind::Interrupted)
}

/// A file's time, and the changes the server had begun when it was taken.
struct Quiet {
    begun: u64,
    modified: Timespec,
}

/// Blocks being fetched; the others are let in when it is dropped, also by a panic.
struct Flight<'a> {
    base: &'a BaseFile,
    blocks: Range<u64>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flights = lock(&self.base.flights);
        for block in self.blocks.clone() {
            flights.remove(&block);
        }
        drop(flights);
        self.base.landed.notify_all();
    }
}
