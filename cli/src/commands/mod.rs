//! The commands: one file each, which reads options, calls one engine operation and renders its result.

mod annotate;
mod archive_get;
mod archive_push;
mod backup;
mod check;
pub(crate) mod clone;
mod completion;
mod control;
mod diff;
mod drill;
mod expire;
mod extract;
mod help;
mod info;
mod mount;
mod programs;
mod repair;
mod repo_files;
mod repo_stats;
mod restore;
mod scratch;
mod stanza;
mod start;
mod stop;
mod verify;
mod version;

pub(crate) use archive_get::aborts_recovery;
pub(crate) use expire::why_all;

use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, Invocation, OptionError, Settings};
use pgkeep_engine::observe::{Cancel, Observer};
use pgkeep_engine::{Error, Kind};
use std::path::{Path, PathBuf};

/// What a command is given.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Its options.
    pub settings: &'a Settings,
    /// What they were read from, for those that resolve options anew for another stanza or command.
    pub invocation: &'a Invocation,
    /// Set by the first signal.
    pub cancel: &'a Cancel,
    /// Shows progress if somebody watches.
    pub observer: &'a dyn Observer,
}

/// A command's code. Answers with the exit status; anything that went wrong is logged further up.
pub type Operation = fn(&Context<'_>) -> Result<Status, Failure>;

/// The code of a command.
///
/// # Errors
/// Status 48 for a command that this version does not have.
pub fn of(command: Command) -> Result<Operation, Failure> {
    match command {
        Command::Annotate => Ok(annotate::run),
        Command::ArchiveGet => Ok(archive_get::run),
        Command::ArchivePush => Ok(archive_push::run),
        Command::Backup => Ok(backup::run),
        Command::Check => Ok(check::run),
        Command::StanzaCreate => Ok(stanza::create),
        Command::StanzaDelete => Ok(stanza::delete),
        Command::StanzaUpgrade => Ok(stanza::upgrade),
        Command::Clone => Ok(clone::run),
        Command::Completion => Ok(completion::run),
        Command::Diff => Ok(diff::run),
        Command::Drill => Ok(drill::run),
        Command::Expire => Ok(expire::run),
        Command::Extract => Ok(extract::run),
        Command::Help => Ok(help::run),
        Command::Info => Ok(info::run),
        Command::Mount => Ok(mount::run),
        Command::Repair => Ok(repair::run),
        Command::RepoGet => Ok(repo_files::get),
        Command::RepoLs => Ok(repo_files::list),
        Command::RepoStats => Ok(repo_stats::run),
        Command::Restore => Ok(restore::run),
        Command::Start => Ok(start::run),
        Command::Stop => Ok(stop::run),
        Command::Verify => Ok(verify::run),
        Command::Version => Ok(version::run),
        other => {
            let message = format!("command '{}' does not exist in this version", other.name());
            Err(OptionError::new(Status::COMMAND_INVALID, message).into())
        }
    }
}

/// A path as the server gives it to its commands: `%p` is relative to its data directory, which is then also the working
/// directory. Anywhere else it would name a file of another server.
fn server_path(given: &Path, pg_path: Option<&Path>) -> Result<PathBuf, Failure> {
    if given.is_absolute() {
        return Ok(given.to_path_buf());
    }
    let Some(pg_path) = pg_path else {
        let text = format!("option pg1-path is required for the relative path '{}'", given.display());
        return Err(Error::refused(Kind::OptionRequired, text).into());
    };
    let here = std::env::current_dir().ok();
    let same = |a: &Path, b: &Path| a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if !here.as_deref().is_some_and(|here| same(here, pg_path)) {
        let here = here.map_or_else(|| "unknown".to_owned(), |h| h.display().to_string());
        let text = format!("the working directory is '{here}' but option pg1-path is '{}'", pg_path.display());
        return Err(Error::refused(Kind::OptionInvalidValue, text).into());
    }
    Ok(pg_path.join(given))
}
