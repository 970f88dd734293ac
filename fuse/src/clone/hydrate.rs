//! Fetching everything a clone still lacks, behind the server's back, until the directory needs the repository no more.
//!
//! Who wants it writes a wish into the clone's directory ([`ask`]); whoever serves the clone finds it there, now or after
//! the next mount, and works until nothing is absent. How far it is stands beside the wish, for anybody to read.
//!
//! *Order.* First what servers on earlier clones needed first ([`super::prefetch`]). Then files in the order of their
//! names, which is that in which packs were filled; within a file from its begin.
//! *Demand goes first*: before each region the threads wait while requests of the server wait for pages, the first of them
//! while there are several, but no longer than [`YIELD_MAX`], so that a busy server does not keep it from ending.
//! *Failures*: a file that cannot be fetched is told and left for the next round, after [`RETRY`]. A round that has no room
//! does not begin, or ends: a part of the file system is left to others, the clone's own server before all.
//! *Done* means durable: a last look finds the durable maps of all files full. It is looked again when the clone is mounted.
//!
//! Files are reached as the kernel does it, by names from the root, so renames and removals under way are met as any
//! request meets them. A file that moves past the walk is found by the next round: rounds go on until one finds nothing.

use super::backing::Backing;
use super::base::BaseFile;
use super::demand::Demand;
use super::names::look_up;
use super::nodes::{OpenFile, ROOT};
use super::prefetch::Prefetching;
use super::room;
use super::settle::Queue;
use super::state::{Hydration, HydrationState, Layout, Wish};
use crate::errno::Outcome;
use fuser::{Errno, FileType};
use pgkeep_engine::limit::Limits;
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::size::human_size;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Fewest and most threads that fetch: one decodes while another waits for the disk. As many as there are cores in between.
const THREADS: (usize, usize) = (2, 8);
/// Between two looks for a wish.
const GLANCE: Duration = Duration::from_millis(250);
/// Before a round is tried again after a failure.
const RETRY: Duration = Duration::from_secs(20);
/// How often progress is written down.
const TELL: Duration = Duration::from_millis(500);
/// Bytes fetched between two looks at demand; what one miss fetches.
const REGION: u64 = 1 << 20;
/// Longest wait for demand before a region is fetched all the same.
const YIELD_MAX: Duration = Duration::from_millis(50);
/// Directories deep the walk goes; PostgreSQL's deepest has five.
const DEPTH_MAX: usize = 64;
/// Looks in a row that find something not durable though nothing was absent: some seconds.
const LOOKS_MAX: u32 = 20;
/// Files that may wait to be made durable before hydration does it itself.
const WAITING_MAX: usize = 64;

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
        prefetching: Prefetching,
    ) -> std::io::Result<Self> {
        let (ended, cancel) = (Arc::new(AtomicBool::new(false)), Cancel::default());
        let (layout, its) = (layout.clone(), (Arc::clone(&ended), cancel.clone()));
        let work = Work { layout, backing, demand, queue, prefetching, ended: its.0, cancel: its.1 };
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
    prefetching: Prefetching,
    ended: Arc<AtomicBool>,
    cancel: Cancel,
}

/// A look-up of a node, counted as the kernel's are, until it is dropped.
pub(super) struct Held<'a> {
    backing: &'a Backing,
    number: u64,
}

impl<'a> Held<'a> {
    pub(super) fn new(backing: &'a Backing, number: u64) -> Self {
        Self { backing, number }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.backing.nodes.forget(self.number, 1);
    }
}

/// All base-backed files there are, and the directories on the ways to them: a node is only reached through its parents.
#[derive(Default)]
struct Found<'a> {
    files: Vec<Held<'a>>,
    directories: Vec<Held<'a>>,
}

/// What a round has come to.
#[derive(Default)]
struct Round {
    /// The clone's directory, for messages.
    root: String,
    /// Bytes that the files have of the backup, and how many of them are here.
    total: AtomicU64,
    done: AtomicU64,
    /// The first failure.
    error: Mutex<Option<String>>,
    /// It goes on in another round: no room is left, or something else is wished for now.
    full: AtomicBool,
    changed: AtomicBool,
}

impl Round {
    fn is_over(&self) -> bool {
        self.full.load(Ordering::Acquire) || self.changed.load(Ordering::Acquire)
    }

    fn fail(&self, path: &str, error: Errno) {
        if matches!(error.code(), libc::ENOSPC | libc::EDQUOT) {
            return self
                .fail_full(format!("no space is left in '{}' for '{path}'; it goes on when there is room", self.root));
        }
        let error = std::io::Error::from_raw_os_error(error.code());
        self.fail_with(format!("cannot fetch '{path}': {error}; the log says more"));
    }

    fn fail_full(&self, why: String) {
        self.full.store(true, Ordering::Release);
        self.fail_with(why);
    }

    fn fail_with(&self, why: String) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    fn has_failed(&self) -> bool {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).is_some()
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

/// What a look at all files found.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// Everything is there, durably: so many bytes.
    Whole(u64),
    /// This file lacks something, or it is not durable yet.
    Lacks(String),
    /// The disk has lost something of this file: it will never be whole.
    Lost(String),
    /// Nobody knows: the clone is not served any more.
    Ended,
}

/// One thread less, however it ends.
struct Working<'a>(&'a AtomicUsize);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Work {
    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn run(&self) {
        // What an earlier session called done may have been lost with the host since.
        let mut sure = false;
        while !self.is_ended() {
            match (Wish::load(&self.layout), Hydration::load(&self.layout)) {
                (Ok(None), Ok(_)) => self.sleep(GLANCE),
                (Ok(Some(_)), Ok(Some(h))) if h.state == HydrationState::Done && sure => self.sleep(GLANCE),
                (Ok(Some(wish)), Ok(_)) => sure = self.fulfil(wish),
                (Err(error), _) | (_, Err(error)) => {
                    tracing::error!("cannot see whether the clone is to be hydrated: {}", crate::errno::chain(&error));
                    self.sleep(RETRY);
                }
            }
        }
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

    /// Rounds until a look finds nothing absent, or one has failed. True if all is there.
    fn fulfil(&self, mut wish: Wish) -> bool {
        let mut looks = 0;
        while self.prefetching.goes_on() && !self.is_ended() {
            std::thread::sleep(GLANCE.min(TELL));
        }
        loop {
            let round = Round { root: self.layout.root.display().to_string(), ..Round::default() };
            let limits = Limits::new(wish.io_limit, None, &self.cancel);
            match self.look() {
                Look::Whole(bytes) => {
                    round.total.store(bytes, Ordering::Release);
                    round.done.store(bytes, Ordering::Release);
                    let told = self.tell(&round, HydrationState::Done);
                    tracing::info!(
                        "clone '{}' is hydrated: all {} of the backup are in its directory, which needs the repository no more",
                        self.layout.root.display(),
                        human_size(told.total)
                    );
                    return true;
                }
                Look::Ended => return false,
                Look::Lost(path) => round.fail_with(format!("the disk has lost something of '{path}'")),
                // Others may be syncing; what is not durable after so many looks will not be.
                Look::Lacks(path) if looks >= LOOKS_MAX => round.fail_with(format!("'{path}' does not become durable")),
                Look::Lacks(_) => {}
            }
            if looks == 0 {
                tracing::info!(
                    "hydrating clone '{}': fetching all of the backup that it lacks",
                    self.layout.root.display()
                );
            } else {
                std::thread::sleep(GLANCE);
            }
            if !round.has_failed() {
                let work = std::panic::AssertUnwindSafe(|| self.round(&round, &limits, &wish));
                match std::panic::catch_unwind(work) {
                    Ok(Ok(fetched)) => looks = if fetched { 1 } else { looks + 1 },
                    Ok(Err(error)) => round.fail("the data directory", error),
                    Err(_) => round.fail_with("a thread panicked; the log says more".to_owned()),
                }
            }
            if self.is_ended() {
                self.tell(&round, HydrationState::Running);
                return false;
            }
            if round.changed.load(Ordering::Acquire) {
                match Wish::load(&self.layout) {
                    Ok(Some(now)) => wish = now,
                    _ => return false,
                }
                continue;
            }
            if round.has_failed() {
                let told = self.tell(&round, HydrationState::Failed);
                tracing::warn!(
                    "hydration of clone '{}' is tried again in {} s, {} of {} are there: {}",
                    self.layout.root.display(),
                    RETRY.as_secs(),
                    human_size(told.done),
                    human_size(told.total),
                    told.error.unwrap_or_default()
                );
                self.sleep(RETRY);
                return false;
            }
            self.queue.settle();
        }
    }

    fn tell(&self, round: &Round, state: HydrationState) -> Hydration {
        let told = round.told(state);
        if let Err(error) = told.save(&self.layout) {
            tracing::warn!("cannot note how far hydration is: {}", crate::errno::chain(&error));
        }
        told
    }

    /// Fetches what is absent. True if there was anything.
    fn round(&self, round: &Round, limits: &Arc<Limits>, wish: &Wish) -> Outcome<bool> {
        let mut found = Found::default();
        self.walk(&mut found, &mut |base| {
            round.total.fetch_add(base.base_bytes(), Ordering::AcqRel);
            round.done.fetch_add(base.held_bytes(), Ordering::AcqRel);
        })?;
        self.tell(round, HydrationState::Running);
        let before = round.done.load(Ordering::Acquire);
        let absent = round.total.load(Ordering::Acquire).saturating_sub(before);
        if let Some(free) = self.lacks_room(absent)? {
            round.fail_full(format!("{} are to be fetched, and {}", human_size(absent), self.free_beyond(free)));
            return Ok(false);
        }
        let next = AtomicUsize::new(0);
        let cores = std::thread::available_parallelism().map_or(THREADS.0, std::num::NonZero::get);
        let threads = cores.clamp(THREADS.0, THREADS.1);
        let working = AtomicUsize::new(threads);
        std::thread::scope(|scope| {
            for number in 0..threads {
                // The first goes on beside one request, if there is a core for each, the others while nobody waits.
                let beside = usize::from(number == 0 && cores > 1);
                let (next, working, found) = (&next, &working, &found);
                scope.spawn(move || {
                    let _working = Working(working);
                    while let Some(file) = found.files.get(next.fetch_add(1, Ordering::Relaxed))
                        && !self.is_ended()
                        && !round.is_over()
                    {
                        self.file(file, round, limits, beside);
                    }
                });
            }
            let mut told = Instant::now();
            while working.load(Ordering::Acquire) > 0 && !self.is_ended() {
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
        Ok(round.done.load(Ordering::Acquire) > before)
    }

    /// How much room there is if it is not enough for so many bytes and the reserve, which whoever else writes to the file
    /// system needs, the clone's own server before all.
    fn lacks_room(&self, bytes: u64) -> Outcome<Option<u64>> {
        let free = room::for_unasked(self.backing.root()).map_err(crate::errno::io)?;
        Ok((bytes > free).then_some(free))
    }

    fn free_beyond(&self, free: u64) -> String {
        let root = self.layout.root.display();
        format!(
            "the file system of '{root}' has {} beyond what is left free; it goes on when there is room",
            human_size(free)
        )
    }

    /// Fetches what is absent of a file, beside so many requests that wait. One that was removed meanwhile needs nothing;
    /// whether it was the next look tells.
    fn file(&self, file: &Held<'_>, round: &Round, limits: &Limits, beside: usize) {
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
            match self.lacks_room(REGION) {
                Ok(None) => {}
                Ok(Some(free)) => {
                    let why = format!("'{}' is not fetched: {}", base.path(), self.free_beyond(free));
                    return round.fail_full(why);
                }
                Err(error) => return round.fail(base.path(), error),
            }
            self.demand.give_way(beside, YIELD_MAX, || self.is_ended());
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
        drop(open);
        // Each file that waits to be made durable is open, twice.
        if self.queue.len() >= WAITING_MAX {
            self.queue.settle();
        }
    }

    /// Whether every file's durable map has all of it.
    fn look(&self) -> Look {
        let (mut found, mut bytes) = (Found::default(), 0u64);
        let (mut lacks, mut lost) = (None, None);
        let walked = self.walk(&mut found, &mut |base| {
            bytes = bytes.saturating_add(base.base_bytes());
            if base.has_failed() {
                lost.get_or_insert_with(|| base.path().to_owned());
            } else if !base.is_durable() {
                lacks.get_or_insert_with(|| base.path().to_owned());
            }
        });
        // A walk that was cut short has seen nothing absent.
        match (self.is_ended(), walked, lost, lacks) {
            (true, ..) => Look::Ended,
            (_, Err(_), ..) => Look::Lacks("the data directory".to_owned()),
            (_, Ok(()), Some(path), _) => Look::Lost(path),
            (_, Ok(()), None, Some(path)) => Look::Lacks(path),
            (_, Ok(()), None, None) => Look::Whole(bytes),
        }
    }

    /// Finds every base-backed file there is, and calls `each` for it.
    fn walk<'a>(&'a self, found: &mut Found<'a>, each: &mut dyn FnMut(&BaseFile)) -> Outcome<()> {
        self.directory(ROOT, DEPTH_MAX, found, each)
    }

    fn directory<'a>(
        &'a self,
        number: u64,
        depth: usize,
        found: &mut Found<'a>,
        each: &mut dyn FnMut(&BaseFile),
    ) -> Outcome<()> {
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
            let held = Held::new(&self.backing, attr.ino.0);
            match attr.kind {
                FileType::Directory => {
                    found.directories.push(held);
                    self.directory(attr.ino.0, depth, found, each)?;
                }
                FileType::RegularFile => match open(&self.backing, attr.ino.0) {
                    Ok(Some((base, _open))) => {
                        each(&base);
                        found.files.push(held);
                    }
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
pub(super) fn open(backing: &Backing, number: u64) -> Outcome<Option<(Arc<BaseFile>, Arc<OpenFile>)>> {
    let (state, open) = backing.open(number, false)?;
    Ok(state.base.get().and_then(Option::as_ref).map(|base| (Arc::clone(base), open)))
}
