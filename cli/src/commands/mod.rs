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
mod failures;
mod gc;
mod help;
mod info;
mod manifest;
mod mount;
mod programs;
mod repair;
mod repo_files;
mod repo_stats;
mod repo_sync;
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
use crate::option::{Command, Invocation, Settings};
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
#[must_use]
pub fn of(command: Command) -> Operation {
    match command {
        Command::Annotate => annotate::run,
        Command::ArchiveGet => archive_get::run,
        Command::ArchivePush => archive_push::run,
        Command::Backup => backup::run,
        Command::Check => check::run,
        Command::StanzaCreate => stanza::create,
        Command::StanzaDelete => stanza::delete,
        Command::StanzaUpgrade => stanza::upgrade,
        Command::Clone => clone::run,
        Command::Completion => completion::run,
        Command::Diff => diff::run,
        Command::Drill => drill::run,
        Command::Expire => expire::run,
        Command::Extract => extract::run,
        Command::Gc => gc::run,
        Command::Help => help::run,
        Command::Info => info::run,
        Command::Manifest => manifest::run,
        Command::Mount => mount::run,
        Command::Repair => repair::run,
        Command::RepoGet => repo_files::get,
        Command::RepoLs => repo_files::list,
        Command::RepoStats => repo_stats::run,
        Command::RepoSync => repo_sync::run,
        Command::Restore => restore::run,
        Command::Start => start::run,
        Command::Stop => stop::run,
        Command::Verify => verify::run,
        Command::Version => version::run,
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
