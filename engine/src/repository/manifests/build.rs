//! Building a manifest: entries in path order become pieces; chunks get ordinals.
//!
//! `table` gives ordinals, `leaves` chooses how a file's extents are written. Tree pieces end where a keyed hash of a
//! record says so: what did not change is cut as it was.

use super::Manifest;
use super::leaves::{LeafWriter, joined};
use super::table::TableWriter;
use crate::chunk::Encoder;
use crate::crypto::SecretBytes;
use crate::repository::{ChunkSource, WriterSession};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{
    Content, Entry, Extent, ExtentAt, LEAF_EXTENTS_MAX, LEAF_PAGES, Leaf, ManifestRoot, Node, PieceWriter, Record,
    TreePiece, path_cmp,
};
use pgkeep_formats::repo::pack::CHUNK_BYTES_MAX;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

/// Bounds and average of tree pieces, in bytes before compression.
const PIECE_BYTES_MIN: usize = 16 << 10;
const PIECE_BYTES_AVERAGE: u64 = 64 << 10;
const PIECE_BYTES_MAX: usize = 256 << 10;
/// Bad pages noted of one file: enough to see the extent of a damage, few enough for one record.
pub(crate) const BAD_PAGES_MAX: usize = 16 << 10;
/// An entry as the builder takes it: owners by name, extents by ordinal.
#[derive(Debug, Clone)]
pub struct BuiltEntry {
    /// Path relative to PGDATA.
    pub path: String,
    /// What it is.
    pub node: Node,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub user: String,
    /// Group.
    pub group: String,
    /// Last change, seconds since the Unix epoch, and nanoseconds.
    pub modified: (i64, u32),
    /// Bytes.
    pub size: u64,
    /// Inline bytes, if it is small enough.
    pub inline: Option<Vec<u8>>,
    /// Unit of the extents.
    pub unit: u32,
    /// Extents.
    pub extents: Vec<Extent>,
    /// Pages that failed their checksum.
    pub bad_pages: Vec<u32>,
}

/// What a finished manifest says of itself.
#[derive(Debug)]
pub struct ManifestSummary {
    /// Chunks of the root, for the commit record.
    pub manifest: Vec<ChunkId>,
    /// The root.
    pub root: ManifestRoot,
    /// Path and destination of every link.
    pub links: Vec<(String, String)>,
    used: Vec<u64>,
}

/// Builds one manifest.
pub struct ManifestBuilder {
    root: ManifestRoot,
    name_numbers: HashMap<String, u32>,
    cut_key: SecretBytes<32>,
    encoder: Encoder,
    table: TableWriter,
    leaves: LeafWriter,
    piece: PieceWriter,
    piece_first: (String, u32),
    last_path: Option<String>,
    links: Vec<(String, String)>,
}

impl ManifestBuilder {
    /// Starts a manifest. With a parent, its chunk table is extended if at least half of it is in use.
    ///
    /// # Errors
    /// What the cipher said.
    pub fn new(session: &WriterSession, page_size: u32, parent: Option<Arc<Manifest>>) -> Result<Self> {
        let table = TableWriter::new(parent.clone());
        Ok(Self {
            root: ManifestRoot { page_size, ..ManifestRoot::default() },
            name_numbers: HashMap::new(),
            cut_key: session.repository().keyring().cut_key("manifest pieces")?,
            encoder: Encoder::new(3)?,
            leaves: LeafWriter::new(parent.as_ref(), table.is_extended()),
            table,
            piece: PieceWriter::default(),
            piece_first: (String::new(), 0),
            last_path: None,
            links: Vec::new(),
        })
    }

    /// The ordinal of a chunk.
    ///
    /// # Errors
    /// What the store said when a piece of the table is written; `Runtime` past 2^32 chunks.
    pub fn ordinal(&mut self, session: &mut WriterSession, id: ChunkId) -> Result<u32> {
        self.table.ordinal(session, &mut self.encoder, id)
    }

    /// The ordinal here of a chunk that the parent names with `ordinal`.
    ///
    /// # Errors
    /// What reading the parent's table or writing this one's said.
    pub fn parent_ordinal(&mut self, session: &mut WriterSession, ordinal: u32) -> Result<u32> {
        self.table.parent_ordinal(session, &mut self.encoder, ordinal)
    }

    /// The parent's extents with the ordinals of this manifest.
    ///
    /// # Errors
    /// As [`Self::parent_ordinal`].
    pub fn parent_extents(&mut self, session: &mut WriterSession, extents: &[Extent]) -> Result<Vec<Extent>> {
        self.table.parent_extents(session, &mut self.encoder, extents)
    }

    fn name(&mut self, name: &str) -> u32 {
        if let Some(number) = self.name_numbers.get(name) {
            return *number;
        }
        let number = self.root.names.len() as u32;
        self.root.names.push(name.to_owned());
        self.name_numbers.insert(name.to_owned(), number);
        number
    }

    /// Appends an entry. Entries come in path order.
    ///
    /// # Errors
    /// `Assert` if the order is wrong; what the store said when a piece is written or the parent is read.
    pub fn add(&mut self, session: &mut WriterSession, mut built: BuiltEntry) -> Result<()> {
        self.check_order(&built.path)?;
        let extents = take_extents(&mut built)?;
        let (path, unit) = (built.path.clone(), built.unit);
        self.table.mark(&extents);
        let mut stretches = Stretches::new(&extents, unit == self.root.page_size);
        let count = stretches.count();
        let entry = self.entry(built, count);
        self.push(session, &path, 0, &Record::Entry(entry))?;
        if count > 0 {
            self.leaves.begin_file(&path, unit)?;
        }
        for number in 1..=count {
            let leaf = self.leaves.leaf(stretches.next())?;
            self.push(session, &path, number, &Record::Leaf(leaf))?;
        }
        self.last_path = Some(path);
        Ok(())
    }

    /// Appends a file whose content is the parent's at the same path: content, size, unit and bad pages are taken from
    /// there, whatever `built` says. Holds one leaf of it at a time.
    ///
    /// # Errors
    /// As [`Self::add`]; `Assert` if the parent has no such file.
    pub fn add_unchanged(&mut self, session: &mut WriterSession, built: BuiltEntry) -> Result<()> {
        self.check_order(&built.path)?;
        let path = built.path.clone();
        let Some(was) = self.leaves.parent_file(&path)?.filter(Entry::is_file) else {
            return Err(Error::refused(Kind::Assert, format!("the parent has no file '{path}'")));
        };
        let (inline, unit, leaves) = match was.content {
            Content::None => (None, 1, 0),
            Content::Inline(bytes) => (Some(bytes), 1, 0),
            Content::Extents { unit, leaves } => (None, unit, leaves),
        };
        let built = BuiltEntry { size: was.size, inline, unit, bad_pages: was.bad_pages, ..built };
        let entry = self.entry(built, leaves);
        self.push(session, &path, 0, &Record::Entry(entry))?;
        for number in 1..=leaves {
            let (leaf, extents) = self.leaves.parent_leaf()?;
            let leaf = if self.table.is_extended() {
                self.table.mark(&extents);
                leaf
            } else {
                let extents = self.parent_extents(session, &extents)?;
                self.table.mark(&extents);
                Leaf::Full(joined(&extents))
            };
            self.push(session, &path, number, &Record::Leaf(leaf))?;
        }
        self.last_path = Some(path);
        Ok(())
    }

    fn check_order(&self, path: &str) -> Result<()> {
        if self.last_path.as_ref().is_some_and(|last| path_cmp(last, path) != Ordering::Less) {
            return Err(Error::refused(Kind::Assert, format!("'{path}' came out of order")));
        }
        Ok(())
    }

    fn entry(&mut self, built: BuiltEntry, leaves: u32) -> Entry {
        let content = match built.inline {
            Some(bytes) if !bytes.is_empty() => Content::Inline(bytes),
            _ if leaves == 0 => Content::None,
            _ => Content::Extents { unit: built.unit, leaves },
        };
        let mut bad_pages = built.bad_pages;
        bad_pages.truncate(BAD_PAGES_MAX);
        if let Node::LinkedDirectory(to) | Node::LinkedFile(to) = &built.node {
            self.links.push((built.path.clone(), to.clone()));
        }
        let is_file = matches!(built.node, Node::File | Node::LinkedFile(_));
        self.root.files += u64::from(is_file);
        self.root.bytes += built.size;
        Entry {
            path: built.path,
            node: built.node,
            mode: built.mode,
            user: self.name(&built.user),
            group: self.name(&built.group),
            modified: built.modified.0,
            modified_nanos: built.modified.1,
            size: built.size,
            content,
            bad_pages,
        }
    }

    fn push(&mut self, session: &mut WriterSession, path: &str, leaf: u32, record: &Record) -> Result<()> {
        if self.piece.is_empty() {
            self.piece_first = (path.to_owned(), leaf);
        }
        self.piece.push(record);
        if self.piece.len() < PIECE_BYTES_MIN {
            return Ok(());
        }
        // Hashed as if it stood alone, so that the decision does not depend on what came before it.
        let mut alone = PieceWriter::default();
        alone.push(record);
        let alone = alone.finish();
        let hash = blake3::keyed_hash(self.cut_key.expose(), &alone);
        let draw = hash.as_bytes().first_chunk().map_or(0, |b| u64::from_le_bytes(*b)) % PIECE_BYTES_AVERAGE;
        if draw < alone.len() as u64 || self.piece.len() >= PIECE_BYTES_MAX {
            self.end_piece(session)?;
        }
        Ok(())
    }

    fn end_piece(&mut self, session: &mut WriterSession) -> Result<()> {
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        let records = piece.records();
        let (id, _) = session.add_metadata(&mut self.encoder, &piece.finish())?;
        let (first_path, first_leaf) = std::mem::take(&mut self.piece_first);
        self.root.tree.push(TreePiece { id, first_path, first_leaf, records });
        Ok(())
    }

    /// Writes what is left and the root. `late` are entries, in path order, whose content became known only now: the root,
    /// which every reader holds, has them with inline content of at most `LATE_BYTES_MAX` bytes and with extents.
    ///
    /// # Errors
    /// What the store said; `Assert` if size and extents of an entry do not agree.
    pub fn finish(mut self, session: &mut WriterSession, late: Vec<BuiltEntry>) -> Result<ManifestSummary> {
        let mut piece = PieceWriter::default();
        for mut built in late {
            let extents = take_extents(&mut built)?;
            self.table.mark(&extents);
            let mut stretches = Stretches::new(&extents, built.unit == self.root.page_size);
            let count = stretches.count();
            let entry = self.entry(built, count);
            piece.push(&Record::Entry(entry));
            for _ in 0..count {
                piece.push(&Record::Leaf(Leaf::Full(stretches.next())));
            }
        }
        if !piece.is_empty() {
            self.root.late = piece.finish();
        }
        self.end_piece(session)?;
        let table = self.table.finish(session, &mut self.encoder)?;
        self.root.table = table.pieces;
        self.root.bases = self.leaves.finish();
        self.root.ids_live = table.used.iter().map(|w| u64::from(w.count_ones())).sum();
        let bytes = self.root.encode();
        // As chunks are decoded before they are sealed: what no reader takes must not be committed.
        Manifest::decode_root("the new backup", &bytes)?;
        let mut manifest = Vec::new();
        for part in bytes.chunks(CHUNK_BYTES_MAX as usize) {
            manifest.push(session.add_metadata(&mut self.encoder, part)?.0);
        }
        Ok(ManifestSummary { manifest, root: self.root, links: self.links, used: table.used })
    }
}

impl ManifestSummary {
    /// Calls `each` for every chunk the manifest needs: its own and those of the files. The table must be readable
    /// through `source`, that is, published.
    ///
    /// # Errors
    /// What `each`, the store, the cipher or the decoder said.
    pub fn chunks(&self, source: &Arc<ChunkSource>, each: &mut dyn FnMut(&ChunkId) -> Result<()>) -> Result<()> {
        self.manifest.iter().try_for_each(&mut *each)?;
        self.root.pieces().try_for_each(&mut *each)?;
        let manifest = Manifest::with_root(source, "the new backup", self.root.clone());
        let mut ordinal = 0usize;
        for number in 0..self.root.table.len() {
            for id in manifest.table_piece(number)?.iter() {
                if self.used.get(ordinal / 64).is_some_and(|w| w & (1 << (ordinal % 64)) != 0) {
                    each(id)?;
                }
                ordinal += 1;
            }
        }
        Ok(())
    }
}

/// The extents of an entry, neighbours joined.
fn take_extents(built: &mut BuiltEntry) -> Result<Vec<Extent>> {
    let extents = joined(&std::mem::take(&mut built.extents));
    let units: u64 = extents.iter().map(|e| u64::from(e.units)).sum();
    let is_file = matches!(built.node, Node::File | Node::LinkedFile(_));
    // Nobody could read a manifest in which they do not agree, from here on.
    if is_file && built.inline.is_none() && units != built.size.div_ceil(built.unit.into()) {
        let (path, size, unit) = (&built.path, built.size, built.unit);
        let text = format!("'{path}' has {size} bytes, and extents for {units} units of {unit}");
        return Err(Error::refused(Kind::Assert, text));
    }
    Ok(extents)
}

/// Splits extents into leaves: at every 1 024 pages for files made of pages, else by number.
struct Stretches<'a> {
    extents: std::iter::Copied<std::slice::Iter<'a, Extent>>,
    /// What is left of an extent that was split.
    rest: Option<Extent>,
    leaves: u32,
    units_max: u64,
    extents_max: usize,
}

impl<'a> Stretches<'a> {
    fn new(extents: &'a [Extent], of_pages: bool) -> Self {
        let units = || extents.iter().map(|e| u64::from(e.units)).sum::<u64>();
        let (leaves, units_max, extents_max) = if of_pages {
            (units().div_ceil(LEAF_PAGES.into()), LEAF_PAGES.into(), usize::MAX)
        } else {
            (extents.len().div_ceil(LEAF_EXTENTS_MAX) as u64, u64::MAX, LEAF_EXTENTS_MAX)
        };
        Self { extents: extents.iter().copied(), rest: None, leaves: leaves as u32, units_max, extents_max }
    }

    fn count(&self) -> u32 {
        self.leaves
    }

    fn next(&mut self) -> Vec<Extent> {
        let (mut leaf, mut room) = (Vec::new(), self.units_max);
        while room > 0 && leaf.len() < self.extents_max {
            let Some(e) = self.rest.take().or_else(|| self.extents.next()) else { break };
            let take = u64::from(e.units).min(room) as u32;
            leaf.push(Extent { units: take, at: e.at });
            room -= u64::from(take);
            if take < e.units {
                let at = match e.at {
                    ExtentAt::Zero => ExtentAt::Zero,
                    ExtentAt::Chunk { ordinal, offset } => ExtentAt::Chunk { ordinal, offset: offset + take },
                };
                self.rest = Some(Extent { units: e.units - take, at });
            }
        }
        leaf
    }
}
