//! The facts `info` shows. Numbers of statuses and their messages are pgBackRest's.

use crate::lock::Progress;
use crate::repository::Backup;
use crate::repository::wal::WalHole;
use pgkeep_formats::repo::records::Drill;

/// How much to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// Everything.
    #[default]
    Full,
    /// Only what is running.
    Progress,
}

/// Everything, stanza by stanza.
#[derive(Debug)]
pub struct Info {
    /// Sorted by name.
    pub stanzas: Vec<StanzaInfo>,
    /// How much is in them.
    pub detail: Detail,
}

/// One stanza, merged over the repositories.
#[derive(Debug)]
pub struct StanzaInfo {
    /// Its name.
    pub name: String,
    /// How it stands in all.
    pub status: Status,
    /// What runs on this host.
    pub locks: Locks,
    /// How it is sealed.
    pub cipher: StanzaCipher,
    /// The repositories, in their order.
    pub repos: Vec<RepoInfo>,
    /// Clusters, oldest first, repository by repository.
    pub databases: Vec<DatabaseInfo>,
    /// WAL ranges of the clusters, in the same order.
    pub archives: Vec<ArchiveInfo>,
    /// Backups by the time they ended.
    pub backups: Vec<BackupInfo>,
    /// The newest drills by the time they ended, over all repositories.
    pub drills: Vec<DrillInfo>,
    /// Version and system identifier of the current cluster, as the first repository that knows says.
    pub current: Option<(u32, u64)>,
}

/// How something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The number readers branch on.
    pub code: Code,
    /// Its text; of a repository with [`Code::Other`] the error.
    pub message: String,
}

/// Numbers of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// All is well.
    Ok = 0,
    /// The stanza does not exist.
    MissingStanzaPath = 1,
    /// It has no backups.
    NoBackup = 2,
    /// It has backups or WAL, but no history.
    MissingStanzaData = 3,
    /// Repositories differ in this.
    Mixed = 4,
    /// The current clusters of the repositories differ.
    DatabaseMismatch = 5,
    /// The backup asked for does not exist.
    BackupMissing = 6,
    /// Something else; see the repositories' messages.
    Other = 99,
}

impl Code {
    /// The text that goes with the number.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::MissingStanzaPath => "missing stanza path",
            Self::NoBackup => "no valid backups",
            Self::MissingStanzaData => "missing stanza data",
            Self::Mixed => "different across repos",
            Self::DatabaseMismatch => "database mismatch across repos",
            Self::BackupMissing => "requested backup not found",
            Self::Other => "other",
        }
    }
}

/// Whether a repository is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CipherName {
    /// Anyone who can read the store can read the backups.
    None,
    /// A key is needed.
    Sealed,
}

/// Whether a stanza is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StanzaCipher {
    /// In all repositories alike.
    Same(CipherName),
    /// Not in all repositories.
    Mixed,
}

/// One repository of a stanza.
#[derive(Debug, Clone)]
pub struct RepoInfo {
    /// Its number.
    pub key: u32,
    /// Whether it is sealed.
    pub cipher: CipherName,
    /// How the stanza stands in it.
    pub status: Status,
}

/// A cluster a stanza has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseInfo {
    /// Number in the history.
    pub id: u32,
    /// Number of the repository.
    pub repo_key: u32,
    /// System identifier.
    pub system_id: u64,
    /// PostgreSQL major.
    pub version: u32,
}

/// The WAL of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveInfo {
    /// Its name: `<version>-<history id>`.
    pub id: String,
    /// Number of the cluster in the history.
    pub history_id: u32,
    /// Number of the repository.
    pub repo_key: u32,
    /// First and last complete segment.
    pub bounds: Option<(String, String)>,
    /// What recovery from its newest backup lacks.
    pub holes: Vec<WalHole>,
}

/// One backup in one repository.
#[derive(Debug, Clone)]
pub struct BackupInfo {
    /// Number of the repository.
    pub repo_key: u32,
    /// Whether databases, links, tablespaces and files with errors are shown: it was asked for by its label.
    pub detailed: bool,
    /// Until when retention leaves it alone, if it was pinned; seconds since the Unix epoch.
    pub pinned_until: Option<i64>,
    /// Its record.
    pub commit: Backup,
}

impl BackupInfo {
    /// Databases that are not templates, as pgBackRest lists them.
    pub fn databases(&self) -> impl Iterator<Item = (&str, u32)> {
        let databases = self.commit.databases.iter().map(|d| (d.name.as_str(), d.oid));
        databases.filter(|(name, _)| !matches!(*name, "template0" | "template1"))
    }

    /// Whether pages failed their checksum; `None` if none were verified.
    #[must_use]
    pub fn error(&self) -> Option<bool> {
        (self.commit.page_checksums || self.commit.has_errors()).then(|| self.commit.has_errors())
    }
}

/// One drill, recorded in one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillInfo {
    /// Number of the repository.
    pub repo_key: u32,
    /// Seconds from its end until now; `None` if nobody said when now is.
    pub age: Option<u64>,
    /// Its record.
    pub drill: Drill,
}

/// What runs on this host for a stanza.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locks {
    /// Backups and expires, in all.
    pub backup: LockInfo,
    /// Those of them that say how far they are, by repository.
    pub backup_repos: Vec<RepoLock>,
    /// Restores, in all.
    pub restore: LockInfo,
}

/// Whether a lock is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LockInfo {
    /// Someone holds it.
    pub held: bool,
    /// How far the holders are that say so.
    pub progress: Option<Progress>,
}

impl LockInfo {
    pub(super) fn add(&mut self, progress: Option<Progress>) {
        self.held = true;
        if let Some(more) = progress {
            let sum = self.progress.unwrap_or(Progress { done: 0, total: 0 });
            let (done, total) = (sum.done.saturating_add(more.done), sum.total.saturating_add(more.total));
            self.progress = Some(Progress { done, total });
        }
    }
}

/// A backup that is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RepoLock {
    /// Number of the repository.
    pub key: u32,
    /// How far it is.
    pub progress: Progress,
}
