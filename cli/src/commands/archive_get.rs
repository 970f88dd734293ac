//! `archive-get`: what the server's `restore_command` runs. Status 1 only when the file is certainly absent.
//!
//! To the server any status up to 125 means that the archive ends here. When it is not known whether the file exists,
//! `--on-error` decides: `report` gives the error's own number, as pgBackRest does; `abort` gives one above 125, which makes
//! the server stop; `wait` tries until it is known. `restore` writes what the kind of recovery needs. Nothing may come
//! between the server and that status, so `run` asks [`aborts_recovery`] whatever went wrong, and wherever.
//!
//! A standby is told that a file is absent if some repository is sure of it and others cannot be asked: it does not end its
//! recovery for that, but follows its primary, and asks again. If it is promoted meanwhile it goes by what that repository has,
//! as all that was acknowledged is in each.
//!
//! The server of a clone is looked at first, see `archive_get/of_clone.rs`. With `archive-async` segments mostly lie in the
//! spool when they are asked for, see `archive_get/ahead.rs`; whatever goes wrong there, the repositories are asked as without.

mod ahead;
mod of_clone;

use super::{Context, server_path};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, Opt, Role};
use crate::repos;
use pgkeep_engine::archive::{self, GetOptions, GetOutcome};
use pgkeep_engine::{Error, FileError, Kind};
use std::ffi::OsString;
use std::time::{Duration, Instant};

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.role() == Role::Async {
        return ahead::run(context);
    }
    let name = settings.param(0).to_string_lossy().into_owned();
    let pg_path = if settings.flag(Opt::ForClone) {
        // The server runs this in its data directory, and a clone may be mounted elsewhere since its command was written.
        std::env::current_dir().map_err(|e| Failure::file(FileError::at("open", ".")(e)))?
    } else {
        repos::pgdata(settings)?
    };
    let destination = server_path(settings.param(1), Some(&pg_path))?;
    let stanza = settings.stanza_name().to_owned();
    let options = GetOptions { stanza, name, destination, pg_path, sparse: settings.flag(Opt::ForClone) };
    if options.name.is_empty() {
        return Err(Error::refused(Kind::ParamRequired, "a WAL file name is required").into());
    }
    archive::check_label(&options.pg_path)?;
    if settings.flag(Opt::ForClone)
        && let Err(e) = of_clone::check(&options.pg_path)
    {
        // Whatever --on-error says: the server must not go on without the archive either.
        tracing::error!("{}", Failure::from(e).report(Some(Command::ArchiveGet)));
        return Ok(Status::ABORT_RECOVERY);
    }
    match get(context, &options)? {
        // Either was logged.
        GetOutcome::Found { .. } | GetOutcome::Queued { .. } => Ok(Status::OK),
        GetOutcome::NotFound => Ok(Status::ABSENT),
        GetOutcome::Unsure { asked, message, .. } => {
            let asked: Vec<_> = asked.iter().map(|key| format!("repo{key}")).collect();
            tracing::warn!(
                "a standby goes on without '{}', which is not in {}: {message}",
                options.name,
                asked.join(", ")
            );
            Ok(Status::ABSENT)
        }
    }
}

/// Whether the server that asks is a standby, as it is when this runs in its data directory.
fn is_standby(options: &GetOptions) -> bool {
    options.pg_path.join("standby.signal").exists()
}

/// True for the arguments of an `archive-get` whose failures shall stop the server. Looks at the words alone: the options
/// may be what cannot be read. That one of them could be another option's value does no harm, since a failed command is
/// then only told by another number.
pub(crate) fn aborts_recovery(args: &[OsString]) -> bool {
    let says = |words: &[OsString]| match words {
        [one, ..] if one == "--on-error=abort" => true,
        [name, value, ..] => name == "--on-error" && value == "abort",
        _ => false,
    };
    args.iter().any(|a| a == "archive-get") && (0..args.len()).any(|n| args.get(n..).is_some_and(says))
}

/// First and longest pause between two tries with `--on-error=wait`.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

fn get(context: &Context<'_>, options: &GetOptions) -> Result<GetOutcome, Failure> {
    let mut pause = PAUSE.0;
    loop {
        // Opened anew each time: what failed may be the opening.
        let outcome = ahead::get(context, options).and_then(|ahead| match ahead {
            Some(outcome) => Ok(outcome),
            None => Ok(archive::get(&repos::configured(context.settings)?, options)?),
        });
        let outcome = match outcome {
            Ok(GetOutcome::Unsure { kind, message, .. }) if !is_standby(options) => {
                Err(Error::refused(kind, message).into())
            }
            other => other,
        };
        match outcome {
            Err(e) if context.settings.text(Opt::OnError) == Some("wait") => {
                tracing::warn!(
                    "cannot tell whether {} is in the archive, trying again: {}",
                    options.name,
                    e.report(Some(Command::ArchiveGet))
                );
                let until = Instant::now() + pause;
                while Instant::now() < until {
                    context.cancel.check()?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                pause = (pause * 2).min(PAUSE.1);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abort_is_known_by_its_words() {
        let asks = |line: &str| aborts_recovery(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(asks("--stanza=x --on-error=abort archive-get a b"));
        assert!(asks("archive-get --bad --on-error abort a b"));
        assert!(!asks("--stanza=x archive-get a b"));
        assert!(!asks("--on-error=wait archive-get a b"));
        assert!(!asks("--on-error=abort restore"));
        assert!(!asks("archive-get abort --on-error"));
    }
}
