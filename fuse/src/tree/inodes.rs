//! The inode table of the read-only tree.

use crate::errno::Outcome;
use fuser::Errno;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The root's number in FUSE.
pub(super) const ROOT: u64 = 1;

/// What an inode stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Thing {
    Root,
    /// The link to the newest backup, while that is `label`.
    Latest {
        label: String,
    },
    Backup {
        label: String,
    },
    /// Something in a backup; `path` is not empty.
    Entry {
        label: String,
        path: String,
    },
}

struct Inner {
    next: u64,
    things: HashMap<u64, (Thing, u64)>,
    numbers: HashMap<Thing, u64>,
}

/// Numbers of things, and how often the kernel refers to each.
pub(super) struct Inodes {
    inner: Mutex<Inner>,
}

impl Inodes {
    pub(super) fn new() -> Self {
        let inner = Inner {
            next: ROOT + 1,
            things: HashMap::from([(ROOT, (Thing::Root, 1))]),
            numbers: HashMap::from([(Thing::Root, ROOT)]),
        };
        Self { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, number: u64) -> Outcome<Thing> {
        self.lock().things.get(&number).map(|(thing, _)| thing.clone()).ok_or(Errno::ESTALE)
    }

    /// The thing's number, with one more reference to it.
    pub(super) fn looked_up(&self, thing: Thing) -> u64 {
        let mut inner = self.lock();
        if let Some(number) = inner.numbers.get(&thing).copied() {
            if let Some((_, lookups)) = inner.things.get_mut(&number) {
                *lookups += 1;
            }
            return number;
        }
        let number = inner.next;
        inner.next += 1;
        inner.numbers.insert(thing.clone(), number);
        inner.things.insert(number, (thing, 1));
        number
    }

    /// Drops `count` references; a thing without any is forgotten.
    pub(super) fn forget(&self, number: u64, count: u64) {
        let mut inner = self.lock();
        let Some((_, lookups)) = inner.things.get_mut(&number) else { return };
        *lookups = lookups.saturating_sub(count);
        if *lookups == 0
            && number != ROOT
            && let Some((thing, _)) = inner.things.remove(&number)
        {
            inner.numbers.remove(&thing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_while_referred_to_and_never_reused() {
        let inodes = Inodes::new();
        let thing = |path: &str| Thing::Entry { label: "l".into(), path: path.into() };
        let a = inodes.looked_up(thing("a"));
        assert_eq!(inodes.looked_up(thing("a")), a);
        inodes.forget(a, 1);
        assert_eq!(inodes.get(a).unwrap(), thing("a"));
        inodes.forget(a, 1);
        assert!(inodes.get(a).is_err());
        assert!(inodes.looked_up(thing("a")) > a);
        inodes.forget(ROOT, 5);
        assert_eq!(inodes.get(ROOT).unwrap(), Thing::Root);
    }
}
