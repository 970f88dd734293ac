//! Which backups there are.
//!
//! A backup is visible iff its key holds a commit record, it is not marked expired, and it started from a generation
//! not below the newest boundary or stands in the newest catalogue (DESIGN's *Commit* invariant).

use super::Repository;
use crate::crypto::Scope;
use crate::store::Depth;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{Commit, Expired, Fence, StanzaHistory};
use std::collections::HashSet;

/// A visible backup.
pub type Backup = Commit;

impl Repository {
    /// Names of the stanzas, sorted.
    ///
    /// # Errors
    /// What the store said.
    pub fn stanzas(&self) -> Result<Vec<String>> {
        let mut out = Vec::new();
        self.store.list(layout::STANZAS, Depth::Children, &mut |l| {
            if let Some(name) = l.key.strip_prefix(layout::STANZAS).and_then(|n| n.strip_suffix('/')) {
                out.push(name.to_owned());
            }
        })?;
        Ok(out)
    }

    /// The clusters a stanza has had, oldest first; none if the stanza does not exist.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn stanza_history(&self, stanza: &str) -> Result<Vec<StanzaHistory>> {
        let mut names = Vec::new();
        self.store.list(&layout::stanza_histories(stanza), Depth::All, &mut |l| {
            if layout::parse_stanza_history(stanza, &l.key).is_some() {
                names.push(l.key);
            }
        })?;
        let mut out = Vec::with_capacity(names.len());
        for name in names {
            let opened = self.read_object(&name, &[ObjectKind::StanzaHistory], &Scope::Stanza(stanza))?;
            let history = StanzaHistory::decode(&opened.plaintext).map_err(Error::damaged(&name))?;
            if layout::stanza_history(stanza, history.id) != name {
                return Err(Error::refused(Kind::Format, format!("'{name}' holds history entry {}", history.id)));
            }
            out.push(history);
        }
        Ok(out)
    }

    /// The visible backups of a stanza, by label. A record that cannot be read fails the call: a backup must not
    /// disappear silently.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn backups(&self, stanza: &str) -> Result<Vec<Backup>> {
        let (backups, mut problems) = self.backups_readable(stanza)?;
        match problems.pop() {
            Some(e) => Err(e),
            None => Ok(backups),
        }
    }

    /// As [`Self::backups`], with the records that cannot be read beside.
    ///
    /// # Errors
    /// What the store said while listing, and of the newest generation.
    pub fn backups_readable(&self, stanza: &str) -> Result<(Vec<Backup>, Vec<Error>)> {
        self.backups_beside(stanza, &HashSet::new())
    }

    /// As [`Self::backups_readable`], without those of these sessions, which are not read again.
    ///
    /// # Errors
    /// As there.
    pub fn backups_beside(&self, stanza: &str, known: &HashSet<SessionId>) -> Result<(Vec<Backup>, Vec<Error>)> {
        let mut names = Vec::new();
        self.store.list(&layout::backups(stanza), Depth::All, &mut |l| {
            // What others leave there, such as `.nfs` files, is none of ours.
            if layout::parse_backup(stanza, &l.key).is_some_and(|session| !known.contains(&session)) {
                names.push(l.key);
            }
        })?;
        if names.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let expired = self.expired_sessions(stanza)?;
        // A marked one need not be read.
        names.retain(|name| layout::parse_backup(stanza, name).is_none_or(|session| !expired.contains(&session)));
        let generation = self.newest_generation()?;
        let catalogue: HashSet<SessionId> = generation.catalogue.iter().copied().collect();
        let (mut out, mut problems) = (Vec::new(), Vec::new());
        for name in names {
            match self.read_commit(stanza, &name) {
                Ok(Some(c)) if c.generation < generation.boundary && !catalogue.contains(&c.session) => {}
                Ok(Some(c)) => out.push(c),
                Ok(None) => {}
                Err(e) => problems.push(e),
            }
        }
        out.sort_by(|a, b| a.label.cmp(&b.label));
        Ok((out, problems))
    }

    /// Sessions of a stanza that have ended and have not expired, by two lists: of backups that were visible before, those
    /// that still are.
    ///
    /// # Errors
    /// What the store said.
    pub fn not_expired(&self, stanza: &str) -> Result<HashSet<SessionId>> {
        let mut out = HashSet::new();
        self.store
            .list(&layout::backups(stanza), Depth::All, &mut |l| out.extend(layout::parse_backup(stanza, &l.key)))?;
        // Listed last: what expired meanwhile is known.
        let expired = self.expired_sessions(stanza)?;
        out.retain(|session| !expired.contains(session));
        Ok(out)
    }

    /// Whether a backup that a list showed as visible has expired since, and perhaps been forgotten: its marker goes last, so
    /// without one the record tells.
    ///
    /// # Errors
    /// What the store said.
    pub(crate) fn is_over(&self, stanza: &str, session: SessionId) -> Result<bool> {
        Ok(self.is_there(&layout::expired(stanza, session))? || !self.is_there(&layout::backup(stanza, session))?)
    }

    /// Whether another has ended a session, so that its process may be alive without knowing that it is over. What cannot be
    /// read is no fence that holds anybody.
    ///
    /// # Errors
    /// What the store said.
    pub(crate) fn is_fenced_by_another(&self, stanza: &str, session: SessionId) -> Result<bool> {
        let name = layout::backup(stanza, session);
        let opened = match self.read_object(&name, &[ObjectKind::Commit, ObjectKind::Fence], &Scope::Stanza(stanza)) {
            Err(e) if e.is_not_found() || e.is_damage() || e.kind() == Kind::Crypto => return Ok(false),
            opened => opened?,
        };
        Ok(opened.header.kind == ObjectKind::Fence
            && Fence::decode(&opened.plaintext).is_ok_and(|fence| fence.by != session))
    }

    /// The records of backups that have expired, as far as they are still there and whole.
    ///
    /// # Errors
    /// What the store said.
    pub fn expired_backups(&self, stanza: &str) -> Result<Vec<Backup>> {
        let mut out = Vec::new();
        for session in self.expired_sessions(stanza)? {
            match self.read_commit(stanza, &layout::backup(stanza, session)) {
                Ok(commit) => out.extend(commit),
                Err(e) if matches!(e.root(), Error::Store(_)) => return Err(e),
                // Nobody needs it any more.
                Err(e) => tracing::debug!("the record of an expired backup is passed over: {}", e.chain()),
            }
        }
        Ok(out)
    }

    /// The commit record of this name; none if it is a fence, or gone.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub(crate) fn read_commit(&self, stanza: &str, name: &str) -> Result<Option<Commit>> {
        let kinds = [ObjectKind::Commit, ObjectKind::Fence];
        let opened = match self.read_object(name, &kinds, &Scope::Stanza(stanza)) {
            // Deleted since it was listed: it is not there any more.
            Err(e) if e.is_not_found() => return Ok(None),
            other => other?,
        };
        if opened.header.kind == ObjectKind::Fence {
            return Ok(None);
        }
        let commit = Commit::decode(&opened.plaintext).map_err(Error::damaged(name))?;
        if layout::backup(stanza, commit.session) != name {
            return Err(Error::refused(
                Kind::Format,
                format!("'{name}' holds the commit of session {}", commit.session),
            ));
        }
        Ok(Some(commit))
    }

    /// Opens the markers of expired backups but those of the sessions given, to which it adds. Names alone hide a backup;
    /// where something is to be removed because of it, the marker must be one that somebody with the key has made.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn check_expired(&self, stanza: &str, checked: &mut HashSet<SessionId>) -> Result<()> {
        for session in self.expired_sessions(stanza)? {
            if checked.contains(&session) {
                continue;
            }
            let name = layout::expired(stanza, session);
            match self.read_object(&name, &[ObjectKind::Expired], &Scope::Repo) {
                Ok(opened) => drop(Expired::decode(&opened.plaintext).map_err(Error::damaged(&name))?),
                // Collected, or taken back.
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e),
            }
            checked.insert(session);
        }
        Ok(())
    }

    pub(super) fn expired_sessions(&self, stanza: &str) -> Result<HashSet<SessionId>> {
        let prefix = layout::expired_of(stanza);
        let mut out = HashSet::new();
        self.store.list(&prefix, Depth::All, &mut |l| {
            out.extend(l.key.strip_prefix(&prefix).and_then(|s| SessionId::parse(s).ok()));
        })?;
        Ok(out)
    }
}
