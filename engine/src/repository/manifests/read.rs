//! The manifest of one backup: its root, and what is found from it by path and by ordinal.

use super::records::{Entries, ManifestReader};
use crate::repository::ChunkSource;
use crate::{Error, Kind, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{
    Content, Entry, Extent, FREE_BASE, Leaf, ManifestRoot, PieceReader, Record, TreePiece, path_cmp, push_extent,
};
use pgkeep_formats::repo::records::Commit;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Pieces of the chunk table kept at hand: 256 KiB each at most. A file that has been backed up for months has extents
/// from every day's part of the table, so fewer would be read again and again.
const TABLE_PIECES_MAX: usize = 128;
/// Tree pieces kept at hand, for look-ups and as bases of patches: up to 256 KiB each.
const TREE_PIECES_MAX: usize = 16;
/// Largest root: some 100 TiB of cluster.
const ROOT_BYTES_MAX: usize = 64 << 20;

/// A file or directory with what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// Its entry.
    pub entry: Entry,
    /// Its extents, in file order; empty if the content is none or inline.
    pub extents: Vec<Extent>,
}

/// Small least-recently-used cache; linear search, as it holds a few dozen things.
struct Recent<T> {
    items: Mutex<VecDeque<(usize, Arc<T>)>>,
    max: usize,
}

impl<T> Recent<T> {
    fn new(max: usize) -> Self {
        Self { items: Mutex::default(), max }
    }

    fn get(&self, key: usize, load: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        {
            let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = items.iter().position(|(k, _)| *k == key)
                && let Some(found) = items.remove(at)
            {
                let value = Arc::clone(&found.1);
                items.push_front(found);
                return Ok(value);
            }
        }
        let value = Arc::new(load()?);
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.push_front((key, Arc::clone(&value)));
        items.truncate(self.max);
        Ok(value)
    }
}

/// The manifest of one backup.
pub struct Manifest {
    source: Arc<ChunkSource>,
    label: String,
    root: ManifestRoot,
    /// First ordinal of each table piece, and the number of ids at the end.
    starts: Vec<u64>,
    table: Recent<Vec<ChunkId>>,
    pieces: Recent<Vec<u8>>,
    bases: Recent<Vec<u8>>,
    /// Entries written last, in path order.
    pub(super) late: Vec<FileRecord>,
}

impl Manifest {
    /// Reads the root of a backup's manifest.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn open(source: &Arc<ChunkSource>, commit: &Commit) -> Result<Self> {
        let mut bytes = Vec::new();
        for id in &commit.manifest {
            bytes.extend_from_slice(&source.read(id)?);
            if bytes.len() > ROOT_BYTES_MAX {
                let text = format!("the manifest root of {} is larger than {ROOT_BYTES_MAX} bytes", commit.label);
                return Err(Error::refused(Kind::Format, text));
            }
        }
        let (root, late) = Self::decode_root(&commit.label, &bytes)?;
        Ok(Self { late, ..Self::with_root(source, &commit.label, root) })
    }

    /// The root and its late entries.
    pub(super) fn decode_root(label: &str, bytes: &[u8]) -> Result<(ManifestRoot, Vec<FileRecord>)> {
        if bytes.len() > ROOT_BYTES_MAX {
            let text = format!("the manifest root of {label} is larger than {ROOT_BYTES_MAX} bytes");
            return Err(Error::refused(Kind::Format, text));
        }
        let name = format!("manifest root of {label}");
        let root = ManifestRoot::decode(bytes).map_err(Error::damaged(name))?;
        let late = late_entries(&root.late).map_err(|e| Error::damaged(format!("late entries of {label}"))(e))?;
        Ok((root, late))
    }

    pub(super) fn with_root(source: &Arc<ChunkSource>, label: &str, root: ManifestRoot) -> Self {
        let mut starts = vec![0];
        for piece in &root.table {
            starts.push(starts.last().unwrap_or(&0) + u64::from(piece.ids));
        }
        Self {
            source: Arc::clone(source),
            label: label.to_owned(),
            root,
            starts,
            table: Recent::new(TABLE_PIECES_MAX),
            pieces: Recent::new(TREE_PIECES_MAX),
            bases: Recent::new(TREE_PIECES_MAX),
            late: Vec::new(),
        }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &ManifestRoot {
        &self.root
    }

    /// Where its chunks are read from.
    #[must_use]
    pub fn source(&self) -> &Arc<ChunkSource> {
        &self.source
    }

    /// The name of an owner or group.
    #[must_use]
    pub fn name(&self, index: u32) -> &str {
        self.root.names.get(index as usize).map_or("", String::as_str)
    }

    /// The ids of one piece of the chunk table.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn table_piece(&self, number: usize) -> Result<Arc<Vec<ChunkId>>> {
        self.table.get(number, || {
            let name = || format!("chunk table of {}", self.label);
            let short = FormatError::Truncated { offset: 0, need: 1, what: "chunk table" };
            let piece = self.root.table.get(number).ok_or(short).map_err(Error::damaged(name()))?;
            let bytes = self.source.read(&piece.id)?;
            let (ids, rest) = bytes.as_chunks::<32>();
            if ids.len() != piece.ids as usize || !rest.is_empty() {
                let found = bytes.len() as u64;
                return Err(Error::damaged(name())(FormatError::OutOfRange {
                    offset: 0,
                    what: "chunk table piece",
                    found,
                }));
            }
            Ok(ids.iter().map(|id| ChunkId(*id)).collect())
        })
    }

    /// The chunk an ordinal stands for.
    ///
    /// # Errors
    /// `Format` if the table has no such ordinal; what the store, the cipher or the decoder said.
    pub fn chunk_id(&self, ordinal: u32) -> Result<ChunkId> {
        let number = self.starts.partition_point(|s| *s <= u64::from(ordinal)).saturating_sub(1);
        let start = self.starts.get(number).copied().unwrap_or(0);
        let found = if number < self.root.table.len() {
            self.table_piece(number)?.get((u64::from(ordinal) - start) as usize).copied()
        } else {
            None
        };
        found.ok_or_else(|| {
            let error = FormatError::OutOfRange { offset: 0, what: "chunk ordinal", found: ordinal.into() };
            Error::damaged(format!("manifest of {}", self.label))(error)
        })
    }

    /// Reads all files and directories in path order.
    #[must_use]
    pub fn files(self: &Arc<Self>) -> ManifestReader {
        ManifestReader::new(self, None)
    }

    /// Reads files and directories in path order, beginning with the first whose path is not before `path`.
    #[must_use]
    pub fn files_from(self: &Arc<Self>, path: &str) -> ManifestReader {
        ManifestReader::new(self, Some(path))
    }

    /// Reads all entries in path order without what files are made of: pieces that hold nothing else are not read.
    #[must_use]
    pub fn entries(self: &Arc<Self>) -> Entries {
        Entries::new(self)
    }

    /// Number of the last piece in which the entry of `path` can be, if it is not before `from`.
    pub(super) fn piece_of(&self, path: &str, from: usize) -> usize {
        let rest = self.root.tree.get(from..).unwrap_or_default();
        from + rest.partition_point(|p| begins_by(p, path)).saturating_sub(1)
    }

    /// One file or directory.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn find(self: &Arc<Self>, path: &str) -> Result<Option<FileRecord>> {
        for record in self.files_from(path) {
            let record = record?;
            match path_cmp(&record.entry.path, path) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(Some(record)),
                Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    /// The bytes of a tree piece.
    pub(super) fn piece(&self, number: usize) -> Result<Arc<Vec<u8>>> {
        self.pieces.get(number, || match self.root.tree.get(number) {
            Some(piece) => self.source.read(&piece.id),
            None => Err(self.damaged("tree piece", number as u64)),
        })
    }

    /// The piece that patches call base number `piece`.
    pub(super) fn base_id(&self, piece: u32) -> Result<ChunkId> {
        let id = self.root.bases.get(piece as usize).filter(|id| **id != FREE_BASE);
        id.copied().ok_or_else(|| self.damaged("base leaf", piece.into()))
    }

    /// The extents of the full leaf that is record number `record` of base number `piece`.
    pub(super) fn base(&self, piece: u32, record: u32) -> Result<Vec<Extent>> {
        let bytes = self.bases.get(piece as usize, || self.source.read(&self.base_id(piece)?))?;
        match PieceReader::leaf(&bytes, record).map_err(|e| self.damaged_by(e))? {
            Some(Leaf::Full(extents)) => Ok(extents),
            _ => Err(self.damaged("base leaf", record.into())),
        }
    }

    /// The extents of a leaf.
    pub(super) fn resolve(&self, leaf: Leaf) -> Result<Vec<Extent>> {
        let base = match &leaf {
            Leaf::Full(_) => Vec::new(),
            Leaf::Patch { piece, record, .. } => self.base(*piece, *record)?,
        };
        leaf.resolve(&base).map_err(|e| self.damaged_by(e))
    }

    /// The error for something in this manifest that cannot be.
    pub(super) fn damaged(&self, what: &'static str, found: u64) -> Error {
        self.damaged_by(FormatError::OutOfRange { offset: 0, what, found })
    }

    pub(super) fn damaged_by(&self, error: FormatError) -> Error {
        Error::damaged(format!("manifest of {}", self.label))(error)
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }
}

/// Late entries in path order, each followed by its leaves, all full: there is no base that they could patch.
fn late_entries(bytes: &[u8]) -> std::result::Result<Vec<FileRecord>, FormatError> {
    let wrong = |what| FormatError::OutOfRange { offset: 0, what, found: 0 };
    let mut late: Vec<FileRecord> = Vec::new();
    if bytes.is_empty() {
        return Ok(late);
    }
    let mut records = PieceReader::new(bytes)?;
    while let Some(record) = records.next() {
        let Record::Entry(entry) = record? else { return Err(wrong("late entry")) };
        if late.last().is_some_and(|l| path_cmp(&l.entry.path, &entry.path) != Ordering::Less) {
            return Err(wrong("order of late entries"));
        }
        let mut extents = Vec::new();
        if let Content::Extents { unit, leaves } = entry.content {
            for _ in 0..leaves {
                let Some(Record::Leaf(Leaf::Full(leaf))) = records.next().transpose()? else {
                    return Err(wrong("leaf of a late entry"));
                };
                leaf.into_iter().for_each(|e| push_extent(&mut extents, e));
            }
            let units: u64 = extents.iter().map(|e| u64::from(e.units)).sum();
            if units != entry.size.div_ceil(unit.into()) {
                return Err(wrong("length of a late entry's extents"));
            }
        }
        late.push(FileRecord { entry, extents });
    }
    Ok(late)
}

/// True if the entry of `path` is not before this piece: it begins with an entry that is not behind it, or amid a file
/// before it.
pub(super) fn begins_by(piece: &TreePiece, path: &str) -> bool {
    match path_cmp(&piece.first_path, path) {
        Ordering::Less => true,
        Ordering::Equal => piece.first_leaf == 0,
        Ordering::Greater => false,
    }
}
