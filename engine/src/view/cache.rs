//! Decoded chunks in memory, shared by all files of all backups and clones that one process serves.
//!
//! *Owns* which chunks are kept and who fetches one. What is kept counts against a limit, the least recently used goes
//! first. One thread fetches a chunk (a *flight*), others that want it wait for that. Failures are told to those who
//! wait and then forgotten: the next reader tries again.
//!
//! *No deadlock.* The lock is held for look-ups only, never while a store is read or a chunk is opened. A thread first
//! lands all flights it has begun and only then waits for those of others, so nobody waits for a waiter. A panic lands
//! its flights as abandoned, and whoever waits takes over.
//!
//! *Memory.* The limit, and per reading thread what [`fetch`] has in its hands: at most [`WANTED_MAX`] chunks.

mod fetch;
#[cfg(test)]
mod tests;

use crate::repository::{ChunkSource, Plain};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::ChunkId;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Decoded bytes kept unless asked otherwise.
pub const CACHE_BYTES_DEFAULT: usize = 64 << 20;
/// Most chunks one call may ask for: with chunks of 1 MiB, 16 MiB in a reader's hands.
pub(super) const WANTED_MAX: usize = 16;
/// What a chunk costs beside its bytes: entries in two maps, two allocations.
const ENTRY_BYTES: usize = 256;

/// Keeps decoded chunks. Any thread may use it; ids of different repositories never collide.
pub struct ChunkCache {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: HashMap<ChunkId, Slot>,
    /// Ready chunks by their last use.
    order: BTreeMap<u64, ChunkId>,
    clock: u64,
    bytes: usize,
}

enum Slot {
    Ready { plain: Plain, used: u64 },
    Flying(Arc<Flight>),
}

/// A chunk being fetched.
struct Flight {
    landing: Mutex<Landing>,
    landed: Condvar,
}

#[derive(Clone)]
enum Landing {
    Pending,
    Ready(Plain),
    /// What those who waited are told.
    Failed(Kind, String),
    /// Nobody tried to the end: who still wants the chunk begins anew.
    Abandoned,
}

/// A flight this thread has begun. Dropped without a landing it is abandoned.
struct Claim<'a> {
    cache: &'a ChunkCache,
    id: ChunkId,
    flight: Arc<Flight>,
}

impl Default for ChunkCache {
    fn default() -> Self {
        Self::new(CACHE_BYTES_DEFAULT)
    }
}

impl ChunkCache {
    /// A cache that keeps at most `bytes` of decoded chunks, bookkeeping included.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { limit: bytes, state: Mutex::default() }
    }

    /// Bytes it keeps now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Plaintexts of the chunks `wanted`, in their order. At most [`WANTED_MAX`], none twice.
    ///
    /// `ahead` names chunks that will be wanted next, in order; they are fetched along where that costs no request of
    /// its own.
    ///
    /// # Errors
    /// As [`ChunkSource::read`]; also for those who waited for another thread's fetch.
    pub(super) fn get(
        &self,
        source: &ChunkSource,
        wanted: &[ChunkId],
        ahead: &mut dyn FnMut() -> Option<ChunkId>,
    ) -> Result<Vec<Plain>> {
        let mut found: HashMap<ChunkId, Plain> = HashMap::with_capacity(wanted.len());
        while found.len() < wanted.len() {
            let (claims, flights) = self.board(wanted, &mut found);
            if !claims.is_empty() {
                fetch::fetch(self, source, claims, ahead, &mut found)?;
            }
            for (id, flight) in flights {
                match flight.wait() {
                    Landing::Ready(plain) => drop(found.insert(id, plain)),
                    Landing::Failed(kind, message) => return Err(Error::refused(kind, message)),
                    Landing::Abandoned | Landing::Pending => {}
                }
            }
        }
        Ok(wanted.iter().filter_map(|id| found.get(id).cloned()).collect())
    }

    /// Takes what is there, claims what nobody fetches, and returns the flights of others.
    fn board(
        &self,
        wanted: &[ChunkId],
        found: &mut HashMap<ChunkId, Plain>,
    ) -> (Vec<Claim<'_>>, Vec<(ChunkId, Arc<Flight>)>) {
        let (mut claims, mut flights) = (Vec::new(), Vec::new());
        let mut state = self.lock();
        for id in wanted {
            if found.contains_key(id) {
                continue;
            }
            match state.find(id) {
                Some(Ok(plain)) => drop(found.insert(*id, plain)),
                Some(Err(flight)) => flights.push((*id, flight)),
                None => claims.push(self.claim_in(&mut state, *id)),
            }
        }
        (claims, flights)
    }

    /// Claims a chunk unless it is there or being fetched.
    fn claim(&self, id: ChunkId) -> Option<Claim<'_>> {
        let mut state = self.lock();
        if state.chunks.contains_key(&id) { None } else { Some(self.claim_in(&mut state, id)) }
    }

    fn claim_in(&self, state: &mut State, id: ChunkId) -> Claim<'_> {
        let flight = Arc::new(Flight { landing: Mutex::new(Landing::Pending), landed: Condvar::new() });
        state.chunks.insert(id, Slot::Flying(Arc::clone(&flight)));
        Claim { cache: self, id, flight }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn find(&mut self, id: &ChunkId) -> Option<Result<Plain, Arc<Flight>>> {
        let now = self.tick();
        match self.chunks.get_mut(id)? {
            Slot::Flying(flight) => Some(Err(Arc::clone(flight))),
            Slot::Ready { plain, used } => {
                self.order.remove(used);
                self.order.insert(now, *id);
                *used = now;
                Some(Ok(Arc::clone(plain)))
            }
        }
    }

    fn keep(&mut self, id: ChunkId, plain: Plain, limit: usize) {
        let used = self.tick();
        self.bytes += cost(&plain);
        self.chunks.insert(id, Slot::Ready { plain, used });
        self.order.insert(used, id);
        while self.bytes > limit
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some(Slot::Ready { plain, .. }) = self.chunks.remove(&oldest) {
                self.bytes -= cost(&plain);
            }
        }
    }
}

fn cost(plain: &Plain) -> usize {
    plain.capacity() + ENTRY_BYTES
}

impl Flight {
    fn wait(&self) -> Landing {
        let mut landing = self.landing.lock().unwrap_or_else(PoisonError::into_inner);
        while matches!(*landing, Landing::Pending) {
            landing = self.landed.wait(landing).unwrap_or_else(PoisonError::into_inner);
        }
        landing.clone()
    }

    /// The first landing counts.
    fn land(&self, how: Landing) {
        let mut landing = self.landing.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*landing, Landing::Pending) {
            *landing = how;
            self.landed.notify_all();
        }
    }
}

impl Claim<'_> {
    /// Keeps the plaintext and gives it to those who wait.
    fn land(self, plain: &Plain) {
        self.cache.lock().keep(self.id, Arc::clone(plain), self.cache.limit);
        self.flight.land(Landing::Ready(Arc::clone(plain)));
    }

    /// Tells those who wait that it failed.
    fn fail(self, error: &Error) {
        self.forget();
        self.flight.land(Landing::Failed(error.kind(), chain(error)));
    }

    /// Takes the flight off the map, if it is still there.
    fn forget(&self) {
        let mut state = self.cache.lock();
        if matches!(state.chunks.get(&self.id), Some(Slot::Flying(flight)) if Arc::ptr_eq(flight, &self.flight)) {
            state.chunks.remove(&self.id);
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.forget();
        self.flight.land(Landing::Abandoned);
    }
}

/// An error and its causes in one line: those who waited get it as text, because errors cannot be shared.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        let part = source.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = source.source();
    }
    text
}
