//! `archive-push:async`: all that the server has ready into every repository, ahead of its asking.
//!
//! Order of work, for who holds the stanza's archive lock: stop file; `pg_control`; words about files that are not ready any
//! more, or not what they were, go; queue limit; every repository's stanza; then file after file in the server's order, some
//! side by side, until one fails or the batch is full; and again, while there is more. Repositories are opened once.
//!
//! *Invariant.* A good word about a file is written when every repository has it durable, and not before. So this process
//! may be killed at any moment, and files that were stored without a word are found stored by the next.
//!
//! A file is read only while it is marked ready: the server then neither writes nor renames it. A mark that goes meanwhile
//! is of a server that was stopped and whose directory was made another's; nothing is said then.
//!
//! *Threads.* `workers` compress; twice as many read, and wait for stores, as long as they hold less than
//! [`CONTENT_BYTES_MAX`] of content, and as much again compressed.

use super::push::{Pushed, Targets, dropped, exists_already};
use super::spool::{Binding, Identity, Outcome, Spool, Status};
use super::{Configured, PushOptions, ready, source};
use crate::lock;
use crate::observe::{Cancel, DETAIL};
use crate::pg::datadir::read_control;
use crate::repository::wal::WalFile;
use crate::{Error, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::wal::WalSegmentSize;
use rayon::ThreadPool;
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Content of files that is held at once: 16 segments of the usual size.
const CONTENT_BYTES_MAX: u64 = 256 << 20;
/// After this a run looks for no more files. A new one, with options as they are then, costs next to nothing.
const LOOKS_FOR: Duration = Duration::from_secs(30);

/// What to push, and how.
#[derive(Debug, Clone)]
pub struct PushAheadOptions {
    /// As for one file; the source is the server's WAL directory.
    pub push: PushOptions,
    /// Where to say what became of files.
    pub spool: Spool,
    /// What tells each repository from others, in their order.
    pub repositories: Vec<String>,
    /// Files that are compressed at once.
    pub workers: usize,
    /// Bytes of files after which the run ends: `archive-push-batch-size`.
    pub batch_bytes: u64,
}

/// What came of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PushAheadReport {
    /// Files that every repository holds now.
    pub pushed: u64,
    /// Files that failed; what comes behind them was not tried.
    pub failed: u64,
    /// Files that were given up.
    pub dropped: u64,
}

/// How a failure is told in the spool: its exit status, and the message with remedies.
pub type Word<'a> = &'a (dyn Fn(&Error) -> (u8, String) + Sync);

/// What the spool lets the server be told of a file, if anything. The word is taken away.
///
/// # Errors
/// File errors of the spool and of the file.
pub fn look(spool: &Spool, name: &str, path: &Path, binding: &Binding) -> Result<Option<Status>> {
    let Some(status) = spool.ok(name)? else { return Ok(None) };
    if !status.is_about(binding, path)? {
        tracing::debug!("what the spool says of '{name}' is about another file, cluster or repository");
        return Ok(None);
    }
    spool.forget(name)?;
    Ok(Some(status))
}

/// Pushes what is ready. The caller holds the archive lock of the stanza in each repository.
///
/// # Errors
/// What concerns no file in particular: `Stopped`; `RepoInvalid` if no repository can be used; `pg_control` or a directory
/// that cannot be read; a spool that cannot be written; `Interrupted`. Failures of files are in the spool and the report.
pub fn push_ahead(
    repositories: &[Configured],
    options: &PushAheadOptions,
    word: Word<'_>,
    cancel: &Cancel,
) -> Result<PushAheadReport> {
    let begun = Instant::now();
    let pool = super::pool(options.workers)?;
    let mut report = PushAheadReport::default();
    let mut left = options.batch_bytes;
    // Marks go a moment after words are passed on: what this run has dealt with is not taken up again.
    let mut done = HashSet::new();
    loop {
        lock::check_stopped(&options.push.lock_path, Some(&options.push.stanza))?;
        let control = options.push.pg_path.as_deref().map(|path| read_control(path).map(|c| c.fields)).transpose()?;
        let size = control.as_ref().map_or(WalSegmentSize::DEFAULT, |c| c.wal_segment_size);
        let binding = Binding::new(&options.push.stanza, control.as_ref(), &options.repositories);
        let mut pending = pending(options, &binding)?;
        pending.retain(|name| !done.contains(name));
        let (Some(first), Some(last)) = (pending.first(), pending.last()) else { break };
        let queued = (pending.len() as u64).saturating_mul(size.bytes());
        if options.push.queue_max.is_some_and(|max| queued > max) {
            drop_all(options, &binding, &pending)?;
            report.dropped = pending.len() as u64;
            break;
        }
        let targets = Targets::of(repositories, &options.push.stanza, control.as_ref())?;
        let fits = usize::try_from(left / size.bytes()).unwrap_or(usize::MAX).max(1);
        let batch = pending.get(..fits).unwrap_or(&pending);
        tracing::info!("push {} WAL file(s) to archive: {first}{}", pending.len(), range_end(first, last));
        let run = Batch {
            options,
            targets: &targets,
            control: control.as_ref(),
            binding: &binding,
            pool: &pool,
            word,
            cancel,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            pushed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            fatal: Mutex::new(None),
        };
        let (pushed, failed) = run.push(batch, size)?;
        report.pushed += pushed;
        report.failed += failed;
        done.extend(batch.iter().cloned());
        left = left.saturating_sub(pushed.saturating_mul(size.bytes()));
        let is_full = batch.len() < pending.len() || left < size.bytes();
        if failed > 0 || pushed == 0 || is_full || begun.elapsed() > LOOKS_FOR {
            break;
        }
    }
    cancel.check()?;
    Ok(report)
}

/// `...LAST` behind the first of several.
pub(super) fn range_end(first: &str, last: &str) -> String {
    if first == last { String::new() } else { format!("...{last}") }
}

/// What is ready and has no good word, in the server's order. All other words are removed.
fn pending(options: &PushAheadOptions, binding: &Binding) -> Result<Vec<String>> {
    let wal = &options.push.source;
    let ready = ready::list(wal)?;
    let mut good = options.spool.settle(&ready)?;
    let mut pending = Vec::new();
    for name in ready {
        match good.remove(&name) {
            Some(status) if status.is_about(binding, &wal.join(&name))? => continue,
            Some(_) => options.spool.forget(&name)?,
            None => {}
        }
        pending.push(name);
    }
    Ok(pending)
}

/// Gives up all files: the server is told that they are archived, so that its disk does not fill up.
fn drop_all(options: &PushAheadOptions, binding: &Binding, names: &[String]) -> Result<()> {
    for name in names {
        let message = dropped(name, options.push.queue_max);
        tracing::error!("{message}");
        let file = Identity::of(&options.push.source.join(name))?;
        options.spool.say(name, &Status::new(Outcome::Dropped, message, Some((binding, file))))?;
    }
    Ok(())
}

/// Files that are being pushed side by side.
struct Batch<'a> {
    options: &'a PushAheadOptions,
    targets: &'a Targets,
    control: Option<&'a ControlFile>,
    binding: &'a Binding,
    pool: &'a ThreadPool,
    word: Word<'a>,
    cancel: &'a Cancel,
    next: AtomicU64,
    stop: AtomicBool,
    pushed: AtomicU64,
    failed: AtomicU64,
    fatal: Mutex<Option<Error>>,
}

impl Batch<'_> {
    /// Pushes the files; how many were, and how many failed.
    fn push(self, names: &[String], size: WalSegmentSize) -> Result<(u64, u64)> {
        let most = usize::try_from(CONTENT_BYTES_MAX / size.bytes()).unwrap_or(1).max(1);
        let threads = self.options.workers.max(1).saturating_mul(2).min(most).min(names.len());
        super::side_by_side(threads, || self.work(names))?;
        match self.fatal.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok((self.pushed.into_inner(), self.failed.into_inner())),
        }
    }

    fn work(&self, names: &[String]) {
        while !self.stop.load(Ordering::Relaxed) && !self.cancel.is_cancelled() {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = usize::try_from(number).ok().and_then(|n| names.get(n)) else { return };
            if let Err(e) = self.push_and_say(name) {
                self.stop.store(true, Ordering::Relaxed);
                self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        }
    }

    /// Pushes one file and says what became of it.
    fn push_and_say(&self, name: &str) -> Result<()> {
        lock::check_stopped(&self.options.push.lock_path, Some(&self.options.push.stanza))?;
        let path = self.options.push.source.join(name);
        match self.push_one(name, &path) {
            Ok(None) => {
                tracing::debug!("'{name}' is not marked ready any more");
                Ok(())
            }
            Ok(Some((file, pushed))) => {
                let parsed = source::name_of(&path)?;
                let again = pushed.iter().filter(|p| !p.created && self.options.push.mode_check);
                let warnings: Vec<_> = again.map(|p| exists_already(&parsed, p.key)).collect();
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                let status = Status::new(Outcome::Pushed, warnings.join("\n"), Some((self.binding, file)));
                self.options.spool.say(name, &status)?;
                self.pushed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(target: DETAIL, "pushed WAL file '{name}' to the archive");
                Ok(())
            }
            Err(e) => {
                self.stop.store(true, Ordering::Relaxed);
                self.failed.fetch_add(1, Ordering::Relaxed);
                let (code, message) = (self.word)(&e);
                tracing::warn!(
                    "could not push WAL file '{name}' to the archive (will be retried): [{code:03}]: {message}"
                );
                let file = Identity::of(&path)?;
                let status = Status::new(Outcome::Failed(code), message, Some((self.binding, file)));
                self.options.spool.say(name, &status)
            }
        }
    }

    /// Stores one file in every repository; none if it is not ready any more.
    fn push_one(&self, name: &str, path: &Path) -> Result<Option<(Identity, Vec<Pushed>)>> {
        let push = &self.options.push;
        let parsed = source::name_of(path)?;
        if !ready::is_ready(&push.source, name)? {
            return Ok(None);
        }
        let (content, facts) = source::read(path, &parsed, self.control)?;
        if !ready::is_ready(&push.source, name)? {
            return Ok(None);
        }
        let header = if push.header_check { source::header(path, &parsed, &content)? } else { None };
        self.targets.check_header(&parsed, header.as_ref(), self.control)?;
        let (file, identity) = self.pool.install(|| {
            rayon::join(|| WalFile::encode(&content, push.level), || Identity::new(&facts, Some(&content)))
        });
        let pushed = self.targets.deliver(&push.stanza, &parsed, &file?)?;
        Ok(Some((identity, pushed)))
    }
}
