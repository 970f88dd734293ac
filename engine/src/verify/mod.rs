//! Whether everything that was stored is there and whole, and what it costs if not.
//!
//! Every object is read: keys and small records, index segments, packs with all their chunks, manifests, reference
//! records, archived files. What is damaged is named, and traced to the backups that cannot be restored and to the
//! recovery windows that end early. Objects that no backup uses are counted; they are no damage.
//!
//! Order: the catalogue first, then the index, then packs, so that whatever a backup of the catalogue needs was there
//! when it was looked for. Backups that vanish meanwhile are not reported. Nothing is written to the repository but a marker for each
//! damaged pack, which keeps later backups from building on it.
//!
//! Threads: `jobs` workers, each with one pack or archived file in memory; besides them some 60 bytes a pack, a byte for
//! each chunk of the backups being walked, and the local index. The index is on disk if the repository has a cache.

mod gaps;
mod index;
mod manifests;
mod packs;
mod records;
mod report;
mod scrub;
mod selection;
#[cfg(test)]
pub(crate) mod tests;
mod wal;
mod workers;

pub use report::{
    BackupProblem, BackupVerdict, Counts, DESCRIBED_MAX, Damage, FILES_NAMED_MAX, Flaw, GapKind, Garbage, VerifyReport,
    WalGap, WindowHit,
};

pub use scrub::scrub;

use crate::index::ChunkIndex;
use crate::observe::{Cancel, Observer};
use crate::repository::wal::WalRange;
use crate::repository::{Backup, Repository};
use crate::store::Depth;
use crate::{Error, Kind, Result};
use packs::Packs;
use pgkeep_formats::id::PackId;
use pgkeep_formats::repo::layout;
use report::Findings;
use selection::Selection;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// What to verify.
#[derive(Debug, Clone, Copy, Default)]
pub struct VerifyOptions<'a> {
    /// Only these stanzas and the packs they use; empty means all, and all packs.
    pub stanzas: &'a [String],
    /// Only this backup, the packs it uses, and the WAL it needs.
    pub set: Option<&'a str>,
    /// Number of threads.
    pub jobs: usize,
    /// Read only so many of a hundred packs and archived files, drawn at random; of the others only see that they are there.
    pub sample: Option<u8>,
    /// What is drawn.
    pub seed: u64,
    /// Leave out what this host has read and found whole since then.
    pub older_than: Option<Duration>,
    /// Now, since the Unix epoch.
    pub now: Duration,
}

/// A backup to verify.
struct Target {
    stanza: String,
    backup: Backup,
    verdict: BackupVerdict,
}

/// Verifies a repository.
///
/// # Errors
/// Only what keeps it from being verified: a store that is not there, `BackupSetInvalid` for an unknown backup,
/// `FileMissing` for an unknown stanza, `Interrupted`. Damage is in the report.
pub fn run(
    repository: &Arc<Repository>,
    options: &VerifyOptions<'_>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<VerifyReport> {
    let findings = Findings::default();
    // 1. What there is.
    let all = stanzas(repository)?;
    let chosen = if options.stanzas.is_empty() { all.clone() } else { options.stanzas.to_vec() };
    if let Some(unknown) = chosen.iter().find(|s| !all.contains(s)) {
        let place = repository.store().describe();
        return Err(Error::refused(Kind::FileMissing, format!("stanza '{unknown}' does not exist in {place}")));
    }
    let referring = records::referring(repository, &findings)?;
    let mut targets = catalogue(repository, &chosen, options, &findings)?;
    // 2. Keys and records.
    records::check(repository, &chosen, &findings, cancel)?;
    // 3. The index, from the segments that are whole.
    let index = index::load(repository, &findings, cancel)?;
    // 4. Packs.
    let whole = options.set.is_none() && chosen.len() == all.len();
    let wanted = if whole { None } else { used_packs(repository, &targets)? };
    let packs = Packs::list(repository, &index, &all, wanted.as_ref(), &findings)?;
    observer.begin("verify packs", packs.bytes());
    let selection = Selection::new(repository, options)?;
    packs.scan(options.jobs, &selection, &findings, observer, cancel)?;
    observer.end();
    let marked = packs.mark(&findings)?;
    // 5. Manifests.
    walk(repository, &index, &packs, &mut targets, options.jobs, &findings, cancel)?;
    // 6. WAL. What expired since the catalogue was read needs none, and an expire may go on while this reads.
    retain_visible(repository, &mut targets, |_| true)?;
    let mut gaps = Vec::new();
    for stanza in &chosen {
        gaps.extend(wal_of(repository, stanza, &mut targets, options, &selection, &findings, observer, cancel)?);
    }
    // 7. Sessions that ended without a word. Of all stanzas, as a reference record does not say whose it is.
    records::warn_of_unended(repository, &all, referring, &findings)?;
    // 8. What has gone meanwhile was not damaged.
    retain_visible(repository, &mut targets, is_hit)?;
    let manifests_read =
        targets.iter().all(|t| !t.verdict.problems.iter().any(|p| matches!(p, BackupProblem::Manifest { .. })));
    selection.keep(&findings);
    let mut report = findings.into_report();
    report.garbage = (whole && manifests_read && report.damage_total == 0 && report.counts.unread_packs == 0)
        .then(|| packs.unused());
    report.backups = targets.into_iter().map(|t| t.verdict).collect();
    report.backups.sort_by(|a, b| (&a.stanza, &a.label).cmp(&(&b.stanza, &b.label)));
    report.gaps = gaps;
    report.marked = marked;
    Ok(report)
}

/// All stanzas, also those that lost their history.
fn stanzas(repository: &Repository) -> Result<Vec<String>> {
    let mut names: BTreeSet<String> = repository.stanzas()?.into_iter().collect();
    for prefix in ["backups/", "wal/"] {
        repository.store().list(prefix, Depth::Children, &mut |l| {
            names.extend(l.key.strip_prefix(prefix).and_then(|n| n.strip_suffix('/')).map(str::to_owned));
        })?;
    }
    Ok(names.into_iter().filter(|n| layout::check_stanza(n).is_ok()).collect())
}

fn catalogue(
    repository: &Repository,
    stanzas: &[String],
    options: &VerifyOptions<'_>,
    findings: &Findings,
) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for stanza in stanzas {
        let (backups, problems) = repository.backups_readable(stanza)?;
        for problem in problems {
            findings.failure(&layout::backups(stanza), problem)?;
        }
        for prefix in [layout::backups(stanza), layout::stanza_histories(stanza)] {
            repository.store().list(&prefix, Depth::All, &mut |l| {
                let ours = layout::parse_backup(stanza, &l.key).is_some()
                    || layout::parse_stanza_history(stanza, &l.key).is_some();
                if !ours {
                    findings.warn(format!("'{}' is not part of a repository", l.key));
                }
            })?;
        }
        let wanted = |b: &Backup| options.set.is_none_or(|set| b.label == set);
        targets.extend(backups.into_iter().filter(wanted).map(|backup| Target {
            stanza: stanza.clone(),
            verdict: BackupVerdict {
                stanza: stanza.clone(),
                label: backup.label.clone(),
                problems: Vec::new(),
                windows: Vec::new(),
            },
            backup,
        }));
    }
    match options.set {
        Some(set) if targets.is_empty() => {
            let place = repository.store().describe();
            Err(Error::refused(Kind::BackupSetInvalid, format!("backup '{set}' does not exist in {place}")))
        }
        _ => Ok(targets),
    }
}

/// The packs of some backups, by their reference records; none if that cannot be told, and then all are read.
fn used_packs(repository: &Repository, targets: &[Target]) -> Result<Option<HashSet<PackId>>> {
    let (mut packs, moved) = (HashSet::new(), repository.rewritten()?);
    for target in targets {
        match repository.read_refs(target.backup.session) {
            Ok(Some(mut refs)) => {
                moved.expand(&mut refs);
                packs.extend(refs.packs());
            }
            Ok(None) => return Ok(None),
            // The walk meets it again, and tells.
            Err(e) => return report::flaw_of(e).map(|_| None),
        }
    }
    Ok(Some(packs))
}

fn walk(
    repository: &Arc<Repository>,
    index: &Arc<dyn ChunkIndex>,
    packs: &Packs,
    targets: &mut [Target],
    jobs: usize,
    findings: &Findings,
    cancel: &Cancel,
) -> Result<()> {
    workers::each(jobs, targets.iter_mut(), cancel, |target| {
        let problems = manifests::walk(repository, index, packs, &target.stanza, &target.backup, findings, cancel)?;
        target.verdict.problems.extend(problems);
        findings.count(|c| c.backups += 1);
        Ok(())
    })
}

#[expect(clippy::too_many_arguments, reason = "one call, and the pieces have nothing in common")]
fn check_wal(
    repository: &Repository,
    stanza: &str,
    targets: &mut [Target],
    options: &VerifyOptions<'_>,
    selection: &Selection,
    findings: &Findings,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<WalGap>> {
    let history = match repository.stanza_history(stanza) {
        Ok(history) => Some(history),
        Err(e) => {
            findings.failure(&layout::stanza_histories(stanza), e)?;
            None
        }
    };
    let named = targets.iter().filter(|t| t.stanza == stanza).map(|t| t.backup.history_id);
    let lost: BTreeSet<u32> =
        named.filter(|id| history.as_ref().is_some_and(|all| all.iter().all(|h| h.id != *id))).collect();
    let history = history.unwrap_or_default();
    for id in lost {
        let name = layout::stanza_history(stanza, id);
        let detail = "backups belong to this entry; without it nothing can be backed up or archived, nor WAL be fetched. \
                      Put the object back from a copy of the repository, or have 'repair history' make it anew";
        findings.damage(&name, Flaw::Missing, detail);
    }
    let mut archives: BTreeSet<String> = repository.wal_archives(stanza)?.into_iter().collect();
    archives
        .extend(targets.iter().filter(|t| t.stanza == stanza && t.backup.wal.is_some()).map(|t| t.backup.archive_id()));
    let former = repository.expired_backups(stanza)?;
    let mut gaps = Vec::new();
    for archive_id in archives {
        let mut backups: Vec<_> = targets
            .iter_mut()
            .filter(|t| t.stanza == stanza && t.backup.archive_id() == archive_id)
            .map(|t| (&t.backup, &mut t.verdict))
            .collect();
        let needed = backups.first().and_then(|(b, _)| b.wal.clone());
        let range = match (options.set, &needed) {
            (None, _) => WalRange::default(),
            (Some(_), Some((from, to))) => WalRange { from: Some(from), to: Some(to) },
            (Some(_), None) => continue,
        };
        let entry = history.iter().find(|h| h.archive_id() == archive_id);
        if entry.is_none() {
            findings.warn(format!("WAL archive '{archive_id}' of stanza '{stanza}' is not in the stanza's history"));
        }
        let mut bytes = 0;
        repository.wal_list(stanza, &archive_id, range, &mut |e| {
            bytes += e.size;
            Ok(())
        })?;
        observer.begin("verify WAL", bytes);
        let jobs = options.jobs;
        gaps.extend(wal::check(
            repository,
            stanza,
            &archive_id,
            entry,
            &mut backups,
            &former,
            range,
            jobs,
            selection,
            findings,
            observer,
            cancel,
        )?);
        observer.end();
    }
    Ok(gaps)
}

/// Checks the WAL of a stanza; again if backups expired meanwhile, as holes may be where theirs was.
#[expect(clippy::too_many_arguments, reason = "as check_wal")]
fn wal_of(
    repository: &Repository,
    stanza: &str,
    targets: &mut Vec<Target>,
    options: &VerifyOptions<'_>,
    selection: &Selection,
    findings: &Findings,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<WalGap>> {
    loop {
        let gaps = check_wal(repository, stanza, targets, options, selection, findings, observer, cancel)?;
        if !gaps.iter().any(|g| matches!(g.kind, GapKind::Needed | GapKind::Lost)) {
            return Ok(gaps);
        }
        let before = targets.len();
        retain_visible(repository, targets, |t| t.stanza == stanza)?;
        if targets.len() == before {
            return Ok(gaps);
        }
        for target in targets.iter_mut().filter(|t| t.stanza == stanza) {
            target.verdict.windows.clear();
            target.verdict.problems.retain(|p| !matches!(p, BackupProblem::Wal { .. }));
        }
    }
}

fn is_hit(target: &Target) -> bool {
    !target.verdict.problems.is_empty() || !target.verdict.windows.is_empty()
}

/// Forgets those of these backups that are not visible any more: they were expired while they were verified.
fn retain_visible(repository: &Repository, targets: &mut Vec<Target>, of: impl Fn(&Target) -> bool) -> Result<()> {
    let mut visible = HashSet::new();
    for stanza in targets.iter().filter(|t| of(t)).map(|t| t.stanza.clone()).collect::<BTreeSet<_>>() {
        visible.extend(repository.not_expired(&stanza)?);
    }
    targets.retain(|t| !of(t) || visible.contains(&t.backup.session));
    Ok(())
}
