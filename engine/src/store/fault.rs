//! A store that breaks on command. For tests.
//!
//! *Crash*: after a number of mutations every call fails, and what the inner store holds is what a crash at that point
//! leaves. A mutation is a put or delete that reaches the inner store, whatever it answers. *Faults*: one call of a
//! verb fails, before or after it took effect. *Damage*: an object reads as if its bytes had changed on the medium.

use super::memory::slice;
use super::{Depth, Listed, Put, Range, Store, StoreError, Verb};
use std::collections::{BTreeMap, HashMap};
use std::io::{Error as IoError, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How one call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Before any effect, in a way that trying again may cure.
    Transient,
    /// Before any effect, for good: permission denied.
    Permanent,
    /// Before any effect: no space is left.
    NoSpace,
    /// After its effect: the reply is lost. A list has then reported its entries.
    LostReply,
}

/// What is wrong with an object when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// All bits of the byte at this offset are inverted; nothing is, if the object is shorter.
    Flip(usize),
    /// Only this many bytes are left.
    Truncate(usize),
}

/// Passes calls on until told otherwise.
#[derive(Debug)]
pub struct FaultStore {
    inner: Arc<dyn Store>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    calls: BTreeMap<Verb, u64>,
    mutations: u64,
    /// The count of mutations at which everything stops.
    stop_at: Option<u64>,
    faults: HashMap<(Verb, u64), Fault>,
    damage: HashMap<String, Damage>,
}

impl FaultStore {
    /// Wraps `inner`; share the result in an [`Arc`] to keep a hand on it.
    pub fn new(inner: impl Store + 'static) -> Self {
        Self { inner: Arc::new(inner), state: Mutex::default() }
    }

    /// Lets `n` more mutations through; when they have happened every call of any verb fails permanently.
    pub fn stop_after(&self, n: u64) {
        let mut state = self.lock();
        state.stop_at = Some(state.mutations + n);
    }

    /// True once the crash has happened.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.lock().is_stopped()
    }

    /// Ends the crash and forgets faults that have not struck; damage stays.
    pub fn revive(&self) {
        let mut state = self.lock();
        state.stop_at = None;
        state.faults.clear();
    }

    /// How many mutations have reached the inner store.
    #[must_use]
    pub fn mutations(&self) -> u64 {
        self.lock().mutations
    }

    /// Makes the `k`-th call of `verb` from now on (1 is the next) fail.
    pub fn fail(&self, verb: Verb, k: u64, fault: Fault) {
        let mut state = self.lock();
        let now = state.calls.get(&verb).copied().unwrap_or(0);
        state.faults.insert((verb, now + k), fault);
    }

    /// Makes the object read as damaged, until [`Self::heal`].
    pub fn damage(&self, key: &str, damage: Damage) {
        self.lock().damage.insert(key.to_owned(), damage);
    }

    /// Ends all damage.
    pub fn heal(&self) {
        self.lock().damage.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call. `Ok(true)` means that its reply must get lost.
    fn admit(&self, verb: Verb, key: &str) -> Result<bool, StoreError> {
        let mut state = self.lock();
        if state.is_stopped() {
            return Err(self.error(verb, key, ErrorKind::PermissionDenied, "the store has stopped"));
        }
        let calls = state.calls.entry(verb).or_default();
        *calls += 1;
        let call = *calls;
        let fault = state.faults.remove(&(verb, call));
        let (kind, text) = match fault {
            None | Some(Fault::LostReply) => {
                if matches!(verb, Verb::Put | Verb::Delete) {
                    state.mutations += 1;
                }
                return Ok(fault.is_some());
            }
            Some(Fault::Transient) => (ErrorKind::TimedOut, "made to fail once"),
            Some(Fault::Permanent) => (ErrorKind::PermissionDenied, "made to fail"),
            Some(Fault::NoSpace) => (ErrorKind::StorageFull, "made to be full"),
        };
        Err(self.error(verb, key, kind, text))
    }

    fn reply<T>(&self, lost: bool, verb: Verb, key: &str, reply: Result<T, StoreError>) -> Result<T, StoreError> {
        let reply = reply?;
        if lost { Err(self.error(verb, key, ErrorKind::ConnectionReset, "the reply was lost")) } else { Ok(reply) }
    }

    fn error(&self, verb: Verb, key: &str, kind: ErrorKind, text: &'static str) -> StoreError {
        let verb = match verb {
            Verb::Put => "create",
            Verb::Get => "read",
            Verb::List => "list",
            Verb::Delete => "remove",
            Verb::WillGet => "announce",
        };
        StoreError::Io { verb, key: key.to_owned(), store: self.inner.describe(), source: IoError::new(kind, text) }
    }
}

impl State {
    fn is_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| self.mutations >= at)
    }
}

impl Store for FaultStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        let lost = self.admit(Verb::Put, key)?;
        self.reply(lost, Verb::Put, key, self.inner.put_if_absent(key, bytes))
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        let lost = self.admit(Verb::Get, key)?;
        let damage = self.lock().damage.get(key).copied();
        let Some(damage) = damage else { return self.reply(lost, Verb::Get, key, self.inner.get(key, range)) };
        let mut bytes = self.inner.get(key, Range::Whole)?;
        match damage {
            Damage::Flip(at) => bytes.get_mut(at).into_iter().for_each(|byte| *byte = !*byte),
            Damage::Truncate(len) => bytes.truncate(len),
        }
        let short = |end| StoreError::TooShort { key: key.to_owned(), store: self.describe(), end };
        self.reply(lost, Verb::Get, key, slice(&bytes, range).map_err(short))
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        let lost = self.admit(Verb::List, prefix)?;
        let truncated = |key: &str| match self.lock().damage.get(key) {
            Some(Damage::Truncate(len)) => *len as u64,
            _ => u64::MAX,
        };
        let listed = self.inner.list(prefix, depth, &mut |mut listed| {
            listed.size = listed.size.min(truncated(&listed.key));
            each(listed);
        });
        self.reply(lost, Verb::List, prefix, listed)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        let lost = self.admit(Verb::Delete, key)?;
        self.reply(lost, Verb::Delete, key, self.inner.delete(key))
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn will_get(&self, key: &str, spans: &[(u64, usize)]) {
        self.inner.will_get(key, spans);
    }

    fn gap(&self) -> u64 {
        self.inner.gap()
    }

    fn is_near(&self) -> bool {
        self.inner.is_near()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MemoryStore, contract::Rig};
    use super::*;

    crate::store_contract!(contract_of_fault, || Rig::of(FaultStore::new(MemoryStore::new())));

    #[test]
    fn a_crash_leaves_exactly_the_first_mutations() {
        for n in 0..4 {
            let memory = MemoryStore::new();
            let store = FaultStore::new(memory.clone());
            store.stop_after(n);
            let results = [
                store.put_if_absent("a", b"1").is_ok(),
                store.put_if_absent("b", b"2").is_ok(),
                store.delete("a").is_ok(),
            ];
            assert_eq!(results.iter().filter(|ok| **ok).count() as u64, n.min(3));
            let left: &[&str] = [&[][..], &["a"], &["a", "b"], &["b"]][usize::try_from(n).expect("small")];
            assert_eq!(memory.snapshot().keys().collect::<Vec<_>>(), left);
            assert_eq!(store.is_stopped(), n <= 3);
            if store.is_stopped() {
                assert!(store.get("b", Range::Whole).expect_err("stopped").is_permanent());
                assert!(store.list("", Depth::All, &mut |_| ()).expect_err("stopped").is_permanent());
            }
            store.revive();
            store.put_if_absent("c", b"3").expect("revived");
            assert_eq!(store.mutations(), n.min(3) + 1);
        }
    }

    #[test]
    fn a_fault_strikes_the_call_it_was_meant_for_and_no_other() {
        let memory = MemoryStore::new();
        let store = FaultStore::new(memory.clone());
        store.fail(Verb::Put, 2, Fault::NoSpace);
        store.fail(Verb::Put, 3, Fault::LostReply);
        store.fail(Verb::Get, 1, Fault::Transient);
        store.put_if_absent("a", b"1").expect("first");
        let full = store.put_if_absent("b", b"2").expect_err("second");
        assert!(matches!(&full, StoreError::Io { source, .. } if source.kind() == ErrorKind::StorageFull));
        let lost = store.put_if_absent("c", b"3").expect_err("third");
        assert!(!lost.is_permanent());
        assert_eq!(memory.snapshot().keys().collect::<Vec<_>>(), ["a", "c"]);
        assert!(!store.get("a", Range::Whole).expect_err("first").is_permanent());
        assert_eq!(store.get("a", Range::Whole).expect("second"), b"1");
        assert_eq!(store.mutations(), 2);
    }

    #[test]
    fn damage_shows_in_every_way_of_reading() {
        let store = FaultStore::new(MemoryStore::new());
        store.put_if_absent("a", b"12345").expect("put");
        store.damage("a", Damage::Flip(3));
        assert_eq!(store.get("a", Range::Whole).expect("get"), [b'1', b'2', b'3', !b'4', b'5']);
        assert_eq!(store.get("a", Range::Span { offset: 0, len: 3 }).expect("get"), b"123");
        store.damage("a", Damage::Truncate(2));
        assert_eq!(store.get("a", Range::Tail { len: 4 }).expect("get"), b"12");
        let short = store.get("a", Range::Span { offset: 0, len: 3 }).expect_err("truncated");
        assert!(matches!(short, StoreError::TooShort { end: 3, .. }));
        let mut sizes = Vec::new();
        store.list("", Depth::All, &mut |l| sizes.push(l.size)).expect("list");
        assert_eq!(sizes, [2]);
        store.heal();
        assert_eq!(store.get("a", Range::Whole).expect("get"), b"12345");
    }
}
