//! The manifests a backup looks back at, as far as they can be read from end to end.
//!
//! There are two. The *prior* is pgBackRest's: the backup of this stanza whose times of change, or WAL positions, tell what
//! need not be read. The new manifest is built on its, or for a full on that of the stanza's newest backup: it extends its
//! chunk table and takes over its leaves, which no manifest of another stanza would do, as metadata is sealed for one
//! stanza. The *page parent* is the newest backup of the cluster in whatever stanza (`newest`): pages that are read are
//! compared with it as well, for it knows what was stored last. Often both are one.
//!
//! One that cannot be read must not keep the cluster from being backed up: the next one takes its place, or none. Each is
//! read here once, before anything is copied, because later there would be no way back. Cost: the pieces of its tree and
//! of its chunk table, some 130 MiB for a cluster of 1 TiB; of which the caches of a [`Manifest`] are kept.
//!
//! *Why a backup that is looked back at may go meanwhile.* Nothing of the new backup refers to another backup: only chunks
//! count. A chunk is taken over only if the index of this session knows it, and so it lies in a pack that was not condemned
//! when the session began, at generation g0. Whatever is expired later, garbage collection condemns a pack in a generation c
//! above g0 at the earliest, and deletes none while a session with g0 < c is open (G5): this one's manifests and old pages
//! stay readable until it ends. When it commits, W6 has made sure that every pack it refers to, whichever manifest led
//! there, is there and not condemned; else it fails with that pack's name and nothing is visible. What then comes before
//! the collector's next look at open sessions is in its fresh mark.

use super::newest::Found;
use crate::Result;
use crate::index::ChunkIndex;
use crate::observe::Cancel;
use crate::repository::manifests::Manifest;
use crate::repository::{ChunkSource, Repository, WriterSession};
use pgkeep_formats::id::{ChunkId, PackId, SessionId};
use pgkeep_formats::repo::manifest::ExtentAt;
use pgkeep_formats::repo::records::Commit;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Backups that are tried, one after the other, if they cannot be read.
const TRIES_MAX: usize = 4;

/// The manifests a backup looks back at. Those that are the same are one.
#[derive(Clone, Default)]
pub(super) struct Earlier {
    /// The one the new manifest is built on; of this stanza.
    pub(super) own: Option<Arc<Manifest>>,
    /// `own` is the prior's: what it says may be trusted without reading.
    pub(super) is_prior: bool,
    /// The page parent, if that is another.
    pub(super) newest: Option<Arc<Manifest>>,
}

impl Earlier {
    /// The prior's manifest.
    pub(super) fn prior(&self) -> Option<&Arc<Manifest>> {
        self.own.as_ref().filter(|_| self.is_prior)
    }

    /// True if there is nothing to compare with.
    pub(super) fn is_empty(&self) -> bool {
        self.own.is_none() && self.newest.is_none()
    }
}

/// Opens the manifests of `prior` and of the newest of `found`, which are in order, the newest first.
///
/// Packs in which a part of one is damaged are out of deduplication from then on.
///
/// # Errors
/// [`crate::Error::Interrupted`]; a store that is not there at all; what the index said.
pub(super) fn open(
    session: &mut WriterSession,
    source: &Arc<ChunkSource>,
    prior: Option<&Commit>,
    found: &[Found],
    cancel: &Cancel,
) -> Result<Earlier> {
    let stanza = source.stanza().to_owned();
    let own: Vec<Found> = match prior {
        Some(prior) => vec![Found { stanza: stanza.clone(), commit: prior.clone() }],
        None => found.iter().filter(|f| f.stanza == stanza).take(TRIES_MAX).cloned().collect(),
    };
    let sources = HashMap::from([(stanza.clone(), Arc::clone(source))]);
    let mut reader = Reader { session, sources, cancel, open: HashMap::new(), refused: HashSet::new(), again: false };
    loop {
        let mut built_on = reader.first(&own)?;
        let newest = reader.first(found)?;
        // What one reader found damaged, another may have relied on.
        if std::mem::take(&mut reader.again) {
            continue;
        }
        let is_prior = prior.is_some() && built_on.is_some();
        let mut newest = newest.filter(|n| built_on.as_ref().is_none_or(|b| b.session != n.session));
        if built_on.is_none() && newest.as_ref().is_some_and(|n| n.stanza == stanza) {
            built_on = newest.take();
        }
        if let Some(newest) = &newest {
            tracing::info!("pages are compared with backup {} of stanza '{}'", newest.label, newest.stanza);
        }
        let manifest = |open: Option<Open>| open.map(|o| o.manifest);
        return Ok(Earlier { own: manifest(built_on), is_prior, newest: manifest(newest) });
    }
}

#[derive(Clone)]
struct Open {
    session: SessionId,
    stanza: String,
    label: String,
    manifest: Arc<Manifest>,
}

struct Reader<'a> {
    session: &'a mut WriterSession,
    sources: HashMap<String, Arc<ChunkSource>>,
    cancel: &'a Cancel,
    open: HashMap<SessionId, Open>,
    refused: HashSet<SessionId>,
    /// Packs were distrusted: what was open has to be read again.
    again: bool,
}

impl Reader<'_> {
    /// The first of these that can be read.
    fn first(&mut self, found: &[Found]) -> Result<Option<Open>> {
        for found in found.iter().take(TRIES_MAX) {
            let id = found.commit.session;
            if let Some(open) = self.open.get(&id) {
                return Ok(Some(open.clone()));
            }
            if self.refused.contains(&id) {
                continue;
            }
            if let Some(manifest) = self.read(found)? {
                let (stanza, label) = (found.stanza.clone(), found.commit.label.clone());
                let open = Open { session: id, stanza, label, manifest };
                self.open.insert(id, open.clone());
                return Ok(Some(open));
            }
            self.refused.insert(id);
        }
        Ok(None)
    }

    fn read(&mut self, found: &Found) -> Result<Option<Arc<Manifest>>> {
        let source = self.source(&found.stanza);
        let reason = match read(self.session, &source, &found.commit, self.cancel) {
            Ok(Some(manifest)) => return Ok(Some(manifest)),
            Ok(None) => "needs a pack that is lost or damaged".to_owned(),
            Err(e) if e.concerns_the_run() => return Err(e),
            Err(e) => {
                let damaged = damaged_packs(&source, &found.commit, self.cancel)?;
                if !damaged.is_empty() {
                    self.session.distrust(damaged);
                    self.open.clear();
                    self.again = true;
                }
                format!("has a manifest that cannot be read: {}", e.chain())
            }
        };
        let (label, stanza) = (&found.commit.label, &found.stanza);
        tracing::warn!("backup {label} of stanza '{stanza}' {reason}; nothing is compared with it");
        Ok(None)
    }

    fn source(&mut self, stanza: &str) -> Arc<ChunkSource> {
        let session = &self.session;
        let make = || {
            let repository: Arc<Repository> = Arc::clone(session.repository());
            let index = Arc::clone(session.index()) as Arc<dyn ChunkIndex>;
            Arc::new(ChunkSource::new(repository, index, stanza))
        };
        Arc::clone(self.sources.entry(stanza.to_owned()).or_insert_with(make))
    }
}

fn read(
    session: &WriterSession,
    source: &Arc<ChunkSource>,
    commit: &Commit,
    cancel: &Cancel,
) -> Result<Option<Arc<Manifest>>> {
    let manifest = Arc::new(Manifest::open(source, commit)?);
    let shuns = session.shuns_any();
    // A table takes over what the one before had: not all of it is of this backup, and what is not may have gone.
    let total: u64 = manifest.root().table.iter().map(|piece| u64::from(piece.ids)).sum();
    let mut used = vec![0u64; if shuns { total as usize / 64 + 1 } else { 0 }];
    for record in manifest.files() {
        cancel.check()?;
        let record = record?;
        for extent in &record.extents {
            if let ExtentAt::Chunk { ordinal, .. } = extent.at
                && let Some(word) = used.get_mut(ordinal as usize / 64)
            {
                *word |= 1 << (ordinal % 64);
            }
        }
    }
    let is_used = |ordinal: usize| used.get(ordinal / 64).is_some_and(|word| word & (1 << (ordinal % 64)) != 0);
    let mut next = 0;
    for number in 0..manifest.root().table.len() {
        cancel.check()?;
        let ids = manifest.table_piece(number)?;
        let ordinals = next..;
        next += ids.len();
        if !shuns {
            continue;
        }
        for (_, id) in ordinals.zip(ids.iter()).filter(|(ordinal, _)| is_used(*ordinal)) {
            // A delta whose base is lost is lost as well.
            let index = &**session.index();
            let whole = match index.lookup(id)? {
                Some(at) => session.repository().is_complete(index, &at)?,
                None => false,
            };
            if !whole {
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
        ids.extend(manifest.root().pieces());
    }
    let mut packs = HashSet::new();
    for id in ids {
        cancel.check()?;
        match source.read(&id) {
            Ok(_) => {}
            Err(e) if e.concerns_the_run() => return Err(e),
            // In no pack at all: then nothing can be built on it.
            Err(_) => packs.extend(source.locate(&id).ok().map(|at| at.pack.pack)),
        }
    }
    Ok(packs)
}
