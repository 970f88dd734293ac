//! That the tablespaces at the end of a backup are those at its start.
//!
//! The WAL has the making of a tablespace with its location. A restore that replays it puts the link in `pg_tblspc` back to
//! that location, whatever it was told to map it to: on the same host the restored server would then run inside the
//! original's tablespace. Of one that is removed meanwhile, files are missing. So neither is a backup.
//!
//! They are asked for before the start, since replay begins at the redo position of the checkpoint that the start makes, and
//! after the stop. The server makes the link before it logs the record and commits after it, and removes it before the
//! record of the removal: so both the catalog and the links are compared.

use crate::pg::server::{Connection, Tablespace};
use crate::{Error, FileError, Kind, Result};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Tablespaces of a running cluster at some moment.
pub(super) struct Tablespaces {
    /// Those of the catalog, by number.
    pub(super) known: Vec<Tablespace>,
    /// Numbers of those that have a link, or a directory, in `pg_tblspc`.
    linked: BTreeSet<u32>,
}

impl Tablespaces {
    /// Those of now.
    ///
    /// # Errors
    /// What the server and its directory said.
    pub(super) fn ask(connection: &mut Connection, pgdata: &Path) -> Result<Self> {
        Ok(Self { known: connection.tablespaces()?, linked: linked(&pgdata.join("pg_tblspc"))? })
    }

    /// Compares with those of later.
    ///
    /// # Errors
    /// `TablespaceMap` naming what was created or dropped.
    pub(super) fn check_same(&self, later: &Self) -> Result<()> {
        let created: Vec<String> = later.numbers().difference(&self.numbers()).map(|oid| later.name(*oid)).collect();
        let dropped: Vec<String> = self.numbers().difference(&later.numbers()).map(|oid| self.name(*oid)).collect();
        // One whose creation had begun: its link was there already.
        let known = |all: &Self| all.known.iter().map(|t| t.oid).collect::<BTreeSet<u32>>();
        let half: Vec<String> = known(self).symmetric_difference(&known(later)).map(|oid| later.name(*oid)).collect();
        let (what, names) = match (created.is_empty(), dropped.is_empty(), half.is_empty()) {
            (false, _, _) => ("created", created),
            (true, false, _) => ("dropped", dropped),
            (true, true, false) => ("created or dropped", half),
            (true, true, true) => return Ok(()),
        };
        let text = format!("tablespace {} was {what} while the backup ran", names.join(", "));
        Err(Error::refused(Kind::TablespaceMap, text))
    }

    /// Refuses those that a standby may have made since the checkpoint that its backup begins at, which is in the past.
    ///
    /// # Errors
    /// `TablespaceMap` naming one; what the file system said.
    pub(super) fn check_older(&self, pgdata: &Path, checkpoint: i64) -> Result<()> {
        for oid in &self.linked {
            let path = pgdata.join("pg_tblspc").join(oid.to_string());
            let made = std::fs::symlink_metadata(&path).map_err(FileError::at("stat", &path))?.mtime();
            if made >= checkpoint {
                let text = format!(
                    "tablespace {} was created since the checkpoint that the backup of the standby begins at",
                    self.name(*oid)
                );
                return Err(Error::refused(Kind::TablespaceMap, text));
            }
        }
        Ok(())
    }

    /// Refuses a backup with files of a tablespace that was there neither at its start nor at its end.
    ///
    /// # Errors
    /// `TablespaceMap` naming it.
    pub(super) fn check_found<'a>(&self, mut links: impl Iterator<Item = &'a str>) -> Result<()> {
        let numbers = self.numbers();
        let new = |oid: &u32| !numbers.contains(oid);
        let number = |name: &str| name.strip_prefix("pg_tblspc/")?.parse().ok();
        match links.find_map(|name| number(name).filter(new)) {
            None => Ok(()),
            Some(oid) => {
                let text = format!("tablespace {oid} was created and dropped while the backup ran");
                Err(Error::refused(Kind::TablespaceMap, text))
            }
        }
    }

    fn numbers(&self) -> BTreeSet<u32> {
        self.known.iter().map(|t| t.oid).chain(self.linked.iter().copied()).collect()
    }

    fn name(&self, oid: u32) -> String {
        match self.known.iter().find(|t| t.oid == oid) {
            Some(known) => format!("'{}' ({oid})", known.name),
            None => oid.to_string(),
        }
    }
}

fn linked(directory: &Path) -> Result<BTreeSet<u32>> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.map_err(FileError::at("list", directory))?,
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(FileError::at("list", directory))?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(known: &[u32], linked: &[u32]) -> Tablespaces {
        let tablespace = |oid: &u32| Tablespace { oid: *oid, name: format!("t{oid}"), location: "/x".into() };
        Tablespaces { known: known.iter().map(tablespace).collect(), linked: linked.iter().copied().collect() }
    }

    #[test]
    fn what_was_made_since_the_checkpoint_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(linked(&dir.path().join("pg_tblspc")).unwrap(), BTreeSet::new());
        std::fs::create_dir(dir.path().join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("pg_tblspc/16400")).unwrap();
        let now = Tablespaces { known: Vec::new(), linked: linked(&dir.path().join("pg_tblspc")).unwrap() };
        let made = std::fs::symlink_metadata(dir.path().join("pg_tblspc/16400")).unwrap().mtime();
        assert!(now.check_older(dir.path(), made + 1).is_ok());
        let error = now.check_older(dir.path(), made).unwrap_err();
        assert!(error.kind() == Kind::TablespaceMap && error.to_string().contains("16400"), "{error}");
    }

    #[test]
    fn what_comes_and_goes_is_named() {
        let check = |a: Tablespaces, b: Tablespaces| match a.check_same(&b) {
            Ok(()) => String::new(),
            Err(e) => {
                assert_eq!(e.kind(), Kind::TablespaceMap);
                e.to_string()
            }
        };
        assert_eq!(check(some(&[1, 2], &[1, 2, 9]), some(&[1, 2], &[1, 2, 9])), "");
        assert!(check(some(&[1], &[1]), some(&[1, 2], &[1, 2])).starts_with("tablespace 't2' (2) was created"));
        assert!(check(some(&[1, 2], &[1, 2]), some(&[2], &[2])).starts_with("tablespace 't1' (1) was dropped"));
        // Caught in the middle of the statement.
        assert!(check(some(&[1], &[1]), some(&[1], &[1, 2])).starts_with("tablespace 2 was created"));
        let found = |links: &[&str]| some(&[1], &[1, 9]).check_found(links.iter().copied());
        assert!(found(&["pg_tblspc/1", "pg_tblspc/9", "pg_wal", "base/2"]).is_ok());
        assert!(found(&["pg_tblspc/2"]).unwrap_err().to_string().starts_with("tablespace 2 was created and dropped"));
        assert!(check(some(&[1], &[1, 2]), some(&[1, 2], &[1, 2])).starts_with("tablespace 't2' (2) was created or"));
    }
}
