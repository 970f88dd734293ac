//! What a command can fail with, and how that is told: the chain of causes in one line, then hints.

use crate::exit::Status;
use crate::hint;
use crate::option::{Command, OptionError};

/// The end of a command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Options, parameters or configuration.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The operation.
    #[error(transparent)]
    Engine(#[from] pgkeep_engine::Error),
    /// Whoever reads our output went away or cannot take it.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
    /// A process in the background has failed, and this is its report.
    #[error("{message}")]
    Relayed {
        /// Its status.
        status: Status,
        /// Causes and hints.
        message: String,
    },
    /// Another process of ours failed with this status and has told why.
    #[error("the process in the background has failed")]
    Told(Status),
}

impl Failure {
    /// A local file failed.
    pub fn file(error: pgkeep_engine::FileError) -> Self {
        Self::Engine(error.into())
    }

    /// The exit status.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Option(e) => e.status,
            Self::Engine(e) => Status::of(e.kind()),
            // A reader that has seen enough, like head(1), is no failure.
            Self::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Status::OK,
            Self::Output(_) => Status::FILE_WRITE,
            Self::Told(status) | Self::Relayed { status, .. } => *status,
        }
    }

    /// What the ERROR line says after `ERROR: `: status, causes, and a line per hint that fits the command.
    #[must_use]
    pub fn report(&self, command: Option<Command>) -> String {
        format!("{}: {}", self.status(), told(self, &self.hints(command)))
    }

    fn hints(&self, command: Option<Command>) -> Vec<String> {
        match self {
            Self::Option(e) => e.hints.clone(),
            Self::Engine(e) => hint::of(command, e).iter().map(|h| (*h).to_owned()).collect(),
            // A report that is passed on has its hints.
            Self::Output(_) | Self::Told(_) | Self::Relayed { .. } => Vec::new(),
        }
    }
}

/// What [`Failure::report`] says of an error of the engine behind its status.
#[must_use]
pub(crate) fn report_of(error: &pgkeep_engine::Error, command: Option<Command>) -> String {
    let hints: Vec<_> = hint::of(command, error).iter().map(|h| (*h).to_owned()).collect();
    told(error, &hints)
}

/// An error with its causes, and hints a line each.
fn told(error: &dyn std::error::Error, hints: &[String]) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some wrappers repeat what they wrap.
        if !last.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        last = cause_text;
        source = cause.source();
    }
    for hint in hints {
        text.push_str("\nhint: ");
        text.push_str(hint);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_engine::{Error, FileError, Kind};

    #[test]
    fn the_chain_is_one_line_and_hints_follow() {
        let io = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error: Error = FileError::at("open", "/p/global/pg_control")(io).into();
        let failure = Failure::from(error.during("cannot back up stanza 'demo'"));
        assert_eq!(failure.status().0, 55);
        let report = failure.report(Some(Command::Backup));
        let first = "[055]: cannot back up stanza 'demo': cannot open '/p/global/pg_control': entity not found";
        assert_eq!(report.lines().next(), Some(first));

        let failure = Failure::from(Error::refused(Kind::LockAcquire, "backup of stanza 'demo' is running"));
        let report = failure.report(Some(Command::Backup));
        assert!(report.starts_with("[050]: backup of stanza 'demo' is running\nhint: "), "{report}");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::Output(closed).status(), Status::OK);
        assert_eq!(Failure::Output(std::io::Error::other("x")).status(), Status::FILE_WRITE);
    }
}
