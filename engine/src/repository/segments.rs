//! Writing index segments that lose no place of a chunk.
//!
//! A chunk may lie in several packs, and which of them a backup's references name is not known to who writes the index: the
//! others may go one day. A segment has one place for a chunk, so further ones go to other segments.

use super::{Repository, put_new};
use crate::crypto::{Scope, SessionSealer};
use crate::{Error, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::id::{ChunkId, IndexId, PackId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::index::{IndexBuilder, IndexEntry, PackFacts};
use pgkeep_formats::repo::layout;
use std::collections::HashMap;
use std::sync::Arc;

/// Chunks of a segment: 14 MiB of it in memory, and as much again while it is sealed.
const ENTRIES_MAX: usize = 1 << 18;

/// Makes segments of what it is given.
pub(crate) struct Segments<'a> {
    repository: &'a Repository,
    sealer: SessionSealer,
    builder: IndexBuilder,
    places: HashMap<ChunkId, PackId>,
    /// Further places of chunks that the builder has.
    others: Vec<(PackFacts, IndexEntry)>,
    published: Vec<String>,
}

impl<'a> Segments<'a> {
    /// None yet.
    pub(crate) fn new(repository: &'a Repository) -> Result<Self> {
        Ok(Self {
            repository,
            sealer: SessionSealer::new(Arc::clone(repository.keyring()))?,
            builder: IndexBuilder::new(),
            places: HashMap::new(),
            others: Vec::new(),
            published: Vec::new(),
        })
    }

    /// Adds a place, which the object `name` told. What is full is published.
    pub(crate) fn add(&mut self, name: &str, facts: &PackFacts, entry: IndexEntry) -> Result<()> {
        self.place(facts, entry).map_err(Error::damaged(name))?;
        if self.builder.len() >= ENTRIES_MAX {
            self.publish()?;
        }
        if self.others.len() >= ENTRIES_MAX {
            self.publish_others(name)?;
        }
        Ok(())
    }

    fn place(&mut self, facts: &PackFacts, entry: IndexEntry) -> Result<(), FormatError> {
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
            self.place(&facts, entry).map_err(Error::damaged(name))?;
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<()> {
        self.places.clear();
        let payload = std::mem::take(&mut self.builder).encode();
        let id = IndexId(self.repository.keyring().content_hash(&payload)?);
        let name = layout::index_segment(self.sealer.session(), self.published.len() as u32, id);
        let bytes = self.sealer.seal_object(ObjectKind::Index, &Scope::Index, &name, &[], &payload)?;
        put_new(&**self.repository.store(), &name, &bytes)?;
        self.published.push(name);
        Ok(())
    }

    /// Publishes the rest, with the word that all these supersede others. The names of all.
    pub(crate) fn finish<'n>(mut self, superseded: impl Iterator<Item = &'n String>) -> Result<Vec<String>> {
        while !self.others.is_empty() {
            self.publish_others(layout::INDEX)?;
        }
        let mut supersedes = false;
        for name in superseded {
            self.builder.supersede(name.as_str());
            supersedes = true;
        }
        if supersedes || !self.builder.is_empty() {
            self.publish()?;
        }
        Ok(self.published)
    }
}
