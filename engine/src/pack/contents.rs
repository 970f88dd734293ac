//! What a pack says of its chunks beside their bytes: what they depend on, and hashes of their pages.
//!
//! A backup compares pages with these hashes instead of reading old chunks; readers find out here which old pages a chunk
//! needs. Neither decodes a chunk.

use super::{BasePages, HASHES_KIND, open_footer, read_tail, section_head};
use crate::crypto::Scope;
use crate::repository::Repository;
use crate::{Error, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::pack::{
    BaseRun, Dependency, Footer, FooterEntry, HEADER_LEN, PackHeader, PackTrailer, SEAL_OVERHEAD,
};

/// Footer and page hashes of one pack.
#[derive(Debug)]
pub struct PackContents {
    footer: Footer,
    /// Place of each entry's first hash.
    starts: Vec<u32>,
    hashes: Vec<u64>,
}

impl PackContents {
    /// Reads them with two or three ranged reads.
    ///
    /// # Errors
    /// `Format` or `Checksum` if the pack is damaged; what the store said.
    pub fn read(repository: &Repository, pack: PackId, size: u64) -> Result<Self> {
        match Self::read_once(repository, pack, size) {
            // Where its end begins is told by what may be wrong: the whole pack is doubted.
            Err(e) if repository.may_read_again(&e, &layout::pack(pack), 0, size as usize) => {
                Self::read_once(repository, pack, size)
            }
            read => read,
        }
    }

    fn read_once(repository: &Repository, pack: PackId, size: u64) -> Result<Self> {
        let name = layout::pack(pack);
        let (header, mut tail, trailer) = read_tail(repository, pack, size)?;
        let sealed_len = (trailer.footer_offset - trailer.hashes_offset) as usize;
        let sealed = tail.get_mut(..sealed_len).unwrap_or_default();
        let hashes = open_hashes(repository, &name, &header, sealed)?;
        let (_, footer) =
            open_footer(repository, pack, size, header.get(..HEADER_LEN).unwrap_or_default(), &mut tail, &trailer)?;
        Self::new(&name, footer, hashes)
    }

    /// From all bytes of a pack whose footer was read; the sealed hashes are opened in place.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_bytes(repository: &Repository, pack: PackId, footer: Footer, bytes: &mut [u8]) -> Result<Self> {
        let name = layout::pack(pack);
        let trailer = PackTrailer::decode(bytes, bytes.len() as u64).map_err(Error::damaged(&name))?;
        let (header, rest) = bytes.split_at_mut(HEADER_LEN.min(bytes.len()));
        let place = |offset: u32| (offset as usize).saturating_sub(HEADER_LEN);
        let sealed = rest.get_mut(place(trailer.hashes_offset)..place(trailer.footer_offset)).unwrap_or_default();
        let hashes = open_hashes(repository, &name, header, sealed)?;
        Self::new(&name, footer, hashes)
    }

    fn new(name: &str, footer: Footer, hashes: Vec<u64>) -> Result<Self> {
        let mut starts = Vec::with_capacity(footer.entries.len());
        let mut total = 0u32;
        for entry in &footer.entries {
            starts.push(total);
            total = total.saturating_add(entry.page_hashes);
        }
        if total as usize != hashes.len() {
            let error = FormatError::OutOfRange { offset: 0, what: "number of page hashes", found: total.into() };
            return Err(Error::damaged(name)(error));
        }
        Ok(Self { footer, starts, hashes })
    }

    /// Hashes of a chunk's pages; empty if it has none.
    #[must_use]
    pub fn hashes(&self, ordinal: u16) -> &[u64] {
        let at = usize::from(ordinal);
        let (Some(start), Some(entry)) = (self.starts.get(at), self.footer.entries.get(at)) else { return &[] };
        let start = *start as usize;
        self.hashes.get(start..start + entry.page_hashes as usize).unwrap_or_default()
    }

    /// The name of a chunk.
    #[must_use]
    pub fn id(&self, ordinal: u16) -> Option<ChunkId> {
        self.footer.entries.get(usize::from(ordinal)).map(|e| e.id)
    }

    /// The old pages a chunk needs, in order; empty if none.
    #[must_use]
    pub fn bases(&self, ordinal: u16) -> Vec<BasePages> {
        let Some(entry) = self.footer.entries.get(usize::from(ordinal)) else { return Vec::new() };
        let Dependency::Bases(runs) = &entry.dependency else { return Vec::new() };
        let run = |r: &BaseRun| {
            let chunk = *self.footer.bases.get(r.base as usize)?;
            Some(BasePages { chunk, first: r.first_page, pages: r.pages })
        };
        // The decoder has checked that each run's base is in the list.
        runs.iter().filter_map(run).collect()
    }

    /// Chunks a chunk cannot be decoded without.
    pub fn dependencies(&self, ordinal: u16) -> impl Iterator<Item = ChunkId> + '_ {
        let dependency = self.footer.entries.get(usize::from(ordinal)).map(|e| &e.dependency);
        let (dictionary, runs) = match dependency {
            Some(Dependency::Dictionary(d)) => (Some(*d), [].as_slice()),
            Some(Dependency::Bases(runs)) => (None, runs.as_slice()),
            _ => (None, [].as_slice()),
        };
        let mut last = None;
        dictionary
            .into_iter()
            .chain(runs.iter().map(|r| r.base))
            .filter(move |base| last.replace(*base) != Some(*base))
            .filter_map(|base| self.footer.bases.get(base as usize).copied())
    }

    /// Bytes of memory, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        let runs = |e: &FooterEntry| match &e.dependency {
            Dependency::Bases(runs) => runs.len(),
            _ => 0,
        };
        let entry = |e: &FooterEntry| Self::weight_of(runs(e), e.page_hashes as usize);
        self.footer.entries.iter().map(entry).sum::<usize>() + self.footer.bases.len() * ChunkId::LEN
    }

    /// Bytes of memory that a chunk with so many runs of bases and hashes takes, beside the names of its bases.
    pub(super) fn weight_of(runs: usize, hashes: usize) -> usize {
        size_of::<FooterEntry>() + size_of::<u32>() + runs * size_of::<BaseRun>() + hashes * size_of::<u64>()
    }
}

/// `sealed` is the section between chunks and footer, empty if there is none.
fn open_hashes(repository: &Repository, name: &str, header: &[u8], sealed: &mut [u8]) -> Result<Vec<u64>> {
    if sealed.is_empty() {
        return Ok(Vec::new());
    }
    let header = PackHeader::decode(header).map_err(Error::damaged(name))?;
    let wrong = FormatError::OutOfRange { offset: 0, what: "length of page hashes", found: sealed.len() as u64 };
    let plain_len = sealed.len().checked_sub(SEAL_OVERHEAD).ok_or(wrong).map_err(Error::damaged(name))?;
    let opener = repository.keyring().meta_opener(&header.session, &Scope::Index)?;
    let plain = opener
        .open_chunk(&section_head(&header, HASHES_KIND, plain_len as u32), sealed)
        .map_err(|e| Error::from(e).during(format!("cannot open the page hashes of '{name}'")))?;
    Ok(plain.as_chunks::<8>().0.iter().map(|h| u64::from_le_bytes(*h)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use crate::crypto::{SessionSealer, Unlock};
    use crate::pack::{CONTENTS_BYTES_MAX, PackDomain, PackWriter, PackedChunk};
    use crate::repository::OpenOptions;
    use crate::store::{Damage, FaultStore, MemoryStore, Store};
    use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
    use std::sync::Arc;

    #[test]
    fn a_pack_of_deltas_is_full_when_its_contents_are() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let options = OpenOptions { key: 1, unlock: Unlock::None, cache: None };
        let repository = Repository::create(Arc::clone(&store), options, 1).unwrap();
        let sealer = SessionSealer::new(Arc::clone(repository.keyring())).unwrap();
        let mut writer = PackWriter::new(&sealer, &PackDomain::Data, 1, 64 << 20);
        let name = |n: u32| {
            let mut id = [0; ChunkId::LEN];
            id[..4].copy_from_slice(&n.to_le_bytes());
            ChunkId(id)
        };
        // Each of 64 pages, every one of another base.
        let mut chunks = 0;
        while !writer.is_full() {
            let bases: Vec<_> =
                (0..64).map(|page| BasePages { chunk: name(chunks * 64 + page), first: page, pages: 1 }).collect();
            let (kind, encoding) = (ChunkKind::Relation, Encoding::ZstdPrefix);
            let chunk = PackedChunk { id: name(u32::MAX - chunks), kind, encoding, plain_len: 64 * 8192 };
            writer.push(chunk, &[7; 100], &bases, &[u64::from(chunks); 64]);
            chunks += 1;
        }
        let pack = writer.finish(&sealer).unwrap();
        store.put_if_absent(&layout::pack(pack.facts.pack), &pack.bytes).unwrap();
        let contents = PackContents::read(&repository, pack.facts.pack, pack.facts.size).unwrap();
        let one = contents.weight() / chunks as usize;
        assert!((CONTENTS_BYTES_MAX..CONTENTS_BYTES_MAX + one).contains(&contents.weight()), "{}", contents.weight());
        assert!(contents.hashes(9) == [9; 64] && contents.bases(9)[63].chunk == name(9 * 64 + 63));
    }

    #[test]
    fn what_was_kept_of_a_pack_does_not_stay_bad() {
        let store = Arc::new(FaultStore::new(MemoryStore::new()));
        let cache = tempfile::tempdir().unwrap();
        let options = OpenOptions { key: 1, unlock: Unlock::None, cache: Some(cache.path().to_owned()) };
        let repository = Repository::create(Arc::clone(&store) as Arc<dyn Store>, options, 1).unwrap();
        let repository = repository.keeping_packs(64 << 20);
        let sealer = SessionSealer::new(Arc::clone(repository.keyring())).unwrap();
        let mut writer = PackWriter::new(&sealer, &PackDomain::Data, 1, 64 << 20);
        let (kind, encoding) = (ChunkKind::Relation, Encoding::Zstd);
        let chunk = PackedChunk { id: ChunkId([1; ChunkId::LEN]), kind, encoding, plain_len: 8192 };
        writer.push(chunk, &[7; 100], &[], &[5]);
        let pack = writer.finish(&sealer).unwrap();
        let name = layout::pack(pack.facts.pack);
        store.put_if_absent(&name, &pack.bytes).unwrap();
        let read = || PackContents::read(&repository, pack.facts.pack, pack.facts.size);
        store.damage(&name, Damage::Flip(HEADER_LEN - 1));
        assert!(matches!(read().unwrap_err().kind(), Kind::Checksum | Kind::Format));
        // It was the way here that was bad, and this is over.
        store.heal();
        assert_eq!(read().unwrap().hashes(0), [5]);
    }
}
