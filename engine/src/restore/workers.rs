//! Running one step over many things on several named threads, the first failure ending all.

use crate::observe::Cancel;
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The first failure of several threads, and the wish to stop that comes with it.
pub(super) struct Failure<'a> {
    first: Mutex<Option<Error>>,
    stopped: AtomicBool,
    cancel: &'a Cancel,
}

impl<'a> Failure<'a> {
    pub(super) fn new(cancel: &'a Cancel) -> Self {
        Self { first: Mutex::default(), stopped: AtomicBool::new(false), cancel }
    }

    /// Keeps the error if it is the first.
    pub(super) fn note(&self, error: Error) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// True if work should end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }

    /// The first failure, if any.
    pub(super) fn result(self) -> Result<()> {
        match self.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => self.cancel.check(),
        }
    }
}

/// Starts a named thread in a scope.
pub(super) fn spawn<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    name: String,
    work: impl FnOnce() + Send + 'scope,
) -> Result<()> {
    let thread = std::thread::Builder::new().name(name);
    thread
        .spawn_scoped(scope, work)
        .map(drop)
        .map_err(|e| Error::refused(crate::Kind::Kernel, format!("cannot start a thread: {e}")))
}

/// Calls `work` for every number below `count`, in about that order, on up to `threads` threads. Each thread has a state
/// of its own.
///
/// # Errors
/// The first that `work` gave; [`Error::Interrupted`].
pub(super) fn for_each<S: Default>(
    name: &str,
    threads: usize,
    count: usize,
    cancel: &Cancel,
    work: impl Fn(&mut S, usize) -> Result<()> + Sync,
) -> Result<()> {
    let failure = Failure::new(cancel);
    let next = AtomicUsize::new(0);
    let run = || {
        let mut state = S::default();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count || failure.is_stopped() {
                return;
            }
            if let Err(e) = work(&mut state, at) {
                failure.note(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for n in 1..threads.min(count) {
            if let Err(e) = spawn(scope, format!("{name}-{n}"), run) {
                failure.note(e);
            }
        }
        run();
    });
    failure.result()
}
