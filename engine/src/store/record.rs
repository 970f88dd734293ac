//! Counts and remembers the calls to a store, so that "one list, no gets" is an assertion. For tests.

use super::{Depth, Listed, Put, Range, Store, StoreError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a store is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// [`Store::put_if_absent`].
    Put,
    /// [`Store::get`].
    Get,
    /// [`Store::list`].
    List,
    /// [`Store::delete`].
    Delete,
    /// [`Store::will_get`].
    WillGet,
}

/// One call that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub verb: Verb,
    /// Of which object, or below which prefix.
    pub key: String,
    /// Which part; `None` unless the verb is [`Verb::Get`].
    pub range: Option<Range>,
    /// Bytes offered by a put, returned by a get or announced; entries returned by a list; 0 for a delete.
    pub bytes: u64,
    /// False if it failed.
    pub ok: bool,
}

/// Passes all calls on and keeps a log of them, in the order in which they ended.
#[derive(Debug)]
pub struct RecordingStore {
    inner: Arc<dyn Store>,
    calls: Mutex<Vec<Call>>,
}

impl RecordingStore {
    /// Wraps `inner`; share the result in an [`Arc`] to keep a hand on the log.
    pub fn new(inner: impl Store + 'static) -> Self {
        Self { inner: Arc::new(inner), calls: Mutex::default() }
    }

    /// The calls since the beginning or the last [`Self::clear`].
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().clone()
    }

    /// How many of the calls had this verb.
    #[must_use]
    pub fn count(&self, verb: Verb) -> usize {
        self.lock().iter().filter(|c| c.verb == verb).count()
    }

    /// Sum of [`Call::bytes`] over the calls of this verb.
    #[must_use]
    pub fn bytes(&self, verb: Verb) -> u64 {
        self.lock().iter().filter(|c| c.verb == verb).map(|c| c.bytes).sum()
    }

    /// Keys and prefixes of the calls of this verb, in order.
    #[must_use]
    pub fn keys(&self, verb: Verb) -> Vec<String> {
        self.lock().iter().filter(|c| c.verb == verb).map(|c| c.key.clone()).collect()
    }

    /// Forgets all calls.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, verb: Verb, key: &str, range: Option<Range>, bytes: usize, ok: bool) {
        self.lock().push(Call { verb, key: key.to_owned(), range, bytes: bytes as u64, ok });
    }
}

impl Store for RecordingStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        let result = self.inner.put_if_absent(key, bytes);
        self.note(Verb::Put, key, None, bytes.len(), result.is_ok());
        result
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        let result = self.inner.get(key, range);
        self.note(Verb::Get, key, Some(range), result.as_ref().map_or(0, Vec::len), result.is_ok());
        result
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        let mut entries = 0;
        let result = self.inner.list(prefix, depth, &mut |listed| {
            entries += 1;
            each(listed);
        });
        self.note(Verb::List, prefix, None, entries, result.is_ok());
        result
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        let result = self.inner.delete(key);
        self.note(Verb::Delete, key, None, 0, result.is_ok());
        result
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn will_get(&self, key: &str, spans: &[(u64, usize)]) {
        self.inner.will_get(key, spans);
        self.note(Verb::WillGet, key, None, spans.iter().map(|(_, len)| len).sum(), true);
    }

    fn doubt(&self, key: &str, offset: u64, len: usize) -> bool {
        self.inner.doubt(key, offset, len)
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

    crate::store_contract!(contract_of_recording, || Rig::of(RecordingStore::new(MemoryStore::new())));

    #[test]
    fn every_call_is_logged_with_its_size_and_outcome() {
        let store = RecordingStore::new(MemoryStore::new());
        store.put_if_absent("a/b", b"12345").expect("put");
        store.get("a/b", Range::Tail { len: 2 }).expect("get");
        store.get("a/c", Range::Whole).expect_err("not there");
        store.list("a/", Depth::All, &mut |_| ()).expect("list");
        store.delete("a/b").expect("delete");
        store.will_get("a/b", &[(0, 3), (7, 4)]);
        let call = |verb, key: &str, range, bytes, ok| Call { verb, key: key.to_owned(), range, bytes, ok };
        assert_eq!(
            store.calls(),
            [
                call(Verb::Put, "a/b", None, 5, true),
                call(Verb::Get, "a/b", Some(Range::Tail { len: 2 }), 2, true),
                call(Verb::Get, "a/c", Some(Range::Whole), 0, false),
                call(Verb::List, "a/", None, 1, true),
                call(Verb::Delete, "a/b", None, 0, true),
                call(Verb::WillGet, "a/b", None, 7, true),
            ]
        );
        assert_eq!((store.count(Verb::Get), store.bytes(Verb::Get)), (2, 2));
        assert_eq!(store.keys(Verb::Get), ["a/b", "a/c"]);
        store.clear();
        assert_eq!(store.calls(), []);
    }
}
