//! Which backup is chosen.

use crate::Kind;
use crate::repository::testing::blank;
use crate::restore::recovery::{RecoveryOptions, RecoveryType};
use crate::restore::select::{Candidates, Selection, check_timeline, parse_time, select};
use jiff::tz::{Offset, TimeZone};
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use pgkeep_formats::repo::records::Commit;

pub(in crate::restore) fn backup(label: &str, stop: i64, lsn: u64, history_id: u32) -> Commit {
    let (label, lsn) = (label.to_owned(), Some((lsn - 1, lsn)));
    Commit { label, history_id, timeline: 2, start: stop - 1, stop, lsn, ..blank() }
}

/// Two repositories: the second has a backup more.
fn two() -> Vec<Candidates> {
    let first = vec![backup("a", 1000, 0x100, 2), backup("b", 2000, 0x200, 2)];
    let second = vec![backup("0", 500, 0x50, 2), backup("b", 2000, 0x200, 2), backup("c", 3000, 0x300, 2)];
    vec![Candidates { backups: first, history_id: 2 }, Candidates { backups: second, history_id: 2 }]
}

fn choose(
    from: &[Candidates],
    set: Option<&str>,
    kind: RecoveryType,
    target: &str,
    force: bool,
) -> Result<String, Kind> {
    let target = (!target.is_empty()).then(|| target.to_owned());
    let recovery = RecoveryOptions { target, ..RecoveryOptions::of(kind) };
    let by = Selection { set, recovery: &recovery, force, time_zone: &TimeZone::UTC };
    let (number, at) = select(from, &by).map_err(|e| e.kind())?;
    Ok(format!("{}{}", number + 1, from[number].backups[at].label))
}

#[test]
fn the_newest_of_the_first_repository_unless_a_target_says_otherwise() {
    let all = two();
    let default = |set| choose(&all, set, RecoveryType::Default, "", false);
    assert_eq!(default(None), Ok("1b".into()));
    assert_eq!(default(Some("latest")), Ok("1b".into()));
    assert_eq!(default(Some("c")), Ok("2c".into()));
    assert_eq!(default(Some("d")), Err(Kind::BackupSetInvalid));
    assert_eq!(choose(&[], None, RecoveryType::Default, "", false), Err(Kind::BackupSetInvalid));
}

#[test]
fn a_backup_must_end_before_a_time_and_not_after_an_lsn() {
    let all = two();
    let time = |text: &str| choose(&all, None, RecoveryType::Time, text, false);
    assert_eq!(time("1970-01-01 00:33:21+00"), Ok("1b".into()));
    assert_eq!(time("1970-01-01 00:33:20+00"), Ok("1a".into()), "strictly before");
    assert_eq!(time("1970-01-01 00:33:20.9+00"), Ok("1a".into()), "fractions do not help: ends have none");
    assert_eq!(time("1970-01-01 02:33:21+02"), Ok("1b".into()));
    assert_eq!(time("1970-01-01 00:10:00"), Ok("20".into()), "only the second repository goes so far back");
    assert_eq!(time("1970-01-01 00:00:01"), Err(Kind::BackupSetInvalid));
    assert_eq!(time("yesterday"), Err(Kind::Format));
    let lsn = |text: &str| choose(&all, None, RecoveryType::Lsn, text, false);
    assert_eq!(lsn("0/200"), Ok("1b".into()));
    assert_eq!(lsn("0/1FF"), Ok("1a".into()));
    assert_eq!(lsn("0/10"), Err(Kind::BackupSetInvalid));
}

#[test]
fn the_message_says_how_far_back_one_can_go() {
    let recovery =
        RecoveryOptions { target: Some("1970-01-01 00:00:01".into()), ..RecoveryOptions::of(RecoveryType::Time) };
    let by = Selection { set: None, recovery: &recovery, force: false, time_zone: &TimeZone::UTC };
    let text = select(&two(), &by).unwrap_err().to_string();
    assert!(text.ends_with("is 1970-01-01 00:08:21+00:00"), "{text}");
}

#[test]
fn a_set_that_ended_after_the_target_must_be_forced() {
    let all = two();
    let at = "1970-01-01 00:33:20+00";
    assert_eq!(choose(&all, Some("b"), RecoveryType::Time, at, false), Err(Kind::BackupSetInvalid));
    assert_eq!(choose(&all, Some("b"), RecoveryType::Time, at, true), Ok("1b".into()));
    assert_eq!(choose(&all, Some("a"), RecoveryType::Time, at, false), Ok("1a".into()));
    assert_eq!(choose(&all, Some("b"), RecoveryType::Time, "yesterday", false), Ok("1b".into()));
    assert_eq!(choose(&all, Some("b"), RecoveryType::Lsn, "0/1FF", false), Err(Kind::BackupSetInvalid));
}

#[test]
fn backups_of_a_cluster_before_an_upgrade_are_not_chosen_silently() {
    let old = vec![Candidates { backups: vec![backup("a", 1000, 0x100, 1)], history_id: 2 }];
    assert_eq!(choose(&old, None, RecoveryType::Default, "", false), Err(Kind::BackupSetInvalid));
    assert_eq!(choose(&old, Some("a"), RecoveryType::Default, "", false), Ok("1a".into()));
}

#[test]
fn times_are_read_as_people_write_them() {
    let east = TimeZone::fixed(Offset::from_seconds(5 * 3600 + 1800).unwrap());
    for (text, want) in [
        ("2024-02-29 12:00:00+00", Some(1_709_208_000)),
        ("2024-02-29 12:00:00Z", Some(1_709_208_000)),
        ("2024-02-29T12:00:00.25+0100", Some(1_709_204_400)),
        ("2024-02-29 12:00:00-05:30", Some(1_709_227_800)),
        ("2024-02-29 17:30:00", Some(1_709_208_000)),
        (" 2024-02-29 17:30:00 ", Some(1_709_208_000)),
        ("2024-02-29 12:00:00 +00", Some(1_709_208_000)),
        ("2023-02-29 12:00:00+00", None),
        ("2024-02-29", None),
        ("2024-02-29 25:00:00", None),
        ("2024-02-29 12:00:00+1", None),
        ("2024-02-29 12:00:00+ab", None),
        ("2024-02-29 12:00:00+99", None),
        ("", None),
    ] {
        assert_eq!(parse_time(text, &east).ok(), want, "{text}");
    }
}

#[test]
fn a_timeline_must_have_grown_out_of_the_backups() {
    let one = backup("a", 1000, 0x100, 2);
    let check = |kind, timeline: Option<&str>, newest: Option<u32>, text: &str| {
        let recovery = RecoveryOptions { timeline: timeline.map(str::to_owned), ..RecoveryOptions::of(kind) };
        let mut asked = Vec::new();
        let result = check_timeline(&one, &recovery, newest.map(TimelineId), &mut |t| {
            asked.push(t.0);
            Ok((t.0 < 7).then(|| TimelineHistory::parse(t, text.as_bytes()).unwrap()))
        });
        (result.map_err(|e| e.kind()), asked)
    };
    let (default, bad) = (RecoveryType::Default, Err(Kind::DbMismatch));
    assert_eq!(check(default, None, None, ""), (Ok(()), vec![]));
    assert_eq!(check(default, None, Some(2), ""), (Ok(()), vec![]));
    assert_eq!(check(default, None, Some(3), "2\t0/100\tx"), (Ok(()), vec![3]));
    assert_eq!(check(default, Some("latest"), Some(3), "2\t0/FF\tx"), (bad, vec![3]));
    assert_eq!(check(default, None, Some(3), "1\t0/FF\tx"), (Err(Kind::DbMismatch), vec![3]));
    assert_eq!(check(default, Some("current"), Some(3), ""), (Ok(()), vec![]));
    assert_eq!(check(RecoveryType::Immediate, None, Some(3), ""), (Ok(()), vec![]));
    assert_eq!(check(RecoveryType::None, None, Some(3), ""), (Ok(()), vec![]));
    assert_eq!(check(default, Some("0x5"), Some(3), "2\t0/100\tx"), (Ok(()), vec![5]));
    assert_eq!(check(default, Some("8"), Some(3), ""), (Err(Kind::DbMismatch), vec![8]));
}
