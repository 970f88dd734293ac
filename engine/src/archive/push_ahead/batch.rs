//! Files that are pushed side by side.

use super::super::push::{exists_already, may_be_dropped};
use super::super::spool::{Binding, Identity, Outcome, Status};
use super::super::targets::{Delivered, Targets};
use super::super::{ready, source};
use super::{CONTENT_BYTES_MAX, LOOKS_FOR, Pending, PushAheadOptions, Word, give_up};
use crate::observe::{Cancel, DETAIL};
use crate::repository::wal::WalFile;
use crate::{Error, Kind, Result, lock};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::wal::{ArchiveName, WalSegmentSize};
use rayon::ThreadPool;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What the work of one look at what is ready is given.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) options: &'a PushAheadOptions,
    pub(super) targets: &'a Targets,
    pub(super) control: Option<&'a ControlFile>,
    pub(super) binding: &'a Binding,
    pub(super) pool: &'a ThreadPool,
    pub(super) word: Word<'a>,
    pub(super) cancel: &'a Cancel,
    /// Whether what some repository lacks is given up.
    pub(super) drops: bool,
}

/// The work of one look at what is ready.
pub(super) struct Batch<'a> {
    given: Given<'a>,
    next: AtomicU64,
    stop: AtomicBool,
    shared: Mutex<Shared>,
}

struct Shared {
    done: Done,
    /// What ended the work.
    fatal: Option<Error>,
    /// Since when nothing new is known of the repositories.
    since: Instant,
    down: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Files that every repository holds.
    pub(super) pushed: Vec<String>,
    /// Files that some repository lacks.
    pub(super) failed: Vec<String>,
    /// Files that were given up.
    pub(super) dropped: Vec<String>,
    /// Bytes that are left of the run's batch.
    pub(super) left: u64,
    /// Whether there was no sense in going on.
    pub(super) stopped: bool,
}

/// What came of a try to store one file.
enum Tried {
    /// It is not ready any more, or the batch is full.
    Nothing,
    /// It would be of no use: this is why.
    Waits(Error),
    /// It was stored where that could be.
    Stored(Identity, Delivered),
}

impl<'a> Batch<'a> {
    /// `left` are the bytes that are left of the run's batch.
    pub(super) fn new(given: Given<'a>, left: u64) -> Self {
        let done = Done { left, ..Done::default() };
        let shared = Mutex::new(Shared { done, fatal: None, since: Instant::now(), down: 0 });
        Self { given, next: AtomicU64::new(0), stop: AtomicBool::new(false), shared }
    }

    /// Pushes the files, no more than `most_at_once` side by side.
    ///
    /// # Errors
    /// `Stopped`; file errors of the spool and of the marks.
    pub(super) fn push(self, files: &[Pending], size: WalSegmentSize, most_at_once: usize) -> Result<Done> {
        // One file is pushed however little is left.
        {
            let mut shared = self.lock();
            shared.done.left = shared.done.left.max(size.bytes());
        }
        let most = usize::try_from(CONTENT_BYTES_MAX / size.bytes()).unwrap_or(1).max(1);
        let threads = self.given.options.workers.max(1).saturating_mul(2).min(most).min(files.len()).min(most_at_once);
        super::super::side_by_side(threads, || self.work(files, size))?;
        let stopped = self.stop.into_inner();
        let shared = self.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        match shared.fatal {
            Some(e) => Err(e),
            None => Ok(Done { stopped, ..shared.done }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, files: &[Pending], size: WalSegmentSize) {
        // What a repository missed that is back goes first: the server asks for it.
        while !self.stop.load(Ordering::Relaxed)
            && !self.given.cancel.is_cancelled()
            && !self.given.targets.is_one_back()
        {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = usize::try_from(number).ok().and_then(|n| files.get(n)) else { return };
            if let Err(e) = self.push_and_say(file, size) {
                self.stop.store(true, Ordering::Relaxed);
                self.lock().fatal.get_or_insert(e);
            }
        }
    }

    /// Pushes one file and says what became of it.
    fn push_and_say(&self, file: &Pending, size: WalSegmentSize) -> Result<()> {
        lock::check_stopped(&self.given.options.push.lock_path, Some(&self.given.options.push.stanza))?;
        let (name, path) = (&file.name, self.given.options.push.source.join(&file.name));
        match self.push_one(file, &path, size) {
            Ok(Tried::Nothing) => Ok(()),
            Ok(Tried::Waits(e)) => self.failed(file, file.held.clone(), Identity::of(&path)?, &e, false),
            Ok(Tried::Stored(identity, delivered)) => {
                let held = delivered.held();
                match delivered.everywhere(name) {
                    Ok(pushed) => {
                        let parsed = source::name_of(&path)?;
                        let again = pushed.iter().filter(|p| !p.created && self.given.options.push.mode_check);
                        let warnings: Vec<_> = again.map(|p| exists_already(&parsed, p.key)).collect();
                        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                        let status =
                            Status::new(Outcome::Pushed, warnings.join("\n"), Some((self.given.binding, identity)));
                        self.given.options.spool.say(name, &status)?;
                        self.lock().done.pushed.push(name.clone());
                        tracing::debug!(target: DETAIL, "pushed WAL file '{name}' to the archive");
                        Ok(())
                    }
                    Err(e) => self.failed(file, held, identity, &e, true),
                }
            }
            Err(e) => {
                // Where nothing can be read there is no next file.
                ready::check(&self.given.options.push.source)?;
                self.failed(file, file.held.clone(), Identity::of(&path)?, &e, true)
            }
        }
    }

    /// Says of a file why some repository lacks it; or gives it up.
    fn failed(
        &self,
        file: &Pending,
        held: BTreeSet<u32>,
        identity: Identity,
        error: &Error,
        is_news: bool,
    ) -> Result<()> {
        let name = &file.name;
        let down = self.given.targets.failures().len();
        {
            let mut shared = self.lock();
            if down > shared.down {
                (shared.down, shared.since) = (down, Instant::now());
            }
        }
        // When too much waits the rest is given up without a try, at once.
        if self.given.targets.working().is_empty() && !self.given.drops {
            self.stop.store(true, Ordering::Relaxed);
        }
        let (code, message) = (self.given.word)(error);
        if is_news {
            tracing::warn!("could not push WAL file '{name}' to the archive (will be retried): [{code:03}]: {message}");
        } else {
            tracing::debug!("WAL file '{name}' is not tried: [{code:03}]: {message}");
        }
        if self.given.drops {
            let file = Pending { name: name.clone(), held };
            let is_dropped = give_up(
                self.given.options,
                self.given.binding,
                &file,
                &self.given.targets.keys(),
                self.given.word,
                error,
            )?;
            let mut shared = self.lock();
            let names = if is_dropped { &mut shared.done.dropped } else { &mut shared.done.failed };
            names.push(file.name);
            return Ok(());
        }
        let status = Status::new(Outcome::Failed(code), message, Some((self.given.binding, identity))).held_by(held);
        self.given.options.spool.say(name, &status)?;
        self.lock().done.failed.push(name.clone());
        Ok(())
    }

    /// Why a file is left out: all that works has it, or too much waits and it takes too long.
    fn waits(&self, file: &Pending, name: &ArchiveName) -> Option<Error> {
        let failures = self.given.targets.failures();
        if !failures.is_empty() && self.given.targets.working().is_subset(&file.held) {
            return Delivered { pushed: Vec::new(), failures }.everywhere(&file.name).err();
        }
        let is_late = self.given.drops && may_be_dropped(name) && self.lock().since.elapsed() > LOOKS_FOR;
        is_late.then(|| Error::refused(Kind::ArchiveTimeout, "there is no time left to store it"))
    }

    /// Takes a file's size out of what is left of the batch.
    fn reserve(&self, size: WalSegmentSize) -> bool {
        let mut shared = self.lock();
        let left = shared.done.left.checked_sub(size.bytes());
        shared.done.left = left.unwrap_or(shared.done.left);
        self.given.drops || left.is_some()
    }

    /// Stores one file in every repository that works; nothing if it is not ready any more.
    fn push_one(&self, file: &Pending, path: &Path, size: WalSegmentSize) -> Result<Tried> {
        let (push, name) = (&self.given.options.push, &file.name);
        let parsed = source::name_of(path)?;
        if let Some(why) = self.waits(file, &parsed) {
            return Ok(Tried::Waits(why));
        }
        if !self.reserve(size) {
            self.stop.store(true, Ordering::Relaxed);
            return Ok(Tried::Nothing);
        }
        let unmarked = || tracing::debug!("'{name}' is not marked ready any more");
        if !ready::is_ready(&push.source, name)? {
            unmarked();
            return Ok(Tried::Nothing);
        }
        let (content, facts) = source::read(path, &parsed, self.given.control)?;
        if !ready::is_ready(&push.source, name)? {
            unmarked();
            return Ok(Tried::Nothing);
        }
        let header = if push.header_check { source::header(path, &parsed, &content)? } else { None };
        self.given.targets.check_header(&parsed, header.as_ref(), self.given.control)?;
        let (encoded, identity) = self.given.pool.install(|| {
            rayon::join(|| WalFile::encode(&content, push.level), || Identity::new(&facts, Some(&content)))
        });
        Ok(Tried::Stored(identity, self.given.targets.deliver(&push.stanza, &parsed, &encoded?, &file.held)))
    }
}
