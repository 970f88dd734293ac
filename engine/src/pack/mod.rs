//! Writing packs and reading their footers. Layout: FORMAT.md, "Pack".
//!
//! A pack is built in memory and named when it is complete, so a name never stands for part of a pack. Chunks keep the
//! order in which they are pushed. What they depend on stands in the footer, the hashes of their pages in a section before
//! it: `contents` reads both, and no chunk.

mod contents;

pub use contents::PackContents;

use crate::crypto::{ChunkDomain, Scope, SessionSealer};
use crate::repository::Repository;
use crate::store::Range;
use crate::{Error, Kind, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use pgkeep_formats::repo::envelope::{ChunkHead, Cipher};
use pgkeep_formats::repo::index::{DOMAIN_DATA, DOMAIN_META, IndexBuilder, IndexEntry, PackFacts};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::pack::{
    BaseRun, CHUNKS_MAX, Dependency, Footer, FooterEntry, HEADER_LEN, PackHeader, PackTrailer, TRAILER_LEN,
};
use std::collections::HashMap;

/// Kind byte under which footers are sealed; no chunk has it.
const FOOTER_KIND: u8 = 0xff;
/// Kind byte under which page hashes are sealed; no chunk has it.
const HASHES_KIND: u8 = 0xfe;
/// What a first read of a pack's end asks for: the footers of nearly all packs.
const TAIL_BYTES: usize = 64 << 10;

/// A chunk ready to be packed.
#[derive(Debug, Clone, Copy)]
pub struct PackedChunk {
    /// Its name.
    pub id: ChunkId,
    /// What it is.
    pub kind: ChunkKind,
    /// How it is encoded.
    pub encoding: Encoding,
    /// Bytes of its plaintext.
    pub plain_len: u32,
}

/// Old pages a chunk was encoded against: a run of pages in one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BasePages {
    /// The chunk, which is itself encoded without a base.
    pub chunk: ChunkId,
    /// First page in it.
    pub first: u32,
    /// Number of pages.
    pub pages: u32,
}

/// Which key seals a pack's chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackDomain {
    /// The session's data key.
    Data,
    /// The session's key for the metadata of this stanza.
    Meta(String),
}

impl PackDomain {
    /// For sealing chunks.
    #[must_use]
    pub fn of_chunks(&self) -> ChunkDomain<'_> {
        match self {
            Self::Data => ChunkDomain::Data,
            Self::Meta(stanza) => ChunkDomain::Meta(Scope::Stanza(stanza)),
        }
    }
}

/// Tag of a meta scope in pack headers: tells scopes apart without naming them.
#[must_use]
pub fn scope_tag(domain: &PackDomain) -> [u8; 8] {
    let mut tag = [0; 8];
    if let PackDomain::Meta(stanza) = domain {
        let hash = blake3::derive_key("pgkeep v1 scope tag", Scope::Stanza(stanza).text().as_bytes());
        tag.copy_from_slice(&hash[..8]);
    }
    tag
}

/// A pack whose [`PackContents`] take so much is finished, however few bytes its chunks have.
///
/// Deltas are a hundredth of their pages, so a pack of nothing else would have megabytes of hashes and bases. A backup that
/// compares pages needs, at any place of the cluster, the contents of one pack of each day whose changes are still in use:
/// with packs like this a repository's cache of them holds those of three months.
const CONTENTS_BYTES_MAX: usize = 1 << 20;

/// A complete pack.
#[derive(Debug)]
pub struct FinishedPack {
    /// What the index must know of it.
    pub facts: PackFacts,
    /// Its chunks.
    pub entries: Vec<FooterEntry>,
    /// All its bytes.
    pub bytes: Vec<u8>,
}

/// A pack being built.
pub struct PackWriter {
    header: PackHeader,
    hasher: blake3::Hasher,
    bytes: Vec<u8>,
    footer: Footer,
    /// Places in the footer's list of bases.
    bases: HashMap<ChunkId, u32>,
    hashes: Vec<u8>,
    target: usize,
    /// Bytes of memory that its contents will take, about.
    contents: usize,
}

impl PackWriter {
    /// Starts a pack of about `target` bytes.
    #[must_use]
    pub fn new(sealer: &SessionSealer, domain: &PackDomain, epoch: u32, target: usize) -> Self {
        let header = PackHeader {
            domain: if *domain == PackDomain::Data { DOMAIN_DATA } else { DOMAIN_META },
            cipher: Cipher::ChaCha20Poly1305 as u8,
            epoch,
            repo: sealer.keyring().repo(),
            session: sealer.session(),
            scope: scope_tag(domain),
        };
        let mut pack = Self {
            header,
            hasher: blake3::Hasher::new(),
            bytes: Vec::new(),
            footer: Footer::default(),
            bases: HashMap::new(),
            hashes: Vec::new(),
            target,
            contents: 0,
        };
        pack.append(&header.encode());
        pack
    }

    fn append(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a sealed chunk. `bases` are the old pages it needs, in their order; `hashes` those of its own pages, or none.
    pub fn push(&mut self, chunk: PackedChunk, sealed: &[u8], bases: &[BasePages], hashes: &[u64]) {
        if self.bytes.capacity() == HEADER_LEN || self.footer.entries.is_empty() {
            // Most packs fill up; a small one returns the room when it is finished.
            self.bytes.reserve(self.target + self.target / 16);
        }
        let known = self.footer.bases.len();
        let run = |b: &BasePages| BaseRun { base: self.base(b.chunk), first_page: b.first, pages: b.pages };
        let dependency = match bases {
            [] => Dependency::None,
            bases => Dependency::Bases(bases.iter().map(run).collect()),
        };
        let new = self.footer.bases.len() - known;
        self.contents += PackContents::weight_of(bases.len(), hashes.len()) + new * ChunkId::LEN;
        self.footer.entries.push(FooterEntry {
            id: chunk.id,
            offset: self.bytes.len() as u32,
            stored_len: sealed.len() as u32,
            plain_len: chunk.plain_len,
            kind: chunk.kind,
            encoding: chunk.encoding,
            dependency,
            page_hashes: hashes.len() as u32,
        });
        self.hashes.extend(hashes.iter().flat_map(|h| h.to_le_bytes()));
        self.append(sealed);
    }

    fn base(&mut self, id: ChunkId) -> u32 {
        let bases = &mut self.footer.bases;
        *self.bases.entry(id).or_insert_with(|| {
            bases.push(id);
            bases.len() as u32 - 1
        })
    }

    /// True if it should be finished before another chunk is pushed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= self.target
            || self.footer.entries.len() >= CHUNKS_MAX
            || self.contents >= CONTENTS_BYTES_MAX
    }

    /// True while it holds no chunk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.footer.entries.is_empty()
    }

    /// Seals the footer and names the pack.
    ///
    /// # Errors
    /// What the cipher said.
    pub fn finish(mut self, sealer: &SessionSealer) -> Result<FinishedPack> {
        let hashes_offset = self.bytes.len();
        if !self.hashes.is_empty() {
            let plain = std::mem::take(&mut self.hashes);
            let mut sealed = Vec::new();
            let head = section_head(&self.header, HASHES_KIND, plain.len() as u32);
            sealer.seal_chunk(&ChunkDomain::Meta(Scope::Index), &head, &plain, &mut sealed)?;
            self.append(&sealed);
        }
        let plain = self.footer.encode();
        let footer_offset = self.bytes.len();
        let mut sealed = Vec::new();
        let head = section_head(&self.header, FOOTER_KIND, plain.len() as u32);
        sealer.seal_chunk(&ChunkDomain::Meta(Scope::Index), &head, &plain, &mut sealed)?;
        let trailer = PackTrailer {
            hashes_offset: hashes_offset as u32,
            footer_offset: footer_offset as u32,
            footer_len: sealed.len() as u32,
            footer_plain_len: plain.len() as u32,
        };
        self.append(&sealed);
        self.append(&trailer.encode());
        let pack = PackId(*self.hasher.finalize().as_bytes());
        let PackHeader { session, epoch, domain, scope, .. } = self.header;
        let facts = PackFacts { pack, session, epoch, domain, scope, size: self.bytes.len() as u64 };
        Ok(FinishedPack { facts, entries: self.footer.entries, bytes: self.bytes })
    }
}

/// The context of footer and hashes: bound to the pack's header, so that neither opens in another session's pack.
fn section_head(header: &PackHeader, kind: u8, plain_len: u32) -> ChunkHead {
    let id = ChunkId(*blake3::hash(&header.encode()).as_bytes());
    ChunkHead { kind, encoding: Encoding::Raw.as_u8(), id, plain_len }
}

/// Reads what a pack holds from its header and footer: two or three ranged reads.
///
/// # Errors
/// `Format` or `Checksum` if the pack is damaged; what the store said.
pub fn read_footer(repository: &Repository, pack: PackId, size: u64) -> Result<(PackFacts, Footer)> {
    let (header, mut tail, trailer) = read_tail(repository, pack, size)?;
    open_footer(repository, pack, size, &header, &mut tail, &trailer)
}

/// Header, everything from the page hashes on, and the trailer.
fn read_tail(repository: &Repository, pack: PackId, size: u64) -> Result<(Vec<u8>, Vec<u8>, PackTrailer)> {
    let name = layout::pack(pack);
    let store = repository.store();
    let header = store.get(&name, Range::Span { offset: 0, len: HEADER_LEN })?;
    let mut tail = store.get(&name, Range::Tail { len: TAIL_BYTES })?;
    let trailer = PackTrailer::decode(&tail, size).map_err(Error::damaged(&name))?;
    let want = (size - u64::from(trailer.hashes_offset)) as usize;
    if want > tail.len() {
        tail = store.get(&name, Range::Span { offset: trailer.hashes_offset.into(), len: want })?;
    } else {
        tail.drain(..tail.len() - want);
    }
    Ok((header, tail, trailer))
}

/// Reads what a pack holds from all its bytes. Of these only the sealed footer is changed: it is opened in place.
///
/// # Errors
/// `Format` or `Checksum` if header, footer or trailer are damaged.
pub fn parse_footer(repository: &Repository, pack: PackId, bytes: &mut [u8]) -> Result<(PackFacts, Footer)> {
    let (name, size) = (layout::pack(pack), bytes.len() as u64);
    let trailer = PackTrailer::decode(bytes, size).map_err(Error::damaged(&name))?;
    let split = (trailer.footer_offset as usize).min(bytes.len());
    let (header, tail) = bytes.split_at_mut(split);
    let (facts, footer) = open_footer(repository, pack, size, header, tail, &trailer)?;
    let end = footer.entries.last().map_or(HEADER_LEN as u64, |e| u64::from(e.offset) + u64::from(e.stored_len));
    if end != u64::from(trailer.hashes_offset) {
        let text = format!("the chunks of '{name}' end at byte {end}, and not at {}", trailer.hashes_offset);
        return Err(Error::refused(Kind::Format, text));
    }
    Ok((facts, footer))
}

/// `tail` ends with the sealed footer and the trailer.
fn open_footer(
    repository: &Repository,
    pack: PackId,
    size: u64,
    header: &[u8],
    tail: &mut [u8],
    trailer: &PackTrailer,
) -> Result<(PackFacts, Footer)> {
    let name = layout::pack(pack);
    let header = PackHeader::decode(header).map_err(Error::damaged(&name))?;
    if header.repo != repository.config().repo {
        return Err(Error::refused(Kind::Format, format!("'{name}' belongs to repository {}", header.repo)));
    }
    let sealed_len = trailer.footer_len as usize;
    let start = tail.len().saturating_sub(sealed_len + TRAILER_LEN);
    let sealed = tail.get_mut(start..start + sealed_len).unwrap_or_default();
    let opener = repository.keyring().meta_opener(&header.session, &Scope::Index)?;
    let plain = opener
        .open_chunk(&section_head(&header, FOOTER_KIND, trailer.footer_plain_len), sealed)
        .map_err(|e| Error::from(e).during(format!("cannot open the footer of '{name}'")))?;
    let footer = Footer::decode(plain).map_err(Error::damaged(&name))?;
    let end = footer.entries.last().map_or(HEADER_LEN as u64, |e| u64::from(e.offset) + u64::from(e.stored_len));
    if end != u64::from(trailer.hashes_offset) {
        let error = FormatError::OutOfRange { offset: 0, what: "end of the chunks", found: end };
        return Err(Error::damaged(&name)(error));
    }
    let PackHeader { session, epoch, domain, scope, .. } = header;
    Ok((PackFacts { pack, session, epoch, domain, scope, size }, footer))
}

/// Adds what a footer tells to an index segment.
///
/// # Errors
/// [`FormatError`] if a place does not fit.
pub fn add_footer(builder: &mut IndexBuilder, facts: &PackFacts, footer: &Footer) -> Result<(), FormatError> {
    let pack = builder.pack(facts)?;
    for (ordinal, entry) in footer.entries.iter().enumerate() {
        builder.add(&IndexEntry { pack, ..index_entry(ordinal, entry) })?;
    }
    Ok(())
}

/// The entry of an index segment for a chunk, but for the number of its pack there.
#[must_use]
pub fn index_entry(ordinal: usize, entry: &FooterEntry) -> IndexEntry {
    IndexEntry {
        id: entry.id,
        pack: 0,
        offset: entry.offset,
        stored_len: entry.stored_len,
        plain_len: entry.plain_len,
        kind: entry.kind,
        encoding: entry.encoding,
        ordinal: ordinal as u16,
    }
}
