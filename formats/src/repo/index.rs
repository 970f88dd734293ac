//! Index segments: which pack holds a chunk, and where in it.
//!
//! The plaintext payload of an `idx/` object; sealing belongs to the envelope. Layout: `FORMAT.md`,
//! "Index". After the version byte, the superseded names and the packs table come the entries, of
//! [`ENTRY_LEN`] fixed bytes each and strictly ascending by chunk id, so that a segment is searched where it
//! lies. Entries name packs by their ordinal in the table: 4 bytes instead of 32.
//!
//! [`IndexView::parse`] checks everything once, in one pass; what it accepted is then read without checks
//! that could fail. [`IndexBuilder`] writes only what `parse` accepts.

use super::chunk::{ChunkKind, Encoding};
use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::{ChunkId, PackId, SessionId};
use std::collections::HashMap;

/// Version of the payload that this program writes; it reads no other.
pub const VERSION: u8 = 1;

/// Entries a writer puts into one segment: 50 MiB of payload, which is sealed in memory. A reader accepts more.
pub const MAX_SEGMENT_ENTRIES: usize = 1 << 20;

/// Bytes of one entry.
pub const ENTRY_LEN: usize = 50;

/// [`PackFacts::domain`] of packs of page bytes.
pub const DOMAIN_DATA: u8 = 1;
/// [`PackFacts::domain`] of packs of manifests and other records.
pub const DOMAIN_META: u8 = 2;

/// Bytes of one row of the packs table.
const PACK_LEN: usize = PackId::LEN + SessionId::LEN + 4 + 1 + 8 + 8;

const AT_PACK: usize = ChunkId::LEN;
const AT_OFFSET: usize = AT_PACK + 4;
const AT_STORED_LEN: usize = AT_OFFSET + 4;
const AT_PLAIN_LEN: usize = AT_STORED_LEN + 4;
const AT_KIND: usize = AT_PLAIN_LEN + 4;
const AT_ENCODING: usize = AT_KIND + 1;
const _: () = assert!(AT_ENCODING + 1 == ENTRY_LEN);

/// What must be known of a pack to open a chunk in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PackFacts {
    /// The pack's name.
    pub pack: PackId,
    /// The session that wrote it, under whose key it is sealed.
    pub session: SessionId,
    /// The epoch that key was wrapped for.
    pub epoch: u32,
    /// [`DOMAIN_DATA`] or [`DOMAIN_META`].
    pub domain: u8,
    /// Tag of the scope whose meta key seals it; zeros in the data domain.
    pub scope: [u8; 8],
    /// Bytes of the whole object.
    pub size: u64,
}

/// Where one chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IndexEntry {
    /// The chunk's name.
    pub id: ChunkId,
    /// Its pack: a row of the segment's packs table.
    pub pack: u32,
    /// First byte of the sealed chunk in the pack.
    pub offset: u32,
    /// Bytes of the sealed chunk in the pack.
    pub stored_len: u32,
    /// Bytes of the plaintext.
    pub plain_len: u32,
    /// What it holds.
    pub kind: ChunkKind,
    /// How it is encoded.
    pub encoding: Encoding,
}

impl IndexEntry {
    /// The fixed bytes of an entry.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ENTRY_LEN] {
        let mut out = [0; ENTRY_LEN];
        out[..AT_PACK].copy_from_slice(&self.id.0);
        out[AT_PACK..AT_OFFSET].copy_from_slice(&self.pack.to_le_bytes());
        out[AT_OFFSET..AT_STORED_LEN].copy_from_slice(&self.offset.to_le_bytes());
        out[AT_STORED_LEN..AT_PLAIN_LEN].copy_from_slice(&self.stored_len.to_le_bytes());
        out[AT_PLAIN_LEN..AT_KIND].copy_from_slice(&self.plain_len.to_le_bytes());
        out[AT_KIND] = self.kind.as_u8();
        out[AT_ENCODING] = self.encoding.as_u8();
        out
    }

    /// Reads the fixed bytes of an entry. Offsets in errors count from its first byte.
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] for a kind or an encoding without meaning.
    pub fn from_bytes(bytes: &[u8; ENTRY_LEN]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        Ok(Self {
            id: ChunkId::read(&mut r)?,
            pack: r.u32("pack ordinal")?,
            offset: r.u32("chunk offset")?,
            stored_len: r.u32("stored length")?,
            plain_len: r.u32("plain length")?,
            kind: ChunkKind::read(&mut r)?,
            encoding: Encoding::read(&mut r)?,
        })
    }
}
