//! Waiting for what happens by itself.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Reached only when something hangs.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until it is so.
///
/// # Panics
/// When that does not happen.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}
