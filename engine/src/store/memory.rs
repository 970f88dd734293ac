//! Objects in memory: the model other stores are compared with, and the ground of crash tests.
//!
//! A clone is the same store, as two processes see one repository. [`MemoryStore::snapshot`] takes the contents at an
//! instant, [`MemoryStore::restore`] brings them back. No lock is held while a caller's closure runs.

use super::{Depth, Listed, Put, Range, Store, StoreError, key};
use crate::clock::{Clock, SystemClock};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A store in this process's memory. Clones share their contents.
#[derive(Clone)]
pub struct MemoryStore {
    objects: Arc<Mutex<Objects>>,
    clock: Arc<dyn Clock>,
}

/// What a [`MemoryStore`] held at one instant. Cheap: objects are shared, not copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot(Objects);

type Objects = BTreeMap<String, Object>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    bytes: Arc<[u8]>,
    modified: i64,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Arc::new(SystemClock))
    }

    /// An empty store whose objects' times come from `clock`.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { objects: Arc::default(), clock }
    }

    /// The contents now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.lock().clone())
    }

    /// Goes back to earlier contents, in every clone.
    pub fn restore(&self, snapshot: &Snapshot) {
        *self.lock() = snapshot.0.clone();
    }

    /// A new store, not shared with this one, that begins with `snapshot` and keeps this one's clock.
    #[must_use]
    pub fn from_snapshot(&self, snapshot: &Snapshot) -> Self {
        Self { objects: Arc::new(Mutex::new(snapshot.0.clone())), clock: Arc::clone(&self.clock) }
    }

    /// Changes an object in place, which no writer can: damage, for tests. False if there is no such object.
    pub fn tamper(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some(mut bytes) = self.lock().get(key).map(|o| o.bytes.to_vec()) else { return false };
        change(&mut bytes);
        match self.lock().get_mut(key) {
            Some(object) => {
                object.bytes = bytes.into();
                true
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        // The map is whole after every statement, so a panic elsewhere does not spoil it.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").field("objects", &self.lock().len()).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The bytes of one object.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key).map(|o| &*o.bytes)
    }
}

impl Store for MemoryStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        key::check(key)?;
        let modified = i64::try_from(self.clock.now().as_secs()).unwrap_or(i64::MAX);
        let object = Object { bytes: bytes.into(), modified };
        match self.lock().entry(key.to_owned()) {
            std::collections::btree_map::Entry::Occupied(_) => Ok(Put::Exists),
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(object);
                Ok(Put::Created)
            }
        }
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        key::check(key)?;
        let bytes = self.lock().get(key).map(|o| Arc::clone(&o.bytes));
        let bytes = bytes.ok_or_else(|| StoreError::NotFound { key: key.to_owned(), store: self.describe() })?;
        slice(&bytes, range).map_err(|end| StoreError::TooShort { key: key.to_owned(), store: self.describe(), end })
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        key::check_prefix(prefix)?;
        let found = match depth {
            Depth::All => all(&self.lock(), prefix),
            Depth::Children => children(&self.lock(), prefix),
        };
        found.into_iter().for_each(each);
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        key::check(key)?;
        self.lock().remove(key);
        Ok(())
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn is_near(&self) -> bool {
        true
    }
}

/// `range` of `bytes`, or the end asked for.
pub(super) fn slice(bytes: &[u8], range: Range) -> Result<Vec<u8>, u64> {
    let (start, len) = range.within(bytes.len() as u64)?;
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    bytes.get(start..).and_then(|b| b.get(..len)).map(<[u8]>::to_vec).ok_or(start as u64)
}

fn all(objects: &Objects, prefix: &str) -> Vec<Listed> {
    let from = (Bound::Included(prefix), Bound::Unbounded);
    let below = objects.range::<str, _>(from).take_while(|(key, _)| key.starts_with(prefix));
    below.map(|(key, object)| listed(key, object)).collect()
}

fn children(objects: &Objects, prefix: &str) -> Vec<Listed> {
    let mut found = Vec::new();
    let mut from = prefix.to_owned();
    while let Some((key, object)) = objects.range(from.clone()..).next().filter(|(key, _)| key.starts_with(prefix)) {
        match key.get(prefix.len()..).and_then(|rest| rest.find('/')) {
            Some(slash) => {
                let common = key.get(..=prefix.len() + slash).unwrap_or(key);
                found.push(Listed { key: common.to_owned(), size: 0, modified: 0 });
                // '0' follows '/': the first key that is not below the common prefix.
                from = common.trim_end_matches('/').to_owned() + "0";
            }
            None => {
                found.push(listed(key, object));
                // The least string after `key`.
                from = key.clone() + "\0";
            }
        }
    }
    found
}

fn listed(key: &str, object: &Object) -> Listed {
    Listed { key: key.to_owned(), size: object.bytes.len() as u64, modified: object.modified }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{self, Rig};
    use super::*;

    crate::store_contract!(contract_of_memory, || Rig::of(MemoryStore::new()));

    #[test]
    fn clones_share_and_snapshots_do_not() {
        let store = MemoryStore::new();
        let other = store.clone();
        store.put_if_absent("a", b"1").expect("put");
        let then = store.snapshot();
        other.put_if_absent("b", b"2").expect("put");
        assert_eq!(store.get("b", Range::Whole).expect("shared"), b"2");
        let apart = store.from_snapshot(&then);
        store.restore(&then);
        assert!(matches!(other.get("b", Range::Whole), Err(StoreError::NotFound { .. })));
        apart.delete("a").expect("delete");
        assert_eq!(store.snapshot(), then);
        assert_eq!(then.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(then.get("a"), Some(&b"1"[..]));
    }

    #[test]
    fn tampering_changes_what_is_read_but_not_what_was_taken() {
        let store = MemoryStore::new();
        store.put_if_absent("a", b"123").expect("put");
        let before = store.snapshot();
        assert!(store.tamper("a", |b| b[0] = b'x'));
        assert!(!store.tamper("b", |_| ()));
        assert_eq!(contract::read(&store, "a"), b"x23");
        assert_eq!(before.get("a"), Some(&b"123"[..]));
    }
}
