//! Operations whose memory must not grow with the cluster, on clusters that are large in number, not in bytes.
//!
//! A [`Ground`] is a directory with a repository, a cache and, for [`Ground::make_files`], a data directory. Every operation
//! opens the repository anew, so that each can be measured in a process of its own: see [`peak`].
//!
//! Two clusters: *files*, a data directory of many small files, backed up, listed, read, verified and restored by the
//! engine as it is; and *chunks*, a manifest of many chunks of 256 KiB whose packs are files without content, so that the
//! index, the chunk table and the references are real and terabytes of pages are not.

use crate::commit_record;
use pgkeep_engine::backup::{self, BackupOptions, StandbyUse};
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::crypto::Unlock;
use pgkeep_engine::gc::{self, GcOptions};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pack::FinishedPack;
use pgkeep_engine::pg::ClusterIdentity;
use pgkeep_engine::repository::manifests::{BuiltEntry, Manifest, ManifestBuilder};
use pgkeep_engine::repository::{Backup, ChunkSource, OpenOptions, Repository, WriterSession};
use pgkeep_engine::stanza::{self, RepoTarget};
use pgkeep_engine::store::{LocalStore, Store};
use pgkeep_engine::verify::{self, VerifyOptions};
use pgkeep_engine::view::{BackupSnapshot, CACHE_BYTES_DEFAULT, ChunkCache, Snapshot};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::pg::control::{ControlFile, fabricate};
use pgkeep_formats::pg::version::Version;
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use pgkeep_formats::repo::index::{DOMAIN_DATA, PackFacts};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt, Node};
use pgkeep_formats::repo::pack::{Dependency, FooterEntry, HEADER_LEN};
use pgkeep_formats::repo::records::BackupType;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const STANZA: &str = "demo";
const VERSION: Version = Version::V15;
const PAGE: u32 = 8192;
/// Files of a directory.
const DIRECTORY_FILES: u64 = 50_000;
/// Chunks of a pack without content, of a file of 1 GiB, and bytes a chunk takes in its pack.
const PACK_CHUNKS: u64 = 1 << 15;
const FILE_CHUNKS: u64 = 4096;
const STORED_LEN: u32 = 1000;
/// Chunks of a pack of which all goes.
const GARBAGE_CHUNKS: u64 = 128;

/// What the engine promises to stay below, for `jobs` workers.
#[must_use]
pub const fn bound(jobs: u64) -> u64 {
    (256 + 64 * jobs) << 20
}

/// Most memory this process has had so far, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    /// All resident pages; those of mapped files, which the system takes back when it needs them, among them.
    pub resident: u64,
    /// Without those, as far as looking every few milliseconds tells.
    pub own: u64,
}

static OWN: AtomicU64 = AtomicU64::new(0);

/// Begins to look at this process's memory.
///
/// # Panics
/// If no thread can be started.
pub fn watch() {
    let look = || {
        loop {
            OWN.fetch_max(status("RssAnon:"), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    std::thread::Builder::new().name("watch".into()).spawn(look).expect("a thread");
}

/// The peaks since [`watch`].
///
/// # Panics
/// Without `/proc`.
#[must_use]
pub fn peak() -> Peak {
    let own = OWN.fetch_max(status("RssAnon:"), Ordering::Relaxed).max(status("RssAnon:"));
    Peak { resident: status("VmHWM:"), own }
}

fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|l| l.strip_prefix(field)).expect("a field of memory");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("a number of KiB") << 10
}

/// A directory with everything in it.
pub struct Ground(PathBuf);

impl Ground {
    /// In this directory.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    fn options(&self) -> OpenOptions {
        OpenOptions { key: 1, unlock: Unlock::None, cache: Some(self.path("cache")) }
    }

    fn repository(&self) -> Arc<Repository> {
        let store: Arc<dyn Store> = Arc::new(LocalStore::create(self.path("repo")).expect("a store"));
        if !Repository::exists(&*store).expect("a store") {
            let control = ControlFile::fabricated(VERSION, 7);
            let identity = ClusterIdentity {
                version: VERSION.major(),
                system_identifier: 7,
                catalog_version: control.catalog_version,
                control_version: control.pg_control_version,
            };
            let target = RepoTarget { store: Arc::clone(&store), options: self.options() };
            for outcome in stanza::create(vec![target], STANZA, &identity, &SystemClock).expect("a stanza") {
                outcome.result.expect("a stanza");
            }
        }
        Arc::new(Repository::open(store, self.options()).expect("the repository"))
    }

    /// The newest backup.
    fn newest(&self) -> (Arc<ChunkSource>, Backup) {
        let repository = self.repository();
        let index = repository.load_index_to_read().expect("an index");
        let newest =
            repository.backups(STANZA).expect("backups").into_iter().max_by_key(|b| (b.start, b.label.clone()));
        (Arc::new(ChunkSource::new(repository, index, STANZA)), newest.expect("a backup"))
    }

    /// Makes a data directory of `count` files: half of them empty, four of ten with 100 bytes, one of ten with 2 KiB.
    ///
    /// # Panics
    /// As all operations: whatever fails.
    pub fn make_files(&self, count: u64) {
        let data = self.path("data");
        for name in ["global", "pg_wal", "pg_tblspc"] {
            self.path(&format!("data/{name}"));
        }
        let write = |name: &str, bytes: &[u8]| {
            fs::write(data.join(name), bytes).expect("a file");
            fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o600)).expect("a mode");
        };
        write("PG_VERSION", format!("{}\n", VERSION.major()).as_bytes());
        write("global/pg_control", &fabricate(VERSION, 7));
        for n in 0..count {
            let directory = format!("base/{}", n / DIRECTORY_FILES + 1);
            if n % DIRECTORY_FILES == 0 {
                self.path(&format!("data/{directory}"));
            }
            let text = format!("{directory}/t{n}");
            let len = [0, 100, 0, 100, 0, 100, 0, 100, 0, 2048][n as usize % 10];
            let bytes: Vec<u8> = text.bytes().cycle().take(len).collect();
            fs::write(data.join(&text), bytes).expect("a file");
        }
    }

    /// Backs the data directory up with one worker. Returns how many files there are.
    pub fn backup_files(&self, backup_type: BackupType) -> u64 {
        let options = BackupOptions {
            stanza: STANZA.to_owned(),
            key: 1,
            pgdata: self.path("data"),
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
            annotations: [].into(),
            archive_check: false,
            archive_copy: false,
            archive_timeout: Duration::from_secs(1),
            process_max: 1,
            compress_level: 1,
            deltas: Default::default(),
            lock_path: self.path("lock"),
            exec_id: "1-bench".to_owned(),
            host: "host".to_owned(),
            program: "0.0".to_owned(),
            zone: jiff::tz::TimeZone::UTC,
            limits: pgkeep_engine::limit::Limits::none(),
        };
        let report = backup::run(&self.repository(), &options, &Silent, &Cancel::default(), &SystemClock);
        report.expect("a backup").files
    }

    /// Lists the newest backup: as a tree of files, and directory by directory. Returns how many entries there are.
    pub fn list(&self) -> u64 {
        let (source, backup) = self.newest();
        let manifest = Arc::new(Manifest::open(&source, &backup).expect("a manifest"));
        let count = manifest.entries().fold(0, |n, entry| n + u64::from(entry.is_ok()));
        assert_eq!(manifest.files().fold(0, |n, record| n + u64::from(record.is_ok())), count);
        let snapshot = BackupSnapshot::open(source, &backup, Arc::new(ChunkCache::new(CACHE_BYTES_DEFAULT)));
        let snapshot = snapshot.expect("a snapshot");
        let mut found = 0;
        let each = &mut |_| {
            found += 1;
            Ok(())
        };
        snapshot.entries(each).expect("entries");
        assert_eq!(found, count);
        for entry in snapshot.children("base").expect("children").iter().take(3) {
            assert!(!snapshot.children(&entry.path).expect("children").is_empty());
        }
        count
    }

    /// Reads one small file of the newest backup.
    pub fn read_file(&self, number: u64) {
        let (source, backup) = self.newest();
        let cache = Arc::new(ChunkCache::new(CACHE_BYTES_DEFAULT));
        let snapshot = BackupSnapshot::open(source, &backup, cache).expect("a snapshot");
        let path = format!("base/{}/t{number}", number / DIRECTORY_FILES + 1);
        let file = snapshot.open(&path).expect("a file");
        let mut bytes = vec![0; file.size() as usize];
        assert_eq!(file.read_at(0, &mut bytes).expect("its content"), bytes.len());
        assert!(bytes.iter().copied().eq(path.bytes().cycle().take(bytes.len())));
    }

    /// Verifies the repository with one worker.
    pub fn verify(&self) {
        let options = VerifyOptions { jobs: 1, ..VerifyOptions::default() };
        verify::run(&self.repository(), &options, &Silent, &Cancel::default()).expect("a report");
    }

    /// Makes a backup of `count` chunks of 256 KiB and commits it.
    pub fn make_chunks(&self, count: u64) {
        let repository = self.repository();
        let mut session = WriterSession::begin(&repository, STANZA, "bench", "host", &SystemClock).expect("a session");
        for first in (0..count).step_by(PACK_CHUNKS as usize) {
            self.empty_pack(&mut session, first, PACK_CHUNKS.min(count - first));
        }
        let mut builder = ManifestBuilder::new(&session, PAGE, None).expect("a builder");
        for file in 0..count.div_ceil(FILE_CHUNKS) {
            let mut built = large_file(file);
            for n in file * FILE_CHUNKS..((file + 1) * FILE_CHUNKS).min(count) {
                let ordinal = builder.ordinal(&mut session, made_up(n)).expect("an ordinal");
                built.extents.push(Extent { units: 32, at: ExtentAt::Chunk { ordinal, offset: 0 } });
                built.size += 32 * u64::from(PAGE);
            }
            builder.add(&mut session, built).expect("an entry");
        }
        commit(&repository, session, builder, 1);
    }

    /// Two backups of half of so many chunks each, in packs of 128 chunks, which is what 32 MiB hold; the first has expired.
    pub fn make_garbage(&self, count: u64) {
        let repository = self.repository();
        for (number, chunks) in [(1, 0..count / 2), (2, count / 2..count)] {
            let mut session =
                WriterSession::begin(&repository, STANZA, "bench", "host", &SystemClock).expect("a session");
            for first in chunks.clone().step_by(GARBAGE_CHUNKS as usize) {
                self.empty_pack(&mut session, first, GARBAGE_CHUNKS.min(chunks.end - first));
            }
            let mut builder = ManifestBuilder::new(&session, PAGE, None).expect("a builder");
            let mut built = large_file(number);
            for n in chunks {
                let ordinal = builder.ordinal(&mut session, made_up(n)).expect("an ordinal");
                built.extents.push(Extent { units: 32, at: ExtentAt::Chunk { ordinal, offset: 0 } });
                built.size += 32 * u64::from(PAGE);
            }
            builder.add(&mut session, built).expect("an entry");
            commit(&repository, session, builder, number as i64);
        }
        let first = repository.backups(STANZA).expect("the backups").remove(0);
        assert!(repository.mark_expired(STANZA, first.session, "bench", 1).expect("a marker"));
    }

    /// Collects what [`Self::make_garbage`] made.
    pub fn collect(&self, count: u64) {
        let report =
            gc::run(&self.repository(), &GcOptions::default(), &Silent, &Cancel::default(), &SystemClock).expect("gc");
        assert!(report.deleted.packs >= count / 2 / GARBAGE_CHUNKS && report.backups == 1, "{report:?}");
    }

    /// Makes the next backup of [`Self::make_chunks`]: nothing has changed but some pages of the first file.
    pub fn next_chunks(&self) {
        let (source, backup) = self.newest();
        let repository = Arc::clone(source.repository());
        let parent = Arc::new(Manifest::open(&source, &backup).expect("the parent"));
        let mut session = WriterSession::begin(&repository, STANZA, "bench", "host", &SystemClock).expect("a session");
        let mut builder = ManifestBuilder::new(&session, PAGE, Some(Arc::clone(&parent))).expect("a builder");
        for record in parent.files() {
            let record = record.expect("a file");
            let number: u64 = record.entry.path[1..].parse().expect("a number");
            let built = BuiltEntry { size: record.entry.size, ..large_file(number) };
            if number > 0 {
                builder.add_unchanged(&mut session, built).expect("an entry");
                continue;
            }
            // Every 16th page anew.
            let mut extents = Vec::new();
            let pages = record.extents.iter().flat_map(|e| (0..e.units).map(move |n| (e.at, n)));
            for (page, (at, n)) in pages.enumerate() {
                let ExtentAt::Chunk { ordinal, offset } = at else { panic!("a page of zeros") };
                let known = builder.parent_ordinal(&mut session, ordinal).expect("an ordinal");
                let new = page % 16 == 0;
                let (ordinal, offset) = if new { (known ^ 1, 31) } else { (known, offset + n) };
                extents.push(Extent { units: 1, at: ExtentAt::Chunk { ordinal, offset } });
            }
            builder.add(&mut session, BuiltEntry { extents, ..built }).expect("an entry");
        }
        commit(&repository, session, builder, 2);
    }

    /// Finds the last file of [`Self::make_chunks`] and the places of its chunks.
    pub fn find_chunks(&self) {
        let (source, backup) = self.newest();
        let manifest = Arc::new(Manifest::open(&source, &backup).expect("a manifest"));
        let last = manifest.root().files - 1;
        let found = manifest.find(&large_file(last).path).expect("a manifest").expect("the last file");
        for extent in &found.extents {
            let ExtentAt::Chunk { ordinal, .. } = extent.at else { panic!("zeros") };
            source.locate(&manifest.chunk_id(ordinal).expect("an id")).expect("a place");
        }
    }

    /// Publishes `count` chunks from number `first` on in a pack whose object has a length and no content.
    fn empty_pack(&self, session: &mut WriterSession, first: u64, count: u64) {
        let pack = PackId(*blake3::hash(format!("pack {first}").as_bytes()).as_bytes());
        let size = HEADER_LEN as u64 + count * u64::from(STORED_LEN);
        let path = self.path("repo").join(layout::pack(pack));
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        File::create(path).and_then(|f| f.set_len(size)).expect("a pack");
        let epoch = session.repository().keyring().current_epoch().expect("an epoch");
        let facts = PackFacts { pack, session: session.id(), epoch, domain: DOMAIN_DATA, scope: [0; 8], size };
        let entry = |n: u64| FooterEntry {
            id: made_up(first + n),
            offset: HEADER_LEN as u32 + n as u32 * STORED_LEN,
            stored_len: STORED_LEN,
            plain_len: 32 * PAGE,
            kind: ChunkKind::Relation,
            encoding: Encoding::Zstd,
            dependency: Dependency::None,
            page_hashes: 0,
        };
        let finished = FinishedPack { facts, entries: (0..count).map(entry).collect(), bytes: Vec::new() };
        session.note_durable(&finished).expect("an index");
    }
}

fn made_up(number: u64) -> ChunkId {
    ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn large_file(number: u64) -> BuiltEntry {
    BuiltEntry {
        path: format!("f{number:08}"),
        node: Node::File,
        mode: 0o600,
        user: "postgres".into(),
        group: "postgres".into(),
        modified: (1, 0),
        size: 0,
        inline: None,
        unit: PAGE,
        extents: Vec::new(),
        bad_pages: Vec::new(),
    }
}

fn commit(repository: &Arc<Repository>, mut session: WriterSession, builder: ManifestBuilder, number: i64) {
    let summary = builder.finish(&mut session, Vec::new()).expect("a manifest");
    session.publish().expect("an index");
    let index = Arc::clone(session.index());
    let source = Arc::new(ChunkSource::new(Arc::clone(repository), index, STANZA));
    let record = commit_record(&session, &summary, number);
    session.commit(&mut |each| summary.chunks(&source, each), |_, _| record, &SystemClock).expect("a commit");
}
