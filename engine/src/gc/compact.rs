//! The index without what goes: segments that name packs which are doomed or gone are replaced, and small ones joined (G7).
//!
//! *Order.* A replacement is durable before what it supersedes is deleted, and that happens in a later run: a list that is
//! being taken meanwhile could otherwise miss both. Only the last of several replacements says what they supersede, so an
//! interruption leaves some segments more and the old ones in force.
//!
//! Packs are listed behind segments: whatever a listed segment names was durable before, and if it is not listed it is gone.

use super::GcReport;
use crate::observe::{Cancel, Counter, Observer};
use crate::repository::{Repository, Segments};
use crate::store::Depth;
use crate::{Error, Result};
use pgkeep_formats::id::{PackId, SessionId};
use pgkeep_formats::repo::index::IndexView;
use pgkeep_formats::repo::layout;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Small segments that may stay as they are; from here on they are joined.
const SEGMENTS_MAX: usize = 64;
/// Chunks of a segment that is worth joining with others.
const SMALL: usize = 1 << 16;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 52;

/// Which sessions stored the packs that stay, as the index knows them, and all packs that stay.
#[derive(Debug, Default)]
pub(super) struct Owners {
    pub(super) of: HashMap<PackId, SessionId>,
    pub(super) packs: HashMap<PackId, u64>,
}

/// Takes what names doomed packs, or none that is there, out of the index.
pub(super) fn run(
    repository: &Repository,
    doomed: &HashSet<PackId>,
    fenced: &HashSet<SessionId>,
    report: &mut GcReport,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Option<Owners>> {
    let segments: Vec<(String, u64)> = repository.index_segments()?.into_iter().map(|l| (l.key, l.size)).collect();
    // Reading the index costs what it holds: only where something is to change.
    let is_small = |size: &u64| *size < (SMALL * ENTRY_BYTES) as u64;
    let join = segments.iter().filter(|(_, size)| is_small(size)).count() > SEGMENTS_MAX;
    if doomed.is_empty() && !join && !names_what_is_gone(repository, &segments, fenced)? {
        return Ok(None);
    }
    let mut owners = Owners::default();
    repository.store().list(layout::PACKS, Depth::All, &mut |l| {
        owners.packs.extend(layout::parse_pack(&l.key).filter(|id| !doomed.contains(id)).map(|id| (id, l.size)));
    })?;
    let (mut outdated, mut unreadable) = (BTreeSet::new(), Vec::new());
    let (mut rewriter, mut replaced) = (Segments::new(repository)?, Vec::new());
    observer.begin("index", segments.iter().map(|s| s.1).sum());
    for (name, size) in &segments {
        cancel.check()?;
        let payload = match repository.index_payload(name) {
            Ok((payload, _)) => payload,
            Err(e) if e.is_not_found() => continue,
            // What was made from the packs in its place may supersede it.
            Err(e) if e.is_damage() => {
                unreadable.push((name, e));
                continue;
            }
            Err(e) => return Err(e),
        };
        let view = IndexView::parse(&payload).map_err(Error::damaged(name))?;
        outdated.extend(view.supersedes().iter().filter(|s| **s != *name).map(|s| (*s).to_owned()));
        let stays = |facts: &PackId| owners.packs.contains_key(facts);
        if view.packs().iter().any(|facts| !stays(&facts.pack)) || (join && view.len() < SMALL) {
            for entry in view.iter() {
                if let Some(facts) = view.pack_of(&entry).filter(|facts| stays(&facts.pack)) {
                    rewriter.add(name, facts, entry)?;
                }
            }
            replaced.push(name);
        }
        let staying = view.packs().iter().filter(|facts| owners.packs.contains_key(&facts.pack));
        owners.of.extend(staying.map(|facts| (facts.pack, facts.session)));
        observer.add(Counter::Done, *size);
    }
    observer.end();
    // It may name what goes.
    if let Some((_, e)) = unreadable.into_iter().find(|(name, _)| !outdated.contains(*name)) {
        return Err(e);
    }
    report.segments += replaced.len() as u64;
    // What is outdated already is deleted below, and need not be named; nor is what was made of such alone of any use.
    replaced.retain(|name| !outdated.contains(*name));
    if !replaced.is_empty() {
        rewriter.finish(replaced.into_iter())?;
    }
    // Nobody goes by these since what supersedes them is there, and that was before this run.
    for name in outdated {
        cancel.check()?;
        repository.store().delete(&name)?;
    }
    Ok(Some(owners))
}

/// Whether a session that was fenced has named packs that are gone: it was stalled, and went on when they had been collected.
fn names_what_is_gone(
    repository: &Repository,
    segments: &[(String, u64)],
    fenced: &HashSet<SessionId>,
) -> Result<bool> {
    let mut named = HashSet::new();
    for (name, _) in segments {
        if !layout::parse_index_segment(name).is_some_and(|(session, ..)| fenced.contains(&session)) {
            continue;
        }
        match repository.index_payload(name) {
            Ok((payload, _)) => {
                let view = IndexView::parse(&payload).map_err(Error::damaged(name))?;
                named.extend(view.packs().iter().map(|facts| facts.pack));
            }
            Err(e) if e.is_not_found() || e.is_damage() => {}
            Err(e) => return Err(e),
        }
    }
    if !named.is_empty() {
        repository.store().list(layout::PACKS, Depth::All, &mut |l| {
            layout::parse_pack(&l.key).map(|pack| named.remove(&pack));
        })?;
    }
    Ok(!named.is_empty())
}
