//! WAL summaries: which blocks of which relation forks a range of WAL refers to. Written by servers from 17 on.
//!
//! A file in `pg_wal/summaries` is named by timeline, first and last position, and holds, in the byte order of the
//! server (little-endian here, as everywhere):
//!
//! ```text
//! magic 0x652b137b
//! per relation fork:  tablespace, database, relfilenode, fork, limit block, number of chunks    6 × u32
//!                     entries of each chunk                                                    u16 each
//!                     the chunks: 4096 entries are a bitmap of 65 536 blocks, fewer are block offsets   u16 each
//! 24 bytes of zero
//! CRC-32C of everything before it
//! ```
//!
//! The limit block is the shortest length that the fork is known to have had within the range: 0 if it was created or
//! dropped, all ones if it was never cut. A relfilenode of 0 stands for all relations of a database in a tablespace.
//!
//! [`WalSummary::parse`] checks the CRC before it looks at anything else, and then the structure of the whole file,
//! so that [`WalSummary::entries`] cannot fail. Memory: nothing but the file's own bytes.
//!
//! Source: `common/blkreftable.c`, `backup/walsummary.c`, `postmaster/walsummarizer.c`; equal in 17 and 18.

use super::lsn::Lsn;
use super::path::RelationFile;
use super::timeline::{TimelineId, parse_hex8};
use crate::FormatError;
use crate::codec::Reader;
use std::fmt;

/// First four bytes of a summary.
const MAGIC: u32 = 0x652b_137b;
/// Bytes of a fork's head, and of the end mark.
const HEAD_LEN: usize = 24;
const CRC_LEN: usize = 4;
/// Blocks of a chunk.
pub const CHUNK_BLOCKS: u32 = 1 << 16;
/// Entries of a chunk that is a bitmap.
const BITMAP_ENTRIES: usize = 4096;
/// A fork of 2³² blocks has this many chunks.
const CHUNKS_MAX: u32 = 1 << 16;
/// Limit block of a fork that was never cut.
const NO_LIMIT: u32 = u32::MAX;
/// `pg_default` and `pg_global`.
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;
const SUFFIX: &str = ".summary";

/// What a summary's name says: the range of WAL that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SummaryName {
    /// Timeline of the WAL.
    pub timeline: TimelineId,
    /// First position covered.
    pub start: Lsn,
    /// First position no more covered.
    pub end: Lsn,
}

impl SummaryName {
    /// Parses a file name; `None` for any other, such as that of the file the server is writing.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(SUFFIX).filter(|d| d.len() == 40 && d.is_ascii())?;
        let part = |n: usize| digits.get(8 * n..8 * n + 8).and_then(parse_hex8);
        let lsn = |n: usize| Some(Lsn(u64::from(part(n)?) << 32 | u64::from(part(n + 1)?)));
        Some(Self { timeline: TimelineId(part(0)?), start: lsn(1)?, end: lsn(3)? })
    }
}

impl fmt::Display for SummaryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:016X}{:016X}{SUFFIX}", self.timeline.0, self.start.0, self.end.0)
    }
}

/// Which relation, by its place and number on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationLocator {
    /// Oid of the tablespace, also of the built-in ones.
    pub tablespace_oid: u32,
    /// Oid of the database; 0 for shared relations.
    pub database_oid: u32,
    /// Number in file names; 0 for all relations of the database in the tablespace.
    pub filenode: u32,
}

impl RelationLocator {
    /// The relation that a file belongs to.
    #[must_use]
    pub fn of(file: &RelationFile) -> Self {
        let built_in = if file.database_oid == 0 { GLOBAL_TABLESPACE } else { DEFAULT_TABLESPACE };
        Self {
            tablespace_oid: file.tablespace_oid.unwrap_or(built_in),
            database_oid: file.database_oid,
            filenode: file.filenode,
        }
    }

    /// What stands for all relations of the same database in the same tablespace.
    #[must_use]
    pub fn whole_database(self) -> Self {
        Self { filenode: 0, ..self }
    }
}

/// What a summary says of one fork of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SummaryEntry<'a> {
    /// The relation.
    pub relation: RelationLocator,
    /// Number of the fork: 0 main, 1 free space map, 2 visibility map, 3 init.
    pub fork: u32,
    /// Shortest length in blocks; `None` if it was never cut.
    pub limit: Option<u32>,
    sizes: &'a [u8],
    chunks: &'a [u8],
}

/// The blocks of a summary's entry that lie in one range of [`CHUNK_BLOCKS`] blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SummaryChunk<'a> {
    /// Number of the first block of the range.
    pub first_block: u32,
    /// Changed blocks.
    pub blocks: ChunkBlocks<'a>,
}

/// Block numbers, counted from the chunk's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkBlocks<'a> {
    /// Pairs of bytes, each a number, in no order.
    Offsets(&'a [u8]),
    /// One bit a block, least significant first: 8 KiB.
    Bitmap(&'a [u8]),
}

impl<'a> ChunkBlocks<'a> {
    /// The numbers; ascending if they come from a bitmap.
    pub fn iter(self) -> impl Iterator<Item = u16> + use<'a> {
        let (offsets, bitmap) = match self {
            Self::Offsets(bytes) => (bytes, &[][..]),
            Self::Bitmap(bytes) => (&[][..], bytes),
        };
        let offsets = words(offsets);
        let bits = bitmap
            .iter()
            .zip(0u16..)
            .flat_map(|(byte, n)| (0..8u16).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| n * 8 + bit));
        offsets.chain(bits)
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair))
}

impl<'a> SummaryEntry<'a> {
    /// Ranges with changed blocks, ascending.
    pub fn chunks(&self) -> impl Iterator<Item = SummaryChunk<'a>> {
        let mut rest = self.chunks;
        words(self.sizes).zip(0u32..).filter_map(move |(entries, n)| {
            let (bytes, tail) = rest.split_at_checked(2 * usize::from(entries))?;
            rest = tail;
            let blocks = match usize::from(entries) {
                0 => return None,
                BITMAP_ENTRIES => ChunkBlocks::Bitmap(bytes),
                _ => ChunkBlocks::Offsets(bytes),
            };
            Some(SummaryChunk { first_block: n * CHUNK_BLOCKS, blocks })
        })
    }

    /// All changed blocks.
    pub fn blocks(&self) -> impl Iterator<Item = u32> {
        self.chunks().flat_map(|chunk| chunk.blocks.iter().map(move |n| chunk.first_block + u32::from(n)))
    }

    /// Reads one entry; `None` at the end mark.
    fn read(r: &mut Reader<'a>) -> Result<Option<Self>, FormatError> {
        let mut head = Reader::new(r.clone().bytes(HEAD_LEN, "entry of a WAL summary")?);
        let at = r.offset();
        if r.bytes(HEAD_LEN, "entry of a WAL summary")?.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let relation = RelationLocator {
            tablespace_oid: head.u32("tablespace")?,
            database_oid: head.u32("database")?,
            filenode: head.u32("relfilenode")?,
        };
        let fork = head.u32("fork")?;
        let limit = Some(head.u32("limit block")?).filter(|l| *l != NO_LIMIT);
        let count = head.u32("chunks")?;
        let out_of_range = |what, found| FormatError::OutOfRange { offset: at, what, found };
        if fork > 3 {
            return Err(out_of_range("fork", u64::from(fork)));
        }
        if count > CHUNKS_MAX {
            return Err(out_of_range("number of chunks", u64::from(count)));
        }
        let sizes = r.bytes(2 * count as usize, "sizes of chunks")?;
        let mut total = 0;
        for entries in words(sizes).map(usize::from) {
            if entries > BITMAP_ENTRIES {
                return Err(out_of_range("size of a chunk", entries as u64));
            }
            total += 2 * entries;
        }
        let chunks = r.bytes(total, "chunks")?;
        Ok(Some(Self { relation, fork, limit, sizes, chunks }))
    }
}

/// A summary's content, checked whole.
#[derive(Debug, Clone, Copy)]
pub struct WalSummary<'a> {
    /// The entries with the end mark.
    entries: &'a [u8],
}

impl<'a> WalSummary<'a> {
    /// Checks a whole file.
    ///
    /// # Errors
    /// Any [`FormatError`]: a file that ends early or goes on after its end, another kind of file, a CRC that does not
    /// match, fields out of range.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        if r.u32("magic number")? != MAGIC {
            return Err(FormatError::BadMagic { what: "WAL summary" });
        }
        let need = (HEAD_LEN + CRC_LEN).saturating_sub(r.remaining());
        if need > 0 {
            return Err(FormatError::Truncated { offset: bytes.len(), need, what: "end of a WAL summary" });
        }
        let (covered, crc) = bytes.split_at(bytes.len() - CRC_LEN);
        let (stored, computed) = (Reader::new(crc).u32("checksum")?, crc32c::crc32c(covered));
        if stored != computed {
            return Err(FormatError::BadChecksum { what: "WAL summary", stored, computed });
        }
        let mut r = Reader::new(covered);
        r.u32("magic number")?;
        while SummaryEntry::read(&mut r)?.is_some() {}
        match r.remaining() {
            0 => Ok(Self { entries: covered.get(4..).unwrap_or_default() }),
            extra => Err(FormatError::TrailingBytes { what: "WAL summary", extra }),
        }
    }

    /// The entries, in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = SummaryEntry<'a>> {
        let mut r = Reader::new(self.entries);
        // Parsing has been through all of this.
        std::iter::from_fn(move || SummaryEntry::read(&mut r).ok().flatten())
    }
}

#[cfg(test)]
mod tests;
