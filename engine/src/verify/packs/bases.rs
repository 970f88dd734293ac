//! Deltas that are whole and cannot be decoded, for want of a chunk they were encoded against.
//!
//! The fault is the base's: its pack is named and distrusted, by its own scan, and those with deltas on it are not. A base
//! is a finding once, however many deltas need it; a pack of bases that is not there is one finding as a whole.

use super::super::report::{Findings, Flaw, flaw_of};
use crate::index::ChunkAt;
use crate::observe::DETAIL;
use crate::pack::PackContents;
use crate::repository::ChunkSource;
use crate::{Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::layout;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Bases that were needed and could not be read.
#[derive(Default)]
pub(super) struct LostBases(Mutex<Lost>);

#[derive(Default)]
struct Lost {
    chunks: HashSet<ChunkId>,
    /// Packs none of whose bases can be had.
    packs: HashSet<PackId>,
}

impl LostBases {
    /// Of a chunk that was opened and cannot be decoded: true if a base of it cannot be read. `contents` are those of the
    /// chunk's pack.
    ///
    /// # Errors
    /// What concerns the run.
    pub(super) fn blame(
        &self,
        id: &ChunkId,
        at: &ChunkAt,
        contents: Option<&PackContents>,
        source: &ChunkSource,
        findings: &Findings,
    ) -> Result<bool> {
        let bases: Vec<ChunkId> = contents.into_iter().flat_map(|c| c.dependencies(at.ordinal)).collect();
        let name = layout::pack(at.pack.pack);
        let known = {
            let lost = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            bases.iter().find(|base| lost.chunks.contains(*base)).copied()
        };
        if let Some(base) = known {
            tracing::debug!(target: DETAIL, "chunk {id} of '{name}' cannot be decoded without chunk {base}, which is lost");
            return Ok(true);
        }
        for base in bases {
            let Err(e) = source.read(&base) else { continue };
            // Collected, as no backup needs it: whether one needs this delta is seen where manifests are walked.
            if source.locate(&base).is_err_and(|e| e.kind() == Kind::FileMissing) {
                tracing::debug!(target: DETAIL, "chunk {id} of '{name}' builds on chunk {base}, which is in no pack");
                return Ok(true);
            }
            let (flaw, detail) = flaw_of(e)?;
            let pack = source.locate(&base).ok().map(|at| at.pack.pack);
            let is_news = {
                let mut lost = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let of_chunk = lost.chunks.insert(base);
                of_chunk && (flaw == Flaw::Damaged || pack.is_none_or(|pack| lost.packs.insert(pack)))
            };
            if is_news {
                let object = pack.map_or_else(|| name.clone(), layout::pack);
                let text = format!("chunk {id} of '{name}' cannot be decoded without base chunk {base}: {detail}");
                findings.damage(&object, flaw, text);
            }
            return Ok(true);
        }
        Ok(false)
    }
}
