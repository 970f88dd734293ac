//! How far the holder of a lock is, in its file: for `info` on this host.

use super::{Lock, Progress};
use crate::observe::{Counter, Observer};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

/// The file is written at least as often as this while something is done, and at every whole percent.
const INTERVAL: Duration = Duration::from_secs(1);

/// Passes progress on, and keeps the figures in a lock's file fresh.
pub struct LockProgress<'a> {
    observer: &'a dyn Observer,
    lock: Option<&'a Lock>,
    total: AtomicU64,
    done: AtomicU64,
    written: Mutex<Written>,
}

/// What the file says.
struct Written {
    at: Instant,
    percent: u64,
}

impl<'a> LockProgress<'a> {
    /// Without a lock it only passes on.
    #[must_use]
    pub fn new(observer: &'a dyn Observer, lock: Option<&'a Lock>) -> Self {
        let written = Mutex::new(Written { at: Instant::now(), percent: 0 });
        Self { observer, lock, total: AtomicU64::new(0), done: AtomicU64::new(0), written }
    }

    fn write(&self, done: u64) {
        let Some(lock) = self.lock else { return };
        let progress = Progress { done, total: self.total.load(Ordering::Relaxed) };
        if let Err(e) = lock.progress(progress) {
            tracing::debug!("cannot note progress in the lock file: {e}");
        }
    }

    fn percent(&self, done: u64) -> u64 {
        let total = u128::from(self.total.load(Ordering::Relaxed).max(1));
        u64::try_from(u128::from(done) * 100 / total).unwrap_or(u64::MAX)
    }
}

impl Observer for LockProgress<'_> {
    fn begin(&self, task: &str, total: u64) {
        self.observer.begin(task, total);
        self.total.store(total, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.write(0);
    }

    fn add(&self, counter: Counter, n: u64) {
        self.observer.add(counter, n);
        if counter != Counter::Done || self.lock.is_none() {
            return;
        }
        self.done.fetch_add(n, Ordering::Relaxed);
        // Whoever finds another thread at it leaves it to that one: no thread waits here.
        let mut written = match self.written.try_lock() {
            Ok(written) => written,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let done = self.done.load(Ordering::Relaxed);
        let percent = self.percent(done);
        if percent != written.percent || written.at.elapsed() >= INTERVAL {
            *written = Written { at: Instant::now(), percent };
            self.write(done);
        }
    }

    fn end(&self) {
        self.observer.end();
    }
}
