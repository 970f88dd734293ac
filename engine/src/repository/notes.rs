//! What is said of backups after their commit: notes of users, and markers that expire them.
//!
//! *Invariant.* A backup's newest note holds all that users said of it, so notes are never merged by a reader. Who
//! writes one creates the next number; whoever comes second reads the first one's and begins again, so that nothing noted
//! is lost, without a lock.

use super::{Backup, Repository};
use crate::crypto::{Scope, SessionSealer};
use crate::store::{Depth, Put};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{Expired, Note};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How often a note is begun again because somebody else wrote one meanwhile.
const ATTEMPTS: usize = 16;

/// Numbers of the notes of each backup, ascending.
type Numbers = BTreeMap<SessionId, Vec<u32>>;

impl Repository {
    /// The newest notes of a stanza's backups. Costs one list, and a small read for each backup that has one.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said: a pin must not be overlooked.
    pub fn notes(&self, stanza: &str) -> Result<BTreeMap<SessionId, Note>> {
        'listing: for _ in 0..ATTEMPTS {
            let mut out = BTreeMap::new();
            for (session, numbers) in self.note_numbers(stanza, &layout::annotations_of(stanza))? {
                let Some(newest) = numbers.last() else { continue };
                match self.read_note(stanza, session, *newest) {
                    Ok(note) => drop(out.insert(session, note)),
                    // A newer one took its place since it was listed.
                    Err(e) if e.is_not_found() => continue 'listing,
                    Err(e) => return Err(e),
                }
            }
            return Ok(out);
        }
        Err(Error::refused(Kind::FileMissing, format!("notes on backups of stanza '{stanza}' keep vanishing")))
    }

    /// Gives backups the annotations that were noted since their commit.
    ///
    /// # Errors
    /// As [`Self::notes`].
    pub fn annotate(&self, stanza: &str, backups: &mut [Backup]) -> Result<BTreeMap<SessionId, Note>> {
        let notes = self.notes(stanza)?;
        for backup in backups {
            if let Some(note) = notes.get(&backup.session) {
                backup.annotations.clone_from(&note.annotations);
            }
        }
        Ok(notes)
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
                return Ok(false);
            }
            let name = layout::annotation(stanza, session, numbers.last().map_or(0, |n| n.saturating_add(1)));
            let sealer = SessionSealer::new(Arc::clone(self.keyring()))?;
            let scope = Scope::Stanza(stanza);
            let bytes = sealer.seal_object(ObjectKind::Annotation, &scope, &name, &[], &note.encode())?;
            if self.store().put_if_absent(&name, &bytes)? == Put::Exists
                && self.store().get(&name, crate::store::Range::Whole)? != bytes
            {
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

    /// Marks a backup as expired: from now on it is not visible. Doing so again is no error.
    ///
    /// # Errors
    /// What the store or the cipher said.
    pub fn mark_expired(&self, stanza: &str, session: SessionId, reason: &str, now: i64) -> Result<()> {
        self.check_writable()?;
        let sealer = SessionSealer::new(Arc::clone(self.keyring()))?;
        let record = Expired { by: sealer.session(), reason: reason.to_owned(), created: now };
        let name = layout::expired(stanza, session);
        let bytes = sealer.seal_object(ObjectKind::Expired, &Scope::Repo, &name, &[], &record.encode())?;
        self.store().put_if_absent(&name, &bytes)?;
        Ok(())
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
        assert!(repository.notes("demo").unwrap().is_empty());
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
        let note = repository.notes("demo").unwrap().remove(&backup.session).unwrap();
        assert_eq!(note.annotations.len(), 2, "{note:?}");
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
