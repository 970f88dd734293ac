//! Reading files that a server may be writing.
//!
//! The server writes pages in place while they are read, so a page may come in two halves of different
//! age. Its checksum tells, and reading it again heals it, because the write ends. A page that stays wrong
//! is accepted if its position in the WAL is after the start of the backup: replay then finds a full image
//! of it. Anything else is damage that was there before; it is reported, and copied as it is.
//!
//! Reads go through `pread` into the caller's buffer, never through a memory map: the server may truncate
//! the file, and touching a map past its end kills the process. A reader may be shared between threads.
//!
//! Source: `basebackup.c` (`verify_page_checksum`), where the server takes the same decision.

mod original;

pub use original::Original;

use self::original::Tail;
use crate::limit::Limits;
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::page::{PageCheck, PageHeader, verify};
use rustix::fs::{Advice, OFlags, fadvise};
use std::fs::File;
use std::io::ErrorKind;
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use pgkeep_formats::pg::page::is_new as is_zero;

/// How often a wrong page is read again. A write of a page ends within microseconds, on a stalled disk later.
const REREADS: u32 = 6;
/// The wait before the second of them; each next one is twice as long, a sixth of a second in all.
const REREAD_PAUSE: Duration = Duration::from_millis(5);
/// A file with more bad pages than this is damaged at large; waiting for each of them helps nobody.
const PATIENCE_PAGES: usize = 64;
/// A page cannot be further ahead than a backup's worth of WAL. What claims more has a damaged header.
const LSN_AHEAD_MAX: u64 = 1 << 42;

/// What is known of the pages of a relation file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Bytes of a page.
    pub size: NonZero<usize>,
    /// Number of the file's first page in its relation fork: segment number times pages a segment.
    pub first_block: u32,
    /// How to check them.
    pub check: PageCheck,
    /// Where the backup started; `None` if the server is stopped, and then nothing heals.
    pub backup_start: Option<Lsn>,
}

/// Outcome of one read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Region {
    /// Bytes read; fewer than asked for only at the end of the file.
    pub len: usize,
    /// Pages found damaged, as numbers within this file (0 is its first page), ascending.
    pub bad_pages: Vec<u32>,
    /// Number of pages that were wrong at first and came right, or will by WAL replay.
    pub healed: u32,
}

/// Reads one file of the cluster.
#[derive(Debug)]
pub struct RegionReader {
    file: File,
    path: PathBuf,
    pages: Option<Pages>,
    /// Pages that stayed wrong so far.
    bad_pages: AtomicUsize,
    limits: Option<Arc<Limits>>,
    /// Where there is more behind the end of the file.
    tail: Option<Tail>,
}

impl RegionReader {
    /// Opens a file found by the walk. `None` if it has vanished since.
    ///
    /// With `pages` each page is checked as it is read. Links are not followed any more: the walk did.
    ///
    /// # Errors
    /// [`Kind::FileOpen`].
    pub fn open(path: &Path, pages: Option<Pages>) -> Result<Option<Self>> {
        let file = match open(path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            other => other.map_err(FileError::at("open", path))?,
        };
        for advice in [Advice::Sequential, Advice::NoReuse] {
            // Advice is a favour. Pages are not dropped from the cache after reading: they are the server's too.
            if let Err(e) = fadvise(&file, 0, None, advice) {
                tracing::trace!("no advice for '{}': {e}", path.display());
            }
        }
        Ok(Some(Self {
            file,
            path: path.to_path_buf(),
            pages,
            bad_pages: AtomicUsize::new(0),
            limits: None,
            tail: None,
        }))
    }

    /// Reads no faster than `limits` allow from now on, in smaller pieces, and no more once they end.
    #[must_use]
    pub fn limited(self, limits: &Arc<Limits>) -> Self {
        Self { limits: Some(Arc::clone(limits)), ..self }
    }

    /// Reads what the file lacks from the one it is a copy of: up to the size that has, and then zeros up to the size that is
    /// asked for.
    ///
    /// Reading fails with [`Kind::DbMismatch`] if the file cannot be a copy, after some seconds' patience.
    #[must_use]
    pub fn completed_from(self, original: Option<Arc<Original>>) -> Self {
        Self { tail: original.map(Tail::new), ..self }
    }

    /// Lets the kernel fetch bytes that will be read soon, so that the disk works while others are looked at. Not if reading is
    /// limited: what the disk does must then be paid for first.
    pub fn will_read(&self, offset: u64, len: u64) {
        if self.limits.as_ref().is_none_or(|limits| !limits.limits_reading()) {
            let _ = fadvise(&self.file, offset, NonZero::new(len), Advice::WillNeed);
        }
    }

    /// Bytes of the file now.
    ///
    /// # Errors
    /// [`Kind::FileInfo`].
    pub fn size(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(FileError::at("stat", &self.path))?.len())
    }

    /// Fills `buffer` from `offset` on, as far as the file goes, and checks the pages.
    ///
    /// For a file of pages the offset is a multiple of the page size. Damaged pages are in the buffer as
    /// they are in the file. May sleep for a sixth of a second to see whether they stay so.
    ///
    /// # Errors
    /// [`Kind::FileRead`]; [`Kind::Assert`] for an offset between pages; [`Kind::Interrupted`] if the limits end waits.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<Region> {
        let len = self.fill(offset, buffer)?;
        let mut region = Region { len, ..Region::default() };
        let (Some(pages), Some(content)) = (self.pages, buffer.get_mut(..len)) else {
            return Ok(region);
        };
        let size = pages.size.get();
        if !offset.is_multiple_of(size as u64) {
            let message = format!("cannot read '{}' at {offset}: not the start of a page", self.path.display());
            return Err(Error::refused(Kind::Assert, message));
        }
        let first = offset / size as u64;
        let mut wrong = Vec::new();
        for (i, page) in content.chunks(size).enumerate() {
            let number = block_number(first + i as u64, &self.path)?;
            if !is_good(page, number, &pages) {
                wrong.push(Wrong { at: i * size..i * size + page.len(), number });
            }
        }
        if !wrong.is_empty() {
            self.heal(content, wrong, &pages, &mut region)?;
        }
        Ok(region)
    }

    /// Reads wrong pages again until they are right, or settles why not. All wait together.
    fn heal(&self, content: &mut [u8], mut wrong: Vec<Wrong>, pages: &Pages, region: &mut Region) -> Result<()> {
        let (size, found) = (pages.size.get(), wrong.len());
        let patience = match pages.backup_start {
            None => 0,
            Some(_) if self.bad_pages.load(Ordering::Relaxed) > PATIENCE_PAGES => 1,
            Some(_) => REREADS,
        };
        let mut again = vec![0; size];
        let mut pause = REREAD_PAUSE;
        for round in 0..patience {
            if round > 0 {
                std::thread::sleep(pause);
                pause *= 2;
            }
            let mut still = Vec::new();
            for page in wrong {
                let len = self.fill(u64::from(page.number) * size as u64, &mut again)?;
                let old = content.get_mut(page.at.clone()).unwrap_or_default();
                if len < old.len() {
                    // Truncated meanwhile. Whole pages that were there before are as good as any, replay cuts
                    // them off; half a page can only be the last, and ends the region.
                    if old.len() < size {
                        region.len = page.at.start;
                    }
                    continue;
                }
                old.copy_from_slice(again.get(..old.len()).unwrap_or_default());
                // Half a page at the end may be whole now; the half asked for is kept, replay does the rest.
                if !is_good(again.get(..len).unwrap_or_default(), page.number, pages) {
                    still.push(page);
                }
            }
            wrong = still;
            if wrong.is_empty() {
                break;
            }
        }
        wrong.retain(|page| !will_be_replayed(content.get(page.at.clone()).unwrap_or_default(), pages));
        region.healed = u32::try_from(found - wrong.len()).unwrap_or(u32::MAX);
        region.bad_pages = wrong.iter().map(|page| page.number).collect();
        self.bad_pages.fetch_add(wrong.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Reads until the buffer is full or the file, with what completes it, ends.
    fn fill(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let len = self.fill_from(&self.file, offset, buffer)?;
        match &self.tail {
            Some(tail) => tail.complete(self, offset, len, buffer),
            None => Ok(len),
        }
    }

    fn fill_from(&self, file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut len = 0;
        while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
            let now = self.limits.as_ref().map_or(Ok(rest.len()), |limits| limits.read(rest.len()))?;
            match file.read_at(rest.get_mut(..now).unwrap_or_default(), offset + len as u64) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(FileError::at("read", &self.path)(e).into()),
            }
        }
        Ok(len)
    }
}

/// Links are not followed: the walk did.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A page that does not verify.
struct Wrong {
    /// Its bytes in the buffer.
    at: Range<usize>,
    /// Its number in the file.
    number: u32,
}

/// True if the page's last change is in WAL that a restore replays.
fn will_be_replayed(page: &[u8], pages: &Pages) -> bool {
    let lsn = PageHeader::read(page).map_or(Lsn::INVALID, |header| header.lsn);
    let ahead = pages.backup_start.and_then(|start| lsn.checked_since(start));
    page.len() == pages.size.get() && ahead.is_some_and(|bytes| bytes <= LSN_AHEAD_MAX)
}

fn is_good(page: &[u8], number: u32, pages: &Pages) -> bool {
    // A relation has at most 2^32 - 1 pages; past that no page can be right.
    let block = pages.first_block.checked_add(number);
    page.len() == pages.size.get() && block.is_some_and(|block| verify(page, block, pages.check).is_good())
}

fn block_number(number: u64, path: &Path) -> Result<u32> {
    u32::try_from(number).map_err(|_| {
        Error::refused(Kind::FileInvalid, format!("'{}' has more pages than a relation can", path.display()))
    })
}

#[cfg(test)]
mod tests;
