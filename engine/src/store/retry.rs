//! Trying again: the only place that does.
//!
//! Errors that [`StoreError::is_permanent`] are returned at once; others are tried again with growing waits, for a
//! bounded number of tries and a bounded time. What a retry could get wrong is handled here:
//! a *put* that failed may have taken effect, so when its retry finds the key taken the object is read back, and equal
//! bytes mean that it is ours (create-only objects carry unique content); a *list* that failed half way goes on behind
//! the last entry that was reported, so no entry is reported twice.

use super::{Depth, Listed, Put, Range, Store, StoreError};
use crate::clock::Clock;
use std::sync::Arc;
use std::time::Duration;

/// How long to go on trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, the first included; 0 counts as 1.
    pub tries: u32,
    /// No wait but the first begins that would end later than this after the first try began.
    pub total: Duration,
    /// The wait before the second try; each later one is twice as long.
    pub first_wait: Duration,
    /// No wait is longer.
    pub longest_wait: Duration,
}

impl Default for RetryPolicy {
    /// Six tries in a minute at most, beginning with a tenth of a second.
    fn default() -> Self {
        Self {
            tries: 6,
            total: Duration::from_secs(60),
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(10),
        }
    }
}

/// A store whose transient failures are tried again.
pub struct RetryStore {
    inner: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    policy: RetryPolicy,
}

impl RetryStore {
    /// Wraps `inner`.
    pub fn new(inner: impl Store + 'static, clock: Arc<dyn Clock>, policy: RetryPolicy) -> Self {
        Self { inner: Arc::new(inner), clock, policy }
    }

    /// Calls `call` until it succeeds, fails for good, or the policy is used up.
    fn retry<T>(&self, mut call: impl FnMut(u32) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let begun = self.clock.now();
        let mut wait = self.policy.first_wait;
        let mut tries = 1;
        loop {
            let error = match call(tries) {
                Err(error) if !error.is_permanent() => error,
                settled => return settled,
            };
            wait = wait.min(self.policy.longest_wait);
            let spent = self.clock.now().saturating_sub(begun);
            // An upload that got no answer may have used up all the time by itself, and was tried only once.
            let is_late = tries > 1 && spent.saturating_add(wait) > self.policy.total;
            if tries >= self.policy.tries || is_late {
                return Err(error);
            }
            tracing::debug!(tries, wait = ?wait, error = %error, "trying again");
            self.clock.sleep(jittered(wait));
            wait = wait.saturating_mul(2);
            tries += 1;
        }
    }

    fn holds(&self, key: &str, bytes: &[u8]) -> Result<bool, StoreError> {
        // One byte more than ours, so that a longer object that ends in the same bytes differs.
        let range = Range::Tail { len: bytes.len().saturating_add(1) };
        match self.get(key, range) {
            Ok(found) => Ok(found == bytes),
            // There was an object, and it was removed since. Ours or not, this put has not left it there.
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Between half of `wait` and all of it, so that hosts that failed together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness waits are merely in step.
    if getrandom::fill(&mut random).is_err() {
        return wait;
    }
    let half = wait / 2;
    half + half.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX))
}

impl std::fmt::Debug for RetryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RetryStore").field("inner", &self.inner).field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Store for RetryStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        let (put, tries) = self.retry(|tries| Ok((self.inner.put_if_absent(key, bytes)?, tries)))?;
        if put == Put::Exists && tries > 1 && self.holds(key, bytes)? {
            return Ok(Put::Created);
        }
        Ok(put)
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        self.retry(|_| self.inner.get(key, range))
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        let mut last: Option<String> = None;
        self.retry(|_| {
            let behind = last.clone();
            self.inner.list(prefix, depth, &mut |listed| {
                if behind.as_ref().is_none_or(|behind| listed.key > *behind) {
                    last = Some(listed.key.clone());
                    each(listed);
                }
            })
        })
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.retry(|_| self.inner.delete(key))
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn will_get(&self, key: &str, spans: &[(u64, usize)]) {
        self.inner.will_get(key, spans);
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
mod tests;
