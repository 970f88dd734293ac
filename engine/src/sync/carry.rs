//! One chunk on its way: opened and checked under one repository's keys, named and sealed under another's.
//!
//! What is new is not compressed again, and a delta stays one where the other repository has the chunks it was encoded against,
//! in full: names are of plaintext, so those have other names there and the same pages.

use crate::chunk::Encoder;
use crate::crypto::{PageHasher, SessionSealer};
use crate::index::{ChunkAt, ChunkIndex};
use crate::observe::Cancel;
use crate::pack::BasePages;
use crate::repository::{ChunkSource, Repository, RepositoryIndex, seal_data};
use crate::{Error, Result};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use std::collections::HashMap;
use std::sync::Arc;

/// A chunk on its way.
pub(super) struct Carried {
    pub(super) theirs: ChunkId,
    pub(super) ours: ChunkId,
    pub(super) kind: ChunkKind,
    pub(super) plain_len: u32,
    /// None if the other repository has it.
    pub(super) new: Option<Sealed>,
    /// Names of other chunks that were found out.
    pub(super) learned: Vec<(ChunkId, ChunkId)>,
}

/// A chunk as the other repository stores it.
pub(super) struct Sealed {
    pub(super) encoding: Encoding,
    pub(super) bytes: Vec<u8>,
    /// What it is encoded against.
    pub(super) bases: Vec<BasePages>,
    /// Of its pages.
    pub(super) hashes: Vec<u64>,
}

/// What each thread needs to copy a chunk.
pub(super) struct Hand<'a> {
    pub(super) source: &'a ChunkSource,
    pub(super) to: &'a Repository,
    pub(super) index: Arc<RepositoryIndex>,
    pub(super) sealer: Arc<SessionSealer>,
    pub(super) hasher: PageHasher,
    pub(super) page: usize,
    pub(super) names: &'a HashMap<ChunkId, ChunkId>,
    pub(super) deltas: bool,
    pub(super) level: i32,
    pub(super) cancel: &'a Cancel,
}

impl Hand<'_> {
    pub(super) fn carry(&self, encoder: &mut Result<Encoder>, id: &ChunkId) -> Result<Carried> {
        self.cancel.check()?;
        let kind = self.source.locate(id)?.kind;
        // Checked against its name: what is damaged there is not carried on.
        let (plain, encoded) = self.source.read_encoded(id)?;
        let (ours, plain_len) = (self.to.keyring().chunk_id(kind.as_u8(), &plain)?, plain.len() as u32);
        let mut carried = Carried { theirs: *id, ours, kind, plain_len, new: None, learned: Vec::new() };
        if self.index.knows(self.to, &ours)? {
            return Ok(carried);
        }
        let as_it_is = match encoded {
            Some((at, encoded)) => self.bases(id, &at, &mut carried.learned)?.map(|b| (at.encoding, encoded, b)),
            None => None,
        };
        let (encoding, encoded, bases) = match as_it_is {
            Some(found) => found,
            None => {
                let encoder = encoder.as_mut().map_err(|e| Error::refused(e.kind(), e.chain()))?;
                let (encoding, encoded) = encoder.encode(&plain)?;
                (encoding, encoded.to_vec(), Vec::new())
            }
        };
        let bytes = seal_data(&self.sealer, ours, kind, encoding, plain_len, &encoded)?;
        let hashes = match kind {
            ChunkKind::Relation if plain.len().is_multiple_of(self.page) => {
                plain.chunks(self.page).map(|p| self.hasher.hash(p)).collect()
            }
            _ => Vec::new(),
        };
        carried.new = Some(Sealed { encoding, bytes, bases, hashes });
        Ok(carried)
    }

    /// What a chunk is encoded against, under the names of the other repository; `None` if it cannot be stored there as it is
    /// encoded here, for want of that or because nobody wants it.
    fn bases(
        &self,
        id: &ChunkId,
        at: &ChunkAt,
        learned: &mut Vec<(ChunkId, ChunkId)>,
    ) -> Result<Option<Vec<BasePages>>> {
        match at.encoding {
            Encoding::Raw | Encoding::Zstd => return Ok(Some(Vec::new())),
            Encoding::ZstdDictionary => return Ok(None),
            Encoding::ZstdPrefix | Encoding::Patch => {}
        }
        if !self.deltas {
            return Ok(None);
        }
        let contents = self.source.repository().pack_contents(&at.pack)?;
        if contents.id(at.ordinal) != Some(*id) {
            return Ok(None);
        }
        let mut bases = contents.bases(at.ordinal);
        for base in &mut bases {
            let found = learned.iter().find(|(theirs, _)| *theirs == base.chunk).map(|(_, ours)| *ours);
            let ours = match found.or_else(|| self.names.get(&base.chunk).copied()) {
                Some(ours) => ours,
                None => self.name_of_base(&base.chunk)?,
            };
            let is_there = self.index.lookup(&ours)?.is_some_and(|at| !at.encoding.is_delta());
            if !is_there || !self.index.knows(self.to, &ours)? {
                return Ok(None);
            }
            // Only what is there: by these names others of its pages are not copied.
            learned.push((base.chunk, ours));
            base.chunk = ours;
        }
        Ok(Some(bases))
    }

    /// The name that a chunk has in the other repository. It was read just now, to decode what builds on it.
    fn name_of_base(&self, id: &ChunkId) -> Result<ChunkId> {
        let kind = self.source.locate(id)?.kind.as_u8();
        match self.source.kept_base(id) {
            Some(plain) => Ok(self.to.keyring().chunk_id(kind, &plain)?),
            None => Ok(self.to.keyring().chunk_id(kind, &self.source.read(id)?)?),
        }
    }
}
