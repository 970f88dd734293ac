//! Repositories in which something cannot be read: what can be read is used, and if nothing fits, the next repository.

use super::*;
use crate::Kind;
use crate::restore::choose_backup;
use crate::restore::recovery::{RecoveryOptions, RecoveryType};
use pgkeep_formats::repo::layout;

const OLD: &str = "20240101-000000F";
const NEW: &str = "20240102-000000F";
const OTHER: &str = "20231231-000000F";

/// Two backups in the first repository, an older one in the second.
fn two() -> (Rig, MemoryStore, Arc<Repository>) {
    let rig = Rig::with_tree();
    rig.back_up(&TreeOptions::new(OLD));
    rig.back_up(&TreeOptions { stop: 1_700_001_000, seed: 2, ..TreeOptions::new(NEW) });
    let store = MemoryStore::new();
    let options = OpenOptions { key: 2, ..open_options(&rig.room.path().join("cache3")) };
    let second = Arc::new(Repository::create(Arc::new(store.clone()), options, 0).unwrap());
    back_up_tree(&second, STANZA, &rig.source(), &TreeOptions { stop: 1_690_000_000, ..TreeOptions::new(OTHER) })
        .unwrap();
    (rig, store, second)
}

fn restore_from(repositories: &[Arc<Repository>], options: &RestoreOptions) -> Result<RestoreReport> {
    let env = Env { observer: &Silent, cancel: &Cancel::default(), clock: &SystemClock };
    run(repositories, options, &env)
}

fn flip(store: &MemoryStore, key: &str) {
    assert!(store.tamper(key, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }));
}

fn record_of(rig: &Rig, label: &str) -> String {
    let backups = rig.repository.backups(STANZA).unwrap();
    layout::backup(STANZA, backups.iter().find(|b| b.label == label).unwrap().session)
}

#[test]
fn what_can_be_read_is_used_and_strays_are_not_ours() {
    let (rig, _, second) = two();
    let all = [Arc::clone(&rig.repository), second];
    for stray in ["README", ".nfs000000000000000100000001", "0123"] {
        for prefix in [layout::backups(STANZA), layout::stanza_histories(STANZA)] {
            rig.store.put_if_absent(&format!("{prefix}{stray}"), b"not ours").unwrap();
        }
    }
    assert_eq!(restore_from(&all, &rig.options()).unwrap().label, NEW);
    let (new, old) = (record_of(&rig, NEW), record_of(&rig, OLD));
    flip(&rig.store, &new);
    let again = RestoreOptions { delta: true, ..rig.options() };
    assert_eq!(restore_from(&all, &again).unwrap().label, OLD);
    let named = RestoreOptions { set: Some(NEW.to_owned()), ..again.clone() };
    let error = restore_from(&all, &named).unwrap_err();
    assert_eq!(error.kind(), Kind::BackupSetInvalid);
    assert!(error.to_string().contains(&new), "{error}");
    flip(&rig.store, &old);
    assert_eq!(restore_from(&all, &again).unwrap().label, OTHER);
    assert_same(&rig.source(), &rig.target());
    // Alone, it says what it could not read.
    let error = restore_from(&all[..1], &again).unwrap_err();
    assert!(error.kind() == Kind::BackupSetInvalid && error.to_string().contains("2 records"), "{error}");
}

#[test]
fn a_repository_that_cannot_be_read_is_passed_over() {
    let (rig, _, second) = two();
    let all = [Arc::clone(&rig.repository), second];
    let whole = rig.store.snapshot();
    let again = RestoreOptions { delta: true, ..rig.options() };
    restore_from(&all, &rig.options()).unwrap();
    for prefix in ["gen/", "idx/"] {
        rig.store.restore(&whole);
        let names: Vec<String> = whole.keys().filter(|k| k.starts_with(prefix)).map(str::to_owned).collect();
        names.iter().for_each(|name| flip(&rig.store, name));
        let fresh = [rig.reopened(Arc::new(rig.store.clone())), Arc::clone(&all[1])];
        assert_eq!(restore_from(&fresh, &again).unwrap().label, OTHER, "{prefix}");
        let alone = restore_from(&fresh[..1], &again).unwrap_err();
        assert!(matches!(alone.kind(), Kind::Checksum | Kind::Format), "{prefix}: {alone}");
        // A set that only the first has: what keeps it from being read is the answer.
        let named = RestoreOptions { set: Some(NEW.to_owned()), ..again.clone() };
        let error = restore_from(&fresh, &named).unwrap_err();
        assert!(matches!(error.kind(), Kind::Checksum | Kind::Format | Kind::BackupSetInvalid), "{prefix}: {error}");
        assert!(error.chain().contains(prefix), "{prefix}: {}", error.chain());
        let cache = rig.room.path().join("cache2");
        if cache.exists() {
            std::fs::remove_dir_all(cache).unwrap();
        }
    }
}

#[test]
fn a_time_without_a_zone_reaches_the_server_with_the_offset_it_was_taken_with() {
    let (rig, ..) = two();
    let choose = |kind, target: &str, zone: jiff::tz::TimeZone| {
        let recovery = RecoveryOptions { target: Some(target.to_owned()), ..RecoveryOptions::of(kind) };
        let options = RestoreOptions { recovery, time_zone: zone, ..rig.options() };
        let choice = choose_backup(std::slice::from_ref(&rig.repository), &options).unwrap();
        (choice.backup.label, choice.recovery.target.unwrap())
    };
    let east = || jiff::tz::TimeZone::fixed(jiff::tz::offset(2));
    // The first ended at 22:13:20 UTC, the second 1000 seconds later.
    let time = RecoveryType::Time;
    let of = |text: &str| (OLD.to_owned(), text.to_owned());
    assert_eq!(choose(time, "2023-11-14 22:20:00", jiff::tz::TimeZone::UTC), of("2023-11-14 22:20:00+00:00"));
    assert_eq!(choose(time, "2023-11-15 00:20:00.25", east()), of("2023-11-15 00:20:00.25+02:00"));
    assert_eq!(choose(time, "2023-11-14 22:20:00Z", east()), of("2023-11-14 22:20:00Z"));
    assert_eq!(choose(time, "2023-11-15 00:20:00+02", jiff::tz::TimeZone::UTC), of("2023-11-15 00:20:00+02"));
}
