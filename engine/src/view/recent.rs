//! What was asked for lately, by path, within a limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Keeps values until their weights exceed a limit; the least recently used goes first. No lock is held while a value is
/// made: two threads may make the same one.
pub(super) struct Recent<T> {
    limit: usize,
    kept: Mutex<Kept<T>>,
}

struct Kept<T> {
    by_path: HashMap<String, (Arc<T>, usize, u64)>,
    weight: usize,
    clock: u64,
}

impl<T> Recent<T> {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, kept: Mutex::new(Kept { by_path: HashMap::new(), weight: 0, clock: 0 }) }
    }

    pub(super) fn get(&self, path: &str) -> Option<Arc<T>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let now = kept.clock;
        let (value, _, used) = kept.by_path.get_mut(path)?;
        *used = now;
        Some(Arc::clone(value))
    }

    /// Keeps a value, unless it is heavier than all together may be.
    pub(super) fn keep(&self, path: &str, value: &Arc<T>, weight: usize) {
        if weight > self.limit {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let now = kept.clock;
        if let Some((_, old, _)) = kept.by_path.insert(path.to_owned(), (Arc::clone(value), weight, now)) {
            kept.weight -= old;
        }
        kept.weight += weight;
        while kept.weight > self.limit {
            let oldest = kept.by_path.iter().min_by_key(|(_, (_, _, used))| *used).map(|(path, _)| path.clone());
            let Some((_, weight, _)) = oldest.and_then(|path| kept.by_path.remove(&path)) else { return };
            kept.weight -= weight;
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
