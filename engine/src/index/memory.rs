//! The index of a tiny repository, and of tests: a map. About 125 bytes a chunk.

use super::error::IndexError;
use super::{ChunkAt, ChunkIndex, ChunkIndexMut};
use pgkeep_formats::id::ChunkId;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{PoisonError, RwLock};

/// Chunks in memory, forgotten when dropped.
#[derive(Debug, Default)]
pub struct MemoryIndex(RwLock<Places>);

#[derive(Debug, Default)]
struct Places {
    first: HashMap<ChunkId, ChunkAt>,
    /// Of the few chunks that lie in several packs, the others.
    others: HashMap<ChunkId, Vec<ChunkAt>>,
}

impl MemoryIndex {
    /// An index of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes one more place of a chunk, whether it is known or not.
    pub fn add_place(&self, id: ChunkId, at: ChunkAt) {
        let mut places = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Places { first, others } = &mut *places;
        match first.entry(id) {
            Entry::Vacant(slot) => drop(slot.insert(at)),
            Entry::Occupied(slot) if *slot.get() == at => {}
            Entry::Occupied(mut slot) => {
                let better = slot.get().encoding.is_delta() && !at.encoding.is_delta();
                let other = if better { slot.insert(at) } else { at };
                others.entry(id).or_default().push(other);
            }
        }
    }

    /// Forgets the places for which `keep` is false.
    pub fn retain(&self, keep: impl Fn(&ChunkAt) -> bool) {
        let mut places = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Places { first, others } = &mut *places;
        others.retain(|_, list| {
            list.retain(&keep);
            !list.is_empty()
        });
        first.retain(|id, at| {
            if keep(at) {
                return true;
            }
            let Some(list) = others.get_mut(id) else { return false };
            let best = list.iter().position(|at| !at.encoding.is_delta()).unwrap_or(0);
            *at = list.swap_remove(best);
            if list.is_empty() {
                others.remove(id);
            }
            true
        });
    }
}

impl ChunkIndex for MemoryIndex {
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).first.get(id).cloned())
    }

    fn len(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).first.len() as u64
    }
}

impl ChunkIndexMut for MemoryIndex {
    fn insert(&self, id: ChunkId, at: ChunkAt) -> Result<bool, IndexError> {
        match self.0.write().unwrap_or_else(PoisonError::into_inner).first.entry(id) {
            Entry::Occupied(_) => Ok(false),
            Entry::Vacant(slot) => {
                slot.insert(at);
                Ok(true)
            }
        }
    }
}
