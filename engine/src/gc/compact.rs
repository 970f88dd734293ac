//! The index without what goes: segments that name packs which are doomed or gone are replaced, and small ones joined (G7).
//!
//! *Order.* A replacement is durable before what it supersedes is deleted, and that happens in a later run: a list that is
//! being taken meanwhile could otherwise miss both. Only the last of several replacements says what they supersede, so an
//! interruption leaves some segments more and the old ones in force.
//!
//! *No place is lost.* A chunk may lie in several packs, and which of them a backup's references name is not known here. A
//! segment has one place for a chunk, so others go to another segment.
//!
//! Packs are listed behind segments: whatever a listed segment names was durable before, and if it is not listed it is gone.

use super::GcReport;
use crate::crypto::{Scope, SessionSealer};
use crate::observe::{Cancel, Counter, Observer};
use crate::repository::Repository;
use crate::store::Depth;
use crate::{Error, Result};
use pgkeep_formats::id::{ChunkId, IndexId, PackId, SessionId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::index::{IndexBuilder, IndexEntry, IndexView};
use pgkeep_formats::repo::layout;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Segments that may stay as they are; from here on small ones are joined.
const SEGMENTS_MAX: usize = 64;
/// Chunks of a segment that is worth joining with others.
const SMALL: usize = 1 << 16;
/// Chunks of a replacement: 14 MiB of it in memory, and as much again while it is sealed.
const ENTRIES_MAX: usize = 1 << 18;

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
    report: &mut GcReport,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Option<Owners>> {
    let mut segments = Vec::new();
    repository.store().list(layout::INDEX, Depth::All, &mut |l| {
        if layout::parse_index_segment(&l.key).is_some() {
            segments.push((l.key, l.size));
        }
    })?;
    // Reading the index costs what it holds: only where something is to change.
    let join = segments.len() > SEGMENTS_MAX;
    if doomed.is_empty() && !join {
        return Ok(None);
    }
    let mut owners = Owners::default();
    repository.store().list(layout::PACKS, Depth::All, &mut |l| {
        owners.packs.extend(layout::parse_pack(&l.key).filter(|id| !doomed.contains(id)).map(|id| (id, l.size)));
    })?;
    let mut outdated = BTreeSet::new();
    let mut rewriter = Rewriter::new(repository)?;
    observer.begin("index", segments.iter().map(|s| s.1).sum());
    for (name, size) in &segments {
        cancel.check()?;
        let payload = match repository.index_payload(name) {
            Ok((payload, _)) => payload,
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e),
        };
        let view = IndexView::parse(&payload).map_err(Error::damaged(name))?;
        outdated.extend(view.supersedes().iter().filter(|s| **s != *name).map(|s| (*s).to_owned()));
        let stays = |facts: &PackId| owners.packs.contains_key(facts);
        if view.packs().iter().any(|facts| !stays(&facts.pack)) || (join && view.len() < SMALL) {
            rewriter.take(name, &view, &stays)?;
        }
        let staying = view.packs().iter().filter(|facts| owners.packs.contains_key(&facts.pack));
        owners.of.extend(staying.map(|facts| (facts.pack, facts.session)));
        observer.add(Counter::Done, *size);
    }
    observer.end();
    report.segments = rewriter.replaced.len() as u64;
    rewriter.finish(&outdated)?;
    // Nobody goes by these since what supersedes them is there, and that was before this run.
    for name in outdated {
        cancel.check()?;
        repository.store().delete(&name)?;
    }
    Ok(Some(owners))
}

/// Makes replacements.
struct Rewriter<'a> {
    repository: &'a Repository,
    sealer: SessionSealer,
    builder: IndexBuilder,
    places: HashMap<ChunkId, PackId>,
    /// Further places of chunks that the builder has.
    others: Vec<(pgkeep_formats::repo::index::PackFacts, IndexEntry)>,
    replaced: Vec<String>,
    published: u32,
}

impl<'a> Rewriter<'a> {
    fn new(repository: &'a Repository) -> Result<Self> {
        Ok(Self {
            repository,
            sealer: SessionSealer::new(Arc::clone(repository.keyring()))?,
            builder: IndexBuilder::new(),
            places: HashMap::new(),
            others: Vec::new(),
            replaced: Vec::new(),
            published: 0,
        })
    }

    fn take(&mut self, name: &str, view: &IndexView<'_>, stays: &dyn Fn(&PackId) -> bool) -> Result<()> {
        for entry in view.iter() {
            let Some(facts) = view.pack_of(&entry).filter(|facts| stays(&facts.pack)) else { continue };
            self.add(facts, entry).map_err(Error::damaged(name))?;
            if self.builder.len() >= ENTRIES_MAX {
                self.publish()?;
            }
            if self.others.len() >= ENTRIES_MAX {
                self.publish_others(name)?;
            }
        }
        self.replaced.push(name.to_owned());
        Ok(())
    }

    fn add(
        &mut self,
        facts: &pgkeep_formats::repo::index::PackFacts,
        entry: IndexEntry,
    ) -> std::result::Result<(), pgkeep_formats::FormatError> {
        match self.places.get(&entry.id) {
            Some(pack) if *pack == facts.pack => Ok(()),
            Some(_) => {
                self.others.push((facts.clone(), entry));
                Ok(())
            }
            None => {
                self.places.insert(entry.id, facts.pack);
                let pack = self.builder.pack(facts)?;
                self.builder.add(&IndexEntry { pack, ..entry })
            }
        }
    }

    /// Publishes what the builder has, and begins anew with places that were left over.
    fn publish_others(&mut self, name: &str) -> Result<()> {
        self.publish()?;
        for (facts, entry) in std::mem::take(&mut self.others) {
            self.add(&facts, entry).map_err(Error::damaged(name))?;
        }
        Ok(())
    }

    /// Publishes what the builder has.
    fn publish(&mut self) -> Result<()> {
        self.places.clear();
        let payload = std::mem::take(&mut self.builder).encode();
        let id = IndexId(self.repository.keyring().content_hash(&payload)?);
        let name = layout::index_segment(self.sealer.session(), self.published, id);
        let bytes = self.sealer.seal_object(ObjectKind::Index, &Scope::Index, &name, &[], &payload)?;
        crate::repository::put_new(&**self.repository.store(), &name, &bytes)?;
        self.published += 1;
        Ok(())
    }

    /// Publishes the rest, with the word that it supersedes all that was taken. What is outdated already is deleted by the
    /// caller, and need not be named.
    fn finish(mut self, outdated: &BTreeSet<String>) -> Result<()> {
        while !self.others.is_empty() {
            self.publish_others("idx/")?;
        }
        if self.replaced.iter().all(|name| outdated.contains(name)) {
            return Ok(());
        }
        for name in self.replaced.iter().filter(|name| !outdated.contains(*name)) {
            self.builder.supersede(name.as_str());
        }
        self.publish()
    }
}
