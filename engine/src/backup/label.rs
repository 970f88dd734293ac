//! Labels of backups: `YYYYMMDD-HHMMSSF`, and for the others the full's label, `_`, and a time with `D` or `I`.

use crate::{Error, Kind, Result};
use jiff::tz::TimeZone;
use pgkeep_formats::repo::records::{BackupType, Commit};

/// Seconds a label may be moved on to sort behind the last one; more means that the clock is wrong.
const BUMP_SECONDS_MAX: i64 = 60;

/// A label that sorts behind every one of `existing` that it must sort behind: all of them for a full, those of the same
/// full for others. `time` is seconds since the Unix epoch.
///
/// # Errors
/// `Clock` if that would take a time in the future.
pub(super) fn make(
    kind: BackupType,
    full: Option<&str>,
    time: i64,
    zone: &TimeZone,
    existing: &[Commit],
) -> Result<String> {
    let newest = match full {
        None => existing.iter().map(|c| c.label.as_str()).max(),
        Some(full) => existing.iter().map(|c| c.label.as_str()).filter(|l| l.starts_with(full)).max(),
    };
    for bump in 0..=BUMP_SECONDS_MAX {
        let part = part(time + bump, zone, kind.letter())?;
        let label = full.map_or_else(|| part.clone(), |full| format!("{full}_{part}"));
        // A full sorts behind the whole label of another backup if its time is after that backup's own time.
        let after = match (full, newest) {
            (_, None) => true,
            (None, Some(newest)) => {
                own_time(&part) > newest.rsplit('_').next().map_or("", own_time) && label.as_str() > newest
            }
            (Some(_), Some(newest)) => own_time(&part) > newest.rsplit('_').next().map_or("", own_time),
        };
        if after {
            return Ok(label);
        }
    }
    Err(Error::refused(
        Kind::Clock,
        format!("the newest backup is '{}', which is later than this host's clock", newest.unwrap_or_default()),
    ))
}

fn own_time(part: &str) -> &str {
    part.get(..15).unwrap_or(part)
}

fn part(time: i64, zone: &TimeZone, letter: char) -> Result<String> {
    let time = jiff::Timestamp::from_second(time)
        .map_err(|e| Error::refused(Kind::Clock, format!("the time {time} cannot be a label: {e}")))?
        .to_zoned(zone.clone());
    Ok(format!("{}{letter}", time.strftime("%Y%m%d-%H%M%S")))
}

/// Label of the full that a backup belongs to.
pub(crate) fn full_of(label: &str) -> &str {
    label.split_once('_').map_or(label, |(full, _)| full)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::tests::commit;

    #[test]
    fn labels_sort_behind_what_is_there() {
        let utc = TimeZone::UTC;
        let time = 1_700_000_000;
        let first = make(BackupType::Full, None, time, &utc, &[]).unwrap();
        assert_eq!(first, "20231114-221320F");
        let existing = vec![commit(&first)];
        assert_eq!(make(BackupType::Full, None, time, &utc, &existing).unwrap(), "20231114-221321F");
        let incr = make(BackupType::Incr, Some(&first), time, &utc, &existing).unwrap();
        assert_eq!(incr, "20231114-221320F_20231114-221321I");
        let existing = vec![commit(&first), commit(&incr)];
        let diff = make(BackupType::Diff, Some(&first), time, &utc, &existing).unwrap();
        assert_eq!(diff, "20231114-221320F_20231114-221322D");
        assert_eq!(full_of(&diff), first);
    }

    #[test]
    fn a_clock_far_behind_is_an_error() {
        let existing = vec![commit("20231114-221320F")];
        let e = make(BackupType::Full, None, 1_600_000_000, &TimeZone::UTC, &existing).unwrap_err();
        assert_eq!(e.kind(), Kind::Clock);
    }
}
