//! Under which name we run: ours, or pgBackRest's for those who linked it.

use std::ffi::OsStr;
use std::path::Path;

/// Names that depend on the one the program was called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// Name in paths, help and messages.
    pub name: &'static str,
    /// Begins the names of our environment variables.
    pub env_prefix: &'static str,
    /// First word of the version line.
    pub title: &'static str,
}

/// Called by our own name, or any other but pgBackRest's.
pub static PGKEEP: Program = Program { name: "pgkeep", env_prefix: "PGKEEP_", title: "pgkeep" };

/// Called as `pgbackrest`: its paths, its variables.
pub static PGBACKREST: Program = Program { name: "pgbackrest", env_prefix: "PGBACKREST_", title: "pgBackRest" };

impl Program {
    /// The program that argument zero means.
    #[must_use]
    pub fn called(argv0: &OsStr) -> &'static Self {
        if Path::new(argv0).file_name() == Some(OsStr::new(PGBACKREST.name)) { &PGBACKREST } else { &PGKEEP }
    }

    /// A default of the table with the marks replaced.
    #[must_use]
    pub fn fill(&self, default: &str) -> String {
        match default {
            "#" => crate::size::cpus().to_string(),
            _ => default.replace('@', self.name),
        }
    }
}
