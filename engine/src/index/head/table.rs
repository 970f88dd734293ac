//! A table of bytes: a sled database whose every failure and panic is caught, or a map in memory.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

/// Keys are hashes.
pub(super) type Key = [u8; 32];

/// Why sled is of no more use.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) message: String,
    /// It panicked: it may hold locks for ever, so nothing more is asked of it.
    pub(super) panicked: bool,
}

/// Runs sled code; a panic in it becomes a fault.
pub(super) fn guarded<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, Fault> {
    // Whatever state a panic leaves behind is inside sled, which is not used again after a fault.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(Fault { message: e.to_string(), panicked: false }),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(Fault { message: format!("panic: {}", text.unwrap_or_default()), panicked: true })
        }
    }
}

/// Closes databases. Their destructors write, and may panic, which must not happen in a destructor of ours.
pub(super) fn close(tables: Vec<Table>) {
    let closed = guarded(|| {
        drop(tables);
        Ok(())
    });
    if let Err(fault) = closed {
        tracing::debug!("closing the head of the index failed: {}", fault.message);
    }
}

pub(super) enum Table {
    /// A database of its own, of which the default tree is used: closing a database gives its memory back,
    /// dropping a tree of half a million entries first takes another 200 MiB.
    Sled(sled::Db),
    Map(RwLock<HashMap<Key, Box<[u8]>>>),
}

impl Table {
    /// Opens a fresh database. It has no flusher thread: nothing in it must survive the process.
    pub(super) fn on_disk(dir: &Path, cache_bytes: u64) -> Result<Self, Fault> {
        guarded(|| sled::Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None).open())
            .map(Self::Sled)
    }

    pub(super) fn in_memory() -> Self {
        Self::Map(RwLock::default())
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, Fault> {
        match self {
            Self::Sled(tree) => guarded(|| Ok(tree.get(key)?.map(|value| value.to_vec()))),
            Self::Map(map) => Ok(map.read().unwrap_or_else(PoisonError::into_inner).get(key).map(|v| v.to_vec())),
        }
    }

    /// Stores `new` if the key's value is `old`; else returns the value it has.
    pub(super) fn swap(&self, key: &Key, old: Option<&[u8]>, new: &[u8]) -> Result<Result<(), Option<Vec<u8>>>, Fault> {
        match self {
            Self::Sled(tree) => guarded(|| {
                let done = tree.compare_and_swap(key, old, Some(new))?;
                Ok(done.map_err(|failed| failed.current.map(|value| value.to_vec())))
            }),
            Self::Map(map) => {
                let mut map = map.write().unwrap_or_else(PoisonError::into_inner);
                let current = map.get(key).map(|value| &**value);
                if current != old {
                    return Ok(Err(current.map(<[u8]>::to_vec)));
                }
                map.insert(*key, new.into());
                Ok(Ok(()))
            }
        }
    }

    pub(super) fn put(&self, key: &Key, value: &[u8]) -> Result<(), Fault> {
        match self {
            Self::Sled(tree) => guarded(|| tree.insert(key, value).map(drop)),
            Self::Map(map) => {
                map.write().unwrap_or_else(PoisonError::into_inner).insert(*key, value.into());
                Ok(())
            }
        }
    }

    /// Visits all pairs, in any order; keys of another length are passed over.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&Key, &[u8])) -> Result<(), Fault> {
        match self {
            Self::Sled(tree) => guarded(|| {
                for pair in tree.iter() {
                    let (key, value) = pair?;
                    if let Ok(key) = <&Key>::try_from(&*key) {
                        visit(key, &value);
                    }
                }
                Ok(())
            }),
            Self::Map(map) => {
                map.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(|(key, value)| visit(key, value));
                Ok(())
            }
        }
    }

    /// The content as a map: all of it, or what could be read before the fault.
    pub(super) fn salvage(&self, fault: &Fault) -> Self {
        let mut map = HashMap::new();
        if !fault.panicked {
            // A second fault ends the salvage; what is lost is counted when the head is drained.
            let _ = self.for_each(|key, value| drop(map.insert(*key, value.into())));
        }
        Self::Map(RwLock::new(map))
    }
}
