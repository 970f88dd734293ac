//! The one table of what differs between PostgreSQL majors 13 to 18.
//!
//! Whatever tells majors apart in a file (control version, catalog version, WAL magic) or in a server's
//! behaviour is a column here; no other module compares version numbers.
//!
//! Source: `catalog/pg_control.h`, `catalog/catversion.h` and `access/xlog_internal.h` of each major;
//! the samples in `golden/pg` were written by a server of each.

use crate::FormatError;
use std::fmt;

/// A supported PostgreSQL major version. Displays as `15`, which is also the content of the file `PG_VERSION`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u8);

/// Which majors this program supports, for messages.
pub const SUPPORTED: &str = "PostgreSQL 13 to 18";

/// Names of the SQL functions that start and stop a non-exclusive backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupFunctions {
    /// `pg_start_backup`, or `pg_backup_start` from 15 on.
    pub start: &'static str,
    /// `pg_stop_backup`, or `pg_backup_stop` from 15 on.
    pub stop: &'static str,
    /// True until 14: the start function takes a third argument `exclusive`, the stop function a first one.
    pub takes_exclusive: bool,
}

/// Where `pg_control` differs between majors. Everything before offset 256 is at the same place in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ControlLayout {
    /// From 17 on the checkpoint copy holds `wal_level`, in what was padding before.
    pub(crate) checkpoint_wal_level: bool,
    /// From 18 on: the signedness of `char` where the cluster was initialised.
    pub(crate) char_signedness: bool,
    /// Offset of the CRC, which covers everything before it.
    pub(crate) crc: usize,
}

/// What is particular to one major.
#[derive(Debug)]
#[non_exhaustive]
pub struct Facts {
    /// The major itself.
    pub major: u32,
    /// `PG_CONTROL_VERSION`.
    pub pg_control_version: u32,
    /// `CATALOG_VERSION_NO` of the releases; betas have others and are not supported.
    pub catalog_version: u32,
    /// `XLOG_PAGE_MAGIC`.
    pub wal_magic: u16,
    /// Name of this version's directory inside every tablespace location.
    pub tablespace_directory: &'static str,
    /// How a backup is started and stopped.
    pub backup_functions: BackupFunctions,
    /// From 15 on: setting `archive_library` may stand in for `archive_command`.
    pub archive_library: bool,
    /// From 14 on: a backslash in `tablespace_map` is itself protected by one; 13 protects line breaks only.
    pub map_escapes_backslash: bool,
    /// From 17 on: `summarize_wal`, `pg_wal/summaries`, and `backup_label` files that name an incremental's parent.
    pub wal_summaries: bool,
    /// From 18 on: initdb turns data checksums on unless told otherwise.
    pub checksums_by_default: bool,
    pub(crate) control: ControlLayout,
}

const OLD_FUNCTIONS: BackupFunctions =
    BackupFunctions { start: "pg_start_backup", stop: "pg_stop_backup", takes_exclusive: true };
const NEW_FUNCTIONS: BackupFunctions =
    BackupFunctions { start: "pg_backup_start", stop: "pg_backup_stop", takes_exclusive: false };

const CONTROL_1300: ControlLayout = ControlLayout { checkpoint_wal_level: false, char_signedness: false, crc: 288 };
const CONTROL_1700: ControlLayout = ControlLayout { checkpoint_wal_level: true, char_signedness: false, crc: 288 };
const CONTROL_1800: ControlLayout = ControlLayout { checkpoint_wal_level: true, char_signedness: true, crc: 292 };

static TABLE: [Facts; 6] = [
    Facts {
        major: 13,
        pg_control_version: 1300,
        catalog_version: 202_007_201,
        wal_magic: 0xD106,
        tablespace_directory: "PG_13_202007201",
        backup_functions: OLD_FUNCTIONS,
        archive_library: false,
        map_escapes_backslash: false,
        wal_summaries: false,
        checksums_by_default: false,
        control: CONTROL_1300,
    },
    Facts {
        major: 14,
        pg_control_version: 1300,
        catalog_version: 202_107_181,
        wal_magic: 0xD10D,
        tablespace_directory: "PG_14_202107181",
        backup_functions: OLD_FUNCTIONS,
        archive_library: false,
        map_escapes_backslash: true,
        wal_summaries: false,
        checksums_by_default: false,
        control: CONTROL_1300,
    },
    Facts {
        major: 15,
        pg_control_version: 1300,
        catalog_version: 202_209_061,
        wal_magic: 0xD110,
        tablespace_directory: "PG_15_202209061",
        backup_functions: NEW_FUNCTIONS,
        archive_library: true,
        map_escapes_backslash: true,
        wal_summaries: false,
        checksums_by_default: false,
        control: CONTROL_1300,
    },
    Facts {
        major: 16,
        pg_control_version: 1300,
        catalog_version: 202_307_071,
        wal_magic: 0xD113,
        tablespace_directory: "PG_16_202307071",
        backup_functions: NEW_FUNCTIONS,
        archive_library: true,
        map_escapes_backslash: true,
        wal_summaries: false,
        checksums_by_default: false,
        control: CONTROL_1300,
    },
    Facts {
        major: 17,
        pg_control_version: 1700,
        catalog_version: 202_406_281,
        wal_magic: 0xD116,
        tablespace_directory: "PG_17_202406281",
        backup_functions: NEW_FUNCTIONS,
        archive_library: true,
        map_escapes_backslash: true,
        wal_summaries: true,
        checksums_by_default: false,
        control: CONTROL_1700,
    },
    Facts {
        major: 18,
        pg_control_version: 1800,
        catalog_version: 202_506_291,
        wal_magic: 0xD118,
        tablespace_directory: "PG_18_202506291",
        backup_functions: NEW_FUNCTIONS,
        archive_library: true,
        map_escapes_backslash: true,
        wal_summaries: true,
        checksums_by_default: true,
        control: CONTROL_1800,
    },
];

impl Version {
    /// PostgreSQL 13.
    pub const V13: Self = Self(0);
    /// PostgreSQL 14.
    pub const V14: Self = Self(1);
    /// PostgreSQL 15.
    pub const V15: Self = Self(2);
    /// PostgreSQL 16.
    pub const V16: Self = Self(3);
    /// PostgreSQL 17.
    pub const V17: Self = Self(4);
    /// PostgreSQL 18.
    pub const V18: Self = Self(5);
    /// All supported majors, oldest first.
    pub const ALL: [Self; 6] = [Self::V13, Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The version with this major number.
    ///
    /// # Errors
    /// [`FormatError::BadVersion`] if it is not supported.
    pub fn from_major(major: u32) -> Result<Self, FormatError> {
        Self::find("PostgreSQL", u64::from(major), |f| f.major == major)
    }

    /// The version of a `pg_control` file by its two version fields. Both must belong to one release.
    ///
    /// # Errors
    /// [`FormatError::BadVersion`] with the field that is not known.
    pub fn from_control(pg_control_version: u32, catalog_version: u32) -> Result<Self, FormatError> {
        Self::find("pg_control", u64::from(pg_control_version), |f| f.pg_control_version == pg_control_version)?;
        Self::find("system catalog", u64::from(catalog_version), |f| {
            f.pg_control_version == pg_control_version && f.catalog_version == catalog_version
        })
    }

    /// The version that writes WAL pages with this magic.
    ///
    /// # Errors
    /// [`FormatError::BadVersion`] if no supported version does.
    pub fn from_wal_magic(magic: u16) -> Result<Self, FormatError> {
        Self::find("WAL page", u64::from(magic), |f| f.wal_magic == magic)
    }

    /// The version of a server by its setting `server_version_num`: 150020 is 15.
    ///
    /// # Errors
    /// [`FormatError::BadVersion`] if it is not supported; the number found is `server_version_num` itself.
    pub fn from_server_version_num(number: u32) -> Result<Self, FormatError> {
        Self::find("PostgreSQL server", u64::from(number), |f| f.major == number / 10_000)
    }

    /// The version by the content of the file `PG_VERSION`, or by a user's text: `15`, with or without a line end.
    ///
    /// # Errors
    /// [`FormatError::BadText`] if it is not a number, [`FormatError::BadVersion`] if it is not supported.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let digits = text.trim_end_matches(['\n', '\r']);
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        match digits.parse() {
            Ok(major) if plain => Self::from_major(major),
            _ => Err(FormatError::bad_text("PostgreSQL version", text)),
        }
    }

    /// What is particular to this version.
    #[must_use]
    pub fn facts(self) -> &'static Facts {
        // Every constructor hands out an index of the table.
        &TABLE[usize::from(self.0)]
    }

    /// The major number.
    #[must_use]
    pub fn major(self) -> u32 {
        self.facts().major
    }

    fn find(what: &'static str, found: u64, matches: impl Fn(&Facts) -> bool) -> Result<Self, FormatError> {
        let all = Self::ALL.into_iter();
        let unknown = FormatError::BadVersion { what, found, supported: SUPPORTED };
        all.rev().find(|v| matches(v.facts())).ok_or(unknown)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.major().fmt(f)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_that_identifies_a_version_leads_back_to_it() {
        for (i, version) in Version::ALL.into_iter().enumerate() {
            let facts = version.facts();
            assert_eq!(facts.major as usize, 13 + i);
            assert_eq!(Version::from_major(facts.major), Ok(version));
            assert_eq!(Version::from_control(facts.pg_control_version, facts.catalog_version), Ok(version));
            assert_eq!(Version::from_wal_magic(facts.wal_magic), Ok(version));
            assert_eq!(Version::from_server_version_num(facts.major * 10_000 + 20), Ok(version));
            assert_eq!(Version::parse(&format!("{version}\n")), Ok(version));
            assert_eq!(facts.tablespace_directory, format!("PG_{}_{}", facts.major, facts.catalog_version));
        }
        assert!(Version::V13 < Version::V18);
    }

    #[test]
    fn others_are_refused_by_what_is_wrong_with_them() {
        let what = |r: Result<Version, FormatError>| match r {
            Err(FormatError::BadVersion { what, found, .. }) => (what, found),
            other => panic!("{other:?}"),
        };
        assert_eq!(what(Version::from_control(1201, 201_909_212)), ("pg_control", 1201));
        assert_eq!(what(Version::from_control(1700, 202_506_291)), ("system catalog", 202_506_291));
        assert_eq!(what(Version::from_server_version_num(120_022)), ("PostgreSQL server", 120_022));
        assert_eq!(what(Version::from_wal_magic(0)), ("WAL page", 0));
        for text in ["", "+15", "15.2", " 15", "15x", "999999999999"] {
            assert!(matches!(Version::parse(text), Err(FormatError::BadText { .. })), "{text}");
        }
    }
}
