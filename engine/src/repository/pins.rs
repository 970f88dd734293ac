//! Readers' claims on backups: what is pinned stays, although its backup expires while it is read.
//!
//! *Invariant.* Who pins looks for the marker of expiry behind its pin, and who collects lists markers before pins. So of a
//! reader that found no marker, whoever sees one later sees the pin too. Pins end by themselves after a time, lest a reader
//! that was killed keep a backup for ever; a clock that is wrong costs the reader its backup, and nobody else anything.

use super::{Backup, Repository};
use crate::clock::Clock;
use crate::crypto::{Scope, SessionSealer};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{PinId, SessionId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::Pin;
use std::sync::Arc;
use std::time::Duration;

/// A pin that goes when this does.
#[derive(Debug)]
pub struct PinGuard {
    repository: Arc<Repository>,
    name: String,
}

impl PinGuard {
    /// Its object, for those who take it away later and elsewhere.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves the pin where it is: it ends by its time, or by [`Repository::unpin`].
    pub fn keep(mut self) -> String {
        std::mem::take(&mut self.name)
    }
}

impl Drop for PinGuard {
    fn drop(&mut self) {
        // It ends by itself; a backup that was read is none the worse for it.
        if !self.name.is_empty()
            && let Err(e) = self.repository.unpin(&self.name)
        {
            tracing::debug!("a pin stays until its time is over: {e}");
        }
    }
}

impl Repository {
    /// Pins a backup for as long as the guard lives, and `time` at the most; without an end if that is zero.
    ///
    /// # Errors
    /// `BackupSetInvalid` if the backup has expired meanwhile; what the store or the cipher said.
    pub fn pin(
        self: &Arc<Self>,
        stanza: &str,
        session: SessionId,
        reason: &str,
        time: Duration,
        clock: &dyn Clock,
    ) -> Result<PinGuard> {
        let now = clock.now();
        let until = if time.is_zero() { 0 } else { (now + time).as_secs() as i64 };
        let holder = format!("process {}", std::process::id());
        let pin = Pin { until, holder, created: now.as_secs() as i64, reason: reason.to_owned() };
        let sealer = SessionSealer::new(Arc::clone(self.keyring()))?;
        let name = layout::pin(session, PinId(sealer.session().0));
        let bytes = sealer.seal_object(ObjectKind::Pin, &Scope::Repo, &name, &[], &pin.encode())?;
        super::put_new(&**self.store(), &name, &bytes)?;
        let guard = PinGuard { repository: Arc::clone(self), name };
        // The marker first: one that is gone by now has taken its commit along, which is looked for behind it.
        let expired = self.expired_sessions(stanza)?;
        if expired.contains(&session) || !self.not_expired(stanza)?.contains(&session) {
            let text = format!("the backup of session {session} in stanza '{stanza}' has expired meanwhile");
            return Err(Error::refused(Kind::BackupSetInvalid, text));
        }
        Ok(guard)
    }

    /// As [`Self::pin`], for those who read all the same where they cannot write, such as from a copy of a repository that is
    /// mounted read-only: then there is no pin.
    ///
    /// # Errors
    /// `BackupSetInvalid` if the backup has expired meanwhile.
    pub fn try_pin(
        self: &Arc<Self>,
        stanza: &str,
        session: SessionId,
        reason: &str,
        time: Duration,
        clock: &dyn Clock,
    ) -> Result<Option<PinGuard>> {
        match self.pin(stanza, session, reason, time, clock) {
            Ok(pin) => Ok(Some(pin)),
            Err(e) if e.kind() == Kind::BackupSetInvalid || e.concerns_the_run() => Err(e),
            Err(e) => {
                tracing::debug!("a backup is read without a pin, so it must not expire meanwhile: {}", e.chain());
                Ok(None)
            }
        }
    }

    /// The commit of a backup that was pinned: it may have expired since, and is there all the same.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn pinned_backup(&self, stanza: &str, session: SessionId, pin: &str) -> Result<Option<Backup>> {
        match self.read_pin(pin) {
            Err(e) if e.is_not_found() => Ok(None),
            other => {
                other?;
                self.read_commit(stanza, &layout::backup(stanza, session))
            }
        }
    }

    /// Takes a pin away. One that is not there is no error.
    ///
    /// # Errors
    /// What the store said.
    pub fn unpin(&self, name: &str) -> Result<()> {
        match layout::parse_pin(name) {
            Some(_) => Ok(self.store().delete(name)?),
            None => Err(Error::refused(Kind::Assert, format!("'{name}' is not the name of a pin"))),
        }
    }

    /// Reads a pin.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub(crate) fn read_pin(&self, name: &str) -> Result<Pin> {
        let opened = self.read_object(name, &[ObjectKind::Pin], &Scope::Repo)?;
        Pin::decode(&opened.plaintext).map_err(Error::damaged(name))
    }
}
