//! Rules of both directions over clusters made up for every major; `crash` stops a push wherever it can be stopped.

mod ahead;
mod crash;
mod drop;
mod get;
mod own;
mod push;

use super::spool::RepositoryIdentity;
use super::*;
use crate::crypto::{Scope, SessionSealer, Unlock};
use crate::repository::OpenOptions;
use crate::store::{MemoryStore, Store};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::version::Version;
use pgkeep_formats::pg::wal::{WalHeader, WalSegment, WalSegmentSize};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::StanzaHistory;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Segments of 1 MiB keep the tests quick.
const SIZE: WalSegmentSize = WalSegmentSize::MIN;
const SYSTEM: u64 = 7_300_000_000_000_000_042;

/// A data directory with what the archive commands look at.
struct Cluster {
    dir: TempDir,
    version: Version,
    system: u64,
}

impl Cluster {
    fn new(version: Version, system: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("pg_wal/archive_status")).unwrap();
        std::fs::create_dir(dir.path().join("global")).unwrap();
        let mut control = ControlFile::fabricated(version, system);
        control.wal_segment_size = SIZE;
        std::fs::write(dir.path().join("global/pg_control"), control.encode()).unwrap();
        Self { dir, version, system }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn wal(&self, name: &str) -> PathBuf {
        self.path().join("pg_wal").join(name)
    }

    /// The first page's header, as the server writes it.
    fn header(&self, segment: WalSegment) -> WalHeader {
        WalHeader {
            version: self.version,
            info: WalHeader::LONG,
            timeline: segment.timeline,
            page_address: segment.start(SIZE),
            remaining: 0,
            system_identifier: self.system,
            segment_size: SIZE,
            block_size: 8192,
        }
    }

    fn content(&self, segment: WalSegment, seed: u8) -> Vec<u8> {
        let mut out = self.header(segment).encode();
        let filler: Vec<u8> = (0..SIZE.bytes() as usize - out.len()).map(|i| (i / 7) as u8 ^ seed).collect();
        out.extend_from_slice(&filler);
        out
    }

    /// Writes a segment into `pg_wal` and returns its name.
    fn segment(&self, number: u64, seed: u8) -> String {
        let segment = segment(number);
        let name = segment.name(SIZE);
        self.file(&name, &self.content(segment, seed));
        name
    }

    fn file(&self, name: &str, content: &[u8]) {
        std::fs::write(self.wal(name), content).unwrap();
    }

    fn push_options(&self, name: &str) -> PushOptions {
        PushOptions {
            stanza: "main".into(),
            source: self.wal(name),
            pg_path: Some(self.path().to_path_buf()),
            level: 1,
            header_check: true,
            mode_check: true,
            queue_max: None,
            lock_path: self.path().join("locks"),
            words: None,
        }
    }

    fn push(&self, repositories: &[Configured], name: &str) -> Result<PushReport> {
        push(repositories, &self.push_options(name))
    }

    fn get(&self, repositories: &[Configured], name: &str) -> Result<(GetOutcome, Vec<u8>)> {
        let destination = self.path().join("pg_wal/RECOVERYXLOG");
        let options = GetOptions {
            stanza: "main".into(),
            name: name.into(),
            destination: destination.clone(),
            pg_path: self.path().to_path_buf(),
            sparse: false,
        };
        let outcome = get(repositories, &options);
        let content = std::fs::read(&destination).unwrap_or_default();
        let _ = std::fs::remove_file(&destination);
        let left = std::fs::read_dir(self.path().join("pg_wal")).unwrap();
        let left: Vec<_> =
            left.map(|e| e.unwrap().file_name()).filter(|n| n.to_string_lossy().contains("tmp")).collect();
        assert!(left.is_empty(), "{left:?}");
        match outcome? {
            GetOutcome::Unsure { kind, message, .. } => Err(Error::refused(kind, message)),
            outcome => Ok((outcome, content)),
        }
    }
}

/// Repositories as they are told apart, by a mark each.
fn marked(marks: &[&str]) -> Vec<RepositoryIdentity> {
    let one = |(n, mark): (usize, &&str)| RepositoryIdentity {
        config: format!("repo{}", n + 1),
        mark: Some(*mark).filter(|mark| !mark.is_empty()).map(str::to_owned),
    };
    marks.iter().enumerate().map(one).collect()
}

fn segment(number: u64) -> WalSegment {
    WalSegment { timeline: TimelineId::FIRST, number }
}

fn options(key: u32) -> OpenOptions {
    OpenOptions { key, unlock: Unlock::None, cache: None }
}

fn open(key: u32, store: impl Store + 'static) -> Arc<Repository> {
    Arc::new(Repository::open(Arc::new(store), options(key)).unwrap())
}

/// A repository whose stanza `main` has had these clusters.
fn create(key: u32, store: impl Store + 'static, clusters: &[(Version, u64)]) -> Arc<Repository> {
    let repository = Repository::create(Arc::new(store), options(key), 0).unwrap();
    for (i, (version, system_identifier)) in clusters.iter().enumerate() {
        let id = i as u32 + 1;
        let facts = version.facts();
        let entry = StanzaHistory {
            id,
            version: version.major(),
            system_identifier: *system_identifier,
            catalog_version: facts.catalog_version,
            control_version: facts.pg_control_version,
            created: 0,
        };
        let sealer = SessionSealer::new(Arc::clone(repository.keyring())).unwrap();
        let name = layout::stanza_history("main", id);
        let scope = Scope::Stanza("main");
        let bytes = sealer.seal_object(ObjectKind::StanzaHistory, &scope, &name, &[], &entry.encode()).unwrap();
        repository.store().put_if_absent(&name, &bytes).unwrap();
    }
    Arc::new(repository)
}

fn one(version: Version) -> (MemoryStore, Vec<Configured>) {
    let store = MemoryStore::new();
    let repository = create(1, store.clone(), &[(version, SYSTEM)]);
    (store, vec![repository.into()])
}

fn archived(repository: &Configured, archive_id: &str, name: &str) -> Option<Vec<u8>> {
    repository.repository.as_ref().unwrap().wal_get("main", archive_id, name).unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind()
}

#[test]
fn made_up_segments_are_what_the_server_writes() {
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let content = cluster.content(segment(3), 1);
    let header = WalHeader::parse(&content).unwrap();
    assert_eq!((header.page_address, header.segment()), (Lsn(3 << 20), segment(3)));
    assert_eq!(content.len(), 1 << 20);
}
