//! `archive-push:async`: all that the server has ready into every repository, ahead of its asking.
//!
//! Order of work, for who holds the stanza's archive lock: stop file; `pg_control`; words about files that are not ready any
//! more, or not what they were, go; queue limit; every repository's stanza; then file after file in the server's order, some
//! side by side, until the batch is full; and again, while there is more. Repositories are opened once.
//!
//! A file that fails, or a repository, keeps no other file from a repository that works: what a run has left out may never
//! be asked for again. Which repositories hold a file that others lack is said with the failure, so that a later run need
//! not store it there again while the others are away.
//!
//! *Invariant.* A good word about a file is written when every repository has it durable, and not before; or when it was
//! given up, because too much waits. So this process may be killed at any moment, and files that were stored without a word
//! are found stored by the next.
//!
//! A file is read only while it is marked ready: the server then neither writes nor renames it. A mark that goes meanwhile
//! is of a server that was stopped and whose directory was made another's; nothing is said then.
//!
//! *Threads.* `workers` compress; twice as many read, and wait for stores, as long as they hold less than
//! [`CONTENT_BYTES_MAX`] of content, and as much again compressed.

mod batch;

use super::push::{dropped, may_be_dropped};
use super::spool::{Binding, Identity, Outcome, RepositoryIdentity, Spool, Status};
use super::targets::{Bars, Targets};
use super::{Configured, PushOptions, ready, source};
use crate::lock;
use crate::observe::Cancel;
use crate::pg::datadir::read_control;
use crate::{Error, Result};
use batch::{Batch, Done, Given};
use pgkeep_formats::pg::wal::WalSegmentSize;
use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
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
    pub repositories: Vec<RepositoryIdentity>,
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
    /// Files that some repository lacks.
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
    if !status.is_believed(binding, path)? {
        tracing::debug!("what the spool says of '{name}' is about another file, cluster or repository");
        return Ok(None);
    }
    spool.forget(name)?;
    Ok(Some(status))
}

/// A file that is ready.
#[derive(Debug, Clone)]
struct Pending {
    name: String,
    /// Repositories that are said to hold it.
    held: BTreeSet<u32>,
}

/// Pushes what is ready. The caller holds the archive lock of the stanza in each repository.
///
/// # Errors
/// What concerns no file in particular: `Stopped`; `RepoInvalid` if no repository can be used, or `Crypto` if that is what
/// keeps all of them shut; `pg_control` or a directory that cannot be read; a spool that cannot be written; `Interrupted`.
/// Failures of files are in the spool and the report.
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
    // Marks go a moment after words are passed on: what this run has stored is not taken up again.
    let (mut stored, mut failed) = (HashSet::new(), HashSet::new());
    // A file that has failed is not tried again, and what it told of the archive holds for those that become ready meanwhile.
    let bars = Arc::<Bars>::default();
    loop {
        lock::check_stopped(&options.push.lock_path, Some(&options.push.stanza))?;
        let control = options.push.pg_path.as_deref().map(|path| read_control(path).map(|c| c.fields)).transpose()?;
        let size = control.as_ref().map_or(WalSegmentSize::DEFAULT, |c| c.wal_segment_size);
        let binding = Binding::new(&options.push.stanza, control.as_ref(), &options.repositories);
        let mut pending = pending(options, &binding, &failed)?;
        pending.retain(|file| !stored.contains(&file.name));
        let queued = (pending.len() as u64).saturating_mul(size.bytes());
        let drops = options.push.queue_max.is_some_and(|max| queued > max);
        if !drops {
            pending.retain(|file| !failed.contains(&file.name));
        }
        let (Some(first), Some(last)) = (pending.first(), pending.last()) else { break };
        let targets = match Targets::of(repositories, &options.push.stanza, control.as_ref()) {
            Err(e) if drops => {
                tracing::warn!("{}", e.chain());
                let all = repositories.iter().map(|r| r.key).collect();
                for file in &pending {
                    report.dropped += u64::from(give_up(options, &binding, file, &all, word, &e)?);
                }
                break;
            }
            other => other?.in_run(&bars, drops),
        };
        let range = range_end(&first.name, &last.name);
        tracing::info!("push {} WAL file(s) to archive: {}{range}", pending.len(), first.name);
        let (targets, control, binding, pool) = (&targets, control.as_ref(), &binding, &pool);
        let given = Given { options, targets, control, binding, pool, word, cancel, drops };
        let done = push_in_turn(given, pending, left, size)?;
        report.pushed += done.pushed.len() as u64;
        report.dropped += done.dropped.len() as u64;
        left = done.left;
        stored.extend(done.pushed);
        failed.extend(done.failed);
        failed.retain(|name| !done.dropped.contains(name));
        if targets.is_one_back() {
            failed.clear();
        }
        cancel.check()?;
        if drops || done.stopped || left < size.bytes() || begun.elapsed() > LOOKS_FOR {
            break;
        }
    }
    report.failed = failed.difference(&stored).count() as u64;
    if report.failed > 0 {
        tracing::warn!("{} WAL file(s) wait until every repository has them", report.failed);
    }
    cancel.check()?;
    Ok(report)
}

/// Files that some repository has already go first, whose content says whether those that follow are of the same history.
fn push_in_turn(given: Given<'_>, pending: Vec<Pending>, left: u64, size: WalSegmentSize) -> Result<Done> {
    if pending.len() < 2 {
        return Batch::new(given, left).push(&pending, size, usize::MAX);
    }
    let files = pending.iter().map(|file| (file.name.as_str(), &file.held));
    let known = given.targets.known(&given.options.push.stanza, files);
    let (known, new): (Vec<_>, Vec<_>) = pending.into_iter().partition(|file| known.contains(&file.name));
    let mut done = Done { left, ..Done::default() };
    // What one repository has another may lack, where it must not come behind what is of another history: in order.
    for (files, most_at_once) in [(known, 1), (new, usize::MAX)] {
        if files.is_empty() || done.stopped {
            continue;
        }
        let more = Batch::new(given, done.left).push(&files, size, most_at_once)?;
        done.pushed.extend(more.pushed);
        done.failed.extend(more.failed);
        done.dropped.extend(more.dropped);
        (done.left, done.stopped) = (more.left, more.stopped);
    }
    Ok(done)
}

/// `...LAST` behind the first of several.
pub(super) fn range_end(first: &str, last: &str) -> String {
    if first == last { String::new() } else { format!("...{last}") }
}

/// What is ready and has no good word, in the server's order. All other words are removed, but for those about what this run
/// has `tried`.
fn pending(options: &PushAheadOptions, binding: &Binding, tried: &HashSet<String>) -> Result<Vec<Pending>> {
    let wal = &options.push.source;
    let ready = ready::list(wal)?;
    let mut said = options.spool.settle(&ready, tried)?;
    let mut pending = Vec::new();
    for name in ready {
        let path = wal.join(&name);
        match said.good.remove(&name) {
            Some(status) if status.is_believed(binding, &path)? => continue,
            Some(_) => options.spool.forget(&name)?,
            None => {}
        }
        let held = match said.failed.remove(&name) {
            Some(status) if !status.held.is_empty() && status.is_about(binding, &path)? => status.held,
            _ => BTreeSet::new(),
        };
        pending.push(Pending { name, held });
    }
    Ok(pending)
}

/// Gives a file up: the server is told that it is archived, so that its disk does not fill up. False for a history, which
/// waits: of that it is said why it is not archived.
fn give_up(
    options: &PushAheadOptions,
    binding: &Binding,
    file: &Pending,
    all: &BTreeSet<u32>,
    word: Word<'_>,
    error: &Error,
) -> Result<bool> {
    let (name, path) = (&file.name, options.push.source.join(&file.name));
    let about = Some((binding, Identity::of(&path)?));
    let is_dropped = source::name_of(&path).is_ok_and(|name| may_be_dropped(&name));
    let status = if is_dropped {
        let message = dropped(name, options.push.queue_max, &file.held, all);
        tracing::error!("{message}");
        Status::new(Outcome::Dropped, message, about)
    } else {
        let (code, message) = word(error);
        Status::new(Outcome::Failed(code), message, about)
    };
    options.spool.say(name, &status.held_by(file.held.clone()))?;
    Ok(is_dropped)
}
