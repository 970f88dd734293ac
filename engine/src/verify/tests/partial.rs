//! A part of what there is: drawn at random, not read lately, or without any key.

use super::fixture::{Repo, all, files};
use crate::observe::{Cancel, Silent};
use crate::store::Store;
use crate::verify::{Flaw, VerifyOptions, VerifyReport, scrub};
use pgkeep_formats::repo::layout;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Six backups that share nothing, and some WAL.
fn made() -> Repo {
    let repo = Repo::cached();
    for n in 0..6_u8 {
        repo.backup("demo", &format!("2024010{}-000000F", n + 1), &files(10 * n), |_| ());
    }
    (1..=20).for_each(|n| repo.wal(1, n));
    repo
}

fn at(days: u32, older_than: Option<Duration>) -> VerifyOptions<'static> {
    VerifyOptions { now: 20_000 * DAY + days * DAY, older_than, ..all() }
}

fn read(report: &VerifyReport) -> (u64, u64, u64, u64) {
    let c = report.counts;
    (c.packs, c.unread_packs, c.wal_files, c.unread_wal)
}

#[test]
fn a_sample_reads_some_and_sees_that_the_rest_is_there() {
    let repo = made();
    let packs = repo.keys("packs/").len() as u64;
    let sample = |seed| VerifyOptions { sample: Some(40), seed, ..at(0, None) };
    let (mut drawn, mut found) = (0, false);
    let pack = repo.keys("packs/")[0].clone();
    repo.store.tamper(&pack, |b| b[40] ^= 1);
    for seed in 0..12 {
        let report = repo.try_verify(&sample(seed)).unwrap();
        let (some, others, wal, no_wal) = read(&report);
        assert_eq!((some + others, wal + no_wal), (packs, 20));
        drawn += some;
        found |= report.damage.iter().any(|d| d.object == pack);
    }
    assert!(drawn > packs * 12 / 5 && drawn < packs * 12 * 3 / 5, "{drawn} of {} were drawn", packs * 12);
    assert!(found, "twelve times four of ten do not miss it");
    // What is cut short or gone is found without being read.
    let repo = made();
    let keys = repo.keys("packs/");
    let none = VerifyOptions { sample: Some(1), seed: 1, ..at(0, None) };
    let report = repo.try_verify(&none).unwrap();
    assert!(report.is_clean() && report.counts.packs > 0, "one at least is read");
    let (mut cut, mut gone) = (0, 0);
    for key in &keys {
        let whole = repo.store.snapshot();
        repo.store.tamper(key, |b| b.truncate(b.len() - 1));
        cut += u32::from(!repo.try_verify(&none).unwrap().is_clean());
        repo.store.delete(key).unwrap();
        gone += u32::from(!repo.try_verify(&none).unwrap().is_clean());
        repo.store.restore(&whole);
    }
    assert_eq!((cut, gone), (keys.len() as u32, keys.len() as u32));
}

#[test]
fn what_was_read_lately_is_left_out_until_it_is_old() {
    let repo = made();
    let packs = repo.keys("packs/").len() as u64;
    assert_eq!(read(&repo.try_verify(&at(0, Some(7 * DAY))).unwrap()), (packs, 0, 20, 0));
    repo.wal(1, 21);
    assert_eq!(read(&repo.try_verify(&at(3, Some(7 * DAY))).unwrap()), (0, packs, 1, 20));
    assert_eq!(read(&repo.try_verify(&at(8, Some(7 * DAY))).unwrap()), (packs, 0, 20, 1));
    // Without the option everything is read, and that counts too.
    assert_eq!(read(&repo.try_verify(&at(20, None)).unwrap()), (packs, 0, 21, 0));
    assert_eq!(read(&repo.try_verify(&at(21, Some(7 * DAY))).unwrap()), (0, packs, 0, 21));
    // A clock that went back, and a record that is damaged: then it is read.
    assert_eq!(read(&repo.try_verify(&at(1, Some(7 * DAY))).unwrap()), (packs, 0, 21, 0));
    let file = repo.open().cache().unwrap().join("verified");
    std::fs::write(&file, "nonsense").unwrap();
    assert_eq!(read(&repo.try_verify(&at(1, Some(7 * DAY))).unwrap()), (packs, 0, 21, 0));
}

#[test]
fn damage_is_not_taken_for_read() {
    let repo = made();
    let pack = repo.keys("packs/")[2].clone();
    let wal = layout::wal("demo", "15-1", &super::fixture::segment_name(1, 7));
    for key in [&pack, &wal] {
        repo.store.tamper(key, |b| b[60] ^= 1);
    }
    for _ in 0..2 {
        let report = repo.try_verify(&at(0, Some(7 * DAY))).unwrap();
        for key in [&pack, &wal] {
            assert!(report.damage.iter().any(|d| d.object == *key), "{key}: {report:#?}");
        }
    }
}

#[test]
fn packs_are_scrubbed_without_a_key() {
    let repo = made();
    let run = || scrub(&repo.store, 2, &Silent, &Cancel::default()).unwrap();
    let report = run();
    assert!(report.is_clean(), "{report:#?}");
    let keys = repo.keys("packs/");
    assert_eq!(report.counts.packs, keys.len() as u64);
    repo.store.tamper(&keys[1], |b| b[7] ^= 1);
    repo.store.put_if_absent("packs/aa/readme", b"x").unwrap();
    let report = run();
    assert_eq!(report.damage.len(), 1);
    assert_eq!((report.damage[0].object.as_str(), report.damage[0].flaw), (keys[1].as_str(), Flaw::Damaged));
    assert_eq!(report.warnings.len(), 1);
}
