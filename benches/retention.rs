//! `info` and `expire` on a repository with many backups and much archived WAL: time, and requests to the store.
//!
//! Bound expected: requests. `info` lists commits and the two ends of the archive and reads each commit once, so its requests
//! grow with backups, not with WAL. `expire` adds one put for each backup and one delete for each file that go, and lists
//! the directories of WAL up to the first that stays; so requests by what is deleted must stay about the same.
//!
//! `cargo bench -p pgkeep-benches --bench retention [-- BACKUPS [SEGMENTS]]`, 1000 and 100000 by default; local store.

use pgkeep_benches::commit_record;
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::crypto::Unlock;
use pgkeep_engine::expire::{self, Ask, ExpireOptions, FullRetention, Retention};
use pgkeep_engine::info::{self, Detail, InfoOptions, RepoAccess, RepoSource};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pg::ClusterIdentity;
use pgkeep_engine::repository::manifests::ManifestBuilder;
use pgkeep_engine::repository::wal::WalFile;
use pgkeep_engine::repository::{BACKUP, OpenOptions, Repository, WriterSession};
use pgkeep_engine::stanza::{self, RepoTarget};
use pgkeep_engine::store::{Depth, Listed, LocalStore, Put, Range, Store, StoreError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const STANZA: &str = "demo";
const ARCHIVE: &str = "15-1";
/// Bytes of a made-up segment: what is measured are requests, and a real one is read by nobody here.
const SEGMENT: [u8; 64] = [7; 64];

/// Requests by kind.
#[derive(Debug, Default)]
struct Requests {
    put: AtomicU64,
    get: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
}

impl Requests {
    fn take(&self) -> [u64; 4] {
        [&self.put, &self.get, &self.list, &self.delete].map(|n| n.swap(0, Ordering::Relaxed))
    }
}

#[derive(Debug, Clone)]
struct Counting {
    inner: Arc<LocalStore>,
    requests: Arc<Requests>,
}

impl Store for Counting {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        self.requests.put.fetch_add(1, Ordering::Relaxed);
        self.inner.put_if_absent(key, bytes)
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        self.requests.get.fetch_add(1, Ordering::Relaxed);
        self.inner.get(key, range)
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        // Stores answer with a thousand names at a time.
        let mut names = 0_u64;
        let outcome = self.inner.list(prefix, depth, &mut |l| {
            names += 1;
            each(l);
        });
        self.requests.list.fetch_add(names.div_ceil(1000).max(1), Ordering::Relaxed);
        outcome
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.requests.delete.fetch_add(1, Ordering::Relaxed);
        self.inner.delete(key)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

struct Ground {
    store: Counting,
    cache: tempfile::TempDir,
}

impl Ground {
    fn make(dir: &Path, backups: u32, segments: u32) -> Self {
        let inner = Arc::new(LocalStore::create(dir).expect("a store"));
        let store = Counting { inner, requests: Arc::default() };
        let ground = Self { store, cache: tempfile::tempdir().expect("a directory") };
        let identity =
            ClusterIdentity { version: 15, system_identifier: 7, catalog_version: 202_209_061, control_version: 1300 };
        let target = RepoTarget { store: Arc::new(ground.store.clone()), options: ground.options() };
        stanza::create(vec![target], STANZA, &identity, &SystemClock).expect("a stanza");
        let repository = ground.open();
        let step = (segments / backups).max(2);
        let file = WalFile::encode(&SEGMENT, 1).expect("a file");
        for n in 0..segments {
            repository.wal_put(STANZA, ARCHIVE, &segment(n), &file).expect("a segment");
        }
        for n in 0..backups {
            let mut session =
                WriterSession::begin(&repository, STANZA, BACKUP, "bench", &SystemClock).expect("a session");
            let manifest = ManifestBuilder::new(&session, 8192, None).expect("a manifest");
            let summary = manifest.finish(&mut session, Vec::new()).expect("a manifest");
            let mut record = commit_record(&session, &summary, n.into());
            record.label = label(n);
            (record.start, record.stop) = (i64::from(n) * 86_400, i64::from(n) * 86_400 + 60);
            (record.version, record.history_id, record.online) = (15, 1, true);
            record.wal = Some((segment(n * step), segment(n * step + 1)));
            session.commit(&mut |_| Ok(()), |_, _| record, &SystemClock).expect("a commit");
        }
        ground.store.requests.take();
        ground
    }

    fn options(&self) -> OpenOptions {
        OpenOptions { key: 1, unlock: Unlock::None, cache: Some(self.cache.path().to_owned()) }
    }

    fn open(&self) -> Arc<Repository> {
        Arc::new(Repository::open(Arc::new(self.store.clone()), self.options()).expect("a repository"))
    }

    /// Does something and tells what it took.
    fn measure(&self, what: &str, work: impl FnOnce(&Arc<Repository>) -> u64) {
        let repository = self.open();
        self.store.requests.take();
        let began = Instant::now();
        let deleted = work(&repository);
        let seconds = began.elapsed().as_secs_f64();
        let [put, get, list, delete] = self.store.requests.take();
        let each = (put + get + list + delete) as f64 / deleted.max(1) as f64;
        println!(
            "{what:<34} {seconds:>8.2} s  put {put:>6}  get {get:>6}  list {list:>6}  delete {delete:>6}  {}",
            if deleted > 0 { format!("{deleted} went, {each:.2} requests for each") } else { String::new() }
        );
    }

    fn expire(&self, keep: u32) {
        let retention = Retention { full: Some(FullRetention::Count(keep)), ..Retention::default() };
        let zone = jiff::tz::TimeZone::UTC;
        let options = ExpireOptions {
            stanza: STANZA,
            retention: &retention,
            ask: Ask::Rules,
            force: false,
            dry_run: false,
            zone: &zone,
        };
        self.measure(&format!("expire all but {keep}"), |repository| {
            let report = expire::run(repository, &options, &Silent, &Cancel::default(), &SystemClock).expect("expire");
            let files: u64 = report.archives.iter().map(|a| a.removed.files).sum();
            report.expired().count() as u64 + files
        });
    }
}

fn segment(n: u32) -> String {
    format!("00000001{:08X}{:08X}", n / 256, n % 256)
}

fn label(n: u32) -> String {
    format!("20{:02}{:02}{:02}-000000F", n / 336, n / 28 % 12 + 1, n % 28 + 1)
}

fn main() {
    let mut args =
        std::env::args().skip(1).filter(|a| !a.starts_with('-')).map(|a| a.parse::<u32>().expect("a number"));
    let (backups, segments) = (args.next().unwrap_or(1000), args.next().unwrap_or(100_000));
    let dir =
        tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).expect("a directory");
    let began = Instant::now();
    let ground = Ground::make(&dir.path().join("repo"), backups, segments);
    println!("{backups} backups and {segments} segments made in {:.0} s", began.elapsed().as_secs_f64());
    for _ in 0..3 {
        ground.measure("info", |repository| {
            let options = InfoOptions { detail: Detail::Full, ..InfoOptions::default() };
            let source =
                RepoSource { key: 1, cipher: info::CipherName::None, access: RepoAccess::Open(Arc::clone(repository)) };
            let found = info::gather(&[source], &options).expect("info");
            assert_eq!(found.stanzas[0].backups.len(), backups as usize);
            0
        });
    }
    ground.expire(backups - backups / 10);
    ground.expire(backups - backups / 10 - backups / 2);
    ground.expire(backups - backups / 10 - backups / 2);
}
