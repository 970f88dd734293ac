//! Expire: what retention no longer keeps, becomes invisible, and WAL that no backup needs is removed.
//!
//! Owns the decision (`rules`, `wal`: pure) and the order of doing it. Space of chunks comes back by garbage
//! collection, which is another operation.
//!
//! Order: markers first, newest backup first, so that what depends on a backup goes before it; then WAL. So after a crash
//! no visible backup lacks WAL, and doing it again does the rest; until then `verify` may take the hole of a removal that
//! was interrupted for a loss.
//!
//! *No backup loses its WAL to this*, whoever takes it and wherever. Backups are listed (T1), then the sessions that have
//! not ended (T2), then backups again (T3). A backup that is visible at T1 is planned for. One that is visible at T3 only
//! has its range kept. One whose session was listed at T2 has all WAL kept from where it begins; if that is not known yet,
//! no WAL is removed at all. One whose session came later than T2 begins behind every backup of T1, and so behind the
//! segment from which all is kept. All WAL of a cluster goes only if the stanza had a newer one already when its history was
//! read, after archives were listed: it then takes no backups any more. Locks and clocks play no part: silence only
//! decides whether a session is fenced, and one that is fenced cannot commit. A record that cannot be read ends the run
//! before anything is removed.
//!
//! Cost: lists of commits, sessions and of WAL directories up to the first that stays, one put for each backup that goes,
//! one delete for each file that goes.

mod policy;
mod rules;
#[cfg(test)]
mod tests;
mod wal;

pub use policy::{BadPolicy, Period, Policy};
pub use rules::{Ask, Fate, FullRetention, Goes, Keeps, Retention};
pub use wal::{WalKeep, WalOfBackup, WhyAll};

use crate::clock::Clock;
use crate::observe::{Cancel, Observer};
use crate::repository::wal::{Removal, WalRemoved};
use crate::repository::{Backup, Repository, Unfinished};
use crate::{Error, Kind, Result};
use jiff::tz::TimeZone;
use pgkeep_formats::pg::wal::SegmentName;
use pgkeep_formats::repo::records::{BackupType, Note, PINNED_FOR_EVER};
use std::collections::HashSet;

/// What to do.
#[derive(Debug, Clone)]
pub struct ExpireOptions<'a> {
    /// The stanza.
    pub stanza: &'a str,
    /// What is configured for the repository.
    pub retention: &'a Retention,
    /// What was asked for.
    pub ask: Ask<'a>,
    /// Take what was asked for although it is pinned, the last full backup, or one of the least that must stay.
    pub force: bool,
    /// Decide, and change nothing.
    pub dry_run: bool,
    /// Zone in which days begin.
    pub zone: &'a TimeZone,
}

/// What became of a backup.
#[derive(Debug)]
pub struct BackupFate {
    /// Its record.
    pub backup: Backup,
    /// Until when it is pinned.
    pub pinned_until: Option<i64>,
    /// What becomes of it.
    pub fate: Fate,
}

/// What became of an archive.
#[derive(Debug)]
pub struct ArchiveFate {
    /// Its name.
    pub archive_id: String,
    /// What is kept of it.
    pub keep: WalKeep,
    /// What was removed of it.
    pub removed: WalRemoved,
}

/// What was done; with a dry run, what would be done.
#[derive(Debug, Default)]
pub struct ExpireReport {
    /// All backups that were visible, by label.
    pub backups: Vec<BackupFate>,
    /// All archives.
    pub archives: Vec<ArchiveFate>,
    /// Backups that run somewhere, or were killed.
    pub unfinished: Vec<Unfinished>,
    /// Of these, those that were fenced because they gave no sign of life, or their process has ended.
    pub fenced: Vec<Unfinished>,
}

impl ExpireReport {
    /// Labels of the backups that go.
    pub fn expired(&self) -> impl Iterator<Item = (&str, &Goes)> {
        self.backups.iter().filter_map(|b| match &b.fate {
            Fate::Goes(why) => Some((b.backup.label.as_str(), why)),
            Fate::Stays(_) => None,
        })
    }
}

/// Applies retention to one stanza of one repository.
///
/// # Errors
/// `FileMissing` if the stanza does not exist; `BackupSetInvalid` for a set that does not exist or must stay;
/// `OptionInvalidValue` for what is no segment; `Interrupted`; what the store, the cipher or a decoder said: then what was
/// done so far stays done.
pub fn run(
    repository: &Repository,
    options: &ExpireOptions<'_>,
    observer: &dyn Observer,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<ExpireReport> {
    // 1. What there is (T1).
    cancel.check()?;
    let stanza = options.stanza;
    if repository.stanza_history(stanza)?.is_empty() {
        return Err(Error::refused(Kind::FileMissing, format!("stanza '{stanza}' does not exist in the repository")));
    }
    let mut backups = repository.backups(stanza)?;
    let mut markers = HashSet::new();
    repository.check_expired(stanza, &mut markers)?;
    let mut notes = repository.annotate(stanza, &mut backups)?;
    for (session, e) in notes.unreadable.drain(..) {
        let label = backups.iter().find(|b| b.session == session).map_or("", |b| b.label.as_str());
        tracing::warn!("backup {label} is kept, as its notes may pin it and cannot be read: {}", e.chain());
        notes.of.insert(session, Note { pinned_until: Some(PINNED_FOR_EVER), ..Note::default() });
    }

    // 2. What becomes of it.
    let now = clock.now().as_secs() as i64;
    let situation = rules::Situation { backups: &backups, notes: &notes.of, now, zone: options.zone };
    check_ask(&situation, options)?;
    let mut fates = rules::decide(&situation, options.retention, options.ask);
    let pinned: Vec<Option<i64>> = backups.iter().map(|b| situation.pinned(b)).collect();

    // 3. Markers, the newest first.
    let teller = Teller { repo: repository.key(), dry_run: options.dry_run };
    for (backup, fate) in backups.iter().zip(&mut fates).rev() {
        let Fate::Goes(why) = fate else { continue };
        cancel.check()?;
        if !options.dry_run {
            // It may have been pinned since it was decided. Who pins looks behind its note for what is announced here, and
            // this looks for notes behind the announcement: so one of the two sees the other. A marker is never taken
            // back, as its backup may be collected at once.
            let reason = why.to_string();
            let announced = repository.mark_expiring(stanza, backup.session, &reason, now)?;
            let note = if options.force { None } else { repository.note(stanza, backup.session)? };
            if let Some(until) = note.and_then(|note| note.pinned_until).filter(|until| *until > now) {
                repository.unmark_expiring(&announced)?;
                *fate = Fate::Stays(vec![Keeps::Pinned(until)]);
                continue;
            }
            let mine = repository.mark_expired(stanza, backup.session, &reason, now)?;
            repository.unmark_expiring(&announced)?;
            if !mine {
                // Another expire does the rest.
                *fate = Fate::Stays(vec![Keeps::Elsewhere]);
                continue;
            }
            repository.remove_notes(stanza, backup.session)?;
        }
        teller.say(&format!("expire backup {} ({why})", backup.label));
    }

    if !options.dry_run {
        repository.clear_expiring(stanza, clock)?;
    }

    // 4. Who else needs WAL (T2, T3).
    let mut report = ExpireReport::default();
    for session in repository.unfinished(stanza)? {
        cancel.check()?;
        if session.is_over(clock.now()) {
            if !options.dry_run {
                repository.fence_silent(stanza, session.session, clock)?;
            }
            report.fenced.push(session);
        } else {
            report.unfinished.push(session);
        }
    }
    let known: HashSet<_> = backups.iter().map(|b| b.session).collect();
    let (late, mut problems) = repository.backups_beside(stanza, &known)?;
    if let Some(e) = problems.pop() {
        return Err(e);
    }
    repository.check_expired(stanza, &mut markers)?;

    // 5. WAL. Clusters are asked for after archives: one that was former then has no backups any more.
    let archive_ids = repository.wal_archives(stanza)?;
    let history = repository.stanza_history(stanza)?;
    let archives = wal::Archives {
        backups: &backups,
        fates: &fates,
        late: &late,
        unfinished: &report.unfinished,
        history: &history,
    };
    let ask = capped(repository, stanza, options.ask, &archives)?;
    let ask = ask.as_deref().map_or(options.ask, Ask::WalBefore);
    for archive_id in archive_ids {
        let keep = wal::plan(&archives, &archive_id, options.retention, ask);
        let removal = Removal {
            to: keep.end(),
            keeps: &|name| keep.keeps(name),
            dry_run: options.dry_run,
            each_run: &|first, last| {
                teller.say(&format!("{archive_id} remove archive, start = {first}, stop = {last}"));
            },
        };
        let removed = match keep {
            WalKeep::All(_) => WalRemoved::default(),
            _ => repository.wal_remove(stanza, &archive_id, &removal, observer, cancel)?,
        };
        report.archives.push(ArchiveFate { archive_id, keep, removed });
    }
    report.backups = (backups.into_iter().zip(fates).zip(pinned))
        .map(|((backup, fate), pinned_until)| BackupFate { backup, pinned_until, fate })
        .collect();
    Ok(report)
}

/// Tells what is done when it is done: of what was begun and failed, the log knows how far it came.
struct Teller {
    repo: u32,
    dry_run: bool,
}

impl Teller {
    fn say(&self, text: &str) {
        tracing::info!("{}repo{}: {text}", if self.dry_run { "[DRY-RUN] " } else { "" }, self.repo);
    }
}

/// The segment before which WAL goes, if that was asked for: none behind the beginning of the newest backup, or the end of
/// the archive, as what comes behind may be of a backup that has just begun.
fn capped(repository: &Repository, stanza: &str, ask: Ask<'_>, archives: &wal::Archives<'_>) -> Result<Option<String>> {
    let (Ask::WalBefore(segment), Some(current)) = (ask, archives.history.last()) else { return Ok(None) };
    let archive_id = current.archive_id();
    let newest = archives.backups.iter().chain(archives.late).filter(|b| b.archive_id() == archive_id);
    let newest = newest.filter_map(|b| b.wal.as_ref()).map(|(first, _)| first.clone()).max();
    let cap = match newest {
        Some(newest) => Some(newest),
        None => repository.wal_bounds(stanza, &archive_id)?.map(|(_, last)| last),
    };
    Ok(Some(cap.filter(|cap| cap.as_str() < segment).unwrap_or_else(|| segment.to_owned())))
}

/// Refuses what was asked for by name and must not be done.
fn check_ask(situation: &rules::Situation<'_>, options: &ExpireOptions<'_>) -> Result<()> {
    let refused = |text: String| Err(Error::refused(Kind::BackupSetInvalid, text));
    let backups = situation.backups;
    match options.ask {
        Ask::WalBefore(segment) if SegmentName::parse(segment).is_err() => {
            let text = format!("'{segment}' is not the name of a WAL segment, which has 24 hexadecimal digits");
            Err(Error::refused(Kind::OptionInvalidValue, text))
        }
        Ask::Oldest if backups.iter().filter(|b| b.backup_type == BackupType::Full).count() < 2 => {
            refused("the oldest full backup is the last one, without which there would be none".to_owned())
        }
        Ask::Set(label) if !backups.iter().any(|b| b.label == label) => {
            refused(format!("backup set {label} does not exist"))
        }
        Ask::Set(_) | Ask::Oldest if !options.force => {
            let fates = rules::decide(situation, options.retention, options.ask);
            let going = || backups.iter().zip(&fates).filter(|(_, fate)| !fate.stays()).map(|(b, _)| b);
            let is_full = |b: &&Backup| b.backup_type == BackupType::Full;
            if let Some(full) = going().find(is_full)
                && going().filter(is_full).count() == backups.iter().filter(is_full).count()
            {
                let label = &full.label;
                return refused(format!("full backup {label} is the last one, without which there would be none"));
            }
            if let Some((backup, until)) = going().find_map(|b| situation.pinned(b).map(|until| (b, until))) {
                return refused(format!("backup {} is {}", backup.label, Keeps::Pinned(until)));
            }
            let left = backups.len() - going().count();
            let minimum = options.retention.minimum.max(1);
            if left < minimum as usize {
                return refused(format!("there would be {left} backups left, and retention-minimum is {minimum}"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
