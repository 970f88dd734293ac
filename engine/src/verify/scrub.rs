//! Packs without any key: a pack is named by the hash of its bytes, so whoever can read the store can tell whether they are
//! what was written. Whether they open, what they hold, and what is missing takes a key, and [`super::run`].

use super::report::{Findings, Flaw, VerifyReport};
use super::workers;
use crate::Result;
use crate::observe::{Cancel, Counter, Observer};
use crate::store::{Depth, Range, Store, StoreError};
use pgkeep_formats::id::PackId;
use pgkeep_formats::repo::layout;

/// Reads every pack of a store and compares it with its name. Nothing is written.
///
/// # Errors
/// Only what keeps the store from being read; `Interrupted`. Damage is in the report.
pub fn scrub(store: &dyn Store, jobs: usize, observer: &dyn Observer, cancel: &Cancel) -> Result<VerifyReport> {
    let findings = Findings::default();
    let mut packs: Vec<(PackId, u64)> = Vec::new();
    store.list(layout::PACKS, Depth::All, &mut |l| match layout::parse_pack(&l.key) {
        Some(pack) => packs.push((pack, l.size)),
        None => findings.warn(format!("'{}' is not part of a repository", l.key)),
    })?;
    observer.begin("verify packs", packs.iter().map(|(_, size)| size).sum());
    let outcome = workers::each(jobs, packs.iter(), cancel, |(pack, size)| {
        let name = layout::pack(*pack);
        match store.get(&name, Range::Whole) {
            Ok(bytes) => {
                findings.count(|c| {
                    c.packs += 1;
                    c.pack_bytes += bytes.len() as u64;
                });
                if *blake3::hash(&bytes).as_bytes() != pack.0 {
                    findings.damage(&name, Flaw::Damaged, "its bytes do not have the hash that is its name");
                }
            }
            // Taken by garbage collection since it was listed.
            Err(StoreError::NotFound { .. }) => {}
            Err(e) => findings.failure(&name, e.into())?,
        }
        observer.add(Counter::Done, *size);
        observer.add(Counter::Files, 1);
        Ok(())
    });
    observer.end();
    outcome?;
    Ok(findings.into_report())
}
