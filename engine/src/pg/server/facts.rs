//! What a server says of itself.

use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::version::Version;
use pgkeep_formats::pg::wal::WalSegmentSize;
use std::path::PathBuf;

/// The server's setting `archive_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveMode {
    /// No archiving.
    Off,
    /// The primary archives.
    On,
    /// Standbys archive as well.
    Always,
}

/// Who a server is and how it is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Its version.
    pub version: Version,
    /// The same as `server_version_num`.
    pub version_num: u32,
    /// System identifier.
    pub system_id: u64,
    /// Catalog version.
    pub catalog_version: u32,
    /// `data_directory`, as the server spells it.
    pub data_directory: PathBuf,
    /// Size of a WAL segment.
    pub wal_segment_size: WalSegmentSize,
    /// Bytes of a page.
    pub block_size: u32,
    /// Pages of a relation segment.
    pub relation_segment_pages: u32,
    /// Whether pages have checksums.
    pub checksums: bool,
    /// `archive_mode`.
    pub archive_mode: ArchiveMode,
    /// `archive_command`; empty if there is none or a library archives.
    pub archive_command: String,
    /// `archive_library`; empty if there is none or the version knows none.
    pub archive_library: String,
    /// `wal_level`.
    pub wal_level: String,
    /// True on a standby and during any recovery.
    pub in_recovery: bool,
    /// Timeline written now, on a standby that of its last restart point.
    pub timeline: TimelineId,
}

/// A database of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its number, the name of its directory.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Whether one can connect to it.
    pub allows_connections: bool,
    /// Whether it is a template.
    pub is_template: bool,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its number, the name of its link.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub location: PathBuf,
}
