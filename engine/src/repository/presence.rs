//! Whether packs can be read at all: each is there, whole, has the key of its session, and no marker.
//!
//! Asked twice by a writer: when it starts, so that it deduplicates against nothing that is lost, and before it commits
//! (W6 of DESIGN's section 5). Names and sizes are compared, from three listings; contents are left to `verify`, for a
//! writer may be unable to open them. What `verify` finds damaged it marks (`bad/`), and a marked pack is as good as lost
//! to writers; readers use what is whole in it.

use super::Repository;
use crate::store::Depth;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{PackId, SessionId};
use pgkeep_formats::repo::index::{DOMAIN_DATA, PackFacts};
use pgkeep_formats::repo::keyrecord::WRAP_RECORD_LEN;
use pgkeep_formats::repo::layout;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Packs of which something is missing.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Their names.
    pub(super) packs: HashSet<PackId>,
    /// What is wrong with one of them.
    pub(super) example: Option<(Kind, String)>,
}

impl Lost {
    fn add(&mut self, pack: PackId, kind: Kind, text: impl FnOnce() -> String) {
        self.packs.insert(pack);
        self.example.get_or_insert_with(|| (kind, text()));
    }

    /// The error of a backup that needs one of them.
    pub(super) fn refuse(self) -> Result<()> {
        match self.example {
            Some((kind, text)) if self.packs.len() > 1 => {
                let text = format!("{} packs this backup needs cannot be read, such as: {text}", self.packs.len());
                Err(Error::refused(kind, text))
            }
            Some((kind, text)) => Err(Error::refused(kind, format!("a pack this backup needs cannot be read: {text}"))),
            None => Ok(()),
        }
    }
}

impl Repository {
    /// The packs that a verification has found damaged, by their markers' names.
    ///
    /// # Errors
    /// What the store said.
    pub fn marked_packs(&self) -> Result<HashSet<PackId>> {
        let mut out = HashSet::new();
        self.store().list(layout::BAD_PACKS, Depth::All, &mut |l| out.extend(layout::parse_bad_pack(&l.key)))?;
        Ok(out)
    }

    /// Marks a pack as damaged: no later backup builds on it. Saying so twice is no harm.
    ///
    /// # Errors
    /// `FeatureNotSupported` for a repository that can only be read; what the store said.
    pub fn mark_pack(&self, pack: PackId) -> Result<()> {
        self.check_writable()?;
        self.store().put_if_absent(&layout::bad_pack(pack), layout::BAD_PACK_MARK)?;
        Ok(())
    }

    /// Takes the mark from a pack that was found whole, such as after it was put back from a copy.
    ///
    /// # Errors
    /// As [`Self::mark_pack`].
    pub fn unmark_pack(&self, pack: PackId) -> Result<()> {
        self.check_writable()?;
        Ok(self.store().delete(&layout::bad_pack(pack))?)
    }

    /// Which of these packs cannot be read. Blocks on three listings of the store.
    pub(super) fn lost_packs(&self, packs: &HashMap<PackId, Arc<PackFacts>>) -> Result<Lost> {
        let (place, mut lost) = (self.store().describe(), Lost::default());
        if packs.is_empty() {
            return Ok(lost);
        }
        let mut missing: HashSet<PackId> = packs.keys().copied().collect();
        self.store().list(layout::PACKS, Depth::All, &mut |l| {
            let Some(facts) = layout::parse_pack(&l.key).and_then(|id| packs.get(&id)) else { return };
            missing.remove(&facts.pack);
            if facts.size != l.size {
                let text = || format!("'{}' in {place} has {} bytes instead of {}", l.key, l.size, facts.size);
                lost.add(facts.pack, Kind::Checksum, text);
            }
        })?;
        for id in self.marked_packs()?.into_iter().filter(|id| packs.contains_key(id) && !missing.contains(id)) {
            let text = || format!("'{}' in {place} was found damaged by 'verify'", layout::pack(id));
            lost.add(id, Kind::Checksum, text);
        }
        for id in missing {
            lost.add(id, Kind::FileMissing, || format!("'{}' is missing from {place}", layout::pack(id)));
        }

        let data = || packs.values().filter(|facts| facts.domain == DOMAIN_DATA);
        let mut keyless: HashMap<SessionId, Option<(String, u64)>> =
            data().map(|facts| (facts.session, None)).collect();
        self.store().list(layout::SESSION_KEYS, Depth::All, &mut |l| {
            let Some((session, _)) = layout::parse_session_key(&l.key) else { return };
            if l.size == WRAP_RECORD_LEN as u64 {
                keyless.remove(&session);
            } else if let Some(found) = keyless.get_mut(&session) {
                *found = Some((l.key, l.size));
            }
        })?;
        for facts in data() {
            match keyless.get(&facts.session) {
                None => {}
                Some(Some((key, size))) => lost.add(facts.pack, Kind::Checksum, || {
                    format!("'{key}' in {place}, its key, has {size} bytes instead of {WRAP_RECORD_LEN}")
                }),
                Some(None) => lost.add(facts.pack, Kind::FileMissing, || {
                    format!("the key of its session {} is missing from {place}", facts.session)
                }),
            }
        }
        Ok(lost)
    }
}
