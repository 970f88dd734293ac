//! What went wrong in some of several repositories: it keeps none of the others from its turn.

use crate::error::Failure;
use crate::exit::Status;
use crate::option::Command;
use pgkeep_engine::{Error, Kind};

/// Failures of repositories, in the order they came.
#[derive(Debug)]
pub(super) struct Failures {
    all: Vec<(u32, Failure)>,
    /// The command works on one repository, which goes without saying.
    is_one: bool,
}

impl Failures {
    /// None yet, of a command on `repositories` of them.
    pub(super) fn among(repositories: usize) -> Self {
        Self { all: Vec::new(), is_one: repositories == 1 }
    }

    /// Keeps what `work` on a repository failed with, and gives what it came to otherwise.
    ///
    /// # Errors
    /// An interruption: it is meant for all.
    pub(super) fn take<T>(&mut self, key: impl Into<u32>, work: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match work {
            Ok(done) => Ok(Some(done)),
            Err(Failure::Engine(e)) if e.kind() == Kind::Interrupted => Err(e.into()),
            Err(e) => {
                let key = key.into();
                // Of a repository that is looked at more than once the first thing is told.
                if !self.all.iter().any(|(known, _)| *known == key) {
                    self.all.push((key, e));
                }
                Ok(None)
            }
        }
    }

    /// Whether something is known of this repository.
    pub(super) fn has(&self, key: impl Into<u32>) -> bool {
        let key = key.into();
        self.all.iter().any(|(known, _)| *known == key)
    }

    /// Whether nothing has failed.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Tells each, a line for a repository.
    pub(super) fn tell(&self, command: Command) {
        for (key, failure) in &self.all {
            tracing::error!("repo{key}: {}", failure.report(Some(command)));
        }
    }

    /// Forgets repositories that lack the backup asked for: one need not be in all of them.
    pub(super) fn forgive_lack(&mut self) {
        self.all.retain(|(_, failure)| failure.status() != Status::of(Kind::BackupSetInvalid));
    }

    /// The end: one failure is the command's own, of several each is told.
    ///
    /// # Errors
    /// The status that all failures have, or 104 if they differ.
    pub(super) fn end(mut self, command: Command) -> Result<(), Failure> {
        if self.all.len() < 2 {
            let is_one = self.is_one;
            let named = |(key, failure)| if is_one { failure } else { named(key, failure) };
            return self.all.pop().map_or(Ok(()), |failed| Err(named(failed)));
        }
        self.tell(command);
        let text = format!("{} failed in {} repositories", command.name(), self.all.len());
        let kind = |f: &Failure| match f {
            Failure::Engine(e) => e.kind(),
            _ => Kind::Command,
        };
        let first = self.all.first().map_or(Kind::Command, |(_, f)| kind(f));
        let all_alike = self.all.iter().all(|(_, f)| kind(f) == first);
        Err(Error::refused(if all_alike { first } else { Kind::Command }, text).into())
    }
}

/// The failure, with its repository if it does not name that itself.
fn named(key: u32, failure: Failure) -> Failure {
    let name = format!("repo{key}");
    match failure {
        Failure::Engine(e) if !names(&e.chain(), &name) => e.during(name).into(),
        other => other,
    }
}

/// Whether a text has this name in it, and not only a longer one: `repo1` is not in `repo10`.
fn names(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (text.get(..at).unwrap_or_default(), text.get(at + name.len()..).unwrap_or_default());
        !before.ends_with(|c: char| c.is_alphanumeric()) && !after.starts_with(|c: char| c.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(kinds: &[Kind]) -> Failures {
        let mut all = Failures::among(2);
        for (number, kind) in kinds.iter().enumerate() {
            let failed: Result<(), _> = Err(Error::refused(*kind, "no").into());
            assert_eq!(all.take(number as u32, failed).unwrap(), None);
        }
        all
    }

    #[test]
    fn a_name_is_not_found_in_a_longer_one() {
        for (text, is_named) in [
            ("cannot open repo1: no", true),
            ("option 'repo1-path'", true),
            ("repo1", true),
            ("repo10: no", false),
            ("myrepo1", false),
        ] {
            assert_eq!(names(text, "repo1"), is_named, "{text}");
        }
        let of_ten = Error::refused(Kind::Checksum, "repo10 differs");
        assert!(named(1, of_ten.into()).report(None).contains("repo1: repo10 differs"));
    }

    #[test]
    fn the_status_that_all_have_is_the_commands_own_and_different_ones_are_104() {
        assert_eq!(failures(&[]).take(1u32, Ok(5)).unwrap(), Some(5));
        assert!(failures(&[]).end(Command::Check).is_ok());
        let status = |kinds: &[Kind]| failures(kinds).end(Command::Check).unwrap_err().status();
        assert_eq!(status(&[Kind::Checksum]), Status::of(Kind::Checksum));
        assert_eq!(status(&[Kind::Checksum, Kind::LockAcquire]), Status::of(Kind::Command));
        assert_eq!(status(&[Kind::LockAcquire, Kind::LockAcquire]), Status::of(Kind::LockAcquire));
        assert_eq!(status(&[Kind::ArchiveTimeout, Kind::ArchiveTimeout]), Status::of(Kind::ArchiveTimeout));
        let mut twice = failures(&[Kind::Checksum]);
        assert_eq!(twice.take(0u32, Err::<(), _>(Error::refused(Kind::Checksum, "no").into())).unwrap(), None);
        assert!(!twice.end(Command::Check).unwrap_err().report(None).contains("repositories"), "one failed twice");
        let one = failures(&[Kind::Checksum]).end(Command::Check).unwrap_err();
        assert!(one.report(None).contains("repo0: no"), "{}", one.report(None));
        let mut alone = Failures::among(1);
        assert_eq!(alone.take(1u32, Err::<(), _>(Error::refused(Kind::Checksum, "no").into())).unwrap(), None);
        assert!(!alone.end(Command::Check).unwrap_err().report(None).contains("repo"));
        let interrupted: Result<(), Failure> = Err(Error::refused(Kind::Interrupted, "stop").into());
        assert!(failures(&[Kind::Checksum]).take(2u32, interrupted).is_err(), "nothing goes on after an interruption");
    }
}
