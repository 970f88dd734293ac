//! Sessions that have neither committed nor been fenced: backups that run, here or elsewhere, and those that were killed.
//!
//! Who removes WAL must know what they will need. *Invariant.* A session is listed before its backup asks the server to
//! start, and says which WAL it needs as soon as it knows. So of a session that came into being after this was listed, the
//! WAL begins behind that of every backup that was visible before.
//!
//! Whether a session is still alive can be known only beside its process, on the same kernel: if that has ended without a word,
//! the session is over. Of others it cannot be known. A silent one can be fenced, after which it cannot commit; that is safe
//! whatever the clocks say: a backup that was only slow fails, and says why.

use super::Repository;
use super::session::fence;
use crate::clock::Clock;
use crate::crypto::{Scope, SessionSealer};
use crate::store::Depth;
use crate::{Error, Result};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{Heartbeat, SessionOpen};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A session gives a sign of life every ten minutes while it works. While it waits for WAL it gives none: each segment may
/// take a day (`archive-timeout`), which is less than half of this.
pub const SILENT_AFTER: Duration = Duration::from_secs(3 * 24 * 3600);

/// A session that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its id.
    pub session: SessionId,
    /// Who it is.
    pub host: String,
    /// When it began, by its host's clock; seconds since the Unix epoch.
    pub started: i64,
    /// Its last sign of life, by the store's clock; seconds since the Unix epoch.
    pub last_seen: i64,
    /// The WAL it needs.
    pub needs: Needs,
    /// Its process ran here and has ended.
    pub is_dead: bool,
}

/// The WAL that a backup will need which has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needs {
    /// That is not known yet.
    Unknown,
    /// None: its server is stopped.
    Nothing,
    /// All of this archive from this segment on.
    From(String, String),
}

impl Unfinished {
    /// Whether there was no sign of life for [`SILENT_AFTER`].
    #[must_use]
    pub fn is_silent(&self, now: Duration) -> bool {
        let silence = (now.as_secs() as i64).saturating_sub(self.last_seen);
        silence > SILENT_AFTER.as_secs() as i64
    }

    /// Whether nobody need wait for it: its process has ended, or it is silent.
    #[must_use]
    pub fn is_over(&self, now: Duration) -> bool {
        self.is_dead || self.is_silent(now)
    }
}

/// What is listed of one session.
#[derive(Default)]
struct Signs {
    last_seen: i64,
    newest_beat: Option<u32>,
}

impl Repository {
    /// The sessions that write backups of a stanza and have not ended. Costs a list of all sessions and of the keys of all
    /// commits, and two small reads for each that has not ended.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn unfinished(&self, stanza: &str) -> Result<Vec<Unfinished>> {
        let mut sessions: BTreeMap<SessionId, Signs> = BTreeMap::new();
        self.store().list(layout::SESSIONS, Depth::All, &mut |l| {
            let Some(session) = layout::parse_session(&l.key) else { return };
            let signs = sessions.entry(session).or_default();
            signs.last_seen = signs.last_seen.max(l.modified);
            signs.newest_beat = signs.newest_beat.max(layout::parse_session_heartbeat(session, &l.key));
        })?;
        // Listed after them: whoever is not among these has not ended when the sessions were listed.
        let mut ended = HashSet::new();
        self.store().list(layout::BACKUPS, Depth::All, &mut |l| {
            ended.extend(l.key.rsplit_once('/').and_then(|(_, id)| SessionId::parse(id).ok()));
        })?;
        self.store().list(layout::MOVES, Depth::All, &mut |l| ended.extend(layout::parse_moves(&l.key)))?;
        let mut out = Vec::new();
        for (session, signs) in sessions {
            if ended.contains(&session) {
                continue;
            }
            let name = layout::session_open(session);
            let opened = match self.read_object(&name, &[ObjectKind::Session], &Scope::Repo) {
                // Collected since it was listed, or never made: then its owner has not begun.
                Err(e) if e.is_not_found() => continue,
                other => other?,
            };
            let open = SessionOpen::decode(&opened.plaintext).map_err(Error::damaged(&name))?;
            if open.stanza != stanza || open.purpose != BACKUP {
                continue;
            }
            let beat = signs.newest_beat.map(|n| self.read_heartbeat(session, n)).transpose()?.unwrap_or_default();
            let needs = match beat {
                Heartbeat { wal: Some((archive_id, first)), .. } => Needs::From(archive_id, first),
                Heartbeat { without_wal: true, .. } => Needs::Nothing,
                _ => Needs::Unknown,
            };
            let is_dead = crate::process::has_ended(&open.process);
            let (host, started, last_seen) = (open.host, open.started, signs.last_seen);
            out.push(Unfinished { session, host, started, last_seen, needs, is_dead });
        }
        Ok(out)
    }

    /// Keeps a session from committing, unless it has committed: then this does nothing.
    ///
    /// # Errors
    /// What the store or the cipher said.
    pub fn fence_silent(&self, stanza: &str, session: SessionId, clock: &dyn Clock) -> Result<()> {
        self.check_writable()?;
        let by = SessionSealer::new(Arc::clone(self.keyring()))?.session();
        fence(self, stanza, session, by, "it gave no sign of life, or its process has ended", clock)
    }

    /// Reads a heartbeat.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub(crate) fn read_heartbeat(&self, session: SessionId, n: u32) -> Result<Heartbeat> {
        let name = layout::session_heartbeat(session, n);
        let opened = self.read_object(&name, &[ObjectKind::Heartbeat], &Scope::Repo)?;
        Heartbeat::decode(&opened.plaintext).map_err(Error::damaged(&name))
    }
}

/// What sessions of backups say they are for.
pub const BACKUP: &str = "backup";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::repository::testing::{commit, in_memory, session};

    #[test]
    fn sessions_are_told_until_they_end() {
        let repository = in_memory("demo");
        assert!(repository.unfinished("demo").unwrap().is_empty());
        let mut running = session(&repository, "demo");
        let failed = session(&repository, "demo");
        let found = repository.unfinished("demo").unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|u| u.needs == Needs::Unknown && !u.is_silent(SystemClock.now())));
        failed.abandon("test", &SystemClock).unwrap();
        running.needs_wal("15-1", "000000010000000000000005").unwrap();
        let found = repository.unfinished("demo").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].session, running.id());
        assert_eq!(found[0].needs, Needs::From("15-1".to_owned(), "000000010000000000000005".to_owned()));
        assert!(found[0].is_silent(SystemClock.now() + SILENT_AFTER + Duration::from_secs(60)));
        assert!(repository.unfinished("other").unwrap().is_empty());
        commit(running, |_| {});
        assert!(repository.unfinished("demo").unwrap().is_empty());
        let mut offline = session(&repository, "demo");
        offline.needs_no_wal().unwrap();
        assert_eq!(repository.unfinished("demo").unwrap()[0].needs, Needs::Nothing);
    }

    #[test]
    fn a_fenced_session_cannot_commit_and_a_committed_one_stays() {
        let repository = in_memory("demo");
        let late = session(&repository, "demo");
        repository.fence_silent("demo", late.id(), &SystemClock).unwrap();
        assert!(repository.unfinished("demo").unwrap().is_empty());
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| commit(late, |_| {})));
        assert!(outcome.is_err());
        let backup = commit(session(&repository, "demo"), |_| {});
        repository.fence_silent("demo", backup.session, &SystemClock).unwrap();
        assert_eq!(repository.backups("demo").unwrap().len(), 1);
    }
}
