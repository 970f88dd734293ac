//! Which pack holds a chunk: lookups over local copies of the repository's index, and the head where the
//! running session notes what it has written.

mod combined;
mod error;
mod head;
mod memory;
mod segments;
#[cfg(test)]
mod tests;

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
