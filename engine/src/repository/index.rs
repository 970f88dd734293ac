//! The chunk index of an open repository: its `idx/` objects, copied to the local cache, behind one lookup.
//!
//! Nothing of the cache is trusted: segments authenticate what they answer, and one that does not is fetched again here.
//! Packs condemned by the garbage collector are passed over, so no writer comes to depend on them.

use super::Repository;
use crate::crypto::Scope;
use crate::index::{
    ChunkAt, ChunkIndex, ChunkIndexMut, CombinedIndex, IndexError, MemoryIndex, SegmentSet, SegmentSource,
};
use crate::store::{Depth, Range, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::index::IndexView;
use pgkeep_formats::repo::layout;
use std::collections::HashSet;
use std::sync::Arc;

/// How often a load starts over because a segment vanished between list and read, as compaction makes happen.
const RELOADS_MAX: usize = 4;

enum Parts {
    Cached { all: CombinedIndex, segments: Arc<SegmentSet> },
    Memory { head: Arc<dyn ChunkIndexMut>, segments: MemoryIndex, condemned: HashSet<PackId> },
}

/// Answers where the chunks of a repository are.
pub struct RepositoryIndex(Parts);

/// Fetches index objects for segments whose local copy is gone or damaged.
struct Fetcher(Arc<Repository>);

impl Fetcher {
    /// The payload of an index object and the size of the object.
    fn fetch(&self, object: &str) -> Result<(Vec<u8>, u64)> {
        let keyring = self.0.keyring();
        let bytes = self.0.store().get(object, Range::Whole)?;
        let opened = keyring.open_object(object, &bytes, &[ObjectKind::Index], &Scope::Index)?;
        let hash = keyring.content_hash(&opened.plaintext)?;
        if layout::parse_index_segment(object).is_none_or(|(_, _, id)| id.0 != hash) {
            return Err(Error::refused(Kind::Checksum, format!("the content of '{object}' is not what its name says")));
        }
        Ok((opened.plaintext, bytes.len() as u64))
    }
}

impl SegmentSource for Fetcher {
    fn payload(&self, object: &str) -> Result<Vec<u8>> {
        Ok(self.fetch(object)?.0)
    }
}

impl Repository {
    /// Loads the index: lists `idx/` and fetches the segments that the cache lacks.
    ///
    /// `condemned` packs are treated as if they were gone; `head` is asked first.
    ///
    /// # Errors
    /// What the store, the cipher, the decoder or the cache said.
    pub fn load_index(
        self: &Arc<Self>,
        condemned: &HashSet<PackId>,
        head: Arc<dyn ChunkIndexMut>,
    ) -> Result<Arc<RepositoryIndex>> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.load_index_once(condemned.clone(), Arc::clone(&head)) {
                Err(Error::Store(StoreError::NotFound { .. })) if tries < RELOADS_MAX => {}
                other => return other.map(Arc::new),
            }
        }
    }

    /// Loads the index for reading only.
    ///
    /// # Errors
    /// As [`Self::load_index`].
    pub fn load_index_to_read(self: &Arc<Self>) -> Result<Arc<RepositoryIndex>> {
        self.load_index(&HashSet::new(), Arc::new(MemoryIndex::new()))
    }

    fn load_index_once(
        self: &Arc<Self>,
        condemned: HashSet<PackId>,
        head: Arc<dyn ChunkIndexMut>,
    ) -> Result<RepositoryIndex> {
        let mut listed = Vec::new();
        self.store.list(layout::INDEX, Depth::All, &mut |l| {
            if layout::parse_index_segment(&l.key).is_some() {
                listed.push(l);
            }
        })?;
        listed.sort_by_key(|l| std::cmp::Reverse(l.modified));
        let wanted: Vec<(String, u64)> = listed.into_iter().map(|l| (l.key, l.size)).collect();
        let fetcher = Fetcher(Arc::clone(self));
        let (parts, missing) = match self.cache() {
            Some(dir) => {
                let key = self.keyring.subkey("index cache")?;
                let (set, missing) = SegmentSet::open(dir.join("idx"), key.expose(), &wanted)?;
                let (segments, fetcher) = (Arc::new(set), Fetcher(Arc::clone(self)));
                let all = CombinedIndex::new(head, Arc::clone(&segments), condemned, Some(Arc::new(fetcher)));
                (Parts::Cached { all, segments }, missing)
            }
            None => {
                let missing = wanted.into_iter().map(|w| w.0).collect();
                (Parts::Memory { head, segments: MemoryIndex::new(), condemned }, missing)
            }
        };
        let index = RepositoryIndex(parts);
        for object in missing {
            let (payload, size) = fetcher.fetch(&object)?;
            index.install(&object, size, &payload)?;
        }
        Ok(index)
    }
}

impl RepositoryIndex {
    /// Takes a segment that was just published, given the size of its object and its payload.
    ///
    /// # Errors
    /// What the cache or the decoder said.
    pub fn install(&self, object: &str, size: u64, payload: &[u8]) -> Result<()> {
        let (memory, condemned) = match &self.0 {
            Parts::Cached { segments, .. } => return Ok(segments.install(object, size, payload)?),
            Parts::Memory { segments, condemned, .. } => (segments, condemned),
        };
        let view = IndexView::parse(payload).map_err(Error::damaged(object))?;
        let packs: Vec<_> = view.packs().iter().cloned().map(Arc::new).collect();
        for e in view.iter() {
            let Some(pack) = packs.get(e.pack as usize).filter(|p| !condemned.contains(&p.pack)) else { continue };
            let at = ChunkAt {
                pack: Arc::clone(pack),
                offset: e.offset,
                stored_len: e.stored_len,
                plain_len: e.plain_len,
                kind: e.kind,
                encoding: e.encoding,
                ordinal: e.ordinal,
            };
            memory.insert(e.id, at)?;
        }
        Ok(())
    }
}

impl ChunkIndex for RepositoryIndex {
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        match &self.0 {
            Parts::Cached { all, .. } => all.lookup(id),
            Parts::Memory { head, segments, .. } => match head.lookup(id)? {
                Some(at) => Ok(Some(at)),
                None => segments.lookup(id),
            },
        }
    }

    fn len(&self) -> u64 {
        match &self.0 {
            Parts::Cached { all, .. } => all.len(),
            Parts::Memory { head, segments, .. } => head.len() + segments.len(),
        }
    }
}
