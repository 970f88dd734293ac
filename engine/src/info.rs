//! What there is: stanzas, clusters, WAL ranges and backups, over all repositories, with a status for each.
//!
//! [`gather`] never fails because of a repository: what is wrong with one becomes its status, and the others are shown.
//! A commit record that cannot be read is such a status too; the backups that can be read are listed beside it.
//! Costs a few lists, one small read for each backup, and a list for each 4 GiB of WAL behind the newest; no index, no manifest. The model is pgBackRest's, so that its
//! readers are ours: [`Info::to_json`].

mod json;
mod model;
#[cfg(test)]
mod tests;

pub use model::{
    ArchiveInfo, BackupInfo, CipherName, Code, DatabaseInfo, Detail, DrillInfo, Info, LockInfo, Locks, RepoInfo,
    RepoLock, StanzaCipher, StanzaInfo, Status,
};

use crate::lock::{self, LockName, LockType};
use crate::repository::wal::ON_ITS_WAY;
use crate::repository::{Backup, OpenOptions, Repository};
use crate::store::{Depth, Store};
use crate::{Error, Result};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{BackupType, Drill, StanzaHistory};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// How many of a repository's newest drills are read: each costs as much as a backup's record.
const DRILLS_MAX: usize = 32;
/// Name of the stanza shown when none could be found out because no repository could be read.
const STANZA_UNKNOWN: &str = "[invalid]";

/// Whether a repository can be looked into.
#[derive(Debug)]
pub enum RepoAccess {
    /// It is open.
    Open(Arc<Repository>),
    /// Its place is there and empty, so it has no stanzas.
    Missing,
    /// It cannot be read.
    Failed(Error),
}

impl RepoAccess {
    /// Opens a repository if there is one. A store that is not there, or holds something but no repository, has failed: the
    /// file system that it is on may not be mounted, and whoever watches backups must see that they are out of reach.
    #[must_use]
    pub fn open(store: Arc<dyn Store>, options: OpenOptions) -> Self {
        let mut empty = true;
        match store.list("", Depth::Children, &mut |_| empty = false) {
            Err(e) => return Self::Failed(e.into()),
            Ok(()) if empty => return Self::Missing,
            Ok(()) => {}
        }
        match Repository::open(store, options) {
            Ok(repository) => Self::Open(Arc::new(repository)),
            Err(e) => Self::Failed(e),
        }
    }
}

/// A configured repository.
#[derive(Debug)]
pub struct RepoSource {
    /// Its number.
    pub key: u32,
    /// Whether it is configured to be sealed.
    pub cipher: CipherName,
    /// The repository.
    pub access: RepoAccess,
}

/// What to show.
#[derive(Debug, Clone, Copy, Default)]
pub struct InfoOptions<'a> {
    /// Only this stanza, also if it does not exist.
    pub stanza: Option<&'a str>,
    /// Only this backup, with everything known of it.
    pub set: Option<&'a str>,
    /// Only backups of this type.
    pub backup_type: Option<BackupType>,
    /// How much.
    pub detail: Detail,
    /// Where this host's locks are; without it none counts as held.
    pub lock_path: Option<&'a Path>,
    /// Now, in seconds since the Unix epoch; without it nothing has an age.
    pub now: Option<i64>,
}

/// Looks into the repositories.
///
/// # Errors
/// What the lock path said. Failures of repositories are statuses.
pub fn gather(repos: &[RepoSource], options: &InfoOptions<'_>) -> Result<Info> {
    let mut names = BTreeSet::new();
    names.extend(options.stanza.map(str::to_owned));
    // Of a repository that fails here, or failed before: its error, for every stanza.
    let mut failures: Vec<Option<String>> = Vec::new();
    for repo in repos {
        failures.push(match &repo.access {
            RepoAccess::Open(_) if options.stanza.is_some() => None,
            RepoAccess::Open(repository) => match repository.stanzas() {
                Ok(found) => {
                    names.extend(found);
                    None
                }
                Err(e) => Some(describe(&e)),
            },
            RepoAccess::Missing => None,
            RepoAccess::Failed(e) => Some(describe(e)),
        });
    }
    if names.is_empty() && failures.iter().any(Option::is_some) {
        names.insert(STANZA_UNKNOWN.to_owned());
    }
    let stanzas = names
        .into_iter()
        .map(|name| {
            let views: Vec<View> =
                repos.iter().zip(&failures).map(|(repo, f)| look(repo, &name, f.clone(), options)).collect();
            merge(name, views, options)
        })
        .collect::<Result<_>>()?;
    Ok(Info { stanzas, detail: options.detail })
}

/// What one repository says of one stanza.
struct View {
    key: u32,
    cipher: CipherName,
    code: Code,
    error: Option<String>,
    history: Vec<StanzaHistory>,
    archives: Vec<ArchiveInfo>,
    backups: Vec<BackupInfo>,
    drills: Vec<DrillInfo>,
}

fn look(repo: &RepoSource, stanza: &str, failure: Option<String>, options: &InfoOptions<'_>) -> View {
    let mut view = View {
        key: repo.key,
        cipher: repo.cipher,
        code: Code::Ok,
        error: None,
        history: Vec::new(),
        archives: Vec::new(),
        backups: Vec::new(),
        drills: Vec::new(),
    };
    let outcome = match (failure, &repo.access) {
        (Some(failure), _) => {
            (view.code, view.error) = (Code::Other, Some(failure));
            return view;
        }
        (None, RepoAccess::Open(repository)) => look_inside(repository, stanza, options, &mut view),
        (None, _) => Ok(Code::MissingStanzaPath),
    };
    match outcome {
        Ok(code) => view.code = code,
        Err(e) => (view.code, view.error) = (Code::Other, Some(describe(&e))),
    }
    view
}

fn look_inside(repository: &Repository, stanza: &str, options: &InfoOptions<'_>, view: &mut View) -> Result<Code> {
    if layout::check_stanza(stanza).is_err() {
        return Ok(Code::MissingStanzaPath);
    }
    let history = repository.stanza_history(stanza)?;
    if history.is_empty() {
        return without_history(repository, stanza);
    }
    if options.detail == Detail::Progress {
        return Ok(Code::Ok);
    }
    view.history = history;
    let current = view.history.last().map(|h| h.id);
    for entry in &view.history {
        let bounds = repository.wal_bounds(stanza, &entry.archive_id())?;
        // Of former clusters only those are shown that still have WAL.
        if bounds.is_some() || Some(entry.id) == current {
            let (history_id, id) = (entry.id, entry.archive_id());
            view.archives.push(ArchiveInfo { id, history_id, repo_key: view.key, bounds, holes: Vec::new() });
        }
    }
    let (mut backups, mut problems) = repository.backups_readable(stanza)?;
    let before = options.now.map(|now| now.saturating_sub(ON_ITS_WAY));
    // A former cluster gets no more WAL, and no backups.
    for archive in view.archives.iter_mut().filter(|a| Some(a.history_id) == current) {
        match repository.wal_holes(stanza, &archive.id, &backups, before, None) {
            Ok(holes) => archive.holes = holes,
            Err(e) => problems.push(e),
        }
    }
    let notes = repository.annotate(stanza, &mut backups)?;
    let detailed = options.set.is_some();
    let with_pin = |commit: Backup| {
        let pinned_until = notes.of.get(&commit.session).and_then(|note| note.pinned_until);
        BackupInfo { repo_key: view.key, detailed, pinned_until, commit }
    };
    view.backups = backups.into_iter().map(with_pin).collect();
    let (drills, unreadable) = repository.drills(stanza, DRILLS_MAX)?;
    let age = |drill: &Drill| options.now.map(|now| u64::try_from(now.saturating_sub(drill.stop)).unwrap_or(0));
    view.drills = drills.into_iter().map(|drill| DrillInfo { repo_key: view.key, age: age(&drill), drill }).collect();
    for e in unreadable {
        // Backups are no worse for it, and their status is what others watch.
        tracing::warn!(
            "repo{}: the record of a drill is passed over, as it cannot be read: {}",
            view.key,
            describe(&e)
        );
    }
    problems.extend(notes.unreadable.into_iter().map(|(_, e)| e));
    match problems.pop() {
        Some(e) => Err(e),
        None if view.backups.is_empty() => Ok(Code::NoBackup),
        None => Ok(Code::Ok),
    }
}

fn without_history(repository: &Repository, stanza: &str) -> Result<Code> {
    for prefix in [layout::backups(stanza), layout::wal_of(stanza)] {
        let mut found = false;
        repository.store().list(&prefix, Depth::Children, &mut |_| found = true)?;
        if found {
            return Ok(Code::MissingStanzaData);
        }
    }
    Ok(Code::MissingStanzaPath)
}

fn merge(name: String, mut views: Vec<View>, options: &InfoOptions<'_>) -> Result<StanzaInfo> {
    if let Some(set) = options.set
        && !views.iter().any(|v| v.backups.iter().any(|b| b.commit.label == set))
    {
        for view in views.iter_mut().filter(|v| matches!(v.code, Code::Ok | Code::NoBackup)) {
            view.code = Code::BackupMissing;
            (view.history, view.archives, view.backups, view.drills) = Default::default();
        }
    }
    let current = views.iter().find_map(|v| v.history.last()).map(|h| (h.version, h.system_identifier));
    let mismatch =
        views.iter().filter_map(|v| v.history.last()).any(|h| Some((h.version, h.system_identifier)) != current);
    let code = match views.first().map(|v| v.code) {
        _ if mismatch => Code::DatabaseMismatch,
        Some(first) if views.iter().all(|v| v.code == first) => first,
        _ => Code::Mixed,
    };
    let cipher = match views.first().map(|v| v.cipher) {
        Some(first) if views.iter().all(|v| v.cipher == first) => StanzaCipher::Same(first),
        _ => StanzaCipher::Mixed,
    };
    let locks = match options.lock_path {
        Some(lock_path) => read_locks(lock_path, &name, &views)?,
        None => Locks::default(),
    };
    let mut stanza = StanzaInfo {
        status: Status { code, message: code.message().to_owned() },
        name,
        cipher,
        locks,
        repos: Vec::new(),
        databases: Vec::new(),
        archives: Vec::new(),
        backups: Vec::new(),
        drills: Vec::new(),
        current,
    };
    for view in views {
        let message = view.error.unwrap_or_else(|| view.code.message().to_owned());
        let status = Status { code: view.code, message };
        stanza.repos.push(RepoInfo { key: view.key, cipher: view.cipher, status });
        stanza.databases.extend(view.history.iter().map(|h| DatabaseInfo {
            id: h.id,
            repo_key: view.key,
            system_id: h.system_identifier,
            version: h.version,
        }));
        stanza.archives.extend(view.archives);
        stanza.drills.extend(view.drills.into_iter().filter(|d| options.set.is_none_or(|set| d.drill.label == set)));
        stanza.backups.extend(view.backups.into_iter().filter(|b| {
            options.set.is_none_or(|set| b.commit.label == set)
                && options.backup_type.is_none_or(|t| b.commit.backup_type == t)
        }));
    }
    // Stable: backups that ended in one second keep the order of their repositories and labels.
    stanza.backups.sort_by_key(|b| b.commit.stop);
    stanza.drills.sort_by_key(|d| d.drill.stop);
    Ok(stanza)
}

fn read_locks(lock_path: &Path, stanza: &str, views: &[View]) -> Result<Locks> {
    let mut locks = Locks::default();
    if layout::check_stanza(stanza).is_err() {
        return Ok(locks);
    }
    let holder = |lock_type, repo_key| {
        let name = LockName { stanza: stanza.to_owned(), lock_type, repo_key };
        lock::holder(lock_path, &name)
    };
    for view in views {
        if let Some(held) = holder(LockType::Backup, view.key)? {
            locks.backup.add(held.progress);
            locks.backup_repos.extend(held.progress.map(|progress| RepoLock { key: view.key, progress }));
        }
        if let Some(held) = holder(LockType::Restore, view.key)? {
            locks.restore.add(held.progress);
        }
    }
    Ok(locks)
}

/// An error as pgBackRest shows one in a status: `[FileMissingError] text: cause`.
fn describe(error: &Error) -> String {
    let mut text = format!("[{:?}Error] {error}", error.kind());
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
