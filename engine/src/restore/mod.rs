//! Restoring a backup into a data directory.
//!
//! [`run`] reads top to bottom: choose the backup (`select`), decide what to do (`plan`), take pg_control away and put a
//! marker there, remove what the backup does not have, make directories and links, bring content in (`window`, `delta`,
//! `transfer`), write recovery settings, make everything durable, and put pg_control in place last (`finish`).
//!
//! *Crash.* From the first change to the last there is no pg_control, so no server starts on what is half restored. The
//! marker `pgkeep.restore` tells the next restore that it may go on: it then compares every byte, whatever its options.
//!
//! *Trust.* What lies in the target is never taken for a path: see `place`. All bytes written were authenticated and
//! hash to the name the manifest has for them.
//!
//! *Threads and memory.* `process_max` threads decode and write, up to 8 fetch; under 200 MiB in all, whatever the size
//! of the cluster.

mod databases;
mod delta;
mod finish;
mod owners;
mod place;
mod plan;
pub mod recovery;
mod run;
mod select;
#[cfg(any(test, feature = "test-support"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod transfer;
mod window;
mod workers;

pub use databases::DatabaseOptions;
pub use plan::{LinkKind, MARKER, Mode, Plan, PlannedDirectory, PlannedLink, Removal};
pub use run::{Choice, choose_backup, find_backup, run};

use crate::clock::Clock;
use crate::observe::{Cancel, Observer};
use jiff::tz::TimeZone;
use recovery::RecoveryOptions;
use std::path::PathBuf;

/// Where links and tablespaces go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MapOptions {
    /// `tablespace-map`: name or OID, and directory.
    pub tablespace: Vec<(String, PathBuf)>,
    /// `tablespace-map-all`: tablespaces go to directories of their names in this one.
    pub tablespace_all: Option<PathBuf>,
    /// `link-map`: path in the data directory, and destination.
    pub link: Vec<(String, PathBuf)>,
    /// `link-all`: all links are made again. Without it what they led to is put in their places.
    pub link_all: bool,
}

/// What to restore, and how.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The stanza.
    pub stanza: String,
    /// The data directory, absolute.
    pub target: PathBuf,
    /// `set`: a backup label; `None` or `latest` chooses.
    pub set: Option<String>,
    /// `delta`.
    pub delta: bool,
    /// `force`.
    pub force: bool,
    /// Only plan: nothing is written.
    pub dry_run: bool,
    /// Threads that decode and write.
    pub process_max: usize,
    /// Links and tablespaces.
    pub maps: MapOptions,
    /// Which databases are restored.
    pub databases: DatabaseOptions,
    /// Recovery.
    pub recovery: RecoveryOptions,
    /// Value of `restore_command`; see [`recovery::restore_command`].
    pub restore_command: String,
    /// Directory of lock files; `None` if the caller keeps restores of the stanza apart.
    pub lock_path: Option<PathBuf>,
    /// Name of this run in lock files.
    pub exec_id: String,
    /// Zone of times without one, and of times in comments and messages.
    pub time_zone: TimeZone,
}

impl RestoreOptions {
    /// A restore of the newest backup into an empty directory, with the rest as the command's defaults.
    #[must_use]
    pub fn new(stanza: &str, target: impl Into<PathBuf>) -> Self {
        Self {
            stanza: stanza.to_owned(),
            target: target.into(),
            set: None,
            delta: false,
            force: false,
            dry_run: false,
            process_max: 1,
            maps: MapOptions::default(),
            databases: DatabaseOptions::default(),
            recovery: RecoveryOptions::of(recovery::RecoveryType::Default),
            restore_command: String::new(),
            lock_path: None,
            exec_id: String::new(),
            time_zone: TimeZone::UTC,
        }
    }
}

/// What a restore runs in.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// Is told of progress.
    pub observer: &'a dyn Observer,
    /// May stop it; what was done can be taken up again.
    pub cancel: &'a Cancel,
    /// Tells the time.
    pub clock: &'a dyn Clock,
}

/// What a restore did. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    /// Label of the backup.
    pub label: String,
    /// Number of its repository in the configuration.
    pub repository: u32,
    /// What was decided; all there is after a dry run.
    pub plan: Plan,
    /// Bytes of all files whose content is restored.
    pub bytes: u64,
    /// Bytes written into files.
    pub written: u64,
    /// Bytes fetched from the repository, without manifest and index.
    pub fetched: u64,
    /// Files that were right already.
    pub files_kept: u64,
    /// Files of which something was written.
    pub files_written: u64,
    /// Files, directories and links that were removed, each with all that was in it.
    pub removed: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}
