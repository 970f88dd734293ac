//! Index segments: every one is opened, and those that are whole become the index the rest of the verification asks.

use super::report::{Findings, Flaw};
use crate::crypto::Scope;
use crate::index::{ChunkAt, ChunkIndex, CombinedIndex, IndexError, MemoryIndex, SegmentSet, SegmentSource};
use crate::observe::Cancel;
use crate::repository::Repository;
use crate::store::{Depth, Range, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::index::IndexView;
use pgkeep_formats::repo::layout;
use std::collections::HashSet;
use std::sync::Arc;

/// Reads index segments again whose local copy turns out to be damaged.
struct Fetcher(Arc<Repository>);

impl SegmentSource for Fetcher {
    fn payload(&self, object: &str) -> Result<Vec<u8>> {
        payload(&self.0, object)
    }
}

fn payload(repository: &Repository, object: &str) -> Result<Vec<u8>> {
    let bytes = repository.store().get(object, Range::Whole)?;
    let opened = repository.keyring().open_object(object, &bytes, &[ObjectKind::Index], &Scope::Index)?;
    let hash = repository.keyring().content_hash(&opened.plaintext)?;
    if layout::parse_index_segment(object).is_none_or(|(_, _, id)| id.0 != hash) {
        return Err(Error::refused(Kind::Checksum, format!("the content of '{object}' is not what its name says")));
    }
    Ok(opened.plaintext)
}

/// Checks all segments; the index answers from those that are whole. In memory without a local cache, else on disk.
pub(super) fn load(repository: &Arc<Repository>, findings: &Findings, cancel: &Cancel) -> Result<Arc<dyn ChunkIndex>> {
    let mut listed = Vec::new();
    repository.store().list(layout::INDEX, Depth::All, &mut |l| listed.push(l))?;
    listed.sort_by_key(|l| std::cmp::Reverse(l.modified));
    let memory = Arc::new(MemoryIndex::new());
    let mut whole = Vec::new();
    // First the damaged ones are found, so that the index never waits for them; then the whole ones are installed.
    for l in listed {
        cancel.check()?;
        if !(layout::parse_index_segment(&l.key).is_some() || merged(&l.key)) {
            findings.warn(format!("'{}' is not part of a repository", l.key));
            continue;
        }
        match payload(repository, &l.key).and_then(|p| check(&l.key, &p).map(|()| p)) {
            Ok(payload) => {
                findings.count(|c| c.index_segments += 1);
                if repository.cache().is_none() {
                    insert(&memory, &payload, &l.key)?;
                }
                whole.push((l.key, l.size));
            }
            // Compacted since it was listed.
            Err(Error::Store(StoreError::NotFound { .. })) => {}
            Err(e) => findings.failure(&l.key, e)?,
        }
    }
    let Some(dir) = repository.cache() else { return Ok(memory) };
    let key = repository.keyring().subkey("index cache")?;
    let (set, missing) = SegmentSet::open(dir.join("idx"), key.expose(), &whole)?;
    for object in missing {
        cancel.check()?;
        let size = set.size_of(&object).unwrap_or(0);
        match payload(repository, &object) {
            Ok(payload) => set.install(&object, size, &payload)?,
            Err(e) => findings.failure(&object, e)?,
        }
    }
    let fetcher: Arc<dyn SegmentSource> = Arc::new(Fetcher(Arc::clone(repository)));
    Ok(Arc::new(CombinedIndex::new(memory, Arc::new(set), HashSet::new(), Some(fetcher))))
}

/// Names of compacted segments are reserved.
fn merged(name: &str) -> bool {
    name.starts_with("idx/merged/")
}

fn check(object: &str, payload: &[u8]) -> Result<()> {
    IndexView::parse(payload).map(drop).map_err(Error::damaged(object))
}

fn insert(memory: &MemoryIndex, payload: &[u8], object: &str) -> Result<()> {
    let view = IndexView::parse(payload).map_err(Error::damaged(object))?;
    let packs: Vec<_> = view.packs().iter().cloned().map(Arc::new).collect();
    for e in view.iter() {
        let Some(pack) = packs.get(e.pack as usize) else { continue };
        let at = ChunkAt {
            pack: Arc::clone(pack),
            offset: e.offset,
            stored_len: e.stored_len,
            plain_len: e.plain_len,
            kind: e.kind,
            encoding: e.encoding,
            ordinal: e.ordinal,
        };
        memory.add_place(e.id, at);
    }
    Ok(())
}

/// A lookup; an index that cannot answer is a finding once, and then no answer.
pub(super) fn lookup(
    index: &dyn ChunkIndex,
    id: &pgkeep_formats::id::ChunkId,
    findings: &Findings,
) -> Result<Option<ChunkAt>> {
    match index.lookup(id) {
        Ok(found) => Ok(found),
        Err(IndexError::Fetch { object, source }) => {
            findings.damage(&object, Flaw::Unreadable, source.to_string());
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}
