//! The data directory as it lies on disk: its files in order, what of them a backup copies, who runs on it.
//!
//! [`walk`] streams entries in [`path_cmp`] order, parents before their children, holding one directory's
//! names per level in memory. Links are followed: a tablespace's files appear under `pg_tblspc/<oid>/`,
//! other linked files and directories under the path of their link, so that no two entries share a path.
//! A running server creates and removes files all the while; what vanishes is not reported. What is left
//! out of backups is decided in `rules`, what links may do in `links`. One thread, no state between calls.
//!
//! Source: `backup/basebackup.c` for what the server itself leaves out.

mod links;
pub mod names;
mod process;
mod rules;
#[cfg(test)]
mod tests;
mod walk;

pub use process::{Control, Postmaster, is_running, postmaster, read_control};
pub use rules::Exclusions;
pub use walk::walk;

use pgkeep_formats::pg::version::Version;
use std::cmp::Ordering;
use std::path::PathBuf;
use std::sync::Arc;

/// What to walk for.
#[derive(Debug, Clone)]
pub struct WalkOptions {
    /// The cluster's version: tablespaces hold one directory for each version that uses them.
    pub version: Version,
    /// Whether the server runs; its WAL then comes from the archive and is left out.
    pub online: bool,
    /// What the user wants left out besides.
    pub exclude: Exclusions,
    /// Whether to log what is left out. Of several walks for one backup only the first should.
    pub report: bool,
}

/// One file or directory of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Path relative to the data directory, through links; empty for the directory itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, of the destination if it is a link.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name, if this host knows it.
    pub user: Option<Arc<str>>,
    /// Group's name, if this host knows it.
    pub group: Option<Arc<str>>,
    /// Bytes of a file; 0 for a directory.
    pub size: u64,
    /// Time of the last change, whole seconds since the Unix epoch.
    pub mtime: i64,
    /// Nanoseconds on top of [`Self::mtime`].
    pub mtime_nanos: u32,
    /// Absolute path to open.
    pub source: PathBuf,
}

/// What an entry is. Links are told from what they point to because a restore may make them again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A link to a directory; its content follows under the link's path.
    LinkToDirectory {
        /// Text of the link.
        destination: PathBuf,
    },
    /// A link to a file.
    LinkToFile {
        /// Text of the link.
        destination: PathBuf,
    },
}

impl EntryKind {
    /// True for files and links to files: for what has content to copy.
    #[must_use]
    pub fn is_file(&self) -> bool {
        matches!(self, Self::File | Self::LinkToFile { .. })
    }

    /// Text of the link if it is one.
    #[must_use]
    pub fn destination(&self) -> Option<&PathBuf> {
        match self {
            Self::LinkToDirectory { destination } | Self::LinkToFile { destination } => Some(destination),
            Self::Directory | Self::File => None,
        }
    }
}

/// The order of a walk: by parts of the path, which is byte order with `/` before all other bytes.
///
/// A directory comes before its content and its content before anything after the directory, so two walks
/// in this order can be merged: `a`, `a/x`, `a-b`, `a.c`, `ab`.
#[must_use]
pub fn path_cmp(a: &[u8], b: &[u8]) -> Ordering {
    // No part of a path holds a NUL, so the separator can take its place.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}
