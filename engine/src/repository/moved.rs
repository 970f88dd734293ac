//! Reading on while packs go: collection rewrites what is partly dead, and takes away what was stored twice.
//!
//! What a visible or pinned backup needs lies in some pack at every moment, and the index says so before the pack goes in which
//! it lay until then. So whoever misses a pack loads the index anew, once for each pack, and looks there.

use super::ChunkSource;
use crate::index::ChunkAt;
use crate::store::Range;
use crate::{Error, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::layout;
use std::sync::PoisonError;

/// How often a chunk is looked for: it may be moved once more meanwhile.
const TRIES: usize = 4;

impl ChunkSource {
    /// A chunk of a pack that could not be read for this reason: if that is gone, from where the chunk is now.
    ///
    /// # Errors
    /// That reason, if the pack is not gone or nothing else has the chunk; as [`ChunkSource::read`].
    pub fn read_elsewhere(&self, id: &ChunkId, pack: PackId, reason: Error) -> Result<Vec<u8>> {
        let (mut pack, mut reason) = (pack, reason);
        for _ in 0..TRIES {
            if !reason.is_not_found() {
                return Err(reason);
            }
            let Some(at) = self.elsewhere(id, pack)? else { return Err(reason) };
            let range = Range::Span { offset: at.offset.into(), len: at.stored_len as usize };
            let blob = self.store().get(&layout::pack(at.pack.pack), range).map_err(Error::from);
            let opened =
                blob.and_then(|mut blob| self.unseal(id, &at, &mut blob).and_then(|e| self.decode(id, &at, e)));
            match opened {
                Err(e) => (pack, reason) = (at.pack.pack, e),
                opened => return opened,
            }
        }
        Err(reason)
    }

    /// Where a chunk is that was in a pack which is gone; none if that is where the newest index has it.
    fn elsewhere(&self, id: &ChunkId, gone: PackId) -> Result<Option<ChunkAt>> {
        // Held while the index is loaded: others that miss the same pack wait for it.
        let mut known = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.locate(id)?;
        if at.pack.pack != gone {
            return Ok(Some(at));
        }
        if known.contains(&gone) {
            return Ok(None);
        }
        tracing::debug!("'{}' is gone; the index is loaded anew", layout::pack(gone));
        let index = self.repository().load_index_of_what_is_there()?;
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
        known.insert(gone);
        let at = self.locate(id)?;
        Ok(Some(at).filter(|at| at.pack.pack != gone))
    }
}
