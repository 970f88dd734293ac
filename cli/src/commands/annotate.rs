//! `annotate`: in every repository that has the backup; 104 if one that has it failed.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Repo};
use crate::{repos, zone};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use pgkeep_engine::clock::{Clock, SystemClock};
use pgkeep_engine::lock::{Lock, LockName, LockType, check_stopped};
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::records::{Note, PINNED_FOR_EVER};

/// What becomes of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pin {
    Until(i64),
    Off,
}

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    check_stopped(settings.lock_path(), settings.stanza())?;
    let label = settings.text(Opt::Set).unwrap_or_default();
    check_label(label)?;
    let pin = settings.text(Opt::PinUntil).map(|text| pin(text, &zone::local())).transpose()?;
    if pin.is_none() && settings.pairs(Opt::Annotation).is_empty() {
        return Err(
            Error::refused(Kind::OptionRequired, "command annotate needs option 'annotation' or 'pin-until'").into()
        );
    }
    let (mut found, mut failed, mut locked) = (0, 0, 0);
    for repo in settings.target_repos() {
        match one(context, repo, label, pin) {
            Ok(true) => found += 1,
            Ok(false) => {}
            Err(e) => {
                tracing::error!("repo{}: [{:03}]: {}", repo.key(), e.status().0, repos::chain(&e));
                failed += 1;
                locked += usize::from(matches!(&e, Failure::Engine(e) if e.kind() == Kind::LockAcquire));
            }
        }
    }
    match (found, failed) {
        (_, 1..) => {
            let text = format!("annotate failed in {failed} of {} repositories", settings.target_repos().count());
            // Where another process is all that is in the way, waiting will do.
            let kind = if locked == failed { Kind::LockAcquire } else { Kind::Command };
            Err(Error::refused(kind, text).into())
        }
        (0, _) => Err(Error::refused(Kind::BackupSetInvalid, format!("backup set {label} does not exist")).into()),
        _ => Ok(Status::OK),
    }
}

/// False if the repository does not have the backup.
fn one(context: &Context<'_>, repo: Repo<'_>, label: &str, pin: Option<Pin>) -> Result<bool, Failure> {
    let settings = context.settings;
    let stanza = settings.stanza_name();
    let repository = repos::open(settings, repo)?;
    let name = LockName { stanza: stanza.to_owned(), lock_type: LockType::Backup, repo_key: repo.key().into() };
    let _lock = Lock::acquire(settings.lock_path(), &name, &repos::exec_id())?;
    if repository.stanza_history(stanza)?.is_empty() {
        let text = format!("stanza '{stanza}' does not exist in the repository");
        return Err(Error::refused(Kind::FileMissing, text).into());
    }
    let (backups, mut problems) = repository.backups_readable(stanza)?;
    let Some(backup) = backups.iter().find(|b| b.label == label) else {
        // It may be the one whose record is damaged.
        return problems.pop().map_or(Ok(false), |e| Err(e.into()));
    };
    let created = SystemClock.now().as_secs() as i64;
    let mut change = |note: &mut Note| {
        let before = note.clone();
        for (key, value) in settings.pairs(Opt::Annotation) {
            match value.as_str() {
                "" => drop(note.annotations.remove(key)),
                value => drop(note.annotations.insert(key.clone(), value.to_owned())),
            }
        }
        match pin {
            Some(Pin::Until(until)) => note.pinned_until = Some(until),
            Some(Pin::Off) => note.pinned_until = None,
            None => {}
        }
        let changed = *note != before;
        note.created = created;
        Ok(changed)
    };
    let changed = repository.change_note(stanza, backup, &mut change)?;
    // An expire elsewhere may have been faster, or be about to be.
    if matches!(pin, Some(Pin::Until(_))) && repository.is_expiring(stanza, backup.session)? {
        let text = format!("backup set {label} is being expired by another process, and may not stay");
        return Err(Error::refused(Kind::BackupSetInvalid, text).into());
    }
    if !repository.not_expired(stanza)?.contains(&backup.session) {
        let text = format!("backup set {label} has expired meanwhile");
        return Err(Error::refused(Kind::BackupSetInvalid, text).into());
    }
    tracing::info!(
        "repo{}: backup set '{label}' {}",
        repo.key(),
        if changed { "has new annotations" } else { "has these annotations already" }
    );
    Ok(true)
}

/// Refuses what cannot be the label of a backup.
pub(super) fn check_label(text: &str) -> Result<(), Error> {
    if is_label(text) {
        return Ok(());
    }
    let text = format!("'{text}' is not valid for option 'set': not the label of a backup");
    Err(Error::refused(Kind::OptionInvalidValue, text))
}

/// Whether a text has the form of a label: that of a full, `20261122-113000F`, or with a stamp of its own behind it and `D`
/// or `I`.
fn is_label(text: &str) -> bool {
    let is_stamp = |text: &str| {
        let (date, time) = text.split_once('-').unwrap_or_default();
        (date.len(), time.len()) == (8, 6) && date.bytes().chain(time.bytes()).all(|b| b.is_ascii_digit())
    };
    let is_full = |text: &str| text.strip_suffix('F').is_some_and(is_stamp);
    match text.split_once('_') {
        Some((full, own)) => is_full(full) && own.strip_suffix(['D', 'I']).is_some_and(is_stamp),
        None => is_full(text),
    }
}

/// Reads `forever`, `none`, a date or a time; those without zone are in this one, a date means its beginning.
fn pin(text: &str, zone: &TimeZone) -> Result<Pin, Error> {
    let local = |time: DateTime| zone.to_zoned(time).map(|t| t.timestamp());
    let time = match text {
        "forever" => return Ok(Pin::Until(PINNED_FOR_EVER)),
        "none" => return Ok(Pin::Off),
        // A time with a zone is read as a date, too, if it is asked that way first.
        text => (text.parse::<jiff::Timestamp>())
            .or_else(|_| local(text.parse::<DateTime>()?))
            .or_else(|_| local(text.parse::<Date>()?.to_datetime(jiff::civil::Time::midnight()))),
    };
    match time {
        Ok(time) if time > jiff::Timestamp::now() => Ok(Pin::Until(time.as_second())),
        Ok(_) => Err(Error::refused(
            Kind::OptionInvalidValue,
            format!("'{text}' is not valid for option 'pin-until': it has passed; 'none' takes a pin off"),
        )),
        Err(_) => Err(Error::refused(
            Kind::OptionInvalidValue,
            format!("'{text}' is not valid for option 'pin-until': not a date, a time, 'forever' or 'none'"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_one_form() {
        for good in ["20261122-113000F", "20261122-113000F_20261122-113001D", "20261122-113000F_20261122-113001I"] {
            assert!(is_label(good), "{good}");
        }
        for bad in [
            "",
            "latest",
            "F",
            "20261122-113000",
            "20261122-113000D",
            "2026112-2113000F",
            "20261122-113000F_",
            "20261122-113000F_20261122-113001F",
            "20261122-113000D_20261122-113001I",
            "20261122-113000F_20261122-113001I ",
            "2026\u{661}1-113000F",
        ] {
            assert!(!is_label(bad), "{bad}");
        }
    }

    #[test]
    fn pins_end_at_a_date_a_time_or_never() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let until = |text: &str| match pin(text, &zone) {
            Ok(Pin::Until(time)) => time,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(until("2200-01-01"), until("2199-12-31 22:00:00Z"));
        assert_eq!(until("2200-01-01 12:00:00"), until("2200-01-01T10:00:00+00:00"));
        assert_eq!(until("2200-01-01 12:00:00+02"), until("2200-01-01 12:00:00"));
        assert_eq!(until("forever"), PINNED_FOR_EVER);
        assert_eq!(pin("none", &zone).unwrap(), Pin::Off);
        for bad in ["", "soon", "2001-01-01", "2200-13-01", "2200"] {
            assert_eq!(pin(bad, &zone).unwrap_err().kind(), Kind::OptionInvalidValue, "{bad}");
        }
    }
}
