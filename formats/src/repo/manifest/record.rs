//! Records of the tree: entries, each followed by the leaves of its content. FORMAT.md, "Tree records".

use super::{Extent, ExtentAt, LATE_BYTES_MAX, Leaf, PatchOp, check_path};
use crate::FormatError;
use crate::codec::{Reader, Writer};

const PIECE_VERSION: u8 = 1;
const TYPE_ENTRY: u8 = 1;
const TYPE_LEAF: u8 = 2;
const TYPE_LEAF_PATCH: u8 = 3;

const NODE_DIRECTORY: u8 = 0;
const NODE_LINKED_DIRECTORY: u8 = 1;
const NODE_FILE: u8 = 2;
const NODE_LINKED_FILE: u8 = 3;

const CONTENT_NONE: u8 = 0;
const CONTENT_INLINE: u8 = 1;
const CONTENT_EXTENTS: u8 = 2;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A directory reached through a symbolic link; what is in it follows under the entry's own path.
    LinkedDirectory(String),
    /// A regular file.
    File,
    /// A file reached through a symbolic link.
    LinkedFile(String),
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing: a directory, or an empty file.
    None,
    /// These bytes.
    Inline(Vec<u8>),
    /// Extents, in the leaves that follow the entry.
    Extents {
        /// Bytes of a unit: the page size, or 1.
        unit: u32,
        /// Number of leaves.
        leaves: u32,
    },
}

/// One file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to PGDATA; the root is empty.
    pub path: String,
    /// What it is.
    pub node: Node,
    /// Permission bits.
    pub mode: u32,
    /// Owner: index into the root's names.
    pub user: u32,
    /// Group: index into the root's names.
    pub group: u32,
    /// Last change, seconds since the Unix epoch.
    pub modified: i64,
    /// Nanoseconds of the last change.
    pub modified_nanos: u32,
    /// Bytes.
    pub size: u64,
    /// What it holds.
    pub content: Content,
    /// Numbers, in this file, of pages that failed their checksum when they were read.
    pub bad_pages: Vec<u32>,
}

impl Entry {
    /// True for files, linked or not.
    #[must_use]
    pub fn is_file(&self) -> bool {
        matches!(self.node, Node::File | Node::LinkedFile(_))
    }
}

/// One record of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A file or directory.
    Entry(Entry),
    /// The next leaf of the file before it.
    Leaf(Leaf),
}

/// Writes the records of one piece.
#[derive(Debug)]
pub struct PieceWriter {
    out: Writer,
    last_path: String,
    records: u32,
}

impl Default for PieceWriter {
    fn default() -> Self {
        let mut out = Writer::new();
        out.u8(PIECE_VERSION);
        Self { out, last_path: String::new(), records: 0 }
    }
}

impl PieceWriter {
    /// Appends a record.
    pub fn push(&mut self, record: &Record) {
        let mut body = Writer::new();
        match record {
            Record::Entry(entry) => {
                body.u8(TYPE_ENTRY);
                write_entry(&mut body, entry, &self.last_path);
                self.last_path.clone_from(&entry.path);
            }
            Record::Leaf(leaf) => write_leaf(&mut body, leaf),
        }
        self.out.blob(body.as_bytes());
        self.records += 1;
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// True while there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Number of records so far.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// The piece's bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.out.into_bytes()
    }
}

/// Reads the records of one piece. After an error it ends.
#[derive(Debug, Clone)]
pub struct PieceReader<'a> {
    r: Reader<'a>,
    last_path: String,
}

impl<'a> PieceReader<'a> {
    /// Starts at a piece's first record.
    ///
    /// # Errors
    /// [`FormatError::BadVersion`] or [`FormatError::Truncated`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("tree piece version")?;
        if version != PIECE_VERSION {
            return Err(FormatError::BadVersion { what: "tree piece", found: version.into(), supported: "1" });
        }
        Ok(Self { r, last_path: String::new() })
    }

    /// The leaf that is record number `number` of a piece, from 0; `None` if that is none. What comes before it is
    /// passed over without being decoded.
    ///
    /// # Errors
    /// [`FormatError`] naming what is wrong with the piece up to there.
    pub fn leaf(bytes: &'a [u8], number: u32) -> Result<Option<Leaf>, FormatError> {
        let mut reader = Self::new(bytes)?;
        for _ in 0..number {
            if reader.r.is_empty() {
                return Ok(None);
            }
            reader.r.blob("tree record")?;
        }
        let is_leaf = |body: &[u8]| matches!(body.first(), Some(&(TYPE_LEAF | TYPE_LEAF_PATCH)));
        if reader.r.is_empty() || !is_leaf(reader.r.clone().blob("tree record")?) {
            return Ok(None);
        }
        match reader.read()? {
            Record::Leaf(leaf) => Ok(Some(leaf)),
            Record::Entry(_) => Ok(None),
        }
    }

    fn read(&mut self) -> Result<Record, FormatError> {
        let body = self.r.blob("tree record")?;
        let mut r = Reader::new(body);
        let record = match r.u8("tree record type")? {
            TYPE_ENTRY => {
                let entry = read_entry(&mut r, &self.last_path)?;
                self.last_path.clone_from(&entry.path);
                Record::Entry(entry)
            }
            TYPE_LEAF => Record::Leaf(Leaf::Full(read_extents(&mut r)?)),
            TYPE_LEAF_PATCH => {
                let piece = r.varint_max(u32::MAX.into(), "base piece")? as u32;
                let record = r.varint_max(u32::MAX.into(), "base record")? as u32;
                let count = r.count(1, "patch steps")?;
                let mut ops = Vec::with_capacity(count);
                for _ in 0..count {
                    let offset = r.offset();
                    ops.push(match r.varint_max(u64::from(u32::MAX) << 1, "patch step")? {
                        1 => PatchOp::Extents(read_extents(&mut r)?),
                        op if op % 2 == 0 => PatchOp::Copy((op >> 1) as u32),
                        found => return Err(FormatError::OutOfRange { offset, what: "patch step", found }),
                    });
                }
                Record::Leaf(Leaf::Patch { piece, record, ops })
            }
            found => {
                return Err(FormatError::BadVersion { what: "tree record", found: found.into(), supported: "1 to 3" });
            }
        };
        r.finish("tree record")?;
        Ok(record)
    }
}

impl Iterator for PieceReader<'_> {
    type Item = Result<Record, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.r.is_empty() {
            return None;
        }
        let record = self.read();
        if record.is_err() {
            self.r = Reader::new(&[]);
        }
        Some(record)
    }
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

fn write_entry(w: &mut Writer, e: &Entry, last_path: &str) {
    let shared = last_path.bytes().zip(e.path.bytes()).take_while(|(a, b)| a == b).count();
    // The suffix must be text of its own, so a prefix ends between characters.
    let shared = (0..=shared).rev().find(|n| e.path.is_char_boundary(*n)).unwrap_or(0);
    w.varint(shared as u64).text(&e.path[shared..]);
    match &e.node {
        Node::Directory => w.u8(NODE_DIRECTORY),
        Node::LinkedDirectory(to) => w.u8(NODE_LINKED_DIRECTORY).text(to),
        Node::File => w.u8(NODE_FILE),
        Node::LinkedFile(to) => w.u8(NODE_LINKED_FILE).text(to),
    };
    w.varint(e.mode.into()).varint(e.user.into()).varint(e.group.into());
    w.varint(zigzag(e.modified)).varint(e.modified_nanos.into()).varint(e.size);
    match &e.content {
        Content::None => w.u8(CONTENT_NONE),
        Content::Inline(bytes) => w.u8(CONTENT_INLINE).blob(bytes),
        Content::Extents { unit, leaves } => w.u8(CONTENT_EXTENTS).varint((*unit).into()).varint((*leaves).into()),
    };
    w.varint(e.bad_pages.len() as u64);
    let mut last = 0;
    for page in &e.bad_pages {
        w.varint(zigzag(i64::from(*page) - last));
        last = i64::from(*page);
    }
}

fn read_entry(r: &mut Reader<'_>, last_path: &str) -> Result<Entry, FormatError> {
    let offset = r.offset();
    let shared = r.varint("shared path")? as usize;
    let prefix =
        last_path.get(..shared).ok_or(FormatError::OutOfRange { offset, what: "shared path", found: shared as u64 })?;
    let path = format!("{prefix}{}", r.text("path")?);
    check_path(&path)?;
    let offset = r.offset();
    let node = match r.u8("entry kind")? {
        NODE_DIRECTORY => Node::Directory,
        NODE_LINKED_DIRECTORY => Node::LinkedDirectory(r.text("link destination")?.to_owned()),
        NODE_FILE => Node::File,
        NODE_LINKED_FILE => Node::LinkedFile(r.text("link destination")?.to_owned()),
        found => return Err(FormatError::OutOfRange { offset, what: "entry kind", found: found.into() }),
    };
    let mode = r.varint_max(0o7777, "mode")? as u32;
    let user = r.varint_max(u32::MAX.into(), "user")? as u32;
    let group = r.varint_max(u32::MAX.into(), "group")? as u32;
    let modified = unzigzag(r.varint("modified")?);
    let modified_nanos = r.varint_max(999_999_999, "modified nanoseconds")? as u32;
    let size = r.varint_max(i64::MAX as u64, "file size")?;
    let offset = r.offset();
    let content = match r.u8("content kind")? {
        CONTENT_NONE => Content::None,
        CONTENT_INLINE => {
            let bytes = r.blob("inline content")?;
            if bytes.len() > LATE_BYTES_MAX || bytes.len() as u64 != size {
                return Err(FormatError::OutOfRange { offset, what: "inline content", found: bytes.len() as u64 });
            }
            Content::Inline(bytes.to_vec())
        }
        CONTENT_EXTENTS => {
            let at = r.offset();
            let unit = r.varint_max(1 << 16, "unit")? as u32;
            if !unit.is_power_of_two() {
                return Err(FormatError::OutOfRange { offset: at, what: "unit", found: unit.into() });
            }
            Content::Extents { unit, leaves: r.varint_max(u32::MAX.into(), "leaves")? as u32 }
        }
        found => return Err(FormatError::OutOfRange { offset, what: "content kind", found: found.into() }),
    };
    let count = r.count(1, "bad pages")?;
    let mut bad_pages = Vec::with_capacity(count);
    let mut last = 0i64;
    for _ in 0..count {
        let offset = r.offset();
        let page = last.checked_add(unzigzag(r.varint("bad page")?)).and_then(|p| u32::try_from(p).ok());
        let page = page.ok_or(FormatError::OutOfRange { offset, what: "bad page", found: 0 })?;
        bad_pages.push(page);
        last = page.into();
    }
    Ok(Entry { path, node, mode, user, group, modified, modified_nanos, size, content, bad_pages })
}

/// Bytes a leaf takes in a piece, without their count.
pub(super) fn leaf_len(leaf: &Leaf) -> usize {
    let mut body = Writer::new();
    write_leaf(&mut body, leaf);
    body.len()
}

fn write_leaf(w: &mut Writer, leaf: &Leaf) {
    match leaf {
        Leaf::Full(extents) => {
            w.u8(TYPE_LEAF);
            write_extents(w, extents);
        }
        Leaf::Patch { piece, record, ops } => {
            w.u8(TYPE_LEAF_PATCH).varint((*piece).into()).varint((*record).into()).varint(ops.len() as u64);
            for op in ops {
                match op {
                    PatchOp::Copy(units) => {
                        w.varint(u64::from(*units) << 1);
                    }
                    PatchOp::Extents(extents) => {
                        w.varint(1);
                        write_extents(w, extents);
                    }
                }
            }
        }
    }
}

/// An extent is its length and then 0 for zeros, or 1 + the zigzag distance of its ordinal from the one expected (the
/// last one and one more) and the offset in the chunk: three bytes where chunks follow each other.
fn write_extents(w: &mut Writer, extents: &[Extent]) {
    w.varint(extents.len() as u64);
    let mut expected = 0i64;
    for e in extents {
        w.varint(e.units.into());
        match e.at {
            ExtentAt::Zero => {
                w.varint(0);
            }
            ExtentAt::Chunk { ordinal, offset } => {
                w.varint(1 + zigzag(i64::from(ordinal) - expected)).varint(offset.into());
                expected = i64::from(ordinal) + 1;
            }
        }
    }
}

fn read_extents(r: &mut Reader<'_>) -> Result<Vec<Extent>, FormatError> {
    let count = r.count(2, "extents")?;
    let mut out = Vec::with_capacity(count);
    let mut expected = 0i64;
    for _ in 0..count {
        let offset = r.offset();
        let units = r.varint_max(u32::MAX.into(), "extent length")? as u32;
        if units == 0 {
            return Err(FormatError::OutOfRange { offset, what: "extent length", found: 0 });
        }
        let at = match r.varint("extent chunk")? {
            0 => ExtentAt::Zero,
            n => {
                let ordinal = expected.checked_add(unzigzag(n - 1)).and_then(|o| u32::try_from(o).ok());
                let ordinal = ordinal.ok_or(FormatError::OutOfRange { offset, what: "chunk ordinal", found: n })?;
                expected = i64::from(ordinal) + 1;
                ExtentAt::Chunk { ordinal, offset: r.varint_max(u32::MAX.into(), "offset in chunk")? as u32 }
            }
        };
        out.push(Extent { units, at });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent() -> impl Strategy<Value = Extent> {
        let at = prop_oneof![
            Just(ExtentAt::Zero),
            (any::<u32>(), any::<u32>()).prop_map(|(ordinal, offset)| ExtentAt::Chunk { ordinal, offset })
        ];
        (1u32.., at).prop_map(|(units, at)| Extent { units, at })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let content = prop_oneof![
            Just((0, Content::None)),
            proptest::collection::vec(any::<u8>(), 1..40).prop_map(|b| (b.len() as u64, Content::Inline(b))),
            any::<u32>().prop_map(|leaves| (1 << 40, Content::Extents { unit: 8192, leaves })),
        ];
        let path = "([a-zé]{1,3}/){0,2}[a-zé]{1,4}";
        (path, content, 0u32..0o7777, any::<i64>(), proptest::collection::vec(any::<u32>(), 0..4)).prop_map(
            |(path, (size, content), mode, modified, bad_pages)| Entry {
                path,
                node: if mode % 2 == 0 { Node::File } else { Node::LinkedFile("/ü".into()) },
                mode,
                user: 3,
                group: mode,
                modified,
                modified_nanos: 999_999_999,
                size,
                content,
                bad_pages,
            },
        )
    }

    fn record() -> impl Strategy<Value = Record> {
        let extents = || proptest::collection::vec(extent(), 0..20);
        let op = prop_oneof![any::<u32>().prop_map(PatchOp::Copy), extents().prop_map(PatchOp::Extents)];
        prop_oneof![
            entry().prop_map(Record::Entry),
            extents().prop_map(|e| Record::Leaf(Leaf::Full(e))),
            (any::<u32>(), any::<u32>(), proptest::collection::vec(op, 0..5))
                .prop_map(|(piece, record, ops)| Record::Leaf(Leaf::Patch { piece, record, ops })),
        ]
    }

    proptest! {
        #[test]
        fn pieces_round_trip(records in proptest::collection::vec(record(), 0..30)) {
            let mut w = PieceWriter::default();
            records.iter().for_each(|r| w.push(r));
            let bytes = w.finish();
            let back = PieceReader::new(&bytes).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
            for (number, record) in records.iter().enumerate() {
                let leaf = match record {
                    Record::Leaf(leaf) => Some(leaf.clone()),
                    Record::Entry(_) => None,
                };
                prop_assert_eq!(PieceReader::leaf(&bytes, number as u32), Ok(leaf));
            }
            prop_assert_eq!(PieceReader::leaf(&bytes, records.len() as u32), Ok(None));
            prop_assert_eq!(back, records);
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            bytes[0] = PIECE_VERSION;
            for record in PieceReader::new(&bytes).unwrap().flatten() {
                if let Record::Leaf(leaf) = record {
                    let _ = leaf.resolve(&[Extent { units: 7, at: ExtentAt::Chunk { ordinal: 1, offset: u32::MAX } }]);
                }
            }
        }
    }
}
