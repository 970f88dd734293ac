//! Repositories with made-up backups and WAL.

use crate::chunk::Encoder;
use crate::clock::SystemClock;
use crate::crypto::{KeyFile, Unlock};
use crate::observe::{Cancel, Silent};
use crate::pack::{FinishedPack, PackedChunk};
use crate::repository::manifests::{BuiltEntry, ManifestBuilder};
pub(crate) use crate::repository::testing::CLUSTER;
use crate::repository::testing::record;
use crate::repository::wal::WalFile;
use crate::repository::{ChunkSource, OpenOptions, Repository, WriterSession, seal_data};
use crate::stanza::{RepoTarget, create};
use crate::store::{MemoryStore, Store};
use crate::verify::{VerifyOptions, VerifyReport, run};
use crate::{Error, Result};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::version::Version;
use pgkeep_formats::pg::wal::{WalHeader, WalSegment, WalSegmentSize};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt, Node};
use pgkeep_formats::repo::records::Commit;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const STANZA: &str = "demo";
pub(crate) const ARCHIVE: &str = "15-1";
const PAGE: usize = 8192;
/// Pages of a chunk and chunks of a pack.
const CHUNK_PAGES: usize = 4;
const PACK_CHUNKS: usize = 3;

pub(crate) struct Repo {
    pub(crate) store: MemoryStore,
    cache: Option<tempfile::TempDir>,
    /// Page hashes are written wrong.
    pub(crate) lies: std::cell::Cell<bool>,
}

impl Repo {
    /// With an index in memory.
    pub(crate) fn new() -> Self {
        Self::with(None)
    }

    /// With an index on disk.
    pub(crate) fn cached() -> Self {
        Self::with(Some(tempfile::tempdir().unwrap()))
    }

    fn with(cache: Option<tempfile::TempDir>) -> Self {
        let repo = Self { store: MemoryStore::new(), cache, lies: false.into() };
        repo.stanza(STANZA);
        repo
    }

    pub(crate) fn stanza(&self, name: &str) {
        let target = RepoTarget { store: Arc::new(self.store.clone()), options: self.options() };
        create(vec![target], name, &CLUSTER, &SystemClock).unwrap().remove(0).result.unwrap();
    }

    fn options(&self) -> OpenOptions {
        // A sealed repository, and no key derivation that takes its time.
        let unlock = Unlock::KeyFile(KeyFile::new(vec![7; 64]).unwrap());
        OpenOptions { key: 1, unlock, cache: self.cache.as_ref().map(|c| c.path().to_path_buf()) }
    }

    pub(crate) fn open(&self) -> Arc<Repository> {
        Arc::new(Repository::open(Arc::new(self.store.clone()), self.options()).unwrap())
    }

    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        self.store.snapshot().keys().filter(|k| k.starts_with(prefix)).map(str::to_owned).collect()
    }

    pub(crate) fn try_verify(&self, options: &VerifyOptions<'_>) -> Result<VerifyReport> {
        run(&self.open(), options, &Silent, &Cancel::default())
    }

    pub(crate) fn verify(&self) -> VerifyReport {
        self.try_verify(&all()).unwrap()
    }

    /// Backs up files of pages; `change` may alter the commit record.
    pub(crate) fn backup(&self, stanza: &str, label: &str, files: &Files, change: impl FnOnce(&mut Commit)) -> Commit {
        let repository = self.open();
        let mut session = WriterSession::begin(&repository, stanza, "test", "test", &SystemClock).unwrap();
        let mut manifest = ManifestBuilder::new(&session, PAGE as u32, None).unwrap();
        let (mut encoder, mut packed) = (Encoder::new(1).unwrap(), 0);
        for (path, bytes) in files {
            let mut extents = Vec::new();
            for (n, plain) in bytes.chunks(CHUNK_PAGES * PAGE).enumerate() {
                let kind = ChunkKind::Relation;
                let id = repository.keyring().chunk_id(kind.as_u8(), plain).unwrap();
                if !session.knows(&id).unwrap() {
                    let (encoding, encoded) = encoder.encode(plain).unwrap();
                    let plain_len = plain.len() as u32;
                    let sealed = seal_data(session.sealer(), id, kind, encoding, plain_len, encoded).unwrap();
                    let hasher = repository.keyring().page_hasher().unwrap();
                    let pages = plain.chunks(PAGE).filter(|_| plain.len().is_multiple_of(PAGE));
                    let hashes: Vec<u64> = pages.map(|p| hasher.hash(p) ^ u64::from(self.lies.get())).collect();
                    let chunk = PackedChunk { id, kind, encoding, plain_len };
                    let full = session.add_data(chunk, &sealed, &[], &hashes).unwrap();
                    assert!(full.is_none());
                    packed += 1;
                    if packed % PACK_CHUNKS == 0 {
                        let full = session.finish_data().unwrap();
                        self.put(&mut session, full);
                    }
                }
                let ordinal = manifest.ordinal(&mut session, id).unwrap();
                let units = plain.len().div_ceil(PAGE) as u32;
                // Every other extent is told in two, to have offsets.
                match units {
                    2.. if n % 2 == 0 => {
                        extents.push(Extent { units: 1, at: ExtentAt::Chunk { ordinal, offset: 0 } });
                        extents.push(Extent { units: units - 1, at: ExtentAt::Chunk { ordinal, offset: 1 } });
                    }
                    _ => extents.push(Extent { units, at: ExtentAt::Chunk { ordinal, offset: 0 } }),
                }
            }
            manifest.add(&mut session, entry(path, bytes.len(), extents)).unwrap();
        }
        let last = session.finish_data().unwrap();
        self.put(&mut session, last);
        let summary = manifest.finish(&mut session, Vec::new()).unwrap();
        session.publish().unwrap();
        let index = repository.load_index_to_read().unwrap();
        let source = Arc::new(ChunkSource::new(Arc::clone(&repository), index, stanza));
        let mut commit = commit(&session, label);
        commit.manifest = summary.manifest.clone();
        change(&mut commit);
        session.commit(&mut |each| summary.chunks(&source, &mut |id| each(id)), |_, _| commit, &SystemClock).unwrap()
    }

    fn put(&self, session: &mut WriterSession, pack: Option<FinishedPack>) {
        if let Some(pack) = pack {
            self.store.put_if_absent(&layout::pack(pack.facts.pack), &pack.bytes).unwrap();
            session.note_durable(&pack).unwrap();
        }
    }

    /// Archives a segment of 1 MiB.
    pub(crate) fn wal(&self, timeline: u32, number: u64) {
        self.archive(&segment_name(timeline, number), &segment(timeline, number));
    }

    pub(crate) fn archive(&self, name: &str, content: &[u8]) {
        let file = WalFile::encode(content, 1).unwrap();
        self.open().wal_put(STANZA, ARCHIVE, name, &file).unwrap();
    }
}

pub(crate) fn all() -> VerifyOptions<'static> {
    VerifyOptions { jobs: 3, ..VerifyOptions::default() }
}

pub(crate) type Files = BTreeMap<&'static str, Vec<u8>>;

/// Noise, the same for the same seed.
pub(crate) fn noise(pages: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; pages * PAGE];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut out);
    out
}

/// Two files: the second ends in the middle of a page.
pub(crate) fn files(seed: u8) -> Files {
    let mut second = noise(6, seed.wrapping_add(100));
    second.truncate(5 * PAGE + 100);
    Files::from([("base_1", noise(22, seed)), ("base_2", second)])
}

fn entry(path: &str, size: usize, extents: Vec<Extent>) -> BuiltEntry {
    BuiltEntry {
        path: path.to_owned(),
        node: Node::File,
        mode: 0o600,
        user: "postgres".to_owned(),
        group: "postgres".to_owned(),
        modified: (1, 0),
        size: size as u64,
        inline: None,
        unit: PAGE as u32,
        extents,
        bad_pages: Vec::new(),
    }
}

fn commit(session: &WriterSession, label: &str) -> Commit {
    Commit { label: label.to_owned(), wal_segment_size: 1 << 20, online: false, ..record(session) }
}

pub(crate) fn needs(start: (u32, u64), stop: u64) -> impl FnOnce(&mut Commit) {
    move |c| {
        c.online = true;
        c.timeline = start.0;
        c.wal = Some((segment_name(start.0, start.1), segment_name(start.0, stop)));
    }
}

pub(crate) fn segment_name(timeline: u32, number: u64) -> String {
    WalSegment { timeline: TimelineId(timeline), number }.name(WalSegmentSize::MIN)
}

pub(crate) fn segment(timeline: u32, number: u64) -> Vec<u8> {
    let header = WalHeader {
        version: Version::V15,
        info: WalHeader::LONG,
        timeline: TimelineId(timeline),
        page_address: Lsn(number << 20),
        remaining: 0,
        system_identifier: CLUSTER.system_identifier,
        segment_size: WalSegmentSize::MIN,
        block_size: 8192,
    };
    let mut out = header.encode();
    out.resize(1 << 20, number as u8);
    out
}

/// What `Error` a call gives, for messages of tests.
pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> crate::Kind {
    result.expect_err("an error").kind()
}
