//! What the server's `archive_command` and `restore_command` do: one file at a time, now.
//!
//! Owns the rules of which file belongs to which archive, and what the server is told; how a file is stored is
//! [`crate::repository::wal`]'s. Neither direction takes a lock or loads an index. `source` reads and checks the file
//! the server hands over, `push` stores it in every repository, `get` brings one back, `own` tells whether
//! what is archived under a name is this server's.
//!
//! Both take repositories as they came out of opening: one that could not be opened is a [`Configured`] with its error,
//! counts as failed and is named in messages, and does not keep the others from being used. Stores are expected to
//! retry transient failures themselves ([`crate::store::RetryStore`]): an error that arrives here is final.

mod get;
mod own;
mod push;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use own::check_own;

pub use get::{GetOptions, GetOutcome, get};
pub use push::{PushOptions, PushReport, Pushed, push};

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
#[derive(Debug)]
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
