//! What the server's `archive_command` and `restore_command` do: one file at a time and now, or ahead.
//!
//! Owns the rules of which file belongs to which archive, and what the server is told; how a file is stored is
//! [`crate::repository::wal`]'s. Neither direction loads an index. `source` reads and checks the file
//! the server hands over, `push` stores it in every repository, `get` brings one back, `own` tells whether
//! what is archived under a name is this server's. These take no lock. `targets` knows which repositories work.
//!
//! With `archive-async` a process in the background, which holds the stanza's archive lock, does the same for all that the
//! server has ready ([`push_ahead()`]) or will ask for next ([`get_ahead()`]). What it has done is in the [`spool`], and [`queue`].
//! Who is asked for a file finds it there ([`look`], [`Queue::take`]).
//!
//! Both take repositories as they came out of opening: one that could not be opened is a [`Configured`] with its error,
//! counts as failed and is named in messages, and does not keep the others from being used. Stores are expected to
//! retry transient failures themselves ([`crate::store::RetryStore`]): an error that arrives here is final.

mod get;
mod get_ahead;
mod label;
mod own;
mod push;
mod push_ahead;
pub mod queue;
mod ready;
mod source;
pub mod spool;
mod targets;
#[cfg(test)]
mod tests;

pub(crate) use own::check_own;
pub(crate) use ready::list as list_ready;

pub use get::{GetOptions, GetOutcome, get};
pub use get_ahead::{GetAheadOptions, GetAheadReport, get_ahead};
pub use label::check_label;
pub use push::{PushOptions, PushReport, Words, push};
pub use push_ahead::{PushAheadOptions, PushAheadReport, Word, look, push_ahead};
pub use queue::Queue;
pub use ready::is_ready;
pub use targets::Pushed;

use crate::repository::Repository;
use crate::{Error, Kind, Result};
use std::fmt::Write as _;
use std::sync::Arc;

/// A repository of the configuration: open, or why not.
#[derive(Debug)]
pub struct Configured {
    /// Its number in the configuration.
    pub key: u32,
    /// The repository.
    pub repository: Result<Arc<Repository>>,
}

impl From<Arc<Repository>> for Configured {
    fn from(repository: Arc<Repository>) -> Self {
        Self { key: repository.key(), repository: Ok(repository) }
    }
}

/// What one repository said when it failed.
#[derive(Debug, Clone)]
struct Failure {
    key: u32,
    kind: Kind,
    message: String,
}

impl Failure {
    fn new(key: u32, error: &Error) -> Self {
        Self { key, kind: error.kind(), message: chain(error) }
    }
}

/// An error that lists failures, one a line.
fn joined(kind: Kind, what: &str, failures: &[Failure]) -> Error {
    let mut message = format!("{what}:");
    for f in failures {
        // Writing to a string cannot fail.
        let _ = write!(message, "\nrepo{}: [{:?}Error] {}", f.key, f.kind, f.message);
    }
    Error::refused(kind, message)
}

/// What is said if no repository can be used. A wrong key is told from other troubles, if it is the only one.
fn unusable(failures: &[Failure]) -> Error {
    let is_shut = !failures.is_empty() && failures.iter().all(|f| f.kind == Kind::Crypto);
    let kind = if is_shut { Kind::Crypto } else { Kind::RepoInvalid };
    joined(kind, "unable to find a valid repository", failures)
}

/// An error and what caused it, on one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(e) = source {
        let _ = write!(text, ": {e}");
        source = e.source();
    }
    text
}

/// Threads for what computes, no more than this many.
fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(|n| format!("encode-{n}"));
    builder.build().map_err(|e| Error::refused(Kind::Kernel, format!("cannot start threads: {e}")))
}

/// Runs the same on several threads, to its end on all. Their lines in the log are numbered.
fn side_by_side(threads: usize, work: impl Fn() + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for number in 1..=threads.max(1) {
            let named = std::thread::Builder::new().name(format!("pgkeep-{number:02}"));
            let started = named.spawn_scoped(scope, &work);
            match started {
                Ok(handle) => running.push(handle),
                // Fewer do as well.
                Err(_) if !running.is_empty() => break,
                Err(e) => return Err(Error::refused(Kind::Kernel, format!("cannot start a thread: {e}"))),
            }
        }
        let ended = running.into_iter().map(|handle| handle.join()).filter(Result::is_err).count();
        if ended > 0 {
            return Err(Error::refused(Kind::Assert, "a thread of the archive panicked"));
        }
        Ok(())
    })
}
