//! Files of databases that are left out have their sizes and hold nothing, whatever lay in their places.

use super::*;
use crate::Kind;
use crate::restore::DatabaseOptions;

const TABLE: &str = "base/16400/2619";
const ELSEWHERE: &str = "pg_tblspc/16399/PG_15_202209061/16400/2620";

fn ready() -> Rig {
    let rig = Rig::with_tree();
    rig.file("base/16400/PG_VERSION", b"15\n");
    rig.file("base/16400/pg_filenode.map", &noise(512, 4));
    rig.file(TABLE, &noise(8192 * 40, 5));
    let place = rig.room.path().join("place");
    put(&place.join("PG_15_202209061/16400/2620"), &noise(8192 * 9, 6));
    std::fs::create_dir(rig.source().join("pg_tblspc")).unwrap();
    std::os::unix::fs::symlink(&place, rig.source().join("pg_tblspc/16399")).unwrap();
    rig.back_up(&TreeOptions { tablespaces: vec![(16399, "ts".to_owned())], ..TreeOptions::new("20240101-000000F") });
    rig
}

fn options(rig: &Rig, exclude: &[&str]) -> RestoreOptions {
    let mut options = rig.options();
    options.maps.tablespace = vec![("ts".to_owned(), rig.room.path().join("moved"))];
    options.databases.exclude = exclude.iter().map(|name| (*name).to_owned()).collect();
    options
}

#[track_caller]
fn assert_holds_nothing(path: &Path, len: u64) {
    let facts = std::fs::metadata(path).unwrap();
    assert_eq!((facts.len(), facts.blocks()), (len, 0), "{}", path.display());
}

#[test]
fn what_is_left_out_is_neither_written_nor_counted() {
    let rig = ready();
    let target = rig.target();
    let whole = rig.restore(&RestoreOptions { dry_run: true, ..options(&rig, &[]) }).unwrap();
    let report = rig.restore(&options(&rig, &["16400"])).unwrap();
    assert_eq!((report.plan.files_left_out, report.plan.bytes_left_out), (3, 8192 * 49 + 512));
    assert_eq!(report.bytes + report.plan.bytes_left_out, whole.bytes);
    assert!(report.written <= report.bytes, "{}", report.written);
    assert_holds_nothing(&target.join(TABLE), 8192 * 40);
    assert_holds_nothing(&target.join(ELSEWHERE), 8192 * 9);
    assert_holds_nothing(&target.join("base/16400/pg_filenode.map"), 512);
    assert_eq!(std::fs::read(target.join("base/16400/PG_VERSION")).unwrap(), b"15\n");
    let same =
        |path: &str| std::fs::read(target.join(path)).unwrap() == std::fs::read(rig.source().join(path)).unwrap();
    assert!(same("base/5/1259") && same("pg_xact/0000") && same("global/pg_control"));
}

#[test]
fn delta_empties_what_is_there_and_brings_it_back() {
    let rig = ready();
    let table = rig.target().join(TABLE);
    rig.restore(&options(&rig, &[])).unwrap();
    let delta = |exclude: &[&str], force| RestoreOptions { delta: true, force, ..options(&rig, exclude) };
    let full = std::fs::read(&table).unwrap();
    for force in [false, true] {
        let report = rig.restore(&delta(&["16400"], force)).unwrap();
        assert_holds_nothing(&table, 8192 * 40);
        assert_eq!((report.fetched, report.files_written), (0, 0), "the others were right");
        // Not even who trusts size and time takes it for the backup's file.
        rig.restore(&delta(&[], true)).unwrap();
        assert!(std::fs::read(&table).unwrap() == full);
    }
    let only = DatabaseOptions { include: vec!["5".to_owned()], exclude: Vec::new() };
    rig.restore(&RestoreOptions { databases: only, ..delta(&[], false) }).unwrap();
    assert_holds_nothing(&table, 8192 * 40);
}

#[test]
fn unknown_databases_are_refused_before_anything_is_changed() {
    let rig = ready();
    for exclude in ["app", "16401", "016400", ""] {
        assert_eq!(rig.restore(&options(&rig, &[exclude])).unwrap_err().kind(), Kind::DbMissing, "{exclude}");
    }
    let mut both = options(&rig, &["16400"]);
    both.databases.include = vec!["16400".to_owned()];
    assert_eq!(rig.restore(&both).unwrap_err().kind(), Kind::DbInvalid);
    assert!(!rig.target().exists());
}
