//! The mutable head of the index: chunks the running session wrote, and facts it wants to look up again, in
//! sled 0.34.
//!
//! Everything here can be had again (chunks from the footers of the session's packs, facts from wherever they
//! were computed), so nothing is flushed and the directory is new for every opening. Invariants:
//! - *No false hit*. A value carries a MAC over itself, its key and its generation, under a key drawn afresh for
//!   every opening. Whatever is in the files, a lookup returns what this value inserted, or nothing.
//! - *No silent loss*. [`Head::drain`] compares what it reads with the number of chunks inserted and fails with
//!   [`IndexError::Lost`] if one is missing.
//! - *sled cannot end the run*. When it fails or panics its directory is moved away, a warning is written, and a
//!   map in memory takes over, with what could still be read.
//!
//! A generation takes [`HeadOptions::max_chunks`] chunks, then inserting fails with [`IndexError::Full`]: call
//! `drain`, publish and install the segment, `release`, insert again. Until `release` the drained chunks answer
//! lookups; meanwhile inserts go to a new generation.
//!
//! Threads: any may call anything. Inserts and lookups share a read lock, also over sled's file access, because
//! `drain` must wait for inserts in flight: one that ended in a generation already drained would be lost.

mod bloom;
mod place;
mod table;

use super::error::IndexError;
use super::{ChunkAt, ChunkIndex, ChunkIndexMut, Encoding, PackFacts};
use bloom::Bloom;
use pgkeep_formats::codec::Reader;
use pgkeep_formats::id::{ChunkId, PackId, SessionId};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::index::{IndexBuilder, IndexEntry};
use place::Place;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use table::{Fault, Table};
use zeroize::Zeroizing;

/// Chunks in one generation: half of a full segment, for about 110 MiB of sled. Its memory is what bounds this:
/// at millions of entries it takes 290 B to 2.9 KiB for each.
pub const HEAD_MAX_CHUNKS: u64 = 1 << 19;
/// Facts kept; more are not remembered.
pub const HEAD_MAX_FACTS: u64 = 1 << 20;
/// Bytes one generation may use for sled's page cache. What sled needs beside that grows with its entries.
pub const HEAD_CACHE_BYTES: u64 = 32 << 20;

const MAC_LEN: usize = 16;
/// Ordinal, offset, two lengths, kind, encoding.
const PLACE_LEN: usize = 4 * 4 + 4;
/// The generation under which facts are authenticated: no generation of chunks gets that far.
const FACTS: u64 = u64::MAX;

/// Limits of a head.
#[derive(Debug, Clone, Copy)]
pub struct HeadOptions {
    /// See [`HEAD_MAX_CHUNKS`].
    pub max_chunks: u64,
    /// See [`HEAD_MAX_FACTS`].
    pub max_facts: u64,
    /// See [`HEAD_CACHE_BYTES`].
    pub cache_bytes: u64,
}

impl Default for HeadOptions {
    fn default() -> Self {
        Self { max_chunks: HEAD_MAX_CHUNKS, max_facts: HEAD_MAX_FACTS, cache_bytes: HEAD_CACHE_BYTES }
    }
}

#[derive(Default)]
struct Packs {
    facts: Vec<Arc<PackFacts>>,
    ordinals: HashMap<PackId, u32>,
}

struct Generation {
    number: u64,
    table: Table,
    bloom: Bloom,
    packs: RwLock<Packs>,
    /// Chunks for which `insert` returned true.
    inserted: AtomicU64,
}

struct State {
    /// `None` once the head lives in memory.
    place: Option<Place>,
    active: Generation,
    draining: Option<Generation>,
    facts: Table,
    facts_held: AtomicU64,
}

/// The head of one writing session.
pub struct Head {
    key: Zeroizing<[u8; 32]>,
    options: HeadOptions,
    state: RwLock<State>,
}

impl Head {
    /// Opens an empty head in a directory of its own under `cache_dir`, and removes those of dead processes.
    ///
    /// Without a directory the head lives in memory, which its options bound; so it does, with a warning, if sled or the
    /// directory fails. Blocks on local files.
    #[must_use]
    pub fn open(cache_dir: Option<&Path>, session: SessionId, key: &[u8; 32], options: HeadOptions) -> Self {
        let mut nonce = [0u8; 32];
        // Without randomness the run ends soon enough elsewhere; here only a hit on leftovers must be impossible.
        let fresh = getrandom::fill(&mut nonce).is_ok();
        let mut hasher = blake3::Hasher::new_keyed(key);
        hasher.update(b"pgkeep index head").update(&nonce);
        let key = Zeroizing::new(*hasher.finalize().as_bytes());
        let state = match cache_dir {
            None => State::in_memory(&options),
            Some(_) if !fresh => State::in_memory(&options),
            Some(dir) => State::on_disk(dir, session, &options).unwrap_or_else(|reason| {
                tracing::warn!("cannot open the head of the index, keeping it in memory: {reason}");
                State::in_memory(&options)
            }),
        };
        Self { key, options, state: RwLock::new(state) }
    }

    /// True while sled holds the head, false once a map in memory does.
    #[must_use]
    pub fn is_on_disk(&self) -> bool {
        self.read().place.is_some()
    }

    /// True if the next new chunk would be refused with [`IndexError::Full`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.read().active.inserted.load(Ordering::Relaxed) >= self.options.max_chunks
    }

    /// What must be published: all chunks inserted so far, or `None` if there are none. Inserts go to a new
    /// generation from now on. Until [`Self::release`], calling again gives the same chunks.
    ///
    /// # Errors
    /// [`IndexError::Lost`] if not all of them can be read back: publish them from the footers of the session's
    /// packs, then release.
    pub fn drain(&self) -> Result<Option<IndexBuilder>, IndexError> {
        self.rotate()?;
        let collected = {
            let state = self.read();
            let Some(generation) = &state.draining else { return Ok(None) };
            self.collect(generation)
        };
        match collected {
            Ok(builder) => builder.map(Some),
            Err(fault) => {
                self.fall_back(&fault);
                let state = self.read();
                let Some(generation) = &state.draining else { return Ok(None) };
                self.collect(generation).unwrap_or_else(|_| Err(lost(generation, 0))).map(Some)
            }
        }
    }

    /// Forgets what [`Self::drain`] gave. Call it when the segment is published and installed.
    pub fn release(&self) {
        let (generation, dir) = {
            let mut state = self.write();
            let Some(generation) = state.draining.take() else { return };
            let dir = state.place.as_ref().map(|place| place.dir().join(database(generation.number)));
            (generation, dir)
        };
        table::close(vec![generation.table]);
        if let Some(dir) = dir {
            place::remove(&dir);
        }
    }

    /// Remembers a fact for this run, unless [`HeadOptions::max_facts`] are held already.
    pub fn put_fact(&self, name: &[u8], value: &[u8]) {
        let key = self.fact_key(name);
        let mut sealed = value.to_vec();
        sealed.extend_from_slice(&self.mac(FACTS, &key, value));
        self.on_table(|state| {
            if state.facts_held.fetch_add(1, Ordering::Relaxed) >= self.options.max_facts {
                state.facts_held.fetch_sub(1, Ordering::Relaxed);
                return Ok(());
            }
            state.facts.put(&key, &sealed)
        });
    }

    /// A fact as it was remembered by this run, if it still is.
    #[must_use]
    pub fn fact(&self, name: &[u8]) -> Option<Vec<u8>> {
        let key = self.fact_key(name);
        let sealed = self.on_table(|state| state.facts.get(&key))?;
        self.opened(FACTS, &key, &sealed).map(<[u8]>::to_vec)
    }

    fn fact_key(&self, name: &[u8]) -> table::Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"fact").update(name);
        *hasher.finalize().as_bytes()
    }

    fn mac(&self, generation: u64, key: &table::Key, value: &[u8]) -> [u8; MAC_LEN] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&generation.to_le_bytes()).update(key).update(value);
        let mut out = [0; MAC_LEN];
        hasher.finalize_xof().fill(&mut out);
        out
    }

    /// The value without its MAC, if that is right.
    fn opened<'a>(&self, generation: u64, key: &table::Key, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (value, mac) = sealed.split_last_chunk::<MAC_LEN>()?;
        // Not constant time: who can watch our timing this closely can read our memory.
        (self.mac(generation, key, value) == *mac).then_some(value)
    }

    fn find(&self, generation: &Generation, id: &ChunkId) -> Result<Option<ChunkAt>, Fault> {
        if !generation.bloom.may_hold(&id.0) {
            return Ok(None);
        }
        let sealed = generation.table.get(&id.0)?;
        Ok(sealed.and_then(|sealed| generation.chunk_at(self.opened(generation.number, &id.0, &sealed)?)))
    }

    fn find_any(&self, state: &State, id: &ChunkId) -> Result<Option<ChunkAt>, Fault> {
        match self.find(&state.active, id)? {
            None => state.draining.as_ref().map_or(Ok(None), |generation| self.find(generation, id)),
            found => Ok(found),
        }
    }

    fn insert_into(&self, state: &State, id: &ChunkId, at: &ChunkAt) -> Result<Result<bool, IndexError>, Fault> {
        let generation = &state.active;
        // The swap below would find it too; this spares counting, and answers for a full head.
        if self.find_any(state, id)?.is_some() {
            return Ok(Ok(false));
        }
        let Some(ordinal) = generation.ordinal(&at.pack) else {
            return Ok(Err(IndexError::Misuse("a pack was inserted twice, with different facts")));
        };
        // Counted before it is there, so that the limit holds for threads inserting at once.
        let before = generation.inserted.fetch_add(1, Ordering::Relaxed);
        let uncount = || generation.inserted.fetch_sub(1, Ordering::Relaxed);
        if before >= self.options.max_chunks {
            return Ok(Err(IndexError::Full { entries: uncount() - 1 }));
        }
        let mut sealed = encode_place(ordinal, at);
        sealed.extend_from_slice(&self.mac(generation.number, &id.0, &sealed));
        generation.bloom.add(&id.0);
        let mut old: Option<Vec<u8>> = None;
        loop {
            match generation.table.swap(&id.0, old.as_deref(), &sealed) {
                Ok(Ok(())) => return Ok(Ok(true)),
                // Another thread was faster, or the value is not ours and is replaced.
                Ok(Err(current)) => {
                    let known = current.as_deref().and_then(|v| self.opened(generation.number, &id.0, v));
                    if known.is_some() {
                        uncount();
                        return Ok(Ok(false));
                    }
                    old = current;
                }
                Err(fault) => {
                    uncount();
                    return Err(fault);
                }
            }
        }
    }

    /// Begins a new generation, unless an old one is still draining or there is nothing to drain.
    fn rotate(&self) -> Result<(), IndexError> {
        let fault = {
            let mut state = self.write();
            if state.draining.is_some() || state.active.inserted.load(Ordering::Relaxed) == 0 {
                return Ok(());
            }
            let number = state.active.number + 1;
            let (table, fault) = match state.place.as_ref().map(|place| self.options.table(place, &database(number))) {
                Some(Ok(table)) => (table, None),
                Some(Err(fault)) => (Table::in_memory(), Some(fault)),
                None => (Table::in_memory(), None),
            };
            let full = std::mem::replace(&mut state.active, Generation::new(number, table, &self.options));
            state.draining = Some(full);
            fault
        };
        if let Some(fault) = fault {
            self.fall_back(&fault);
        }
        Ok(())
    }

    fn collect(&self, generation: &Generation) -> Result<Result<IndexBuilder, IndexError>, Fault> {
        let mut builder = IndexBuilder::new();
        let packs = generation.packs.read().unwrap_or_else(PoisonError::into_inner).facts.clone();
        for facts in &packs {
            if let Err(source) = builder.pack(facts) {
                return Ok(Err(IndexError::Place { source }));
            }
        }
        let mut failed = None;
        generation.table.for_each(|key, sealed| {
            let place = self.opened(generation.number, key, sealed).and_then(decode_place);
            let Some((pack, at)) = place else { return };
            let (offset, stored_len, plain_len, kind, encoding, ordinal) = at;
            let entry = IndexEntry { id: ChunkId(*key), pack, offset, stored_len, plain_len, kind, encoding, ordinal };
            if let Err(source) = builder.add(&entry) {
                failed = Some(source);
            }
        })?;
        if let Some(source) = failed {
            return Ok(Err(IndexError::Place { source }));
        }
        let found = builder.len() as u64;
        if found == generation.inserted.load(Ordering::Relaxed) {
            Ok(Ok(builder))
        } else {
            Ok(Err(lost(generation, found)))
        }
    }

    /// Runs `work`; after a fault, once more on the map that replaced sled.
    fn on_table<T: Default>(&self, work: impl Fn(&State) -> Result<T, Fault>) -> T {
        let first = work(&self.read());
        first.unwrap_or_else(|fault| {
            self.fall_back(&fault);
            // Maps have no faults.
            work(&self.read()).unwrap_or_default()
        })
    }

    fn fall_back(&self, fault: &Fault) {
        self.write().fall_back(fault);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChunkIndex for Head {
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        Ok(self.on_table(|state| self.find_any(state, id)))
    }

    fn len(&self) -> u64 {
        let state = self.read();
        let held = |generation: &Generation| generation.inserted.load(Ordering::Relaxed);
        held(&state.active) + state.draining.as_ref().map_or(0, held)
    }
}

impl ChunkIndexMut for Head {
    fn insert(&self, id: ChunkId, at: ChunkAt) -> Result<bool, IndexError> {
        self.on_table(|state| self.insert_into(state, &id, &at).map(Some))
            .unwrap_or(Err(IndexError::Misuse("the head of the index has no table")))
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        // Before the place goes, whose drop removes the files.
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let tables = state.tables().map(|table| std::mem::replace(table, Table::in_memory())).collect();
        table::close(tables);
    }
}

impl HeadOptions {
    fn table(&self, place: &Place, name: &str) -> Result<Table, Fault> {
        Table::on_disk(&place.dir().join(name), self.cache_bytes)
    }
}

impl State {
    fn on_disk(cache_dir: &Path, session: SessionId, options: &HeadOptions) -> Result<Self, String> {
        let place = Place::take(&cache_dir.join("head"), &session.to_string()).map_err(|e| e.to_string())?;
        let tables =
            options.table(&place, &database(0)).and_then(|chunks| Ok((chunks, options.table(&place, "facts")?)));
        let (chunks, facts) = tables.map_err(|fault| fault.message)?;
        Ok(Self { place: Some(place), facts, ..Self::with(chunks, options) })
    }

    fn in_memory(options: &HeadOptions) -> Self {
        Self::with(Table::in_memory(), options)
    }

    fn with(chunks: Table, options: &HeadOptions) -> Self {
        let active = Generation::new(0, chunks, options);
        Self { place: None, active, draining: None, facts: Table::in_memory(), facts_held: AtomicU64::new(0) }
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut Table> {
        let draining = self.draining.as_mut().map(|generation| &mut generation.table);
        [&mut self.active.table, &mut self.facts].into_iter().chain(draining)
    }

    /// Replaces every sled table by a map. Several threads may have met the fault: the first one does it.
    fn fall_back(&mut self, fault: &Fault) {
        let Some(place) = self.place.take() else { return };
        tracing::warn!("the head of the index failed, keeping it in memory for this run: {}", fault.message);
        let tables = self.tables().map(|table| std::mem::replace(table, table.salvage(fault))).collect();
        if fault.panicked {
            // Their destructors take the locks that the panic may have left taken.
            std::mem::forget::<Vec<Table>>(tables);
        } else {
            table::close(tables);
        }
        if let Err(e) = place.move_away() {
            tracing::debug!("{e}");
        }
    }
}

impl Generation {
    fn new(number: u64, table: Table, options: &HeadOptions) -> Self {
        let bloom = Bloom::for_ids(options.max_chunks);
        Self { number, table, bloom, packs: RwLock::default(), inserted: AtomicU64::new(0) }
    }

    fn ordinal(&self, facts: &Arc<PackFacts>) -> Option<u32> {
        let same = |packs: &Packs, n: u32| packs.facts.get(n as usize).is_some_and(|known| *known == *facts);
        {
            let packs = self.packs.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(n) = packs.ordinals.get(&facts.pack) {
                return same(&packs, *n).then_some(*n);
            }
        }
        let mut packs = self.packs.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = packs.ordinals.get(&facts.pack) {
            return same(&packs, *n).then_some(*n);
        }
        let n = u32::try_from(packs.facts.len()).ok()?;
        packs.facts.push(Arc::clone(facts));
        packs.ordinals.insert(facts.pack, n);
        Some(n)
    }

    fn chunk_at(&self, value: &[u8]) -> Option<ChunkAt> {
        let (pack, (offset, stored_len, plain_len, kind, encoding, ordinal)) = decode_place(value)?;
        let packs = self.packs.read().unwrap_or_else(PoisonError::into_inner);
        let pack = Arc::clone(packs.facts.get(pack as usize)?);
        Some(ChunkAt { pack, offset, stored_len, plain_len, kind, encoding, ordinal })
    }
}

type PlaceInPack = (u32, u32, u32, ChunkKind, Encoding, u16);

fn encode_place(pack: u32, at: &ChunkAt) -> Vec<u8> {
    let mut out = Vec::with_capacity(PLACE_LEN + MAC_LEN);
    for field in [pack, at.offset, at.stored_len, at.plain_len] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&[at.kind.as_u8(), at.encoding.as_u8()]);
    out.extend_from_slice(&at.ordinal.to_le_bytes());
    out
}

fn decode_place(value: &[u8]) -> Option<(u32, PlaceInPack)> {
    let mut r = Reader::new(value);
    let mut field = || r.u32("place").ok();
    let (pack, offset, stored_len, plain_len) = (field()?, field()?, field()?, field()?);
    let (kind, encoding) = (ChunkKind::read(&mut r).ok()?, Encoding::read(&mut r).ok()?);
    let ordinal = r.u16("place").ok()?;
    r.finish("place").ok()?;
    Some((pack, (offset, stored_len, plain_len, kind, encoding, ordinal)))
}

/// The directory of a generation's database inside the place.
fn database(generation: u64) -> String {
    format!("chunks-{generation}")
}

fn lost(generation: &Generation, found: u64) -> IndexError {
    let entries = generation.inserted.load(Ordering::Relaxed);
    IndexError::Lost { entries, lost: entries.abs_diff(found).max(1) }
}

#[cfg(test)]
mod tests;
