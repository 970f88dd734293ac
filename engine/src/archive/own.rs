//! Whether what an archive holds under a name is this server's.

use crate::repository::Repository;
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::pg::wal::{SegmentName, WalHeader};
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Checks that an archived segment is the one that the server of this data directory wrote.
///
/// It is not if the cluster went back to an earlier state, or is a copy of one that lives on: the archive then has the other
/// history's segments under the names that are waited for, and `archive-push` refuses the server's own. That a file was taken
/// is no proof that this archive took it: `archive_command` may have said so for another one, or been another. So the
/// server's file is compared if it is marked ready, and as long as the server has it also if it is `archived`: marked done.
///
/// The server makes files that are done others by renaming them, and writes them only then. What was read while a file had
/// its name from before to after is its content.
///
/// # Errors
/// `ArchiveDuplicate` if the contents differ, nothing if the archive has no such file; file errors; what the store said.
pub(crate) fn check_own(
    repository: &Repository,
    stanza: &str,
    archive_id: &str,
    pgdata: &Path,
    name: &str,
    archived: bool,
) -> Result<()> {
    let wal = pgdata.join("pg_wal");
    let marks = wal.join("archive_status");
    let is_marked = |end: &str| {
        let mark = marks.join(format!("{name}.{end}"));
        mark.try_exists().map_err(FileError::at("stat", &mark))
    };
    // Without a mark it is the one that is written now.
    let is_whole = is_marked("ready")? || (archived && is_marked("done")?);
    if !is_whole {
        return Ok(());
    }
    let Some(content) = read_named(&wal.join(name), name)? else { return Ok(()) };
    if repository.wal_has(stanza, archive_id, name, &content)? != Some(false) {
        return Ok(());
    }
    let place = repository.store().describe();
    let text = format!(
        "WAL segment {name} of this cluster is not the one of that name in the archive of stanza '{stanza}' in {place}: the \
         archive holds another history of the same timeline, as of a cluster that went back to an earlier state or was copied"
    );
    Err(Error::refused(Kind::ArchiveDuplicate, text))
}

/// The content of a segment that has its name all the time while it is read, and says so itself; none of any other.
fn read_named(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let absent = |e: std::io::Error, what| match e.kind() {
        ErrorKind::NotFound => Ok(None),
        _ => Err(FileError::at(what, path)(e)),
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) => return Ok(absent(e, "open")?),
    };
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(FileError::at("read", path))?;
    let of = |facts: &Metadata| (facts.dev(), facts.ino());
    let open = of(&file.metadata().map_err(FileError::at("stat", path))?);
    match std::fs::metadata(path) {
        Ok(facts) if of(&facts) == open => {}
        Ok(_) => return Ok(None),
        Err(e) => return Ok(absent(e, "stat")?),
    }
    let is_named = SegmentName::parse(name).is_ok_and(|name| {
        WalHeader::parse(&content).is_ok_and(|header| {
            let own = header.segment();
            name.segment(header.segment_size).is_ok_and(|s| s.number == own.number && own.timeline <= s.timeline)
        })
    });
    Ok(is_named.then_some(content))
}
