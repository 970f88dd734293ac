//! The chunk index of an open repository: its `idx/` objects, copied to the local cache, behind one lookup.
//!
//! Nothing of the cache is trusted: segments authenticate what they answer, and one that does not is fetched again here.
//! Packs condemned by the garbage collector are passed over, so no writer comes to depend on them.

use super::Repository;
use crate::crypto::Scope;
use crate::index::{ChunkAt, ChunkIndex, ChunkIndexMut, IndexError, MemoryIndex, SegmentSet};
use crate::store::{Depth, Range, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::index::IndexView;
use pgkeep_formats::repo::layout;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// How often one lookup fetches a segment again before it gives up: more than a cache damaged once needs.
const REPAIRS_MAX: usize = 8;
/// How often a load starts over because a segment vanished between list and read, as compaction makes happen.
const RELOADS_MAX: usize = 4;

enum Segments {
    Cached(SegmentSet),
    Memory(MemoryIndex),
}

/// Answers where the chunks of a repository are.
pub struct RepositoryIndex {
    repository: Arc<Repository>,
    segments: Segments,
    condemned: HashSet<PackId>,
    repair: Mutex<()>,
}

impl Repository {
    /// Loads the index: lists `idx/` and fetches the segments that the cache lacks.
    ///
    /// `condemned` packs are treated as if they were gone.
    ///
    /// # Errors
    /// What the store, the cipher, the decoder or the cache said.
    pub fn load_index(self: &Arc<Self>, condemned: HashSet<PackId>) -> Result<Arc<RepositoryIndex>> {
        for _ in 0..RELOADS_MAX {
            match self.load_index_once(condemned.clone()) {
                Err(Error::Store(StoreError::NotFound { .. })) => {}
                other => return other.map(Arc::new),
            }
        }
        self.load_index_once(condemned).map(Arc::new)
    }

    fn load_index_once(self: &Arc<Self>, condemned: HashSet<PackId>) -> Result<RepositoryIndex> {
        let mut listed = Vec::new();
        self.store.list(layout::INDEX, Depth::All, &mut |l| {
            if layout::parse_index_segment(&l.key).is_some() {
                listed.push(l);
            }
        })?;
        listed.sort_by_key(|l| std::cmp::Reverse(l.modified));
        let wanted: Vec<(String, u64)> = listed.into_iter().map(|l| (l.key, l.size)).collect();
        let (segments, missing) = match self.cache() {
            Some(dir) => {
                let key = self.keyring.subkey("index cache")?;
                let (set, missing) = SegmentSet::open(dir.join("idx"), key.expose(), &wanted)?;
                (Segments::Cached(set), missing)
            }
            None => (Segments::Memory(MemoryIndex::new()), wanted.iter().map(|w| w.0.clone()).collect()),
        };
        let index = RepositoryIndex { repository: Arc::clone(self), segments, condemned, repair: Mutex::default() };
        for object in missing {
            index.fetch(&object)?;
        }
        Ok(index)
    }
}

impl RepositoryIndex {
    /// Takes a segment that was just published, given its payload.
    ///
    /// # Errors
    /// What the cache or the decoder said.
    pub fn install(&self, object: &str, size: u64, payload: &[u8]) -> Result<()> {
        match &self.segments {
            Segments::Cached(set) => Ok(set.install(object, size, payload)?),
            Segments::Memory(memory) => {
                let view = IndexView::parse(payload).map_err(Error::damaged(object))?;
                let packs: Vec<_> = view.packs().iter().cloned().map(Arc::new).collect();
                for e in view.iter() {
                    let Some(pack) = packs.get(e.pack as usize) else { continue };
                    let at = ChunkAt {
                        pack: Arc::clone(pack),
                        offset: e.offset,
                        stored_len: e.stored_len,
                        plain_len: e.plain_len,
                        kind: e.kind,
                        encoding: e.encoding,
                        ordinal: e.ordinal,
                    };
                    if !self.condemned.contains(&at.pack.pack) {
                        memory.insert(e.id, at)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn fetch(&self, object: &str) -> Result<()> {
        let bytes = self.repository.store.get(object, Range::Whole)?;
        let opened = self.repository.keyring.open_object(object, &bytes, &[ObjectKind::Index], &Scope::Index)?;
        let hash = self.repository.keyring.content_hash(&opened.plaintext)?;
        if layout::parse_index_segment(object).is_none_or(|(_, _, id)| id.0 != hash) {
            return Err(Error::refused(Kind::Checksum, format!("the content of '{object}' is not what its name says")));
        }
        self.install(object, bytes.len() as u64, &opened.plaintext)
    }
}

impl ChunkIndex for RepositoryIndex {
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        let set = match &self.segments {
            Segments::Memory(memory) => return memory.lookup(id),
            Segments::Cached(set) => set,
        };
        let mut last = None;
        for _ in 0..REPAIRS_MAX {
            let error = match set.lookup_where(id, |pack| !self.condemned.contains(&pack.pack)) {
                Err(e) if e.rebuild().is_some() => e,
                other => return other,
            };
            // One thread repairs; the others then ask again.
            let _one = self.repair.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(object) = error.rebuild().filter(|o| set.missing().iter().any(|m| m == o)) {
                tracing::warn!("{error}; fetching it again");
                if let Err(e) = self.fetch(object) {
                    tracing::error!("cannot fetch index segment '{object}' again: {e}");
                    return Err(error);
                }
            }
            last = Some(error);
        }
        Err(last.unwrap_or(IndexError::Misuse("an index lookup was not tried")))
    }

    fn len(&self) -> u64 {
        match &self.segments {
            Segments::Cached(set) => set.len(),
            Segments::Memory(memory) => memory.len(),
        }
    }
}
