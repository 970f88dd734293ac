//! Manifests: each is walked to its end, and every chunk it uses, and every chunk that these are encoded against, must be
//! one that was read, and be in the references.
//!
//! Memory: a byte for each chunk a backup names, and the references of that backup, on each thread.

use super::packs::Packs;
use super::report::{BackupProblem, FILES_NAMED_MAX, Findings, Flaw, flaw_of};
use crate::Result;
use crate::index::{ChunkAt, ChunkIndex};
use crate::observe::Cancel;
use crate::repository::manifests::{FileRecord, Manifest};
use crate::repository::{Backup, ChunkSource, Repository};
use crate::store::Range;
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::{Content, ExtentAt};
use pgkeep_formats::repo::refs::Refs;
use std::sync::Arc;

/// Lengths of chunks kept at hand: most extents of a file are in chunks that lie close together in the table.
const LENGTHS: usize = 4096;
/// Bases of deltas kept at hand that are known to be whole and referred to. Deltas of all days that lie at one place of a
/// file share them.
const BASES: usize = 8192;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Not,
    Good,
    Bad,
}

struct Walk<'a> {
    packs: &'a Packs,
    source: &'a Arc<ChunkSource>,
    findings: &'a Findings,
    refs: Option<Refs>,
    lacking: Option<ChunkId>,
    seen: Vec<Seen>,
    /// Ordinals and plaintext lengths, by the low bits of the ordinal.
    lengths: Vec<(u32, u32)>,
    /// By their first bytes.
    bases: Vec<Option<ChunkId>>,
    files: (u64, Vec<String>),
}

/// Walks one backup; what it finds is the backup's, damaged objects are findings.
pub(super) fn walk(
    repository: &Arc<Repository>,
    index: &Arc<dyn ChunkIndex>,
    packs: &Packs,
    stanza: &str,
    backup: &Backup,
    findings: &Findings,
    cancel: &Cancel,
) -> Result<Vec<BackupProblem>> {
    let mut problems = Vec::new();
    let refs = match repository.read_refs(backup.session) {
        Ok(refs) => refs,
        Err(e) => {
            let name = layout::refs(backup.session);
            let (flaw, detail) = flaw_of(e)?;
            findings.damage(&name, flaw, &*detail);
            problems.push(BackupProblem::References { detail });
            None
        }
    };
    if let Some(refs) = refs.as_ref().filter(|refs| !packs.has_all(refs.packs()))
        // Packs of a backup that has gone meanwhile may go too.
        && repository.store().get(&layout::backup(stanza, backup.session), Range::Tail { len: 1 }).is_ok()
    {
        for pack in packs.lost(refs)? {
            packs.look_for(pack, findings)?;
        }
    }
    let refs = match refs {
        Some(mut refs) => {
            packs.moved(false)?.expand(&mut refs);
            Some(refs)
        }
        None => None,
    };
    let source = Arc::new(ChunkSource::new(Arc::clone(repository), Arc::clone(index), stanza));
    let (seen, lengths, bases) = (Vec::new(), vec![(u32::MAX, 0); LENGTHS], vec![None; BASES]);
    let (lacking, files) = (None, (0, Vec::new()));
    let mut walk = Walk { packs, source: &source, findings, refs, lacking, seen, lengths, bases, files };
    if let Err(e) = walk.manifest(backup, cancel) {
        problems.push(BackupProblem::Manifest { detail: flaw_of(e)?.1 });
    }
    let (count, named) = walk.files;
    if count > 0 {
        problems.push(BackupProblem::Files { count, named });
    }
    if let Some(id) = walk.lacking {
        let detail = format!("'{}' does not have chunk {id}", layout::refs(backup.session));
        findings.damage(&layout::refs(backup.session), Flaw::Inconsistent, format!("it does not have chunk {id}"));
        problems.push(BackupProblem::References { detail });
    }
    Ok(problems)
}

impl Walk<'_> {
    fn manifest(&mut self, backup: &Backup, cancel: &Cancel) -> Result<()> {
        // Metadata is checked by being read; this is for references and for what counts as used.
        for id in &backup.manifest {
            self.chunk(id)?;
        }
        let manifest = Arc::new(Manifest::open(self.source, backup)?);
        for id in manifest.root().pieces() {
            self.chunk(id)?;
        }
        for record in manifest.files() {
            cancel.check()?;
            let record = record?;
            if !self.file(&manifest, &record)? {
                self.files.0 += 1;
                if self.files.1.len() < FILES_NAMED_MAX {
                    self.files.1.push(record.entry.path);
                }
            }
        }
        Ok(())
    }

    /// Where a chunk is, if it can be read. It is then used, and so is what it is encoded against.
    fn chunk(&mut self, id: &ChunkId) -> Result<Option<ChunkAt>> {
        let Some(at) = self.alone(id)? else { return Ok(None) };
        let mut bases = Vec::new();
        let told = self.source.repository().dependencies(&at, &mut |base| {
            bases.push(*base);
            Ok(())
        });
        if let Err(e) = told {
            // Its pack was rewritten since it was read.
            if e.is_not_found() && self.source.read(id).is_ok() {
                return Ok(Some(at));
            }
            let (name, (flaw, detail)) = (layout::pack(at.pack.pack), flaw_of(e)?);
            // Its scan has told.
            if !self.findings.concerns(&name) {
                self.findings.damage(&name, flaw, detail);
            }
            return Ok(None);
        }
        // Depth is one: a base that needs another cannot be decoded against, and was not.
        for base in bases {
            let slot = base.0.first_chunk().map_or(0, |b| u16::from_le_bytes(*b) as usize) % BASES;
            if self.bases.get(slot).is_some_and(|known| *known == Some(base)) {
                continue;
            }
            if self.alone(&base)?.is_none() {
                return Ok(None);
            }
            if let Some(known) = self.bases.get_mut(slot) {
                *known = Some(base);
            }
        }
        Ok(Some(at))
    }

    /// As [`Self::chunk`], but of what it is encoded against nothing is asked.
    fn alone(&mut self, id: &ChunkId) -> Result<Option<ChunkAt>> {
        let at = self.packs.check(id, self.source, self.findings)?;
        if let (Some(at), Some(refs)) = (&at, &self.refs)
            && !refs.contains(at.pack.pack, at.ordinal)
            && !self.packs.has_copy(id, |pack, ordinal| refs.contains(pack, ordinal))
            // A pack that was left out may hold it a second time.
            && !refs.packs().any(|pack| self.packs.is_unread(pack))
        {
            self.lacking.get_or_insert(*id);
        }
        Ok(at)
    }

    /// False if a part of the file cannot be read.
    fn file(&mut self, manifest: &Manifest, record: &FileRecord) -> Result<bool> {
        let Content::Extents { unit, .. } = record.entry.content else { return Ok(true) };
        let (unit, mut at, mut good) = (u64::from(unit), 0u64, true);
        for extent in &record.extents {
            let start = at;
            at += u64::from(extent.units) * unit;
            let ExtentAt::Chunk { ordinal, offset } = extent.at else { continue };
            // Every extent must lie in its chunk; the file's last unit may be short.
            let end = u64::from(offset) * unit + at.min(record.entry.size).saturating_sub(start);
            good &= match self.ordinal(manifest, ordinal)? {
                Some(len) => end <= u64::from(len),
                None => false,
            };
        }
        Ok(good)
    }

    /// Length of the chunk an ordinal stands for; none if it cannot be read.
    fn ordinal(&mut self, manifest: &Manifest, ordinal: u32) -> Result<Option<u32>> {
        let (number, slot) = (ordinal as usize, ordinal as usize % LENGTHS);
        let seen = self.seen.get(number).copied().unwrap_or(Seen::Not);
        let found = match seen {
            Seen::Bad => return Ok(None),
            Seen::Good => {
                if let Some((known, len)) = self.lengths.get(slot).filter(|l| l.0 == ordinal) {
                    debug_assert_eq!(*known, ordinal);
                    return Ok(Some(*len));
                }
                self.alone(&manifest.chunk_id(ordinal)?)?
            }
            Seen::Not => self.chunk(&manifest.chunk_id(ordinal)?)?,
        };
        if self.seen.len() <= number {
            self.seen.resize(number + 1, Seen::Not);
        }
        let seen = if found.is_some() { Seen::Good } else { Seen::Bad };
        if let Some(entry) = self.seen.get_mut(number) {
            *entry = seen;
        }
        if let (Some(at), Some(entry)) = (&found, self.lengths.get_mut(slot)) {
            *entry = (ordinal, at.plain_len);
        }
        Ok(found.map(|at| at.plain_len))
    }
}
