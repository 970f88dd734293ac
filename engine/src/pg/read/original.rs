//! The tail that a standby's file lacks, taken from the primary's.
//!
//! A standby has replayed the start S of the backup and written it to its files before any of them is read. So a page that
//! it lacks has been logged after S, or never: what the primary has in its place is as good as in a backup of the primary
//! alone. Normally there are few: the primary extends a file ahead of the WAL.
//!
//! A page of the primary that was logged *before* S says that this is not so: the standby's file has lost its tail, and then
//! nobody knows what else that standby lacks. Two things look like it for a moment: a truncation or drop is logged before the
//! primary carries it out, and a standby that replays the copying of a database has its files in part. Either passes, and is
//! waited for.

use super::RegionReader;
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::page::{PageHeader, is_new};
use std::fs::File;
use std::io::ErrorKind;
use std::num::NonZero;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a file may stay shorter than it should be before it is taken for damaged.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// No WAL begins before this. What stands below it in a page is a mark of an index that is being built, and will be logged
/// when it is done.
const FIRST_LSN: Lsn = Lsn(1 << 20);

/// The primary's file behind one of a standby.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes it has in the backup, however long either file is.
    pub size: u64,
    /// Bytes of a page, if it is made of pages; they are taken whole from one file or the other.
    pub page: Option<NonZero<usize>>,
    /// The start of the backup, if pages tell when they were logged.
    pub start: Option<Lsn>,
    /// Number of the standby's cluster, in messages.
    pub standby: u16,
}

/// An original in use: opened when it is first needed.
#[derive(Debug)]
pub(super) struct Tail {
    original: Arc<Original>,
    file: OnceLock<Option<File>>,
}

impl Tail {
    pub(super) fn new(original: Arc<Original>) -> Self {
        Self { original, file: OnceLock::new() }
    }

    /// Completes a buffer of which `len` bytes were read from the standby; returns how many it has then.
    pub(super) fn complete(
        &self,
        copy: &RegionReader,
        offset: u64,
        mut len: usize,
        buffer: &mut [u8],
    ) -> Result<usize> {
        let original = &*self.original;
        let end = original.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let mut since = Instant::now();
        while len < end {
            let at = original.whole_pages(len);
            let lacking = buffer.get_mut(at..end).unwrap_or_default();
            let read = match self.file()? {
                Some(file) => original.whole_pages(copy.fill_from(file, offset + at as u64, lacking)?),
                None => 0,
            };
            let (found, behind) = lacking.split_at_mut(read);
            // Cut short since the walk, and replay does the same.
            behind.fill(0);
            let Some((page, lsn)) = original.logged_before(found) else { break };
            // Replay has dropped it, which it does again; the primary may be long about it, as while another standby is waited for.
            if copy.file.metadata().map_err(FileError::at("stat", &copy.path))?.nlink() == 0 {
                found.fill(0);
                break;
            }
            if since.elapsed() > PATIENCE {
                let size = original.page.map_or(1, NonZero::get) as u64;
                return Err(original.is_no_copy(copy, (offset + at as u64) / size + page as u64, lsn));
            }
            if let Some(limits) = &copy.limits {
                limits.check()?;
            }
            std::thread::sleep(PAUSE);
            let now = copy.fill_from(&copy.file, offset, buffer)?;
            if now > len {
                since = Instant::now();
            }
            len = now;
        }
        Ok(len.max(end))
    }

    fn file(&self) -> Result<Option<&File>> {
        if self.file.get().is_none() {
            let path = &self.original.path;
            let opened = match super::open(path) {
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
                other => Some(other.map_err(FileError::at("open", path))?),
            };
            // Of two threads that open it at once either will do.
            drop(self.file.set(opened));
        }
        Ok(self.file.get().and_then(Option::as_ref))
    }
}

impl Original {
    fn whole_pages(&self, len: usize) -> usize {
        self.page.map_or(len, |page| len - len % page)
    }

    /// The first page that the standby must have: its number among these, and its position.
    fn logged_before(&self, pages: &[u8]) -> Option<(usize, Lsn)> {
        let (page, start) = self.page.zip(self.start)?;
        pages.chunks_exact(page.get()).enumerate().find_map(|(i, page)| {
            let lsn = PageHeader::read(page)?.lsn;
            ((FIRST_LSN..start).contains(&lsn) && !is_new(page)).then_some((i, lsn))
        })
    }

    fn is_no_copy(&self, copy: &RegionReader, page: u64, lsn: Lsn) -> Error {
        let size = copy.size().map_or_else(|e| e.to_string(), |size| format!("{size} bytes"));
        let (key, copy, original) = (self.standby, copy.path.display(), self.path.display());
        let start = self.start.unwrap_or(Lsn::INVALID);
        let text = format!(
            "the standby, pg{key}, is no copy of the primary: '{copy}' ends at {size}, but '{original}' has page {page}, \
             logged at {lsn}, before the start of the backup at {start}"
        );
        Error::refused(Kind::DbMismatch, text)
    }
}
