//! Which archived WAL retention keeps: pure. Names are compared as text, timeline first, as pgBackRest does: of one
//! timeline that is the order in time, and what a server writes after a change of timeline has the higher number.
//!
//! *Invariant.* Of every backup that stays, all WAL from its first to its last segment stays. *Window*: from the first
//! segment of the oldest backup that counts for recovery onwards, everything stays.

use super::rules::{Ask, Fate, FullRetention, Keeps, Retention};
use crate::repository::{Backup, Needs, Unfinished};
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::repo::records::{BackupType, StanzaHistory};

/// What is kept of one archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalKeep {
    /// Everything.
    All(WhyAll),
    /// Nothing: it is of a former cluster that has no backup any more.
    Nothing,
    /// What retention needs.
    Since {
        /// The segment from which everything is kept.
        from: String,
        /// First and last segment that older backups need, and whose.
        ranges: Vec<WalOfBackup>,
        /// The lowest timeline of which the history is kept.
        timeline: u32,
    },
}

/// Segments that make a backup consistent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalOfBackup {
    /// The backup's label.
    pub label: String,
    /// Its first segment.
    pub first: String,
    /// Its last segment.
    pub last: String,
}

/// Why nothing of an archive can be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyAll {
    /// No option says how much is kept.
    NotConfigured,
    /// There are fewer backups than retention counts.
    TooFewBackups {
        /// What is counted.
        of: BackupType,
        /// How many there are.
        found: usize,
        /// How many there would have to be.
        wanted: u32,
    },
    /// There is no backup at all.
    NoBackup,
    /// The backup from which WAL is kept was taken from a stopped server: where it stands in WAL is not known.
    Offline(String),
    /// A backup has begun, and it is not known yet what it will need.
    Begun {
        /// Who takes it.
        host: String,
        /// When it began; seconds since the Unix epoch.
        started: i64,
    },
}

impl WalKeep {
    /// Whether an archived file stays. What has no name that a server gives stays.
    #[must_use]
    pub fn keeps(&self, name: &str) -> bool {
        if let Some(timeline) = TimelineId::parse_history_file_name(name) {
            return match self {
                Self::All(_) => true,
                Self::Nothing => false,
                Self::Since { timeline: oldest, .. } => timeline.0 >= *oldest,
            };
        }
        let Some(segment) = segment_of(name) else { return true };
        match self {
            Self::All(_) => true,
            Self::Nothing => false,
            Self::Since { from, ranges, .. } => {
                segment >= from.as_str()
                    || ranges.iter().any(|r| r.first.as_str() <= segment && segment <= r.last.as_str())
            }
        }
    }

    /// The name behind which nothing goes.
    #[must_use]
    pub fn end(&self) -> Option<&str> {
        match self {
            Self::Since { from, .. } => Some(from),
            _ => None,
        }
    }
}

/// The segment that a file is of: its first 24 digits.
fn segment_of(name: &str) -> Option<&str> {
    let segment = name.get(..24)?;
    segment.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)).then_some(segment)
}

/// What an archive is judged by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Archives<'a> {
    /// All backups and their fates, by label.
    pub backups: &'a [Backup],
    /// What becomes of them.
    pub fates: &'a [Fate],
    /// Backups that were committed while this was decided.
    pub late: &'a [Backup],
    /// Sessions that have not ended.
    pub unfinished: &'a [Unfinished],
    /// The clusters of the stanza, oldest first.
    pub history: &'a [StanzaHistory],
}

impl Archives<'_> {
    fn staying(&self) -> impl Iterator<Item = (&Backup, &Fate)> {
        self.backups.iter().zip(self.fates).filter(|(_, fate)| fate.stays())
    }
}

/// What is kept of an archive.
#[must_use]
pub(super) fn plan(archives: &Archives<'_>, archive_id: &str, retention: &Retention, ask: Ask<'_>) -> WalKeep {
    if let Some(begun) = archives.unfinished.iter().find(|u| u.needs == Needs::Unknown) {
        return WalKeep::All(WhyAll::Begun { host: begun.host.clone(), started: begun.started });
    }
    let is_of = |b: &&Backup| b.archive_id() == archive_id;
    let staying: Vec<&Backup> = archives.staying().map(|(b, _)| b).filter(is_of).collect();
    let late = || archives.late.iter().filter(is_of);
    let running: Vec<&str> = (archives.unfinished.iter())
        .filter_map(|u| match &u.needs {
            Needs::From(id, first) if id == archive_id => Some(first.as_str()),
            _ => None,
        })
        .collect();
    let current = archives.history.last().map(StanzaHistory::archive_id);
    let is_former =
        archives.history.iter().any(|h| h.archive_id() == archive_id) && current.as_deref() != Some(archive_id);
    let from = if let Ask::WalBefore(segment) = ask {
        if current.as_deref() != Some(archive_id) {
            return WalKeep::All(WhyAll::NotConfigured);
        }
        segment.to_owned()
    } else {
        let label = match window(archives, retention, ask) {
            Ok(label) => label,
            Err(why) => return WalKeep::All(why),
        };
        if staying.is_empty() && late().next().is_none() && running.is_empty() {
            return if is_former { WalKeep::Nothing } else { WalKeep::All(WhyAll::NoBackup) };
        }
        // If none of the archive's backups counts, all of them are older than the window: from the last one on, then.
        let counting: Vec<&&Backup> = staying.iter().filter(|b| b.label >= label).collect();
        let window = if counting.is_empty() { staying.last().into_iter().collect() } else { counting };
        if let Some(offline) = window.iter().find(|b| b.wal.is_none()) {
            return WalKeep::All(WhyAll::Offline(offline.label.clone()));
        }
        let first = window.iter().filter_map(|b| b.wal.as_ref()).map(|(first, _)| first.as_str());
        match first.chain(late().filter_map(first_segment)).chain(running.iter().copied()).min() {
            Some(first) => first.to_owned(),
            None => return WalKeep::All(WhyAll::NoBackup),
        }
    };
    // What begins in the middle of the gap between two backups would look like a loss: from the backup before it, then.
    let held = late().filter_map(first_segment).chain(running).min().filter(|held| *held <= from.as_str());
    let from = match held {
        Some(held) => {
            let before = staying.iter().filter_map(|b| first_segment(b)).filter(|first| *first <= held).max();
            before.unwrap_or(held).to_owned()
        }
        None => from,
    };
    let ranges: Vec<WalOfBackup> = (staying.iter().copied())
        .chain(late())
        .filter_map(|b| b.wal.as_ref().map(|(first, last)| (b, first, last)))
        .filter(|(_, first, _)| **first < from)
        .map(|(b, first, last)| WalOfBackup { label: b.label.clone(), first: first.clone(), last: last.clone() })
        .collect();
    let lowest = ranges.iter().map(|r| r.first.as_str()).chain([from.as_str()]).min();
    let timeline = lowest.and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok()).unwrap_or(0);
    WalKeep::Since { from, ranges, timeline }
}

fn first_segment(backup: &Backup) -> Option<&str> {
    backup.wal.as_ref().map(|(first, _)| first.as_str())
}

/// The label of the oldest backup from which WAL is kept without gaps.
fn window(archives: &Archives<'_>, retention: &Retention, ask: Ask<'_>) -> Result<String, WhyAll> {
    let staying: Vec<(&Backup, &Fate)> = archives.staying().collect();
    if staying.is_empty() {
        return Err(WhyAll::NoBackup);
    }
    // A pin keeps a backup, and no way forward from it.
    let by_rule = |fate: &Fate| match fate {
        Fate::Stays(why) => why.iter().any(|w| !matches!(w, Keeps::Pinned(_))),
        Fate::Goes(_) => false,
    };
    if retention.archive.is_none() && retention.keeps() && !matches!(ask, Ask::Oldest) {
        let oldest = staying.iter().find(|(_, fate)| by_rule(fate)).or_else(|| staying.first());
        return oldest.map(|(b, _)| b.label.clone()).ok_or(WhyAll::NoBackup);
    }
    let of = retention.archive_type.unwrap_or(BackupType::Full);
    let counts = |b: &Backup| match of {
        BackupType::Full => b.backup_type == BackupType::Full,
        BackupType::Diff => b.backup_type != BackupType::Incr,
        BackupType::Incr => true,
    };
    let counting: Vec<&Backup> =
        staying.iter().filter(|(b, fate)| counts(b) && by_rule(fate)).map(|(b, _)| *b).collect();
    let wanted = match (retention.archive, of, retention.full) {
        (Some(n), _, _) => n,
        // One full fewer than there were, and WAL goes with it.
        (None, BackupType::Full, _) if matches!(ask, Ask::Oldest) => counting.len() as u32,
        (None, BackupType::Full, Some(FullRetention::Count(n))) => n,
        (None, BackupType::Full, Some(FullRetention::Days(_))) => counting.len() as u32,
        (None, BackupType::Diff, _) => retention.diff.ok_or(WhyAll::NotConfigured)?,
        _ => return Err(WhyAll::NotConfigured),
    };
    let index = counting.len().checked_sub(wanted as usize);
    match index.and_then(|at| counting.get(at)) {
        Some(oldest) => Ok(oldest.label.clone()),
        None => Err(WhyAll::TooFewBackups { of, found: counting.len(), wanted }),
    }
}
