//! What the server has marked ready to be archived.
//!
//! Source: `postmaster/pgarch.c`: `<name>.ready` in `pg_wal/archive_status`, which the server renames to `.done` when the
//! file was acknowledged; timeline histories come first, as others need them to find their way, then the oldest name.

use crate::{FileError, Result};
use pgkeep_formats::pg::wal::ArchiveName;
use std::path::{Path, PathBuf};

/// The directory of marks of a WAL directory.
pub(super) fn status_dir(wal: &Path) -> PathBuf {
    wal.join("archive_status")
}

/// Whether the server has marked a file ready. Its content does not change as long as it is.
///
/// # Errors
/// `FileInfo`.
pub fn is_ready(wal: &Path, name: &str) -> Result<bool> {
    let path = status_dir(wal).join(format!("{name}.ready"));
    Ok(path.try_exists().map_err(FileError::at("stat", &path))?)
}

/// Whether the directory of marks can be reached.
///
/// # Errors
/// `FileInfo`, `PathMissing`.
pub(super) fn check(wal: &Path) -> Result<()> {
    let dir = status_dir(wal);
    std::fs::metadata(&dir).map_err(FileError::at("stat", &dir))?;
    Ok(())
}

/// All names marked ready, in the order in which the server asks for them.
///
/// # Errors
/// `PathOpen`, `PathMissing`.
pub(crate) fn list(wal: &Path) -> Result<Vec<String>> {
    let dir = status_dir(wal);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(FileError::at("list", &dir))? {
        let entry = entry.map_err(FileError::at("list", &dir))?;
        let name = entry.file_name();
        let ready = name.to_str().and_then(|n| n.strip_suffix(".ready"));
        names
            .extend(ready.and_then(|name| ArchiveName::parse(name).ok().map(|parsed| (key(&parsed), name.to_owned()))));
    }
    names.sort_unstable();
    Ok(names.into_iter().map(|(_, name)| name).collect())
}

/// Histories first.
fn key(name: &ArchiveName) -> bool {
    !matches!(name, ArchiveName::History(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_servers() {
        let wal = tempfile::tempdir().unwrap();
        let dir = status_dir(wal.path());
        assert!(list(wal.path()).is_err(), "no directory of marks is no empty one");
        std::fs::create_dir(&dir).unwrap();
        let names = [
            "000000020000000000000003",
            "000000010000000000000002",
            "000000010000000000000003.partial",
            "000000010000000000000002.00000028.backup",
            "00000002.history",
            "000000010000000000000010",
        ];
        for name in names {
            std::fs::write(dir.join(format!("{name}.ready")), "").unwrap();
        }
        for other in ["000000010000000000000001.done", "x.ready", "000000010000000000000004", ".ready"] {
            std::fs::write(dir.join(other), "").unwrap();
        }
        let expected = [names[4], names[1], names[3], names[2], names[5], names[0]];
        assert_eq!(list(wal.path()).unwrap(), expected);
        assert!(is_ready(wal.path(), names[0]).unwrap() && !is_ready(wal.path(), "000000010000000000000001").unwrap());
    }
}
