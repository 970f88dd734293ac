//! What decoding a delta needs: which old pages, from the pack's footer, and these pages, from their chunks.
//!
//! *Owns* two caches in memory, each bounded in bytes, least recently used out first: contents of packs ([`PackContents`]) of
//! a repository, and decoded base chunks of one reader. Sealed bases may also come from the disk, see [`BaseCache`]. Gathered pages and their bases both lie in file order, so a few dozen
//! chunks make scattered bases a sequential read. Two threads that miss the same contents both fetch them: harmless. A base
//! that one thread fetches the others wait for, and are handed, once they have fetched what nobody else does and hold no
//! claim any more: so no two wait for each other. Locks are held for look-ups only.

#[cfg(doc)]
use super::BaseCache;
use super::{ChunkSource, Plain, Repository};
use crate::index::{ChunkAt, ChunkIndex, Encoding};
use crate::pack::{BasePages, PackContents};
use crate::store::{Range, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::index::PackFacts;
use pgkeep_formats::repo::layout;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of footers and page hashes a repository keeps.
const CONTENTS_BYTES: usize = 96 << 20;
/// Bytes of decoded base chunks a reader keeps: 256 of the usual size.
const BASES_BYTES: usize = 64 << 20;
/// Most bytes of one get, unless one chunk is larger.
const SPAN_BYTES: u64 = 4 << 20;

/// Things by key, the least recently used dropped beyond a number of bytes.
pub(super) struct Bounded<K, V> {
    limit: usize,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    items: HashMap<K, (V, usize, u64)>,
    order: BTreeMap<u64, K>,
    clock: u64,
    bytes: usize,
}

impl<K: Copy + Eq + Hash, V: Clone> Bounded<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        let state = State { items: HashMap::new(), order: BTreeMap::new(), clock: 0, bytes: 0 };
        Self { limit, state: Mutex::new(state) }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let now = state.clock;
        let (value, _, used) = state.items.get_mut(key)?;
        let (value, before) = (value.clone(), std::mem::replace(used, now));
        state.order.remove(&before);
        state.order.insert(now, *key);
        Some(value)
    }

    fn holds(&self, key: &K) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).items.contains_key(key)
    }

    pub(super) fn put(&self, key: K, value: V, weight: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let now = state.clock;
        if let Some((_, old, used)) = state.items.insert(key, (value, weight, now)) {
            state.bytes -= old;
            state.order.remove(&used);
        }
        state.bytes += weight;
        state.order.insert(now, key);
        while state.bytes > self.limit
            && state.order.len() > 1
            && let Some((_, oldest)) = state.order.pop_first()
        {
            if let Some((_, weight, _)) = state.items.remove(&oldest) {
                state.bytes -= weight;
            }
        }
    }
}

/// Contents of the packs that were asked for last.
pub(super) struct ContentsCache(Bounded<PackId, Arc<PackContents>>);

impl Default for ContentsCache {
    fn default() -> Self {
        Self(Bounded::new(CONTENTS_BYTES))
    }
}

/// Base chunks decoded last.
pub(super) struct DecodedBases(Bounded<ChunkId, Plain>);

impl Default for DecodedBases {
    fn default() -> Self {
        Self(Bounded::new(BASES_BYTES))
    }
}

/// Base chunks that threads are decoding.
#[derive(Default)]
pub(super) struct InFlight(Mutex<HashMap<ChunkId, Arc<Slot>>>);

/// Where a decoded chunk is handed over.
#[derive(Default)]
struct Slot {
    landed: Mutex<Option<Landed>>,
    changed: Condvar,
}

/// What became of a chunk that another thread was decoding.
#[derive(Clone)]
enum Landed {
    Plain(Plain),
    /// Nothing can be read at all, not just this chunk.
    Failed(Kind, String),
    /// That thread has it not: this chunk is damaged, or another that it wanted as well.
    Abandoned,
}

/// Base chunks that one thread decodes; whoever waits is told at the latest when this is dropped.
struct Claims<'a> {
    of: &'a InFlight,
    mine: HashMap<ChunkId, Arc<Slot>>,
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, HashMap<ChunkId, Arc<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> Claims<'_> {
        Claims { of: self, mine: HashMap::new() }
    }
}

impl Slot {
    fn wait(&self) -> Landed {
        let landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        let landed = self.changed.wait_while(landed, |l| l.is_none()).unwrap_or_else(PoisonError::into_inner);
        landed.clone().unwrap_or(Landed::Abandoned)
    }
}

impl Claims<'_> {
    /// Where to wait for it, if another thread decodes it.
    fn take(&mut self, id: ChunkId) -> Option<Arc<Slot>> {
        match self.of.lock().entry(id) {
            Entry::Occupied(theirs) => Some(Arc::clone(theirs.get())),
            Entry::Vacant(free) => {
                self.mine.insert(id, Arc::clone(free.insert(Arc::default())));
                None
            }
        }
    }

    fn give(&mut self, id: &ChunkId, landed: Landed) {
        let Some(slot) = self.mine.remove(id) else { return };
        self.of.lock().remove(id);
        *slot.landed.lock().unwrap_or_else(PoisonError::into_inner) = Some(landed);
        slot.changed.notify_all();
    }

    fn give_all(&mut self, landed: &Landed) {
        let ids: Vec<ChunkId> = self.mine.keys().copied().collect();
        ids.iter().for_each(|id| self.give(id, landed.clone()));
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        self.give_all(&Landed::Abandoned);
    }
}

impl Repository {
    /// Footer and page hashes of a pack.
    ///
    /// # Errors
    /// As [`PackContents::read`].
    pub fn pack_contents(&self, facts: &PackFacts) -> Result<Arc<PackContents>> {
        if let Some(found) = self.contents.0.get(&facts.pack) {
            return Ok(found);
        }
        let contents = Arc::new(PackContents::read(self, facts.pack, facts.size)?);
        self.contents.0.put(facts.pack, Arc::clone(&contents), contents.weight());
        Ok(contents)
    }

    /// Calls `each` for every chunk that the one at this place cannot be decoded without.
    ///
    /// # Errors
    /// As [`Self::pack_contents`]; what `each` said.
    pub fn dependencies(&self, at: &ChunkAt, each: &mut dyn FnMut(&ChunkId) -> Result<()>) -> Result<()> {
        match at.encoding {
            Encoding::Raw | Encoding::Zstd => Ok(()),
            Encoding::ZstdDictionary | Encoding::ZstdPrefix | Encoding::Patch => {
                let contents = self.pack_contents(&at.pack)?;
                contents.dependencies(at.ordinal).try_for_each(|id| each(&id))
            }
        }
    }
}

impl Repository {
    /// Whether the chunk at this place can be decoded as far as the index knows: all it builds on is there, in full.
    ///
    /// # Errors
    /// As [`Self::pack_contents`]; what the index said.
    pub fn is_complete(&self, index: &dyn ChunkIndex, at: &ChunkAt) -> Result<bool> {
        let mut complete = true;
        self.dependencies(at, &mut |base| {
            complete &= index.lookup(base)?.is_some_and(|at| !at.encoding.is_delta());
            Ok(())
        })?;
        Ok(complete)
    }
}

impl ChunkSource {
    /// Bytes fetched so far to decode deltas.
    #[must_use]
    pub fn base_bytes(&self) -> u64 {
        self.base_bytes.load(Ordering::Relaxed)
    }

    /// Whether a decoded chunk was kept; asking is no use of it.
    pub(crate) fn keeps_base(&self, id: &ChunkId) -> bool {
        self.bases.0.holds(id)
    }

    /// A decoded chunk that was kept.
    pub(crate) fn kept_base(&self, id: &ChunkId) -> Option<Plain> {
        self.bases.0.get(id)
    }

    /// Keeps a decoded chunk that deltas may soon need.
    pub fn offer_base(&self, id: ChunkId, plain: &Plain) {
        self.bases.0.put(id, Arc::clone(plain), plain.capacity());
    }

    /// The old pages that the chunk at this place was encoded against, joined in `out`. `page` is their size in bytes.
    ///
    /// # Errors
    /// As [`ChunkSource::read`], naming the base; `Format` if the footer's runs do not fit their chunks.
    pub(super) fn base_pages(&self, id: &ChunkId, at: &ChunkAt, page: usize, out: &mut Vec<u8>) -> Result<()> {
        let contents = self.repository().pack_contents(&at.pack)?;
        if contents.id(at.ordinal) != Some(*id) {
            let text = format!("chunk {id} is not where the index says in '{}'", layout::pack(at.pack.pack));
            return Err(Error::refused(Kind::Format, text));
        }
        self.join_pages(&contents.bases(at.ordinal), page, out)
    }

    /// Joins runs of pages of base chunks in `out`, whatever that held before. Beside it, the chunks of one get are in
    /// memory at a time.
    ///
    /// # Errors
    /// As [`ChunkSource::read`]; `Format` if a run does not fit its chunk.
    pub fn join_pages(&self, runs: &[BasePages], page: usize, out: &mut Vec<u8>) -> Result<()> {
        let total = runs.iter().fold(0usize, |sum, r| sum.saturating_add((r.pages as usize).saturating_mul(page)));
        if total > BASE_BYTES_MAX {
            return Err(Error::refused(Kind::Format, format!("a delta needs {total} bytes of old pages")));
        }
        // Every byte is written below: clearing what a buffer held before would only cost.
        out.resize(total, 0);
        let mut at = 0;
        let mut places: HashMap<ChunkId, Vec<(&BasePages, usize)>> = HashMap::new();
        for run in runs {
            places.entry(run.chunk).or_default().push((run, at));
            at += run.pages as usize * page;
        }
        let mut ids: Vec<ChunkId> = places.keys().copied().collect();
        ids.sort_unstable();
        self.each_base(&ids, &mut |id, plain| {
            for (run, to) in places.get(id).into_iter().flatten() {
                let (from, len) = (run.first as usize * page, run.pages as usize * page);
                let wrong =
                    || Error::refused(Kind::Format, format!("a delta needs {len} bytes from {from} on of chunk {id}"));
                let pages = plain.get(from..from + len).ok_or_else(wrong)?;
                out.get_mut(*to..to + len).ok_or_else(wrong)?.copy_from_slice(pages);
            }
            Ok(())
        })
    }

    /// Calls `each` for decoded base chunks, from the cache or the store, in any order. Neighbours in a pack come with one get.
    fn each_base(&self, ids: &[ChunkId], each: &mut dyn FnMut(&ChunkId, &Plain) -> Result<()>) -> Result<()> {
        let mut missing: Vec<(ChunkId, ChunkAt)> = Vec::new();
        for id in ids {
            match self.bases.0.get(id) {
                Some(plain) => each(id, &plain)?,
                None => {
                    let at = self.locate(id).map_err(|e| e.during(format!("cannot read base chunk {id}")))?;
                    // Depth is one: a base that needs a base is a forgery or a fault, and could go round in circles.
                    if !matches!(at.encoding, Encoding::Raw | Encoding::Zstd) {
                        let text = format!("chunk {id} is the base of a delta and a delta itself");
                        return Err(Error::refused(Kind::Format, text));
                    }
                    missing.push((*id, at));
                }
            }
        }
        missing.sort_unstable_by_key(|(_, at)| (at.pack.pack, at.offset));
        if self.announces && missing.len() > 1 {
            self.will_read(&missing);
        }
        let (end, gap) = (|at: &ChunkAt| u64::from(at.offset) + u64::from(at.stored_len), self.store().gap());
        let mut theirs: Vec<(ChunkId, ChunkAt, Arc<Slot>)> = Vec::new();
        let mut rest = missing.as_slice();
        while let Some((_, first)) = rest.first() {
            let start = u64::from(first.offset);
            let mut stop = end(first);
            let joined = rest.iter().take_while(|(_, at)| {
                let fits = at.pack.pack == first.pack.pack
                    && u64::from(at.offset) <= stop + gap
                    && (end(at) - start <= SPAN_BYTES || at.offset == first.offset);
                if fits {
                    stop = stop.max(end(at));
                }
                fits
            });
            let (now, later) = rest.split_at(joined.count().max(1));
            theirs.extend(self.span_unclaimed(now, each)?);
            rest = later;
        }
        for (id, at, slot) in theirs {
            match slot.wait() {
                Landed::Plain(plain) => each(&id, &plain)?,
                Landed::Failed(kind, text) => return Err(Error::refused(kind, text)),
                Landed::Abandoned => {
                    let (start, len) = (at.offset.into(), at.stored_len as usize);
                    for (id, plain) in self.span_of_bases(&[(id, at)], start, len)? {
                        self.offer_base(id, &plain);
                        each(&id, &plain)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls `each` for chunks that lie together in a pack, but for those that other threads are decoding: these are
    /// returned, with where to wait for them.
    fn span_unclaimed(
        &self,
        chunks: &[(ChunkId, ChunkAt)],
        each: &mut dyn FnMut(&ChunkId, &Plain) -> Result<()>,
    ) -> Result<Vec<(ChunkId, ChunkAt, Arc<Slot>)>> {
        let mut claims = self.bases_in_flight.claims();
        let (mut mine, mut theirs) = (Vec::with_capacity(chunks.len()), Vec::new());
        for (id, at) in chunks {
            if let Some(slot) = claims.take(*id) {
                theirs.push((*id, at.clone(), slot));
                continue;
            }
            match self.bases.0.get(id) {
                // Kept between the first look and the claim.
                Some(plain) => {
                    claims.give(id, Landed::Plain(Arc::clone(&plain)));
                    each(id, &plain)?;
                }
                None => mine.push((*id, at.clone())),
            }
        }
        let Some(start) = mine.first().map(|(_, at)| u64::from(at.offset)) else { return Ok(theirs) };
        let stop = mine.iter().map(|(_, at)| u64::from(at.offset) + u64::from(at.stored_len)).max().unwrap_or(start);
        let opened = self.span_of_bases(&mine, start, (stop - start) as usize);
        // Which of the chunks is to blame only those can tell who want it alone.
        let opened = opened.inspect_err(|e| {
            if e.concerns_the_run() {
                claims.give_all(&Landed::Failed(e.kind(), e.chain()));
            }
        })?;
        for (id, plain) in opened {
            self.offer_base(id, &plain);
            claims.give(&id, Landed::Plain(Arc::clone(&plain)));
            each(&id, &plain)?;
        }
        Ok(theirs)
    }

    /// Lets the store bring base chunks nearer, so that it works while others are decoded. They come in the order of their
    /// places. Nothing happens for those that come from elsewhere.
    pub(crate) fn will_read(&self, chunks: &[(ChunkId, ChunkAt)]) {
        if !self.fetches_bases {
            return;
        }
        for packed in chunks.chunk_by(|(_, a), (_, b)| a.pack.pack == b.pack.pack) {
            let Some(pack) = packed.first().map(|(_, at)| at.pack.pack) else { continue };
            if self.base_cache.as_ref().is_none_or(|cache| !cache.has(pack)) {
                let spans: Vec<_> = packed.iter().map(|(_, at)| (at.offset.into(), at.stored_len as usize)).collect();
                self.store().will_get(&layout::pack(pack), &spans);
            }
        }
    }

    /// Chunks that lie together in a pack, from `start` on: from the base cache if it has them, else from the store.
    fn span_of_bases(&self, chunks: &[(ChunkId, ChunkAt)], start: u64, len: usize) -> Result<Vec<(ChunkId, Plain)>> {
        let Some(pack) = chunks.first().map(|(_, at)| at.pack.pack) else { return Ok(Vec::new()) };
        let open = |mut blob: Vec<u8>| {
            let each = chunks.iter().map(|(id, at)| {
                let from = (u64::from(at.offset) - start) as usize;
                let sealed = blob.get_mut(from..from + at.stored_len as usize).unwrap_or_default();
                Ok((*id, Arc::new(self.open(id, at, sealed)?)))
            });
            each.collect::<Result<Vec<_>>>()
        };
        if let Some(cache) = &self.base_cache
            && let Some(blob) = cache.read(pack, start, len)
        {
            match open(blob) {
                Ok(opened) => return Ok(opened),
                Err(e) => cache.forget(pack, &e),
            }
        }
        let ids = || chunks.first().map_or_else(String::new, |(id, _)| id.to_string());
        if !self.fetches_bases {
            return Err(Error::refused(Kind::FileMissing, format!("base chunk {} is not in the base cache", ids())));
        }
        let blob = match self.store().get(&layout::pack(pack), Range::Span { offset: start, len }) {
            Err(StoreError::NotFound { key, store }) => {
                let gone = || Error::from(StoreError::NotFound { key: key.clone(), store: store.clone() });
                let moved = |(id, _): &(ChunkId, ChunkAt)| {
                    let plain = self.read_elsewhere(id, pack, gone().during(format!("cannot read base chunk {id}")))?;
                    Ok((*id, Arc::new(plain)))
                };
                return chunks.iter().map(moved).collect();
            }
            blob => blob.map_err(|e| Error::from(e).during(format!("cannot read base chunk {}", ids())))?,
        };
        self.base_bytes.fetch_add(len as u64, Ordering::Relaxed);
        open(blob)
    }
}

/// Most bytes of base pages a chunk may need: FORMAT.md, "Limits".
const BASE_BYTES_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_the_newest_always_stays() {
        let cache: Bounded<u32, u32> = Bounded::new(100);
        cache.put(1, 10, 40);
        cache.put(2, 20, 40);
        assert_eq!(cache.get(&1), Some(10));
        cache.put(3, 30, 40);
        assert_eq!((cache.get(&1), cache.get(&2), cache.get(&3)), (Some(10), None, Some(30)));
        cache.put(3, 31, 90);
        assert_eq!((cache.get(&1), cache.get(&3)), (None, Some(31)));
        cache.put(4, 40, 1000);
        assert_eq!((cache.get(&3), cache.get(&4)), (None, Some(40)));
        assert_eq!(cache.state.lock().unwrap().bytes, 1000);
    }

    #[test]
    fn what_one_decodes_the_others_are_handed_and_a_failure_too() {
        let flights = InFlight::default();
        let id = |n: u8| ChunkId([n; 32]);
        let mut claims = flights.claims();
        assert!(claims.take(id(1)).is_none() && claims.take(id(2)).is_none() && claims.take(id(3)).is_none());
        let slots: Vec<_> = [1, 2, 3].map(|n| flights.claims().take(id(n)).unwrap()).into();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = slots.iter().map(|slot| scope.spawn(|| slot.wait())).collect();
            claims.give(&id(1), Landed::Plain(Arc::new(vec![7])));
            claims.give(&id(2), Landed::Failed(Kind::Checksum, "damaged".to_owned()));
            // As by an early return or a panic.
            drop(claims);
            let landed: Vec<_> = waiting.into_iter().map(|w| w.join().unwrap()).collect();
            assert!(matches!(&landed[0], Landed::Plain(plain) if **plain == [7]));
            assert!(matches!(&landed[1], Landed::Failed(Kind::Checksum, text) if text == "damaged"));
            assert!(matches!(landed[2], Landed::Abandoned));
        });
        // All are free again.
        let mut claims = flights.claims();
        assert!([1, 2, 3].iter().all(|n| claims.take(id(*n)).is_none()));
    }
}
