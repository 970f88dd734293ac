//! Rules one by one, all of them together on random histories, and the run against stores in memory.

use super::rules::{Situation, decide};
use super::*;
use crate::clock::SystemClock;
use crate::crypto::Unlock;
use crate::observe::Silent;
use crate::pg::ClusterIdentity;
use crate::repository::testing::{CLUSTER, commit, committed, in_memory, on, session};
use crate::repository::wal::WalFile;
use crate::repository::{Needs, OpenOptions};
use crate::stanza::{RepoTarget, upgrade};
use crate::store::{Depth, Listed, MemoryStore, Put, Range, Store, StoreError};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::records::{Commit, Note, PINNED_FOR_EVER};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// 2026-01-05 00:00 UTC, a Monday.
const MONDAY: i64 = 1_767_571_200;
const ARCHIVE: &str = "15-1";

fn segment(number: u32) -> String {
    format!("00000001{:016X}", number)
}

/// Backups from a text such as `F1 D2 I3`: types and days. Each needs two segments, ten a day.
fn history(text: &str) -> Vec<Backup> {
    let repository = in_memory("demo");
    text.split_whitespace().map(|word| committed(&repository, "demo", described(word, text))).collect()
}

/// What makes a record the one of a word of a history.
fn described<'a>(word: &'a str, text: &'a str) -> impl FnOnce(&mut Commit) + 'a {
    move |c| {
        let day = |w: &str| w[1..].parse::<u32>().unwrap();
        let before = |kinds: &'a str| {
            let words = text.split_whitespace().take_while(move |w| *w != word);
            words.filter(move |w| kinds.contains(&w[..1])).last()
        };
        let full = before("F").unwrap_or(word);
        let label = |w: &str, full: &str| match &w[..1] {
            "F" => format!("202601{:02}-000000F", day(w)),
            kind => format!("202601{:02}-000000F_202601{:02}-000000{kind}", day(full), day(w)),
        };
        c.label = label(word, full);
        let at = MONDAY + i64::from(day(word)) * DAY;
        (c.start, c.stop) = (at - HOUR, at);
        c.wal = Some((segment(day(word) * 10), segment(day(word) * 10 + 1)));
        let (kind, prior) = match &word[..1] {
            "F" => return,
            "D" => (BackupType::Diff, full),
            _ => (BackupType::Incr, before("FDI").unwrap()),
        };
        c.backup_type = kind;
        c.prior = Some(label(prior, full));
        c.reference = vec![label(full, full)];
        // An incremental depends on all since its differential.
        if kind == BackupType::Incr {
            let words: Vec<&str> = text.split_whitespace().take_while(|w| *w != word).collect();
            let since = words.iter().rposition(|w| !w.starts_with('I')).unwrap();
            c.reference.extend(words[since..].iter().filter(|w| !w.starts_with('F')).map(|w| label(w, full)));
        }
    }
}

/// The words of the backups that stay.
fn stay(text: &str, retention: &Retention, ask: Ask<'_>, now_day: i64) -> String {
    let backups = history(text);
    let notes = BTreeMap::new();
    let now = MONDAY + now_day * DAY;
    let situation = Situation { backups: &backups, notes: &notes, now, zone: &TimeZone::UTC };
    let fates = decide(&situation, retention, ask);
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words.len(), fates.len());
    words.into_iter().zip(fates).filter(|(_, fate)| fate.stays()).map(|(w, _)| w).collect::<Vec<_>>().join(" ")
}

fn count(full: u32) -> Retention {
    Retention { full: Some(FullRetention::Count(full)), ..Retention::default() }
}

#[test]
fn fulls_are_counted_and_take_what_depends_on_them() {
    let text = "F1 D2 I3 F4 I5 F6 D7";
    assert_eq!(stay(text, &count(2), Ask::Rules, 8), "F4 I5 F6 D7");
    assert_eq!(stay(text, &count(1), Ask::Rules, 8), "F6 D7");
    assert_eq!(stay(text, &count(3), Ask::Rules, 8), text);
    assert_eq!(stay(text, &Retention::default(), Ask::Rules, 8), text);
    let spare = Retention { spare_dependents: true, ..count(1) };
    assert_eq!(stay(text, &spare, Ask::Rules, 8), "D2 I3 I5 F6 D7");
}

#[test]
fn what_was_copied_without_its_full_goes_when_that_would_have_gone() {
    let orphans = |retention: &Retention, now_day: i64| {
        let text = "F1 I2 F4 I5 F6";
        let backups: Vec<Backup> = history(text).into_iter().filter(|b| b.label != "20260101-000000F").collect();
        let now = MONDAY + now_day * DAY;
        let situation = Situation { backups: &backups, notes: &BTreeMap::new(), now, zone: &TimeZone::UTC };
        decide(&situation, retention, Ask::Rules).first().is_some_and(Fate::stays)
    };
    let days = |n| Retention { full: Some(FullRetention::Days(n)), ..Retention::default() };
    assert!(orphans(&count(3), 7) && !orphans(&count(2), 7) && !orphans(&count(1), 7));
    assert!(orphans(&days(4), 7) && !orphans(&days(2), 7));
    assert!(orphans(&Retention { spare_dependents: true, ..count(1) }, 7));
}

#[test]
fn days_keep_the_newest_full_that_is_older() {
    let days = |n| Retention { full: Some(FullRetention::Days(n)), ..Retention::default() };
    assert_eq!(stay("F1 I2 F3 I4 F5", &days(3), Ask::Rules, 7), "F3 I4 F5");
    assert_eq!(stay("F1 I2 F3 I4 F5", &days(1), Ask::Rules, 7), "F5");
    assert_eq!(stay("F1 I2 F3 I4 F5", &days(7), Ask::Rules, 7), "F1 I2 F3 I4 F5");
    // Nobody is old enough to be relied on.
    assert_eq!(stay("F5 I6", &days(3), Ask::Rules, 7), "F5 I6");
}

#[test]
fn differentials_are_counted_with_fulls() {
    let diff = |n| Retention { diff: Some(n), ..Retention::default() };
    assert_eq!(stay("F1 D2 D3 F4", &diff(2), Ask::Rules, 8), "F1 D3 F4");
    assert_eq!(stay("F1 D2 I3 D4 I5", &diff(1), Ask::Rules, 8), "F1 D4 I5");
    assert_eq!(stay("F1 I2 D3 I4 D5", &diff(1), Ask::Rules, 8), "F1 I2 D5");
    let both = Retention { diff: Some(1), ..count(1) };
    assert_eq!(stay("F1 D2 F3 D4 D5", &both, Ask::Rules, 8), "F3 D5");
}

#[test]
fn rules_that_keep_look_at_each_backup_alone() {
    let keep = |list: &[(Period, u32)]| Retention { keep: list.iter().copied().collect(), ..Retention::default() };
    let text = "F1 I2 I3 F4 I5 I6 F8 I9";
    assert_eq!(stay(text, &keep(&[(Period::Last, 2)]), Ask::Rules, 10), "F8 I9");
    // An incremental stays without its full.
    assert_eq!(stay(text, &keep(&[(Period::Last, 4)]), Ask::Rules, 10), "I5 I6 F8 I9");
    // Weeks begin on days 0 and 7.
    assert_eq!(stay(text, &keep(&[(Period::Weekly, 2)]), Ask::Rules, 10), "I6 I9");
    assert_eq!(stay(text, &keep(&[(Period::Weekly, 2), (Period::Last, 2)]), Ask::Rules, 10), "I6 F8 I9");
    // What either family keeps, stays.
    let both = Retention { full: Some(FullRetention::Count(1)), ..keep(&[(Period::Weekly, 2)]) };
    assert_eq!(stay(text, &both, Ask::Rules, 10), "I6 F8 I9");
    let window = |days| Retention { policy: Some(Policy::Window(days * DAY)), ..Retention::default() };
    assert_eq!(stay(text, &window(3), Ask::Rules, 10), "I6 F8 I9");
    assert_eq!(stay(text, &window(60), Ask::Rules, 10), text);
    let redundant = Retention { policy: Some(Policy::Redundancy(3)), minimum: 5, ..Retention::default() };
    assert_eq!(stay(text, &redundant, Ask::Rules, 10), "F4 I5 I6 F8 I9");
}

#[test]
fn what_is_asked_for_goes_with_what_depends_on_it() {
    let text = "F1 D2 I3 I4 D5 F6";
    let label = |n: usize| history(text)[n].label.clone();
    assert_eq!(stay(text, &count(1), Ask::Set(&label(2)), 8), "F1 D2 D5 F6");
    assert_eq!(stay(text, &count(1), Ask::Set(&label(1)), 8), "F1 D5 F6");
    assert_eq!(stay(text, &count(1), Ask::Set(&label(0)), 8), "F6");
    assert_eq!(stay(text, &count(1), Ask::WalBefore(&segment(1)), 8), text);
    assert_eq!(stay("F1 I2 F3 F4", &Retention::default(), Ask::Oldest, 8), "F3 F4");
}

/// A repository with the history's backups, and the segments from day 0 to that after the last.
fn repository(text: &str) -> Arc<Repository> {
    filled(in_memory("demo"), text)
}

fn filled(repository: Arc<Repository>, text: &str) -> Arc<Repository> {
    for word in text.split_whitespace() {
        committed(&repository, "demo", described(word, text));
    }
    let last = text.split_whitespace().map(|w| w[1..].parse::<u32>().unwrap()).max().unwrap();
    for number in 0..(last + 1) * 10 {
        archive(&repository, ARCHIVE, &segment(number));
    }
    repository
}

fn archive(repository: &Repository, archive_id: &str, name: &str) {
    let file = WalFile::encode(name.as_bytes(), 1).unwrap();
    repository.wal_put("demo", archive_id, name, &file).unwrap();
}

fn archived(repository: &Repository, archive_id: &str) -> Vec<String> {
    let mut names = Vec::new();
    let range = crate::repository::wal::WalRange::default();
    let mut each = |entry: crate::repository::wal::WalEntry| {
        names.push(entry.name);
        Ok(())
    };
    repository.wal_list("demo", archive_id, range, &mut each).unwrap();
    names
}

fn numbers(names: &[String]) -> Vec<u32> {
    names.iter().map(|n| u32::from_str_radix(&n[8..24], 16).unwrap()).collect()
}

static UTC: TimeZone = TimeZone::UTC;

fn options<'a>(retention: &'a Retention, ask: Ask<'a>) -> ExpireOptions<'a> {
    ExpireOptions { stanza: "demo", retention, ask, force: false, dry_run: false, zone: &UTC }
}

fn expire(repository: &Repository, options: &ExpireOptions<'_>) -> Result<ExpireReport> {
    run(repository, options, &Silent, &Cancel::default(), &SystemClock)
}

#[test]
fn wal_goes_before_the_window_but_for_what_older_backups_need() {
    let text = "F1 I2 F3 I4 F5";
    let dry = repository(text);
    let retention = Retention { archive: Some(1), ..count(2) };
    let report = expire(&dry, &ExpireOptions { dry_run: true, ..options(&retention, Ask::Rules) }).unwrap();
    assert_eq!(report.expired().count(), 2);
    assert_eq!(report.archives[0].removed.files, 46);
    assert_eq!(archived(&dry, ARCHIVE).len(), 60);
    assert_eq!(dry.backups("demo").unwrap().len(), 5);

    let repository = repository(text);
    let done = expire(&repository, &options(&retention, Ask::Rules)).unwrap();
    assert_eq!(done.archives[0].removed, report.archives[0].removed);
    let expected: Vec<u32> = [30, 31, 40, 41].into_iter().chain(50..60).collect();
    assert_eq!(numbers(&archived(&repository, ARCHIVE)), expected);
    let runs = [(0, 29), (32, 39), (42, 49)].map(|(a, b)| (segment(a), segment(b)));
    assert_eq!(done.archives[0].removed.runs, runs);
    assert_eq!(repository.backups("demo").unwrap().len(), 3);
    // Again: nothing is left to do.
    let again = expire(&repository, &options(&retention, Ask::Rules)).unwrap();
    assert_eq!((again.expired().count(), again.archives[0].removed.files), (0, 0));
}

#[test]
fn without_retention_for_the_archive_wal_is_kept_since_the_oldest_full() {
    let repository = repository("F1 I2 F3 I4 F5");
    expire(&repository, &options(&count(2), Ask::Rules)).unwrap();
    assert_eq!(numbers(&archived(&repository, ARCHIVE)), (30..60).collect::<Vec<_>>());
    // Too few to count: nothing goes.
    let more = expire(&repository, &options(&count(4), Ask::Rules)).unwrap();
    assert_eq!(
        more.archives[0].keep,
        WalKeep::All(WhyAll::TooFewBackups { of: BackupType::Full, found: 2, wanted: 4 })
    );
    let incr = Retention { archive_type: Some(BackupType::Incr), ..count(2) };
    let none = expire(&repository, &options(&incr, Ask::Rules)).unwrap();
    assert_eq!(none.archives[0].keep, WalKeep::All(WhyAll::NotConfigured));
    expire(&repository, &options(&Retention { archive: Some(1), ..incr }, Ask::Rules)).unwrap();
    let left: Vec<u32> = [30, 31, 40, 41].into_iter().chain(50..60).collect();
    assert_eq!(numbers(&archived(&repository, ARCHIVE)), left);
}

#[test]
fn only_wal_before_a_segment_goes_if_that_is_asked_for() {
    let repository = repository("F1 F3 F5");
    let report = expire(&repository, &options(&count(1), Ask::WalBefore(&segment(44)))).unwrap();
    assert_eq!(report.expired().count(), 0);
    let left: Vec<u32> = [10, 11, 30, 31].into_iter().chain(44..60).collect();
    assert_eq!(numbers(&archived(&repository, ARCHIVE)), left);
    // What a backup may have begun to need since is behind the newest one.
    expire(&repository, &options(&count(1), Ask::WalBefore(&"00000002".repeat(3)))).unwrap();
    let left: Vec<u32> = [10, 11, 30, 31].into_iter().chain(50..60).collect();
    assert_eq!(numbers(&archived(&repository, ARCHIVE)), left);
    let bad = expire(&repository, &options(&count(1), Ask::WalBefore("44"))).unwrap_err();
    assert_eq!(bad.kind(), Kind::OptionInvalidValue);
}

#[test]
fn a_former_clusters_archive_goes_with_its_last_backup() {
    let store = MemoryStore::new();
    let repository = on(&store, "demo");
    for word in ["F1", "F3"] {
        committed(&repository, "demo", described(word, "F1 F3"));
    }
    for name in [&segment(35), "00000002.history", "000000020000000000000002.00000028.backup"] {
        archive(&repository, ARCHIVE, name);
    }
    let identity = ClusterIdentity { version: 16, system_identifier: 7002, ..CLUSTER };
    let options_ = OpenOptions { key: 1, unlock: Unlock::None, cache: None };
    let target = RepoTarget { store: Arc::new(store), options: options_ };
    upgrade(vec![target], "demo", &identity, &SystemClock).unwrap().remove(0).result.unwrap();
    archive(&repository, "16-2", &segment(1));
    // Nobody knows this one: it may be of a cluster that has just come.
    archive(&repository, "17-3", &segment(1));
    let of_new = |day: i64| {
        let change = |c: &mut Commit| {
            (c.label, c.stop) = (format!("202602{day:02}-000000F"), MONDAY + 40 * DAY + day * DAY);
            (c.version, c.history_id) = (16, 2);
            c.wal = Some((segment(1), segment(1)));
        };
        committed(&repository, "demo", change)
    };
    of_new(1);
    expire(&repository, &options(&count(2), Ask::Rules)).unwrap();
    assert_eq!(archived(&repository, ARCHIVE).len(), 3, "one backup of it is left");
    of_new(2);
    expire(&repository, &options(&count(2), Ask::Rules)).unwrap();
    assert!(archived(&repository, ARCHIVE).is_empty());
    assert_eq!((archived(&repository, "16-2").len(), archived(&repository, "17-3").len()), (1, 1));
}

#[test]
fn histories_and_foreign_files_stay_as_long_as_they_are_of_use() {
    let repository = in_memory("demo");
    for (day, timeline) in [(1, 2), (3, 3)] {
        committed(&repository, "demo", |c| {
            c.label = format!("202601{day:02}-000000F");
            c.stop = i64::from(day);
            let name = |n: u32| format!("{timeline:08X}{:016X}", n);
            c.wal = Some((name(day * 10), name(day * 10 + 1)));
        });
    }
    let names = [
        "00000002.history",
        "00000003.history",
        "00000004.history",
        "000000010000000000000005",
        "00000002000000000000000A",
        "00000002000000000000000A.00000028.backup",
        "00000002000000000000000F.partial",
        "00000003000000000000001E",
        "00000003000000000000001F.partial",
        "readme.txt",
    ];
    names.iter().for_each(|name| archive(&repository, ARCHIVE, name));
    expire(&repository, &options(&count(2), Ask::Rules)).unwrap();
    assert_eq!(archived(&repository, ARCHIVE).len(), names.len() - 1);
    expire(&repository, &options(&count(1), Ask::Rules)).unwrap();
    let mut left = archived(&repository, ARCHIVE);
    left.sort();
    let expected = [
        "00000003.history",
        "00000003000000000000001E",
        "00000003000000000000001F.partial",
        "00000004.history",
        "readme.txt",
    ];
    assert_eq!(left, expected);
}

#[test]
fn what_must_stay_is_refused_unless_forced() {
    let repository = repository("F1 I2");
    let backups = repository.backups("demo").unwrap();
    let retention = Retention { minimum: 2, ..Retention::default() };
    let ask = |n: usize| Ask::Set(&backups[n].label);
    let kind = |result: Result<ExpireReport>| result.unwrap_err().kind();
    assert_eq!(kind(expire(&repository, &options(&retention, ask(0)))), Kind::BackupSetInvalid);
    assert_eq!(kind(expire(&repository, &options(&retention, ask(1)))), Kind::BackupSetInvalid);
    assert_eq!(kind(expire(&repository, &options(&retention, Ask::Set("x")))), Kind::BackupSetInvalid);
    assert_eq!(kind(expire(&repository, &options(&retention, Ask::Oldest))), Kind::BackupSetInvalid);
    let mut pin = |note: &mut Note| {
        note.pinned_until = Some(PINNED_FOR_EVER);
        Ok(true)
    };
    repository.change_note("demo", &backups[1], &mut pin).unwrap();
    let free = Retention::default();
    assert_eq!(kind(expire(&repository, &options(&free, ask(1)))), Kind::BackupSetInvalid);
    let forced = ExpireOptions { force: true, ..options(&free, ask(1)) };
    assert_eq!(expire(&repository, &forced).unwrap().expired().count(), 1);
    assert!(repository.note("demo", backups[1].session).unwrap().is_none(), "its notes go with it");
}

#[test]
fn a_pin_keeps_a_backup_and_its_wal_only() {
    let repository = repository("F1 F3 F5");
    pin(&repository, &repository.backups("demo").unwrap()[0]);
    expire(&repository, &options(&count(1), Ask::Rules)).unwrap();
    assert_eq!(repository.backups("demo").unwrap().len(), 2);
    let left: Vec<u32> = [10, 11].into_iter().chain(50..60).collect();
    assert_eq!(numbers(&archived(&repository, ARCHIVE)), left);
}

fn pin(repository: &Repository, backup: &Backup) {
    let mut change = |note: &mut Note| {
        note.pinned_until = Some(PINNED_FOR_EVER);
        Ok(true)
    };
    repository.change_note("demo", backup, &mut change).unwrap();
}

type Act = Box<dyn FnOnce() + Send>;

/// Does something when the first object below a prefix is about to be put.
struct BeforeMarker {
    inner: Arc<MemoryStore>,
    prefix: &'static str,
    act: Mutex<Option<Act>>,
}

impl std::fmt::Debug for BeforeMarker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Store for BeforeMarker {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> std::result::Result<Put, StoreError> {
        if key.starts_with(self.prefix)
            && let Some(act) = self.act.lock().unwrap().take()
        {
            act();
        }
        self.inner.put_if_absent(key, bytes)
    }

    fn get(&self, key: &str, range: Range) -> std::result::Result<Vec<u8>, StoreError> {
        self.inner.get(key, range)
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> std::result::Result<(), StoreError> {
        self.inner.list(prefix, depth, each)
    }

    fn delete(&self, key: &str) -> std::result::Result<(), StoreError> {
        self.inner.delete(key)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[test]
fn a_pin_that_comes_when_a_marker_is_put_wins_or_is_refused() {
    // Before it was announced it wins; behind that, who pins sees what is announced, and says that it cannot be.
    for (prefix, wins) in [("expiring/", true), ("expired/", false)] {
        pinned_when(prefix, wins);
    }
}

fn pinned_when(prefix: &'static str, wins: bool) {
    let store = Arc::new(MemoryStore::new());
    let other = filled(on(&store, "demo"), "F1 F3 F5");
    let first = other.backups("demo").unwrap().remove(0);
    let late = {
        let (other, first) = (Arc::clone(&other), first.clone());
        let act = move || {
            pin(&other, &first);
            assert_eq!(other.is_expiring("demo", first.session).unwrap(), !wins);
        };
        BeforeMarker { inner: store, prefix, act: Mutex::new(Some(Box::new(act))) }
    };
    let options_of = OpenOptions { key: 1, unlock: Unlock::None, cache: None };
    let repository = Repository::open(Arc::new(late), options_of).unwrap();
    // The marker of the newest that goes is put first.
    let report = expire(&repository, &options(&count(2), Ask::Rules)).unwrap();
    assert_eq!(report.expired().count(), usize::from(!wins));
    assert_eq!(other.not_expired("demo").unwrap().contains(&first.session), wins);
    assert_eq!(numbers(&archived(&other, ARCHIVE)).starts_with(&[10, 11]), wins);
    assert!(!other.is_expiring("demo", first.session).unwrap());
}

#[test]
fn a_marker_that_nobody_with_the_key_has_made_ends_the_run_before_anything_goes() {
    let repository = repository("F1 F3 F5");
    let newest = repository.backups("demo").unwrap().pop().unwrap();
    let name = pgkeep_formats::repo::layout::expired("demo", newest.session);
    repository.store().put_if_absent(&name, b"").unwrap();
    let e = expire(&repository, &options(&count(1), Ask::Rules)).unwrap_err();
    assert!(e.chain().contains(&name), "{}", e.chain());
    assert_eq!(archived(&repository, ARCHIVE).len(), 60);
    repository.store().delete(&name).unwrap();
    expire(&repository, &options(&count(1), Ask::Rules)).unwrap();
    assert_eq!(repository.backups("demo").unwrap(), [newest]);
}

#[test]
fn the_wal_of_a_backup_that_runs_elsewhere_stays() {
    let repository = repository("F1 F3 F5");
    let retention = Retention { archive: Some(1), ..count(1) };
    let mut running = session(&repository, "demo");
    // Nobody knows yet where it begins.
    let report = expire(&repository, &options(&retention, Ask::Rules)).unwrap();
    assert!(matches!(report.archives[0].keep, WalKeep::All(WhyAll::Begun { .. })));
    assert_eq!(archived(&repository, ARCHIVE).len(), 60);
    // It began before the newest one did.
    running.needs_wal(ARCHIVE, &segment(44)).unwrap();
    expire(&repository, &options(&retention, Ask::Rules)).unwrap();
    assert_eq!(numbers(&archived(&repository, ARCHIVE)), (44..60).collect::<Vec<_>>());
    commit(running, |c| {
        c.label = "20260107-000000F".into();
        c.stop = MONDAY + 7 * DAY;
        c.wal = Some((segment(44), segment(52)));
    });
    expire(&repository, &options(&retention, Ask::Rules)).unwrap();
    assert_eq!(numbers(&archived(&repository, ARCHIVE)), (44..60).collect::<Vec<_>>());
}

/// A clock that is so many days ahead.
struct Ahead(u64);

impl Clock for Ahead {
    fn now(&self) -> std::time::Duration {
        SystemClock.now() + std::time::Duration::from_secs(self.0 * DAY as u64)
    }

    fn sleep(&self, _: std::time::Duration) {}
}

#[test]
fn a_silent_session_is_fenced_and_cannot_commit_any_more() {
    let repository = repository("F1 F3 F5");
    let silent = session(&repository, "demo");
    let report = run(&repository, &options(&count(1), Ask::Rules), &Silent, &Cancel::default(), &Ahead(4)).unwrap();
    assert_eq!(report.fenced.len(), 1);
    assert_eq!(numbers(&archived(&repository, ARCHIVE)), (50..60).collect::<Vec<_>>());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| commit(silent, |_| {})));
    assert!(outcome.is_err());
}

#[test]
fn a_record_that_cannot_be_read_ends_the_run_before_anything_goes() {
    let repository = repository("F1 F3 F5");
    let bad = repository.backups("demo").unwrap().remove(0);
    let name = pgkeep_formats::repo::layout::backup("demo", bad.session);
    repository.store().delete(&name).unwrap();
    repository.store().put_if_absent(&name, b"nonsense").unwrap();
    assert!(expire(&repository, &options(&count(1), Ask::Rules)).is_err());
    assert_eq!(archived(&repository, ARCHIVE).len(), 60);
    let mut markers = 0;
    repository.store().list("expired/", Depth::All, &mut |_| markers += 1).unwrap();
    assert_eq!(markers, 0);
}

/// A random history: one letter a day, the first a full.
fn histories() -> impl Strategy<Value = String> {
    proptest::collection::vec(0..4u8, 0..20).prop_map(|kinds| {
        let words = kinds.iter().enumerate().map(|(n, kind)| {
            let letter = match kind {
                0 => 'F',
                1 => 'D',
                _ => 'I',
            };
            format!("{letter}{}", n + 2)
        });
        std::iter::once("F1".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
    })
}

fn retentions() -> impl Strategy<Value = Retention> {
    let full = prop_oneof![
        Just(None),
        (1..5u32).prop_map(|n| Some(FullRetention::Count(n))),
        (1..15u32).prop_map(|n| Some(FullRetention::Days(n)))
    ];
    let types = prop_oneof![
        Just(None),
        Just(Some(BackupType::Full)),
        Just(Some(BackupType::Diff)),
        Just(Some(BackupType::Incr))
    ];
    let keep = proptest::collection::btree_map(proptest::sample::select(Period::ALL.to_vec()), 1..6u32, 0..3);
    let policy = prop_oneof![
        Just(None),
        (1..10i64).prop_map(|days| Some(Policy::Window(days * DAY))),
        (1..6u32).prop_map(|n| Some(Policy::Redundancy(n)))
    ];
    let (diff, archive) = (proptest::option::of(1..5u32), proptest::option::of(1..5u32));
    (full, diff, archive, types, any::<bool>(), keep, policy, 0..4u32).prop_map(
        |(full, diff, archive, archive_type, spare_dependents, keep, policy, minimum)| Retention {
            full,
            diff,
            archive,
            archive_type,
            spare_dependents,
            keep,
            policy,
            minimum,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_configured_the_newest_stays_and_nobody_lacks_wal(
        text in histories(),
        retention in retentions(),
        pinned in 0..20usize,
        running in proptest::option::of(0..200u32),
        dry in 0..25i64,
    ) {
        let backups = history(&text);
        let mut notes = BTreeMap::new();
        if let Some(backup) = backups.get(pinned) {
            let note = Note { pinned_until: Some(PINNED_FOR_EVER), ..Note::default() };
            notes.insert(backup.session, note);
        }
        let now = MONDAY + dry * DAY;
        let situation = Situation { backups: &backups, notes: &notes, now, zone: &TimeZone::UTC };
        let fates = decide(&situation, &retention, Ask::Rules);
        prop_assert!(fates.last().unwrap().stays());
        prop_assert!(fates.iter().filter(|f| f.stays()).count() >= (retention.minimum as usize).min(backups.len()));
        if let Some(fate) = fates.get(pinned) {
            prop_assert!(fate.stays());
        }
        for fate in &fates {
            if let Fate::Stays(reasons) = fate {
                prop_assert!(!reasons.is_empty());
            }
        }
        // As pgBackRest has it: who depends on a full or differential that goes, goes too.
        if !retention.keeps() && !retention.spare_dependents && retention.minimum == 0 && notes.is_empty() {
            for (backup, _) in backups.iter().zip(&fates).filter(|(b, f)| f.stays() && b.stop != backups.last().unwrap().stop) {
                for (other, fate) in backups.iter().zip(&fates) {
                    prop_assert!(fate.stays() || !backup.reference.contains(&other.label));
                }
            }
        }
        let unfinished: Vec<Unfinished> = running.iter().map(|n| Unfinished {
            session: SessionId([9; 16]),
            host: "h".into(),
            started: 0,
            last_seen: 0,
            needs: Needs::From(ARCHIVE.into(), segment(*n)),
            is_dead: false,
        }).collect();
        let history = in_memory("demo").stanza_history("demo").unwrap();
        let archives = wal::Archives { backups: &backups, fates: &fates, late: &[], unfinished: &unfinished, history: &history };
        let keep = wal::plan(&archives, ARCHIVE, &retention, Ask::Rules);
        prop_assert!(keep != WalKeep::Nothing);
        for (backup, _) in backups.iter().zip(&fates).filter(|(_, f)| f.stays()) {
            let (first, last) = backup.wal.clone().unwrap();
            prop_assert!(keep.keeps(&first) && keep.keeps(&last), "{}", backup.label);
        }
        for number in running.into_iter().flat_map(|n| n..n + 50) {
            prop_assert!(keep.keeps(&segment(number)));
        }
        // The window: from the newest backup on there is no gap.
        let newest = backups.last().unwrap().wal.clone().unwrap().0;
        let newest = u32::from_str_radix(&newest[8..], 16).unwrap();
        prop_assert!((newest..newest + 100).all(|n| keep.keeps(&segment(n))));
    }
}
