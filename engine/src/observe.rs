//! How an operation is watched and stopped: counters, tasks, soft problems, cancellation.
//!
//! The engine writes log events through `tracing` (level DEBUG with target [`DETAIL`] is pgBackRest's
//! "detail" level) and numbers through [`Observer`]. Only `cli` renders either.

use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Target of `tracing::debug!` events that stand between INFO and DEBUG: one line a file.
pub const DETAIL: &str = "pgkeep::detail";

/// What is counted. All are bytes unless the name says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Counter {
    /// Bytes of the source that have been dealt with: the progress bar's position.
    Done,
    /// Bytes found to be new.
    New,
    /// Bytes sent to or fetched from the repository.
    Stored,
    /// Files dealt with (a number, not bytes).
    Files,
}

/// Receives progress. Called from many threads; must not block.
pub trait Observer: Send + Sync {
    /// A task begins. `total` is in units of [`Counter::Done`].
    fn begin(&self, _task: &str, _total: u64) {}
    /// Adds to a counter of the current task.
    fn add(&self, _counter: Counter, _n: u64) {}
    /// The current task has ended.
    fn end(&self) {}
}

/// An observer that looks away.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {}

/// A request to stop, shared by all threads of an operation.
#[derive(Debug, Default, Clone)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the operation to stop at its next safe place.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True once [`Self::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends the caller if a stop was asked for.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after [`Self::cancel`].
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The flag itself, for a signal handler.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
