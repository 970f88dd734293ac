//! The root of a manifest: where its pieces are. FORMAT.md, "Manifest root".

use crate::FormatError;
use crate::id::ChunkId;
use crate::repo::fields::{Fields, FieldsWriter, write_list};
use crate::repo::manifest::check_path;

const VERSION: u8 = 1;
const PAGE_SIZE: u64 = 1;
const NAMES: u64 = 3;
const TABLE: u64 = 5;
const TREE: u64 = 7;
const BASES: u64 = 9;
const IDS_LIVE: u64 = 11;
const FILES: u64 = 13;
const BYTES: u64 = 15;
const LATE: u64 = 17;

/// Stands in the list of bases where there is none: patches name their bases by number, and those that stay keep theirs.
pub const FREE_BASE: ChunkId = ChunkId([0; 32]);

/// A piece of the chunk table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TablePiece {
    /// The metadata chunk that holds the ids, 32 bytes each.
    pub id: ChunkId,
    /// Number of ids.
    pub ids: u32,
}

/// A piece of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreePiece {
    /// The metadata chunk that holds the records.
    pub id: ChunkId,
    /// Path of the entry that the first record is or belongs to.
    pub first_path: String,
    /// 0 if the first record is an entry; otherwise 1 + the number of the leaf it is.
    pub first_leaf: u32,
    /// Number of records.
    pub records: u32,
}

/// The root of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ManifestRoot {
    /// Bytes of a page of the cluster.
    pub page_size: u32,
    /// Names of owners and groups.
    pub names: Vec<String>,
    /// The chunk table: the ids of these pieces one after the other; an ordinal is a position in it.
    pub table: Vec<TablePiece>,
    /// The tree, in path order.
    pub tree: Vec<TreePiece>,
    /// Tree pieces of other manifests that leaf patches refer to. [`FREE_BASE`] is a place that is not in use.
    pub bases: Vec<ChunkId>,
    /// How many ids of the chunk table are in use; the rest came from the parent's.
    pub ids_live: u64,
    /// Number of files.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// A tree piece of its own, with entries whose content was known only at the end: `pg_control` and the label files.
    /// Readers merge it with the tree by path. Empty if there are none.
    pub late: Vec<u8>,
}

impl ManifestRoot {
    /// Number of ids in the chunk table.
    #[must_use]
    pub fn ids(&self) -> u64 {
        self.table.iter().map(|p| u64::from(p.ids)).sum()
    }

    /// The tree pieces of other manifests that its patches refer to, without the places that are not in use.
    pub fn live_bases(&self) -> impl Iterator<Item = &ChunkId> {
        self.bases.iter().filter(|id| **id != FREE_BASE)
    }

    /// The pieces it is made of, and those its patches refer to; not the chunks of files.
    pub fn pieces(&self) -> impl Iterator<Item = &ChunkId> {
        self.table.iter().map(|p| &p.id).chain(self.tree.iter().map(|p| &p.id)).chain(self.live_bases())
    }

    /// The root's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = FieldsWriter::new(VERSION);
        w.int(PAGE_SIZE, self.page_size.into());
        w.field(NAMES, |w| {
            write_list(w, self.names.iter(), |w, n| {
                w.text(n);
            })
        });
        w.field(TABLE, |w| {
            write_list(w, self.table.iter(), |w, p| {
                w.bytes(&p.id.0).varint(p.ids.into());
            })
        });
        w.field(TREE, |w| {
            write_list(w, self.tree.iter(), |w, p| {
                w.bytes(&p.id.0).text(&p.first_path).varint(p.first_leaf.into()).varint(p.records.into());
            });
        });
        w.field(BASES, |w| write_list(w, self.bases.iter(), |w, id| id.write(w)));
        w.int(IDS_LIVE, self.ids_live).int(FILES, self.files).int(BYTES, self.bytes);
        w.field(LATE, |w| {
            w.bytes(&self.late);
        });
        w.finish()
    }

    /// Reads a root.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let known = [PAGE_SIZE, NAMES, TABLE, TREE, BASES, IDS_LIVE, FILES, BYTES, LATE];
        let f = Fields::parse(bytes, VERSION, &known, "manifest root")?;
        let page_size = f.int(PAGE_SIZE)?;
        if !(1024..=32768).contains(&page_size) || !page_size.is_power_of_two() {
            return Err(FormatError::OutOfRange { offset: 0, what: "page size", found: page_size });
        }
        let u32_max = u64::from(u32::MAX);
        let root = Self {
            page_size: page_size as u32,
            names: f.list(NAMES, 1, |r| Ok(r.text("name")?.to_owned()))?,
            table: f.list(TABLE, ChunkId::LEN + 1, |r| {
                Ok(TablePiece { id: ChunkId::read(r)?, ids: r.varint_max(1 << 15, "ids in a table piece")? as u32 })
            })?,
            tree: f.list(TREE, ChunkId::LEN + 3, |r| {
                let id = ChunkId::read(r)?;
                let first_path = r.text("first path")?.to_owned();
                check_path(&first_path)?;
                let first_leaf = r.varint_max(u32_max, "first leaf")? as u32;
                Ok(TreePiece { id, first_path, first_leaf, records: r.varint_max(u32_max, "records")? as u32 })
            })?,
            bases: f.list(BASES, ChunkId::LEN, ChunkId::read)?,
            ids_live: f.int(IDS_LIVE)?,
            files: f.int(FILES)?,
            bytes: f.int(BYTES)?,
            late: match f.get(LATE) {
                Some(mut r) => r.bytes(r.remaining(), "late entries")?.to_vec(),
                None => Vec::new(),
            },
        };
        if root.ids() > u32_max {
            return Err(FormatError::OutOfRange { offset: 0, what: "chunk table", found: root.ids() });
        }
        Ok(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let root = ManifestRoot {
            page_size: 8192,
            names: vec!["postgres".into(), "101".into()],
            table: vec![TablePiece { id: ChunkId([1; 32]), ids: 8192 }],
            tree: vec![TreePiece { id: ChunkId([2; 32]), first_path: "base/1".into(), first_leaf: 2, records: 9 }],
            bases: vec![ChunkId([3; 32])],
            ids_live: 8000,
            files: 1,
            bytes: 2,
            late: vec![1, 2],
        };
        assert_eq!(ManifestRoot::decode(&root.encode()), Ok(root));
    }

    #[test]
    fn a_free_place_is_no_piece() {
        let id = |n| ChunkId([n; 32]);
        let tree = vec![TreePiece { id: id(2), first_path: String::new(), first_leaf: 0, records: 1 }];
        let (table, bases) = (vec![TablePiece { id: id(1), ids: 1 }], vec![FREE_BASE, id(3), FREE_BASE, id(4)]);
        let root = ManifestRoot { page_size: 8192, table, tree, bases, ..ManifestRoot::default() };
        let root = ManifestRoot::decode(&root.encode()).unwrap();
        assert_eq!(root.bases.len(), 4, "those that stay keep their numbers");
        assert_eq!(root.live_bases().copied().collect::<Vec<_>>(), [id(3), id(4)]);
        assert_eq!(root.pieces().copied().collect::<Vec<_>>(), [id(1), id(2), id(3), id(4)]);
    }
}
