//! `archive-get:async`: the segments the server will ask for next, ahead of its asking.
//!
//! For who holds the stanza's archive lock. What the queue has is kept, if it is wanted; the rest is fetched in order, some
//! side by side, until one is not in the archive or cannot be fetched: what comes behind it is not asked for either, as a
//! server that follows the archive's end would have it looked for again and again.
//!
//! *Threads.* `workers`, as long as they hold less than [`CONTENT_BYTES_MAX`] of content; decoding uses `workers` too.

use super::get::{Sought, find};
use super::push_ahead::{Word, range_end};
use super::queue::{Queue, Wanted};
use super::spool::{RepositoryIdentity, Spool};
use super::{Configured, GetOptions};
use crate::observe::{Cancel, DETAIL};
use crate::pg::datadir::read_control;
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::wal::WalSegment;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Content of files that is held at once.
const CONTENT_BYTES_MAX: u64 = 256 << 20;

/// What to get, and how.
#[derive(Debug, Clone)]
pub struct GetAheadOptions {
    /// As for one file, the first; its destination counts for nothing.
    pub get: GetOptions,
    /// Where the queue is.
    pub spool: Spool,
    /// What tells each repository that is asked from others, in their order.
    pub repositories: Vec<RepositoryIdentity>,
    /// Files that are fetched at once.
    pub workers: usize,
    /// Bytes of WAL that may wait in the queue: `archive-get-queue-max`.
    pub queue_max: u64,
}

/// What came of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GetAheadReport {
    /// Segments fetched.
    pub fetched: u64,
    /// True if the archive ended before the queue was full.
    pub missing: bool,
    /// Segments that could not be fetched.
    pub failed: u64,
}

/// Fills the queue.
///
/// # Errors
/// What concerns no segment in particular: `ParamInvalid` for a name that is no segment's; `pg_control` that cannot be read;
/// a queue that cannot be written; `Interrupted`. Failures of segments are in the queue and the report.
pub fn get_ahead(
    repositories: &[Configured],
    options: &GetAheadOptions,
    word: Word<'_>,
    cancel: &Cancel,
) -> Result<GetAheadReport> {
    let get = &options.get;
    let control = read_control(&get.pg_path)?.fields;
    let size = control.wal_segment_size;
    let first = WalSegment::parse(&get.name, size).map_err(|_| {
        Error::refused(Kind::ParamInvalid, format!("'{}' is no name of a WAL segment of this cluster", get.name))
    })?;
    let wanted = Wanted::new(first, size, options.queue_max);
    let queue = Queue::new(&options.spool, &get.stanza, &control, &options.repositories);
    queue.settle(&wanted)?;
    let last = wanted.name(wanted.count() - 1).unwrap_or_default();
    tracing::info!("get {} WAL file(s) from archive: {}{}", wanted.count(), get.name, range_end(&get.name, &last));
    let run = Run {
        repositories,
        stanza: &get.stanza,
        control: &control,
        queue: &queue,
        wanted: &wanted,
        word,
        cancel,
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        fetched: AtomicU64::new(0),
        missing: AtomicBool::new(false),
        failed: AtomicU64::new(0),
        fatal: Mutex::new(None),
    };
    let most = usize::try_from(CONTENT_BYTES_MAX / size.bytes()).unwrap_or(1).max(1);
    let count = usize::try_from(wanted.count()).unwrap_or(usize::MAX);
    let pool = super::pool(options.workers)?;
    super::side_by_side(options.workers.max(1).min(most).min(count), || run.work(&pool))?;
    if let Some(e) = run.fatal.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(e);
    }
    cancel.check()?;
    Ok(GetAheadReport {
        fetched: run.fetched.into_inner(),
        missing: run.missing.into_inner(),
        failed: run.failed.into_inner(),
    })
}

struct Run<'a> {
    repositories: &'a [Configured],
    stanza: &'a str,
    control: &'a ControlFile,
    queue: &'a Queue,
    wanted: &'a Wanted,
    word: Word<'a>,
    cancel: &'a Cancel,
    next: AtomicU64,
    stop: AtomicBool,
    fetched: AtomicU64,
    missing: AtomicBool,
    failed: AtomicU64,
    fatal: Mutex<Option<Error>>,
}

impl Run<'_> {
    fn work(&self, pool: &rayon::ThreadPool) {
        while !self.stop.load(Ordering::Relaxed) && !self.cancel.is_cancelled() {
            let Some(name) = self.wanted.name(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            if self.queue.has(&name) {
                continue;
            }
            let found = pool.install(|| find(self.repositories, self.stanza, &name, self.control));
            let found = match found {
                Ok(Sought::Found(found)) => Ok(Some(found)),
                Ok(Sought::Absent) => Ok(None),
                // Who waits for it asks once more, and knows what to make of that.
                Ok(Sought::Unsure { kind, message, .. }) => Err(Error::refused(kind, message)),
                Err(e) => Err(e),
            };
            let said = match found {
                Ok(Some(found)) => {
                    self.fetched.fetch_add(1, Ordering::Relaxed);
                    let (key, archive_id) = (found.key, &found.archive_id);
                    tracing::debug!(target: DETAIL, "found {name} in the repo{key}: {archive_id} archive");
                    self.queue.put(&name, &found.content)
                }
                Ok(None) => {
                    self.stop.store(true, Ordering::Relaxed);
                    self.missing.store(true, Ordering::Relaxed);
                    tracing::debug!(target: DETAIL, "unable to find {name} in the archive");
                    self.queue.say_missing(&name)
                }
                Err(e) => {
                    self.stop.store(true, Ordering::Relaxed);
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    let (code, message) = (self.word)(&e);
                    tracing::warn!("cannot get {name} ahead: [{code:03}]: {message}");
                    self.queue.say_failed(&name, code, &message)
                }
            };
            if let Err(e) = said {
                self.stop.store(true, Ordering::Relaxed);
                self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        }
    }
}
