//! Who waits for pages, so that what nobody waits for gives way.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests of the server that wait for pages.
#[derive(Debug, Default)]
pub(super) struct Demand(AtomicUsize);

/// One such request.
pub(super) struct Waiting<'a>(&'a Demand);

impl Demand {
    pub(super) fn enter(&self) -> Waiting<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        Waiting(self)
    }

    /// Waits while there are more than `beside`, but no longer than `most`.
    pub(super) fn give_way(&self, beside: usize, most: Duration, until: impl Fn() -> bool) {
        let begun = Instant::now();
        while self.0.load(Ordering::Acquire) > beside && begun.elapsed() < most && !until() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}
