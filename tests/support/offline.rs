//! Made-up stopped clusters, backed up into stores in memory: the ground of crash, damage, cache and model tests.
//!
//! A [`World`] has a data directory that looks like PostgreSQL's, a repository with small packs, so that a few megabytes
//! make many objects, and a clock that only moves when told. What was backed up is remembered as a [`Tree`], read from the
//! files; what a repository holds is read as another, chunk by chunk, by code that shares nothing with `restore`.
//! [`invariants`] checks a whole repository.

mod cluster;
mod hooked;
mod invariants;
mod tree;

pub use cluster::{FakeCluster, page};
pub use hooked::HookedStore;
pub use invariants::{Ledger, chunk_ids, invariants, rebuild};
pub use tree::{Kept, Tree, read_back};

use pgkeep_engine::Result;
use pgkeep_engine::backup::{self, BackupOptions, BackupReport, StandbyUse};
use pgkeep_engine::clock::{Clock, SystemClock};
use pgkeep_engine::crypto::Unlock;
use pgkeep_engine::limit::Limits;
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pg::ClusterIdentity;
use pgkeep_engine::repository::{OpenOptions, Repository};
use pgkeep_engine::stanza::{self, RepoTarget};
use pgkeep_engine::store::{MemoryStore, Range, Store};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::version::Version;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::BackupType;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Name of the only stanza.
pub const STANZA: &str = "demo";
/// PostgreSQL version of every made-up cluster.
pub const VERSION: Version = Version::V15;
/// The smallest packs a repository may have.
const PACK_BYTES: u32 = 1 << 20;

/// A clock that stands still between [`TestClock::advance`]s.
#[derive(Debug)]
pub struct TestClock(AtomicU64);

impl TestClock {
    /// Begins at some time in 2026.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(1_780_000_000)))
    }

    /// Moves on by whole seconds.
    pub fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Goes back by whole seconds, as no clock should.
    pub fn set_back(&self, seconds: u64) {
        self.0.fetch_sub(seconds, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }

    fn sleep(&self, time: Duration) {
        self.advance(time.as_secs().max(1));
    }
}

/// A cluster, a repository made for it, and everything a backup needs.
pub struct World {
    dir: TempDir,
    /// The cluster.
    pub cluster: FakeCluster,
    /// The repository's objects. Backups may go to other stores that began as a snapshot of this one.
    pub store: MemoryStore,
    /// Time, for cluster and engine.
    pub clock: Arc<TestClock>,
}

impl World {
    /// A cluster of about `megabytes` and an empty repository with its stanza.
    #[must_use]
    pub fn new(seed: u64, megabytes: u64) -> Self {
        Self::with_unlock(seed, megabytes, || Unlock::None)
    }

    /// As [`Self::new`], for a repository that opens with something.
    #[must_use]
    pub fn with_unlock(seed: u64, megabytes: u64, unlock: impl Fn() -> Unlock) -> Self {
        let dir = tempfile::Builder::new().prefix("pgkeep-offline-").tempdir().expect("cannot make a directory");
        let clock = TestClock::new();
        let cluster = FakeCluster::new(dir.path(), Arc::clone(&clock), seed, megabytes);
        let store = MemoryStore::with_clock(Arc::clone(&clock) as Arc<dyn Clock>);
        let options = || OpenOptions { key: 1, unlock: unlock(), cache: None };
        make_stanza(&store, options(), STANZA, seed);
        let repository = Repository::open(Arc::new(store.clone()), options()).expect("cannot open the new repository");
        let mut config = repository.config().clone();
        config.pack_bytes = PACK_BYTES;
        let bytes = repository.keyring().seal_config(&config).expect("cannot seal the parameters");
        assert!(store.tamper(layout::FORMAT, |format| *format = bytes));
        Self { dir, cluster, store, clock }
    }

    /// A directory of this world alone, made on demand.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).expect("cannot make a directory");
        path
    }

    /// A store that begins as `store` is now and goes its own way.
    #[must_use]
    pub fn fork(&self) -> MemoryStore {
        self.store.from_snapshot(&self.store.snapshot())
    }

    /// Backs up into any store that holds this world's repository. Time passes before and after.
    ///
    /// # Errors
    /// Those of opening the repository and of the backup.
    pub fn backup_to(&self, store: Arc<dyn Store>, cache: Option<&Path>, kind: BackupType) -> Result<BackupReport> {
        let repository = open_with(store, cache)?;
        self.backup_with(&repository, kind)
    }

    /// Backs up into an open repository.
    ///
    /// # Errors
    /// Those of the backup.
    pub fn backup_with(&self, repository: &Arc<Repository>, kind: BackupType) -> Result<BackupReport> {
        self.clock.advance(60);
        let report = backup::run(repository, &self.options(kind), &Silent, &Cancel::default(), &*self.clock);
        self.clock.advance(60);
        report
    }

    /// Backs up into this world's own store, which must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn backup(&self, kind: BackupType) -> BackupReport {
        self.backup_to(Arc::new(self.store.clone()), None, kind).expect("a backup must succeed")
    }

    /// What this world's backups are made with.
    #[must_use]
    pub fn options(&self, backup_type: BackupType) -> BackupOptions {
        BackupOptions {
            stanza: STANZA.to_owned(),
            key: 1,
            pgdata: self.cluster.path().to_path_buf(),
            server: None,
            others: Vec::new(),
            standby: StandbyUse::No,
            backup_type,
            delta: false,
            force: false,
            start_fast: true,
            checksum_page: None,
            page_header_check: true,
            exclude: Vec::new(),
            annotations: [("made".to_owned(), "up".to_owned())].into(),
            archive_check: true,
            archive_copy: false,
            archive_timeout: Duration::from_secs(1),
            process_max: 2,
            limits: Limits::none(),
            compress_level: 1,
            deltas: Default::default(),
            lock_path: self.path("lock"),
            exec_id: "1-test".to_owned(),
            host: "host".to_owned(),
            program: "0.0".to_owned(),
            zone: jiff::tz::TimeZone::UTC,
        }
    }
}

/// Makes a stanza, and the repository if there is none, for the cluster of `system_identifier`.
///
/// # Panics
/// If that fails.
pub fn make_stanza(store: &MemoryStore, options: OpenOptions, stanza: &str, system_identifier: u64) {
    let control = ControlFile::fabricated(VERSION, system_identifier);
    let identity = ClusterIdentity {
        version: VERSION.major(),
        system_identifier,
        catalog_version: control.catalog_version,
        control_version: control.pg_control_version,
    };
    let target = RepoTarget { store: Arc::new(store.clone()), options };
    let outcomes = stanza::create(vec![target], stanza, &identity, &SystemClock).expect("a stanza must be made");
    for outcome in outcomes {
        outcome.result.expect("a stanza must be made");
    }
}

/// Opens a repository that needs no key, without a cache.
///
/// # Errors
/// Those of [`Repository::open`].
pub fn open(store: &MemoryStore) -> Result<Arc<Repository>> {
    open_with(Arc::new(store.clone()), None)
}

/// Opens a repository that needs no key.
///
/// # Errors
/// Those of [`Repository::open`].
pub fn open_with(store: Arc<dyn Store>, cache: Option<&Path>) -> Result<Arc<Repository>> {
    let options = OpenOptions { key: 1, unlock: Unlock::None, cache: cache.map(Path::to_path_buf) };
    Ok(Arc::new(Repository::open(store, options)?))
}

/// All bytes of an object.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn object(store: &MemoryStore, key: &str) -> Vec<u8> {
    store.get(key, Range::Whole).unwrap_or_else(|e| panic!("{e}"))
}

/// An error with all its causes, as a user would see them.
#[must_use]
pub fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
