//! Backups made by hand, for tests of reading them.

use super::{BackupSnapshot, ChunkCache};
use crate::chunk::{Encoder, is_zero};
use crate::clock::SystemClock;
use crate::crypto::Unlock;
use crate::pack::{FinishedPack, PackedChunk};
use crate::repository::manifests::{BuiltEntry, ManifestBuilder};
use crate::repository::testing::record;
use crate::repository::{ChunkSource, OpenOptions, Repository, WriterSession, seal_data};
use crate::store::{Put, Store};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt, Node, path_cmp};
use pgkeep_formats::repo::records::Commit;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) const STANZA: &str = "demo";
pub(super) const LABEL: &str = "20260101-000000F";
pub(super) const PAGE: usize = 8192;

/// Xorshift: the same numbers for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    /// Half of the pages are zeros, the others do not repeat.
    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let page = (len - out.len()).min(PAGE);
            let fill = self.roll(2) as u64;
            out.extend((0..page).map(|_| (self.roll(256) as u64 * fill) as u8));
        }
        out
    }
}

/// What a file is to be made of.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    /// Bytes of a unit.
    pub(super) unit: u32,
    /// Most units of an extent and extents of a chunk.
    pub(super) extent_units: usize,
    pub(super) chunk_extents: usize,
    /// Whether a chunk's extents stand in it in another order than in the file.
    pub(super) shuffled: bool,
}

impl File {
    /// Pages, one extent a chunk, in order.
    pub(super) fn plain(bytes: Vec<u8>, chunk_pages: usize) -> Self {
        Self { bytes, unit: PAGE as u32, extent_units: chunk_pages, chunk_extents: 1, shuffled: false }
    }
}

/// A tree by path; `None` is a directory.
pub(super) type Tree = BTreeMap<String, Option<File>>;

/// An open backup with what it was made from.
pub(super) struct Backup {
    pub(super) source: Arc<ChunkSource>,
    pub(super) commit: Commit,
}

impl Backup {
    pub(super) fn snapshot(&self, cache: &Arc<ChunkCache>) -> BackupSnapshot {
        BackupSnapshot::open(Arc::clone(&self.source), &self.commit, Arc::clone(cache)).unwrap()
    }
}

/// Makes a repository with one backup of `tree` in an empty store, and opens it to read. A pack is ended after
/// `pack_chunks` chunks.
pub(super) fn backup(store: Arc<dyn Store>, tree: &Tree, pack_chunks: usize, seed: u64) -> Backup {
    let options = || OpenOptions { key: 1, unlock: Unlock::None, cache: None };
    Repository::create(Arc::clone(&store), options(), 1).unwrap();
    let repository = Arc::new(Repository::open(store, options()).unwrap());
    let mut session = WriterSession::begin(&repository, STANZA, "test", "host", &SystemClock).unwrap();
    let mut writer = Writer {
        manifest: ManifestBuilder::new(&session, PAGE as u32, None).unwrap(),
        encoder: Encoder::new(1).unwrap(),
        pack_chunks,
        in_pack: 0,
        dice: Dice(seed | 1),
    };
    let mut paths: Vec<_> = tree.iter().collect();
    paths.sort_by(|a, b| path_cmp(a.0, b.0));
    for (path, file) in paths {
        let built = writer.entry(&mut session, path, file.as_ref());
        writer.manifest.add(&mut session, built).unwrap();
    }
    put(&mut session, |s| s.finish_data().unwrap());
    let summary = writer.manifest.finish(&mut session, Vec::new()).unwrap();
    session.publish().unwrap();
    let index = repository.load_index_to_read().unwrap();
    let source = Arc::new(ChunkSource::new(Arc::clone(&repository), index, STANZA));
    let mut commit = commit(&session);
    commit.manifest = summary.manifest.clone();
    let finished = commit.clone();
    session.commit(&mut |each| summary.chunks(&source, &mut |id| each(id)), |_, _| finished, &SystemClock).unwrap();
    Backup { source, commit }
}

struct Writer {
    manifest: ManifestBuilder,
    encoder: Encoder,
    pack_chunks: usize,
    in_pack: usize,
    dice: Dice,
}

impl Writer {
    fn entry(&mut self, session: &mut WriterSession, path: &str, file: Option<&File>) -> BuiltEntry {
        let linked = path.ends_with("linked");
        let node = match (file.is_some(), linked) {
            (true, false) => Node::File,
            (true, true) => Node::LinkedFile("/elsewhere/file".to_owned()),
            (false, false) => Node::Directory,
            (false, true) => Node::LinkedDirectory("/elsewhere".to_owned()),
        };
        let mut built = BuiltEntry {
            path: path.to_owned(),
            node,
            mode: 0o600,
            user: "postgres".to_owned(),
            group: "dba".to_owned(),
            modified: (path.len() as i64, 5),
            size: file.map_or(0, |f| f.bytes.len() as u64),
            inline: None,
            unit: PAGE as u32,
            extents: Vec::new(),
            bad_pages: Vec::new(),
        };
        match file {
            Some(file) if file.bytes.len() <= 300 => built.inline = Some(file.bytes.clone()),
            Some(file) => {
                built.unit = file.unit;
                built.extents = self.cut(session, file);
            }
            None => {}
        }
        built
    }

    fn cut(&mut self, session: &mut WriterSession, file: &File) -> Vec<Extent> {
        let unit = file.unit as usize;
        let units = file.bytes.len().div_ceil(unit);
        let mut cuts = Vec::new();
        let mut at = 0;
        while at < units {
            // With a limit of one extent a chunk the length is exact, so that tests can count.
            let most = file.extent_units;
            let len = if file.chunk_extents == 1 && !file.shuffled { most } else { 1 + self.dice.roll(most) };
            let len = len.min(units - at);
            cuts.push((at, len));
            at += len;
        }
        let mut extents = vec![Extent { units: 0, at: ExtentAt::Zero }; cuts.len()];
        let numbers: Vec<usize> = (0..cuts.len()).collect();
        for group in numbers.chunks(file.chunk_extents) {
            let mut group = group.to_vec();
            // Only the file's last unit may be short, so its extent stays last.
            if file.shuffled && group.last() != Some(&(cuts.len() - 1)) {
                for i in (1..group.len()).rev() {
                    group.swap(i, self.dice.roll(i + 1));
                }
            }
            let (mut plain, mut inside) = (Vec::new(), Vec::new());
            for number in group {
                let (start, len) = cuts[number];
                let bytes = &file.bytes[start * unit..((start + len) * unit).min(file.bytes.len())];
                extents[number].units = len as u32;
                if !is_zero(bytes) {
                    inside.push((number, (plain.len() / unit) as u32));
                    plain.extend_from_slice(bytes);
                }
            }
            if !plain.is_empty() {
                let kind = if unit == PAGE { ChunkKind::Relation } else { ChunkKind::Other };
                let ordinal = self.chunk(session, kind, &plain);
                for (number, offset) in inside {
                    extents[number].at = ExtentAt::Chunk { ordinal, offset };
                }
            }
        }
        extents
    }

    fn chunk(&mut self, session: &mut WriterSession, kind: ChunkKind, plain: &[u8]) -> u32 {
        let id = session.repository().keyring().chunk_id(kind.as_u8(), plain).unwrap();
        if !session.knows(&id).unwrap() {
            let (encoding, encoded) = self.encoder.encode(plain).unwrap();
            let plain_len = plain.len() as u32;
            let sealed = seal_data(session.sealer(), id, kind, encoding, plain_len, encoded).unwrap();
            put(session, |s| s.add_data(PackedChunk { id, kind, encoding, plain_len }, &sealed, &[], &[]).unwrap());
            self.in_pack += 1;
            if self.in_pack == self.pack_chunks {
                put(session, |s| s.finish_data().unwrap());
                self.in_pack = 0;
            }
        }
        self.manifest.ordinal(session, id).unwrap()
    }
}

fn put(session: &mut WriterSession, pack: impl FnOnce(&mut WriterSession) -> Option<FinishedPack>) {
    if let Some(pack) = pack(session) {
        let store = Arc::clone(session.repository().store());
        assert_eq!(store.put_if_absent(&layout::pack(pack.facts.pack), &pack.bytes).unwrap(), Put::Created);
        session.note_durable(&pack).unwrap();
    }
}

fn commit(session: &WriterSession) -> Commit {
    Commit { label: LABEL.to_owned(), system_identifier: 1, online: false, ..record(session) }
}
