//! What each path under PGDATA is, by its name alone.
//!
//! Paths are relative to PGDATA, with `/` between parts, and name files (or the links in `pg_tblspc`).
//! Tablespaces appear under `pg_tblspc/<oid>/`, as the server sees them. Whether a class is copied into a
//! backup is for the caller to decide; [`PathClass::is_rebuilt_by_server`] says what the server itself never needs back.
//!
//! Source: `common/relpath.c`, `storage/file/reinit.c`, `basebackup.c`, `access/transam/slru.c`, equal enough in 13 to 18.

use super::wal::ArchiveName;
use std::fmt;

/// Which of a relation's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The data itself.
    Main,
    /// Free space map.
    Fsm,
    /// Visibility map.
    Vm,
    /// What an unlogged relation is reset to after a crash.
    Init,
}

impl Fork {
    fn suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Fsm => "_fsm",
            Self::Vm => "_vm",
            Self::Init => "_init",
        }
    }
}

/// A segment of a fork of a relation: a sequence of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    /// Oid of the tablespace; `None` for the default one and for shared relations in `global`.
    pub tablespace_oid: Option<u32>,
    /// Oid of the database; 0 for shared relations.
    pub database_oid: u32,
    /// Number in the file name, not the relation's oid.
    pub filenode: u32,
    /// Which fork.
    pub fork: Fork,
    /// Number of the segment; the first has no number in its name.
    pub segment: u32,
    /// Backend that owns the temporary relation; `None` for others.
    pub temporary: Option<u32>,
}

impl RelationFile {
    /// Block number of the segment's first page, counted over the whole fork: what its checksum includes. `None`
    /// if a fork cannot have that many.
    #[must_use]
    pub fn first_block(&self, segment_blocks: u32) -> Option<u32> {
        self.segment.checked_mul(segment_blocks)
    }

    /// True if the relation belongs to one session and vanishes with it.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Name of the file in its database directory.
    #[must_use]
    pub fn file_name(&self) -> String {
        let owner = self.temporary.map(|backend| format!("t{backend}_")).unwrap_or_default();
        let segment = if self.segment == 0 { String::new() } else { format!(".{}", self.segment) };
        format!("{owner}{}{}{segment}", self.filenode, self.fork.suffix())
    }

    /// Path of the file relative to PGDATA. `tablespace_directory` is the version's, as in
    /// [`Facts::tablespace_directory`](super::version::Facts).
    #[must_use]
    pub fn path(&self, tablespace_directory: &str) -> String {
        let name = self.file_name();
        match (self.tablespace_oid, self.database_oid) {
            (Some(oid), database) => format!("pg_tblspc/{oid}/{tablespace_directory}/{database}/{name}"),
            (None, 0) => format!("global/{name}"),
            (None, database) => format!("base/{database}/{name}"),
        }
    }

    /// Parses a file's name; the other fields come from its directory.
    fn parse(name: &str, tablespace_oid: Option<u32>, database_oid: u32) -> Option<Self> {
        let (temporary, rest) = match name.strip_prefix('t') {
            Some(rest) => {
                let (backend, rest) = rest.split_once('_')?;
                (Some(number(backend)?), rest)
            }
            None => (None, name),
        };
        let (stem, segment) = match rest.split_once('.') {
            Some((stem, segment)) => (stem, positive(segment)?),
            None => (rest, 0),
        };
        let (filenode, fork) = match stem.split_once('_') {
            None => (stem, Fork::Main),
            Some((filenode, "fsm")) => (filenode, Fork::Fsm),
            Some((filenode, "vm")) => (filenode, Fork::Vm),
            Some((filenode, "init")) => (filenode, Fork::Init),
            Some(_) => return None,
        };
        let filenode = positive(filenode)?;
        Some(Self { tablespace_oid, database_oid, filenode, fork, segment, temporary })
    }
}

/// Which of the server's small logs of transaction facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slru {
    /// `pg_xact`: commit status.
    Xact,
    /// `pg_multixact/members`.
    MultixactMembers,
    /// `pg_multixact/offsets`.
    MultixactOffsets,
    /// `pg_commit_ts`: commit times.
    CommitTs,
    /// `pg_subtrans`: rebuilt at start.
    Subtrans,
    /// `pg_notify`: emptied at start.
    Notify,
    /// `pg_serial`: emptied at start.
    Serial,
}

/// What a path under PGDATA is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathClass {
    /// Pages of a relation.
    Relation(RelationFile),
    /// `pg_filenode.map` of a database, or of the shared catalogs.
    RelationMap,
    /// `pg_internal.init`: a cache, rebuilt when missing.
    RelationCache,
    /// `global/pg_control`.
    ControlFile,
    /// `PG_VERSION`, of the cluster or of a database.
    Version,
    /// A segment of a transaction log.
    Slru(Slru),
    /// A file in `pg_wal` that the server archives: segment, partial segment, history.
    Wal(ArchiveName),
    /// `pg_wal/archive_status/…`: what has been archived.
    ArchiveStatus,
    /// `pg_wal/summaries/…`: WAL summaries, from 17 on.
    WalSummary,
    /// Anything else in `pg_wal`.
    WalOther,
    /// Configuration at the top of PGDATA.
    Configuration,
    /// `backup_label`, and `backup_label.old`.
    BackupLabel,
    /// `tablespace_map`, and `tablespace_map.old`.
    TablespaceMap,
    /// `backup_manifest`, and its temporary.
    BackupManifest,
    /// `recovery.signal` or `standby.signal`, and the `recovery.conf` that older servers had in their place.
    RecoverySignal,
    /// `postmaster.pid` or `postmaster.opts`.
    Postmaster,
    /// `current_logfiles`.
    CurrentLogfiles,
    /// Sort and hash files, and other files that begin with `pgsql_tmp`, or lie in a directory that does.
    Temporary,
    /// `pg_stat/…`: statistics kept over a restart.
    Statistics,
    /// `pg_stat_tmp/…`.
    StatisticsTemporary,
    /// `pg_replslot/…`.
    ReplicationSlot,
    /// `pg_logical/…`.
    Logical,
    /// `pg_snapshots/…`: exported snapshots.
    Snapshot,
    /// `pg_dynshmem/…`.
    DynamicMemory,
    /// `pg_twophase/…`: prepared transactions.
    TwoPhase,
    /// `pg_tblspc/<oid>`: the link to a tablespace.
    TablespaceLink(u32),
    /// None of these.
    Unknown,
}

impl PathClass {
    /// True for what the server empties or rebuilds when it starts on a restored backup; base backups of the server
    /// itself leave it out. Temporary relations are among it; unlogged ones need their directory to be told.
    #[must_use]
    pub fn is_rebuilt_by_server(&self) -> bool {
        match self {
            Self::Relation(file) => file.is_temporary(),
            Self::Slru(slru) => matches!(slru, Slru::Subtrans | Slru::Notify | Slru::Serial),
            Self::RelationCache
            | Self::ArchiveStatus
            | Self::Postmaster
            | Self::CurrentLogfiles
            | Self::Temporary
            | Self::StatisticsTemporary
            | Self::ReplicationSlot
            | Self::Snapshot
            | Self::DynamicMemory => true,
            _ => false,
        }
    }
}

/// Says what `path` is. Never fails: what is not recognised is [`PathClass::Unknown`], and every rule that
/// matches a name matches it whole.
#[must_use]
pub fn classify(path: &str) -> PathClass {
    let (directories, name) = path.rsplit_once('/').unwrap_or(("", path));
    if path.split('/').any(|part| part.starts_with("pgsql_tmp")) {
        return PathClass::Temporary;
    }
    let (top, below) = directories.split_once('/').unwrap_or((directories, ""));
    match (top, below) {
        ("", _) => classify_top(name),
        ("global", "") if name == "pg_control" => PathClass::ControlFile,
        ("global", "") => classify_in_database(name, None, 0),
        ("base", database) => match positive(database) {
            Some(database) => classify_in_database(name, None, database),
            None => PathClass::Unknown,
        },
        ("pg_tblspc", inside) => classify_in_tablespaces(inside, name),
        ("pg_wal", "") => ArchiveName::parse(name).map_or(PathClass::WalOther, PathClass::Wal),
        ("pg_wal", "archive_status") => PathClass::ArchiveStatus,
        ("pg_wal", "summaries") => PathClass::WalSummary,
        ("pg_wal", _) => PathClass::WalOther,
        ("pg_xact", "") => classify_slru(name, Slru::Xact),
        ("pg_multixact", "members") => classify_slru(name, Slru::MultixactMembers),
        ("pg_multixact", "offsets") => classify_slru(name, Slru::MultixactOffsets),
        ("pg_commit_ts", "") => classify_slru(name, Slru::CommitTs),
        // Nothing in these is ever needed again, whatever its name.
        ("pg_subtrans", _) => PathClass::Slru(Slru::Subtrans),
        ("pg_notify", _) => PathClass::Slru(Slru::Notify),
        ("pg_serial", _) => PathClass::Slru(Slru::Serial),
        ("pg_stat", _) => PathClass::Statistics,
        ("pg_stat_tmp", _) => PathClass::StatisticsTemporary,
        ("pg_replslot", _) => PathClass::ReplicationSlot,
        ("pg_logical", _) => PathClass::Logical,
        ("pg_snapshots", _) => PathClass::Snapshot,
        ("pg_dynshmem", _) => PathClass::DynamicMemory,
        ("pg_twophase", _) => PathClass::TwoPhase,
        _ => PathClass::Unknown,
    }
}

fn classify_top(name: &str) -> PathClass {
    match name {
        "PG_VERSION" => PathClass::Version,
        "postgresql.conf" | "postgresql.auto.conf" | "postgresql.auto.conf.tmp" | "pg_hba.conf" | "pg_ident.conf" => {
            PathClass::Configuration
        }
        "backup_label" | "backup_label.old" => PathClass::BackupLabel,
        "tablespace_map" | "tablespace_map.old" => PathClass::TablespaceMap,
        "backup_manifest" | "backup_manifest.tmp" => PathClass::BackupManifest,
        "recovery.signal" | "standby.signal" | "recovery.conf" | "recovery.done" => PathClass::RecoverySignal,
        "postmaster.pid" | "postmaster.opts" => PathClass::Postmaster,
        "current_logfiles" | "current_logfiles.tmp" => PathClass::CurrentLogfiles,
        _ => PathClass::Unknown,
    }
}

fn classify_in_database(name: &str, tablespace_oid: Option<u32>, database_oid: u32) -> PathClass {
    match name {
        "PG_VERSION" if database_oid != 0 => PathClass::Version,
        "pg_filenode.map" => PathClass::RelationMap,
        _ if is_relation_cache(name) => PathClass::RelationCache,
        _ => RelationFile::parse(name, tablespace_oid, database_oid).map_or(PathClass::Unknown, PathClass::Relation),
    }
}

/// `pg_internal.init`, or with the process number of the server process that was writing it.
fn is_relation_cache(name: &str) -> bool {
    match name.strip_prefix("pg_internal.init") {
        Some("") => true,
        Some(rest) => rest.strip_prefix('.').is_some_and(|pid| number(pid).is_some()),
        None => false,
    }
}

/// `inside` is what lies between `pg_tblspc/` and the name: `<oid>/PG_<major>_<catalog version>/<database>`.
fn classify_in_tablespaces(inside: &str, name: &str) -> PathClass {
    let mut parts = inside.split('/');
    let all = (parts.next().filter(|p| !p.is_empty()), parts.next(), parts.next(), parts.next());
    match all {
        (None, None, None, None) => positive(name).map_or(PathClass::Unknown, PathClass::TablespaceLink),
        (Some(oid), Some(directory), Some(database), None) if is_tablespace_directory(directory) => {
            match (positive(oid), positive(database)) {
                (Some(oid), Some(database)) => classify_in_database(name, Some(oid), database),
                _ => PathClass::Unknown,
            }
        }
        _ => PathClass::Unknown,
    }
}

/// True for `PG_<major>_<catalog version>`: a directory that some version made in a tablespace.
#[must_use]
pub fn is_tablespace_directory(name: &str) -> bool {
    let parts = name.strip_prefix("PG_").and_then(|rest| rest.split_once('_'));
    parts.is_some_and(|(major, catalog)| positive(major).is_some() && positive(catalog).is_some())
}

/// Names of segments have four to six hex digits, or fifteen where numbers are 64 bits wide.
fn classify_slru(name: &str, slru: Slru) -> PathClass {
    let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    match name.len() {
        4..=6 | 15 if name.bytes().all(upper_hex) => PathClass::Slru(slru),
        _ => PathClass::Unknown,
    }
}

/// A decimal number without sign or leading zeros, as the server prints it.
fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn positive(text: &str) -> Option<u32> {
    number(text).filter(|n| *n > 0)
}

impl fmt::Display for RelationFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tablespace_oid {
            Some(oid) => write!(f, "{}/{} in tablespace {oid}", self.database_oid, self.file_name()),
            None => write!(f, "{}/{}", self.database_oid, self.file_name()),
        }
    }
}

#[cfg(test)]
mod tests;
