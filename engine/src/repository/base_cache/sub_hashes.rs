//! Hashes of the sub-blocks of a pack's pages, which tell what changed in a page without the old page.
//!
//! A file of the host that made it, no part of the repository: authenticated, because a wrong hash would become a wrong
//! page, and bound to its pack, because everything else about it can be had again. Layout, little endian:
//! `magic 8 ‖ pack 32 ‖ page size u32 ‖ chunks u32 ‖ chunks × pages u32 ‖ hashes u64 … ‖ keyed BLAKE3 of all before 32`.

use crate::chunk::delta::SUB_BLOCK;
use crate::crypto::SecretBytes;
use pgkeep_formats::id::{ChunkId, PackId};
use std::ops::Range;

const MAGIC: &[u8; 8] = b"PGKSUBH1";
const HEAD_LEN: usize = 8 + PackId::LEN + 8;
const MAC_LEN: usize = 32;

/// Sub-block hashes of the chunks of a pack, by ordinal.
#[derive(Debug, PartialEq, Eq)]
pub struct SubHashes {
    page_size: u32,
    /// Behind each chunk's last hash.
    ends: Vec<u32>,
    hashes: Vec<u64>,
}

impl SubHashes {
    /// For the chunks of one pack, in their order; those without hashes give nothing. `page_size` is in bytes.
    pub fn collect<'a>(page_size: u32, chunks: impl Iterator<Item = &'a [u64]>) -> Self {
        let mut of = Self { page_size, ends: Vec::new(), hashes: Vec::new() };
        for chunk in chunks {
            of.hashes.extend_from_slice(chunk);
            of.ends.push(of.hashes.len() as u32);
        }
        of
    }

    /// True if no chunk has any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    fn range(&self, ordinal: u16) -> Option<Range<usize>> {
        let at = usize::from(ordinal);
        let end = *self.ends.get(at)? as usize;
        let start = at.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())? as usize;
        Some(start..end)
    }

    /// Those of one page of a chunk; `None` if they are not known.
    #[must_use]
    pub fn of_page(&self, ordinal: u16, page: u32) -> Option<&[u64]> {
        let width = self.page_size as usize / SUB_BLOCK;
        let start = (page as usize).checked_mul(width)?;
        self.hashes.get(self.range(ordinal)?)?.get(start..start.checked_add(width)?).filter(|h| !h.is_empty())
    }

    /// Bytes of memory, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        size_of_val(self) + self.ends.len() * 4 + self.hashes.len() * 8
    }

    pub(super) fn encode(&self, pack: PackId, key: &SecretBytes<32>) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_LEN + self.weight() + MAC_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&pack.0);
        out.extend_from_slice(&self.page_size.to_le_bytes());
        out.extend_from_slice(&(self.ends.len() as u32).to_le_bytes());
        out.extend(self.ends.iter().flat_map(|n| n.to_le_bytes()));
        out.extend(self.hashes.iter().flat_map(|h| h.to_le_bytes()));
        let mac = blake3::keyed_hash(key.expose(), &out);
        out.extend_from_slice(mac.as_bytes());
        out
    }

    /// `None` for anything but what [`Self::encode`] made of this very pack under this key.
    pub(super) fn decode(bytes: &[u8], pack: PackId, key: &SecretBytes<32>) -> Option<Self> {
        let (body, mac) = bytes.split_last_chunk::<MAC_LEN>()?;
        // Constant time, by the type of the hash.
        if blake3::keyed_hash(key.expose(), body) != *mac {
            return None;
        }
        let (head, rest) = body.split_at_checked(HEAD_LEN)?;
        let (magic, head) = head.split_first_chunk::<8>()?;
        let (found, head) = head.split_first_chunk::<{ PackId::LEN }>()?;
        let (page_size, chunks) = head.split_first_chunk::<4>()?;
        let (page_size, chunks) = (u32::from_le_bytes(*page_size), u32::from_le_bytes(*chunks.first_chunk()?));
        if magic != MAGIC || *found != pack.0 || !page_size.is_multiple_of(SUB_BLOCK as u32) {
            return None;
        }
        let (ends, hashes) = rest.split_at_checked((chunks as usize).checked_mul(4)?)?;
        let ends: Vec<u32> = ends.as_chunks::<4>().0.iter().map(|n| u32::from_le_bytes(*n)).collect();
        let (hashes, odd) = hashes.as_chunks::<8>();
        let hashes: Vec<u64> = hashes.iter().map(|h| u64::from_le_bytes(*h)).collect();
        let whole = odd.is_empty() && ends.is_sorted() && ends.last().is_none_or(|end| *end as usize == hashes.len());
        whole.then_some(Self { page_size, ends, hashes })
    }
}

/// Sub-block hashes of chunks that wait for their pack to be complete.
#[derive(Debug, Default)]
pub struct PendingHashes(std::collections::HashMap<ChunkId, Vec<u64>>);

impl PendingHashes {
    /// Notes those of a chunk.
    pub fn note(&mut self, id: ChunkId, hashes: Vec<u64>) {
        if !hashes.is_empty() {
            self.0.insert(id, hashes);
        }
    }

    /// Those of a complete pack, whose chunks are `ids`.
    pub fn take(&mut self, page_size: u32, ids: impl Iterator<Item = ChunkId>) -> SubHashes {
        let of: Vec<Vec<u64>> = ids.map(|id| self.0.remove(&id).unwrap_or_default()).collect();
        SubHashes::collect(page_size, of.iter().map(Vec::as_slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> SecretBytes<32> {
        SecretBytes::copy_from(&[byte; 32])
    }

    proptest! {
        #[test]
        fn come_back_under_their_key_and_name_and_not_otherwise(
            pages in proptest::collection::vec(0usize..4, 0..6), log in 9u32..=15, seed in any::<u64>(), at in any::<u32>(),
        ) {
            let width = (1usize << log) / SUB_BLOCK;
            let chunks: Vec<Vec<u64>> = pages.iter().map(|n| (0..(n * width) as u64).map(|i| i ^ seed).collect()).collect();
            let hashes = SubHashes::collect(1 << log, chunks.iter().map(Vec::as_slice));
            let pack = PackId([3; 32]);
            let bytes = hashes.encode(pack, &key(1));
            let decoded = SubHashes::decode(&bytes, pack, &key(1));
            prop_assert_eq!(decoded.as_ref(), Some(&hashes));
            prop_assert_eq!(SubHashes::decode(&bytes, PackId([4; 32]), &key(1)), None);
            prop_assert_eq!(SubHashes::decode(&bytes, pack, &key(2)), None);
            let mut flipped = bytes.clone();
            let at = at as usize % flipped.len();
            flipped[at] ^= 1;
            prop_assert_eq!(SubHashes::decode(&flipped, pack, &key(1)), None);
            prop_assert_eq!(SubHashes::decode(&bytes[..at], pack, &key(1)), None);
            for (ordinal, (n, chunk)) in pages.iter().zip(&chunks).enumerate() {
                for page in 0..*n {
                    let of_page = hashes.of_page(ordinal as u16, page as u32);
                    prop_assert_eq!(of_page, Some(&chunk[page * width..(page + 1) * width]));
                }
                prop_assert_eq!(hashes.of_page(ordinal as u16, *n as u32), None);
            }
            prop_assert_eq!(hashes.of_page(pages.len() as u16, 0), None);
        }
    }
}
