//! What a backup leaves out.
//!
//! Four reasons: the server rebuilds it (caches, temporary files, what crash recovery resets), it would
//! mislead a restored server (label and signal files), it comes from elsewhere (WAL, online), or the user
//! said so. A directory whose content is left out stays itself: the server wants to find it.

use super::WalkOptions;
use pgkeep_formats::pg::path::{Fork, PathClass, classify};
use std::collections::HashSet;

/// What to do with something found in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Copy it, and what is in it.
    Take,
    /// Keep the directory and nothing in it.
    TakeEmpty,
    /// Keep the directory and of its content only directories: archive_status and summaries in `pg_wal`.
    TakeDirectories,
    /// As if it were not there.
    Leave,
}

/// Paths below the data directory that the user wants left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclusions {
    whole: HashSet<Vec<u8>>,
    content: HashSet<Vec<u8>>,
}

impl Exclusions {
    /// Reads values of the option `exclude`: paths relative to the data directory. A trailing `/` leaves out
    /// the content of a directory and keeps the directory. One that is absolute, or has empty, `.` or `..` parts, leaves out
    /// nothing, as with pgBackRest, and that is warned of.
    #[must_use]
    pub fn parse<T: AsRef<str>>(values: &[T]) -> Self {
        let mut all = Self::default();
        for value in values {
            let value = value.as_ref();
            let (path, set) = match value.strip_suffix('/') {
                Some(path) => (path, &mut all.content),
                None => (value, &mut all.whole),
            };
            if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
                tracing::warn!("exclude '{value}' leaves nothing out: it is no path relative to the data directory");
                continue;
            }
            set.insert(path.as_bytes().to_vec());
        }
        all
    }
}

/// Numbers of the unlogged relations among the names of one directory: those with an init fork.
pub(super) fn unlogged(directory: &[u8], names: &[Vec<u8>]) -> HashSet<u32> {
    let init = |name: &Vec<u8>| match class(&join(directory, name)) {
        PathClass::Relation(file) if file.fork == Fork::Init && file.segment == 0 => Some(file.filenode),
        _ => None,
    };
    // Most directories have none; the suffix is cheaper to look for than a class.
    names.iter().filter(|n| n.ends_with(b"_init")).filter_map(init).collect()
}

/// Decides by path alone. `unlogged` is that of the path's directory.
pub(super) fn judge(path: &[u8], options: &WalkOptions, unlogged: &HashSet<u32>) -> Verdict {
    if options.exclude.whole.contains(path) {
        if options.report {
            tracing::info!("exclude '{}' from the backup as configured", path.escape_ascii());
        }
        return Verdict::Leave;
    }
    if options.exclude.content.contains(path) {
        if options.report {
            tracing::info!("exclude the content of '{}' from the backup as configured", path.escape_ascii());
        }
        return Verdict::TakeEmpty;
    }
    match path {
        b"pg_dynshmem"
        | b"pg_notify"
        | b"pg_replslot"
        | b"pg_serial"
        | b"pg_snapshots"
        | b"pg_stat_tmp"
        | b"pg_subtrans"
        | b"pg_wal/archive_status" => return Verdict::TakeEmpty,
        b"pg_wal/summaries" if options.online => return Verdict::TakeEmpty,
        b"pg_wal" if options.online => return Verdict::TakeDirectories,
        b"postgresql.auto.conf.tmp" | b"current_logfiles.tmp" => return Verdict::Leave,
        _ => {}
    }
    match class(path) {
        // Classified by any part of the path; what lies in such a directory is never reached.
        PathClass::Temporary
        | PathClass::RelationCache
        | PathClass::BackupLabel
        | PathClass::TablespaceMap
        | PathClass::BackupManifest
        | PathClass::RecoverySignal
        | PathClass::Postmaster => Verdict::Leave,
        PathClass::Relation(file) if file.is_temporary() => Verdict::Leave,
        PathClass::Relation(file) if file.fork != Fork::Init && unlogged.contains(&file.filenode) => Verdict::Leave,
        _ => Verdict::Take,
    }
}

/// Names the server gives are ASCII, so what is not text is none of its files.
fn class(path: &[u8]) -> PathClass {
    std::str::from_utf8(path).map_or(PathClass::Unknown, classify)
}

/// A path from a directory's path and a name in it.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
