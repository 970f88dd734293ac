//! Packs of which much is dead, without it: what is in use of them is stored once more, by an ordinary session (G6).
//!
//! *Why that is safe* is told by the module above and tried by `model`: nothing is taken away here. The session's end says what
//! lies where; once a generation tells of it, the packs it came from are in use no longer, and go as others do.
//!
//! Chunks are opened and sealed anew, for a key is a session's, and stay encoded as they are; a cipher that authenticates says
//! that they are what was stored. A pack that cannot be read stays, and is told.
//!
//! Memory: a pack, the one that is written, and some 40 bytes for each chunk that is moved.

use super::survey::Survey;
use super::{GcOptions, GcReport};
use crate::clock::Clock;
use crate::observe::{Cancel, Counter, Observer};
use crate::pack::{FinishedPack, PackContents, PackedChunk, parse_footer};
use crate::repository::{Repository, WriterSession, put_new, seal_data};
use crate::store::{Depth, Range};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId, SessionId};
use pgkeep_formats::repo::envelope::ChunkHead;
use pgkeep_formats::repo::index::{DOMAIN_DATA, IndexView};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::moves::Moves;
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
    if packs.is_empty() {
        return Ok(false);
    }
    let session = WriterSession::begin(repository, "", REWRITE, options.host, clock)?;
    let moves = Moves::new(session.id(), session.generation());
    let mut mover = Mover { repository, session, moves, copied: HashMap::new(), pending: Vec::new(), bytes: 0 };
    observer.begin("rewrite packs", packs.iter().map(|(_, live)| live).sum());
    let (mut done, mut outcome) = (Vec::new(), Ok(()));
    for (pack, live) in &packs {
        let size = survey.packs.get(pack).copied().unwrap_or(0);
        outcome =
            cancel.check().and_then(|()| mover.session.keep_alive()).and_then(|()| mover.pack(*pack, size, in_use));
        match &outcome {
            Ok(()) => done.push(size),
            // Another collector was quicker, or it is damaged: nothing has changed.
            Err(e) if e.is_not_found() || e.is_damage() || e.kind() == Kind::Crypto => {
                tracing::warn!("'{}' stays as it is: {}", layout::pack(*pack), e.chain());
                outcome = Ok(());
            }
            Err(_) => break,
        }
        observer.add(Counter::Done, *live);
    }
    observer.end();
    let outcome = outcome.and_then(|()| mover.finish_pack());
    if outcome.is_err() || mover.moves.is_empty() {
        // What is stored already is garbage that the next run collects.
        mover.session.abandon("nothing was moved", clock)?;
        return outcome.map(|()| false);
    }
    let Mover { session, moves, bytes, .. } = mover;
    session.commit_moves(&moves, clock)?;
    report.rewritten = done.into_iter().collect();
    report.rewritten_to = bytes;
    Ok(true)
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
    let mut names = Vec::new();
    repository.store().list(layout::INDEX, Depth::All, &mut |l| {
        if layout::parse_index_segment(&l.key).is_some() {
            names.push(l.key);
        }
    })?;
    let (mut live, mut counted) = (HashMap::<PackId, u64>::new(), Refs::default());
    for name in names {
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
            let bytes = live.entry(facts.pack).or_default();
            if open.contains(&facts.session) || !in_use.contains(facts.pack, entry.ordinal) {
                // An open session's are as good as used.
                *bytes += if open.contains(&facts.session) { facts.size } else { 0 };
            } else if !counted.contains(facts.pack, entry.ordinal) {
                counted.insert(facts.pack, entry.ordinal);
                *bytes += u64::from(entry.stored_len);
            }
        }
    }
    let worth = |(pack, live): &(PackId, u64)| {
        let size = survey.packs.get(pack).copied().unwrap_or(0);
        *live > 0 && live * 100 <= size * LIVE_PERCENT && !condemned.contains(pack)
    };
    let mut packs: Vec<(PackId, u64)> = live.into_iter().filter(worth).collect();
    let share = |(pack, live): &(PackId, u64)| live * 1000 / survey.packs.get(pack).copied().unwrap_or(1).max(1);
    packs.sort_by_key(|p| (share(p), p.0));
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
    /// All of a pack that is in use. If it fails, what was moved so far stands.
    fn pack(&mut self, pack: PackId, size: u64, in_use: &Refs) -> Result<()> {
        if self.session.shuns(pack) {
            let text = format!("nothing can be built on '{}'", layout::pack(pack));
            return Err(Error::refused(Kind::Checksum, text));
        }
        let name = layout::pack(pack);
        let mut bytes = self.repository.store().get(&name, Range::Whole)?;
        if bytes.len() as u64 != size {
            let text = format!("'{name}' has {} bytes instead of {size}", bytes.len());
            return Err(Error::refused(Kind::Checksum, text));
        }
        let (facts, footer) = parse_footer(self.repository, pack, &mut bytes)?;
        let contents = PackContents::of_bytes(self.repository, pack, footer.clone(), &mut bytes)?;
        let opener = self.repository.data_opener(facts.session)?;
        for ordinal in in_use.ordinals(pack) {
            let damaged =
                || Error::refused(Kind::Format, format!("'{name}' has no chunk {ordinal}, which a backup uses"));
            let entry = footer.entries.get(usize::from(ordinal)).ok_or_else(damaged)?;
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
            let encoded = opener.open_chunk(&head, bytes.get_mut(place).ok_or_else(damaged)?)?;
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
