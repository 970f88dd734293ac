//! A base-backed file: pages that are not in the clone's sparse file yet come from the backup.
//!
//! # State
//! `limit` is the smallest size the file ever had. Bytes at and above it never come from the base, so a file that is
//! truncated and extended reads zeros. Below it each page is *absent* (its content is the base's) or *present* (its
//! content is the sparse file's). Pages only ever become present, `limit` only ever shrinks.
//!
//! # Order of writes, and why nothing acknowledged is lost
//! There are two maps on disk, `present` and `durable`, of the same layout (bytes cut off the base, then the bits).
//! - A page becomes present: data `pwrite`, bit set in memory, word `pwrite` into `present`, then the request is
//!   answered. All of it is in the page cache, so the death of this process at any point loses at most a request that
//!   was not answered; its page is absent and reads as before.
//! - A fetched page is written only while it is still absent, under the fill lock; a writer that turns an absent page
//!   into a present one holds the same lock. So base bytes never overwrite newer ones.
//! - `fsync`: copy the bits and the limit, sync the data, write the copy into `durable`, sync that. A bit in `durable`
//!   therefore implies durable bytes.
//! - Truncation: `ftruncate`, then the limit. After a death in between the limit is above the size and is lowered when
//!   the file is next loaded, before anything can extend it.
//! - The next session ([`super::recover`]) trusts `present` in the same boot or after an orderly end; after a power cut
//!   it starts from `durable`. Pages written but not fsynced are then the base's or, if their bit was durable, whatever
//!   reached the disk: what any file system promises, and what PostgreSQL's WAL repairs. They are never zeros.
//!
//! # Failures
//! A fetch that fails is EIO for that request and is tried again by the next. A failed sync is remembered for ever: the
//! kernel forgets it, PostgreSQL must not.

use super::bitmap::Bitmap;
use super::state::{BLOCK_HEADER_BYTES, BaseEntry};
use crate::errno::{self, Outcome, chain};
use fuser::Errno;
use pgkeep_engine::view::{Content, Snapshot};
use rustix::fs::FallocateFlags;
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

/// One miss fetches its neighbourhood: chunks are up to this large, and scans ask for what follows anyway.
const FETCH_BYTES: u64 = 1 << 20;

/// The two stored maps of all base-backed files.
pub(super) struct Maps {
    pub(super) present: File,
    pub(super) durable: File,
}

/// See the module's header.
pub(super) struct BaseFile {
    entry: BaseEntry,
    page: u64,
    bits: Bitmap,
    limit: AtomicU64,
    /// Held while an absent page is filled and while the limit changes.
    fill: Mutex<()>,
    /// True if `durable` may lack something that `present` has.
    unrecorded: AtomicBool,
    flights: Mutex<HashSet<u64>>,
    landed: Condvar,
    content: OnceLock<Arc<dyn Content>>,
    snapshot: Arc<dyn Snapshot>,
    maps: Arc<Maps>,
}

impl BaseFile {
    /// Loads the map of the file `entry`, whose sparse file has `size` bytes now.
    pub(super) fn load(
        entry: &BaseEntry,
        page_size: u32,
        size: u64,
        snapshot: Arc<dyn Snapshot>,
        maps: Arc<Maps>,
    ) -> std::io::Result<Self> {
        let page = u64::from(page_size);
        let pages = entry.size.div_ceil(page);
        let bytes = BLOCK_HEADER_BYTES + Bitmap::stored_bytes(pages);
        let mut block = vec![0u8; usize::try_from(bytes).map_err(std::io::Error::other)?];
        maps.present.read_exact_at(&mut block, entry.block)?;
        let (header, words) = block.split_first_chunk::<8>().ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let limit = entry.size.saturating_sub(u64::from_le_bytes(*header));
        let base = Self {
            entry: entry.clone(),
            page,
            bits: Bitmap::from_bytes(pages, words),
            limit: AtomicU64::new(limit),
            fill: Mutex::new(()),
            unrecorded: AtomicBool::new(true),
            flights: Mutex::new(HashSet::new()),
            landed: Condvar::new(),
            content: OnceLock::new(),
            snapshot,
            maps,
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

    /// True if the bytes can be read from the sparse file as they are.
    pub(super) fn holds(&self, range: Range<u64>) -> bool {
        self.bits.covers(self.pages(range))
    }

    /// Bytes below this may be the base's, whatever the sparse file's holes say.
    pub(super) fn opaque_bytes(&self) -> u64 {
        if self.bits.is_full() { 0 } else { self.limit() }
    }

    /// Fetches what is absent of `range`. Blocks on the store.
    pub(super) fn ensure(&self, file: &File, range: Range<u64>) -> Outcome<()> {
        while let Some(page) = self.bits.first_absent(self.pages(range.clone())) {
            let region = page * self.page / FETCH_BYTES;
            if let Some(_flight) = self.take_off(region) {
                self.fetch(file, region)?;
            }
        }
        Ok(())
    }

    /// Claims a region for fetching; `None` if another thread had it and is done by now.
    fn take_off(&self, region: u64) -> Option<Flight<'_>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.insert(region) {
            return Some(Flight { base: self, region });
        }
        while flights.contains(&region) {
            flights = self.landed.wait(flights).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn fetch(&self, file: &File, region: u64) -> Outcome<()> {
        let bytes = region * FETCH_BYTES..(region + 1) * FETCH_BYTES;
        let pages = self.pages(bytes);
        let Some(first) = self.bits.first_absent(pages.clone()) else { return Ok(()) };
        let mut end = first;
        while let Some(run) = self.bits.absent_run(end..pages.end) {
            end = run.end;
        }
        let start = first * self.page;
        let stop = (end * self.page).min(self.entry.size);
        let mut buffer = vec![0u8; usize::try_from(stop - start).map_err(|_| Errno::EIO)?];
        self.read_base(start, &mut buffer).map_err(|error| {
            tracing::error!("cannot fetch bytes {start}..{stop} of '{}': {}", self.entry.path, chain(&error));
            Errno::EIO
        })?;
        let _fill = self.fill.lock().unwrap_or_else(PoisonError::into_inner);
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
            self.mark(run)?;
        }
        Ok(())
    }

    /// Fills `buffer` from `offset` without keeping what is fetched, for when the disk is full. Bytes at and above the
    /// file's size are left as they are; the caller has read what the sparse file holds of the range before.
    pub(super) fn overlay(&self, absent: &[Range<u64>], offset: u64, buffer: &mut [u8]) -> Outcome<()> {
        let end = offset + buffer.len() as u64;
        for run in absent {
            let from = (run.start * self.page).max(offset);
            let upto = (run.end * self.page).min(self.limit()).min(end);
            let within = usize::try_from(from - offset).ok().zip(usize::try_from(upto.max(from) - offset).ok());
            let part = within.and_then(|(from, upto)| buffer.get_mut(from..upto)).ok_or(Errno::EIO)?;
            self.read_base(from, part).map_err(|error| {
                tracing::error!("cannot fetch bytes {from}..{upto} of '{}': {}", self.entry.path, chain(&error));
                Errno::EIO
            })?;
        }
        Ok(())
    }

    /// The runs of absent pages in `range`.
    pub(super) fn absent(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let pages = self.pages(range);
        let mut runs = Vec::new();
        let mut from = pages.start;
        while let Some(run) = self.bits.absent_run(from..pages.end) {
            from = run.end;
            runs.push(run);
        }
        runs
    }

    fn read_base(&self, offset: u64, buffer: &mut [u8]) -> pgkeep_engine::Result<()> {
        let content = match self.content.get() {
            Some(content) => content,
            None => {
                let content = self.snapshot.open(&self.entry.path)?;
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

    /// Stores the words with the new bits, then sets them. The fill lock is held, so no older word can overwrite a newer
    /// one; if storing fails the pages are still absent.
    fn mark(&self, pages: Range<u64>) -> Outcome<()> {
        if self.bits.covers(pages.clone()) {
            return Ok(());
        }
        let (first, bytes) = self.bits.to_bytes_with(pages.clone());
        let at = self.entry.block + BLOCK_HEADER_BYTES + first * 8;
        self.maps.present.write_all_at(&bytes, at).map_err(errno::io)?;
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
    fn replace(&self, file: &File, range: Range<u64>, change: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
        let touched = self.pages(range.clone());
        if self.bits.covers(touched.clone()) {
            return change();
        }
        let covered = self.covered(&range);
        // Pages of which something remains are fetched first: at most the first and the last.
        for page in [touched.start, touched.end - 1] {
            if !covered.contains(&page) {
                self.ensure(file, page * self.page..page * self.page + 1)?;
            }
        }
        let _fill = self.fill.lock().unwrap_or_else(PoisonError::into_inner);
        change()?;
        self.mark(covered.start..covered.end.min(touched.end))
    }

    /// Writes all of `data`. A page that was absent and is only partly written when this fails stays absent.
    pub(super) fn write(&self, file: &File, offset: u64, data: &[u8]) -> Outcome<()> {
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::EFBIG)?;
        self.replace(file, offset..end, || file.write_all_at(data, offset).map_err(errno::io))
    }

    /// Makes `range` read as zeros, by `mode`, which punches a hole or zeroes.
    pub(super) fn clear(&self, file: &File, range: Range<u64>, mode: FallocateFlags) -> Outcome<()> {
        self.replace(file, range.clone(), || {
            rustix::fs::fallocate(file, mode, range.start, range.end - range.start).map_err(errno::system)
        })
    }

    /// Sets the size.
    pub(super) fn truncate(&self, file: &File, size: u64) -> Outcome<()> {
        let _fill = self.fill.lock().unwrap_or_else(PoisonError::into_inner);
        file.set_len(size).map_err(errno::io)?;
        if size < self.limit() { self.lower_limit(size).map_err(errno::io) } else { Ok(()) }
    }

    fn lower_limit(&self, size: u64) -> std::io::Result<()> {
        self.limit.store(size, Ordering::Release);
        self.unrecorded.store(true, Ordering::Release);
        self.maps.present.write_all_at(&(self.entry.size - size).to_le_bytes(), self.entry.block)
    }

    /// Runs `sync` on the data and then records as durable what was present before it ran. The caller lets one thread in
    /// at a time: a second one must not return before the first has recorded.
    pub(super) fn sync(&self, sync: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
        if !self.unrecorded.swap(false, Ordering::AcqRel) {
            return sync();
        }
        let result = self.sync_and_record(sync);
        if result.is_err() {
            self.unrecorded.store(true, Ordering::Release);
        }
        result
    }

    fn sync_and_record(&self, sync: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
        let block = {
            let _fill = self.fill.lock().unwrap_or_else(PoisonError::into_inner);
            let mut block = (self.entry.size - self.limit()).to_le_bytes().to_vec();
            block.extend_from_slice(&self.bits.to_bytes());
            block
        };
        sync()?;
        self.maps.durable.write_all_at(&block, self.entry.block).map_err(errno::io)?;
        self.maps.durable.sync_data().map_err(errno::io)
    }
}

/// A region being fetched; the others are let in when it is dropped, also by a panic.
struct Flight<'a> {
    base: &'a BaseFile,
    region: u64,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.base.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.region);
        self.base.landed.notify_all();
    }
}
