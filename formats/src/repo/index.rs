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

/// Entries a writer puts into one segment: 52 MiB of payload, which is sealed in memory. A reader accepts more.
pub const MAX_SEGMENT_ENTRIES: usize = 1 << 20;

/// Bytes of one entry.
pub const ENTRY_LEN: usize = 52;

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
const AT_ORDINAL: usize = AT_ENCODING + 1;
const _: () = assert!(AT_ORDINAL + 2 == ENTRY_LEN);

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
    /// Which chunk of its pack it is, from 0: what reference bitmaps count by.
    pub ordinal: u16,
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
        out[AT_ORDINAL..].copy_from_slice(&self.ordinal.to_le_bytes());
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
            ordinal: r.u16("ordinal in pack")?,
        })
    }
}

/// Finds an id among `len` sorted ids, of which `at` gives the n-th one.
///
/// Ids are keyed hashes and therefore evenly spread: about six interpolated probes find one among a million.
/// Bisection bounds the cost when they are not.
///
/// # Errors
/// Only those of `at`.
pub fn search<'a, E>(
    len: usize,
    id: &ChunkId,
    mut at: impl FnMut(usize) -> Result<&'a [u8; ENTRY_LEN], E>,
) -> Result<Option<usize>, E> {
    /// Interpolated probes before bisection takes over.
    const INTERPOLATED: u32 = 16;
    let prefix = |bytes: &[u8]| bytes.iter().take(8).fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    let goal = prefix(&id.0);
    // The answer, if there is one, is in low..high; its prefix is in first..=last.
    let (mut low, mut high) = (0usize, len);
    let (mut first, mut last) = (0u64, u64::MAX);
    let mut probes = 0;
    while low < high {
        let width = (high - low) as u128;
        let middle = if probes < INTERPOLATED && first <= goal && goal <= last {
            let share = u128::from(goal - first) * width / (u128::from(last - first) + 1);
            low + share as usize
        } else {
            low + (high - low) / 2
        };
        probes += 1;
        let entry = at(middle)?;
        match entry[..AT_PACK].cmp(&id.0[..]) {
            std::cmp::Ordering::Equal => return Ok(Some(middle)),
            std::cmp::Ordering::Less => (low, first) = (middle + 1, prefix(entry)),
            std::cmp::Ordering::Greater => (high, last) = (middle, prefix(entry)),
        }
    }
    Ok(None)
}

/// An index payload that has been checked and is read where it lies.
#[derive(Debug, Clone)]
pub struct IndexView<'a> {
    supersedes: Vec<&'a str>,
    packs: Vec<PackFacts>,
    entries: &'a [[u8; ENTRY_LEN]],
}

impl<'a> IndexView<'a> {
    /// Checks a payload: names and ids strictly ascending, ordinals in the table, chunks inside their packs.
    ///
    /// # Errors
    /// [`FormatError`] for anything [`IndexBuilder`] would not have written.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        match r.u8("index version")? {
            VERSION => {}
            found => return Err(FormatError::BadVersion { what: "index", found: u64::from(found), supported: "1" }),
        }
        let mut supersedes: Vec<&str> = Vec::new();
        for _ in 0..r.count(1, "superseded count")? {
            let offset = r.offset();
            let name = r.text("superseded name")?;
            if name.is_empty() || supersedes.last().is_some_and(|before| *before >= name) {
                return Err(FormatError::OutOfRange { offset, what: "superseded name", found: name.len() as u64 });
            }
            supersedes.push(name);
        }
        let count = r.count(PACK_LEN, "pack count")?;
        let mut packs = Vec::with_capacity(count);
        for _ in 0..count {
            packs.push(read_pack(&mut r)?);
        }
        let offset = r.offset();
        let found = r.u64("entry count")?;
        let need = usize::try_from(found).ok().and_then(|n| n.checked_mul(ENTRY_LEN));
        let need = need.ok_or(FormatError::OutOfRange { offset, what: "entry count", found })?;
        let start = r.offset();
        let (entries, _) = r.bytes(need, "index entries")?.as_chunks::<ENTRY_LEN>();
        r.finish("index")?;
        let mut before: Option<&[u8]> = None;
        for (n, bytes) in entries.iter().enumerate() {
            let base = start + n * ENTRY_LEN;
            check_entry(bytes, &packs).map_err(|e| shifted(e, base))?;
            let id = &bytes[..AT_PACK];
            if before.is_some_and(|before| before >= id) {
                return Err(FormatError::OutOfRange { offset: base, what: "order of chunk ids", found: n as u64 });
            }
            before = Some(id);
        }
        Ok(Self { supersedes, packs, entries })
    }

    /// Names of the index objects this one replaces, ascending.
    #[must_use]
    pub fn supersedes(&self) -> &[&'a str] {
        &self.supersedes
    }

    /// The packs table.
    #[must_use]
    pub fn packs(&self) -> &[PackFacts] {
        &self.packs
    }

    /// The entries as they lie in the payload.
    #[must_use]
    pub fn raw_entries(&self) -> &'a [[u8; ENTRY_LEN]] {
        self.entries
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if it has no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where the chunk is, without copying anything but the answer.
    #[must_use]
    pub fn lookup(&self, id: &ChunkId) -> Option<IndexEntry> {
        let found = search(self.entries.len(), id, |n| self.entries.get(n).ok_or(()));
        let bytes = self.entries.get(found.ok().flatten()?)?;
        IndexEntry::from_bytes(bytes).ok()
    }

    /// The pack of one of this segment's entries.
    #[must_use]
    pub fn pack_of(&self, entry: &IndexEntry) -> Option<&PackFacts> {
        self.packs.get(entry.pack as usize)
    }

    /// All entries, ascending by chunk id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = IndexEntry> + use<'a> {
        // `parse` has decoded each of them, so none is skipped.
        self.entries.iter().map(|bytes| match IndexEntry::from_bytes(bytes) {
            Ok(entry) => entry,
            Err(e) => unreachable!("an entry that was accepted is refused: {e}"),
        })
    }
}

fn read_pack(r: &mut Reader<'_>) -> Result<PackFacts, FormatError> {
    let pack = PackId::read(r)?;
    let session = SessionId::read(r)?;
    let epoch = r.u32("epoch")?;
    let offset = r.offset();
    let domain = r.u8("key domain")?;
    if !(DOMAIN_DATA..=DOMAIN_META).contains(&domain) {
        return Err(FormatError::OutOfRange { offset, what: "key domain", found: u64::from(domain) });
    }
    Ok(PackFacts { pack, session, epoch, domain, scope: r.array("scope tag")?, size: r.u64("pack size")? })
}

fn write_pack(w: &mut Writer, facts: &PackFacts) {
    facts.pack.write(w);
    facts.session.write(w);
    w.u32(facts.epoch).u8(facts.domain).bytes(&facts.scope).u64(facts.size);
}

/// What must hold of an entry beyond its own bytes: its pack is in the table, and it lies inside the pack.
fn check_entry(bytes: &[u8; ENTRY_LEN], packs: &[PackFacts]) -> Result<(), FormatError> {
    let entry = IndexEntry::from_bytes(bytes)?;
    let Some(facts) = packs.get(entry.pack as usize) else {
        return Err(FormatError::OutOfRange { offset: AT_PACK, what: "pack ordinal", found: u64::from(entry.pack) });
    };
    check_place(&entry, facts)
}

fn check_place(entry: &IndexEntry, facts: &PackFacts) -> Result<(), FormatError> {
    let end = u64::from(entry.offset) + u64::from(entry.stored_len);
    if end > facts.size {
        return Err(FormatError::OutOfRange { offset: AT_OFFSET, what: "end of chunk in pack", found: end });
    }
    Ok(())
}

fn shifted(error: FormatError, base: usize) -> FormatError {
    match error {
        FormatError::OutOfRange { offset, what, found } => {
            FormatError::OutOfRange { offset: base + offset, what, found }
        }
        other => other,
    }
}

/// Collects the places of chunks and encodes them. 52 bytes a chunk and about 200 a pack.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    supersedes: Vec<String>,
    packs: Vec<PackFacts>,
    ordinals: HashMap<PackId, u32>,
    entries: Vec<[u8; ENTRY_LEN]>,
}

impl IndexBuilder {
    /// A builder that supersedes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that the segment replaces another index object.
    pub fn supersede(&mut self, object: impl Into<String>) {
        self.supersedes.push(object.into());
    }

    /// Adds a pack, once per name; returns its ordinal for [`Self::add`].
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] if the key domain has no meaning, or if the pack is known with other facts.
    pub fn pack(&mut self, facts: &PackFacts) -> Result<u32, FormatError> {
        if let Some(ordinal) = self.ordinals.get(&facts.pack) {
            return if self.packs.get(*ordinal as usize) == Some(facts) {
                Ok(*ordinal)
            } else {
                Err(FormatError::OutOfRange { offset: 0, what: "facts of a known pack", found: facts.size })
            };
        }
        if !(DOMAIN_DATA..=DOMAIN_META).contains(&facts.domain) {
            return Err(FormatError::OutOfRange { offset: 0, what: "key domain", found: u64::from(facts.domain) });
        }
        let found = self.packs.len() as u64;
        let ordinal =
            u32::try_from(found).map_err(|_| FormatError::OutOfRange { offset: 0, what: "pack count", found })?;
        self.packs.push(facts.clone());
        self.ordinals.insert(facts.pack, ordinal);
        Ok(ordinal)
    }

    /// Adds a chunk. Of several with one id, [`Self::encode`] keeps the one added first.
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] if the pack was not added or the chunk does not lie inside it.
    pub fn add(&mut self, entry: &IndexEntry) -> Result<(), FormatError> {
        let found = u64::from(entry.pack);
        let facts = self.packs.get(entry.pack as usize);
        let facts = facts.ok_or(FormatError::OutOfRange { offset: AT_PACK, what: "pack ordinal", found })?;
        check_place(entry, facts)?;
        self.entries.push(entry.to_bytes());
        Ok(())
    }

    /// Chunks added so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True while no chunk was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// True once it holds [`MAX_SEGMENT_ENTRIES`]: encode it and begin another.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= MAX_SEGMENT_ENTRIES
    }

    /// The payload: equal content in any order gives equal bytes if packs were added in equal order.
    #[must_use]
    pub fn encode(mut self) -> Vec<u8> {
        // One place is kept of each chunk. A delta cannot be a base, so a chunk that is there in full too is told to be; of
        // equals the first stays, as the sort is stable.
        let is_delta = |e: &[u8; ENTRY_LEN]| Encoding::from_u8(e[AT_ENCODING]).is_ok_and(Encoding::is_delta);
        self.entries.sort_by(|a, b| a[..AT_PACK].cmp(&b[..AT_PACK]).then_with(|| is_delta(a).cmp(&is_delta(b))));
        self.entries.dedup_by(|a, b| a[..AT_PACK] == b[..AT_PACK]);
        self.supersedes.retain(|name| !name.is_empty());
        self.supersedes.sort();
        self.supersedes.dedup();
        let mut w = Writer::new();
        w.u8(VERSION).varint(self.supersedes.len() as u64);
        for name in &self.supersedes {
            w.text(name);
        }
        w.varint(self.packs.len() as u64);
        for facts in &self.packs {
            write_pack(&mut w, facts);
        }
        w.u64(self.entries.len() as u64).bytes(self.entries.as_flattened());
        w.into_bytes()
    }
}

#[cfg(test)]
mod tests;
