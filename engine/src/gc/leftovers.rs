//! Records of sessions that are over: the backups that expired, and those that were never finished.
//!
//! A session's records go once its backup can never be visible: it began from a generation below the boundary, and is not in
//! the catalogue. Should its commit be made then, by a request that was under way for days, nobody will see it.
//!
//! Order: heartbeats and the opening record, since a session with that and without an end counts as open; references; the
//! commit or fence; the marker of expiry last, for without it the backup would be visible again.
//!
//! The fence of a session that *another* has fenced stays, and its key: its process may be stalled and store packs yet, which
//! others may use once their index entries are there.

use super::GcReport;
use super::compact::Owners;
use super::survey::Survey;
use crate::crypto::Scope;
use crate::observe::Cancel;
use crate::pack::read_footer;
use crate::repository::{Repository, end_scope};
use crate::store::{Depth, Range, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{PackId, SessionId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::keyrecord::{WrapPurpose, WrapRecord};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::moves::Moves;
use pgkeep_formats::repo::records::{Commit, Fence, Generation, SessionOpen};
use std::collections::{BTreeSet, HashSet};

/// Removes the records of sessions that are over, and keys that nothing is sealed with any more.
pub(super) fn remove(
    repository: &Repository,
    decision: &Generation,
    now: &Survey,
    doomed: &HashSet<PackId>,
    (keys, owners): (Vec<(SessionId, String)>, Option<Owners>),
    report: &mut GcReport,
    cancel: &Cancel,
) -> Result<()> {
    let catalogue: HashSet<SessionId> = decision.catalogue.iter().copied().collect();
    let mut refs = BTreeSet::new();
    repository.store().list(layout::REFS, Depth::All, &mut |l| refs.extend(layout::parse_refs(&l.key)))?;
    for (session, stanza) in &now.ends {
        cancel.check()?;
        if catalogue.contains(session) || now.catalogue.contains(session) || now.pinned.contains(session) {
            continue;
        }
        let begun = now.sessions.get(session).copied().unwrap_or(false);
        match ended(repository, stanza, *session, begun)? {
            Some(over) if over.generation >= decision.boundary => continue,
            Some(over) if over.by_another => {
                // Its commit will never be made.
                if refs.contains(session) {
                    repository.store().delete(&layout::refs(*session))?;
                }
                continue;
            }
            _ => {}
        }
        forget(repository, *session)?;
        repository.store().delete(&layout::end(stanza, *session))?;
        if now.expired.contains_key(session) {
            repository.store().delete(&layout::expired(stanza, *session))?;
        }
        report.sessions += 1;
    }
    now.old_pins.iter().try_for_each(|name| repository.unpin(name))?;
    // Of a removal that was interrupted, or of a stanza that was deleted.
    for (session, stanza) in now.expired.iter().filter(|(session, _)| !now.ends.contains_key(session)) {
        if !repository.is_there(&layout::backup(stanza, *session))? {
            repository.store().delete(&layout::expired(stanza, *session))?;
        }
    }
    let orphans = |session: &&SessionId| !now.ends.contains_key(*session) && !now.sessions.contains_key(*session);
    for session in refs.iter().filter(orphans) {
        // Made since sessions were listed, or left by a removal that was interrupted.
        if !repository.is_there(&layout::session_open(*session))? {
            repository.store().delete(&layout::refs(*session))?;
        }
    }
    match owners {
        Some(owners) if !doomed.is_empty() => remove_keys(repository, keys, now, &owners, cancel),
        _ => Ok(()),
    }
}

/// What is known of a session that has ended.
struct Over {
    generation: u64,
    by_another: bool,
}

/// None if nothing tells which generation it began from: then it has been found to be over before.
fn ended(repository: &Repository, stanza: &str, session: SessionId, begun: bool) -> Result<Option<Over>> {
    let name = layout::end(stanza, session);
    let kinds = [ObjectKind::Commit, ObjectKind::Moves, ObjectKind::Fence];
    let opened = match repository.read_object(&name, &kinds, &end_scope(stanza)) {
        Err(e) if e.is_not_found() => return Ok(None),
        // It has expired, or it would have stopped the survey: what it said is of no use any more.
        Err(e) if matches!(e.kind(), Kind::Format | Kind::Checksum | Kind::Crypto) => None,
        other => Some(other?),
    };
    if let Some(opened) = opened.as_ref().filter(|o| o.header.kind == ObjectKind::Commit) {
        let commit = Commit::decode(&opened.plaintext).map_err(Error::damaged(&name))?;
        return Ok(Some(Over { generation: commit.generation, by_another: false }));
    }
    if let Some(opened) = opened.as_ref().filter(|o| o.header.kind == ObjectKind::Moves) {
        let moves = Moves::decode(&opened.plaintext).map_err(Error::damaged(&name))?;
        return Ok(Some(Over { generation: moves.generation, by_another: false }));
    }
    let by_another = match opened {
        Some(opened) => Fence::decode(&opened.plaintext).map_err(Error::damaged(&name))?.by != session,
        None => true,
    };
    if !begun {
        return Ok(by_another.then_some(Over { generation: 0, by_another }));
    }
    let name = layout::session_open(session);
    let opened = match repository.read_object(&name, &[ObjectKind::Session], &Scope::Repo) {
        // Another collector was quicker.
        Err(e) if e.is_not_found() => return Ok(by_another.then_some(Over { generation: 0, by_another })),
        opened => opened?,
    };
    let open = SessionOpen::decode(&opened.plaintext).map_err(Error::damaged(&name))?;
    Ok(Some(Over { generation: open.generation, by_another }))
}

/// Removes a session's signs of life, the record that opened it, and its references.
pub(super) fn forget(repository: &Repository, session: SessionId) -> Result<()> {
    let mut names = Vec::new();
    repository.store().list(&layout::session(session), Depth::All, &mut |l| names.push(l.key))?;
    for name in names {
        repository.store().delete(&name)?;
    }
    Ok(repository.store().delete(&layout::refs(session))?)
}

/// Keys of sessions, and their names.
pub(super) fn keys(repository: &Repository) -> Result<Vec<(SessionId, String)>> {
    let mut keys = Vec::new();
    repository.store().list(layout::SESSION_KEYS, Depth::All, &mut |l| {
        keys.extend(layout::parse_session_key(&l.key).map(|(session, _)| (session, l.key.clone())));
    })?;
    Ok(keys)
}

/// Removes the keys of sessions that are over and of whose packs none is there.
///
/// The order of lists is keys, sessions and their ends (`now`), index and packs (`owners`), and only then packs are deleted,
/// which may take hours. So a session with a key here has a record in `now`, or was forgotten before it, and then whatever
/// it has stored is in `owners`. One that was forgotten in this run keeps its key until the next.
fn remove_keys(
    repository: &Repository,
    mut keys: Vec<(SessionId, String)>,
    now: &Survey,
    owners: &Owners,
    cancel: &Cancel,
) -> Result<()> {
    let mut known: HashSet<SessionId> = owners.of.values().copied().collect();
    known.extend(now.sessions.keys());
    known.extend(now.ends.keys());
    repository.store().list(layout::SESSIONS, Depth::All, &mut |l| known.extend(layout::parse_session(&l.key)))?;
    repository.store().list(layout::BACKUPS, Depth::All, &mut |l| {
        known.extend(layout::parse_any_backup(&l.key).map(|(_, session)| session));
    })?;
    repository.store().list(layout::MOVES, Depth::All, &mut |l| known.extend(layout::parse_moves(&l.key)))?;
    keys.retain(|(session, _)| !known.contains(session));
    if keys.is_empty() {
        return Ok(());
    }
    // Packs that no segment names may be indexed one day.
    for (pack, size) in owners.packs.iter().filter(|(pack, _)| !owners.of.contains_key(*pack)) {
        cancel.check()?;
        match read_footer(repository, *pack, *size) {
            Ok((facts, _)) => drop(known.insert(facts.session)),
            Err(e) if e.is_not_found() => {}
            Err(e) => {
                tracing::debug!("keys stay, as a pack does not tell whose it is: {}", e.chain());
                return Ok(());
            }
        }
    }
    for (session, name) in keys.into_iter().filter(|(session, _)| !known.contains(session)) {
        cancel.check()?;
        let record = match repository.store().get(&name, Range::Whole) {
            // Another collector was quicker.
            Err(StoreError::NotFound { .. }) => continue,
            record => WrapRecord::decode(&record?).map_err(Error::damaged(&name))?,
        };
        // Objects that were wrapped anew have theirs beside those of sessions.
        if record.context.purpose == WrapPurpose::Session && record.context.session == session {
            repository.store().delete(&name)?;
        }
    }
    Ok(())
}
