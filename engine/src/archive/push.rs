//! `archive-push` of one file into every repository, and what `push_ahead` does with each of many.
//!
//! Order of work: stop file; name; queue limit; `pg_control` and every repository's stanza, while the file is read,
//! checked and compressed; one conditional put a repository, side by side; success only if all have it durable, or if too
//! much WAL waits.
//!
//! The server repeats the command until it succeeds and removes the file only then. So a failure loses nothing, and what
//! must never happen is success without every repository holding exactly this content.
//!
//! A file goes to the archive of the stanza's newest history entry. All kinds of files have one rule: same content is
//! success, other content is refused.

use super::spool::{Binding, RepositoryIdentity, Spool};
use super::targets::{Delivered, PANICKED, Pushed, Targets};
use super::{Configured, ready, source};
use crate::lock;
use crate::pg::datadir::read_control;
use crate::repository::wal::WalFile;
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::wal::{ArchiveName, WalHeader, WalSegmentSize};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread;

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
    /// What processes in the background have said of files that wait, if there may be such processes.
    pub words: Option<Words>,
}

/// What was said of files, and the repositories it must be about.
#[derive(Debug, Clone)]
pub struct Words {
    /// Where it was said.
    pub spool: Spool,
    /// What tells each repository from others, in their order.
    pub repositories: Vec<RepositoryIdentity>,
}

/// What came of a push that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushReport {
    /// Every repository holds the file.
    Archived(Vec<Pushed>),
    /// The file was given up, because too much WAL waits. It is lost for recovery from repositories that lack it.
    Dropped {
        /// Bytes that wait.
        queued: u64,
        /// Numbers of the repositories that hold it all the same.
        held: BTreeSet<u32>,
    },
}

/// Stores one file in every repository, durably.
///
/// Every repository is tried, whatever becomes of the others. Safe to repeat, also after a crash at any moment, and to
/// run on several hosts at once.
///
/// # Errors
/// `Stopped`; `ParamInvalid` for a name that is none of a WAL or history file; `RepoInvalid` with a line for each
/// repository if none can be used, or `Crypto` if that is what keeps all of them shut; `ArchiveMismatch` if the WAL's header is another cluster's; `Format` or
/// `VersionNotSupported` if it is no WAL; `FileInvalid` if the file has a wrong size, changes, or holds another segment
/// than its name says; `ArchiveDuplicate` if all that failed was that other content is archived under the name;
/// otherwise `Command` with a line for each repository that failed.
pub fn push(repositories: &[Configured], options: &PushOptions) -> Result<PushReport> {
    lock::check_stopped(&options.lock_path, Some(&options.stanza))?;
    let name = source::name_of(&options.source)?;
    let control = options.pg_path.as_deref().map(|path| read_control(path).map(|c| c.fields)).transpose()?;
    let queued = overdue(options, control.as_ref())?;
    let tried = deliver(repositories, options, &name, control.as_ref());
    let held = tried.as_ref().map(Delivered::held).unwrap_or_default();
    match (tried.and_then(|delivered| delivered.everywhere(&name.to_string())), queued) {
        (Ok(pushed), _) => {
            for Pushed { key, .. } in pushed.iter().filter(|p| !p.created && options.mode_check) {
                tracing::warn!("{}", exists_already(&name, *key));
            }
            tracing::info!("pushed WAL file '{name}' to the archive");
            Ok(PushReport::Archived(pushed))
        }
        (Err(e), Some(queued)) if may_be_dropped(&name) => {
            tracing::warn!("{}", e.chain());
            let all = repositories.iter().map(|r| r.key).collect();
            tracing::error!("{}", dropped(&name.to_string(), options.queue_max, &held, &all));
            Ok(PushReport::Dropped { queued, held })
        }
        (Err(e), _) => Err(e),
    }
}

/// Reads and checks the file while each repository is looked at, and stores it in all that work.
fn deliver(
    repositories: &[Configured],
    options: &PushOptions,
    name: &ArchiveName,
    control: Option<&ControlFile>,
) -> Result<Delivered> {
    let mut content = Vec::new();
    let (targets, file) = thread::scope(|scope| {
        let file = scope.spawn(|| prepare(&mut content, name, options, control));
        let targets = Targets::of(repositories, &options.stanza, control);
        let file = file.join().unwrap_or_else(|_| Err(Error::refused(Kind::Assert, PANICKED)));
        (targets, file)
    });
    let targets = targets?;
    let (file, header) = file?;
    targets.check_header(name, header.as_ref(), control)?;
    Ok(targets.deliver(&options.stanza, name, &file, &BTreeSet::new()))
}

/// Whether a file may be given up when too much waits. Without its history a timeline is lost whole, and histories are few
/// and small: they wait.
pub(super) fn may_be_dropped(name: &ArchiveName) -> bool {
    !matches!(name, ArchiveName::History(_))
}

/// What is said of a file that a repository had before.
pub(super) fn exists_already(name: &ArchiveName, key: u32) -> String {
    format!("WAL file '{name}' already exists in the repo{key} archive with the same content")
}

/// What is said of a file that is given up, of which these of all repositories hold a copy.
pub(super) fn dropped(name: &str, queue_max: Option<u64>, held: &BTreeSet<u32>, all: &BTreeSet<u32>) -> String {
    let list = |keys: &mut dyn Iterator<Item = &u32>| {
        let keys: Vec<_> = keys.map(|key| format!("repo{key}")).collect();
        keys.join(", ")
    };
    let mut text =
        format!("dropped WAL file '{name}' because archive queue exceeded {} bytes: ", queue_max.unwrap_or_default());
    // Writing to a string cannot fail.
    let _ = if held.is_empty() {
        write!(text, "it is in no repository, recovery past it needs a new backup")
    } else {
        let lack = list(&mut all.difference(held));
        write!(text, "it is in {}, recovery past it from {lack} needs a new backup", list(&mut held.iter()))
    };
    text
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

/// Bytes of WAL that wait to be archived, if they are more than allowed: files marked ready, each counted as a whole
/// segment, but for those that are known to be stored.
fn overdue(options: &PushOptions, control: Option<&ControlFile>) -> Result<Option<u64>> {
    let Some(max) = options.queue_max else { return Ok(None) };
    let size = control.map_or(WalSegmentSize::DEFAULT, |c| c.wal_segment_size).bytes();
    let wal = options.source.parent().unwrap_or(Path::new("."));
    let waiting = ready::list(wal)?;
    let most = (waiting.len() as u64).saturating_mul(size);
    if most <= max {
        return Ok(None);
    }
    let binding = options.words.as_ref().map(|w| Binding::new(&options.stanza, control, &w.repositories));
    let is_stored = |name: &String| match (&options.words, &binding) {
        (Some(words), Some(binding)) => words.spool.is_good(name, binding, &wal.join(name)),
        _ => Ok(false),
    };
    let stored = waiting.iter().filter(|name| {
        is_stored(name).unwrap_or_else(|e| {
            // A spool that cannot be read says nothing, and the file counts.
            tracing::debug!("{}", e.chain());
            false
        })
    });
    let queued = most.saturating_sub((stored.count() as u64).saturating_mul(size));
    Ok((queued > max).then_some(queued))
}
