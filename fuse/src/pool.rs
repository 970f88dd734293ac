//! A few threads for requests that wait for a store.
//!
//! The queue is bounded: when it is full the submitting session thread waits, which is how the kernel learns to wait.

use crate::errno::guard;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Jobs waiting for a thread; the kernel has at most 64 background and as many foreground requests as processes read.
const QUEUE_JOBS_MAX: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs on its own threads; dropping it lets the queued ones end.
pub(crate) struct Pool {
    queue: SyncSender<Job>,
}

impl Pool {
    /// Starts `threads` threads called `name`.
    pub(crate) fn start(name: &str, threads: usize) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel::<Job>(QUEUE_JOBS_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..threads.max(1) {
            let jobs = Arc::clone(&jobs);
            std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || work(&jobs))?;
        }
        Ok(Self { queue })
    }

    /// Queues a job; waits while the queue is full.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        if let Err(lost) = self.queue.send(Box::new(job)) {
            // No thread is left to run it; the caller's own thread still is.
            guard("fetch", lost.0);
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        guard("fetch", job);
    }
}
