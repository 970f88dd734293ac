//! Recording what a server reads of the backup, in order of first access, for the clones to come.
//!
//! Only a clone that holds nothing yet is recorded: what a later session sees is what an earlier one lacked. Recording
//! begins with the first read and ends after [`RECORD_FOR`] or [`REGIONS_MAX`] regions. It costs 40 bytes a region and a
//! look at a bit map for each read; whoever fetched the region, the server or others before it, does not matter. Reads of
//! files that are whole when they are opened are not seen ([`super::modes`]): small ones count as read, of others what
//! earlier traces have counts again.

use super::bitmap::Bitmap;
use pgkeep_formats::repo::records::TraceRun;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a region: what one miss fetches.
pub(super) const REGION_BYTES: u64 = super::base::BLOCK_BYTES;
/// Regions that are recorded: 4 GiB. Who reads more in its first minutes has not much of a pattern.
pub(super) const REGIONS_MAX: u64 = 16 << 10;
/// How long is recorded, from the first read on: how a server starts, and what is then asked of it first.
const RECORD_FOR: Duration = Duration::from_secs(600);
/// After this long a trace is kept for the first time: the process may not come to its end in order.
const FIRST_KEPT: Duration = Duration::from_secs(60);
/// A file of so many bytes that is opened whole counts as read: catalogues, for the most part.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// Between two looks at the time.
const GLANCE: Duration = Duration::from_millis(100);
/// How long the end of a clone waits for a slow store: whoever removes the clone waits too.
const END_WAIT: Duration = Duration::from_secs(5);

/// Regions of a backup's files, in the order they were needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Bytes of a region.
    pub unit: u32,
    /// Paths in the backup.
    pub paths: Vec<String>,
    /// Which regions of them. A run of a path that is not there is passed over.
    pub runs: Vec<TraceRun>,
}

/// Takes what was recorded, and says whether it could be kept; called anew when there is more, or if it could not. Blocks as
/// long as it likes.
pub type Keep = Box<dyn FnMut(&Access) -> bool + Send>;
/// Gives what was recorded of earlier clones, the newest first. Blocks as long as it likes.
pub type Load = Box<dyn FnOnce() -> Vec<Access> + Send>;

/// What is known of how servers use clones, and who wants to know more.
#[derive(Default)]
pub struct Tracing {
    /// Called once, beside the serving: what it gives is fetched before it is asked for.
    pub load: Option<Load>,
    /// Called some time after the first read, and at the end.
    pub keep: Option<Keep>,
    /// The backup is as near as the clone: what is fetched costs processors, for which the server waits too.
    pub near: bool,
}

impl std::fmt::Debug for Tracing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (load, keep) = (self.load.is_some(), self.keep.is_some());
        f.debug_struct("Tracing").field("load", &load).field("keep", &keep).finish()
    }
}

#[derive(Default)]
struct State {
    numbers: HashMap<String, u32>,
    paths: Vec<String>,
    runs: Vec<TraceRun>,
    seen: HashSet<(u32, u64)>,
    /// Files that are read unseen, and what earlier traces have of files.
    unseen: HashSet<String>,
    inherited: Vec<Arc<Access>>,
    begun: Option<Instant>,
}

impl State {
    fn add(&mut self, path: &str, regions: Range<u64>) {
        let number = match self.numbers.get(path) {
            Some(number) => *number,
            None => {
                let Ok(number) = u32::try_from(self.paths.len()) else { return };
                self.numbers.insert(path.to_owned(), number);
                self.paths.push(path.to_owned());
                number
            }
        };
        for region in regions {
            if self.seen.len() as u64 >= REGIONS_MAX {
                return;
            }
            if !self.seen.insert((number, region)) {
                continue;
            }
            match self.runs.last_mut() {
                Some(last) if last.path == number && last.first + last.count == region => last.count += 1,
                _ => self.runs.push(TraceRun { path: number, first: region, count: 1 }),
            }
        }
    }

    /// Counts as read again what earlier traces have of files that are read unseen.
    fn take_over(&mut self) {
        for access in std::mem::take(&mut self.inherited) {
            for run in &access.runs {
                let path = access.paths.get(run.path as usize).filter(|path| self.unseen.contains(*path));
                if let Some(path) = path
                    && u64::from(access.unit) == REGION_BYTES
                {
                    self.add(path, run.first..run.first.saturating_add(run.count.min(REGIONS_MAX)));
                }
            }
            self.inherited.push(access);
        }
    }
}

/// Notes what is read. Shared by all files of a clone.
#[derive(Default)]
pub(super) struct Recorder {
    state: Mutex<State>,
    /// Nothing is recorded, or no more.
    is_off: AtomicBool,
}

impl Recorder {
    pub(super) fn off() -> Self {
        Self { is_off: AtomicBool::new(true), ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a read of `bytes` of a file; `seen` has the regions of the file that were noted.
    pub(super) fn read(&self, path: &str, seen: &Bitmap, bytes: Range<u64>) {
        let regions = bytes.start / REGION_BYTES..bytes.end.div_ceil(REGION_BYTES);
        if self.is_off.load(Ordering::Relaxed) || bytes.is_empty() || seen.covers(regions.clone()) {
            return;
        }
        seen.set(regions.clone());
        let mut state = self.lock();
        state.begun.get_or_insert_with(Instant::now);
        state.add(path, regions);
        if state.seen.len() as u64 >= REGIONS_MAX {
            self.is_off.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that a file with `bytes` of the backup is read without this process seeing it from now on.
    pub(super) fn opened_unseen(&self, path: &str, seen: &Bitmap, bytes: u64) {
        if bytes <= SMALL_BYTES_MAX {
            self.read(path, seen, 0..bytes);
        } else if !self.is_off.load(Ordering::Relaxed) {
            let mut state = self.lock();
            if !state.unseen.contains(path) {
                state.unseen.insert(path.to_owned());
            }
        }
    }

    /// What earlier traces have.
    pub(super) fn inherit(&self, access: Vec<Arc<Access>>) {
        if !self.is_off.load(Ordering::Relaxed) {
            self.lock().inherited = access;
        }
    }

    /// What was noted so far.
    fn noted(&self) -> Access {
        let mut state = self.lock();
        state.take_over();
        let unit = u32::try_from(REGION_BYTES).unwrap_or(u32::MAX);
        Access { unit, paths: state.paths.clone(), runs: state.runs.clone() }
    }

    fn begun(&self) -> Option<Instant> {
        self.lock().begun
    }
}

/// The thread that has traces kept.
pub(super) struct Keeper {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(recorder: Arc<Recorder>, keep: Keep) -> std::io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let work = Work { recorder, keep, ended: Arc::clone(&ended), kept: 0 };
        let thread = std::thread::Builder::new().name("clone-trace".to_owned()).spawn(move || work.run())?;
        Ok(Self { ended, thread: Some(thread) })
    }

    /// Has what was recorded since it was kept last kept.
    pub(super) fn stop(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// As [`Self::stop`], and waits for that, but not for ever: what a store that hangs does not take is lost.
    pub(super) fn end(self) {
        self.stop();
        let begun = Instant::now();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && begun.elapsed() < END_WAIT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

struct Work {
    recorder: Arc<Recorder>,
    keep: Keep,
    ended: Arc<AtomicBool>,
    /// Regions that were kept.
    kept: u64,
}

impl Work {
    fn run(mut self) {
        self.wait(FIRST_KEPT);
        self.keep();
        self.wait(RECORD_FOR);
        self.recorder.is_off.store(true, Ordering::Relaxed);
        self.keep();
    }

    /// Waits until this long after the first read, or for the end.
    fn wait(&self, after: Duration) {
        while !self.ended.load(Ordering::Acquire) && self.recorder.begun().is_none_or(|begun| begun.elapsed() < after) {
            std::thread::sleep(GLANCE);
        }
    }

    fn keep(&mut self) {
        let noted = self.recorder.noted();
        let regions = noted.runs.iter().map(|run| run.count).sum();
        if regions != self.kept && (self.keep)(&noted) {
            self.kept = regions;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits() -> Bitmap {
        Bitmap::from_bytes(REGIONS_MAX * 2, &[])
    }

    fn run(path: u32, first: u64, count: u64) -> TraceRun {
        TraceRun { path, first, count }
    }

    #[test]
    fn reads_are_noted_once_and_in_order() {
        let (recorder, a, b) = (Recorder::default(), bits(), bits());
        recorder.read("a", &a, REGION_BYTES..REGION_BYTES + 1);
        recorder.read("a", &a, REGION_BYTES * 2 - 1..REGION_BYTES * 2 + 1);
        recorder.read("b", &b, 0..8192);
        recorder.read("a", &a, 0..REGION_BYTES * 3);
        recorder.read("b", &b, 5..5);
        let noted = recorder.noted();
        assert_eq!(noted.paths, ["a", "b"]);
        assert_eq!(noted.runs, [run(0, 1, 2), run(1, 0, 1), run(0, 0, 1)]);
        // A file that was forgotten and met again has a new map.
        recorder.read("b", &bits(), 0..8192);
        assert_eq!(recorder.noted(), noted);
    }

    #[test]
    fn the_number_of_regions_is_bounded() {
        let (recorder, seen) = (Recorder::default(), bits());
        for region in 0..REGIONS_MAX * 2 {
            recorder.read("a", &seen, region * REGION_BYTES..region * REGION_BYTES + 1);
        }
        recorder.read("b", &bits(), 0..1);
        assert_eq!(recorder.noted().runs, [run(0, 0, REGIONS_MAX)]);
        let huge = Recorder::default();
        huge.read("a", &seen, 0..REGION_BYTES);
        huge.read("a", &bits(), 0..u64::MAX);
        assert_eq!(huge.noted().runs, [run(0, 0, REGIONS_MAX)]);
    }

    #[test]
    fn files_read_unseen_keep_what_was_known_of_them() {
        let recorder = Recorder::default();
        let earlier = Access {
            unit: u32::try_from(REGION_BYTES).unwrap(),
            paths: vec!["large".into(), "gone".into()],
            runs: vec![run(0, 7, 2), run(1, 0, 5), run(9, 0, 1)],
        };
        recorder.inherit(vec![Arc::new(earlier)]);
        recorder.opened_unseen("small", &bits(), REGION_BYTES + 1);
        recorder.opened_unseen("large", &bits(), 100 << 20);
        let noted = recorder.noted();
        assert_eq!(noted.paths, ["small", "large"]);
        assert_eq!(noted.runs, [run(0, 0, 2), run(1, 7, 2)]);
        assert_eq!(recorder.noted(), noted);
    }

    #[test]
    fn nothing_is_noted_when_it_is_off() {
        let recorder = Recorder::off();
        recorder.read("a", &bits(), 0..1);
        recorder.opened_unseen("a", &bits(), 1);
        assert!(recorder.noted().runs.is_empty() && recorder.begun().is_none());
    }

    #[test]
    fn what_was_noted_is_kept_at_the_end_and_only_if_there_is_something() {
        for reads in [0, 3] {
            let recorder = Arc::new(Recorder::default());
            let kept = Arc::new(Mutex::new(Vec::new()));
            let to = Arc::clone(&kept);
            let keeper = Keeper::start(
                Arc::clone(&recorder),
                Box::new(move |access: &Access| {
                    to.lock().unwrap().push(access.clone());
                    true
                }),
            );
            for number in 0..reads {
                recorder.read(&number.to_string(), &bits(), 0..1);
            }
            keeper.unwrap().end();
            let kept = kept.lock().unwrap();
            assert_eq!(kept.len(), usize::from(reads > 0));
            assert_eq!(kept.first().map_or(0, |access| access.runs.len()), reads);
        }
    }
}
