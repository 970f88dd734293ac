//! `archive-push` of one file into every repository, and what `push_ahead` does with each of many.
//!
//! Order of work: stop file; name; queue limit; `pg_control` and every repository's stanza, while the file is read,
//! checked and compressed; one conditional put a repository, side by side; success only if all have it durable.
//!
//! The server repeats the command until it succeeds and removes the file only then. So a failure loses nothing, and what
//! must never happen is success without every repository holding exactly this content.
//!
//! A file goes to the archive of the stanza's newest history entry. All kinds of files have one rule: same content is
//! success, other content is refused.

use super::{Configured, Failure, joined, ready, source};
use crate::lock;
use crate::pg::datadir::read_control;
use crate::repository::Repository;
use crate::repository::wal::{WalFile, WalPut};
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::wal::{ArchiveName, WalHeader, WalSegmentSize};
use pgkeep_formats::repo::records::StanzaHistory;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

const PANICKED: &str = "a thread of archive-push panicked";

/// What to push, and how.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// The stanza.
    pub stanza: String,
    /// The file, as an absolute path or relative to this process's directory.
    pub source: PathBuf,
    /// The data directory, whose `pg_control` must agree with the stanza. Without it only WAL headers are compared.
    pub pg_path: Option<PathBuf>,
    /// zstd's level.
    pub level: i32,
    /// Whether the header of a WAL file is checked: `archive-header-check`.
    pub header_check: bool,
    /// Whether it is worth a warning that a file was archived before: `archive-mode-check`.
    pub mode_check: bool,
    /// Bytes of WAL that may wait to be archived before files are dropped: `archive-push-queue-max`.
    pub queue_max: Option<u64>,
    /// Where stop files are.
    pub lock_path: PathBuf,
}

/// What came of a push that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushReport {
    /// Every repository holds the file.
    Archived(Vec<Pushed>),
    /// The file was given up, because too much WAL waits. It is lost for recovery.
    Dropped {
        /// Bytes that wait.
        queued: u64,
    },
}

/// What came of it in one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Number of the repository.
    pub key: u32,
    /// The archive the file went to.
    pub archive_id: String,
    /// False if it held the file already.
    pub created: bool,
}

/// Stores one file in every repository, durably.
///
/// Every repository is tried, whatever becomes of the others. Safe to repeat, also after a crash at any moment, and to
/// run on several hosts at once.
///
/// # Errors
/// `Stopped`; `ParamInvalid` for a name that is none of a WAL or history file; `RepoInvalid` with a line for each
/// repository if none can be used; `ArchiveMismatch` if the WAL's header is another cluster's; `Format` or
/// `VersionNotSupported` if it is no WAL; `FileInvalid` if the file has a wrong size, changes, or holds another segment
/// than its name says; `ArchiveDuplicate` if all that failed was that other content is archived under the name;
/// otherwise `Command` with a line for each repository that failed.
pub fn push(repositories: &[Configured], options: &PushOptions) -> Result<PushReport> {
    lock::check_stopped(&options.lock_path, Some(&options.stanza))?;
    let name = source::name_of(&options.source)?;
    let control = options.pg_path.as_deref().map(|path| read_control(path).map(|c| c.fields)).transpose()?;
    if let Some(queued) = overdue(options, control.as_ref())? {
        tracing::error!("{}", dropped(&name.to_string(), options.queue_max));
        return Ok(PushReport::Dropped { queued });
    }

    let mut content = Vec::new();
    let (targets, file) = thread::scope(|scope| {
        let file = scope.spawn(|| prepare(&mut content, &name, options, control.as_ref()));
        let targets = Targets::of(repositories, &options.stanza, control.as_ref());
        let file = file.join().unwrap_or_else(|_| Err(Error::refused(Kind::Assert, PANICKED)));
        (targets, file)
    });
    let targets = targets?;
    let (file, header) = file?;
    targets.check_header(&name, header.as_ref(), control.as_ref())?;
    let pushed = targets.deliver(&options.stanza, &name, &file)?;
    for Pushed { key, .. } in pushed.iter().filter(|p| !p.created && options.mode_check) {
        tracing::warn!("{}", exists_already(&name, *key));
    }
    tracing::info!("pushed WAL file '{name}' to the archive");
    Ok(PushReport::Archived(pushed))
}

/// What is said of a file that a repository had before.
pub(super) fn exists_already(name: &ArchiveName, key: u32) -> String {
    format!("WAL file '{name}' already exists in the repo{key} archive with the same content")
}

/// What is said of a file that is given up.
pub(super) fn dropped(name: &str, queue_max: Option<u64>) -> String {
    format!(
        "dropped WAL file '{name}' because archive queue exceeded {} bytes: recovery past it needs a new backup",
        queue_max.unwrap_or_default()
    )
}

/// The repositories that can take files, and why the others cannot.
pub(super) struct Targets {
    usable: Vec<Target>,
    failures: Vec<Failure>,
}

impl Targets {
    /// Looks at each repository, side by side.
    ///
    /// # Errors
    /// `RepoInvalid` with a line for each repository if none can be used.
    pub(super) fn of(repositories: &[Configured], stanza: &str, control: Option<&ControlFile>) -> Result<Self> {
        let targets: Vec<_> = thread::scope(|scope| {
            let checks: Vec<_> =
                repositories.iter().map(|r| (r.key, scope.spawn(|| check_repository(r, stanza, control)))).collect();
            let joined = checks.into_iter().map(|(key, check)| check.join().unwrap_or_else(|_| Err(panicked(key))));
            joined.collect()
        });
        let (mut usable, mut failures) = (Vec::new(), Vec::new());
        for target in targets {
            match target {
                Ok(target) => usable.push(target),
                Err(failure) => failures.push(failure),
            }
        }
        if usable.is_empty() {
            return Err(joined(Kind::RepoInvalid, "unable to find a valid repository", &failures));
        }
        Ok(Self { usable, failures })
    }

    /// Stores a file in all of them, durably. Each is tried, whatever becomes of the others.
    ///
    /// # Errors
    /// `ArchiveDuplicate` if all that failed was that other content is archived under the name; otherwise `Command` with a
    /// line for each repository that failed, now or when it was looked at.
    pub(super) fn deliver(&self, stanza: &str, name: &ArchiveName, file: &WalFile<'_>) -> Result<Vec<Pushed>> {
        let text = name.to_string();
        let (mut pushed, mut failures) = (Vec::new(), self.failures.clone());
        for (target, result) in put_all(&self.usable, stanza, &text, file) {
            let key = target.repository.key();
            match result {
                Ok(put @ (WalPut::Created | WalPut::SameContent)) => {
                    let created = put == WalPut::Created;
                    pushed.push(Pushed { key, archive_id: target.entry.archive_id(), created });
                }
                Ok(WalPut::Different) => failures.push(Failure {
                    key,
                    kind: Kind::ArchiveDuplicate,
                    message: format!(
                        "WAL file '{text}' already exists in the repo{key} archive with different content"
                    ),
                }),
                Err(e) => failures.push(Failure::new(key, &e)),
            }
        }
        if failures.is_empty() {
            return Ok(pushed);
        }
        failures.sort_by_key(|f| f.key);
        let all_duplicate = failures.iter().all(|f| f.kind == Kind::ArchiveDuplicate);
        let kind = if all_duplicate { Kind::ArchiveDuplicate } else { Kind::Command };
        Err(joined(kind, &format!("archive-push of '{text}' failed"), &failures))
    }

    /// Refuses a file whose header is of another cluster than they are.
    ///
    /// # Errors
    /// `ArchiveMismatch`.
    pub(super) fn check_header(
        &self,
        name: &ArchiveName,
        header: Option<&WalHeader>,
        control: Option<&ControlFile>,
    ) -> Result<()> {
        check_header(name, header, control, &self.usable)
    }
}

/// A repository that can take the file, and the entry of the stanza's history it belongs to.
struct Target {
    repository: Arc<Repository>,
    entry: StanzaHistory,
}

fn check_repository(
    configured: &Configured,
    stanza: &str,
    control: Option<&ControlFile>,
) -> std::result::Result<Target, Failure> {
    let key = configured.key;
    let repository = configured.repository.as_ref().map_err(|e| Failure::new(key, e))?;
    let check = || {
        repository.check_writable()?;
        let entry = repository.stanza_history(stanza)?.pop().ok_or_else(|| {
            let place = repository.store().describe();
            Error::refused(Kind::FileMissing, format!("stanza '{stanza}' does not exist in {place}"))
        })?;
        match control {
            Some(c) if !is_of(c.version.major(), c.system_identifier, &entry) => Err(Error::refused(
                Kind::ArchiveMismatch,
                format!(
                    "PostgreSQL version {}, system-id {} do not match repo{key} stanza version {}, system-id {}",
                    c.version, c.system_identifier, entry.version, entry.system_identifier
                ),
            )),
            _ => Ok(Target { repository: Arc::clone(repository), entry }),
        }
    };
    check().map_err(|e| Failure::new(key, &e))
}

fn is_of(version: u32, system_identifier: u64, entry: &StanzaHistory) -> bool {
    (version, system_identifier) == (entry.version, entry.system_identifier)
}

/// Reads, checks and compresses the file.
fn prepare<'c>(
    content: &'c mut Vec<u8>,
    name: &ArchiveName,
    options: &PushOptions,
    control: Option<&ControlFile>,
) -> Result<(WalFile<'c>, Option<WalHeader>)> {
    *content = source::read(&options.source, name, control)?.0;
    let header = if options.header_check { source::header(&options.source, name, content)? } else { None };
    Ok((WalFile::encode(content, options.level)?, header))
}

/// A header must be of the cluster that every usable repository's stanza is of.
fn check_header(
    name: &ArchiveName,
    header: Option<&WalHeader>,
    control: Option<&ControlFile>,
    usable: &[Target],
) -> Result<()> {
    let Some(h) = header else { return Ok(()) };
    let expected = usable.iter().map(|t| (t.entry.version, t.entry.system_identifier));
    let expected = expected.chain(control.map(|c| (c.version.major(), c.system_identifier)));
    for (version, system_identifier) in expected {
        if (h.major(), h.system_identifier) != (version, system_identifier) {
            return Err(Error::refused(
                Kind::ArchiveMismatch,
                format!(
                    "WAL file '{name}' version {}, system-id {} do not match stanza version {version}, system-id \
                     {system_identifier}",
                    h.version, h.system_identifier
                ),
            ));
        }
    }
    Ok(())
}

/// Puts the file into all targets side by side; the last one on this thread.
fn put_all<'t>(
    targets: &'t [Target],
    stanza: &str,
    name: &str,
    file: &WalFile<'_>,
) -> Vec<(&'t Target, Result<WalPut>)> {
    let put = |t: &Target| t.repository.wal_put(stanza, &t.entry.archive_id(), name, file);
    let Some((last, others)) = targets.split_last() else { return Vec::new() };
    thread::scope(|scope| {
        let running: Vec<_> = others.iter().map(|t| (t, scope.spawn(|| put(t)))).collect();
        let own = put(last);
        let mut out: Vec<_> = running
            .into_iter()
            .map(|(t, r)| (t, r.join().unwrap_or_else(|_| Err(Error::refused(Kind::Assert, PANICKED)))))
            .collect();
        out.push((last, own));
        out
    })
}

fn panicked(key: u32) -> Failure {
    Failure { key, kind: Kind::Assert, message: PANICKED.into() }
}

/// Bytes of WAL that wait to be archived, if they are more than allowed: files marked ready, each counted as a whole
/// segment.
fn overdue(options: &PushOptions, control: Option<&ControlFile>) -> Result<Option<u64>> {
    let Some(max) = options.queue_max else { return Ok(None) };
    let size = control.map_or(WalSegmentSize::DEFAULT, |c| c.wal_segment_size).bytes();
    let wal = options.source.parent().unwrap_or(Path::new("."));
    let queued = (ready::list(wal)?.len() as u64).saturating_mul(size);
    Ok((queued > max).then_some(queued))
}
