//! The manifest a backup is compared with, if it can be read from end to end.
//!
//! One that cannot must not keep the cluster from being backed up: the new backup then compares nothing and reads all
//! files. It is read here once, before anything is copied, because later there would be no way back. Cost: the pieces of
//! its tree and of its chunk table, some 130 MiB for a cluster of 1 TiB.

use crate::index::ChunkIndex;
use crate::observe::Cancel;
use crate::repository::manifests::Manifest;
use crate::repository::{ChunkSource, WriterSession};
use crate::store::StoreError;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::records::Commit;
use std::collections::HashSet;
use std::sync::Arc;

/// Opens the manifest of `commit` to compare with it; none if it, or a chunk it takes for granted, cannot be read.
///
/// Packs in which a part of it is damaged are out of deduplication from then on.
///
/// # Errors
/// [`Error::Interrupted`]; a store that is not there at all; what the index said.
pub(super) fn open(
    session: &mut WriterSession,
    source: &Arc<ChunkSource>,
    commit: &Commit,
    cancel: &Cancel,
) -> Result<Option<Arc<Manifest>>> {
    let error = match read(session, source, commit, cancel) {
        Ok(manifest) => return Ok(manifest),
        Err(e) if concerns_the_run(&e) => return Err(e),
        Err(e) => e,
    };
    tracing::warn!(
        "the manifest of backup {} cannot be read: {}; nothing is compared with it and all files are read",
        commit.label,
        error.chain()
    );
    let damaged = damaged_packs(source, commit, cancel)?;
    session.distrust(damaged);
    Ok(None)
}

fn read(
    session: &WriterSession,
    source: &Arc<ChunkSource>,
    commit: &Commit,
    cancel: &Cancel,
) -> Result<Option<Arc<Manifest>>> {
    let manifest = Arc::new(Manifest::open(source, commit)?);
    for record in manifest.files() {
        cancel.check()?;
        record?;
    }
    for number in 0..manifest.root().table.len() {
        cancel.check()?;
        let ids = manifest.table_piece(number)?;
        if session.lost_packs() == 0 {
            continue;
        }
        for id in ids.iter() {
            // A delta whose base is lost is lost as well.
            let mut whole = true;
            match session.index().lookup(id)? {
                Some(at) => session.repository().dependencies(&at, &mut |base| {
                    whole &= session.index().lookup(base)?.is_some();
                    Ok(())
                })?,
                None => whole = false,
            }
            if !whole {
                tracing::info!("backup {} needs a pack that is lost or damaged: all files are read", commit.label);
                return Ok(None);
            }
        }
    }
    Ok(Some(manifest))
}

/// Packs that hold a part of a manifest which cannot be read there.
fn damaged_packs(source: &Arc<ChunkSource>, commit: &Commit, cancel: &Cancel) -> Result<HashSet<PackId>> {
    let mut ids: Vec<ChunkId> = commit.manifest.clone();
    if let Ok(manifest) = Manifest::open(source, commit) {
        let root = manifest.root();
        ids.extend(root.table.iter().map(|p| p.id));
        ids.extend(root.tree.iter().map(|p| p.id));
        ids.extend(&root.bases);
    }
    let mut packs = HashSet::new();
    for id in ids {
        cancel.check()?;
        match source.read(&id) {
            Ok(_) => {}
            Err(e) if concerns_the_run(&e) => return Err(e),
            // In no pack at all: then nothing can be built on it.
            Err(_) => packs.extend(source.locate(&id).ok().map(|at| at.pack.pack)),
        }
    }
    Ok(packs)
}

/// True for failures that say nothing of the objects read.
fn concerns_the_run(error: &Error) -> bool {
    matches!(error.root(), Error::Store(StoreError::Root { .. }))
        || matches!(error.kind(), Kind::Interrupted | Kind::Memory)
}
