//! What a restore refuses, before it has changed anything.

use super::*;
use crate::Kind;
use crate::restore::Mode;
use crate::restore::recovery::{RecoveryOptions, RecoveryType};
use std::os::unix::fs::symlink;

fn ready() -> Rig {
    let rig = Rig::with_tree();
    rig.back_up(&TreeOptions::new("20240101-000000F"));
    rig
}

#[track_caller]
fn refused(rig: &Rig, options: &RestoreOptions, kind: Kind) -> String {
    let before = rig.target().exists().then(|| facts(&rig.target()));
    let error = rig.restore(options).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(before, rig.target().exists().then(|| facts(&rig.target())), "the target was touched");
    error.to_string()
}

#[test]
fn a_directory_with_files_needs_delta_or_force_and_must_look_like_a_cluster() {
    let rig = ready();
    put(&rig.target().join("letters/to mother"), b"dear");
    let (plain, delta) = (rig.options(), RestoreOptions { delta: true, ..rig.options() });
    let force = RestoreOptions { force: true, ..rig.options() };
    for options in [&plain, &delta, &force] {
        refused(&rig, options, Kind::PathNotEmpty);
    }
    put(&rig.target().join("PG_VERSION"), b"15\n");
    refused(&rig, &plain, Kind::PathNotEmpty);
    let report = rig.restore(&delta).unwrap();
    assert_eq!((report.plan.mode, report.removed), (Mode::Delta, 1));
    assert_same(&rig.source(), &rig.target());
}

#[test]
fn a_directory_somebody_may_run_on_is_left_alone() {
    let rig = ready();
    put(&rig.target().join("PG_VERSION"), b"15\n");
    put(&rig.target().join("postmaster.pid"), format!("{}\n", std::process::id()).as_bytes());
    let text = refused(&rig, &RestoreOptions { delta: true, ..rig.options() }, Kind::PostgresRunning);
    assert!(text.contains("may be running"), "{text}");
}

#[test]
fn targets_that_are_no_directories_are_refused() {
    let rig = ready();
    put(&rig.target(), b"a file");
    let error = rig.restore(&rig.options()).unwrap_err();
    assert_eq!(error.kind(), Kind::PathOpen);
    let relative = RestoreOptions { target: "data".into(), ..rig.options() };
    assert_eq!(rig.restore(&relative).unwrap_err().kind(), Kind::OptionInvalidValue);
}

#[test]
fn a_dry_run_plans_and_changes_nothing() {
    let rig = ready();
    let dry = RestoreOptions { dry_run: true, ..rig.options() };
    let report = rig.restore(&dry).unwrap();
    assert_eq!((report.plan.files, report.plan.files_present, report.plan.mode), (6, 0, Mode::Empty));
    assert!(!rig.target().exists());
    rig.restore(&rig.options()).unwrap();
    put(&rig.target().join("base/5/extra"), b"x");
    let before = facts(&rig.target());
    let report = rig.restore(&RestoreOptions { delta: true, ..dry }).unwrap();
    assert_eq!(report.plan.removals.len(), 1);
    assert_eq!((report.plan.files_present, report.written), (6, 0));
    assert_eq!(before, facts(&rig.target()));
}

#[test]
fn unknown_sets_and_stanzas_without_backups_are_refused() {
    let rig = ready();
    let set = RestoreOptions { set: Some("20990101-000000F".to_owned()), ..rig.options() };
    refused(&rig, &set, Kind::BackupSetInvalid);
    let other = RestoreOptions { stanza: "other".to_owned(), ..rig.options() };
    refused(&rig, &other, Kind::BackupSetInvalid);
    let recovery = RecoveryOptions::of(RecoveryType::Time);
    refused(&rig, &RestoreOptions { recovery, ..rig.options() }, Kind::OptionRequired);
}

#[test]
fn links_in_the_target_lead_nowhere() {
    let rig = ready();
    let outside = rig.room.path().join("outside");
    put(&outside.join("5/1259"), b"not yours");
    put(&rig.target().join("PG_VERSION"), b"15\n");
    symlink(&outside, rig.target().join("base")).unwrap();
    symlink(outside.join("5/1259"), rig.target().join("empty")).unwrap();
    symlink(&outside, rig.target().join("global")).unwrap();
    let before = facts(&outside);
    rig.restore(&RestoreOptions { delta: true, ..rig.options() }).unwrap();
    assert_same(&rig.source(), &rig.target());
    assert_eq!(before, facts(&outside));
}

#[test]
fn one_restore_at_a_time() {
    let rig = ready();
    let lock_path = Some(rig.room.path().join("lock"));
    let options = RestoreOptions { lock_path, exec_id: "1-abc".to_owned(), ..rig.options() };
    let name =
        crate::lock::LockName { stanza: STANZA.to_owned(), lock_type: crate::lock::LockType::Restore, repo_key: 1 };
    let held = crate::lock::Lock::acquire(&rig.room.path().join("lock"), &name, "2-def").unwrap();
    refused(&rig, &options, Kind::LockAcquire);
    drop(held);
    rig.restore(&options).unwrap();
}
