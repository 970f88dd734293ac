//! How busy each stage of the pipeline was, and which of them was the one that the others waited for.
//!
//! Each thread adds the time of what it does to a sum of its kind; two looks at the clock for a task, not for a page. What
//! a thread does not account for it spent waiting for work: walk, workers and uploaders wait nowhere else but where a sum
//! says so. Workers never wait for room, since the channel of their results has as much as there are permits: it is the walk
//! that waits for a permit then. Reading includes the check of pages, encoding includes the look at what was encoded.

use crate::limit::LimitTotals;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a thread may spend time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// The walk, from its begin to its end.
    Walk,
    /// Of that, waiting for permits and for room in the queue of entries.
    WalkRoom,
    /// A worker's tasks.
    Work,
    /// Of these, reading and checking pages. Waits for the limit of reading are taken off.
    Read,
    /// Of these, compressing, looking at the result, sealing.
    Encode,
    /// The sequencer's work on what others send it.
    Sequence,
    /// Of that, waiting for an uploader.
    SequenceRoom,
    /// Putting packs into the repository.
    Upload,
}

const ACTIVITIES: usize = Activity::Upload as usize + 1;

/// The sums of one run.
#[derive(Debug)]
pub(super) struct Stages {
    began: Instant,
    workers: usize,
    uploaders: usize,
    nanos: [AtomicU64; ACTIVITIES],
}

/// Time that is added when this is dropped.
#[must_use]
pub(super) struct Span<'a> {
    sum: Option<&'a AtomicU64>,
    began: Instant,
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        if let Some(sum) = self.sum {
            sum.fetch_add(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

impl Stages {
    /// Begins now, with so many threads of each kind.
    pub(super) fn new(workers: usize, uploaders: usize) -> Self {
        Self { began: Instant::now(), workers, uploaders, nanos: Default::default() }
    }

    /// Counts from here to the end of the scope.
    pub(super) fn span(&self, activity: Activity) -> Span<'_> {
        Span { sum: self.nanos.get(activity as usize), began: Instant::now() }
    }

    /// Counts the time that `f` takes.
    pub(super) fn time<T>(&self, activity: Activity, f: impl FnOnce() -> T) -> T {
        let _span = self.span(activity);
        f()
    }

    /// What it came to, up to now.
    pub(super) fn utilisation(&self, limits: &LimitTotals) -> Utilisation {
        let sum = |a: Activity| self.nanos.get(a as usize).map_or(0, |n| n.load(Ordering::Relaxed));
        Utilisation::of(self.began.elapsed(), self.workers, self.uploaders, limits, |a| Duration::from_nanos(sum(a)))
    }
}

/// Shares of the time that the threads of a stage had, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Utilisation {
    wall: Duration,
    walk: f64,
    read: f64,
    hash: f64,
    encode: f64,
    sequence: f64,
    upload: f64,
    walk_room: f64,
    work: f64,
    io_limit: f64,
    cpu_limit: f64,
    sequence_room: f64,
}

/// Share of the workers' time from which on a limit is what held the backup back: it waits only when its rate is reached.
const LIMIT_SHARE: f64 = 10.0;

impl Utilisation {
    fn of(
        wall: Duration,
        workers: usize,
        uploaders: usize,
        limits: &LimitTotals,
        sum: impl Fn(Activity) -> Duration,
    ) -> Self {
        let share = |time: Duration, threads: usize| {
            let whole = wall.as_secs_f64() * threads.max(1) as f64;
            if whole > 0.0 { (time.as_secs_f64() / whole * 100.0).min(100.0) } else { 0.0 }
        };
        let less = |a: Duration, b: Duration| a.saturating_sub(b);
        let read = less(sum(Activity::Read), limits.read_waited);
        let busy = less(sum(Activity::Work), limits.read_waited);
        let encode = sum(Activity::Encode);
        let hash = less(less(busy, read), encode);
        let idle = less(less(wall * workers.max(1) as u32, busy), limits.read_waited + limits.cpu_waited);
        Self {
            wall,
            walk: share(less(sum(Activity::Walk), sum(Activity::WalkRoom)), 1),
            read: share(read, workers),
            hash: share(hash, workers),
            encode: share(encode, workers),
            sequence: share(less(sum(Activity::Sequence), sum(Activity::SequenceRoom)), 1),
            upload: share(sum(Activity::Upload), uploaders),
            walk_room: share(sum(Activity::WalkRoom), 1),
            work: share(idle, workers),
            io_limit: share(limits.read_waited, workers),
            cpu_limit: share(limits.cpu_waited, workers),
            sequence_room: share(sum(Activity::SequenceRoom), 1),
        }
    }

    /// The stage that was busiest, or the limit that held it back.
    fn limit(&self) -> &'static str {
        let held = [("io-limit", self.io_limit), ("cpu-limit", self.cpu_limit)];
        let held = most(&held);
        if held.1 >= LIMIT_SHARE {
            return held.0;
        }
        let workers = [("read", self.read), ("hash and compare", self.hash), ("encode", self.encode)];
        let busy = workers.iter().map(|w| w.1).sum();
        let stages =
            [(most(&workers).0, busy), ("upload", self.upload), ("sequencer", self.sequence), ("walk", self.walk)];
        most(&stages).0
    }
}

fn most(of: &[(&'static str, f64)]) -> (&'static str, f64) {
    of.iter().copied().fold(("nothing", 0.0), |most, next| if next.1 > most.1 { next } else { most })
}

impl fmt::Display for Utilisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stage utilisation: walk {:.0} %, read {:.0} %, hash and compare {:.0} %, encode {:.0} %, sequencer {:.0} %, \
             upload {:.0} % of {:.1} s; waits: walk for room {:.0} %, workers for work {:.0} %, for io-limit {:.0} %, \
             for cpu-limit {:.0} %, sequencer for uploaders {:.0} %; the limit was: {}",
            self.walk,
            self.read,
            self.hash,
            self.encode,
            self.sequence,
            self.upload,
            self.wall.as_secs_f64(),
            self.walk_room,
            self.work,
            self.io_limit,
            self.cpu_limit,
            self.sequence_room,
            self.limit(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(seconds: &[(Activity, u64)], io: u64, cpu: u64) -> Utilisation {
        let totals =
            LimitTotals { bytes: 0, read_waited: Duration::from_secs(io), cpu_waited: Duration::from_secs(cpu) };
        let sum = |a| Duration::from_secs(seconds.iter().find(|s| s.0 == a).map_or(0, |s| s.1));
        Utilisation::of(Duration::from_secs(10), 2, 2, &totals, sum)
    }

    #[test]
    fn shares_are_of_the_time_the_threads_had() {
        use Activity::{Encode, Read, Sequence, SequenceRoom, Upload, Walk, WalkRoom, Work};
        let times = [(Walk, 9), (WalkRoom, 8), (Work, 19), (Read, 4), (Encode, 10), (Sequence, 2), (Upload, 5)];
        let now = of(&times, 0, 0);
        assert_eq!(
            now.to_string(),
            "stage utilisation: walk 10 %, read 20 %, hash and compare 25 %, encode 50 %, sequencer 20 %, upload 25 % \
             of 10.0 s; waits: walk for room 80 %, workers for work 5 %, for io-limit 0 %, for cpu-limit 0 %, \
             sequencer for uploaders 0 %; the limit was: encode"
        );
        let slow_store = of(&[(Work, 6), (Encode, 4), (Sequence, 9), (SequenceRoom, 8), (Upload, 19)], 0, 0);
        assert_eq!((slow_store.limit(), slow_store.sequence_room, slow_store.work), ("upload", 80.0, 70.0));
        assert_eq!(of(&[(Walk, 9), (Work, 3)], 0, 0).limit(), "walk");
        assert_eq!(of(&[(Sequence, 9), (Work, 3)], 0, 0).limit(), "sequencer");
        assert_eq!(of(&[], 0, 0).limit(), "nothing");
    }

    #[test]
    fn waits_for_limits_are_no_work() {
        use Activity::{Encode, Read, Work};
        let held = of(&[(Work, 20), (Read, 16), (Encode, 3)], 15, 0);
        assert_eq!((held.read, held.hash, held.encode, held.io_limit, held.work), (5.0, 5.0, 15.0, 75.0, 0.0));
        assert_eq!(held.limit(), "io-limit");
        let held = of(&[(Work, 10), (Read, 1), (Encode, 8)], 0, 9);
        assert_eq!((held.cpu_limit, held.work, held.limit()), (45.0, 5.0, "cpu-limit"));
        // A limit that is hardly ever reached is not what holds it back.
        assert_eq!(of(&[(Work, 18), (Encode, 16)], 1, 0).limit(), "encode");
    }

    #[test]
    fn spans_add_up() {
        let stages = Stages::new(1, 1);
        for _ in 0..3 {
            let span = stages.span(Activity::Encode);
            let began = span.began;
            while began.elapsed() < Duration::from_micros(100) {}
        }
        assert_eq!(stages.time(Activity::Read, || 7), 7);
        let encoded = stages.nanos[Activity::Encode as usize].load(Ordering::Relaxed);
        assert!(encoded >= 300_000, "{encoded}");
        assert_eq!(stages.nanos[Activity::Upload as usize].load(Ordering::Relaxed), 0);
        assert!(stages.utilisation(&LimitTotals::default()).encode > 0.0);
    }
}
