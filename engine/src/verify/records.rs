//! Keys and small records: every one is read, opened and compared with its name. And names that are not ours.

use super::report::Findings;
use crate::crypto::{CryptoError, Scope};
use crate::observe::Cancel;
use crate::repository::Repository;
use crate::store::{Depth, Range, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::id::{SessionId, SlotId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::keyrecord::{EpochRecord, WrapPurpose, WrapRecord};
use pgkeep_formats::repo::keyslot::Slot;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{Expired, Generation, Heartbeat, Note, Pin, SessionOpen};
use std::collections::BTreeSet;

/// What may be at the top of a repository. `packs/`, `idx/`, `backups/`, `stanzas/` and `wal/` are looked into elsewhere.
const TOP: [&str; 19] = [
    layout::FORMAT,
    "keys/",
    "sk/",
    layout::PACKS,
    layout::INDEX,
    layout::BAD_PACKS,
    layout::REFS,
    layout::SESSIONS,
    layout::STANZAS,
    "backups/",
    layout::MOVES,
    layout::EXPIRED,
    layout::EXPIRING,
    "annotations/",
    "pins/",
    layout::GENERATIONS,
    "wal/",
    "traces/",
    layout::DRILLS,
];

/// Reads all records of the repository that belong to no stanza, and the markers of the stanzas given.
pub(super) fn check(repository: &Repository, stanzas: &[String], findings: &Findings, cancel: &Cancel) -> Result<()> {
    let store = repository.store();
    store.list("", Depth::Children, &mut |l| {
        if !TOP.contains(&l.key.as_str()) {
            findings.warn(format!("'{}' is not part of a repository", l.key));
        }
    })?;
    let of_all = ["keys/", "sk/", layout::SESSIONS, layout::GENERATIONS, layout::BAD_PACKS, layout::MOVES, "pins/"];
    let mut prefixes: Vec<String> = of_all.map(str::to_owned).into();
    prefixes.extend(
        stanzas.iter().flat_map(|s| {
            [layout::expired_of(s), layout::annotations_of(s), layout::traces_of(s), layout::drills_of(s)]
        }),
    );
    for prefix in prefixes {
        let mut names = Vec::new();
        store.list(&prefix, Depth::All, &mut |l| names.push(l.key))?;
        for name in names {
            cancel.check()?;
            match check_one(repository, &name) {
                Ok(true) => findings.count(|c| c.records += 1),
                Ok(false) => findings.warn(format!("'{name}' is not part of a repository")),
                // Removed since it was listed.
                Err(Error::Store(StoreError::NotFound { .. })) => {}
                // Nothing depends on it, and the next clones replace it.
                Err(e) if is_trace(&name) && matches!(e.kind(), Kind::Checksum | Kind::Format | Kind::Crypto) => {
                    findings.warn(format!("'{name}' tells nothing of what clones needed first: {}", e.chain()));
                }
                Err(e) => findings.failure(&name, e)?,
            }
        }
    }
    Ok(())
}

fn is_trace(name: &str) -> bool {
    name.starts_with("traces/")
}

/// The sessions that have a reference record, which is written just before the commit.
pub(super) fn referring(repository: &Repository, findings: &Findings) -> Result<Vec<SessionId>> {
    let mut sessions = Vec::new();
    repository.store().list(layout::REFS, Depth::All, &mut |l| match l
        .key
        .strip_prefix(layout::REFS)
        .and_then(|id| SessionId::parse(id).ok())
    {
        Some(session) => sessions.push(session),
        None => findings.warn(format!("'{}' is not part of a repository", l.key)),
    })?;
    Ok(sessions)
}

/// Tells of sessions that were about to commit and left neither commit nor fence: a backup that was interrupted in that
/// moment, or a record that was deleted. `stanzas` are all there are.
pub(super) fn warn_of_unended(
    repository: &Repository,
    stanzas: &[String],
    referring: Vec<SessionId>,
    findings: &Findings,
) -> Result<()> {
    let mut unended: BTreeSet<SessionId> = referring.into_iter().collect();
    for stanza in stanzas {
        repository.store().list(&layout::backups(stanza), Depth::All, &mut |l| {
            if let Some(session) = layout::parse_backup(stanza, &l.key) {
                unended.remove(&session);
            }
        })?;
    }
    for session in unended {
        let name = layout::refs(session);
        // An expired backup's go with it, in that order.
        if repository.store().get(&name, Range::Tail { len: 1 }).is_ok() {
            findings.warn(format!(
                "'{name}' is of a session that neither committed nor was fenced: a backup that was interrupted at its end, \
                 or one whose record was deleted"
            ));
        }
    }
    Ok(())
}

/// False if the name is not one of ours.
fn check_one(repository: &Repository, name: &str) -> Result<bool> {
    let parts: Vec<&str> = name.split('/').collect();
    let open = |kind, scope: Scope<'_>| repository.read_object(name, &[kind], &scope).map(|o| o.plaintext);
    let get = || repository.store().get(name, Range::Whole);
    let decoded = |outcome: Result<(), FormatError>| outcome.map(|()| true).map_err(Error::damaged(name));
    let session = |text: &str| SessionId::parse(text).is_ok();
    match *parts {
        ["keys", "slot", id] if SlotId::parse(id).is_ok() => {
            let bytes = get()?;
            let slot = Slot::parse(&bytes).map_err(Error::damaged(name))?;
            same(name, slot.header.slot.to_string() == id)
        }
        ["keys", "epoch", n] if number(n, 10) => {
            let bytes = get()?;
            let (record, _, _) = EpochRecord::decode(&bytes).map_err(Error::damaged(name))?;
            same(name, record.repo == repository.config().repo && format!("{:010}", record.epoch) == n)
        }
        // What tries a store out; it may be there for a moment.
        ["keys", "probe", _] => Ok(true),
        ["sk", id, n] if session(id) && number(n, 10) => check_wrap(repository, name, id, n, &get()?),
        ["ses", id, "open"] if session(id) => {
            decoded(SessionOpen::decode(&open(ObjectKind::Session, Scope::Repo)?).map(drop))
        }
        ["ses", id, "hb", n] if session(id) && number(n, 8) => {
            decoded(Heartbeat::decode(&open(ObjectKind::Heartbeat, Scope::Repo)?).map(drop))
        }
        ["moves", id] if layout::parse_moves(name).is_some_and(|session| session.to_string() == id) => {
            layout::parse_moves(name).map_or(Ok(None), |session| repository.read_moves(session)).map(|_| true)
        }
        ["gen", n] if number(n, 20) => {
            let bytes = open(ObjectKind::Generation, Scope::Repo)?;
            let generation = Generation::decode(&bytes).map_err(Error::damaged(name))?;
            same(name, layout::generation(generation.number) == name)
        }
        // Its name says it all.
        ["bad", _] => Ok(layout::parse_bad_pack(name).is_some()),
        ["pins", id, _] if session(id) => decoded(Pin::decode(&open(ObjectKind::Pin, Scope::Repo)?).map(drop)),
        ["expired", _, id] if session(id) => {
            decoded(Expired::decode(&open(ObjectKind::Expired, Scope::Repo)?).map(drop))
        }
        ["annotations", stanza, id, n] if session(id) && number(n, 10) => {
            decoded(Note::decode(&open(ObjectKind::Annotation, Scope::Stanza(stanza))?).map(drop))
        }
        ["drills", stanza, _] if layout::parse_drill(stanza, name).is_some() => {
            repository.read_drill(stanza, name).map(|_| true)
        }
        ["traces", stanza, _] if layout::parse_trace(stanza, name).is_some() => {
            repository.read_trace(stanza, name).map(|_| true)
        }
        _ => Ok(false),
    }
}

fn check_wrap(repository: &Repository, name: &str, id: &str, epoch: &str, bytes: &[u8]) -> Result<bool> {
    let record = WrapRecord::decode(bytes).map_err(Error::damaged(name))?;
    let context = &record.context;
    let ours = context.repo == repository.config().repo
        && context.session.to_string() == id
        && format!("{:010}", context.epoch) == epoch;
    if ours && context.purpose == WrapPurpose::Session {
        match repository.keyring().data_opener(&context.session, bytes) {
            // An epoch that was retired, or a role that cannot tell.
            Ok(_) | Err(CryptoError::NoEpoch { .. } | CryptoError::RoleLacks { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    same(name, ours)
}

fn number(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())
}

fn same(name: &str, same: bool) -> Result<bool> {
    if same {
        return Ok(true);
    }
    Err(Error::refused(Kind::Checksum, format!("'{name}' holds the record of another object")))
}
