//! Fetching everything a clone still lacks, behind the server's back, until the directory needs the repository no more.
//!
//! Who wants it writes a wish into the clone's directory ([`ask`]); whoever serves the clone finds it there, now or after
//! the next mount, and works until nothing is absent. How far it is stands beside the wish, for anybody to read.
//!
//! *Order.* Files in the order of their names, which is that in which packs were filled; within a file from its begin.
//! *Demand goes first*: before each region the threads wait for as long as requests of the server wait for pages, but no
//! longer than [`YIELD_MAX`], so that a busy server does not keep it from ending.
//! *Failures*: a file that cannot be fetched is told and left for the next round, after [`RETRY`]; a full disk ends the round.
//! *Done* means durable: a last look finds the durable maps of all files full.
//!
//! Files are reached as the kernel does it, by names from the root, so renames and removals under way are met as any
//! request meets them. A file that moves past the walk is found by the next round: rounds go on until one finds nothing.

use super::backing::Backing;
use super::base::BaseFile;
use super::names::look_up;
use super::nodes::{OpenFile, ROOT};
use super::settle::Queue;
use super::state::{Hydration, HydrationState, Layout, Wish};
use crate::errno::Outcome;
use fuser::{Errno, FileType};
use pgkeep_engine::limit::Limits;
use pgkeep_engine::observe::Cancel;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Threads that fetch: one decodes while another waits for the disk.
const THREADS: usize = 2;
/// Between two looks for a wish.
const GLANCE: Duration = Duration::from_millis(250);
/// Before a round is tried again after a failure.
const RETRY: Duration = Duration::from_secs(20);
/// How often progress is written down.
const TELL: Duration = Duration::from_millis(500);
/// Bytes fetched between two looks at demand; what one miss fetches.
const REGION: u64 = 1 << 20;
/// Longest wait for demand before a region is fetched all the same.
const YIELD_MAX: Duration = Duration::from_millis(250);
/// Directories deep the walk goes; PostgreSQL's deepest has five.
const DEPTH_MAX: usize = 64;

/// Requests of the server that wait for pages.
#[derive(Debug, Default)]
pub(super) struct Demand(AtomicUsize);

/// One such request.
pub(super) struct Waiting<'a>(&'a Demand);

impl Demand {
    pub(super) fn enter(&self) -> Waiting<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        Waiting(self)
    }

    fn give_way(&self, until: impl Fn() -> bool) {
        let begun = Instant::now();
        while self.0.load(Ordering::Acquire) > 0 && begun.elapsed() < YIELD_MAX && !until() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The thread that looks for wishes; dropping it ends it, at the next region.
pub(super) struct Hydrator {
    ended: Arc<AtomicBool>,
    cancel: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Hydrator {
    pub(super) fn start(
        layout: &Layout,
        backing: Arc<Backing>,
        demand: Arc<Demand>,
        queue: Arc<Queue>,
    ) -> std::io::Result<Self> {
        let (ended, cancel) = (Arc::new(AtomicBool::new(false)), Cancel::default());
        let work =
            Work { layout: layout.clone(), backing, demand, queue, ended: Arc::clone(&ended), cancel: cancel.clone() };
        let thread = std::thread::Builder::new().name("clone-hydrate".to_owned()).spawn(move || work.run())?;
        Ok(Self { ended, cancel, thread: Some(thread) })
    }
}

impl Drop for Hydrator {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.cancel.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that hydrates the clone panicked");
        }
    }
}

struct Work {
    layout: Layout,
    backing: Arc<Backing>,
    demand: Arc<Demand>,
    queue: Arc<Queue>,
    ended: Arc<AtomicBool>,
    cancel: Cancel,
}

/// A file of which something may be absent. The kernel's count of it is held until it is dropped.
struct File<'a> {
    backing: &'a Backing,
    number: u64,
}

impl Drop for File<'_> {
    fn drop(&mut self) {
        self.backing.nodes.forget(self.number, 1);
    }
}

/// What a round has come to.
#[derive(Default)]
struct Round {
    /// Bytes that the files have of the backup, and how many of them are here.
    total: AtomicU64,
    done: AtomicU64,
    /// The first failure.
    error: Mutex<Option<String>>,
    full: AtomicBool,
    /// Something else is wished for now.
    changed: AtomicBool,
}

impl Round {
    fn is_over(&self) -> bool {
        self.full.load(Ordering::Acquire) || self.changed.load(Ordering::Acquire)
    }

    fn fail(&self, path: &str, error: Errno) {
        let full = matches!(error.code(), libc::ENOSPC | libc::EDQUOT);
        self.full.fetch_or(full, Ordering::AcqRel);
        let why = if full {
            format!("no space is left for '{path}'")
        } else {
            let error = std::io::Error::from_raw_os_error(error.code());
            format!("cannot fetch '{path}': {error}; the log says more")
        };
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    fn told(&self, state: HydrationState) -> Hydration {
        Hydration {
            state,
            total: self.total.load(Ordering::Acquire),
            done: self.done.load(Ordering::Acquire),
            error: self.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl Work {
    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn run(&self) {
        while !self.is_ended() {
            match Wish::load(&self.layout) {
                Ok(Some(wish)) if !self.is_done() => self.fulfil(wish),
                Ok(_) => self.sleep(GLANCE),
                Err(error) => {
                    tracing::error!("cannot see whether the clone is to be hydrated: {}", crate::errno::chain(&error));
                    self.sleep(RETRY);
                }
            }
        }
    }

    fn is_done(&self) -> bool {
        Hydration::load(&self.layout).ok().flatten().is_some_and(|h| h.state == HydrationState::Done)
    }

    fn sleep(&self, time: Duration) {
        let (begun, asked) = (Instant::now(), self.asked());
        while begun.elapsed() < time && !self.is_ended() && self.asked() == asked {
            std::thread::sleep(GLANCE.min(time));
        }
    }

    /// When the wish was written last; whoever repeats it wants no waiting.
    fn asked(&self) -> Option<SystemTime> {
        std::fs::metadata(self.layout.file("hydrate")).and_then(|m| m.modified()).ok()
    }

    /// Rounds until one finds nothing, or one has failed.
    fn fulfil(&self, mut wish: Wish) {
        tracing::info!("hydrating clone '{}'", self.layout.root.display());
        loop {
            let (round, limits) = (Round::default(), Limits::new(wish.io_limit, None, &self.cancel));
            let result = self.round(&round, &limits, &wish);
            if self.is_ended() {
                self.tell(&round, HydrationState::Running);
                return;
            }
            if round.changed.load(Ordering::Acquire)
                && let Ok(Some(now)) = Wish::load(&self.layout)
            {
                wish = now;
                continue;
            }
            if let Err(error) = result {
                round.fail("the data directory", error);
            }
            if round.told(HydrationState::Running).error.is_some() {
                let told = self.tell(&round, HydrationState::Failed);
                tracing::warn!("hydration waits {} s: {}", RETRY.as_secs(), told.error.unwrap_or_default());
                return self.sleep(RETRY);
            }
            self.queue.settle();
            if self.is_durable() {
                let told = self.tell(&round, HydrationState::Done);
                tracing::info!("clone '{}' is hydrated: {} bytes", self.layout.root.display(), told.total);
                return;
            }
        }
    }

    fn tell(&self, round: &Round, state: HydrationState) -> Hydration {
        let told = round.told(state);
        if let Err(error) = told.save(&self.layout) {
            tracing::warn!("cannot note how far hydration is: {}", crate::errno::chain(&error));
        }
        told
    }

    fn round(&self, round: &Round, limits: &Arc<Limits>, wish: &Wish) -> Outcome<()> {
        let mut files = Vec::new();
        self.walk(&mut |file, base| {
            round.total.fetch_add(base.base_bytes(), Ordering::AcqRel);
            round.done.fetch_add(base.held_bytes(), Ordering::AcqRel);
            files.push(file);
        })?;
        self.tell(round, HydrationState::Running);
        let next = AtomicUsize::new(0);
        let working = AtomicUsize::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed))
                        && !self.is_ended()
                        && !round.is_over()
                    {
                        self.file(file, round, limits);
                    }
                    working.fetch_sub(1, Ordering::AcqRel);
                });
            }
            let mut told = Instant::now();
            while working.load(Ordering::Acquire) > 0 {
                std::thread::sleep(Duration::from_millis(20));
                if told.elapsed() >= TELL {
                    self.tell(round, HydrationState::Running);
                    told = Instant::now();
                    if Wish::load(&self.layout).is_ok_and(|now| now.is_some_and(|now| now != *wish)) {
                        round.changed.store(true, Ordering::Release);
                        // Whoever waits for the old limit waits no longer.
                        limits.end();
                    }
                }
            }
        });
        Ok(())
    }

    /// Fetches what is absent of a file. One that was removed meanwhile needs nothing.
    fn file(&self, file: &File<'_>, round: &Round, limits: &Limits) {
        let (base, open) = match open(&self.backing, file.number) {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) if matches!(error.code(), libc::ENOENT | libc::ESTALE) => return,
            Err(error) => return round.fail("a file of the clone", error),
        };
        let mut at = 0;
        // The limit may shrink meanwhile.
        while at < base.base_bytes() && !self.is_ended() && !round.is_over() {
            let region = at..(at + REGION).min(base.base_bytes());
            at = region.end;
            if base.holds(region.clone()) {
                continue;
            }
            self.demand.give_way(|| self.is_ended());
            let before = base.held_bytes();
            if let Err(error) = base.ensure(&open, region) {
                return round.fail(base.path(), error);
            }
            let fetched = base.held_bytes().saturating_sub(before);
            round.done.fetch_add(fetched, Ordering::AcqRel);
            // Waits for the limit after the fact: what came is what counts.
            limits.charge(usize::try_from(fetched).unwrap_or(usize::MAX));
            if limits.read(0).is_err() {
                return;
            }
        }
    }

    /// Whether every file's durable map has all of it. What was fetched is written down by the sync before.
    fn is_durable(&self) -> bool {
        let mut durable = true;
        let looked = self.walk(&mut |_, base| durable &= base.is_durable());
        looked.is_ok() && durable
    }

    /// Calls `each` for every base-backed file there is.
    fn walk<'a>(&'a self, each: &mut dyn FnMut(File<'a>, &BaseFile)) -> Outcome<()> {
        self.directory(ROOT, DEPTH_MAX, each)
    }

    fn directory<'a>(&'a self, number: u64, depth: usize, each: &mut dyn FnMut(File<'a>, &BaseFile)) -> Outcome<()> {
        let depth = depth.checked_sub(1).ok_or(Errno::ELOOP)?;
        let directory = match self.backing.directory(number) {
            Err(error) if matches!(error.code(), libc::ENOENT | libc::ESTALE) => return Ok(()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&*directory).map_err(crate::errno::system)? {
            let name = OsString::from_vec(entry.map_err(crate::errno::system)?.file_name().to_bytes().to_vec());
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort_unstable();
        for name in names {
            if self.is_ended() {
                return Ok(());
            }
            let attr = match look_up(&self.backing, number, &name) {
                Ok(Some(attr)) => attr,
                Ok(None) => continue,
                Err(error) if matches!(error.code(), libc::ENOENT | libc::ESTALE) => continue,
                Err(error) => return Err(error),
            };
            // Gives the look-up back in every case.
            let file = File { backing: &self.backing, number: attr.ino.0 };
            match attr.kind {
                FileType::Directory => self.directory(attr.ino.0, depth, each)?,
                FileType::RegularFile => match open(&self.backing, attr.ino.0) {
                    Ok(Some((base, _open))) => each(file, &base),
                    Ok(None) => {}
                    Err(error) if matches!(error.code(), libc::ENOENT | libc::ESTALE) => {}
                    Err(error) => return Err(error),
                },
                _ => {}
            }
        }
        Ok(())
    }
}

/// A file's base, and the file opened; `None` if it was born on the clone.
fn open(backing: &Backing, number: u64) -> Outcome<Option<(Arc<BaseFile>, Arc<OpenFile>)>> {
    let (state, open) = backing.open(number, false)?;
    Ok(state.base.get().and_then(Option::as_ref).map(|base| (Arc::clone(base), open)))
}
