//! What a backup will do, decided before it copies: which backup is its prior, and what of that can be trusted.
//!
//! Change detection is by size and time of change, with pgBackRest's safety rules: a changed timeline, another mode (online
//! or not), a time in the future, a time that went backwards, or a changed size under an unchanged time make every file be
//! read and compared. Beyond those, a file that changed within a moment of the prior's copying is read again: it may have
//! changed once more within the same tick of the file system's clock.
//!
//! Where there are WAL summaries they go first: what they say changed is read whatever its time, and what they say did
//! not change is not (`unread`). Size and time decide about everything else.

use super::dispatch::{link_text, parent_record, path_text};
use super::standby::Files;
use crate::Result;
use crate::clock::Clock;
use crate::observe::Cancel;
use crate::pg::datadir::{self, WalkOptions};
use crate::pg::summaries::ChangedBlocks;
use crate::repository::manifests::Manifest;
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::page::PageCheck;
use pgkeep_formats::repo::manifest::Entry;
use pgkeep_formats::repo::records::{BackupType, Commit};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Doubt about a time of change that has a fraction: several ticks of any kernel's clock.
const DOUBT_NANOS: i128 = 100_000_000;
/// Doubt about one in whole seconds: the coarsest file systems keep two.
const DOUBT_COARSE_NANOS: i128 = 2_000_000_000;
const SECOND_NANOS: i128 = 1_000_000_000;

/// Files written after everything else.
pub(super) const LATE: [&str; 3] = ["backup_label", "global/pg_control", "tablespace_map"];

/// What all threads of a backup must know.
pub(super) struct Plan {
    pub(super) pgdata: PathBuf,
    /// Where most files are read, if not there.
    pub(super) standby: Option<Files>,
    pub(super) walk: WalkOptions,
    pub(super) page_size: u32,
    pub(super) segment_blocks: u32,
    /// How pages are checked; `None` if they are not.
    pub(super) page_check: Option<PageCheck>,
    pub(super) backup_start: Option<Lsn>,
    /// When the prior began to copy, nanoseconds since the Unix epoch; `None` if every file must be read.
    pub(super) trusted_before: Option<i128>,
    /// What WAL summaries say; `None` without them.
    pub(super) changed: Option<ChangedBlocks>,
    /// Bytes that they spared reading.
    pub(super) spared: Arc<AtomicU64>,
}

impl Plan {
    /// True for files that the walk finds but that are written at the end.
    pub(super) fn is_late(&self, path: &str) -> bool {
        LATE.contains(&path)
    }

    /// True if a file is certainly what the prior holds.
    pub(super) fn is_unchanged(&self, now: &datadir::Entry, then: &Entry) -> bool {
        let Some(trusted_before) = self.trusted_before else { return false };
        let doubt = if then.modified_nanos == 0 { DOUBT_COARSE_NANOS } else { DOUBT_NANOS };
        now.size == then.size
            && (now.mtime, now.mtime_nanos) == (then.modified, then.modified_nanos)
            && i128::from(then.modified) * SECOND_NANOS + i128::from(then.modified_nanos) + doubt < trusted_before
    }
}

/// What a look at all files told.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Bytes of all files.
    pub(super) bytes: u64,
    /// Why times of change cannot be trusted, if so.
    pub(super) distrust: Option<String>,
}

/// Looks at every file, without reading any, and compares with the prior.
pub(super) fn survey(plan: &Plan, prior: Option<&Arc<Manifest>>, clock: &dyn Clock, cancel: &Cancel) -> Result<Survey> {
    let mut now = 0;
    let mut records = prior.map(|m| m.files().peekable());
    let mut survey = Survey::default();
    datadir::walk(&plan.pgdata, &plan.walk, cancel, |entry| {
        // Better known now than after hours of copying.
        link_text(&entry)?;
        let path = path_text(&entry.path)?;
        if !entry.kind.is_file() {
            return Ok(());
        }
        survey.bytes += entry.size;
        let record = parent_record(records.as_mut(), &path)?;
        if survey.distrust.is_some() || plan.is_late(&path) {
            return Ok(());
        }
        let time = (entry.mtime, entry.mtime_nanos);
        // The server goes on writing while its files are looked at: only what is later than this very moment is odd.
        if entry.mtime > now + 1 {
            now = clock.now().as_secs() as i64;
        }
        if entry.mtime > now + 1 {
            survey.distrust = Some(format!("file '{path}' has a time in the future"));
        } else if let Some(then) = record.map(|r| r.entry) {
            let then_time = (then.modified, then.modified_nanos);
            if time < then_time {
                survey.distrust = Some(format!("file '{path}' has an earlier time than in the prior backup"));
            } else if time == then_time && entry.size != then.size {
                survey.distrust =
                    Some(format!("file '{path}' has another size but the same time as in the prior backup"));
            }
        }
        Ok(())
    })?;
    Ok(survey)
}

/// The prior backup and the type that results: without a backup to build on it is a full.
pub(super) fn prior(asked: BackupType, candidates: &[Commit]) -> (BackupType, Option<&Commit>) {
    let prior = match asked {
        BackupType::Full => None,
        BackupType::Diff => candidates.iter().rev().find(|c| c.backup_type == BackupType::Full),
        BackupType::Incr => candidates.last(),
    };
    match prior {
        Some(_) => (asked, prior),
        None => (BackupType::Full, None),
    }
}

/// pgBackRest's dependencies of a backup: the full, and what of its prior's dependencies comes behind it, as far as they
/// are still there: with increments for ever and rules that keep some, the list would grow for ever too.
pub(super) fn reference(prior: Option<&Commit>, existing: &[Commit]) -> Vec<String> {
    let labels: HashSet<&str> = existing.iter().map(|c| c.label.as_str()).collect();
    prior.map_or_else(Vec::new, |prior| {
        let mut out: Vec<String> = prior.reference.iter().filter(|l| labels.contains(l.as_str())).cloned().collect();
        out.push(prior.label.clone());
        out.sort();
        out.dedup();
        out
    })
}
