//! Whether what an archive holds under a name is this server's.

use crate::repository::Repository;
use crate::{Error, FileError, Kind, Result};
use std::io::ErrorKind;
use std::path::Path;

/// Checks that an archived segment is the one that the server of this data directory wrote.
///
/// It is not if the cluster went back to an earlier state, or is a copy of one that lives on: the archive then has the other
/// history's segments under the names that are waited for, and `archive-push` refuses the server's own. What the archive has
/// taken is not marked ready any more, and what it has not is kept by the server until it has. So only marked files are
/// read, mostly none.
///
/// # Errors
/// `ArchiveDuplicate` if the contents differ, nothing if the archive has no such file; file errors; what the store said.
pub(crate) fn check_own(
    repository: &Repository,
    stanza: &str,
    archive_id: &str,
    pgdata: &Path,
    name: &str,
) -> Result<()> {
    let wal = pgdata.join("pg_wal");
    let ready = wal.join("archive_status").join(format!("{name}.ready"));
    let waits = || ready.try_exists().map_err(FileError::at("stat", &ready));
    if !waits()? {
        return Ok(());
    }
    let path = wal.join(name);
    let content = match std::fs::read(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(FileError::at("read", &path))?,
    };
    let same = repository.wal_has(stanza, archive_id, name, &content)?;
    // Archived meanwhile, the file may have been made another segment while it was read.
    if same != Some(false) || !waits()? {
        return Ok(());
    }
    let place = repository.store().describe();
    let text = format!(
        "WAL segment {name} of this cluster is not the one of that name in the archive of stanza '{stanza}' in {place}: the \
         archive holds another history of the same timeline, as of a cluster that went back to an earlier state or was copied"
    );
    Err(Error::refused(Kind::ArchiveDuplicate, text))
}
