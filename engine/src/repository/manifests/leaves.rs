//! The leaves of a manifest being built: as the parent wrote them, as patches, or in full.
//!
//! What did not change is written as the parent wrote it, so that it is the same bytes and, with its neighbours, the same
//! piece. What did is written as a patch if that is clearly smaller. A patch's base is always a full leaf: the parent's, or
//! the one that the parent's own patch has. So patches of one base grow from backup to backup until one is not worth while,
//! and a full leaf takes its place: depth stays one, and a leaf is read with one look aside.
//!
//! A patch copies extents as numbers, and this manifest's table says what the numbers mean. They mean the same chunks as
//! in the base, because the table begins with the parent's, and the parent's with that of each of its bases: a manifest
//! whose table does not begin with its parent's has no bases. Steps are found by comparing numbers, so what is read back
//! is what was put in, whatever the base holds.

use super::Manifest;
use super::records::Records;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{
    Content, Entry, Extent, FREE_BASE, Leaf, Record, patch_ops, path_cmp, push_extent,
};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

/// Leaves of fewer extents are always full.
const PATCHED_EXTENTS_MIN: usize = 16;
/// A patch is written while the full leaf is larger than this many times it.
const PATCH_GAIN: usize = 2;
/// Bases of one manifest: so many, and one for every fourth leaf, but not more than the last.
const BASES_FEW: usize = 64;
const LEAVES_PER_BASE: usize = 4;
const BASES_MAX: usize = 1 << 16;

/// The parent's leaves, in path order, as they were written.
struct ParentLeaves {
    manifest: Arc<Manifest>,
    records: Records,
    /// The entry whose leaves come next.
    entry: Option<Entry>,
}

/// A leaf of the parent and where it is: piece and number of the record in it.
struct ParentLeaf {
    leaf: Leaf,
    piece: ChunkId,
    record: u32,
}

impl ParentLeaves {
    /// Goes forward to the entry of `path` and returns it, if there is one.
    fn seek(&mut self, path: &str) -> Result<Option<&Entry>> {
        if self.entry.as_ref().is_none_or(|e| path_cmp(&e.path, path) == Ordering::Less) {
            self.records.pass_to(path);
        }
        loop {
            match self.entry.as_ref().map(|e| path_cmp(&e.path, path)) {
                Some(Ordering::Equal) => return Ok(self.entry.as_ref()),
                Some(Ordering::Greater) => return Ok(None),
                Some(Ordering::Less) | None => {}
            }
            match self.records.next()? {
                None => return Ok(None),
                Some(Record::Entry(entry)) => self.entry = Some(entry),
                Some(Record::Leaf(_)) => {}
            }
        }
    }

    /// The next leaf of the entry that was sought.
    fn next(&mut self) -> Result<ParentLeaf> {
        let Some(Record::Leaf(leaf)) = self.records.next()? else {
            return Err(self.manifest.damaged("missing leaf", 0));
        };
        let (piece, record) = self.records.place();
        let piece = self.manifest.root().tree.get(piece).map(|p| p.id);
        Ok(ParentLeaf { leaf, piece: piece.ok_or_else(|| self.manifest.damaged("tree piece", 0))?, record })
    }
}

/// The list of bases. A base that stays keeps its number, so that the patches that name it stay the same bytes.
#[derive(Default)]
struct Bases {
    ids: Vec<ChunkId>,
    used: Vec<bool>,
    live: usize,
    numbers: HashMap<ChunkId, u32>,
    /// Places nobody holds, the first last.
    free: Vec<u32>,
    leaves: usize,
}

impl Bases {
    fn new(ids: Vec<ChunkId>) -> Self {
        let numbered = || ids.iter().enumerate().map(|(n, id)| (*id, n as u32));
        let numbers = numbered().rev().filter(|(id, _)| *id != FREE_BASE).collect();
        let free = numbered().rev().filter(|(id, _)| *id == FREE_BASE).map(|(_, n)| n).collect();
        Self { used: vec![false; ids.len()], live: 0, numbers, free, leaves: 0, ids }
    }

    /// Notes that a place is used.
    fn keep(&mut self, number: u32) {
        if let Some(used) = self.used.get_mut(number as usize)
            && !std::mem::replace(used, true)
        {
            self.live += 1;
        }
    }

    /// The place of a base, if it has one or there is room for it.
    fn number(&mut self, id: ChunkId) -> Option<u32> {
        if let Some(number) = self.numbers.get(&id) {
            return Some(*number);
        }
        if self.live >= (BASES_FEW + self.leaves / LEAVES_PER_BASE).min(BASES_MAX) {
            return None;
        }
        let number = self.free.pop().unwrap_or(self.ids.len() as u32);
        match self.ids.get_mut(number as usize) {
            Some(place) => *place = id,
            None => {
                self.ids.push(id);
                self.used.push(false);
            }
        }
        self.numbers.insert(id, number);
        Some(number)
    }

    fn finish(mut self) -> Vec<ChunkId> {
        for (id, used) in self.ids.iter_mut().zip(&self.used) {
            if !used {
                *id = FREE_BASE;
            }
        }
        self.ids.truncate(self.used.iter().rposition(|used| *used).map_or(0, |last| last + 1));
        self.ids
    }
}

/// Chooses how leaves are written.
pub(super) struct LeafWriter {
    parent: Option<ParentLeaves>,
    /// The table begins with the parent's.
    extended: bool,
    /// Leaves of the parent's file that were not compared yet.
    left: u32,
    bases: Bases,
}

impl LeafWriter {
    /// `extended` tells whether the table begins with the parent's.
    pub(super) fn new(parent: Option<&Arc<Manifest>>, extended: bool) -> Self {
        let leaves =
            |m: &Arc<Manifest>| ParentLeaves { manifest: Arc::clone(m), records: Records::new(m, 0), entry: None };
        let bases = parent.filter(|_| extended).map_or_else(Vec::new, |m| m.root().bases.clone());
        Self { parent: parent.map(leaves), extended, left: 0, bases: Bases::new(bases) }
    }

    /// Begins the leaves of a file; files come in path order.
    pub(super) fn begin_file(&mut self, path: &str, unit: u32) -> Result<()> {
        self.left = 0;
        if let Some(parent) = self.parent.as_mut().filter(|_| self.extended)
            && let Some(entry) = parent.seek(path)?
            && let Content::Extents { unit: same, leaves } = entry.content
            && same == unit
        {
            self.left = leaves;
            // Its leaves are read now, or passed over.
            parent.entry = None;
        }
        Ok(())
    }

    /// The file's next leaf, from its extents; those that continue each other have been joined.
    pub(super) fn leaf(&mut self, extents: Vec<Extent>) -> Result<Leaf> {
        let was = match &mut self.parent {
            Some(parent) if self.left > 0 => {
                self.left -= 1;
                Some(parent.next()?)
            }
            _ => None,
        };
        self.choose(extents, was)
    }

    /// The parent's entry of a file and its leaves, to be taken over. `None` if there is none.
    pub(super) fn parent_file(&mut self, path: &str) -> Result<Option<Entry>> {
        let Some(parent) = &mut self.parent else { return Ok(None) };
        parent.seek(path)?;
        // Its leaves are read now, or passed over.
        Ok(parent.entry.take_if(|e| e.path == path))
    }

    /// The next leaf of the file that [`Self::parent_file`] found, and its extents, with the parent's ordinals.
    pub(super) fn parent_leaf(&mut self) -> Result<(Leaf, Vec<Extent>)> {
        let Some(parent) = &mut self.parent else {
            return Err(Error::refused(Kind::Assert, "a leaf of no parent was asked for"));
        };
        let leaf = parent.next()?.leaf;
        self.bases.leaves += 1;
        if self.extended
            && let Leaf::Patch { piece, .. } = &leaf
        {
            self.bases.keep(*piece);
        }
        let extents = parent.manifest.resolve(leaf.clone())?;
        Ok((leaf, extents))
    }

    /// The bases, for the root.
    pub(super) fn finish(self) -> Vec<ChunkId> {
        self.bases.finish()
    }

    fn choose(&mut self, extents: Vec<Extent>, was: Option<ParentLeaf>) -> Result<Leaf> {
        self.bases.leaves += 1;
        let full = Leaf::Full(extents);
        let (Some(was), Some(parent), Leaf::Full(extents)) = (was, &self.parent, &full) else { return Ok(full) };
        let (id, record, base) = match &was.leaf {
            Leaf::Full(base) => (was.piece, was.record, base.clone()),
            Leaf::Patch { piece, record, .. } => {
                (parent.manifest.base_id(*piece)?, *record, parent.manifest.base(*piece, *record)?)
            }
        };
        let old = was.leaf.clone().resolve(&base).map_err(|e| parent.manifest.damaged_by(e))?;
        if joined(&old) == *extents {
            if let Leaf::Patch { piece, .. } = &was.leaf {
                self.bases.keep(*piece);
            }
            return Ok(was.leaf);
        }
        if extents.len() < PATCHED_EXTENTS_MIN {
            return Ok(full);
        }
        let mut patch = Leaf::Patch { piece: 0, record, ops: patch_ops(&base, extents) };
        if patch.encoded_len() * PATCH_GAIN >= full.encoded_len() {
            return Ok(full);
        }
        let Some(number) = self.bases.number(id) else { return Ok(full) };
        self.bases.keep(number);
        if let Leaf::Patch { piece, .. } = &mut patch {
            *piece = number;
        }
        Ok(patch)
    }
}

/// The extents with what continues put together.
pub(super) fn joined(extents: &[Extent]) -> Vec<Extent> {
    let mut out = Vec::with_capacity(extents.len());
    extents.iter().for_each(|e| push_extent(&mut out, *e));
    out
}
