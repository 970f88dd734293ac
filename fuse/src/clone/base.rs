//! A base-backed file: pages that are not in the clone's sparse file yet come from the backup.
//!
//! # State
//! `limit` is the smallest size the file ever had. Bytes at and above it never come from the base, so a file that is
//! truncated and extended reads zeros; it only ever shrinks. Below it a page is
//! - *absent*: its content is the base's;
//! - *fetched*: the base's bytes were written to the sparse file, and not seen on the disk yet. It counts as present in
//!   memory only: for the next session it is absent;
//! - *written*: the server's bytes are in the sparse file, and `present` says so;
//! - *durable*: the sparse file was synced since the page became one of the two, and `durable` says so too.
//!
//! # Order of writes, and why nothing acknowledged is lost
//! There are two maps on disk, `present` and `durable`, of the same layout (bytes cut off the base, then the bits).
//! - The server writes: data `pwrite`, word `pwrite` into `present`, bits set in memory, then the request is answered.
//!   All of it is in the page cache, so the death of this process at any point loses at most a request that was not
//!   answered; its page reads as before.
//! - A fetched page is written only while it is still absent, under the fill lock; a writer that turns a page into a
//!   written one holds the same lock. So base bytes never overwrite newer ones.
//! - A sync, the server's or the background's ([`super::settle`]): copy the bits and the limit, sync the data, write the
//!   copy into `durable`, sync that, then into `present`. A bit in `durable` therefore implies durable bytes, and one in
//!   `present` durable bytes or the server's.
//! - Truncation: `ftruncate`, then the limit. After a death in between the limit is above the size and is lowered when
//!   the file is next loaded, before anything can extend it.
//! - The next session ([`super::recover`]) trusts `present` in the same boot or after an orderly end, if no write failed;
//!   else it starts from `durable`. Pages written but not fsynced are then the base's or, if their bit was durable,
//!   whatever reached the disk: what any file system promises, and what PostgreSQL's WAL repairs. Never zeros.
//!
//! # Failures
//! A fetch that fails is EIO for that request and is tried again by the next.
//!
//! Once a page could not be written to the disk, the page cache may hold anything of it ([`super::disk`]), and nobody
//! can tell which page it was. So when a sync or a look at the file's note of failures finds one, only durable pages
//! are trusted (`base/trust.rs`): fetched ones are absent and fetched again, also if they are read before any sync, for
//! every read of a page that is not durable ends with such a look. If the server had written anything that is not
//! durable the file has failed for ever: syncs and writes are EIO, and reads of everything but durable pages too. The
//! kernel forgets a failure once it was told, PostgreSQL must not.
//!
//! Locks are taken in the order `syncing`, `verdict`, `fill`.

mod expect;
mod fetch;
mod trust;

use super::ahead::Ahead;
use super::bitmap::Bitmap;
use super::demand::Demand;
use super::disk::Disk;
use super::nodes::OpenFile;
use super::recover::Doubt;
use super::room::Room;
use super::settle::Queue;
use super::state::{BLOCK_HEADER_BYTES, BaseEntry};
use super::trace::Recorder;
use crate::errno::{self, Outcome, chain};
use expect::Stream;
pub(super) use fetch::{BLOCK_BYTES, Wanted};
use fuser::Errno;
use pgkeep_engine::view::{Content, Snapshot};
use rustix::fs::FallocateFlags;
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// The two stored maps of all base-backed files.
pub(super) struct Maps {
    pub(super) present: File,
    pub(super) durable: File,
    /// Set for ever by a failed sync of `durable`, which is told once though the words of many files may be lost.
    failed: Mutex<bool>,
}

impl Maps {
    pub(super) fn new(present: File, durable: File) -> Self {
        Self { present, durable, failed: Mutex::new(false) }
    }

    /// Writes into `durable`, durably.
    fn record(&self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut failed = lock(&self.failed);
        if *failed {
            return Err(std::io::Error::other("the map of durable pages could not be written before"));
        }
        let result = self.durable.write_all_at(bytes, at).and_then(|()| self.durable.sync_data());
        *failed = result.is_err();
        result
    }
}

/// What all base-backed files of a clone have in common.
pub(super) struct Shared {
    pub(super) page_size: u32,
    /// The backup, as messages call it.
    pub(super) backup: String,
    pub(super) snapshot: Arc<dyn Snapshot>,
    pub(super) maps: Arc<Maps>,
    pub(super) disk: Box<dyn Disk>,
    pub(super) queue: Arc<Queue>,
    pub(super) doubt: Arc<Doubt>,
    pub(super) demand: Arc<Demand>,
    pub(super) ahead: Arc<Ahead>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) room: Room,
}

/// See the module's header.
pub(super) struct BaseFile {
    entry: BaseEntry,
    page: u64,
    /// Pages that are not absent.
    bits: Bitmap,
    /// Pages that `present` has: the written and the durable ones.
    stored: Bitmap,
    durable: Bitmap,
    limit: AtomicU64,
    /// What the limit is after a crash of the host: never below `limit`.
    durable_limit: AtomicU64,
    /// Held while an absent page is filled and while the limit or the stored maps change.
    fill: Mutex<()>,
    /// True if `durable` may lack something that memory has.
    unrecorded: AtomicBool,
    /// True if the server may have changed something since the last successful sync.
    changed: AtomicBool,
    /// True once it may be written without this process seeing it: then any failure may be of such a write.
    unseen: AtomicBool,
    /// Changes the server has begun and has finished.
    begun: AtomicU64,
    done: AtomicU64,
    /// One sync at a time: a second one must not return before the first has recorded.
    syncing: Mutex<()>,
    /// Held from asking for failures until their consequences are visible.
    verdict: Mutex<()>,
    /// Counts the times that pages which are not durable were given up.
    generation: AtomicU64,
    failed: AtomicBool,
    /// True once the failure at hand was logged.
    told: AtomicBool,
    /// Keeps the file open while it waits for the background's sync.
    anchor: Mutex<Option<Arc<OpenFile>>>,
    queued: AtomicBool,
    settling: AtomicBool,
    flights: Mutex<HashSet<u64>>,
    landed: Condvar,
    stream: Stream,
    /// Regions whose first read was noted.
    seen: Bitmap,
    content: OnceLock<Arc<dyn Content>>,
    shared: Arc<Shared>,
}

/// What a stored map says of a file: bytes cut off its base, and its pages.
pub(super) fn block_of(map: &File, entry: &BaseEntry, page: u64) -> std::io::Result<(u64, Bitmap)> {
    let pages = entry.size.div_ceil(page);
    let bytes = usize::try_from(BLOCK_HEADER_BYTES + Bitmap::stored_bytes(pages)).map_err(std::io::Error::other)?;
    let mut block = vec![0u8; bytes];
    map.read_exact_at(&mut block, entry.block)?;
    let (header, words) = block.split_first_chunk::<8>().ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((u64::from_le_bytes(*header), Bitmap::from_bytes(pages, words)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BaseFile {
    /// Loads the maps of the file `entry`, whose sparse file has `size` bytes now.
    pub(super) fn load(entry: &BaseEntry, size: u64, shared: Arc<Shared>) -> std::io::Result<Self> {
        let page = u64::from(shared.page_size);
        let (cut, stored) = block_of(&shared.maps.present, entry, page)?;
        let (cut_durably, durable) = block_of(&shared.maps.durable, entry, page)?;
        stored.add_all(&durable);
        let limit = entry.size.saturating_sub(cut.max(cut_durably));
        let base = Self {
            entry: entry.clone(),
            page,
            bits: stored.snapshot(),
            stored,
            durable,
            limit: AtomicU64::new(limit),
            // A smaller size found here is on the disk: a session begins by making durable what there is.
            durable_limit: AtomicU64::new(if size < limit { size } else { entry.size.saturating_sub(cut_durably) }),
            fill: Mutex::new(()),
            unrecorded: AtomicBool::new(true),
            changed: AtomicBool::new(false),
            unseen: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            done: AtomicU64::new(0),
            syncing: Mutex::new(()),
            verdict: Mutex::new(()),
            generation: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            told: AtomicBool::new(false),
            anchor: Mutex::new(None),
            queued: AtomicBool::new(false),
            settling: AtomicBool::new(false),
            flights: Mutex::new(HashSet::new()),
            landed: Condvar::new(),
            stream: Stream::default(),
            seen: Bitmap::from_bytes(entry.size.div_ceil(BLOCK_BYTES), &[]),
            content: OnceLock::new(),
            shared,
        };
        if size < limit {
            base.lower_limit(size)?;
        }
        Ok(base)
    }

    fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    /// The pages that hold base bytes of `range`.
    fn pages(&self, range: Range<u64>) -> Range<u64> {
        let end = range.end.min(self.limit());
        if range.start >= end { 0..0 } else { range.start / self.page..end.div_ceil(self.page) }
    }

    /// Path in the backup.
    pub(super) fn path(&self) -> &str {
        &self.entry.path
    }

    /// Where bytes are, for messages: pages, file and backup.
    fn place(&self, bytes: Range<u64>) -> String {
        let (first, last) = (bytes.start / self.page, bytes.end.saturating_sub(1) / self.page);
        let (from, upto, path, backup) = (bytes.start, bytes.end, &self.entry.path, &self.shared.backup);
        format!("pages {first} to {last} (bytes {from}..{upto}) of '{path}' of backup {backup}")
    }

    /// Bytes that may be the base's: the smallest size the file ever had.
    pub(super) fn base_bytes(&self) -> u64 {
        self.limit()
    }

    /// How many of them are in the sparse file, counted in pages.
    pub(super) fn held_bytes(&self) -> u64 {
        self.bits.present_pages().saturating_mul(self.page).min(self.limit())
    }

    /// How many bytes of a range are the base's and not there, counted in pages.
    pub(super) fn absent_bytes(&self, range: Range<u64>) -> u64 {
        let pages = self.pages(range);
        let (mut from, mut absent) = (pages.start, 0);
        while let Some(run) = self.bits.absent_run(from..pages.end) {
            from = run.end;
            absent += run.end - run.start;
        }
        absent.saturating_mul(self.page)
    }

    /// True if all of them are there after a crash of the host. Bytes that were cut off count until that is durable:
    /// a crash may bring them back.
    pub(super) fn is_durable(&self) -> bool {
        self.durable_limit.load(Ordering::Acquire) == self.limit() && self.durable.covers(self.pages(0..u64::MAX))
    }

    /// True if the bytes can be read from the sparse file as they are.
    pub(super) fn holds(&self, range: Range<u64>) -> bool {
        self.bits.covers(self.pages(range))
    }

    /// Bytes below this may be the base's, whatever the sparse file's holes say.
    pub(super) fn opaque_bytes(&self) -> u64 {
        if self.bits.is_full() { 0 } else { self.limit() }
    }

    /// Runs `change` on the file's facts while no fetch puts back what it found.
    pub(super) fn with_facts<T>(&self, change: impl FnOnce() -> T) -> T {
        let _fill = lock(&self.fill);
        change()
    }

    /// Fills `buffer` from `offset` without keeping what is fetched, for when the disk is full or all but full. Bytes at and above the
    /// file's size are left as they are; the caller has read what the sparse file holds of the range before.
    pub(super) fn overlay(&self, absent: &[Range<u64>], offset: u64, buffer: &mut [u8]) -> Outcome<()> {
        let end = offset + buffer.len() as u64;
        for run in absent {
            let from = (run.start * self.page).max(offset);
            let upto = (run.end * self.page).min(self.limit()).min(end);
            let within = usize::try_from(from - offset).ok().zip(usize::try_from(upto.max(from) - offset).ok());
            let part = within.and_then(|(from, upto)| buffer.get_mut(from..upto)).ok_or(Errno::EIO)?;
            self.read_base(from, part).map_err(|error| {
                tracing::error!("cannot fetch {}: {}", self.place(from..upto), chain(&error));
                Errno::EIO
            })?;
        }
        Ok(())
    }

    /// The runs of pages in `range` whose content is the base's, kept or not.
    pub(super) fn unchanged(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let pages = self.pages(range);
        let mut runs = Vec::new();
        let mut from = pages.start;
        while let Some(run) = self.stored.absent_run(from..pages.end) {
            from = run.end;
            runs.push(run);
        }
        runs
    }

    /// Stores the words with the new bits of pages the server wrote, then sets them. The fill lock is held, so no older
    /// word can overwrite a newer one; if storing fails the pages are for the next session what they were.
    fn mark(&self, pages: Range<u64>) -> Outcome<()> {
        if self.stored.covers(pages.clone()) {
            return Ok(());
        }
        let (first, bytes) = self.stored.to_bytes_with(pages.clone());
        let at = self.entry.block + BLOCK_HEADER_BYTES + first * 8;
        self.shared.maps.present.write_all_at(&bytes, at).map_err(errno::io)?;
        self.stored.set(pages.clone());
        self.bits.set(pages);
        self.unrecorded.store(true, Ordering::Release);
        Ok(())
    }

    /// The pages whose base bytes lie wholly inside `range`: replacing the range needs nothing of the base for them.
    fn covered(&self, range: &Range<u64>) -> Range<u64> {
        let limit = self.limit();
        let first = range.start.div_ceil(self.page);
        let end = if range.end >= limit { limit.div_ceil(self.page) } else { range.end / self.page };
        first..end.max(first)
    }

    /// Replaces `range` by what `change` does to the sparse file: a write, a hole, zeros.
    fn replace(
        self: &Arc<Self>,
        open: &Arc<OpenFile>,
        range: Range<u64>,
        change: impl FnOnce() -> Outcome<()>,
    ) -> Outcome<()> {
        if self.has_failed() {
            return Err(Errno::EIO);
        }
        self.changing(open, || {
            if self.stored.covers(self.pages(range.clone())) {
                self.changed.store(true, Ordering::Release);
                change()
            } else {
                self.take_over(open, range, change)
            }
        })
    }

    /// Runs a change by the server, which notes in `changed` that it begins, so that a failure that comes meanwhile is
    /// taken for one of it; here it is noted again, for a sync that ran meanwhile may have missed it.
    fn changing<T>(self: &Arc<Self>, open: &Arc<OpenFile>, change: impl FnOnce() -> T) -> T {
        self.begun.fetch_add(1, Ordering::AcqRel);
        let result = change();
        self.changed.store(true, Ordering::Release);
        self.done.fetch_add(1, Ordering::AcqRel);
        self.enqueue(open);
        result
    }

    fn take_over(
        self: &Arc<Self>,
        open: &Arc<OpenFile>,
        range: Range<u64>,
        change: impl FnOnce() -> Outcome<()>,
    ) -> Outcome<()> {
        loop {
            let touched = self.pages(range.clone());
            let covered = self.covered(&range);
            // Pages of which something remains are fetched first: at most the first and the last.
            let edges = [touched.start, touched.end.saturating_sub(1)];
            let kept: Vec<_> =
                edges.into_iter().filter(|page| touched.contains(page) && !covered.contains(page)).collect();
            for page in &kept {
                self.ensure_now(open, page * self.page..page * self.page + 1, Wanted::ToKeep)?;
            }
            let generation = self.generation();
            if kept.iter().any(|page| !self.durable.covers(*page..page + 1)) {
                self.check(open);
            }
            let _fill = lock(&self.fill);
            let are_there = kept.iter().all(|page| self.bits.covers(*page..page + 1));
            if self.has_failed() {
                return Err(Errno::EIO);
            }
            if are_there && self.generation() == generation {
                self.changed.store(true, Ordering::Release);
                change()?;
                return self.mark(touched);
            }
        }
    }

    /// Writes all of `data`. A page that was absent and is only partly written when this fails stays absent.
    pub(super) fn write(self: &Arc<Self>, open: &Arc<OpenFile>, offset: u64, data: &[u8]) -> Outcome<()> {
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        self.replace(open, offset..end, || open.file.write_all_at(data, offset).map_err(errno::io))
    }

    /// Makes `range` read as zeros, by `mode`, which punches a hole or zeroes.
    pub(super) fn clear(
        self: &Arc<Self>,
        open: &Arc<OpenFile>,
        range: Range<u64>,
        mode: FallocateFlags,
    ) -> Outcome<()> {
        self.replace(open, range.clone(), || {
            rustix::fs::fallocate(&open.file, mode, range.start, range.end - range.start).map_err(errno::system)
        })
    }

    /// Sets the size.
    pub(super) fn truncate(self: &Arc<Self>, open: &Arc<OpenFile>, size: u64) -> Outcome<()> {
        self.changing(open, || {
            let _fill = lock(&self.fill);
            self.changed.store(true, Ordering::Release);
            open.file.set_len(size).map_err(errno::io)?;
            if size < self.limit() { self.lower_limit(size).map_err(errno::io) } else { Ok(()) }
        })
    }

    fn lower_limit(&self, size: u64) -> std::io::Result<()> {
        self.limit.store(size, Ordering::Release);
        self.unrecorded.store(true, Ordering::Release);
        self.shared.maps.present.write_all_at(&(self.entry.size - size).to_le_bytes(), self.entry.block)
    }
}

#[cfg(test)]
mod tests;
