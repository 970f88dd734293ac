//! Reading the tree of a manifest: record by record, file by file, or entries alone.

use super::Manifest;
use super::read::{FileRecord, begins_by};
use crate::{Error, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::repo::manifest::{Content, Entry, PieceReader, Record, path_cmp, push_extent};
use std::cmp::Ordering;
use std::sync::Arc;

/// The records of the tree as they were written, from a piece on. Holds the records of one piece.
pub(super) struct Records {
    manifest: Arc<Manifest>,
    next_piece: usize,
    records: std::vec::IntoIter<Record>,
    /// Records of the present piece that were returned.
    returned: u32,
}

impl Records {
    pub(super) fn new(manifest: &Arc<Manifest>, next_piece: usize) -> Self {
        let records = Vec::new().into_iter();
        Self { manifest: Arc::clone(manifest), next_piece, records, returned: 0 }
    }

    pub(super) fn next(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.records.next() {
                self.returned += 1;
                return Ok(Some(record));
            }
            if self.next_piece >= self.manifest.root().tree.len() {
                return Ok(None);
            }
            let bytes = self.manifest.piece(self.next_piece)?;
            let records = PieceReader::new(&bytes).map_err(|e| self.manifest.damaged_by(e))?;
            let records = records.collect::<Result<Vec<_>, _>>().map_err(|e| self.manifest.damaged_by(e))?;
            self.records = records.into_iter();
            self.returned = 0;
            self.next_piece += 1;
        }
    }

    /// Piece and number of the record that was returned last.
    pub(super) fn place(&self) -> (usize, u32) {
        (self.next_piece.saturating_sub(1), self.returned.saturating_sub(1))
    }

    /// Passes over pieces that end before the entry of `path`, which has not been returned.
    pub(super) fn pass_to(&mut self, path: &str) {
        if self.manifest.root().tree.get(self.next_piece).is_some_and(|p| begins_by(p, path)) {
            self.next_piece = self.manifest.piece_of(path, self.next_piece);
            self.records = Vec::new().into_iter();
        }
    }

    /// Passes over the pieces that hold nothing but leaves, if no record of the present piece is left.
    fn pass_leaves(&mut self) {
        if self.records.len() > 0 {
            return;
        }
        let tree = &self.manifest.root().tree;
        while let (Some(here), Some(next)) = (tree.get(self.next_piece), tree.get(self.next_piece + 1))
            && here.first_leaf > 0
            && next.first_leaf > here.first_leaf
            && next.first_path == here.first_path
        {
            self.next_piece += 1;
        }
    }
}

/// Files and directories in path order. After an error it ends.
pub struct ManifestReader {
    manifest: Arc<Manifest>,
    records: Records,
    /// What comes before this path is passed over.
    floor: Option<String>,
    /// Whether extents are read.
    with_extents: bool,
    /// Leaves that come next are of no interest.
    skip_leaves: bool,
    /// Number of the next late entry.
    late: usize,
    /// The next record of the tree, if it has been read already.
    ahead: Option<FileRecord>,
    failed: bool,
}

impl ManifestReader {
    pub(super) fn new(manifest: &Arc<Manifest>, floor: Option<&str>) -> Self {
        let (piece, late) = match floor {
            None => (0, 0),
            Some(path) => {
                let late = manifest.late.partition_point(|e| path_cmp(&e.entry.path, path) == Ordering::Less);
                (manifest.piece_of(path, 0), late)
            }
        };
        Self {
            manifest: Arc::clone(manifest),
            records: Records::new(manifest, piece),
            floor: floor.map(str::to_owned),
            with_extents: true,
            // Those at the start of the first piece belong to an entry before it.
            skip_leaves: true,
            late,
            ahead: None,
            failed: false,
        }
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
            (Some(tree), Some(late)) => match path_cmp(&late.entry.path, &tree.entry.path) {
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
            return Ok(late.cloned());
        }
        Ok(self.ahead.take())
    }

    fn next_entry(&mut self) -> Result<Option<Entry>> {
        loop {
            if self.skip_leaves {
                self.records.pass_leaves();
            }
            let entry = match self.records.next()? {
                None => return Ok(None),
                Some(Record::Entry(entry)) => entry,
                Some(Record::Leaf(_)) if self.skip_leaves => continue,
                Some(Record::Leaf(_)) => return Err(self.manifest.damaged("stray leaf", 0)),
            };
            self.skip_leaves = !self.with_extents;
            match &self.floor {
                Some(floor) if path_cmp(&entry.path, floor) == Ordering::Less => self.skip_leaves = true,
                _ => {
                    self.floor = None;
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn read(&mut self) -> Result<Option<FileRecord>> {
        let Some(entry) = self.next_entry()? else { return Ok(None) };
        let mut extents = Vec::new();
        if let Content::Extents { unit, leaves } = entry.content
            && self.with_extents
        {
            for _ in 0..leaves {
                let Some(Record::Leaf(leaf)) = self.records.next()? else {
                    return Err(self.manifest.damaged("missing leaf", 0));
                };
                self.manifest.resolve(leaf)?.into_iter().for_each(|e| push_extent(&mut extents, e));
            }
            let units: u64 = extents.iter().map(|e| u64::from(e.units)).sum();
            if units != entry.size.div_ceil(unit.into()) {
                let name = format!("'{}' in the manifest of {}", entry.path, self.manifest.label());
                let error = FormatError::OutOfRange { offset: 0, what: "length of extents", found: units };
                return Err(Error::damaged(name)(error));
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

/// Entries in path order, without extents. After an error it ends.
pub struct Entries(ManifestReader);

impl Entries {
    pub(super) fn new(manifest: &Arc<Manifest>) -> Self {
        Self(ManifestReader { with_extents: false, ..ManifestReader::new(manifest, None) })
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|record| Ok(record?.entry))
    }
}
