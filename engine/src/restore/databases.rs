//! Selective restore: which databases come back, and which are left out.
//!
//! A database that is left out keeps its files, of their sizes but holding nothing, so that they take no room: recovery
//! writes into whatever the WAL names, and must find it. Only `PG_VERSION` keeps its content, as in pgBackRest. Nothing
//! reads the others before someone connects to that database, which then fails at its `pg_filenode.map`; the server
//! starts, and `DROP DATABASE`, which looks into the shared catalogs alone, removes it.
//!
//! With `db-include` all but the named databases are left out, but never those that every cluster has (`template0`,
//! `template1`, `postgres` and whatever else has a number below the first of users) unless `db-exclude` names them.
//! Whatever lies in the directory of a database that the backup's record does not name, because it was created while the
//! backup ran, counts by its number.

use super::recovery::{RecoveryOptions, RecoveryType};
use crate::repository::manifests::Manifest;
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::version::Facts;
use pgkeep_formats::repo::records::Commit;
use std::collections::BTreeSet;
use std::sync::Arc;

/// `FirstNormalObjectId`: databases below were made by initdb.
const FIRST_OF_USERS: u32 = 16384;
/// Databases that tools and the server itself expect.
const SYSTEM: [&str; 3] = ["template0", "template1", "postgres"];
/// Says which server the directory belongs to; it is kept, or `DROP DATABASE` and upgrades would warn of the directory.
const KEPT: &str = "PG_VERSION";

/// Databases by name or number. Without any, all are restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseOptions {
    /// `db-include`.
    pub include: Vec<String>,
    /// `db-exclude`.
    pub exclude: Vec<String>,
}

/// Which databases of one backup are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// If given, all others are left out.
    only: Option<BTreeSet<u32>>,
    exclude: BTreeSet<u32>,
}

impl LeftOut {
    /// Reads the options against what the backup knows.
    ///
    /// # Errors
    /// `DbMissing` for a database that the backup does not have, `DbInvalid` for one that shall be restored and left out.
    pub(super) fn new(
        options: &DatabaseOptions,
        backup: &Commit,
        facts: &Facts,
        manifest: &Arc<Manifest>,
    ) -> Result<Self> {
        let numbers = |names: &[String]| -> Result<BTreeSet<u32>> {
            names.iter().map(|name| number(name, backup, &|oid| has_directory(oid, backup, facts, manifest))).collect()
        };
        Self::of(numbers(&options.include)?, numbers(&options.exclude)?, backup)
    }

    fn of(include: BTreeSet<u32>, exclude: BTreeSet<u32>, backup: &Commit) -> Result<Self> {
        if let Some(both) = include.intersection(&exclude).next() {
            let text = format!("database {} shall be restored and left out", told(*both, backup));
            return Err(Error::refused(Kind::DbInvalid, text));
        }
        let system = backup.databases.iter().filter(|d| SYSTEM.contains(&d.name.as_str())).map(|d| d.oid);
        let only = (!include.is_empty()).then(|| include.into_iter().chain(system).collect());
        Ok(Self { only, exclude })
    }

    fn has(&self, oid: u32) -> bool {
        let others = |only: &BTreeSet<u32>| oid >= FIRST_OF_USERS && !only.contains(&oid);
        self.exclude.contains(&oid) || self.only.as_ref().is_some_and(others)
    }

    /// True for a file that is restored without its content.
    pub(super) fn has_file(&self, path: &str) -> bool {
        (self.only.is_some() || !self.exclude.is_empty()) && database_of(path).is_some_and(|oid| self.has(oid))
    }

    /// The databases that are left out, by name and number; `None` if all are restored.
    pub(super) fn told(&self, backup: &Commit) -> Option<String> {
        let left: Vec<_> = backup
            .databases
            .iter()
            .map(|d| d.oid)
            .chain(self.exclude.iter().copied())
            .filter(|o| self.has(*o))
            .collect();
        let left: BTreeSet<_> = left.into_iter().collect();
        let texts: Vec<_> = left.into_iter().map(|oid| told(oid, backup)).collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }
}

/// A database for messages.
fn told(oid: u32, backup: &Commit) -> String {
    let name = backup.databases.iter().find(|d| d.oid == oid).map(|d| &d.name);
    name.map_or_else(|| oid.to_string(), |name| format!("'{name}' ({oid})"))
}

/// The number of a database that an option names. Numbers go first, as in pgBackRest.
fn number(text: &str, backup: &Commit, has_directory: &dyn Fn(u32) -> Result<bool>) -> Result<u32> {
    if let Some(oid) = oid(text)
        && (backup.databases.iter().any(|d| d.oid == oid) || has_directory(oid)?)
    {
        return Ok(oid);
    }
    if let Some(found) = backup.databases.iter().find(|d| d.name == text) {
        return Ok(found.oid);
    }
    let why = if backup.databases.is_empty() {
        "has none of that number; taken from a stopped server, it does not know names"
    } else {
        "has none of that name or number"
    };
    Err(Error::refused(Kind::DbMissing, format!("database '{text}' cannot be selected: backup {} {why}", backup.label)))
}

/// True if the backup has a directory of the database, in the data directory or a tablespace.
fn has_directory(oid: u32, backup: &Commit, facts: &Facts, manifest: &Arc<Manifest>) -> Result<bool> {
    if manifest.find(&format!("base/{oid}"))?.is_some() {
        return Ok(true);
    }
    for tablespace in &backup.tablespaces {
        let path = format!("pg_tblspc/{}/{}/{oid}", tablespace.oid, facts.tablespace_directory);
        if manifest.find(&path)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The database in whose directory a file lies; `None` for other files, and for the one that is always kept.
fn database_of(path: &str) -> Option<u32> {
    let rest = match path.split_once('/')? {
        ("base", rest) => rest,
        ("pg_tblspc", rest) => rest.splitn(3, '/').nth(2)?,
        _ => return None,
    };
    let (directory, file) = rest.split_once('/')?;
    oid(directory).filter(|_| file != KEPT)
}

/// A number as the server writes it.
fn oid(text: &str) -> Option<u32> {
    text.parse().ok().filter(|oid: &u32| *oid > 0 && oid.to_string() == text)
}

/// The recovery of a cluster without the content of some databases. Some records, such as those VACUUM writes of
/// all-visible pages where neither checksums nor `wal_log_hints` are on, refer to pages that are not there any more without
/// bringing an image of them; the server would stop with "WAL contains references to invalid pages".
pub(super) fn with_invalid_pages(recovery: RecoveryOptions, backup: &Commit) -> RecoveryOptions {
    const SETTING: &str = "ignore_invalid_pages";
    if !backup.online || recovery.settings.iter().any(|(name, _)| name.replace('-', "_") == SETTING) {
        return recovery;
    }
    if recovery.recovery_type == RecoveryType::Preserve {
        tracing::warn!("recovery settings are preserved: recovery may need {SETTING} = on for databases left out");
        return recovery;
    }
    tracing::warn!(
        "{SETTING} = on is set for the recovery, of all databases: look for such pages in the server's log, and once recovery \
         has ended, ALTER SYSTEM RESET {SETTING}"
    );
    let mut recovery = recovery;
    recovery.settings.push((SETTING.to_owned(), "on".to_owned()));
    recovery
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::tests::selection;
    use pgkeep_formats::repo::records::DatabaseRef;

    fn backup(databases: &[(u32, &str)]) -> Commit {
        let databases = databases.iter().map(|(oid, name)| DatabaseRef { oid: *oid, name: (*name).into() }).collect();
        Commit { databases, ..selection::backup("20260101-000000F", 1000, 0x100, 1) }
    }

    const ALL: [(u32, &str); 6] =
        [(1, "template1"), (4, "template0"), (16500, "postgres"), (16400, "a"), (16401, "b"), (16402, "16401")];

    fn left_out(include: &[&str], exclude: &[&str]) -> Result<String> {
        let backup = backup(&ALL);
        let numbers = |names: &[&str]| -> Result<_> {
            names.iter().map(|n| number(n, &backup, &|oid| Ok(oid == 17000))).collect()
        };
        let left = LeftOut::of(numbers(include)?, numbers(exclude)?, &backup)?;
        Ok(left.told(&backup).unwrap_or_default())
    }

    #[test]
    fn others_are_left_out_and_system_databases_only_by_name() {
        assert_eq!(left_out(&[], &[]).unwrap(), "");
        assert_eq!(left_out(&["a"], &[]).unwrap(), "'b' (16401), '16401' (16402)");
        assert_eq!(left_out(&[], &["a"]).unwrap(), "'a' (16400)");
        // postgres was made anew here and has a user's number.
        assert_eq!(left_out(&["a", "b"], &["postgres"]).unwrap(), "'16401' (16402), 'postgres' (16500)");
        assert_eq!(
            left_out(&["16402", "b"], &["template1", "4"]).unwrap(),
            "'template1' (1), 'template0' (4), 'a' (16400)"
        );
        assert_eq!(left_out(&[], &["17000"]).unwrap(), "17000", "a database that came while the backup ran");
        assert_eq!(left_out(&["template1"], &[]).unwrap(), "'a' (16400), 'b' (16401), '16401' (16402)");
    }

    #[test]
    fn what_the_backup_does_not_have_cannot_be_selected() {
        for name in ["c", "16399", "016400", "", "A", "-1", "99999999999"] {
            assert_eq!(left_out(&[name], &[]).unwrap_err().kind(), Kind::DbMissing, "'{name}'");
            assert_eq!(left_out(&[], &[name]).unwrap_err().kind(), Kind::DbMissing, "'{name}'");
        }
        assert_eq!(left_out(&["a"], &["16400"]).unwrap_err().kind(), Kind::DbInvalid);
        let error = number("a", &backup(&[]), &|_| Ok(false)).unwrap_err();
        assert!(error.to_string().contains("stopped server"), "{error}");
        assert_eq!(number("16400", &backup(&[]), &|_| Ok(true)).unwrap(), 16400);
    }

    #[test]
    fn files_belong_to_the_database_whose_directory_they_lie_in() {
        for (path, oid) in [
            ("base/16400/1259", Some(16400)),
            ("base/16400/pg_filenode.map", Some(16400)),
            ("base/16400/PG_VERSION", None),
            ("base/16400/odd/PG_VERSION", Some(16400)),
            ("base/16400", None),
            ("base/pgsql_tmp/x", None),
            ("base/016400/x", None),
            ("base/0/x", None),
            ("global/1262", None),
            ("pg_tblspc/16399/PG_15_202209061/16400/2619", Some(16400)),
            ("pg_tblspc/16399/PG_15_202209061/16400/PG_VERSION", None),
            ("pg_tblspc/16399/PG_15_202209061/16400", None),
            ("pg_tblspc/16399/PG_15_202209061/pgsql_tmp/16400", None),
            ("pg_tblspc/16399/PG_15_202209061", None),
        ] {
            assert_eq!(database_of(path), oid, "{path}");
        }
    }
}
