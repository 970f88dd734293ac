//! What there is: lists, in the order that the module's text gives, and what backups use.

use super::{Fenced, GcOptions, GcReport, OpenSession};
use crate::clock::Clock;
use crate::crypto::Scope;
use crate::observe::Cancel;
use crate::pack::read_footer;
use crate::repository::Repository;
use crate::store::Depth;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{PackId, SessionId, SlotId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{Generation, SessionOpen};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Clocks may differ by so much before a pin is taken for one that is over.
const PIN_SLACK: i64 = 24 * 3600;

/// What was read of commits and of what they use. It never changes, so it is read once.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Generations that commits began from; none for a fence.
    commits: HashMap<SessionId, Option<u64>>,
    /// Backups whose packs are among those in use.
    marked: HashSet<SessionId>,
    /// Markers of expiry that were opened.
    checked: HashSet<SessionId>,
    /// Packs in use.
    pub(super) live: HashSet<PackId>,
}

/// The state of a repository, as far as lists that were taken one after the other tell.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) generation: Generation,
    /// Packs and their sizes.
    pub(super) packs: BTreeMap<PackId, u64>,
    /// Sessions with records, and whether the first of these is there.
    pub(super) sessions: BTreeMap<SessionId, bool>,
    /// Commits and fences, and their stanzas.
    pub(super) ends: BTreeMap<SessionId, String>,
    pub(super) open: Vec<OpenSession>,
    /// Markers of expiry, and their stanzas.
    pub(super) expired: BTreeMap<SessionId, String>,
    pub(super) pinned: HashSet<SessionId>,
    /// Visible backups.
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
        self.pinned = pinned(repository, clock)?;
        // A name alone must not make anything go.
        for stanza in self.expired.values().collect::<BTreeSet<_>>() {
            repository.check_expired(stanza, &mut marks.checked)?;
        }
        let known: HashSet<SessionId> = self.generation.catalogue.iter().copied().collect();
        for (session, stanza) in &self.ends {
            cancel.check()?;
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
            if (visible || pinned) && marks.marked.insert(*session) {
                let refs = repository.read_refs(*session)?.ok_or_else(|| {
                    let text = "the key at hand cannot read what backups use, which garbage collection must know";
                    Error::refused(Kind::Crypto, text.to_owned())
                })?;
                marks.live.extend(refs.packs());
            }
        }
        Ok(self)
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
            Err(e) if e.is_not_found() || matches!(e.kind(), Kind::Format | Kind::Checksum | Kind::Crypto) => {
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
    options: &GcOptions,
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

/// Backups that readers hold.
pub(super) fn pinned(repository: &Repository, clock: &dyn Clock) -> Result<HashSet<SessionId>> {
    let mut pins = Vec::new();
    repository.store().list(layout::PINS, Depth::All, &mut |l| {
        pins.extend(layout::parse_pin(&l.key).map(|(session, _)| (session, l.key.clone())));
    })?;
    let now = clock.now().as_secs() as i64;
    let mut out = HashSet::new();
    for (session, name) in pins {
        match repository.read_pin(&name) {
            Ok(pin) if pin.until != 0 && pin.until.saturating_add(PIN_SLACK) < now => {}
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
    Ok(out)
}
