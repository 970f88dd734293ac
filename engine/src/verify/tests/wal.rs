//! Archived files that are damaged, foreign or missing.

use super::fixture::{ARCHIVE, Repo, STANZA, all, files, needs, segment, segment_name};
use crate::store::Store;
use crate::verify::{BackupProblem, Flaw, GapKind, VerifyOptions, WindowHit};
use pgkeep_formats::repo::layout;

/// A backup that needs segments 2 and 3, and WAL from 1 to 6.
fn made() -> Repo {
    let repo = Repo::new();
    repo.backup(STANZA, "20240101-000000F", &files(1), needs((1, 2), 3));
    (1..=6).for_each(|n| repo.wal(1, n));
    repo
}

fn object(number: u64) -> String {
    layout::wal(STANZA, ARCHIVE, &segment_name(1, number))
}

#[test]
fn a_whole_archive_is_clean() {
    let repo = made();
    repo.archive(&format!("{}.00000028.backup", segment_name(1, 2)), b"START WAL LOCATION: ...\n");
    repo.archive(&format!("{}.partial", segment_name(1, 7)), b"whatever");
    let report = repo.verify();
    assert!(report.is_clean() && report.warnings.is_empty(), "{report:#?}");
    assert_eq!(report.counts.wal_files, 8);
    assert_eq!(report.gaps, []);
}

#[test]
fn a_segment_a_backup_needs_is_its_problem_and_later_ones_end_its_window() {
    for damage in [false, true] {
        let repo = made();
        for n in [3, 5] {
            match damage {
                true => assert!(repo.store.tamper(&object(n), |b| b[260] ^= 1)),
                false => repo.store.delete(&object(n)).unwrap(),
            }
        }
        let report = repo.verify();
        assert!(!report.is_clean());
        let (name3, name5) = (segment_name(1, 3), segment_name(1, 5));
        let problem = BackupProblem::Wal { first: name3.clone(), last: name3.clone() };
        assert_eq!(report.backups[0].problems, [problem]);
        let window = WindowHit { timeline: 1, reaches: segment_name(1, 4), resumes: segment_name(1, 6) };
        assert_eq!(report.backups[0].windows, [window]);
        let gaps: Vec<_> = report.gaps.iter().map(|g| (g.first.clone(), g.segments, g.kind)).collect();
        assert_eq!(gaps, [(name3, 1, GapKind::Needed), (name5, 1, GapKind::Lost)]);
        let damaged: Vec<_> = report.damage.iter().map(|d| (d.object.clone(), d.flaw)).collect();
        match damage {
            true => assert_eq!(damaged, [(object(3), Flaw::Damaged), (object(5), Flaw::Damaged)]),
            false => assert_eq!(damaged, []),
        }
    }
}

#[test]
fn a_backup_without_any_wal_is_hit() {
    let repo = Repo::new();
    repo.backup(STANZA, "20240101-000000F", &files(1), needs((1, 2), 3));
    let report = repo.verify();
    let problem = BackupProblem::Wal { first: segment_name(1, 2), last: segment_name(1, 3) };
    assert_eq!(report.backups[0].problems, [problem]);
}

#[test]
fn a_segment_under_another_name_or_of_another_cluster_is_found() {
    let repo = made();
    repo.archive(&segment_name(1, 7), &segment(1, 8));
    let mut foreign = segment(1, 8);
    foreign[24] ^= 1;
    repo.archive(&segment_name(1, 8), &foreign);
    repo.archive(&segment_name(1, 9), &segment(1, 9)[..1 << 19]);
    repo.archive(&segment_name(1, 10), b"no WAL");
    let report = repo.verify();
    let damaged: Vec<_> = report.damage.iter().map(|d| d.object.clone()).collect();
    let mut expected: Vec<_> = (7..=10).map(object).collect();
    expected.sort();
    assert_eq!(damaged, expected, "{:#?}", report.damage);
    // Behind the last whole segment there is nothing to reach, so nothing is lost.
    assert_eq!(report.gaps, []);
}

#[test]
fn a_timeline_needs_its_history() {
    let repo = made();
    repo.wal(2, 6);
    repo.wal(2, 7);
    let report = repo.verify();
    let history = layout::wal(STANZA, ARCHIVE, "00000002.history");
    assert_eq!(
        report.damage.iter().map(|d| (d.object.as_str(), d.flaw)).collect::<Vec<_>>(),
        [(&*history, Flaw::Missing)]
    );
    repo.archive("00000002.history", b"1\t0/600100\tno recovery target specified\n");
    assert!(repo.verify().is_clean());
    // On the way to timeline 2 segment 5 is read from timeline 1.
    repo.store.delete(&object(5)).unwrap();
    let report = repo.verify();
    let window = |timeline| WindowHit { timeline, reaches: segment_name(1, 4), resumes: segment_name(timeline, 6) };
    assert_eq!(report.backups[0].windows, [window(1), window(2)]);
    repo.archive("00000003.history", b"not a history\n");
    assert!(repo.verify().damage.iter().any(|d| d.object.ends_with("00000003.history")));
}

#[test]
fn with_one_backup_only_the_wal_it_needs_is_read() {
    let repo = made();
    repo.store.tamper(&object(1), |b| b[260] ^= 1);
    repo.store.delete(&object(5)).unwrap();
    let one = VerifyOptions { set: Some("20240101-000000F"), ..all() };
    let report = repo.try_verify(&one).unwrap();
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(report.counts.wal_files, 2);
    repo.store.delete(&object(2)).unwrap();
    assert!(!repo.try_verify(&one).unwrap().is_clean());
}
