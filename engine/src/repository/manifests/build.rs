//! Building a manifest: entries in path order become pieces; chunks get ordinals.
//!
//! A child's chunk table begins with its parent's pieces, unless most of the parent's ids are dead. New ids follow in
//! pieces of their own, merged with the last ones like the runs of a log-structured tree, so that a small increment adds a
//! small piece. Tree pieces end where a keyed hash of a record says so: what did not change is cut as it was.

use super::Manifest;
use crate::chunk::Encoder;
use crate::crypto::SecretBytes;
use crate::repository::{ChunkSource, WriterSession};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{
    Content, Entry, Extent, ExtentAt, LEAF_EXTENTS_MAX, LEAF_PAGES, Leaf, ManifestRoot, Node, PieceWriter, Record,
    TABLE_PIECE_IDS_MAX, TablePiece, TreePiece, path_cmp,
};
use pgkeep_formats::repo::pack::CHUNK_BYTES_MAX;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

/// Bounds and average of tree pieces, in bytes before compression.
const PIECE_BYTES_MIN: usize = 16 << 10;
const PIECE_BYTES_AVERAGE: u64 = 64 << 10;
const PIECE_BYTES_MAX: usize = 256 << 10;
/// Ids remembered to give a repeated chunk its ordinal again. More repetitions than that only cost 32 bytes each.
const RECENT_IDS_MAX: usize = 1 << 16;
/// Bad pages noted of one file: enough to see the extent of a damage, few enough for one record.
const BAD_PAGES_MAX: usize = 16 << 10;
/// Table pieces of a parent below this are always extended: nothing is gained by rewriting them.
const SMALL_TABLE: u64 = 4 * TABLE_PIECE_IDS_MAX as u64;

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
    parent: Option<Arc<Manifest>>,
    /// Ordinals of the parent in this manifest, if its table is not extended.
    moved: Option<HashMap<u32, u32>>,
    new_ids: Vec<ChunkId>,
    recent: HashMap<ChunkId, u32>,
    /// One bit an ordinal: it is used.
    used: Vec<u64>,
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
        let mut root = ManifestRoot { page_size, ..ManifestRoot::default() };
        let mut moved = None;
        if let Some(parent) = &parent {
            let ids = parent.root().ids();
            if ids <= SMALL_TABLE && parent.root().ids_live * 4 >= ids || parent.root().ids_live * 2 >= ids {
                root.table.clone_from(&parent.root().table);
            } else {
                moved = Some(HashMap::new());
            }
        }
        Ok(Self {
            root,
            name_numbers: HashMap::new(),
            cut_key: session.repository().keyring().cut_key("manifest pieces")?,
            encoder: Encoder::new(3)?,
            parent,
            moved,
            new_ids: Vec::new(),
            recent: HashMap::new(),
            used: Vec::new(),
            piece: PieceWriter::default(),
            piece_first: (String::new(), 0),
            last_path: None,
            links: Vec::new(),
        })
    }

    fn mark(&mut self, ordinal: u32) {
        let word = ordinal as usize / 64;
        if self.used.len() <= word {
            self.used.resize(word + 1, 0);
        }
        self.used[word] |= 1 << (ordinal % 64);
    }

    /// The ordinal of a chunk.
    ///
    /// # Errors
    /// What the store said when a piece of the table is written; `Runtime` past 2^32 chunks.
    pub fn ordinal(&mut self, session: &mut WriterSession, id: ChunkId) -> Result<u32> {
        if let Some(known) = self.recent.get(&id) {
            return Ok(*known);
        }
        let next = self.root.ids() + self.new_ids.len() as u64;
        let next = u32::try_from(next)
            .map_err(|_| Error::refused(Kind::Runtime, "a manifest cannot name more than 2^32 chunks"))?;
        self.new_ids.push(id);
        if self.recent.len() >= RECENT_IDS_MAX {
            self.recent.clear();
        }
        self.recent.insert(id, next);
        if self.new_ids.len() >= TABLE_PIECE_IDS_MAX {
            self.write_table_piece(session)?;
        }
        Ok(next)
    }

    /// The ordinal here of a chunk that the parent names with `ordinal`.
    ///
    /// # Errors
    /// What reading the parent's table or writing this one's said.
    pub fn parent_ordinal(&mut self, session: &mut WriterSession, ordinal: u32) -> Result<u32> {
        if let Some(moved) = &self.moved {
            if let Some(known) = moved.get(&ordinal) {
                return Ok(*known);
            }
            let Some(parent) = self.parent.clone() else { return Ok(ordinal) };
            let here = self.ordinal(session, parent.chunk_id(ordinal)?)?;
            if let Some(moved) = &mut self.moved {
                moved.insert(ordinal, here);
            }
            return Ok(here);
        }
        Ok(ordinal)
    }

    /// The parent's extents with the ordinals of this manifest.
    ///
    /// # Errors
    /// As [`Self::parent_ordinal`].
    pub fn parent_extents(&mut self, session: &mut WriterSession, extents: &[Extent]) -> Result<Vec<Extent>> {
        let translate = |e: &Extent| {
            let at = match e.at {
                ExtentAt::Zero => ExtentAt::Zero,
                ExtentAt::Chunk { ordinal, offset } => {
                    ExtentAt::Chunk { ordinal: self.parent_ordinal(session, ordinal)?, offset }
                }
            };
            Ok(Extent { units: e.units, at })
        };
        extents.iter().map(translate).collect()
    }

    fn write_table_piece(&mut self, session: &mut WriterSession) -> Result<()> {
        let mut ids = std::mem::take(&mut self.new_ids);
        if ids.is_empty() {
            return Ok(());
        }
        // Merge with the parent's last pieces while they are not much larger: their number stays logarithmic.
        while let (Some(last), Some(parent)) = (self.root.table.last(), &self.parent)
            && (last.ids as usize) < 2 * ids.len()
            && last.ids as usize + ids.len() <= TABLE_PIECE_IDS_MAX
        {
            let number = self.root.table.len() - 1;
            if self.moved.is_some() || parent.root().table.get(number) != Some(last) {
                break;
            }
            let mut merged = parent.table_piece(number)?.as_ref().clone();
            merged.append(&mut ids);
            ids = merged;
            self.root.table.pop();
        }
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
        let (id, _) = session.add_metadata(&mut self.encoder, &bytes)?;
        self.root.table.push(TablePiece { id, ids: ids.len() as u32 });
        Ok(())
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
    /// `Assert` if the order is wrong; what the store said when a piece is written.
    pub fn add(&mut self, session: &mut WriterSession, built: BuiltEntry) -> Result<()> {
        if self.last_path.as_ref().is_some_and(|last| path_cmp(last, &built.path) != Ordering::Less) {
            return Err(Error::refused(Kind::Assert, format!("'{}' came out of order", built.path)));
        }
        for e in &built.extents {
            if let ExtentAt::Chunk { ordinal, .. } = e.at {
                self.mark(ordinal);
            }
        }
        let leaves = split_leaves(&built.extents, built.unit, self.root.page_size);
        let entry = self.entry(built, leaves.len() as u32);
        let path = entry.path.clone();
        self.push(session, &path, 0, &Record::Entry(entry))?;
        for (i, leaf) in leaves.into_iter().enumerate() {
            self.push(session, &path, i as u32 + 1, &Record::Leaf(Leaf::Full(leaf)))?;
        }
        self.last_path = Some(path);
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

    /// Writes what is left and the root. `late` are entries, in path order, whose content became known only now; each has
    /// inline content of at most 64 KiB.
    ///
    /// # Errors
    /// What the store said.
    pub fn finish(mut self, session: &mut WriterSession, late: Vec<BuiltEntry>) -> Result<ManifestSummary> {
        let mut piece = PieceWriter::default();
        for built in late {
            let entry = self.entry(built, 0);
            piece.push(&Record::Entry(entry));
        }
        if !piece.is_empty() {
            self.root.late = piece.finish();
        }
        self.end_piece(session)?;
        self.write_table_piece(session)?;
        self.root.ids_live = self.used.iter().map(|w| u64::from(w.count_ones())).sum();
        let bytes = self.root.encode();
        // As chunks are decoded before they are sealed: what no reader takes must not be committed.
        Manifest::decode_root("the new backup", &bytes)?;
        let mut manifest = Vec::new();
        for part in bytes.chunks(CHUNK_BYTES_MAX as usize) {
            manifest.push(session.add_metadata(&mut self.encoder, part)?.0);
        }
        Ok(ManifestSummary { manifest, root: self.root, links: self.links, used: self.used })
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
        self.root.tree.iter().try_for_each(|p| each(&p.id))?;
        self.root.bases.iter().try_for_each(&mut *each)?;
        let manifest = Manifest::with_root(source, "the new backup", self.root.clone());
        let mut ordinal = 0usize;
        for (number, piece) in self.root.table.iter().enumerate() {
            each(&piece.id)?;
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

/// Splits extents into leaves: at every 1 024 pages for files made of pages, else by number.
fn split_leaves(extents: &[Extent], unit: u32, page_size: u32) -> Vec<Vec<Extent>> {
    if unit != page_size {
        return extents.chunks(LEAF_EXTENTS_MAX).map(<[Extent]>::to_vec).collect();
    }
    let (mut out, mut leaf, mut room) = (Vec::new(), Vec::new(), LEAF_PAGES);
    for e in extents {
        let mut rest = *e;
        while rest.units > 0 {
            let take = rest.units.min(room);
            leaf.push(Extent { units: take, at: rest.at });
            rest.units -= take;
            if let ExtentAt::Chunk { offset, .. } = &mut rest.at {
                *offset += take;
            }
            room -= take;
            if room == 0 {
                out.push(std::mem::take(&mut leaf));
                room = LEAF_PAGES;
            }
        }
    }
    if !leaf.is_empty() {
        out.push(leaf);
    }
    out
}
