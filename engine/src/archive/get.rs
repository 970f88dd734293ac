//! `archive-get` of one file out of whichever repository has it, and what `get_ahead` does with each of many.
//!
//! The server takes "not found" as the end of the archive and may then end a recovery. So [`GetOutcome::NotFound`] is
//! said only if every repository was asked and each said a clear no. If some did and others cannot be asked, that is
//! [`GetOutcome::Unsure`], for a caller that knows what the server makes of it; any other doubt is an error.
//!
//! Candidates are the archives of all history entries of the target's version and system identifier: repositories in
//! the order given, in each the newest entry first. A copy that cannot be read is a warning, and the next one is
//! tried. The first good copy is taken: it is authentic, and a name has one content for ever in each archive. Only where
//! several archives could hold the name and the first copy was not good are others looked at.

use super::{Configured, Failure, chain, joined, unusable};
use crate::pg::datadir::read_control;
use crate::repository::Repository;
use crate::store::Depth;
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::wal::ArchiveName;
use pgkeep_formats::repo::layout;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Permission bits of the file: the server's own for WAL.
const FILE_MODE: u32 = 0o600;

/// What to get, and where to put it.
#[derive(Debug, Clone)]
pub struct GetOptions {
    /// The stanza.
    pub stanza: String,
    /// Name of the file.
    pub name: String,
    /// Where to write it, absolute or relative to this process's directory.
    pub destination: PathBuf,
    /// The data directory, whose `pg_control` says which archives are its.
    pub pg_path: PathBuf,
    /// Leave the zeros at its end out of the file, as a hole: those of a segment that was switched before it was full. For
    /// servers whose disk may well be full later, which one that uses the segment again would not expect.
    pub sparse: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GetOutcome {
    /// The file is at its destination.
    Found {
        /// Number of the repository it came from.
        key: u32,
        /// The archive it came from.
        archive_id: String,
        /// Its bytes.
        size: u64,
    },
    /// The file was fetched ahead, and is at its destination now.
    Queued {
        /// Its bytes.
        size: u64,
    },
    /// It is certainly in no repository.
    NotFound,
    /// It is certainly not in these repositories, and others could not be asked.
    Unsure {
        /// Numbers of those that were asked.
        asked: Vec<u32>,
        /// What the failures of the others have in common, or `Command`.
        kind: Kind,
        /// What they said.
        message: String,
    },
}

/// Fetches one file. The destination is written under a temporary name beside it and renamed, so it is there whole or not
/// at all. It is not synced: the server syncs what it keeps, and asks again after a crash.
///
/// # Errors
/// `ParamInvalid` for a name that is none of a WAL or history file; `FileMissing`, `Format` or `FeatureNotSupported` if
/// `pg_control` cannot be read; `RepoInvalid` with a line for each repository if none can be used, or `Crypto` if that is
/// what keeps all of them shut; `FileWrite` and other
/// file errors for the destination; what the failures say if all that failed is of one kind, else `Command`, if the file
/// was not found and no repository is sure that it is absent.
pub fn get(repositories: &[Configured], options: &GetOptions) -> Result<GetOutcome> {
    let name = ArchiveName::parse(&options.name).map_err(|_| {
        Error::refused(Kind::ParamInvalid, format!("'{}' is no name of a WAL or history file", options.name))
    })?;
    let name = name.to_string();
    let control = read_control(&options.pg_path)?.fields;
    let Found { key, archive_id, content } = match find(repositories, &options.stanza, &name, &control)? {
        Sought::Found(found) => found,
        Sought::Absent => {
            tracing::info!("unable to find {name} in the archive");
            return Ok(GetOutcome::NotFound);
        }
        Sought::Unsure { asked, kind, message } => return Ok(GetOutcome::Unsure { asked, kind, message }),
    };
    write(&options.destination, &content, options.sparse)?;
    tracing::info!("found {name} in the repo{key}: {archive_id} archive");
    Ok(GetOutcome::Found { key, archive_id, size: content.len() as u64 })
}

/// A file out of a repository.
pub(super) struct Found {
    /// Number of the repository.
    pub(super) key: u32,
    /// The archive it is in.
    pub(super) archive_id: String,
    /// Its content, authenticated.
    pub(super) content: Vec<u8>,
}

/// What is known of a file.
pub(super) enum Sought {
    Found(Found),
    /// It is certainly in no repository.
    Absent,
    /// As [`GetOutcome::Unsure`].
    Unsure {
        asked: Vec<u32>,
        kind: Kind,
        message: String,
    },
}

/// Looks for a file. What was wrong on the way to a good copy is warned of.
///
/// # Errors
/// As [`get`], but for the name, `pg_control` and the destination.
pub(super) fn find(repositories: &[Configured], stanza: &str, name: &str, control: &ControlFile) -> Result<Sought> {
    let (mut failures, mut asked) = (Vec::new(), Vec::new());
    let mut usable = 0;
    for configured in repositories {
        let key = configured.key;
        let candidates = match candidates(configured, stanza, control) {
            Ok(candidates) => candidates,
            Err(e) => {
                failures.push(Failure::new(key, &e));
                continue;
            }
        };
        usable += 1;
        let mut absent = true;
        for (repository, archive_id) in candidates {
            match repository.wal_get(stanza, &archive_id, name) {
                Ok(Some(content)) => {
                    failures.iter().for_each(|f| {
                        tracing::warn!("repo{}: [{:?}Error] {}", f.key, f.kind, f.message);
                    });
                    return Ok(Sought::Found(Found { key, archive_id, content }));
                }
                Ok(None) => {}
                Err(e) => {
                    absent = false;
                    failures.push(Failure::new(key, &e));
                }
            }
        }
        if let (true, Ok(repository)) = (absent, &configured.repository) {
            match check_archive(repository, stanza) {
                Ok(()) => asked.push(key),
                Err(e) => failures.push(Failure::new(key, &e)),
            }
        }
    }
    if usable == 0 {
        return Err(unusable(&failures));
    }
    let Some(first) = failures.first() else { return Ok(Sought::Absent) };
    let same = failures.iter().all(|f| f.kind == first.kind);
    let kind = if same { first.kind } else { Kind::Command };
    let error = joined(kind, &format!("cannot get '{name}', and it is not certain that it is absent"), &failures);
    if asked.is_empty() { Err(error) } else { Ok(Sought::Unsure { asked, kind, message: error.to_string() }) }
}

/// The archives of a repository that may hold the cluster's files, newest first.
fn candidates<'r>(
    configured: &'r Configured,
    stanza: &str,
    control: &ControlFile,
) -> Result<Vec<(&'r Arc<Repository>, String)>> {
    let repository = match &configured.repository {
        Ok(repository) => repository,
        Err(e) => return Err(Error::refused(e.kind(), chain(e))),
    };
    let history = repository.stanza_history(stanza)?;
    if history.is_empty() {
        let text = format!("stanza '{stanza}' does not exist in {}", repository.store().describe());
        return Err(Error::refused(Kind::FileMissing, text));
    }
    let (version, system_identifier) = (control.version.major(), control.system_identifier);
    let own = history.iter().rev().filter(|h| (h.version, h.system_identifier) == (version, system_identifier));
    let own: Vec<_> = own.map(|h| (repository, h.archive_id())).collect();
    if own.is_empty() {
        return Err(Error::refused(
            Kind::ArchiveMismatch,
            format!(
                "stanza '{stanza}' in {} never had PostgreSQL version {version}, system-id {system_identifier}",
                repository.store().describe()
            ),
        ));
    }
    Ok(own)
}

/// Refuses an archive of which nothing is there although it must have held something: what is to be mounted there may not
/// be, and then nothing is certainly absent. A listing or two, and only for files that were not found.
fn check_archive(repository: &Repository, stanza: &str) -> Result<()> {
    let any = |prefix: &str| -> Result<bool> {
        let mut any = false;
        repository.store().list(prefix, Depth::Children, &mut |_| any = true)?;
        Ok(any)
    };
    let wal = layout::wal_of(stanza);
    if any(&wal)? || !any(&layout::backups(stanza))? {
        return Ok(());
    }
    // Backups of stopped servers need no WAL.
    let (backups, unreadable) = repository.backups_readable(stanza)?;
    if unreadable.is_empty() && backups.iter().all(|b| b.wal.is_none()) {
        return Ok(());
    }
    let text = format!("stanza '{stanza}' has backups in {}, but nothing is in '{wal}'", repository.store().describe());
    Err(Error::refused(Kind::PathMissing, text))
}

/// Writes a file under a temporary name beside it, and renames it.
pub(super) fn write(destination: &Path, content: &[u8], sparse: bool) -> Result<()> {
    let invalid = || {
        let text = format!("'{}' is no name of a file to write", destination.display());
        Error::refused(Kind::ParamInvalid, text)
    };
    let mut temporary = destination.file_name().ok_or_else(invalid)?.to_owned();
    // The process number keeps two requests for one destination apart.
    temporary.push(format!(".pgkeep-{}.tmp", std::process::id()));
    let temporary = destination.with_file_name(temporary);
    let written = write_whole(&temporary, content, sparse)
        .and_then(|()| std::fs::rename(&temporary, destination).map_err(FileError::at("rename", destination)));
    if let Err(e) = written {
        // Nothing more can be done about a leftover; what failed is what matters.
        let _ = std::fs::remove_file(&temporary);
        return Err(e.into());
    }
    Ok(())
}

fn write_whole(path: &Path, content: &[u8], sparse: bool) -> std::result::Result<(), FileError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(FILE_MODE);
    let mut file = options.open(path).map_err(FileError::at("write", path))?;
    let zeros = content.iter().rev().take_while(|byte| sparse && **byte == 0).count();
    let used = content.get(..content.len() - zeros).unwrap_or_default();
    file.write_all(used).and_then(|()| file.set_len(content.len() as u64)).map_err(FileError::at("write", path))
}
