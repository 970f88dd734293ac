//! What there is: lists, in the order that the module's text gives, and what backups use.

use super::{Fenced, GcOptions, GcReport, OpenSession};
use crate::clock::Clock;
use crate::crypto::Scope;
use crate::observe::Cancel;
use crate::pack::read_footer;
use crate::repository::{Repository, Rewritten};
use crate::store::Depth;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{PackId, SessionId, SlotId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::moves::Moves;
use pgkeep_formats::repo::records::{Generation, SessionOpen};
use pgkeep_formats::repo::refs::Refs;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Clocks may differ by so much before a pin is taken for one that is over.
const PIN_SLACK: i64 = 24 * 3600;
/// A pin that has been over for so long is of a reader that was killed, and goes.
const PIN_OLD: i64 = 30 * 24 * 3600;

/// What was read of commits and of what they use. It never changes, so it is read once.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Generations that commits began from; none for a fence.
    commits: HashMap<SessionId, Option<u64>>,
    /// Backups whose packs are among those in use.
    marked: HashSet<SessionId>,
    /// Markers of expiry that were opened.
    checked: HashSet<SessionId>,
    /// What those backups were written with.
    used: Refs,
    /// What was moved, whether or not a generation tells of it yet.
    moved: Rewritten,
    /// Sessions that rewrote, and the generations they began from; none for a fence.
    rewriters: HashMap<SessionId, Option<u64>>,
    /// Packs in use.
    pub(super) live: HashSet<PackId>,
}

impl Marks {
    /// Notes what a session has moved; the generation it began from, unless it was fenced.
    fn note_moves(&mut self, repository: &Repository, session: SessionId) -> Result<Option<u64>> {
        if let Some(known) = self.rewriters.get(&session) {
            return Ok(*known);
        }
        let moves = repository.read_moves(session)?;
        let began = moves.as_ref().map(|moves| moves.generation);
        self.rewriters.insert(session, began);
        moves.into_iter().for_each(|moves| self.moved.add(moves));
        Ok(began)
    }

    /// Sessions that ended with a fence, of which records are there yet.
    pub(super) fn fenced(&self) -> HashSet<SessionId> {
        let ended = self.commits.iter().chain(&self.rewriters);
        ended.filter(|(_, began)| began.is_none()).map(|(session, _)| *session).collect()
    }

    /// Every place of what backups use, those it was moved to among them.
    fn named(&self) -> Refs {
        let mut named = self.used.clone();
        self.moved.expand(&mut named);
        named
    }

    /// Chunks in use, where they lie: what a decision tells to be moved to a pack that is there, and not condemned by it,
    /// is in use there only. A pack to which something was moved is in use as long as a backup uses it, wherever else it lies:
    /// another collector may go by a decision by which it can be found nowhere else.
    pub(super) fn in_use(&self, decision: &Generation, packs: &BTreeMap<PackId, u64>) -> Refs {
        let told: HashSet<SessionId> = decision.catalogue.iter().copied().collect();
        let condemned: HashSet<PackId> = decision.condemned.iter().map(|c| c.pack).collect();
        let is_safe = |pack: PackId| packs.contains_key(&pack) && !condemned.contains(&pack);
        let named = self.named();
        let mut out = Refs::default();
        for pack in named.packs() {
            let here =
                |ordinal: &u16| !self.moved.is_moved((pack, *ordinal), &|session| told.contains(session), &is_safe);
            named.ordinals(pack).filter(here).for_each(|ordinal| out.insert(pack, ordinal));
        }
        out
    }

    /// Sessions that moved what is gone from where it was, and that no backup names there any more: below `boundary` they can
    /// be forgotten.
    pub(super) fn obsolete(&self, packs: &BTreeMap<PackId, u64>, boundary: u64) -> HashSet<SessionId> {
        if self.moved.is_empty() {
            return HashSet::new();
        }
        let named: HashSet<PackId> = self.named().packs().collect();
        let is_over = |moves: &&Moves| {
            moves.generation < boundary && moves.sources().all(|p| !packs.contains_key(&p) && !named.contains(&p))
        };
        self.moved.iter().filter(is_over).map(|moves| moves.session).collect()
    }
}

/// The state of a repository, as far as lists that were taken one after the other tell.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) generation: Generation,
    /// Packs and their sizes.
    pub(super) packs: BTreeMap<PackId, u64>,
    /// Sessions with records, and whether the first of these is there.
    pub(super) sessions: BTreeMap<SessionId, bool>,
    /// Commits and fences, and their stanzas; no stanza for sessions that rewrite.
    pub(super) ends: BTreeMap<SessionId, String>,
    pub(super) open: Vec<OpenSession>,
    /// Markers of expiry, and their stanzas.
    pub(super) expired: BTreeMap<SessionId, String>,
    pub(super) pinned: HashSet<SessionId>,
    /// Pins of readers that were killed long ago.
    pub(super) old_pins: Vec<String>,
    /// Visible backups, and sessions whose moves count.
    pub(super) catalogue: BTreeSet<SessionId>,
}

impl Survey {
    /// G1 to G3.
    pub(super) fn take(repository: &Repository, marks: &mut Marks, cancel: &Cancel, clock: &dyn Clock) -> Result<Self> {
        let generation = repository.newest_generation()?;
        let mut packs = BTreeMap::new();
        repository.store().list(layout::PACKS, Depth::All, &mut |l| {
            packs.extend(layout::parse_pack(&l.key).map(|id| (id, l.size)));
        })?;
        Self { generation, packs, ..Self::default() }.go_on(repository, marks, cancel, clock)
    }

    /// The same lists anew, but for packs, as `decision` lets backups be seen.
    pub(super) fn again(
        &self,
        repository: &Repository,
        decision: &Generation,
        marks: &mut Marks,
        cancel: &Cancel,
        clock: &dyn Clock,
    ) -> Result<Self> {
        Self { generation: decision.clone(), ..Self::default() }.go_on(repository, marks, cancel, clock)
    }

    fn go_on(mut self, repository: &Repository, marks: &mut Marks, cancel: &Cancel, clock: &dyn Clock) -> Result<Self> {
        let sessions = Sessions::list(repository)?;
        self.open = sessions.open;
        self.sessions = sessions.records;
        self.ends = sessions.ends;
        repository.store().list(layout::EXPIRED, Depth::All, &mut |l| {
            self.expired.extend(layout::parse_any_expired(&l.key).map(|(stanza, id)| (id, stanza.to_owned())));
        })?;
        // Behind the markers: who pinned before one was there is seen.
        (self.pinned, self.old_pins) = pinned(repository, clock)?;
        // A name alone must not make anything go.
        for stanza in self.expired.values().collect::<BTreeSet<_>>() {
            repository.check_expired(stanza, &mut marks.checked)?;
        }
        let known: HashSet<SessionId> = self.generation.catalogue.iter().copied().collect();
        for (session, stanza) in &self.ends {
            cancel.check()?;
            if stanza.is_empty() {
                let began = marks.note_moves(repository, *session)?;
                if began.is_some_and(|began| began >= self.generation.boundary || known.contains(session)) {
                    self.catalogue.insert(*session);
                }
                continue;
            }
            let (expired, pinned) = (self.expired.contains_key(session), self.pinned.contains(session));
            if expired && !pinned {
                continue;
            }
            if !marks.commits.contains_key(session) {
                let commit = repository.read_commit(stanza, &layout::backup(stanza, *session))?;
                marks.commits.insert(*session, commit.map(|c| c.generation));
            }
            let Some(Some(began)) = marks.commits.get(session) else { continue };
            let visible = !expired && (*began >= self.generation.boundary || known.contains(session));
            if visible {
                self.catalogue.insert(*session);
            }
            if (visible || pinned) && !marks.marked.contains(session) {
                let refs = match repository.read_refs(*session) {
                    // It expired since it was listed, and another collector has removed what was known of it.
                    Err(e) if e.is_not_found() && repository.is_over(stanza, *session)? => {
                        self.catalogue.remove(session);
                        continue;
                    }
                    refs => refs?,
                };
                let refs = refs.ok_or_else(|| {
                    let text = "the key at hand cannot read what backups use, which garbage collection must know";
                    Error::refused(Kind::Crypto, text.to_owned())
                })?;
                marks.used.union(&refs);
                marks.marked.insert(*session);
            }
        }
        Ok(self)
    }

    /// Number of visible backups.
    pub(super) fn backups(&self) -> u64 {
        self.catalogue.iter().filter(|s| self.ends.get(*s).is_some_and(|stanza| !stanza.is_empty())).count() as u64
    }

    /// The least generation that an open session began from.
    pub(super) fn earliest(&self) -> Option<u64> {
        self.open.iter().map(|o| o.generation).min()
    }

    /// Whether the session that stored a pack has ended. A pack that does not tell, as it is damaged or gone, is left alone
    /// while any session is open.
    pub(super) fn has_ended(&self, repository: &Repository, pack: PackId) -> Result<bool> {
        if self.open.is_empty() {
            return Ok(true);
        }
        let size = self.packs.get(&pack).copied().unwrap_or(0);
        match read_footer(repository, pack, size) {
            Ok((facts, _)) => Ok(self.open.iter().all(|o| o.session != facts.session)),
            Err(e) if e.is_not_found() || e.is_damage() || e.kind() == Kind::Crypto => {
                tracing::debug!("a pack is left alone while sessions are open: {}", e.chain());
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether records of sessions wait for the boundary to move from here to there. Which generation a session began from is
    /// not worth a request; none began from the newest but one that has ended since.
    pub(super) fn waits_for(&self, from: u64, to: u64) -> bool {
        let waits = |session: &&SessionId| !self.catalogue.contains(*session) && !self.pinned.contains(*session);
        to > from
            && self
                .sessions
                .keys()
                .filter(|s| self.ends.contains_key(*s))
                .filter(waits)
                .any(|s| self.expired.contains_key(s))
    }
}

/// Sessions that have not ended.
pub(super) fn open_sessions(repository: &Repository) -> Result<Vec<OpenSession>> {
    Ok(Sessions::list(repository)?.open)
}

/// Sessions and their ends.
struct Sessions {
    records: BTreeMap<SessionId, bool>,
    ends: BTreeMap<SessionId, String>,
    open: Vec<OpenSession>,
}

impl Sessions {
    fn list(repository: &Repository) -> Result<Self> {
        let (mut records, mut seen) = (BTreeMap::new(), HashMap::new());
        repository.store().list(layout::SESSIONS, Depth::All, &mut |l| {
            let Some(session) = layout::parse_session(&l.key) else { return };
            *records.entry(session).or_insert(false) |= l.key == layout::session_open(session);
            let last: &mut i64 = seen.entry(session).or_default();
            *last = l.modified.max(*last);
        })?;
        // Behind them: who has no end here had none when sessions were listed.
        let mut ends = BTreeMap::new();
        repository.store().list(layout::BACKUPS, Depth::All, &mut |l| {
            ends.extend(layout::parse_any_backup(&l.key).map(|(stanza, id)| (id, stanza.to_owned())));
        })?;
        repository.store().list(layout::MOVES, Depth::All, &mut |l| {
            ends.extend(layout::parse_moves(&l.key).map(|id| (id, String::new())));
        })?;
        let mut open = Vec::new();
        for (session, _) in records.iter().filter(|(session, begun)| **begun && !ends.contains_key(session)) {
            let name = layout::session_open(*session);
            let record = match repository.read_object(&name, &[ObjectKind::Session], &Scope::Repo) {
                // Collected since it was listed: it had ended.
                Err(e) if e.is_not_found() => continue,
                other => SessionOpen::decode(&other?.plaintext).map_err(Error::damaged(&name))?,
            };
            let SessionOpen { stanza, generation, purpose, host, started, process } = record;
            let last_seen = seen.get(session).copied().unwrap_or_default();
            let (session, is_dead) = (*session, crate::process::has_ended(&process));
            open.push(OpenSession { session, stanza, purpose, host, generation, started, last_seen, is_dead });
        }
        Ok(Self { records, ends, open })
    }
}

/// Fences sessions whose process has ended, and those that have given no sign of life for long, by the clock that stamps
/// objects: this host's may say anything.
pub(super) fn fence_silent(
    repository: &Repository,
    options: &GcOptions<'_>,
    clock: &dyn Clock,
    report: &mut GcReport,
) -> Result<()> {
    let open = Sessions::list(repository)?.open;
    if open.is_empty() {
        return Ok(());
    }
    let now = if options.dry_run { clock.now().as_secs() as i64 } else { store_time(repository)? };
    let limit = options.silent_after.as_secs() as i64;
    for session in open.into_iter().filter(|o| o.is_dead || now.saturating_sub(o.last_seen) > limit) {
        if !options.dry_run {
            repository.fence_silent(&session.stanza, session.session, clock)?;
        }
        report.fenced.push(Fenced { ..session });
    }
    Ok(())
}

/// The time by which the store stamps objects.
fn store_time(repository: &Repository) -> Result<i64> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|_| crate::crypto::CryptoError::Primitive { what: "system randomness" })?;
    let name = layout::key_probe(&SlotId(nonce).to_string());
    let store = repository.store();
    store.put_if_absent(&name, b"time")?;
    let mut time = None;
    let prefix = name.rsplit_once('/').map_or("", |(prefix, _)| prefix);
    let listed = store.list(&format!("{prefix}/"), Depth::All, &mut |l| {
        if l.key == name {
            time = Some(l.modified);
        }
    });
    store.delete(&name)?;
    listed?;
    // Without a stamp nobody is known to be silent.
    Ok(time.unwrap_or(i64::MIN))
}

/// Backups that readers hold, and pins that are over for long.
pub(super) fn pinned(repository: &Repository, clock: &dyn Clock) -> Result<(HashSet<SessionId>, Vec<String>)> {
    let mut old = Vec::new();
    let mut pins = Vec::new();
    repository.store().list(layout::PINS, Depth::All, &mut |l| {
        pins.extend(layout::parse_pin(&l.key).map(|(session, _)| (session, l.key.clone())));
    })?;
    let now = clock.now().as_secs() as i64;
    let mut out = HashSet::new();
    for (session, name) in pins {
        match repository.read_pin(&name) {
            Ok(pin) if pin.until != 0 && pin.until.saturating_add(PIN_SLACK) < now => {
                if pin.until.saturating_add(PIN_OLD) < now {
                    old.push(name);
                }
            }
            Ok(_) => drop(out.insert(session)),
            Err(e) if e.is_not_found() => {}
            // Whoever made it may still read.
            Err(e) if matches!(e.kind(), Kind::Format | Kind::Checksum | Kind::Crypto) => {
                tracing::warn!("'{name}' cannot be read and holds its backup: {}", e.chain());
                out.insert(session);
            }
            Err(e) => return Err(e),
        }
    }
    Ok((out, old))
}
