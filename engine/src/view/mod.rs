//! The read-only tree of one backup: list, look up, read. Knows nothing of FUSE.
//!
//! Paths are relative to PGDATA, `/`-separated, without leading slash; the root is the empty path. What lies behind a
//! link of PGDATA (tablespaces, a linked `pg_wal`) is listed below the link's own path.
//!
//! [`BackupSnapshot`] is the tree of a backup in a repository; its files read through a [`ChunkCache`] that all backups
//! and clones of a process share.

mod backup;
mod cache;
mod content;
mod recent;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use backup::BackupSnapshot;
pub use cache::{CACHE_BYTES_DEFAULT, ChunkCache};

use crate::Result;
use std::sync::Arc;

/// What one entry of a backup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A directory that was reached through a symbolic link; its content is listed below it.
    LinkedDirectory {
        /// Where the link pointed.
        destination: String,
    },
    /// A regular file.
    File,
    /// A file that was reached through a symbolic link.
    LinkedFile {
        /// Where the link pointed.
        destination: String,
    },
}

/// One entry of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to PGDATA.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, such as 0o600.
    pub mode: u32,
    /// Owner's name as on the server, or its number in digits.
    pub user: String,
    /// Group's name as on the server, or its number in digits.
    pub group: String,
    /// Last change, seconds since the Unix epoch.
    pub modified: i64,
    /// Bytes; 0 for directories.
    pub size: u64,
}

impl Entry {
    /// True for directories, linked or not.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, EntryKind::Directory | EntryKind::LinkedDirectory { .. })
    }
}

/// The tree of one backup. Any thread may call any method; each may block on the store.
pub trait Snapshot: Send + Sync {
    /// Bytes of a PostgreSQL page in this cluster.
    fn page_size(&self) -> u32;

    /// Calls `each` for every entry in path order, parents before children.
    ///
    /// # Errors
    /// What the store, the decoder or `each` said.
    fn entries(&self, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()>;

    /// One entry; the root is the empty path.
    ///
    /// # Errors
    /// What the store or the decoder said; an absent path is `Ok(None)`.
    fn lookup(&self, path: &str) -> Result<Option<Entry>>;

    /// The direct children of a directory, in path order.
    ///
    /// # Errors
    /// What the store or the decoder said.
    fn children(&self, directory: &str) -> Result<Vec<Entry>>;

    /// Opens a file's content. Cheap to hold; reads fetch what they need.
    ///
    /// # Errors
    /// `FileMissing` if there is no such file, and what the store or the decoder said.
    fn open(&self, path: &str) -> Result<Arc<dyn Content>>;
}

/// The content of one file of a backup.
pub trait Content: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`; returns how many bytes were read, fewer than asked only at the end of the file.
    /// Every byte was checked against the name of its chunk.
    ///
    /// # Errors
    /// What the store or the decoder said; `buffer` is then undefined.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;
}
