//! What was asked for lately, by path, within a limit.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps values until their weights exceed a limit; the least recently used goes first. No lock is held while a value is
/// made: two threads may make the same one.
pub(super) struct Recent<T> {
    limit: usize,
    kept: Mutex<Kept<T>>,
}

struct Kept<T> {
    by_path: HashMap<Arc<str>, Item<T>>,
    /// Paths by last use.
    order: BTreeMap<u64, Arc<str>>,
    weight: usize,
    clock: u64,
}

struct Item<T> {
    value: Arc<T>,
    weight: usize,
    used: u64,
}

impl<T> Recent<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, kept: Mutex::new(Kept { by_path: HashMap::new(), order: BTreeMap::new(), weight: 0, clock: 0 }) }
    }

    pub(super) fn get(&self, path: &str) -> Option<Arc<T>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let now = kept.clock;
        let item = kept.by_path.get_mut(path)?;
        let before = std::mem::replace(&mut item.used, now);
        let value = Arc::clone(&item.value);
        if let Some(path) = kept.order.remove(&before) {
            kept.order.insert(now, path);
        }
        Some(value)
    }

    /// Keeps a value, unless it is heavier than all together may be.
    pub(super) fn keep(&self, path: &str, value: &Arc<T>, weight: usize) {
        if weight > self.limit {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let used = kept.clock;
        let path: Arc<str> = path.into();
        if let Some(old) = kept.by_path.insert(Arc::clone(&path), Item { value: Arc::clone(value), weight, used }) {
            kept.order.remove(&old.used);
            kept.weight -= old.weight;
        }
        kept.order.insert(used, path);
        kept.weight += weight;
        while kept.weight > self.limit
            && let Some((_, oldest)) = kept.order.pop_first()
        {
            kept.weight -= kept.by_path.remove(&oldest).map_or(0, |item| item.weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_weights_are_kept() {
        let recent = Recent::new(10);
        for (path, weight) in [("a", 4), ("b", 4), ("a", 5)] {
            recent.keep(path, &Arc::new(weight), weight);
        }
        recent.keep("heavy", &Arc::new(11), 11);
        assert!(recent.get("heavy").is_none());
        assert_eq!((recent.get("b").as_deref(), recent.get("a").as_deref()), (Some(&4), Some(&5)));
        recent.keep("c", &Arc::new(2), 2);
        assert!(recent.get("b").is_none());
        assert_eq!((recent.get("a").as_deref(), recent.get("c").as_deref()), (Some(&5), Some(&2)));
        assert_eq!(recent.kept.lock().unwrap().weight, 7);
    }
}
