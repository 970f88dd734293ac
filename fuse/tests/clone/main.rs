//! What a clone promises, through the kernel.
#![allow(clippy::unwrap_used, reason = "a test that fails here has found something")]

mod backup;
mod content;
mod create;
mod disk;
mod ends;
mod entries;
mod host;
mod model;
mod modes;
mod names;
mod postgres;
#[path = "../support/mod.rs"]
mod support;
mod unprivileged;

/// What a page of the backups holds.
const PAGE: usize = 8192;

#[test]
fn daemon() {
    support::daemon_main();
}
