//! Reading manifests: streaming, by path, by ordinal.

use crate::repository::ChunkSource;
use crate::{Error, Kind, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{Content, Entry, Extent, Leaf, ManifestRoot, PieceReader, Record, path_cmp};
use pgkeep_formats::repo::records::Commit;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Pieces of the chunk table kept at hand: 256 KiB each at most.
const TABLE_PIECES_MAX: usize = 32;
/// Decoded tree pieces kept at hand for look-ups.
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
    /// Entries written last, in path order.
    late: Vec<Entry>,
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
    pub(super) fn decode_root(label: &str, bytes: &[u8]) -> Result<(ManifestRoot, Vec<Entry>)> {
        if bytes.len() > ROOT_BYTES_MAX {
            let text = format!("the manifest root of {label} is larger than {ROOT_BYTES_MAX} bytes");
            return Err(Error::refused(Kind::Format, text));
        }
        let name = format!("manifest root of {label}");
        let root = ManifestRoot::decode(bytes).map_err(Error::damaged(name))?;
        let mut late = Vec::new();
        if !root.late.is_empty() {
            let name = || format!("late entries of {label}");
            for record in PieceReader::new(&root.late).map_err(Error::damaged(name()))? {
                match record.map_err(Error::damaged(name()))? {
                    Record::Entry(entry)
                        if !matches!(entry.content, Content::Extents { .. })
                            && late.last().is_none_or(|l: &Entry| path_cmp(&l.path, &entry.path) == Ordering::Less) =>
                    {
                        late.push(entry);
                    }
                    _ => {
                        let error = FormatError::OutOfRange { offset: 0, what: "late entry", found: 0 };
                        return Err(Error::damaged(name())(error));
                    }
                }
            }
        }
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
        ManifestReader::new(Arc::clone(self), 0, 0)
    }

    /// Reads files and directories in path order, beginning at the latest with `path`.
    #[must_use]
    pub fn files_from(self: &Arc<Self>, path: &str) -> ManifestReader {
        // The entry of `path` is in the last piece that begins with an entry not after it, or later.
        let before = |p: &pgkeep_formats::repo::manifest::TreePiece| match path_cmp(&p.first_path, path) {
            Ordering::Less => true,
            Ordering::Equal => p.first_leaf == 0,
            Ordering::Greater => false,
        };
        let mut piece = self.root.tree.partition_point(before).saturating_sub(1);
        while piece > 0 && self.root.tree.get(piece).is_some_and(|p| p.first_leaf != 0) {
            piece -= 1;
        }
        let late = self.late.partition_point(|e| path_cmp(&e.path, path) == Ordering::Less);
        ManifestReader::new(Arc::clone(self), piece, late)
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

    fn piece(&self, number: usize) -> Result<Arc<Vec<u8>>> {
        self.pieces.get(number, || match self.root.tree.get(number) {
            Some(piece) => self.source.read(&piece.id),
            None => Ok(Vec::new()),
        })
    }

    fn resolve(&self, leaf: Leaf) -> Result<Vec<Extent>> {
        let name = || format!("manifest of {}", self.label);
        let base = match &leaf {
            Leaf::Full(_) => Vec::new(),
            Leaf::Patch { piece, record, .. } => {
                let bad = |found: u32| FormatError::OutOfRange { offset: 0, what: "base leaf", found: found.into() };
                let id = self.root.bases.get(*piece as usize).ok_or(bad(*piece)).map_err(Error::damaged(name()))?;
                let bytes = self.source.read(id)?;
                let mut records = PieceReader::new(&bytes).map_err(Error::damaged(name()))?;
                match records.nth(*record as usize) {
                    Some(Ok(Record::Leaf(Leaf::Full(extents)))) => extents,
                    Some(Err(e)) => return Err(Error::damaged(name())(e)),
                    _ => return Err(Error::damaged(name())(bad(*record))),
                }
            }
        };
        leaf.resolve(&base).map_err(Error::damaged(name()))
    }
}

/// Files and directories in path order. After an error it ends.
pub struct ManifestReader {
    manifest: Arc<Manifest>,
    next_piece: usize,
    records: std::vec::IntoIter<Record>,
    /// Leaves at the start belong to an entry before the first piece.
    skip_leaves: bool,
    /// Number of the next late entry.
    late: usize,
    /// The next record of the tree, if it has been read already.
    ahead: Option<FileRecord>,
    failed: bool,
}

impl ManifestReader {
    fn new(manifest: Arc<Manifest>, next_piece: usize, late: usize) -> Self {
        let records = Vec::new().into_iter();
        Self { manifest, next_piece, records, skip_leaves: true, late, ahead: None, failed: false }
    }

    /// The next of tree and late entries.
    fn merged(&mut self) -> Result<Option<FileRecord>> {
        if self.ahead.is_none() {
            self.ahead = self.read()?;
        }
        let late = self.manifest.late.get(self.late);
        let take_late = match (&self.ahead, late) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(tree), Some(late)) => match path_cmp(&late.path, &tree.entry.path) {
                Ordering::Less => true,
                // The late one is the newer.
                Ordering::Equal => {
                    self.ahead = None;
                    true
                }
                Ordering::Greater => false,
            },
        };
        if take_late {
            self.late += 1;
            return Ok(late.map(|entry| FileRecord { entry: entry.clone(), extents: Vec::new() }));
        }
        Ok(self.ahead.take())
    }

    fn next_record(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.records.next() {
                return Ok(Some(record));
            }
            if self.next_piece >= self.manifest.root.tree.len() {
                return Ok(None);
            }
            let bytes = self.manifest.piece(self.next_piece)?;
            let name = || format!("manifest of {}", self.manifest.label);
            let records = PieceReader::new(&bytes).map_err(Error::damaged(name()))?;
            let records = records.collect::<Result<Vec<_>, _>>().map_err(Error::damaged(name()))?;
            self.records = records.into_iter();
            self.next_piece += 1;
        }
    }

    fn read(&mut self) -> Result<Option<FileRecord>> {
        let damaged = |what, found: u64| {
            let error = FormatError::OutOfRange { offset: 0, what, found };
            Error::damaged(format!("manifest of {}", self.manifest.label))(error)
        };
        let (stray, missing) = (damaged("stray leaf", 0), damaged("missing leaf", 0));
        let entry = loop {
            match self.next_record()? {
                None => return Ok(None),
                Some(Record::Entry(entry)) => break entry,
                Some(Record::Leaf(_)) if self.skip_leaves => {}
                Some(Record::Leaf(_)) => return Err(stray),
            }
        };
        self.skip_leaves = false;
        let mut extents = Vec::new();
        if let Content::Extents { unit, leaves } = entry.content {
            for _ in 0..leaves {
                match self.next_record()? {
                    Some(Record::Leaf(leaf)) => extents.extend(self.manifest.resolve(leaf)?),
                    _ => return Err(missing),
                }
            }
            let units: u64 = extents.iter().map(|e| u64::from(e.units)).sum();
            if units != entry.size.div_ceil(unit.into()) {
                let error = FormatError::OutOfRange { offset: 0, what: "length of extents", found: units };
                return Err(Error::damaged(format!("'{}' in the manifest of {}", entry.path, self.manifest.label))(
                    error,
                ));
            }
        }
        Ok(Some(FileRecord { entry, extents }))
    }
}

impl Iterator for ManifestReader {
    type Item = Result<FileRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.merged().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}
