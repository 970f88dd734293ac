//! Entries of a stanza's history made anew: each backup knows which entry it belongs to, and has the cluster's `pg_control`.

use super::append;
use crate::clock::Clock;
use crate::pg::ClusterIdentity;
use crate::repository::manifests::Manifest;
use crate::repository::{Backup, ChunkSource, Repository};
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::Content;
use std::collections::BTreeMap;
use std::sync::Arc;

const CONTROL: &str = "global/pg_control";

/// Makes the entries that backups belong to and that are gone; returns their numbers. Nothing is replaced: an entry that
/// is there and cannot be read fails the call, as its name is taken.
///
/// # Errors
/// `BackupMismatch` if backups of one entry are not of one cluster; `FileMissing` if no backup of it has a `pg_control` that
/// can be read; what the store, the cipher or the decoder said.
pub fn rebuild_history(repository: &Arc<Repository>, stanza: &str, clock: &dyn Clock) -> Result<Vec<u32>> {
    repository.check_writable()?;
    let history = repository.stanza_history(stanza)?;
    let mut lost: BTreeMap<u32, Vec<Backup>> = BTreeMap::new();
    for backup in repository.backups_readable(stanza)?.0 {
        if history.iter().all(|h| h.id != backup.history_id) {
            lost.entry(backup.history_id).or_default().push(backup);
        }
    }
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    let index = repository.load_index_to_read()?;
    let source = Arc::new(ChunkSource::new(Arc::clone(repository), index, stanza));
    for (id, backups) in &lost {
        let identity = identity(&source, stanza, *id, backups)?;
        append(repository, stanza, &identity, *id, clock)?;
    }
    Ok(lost.into_keys().collect())
}

fn identity(source: &Arc<ChunkSource>, stanza: &str, id: u32, backups: &[Backup]) -> Result<ClusterIdentity> {
    let name = layout::stanza_history(stanza, id);
    let of = |b: &Backup| (b.version, b.system_identifier);
    if let [first, rest @ ..] = backups
        && let Some(other) = rest.iter().find(|b| of(b) != of(first))
    {
        let text = format!("'{name}' cannot be made: backups {} and {} are of two clusters", first.label, other.label);
        return Err(Error::refused(Kind::BackupMismatch, text));
    }
    let mut failure = None;
    for backup in backups.iter().rev() {
        match control(source, backup) {
            Ok(found) if (found.version, found.system_identifier) == of(backup) => return Ok(found),
            Ok(_) => {}
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => failure = Some(e),
        }
    }
    let missing = || Error::refused(Kind::FileMissing, format!("no backup of '{name}' has the cluster's '{CONTROL}'"));
    Err(failure.unwrap_or_else(missing).during(format!("cannot make '{name}'")))
}

fn control(source: &Arc<ChunkSource>, backup: &Backup) -> Result<ClusterIdentity> {
    let manifest = Arc::new(Manifest::open(source, backup)?);
    let missing =
        || Error::refused(Kind::FileMissing, format!("backup {} has no '{CONTROL}' of its own", backup.label));
    // It is read last, and therefore kept in the manifest itself.
    let entry = manifest.find(CONTROL)?.ok_or_else(missing)?.entry;
    let Content::Inline(bytes) = entry.content else { return Err(missing()) };
    let control = ControlFile::parse(&bytes).map_err(Error::damaged(format!("{CONTROL} of {}", backup.label)))?;
    Ok(ClusterIdentity::from(&control))
}
