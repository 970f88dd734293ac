//! What is said of backups after their commit: notes of users, and markers that expire them.
//!
//! *Invariant.* A backup's newest note holds all that users said of it, so notes are never merged by a reader. Who
//! writes one creates the next number, and then sees that his is the newest; whoever comes second reads the first one's and
//! begins again, so that nothing noted is lost, without a lock.

use super::{Backup, Repository};
use crate::clock::Clock;
use crate::crypto::{Scope, SessionSealer};
use crate::store::{Depth, Put, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{PinId, SessionId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{Expired, Note};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often a note is begun again because somebody else wrote one meanwhile.
const ATTEMPTS: usize = 16;
/// Nobody takes longer to mark a backup as expired that has said so: a second, mostly.
const EXPIRING_SECONDS_MAX: i64 = 24 * 3600;

/// Numbers of the notes of each backup, ascending.
type Numbers = BTreeMap<SessionId, Vec<u32>>;

/// What is noted of some backups.
#[derive(Debug, Default)]
pub struct Notes {
    /// The newest note of each that has one.
    pub of: BTreeMap<SessionId, Note>,
    /// Backups of which the newest note cannot be read, and why.
    pub unreadable: Vec<(SessionId, Error)>,
}

impl Repository {
    /// The newest notes of these backups, which get the annotations that were noted since their commit. Costs one list, and
    /// a small read for each backup that has a note.
    ///
    /// # Errors
    /// What the store said while listing; notes that keep vanishing.
    pub fn annotate(&self, stanza: &str, backups: &mut [Backup]) -> Result<Notes> {
        'listing: for _ in 0..ATTEMPTS {
            let numbers = self.note_numbers(stanza, &layout::annotations_of(stanza))?;
            let mut notes = Notes::default();
            for backup in backups.iter_mut() {
                let session = backup.session;
                let Some(newest) = numbers.get(&session).and_then(|n| n.last()) else { continue };
                match self.read_note(stanza, session, *newest) {
                    Ok(note) => {
                        backup.annotations.clone_from(&note.annotations);
                        notes.of.insert(session, note);
                    }
                    // A newer one took its place since it was listed.
                    Err(e) if e.is_not_found() => continue 'listing,
                    Err(e) => notes.unreadable.push((session, e)),
                }
            }
            return Ok(notes);
        }
        Err(Error::refused(Kind::FileMissing, format!("notes on backups of stanza '{stanza}' keep vanishing")))
    }

    /// The newest note of one backup, if it has one.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn note(&self, stanza: &str, session: SessionId) -> Result<Option<Note>> {
        let prefix = format!("{}{session}/", layout::annotations_of(stanza));
        for _ in 0..ATTEMPTS {
            let numbers = self.note_numbers(stanza, &prefix)?.remove(&session).unwrap_or_default();
            let Some(newest) = numbers.last() else { return Ok(None) };
            match self.read_note(stanza, session, *newest) {
                Err(e) if e.is_not_found() => {}
                other => return other.map(Some),
            }
        }
        Err(Error::refused(Kind::FileMissing, format!("notes on backups of stanza '{stanza}' keep vanishing")))
    }

    /// Changes what is noted of a backup. `change` is given what holds, and may be called several times; it answers whether
    /// there is anything to write.
    ///
    /// # Errors
    /// What `change`, the store or the cipher said; `LockAcquire` if others never stop writing.
    pub fn change_note(
        &self,
        stanza: &str,
        backup: &Backup,
        change: &mut dyn FnMut(&mut Note) -> Result<bool>,
    ) -> Result<bool> {
        self.check_writable()?;
        let session = backup.session;
        let prefix = format!("{}{session}/", layout::annotations_of(stanza));
        let mut written = false;
        for _ in 0..ATTEMPTS {
            let numbers = self.note_numbers(stanza, &prefix)?.remove(&session).unwrap_or_default();
            let mut note = match numbers.last() {
                None => Note { annotations: backup.annotations.clone(), ..Note::default() },
                Some(newest) => match self.read_note(stanza, session, *newest) {
                    Err(e) if e.is_not_found() => continue,
                    other => other?,
                },
            };
            if !change(&mut note)? {
                return Ok(written);
            }
            let number = numbers.last().map_or(0, |n| n.saturating_add(1));
            let name = layout::annotation(stanza, session, number);
            let sealer = SessionSealer::new(Arc::clone(self.keyring()))?;
            let scope = Scope::Stanza(stanza);
            let bytes = sealer.seal_object(ObjectKind::Annotation, &scope, &name, &[], &note.encode())?;
            if self.store().put_if_absent(&name, &bytes)? == Put::Exists
                && self.store().get(&name, crate::store::Range::Whole)? != bytes
            {
                continue;
            }
            written = true;
            // The number may have been used before, and its note have been replaced and deleted since this one's was listed.
            let after = self.note_numbers(stanza, &prefix)?.remove(&session).unwrap_or_default();
            if after.last().is_some_and(|newest| *newest > number) {
                continue;
            }
            // What it took the place of is of no use any more, and harmless.
            for old in numbers {
                self.store().delete(&layout::annotation(stanza, session, old))?;
            }
            return Ok(true);
        }
        Err(Error::refused(Kind::LockAcquire, format!("others keep changing the notes of backup {}", backup.label)))
    }

    /// Marks a backup as expired: from now on it is not visible. Doing so again is no error. True if the marker is this
    /// call's.
    ///
    /// # Errors
    /// What the store or the cipher said.
    pub fn mark_expired(&self, stanza: &str, session: SessionId, reason: &str, now: i64) -> Result<bool> {
        self.check_writable()?;
        let sealer = SessionSealer::new(Arc::clone(self.keyring()))?;
        let record = Expired { by: sealer.session(), reason: reason.to_owned(), created: now };
        let name = layout::expired(stanza, session);
        let bytes = sealer.seal_object(ObjectKind::Expired, &Scope::Repo, &name, &[], &record.encode())?;
        match self.store().put_if_absent(&name, &bytes)? {
            Put::Created => Ok(true),
            // A put whose answer was lost and that was tried again finds its own.
            Put::Exists => match self.store().get(&name, crate::store::Range::Whole) {
                Ok(found) => Ok(found == bytes),
                Err(StoreError::NotFound { .. }) => Ok(false),
                Err(e) => Err(e.into()),
            },
        }
    }

    /// Says that this backup is about to be marked as expired. A marker is never taken back, as somebody may have collected on
    /// its word; so what forbids it is looked for behind this, and who forbids it looks for this.
    ///
    /// # Errors
    /// What the store or the cipher said.
    pub fn mark_expiring(&self, stanza: &str, session: SessionId, reason: &str, now: i64) -> Result<String> {
        self.check_writable()?;
        let sealer = SessionSealer::new(Arc::clone(self.keyring()))?;
        let record = Expired { by: sealer.session(), reason: reason.to_owned(), created: now };
        let name = layout::expiring(stanza, session, PinId(sealer.session().0));
        let bytes = sealer.seal_object(ObjectKind::Expired, &Scope::Repo, &name, &[], &record.encode())?;
        super::put_new(&**self.store(), &name, &bytes)?;
        Ok(name)
    }

    /// Takes away what [`Self::mark_expiring`] made, be the backup expired or not.
    ///
    /// # Errors
    /// What the store said.
    pub fn unmark_expiring(&self, name: &str) -> Result<()> {
        Ok(self.store().delete(name)?)
    }

    /// Whether a backup is about to be marked as expired, or somebody has died who was.
    ///
    /// # Errors
    /// What the store said.
    pub fn is_expiring(&self, stanza: &str, session: SessionId) -> Result<bool> {
        let mut found = false;
        self.store().list(&layout::expiring_of(stanza, session), Depth::All, &mut |_| found = true)?;
        Ok(found)
    }

    /// Removes what those have left who died, more than a day ago, when they were about to mark backups as expired.
    ///
    /// # Errors
    /// What the store said.
    pub fn clear_expiring(&self, stanza: &str, clock: &dyn Clock) -> Result<()> {
        let (now, mut names) = (clock.now().as_secs() as i64, Vec::new());
        self.store().list(&format!("{}{stanza}/", layout::EXPIRING), Depth::All, &mut |l| {
            if now.saturating_sub(l.modified) > EXPIRING_SECONDS_MAX {
                names.push(l.key);
            }
        })?;
        names.iter().try_for_each(|name| self.unmark_expiring(name))
    }

    /// Removes all notes of a backup that has expired.
    ///
    /// # Errors
    /// What the store said.
    pub fn remove_notes(&self, stanza: &str, session: SessionId) -> Result<()> {
        let prefix = format!("{}{session}/", layout::annotations_of(stanza));
        for n in self.note_numbers(stanza, &prefix)?.remove(&session).unwrap_or_default() {
            self.store().delete(&layout::annotation(stanza, session, n))?;
        }
        Ok(())
    }

    /// Reads a note.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub(crate) fn read_note(&self, stanza: &str, session: SessionId, n: u32) -> Result<Note> {
        let name = layout::annotation(stanza, session, n);
        let opened = self.read_object(&name, &[ObjectKind::Annotation], &Scope::Stanza(stanza))?;
        Note::decode(&opened.plaintext).map_err(Error::damaged(&name))
    }

    fn note_numbers(&self, stanza: &str, prefix: &str) -> Result<Numbers> {
        let mut out = Numbers::new();
        self.store().list(prefix, Depth::All, &mut |l| {
            // What others leave there is none of ours.
            if let Some((session, n)) = layout::parse_annotation(stanza, &l.key) {
                out.entry(session).or_default().push(n);
            }
        })?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::testing::{committed, in_memory};

    fn set(repository: &Repository, backup: &Backup, key: &str, value: &str) -> bool {
        let mut change =
            |note: &mut Note| Ok(note.annotations.insert(key.to_owned(), value.to_owned()).as_deref() != Some(value));
        repository.change_note("demo", backup, &mut change).unwrap()
    }

    #[test]
    fn the_newest_note_holds_all() {
        let repository = in_memory("demo");
        let backup = committed(&repository, "demo", |c| drop(c.annotations.insert("first".into(), "1".into())));
        assert!(set(&repository, &backup, "second", "2"));
        assert!(set(&repository, &backup, "third", "3"));
        assert!(!set(&repository, &backup, "third", "3"));
        let mut backups = repository.backups("demo").unwrap();
        repository.annotate("demo", &mut backups).unwrap();
        let keys: Vec<_> = backups[0].annotations.keys().collect();
        assert_eq!(keys, ["first", "second", "third"]);
        // Only the newest is left.
        let mut names = Vec::new();
        repository.store().list("annotations/", Depth::All, &mut |l| names.push(l.key)).unwrap();
        assert_eq!(names, [layout::annotation("demo", backup.session, 1)]);
        repository.remove_notes("demo", backup.session).unwrap();
        assert!(repository.note("demo", backup.session).unwrap().is_none());
    }

    #[test]
    fn two_that_note_at_once_both_succeed() {
        let repository = in_memory("demo");
        let backup = committed(&repository, "demo", |_| {});
        let mut calls = 0;
        let mut change = |note: &mut Note| {
            calls += 1;
            if calls == 1 {
                // Somebody else is faster.
                assert!(set(&repository, &backup, "other", "theirs"));
            }
            Ok(note.annotations.insert("mine".into(), "ours".into()).is_none())
        };
        assert!(repository.change_note("demo", &backup, &mut change).unwrap());
        assert_eq!(calls, 2);
        let note = repository.note("demo", backup.session).unwrap().unwrap();
        assert_eq!(note.annotations.len(), 2, "{note:?}");
    }

    #[test]
    fn a_number_that_is_free_again_is_not_mistaken_for_the_next() {
        let repository = in_memory("demo");
        let backup = committed(&repository, "demo", |_| {});
        assert!(set(&repository, &backup, "first", "1"));
        let mut calls = 0;
        let mut change = |note: &mut Note| {
            calls += 1;
            if calls == 1 {
                // Two others write meanwhile, and the number this one would take is free again.
                assert!(set(&repository, &backup, "second", "2") && set(&repository, &backup, "third", "3"));
            }
            Ok(note.annotations.insert("mine".into(), "4".into()).as_deref() != Some("4"))
        };
        assert!(repository.change_note("demo", &backup, &mut change).unwrap());
        let note = repository.note("demo", backup.session).unwrap().unwrap();
        assert_eq!(note.annotations.into_keys().collect::<Vec<_>>(), ["first", "mine", "second", "third"]);
    }

    #[test]
    fn what_is_marked_is_not_visible() {
        let repository = in_memory("demo");
        let backup = committed(&repository, "demo", |_| {});
        for _ in 0..2 {
            repository.mark_expired("demo", backup.session, "test", 1).unwrap();
        }
        assert!(repository.backups("demo").unwrap().is_empty());
    }
}
