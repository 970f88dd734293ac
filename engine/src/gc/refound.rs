//! A generation for a repository that has lost all of them, or whose newest one is damaged: without it nobody knows what is
//! visible, and every command ends. A damaged one stays where it is, as evidence, until a collection removes what is old.
//!
//! What was lost with them is a boundary, a catalogue and a list of condemned packs, and whoever read them before may still
//! act on them. So the new one
//!
//! - has a number far above all that any record names. While there is none no session can begin, so two that make one at once
//!   come to the same number, and one creation wins; and a collector that was about to publish has a number below it;
//! - has in its catalogue all commits there are, and all moves. One that the lost boundary kept out needs a commit made after its session was
//!   fenced, which the fence, never removed, excludes; markers of expiry hide as before;
//! - has its own number as the boundary: what sessions that began before it still commit is not visible, and they are told;
//! - condemns every pack that no backup uses, as the lost one may have done. A collector that is still deleting looks at
//!   the newest generation behind its own marks (`super::sweep`) and spares what that does not condemn: what was dead then is
//!   dead when this lists packs, since no session that could use it was open, and none could begin.

use super::publish;
use super::survey::pinned;
use crate::clock::Clock;
use crate::crypto::Scope;
use crate::observe::Cancel;
use crate::repository::{Repository, Rewritten};
use crate::store::Depth;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{PackId, SessionId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{Condemned, Generation, SessionOpen};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The new number is a multiple of this. Between two sessions generations are published only for what expired meanwhile, so
/// no lost one is as far above what records name.
const STEP: u64 = 1 << 20;

/// A generation that was made anew.
#[derive(Debug)]
pub struct Refounded {
    /// Its number.
    pub generation: u64,
    /// Commits in its catalogue, those of expired backups with them.
    pub backups: u64,
    /// Packs that it condemns: no backup uses them, or nobody can tell.
    pub condemned: u64,
    /// Records that could not be read. If a backup is among them whose packs are not known, all packs are condemned: nothing
    /// that is stored later builds on them, and none goes while that is so.
    pub unreadable: Vec<Error>,
}

/// Publishes a generation if there is none that can be read; returns none if there is one.
///
/// # Errors
/// `FeatureNotSupported` for a repository of another version; `Crypto` if the key at hand cannot read what backups use;
/// `LockAcquire` if another process made it meanwhile; `Interrupted`; what the store said.
pub fn refound(repository: &Repository, cancel: &Cancel, clock: &dyn Clock) -> Result<Option<Refounded>> {
    repository.check_writable()?;
    repository.config().check_gc().map_err(|e| {
        let text = format!("feature '{}' of the repository is unknown here", e.feature);
        Error::refused(Kind::FeatureNotSupported, text)
    })?;
    let mut newest = None;
    repository.store().list(layout::GENERATIONS, Depth::All, &mut |l| {
        newest = newest.max(layout::parse_generation(&l.key));
    })?;
    let damage = match (newest, repository.newest_generation()) {
        (None, _) => None,
        (Some(_), Ok(_)) => return Ok(None),
        // An earlier one is of no use: it does not know what has been condemned since.
        (Some(_), Err(e)) if e.is_damage() => Some(e),
        (Some(_), Err(e)) => return Err(e),
    };
    // The order of lists is that of a collection.
    let mut packs = BTreeSet::new();
    repository.store().list(layout::PACKS, Depth::All, &mut |l| packs.extend(layout::parse_pack(&l.key)))?;
    let mut found =
        Found { highest: newest.unwrap_or(0), unreadable: damage.into_iter().collect(), ..Found::default() };
    found.sessions(repository, cancel)?;
    found.backups(repository, cancel, clock)?;
    let number = (found.highest / STEP).checked_add(1).and_then(|n| n.checked_mul(STEP));
    let number = number.ok_or_else(|| Error::refused(Kind::Format, "there is no number for another generation"))?;
    let dead = |pack: &PackId| found.is_blind || !found.live.contains(pack);
    let condemned: Vec<_> = packs.into_iter().filter(dead).map(|pack| Condemned { pack, since: number }).collect();
    let report = Refounded {
        generation: number,
        backups: found.backups,
        condemned: condemned.len() as u64,
        unreadable: found.unreadable,
    };
    let catalogue = found.catalogue.into_iter().collect();
    if !publish(repository, &Generation { number, boundary: number, catalogue, condemned })? {
        return Err(Error::refused(Kind::LockAcquire, "another process has made a generation meanwhile"));
    }
    Ok(Some(report))
}

/// What is known of the time before.
#[derive(Default)]
struct Found {
    /// The highest generation that a record names.
    highest: u64,
    catalogue: BTreeSet<SessionId>,
    backups: u64,
    live: HashSet<PackId>,
    /// What a backup uses is not known.
    is_blind: bool,
    unreadable: Vec<Error>,
}

impl Found {
    /// Notes what is damaged and goes on; what is wrong with the store or the key ends the call.
    fn pass_over(&mut self, error: Error) -> Result<()> {
        let is_damage = error.is_not_found() || matches!(error.kind(), Kind::Format | Kind::Checksum);
        if !is_damage {
            return Err(error);
        }
        self.unreadable.push(error);
        Ok(())
    }

    fn sessions(&mut self, repository: &Repository, cancel: &Cancel) -> Result<()> {
        let mut names = Vec::new();
        repository.store().list(layout::SESSIONS, Depth::All, &mut |l| {
            let session = layout::parse_session(&l.key);
            names.extend(session.map(layout::session_open).filter(|name| *name == l.key));
        })?;
        for name in names {
            cancel.check()?;
            let read = || -> Result<SessionOpen> {
                let opened = repository.read_object(&name, &[ObjectKind::Session], &Scope::Repo)?;
                SessionOpen::decode(&opened.plaintext).map_err(Error::damaged(&name))
            };
            match read() {
                Ok(open) => self.highest = self.highest.max(open.generation),
                Err(e) => self.pass_over(e)?,
            }
        }
        Ok(())
    }

    /// Whatever was moved counts: if a backup names where it was, what it was moved to is kept.
    fn moves(&mut self, repository: &Repository, cancel: &Cancel) -> Result<Rewritten> {
        let (mut sessions, mut moved) = (Vec::new(), Rewritten::default());
        repository.store().list(layout::MOVES, Depth::All, &mut |l| sessions.extend(layout::parse_moves(&l.key)))?;
        for session in sessions {
            cancel.check()?;
            match repository.read_moves(session) {
                Ok(None) => continue,
                Ok(Some(moves)) => {
                    self.highest = self.highest.max(moves.generation);
                    moved.add(moves);
                }
                Err(e) => {
                    self.pass_over(e)?;
                    self.is_blind = true;
                }
            }
            self.catalogue.insert(session);
        }
        Ok(moved)
    }

    fn backups(&mut self, repository: &Repository, cancel: &Cancel, clock: &dyn Clock) -> Result<()> {
        let (mut ends, mut expired) = (BTreeMap::new(), HashSet::new());
        repository.store().list(layout::BACKUPS, Depth::All, &mut |l| {
            ends.extend(layout::parse_any_backup(&l.key).map(|(stanza, session)| (session, stanza.to_owned())));
        })?;
        repository.store().list(layout::EXPIRED, Depth::All, &mut |l| {
            expired.extend(layout::parse_any_expired(&l.key).map(|(_, session)| session));
        })?;
        let (pinned, _) = pinned(repository, clock)?;
        let moved = self.moves(repository, cancel)?;
        for (session, stanza) in ends {
            cancel.check()?;
            match repository.read_commit(&stanza, &layout::backup(&stanza, session)) {
                Ok(None) => continue,
                Ok(Some(commit)) => self.highest = self.highest.max(commit.generation),
                // It is shown as damaged, and not lost sight of.
                Err(e) => self.pass_over(e)?,
            }
            self.catalogue.insert(session);
            self.backups += 1;
            if expired.contains(&session) && !pinned.contains(&session) {
                continue;
            }
            match repository.read_refs(session) {
                Ok(Some(mut refs)) => {
                    moved.expand(&mut refs);
                    self.live.extend(refs.packs());
                }
                Ok(None) => {
                    let text = "the key at hand cannot read what backups use, which a new generation must know";
                    return Err(Error::refused(Kind::Crypto, text));
                }
                Err(e) => {
                    self.pass_over(e)?;
                    self.is_blind = true;
                }
            }
        }
        Ok(())
    }
}
