//! The index of a tiny repository, and of tests: a map. About 125 bytes a chunk.

use super::error::IndexError;
use super::{ChunkAt, ChunkIndex, ChunkIndexMut};
use pgkeep_formats::id::ChunkId;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{PoisonError, RwLock};

/// Chunks in memory, forgotten when dropped.
#[derive(Debug, Default)]
pub struct MemoryIndex(RwLock<HashMap<ChunkId, ChunkAt>>);

impl MemoryIndex {
    /// An index of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the chunks for which `keep` is false.
    pub fn retain(&self, keep: impl Fn(&ChunkAt) -> bool) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|_, at| keep(at));
    }
}

impl ChunkIndex for MemoryIndex {
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned())
    }

    fn len(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
}

impl ChunkIndexMut for MemoryIndex {
    fn insert(&self, id: ChunkId, at: ChunkAt) -> Result<bool, IndexError> {
        match self.0.write().unwrap_or_else(PoisonError::into_inner).entry(id) {
            Entry::Occupied(_) => Ok(false),
            Entry::Vacant(slot) => {
                slot.insert(at);
                Ok(true)
            }
        }
    }
}
