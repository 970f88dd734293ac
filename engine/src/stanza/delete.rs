//! Removing a stanza from a repository.
//!
//! Order: sessions that have not ended are fenced, lest one commit into what is gone; then commit records go, so that nothing
//! is visible whose parts go; then what belongs to them; then WAL; the history last. So after a crash the stanza still exists,
//! without backups, and removing it again takes away the rest. Packs and reference records stay for garbage collection, which
//! finds that no commit needs them.
//!
//! Fences stay that were put up against others: whom they keep out may only be stalled.

use crate::clock::Clock;
use crate::lock;
use crate::observe::{Cancel, Counter, Observer};
use crate::pg::datadir;
use crate::repository::Repository;
use crate::store::{Depth, Store};
use crate::{Error, Kind, Result};
use pgkeep_formats::repo::layout;
use std::path::Path;

/// Whether a running server keeps its stanza from being removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenRunning {
    /// It does.
    Refuse,
    /// It does not: `--force`.
    Delete,
}

/// What must be so before a stanza is removed.
#[derive(Debug, Clone, Copy)]
pub struct DeleteOptions<'a> {
    /// Where the stop files are.
    pub lock_path: &'a Path,
    /// The cluster's directory, if it is on this host.
    pub pgdata: Option<&'a Path>,
    /// What to do if there is a `postmaster.pid`.
    pub when_running: WhenRunning,
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deleted {
    /// Records of backups, fences among them.
    pub backups: u64,
    /// Archived files.
    pub wal: u64,
    /// All objects.
    pub objects: u64,
}

/// Removes a stanza from one repository. Doing so again, or after an interruption, is no error.
///
/// # Errors
/// `FileMissing` without a stop file; `PostgresRunning` if there is a `postmaster.pid` and no force; `Interrupted`; what
/// the store said.
pub fn delete(
    repository: &Repository,
    stanza: &str,
    options: &DeleteOptions<'_>,
    observer: &dyn Observer,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<Deleted> {
    super::check_name(stanza)?;
    match lock::check_stopped(options.lock_path, Some(stanza)) {
        Err(e) if e.kind() == Kind::Stopped => {}
        Err(e) => return Err(e),
        Ok(()) => {
            return Err(Error::refused(Kind::FileMissing, format!("stop file does not exist for stanza '{stanza}'")));
        }
    }
    if options.when_running == WhenRunning::Refuse
        && let Some(pgdata) = options.pgdata
        && datadir::postmaster(pgdata)?.is_some()
    {
        let pid = pgdata.join("postmaster.pid");
        return Err(Error::refused(
            Kind::PostgresRunning,
            format!("'{}' exists, so PostgreSQL may be running: stanza '{stanza}' is not deleted", pid.display()),
        ));
    }
    repository.check_writable()?;
    let store = &**repository.store();
    let mut deleted = Deleted::default();
    for session in repository.unfinished(stanza)? {
        tracing::warn!("the session that {} began is fenced: it cannot commit any more", session.host);
        repository.fence_silent(stanza, session.session, clock)?;
    }
    let backups = delete_backups(repository, stanza, observer, cancel)?;
    deleted.objects += backups;
    let mut below = |prefix: &str| -> Result<u64> {
        let removed = delete_below(store, prefix, observer, cancel)?;
        deleted.objects += removed;
        Ok(removed)
    };
    // Only now: without its marker an expired backup would be visible again.
    below(&layout::expired_of(stanza))?;
    below(&format!("{}{stanza}/", layout::EXPIRING))?;
    below(&layout::annotations_of(stanza))?;
    below(&layout::traces_of(stanza))?;
    below(&layout::drills_of(stanza))?;
    let wal = below(&layout::wal_of(stanza))?;
    below(&layout::stanza_histories(stanza))?;
    (deleted.backups, deleted.wal) = (backups, wal);
    Ok(deleted)
}

/// Removes commits and what ended sessions by themselves, and signs of life: without their ends sessions would count as open,
/// and collection would wait for them.
fn delete_backups(repository: &Repository, stanza: &str, observer: &dyn Observer, cancel: &Cancel) -> Result<u64> {
    let (store, mut names) = (&**repository.store(), Vec::new());
    store.list(&layout::backups(stanza), Depth::All, &mut |l| names.push(l.key))?;
    let mut removed = 0;
    for name in names {
        cancel.check()?;
        if let Some(session) = layout::parse_backup(stanza, &name) {
            let mut signs = Vec::new();
            store.list(&layout::session(session), Depth::All, &mut |l| signs.push(l.key))?;
            for sign in signs {
                store.delete(&sign)?;
                removed += 1;
            }
            if repository.is_fenced_by_another(stanza, session)? {
                continue;
            }
        }
        store.delete(&name)?;
        observer.add(Counter::Files, 1);
        removed += 1;
    }
    Ok(removed)
}

/// Removes everything below a prefix, level by level, so that only one directory's names are in memory.
fn delete_below(store: &dyn Store, prefix: &str, observer: &dyn Observer, cancel: &Cancel) -> Result<u64> {
    let mut names = Vec::new();
    store.list(prefix, Depth::Children, &mut |l| names.push(l.key))?;
    let mut removed = 0;
    for name in names {
        cancel.check()?;
        if name.ends_with('/') {
            removed += delete_below(store, &name, observer, cancel)?;
        } else {
            store.delete(&name)?;
            observer.add(Counter::Files, 1);
            removed += 1;
        }
    }
    Ok(removed)
}
