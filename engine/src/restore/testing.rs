//! Backing up a directory tree into a repository without a server, in every shape a manifest can express.
//!
//! For tests of what reads backups. Real backups come from the `backup` module; this one mixes whole regions, gathered
//! pages, pooled small files, inline content and zero extents at random, from a seed.

use crate::chunk::{Encoder, is_zero};
use crate::clock::SystemClock;
use crate::pack::PackedChunk;
use crate::pg::datadir::names::Names;
use crate::repository::manifests::{BuiltEntry, ManifestBuilder};
use crate::repository::{ChunkSource, Repository, WriterSession, seal_data};
use crate::{FileError, Result};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt, INLINE_BYTES_MAX, LATE_BYTES_MAX, Node};
use pgkeep_formats::repo::records::{BackupType, Commit, TablespaceRef};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to back up a tree.
#[derive(Debug, Clone)]
pub struct TreeOptions {
    /// Label of the backup.
    pub label: String,
    /// When it ended, seconds since the Unix epoch.
    pub stop: i64,
    /// Its start and stop LSN and timeline; `None` makes it a backup of a stopped server.
    pub lsn: Option<(u64, u64)>,
    /// PostgreSQL major.
    pub version: u32,
    /// Names of tablespaces by OID.
    pub tablespaces: Vec<(u32, String)>,
    /// Bytes of a page.
    pub page_size: u32,
    /// Pages of a region.
    pub region_pages: usize,
    /// Decides what is gathered, pooled, inline or cut where.
    pub seed: u64,
}

impl TreeOptions {
    /// A backup of a stopped server of version 15 with small regions.
    #[must_use]
    pub fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            stop: 1_700_000_000,
            lsn: None,
            version: 15,
            tablespaces: Vec::new(),
            page_size: 8192,
            region_pages: 4,
            seed: 1,
        }
    }
}

struct Draft {
    kind: ChunkKind,
    bytes: Vec<u8>,
}

struct File {
    /// Its extents have numbers of drafts for ordinals, at first.
    entry: BuiltEntry,
    bytes: Vec<u8>,
    /// It is added last, as real backups add what they read last.
    late: bool,
}

/// Backs up everything below `root`, links followed, and commits.
///
/// # Errors
/// What the file system or the repository said.
pub fn back_up_tree(repository: &Arc<Repository>, stanza: &str, root: &Path, options: &TreeOptions) -> Result<Commit> {
    let mut files = Vec::new();
    let names = Names::load();
    walk(root, "", &names, &mut files)?;
    let drafts = draft(&mut files, options);
    let mut session = WriterSession::begin(repository, stanza, "test", "test", &SystemClock)?;
    let mut builder = ManifestBuilder::new(&session, options.page_size, None)?;
    let mut encoder = Encoder::new(1)?;
    let mut ordinals = Vec::new();
    for draft in &drafts {
        let id = repository.keyring().chunk_id(draft.kind.as_u8(), &draft.bytes)?;
        ordinals.push(builder.ordinal(&mut session, id)?);
        if session.knows(&id)? {
            continue;
        }
        let plain_len = draft.bytes.len() as u32;
        let (encoding, encoded) = encoder.encode(&draft.bytes)?;
        let sealed = seal_data(session.sealer(), id, draft.kind, encoding, plain_len, encoded)?;
        let full = session.add_data(PackedChunk { id, kind: draft.kind, encoding, plain_len }, &sealed, &[], &[])?;
        store(&mut session, full)?;
    }
    let last = session.finish_data()?;
    store(&mut session, last)?;
    let mut late = Vec::new();
    for mut file in files {
        if file.late {
            late.push(file.entry);
            continue;
        }
        for extent in &mut file.entry.extents {
            if let ExtentAt::Chunk { ordinal, .. } = &mut extent.at {
                *ordinal = ordinals.get(*ordinal as usize).copied().unwrap_or(u32::MAX);
            }
        }
        builder.add(&mut session, file.entry)?;
    }
    let summary = builder.finish(&mut session, late)?;
    session.publish()?;
    let index = Arc::clone(session.index());
    let source = Arc::new(ChunkSource::new(Arc::clone(repository), index, stanza));
    let history = repository.stanza_history(stanza)?;
    let (id, generation) = (session.id(), session.generation());
    let (manifest, size) = (summary.manifest.clone(), summary.root.bytes);
    let finish = |used, new| Commit {
        session: id,
        generation,
        label: options.label.clone(),
        backup_type: BackupType::Full,
        prior: None,
        reference: Vec::new(),
        history_id: history.iter().map(|h| h.id).max().unwrap_or(0),
        version: options.version,
        system_identifier: history.last().map_or(1, |h| h.system_identifier),
        timeline: 1,
        start: options.stop - 10,
        stop: options.stop,
        lsn: options.lsn,
        wal: None,
        wal_segment_size: 16 << 20,
        size,
        delta: size,
        repository_size: used,
        repository_delta: new,
        manifest,
        annotations: Default::default(),
        page_checksums: false,
        error_list: Vec::new(),
        databases: Vec::new(),
        tablespaces: options
            .tablespaces
            .iter()
            .map(|(oid, name)| TablespaceRef { oid: *oid, name: name.clone(), destination: String::new() })
            .collect(),
        links: Vec::new(),
        program: "test".to_owned(),
        online: options.lsn.is_some(),
        copy_start_nanos: 0,
        keeps_wal: false,
    };
    session.commit(&mut |each| summary.chunks(&source, each), finish, &SystemClock)
}

fn store(session: &mut WriterSession, pack: Option<crate::pack::FinishedPack>) -> Result<()> {
    if let Some(pack) = pack {
        session.repository().store().put_if_absent(&layout::pack(pack.facts.pack), &pack.bytes)?;
        session.note_durable(&pack)?;
    }
    Ok(())
}

/// Collects a tree in path order.
fn walk(real: &Path, path: &str, names: &Names, out: &mut Vec<File>) -> Result<()> {
    let link = if path.is_empty() { None } else { std::fs::read_link(real).ok() };
    let facts = std::fs::metadata(real).map_err(FileError::at("stat", real))?;
    let text = link.map(|l| l.to_string_lossy().into_owned());
    let bytes = if facts.is_dir() { Vec::new() } else { std::fs::read(real).map_err(FileError::at("read", real))? };
    let node = match (facts.is_dir(), text) {
        (true, None) => Node::Directory,
        (true, Some(text)) => Node::LinkedDirectory(text),
        (false, None) => Node::File,
        (false, Some(text)) => Node::LinkedFile(text),
    };
    out.push(File {
        entry: BuiltEntry {
            path: path.to_owned(),
            node,
            mode: facts.mode() & 0o7777,
            user: names.user(facts.uid()).map_or_else(|| facts.uid().to_string(), str::to_owned),
            group: names.group(facts.gid()).map_or_else(|| facts.gid().to_string(), str::to_owned),
            modified: (facts.mtime(), facts.mtime_nsec() as u32),
            size: bytes.len() as u64,
            inline: None,
            unit: 1,
            extents: Vec::new(),
            bad_pages: Vec::new(),
        },
        bytes,
        late: false,
    });
    if !facts.is_dir() {
        return Ok(());
    }
    let list = std::fs::read_dir(real).map_err(FileError::at("list", real))?;
    let mut children: Vec<PathBuf> =
        list.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(FileError::at("list", real))?;
    children.sort();
    for child in children {
        let name = child.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let below = if path.is_empty() { name } else { format!("{path}/{name}") };
        walk(&child, &below, names, out)?;
    }
    Ok(())
}

/// A small generator: tests must repeat.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 32) % n
    }
}

/// Appends to a draft that several files share, a new one if it is full, and returns its number and the place in it.
fn share(drafts: &mut Vec<Draft>, open: &mut Option<usize>, kind: ChunkKind, bytes: &[u8], max: usize) -> (u32, usize) {
    let number = match *open {
        Some(n) if drafts.get(n).is_some_and(|d| d.bytes.len() + bytes.len() <= max) => n,
        _ => {
            drafts.push(Draft { kind, bytes: Vec::new() });
            drafts.len() - 1
        }
    };
    *open = Some(number);
    let offset = drafts.get(number).map_or(0, |d| d.bytes.len());
    if let Some(draft) = drafts.get_mut(number) {
        draft.bytes.extend_from_slice(bytes);
    }
    (number as u32, offset)
}

fn draft(files: &mut [File], options: &TreeOptions) -> Vec<Draft> {
    let page = options.page_size as usize;
    let mut draw = Draw(options.seed);
    let (mut drafts, mut pool, mut gathered) = (Vec::new(), None, None);
    for file in files.iter_mut() {
        let bytes = std::mem::take(&mut file.bytes);
        let entry = &mut file.entry;
        if bytes.is_empty() {
            continue;
        }
        if entry.path == "global/pg_control" && bytes.len() <= LATE_BYTES_MAX && options.seed % 2 == 1 {
            entry.inline = Some(bytes);
            file.late = true;
            continue;
        }
        if bytes.len() <= INLINE_BYTES_MAX && draw.below(2) == 0 {
            entry.inline = Some(bytes);
            continue;
        }
        let name = entry.path.rsplit('/').next().unwrap_or_default();
        if !name.starts_with(|c: char| c.is_ascii_digit()) {
            // Not pages: pooled if small, else cut anywhere.
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let len =
                    if bytes.len() < 16 << 10 { rest.len() } else { (1 + draw.below(40_000) as usize).min(rest.len()) };
                let (head, tail) = rest.split_at(len);
                rest = tail;
                let at = if is_zero(head) {
                    ExtentAt::Zero
                } else {
                    let (ordinal, offset) = share(&mut drafts, &mut pool, ChunkKind::Other, head, 60_000);
                    ExtentAt::Chunk { ordinal, offset: offset as u32 }
                };
                entry.extents.push(Extent { units: len as u32, at });
            }
            continue;
        }
        entry.unit = options.page_size;
        for region in bytes.chunks(page * options.region_pages) {
            let whole = draw.below(3) > 0;
            let first = if whole && !is_zero(region) {
                drafts.push(Draft { kind: ChunkKind::Relation, bytes: region.to_vec() });
                Some(drafts.len() as u32 - 1)
            } else {
                None
            };
            if let Some(ordinal) = first {
                let units = region.len().div_ceil(page) as u32;
                entry.extents.push(Extent { units, at: ExtentAt::Chunk { ordinal, offset: 0 } });
                continue;
            }
            for one in region.chunks(page) {
                let at = if is_zero(one) {
                    ExtentAt::Zero
                } else if one.len() < page {
                    drafts.push(Draft { kind: ChunkKind::Relation, bytes: one.to_vec() });
                    ExtentAt::Chunk { ordinal: drafts.len() as u32 - 1, offset: 0 }
                } else {
                    let (ordinal, offset) =
                        share(&mut drafts, &mut gathered, ChunkKind::Relation, one, page * options.region_pages * 2);
                    ExtentAt::Chunk { ordinal, offset: (offset / page) as u32 }
                };
                entry.extents.push(Extent { units: 1, at });
            }
        }
    }
    drafts
}
