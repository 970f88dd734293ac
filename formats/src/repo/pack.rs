//! Packs: a fixed header, sealed chunks back to back, an optional sealed section of page hashes, a sealed footer, a
//! fixed trailer. FORMAT.md, "Pack".
//!
//! The footer alone tells what a pack holds and what each chunk's encoding depends on, without decoding a chunk.

use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::{ChunkId, RepoId, SessionId};
use crate::repo::chunk::{ChunkKind, Encoding};

/// First bytes of a pack.
pub const MAGIC: &[u8; 8] = b"PGKPACK1";
/// Last bytes of a pack.
pub const MAGIC_END: &[u8; 8] = b"PGKPEND1";
/// Version of the layout.
pub const VERSION: u16 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 64;
/// Bytes of the trailer.
pub const TRAILER_LEN: usize = 32;
/// Bytes a sealed chunk is longer than its encoding: the nonce counter before it and the tag behind it.
pub const SEAL_OVERHEAD: usize = 8 + 16;
/// Most chunks in a pack: an ordinal fits 16 bits.
pub const CHUNKS_MAX: usize = 1 << 16;
/// Largest pack. Offsets fit 32 bits with room to spare.
pub const PACK_BYTES_MAX: usize = 1 << 30;
/// Largest plaintext of a chunk.
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;

const FOOTER_VERSION: u8 = 1;

/// The fixed first bytes of a pack; readable without a key, authenticated by what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHeader {
    /// Key domain of the chunks: 1 data, 2 meta.
    pub domain: u8,
    /// AEAD of the chunks.
    pub cipher: u8,
    /// Key epoch of the session.
    pub epoch: u32,
    /// Repository.
    pub repo: RepoId,
    /// Session that wrote the pack.
    pub session: SessionId,
    /// Tag of the meta scope whose key seals the chunks; zero in the data domain.
    pub scope: [u8; 8],
}

impl PackHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut w = Writer::new();
        w.bytes(MAGIC).u16(VERSION).u8(self.domain).u8(self.cipher).u32(self.epoch);
        self.repo.write(&mut w);
        self.session.write(&mut w);
        w.bytes(&self.scope).u64(0);
        let mut out = [0; HEADER_LEN];
        out.copy_from_slice(w.as_bytes());
        out
    }

    /// Reads a header from a pack's first bytes.
    ///
    /// # Errors
    /// [`FormatError::BadMagic`], [`FormatError::BadVersion`], or what the codec says.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        if &r.array::<8>("pack magic")? != MAGIC {
            return Err(FormatError::BadMagic { what: "pack" });
        }
        let version = r.u16("pack version")?;
        if version != VERSION {
            return Err(FormatError::BadVersion { what: "pack", found: u64::from(version), supported: "1" });
        }
        let header = Self {
            domain: r.u8("pack domain")?,
            cipher: r.u8("pack cipher")?,
            epoch: r.u32("pack epoch")?,
            repo: RepoId::read(&mut r)?,
            session: SessionId::read(&mut r)?,
            scope: r.array("pack scope")?,
        };
        if !(1..=2).contains(&header.domain) {
            return Err(FormatError::OutOfRange { offset: 10, what: "pack domain", found: header.domain.into() });
        }
        let offset = r.offset();
        match r.u64("pack header reserve")? {
            0 => Ok(header),
            found => Err(FormatError::OutOfRange { offset, what: "pack header reserve", found }),
        }
    }
}

/// The fixed last bytes of a pack: where the footer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackTrailer {
    /// First byte of the sealed page hashes; equal to `footer_offset` if there are none.
    pub hashes_offset: u32,
    /// First byte of the sealed footer, which ends where the trailer begins.
    pub footer_offset: u32,
    /// Bytes of the sealed footer.
    pub footer_len: u32,
    /// Bytes of the footer's plaintext.
    pub footer_plain_len: u32,
}

impl PackTrailer {
    /// The trailer's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut w = Writer::new();
        w.u32(self.hashes_offset).u32(self.footer_offset).u32(self.footer_len).u32(self.footer_plain_len).u32(0);
        let crc = crc32c::crc32c(w.as_bytes());
        w.u32(crc).bytes(MAGIC_END);
        let mut out = [0; TRAILER_LEN];
        out.copy_from_slice(w.as_bytes());
        out
    }

    /// Reads a trailer from a pack's last bytes. `pack_size` is the size of the whole pack, against which offsets are checked.
    ///
    /// # Errors
    /// [`FormatError::BadMagic`], [`FormatError::BadChecksum`], [`FormatError::OutOfRange`], or what the codec says.
    pub fn decode(bytes: &[u8], pack_size: u64) -> Result<Self, FormatError> {
        let short = || FormatError::Truncated {
            offset: 0,
            need: TRAILER_LEN.saturating_sub(bytes.len()),
            what: "pack trailer",
        };
        let bytes = bytes.last_chunk::<TRAILER_LEN>().ok_or_else(short)?;
        let mut r = Reader::new(bytes);
        let trailer = Self {
            hashes_offset: r.u32("pack trailer")?,
            footer_offset: r.u32("pack trailer")?,
            footer_len: r.u32("pack trailer")?,
            footer_plain_len: r.u32("pack trailer")?,
        };
        r.u32("pack trailer reserve")?;
        let computed = crc32c::crc32c(&bytes[..20]);
        let stored = r.u32("pack trailer checksum")?;
        if &r.array::<8>("pack end magic")? != MAGIC_END {
            return Err(FormatError::BadMagic { what: "pack (its end is missing)" });
        }
        if stored != computed {
            return Err(FormatError::BadChecksum { what: "pack trailer", stored, computed });
        }
        let end = u64::from(trailer.footer_offset) + u64::from(trailer.footer_len) + TRAILER_LEN as u64;
        let ordered = trailer.hashes_offset >= HEADER_LEN as u32
            && trailer.hashes_offset <= trailer.footer_offset
            && trailer.footer_len as usize == trailer.footer_plain_len as usize + SEAL_OVERHEAD;
        if end != pack_size || !ordered {
            return Err(FormatError::OutOfRange { offset: 4, what: "pack footer offset", found: end });
        }
        Ok(trailer)
    }
}

/// Pages of a base chunk that a delta or patch was encoded against, in the order of its own pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseRun {
    /// Index into [`Footer::bases`].
    pub base: u32,
    /// First page in the base chunk.
    pub first_page: u32,
    /// Number of pages.
    pub pages: u32,
}

/// What must be at hand to decode a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Dependency {
    /// Nothing.
    #[default]
    None,
    /// A dictionary: index into [`Footer::bases`].
    Dictionary(u32),
    /// Old versions of its pages, none of them a delta itself.
    Bases(Vec<BaseRun>),
}

/// One chunk of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FooterEntry {
    /// Name of the chunk.
    pub id: ChunkId,
    /// First byte of the sealed chunk in the pack. Not stored: chunks lie back to back behind the header.
    pub offset: u32,
    /// Bytes of the sealed chunk, with [`SEAL_OVERHEAD`].
    pub stored_len: u32,
    /// Bytes of the plaintext.
    pub plain_len: u32,
    /// What the plaintext is.
    pub kind: ChunkKind,
    /// How it is encoded.
    pub encoding: Encoding,
    /// What decoding needs.
    pub dependency: Dependency,
    /// Number of page hashes in the pack's hash section, which holds them in the order of the entries.
    pub page_hashes: u32,
}

/// What a pack holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Footer {
    /// Distinct chunks of this or other packs that entries depend on.
    pub bases: Vec<ChunkId>,
    /// The chunks, in the order they lie.
    pub entries: Vec<FooterEntry>,
}

impl Footer {
    /// The footer's plaintext.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(FOOTER_VERSION).varint(self.bases.len() as u64);
        for base in &self.bases {
            base.write(&mut w);
        }
        w.varint(self.entries.len() as u64);
        for e in &self.entries {
            e.id.write(&mut w);
            w.varint(e.stored_len.into()).varint(e.plain_len.into()).u8(e.kind.as_u8()).u8(e.encoding.as_u8());
            match &e.dependency {
                Dependency::None => {}
                Dependency::Dictionary(d) => {
                    w.varint((*d).into());
                }
                Dependency::Bases(runs) => {
                    w.varint(runs.len() as u64);
                    for run in runs {
                        w.varint(run.base.into()).varint(run.first_page.into()).varint(run.pages.into());
                    }
                }
            }
            w.varint(e.page_hashes.into());
        }
        w.into_bytes()
    }

    /// Reads a footer's plaintext.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("pack footer version")?;
        if version != FOOTER_VERSION {
            return Err(FormatError::BadVersion { what: "pack footer", found: version.into(), supported: "1" });
        }
        let count = r.count(ChunkId::LEN, "pack footer bases")?;
        let bases = (0..count).map(|_| ChunkId::read(&mut r)).collect::<Result<Vec<_>, _>>()?;
        let last_base = (bases.len() as u64).checked_sub(1);
        let at = r.offset();
        let count = r.count(ChunkId::LEN + 5, "pack footer entries")?;
        if count > CHUNKS_MAX {
            return Err(FormatError::OutOfRange { offset: at, what: "pack footer entries", found: count as u64 });
        }
        let mut entries = Vec::with_capacity(count);
        let mut offset = HEADER_LEN as u64;
        for _ in 0..count {
            let entry = read_entry(&mut r, offset as u32, last_base)?;
            offset += u64::from(entry.stored_len);
            if offset > PACK_BYTES_MAX as u64 {
                return Err(FormatError::OutOfRange { offset: r.offset(), what: "pack footer lengths", found: offset });
            }
            entries.push(entry);
        }
        r.finish("pack footer")?;
        Ok(Self { bases, entries })
    }
}

fn read_entry(r: &mut Reader<'_>, offset: u32, last_base: Option<u64>) -> Result<FooterEntry, FormatError> {
    let at = r.offset();
    let base = |r: &mut Reader<'_>| -> Result<u32, FormatError> {
        let max = last_base.ok_or(FormatError::OutOfRange { offset: at, what: "pack footer base", found: 0 })?;
        Ok(r.varint_max(max, "pack footer base")? as u32)
    };
    let id = ChunkId::read(r)?;
    let stored_len = r.varint_max(u64::from(CHUNK_BYTES_MAX) * 2, "stored length")? as u32;
    if (stored_len as usize) < SEAL_OVERHEAD {
        return Err(FormatError::OutOfRange { offset: at, what: "stored length", found: stored_len.into() });
    }
    let plain_len = r.varint_max(CHUNK_BYTES_MAX.into(), "plain length")? as u32;
    let kind = ChunkKind::from_u8(r.u8("chunk kind")?)?;
    let encoding = Encoding::from_u8(r.u8("chunk encoding")?)?;
    let dependency = match encoding {
        Encoding::Raw | Encoding::Zstd => Dependency::None,
        Encoding::ZstdDictionary => Dependency::Dictionary(base(r)?),
        Encoding::ZstdPrefix | Encoding::Patch => {
            let runs = r.count(3, "base runs")?;
            let run = |r: &mut Reader<'_>| {
                Ok(BaseRun {
                    base: base(r)?,
                    first_page: r.varint_max(CHUNK_BYTES_MAX.into(), "base page")? as u32,
                    pages: r.varint_max(CHUNK_BYTES_MAX.into(), "base pages")? as u32,
                })
            };
            Dependency::Bases((0..runs).map(|_| run(r)).collect::<Result<_, FormatError>>()?)
        }
    };
    let page_hashes = r.varint_max(CHUNK_BYTES_MAX.into(), "page hashes")? as u32;
    Ok(FooterEntry { id, offset, stored_len, plain_len, kind, encoding, dependency, page_hashes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailer_is_found_at_the_end_of_whatever_was_read() {
        let trailer = PackTrailer { hashes_offset: 100, footer_offset: 100, footer_len: 26, footer_plain_len: 2 };
        let mut tail = vec![7; 126];
        tail.extend_from_slice(&trailer.encode());
        for start in [0, 100, 126] {
            assert_eq!(PackTrailer::decode(&tail[start..], 158), Ok(trailer));
        }
        let short = FormatError::Truncated { offset: 0, need: 2, what: "pack trailer" };
        assert_eq!(PackTrailer::decode(&tail[128..], 158), Err(short));
        assert!(PackTrailer::decode(&tail, 159).is_err());
    }
}
