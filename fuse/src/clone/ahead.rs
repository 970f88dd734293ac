//! Threads that fetch what is expected to be read soon, see `base/expect.rs`.
//!
//! The queue is bounded: what has no place in it is not fetched ahead. Whoever reads a page does not wait for this
//! queue, only for a fetch of that very page that has begun.

use super::base::BaseFile;
use super::nodes::OpenFile;
use super::room;
use crate::errno::guard;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Jobs that may wait: a few windows of a few readers.
const JOBS_MAX: usize = 64;
/// Fewest and most threads; as many as there are cores in between.
const THREADS: (usize, usize) = (2, 4);

/// Some blocks of a file.
pub(super) struct Job {
    pub(super) base: Arc<BaseFile>,
    pub(super) open: Arc<OpenFile>,
    pub(super) blocks: Range<u64>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    ended: bool,
}

/// What is to be fetched.
#[derive(Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job unless too many wait.
    pub(super) fn add(&self, job: Job) {
        let mut state = self.lock();
        if !state.ended && state.jobs.len() < JOBS_MAX {
            state.jobs.push_back(job);
            self.changed.notify_one();
        }
    }

    /// What waits.
    #[cfg(test)]
    pub(super) fn blocks(&self) -> Vec<Range<u64>> {
        self.lock().jobs.iter().map(|job| job.blocks.clone()).collect()
    }

    fn work(&self) {
        loop {
            let waiting = |state: &mut State| state.jobs.is_empty() && !state.ended;
            let mut state = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
            let Some(job) = state.jobs.pop_front() else { return };
            drop(state);
            guard("fetch ahead", || {
                if has_room(&job.open) {
                    job.base.fetch_ahead(&job.open, job.blocks.clone());
                }
            });
        }
    }
}

/// Nobody has asked for these pages yet: they do not take the room that the server needs for what it writes.
pub(super) fn has_room(open: &OpenFile) -> bool {
    room::for_unasked(&open.file).is_ok_and(|free| free > 0)
}

/// The threads; dropping it ends them after what they do at the moment.
pub(super) struct Readers {
    ahead: Arc<Ahead>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(ahead: Arc<Ahead>) -> std::io::Result<Self> {
        let mut readers = Self { ahead, threads: Vec::new() };
        let cores = std::thread::available_parallelism().map_or(THREADS.0, std::num::NonZero::get);
        for number in 0..cores.clamp(THREADS.0, THREADS.1) {
            let its = Arc::clone(&readers.ahead);
            let name = format!("clone-ahead-{number}");
            readers.threads.push(std::thread::Builder::new().name(name).spawn(move || its.work())?);
        }
        Ok(readers)
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        // Jobs hold files, and files this queue.
        let jobs = {
            let mut state = self.ahead.lock();
            state.ended = true;
            std::mem::take(&mut state.jobs)
        };
        drop(jobs);
        self.ahead.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that fetches ahead panicked");
            }
        }
    }
}
