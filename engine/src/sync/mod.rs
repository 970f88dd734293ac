//! What one repository holds of a stanza and another lacks: copied, under the other one's keys.
//!
//! WAL goes first, so that a backup that becomes visible has what makes it consistent; backups follow, oldest first, each by a
//! writer's session of its own (`copy`). So whatever ends a run early, everything the other repository shows is whole, and the
//! next run goes on: WAL is not sent again, and chunks that were stored are known.
//!
//! What retention has taken from the other repository does not come back: only backups newer than the newest one that both
//! have, and than the oldest one there, are copied, unless one is asked for by its label, and WAL from the start of those on. Before a backup becomes
//! visible the WAL it needs is looked for in the other repository once more.

mod carry;
mod copy;
mod twins;
mod wal;

use crate::backup::full_of;
use crate::clock::Clock;
use crate::observe::{Cancel, Observer};
use crate::repository::{Backup, Repository};
use crate::{Error, Kind, Result};
use copy::Copier;
use pgkeep_formats::repo::records::StanzaHistory;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// What to copy, and how.
#[derive(Debug, Clone, Copy)]
pub struct SyncOptions<'a> {
    /// The stanza; both repositories must have it.
    pub stanza: &'a str,
    /// Which backups.
    pub which: Which<'a>,
    /// Whether what is stored as a delta may be one there.
    pub deltas: bool,
    /// Only find out what would be copied.
    pub dry_run: bool,
    /// Workers.
    pub process_max: usize,
    /// zstd level.
    pub compress_level: i32,
    /// This host and process, for messages.
    pub host: &'a str,
}

/// Which backups of those that the other repository lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// All that retention there may still want.
    Wanted,
    /// This one, whatever retention thinks of it.
    Only(&'a str),
    /// One just taken, what its label builds on, and what was taken since the newest one there.
    New(&'a str),
}

/// What was copied, or would be.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Backups, in the order they were copied.
    pub backups: Vec<SyncedBackup>,
    /// WAL files, timeline histories among them.
    pub wal: u64,
    /// Backups of the source whose records cannot be read, and why.
    pub unreadable: Vec<Error>,
    /// What could not be copied, and why: backups, and WAL files that are damaged.
    pub failed: Vec<Error>,
    /// Labels of backups of clusters that the other repository's stanza never had.
    pub strange: Vec<String>,
    /// Labels under which the other repository has another backup, taken in the same second.
    pub namesakes: Vec<String>,
}

/// One backup that was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncedBackup {
    /// Its label, the same in both.
    pub label: String,
    /// Bytes of the cluster.
    pub size: u64,
    /// Bytes it added to the other repository; 0 if it was not copied yet.
    pub stored: u64,
}

/// Copies from `from` to `to`.
///
/// # Errors
/// `FileMissing` if a repository does not have the stanza, `BackupSetInvalid` if the backup asked for is not there or both have
/// another one of that name, `ArchiveDuplicate` if a WAL file differs; what either repository said.
pub fn run(
    from: &Arc<Repository>,
    to: &Arc<Repository>,
    options: &SyncOptions<'_>,
    observer: &dyn Observer,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<SyncReport> {
    to.check_writable()?;
    let clusters = clusters(from, to, options.stanza)?;
    let (mut theirs, unreadable) = from.backups_readable(options.stanza)?;
    // What was noted of them since goes along, but for pins: how long they are kept is a matter of each repository.
    from.annotate(options.stanza, &mut theirs)?;
    let ours = to.backups(options.stanza)?;
    let mut report = SyncReport { unreadable, ..SyncReport::default() };
    let missing = missing(from.key(), &theirs, &ours, options.which)?;
    let (missing, strange): (Vec<&Backup>, Vec<&Backup>) =
        missing.into_iter().partition(|b| clusters.contains_key(&b.history_id));
    report.strange = strange.iter().map(|b| b.label.clone()).collect();
    if !matches!(options.which, Which::Only(_)) {
        report.namesakes = namesakes(&theirs, &ours);
    }

    let mut copied = HashSet::new();
    for (id, (archive_from, archive_to)) in &clusters {
        let common = theirs.iter().filter(|b| b.history_id == *id);
        let common = common.filter(|b| is_in(&ours, b)).max_by_key(|b| b.stop);
        let floor = common.into_iter().chain(missing.iter().copied().filter(|b| b.history_id == *id));
        // WAL without a backup that it could follow is of no use there.
        let firsts: Vec<&str> = floor.filter_map(|b| b.wal.as_ref().map(|(first, _)| first.as_str())).collect();
        if firsts.is_empty() {
            continue;
        }
        let run = wal::Run { from, to, archives: (archive_from, archive_to), firsts, options, observer, cancel };
        run.copy(&mut copied, &mut report.failed)?;
    }
    report.wal = copied.len() as u64;
    let mut copier = Copier::new(from, to, &copied, options, observer, cancel, clock)?;
    for backup in missing {
        let stored = match (options.dry_run, clusters.get(&backup.history_id)) {
            (false, Some((archive_from, archive_to))) => match copier.copy(backup, (archive_from, archive_to)) {
                Ok(stored) => stored,
                // One that is damaged, or lacks WAL, keeps no other from it. What may pass must: behind a newer one that both
                // have nothing is copied any more.
                Err(e) if is_for_good(&e) && options.which != Which::Only(&backup.label) => {
                    report.failed.push(e.during(format!("backup {} is not copied", backup.label)));
                    continue;
                }
                Err(e) => return Err(e),
            },
            _ => 0,
        };
        report.backups.push(SyncedBackup { label: backup.label.clone(), size: backup.size, stored });
    }
    Ok(report)
}

fn is_for_good(e: &Error) -> bool {
    e.is_damage() || matches!(e.kind(), Kind::ArchiveTimeout | Kind::FileMissing | Kind::ArchiveDuplicate)
}

fn is_in(backups: &[Backup], backup: &Backup) -> bool {
    backups.iter().any(|b| b.label == backup.label && is_same(b, backup))
}

/// By the source's history id: the names of a cluster's archives in the source and in the other repository.
fn clusters(from: &Repository, to: &Repository, stanza: &str) -> Result<BTreeMap<u32, (String, String)>> {
    let histories = |repository: &Repository| {
        let all = repository.stanza_history(stanza)?;
        let (key, place) = (repository.key(), repository.store().describe());
        let text = || format!("stanza '{stanza}' does not exist on repo{key} in {place}");
        if all.is_empty() { Err(Error::refused(Kind::FileMissing, text())) } else { Ok(all) }
    };
    let (theirs, ours) = (histories(from)?, histories(to)?);
    let mut found = BTreeMap::new();
    for cluster in &theirs {
        let same = |c: &&_| is_same_cluster(cluster, c);
        if let Some(twin) = ours.iter().find(same) {
            found.insert(cluster.id, (cluster.archive_id(), twin.archive_id()));
        }
    }
    if found.is_empty() {
        let text = format!(
            "stanza '{stanza}' is of another cluster on repo{} than on repo{}: their system identifiers or versions differ",
            to.key(),
            from.key()
        );
        return Err(Error::refused(Kind::BackupMismatch, text));
    }
    Ok(found)
}

fn is_same_cluster(a: &StanzaHistory, b: &StanzaHistory) -> bool {
    (a.version, a.system_identifier) == (b.version, b.system_identifier)
}

/// Whether two records are of one backup.
fn is_same(a: &Backup, b: &Backup) -> bool {
    let facts = |b: &Backup| (b.system_identifier, b.start, b.stop, b.lsn, b.size);
    facts(a) == facts(b)
}

/// Labels under which either repository has a backup of its own: one that began in the same second. None goes where the other
/// lies, as a label names one backup.
fn namesakes(theirs: &[Backup], ours: &[Backup]) -> Vec<String> {
    let is_other = |b: &&Backup| ours.iter().any(|our| our.label == b.label && !is_same(b, our));
    theirs.iter().filter(is_other).map(|b| b.label.clone()).collect()
}

fn missing<'b>(from: u32, theirs: &'b [Backup], ours: &[Backup], which: Which<'_>) -> Result<Vec<&'b Backup>> {
    if let Which::Only(set) | Which::New(set) = which {
        let Some(their) = theirs.iter().find(|b| b.label == set) else {
            let text = format!("backup set {set} does not exist on repo{from}");
            return Err(Error::refused(Kind::BackupSetInvalid, text));
        };
        if ours.iter().any(|b| b.label == set && !is_same(their, b)) {
            let text = format!("both repositories have a backup {set}, and they are not the same one");
            return Err(Error::refused(Kind::BackupSetInvalid, text));
        }
    }
    let has: HashSet<&str> = ours.iter().map(|b| b.label.as_str()).collect();
    let common = newest_common(theirs, ours).map(|b| b.stop);
    let oldest = ours.iter().map(|b| b.stop).min();
    let newest = ours.iter().map(|b| b.stop).max();
    let is_wanted = |b: &&Backup| match which {
        Which::Wanted => common.max(oldest).is_none_or(|known| b.stop > known),
        Which::Only(set) => b.label == set,
        // Without its full a backup restores all the same, but retention would not know what to count it to. If it was there
        // and retention took it, it does not come back.
        Which::New(set) => {
            let is_of_set = full_of(&b.label) == full_of(set) && common.is_none_or(|known| b.stop > known);
            is_of_set || newest.is_some_and(|newest| b.stop > newest)
        }
    };
    Ok(theirs.iter().filter(|b| !has.contains(b.label.as_str())).filter(is_wanted).collect())
}

/// The newest backup that both have.
fn newest_common<'b>(theirs: &'b [Backup], ours: &[Backup]) -> Option<&'b Backup> {
    theirs.iter().filter(|b| is_in(ours, b)).max_by_key(|b| b.stop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::testing::blank;

    #[test]
    fn a_label_that_each_has_for_a_backup_of_its_own_is_passed_over_and_stops_nothing() {
        let backup = |label: &str, stop, lsn| Backup { label: label.to_owned(), stop, lsn: Some((1, lsn)), ..blank() };
        let (first, theirs) = (backup("20260101-000000F", 10, 2), backup("20260102-000000F", 20, 3));
        let (ours, last) = (backup("20260102-000000F", 20, 4), backup("20260103-000000F", 30, 5));
        let all = [first.clone(), theirs.clone(), last.clone()];
        let has = [first.clone(), ours.clone()];
        assert_eq!(namesakes(&all, &has), [theirs.label.as_str()]);
        assert_eq!(missing(1, &all, &has, Which::Wanted).unwrap(), [&last]);
        assert_eq!(newest_common(&all, &has), Some(&first));
        assert_eq!(missing(1, &all, &has, Which::Only(&last.label)).unwrap(), [&last]);
        // One that was just taken brings what came since the newest one there, and what its label builds on.
        let (old, more) =
            (backup("20260101-000000F_20260101-120000I", 15, 9), backup("20260101-000000F_20260104-000000I", 40, 8));
        let all = [first.clone(), old.clone(), theirs.clone(), last.clone(), more.clone()];
        assert_eq!(missing(1, &all, &has, Which::New(&more.label)).unwrap(), [&old, &last, &more]);
        assert_eq!(missing(1, &all, &[], Which::New(&more.label)).unwrap(), [&first, &old, &more]);
        assert_eq!(
            missing(1, &all, std::slice::from_ref(&old), Which::New(&more.label)).unwrap(),
            [&theirs, &last, &more]
        );
        for refused in [theirs.label.as_str(), "20260104-000000F"] {
            assert_eq!(missing(1, &all, &has, Which::Only(refused)).unwrap_err().kind(), Kind::BackupSetInvalid);
        }
    }
}
