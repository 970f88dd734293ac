//! What comes back is what was there, and a delta writes only what is not.

use super::*;
use crate::restore::recovery::{RecoveryOptions, RecoveryType};
use pgkeep_formats::pg::control::{self, ControlFile};
use pgkeep_formats::pg::version::Version;
use proptest::prelude::*;
use rustix::fs::{Timespec, Timestamps};
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

#[test]
fn a_tree_comes_back_into_a_directory_that_does_not_exist() {
    let rig = Rig::with_tree();
    rig.back_up(&TreeOptions::new("20240101-000000F"));
    let report = rig.restore(&rig.options()).unwrap();
    assert_same(&rig.source(), &rig.target());
    assert_eq!((report.label.as_str(), report.plan.files), ("20240101-000000F", 6));
    assert_eq!(report.bytes, std::fs::metadata(rig.source().join("base/5/1259")).unwrap().len() + 8192 * 4 + 50_003);
}

#[test]
fn zeros_take_no_room() {
    let rig = Rig::with_tree();
    rig.file("base/5/999", &vec![0; 8 << 20]);
    rig.back_up(&TreeOptions::new("20240101-000000F"));
    rig.restore(&rig.options()).unwrap();
    let facts = std::fs::metadata(rig.target().join("base/5/999")).unwrap();
    assert_eq!(facts.len(), 8 << 20);
    assert!(facts.blocks() * 512 < 1 << 20, "{} blocks", facts.blocks());
}

#[test]
fn owners_and_modes_come_back() {
    let rig = Rig::with_tree();
    let source = rig.source();
    let mode = |path: &str, mode| {
        std::fs::set_permissions(source.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("PG_VERSION", 0o640);
    mode("pg_xact/0000", 0o400);
    mode("base/5", 0o750);
    mode("pg_xact", 0o500);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(source.join("base/5/1259"), Some(4_000_001), Some(4_000_002)).unwrap();
        std::os::unix::fs::chown(source.join("base"), Some(4_000_001), Some(0)).unwrap();
    }
    rig.back_up(&TreeOptions::new("20240101-000000F"));
    rig.restore(&rig.options()).unwrap();
    assert_same(&source, &rig.target());
    // A read-only file and a read-only directory are no obstacle to the next one.
    let xact = File::options().write(true).open(rig.target().join("pg_xact/0000"));
    if let Ok(file) = xact {
        file.write_all_at(b"changed", 17).unwrap();
    }
    rig.restore(&RestoreOptions { delta: true, ..rig.options() }).unwrap();
    assert_same(&source, &rig.target());
}

#[test]
fn a_delta_of_a_right_target_writes_and_fetches_nothing() {
    let rig = Rig::with_tree();
    rig.back_up(&TreeOptions::new("20240101-000000F"));
    rig.restore(&rig.options()).unwrap();
    let delta = RestoreOptions { delta: true, ..rig.options() };
    let report = rig.restore(&delta).unwrap();
    assert_eq!((report.written, report.fetched, report.removed, report.files_written), (0, 0, 0, 0));
    // One byte of one page, under an unchanged time.
    let path = rig.target().join("base/5/1259");
    let file = File::options().write(true).open(&path).unwrap();
    let time = file.metadata().unwrap();
    file.write_all_at(b"x", 8192 * 9 + 5).unwrap();
    let time = Timespec { tv_sec: time.mtime(), tv_nsec: time.mtime_nsec() };
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time }).unwrap();
    let quick = rig.restore(&RestoreOptions { force: true, ..delta.clone() }).unwrap();
    assert_eq!((quick.written, quick.files_written), (0, 0), "size and time are taken for proof");
    let report = rig.restore(&delta).unwrap();
    assert_eq!((report.written, report.files_written), (8192, 1));
    assert!(report.fetched < 100_000, "{}", report.fetched);
    assert_same(&rig.source(), &rig.target());
}

#[test]
fn force_alone_writes_everything_anew() {
    let rig = Rig::with_tree();
    rig.back_up(&TreeOptions::new("20240101-000000F"));
    rig.restore(&rig.options()).unwrap();
    put(&rig.target().join("base/5/77"), b"extra");
    let report = rig.restore(&RestoreOptions { force: true, ..rig.options() }).unwrap();
    assert_eq!((report.removed, report.files_kept), (1, 0));
    assert_same(&rig.source(), &rig.target());
}

#[test]
fn recovery_settings_are_written_once_however_often_it_is_restored() {
    let rig = Rig::with_tree();
    rig.file("postgresql.auto.conf", b"work_mem = '8MB'\nrecovery_target_name = 'old'\n");
    rig.file("backup_label", b"label");
    rig.file("tablespace_map", b"16400 /nowhere\n");
    let version = Version::from_major(15).unwrap();
    rig.file("global/pg_control", &control::fabricate(version, 7));
    rig.back_up(&TreeOptions { lsn: Some((1, 2)), ..TreeOptions::new("20240101-000000F") });
    let recovery = RecoveryOptions {
        target: Some("2030-01-01 00:00:00+00".to_owned()),
        ..RecoveryOptions::of(RecoveryType::Time)
    };
    let restore_command = "pgkeep archive-get %f \"%p\"".to_owned();
    let options = RestoreOptions { recovery, restore_command, ..rig.options() };
    rig.restore(&options).unwrap();
    rig.restore(&RestoreOptions { delta: true, ..options }).unwrap();
    let target = rig.target();
    let text = std::fs::read_to_string(target.join("postgresql.auto.conf")).unwrap();
    assert!(text.starts_with("work_mem = '8MB'\n# Removed by pgkeep restore on "), "{text}");
    assert_eq!(text.matches("recovery_target_time = '2030-01-01 00:00:00+00'").count(), 1, "{text}");
    assert_eq!(text.matches("restore_command = ").count(), 1, "{text}");
    assert!(target.join("recovery.signal").exists());
    assert!(target.join("backup_label").exists());
    let restored = ControlFile::parse(&std::fs::read(target.join("global/pg_control")).unwrap()).unwrap();
    assert_eq!(restored.checkpoint, control::CHECKPOINT_INVALID);
    assert!(!target.join("tablespace_map").exists(), "the server would make the links again");

    // What is preserved stays; what is not asked for goes.
    put(&target.join("postgresql.auto.conf"), b"mine");
    put(&target.join("standby.signal"), b"");
    let preserve = RecoveryOptions::of(RecoveryType::Preserve);
    let options = RestoreOptions { delta: true, recovery: preserve, ..rig.options() };
    rig.restore(&options).unwrap();
    assert_eq!(std::fs::read(target.join("postgresql.auto.conf")).unwrap(), b"mine");
    assert!(target.join("standby.signal").exists());
    let none = RecoveryOptions::of(RecoveryType::None);
    rig.restore(&RestoreOptions { recovery: none, ..options }).unwrap();
    assert!(!target.join("standby.signal").exists() && !target.join("recovery.signal").exists());
    let text = std::fs::read_to_string(target.join("postgresql.auto.conf")).unwrap();
    assert_eq!(text, "work_mem = '8MB'\nrecovery_target_name = 'old'\n");
}

/// A file of a random tree.
#[derive(Debug, Clone)]
struct Made {
    path: String,
    shape: u8,
    len: usize,
    seed: u8,
}

impl Made {
    fn content(&self) -> Vec<u8> {
        let mut out = noise(self.len, self.seed);
        match self.shape {
            0 => out.fill(0),
            1 => {}
            // Runs of zeros between pages, the same page again and again, text.
            2 => out.chunks_mut(8192).skip(1).step_by(3).for_each(|c| c.fill(0)),
            3 => {
                let page = noise(8192, self.seed % 3);
                out.chunks_mut(8192).for_each(|c| c.copy_from_slice(&page[..c.len()]));
            }
            _ => out.iter_mut().for_each(|b| *b = b'a' + *b % 4),
        }
        out
    }
}

fn made() -> impl Strategy<Value = Made> {
    let path = prop_oneof![
        (1..3u8, 1..20u8).prop_map(|(d, f)| format!("base/{d}/{f}")),
        (1..3u8, 1..5u8).prop_map(|(d, f)| format!("base/{d}/{f}_fsm")),
        (0..9u8).prop_map(|f| format!("pg_xact/x{f}")),
        (0..9u8).prop_map(|f| format!("conf-{f}")),
    ];
    let len = prop_oneof![Just(0usize), 1..2000usize, 1..80_000usize, (1..40usize).prop_map(|p| p * 8192)];
    (path, 0..5u8, len, 0..9u8).prop_map(|(path, shape, len, seed)| Made { path, shape, len, seed })
}

/// What somebody did to the target; the number picks a file.
#[derive(Debug, Clone)]
enum Change {
    Flip(usize, usize),
    Resize(usize, usize),
    Remove(usize),
    Directory(usize),
    Link(usize),
    HardLink(usize),
    Mode(usize),
    Touch(usize),
    Extra(usize),
    LinkForDirectory,
}

fn change() -> impl Strategy<Value = Change> {
    let n = 0..100usize;
    prop_oneof![
        4 => (n.clone(), 0..100_000usize).prop_map(|(n, at)| Change::Flip(n, at)),
        2 => (n.clone(), 0..100_000usize).prop_map(|(n, len)| Change::Resize(n, len)),
        1 => n.clone().prop_map(Change::Remove),
        1 => n.clone().prop_map(Change::Directory),
        1 => n.clone().prop_map(Change::Link),
        1 => n.clone().prop_map(Change::HardLink),
        1 => n.clone().prop_map(Change::Mode),
        1 => n.clone().prop_map(Change::Touch),
        1 => n.prop_map(Change::Extra),
        1 => Just(Change::LinkForDirectory),
    ]
}

fn apply(change: &Change, target: &Path, outside: &Path, files: &[String]) {
    let pick = |n: &usize| target.join(&files[n % files.len()]);
    let plain = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_file());
    let clear = |path: &Path| match path.symlink_metadata() {
        Ok(m) if m.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => std::fs::create_dir_all(path.parent().unwrap()).unwrap(),
    };
    match change {
        Change::Flip(n, at) if plain(&pick(n)) => {
            let mut bytes = std::fs::read(pick(n)).unwrap();
            let at = at % bytes.len().max(1);
            bytes.get_mut(at).into_iter().for_each(|b| *b ^= 0x40);
            std::fs::write(pick(n), bytes).unwrap();
        }
        Change::Resize(n, len) if plain(&pick(n)) => {
            File::options().write(true).open(pick(n)).unwrap().set_len(*len as u64).unwrap();
        }
        Change::Mode(n) if plain(&pick(n)) => {
            std::fs::set_permissions(pick(n), std::fs::Permissions::from_mode(0o444)).unwrap();
        }
        Change::Touch(n) if plain(&pick(n)) => {
            File::options().write(true).open(pick(n)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        Change::Flip(..) | Change::Resize(..) | Change::Mode(_) | Change::Touch(_) => {}
        Change::Remove(n) => clear(&pick(n)),
        Change::Directory(n) => {
            clear(&pick(n));
            put(&pick(n).join("sub/file"), b"x");
        }
        Change::Link(n) => {
            clear(&pick(n));
            symlink(outside.join("precious"), pick(n)).unwrap();
        }
        Change::HardLink(n) => {
            clear(&pick(n));
            std::fs::hard_link(outside.join("precious"), pick(n)).unwrap();
        }
        Change::Extra(n) => put(&target.join(format!("extra{}/{n}", n % 3)), b"extra"),
        Change::LinkForDirectory => {
            clear(&target.join("pg_xact"));
            symlink(outside, target.join("pg_xact")).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_trees_come_back_and_changed_targets_converge(
        made in proptest::collection::vec(made(), 1..25),
        changes in proptest::collection::vec(change(), 0..12),
        seed in 0..1000u64,
        threads in 1..4usize,
        quick in any::<bool>(),
    ) {
        let rig = Rig::new();
        rig.file("PG_VERSION", b"15\n");
        rig.file("global/pg_control", &noise(8192, 9));
        rig.file("pg_xact/0000", b"x");
        for one in &made {
            rig.file(&one.path, &one.content());
        }
        let outside = rig.room.path().join("outside");
        put(&outside.join("precious"), &noise(30_000, 77));
        rig.back_up(&TreeOptions { seed, ..TreeOptions::new("20240101-000000F") });
        let options = RestoreOptions { process_max: threads, ..rig.options() };
        rig.restore(&options).unwrap();
        assert_same(&rig.source(), &rig.target());

        let mut files: Vec<String> = made.iter().map(|m| m.path.clone()).collect();
        files.push("global/pg_control".to_owned());
        changes.iter().for_each(|c| apply(c, &rig.target(), &outside, &files));
        let before = facts(&outside);
        let delta = RestoreOptions { delta: true, force: quick, ..options };
        rig.restore(&delta).unwrap();
        assert_same(&rig.source(), &rig.target());
        // Links to what is outside are cut, not written through.
        prop_assert_eq!(before, facts(&outside));
        let again = rig.restore(&delta).unwrap();
        prop_assert_eq!((again.written, again.removed), (0, 0));
    }
}
