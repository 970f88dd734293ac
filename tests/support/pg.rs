//! PostgreSQL servers for tests: which programs there are, and clusters made from them.
//!
//! `scripts/setup` puts them in place: 15 is Debian's own, the other majors lie in a cache outside the checkout.

mod cluster;
mod data;
mod load;
mod template;

pub use cluster::{Builder, Cluster, Mode};
pub use data::Fingerprint;
pub use load::{Load, Work};

use std::path::{Path, PathBuf};

/// The majors tests run on: `PGKEEP_TEST_MAJORS` (comma-separated), by default 15 and 17.
///
/// # Panics
/// When the variable holds something else than majors.
pub fn majors() -> Vec<u32> {
    let text = std::env::var("PGKEEP_TEST_MAJORS").unwrap_or_else(|_| "15,17".to_owned());
    text.split(',')
        .map(|part| {
            part.trim().parse().unwrap_or_else(|_| panic!("PGKEEP_TEST_MAJORS: '{part}' is not a major version"))
        })
        .collect()
}

/// The majors a test runs on that does the same on each: all of them, or with `PGKEEP_TEST_SPREAD` one, always the same for
/// a test of this name, so that every major has its share of the tests.
///
/// # Panics
/// As [`majors`]; when called from a thread that the test started.
pub fn spread() -> Vec<u32> {
    let all = majors();
    if std::env::var_os("PGKEEP_TEST_SPREAD").is_none() {
        return all;
    }
    let thread = std::thread::current();
    let name = thread.name().filter(|name| *name != "main").expect("a test runs in a thread of its name");
    let number = name.bytes().fold(0usize, |sum, byte| sum + usize::from(byte));
    vec![all[number % all.len()]]
}

/// What is kept from run to run.
fn cache() -> PathBuf {
    std::env::var_os("PGKEEP_TEST_CACHE").map_or_else(|| PathBuf::from("/var/cache/pgkeep-test"), PathBuf::from)
}

/// The programs of one major version.
#[derive(Debug, Clone)]
pub struct Binaries {
    major: u32,
    dir: PathBuf,
}

impl Binaries {
    /// Finds the server programs of a major: Debian's directory first, then the cache.
    ///
    /// # Panics
    /// When they are not installed; the message names the script that does it.
    pub fn find(major: u32) -> Self {
        let places =
            [PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")), cache().join(format!("pg/{major}/bin"))];
        match places.iter().find(|dir| dir.join("postgres").exists()) {
            Some(dir) => Self { major, dir: dir.clone() },
            None => panic!("PostgreSQL {major} is not installed: run scripts/setup --pg {major}"),
        }
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The directory of the programs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of a program that must be of this very major (`postgres`, `initdb`, `pg_controldata`, ...).
    ///
    /// # Panics
    /// When this major's set does not have it: the ready-made 13 has only the server.
    pub fn own(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        assert!(path.exists(), "PostgreSQL {} in {} has no {name}", self.major, self.dir.display());
        path
    }

    /// The path of a client program: of this major if it has it, else of 15, which talks to every supported server.
    ///
    /// Right for `pgbench` and `psql`; tools that read files or WAL must match the server, so use [`Self::own`].
    ///
    /// # Panics
    /// When neither is there.
    pub fn client(&self, name: &str) -> PathBuf {
        let path = self.dir.join(name);
        if path.exists() { path } else { Self::find(15).own(name) }
    }

    /// A directory with the server's programs and the clients of a package, as users have it: the own one, or `place`,
    /// made with links to this major's and to 15's where those lack.
    ///
    /// # Panics
    /// When a link cannot be made.
    pub fn with_clients(&self, place: &Path) -> PathBuf {
        if self.has("psql") {
            return self.dir.clone();
        }
        if !place.exists() {
            crate::account::private_dir(place);
        }
        for name in ["initdb", "pg_ctl", "postgres", "psql", "pg_dump", "pg_restore"] {
            match std::os::unix::fs::symlink(self.client(name), place.join(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => panic!("{}: {e}", place.display()),
                _ => {}
            }
        }
        place.to_path_buf()
    }

    /// Whether this major's own set has a program.
    pub fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }
}
