//! May the server of a clone replay WAL on the host of the original?
//!
//! WAL names the locations of tablespaces by absolute paths. When 13 before 13.6 and 14 before 14.2 replay a
//! `CREATE TABLESPACE`, they first remove what they find at the location: the original's files. Later ones only make what
//! is missing, and the link they make then is led into the clone by the clone's file system. So the old ones get no WAL.
//! Source: `commands/tablespace.c`, `create_tablespace_directories`; release notes of 13.6 and 14.2 on `CREATE TABLESPACE`.
//!
//! The server says itself which one it is: its program is run with `--version`, as the user it runs as anyway.

use pgkeep_engine::pg::datadir;
use pgkeep_engine::{Error, FileError, Kind, Result};
use std::path::Path;
use std::process::Command;

/// The first minor of a major that leaves the original's files alone.
fn first_safe(major: u32) -> u32 {
    match major {
        13 => 6,
        14 => 2,
        _ => 0,
    }
}

/// Refuses a server that would remove files of the original.
///
/// # Errors
/// `VersionNotSupported`, also when the version cannot be found out; what the file system said.
pub(super) fn check(pgdata: &Path) -> Result<()> {
    let path = pgdata.join("PG_VERSION");
    let text = std::fs::read_to_string(&path).map_err(FileError::at("read", &path))?;
    let major = text.trim().parse().unwrap_or(0);
    let first = first_safe(major);
    if major != 0 && first == 0 {
        return Ok(());
    }
    let said = version(pgdata)?;
    if minor(&said, major).is_some_and(|minor| minor >= first) {
        return Ok(());
    }
    let text = format!(
        "server '{}' may remove files of the original's tablespaces when it replays WAL; a clone needs {major}.{first} or later",
        said.trim()
    );
    Err(Error::refused(Kind::VersionNotSupported, text))
}

/// What the server that runs on the data directory says about its version.
fn version(pgdata: &Path) -> Result<String> {
    let pid = datadir::postmaster(pgdata)?.filter(|found| found.alive).and_then(|found| found.pid);
    let pid = pid.ok_or_else(|| {
        let text = format!("cannot find out which server runs on '{}'", pgdata.display());
        Error::refused(Kind::VersionNotSupported, text)
    })?;
    let program = format!("/proc/{pid}/exe");
    let output = Command::new(&program).arg("--version").output().map_err(FileError::at("run", &program))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The minor in `postgres (PostgreSQL) 14.2 (Debian 14.2-1)`; `None` if it is of another major or no release.
fn minor(said: &str, major: u32) -> Option<u32> {
    let (_, rest) = said.split_once("(PostgreSQL) ")?;
    let (found, minor) = rest.split_whitespace().next()?.split_once('.')?;
    (found.parse() == Ok(major)).then(|| minor.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_say_them() {
        assert_eq!(minor("postgres (PostgreSQL) 14.1\n", 14), Some(1));
        assert_eq!(minor("postgres (PostgreSQL) 13.23 (Debian 13.23-1.pgdg12+1)\n", 13), Some(23));
        for other in
            ["postgres (PostgreSQL) 14beta1\n", "postgres (PostgreSQL) 15.2\n", "psql 14.2", "", "(PostgreSQL) "]
        {
            assert_eq!(minor(other, 14), None, "{other}");
        }
    }

    #[test]
    fn old_servers_and_unknown_ones_get_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check(dir.path()).is_err(), "no data directory");
        let is = |version: &str| {
            std::fs::write(dir.path().join("PG_VERSION"), version).unwrap();
            check(dir.path()).map_err(|e| e.kind())
        };
        for version in ["15\n", "18\n"] {
            assert_eq!(is(version), Ok(()));
        }
        for version in ["13\n", "14\n", "", "x"] {
            assert_eq!(is(version), Err(Kind::VersionNotSupported), "{version}");
        }
        // This process is no server that says it is new enough.
        let pid = std::process::id();
        std::fs::write(dir.path().join("postmaster.pid"), format!("{pid}\n/x\n1\n5432\n")).unwrap();
        assert_eq!(is("14\n"), Err(Kind::VersionNotSupported));
    }
}
