//! Promise: a backup that reads only what WAL summaries list holds what one that reads everything holds.

mod compare;
mod content;
mod fallback;
mod random;
mod workload;

use support::{Cluster, majors, pg::Builder};

/// The majors under test that summarize WAL; at least one.
fn summarizing() -> Vec<u32> {
    let mut all: Vec<u32> = majors().into_iter().filter(|major| *major >= 17).collect();
    if all.is_empty() {
        all.push(17);
    }
    all
}

/// A cluster that summarizes its WAL and changes nothing by itself.
fn builder(major: u32) -> Builder {
    Cluster::builder(major).setting("summarize_wal", "on").setting("autovacuum", "off")
}
