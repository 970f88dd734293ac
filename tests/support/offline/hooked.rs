//! A store in memory with the properties of another place, and with somebody who is told of each call before it happens.

use pgkeep_engine::store::{Depth, Listed, MemoryStore, Put, Range, Store, StoreError, Verb};
use std::fmt;

type Hook = Box<dyn Fn(Verb, &str) + Send + Sync>;

/// Passes all calls on.
pub struct HookedStore {
    inner: MemoryStore,
    /// See [`Store::gap`].
    pub gap: u64,
    /// See [`Store::is_near`].
    pub near: bool,
    before: Hook,
}

impl HookedStore {
    /// The objects of `inner`, near and without gaps. `before` is told verb and key, on the thread that calls.
    pub fn new(inner: &MemoryStore, before: impl Fn(Verb, &str) + Send + Sync + 'static) -> Self {
        Self { inner: inner.clone(), gap: 0, near: true, before: Box::new(before) }
    }
}

impl fmt::Debug for HookedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Store for HookedStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        (self.before)(Verb::Put, key);
        self.inner.put_if_absent(key, bytes)
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        (self.before)(Verb::Get, key);
        self.inner.get(key, range)
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        (self.before)(Verb::List, prefix);
        self.inner.list(prefix, depth, each)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        (self.before)(Verb::Delete, key);
        self.inner.delete(key)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn gap(&self) -> u64 {
        self.gap
    }

    fn is_near(&self) -> bool {
        self.near
    }
}
