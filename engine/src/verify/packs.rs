//! Packs: every byte is read and hashed against the name, every chunk opened, decoded and compared with its name.
//!
//! What is kept of a pack is how many chunks it has and which of them are bad, so memory grows by some 60 bytes a pack,
//! and by as much for each chunk that lies in two.
//! Each thread has one pack in memory and one decoded chunk. A pack whose footer cannot be read is *opaque*: its chunks
//! are then read one by one when a manifest asks for them, since they may be whole.

mod bases;

use super::index::lookup;
use super::report::{Findings, Flaw, Garbage, flaw_of};
use super::selection::Selection;
use super::workers;
use crate::crypto::{CryptoError, PageHasher};
use crate::index::{ChunkAt, ChunkIndex};
use crate::observe::{Cancel, Counter, Observer};
use crate::pack::{PackContents, PackDomain, parse_footer, scope_tag};
use crate::repository::{ChunkSource, Repository, Rewritten};
use crate::store::{Depth, Range, StoreError};
use crate::{Error, Kind, Result};
use bases::LostBases;
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::index::{DOMAIN_DATA, PackFacts};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::pack::{Footer, FooterEntry};
use pgkeep_formats::repo::refs::Refs;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Chunks of damaged packs whose state is remembered: some 40 MiB.
const PROBED_MAX: usize = 1 << 19;
/// What the system says of a sector that cannot be read.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// What was seen of a pack.
enum Scan {
    /// These of its chunks are bad, ascending: damaged, or deltas of which a base is.
    Read { chunks: usize, bad: Vec<u16> },
    /// None of its chunks can be opened.
    Sealed,
    /// Its footer cannot be read.
    Opaque,
    /// It was left out.
    Unread,
    /// It is gone.
    Gone,
}

struct Pack {
    id: PackId,
    size: u64,
    scan: OnceLock<Scan>,
    used: AtomicBool,
}

/// The packs of a repository and what was seen of them.
pub(super) struct Packs {
    repository: Arc<Repository>,
    index: Arc<dyn ChunkIndex>,
    packs: Vec<Pack>,
    by_id: HashMap<PackId, usize>,
    /// Sources of metadata by the tag of their stanza, and of data.
    meta: HashMap<[u8; 8], Arc<ChunkSource>>,
    data: Arc<ChunkSource>,
    /// Of pages; none if the key at hand names no chunks.
    hasher: Option<PageHasher>,
    /// Chunks of opaque packs that were read.
    probed: Mutex<HashMap<(PackId, u16), bool>>,
    /// Packs that were told of as missing, or as too short without having been read.
    missing: Mutex<HashSet<PackId>>,
    /// Good copies of chunks in packs other than the one the index names: what was stored again lies in two.
    copies: Mutex<HashMap<ChunkId, Vec<(PackId, u16)>>>,
    /// What was moved, as it was told last.
    moved: Mutex<Option<Arc<Rewritten>>>,
    /// Packs that were not listed, and whether they were there later.
    asked: Mutex<HashMap<PackId, bool>>,
    /// What deltas cannot be decoded for want of.
    lost_bases: LostBases,
    /// Packs on which nothing more may be built, and packs in which everything was read and is whole.
    verdicts: Mutex<Verdicts>,
}

#[derive(Default)]
struct Verdicts {
    damaged: BTreeSet<PackId>,
    whole: HashSet<PackId>,
}

impl Packs {
    /// Lists the packs, all or those `wanted`. `stanzas` are all that the repository has.
    pub(super) fn list(
        repository: &Arc<Repository>,
        index: &Arc<dyn ChunkIndex>,
        stanzas: &[String],
        wanted: Option<&HashSet<PackId>>,
        findings: &Findings,
    ) -> Result<Self> {
        let source = |stanza: &str| Arc::new(ChunkSource::new(Arc::clone(repository), Arc::clone(index), stanza));
        let tag = |stanza: &String| scope_tag(&PackDomain::Meta(stanza.clone()));
        let mut packs = Vec::new();
        repository.store().list(layout::PACKS, Depth::All, &mut |l| match layout::parse_pack(&l.key) {
            None => findings.warn(format!("'{}' is not part of a repository", l.key)),
            Some(id) if wanted.is_none_or(|w| w.contains(&id)) => {
                packs.push(Pack { id, size: l.size, scan: OnceLock::new(), used: AtomicBool::new(false) });
            }
            Some(_) => {}
        })?;
        Ok(Self {
            by_id: packs.iter().enumerate().map(|(n, p)| (p.id, n)).collect(),
            packs,
            meta: stanzas.iter().map(|s| (tag(s), source(s))).collect(),
            data: source(""),
            hasher: repository.keyring().page_hasher().ok(),
            repository: Arc::clone(repository),
            index: Arc::clone(index),
            probed: Mutex::default(),
            missing: Mutex::default(),
            copies: Mutex::default(),
            moved: Mutex::default(),
            asked: Mutex::default(),
            lost_bases: LostBases::default(),
            verdicts: Mutex::default(),
        })
    }

    /// Bytes to read.
    pub(super) fn bytes(&self) -> u64 {
        self.packs.iter().map(|p| p.size).sum()
    }

    /// Reads the packs that are picked.
    pub(super) fn scan(
        &self,
        jobs: usize,
        selection: &Selection,
        findings: &Findings,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<()> {
        let least = selection.at_least_one(self.packs.iter().map(|pack| pack.id));
        workers::each(jobs, self.packs.iter(), cancel, |pack| {
            let name = layout::pack(pack.id);
            let scan = if selection.picks(&name) || least == Some(pack.id) {
                self.scan_one(pack, findings, cancel)?
            } else {
                findings.count(|c| {
                    c.unread_packs += 1;
                    c.unread_bytes += pack.size;
                });
                Scan::Unread
            };
            if self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).whole.contains(&pack.id) {
                selection.is_whole(&name);
            }
            // Nobody else scans this one.
            let _ = pack.scan.set(scan);
            observer.add(Counter::Done, pack.size);
            observer.add(Counter::Files, 1);
            Ok(())
        })
    }

    fn scan_one(&self, pack: &Pack, findings: &Findings, cancel: &Cancel) -> Result<Scan> {
        let name = layout::pack(pack.id);
        let mut bytes = match self.repository.store().get(&name, Range::Whole) {
            Ok(bytes) => bytes,
            // Taken by garbage collection since it was listed. If a backup needs it, its manifest will tell.
            Err(StoreError::NotFound { .. }) => return Ok(Scan::Gone),
            Err(e) => {
                // A sector that the disk cannot read; what else keeps from reading says nothing of the pack.
                if matches!(&e, StoreError::Io { source, .. } if source.raw_os_error() == Some(EIO)) {
                    self.distrust(pack.id);
                }
                findings.failure(&name, e.into())?;
                return Ok(Scan::Opaque);
            }
        };
        findings.count(|c| {
            c.packs += 1;
            c.pack_bytes += bytes.len() as u64;
        });
        let authentic = *blake3::hash(&bytes).as_bytes() == pack.id.0;
        if !authentic {
            self.distrust(pack.id);
            findings.damage(&name, Flaw::Damaged, "its bytes do not have the hash that is its name");
        }
        match parse_footer(&self.repository, pack.id, &mut bytes) {
            Ok((facts, footer)) => {
                let contents = self.contents(&name, pack.id, &footer, &mut bytes, findings)?;
                let scan = self.scan_chunks(&name, &mut bytes, facts, &footer, contents.as_ref(), findings, cancel)?;
                match &scan {
                    Scan::Read { bad, .. }
                        if bad.is_empty() && authentic && contents.is_some() && !self.is_distrusted(pack.id) =>
                    {
                        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).whole.insert(pack.id);
                    }
                    _ => {}
                }
                Ok(scan)
            }
            Err(e) => {
                if e.kind() != Kind::FeatureNotSupported {
                    self.distrust(pack.id);
                }
                findings.failure(&name, e)?;
                Ok(Scan::Opaque)
            }
        }
    }

    /// What the pack says of its chunks' pages; `None` if that cannot be read, which is a finding.
    fn contents(
        &self,
        name: &str,
        pack: PackId,
        footer: &Footer,
        bytes: &mut [u8],
        findings: &Findings,
    ) -> Result<Option<PackContents>> {
        match PackContents::of_bytes(&self.repository, pack, footer.clone(), bytes) {
            Ok(contents) => Ok(Some(contents)),
            Err(e) => {
                self.distrust(pack);
                findings.failure(name, e)?;
                Ok(None)
            }
        }
    }

    /// A wrong hash would let a later backup take a changed page for unchanged.
    fn check_hashes(&self, content: &[u8], hashes: &[u64]) -> bool {
        let (Some(hasher), Some(pages)) = (&self.hasher, std::num::NonZero::new(hashes.len())) else { return true };
        let page = content.len() / pages;
        page > 0
            && content.len() == page * hashes.len()
            && content.chunks(page).zip(hashes).all(|(page, hash)| hasher.hash(page) == *hash)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a pack, and where to tell")]
    fn scan_chunks(
        &self,
        name: &str,
        bytes: &mut [u8],
        facts: PackFacts,
        footer: &Footer,
        contents: Option<&PackContents>,
        findings: &Findings,
        cancel: &Cancel,
    ) -> Result<Scan> {
        let source = if facts.domain == DOMAIN_DATA { Some(&self.data) } else { self.meta.get(&facts.scope) };
        let Some(source) = source else {
            findings.warn(format!("'{name}' holds metadata of a stanza that is not there: its chunks were not opened"));
            return Ok(Scan::Sealed);
        };
        let facts = Arc::new(facts);
        let (mut bad, mut opened, mut plain) = (Vec::new(), 0, 0);
        for (ordinal, e) in footer.entries.iter().enumerate() {
            cancel.check()?;
            let at = at(&facts, e, ordinal as u16);
            let blob = bytes.get_mut(e.offset as usize..e.offset as usize + e.stored_len as usize);
            let opened_one = match source.unseal(&e.id, &at, blob.unwrap_or_default()) {
                Ok(encoded) => match source.decode(&e.id, &at, encoded) {
                    // What was stored here is as it was: no fault of this pack.
                    Err(_) if self.lost_bases.blame(&e.id, &at, contents, source, findings)? => {
                        bad.push(ordinal as u16);
                        continue;
                    }
                    Err(error) => Err((error, true)),
                    Ok(content) => Ok(content),
                },
                Err(error) => Err((error, false)),
            };
            match opened_one {
                Ok(content) => {
                    opened += 1;
                    plain += content.len() as u64;
                    let hashes = contents.map_or(&[][..], |c| c.hashes(ordinal as u16));
                    if !self.check_hashes(&content, hashes) {
                        self.distrust(facts.pack);
                        let text = format!("chunk {} is whole, but the hashes of its pages are not theirs", e.id);
                        findings.damage(name, Flaw::Inconsistent, text);
                    }
                }
                // Without the session's key none of them opens; saying so once is enough.
                Err((error, false)) if opened == 0 && matches!(error.kind(), Kind::FileMissing | Kind::Crypto) => {
                    // A key that is not for reading, or not of that epoch, says nothing of the pack; a wrap that was seen
                    // damaged does, whatever its epoch seems to be now.
                    let of_role = matches!(
                        error.root(),
                        Error::Crypto(CryptoError::RoleLacks { .. } | CryptoError::NoEpoch { .. })
                    );
                    if !of_role || findings.concerns(&format!("sk/{}/", facts.session)) {
                        self.distrust(facts.pack);
                    }
                    let (flaw, detail) = flaw_of(error)?;
                    let key = format!("sk/{}", facts.session);
                    findings.damage(&key, flaw, format!("no chunk of '{name}' can be opened: {detail}"));
                    return Ok(Scan::Sealed);
                }
                Err((error, _)) => {
                    let (flaw, detail) = flaw_of(error)?;
                    findings.damage(name, flaw, detail);
                    self.distrust(facts.pack);
                    bad.push(ordinal as u16);
                    continue;
                }
            }
            // The index may name another pack that holds the same chunk, or none yet; but if this one, then rightly.
            match lookup(&*self.index, &e.id, findings)? {
                Some(found) if found.pack.pack == facts.pack && found != at => {
                    findings.damage(
                        name,
                        Flaw::Inconsistent,
                        format!("an index segment has chunk {} elsewhere in it", e.id),
                    );
                    self.distrust(facts.pack);
                    bad.push(ordinal as u16);
                }
                Some(found) if found.pack.pack != facts.pack => {
                    let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
                    copies.entry(e.id).or_default().push((facts.pack, ordinal as u16));
                }
                _ => {}
            }
        }
        findings.count(|c| {
            c.chunks += opened;
            c.plain_bytes += plain;
        });
        Ok(Scan::Read { chunks: footer.entries.len(), bad })
    }

    fn is_distrusted(&self, pack: PackId) -> bool {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).damaged.contains(&pack)
    }

    fn distrust(&self, pack: PackId) {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).damaged.insert(pack);
    }

    /// Leaves a marker for every damaged pack, so that no later backup builds on it, and takes those of packs that are
    /// whole again. Returns how many packs are marked now of those read. A store that cannot be written is a warning.
    pub(super) fn mark(&self, findings: &Findings) -> Result<u64> {
        let verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.repository.marked_packs()?;
        for pack in known.iter().filter(|p| verdicts.whole.contains(p)) {
            if let Err(e) = self.repository.unmark_pack(*pack) {
                let name = layout::bad_pack(*pack);
                findings.warn(format!("'{}' is whole again, but '{name}' stays: {}", layout::pack(*pack), e.chain()));
            }
        }
        let mut marked = 0;
        for pack in &verdicts.damaged {
            if !known.contains(pack)
                && let Err(e) = self.repository.mark_pack(*pack)
            {
                let text = format!(
                    "{} damaged packs cannot be marked, so later backups may build on them: {}",
                    verdicts.damaged.len() as u64 - marked,
                    e.chain()
                );
                findings.warn(text);
                break;
            }
            marked += 1;
        }
        Ok(marked)
    }

    /// Names a pack that a backup refers to if it is not there, whether or not any chunk of it is asked for: a manifest that
    /// is lost itself asks for none.
    pub(super) fn look_for(&self, pack: PackId, findings: &Findings) -> Result<()> {
        let name = layout::pack(pack);
        if self.by_id.contains_key(&pack) {
            return Ok(());
        }
        match self.repository.store().get(&name, Range::Tail { len: 1 }) {
            Ok(_) => Ok(()),
            Err(StoreError::NotFound { .. }) if !self.is_first_missing(pack) => Ok(()),
            Err(e) => findings.failure(&name, e.into()),
        }
    }

    /// What was moved; read anew where something is missing, since it may have been moved just now.
    pub(super) fn moved(&self, anew: bool) -> Result<Arc<Rewritten>> {
        let mut known = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(moved) if !anew => Ok(Arc::clone(moved)),
            // Records that cannot be read are told of where all records are read.
            _ => Ok(Arc::clone(known.insert(Arc::new(self.repository.rewritten()?)))),
        }
    }

    /// Whether a pack is there, perhaps since they were listed. One that cannot be asked for is told of elsewhere.
    pub(super) fn is_there(&self, pack: PackId) -> bool {
        if self.by_id.contains_key(&pack) {
            return true;
        }
        let known = |asked: &HashMap<PackId, bool>| asked.get(&pack).copied();
        if let Some(known) = known(&self.asked.lock().unwrap_or_else(PoisonError::into_inner)) {
            return known;
        }
        let is_there = self.repository.is_there(&layout::pack(pack)).unwrap_or(true);
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(pack, is_there);
        is_there
    }

    /// Packs of these that are missing and that no move explains.
    pub(super) fn lost(&self, refs: &Refs) -> Result<Vec<PackId>> {
        let mut missing: Vec<PackId> = refs.packs().filter(|pack| !self.by_id.contains_key(pack)).collect();
        for anew in [false, true] {
            if missing.is_empty() {
                break;
            }
            let moved = self.moved(anew)?;
            let is_moved = |place| moved.is_moved(place, &|_| true, &|pack| self.is_there(pack));
            missing.retain(|pack| !refs.ordinals(*pack).all(|ordinal| is_moved((*pack, ordinal))));
        }
        Ok(missing)
    }

    /// True for a pack that was not told of as missing, or too short, before.
    fn is_first_missing(&self, pack: PackId) -> bool {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(pack)
    }

    /// True if this pack was left out: which chunks it has copies of is not known.
    pub(super) fn is_unread(&self, pack: PackId) -> bool {
        let pack = self.by_id.get(&pack).and_then(|n| self.packs.get(*n));
        pack.is_some_and(|pack| matches!(pack.scan.get(), Some(Scan::Unread)))
    }

    /// True if all of them were listed.
    pub(super) fn has_all(&self, mut packs: impl Iterator<Item = PackId>) -> bool {
        packs.all(|pack| self.by_id.contains_key(&pack))
    }

    /// Whether a chunk that a backup uses can be read, and where it is. Marks its pack as used.
    pub(super) fn check(&self, id: &ChunkId, source: &ChunkSource, findings: &Findings) -> Result<Option<ChunkAt>> {
        let Some(at) = lookup(&*self.index, id, findings)? else { return Ok(None) };
        let good = match self.by_id.get(&at.pack.pack).and_then(|n| self.packs.get(*n)) {
            None => {
                let name = layout::pack(at.pack.pack);
                self.probe(id, &at, source, findings, &name)?
            }
            Some(pack) => {
                pack.used.store(true, Ordering::Relaxed);
                if matches!(pack.scan.get(), Some(Scan::Unread)) && pack.size != at.pack.size {
                    // Said once; whether the chunk is whole all the same is seen below.
                    if self.is_first_missing(pack.id) {
                        let text = format!("it has {} bytes, and the index knows {}", pack.size, at.pack.size);
                        findings.damage(&layout::pack(pack.id), Flaw::Damaged, text);
                    }
                    self.distrust(pack.id);
                }
                match pack.scan.get() {
                    Some(Scan::Read { chunks, bad }) => {
                        usize::from(at.ordinal) < *chunks && bad.binary_search(&at.ordinal).is_err()
                    }
                    Some(Scan::Sealed) => false,
                    Some(Scan::Unread) if pack.size == at.pack.size => true,
                    Some(Scan::Opaque | Scan::Gone | Scan::Unread) | None => {
                        let name = layout::pack(pack.id);
                        self.probe(id, &at, source, findings, &name)?
                    }
                }
            }
        };
        Ok(good.then_some(at))
    }

    /// Whether one of the good copies of a chunk, besides the one that the index names, is where `keeps` says. Its pack is
    /// then used.
    pub(super) fn has_copy(&self, id: &ChunkId, keeps: impl Fn(PackId, u16) -> bool) -> bool {
        let copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = copies.get(id).into_iter().flatten().find(|(pack, ordinal)| keeps(*pack, *ordinal));
        if let Some(pack) = kept.and_then(|(pack, _)| self.by_id.get(pack)).and_then(|n| self.packs.get(*n)) {
            pack.used.store(true, Ordering::Relaxed);
        }
        kept.is_some()
    }

    /// Reads one chunk of a pack that was not read as a whole.
    fn probe(&self, id: &ChunkId, at: &ChunkAt, source: &ChunkSource, findings: &Findings, name: &str) -> Result<bool> {
        let key = (at.pack.pack, at.ordinal);
        if let Some(known) = self.probed.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(*known);
        }
        let good = match source.read(id) {
            Ok(_) => true,
            Err(e) => {
                let (flaw, detail) = flaw_of(e)?;
                // A pack that is not there is one finding, not one for each chunk.
                if flaw != Flaw::Missing || self.is_first_missing(key.0) {
                    findings.damage(name, flaw, detail);
                }
                false
            }
        };
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        if probed.len() >= PROBED_MAX {
            // Asked again they are read again.
            probed.clear();
        }
        probed.insert(key, good);
        Ok(good)
    }

    /// Packs that no manifest has asked for.
    pub(super) fn unused(&self) -> Garbage {
        let unused = self.packs.iter().filter(|p| !p.used.load(Ordering::Relaxed));
        unused.fold(Garbage::default(), |g, p| Garbage { packs: g.packs + 1, bytes: g.bytes + p.size })
    }
}

fn at(facts: &Arc<PackFacts>, e: &FooterEntry, ordinal: u16) -> ChunkAt {
    ChunkAt {
        pack: Arc::clone(facts),
        offset: e.offset,
        stored_len: e.stored_len,
        plain_len: e.plain_len,
        kind: e.kind,
        encoding: e.encoding,
        ordinal,
    }
}
