//! Packs of which much is dead, without it: what is in use of them is stored once more, by an ordinary session (G6).
//!
//! *Why that is safe* is told by the module above and tried by `model`: nothing is taken away here. The session's end says what
//! lies where; once a generation tells of it, the packs it came from are in use no longer, and go as others do.
//!
//! Chunks are opened and sealed anew, for a key is a session's, and stay encoded as they are; a cipher that authenticates says
//! that they are what was stored. A pack that cannot be read stays, and is told.
//!
//! Memory: a pack, the one that is written, and some 40 bytes for each chunk that is moved.

use super::survey::{self, Survey};
use super::{GcOptions, GcReport, OpenSession};
use crate::clock::Clock;
use crate::crypto::ChunkOpener;
use crate::observe::{Cancel, Counter, Observer};
use crate::pack::{FinishedPack, PackContents, PackedChunk, parse_footer, read_footer};
use crate::repository::{Repository, WriterSession, put_new, seal_data};
use crate::store::{Listed, Range};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId, SessionId};
use pgkeep_formats::repo::envelope::ChunkHead;
use pgkeep_formats::repo::index::{DOMAIN_DATA, IndexView};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::moves::Moves;
use pgkeep_formats::repo::pack::Footer;
use pgkeep_formats::repo::records::Generation;
use pgkeep_formats::repo::refs::Refs;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A pack is worth it if no more than so many of a hundred of its bytes are in use.
const LIVE_PERCENT: u64 = 60;
/// One run stores no more than so much, or this share of what there is: the rest is left to the next.
const BYTES_MAX: u64 = 1 << 30;
const SHARE: u64 = 10;
/// Purpose of the session.
pub(super) const REWRITE: &str = "rewrite";

/// Rewrites what is worth it. True if anything was moved.
#[expect(clippy::too_many_arguments, reason = "one call, and the pieces have nothing in common")]
pub(super) fn run(
    repository: &Arc<Repository>,
    options: &GcOptions<'_>,
    decision: &Generation,
    survey: &Survey,
    in_use: &Refs,
    report: &mut GcReport,
    observer: &dyn Observer,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<bool> {
    let packs = candidates(repository, decision, survey, in_use, cancel)?;
    if options.dry_run {
        report.rewritten = packs.iter().filter_map(|(pack, _)| survey.packs.get(pack)).copied().collect();
        report.rewritten_to = packs.iter().map(|(_, live)| live).sum();
        return Ok(false);
    }
    if packs.is_empty() || !can_read(repository, &packs, survey)? {
        return Ok(false);
    }
    let session = WriterSession::begin(repository, "", REWRITE, options.host, clock)?;
    // Two at once would store the same twice, and neither copy could go.
    let others = |open: &OpenSession| open.purpose == REWRITE && open.session != session.id();
    if survey::open_sessions(repository)?.iter().any(others) {
        tracing::info!("packs are being rewritten elsewhere, and are left to that");
        session.abandon("another rewrites", clock)?;
        return Ok(false);
    }
    let moves = Moves::new(session.id(), session.generation());
    let mut mover = Mover { repository, session, moves, copied: HashMap::new(), pending: Vec::new(), bytes: 0 };
    observer.begin("rewrite packs", packs.iter().map(|(_, live)| live).sum());
    let (mut done, mut outcome) = (Vec::new(), Ok(()));
    for (pack, live) in &packs {
        let size = survey.packs.get(pack).copied().unwrap_or(0);
        outcome = cancel.check().and_then(|()| mover.session.keep_alive());
        if outcome.is_err() {
            break;
        }
        // Another collector was quicker, or it cannot be read: nothing has changed.
        let source = match mover.read(*pack, size) {
            Ok(source) => source,
            Err(e) if e.concerns_the_run() => {
                outcome = Err(e);
                break;
            }
            Err(e) => {
                tracing::warn!("'{}' stays as it is: {}", layout::pack(*pack), e.chain());
                continue;
            }
        };
        outcome = mover.copy(*pack, source, in_use);
        if outcome.is_err() {
            break;
        }
        done.push(size);
        observer.add(Counter::Done, *live);
    }
    observer.end();
    // What was moved so far stands, whatever ended it.
    let finished = mover.finish_pack();
    if finished.is_err() || mover.moves.is_empty() {
        // What is stored already is garbage that the next run collects.
        let abandoned = mover.session.abandon("nothing was moved", clock);
        return outcome.and(finished).and(abandoned).map(|()| false);
    }
    let Mover { session, moves, bytes, .. } = mover;
    session.commit_moves(&moves, clock)?;
    report.rewritten = done.into_iter().collect();
    report.rewritten_to = bytes;
    outcome.map(|()| true)
}

/// Whether the key at hand opens data, without which nothing can be moved.
fn can_read(repository: &Repository, packs: &[(PackId, u64)], survey: &Survey) -> Result<bool> {
    for (pack, _) in packs {
        let size = survey.packs.get(pack).copied().unwrap_or(0);
        let opened = read_footer(repository, *pack, size).and_then(|(facts, _)| repository.data_opener(facts.session));
        match opened {
            Ok(_) => return Ok(true),
            Err(e) if e.concerns_the_run() => return Err(e),
            Err(e) if e.kind() == Kind::Crypto => {
                tracing::info!("packs that are partly dead stay, as this key does not open data: {}", e.chain());
                return Ok(false);
            }
            Err(_) => {}
        }
    }
    Ok(false)
}

/// Packs that are worth it, and how many of their bytes are in use: those first that give back most for what they cost.
fn candidates(
    repository: &Repository,
    decision: &Generation,
    survey: &Survey,
    in_use: &Refs,
    cancel: &Cancel,
) -> Result<Vec<(PackId, u64)>> {
    let condemned: HashSet<PackId> = decision.condemned.iter().map(|c| c.pack).collect();
    let open: HashSet<SessionId> = survey.open.iter().map(|o| o.session).collect();
    // Bytes of chunks in use, and of all.
    let (mut live, mut counted) = (HashMap::<PackId, (u64, u64)>::new(), Refs::default());
    for Listed { key: name, .. } in repository.index_segments()? {
        cancel.check()?;
        let payload = match repository.index_payload(&name) {
            Ok((payload, _)) => payload,
            // Replaced meanwhile, or superseded; what it alone names is left for another time.
            Err(e) if e.is_not_found() || e.is_damage() => continue,
            Err(e) => return Err(e),
        };
        let view = IndexView::parse(&payload).map_err(Error::damaged(&name))?;
        for entry in view.iter() {
            let Some(facts) = view.pack_of(&entry).filter(|f| f.domain == DOMAIN_DATA) else { continue };
            if open.contains(&facts.session) || counted.contains(facts.pack, entry.ordinal) {
                continue;
            }
            counted.insert(facts.pack, entry.ordinal);
            let (used, all) = live.entry(facts.pack).or_default();
            *all += u64::from(entry.stored_len);
            if in_use.contains(facts.pack, entry.ordinal) {
                *used += u64::from(entry.stored_len);
            }
        }
    }
    let worth = |(pack, (used, all)): &(PackId, (u64, u64))| {
        *used > 0 && used * 100 <= all * LIVE_PERCENT && survey.packs.contains_key(pack) && !condemned.contains(pack)
    };
    let mut found: Vec<(PackId, (u64, u64))> = live.into_iter().filter(worth).collect();
    found.sort_by_key(|(pack, (used, all))| (used * 1000 / (*all).max(1), *pack));
    let mut packs: Vec<(PackId, u64)> = found.into_iter().map(|(pack, (used, _))| (pack, used)).collect();
    let mut left = BYTES_MAX.max(survey.packs.values().sum::<u64>() / SHARE);
    packs.retain(|(_, live)| match left.checked_sub(*live) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    });
    Ok(packs)
}

/// A pack that was read.
struct Source {
    bytes: Vec<u8>,
    footer: Footer,
    contents: PackContents,
    opener: Arc<ChunkOpener>,
}

/// Stores chunks once more.
struct Mover<'a> {
    repository: &'a Repository,
    session: WriterSession,
    moves: Moves,
    /// What this session has stored, and where; a chunk may lie in several packs.
    copied: HashMap<ChunkId, Copied>,
    /// Chunks of the pack that is written, in order, and where they came from.
    pending: Vec<(ChunkId, Vec<(PackId, u16)>)>,
    bytes: u64,
}

/// A chunk that was stored.
enum Copied {
    /// As a delta: another copy may need other bases, of which the backup that uses it knows, or none.
    AsDelta,
    /// In full, in the pack that is written.
    Pending(usize),
    /// In full.
    At(PackId, u16),
}

impl Mover<'_> {
    /// A pack's bytes, and what they hold.
    fn read(&self, pack: PackId, size: u64) -> Result<Source> {
        let name = layout::pack(pack);
        if self.session.shuns(pack) {
            return Err(Error::refused(Kind::Checksum, format!("nothing can be built on '{name}'")));
        }
        let mut bytes = self.repository.store().get(&name, Range::Whole)?;
        if bytes.len() as u64 != size {
            let text = format!("'{name}' has {} bytes instead of {size}", bytes.len());
            return Err(Error::refused(Kind::Checksum, text));
        }
        let (facts, footer) = parse_footer(self.repository, pack, &mut bytes)?;
        let contents = PackContents::of_bytes(self.repository, pack, footer.clone(), &mut bytes)?;
        Ok(Source { bytes, footer, contents, opener: self.repository.data_opener(facts.session)? })
    }

    /// All of a pack that is in use. A chunk that cannot be opened stays where it is.
    fn copy(&mut self, pack: PackId, source: Source, in_use: &Refs) -> Result<()> {
        let Source { mut bytes, footer, contents, opener } = source;
        let name = layout::pack(pack);
        for ordinal in in_use.ordinals(pack) {
            let Some(entry) = footer.entries.get(usize::from(ordinal)) else {
                tracing::warn!("'{name}' has no chunk {ordinal}, which a backup uses: see 'verify'");
                continue;
            };
            match self.copied.get(&entry.id) {
                None => {}
                Some(Copied::At(to, at)) => {
                    self.moves.insert((pack, ordinal), (*to, *at));
                    continue;
                }
                Some(Copied::Pending(n)) => {
                    self.pending.get_mut(*n).into_iter().for_each(|(_, from)| from.push((pack, ordinal)));
                    continue;
                }
                // It stays here: an index segment has one place for a chunk, and only what it names is read.
                Some(Copied::AsDelta) => continue,
            }
            let (kind, encoding, plain_len) = (entry.kind, entry.encoding, entry.plain_len);
            let head = ChunkHead { kind: kind.as_u8(), encoding: encoding.as_u8(), id: entry.id, plain_len };
            let place = entry.offset as usize..entry.offset as usize + entry.stored_len as usize;
            let encoded = match opener.open_chunk(&head, bytes.get_mut(place).unwrap_or_default()) {
                Ok(encoded) => encoded,
                Err(e) => {
                    tracing::warn!("chunk {} stays in '{name}': {e}", entry.id);
                    continue;
                }
            };
            let sealed = seal_data(self.session.sealer(), entry.id, kind, encoding, plain_len, encoded)?;
            let chunk = PackedChunk { id: entry.id, kind, encoding, plain_len };
            let copied = if encoding.is_delta() { Copied::AsDelta } else { Copied::Pending(self.pending.len()) };
            self.copied.insert(entry.id, copied);
            self.pending.push((entry.id, vec![(pack, ordinal)]));
            let full = self.session.add_data(chunk, &sealed, &contents.bases(ordinal), contents.hashes(ordinal))?;
            if let Some(full) = full {
                self.store(&full)?;
            }
        }
        Ok(())
    }

    fn finish_pack(&mut self) -> Result<()> {
        match self.session.finish_data()? {
            Some(pack) => self.store(&pack),
            None => Ok(()),
        }
    }

    /// What is durable has its place.
    fn store(&mut self, pack: &FinishedPack) -> Result<()> {
        put_new(&**self.repository.store(), &layout::pack(pack.facts.pack), &pack.bytes)?;
        self.session.note_durable(pack)?;
        self.bytes += pack.facts.size;
        // A place that is told wrong would cost what was there.
        if !pack.entries.iter().map(|entry| entry.id).eq(self.pending.iter().map(|(id, _)| *id)) {
            let text = format!("'{}' does not hold what was put into it", layout::pack(pack.facts.pack));
            return Err(Error::refused(Kind::Assert, text));
        }
        for (ordinal, (id, from)) in (0..=u16::MAX).zip(self.pending.drain(..)) {
            let place = (pack.facts.pack, ordinal);
            from.into_iter().for_each(|from| self.moves.insert(from, place));
            if let Some(copied @ Copied::Pending(_)) = self.copied.get_mut(&id) {
                *copied = Copied::At(place.0, place.1);
            }
        }
        Ok(())
    }
}
