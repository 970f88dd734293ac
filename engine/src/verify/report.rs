//! What a verification found, and the place where its threads put it.

use crate::store::StoreError;
use crate::{Error, Kind, Result};
use std::sync::{Mutex, PoisonError};

/// Damaged objects and warnings described; more are only counted. Enough to see what happened to a store.
pub const DESCRIBED_MAX: usize = 1000;
/// Damaged files named of one backup.
pub const FILES_NAMED_MAX: usize = 16;

/// What is wrong with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flaw {
    /// It is not there.
    Missing,
    /// Its bytes are not what was written: altered, cut off, or swapped with others.
    Damaged,
    /// It cannot be read, or not by this program or with the key at hand.
    Unreadable,
    /// It is whole, but contradicts another one.
    Inconsistent,
}

/// A damaged object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Its name.
    pub object: String,
    /// What is wrong.
    pub flaw: Flaw,
    /// The same in words.
    pub detail: String,
}

/// Why a backup cannot be restored, or not in whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupProblem {
    /// Its manifest cannot be read to the end.
    Manifest {
        /// Why.
        detail: String,
    },
    /// Files of it are damaged.
    Files {
        /// How many.
        count: u64,
        /// The first [`FILES_NAMED_MAX`].
        named: Vec<String>,
    },
    /// WAL without which it never becomes consistent is missing or damaged.
    Wal {
        /// First missing segment.
        first: String,
        /// Last missing segment.
        last: String,
    },
    /// Its reference record is missing, damaged or lacks a chunk: garbage collection could take what it needs. Until then
    /// it can be restored.
    References {
        /// Why.
        detail: String,
    },
}

impl BackupProblem {
    /// True if the backup cannot be restored, or not in whole.
    #[must_use]
    pub fn hinders_restore(&self) -> bool {
        !matches!(self, Self::References { .. })
    }
}

/// A recovery window that ends early: WAL beyond the gap is archived, but cannot be reached from this backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowHit {
    /// Timeline followed.
    pub timeline: u32,
    /// Last segment that recovery reaches.
    pub reaches: String,
    /// First segment behind the gap.
    pub resumes: String,
}

/// What was found about one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupVerdict {
    /// Its stanza.
    pub stanza: String,
    /// Its label.
    pub label: String,
    /// Why it cannot be restored, or not for long; empty if all is well.
    pub problems: Vec<BackupProblem>,
    /// Where recovery from it ends early.
    pub windows: Vec<WindowHit>,
}

/// What a gap in the WAL means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapKind {
    /// A backup needs it to become consistent.
    Needed,
    /// Recovery from a backup to what is archived behind it is impossible.
    Lost,
    /// The backup that needs it to become consistent keeps it itself, and no other one does. No damage to that backup; the
    /// windows of earlier ones end before it.
    Kept,
    /// It lies between the end of one backup and the start of a later one, exactly as retention leaves it. No damage.
    Expired,
    /// It lies before all backups. No damage.
    Unused,
}

/// Missing or damaged segments in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalGap {
    /// The stanza.
    pub stanza: String,
    /// The archive.
    pub archive_id: String,
    /// First missing segment.
    pub first: String,
    /// Last missing segment.
    pub last: String,
    /// How many.
    pub segments: u64,
    /// What it means.
    pub kind: GapKind,
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Chunks opened, decoded and compared with their names.
    pub chunks: u64,
    /// Bytes of them when decoded.
    pub plain_bytes: u64,
    /// Index segments.
    pub index_segments: u64,
    /// Backups whose manifests were walked.
    pub backups: u64,
    /// Archived files.
    pub wal_files: u64,
    /// Bytes of them when decoded.
    pub wal_bytes: u64,
    /// Keys and small records.
    pub records: u64,
    /// Packs that were left out: only their sizes were compared.
    pub unread_packs: u64,
    /// Their bytes.
    pub unread_bytes: u64,
    /// Archived files that were left out.
    pub unread_wal: u64,
}

/// What no visible backup uses. It costs space and is no damage: garbage collection takes it, or a running backup made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Garbage {
    /// Packs of which no chunk is used.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a verification found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// How much was looked at.
    pub counts: Counts,
    /// Damaged objects, by name; at most [`DESCRIBED_MAX`].
    pub damage: Vec<Damage>,
    /// How many damages there are in all.
    pub damage_total: u64,
    /// What is odd but harms nothing, such as objects that are not ours; at most [`DESCRIBED_MAX`].
    pub warnings: Vec<String>,
    /// How many warnings there are in all.
    pub warnings_total: u64,
    /// The backups verified, by stanza and label.
    pub backups: Vec<BackupVerdict>,
    /// Gaps in the WAL.
    pub gaps: Vec<WalGap>,
    /// Packs that were read and are marked as damaged: later backups store again what they held.
    pub marked: u64,
    /// What is not used; none if only a part of the repository was verified, or manifests could not be read.
    pub garbage: Option<Garbage>,
}

impl VerifyReport {
    /// True if something that was stored is gone or is not what was stored; missing WAL alone is not that, for it may
    /// never have been archived.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        let not_wal = |p: &BackupProblem| !matches!(p, BackupProblem::Wal { .. });
        self.damage_total > 0 || self.backups.iter().any(|b| b.problems.iter().any(not_wal))
    }

    /// True if everything is there and whole.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let harmless = |g: &WalGap| matches!(g.kind, GapKind::Kept | GapKind::Expired | GapKind::Unused);
        self.damage_total == 0
            && self.gaps.iter().all(harmless)
            && self.backups.iter().all(|b| b.problems.is_empty() && b.windows.is_empty())
    }
}

#[derive(Default)]
struct Found {
    counts: Counts,
    damage: Vec<Damage>,
    damage_total: u64,
    warnings: Vec<String>,
    warnings_total: u64,
}

/// Collects findings from all threads.
#[derive(Default)]
pub(super) struct Findings(Mutex<Found>);

impl Findings {
    fn change(&self, change: impl FnOnce(&mut Found)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn damage(&self, object: &str, flaw: Flaw, detail: impl Into<String>) {
        let damage = Damage { object: object.to_owned(), flaw, detail: detail.into() };
        tracing::debug!(target: crate::observe::DETAIL, "'{}' is {:?}: {}", damage.object, flaw, damage.detail);
        self.change(|f| {
            f.damage_total += 1;
            if f.damage.len() < DESCRIBED_MAX {
                f.damage.push(damage);
            }
        });
    }

    /// Notes a failure to read or open an object; what concerns the run and not the object ends the run.
    pub(super) fn failure(&self, object: &str, error: Error) -> Result<()> {
        let flaw = flaw_of(error)?;
        self.damage(object, flaw.0, flaw.1);
        Ok(())
    }

    /// True if an object whose name begins so was found damaged.
    pub(super) fn concerns(&self, prefix: &str) -> bool {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.damage.iter().any(|d| d.object.starts_with(prefix))
    }

    pub(super) fn warn(&self, text: String) {
        self.change(|f| {
            f.warnings_total += 1;
            if f.warnings.len() < DESCRIBED_MAX {
                f.warnings.push(text);
            }
        });
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        self.change(|f| add(&mut f.counts));
    }

    pub(super) fn into_report(self) -> VerifyReport {
        let mut f = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        f.damage.sort_by(|a, b| (&a.object, a.flaw, &a.detail).cmp(&(&b.object, b.flaw, &b.detail)));
        f.warnings.sort();
        VerifyReport {
            counts: f.counts,
            damage: f.damage,
            damage_total: f.damage_total,
            warnings: f.warnings,
            warnings_total: f.warnings_total,
            ..VerifyReport::default()
        }
    }
}

/// What a failure says of the object it happened to.
///
/// # Errors
/// The failure itself if it says nothing of the object: an interruption, or a store that is not there at all.
pub(super) fn flaw_of(error: Error) -> Result<(Flaw, String)> {
    if error.concerns_the_run() {
        return Err(error);
    }
    let flaw = match (error.root(), error.kind()) {
        (_, Kind::FileMissing) => Flaw::Missing,
        // A span past the end: the object was cut off.
        (Error::Store(StoreError::TooShort { .. }), _) => Flaw::Damaged,
        (Error::Store(_), _) | (_, Kind::FeatureNotSupported | Kind::Crypto) => Flaw::Unreadable,
        _ => Flaw::Damaged,
    };
    Ok((flaw, error.chain()))
}
