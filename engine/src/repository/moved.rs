//! Reading on while packs go: collection rewrites what is partly dead, and takes away what was stored twice.
//!
//! What a visible or pinned backup needs lies in some pack at every moment, and the index says so before the pack goes in which
//! it lay until then. So whoever misses a pack loads the index anew, once for each pack, and looks there.

use super::ChunkSource;
use crate::index::{ChunkAt, ChunkIndex, MemoryIndex};
use crate::store::Range;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::layout;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

/// How often a chunk is looked for: it may be moved once more meanwhile.
const TRIES: usize = 4;

/// Chunks that are nowhere else, of which this is remembered.
const HOPELESS_MAX: usize = 1 << 16;

/// What readers found out about packs that went.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// How often the index was loaded anew for want of a pack.
    loads: HashMap<PackId, u8>,
    hopeless: HashSet<ChunkId>,
}

impl ChunkSource {
    /// A chunk that could not be read for this reason: if its pack is gone, or what it builds on, from another place.
    ///
    /// # Errors
    /// That reason, if it is another one or nothing else has the chunk.
    pub fn read_elsewhere(&self, id: &ChunkId, pack: PackId, reason: Error) -> Result<Vec<u8>> {
        // What may not be asked for is not gone.
        let is_gone = |e: &Error| e.is_not_found() || self.fetches_bases && e.kind() == Kind::FileMissing;
        if !is_gone(&reason) {
            return Err(reason);
        }
        let (mut last, mut shunned) = (pack, HashSet::from([pack]));
        for _ in 0..TRIES {
            let Some(at) = self.elsewhere(id, last)? else { break };
            match self.read_at(id, &at) {
                Err(e) if is_gone(&e) => {
                    last = at.pack.pack;
                    shunned.insert(last);
                }
                read => return read,
            }
        }
        self.read_from_another(id, shunned, reason)
    }

    /// A chunk may lie in several packs, of which some are of no use any more: a delta without what it was encoded against.
    fn read_from_another(&self, id: &ChunkId, mut shunned: HashSet<PackId>, reason: Error) -> Result<Vec<u8>> {
        let is_hopeless = || self.gone.lock().unwrap_or_else(PoisonError::into_inner).hopeless.contains(id);
        for _ in 0..TRIES {
            if is_hopeless() {
                break;
            }
            let index = self.repository().load_index(&shunned, Arc::new(MemoryIndex::new()))?;
            let Some(at) = index.lookup(id)? else { break };
            match self.read_at(id, &at) {
                Err(e) if e.is_not_found() || e.kind() == Kind::FileMissing => drop(shunned.insert(at.pack.pack)),
                read => return read,
            }
        }
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if gone.hopeless.len() < HOPELESS_MAX {
            gone.hopeless.insert(*id);
        }
        Err(reason)
    }

    fn read_at(&self, id: &ChunkId, at: &ChunkAt) -> Result<Vec<u8>> {
        let range = Range::Span { offset: at.offset.into(), len: at.stored_len as usize };
        let mut blob = self.store().get(&layout::pack(at.pack.pack), range)?;
        let encoded = self.unseal(id, at, &mut blob)?;
        self.decode(id, at, encoded)
    }

    /// Where a chunk is that was in a pack which is gone; none if that is where the newest index has it.
    fn elsewhere(&self, id: &ChunkId, pack: PackId) -> Result<Option<ChunkAt>> {
        // Held while the index is loaded: others that miss the same pack wait for it.
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let at = self.locate(id)?;
            if at.pack.pack != pack {
                return Ok(Some(at));
            }
            // It may be moved once more while the index is loaded: one that is loaded after that knows.
            let loads = gone.loads.entry(pack).or_default();
            if *loads >= 2 {
                return Ok(None);
            }
            *loads += 1;
            tracing::debug!("'{}' is gone; the index is loaded anew", layout::pack(pack));
            let index = self.repository().load_index_of_what_is_there()?;
            *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        }
    }
}
