//! A command line, environment or file that cannot be followed.

use crate::exit::Status;

/// Why options were refused, with the exit status that tells programs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OptionError {
    /// The exit status.
    pub status: Status,
    /// What is wrong, with the option and the value, never a secret one.
    pub message: String,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl OptionError {
    /// An error without hints.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), hints: Vec::new() }
    }

    /// The same with one more hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}
