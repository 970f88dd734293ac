//! Names of objects: the only place that spells them. FORMAT.md, "Objects".

use crate::FormatError;
use crate::id::{DrillId, IndexId, PackId, PinId, SessionId, SlotId, TraceId};

/// The plaintext object that makes a store a repository.
pub const FORMAT: &str = "format";
/// Prefix of key slots.
pub const KEY_SLOTS: &str = "keys/slot/";
/// Prefix of epoch records.
pub const KEY_EPOCHS: &str = "keys/epoch/";
/// Prefix of packs.
pub const PACKS: &str = "packs/";
/// Prefix of markers of damaged packs.
pub const BAD_PACKS: &str = "bad/";
/// Prefix of index segments.
pub const INDEX: &str = "idx/";
/// Prefix of wrapped session keys.
pub const SESSION_KEYS: &str = "sk/";
/// Prefix of reference records.
pub const REFS: &str = "refs/";
/// Prefix of writer sessions.
pub const SESSIONS: &str = "ses/";
/// Prefix of all commit and fence records.
pub const BACKUPS: &str = "backups/";
/// Prefix of the ends of sessions that rewrite packs.
pub const MOVES: &str = "moves/";
/// Prefix of all markers of expired backups.
pub const EXPIRED: &str = "expired/";
/// Prefix of what those leave who are about to mark a backup as expired.
pub const EXPIRING: &str = "expiring/";
/// Prefix of readers' claims on backups.
pub const PINS: &str = "pins/";
/// Prefix of stanzas' cluster histories.
pub const STANZAS: &str = "stanzas/";
/// Prefix of records of drills.
pub const DRILLS: &str = "drills/";
/// Prefix of generation records.
pub const GENERATIONS: &str = "gen/";
/// Longest stanza name in bytes.
pub const STANZA_BYTES_MAX: usize = 128;

/// A key slot.
#[must_use]
pub fn key_slot(id: SlotId) -> String {
    format!("{KEY_SLOTS}{id}")
}

/// What a store is tried with before a repository is made in it; never there for long.
#[must_use]
pub fn key_probe(nonce: &str) -> String {
    format!("keys/probe/{nonce}")
}

/// An epoch's public keys.
#[must_use]
pub fn key_epoch(epoch: u32) -> String {
    format!("{KEY_EPOCHS}{epoch:010}")
}

/// The number in an epoch's object key.
#[must_use]
pub fn parse_key_epoch(key: &str) -> Option<u32> {
    let n = key.strip_prefix(KEY_EPOCHS)?.parse().ok()?;
    (key_epoch(n) == key).then_some(n)
}

/// The slot of an object key.
#[must_use]
pub fn parse_key_slot(key: &str) -> Option<SlotId> {
    let id = SlotId::parse(key.strip_prefix(KEY_SLOTS)?).ok()?;
    (key_slot(id) == key).then_some(id)
}

/// A session's data key, wrapped for an epoch.
#[must_use]
pub fn session_key(session: SessionId, epoch: u32) -> String {
    format!("{SESSION_KEYS}{session}/{epoch:010}")
}

/// Session and epoch of the name of a wrapped session key.
#[must_use]
pub fn parse_session_key(key: &str) -> Option<(SessionId, u32)> {
    let (session, epoch) = key.strip_prefix(SESSION_KEYS)?.split_once('/')?;
    let found = (SessionId::parse(session).ok()?, epoch.parse().ok()?);
    (session_key(found.0, found.1) == key).then_some(found)
}

/// A pack, spread over 256 prefixes by the first byte of its name.
#[must_use]
pub fn pack(id: PackId) -> String {
    format!("{PACKS}{:02x}/{id}", id.0[0])
}

/// The pack named by an object key.
#[must_use]
pub fn parse_pack(key: &str) -> Option<PackId> {
    let (prefix, name) = key.strip_prefix(PACKS)?.split_once('/')?;
    let id = PackId::parse(name).ok()?;
    (format!("{:02x}", id.0[0]) == prefix).then_some(id)
}

/// What a marker of a damaged pack holds: magic, then version 1 and 0. Nothing goes by it.
pub const BAD_PACK_MARK: &[u8; 8] = b"PGKD\x01\0\0\0";

/// The marker of a pack that was found damaged.
#[must_use]
pub fn bad_pack(id: PackId) -> String {
    format!("{BAD_PACKS}{id}")
}

/// The pack that an object key marks as damaged.
#[must_use]
pub fn parse_bad_pack(key: &str) -> Option<PackId> {
    let id = PackId::parse(key.strip_prefix(BAD_PACKS)?).ok()?;
    (bad_pack(id) == key).then_some(id)
}

/// An index segment of a session.
#[must_use]
pub fn index_segment(session: SessionId, sequence: u32, id: IndexId) -> String {
    format!("{INDEX}{session}/{sequence:08}-{id}")
}

/// The parts of an index segment's object key.
#[must_use]
pub fn parse_index_segment(key: &str) -> Option<(SessionId, u32, IndexId)> {
    let (session, name) = key.strip_prefix(INDEX)?.split_once('/')?;
    let (sequence, id) = name.split_once('-')?;
    let parts = (SessionId::parse(session).ok()?, sequence.parse().ok()?, IndexId::parse(id).ok()?);
    // One segment has one name: `+1` and `1` are numbers to the standard library, but no names.
    (index_segment(parts.0, parts.1, parts.2) == key).then_some(parts)
}

/// What a session's backup uses.
#[must_use]
pub fn refs(session: SessionId) -> String {
    format!("{REFS}{session}")
}

/// The session of the name of a reference record.
#[must_use]
pub fn parse_refs(key: &str) -> Option<SessionId> {
    let session = SessionId::parse(key.strip_prefix(REFS)?).ok()?;
    (refs(session) == key).then_some(session)
}

/// A reader's claim on a backup.
#[must_use]
pub fn pin(session: SessionId, id: PinId) -> String {
    format!("{PINS}{session}/{id}")
}

/// The session of the backup that is claimed by the object of this key.
#[must_use]
pub fn parse_pin(key: &str) -> Option<(SessionId, PinId)> {
    let (session, id) = key.strip_prefix(PINS)?.split_once('/')?;
    let (session, id) = (SessionId::parse(session).ok()?, PinId::parse(id).ok()?);
    (pin(session, id) == key).then_some((session, id))
}

/// Prefix of what is known of a session while it works.
#[must_use]
pub fn session(session: SessionId) -> String {
    format!("{SESSIONS}{session}/")
}

/// A writer session's opening record.
#[must_use]
pub fn session_open(session: SessionId) -> String {
    format!("{SESSIONS}{session}/open")
}

/// The session of an object key below [`SESSIONS`].
#[must_use]
pub fn parse_session(key: &str) -> Option<SessionId> {
    SessionId::parse(key.strip_prefix(SESSIONS)?.split_once('/')?.0).ok()
}

/// The number of a session's heartbeat.
#[must_use]
pub fn parse_session_heartbeat(session: SessionId, key: &str) -> Option<u32> {
    let n = key.rsplit_once('/')?.1.parse().ok()?;
    (session_heartbeat(session, n) == key).then_some(n)
}

/// A writer session's heartbeat.
#[must_use]
pub fn session_heartbeat(session: SessionId, beat: u32) -> String {
    format!("{SESSIONS}{session}/hb/{beat:08}")
}

/// Prefix of a stanza's cluster history.
#[must_use]
pub fn stanza_histories(stanza: &str) -> String {
    format!("{STANZAS}{stanza}/history/")
}

/// One entry of a stanza's cluster history, from 1.
#[must_use]
pub fn stanza_history(stanza: &str, id: u32) -> String {
    format!("{STANZAS}{stanza}/history/{id:010}")
}

/// The number in the object key of an entry of a stanza's cluster history.
#[must_use]
pub fn parse_stanza_history(stanza: &str, key: &str) -> Option<u32> {
    let n = key.strip_prefix(&stanza_histories(stanza))?.parse().ok()?;
    (stanza_history(stanza, n) == key).then_some(n)
}

/// Prefix of a stanza's commit and fence records.
#[must_use]
pub fn backups(stanza: &str) -> String {
    format!("{BACKUPS}{stanza}/")
}

/// A session's commit or fence record: whichever was created first.
#[must_use]
pub fn backup(stanza: &str, session: SessionId) -> String {
    format!("{BACKUPS}{stanza}/{session}")
}

/// What ends a session that rewrites packs: where chunks lie since, or a fence.
#[must_use]
pub fn moves(session: SessionId) -> String {
    format!("{MOVES}{session}")
}

/// The session in the object key of what ends one that rewrites packs.
#[must_use]
pub fn parse_moves(key: &str) -> Option<SessionId> {
    let session = SessionId::parse(key.strip_prefix(MOVES)?).ok()?;
    (moves(session) == key).then_some(session)
}

/// What ends a session: of a stanza, or of none if it rewrites packs.
#[must_use]
pub fn end(stanza: &str, session: SessionId) -> String {
    if stanza.is_empty() { moves(session) } else { backup(stanza, session) }
}

/// The session in the object key of a commit or fence record.
#[must_use]
pub fn parse_backup(stanza: &str, key: &str) -> Option<SessionId> {
    let session = SessionId::parse(key.strip_prefix(&backups(stanza))?).ok()?;
    (backup(stanza, session) == key).then_some(session)
}

/// Stanza and session of the object key of any commit or fence record.
#[must_use]
pub fn parse_any_backup(key: &str) -> Option<(&str, SessionId)> {
    let (stanza, session) = key.strip_prefix(BACKUPS)?.rsplit_once('/')?;
    let session = SessionId::parse(session).ok()?;
    (check_stanza(stanza).is_ok() && backup(stanza, session) == key).then_some((stanza, session))
}

/// Stanza and session of the object key of any marker of an expired backup.
#[must_use]
pub fn parse_any_expired(key: &str) -> Option<(&str, SessionId)> {
    let (stanza, session) = key.strip_prefix(EXPIRED)?.rsplit_once('/')?;
    let session = SessionId::parse(session).ok()?;
    (check_stanza(stanza).is_ok() && expired(stanza, session) == key).then_some((stanza, session))
}

/// Prefix of what those leave who are about to mark this backup as expired.
#[must_use]
pub fn expiring_of(stanza: &str, session: SessionId) -> String {
    format!("{EXPIRING}{stanza}/{session}/")
}

/// What one leaves who is about to mark a backup as expired.
#[must_use]
pub fn expiring(stanza: &str, session: SessionId, id: PinId) -> String {
    format!("{EXPIRING}{stanza}/{session}/{id}")
}

/// Prefix of a stanza's markers of expired backups.
#[must_use]
pub fn expired_of(stanza: &str) -> String {
    format!("expired/{stanza}/")
}

/// The marker of an expired backup.
#[must_use]
pub fn expired(stanza: &str, session: SessionId) -> String {
    format!("expired/{stanza}/{session}")
}

/// Prefix of the annotations made to a stanza's backups after their commit.
#[must_use]
pub fn annotations_of(stanza: &str) -> String {
    format!("annotations/{stanza}/")
}

/// A note on a backup; the one with the highest number holds.
#[must_use]
pub fn annotation(stanza: &str, session: SessionId, n: u32) -> String {
    format!("annotations/{stanza}/{session}/{n:010}")
}

/// The backup and the number of a note.
#[must_use]
pub fn parse_annotation(stanza: &str, key: &str) -> Option<(SessionId, u32)> {
    let (session, n) = key.strip_prefix(&annotations_of(stanza))?.split_once('/')?;
    let (session, n) = (SessionId::parse(session).ok()?, n.parse().ok()?);
    (annotation(stanza, session, n) == key).then_some((session, n))
}

/// Prefix of the records of a stanza's drills.
#[must_use]
pub fn drills_of(stanza: &str) -> String {
    format!("{DRILLS}{stanza}/")
}

/// The record of a drill.
#[must_use]
pub fn drill(stanza: &str, id: DrillId) -> String {
    format!("{DRILLS}{stanza}/{id}")
}

/// The drill of an object key.
#[must_use]
pub fn parse_drill(stanza: &str, key: &str) -> Option<DrillId> {
    let id = DrillId::parse(key.strip_prefix(&drills_of(stanza))?).ok()?;
    (drill(stanza, id) == key).then_some(id)
}

/// Prefix of a stanza's access traces.
#[must_use]
pub fn traces_of(stanza: &str) -> String {
    format!("traces/{stanza}/")
}

/// An access trace.
#[must_use]
pub fn trace(stanza: &str, id: TraceId) -> String {
    format!("traces/{stanza}/{id}")
}

/// The trace of an object key.
#[must_use]
pub fn parse_trace(stanza: &str, key: &str) -> Option<TraceId> {
    let id = TraceId::parse(key.strip_prefix(&traces_of(stanza))?).ok()?;
    (trace(stanza, id) == key).then_some(id)
}

/// A generation of the garbage collector.
#[must_use]
pub fn generation(n: u64) -> String {
    format!("{GENERATIONS}{n:020}")
}

/// The number in a generation's object key.
#[must_use]
pub fn parse_generation(key: &str) -> Option<u64> {
    let n = key.strip_prefix(GENERATIONS)?.parse().ok()?;
    (generation(n) == key).then_some(n)
}

/// Prefix of a stanza's WAL.
#[must_use]
pub fn wal_of(stanza: &str) -> String {
    format!("wal/{stanza}/")
}

/// Prefix of the WAL of one entry of a stanza's history; `archive_id` is `<version>-<history id>`.
#[must_use]
pub fn wal_archive(stanza: &str, archive_id: &str) -> String {
    format!("wal/{stanza}/{archive_id}/")
}

/// An archived file: segments, partial segments and backup history files lie under their first 16 digits,
/// timeline history files directly under the archive id.
#[must_use]
pub fn wal(stanza: &str, archive_id: &str, name: &str) -> String {
    match name.get(..16) {
        Some(directory) if name.len() >= 24 => format!("wal/{stanza}/{archive_id}/{directory}/{name}"),
        _ => format!("wal/{stanza}/{archive_id}/{name}"),
    }
}

/// Checks a stanza's name: it becomes a part of object keys and of file names.
///
/// # Errors
/// [`FormatError::BadText`] if it is empty, too long, or holds a character that could leave its place.
pub fn check_stanza(name: &str) -> Result<(), FormatError> {
    let bad = name.is_empty()
        || name.len() > STANZA_BYTES_MAX
        || name.starts_with('.')
        || name.chars().any(|c| c == '/' || c == '\\' || c == ':' || c.is_control() || c.is_whitespace());
    if bad {
        return Err(FormatError::BadText { what: "stanza name", detail: name.chars().take(80).collect() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let p = PackId([0xab; 32]);
        assert_eq!(parse_pack(&pack(p)), Some(p));
        assert_eq!(parse_pack(&pack(p).replace("packs/ab", "packs/ac")), None);
        let (s, i) = (SessionId([1; 16]), IndexId([2; 32]));
        assert_eq!(parse_index_segment(&index_segment(s, 7, i)), Some((s, 7, i)));
        assert_eq!(parse_generation(&generation(12)), Some(12));
        assert_eq!(parse_bad_pack(&bad_pack(p)), Some(p));
        assert_eq!(parse_backup("demo", &backup("demo", s)), Some(s));
        assert_eq!(parse_stanza_history("demo", &stanza_history("demo", 3)), Some(3));
        assert_eq!(parse_annotation("demo", &annotation("demo", s, 3)), Some((s, 3)));
        assert_eq!(parse_session(&session_open(s)), Some(s));
        assert_eq!(parse_session_heartbeat(s, &session_heartbeat(s, 9)), Some(9));
        assert_eq!(parse_session_heartbeat(s, &session_open(s)), None);
        assert_eq!(parse_any_backup(&backup("demo", s)), Some(("demo", s)));
        assert_eq!((parse_moves(&end("", s)), parse_any_backup(&end("demo", s))), (Some(s), Some(("demo", s))));
        assert_eq!(parse_any_expired(&expired("demo", s)), Some(("demo", s)));
        assert_eq!(parse_refs(&refs(s)), Some(s));
        assert_eq!(parse_pin(&pin(s, PinId([5; 16]))), Some((s, PinId([5; 16]))));
        assert_eq!(parse_drill("demo", &drill("demo", DrillId([3; 16]))), Some(DrillId([3; 16])));
        assert_eq!(parse_trace("demo", &trace("demo", TraceId([4; 16]))), Some(TraceId([4; 16])));
        assert_eq!(parse_key_epoch(&key_epoch(2)), Some(2));
        assert_eq!(parse_key_slot(&key_slot(SlotId([7; 16]))), Some(SlotId([7; 16])));
        for stray in [".nfs0000000000000001", "", "+1", &backup("demo", s)] {
            assert_eq!(parse_bad_pack(&format!("{BAD_PACKS}{stray}")), None);
            assert_eq!(parse_backup("demo", &format!("backups/demo/{stray}")), None);
            assert_eq!(parse_drill("demo", &format!("drills/demo/{stray}")), None);
            assert_eq!(parse_trace("demo", &format!("traces/demo/{stray}")), None);
            assert_eq!(parse_stanza_history("demo", &format!("stanzas/demo/history/{stray}")), None);
            assert_eq!(parse_key_epoch(&format!("{KEY_EPOCHS}{stray}")), None);
            assert_eq!(parse_key_slot(&format!("{KEY_SLOTS}{stray}")), None);
        }
        assert_eq!(
            wal("demo", "15-1", "000000010000000000000003"),
            "wal/demo/15-1/0000000100000000/000000010000000000000003"
        );
        assert_eq!(wal("demo", "15-1", "00000002.history"), "wal/demo/15-1/00000002.history");
    }

    #[test]
    fn stanza_names_cannot_leave_their_place() {
        for bad in ["", ".", "..", "a/b", "a b", "a\n", ".x", "a:b", &"x".repeat(129)] {
            assert!(check_stanza(bad).is_err(), "{bad:?}");
        }
        check_stanza("main-15_a.b").unwrap();
    }
}
