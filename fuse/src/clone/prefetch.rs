//! Fetching what servers on earlier clones of the stanza read, in the order they did, before this clone's server asks.
//!
//! The threads wait for the store, not for a processor: there are more of them than of those that hydrate, so that a store
//! that answers after 30 ms gives what its line can carry. *Demand goes first*: before each piece a thread waits while the
//! server does, but no longer than [`YIELD_MAX`], because what is fetched here is what the server waits for next.
//!
//! Nothing depends on it. A trace names paths of another backup: what is not there any more, or is another file by now,
//! is passed over. It ends by itself when all was fetched, when little room is left on the file system, when enough
//! was fetched, and when the store fails again and again; and with the clone, after what is under way. Enough is
//! [`IDLE_BYTES_MAX`], so that clones nobody works on stay small whatever others were used for; where hydration is wished
//! for all is fetched anyway, and only the order matters.
//!
//! Hydration begins when this has ended: its order is then heat first.

use super::ahead::has_room;
use super::backing::Backing;
use super::base::BaseFile;
use super::demand::Demand;
use super::hydrate::{Held, open};
use super::names::look_up;
use super::nodes::{OpenFile, ROOT};
use super::skeleton;
use super::state::{Layout, Wish};
use super::trace::{Access, Load, REGION_BYTES, REGIONS_MAX, Recorder};
use crate::errno::{Outcome, guard};
use fuser::FileType;
use pgkeep_engine::limit::Limits;
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::size::human_size;
use std::ffi::OsStr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads that fetch from afar, and from nearby: each has a MiB in its hands.
const THREADS: usize = 16;
const THREADS_NEAR: usize = 4;
/// Most bytes that are fetched at once, by one thread.
const PIECE_BYTES: u64 = 1 << 20;
/// Most bytes that are fetched: what a trace may name.
const BYTES_MAX: u64 = REGIONS_MAX * REGION_BYTES;
/// Most bytes that are fetched for a clone that is not to be hydrated.
const IDLE_BYTES_MAX: u64 = 128 << 20;
/// Longest wait for demand before a piece is fetched all the same, from afar and from nearby.
const YIELD_MAX: Duration = Duration::from_millis(5);
const YIELD_MAX_NEAR: Duration = Duration::from_millis(25);
/// Between two looks whether the clone has ended.
const GLANCE: Duration = Duration::from_millis(20);
/// Pieces that cannot be fetched before it is given up.
const FAILURES_MAX: usize = 16;

/// The threads; dropping it ends them after what they do at the moment.
pub(super) struct Prefetcher {
    ended: Arc<AtomicBool>,
    cancel: Cancel,
    thread: Option<JoinHandle<()>>,
}

/// True until everything was fetched that is to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Prefetching(Arc<AtomicBool>);

impl Prefetching {
    pub(super) fn goes_on(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Prefetcher {
    pub(super) fn start(
        layout: &Layout,
        backing: Arc<Backing>,
        demand: Arc<Demand>,
        recorder: Arc<Recorder>,
        load: Load,
        near: bool,
    ) -> std::io::Result<(Self, Prefetching)> {
        let (ended, cancel) = (Arc::new(AtomicBool::new(false)), Cancel::default());
        let going = Prefetching(Arc::new(AtomicBool::new(true)));
        let over = Over(going.clone());
        // What hydration may take a second, this may.
        let wish = Wish::load(layout).ok().flatten();
        let most = if wish.is_some() { BYTES_MAX } else { IDLE_BYTES_MAX };
        let io_limit = wish.and_then(|wish| wish.io_limit);
        let limits = Limits::new(io_limit, None, &cancel);
        let root = layout.root.display().to_string();
        let work = Work { root, backing, demand, limits, most, near, ended: Arc::clone(&ended) };
        let loaded = loading(load)?;
        let run = move || {
            guard("prefetch", || {
                let Some(access) = work.loaded(&loaded) else { return };
                let access: Vec<_> = access.into_iter().map(Arc::new).collect();
                recorder.inherit(access.clone());
                work.run(&access);
            });
            drop(over);
        };
        let thread = std::thread::Builder::new().name("clone-prefetch".to_owned()).spawn(run)?;
        Ok((Self { ended, cancel, thread: Some(thread) }, going))
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.cancel.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that fetches what earlier servers read panicked");
        }
    }
}

/// Asks for traces beside everything else: whoever waits for the end of the clone does not wait for that.
fn loading(load: Load) -> std::io::Result<Receiver<Vec<Access>>> {
    let (give, take) = mpsc::channel();
    std::thread::Builder::new().name("clone-traces".to_owned()).spawn(move || {
        // Nobody takes what comes after the end.
        guard("traces", || drop(give.send(load())));
    })?;
    Ok(take)
}

/// Says that it is over, however it ends.
struct Over(Prefetching);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

struct Work {
    /// The clone's directory, for messages.
    root: String,
    backing: Arc<Backing>,
    demand: Arc<Demand>,
    limits: Arc<Limits>,
    /// Bytes that are enough.
    most: u64,
    near: bool,
    ended: Arc<AtomicBool>,
}

/// What is next, in the order of the traces.
#[derive(Default)]
struct Cursor {
    trace: usize,
    run: usize,
    /// Bytes of the run that are done.
    done: u64,
}

/// Some bytes of a file, which may lack them.
struct Piece<'a> {
    /// Numbers of the trace and the run it is of.
    of: (usize, usize),
    path: &'a str,
    bytes: Range<u64>,
}

impl Cursor {
    fn next<'a>(&mut self, traces: &'a [Arc<Access>]) -> Option<Piece<'a>> {
        loop {
            let trace = traces.get(self.trace)?;
            let Some(run) = trace.runs.get(self.run) else {
                *self = Self { trace: self.trace + 1, ..Self::default() };
                continue;
            };
            let unit = u64::from(trace.unit);
            // A run longer than all that may be fetched is not fetched to its end.
            let bytes = run.count.saturating_mul(unit).min(BYTES_MAX);
            match trace.paths.get(run.path as usize) {
                Some(path) if self.done < bytes => {
                    let start = run.first.saturating_mul(unit).saturating_add(self.done);
                    let length = (bytes - self.done).min(PIECE_BYTES);
                    self.done += length;
                    return Some(Piece {
                        of: (self.trace, self.run),
                        path,
                        bytes: start..start.saturating_add(length),
                    });
                }
                _ => {
                    self.run += 1;
                    self.done = 0;
                }
            }
        }
    }

    /// Passes over the rest of a piece's run: nothing of it is there.
    fn skip(&mut self, piece: &Piece<'_>) {
        if piece.of == (self.trace, self.run) {
            self.run += 1;
            self.done = 0;
        }
    }
}

/// A file that a thread works on.
struct Target<'a> {
    path: String,
    /// The file and the directories on the way to it, held.
    _way: Vec<Held<'a>>,
    base: Arc<BaseFile>,
    open: Arc<OpenFile>,
}

/// What came of it.
#[derive(Default)]
struct Tally {
    /// Bytes that were looked at, here or not: what was fetched at an earlier mount counts too.
    looked: AtomicU64,
    fetched: AtomicU64,
    failures: AtomicUsize,
    /// Nothing more is fetched, and why.
    stopped: OnceLock<String>,
}

impl Work {
    /// The traces, once they are there; `None` if the clone ends before.
    fn loaded(&self, from: &Receiver<Vec<Access>>) -> Option<Vec<Access>> {
        while !self.ended.load(Ordering::Acquire) {
            match from.recv_timeout(GLANCE) {
                Err(RecvTimeoutError::Timeout) => {}
                other => return other.ok(),
            }
        }
        None
    }

    fn run(&self, traces: &[Arc<Access>]) {
        if traces.iter().all(|trace| trace.runs.is_empty()) {
            return;
        }
        let (cursor, tally) = (Mutex::new(Cursor::default()), Tally::default());
        std::thread::scope(|scope| {
            for _ in 0..if self.near { THREADS_NEAR } else { THREADS } {
                scope.spawn(|| guard("prefetch", || self.work(traces, &cursor, &tally)));
            }
        });
        let fetched = human_size(tally.fetched.load(Ordering::Acquire));
        tracing::info!(
            "clone '{}': fetched {fetched} that earlier clones needed first{}",
            self.root,
            self.rest(&tally)
        );
    }

    /// What becomes of what was not fetched.
    fn rest(&self, tally: &Tally) -> String {
        match tally.stopped.get() {
            Some(why) => format!("; the rest comes when the server asks for it: {why}"),
            None if self.ended.load(Ordering::Acquire) => {
                "; the rest waits for the next mount, as this one has ended".to_owned()
            }
            None => String::new(),
        }
    }

    fn is_over(&self, tally: &Tally) -> bool {
        self.ended.load(Ordering::Acquire) || tally.stopped.get().is_some()
    }

    fn work(&self, traces: &[Arc<Access>], cursor: &Mutex<Cursor>, tally: &Tally) {
        let lock = || cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut target: Option<Target<'_>> = None;
        while !self.is_over(tally) {
            let Some(piece) = lock().next(traces) else { return };
            if target.as_ref().is_none_or(|target| target.path != piece.path) {
                target = self.find(piece.path);
            }
            match &target {
                Some(found) if piece.bytes.start < found.base.base_bytes() => self.fetch(found, piece.bytes, tally),
                _ => lock().skip(&piece),
            }
        }
    }

    /// Fetches what is absent of a piece.
    fn fetch(&self, target: &Target<'_>, bytes: Range<u64>, tally: &Tally) {
        let base = &target.base;
        // The first reason counts.
        let stop = |why: &str| _ = tally.stopped.set(why.to_owned());
        let length = bytes.end.saturating_sub(bytes.start);
        if tally.looked.fetch_add(length, Ordering::AcqRel) >= self.most {
            return stop(&format!("{} is the most for this clone", human_size(self.most)));
        }
        if base.holds(bytes.clone()) {
            return;
        }
        if !has_room(&target.open) {
            return stop("little room is left on its file system");
        }
        let longest = if self.near { YIELD_MAX_NEAR } else { YIELD_MAX };
        self.demand.give_way(0, longest, || self.ended.load(Ordering::Acquire));
        // Whole regions come; if others fetch some of them at this moment both count them.
        let regions = bytes.start / REGION_BYTES..bytes.end.div_ceil(REGION_BYTES);
        let fetched = base.absent_bytes(regions.start * REGION_BYTES..regions.end.saturating_mul(REGION_BYTES));
        match base.ensure_ahead(&target.open, bytes) {
            Ok(()) => {}
            Err(full) if matches!(full.code(), libc::ENOSPC | libc::EDQUOT) => {
                return stop("no space is left on its file system");
            }
            Err(_) if tally.failures.fetch_add(1, Ordering::AcqRel) + 1 >= FAILURES_MAX => {
                return stop("the repository fails again and again");
            }
            Err(_) => return,
        }
        tally.fetched.fetch_add(fetched, Ordering::AcqRel);
        self.limits.charge(usize::try_from(fetched).unwrap_or(usize::MAX));
        // Only the end of the clone ends this wait.
        let _ = self.limits.read(0);
    }

    /// A file of the backup, if the clone still has it under its name.
    fn find(&self, path: &str) -> Option<Target<'_>> {
        match self.reach(path) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("'{path}' is not fetched before it is asked for (errno {})", error.code());
                None
            }
        }
    }

    fn reach(&self, path: &str) -> Outcome<Option<Target<'_>>> {
        let place = skeleton::place_of(path);
        let (mut way, mut number) = (Vec::new(), ROOT);
        let mut names = place.split('/').peekable();
        while let Some(name) = names.next() {
            if matches!(name, "" | "." | "..") {
                return Ok(None);
            }
            let Some(attr) = look_up(&self.backing, number, OsStr::new(name))? else { return Ok(None) };
            number = attr.ino.0;
            // Gives the look-up back in every case.
            way.push(Held::new(&self.backing, number));
            let expected = if names.peek().is_some() { FileType::Directory } else { FileType::RegularFile };
            if attr.kind != expected {
                return Ok(None);
            }
        }
        let found = open(&self.backing, number)?.filter(|(base, _)| base.path() == path);
        Ok(found.map(|(base, open)| Target { path: path.to_owned(), _way: way, base, open }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_formats::repo::records::TraceRun;

    fn pieces(traces: &[Arc<Access>], most: usize) -> Vec<(String, Range<u64>)> {
        let mut cursor = Cursor::default();
        std::iter::from_fn(|| cursor.next(traces)).map(|p| (p.path.to_owned(), p.bytes)).take(most).collect()
    }

    fn access(unit: u32, runs: &[(u32, u64, u64)]) -> Arc<Access> {
        let runs = runs.iter().map(|&(path, first, count)| TraceRun { path, first, count }).collect();
        Arc::new(Access { unit, paths: vec!["a".into(), "b".into()], runs })
    }

    #[test]
    fn runs_come_in_order_and_in_pieces() {
        let traces =
            [access(1 << 18, &[(1, 2, 1), (0, 0, 5), (7, 0, 1)]), access(1 << 18, &[]), access(8192, &[(0, 1, 2)])];
        let piece = |path: &str, bytes| (path.to_owned(), bytes);
        let (kib, mib) = (1024, 1 << 20);
        let expected = [
            piece("b", 512 * kib..768 * kib),
            piece("a", 0..mib),
            piece("a", mib..mib + 256 * kib),
            piece("a", 8 * kib..24 * kib),
        ];
        assert_eq!(pieces(&traces, 10), expected);
    }

    #[test]
    fn runs_without_end_are_cut_and_passed_over() {
        let traces = [access(1 << 30, &[(0, 0, u64::MAX), (1, u64::MAX, u64::MAX), (0, 0, 1)])];
        assert_eq!(pieces(&traces, usize::MAX).len() as u64, 2 * BYTES_MAX / PIECE_BYTES + 1024);
        let mut cursor = Cursor::default();
        let first = cursor.next(&traces).unwrap();
        cursor.skip(&first);
        assert_eq!(cursor.next(&traces).unwrap().path, "b");
        // Another thread has gone on to the next run meanwhile.
        cursor.skip(&first);
        assert_eq!(cursor.next(&traces).unwrap().path, "b");
    }
}
