//! Stanzas: made, upgraded to a new cluster, removed.
//!
//! A stanza is its history: `stanzas/<stanza>/history/<n>`, one entry for each cluster it has had, the last one current.
//! Entries are created, never changed; of two hosts that create the same one at once, one wins and the other looks again.
//! [`create`] and [`upgrade`] go over all repositories and say for each what came of it; one that fails does not keep the
//! others from being dealt with. [`delete`] takes one stanza from one repository.
//!
//! Callers hold the stanza's locks. Nothing here relies on them for the safety of the repository.

mod delete;
mod probe;
mod rebuild;
#[cfg(test)]
mod tests;

pub use delete::{DeleteOptions, Deleted, WhenRunning, delete};
pub use rebuild::rebuild_history;

use crate::clock::Clock;
use crate::crypto::{Scope, SessionSealer};
use crate::pg::ClusterIdentity;
use crate::repository::{OpenOptions, Repository};
use crate::store::{Depth, Put, Store};
use crate::{Error, Kind, Result};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use std::sync::Arc;

/// How often an entry that another host was quicker to create is looked at again: each time the history has grown.
const ATTEMPTS_MAX: usize = 8;

/// A repository to work on, which need not exist yet.
pub struct RepoTarget {
    /// Where it is.
    pub store: Arc<dyn Store>,
    /// How to open or create it; has its number.
    pub options: OpenOptions,
}

/// What came of one repository.
#[derive(Debug)]
pub struct RepoOutcome {
    /// Number of the repository.
    pub key: u32,
    /// What was done, or why not.
    pub result: Result<Outcome>,
}

/// What was done to a stanza in one repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// What became of the stanza.
    pub change: Change,
    /// Whether the store was empty and the repository was made.
    pub repository_created: bool,
    /// The stanza's current history entry.
    pub history_id: u32,
}

/// What became of a stanza.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was made.
    Created,
    /// A history entry was added.
    Upgraded,
    /// It was already as it should be: "already exists and is valid", "already up to date".
    Unchanged,
}

/// Makes a stanza in every repository, and repositories where there are none yet.
///
/// The result has an entry for each target, in their order. Failures: `FileInvalid` if the stanza exists for another
/// cluster, and needs [`upgrade`] or is the wrong one; `PathNotEmpty` if it has backups or WAL but no history, or the store
/// holds something that is no repository; `RepoInvalid` if the store does not keep what a repository needs.
///
/// # Errors
/// `OptionInvalidValue` if the stanza cannot have that name.
pub fn create(
    targets: Vec<RepoTarget>,
    stanza: &str,
    identity: &ClusterIdentity,
    clock: &dyn Clock,
) -> Result<Vec<RepoOutcome>> {
    each(targets, stanza, |target| create_one(target, stanza, identity, clock))
}

/// Notes in every repository that the stanza's cluster has become another: a new version, or a new system identifier.
///
/// The result has an entry for each target, in their order. Failures: `FileMissing` if the repository or the stanza does
/// not exist.
///
/// # Errors
/// `OptionInvalidValue` if no stanza can have that name.
pub fn upgrade(
    targets: Vec<RepoTarget>,
    stanza: &str,
    identity: &ClusterIdentity,
    clock: &dyn Clock,
) -> Result<Vec<RepoOutcome>> {
    each(targets, stanza, |target| upgrade_one(target, stanza, identity, clock))
}

fn each(
    targets: Vec<RepoTarget>,
    stanza: &str,
    mut work: impl FnMut(RepoTarget) -> Result<Outcome>,
) -> Result<Vec<RepoOutcome>> {
    check_name(stanza)?;
    Ok(targets.into_iter().map(|t| RepoOutcome { key: t.options.key, result: work(t) }).collect())
}

fn check_name(stanza: &str) -> Result<()> {
    layout::check_stanza(stanza)
        .map_err(|_| Error::refused(Kind::OptionInvalidValue, format!("'{stanza}' cannot be the name of a stanza")))
}

fn create_one(target: RepoTarget, stanza: &str, identity: &ClusterIdentity, clock: &dyn Clock) -> Result<Outcome> {
    let repository_created = !Repository::exists(&*target.store)?;
    let repository = if repository_created {
        probe::probe(&*target.store)?;
        Repository::create(target.store, target.options, clock.now().as_secs() as i64)?
    } else {
        Repository::open(target.store, target.options)?
    };
    for _ in 0..ATTEMPTS_MAX {
        let history = repository.stanza_history(stanza)?;
        if let Some(current) = history.last() {
            if identity.matches(current) {
                let history_id = current.id;
                return Ok(Outcome { change: Change::Unchanged, repository_created, history_id });
            }
            return Err(Error::refused(
                Kind::FileInvalid,
                format!(
                    "stanza '{stanza}' exists in {} for {}, but the cluster is {identity}",
                    repository.store().describe(),
                    ClusterIdentity::from(current)
                ),
            ));
        }
        refuse_leftovers(&repository, stanza)?;
        if append(&repository, stanza, identity, 1, clock)? {
            return Ok(Outcome { change: Change::Created, repository_created, history_id: 1 });
        }
    }
    Err(busy(&repository, stanza))
}

fn upgrade_one(target: RepoTarget, stanza: &str, identity: &ClusterIdentity, clock: &dyn Clock) -> Result<Outcome> {
    let repository = Repository::open(target.store, target.options)?;
    for _ in 0..ATTEMPTS_MAX {
        let history = repository.stanza_history(stanza)?;
        let Some(current) = history.last() else {
            let place = repository.store().describe();
            return Err(Error::refused(Kind::FileMissing, format!("stanza '{stanza}' does not exist in {place}")));
        };
        if identity.matches(current) {
            let history_id = current.id;
            return Ok(Outcome { change: Change::Unchanged, repository_created: false, history_id });
        }
        let history_id = current.id.saturating_add(1);
        if append(&repository, stanza, identity, history_id, clock)? {
            return Ok(Outcome { change: Change::Upgraded, repository_created: false, history_id });
        }
    }
    Err(busy(&repository, stanza))
}

/// Creates a history entry. False if another host was quicker.
fn append(
    repository: &Repository,
    stanza: &str,
    identity: &ClusterIdentity,
    id: u32,
    clock: &dyn Clock,
) -> Result<bool> {
    repository.check_writable()?;
    let name = layout::stanza_history(stanza, id);
    let record = identity.history(id, clock.now().as_secs() as i64).encode();
    let sealer = SessionSealer::new(Arc::clone(repository.keyring()))?;
    let bytes = sealer.seal_object(ObjectKind::StanzaHistory, &Scope::Stanza(stanza), &name, &[], &record)?;
    // Exists: another host's, or our own after a lost reply. Looking again tells which, and both end well.
    Ok(repository.store().put_if_absent(&name, &bytes)? == Put::Created)
}

/// Refuses a stanza without history that has backups or WAL: an interrupted removal, or history that was lost.
fn refuse_leftovers(repository: &Repository, stanza: &str) -> Result<()> {
    for prefix in [layout::backups(stanza), layout::wal_of(stanza)] {
        let mut found = Vec::new();
        repository.store().list(&prefix, Depth::Children, &mut |l| found.push(l.key))?;
        for found in found {
            // These outlive their stanza, see `delete`.
            if let Some(session) = layout::parse_backup(stanza, &found)
                && repository.is_fenced_by_another(stanza, session)?
            {
                continue;
            }
            let place = repository.store().describe();
            return Err(Error::refused(
                Kind::PathNotEmpty,
                format!("stanza '{stanza}' has no history in {place}, but '{found}' exists"),
            ));
        }
    }
    Ok(())
}

fn busy(repository: &Repository, stanza: &str) -> Error {
    let place = repository.store().describe();
    let text = format!("the history of stanza '{stanza}' in {place} cannot be created: an object of its name exists");
    Error::refused(Kind::FileExists, text)
}
