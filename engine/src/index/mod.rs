//! Which pack holds a chunk: lookups over local copies of the repository's index, and the head where the
//! running session notes what it has written.
//!
//! The truth is in the repository: `idx/` objects, and behind them the footers of packs. Everything here is a
//! cache of it, and the *Cache* invariant (DESIGN, section 5) is kept by one rule: nothing is believed that was not
//! authenticated in this process. With any content of the cache directory a lookup gives what the repository's
//! index says, or an error that names the object to fetch again, or (in the head) a miss, which costs an upload.
//!
//! - [`SegmentSet`]: immutable copies of `idx/` objects, memory-mapped. Enough for readers.
//! - [`Head`]: chunks of the running session, in sled. Only writers have one.
//! - [`CombinedIndex`]: both, minus condemned packs. [`MemoryIndex`]: a map, for tests and tiny repositories.
//!
//! A writer inserts a pack's chunks once the pack is durable (before, it has no name). When the head is full, and
//! at the end: [`Head::drain`], `encode`, seal and put the object, [`SegmentSet::install`], [`Head::release`].
//!
//! # Memory and time
//!
//! Per chunk, in a segment: 50 bytes of entry and 9.1 bits of filter in the mapped file (51.2 bytes with MACs and
//! the packs table), page cache that the kernel may take back. Resident: one bit per 1 310 chunks, and about 120 bytes
//! a pack (at 256 KiB a chunk and 32 MiB a pack, under one byte a chunk). 4 million chunks, a terabyte at
//! 256 KiB each, are 4 segments, 205 MB of file, and under 4 MB resident.
//! Installing a full segment (2^20 chunks) takes its payload of 50 MiB and 35 MiB for the filter; writing one takes the
//! payload twice. The head takes about 110 MiB at its limit of 2^19 chunks: 220 bytes a chunk by sled with 32 MiB of
//! page cache, and 2 in front of it; draining it takes 50 MiB more. As a map the same would take 125 bytes a chunk.
//!
//! Measured on a shared two-core machine with a segment of 2^20 chunks, random ids, one thread: hit 2.1 µs, miss 0.24 µs
//! (0.64 µs on average over the first 200 000, with the checking of all blocks), opening 0.2 ms, installing 0.6 s. Head at
//! 2^19 chunks: insert 50 µs, hit 27 µs, miss 0.18 µs, drain 1.7 s, release 1 s.

mod combined;
mod error;
mod head;
mod memory;
mod segments;
#[cfg(test)]
mod tests;

pub(crate) use combined::in_full_first;
pub use combined::{CombinedIndex, SegmentSource};
pub use error::IndexError;
pub use head::{HEAD_CACHE_BYTES, HEAD_MAX_CHUNKS, HEAD_MAX_FACTS, Head, HeadOptions};
pub use memory::MemoryIndex;
pub use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
pub use pgkeep_formats::repo::index::PackFacts;
pub use segments::SegmentSet;

use pgkeep_formats::id::ChunkId;
use std::sync::Arc;

/// Where a chunk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkAt {
    /// Its pack, shared by all chunks of the pack that came from one segment.
    pub pack: Arc<PackFacts>,
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
    /// Which chunk of its pack it is, from 0.
    pub ordinal: u16,
}

/// Answers where a chunk is. Any thread may ask; may block on local files, never on a store.
pub trait ChunkIndex: Send + Sync {
    /// Where the chunk is; `None` is a certain "not in this index".
    ///
    /// Of several places one where it is stored in full is told before one where it is a delta: only the former can be a
    /// base, and two writers at once may make both.
    ///
    /// # Errors
    /// [`IndexError`]; if [`IndexError::rebuild`] names an object, install it and ask again.
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError>;

    /// Chunks it holds. A chunk that lies in several parts may be counted several times.
    fn len(&self) -> u64;

    /// True while it holds none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An index that also takes chunks.
pub trait ChunkIndexMut: ChunkIndex {
    /// Notes where a chunk is and returns true, or returns false and changes nothing if the chunk is known.
    ///
    /// # Errors
    /// [`IndexError::Full`] if it must be published first; other [`IndexError`]s.
    fn insert(&self, id: ChunkId, at: ChunkAt) -> Result<bool, IndexError>;

    /// Inserts one by one (a batch of sled's would cost ten times the memory); returns how many were new.
    ///
    /// # Errors
    /// As [`Self::insert`]; what came before the failing one is inserted, and inserting it again is harmless.
    fn insert_all(&self, chunks: &mut dyn Iterator<Item = (ChunkId, ChunkAt)>) -> Result<u64, IndexError> {
        let mut new = 0;
        for (id, at) in chunks {
            new += u64::from(self.insert(id, at)?);
        }
        Ok(new)
    }
}
