//! Which backup a restore takes. Pure, but for the history files it asks for.
//!
//! The rules are pgBackRest's, with one more: a backup named by hand that ended after the target is refused unless
//! forced, because the server would bring up other data than asked for without a word.

use super::recovery::{RecoveryOptions, RecoveryType};
use crate::{Error, Kind, Result};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use pgkeep_formats::repo::records::Commit;

/// What a selection goes by.
pub(super) struct Selection<'a> {
    pub(super) set: Option<&'a str>,
    pub(super) recovery: &'a RecoveryOptions,
    pub(super) force: bool,
    pub(super) time_zone: &'a TimeZone,
}

/// The backups of one repository, by label, and the newest entry of its stanza's history.
pub(super) struct Candidates {
    pub(super) backups: Vec<Commit>,
    pub(super) history_id: u32,
}

/// Chooses a backup: the number of its repository, and its number there.
///
/// # Errors
/// `BackupSetInvalid` if none fits; `Format` for a time that cannot be read; `OptionInvalidValue` for an LSN that cannot.
pub(super) fn select(repositories: &[Candidates], by: &Selection<'_>) -> Result<(usize, usize)> {
    let target = Target::of(by)?;
    if let Some(label) = by.set.filter(|s| *s != "latest") {
        return named(repositories, label, &target, by.force);
    }
    let fits = |backup: &Commit| match target {
        Target::None => true,
        Target::Time(time) => backup.stop < time,
        Target::Lsn(lsn) => backup.lsn.is_some_and(|(_, stop)| stop <= lsn.0),
    };
    for (number, candidates) in repositories.iter().enumerate() {
        let newest = |b: &&(usize, &Commit)| (b.1.stop, b.0);
        let mut fitting: Vec<(usize, &Commit)> =
            candidates.backups.iter().enumerate().filter(|(_, b)| fits(b)).collect();
        fitting.sort_by_key(|b| newest(&b));
        let Some((at, backup)) = fitting.pop() else { continue };
        if backup.history_id != candidates.history_id {
            let text = format!(
                "the newest backup that fits, {}, was taken before the last stanza-upgrade: name it by --set if it is \
                 the one to restore",
                backup.label
            );
            return Err(Error::refused(Kind::BackupSetInvalid, text));
        }
        return Ok((number, at));
    }
    Err(Error::refused(Kind::BackupSetInvalid, none_fits(repositories, &target, by.time_zone)))
}

fn named(repositories: &[Candidates], label: &str, target: &Target, force: bool) -> Result<(usize, usize)> {
    let position = |c: &Candidates| c.backups.iter().position(|b| b.label == label);
    let found = repositories.iter().enumerate().find_map(|(n, c)| Some((n, position(c)?)));
    let Some((number, at)) = found else {
        return Err(Error::refused(Kind::BackupSetInvalid, format!("backup set {label} is not valid: there is none")));
    };
    let late = repositories.get(number).and_then(|c| c.backups.get(at)).is_some_and(|backup| match target {
        Target::None => false,
        Target::Time(time) => backup.stop >= *time,
        Target::Lsn(lsn) => backup.lsn.is_some_and(|(_, stop)| stop > lsn.0),
    });
    if late && !force {
        let text =
            format!("backup set {label} ended after the target: recovery from it cannot reach what was there then");
        return Err(Error::refused(Kind::BackupSetInvalid, text));
    }
    Ok((number, at))
}

fn none_fits(repositories: &[Candidates], target: &Target, zone: &TimeZone) -> String {
    let all = || repositories.iter().flat_map(|c| &c.backups);
    match target {
        _ if all().next().is_none() => "no backup sets to restore".to_owned(),
        Target::Time(_) => {
            // A target must be later than the end of a backup; targets have whole seconds here.
            let earliest = all().map(|b| b.stop).min().unwrap_or(0) + 1;
            let earliest = Timestamp::from_second(earliest).unwrap_or_default().to_zoned(zone.clone());
            let shown = earliest.strftime("%Y-%m-%d %H:%M:%S%:z");
            format!("no backup set ended before the target: the earliest time that can be reached is {shown}")
        }
        Target::Lsn(lsn) => {
            let earliest = all().filter_map(|b| b.lsn).map(|(_, stop)| stop).min();
            let earliest = earliest.map_or_else(|| "unknown".to_owned(), |l| Lsn(l).to_string());
            format!("no backup set ended before {lsn}: the earliest position that can be reached is {earliest}")
        }
        Target::None => "no backup set fits".to_owned(),
    }
}

enum Target {
    None,
    /// Seconds since the Unix epoch.
    Time(i64),
    Lsn(Lsn),
}

impl Target {
    fn of(by: &Selection<'_>) -> Result<Self> {
        let text = by.recovery.target.as_deref().unwrap_or_default();
        Ok(match by.recovery.recovery_type {
            // A set named by hand needs no time that can be read here: the server has the last word.
            RecoveryType::Time => match parse_time(text, by.time_zone) {
                Err(_) if by.set.is_some_and(|s| s != "latest") => Self::None,
                other => Self::Time(other?),
            },
            RecoveryType::Lsn => Self::Lsn(Lsn::parse(text).map_err(|e| {
                Error::refused(Kind::OptionInvalidValue, format!("'{text}' is not valid for option 'target': {e}"))
            })?),
            _ => Self::None,
        })
    }
}

/// Reads a time as pgBackRest takes it, `YYYY-MM-DD HH:MM:SS[.fraction][+HH[[:]MM]]`, without zone in `zone`: whole
/// seconds since the Unix epoch.
///
/// # Errors
/// `Format`.
pub(super) fn parse_time(text: &str, zone: &TimeZone) -> Result<i64> {
    Ok(read_time(text, zone)?.instant.as_second())
}

/// A target time as it was understood.
pub(super) struct TargetTime {
    /// The moment.
    pub(super) instant: Timestamp,
    /// The same for the server: what was given, and the offset if that was not given.
    pub(super) text: String,
}

/// As [`parse_time`], with fractions of seconds, and in a form that every server reads the same.
///
/// # Errors
/// `Format`.
pub(super) fn read_time(text: &str, zone: &TimeZone) -> Result<TargetTime> {
    let bad = || {
        let text = text.escape_debug();
        Error::refused(
            Kind::Format,
            format!(
                "option 'target': '{text}' is not a time of the form 'YYYY-MM-DD HH:MM:SS+TZ', by which a backup could be \
                 chosen"
            ),
        )
    };
    let text = text.trim();
    let (date, clock) = text.split_once([' ', 'T']).ok_or_else(bad)?;
    let (clock, offset) = match clock.find(['+', '-', 'Z']) {
        Some(at) => clock.split_at(at),
        None => (clock, ""),
    };
    let time: DateTime = format!("{date}T{}", clock.trim()).parse().map_err(|_| bad())?;
    if !offset.is_empty() {
        let zone = TimeZone::fixed(parse_offset(offset).ok_or_else(bad)?);
        return Ok(TargetTime { instant: zone.to_timestamp(time).map_err(|_| bad())?, text: text.to_owned() });
    }
    let zoned = zone.to_zoned(time).map_err(|_| bad())?;
    // An hour that the clocks skip has moved; what is written is what was taken.
    let text = zoned.strftime("%Y-%m-%d %H:%M:%S%.f%:z").to_string();
    Ok(TargetTime { instant: zoned.timestamp(), text })
}

/// `Z`, `+HH`, `+HHMM` or `+HH:MM`.
fn parse_offset(text: &str) -> Option<Offset> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("Z", "") => return Some(Offset::UTC),
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let digits = digits.replacen(':', "", 1);
    let (hours, minutes) = digits.split_at_checked(2)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) || !matches!(minutes.len(), 0 | 2) {
        return None;
    }
    let hours: i32 = hours.parse().ok()?;
    let minutes: i32 = if minutes.is_empty() { 0 } else { minutes.parse().ok()? };
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok().filter(|_| hours <= 15 && minutes < 60)
}

/// Refuses a backup that the target timeline did not grow out of: the server would find that out only after the restore.
///
/// `newest` is the highest timeline that the archive has a history file of, `history` reads one.
///
/// # Errors
/// `DbMismatch` with both timelines; what `history` said.
pub(super) fn check_timeline(
    backup: &Commit,
    recovery: &RecoveryOptions,
    newest: Option<TimelineId>,
    history: &mut dyn FnMut(TimelineId) -> Result<Option<TimelineHistory>>,
) -> Result<()> {
    let Some((_, stop)) = backup.lsn else { return Ok(()) };
    let own = TimelineId(backup.timeline);
    let wanted = match recovery.timeline.as_deref() {
        Some("current") => own,
        None if recovery.recovery_type == RecoveryType::Immediate => own,
        None | Some("latest") => newest.unwrap_or(own).max(own),
        Some(number) => {
            let number = match number.strip_prefix("0x").or_else(|| number.strip_prefix("0X")) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            TimelineId(number.unwrap_or(own.0))
        }
    };
    if wanted == own || !recovery.recovery_type.reads_archive() {
        return Ok(());
    }
    let refuse = |why: String| {
        let text =
            format!("target timeline {wanted} cannot be reached from backup {} (timeline {own}): {why}", backup.label);
        Err(Error::refused(Kind::DbMismatch, text))
    };
    match history(wanted)? {
        None => refuse(format!("the archive has no '{}'", wanted.history_file_name())),
        Some(history) if history.contains(own, Lsn(stop)) => Ok(()),
        Some(history) => refuse(match history.switch_point(own) {
            Some(switch) => format!("it branched off at {switch}, before the backup ended at {}", Lsn(stop)),
            None => "it did not grow out of that one".to_owned(),
        }),
    }
}
