//! What a session deduplicates against: its own head, and the repository's segments minus condemned packs.

use super::error::IndexError;
use super::{ChunkAt, ChunkIndex, ChunkIndexMut, SegmentSet};
use pgkeep_formats::id::{ChunkId, PackId};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Fetches and opens index objects, for segments whose local copy is gone.
pub trait SegmentSource: Send + Sync {
    /// The decrypted payload of an index object. Blocks on the store.
    ///
    /// # Errors
    /// Any failure of the store or of decryption.
    fn payload(&self, object: &str) -> crate::Result<Vec<u8>>;
}

/// Head and segments as one index.
///
/// A chunk in a condemned pack is a miss (DESIGN §5, W3 and W6), unless it lies in another pack too. With a
/// source, segments found damaged are fetched again within the lookup; without one the error reaches the caller.
pub struct CombinedIndex {
    head: Arc<dyn ChunkIndexMut>,
    segments: Arc<SegmentSet>,
    condemned: RwLock<Arc<HashSet<PackId>>>,
    source: Option<Arc<dyn SegmentSource>>,
    /// Held while a segment is fetched, so that it is fetched once though many threads miss it.
    repair: Mutex<()>,
}

impl CombinedIndex {
    /// Joins the parts. `condemned` are the packs condemned in the generation the session started from.
    #[must_use]
    pub fn new(
        head: Arc<dyn ChunkIndexMut>,
        segments: Arc<SegmentSet>,
        condemned: HashSet<PackId>,
        source: Option<Arc<dyn SegmentSource>>,
    ) -> Self {
        Self { head, segments, condemned: RwLock::new(Arc::new(condemned)), source, repair: Mutex::new(()) }
    }

    /// Replaces the condemned packs, as read from a newer generation.
    pub fn set_condemned(&self, condemned: HashSet<PackId>) {
        *self.condemned.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(condemned);
    }

    /// Fetches and installs every wanted segment that is missing; returns how many that were.
    ///
    /// # Errors
    /// [`IndexError::Fetch`] if one cannot be had, [`IndexError::Incomplete`] if there is no source, and those of
    /// [`SegmentSet::install`].
    pub fn repair(&self) -> Result<usize, IndexError> {
        let missing = self.segments.missing();
        for object in &missing {
            self.refetch(object)?;
        }
        Ok(missing.len())
    }

    fn refetch(&self, object: &str) -> Result<(), IndexError> {
        let source = self.source.as_ref().ok_or_else(|| IndexError::Incomplete { object: object.to_owned() })?;
        let _one_at_a_time = self.repair.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self.segments.missing().iter().any(|name| name == object);
        let Some(size) = self.segments.size_of(object).filter(|_| wanted) else { return Ok(()) };
        let payload = source.payload(object);
        let payload = payload.map_err(|e| IndexError::Fetch { object: object.to_owned(), source: Box::new(e) })?;
        self.segments.install(object, size, &payload)
    }

    fn lookup_segments(&self, id: &ChunkId, condemned: &HashSet<PackId>) -> Result<Option<ChunkAt>, IndexError> {
        // Each segment may be fetched again once, and once more for what failed meanwhile. Beyond that, a disk that damages
        // what is written to it is not cured by writing more.
        let (mut repairs, repairs_max) = (0, self.segments.count() + 1);
        loop {
            let failed = match self.segments.lookup_where(id, |facts| !condemned.contains(&facts.pack)) {
                Err(e) if self.source.is_some() && e.rebuild().is_some() && repairs < repairs_max => e,
                answer => return answer,
            };
            repairs += 1;
            tracing::debug!("{failed}: repairing");
            self.repair()?;
        }
    }
}

/// The first place unless it is a delta, then the other if that is none.
pub(crate) fn in_full_first(
    first: Option<ChunkAt>,
    other: impl FnOnce() -> Result<Option<ChunkAt>, IndexError>,
) -> Result<Option<ChunkAt>, IndexError> {
    match first {
        Some(at) if !at.encoding.is_delta() => Ok(Some(at)),
        Some(at) => Ok(other()?.filter(|o| !o.encoding.is_delta()).or(Some(at))),
        None => other(),
    }
}

impl ChunkIndex for CombinedIndex {
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        let condemned = Arc::clone(&self.condemned.read().unwrap_or_else(PoisonError::into_inner));
        let head = self.head.lookup(id)?.filter(|at| !condemned.contains(&at.pack.pack));
        in_full_first(head, || self.lookup_segments(id, &condemned))
    }

    fn len(&self) -> u64 {
        self.head.len() + self.segments.len()
    }
}

impl ChunkIndexMut for CombinedIndex {
    fn insert(&self, id: ChunkId, at: ChunkAt) -> Result<bool, IndexError> {
        if self.lookup(&id)?.is_some() {
            return Ok(false);
        }
        self.head.insert(id, at)
    }
}
