//! Makes durable, in the background, what was fetched or written and not synced by anyone.
//!
//! PostgreSQL never syncs pages it only read, so nobody else would learn that they did not reach the disk. A file with
//! such pages is queued here with an open descriptor, which keeps the kernel's note of a failed write alive (see
//! [`super::disk`]). One thread syncs the queue every [`SETTLE_INTERVAL`], or once [`FILES_MAX`] files wait, or soon after
//! a large one became whole: from when that is durable on, whoever opens it goes past this process ([`super::modes`]).

use super::base::BaseFile;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a fetched page may wait to be made durable; a crash before costs only fetching it again.
const SETTLE_INTERVAL: Duration = Duration::from_secs(10);
/// Files held open for this; a PostgreSQL process has 1000 open.
const FILES_MAX: usize = 512;
/// How long a file that is whole waits for others that are about to be.
const WHOLE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    waiting: Vec<Arc<BaseFile>>,
    /// A large file became whole.
    whole: bool,
    ended: bool,
}

/// The files that wait.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called once when a file gets its first page that is not durable.
    pub(super) fn add(&self, base: Arc<BaseFile>) {
        let mut state = self.lock();
        state.waiting.push(base);
        if state.waiting.len() >= FILES_MAX {
            self.changed.notify_all();
        }
    }

    /// How many files wait.
    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Settles all files that wait now. Failures are the files' to remember and tell.
    pub(super) fn settle(&self) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        for base in waiting {
            base.settle();
        }
    }

    /// Called when a large file that waits, or is about to, has become whole.
    pub(super) fn is_whole(&self) {
        self.lock().whole = true;
        self.changed.notify_all();
    }

    fn work(&self) {
        loop {
            let due = |state: &mut State| !state.ended && !state.whole && state.waiting.len() < FILES_MAX;
            let waited = self.changed.wait_timeout_while(self.lock(), SETTLE_INTERVAL, due);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let more = |state: &mut State| !state.ended && state.whole && state.waiting.len() < FILES_MAX;
            let waited = self.changed.wait_timeout_while(state, WHOLE_INTERVAL, more);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return;
            }
            state.whole = false;
            let fetched = !state.waiting.is_empty();
            drop(state);
            self.settle();
            if fetched {
                crate::memory::give_back();
            }
        }
    }
}

/// The thread; dropping it ends it without a last round.
pub(super) struct Settler {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Settler {
    pub(super) fn start(queue: Arc<Queue>) -> std::io::Result<Self> {
        let its = Arc::clone(&queue);
        let thread = std::thread::Builder::new().name("clone-settle".to_owned()).spawn(move || its.work())?;
        Ok(Self { queue, thread: Some(thread) })
    }

    /// Ends the thread and settles what still waits. No request may be running.
    pub(super) fn finish(mut self) {
        self.stop();
        self.queue.settle();
    }

    fn stop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.changed.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that makes fetched pages durable panicked");
        }
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
    }
}
