//! The chunk index of an open repository: its `idx/` objects, copied to the local cache, behind one lookup.
//!
//! Nothing of the cache is trusted: segments authenticate what they answer, and one that does not is fetched again here.
//! Packs condemned by the garbage collector are passed over, so no writer comes to depend on them.

use super::Repository;
use crate::crypto::Scope;
use crate::index::{
    ChunkAt, ChunkIndex, ChunkIndexMut, CombinedIndex, IndexError, MemoryIndex, SegmentSet, SegmentSource,
    in_full_first,
};
use crate::store::{Depth, Listed, Range};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::index::{IndexView, PackFacts};
use pgkeep_formats::repo::layout;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// How often a load starts over because a segment vanished between list and read, as compaction makes happen.
const RELOADS_MAX: usize = 4;

enum Parts {
    Cached { all: CombinedIndex, segments: Arc<SegmentSet> },
    Memory(InMemory),
}

/// Without a cache directory, segments are a map.
struct InMemory {
    head: Arc<dyn ChunkIndexMut>,
    segments: MemoryIndex,
    packs: Mutex<HashMap<PackId, Arc<PackFacts>>>,
    condemned: RwLock<HashSet<PackId>>,
}

/// Answers where the chunks of a repository are.
pub struct RepositoryIndex(Parts);

/// Fetches index objects for segments whose local copy is gone or damaged.
struct Fetcher(Arc<Repository>);

impl SegmentSource for Fetcher {
    fn payload(&self, object: &str) -> Result<Vec<u8>> {
        Ok(self.0.index_payload(object)?.0)
    }
}

impl Repository {
    /// The payload of an index object and the size of the object.
    ///
    /// # Errors
    /// What the store or the cipher said; `Checksum` if it is not what its name says.
    pub(crate) fn index_payload(&self, object: &str) -> Result<(Vec<u8>, u64)> {
        let bytes = self.store.get(object, Range::Whole)?;
        let opened = self.keyring.open_object(object, &bytes, &[ObjectKind::Index], &Scope::Index)?;
        let hash = self.keyring.content_hash(&opened.plaintext)?;
        if layout::parse_index_segment(object).is_none_or(|(_, _, id)| id.0 != hash) {
            return Err(Error::refused(Kind::Checksum, format!("the content of '{object}' is not what its name says")));
        }
        Ok((opened.plaintext, bytes.len() as u64))
    }

    /// Loads the index: lists `idx/` and fetches the segments that the cache lacks. A damaged one that another supersedes
    /// does no harm.
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
                Err(e) if e.is_not_found() && tries < RELOADS_MAX => {}
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

    /// Loads the index for reading, without packs that are gone. A segment may name one: of a session that was stalled when
    /// it was fenced, or replaced at the same time by two that collect. What a backup needs then lies in another pack too, which
    /// is what is told; only of a chunk that is nowhere else, where it was. Costs a list of the packs.
    ///
    /// # Errors
    /// As [`Self::load_index`].
    pub fn load_index_of_what_is_there(self: &Arc<Self>) -> Result<Arc<dyn ChunkIndex>> {
        let index = self.load_index_to_read()?;
        // Behind the index: what it names was durable before.
        let mut gone: HashSet<PackId> = index.packs().into_keys().collect();
        self.store.list(layout::PACKS, Depth::All, &mut |l| {
            if let Some(pack) = layout::parse_pack(&l.key) {
                gone.remove(&pack);
            }
        })?;
        if gone.is_empty() {
            return Ok(index);
        }
        let all = self.load_index_to_read()?;
        index.set_condemned(gone);
        Ok(Arc::new(WhatIsThere { index, all }))
    }

    /// The segments there are, superseded ones among them.
    pub(crate) fn index_segments(&self) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        self.store.list(layout::INDEX, Depth::All, &mut |l| {
            if layout::parse_index_segment(&l.key).is_some() {
                listed.push(l);
            }
        })?;
        Ok(listed)
    }

    fn load_index_once(
        self: &Arc<Self>,
        condemned: HashSet<PackId>,
        head: Arc<dyn ChunkIndexMut>,
    ) -> Result<RepositoryIndex> {
        let mut listed = self.index_segments()?;
        listed.sort_by_key(|l| std::cmp::Reverse(l.modified));
        let wanted: Vec<(String, u64)> = listed.into_iter().map(|l| (l.key, l.size)).collect();
        let Some(dir) = self.cache() else {
            let memory = InMemory::new(head, condemned);
            self.load_to_memory(wanted, &memory)?;
            return Ok(RepositoryIndex(Parts::Memory(memory)));
        };
        let key = self.keyring.subkey("index cache")?;
        let (set, missing) = SegmentSet::open(dir.join("idx"), key.expose(), &wanted)?;
        let segments = Arc::new(set);
        let mut failed = Vec::new();
        for object in missing {
            match self.index_payload(&object) {
                Ok((payload, size)) => segments.install(&object, size, &payload)?,
                Err(e) if matches!(e.root(), Error::Store(_)) => return Err(e),
                Err(e) => failed.push((object, e)),
            }
        }
        let missing = segments.missing();
        if let Some((_, e)) = failed.into_iter().find(|(object, _)| missing.contains(object)) {
            return Err(e);
        }
        let fetcher = Arc::new(Fetcher(Arc::clone(self)));
        let all = CombinedIndex::new(head, Arc::clone(&segments), condemned, Some(fetcher));
        Ok(RepositoryIndex(Parts::Cached { all, segments }))
    }

    fn load_to_memory(&self, wanted: Vec<(String, u64)>, memory: &InMemory) -> Result<()> {
        let (mut superseded, mut payloads, mut failed) = (HashSet::new(), Vec::new(), Vec::new());
        for (object, _) in wanted {
            match self.index_payload(&object) {
                Ok((payload, _)) => {
                    let view = IndexView::parse(&payload).map_err(Error::damaged(&object))?;
                    superseded
                        .extend(view.supersedes().iter().filter(|name| **name != object).map(|s| (*s).to_owned()));
                    payloads.push((object, payload));
                }
                Err(e) if matches!(e.root(), Error::Store(_)) => return Err(e),
                Err(e) => failed.push((object, e)),
            }
        }
        if let Some((_, e)) = failed.into_iter().find(|(object, _)| !superseded.contains(object)) {
            return Err(e);
        }
        for (object, payload) in payloads.iter().filter(|(object, _)| !superseded.contains(object)) {
            memory.fill(object, payload)?;
        }
        Ok(())
    }
}

/// An index without the packs that are gone, and one with them.
struct WhatIsThere {
    index: Arc<RepositoryIndex>,
    all: Arc<RepositoryIndex>,
}

impl ChunkIndex for WhatIsThere {
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        match self.index.lookup(id)? {
            None => self.all.lookup(id),
            found => Ok(found),
        }
    }

    fn len(&self) -> u64 {
        self.all.len()
    }
}

impl RepositoryIndex {
    /// Takes a segment that was just published, given the size of its object and its payload.
    ///
    /// # Errors
    /// What the cache or the decoder said.
    pub fn install(&self, object: &str, size: u64, payload: &[u8]) -> Result<()> {
        match &self.0 {
            Parts::Cached { segments, .. } => Ok(segments.install(object, size, payload)?),
            Parts::Memory(memory) => memory.fill(object, payload),
        }
    }

    /// The packs that segments name.
    #[must_use]
    pub fn packs(&self) -> HashMap<PackId, Arc<PackFacts>> {
        match &self.0 {
            Parts::Cached { segments, .. } => segments.packs(),
            Parts::Memory(memory) => memory.packs.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// True if the chunk is there, with all it builds on. A delta whose pack or base is gone had better be stored again.
    ///
    /// # Errors
    /// What the index said, and what concerns the store as a whole.
    pub fn knows(&self, repository: &Repository, id: &ChunkId) -> Result<bool> {
        let Some(at) = self.lookup(id)? else { return Ok(false) };
        match repository.is_complete(self, &at) {
            Ok(complete) => Ok(complete),
            Err(e) if e.concerns_the_run() => Err(e),
            Err(e) => {
                tracing::warn!("chunk {id} is stored again: {}", e.chain());
                Ok(false)
            }
        }
    }

    /// Replaces the packs that are treated as if they were gone.
    pub fn set_condemned(&self, condemned: HashSet<PackId>) {
        match &self.0 {
            Parts::Cached { all, .. } => all.set_condemned(condemned),
            Parts::Memory(memory) => {
                // They go; other places of the same chunks take over.
                memory.segments.retain(|at| !condemned.contains(&at.pack.pack));
                *memory.condemned.write().unwrap_or_else(PoisonError::into_inner) = condemned;
            }
        }
    }
}

impl InMemory {
    fn new(head: Arc<dyn ChunkIndexMut>, condemned: HashSet<PackId>) -> Self {
        let (segments, packs, condemned) = (MemoryIndex::new(), Mutex::default(), RwLock::new(condemned));
        Self { head, segments, packs, condemned }
    }

    /// Adds a segment, without what lies in condemned packs.
    fn fill(&self, object: &str, payload: &[u8]) -> Result<()> {
        let view = IndexView::parse(payload).map_err(Error::damaged(object))?;
        let packs: Vec<_> = view.packs().iter().cloned().map(Arc::new).collect();
        let named = packs.iter().map(|facts| (facts.pack, Arc::clone(facts)));
        self.packs.lock().unwrap_or_else(PoisonError::into_inner).extend(named);
        let condemned = self.condemned.read().unwrap_or_else(PoisonError::into_inner);
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
            self.segments.add_place(e.id, at);
        }
        Ok(())
    }

    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        in_full_first(self.head.lookup(id)?, || self.segments.lookup(id))
    }
}

impl ChunkIndex for RepositoryIndex {
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        match &self.0 {
            Parts::Cached { all, .. } => all.lookup(id),
            Parts::Memory(memory) => memory.lookup(id),
        }
    }

    fn len(&self) -> u64 {
        match &self.0 {
            Parts::Cached { all, .. } => all.len(),
            Parts::Memory(memory) => memory.head.len() + memory.segments.len(),
        }
    }
}
