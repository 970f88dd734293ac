//! Tablespaces and other links.

use super::*;
use crate::Kind;
use crate::restore::MapOptions;
use std::os::unix::fs::symlink;

const VERSION_DIRECTORY: &str = "PG_15_202209061";

/// A tree with a tablespace, a linked `pg_wal` and a linked configuration file.
fn rig() -> Rig {
    let rig = Rig::with_tree();
    let room = rig.room.path();
    put(&room.join(format!("space/{VERSION_DIRECTORY}/5/2000")), &noise(8192 * 7, 4));
    put(&room.join("wal/000000010000000000000001"), &noise(20_000, 5));
    put(&room.join("etc/postgresql.conf"), b"port = 5432\n");
    std::fs::create_dir(rig.source().join("pg_tblspc")).unwrap();
    symlink(room.join("space"), rig.source().join("pg_tblspc/16400")).unwrap();
    symlink(room.join("wal"), rig.source().join("pg_wal")).unwrap();
    symlink(room.join("etc/postgresql.conf"), rig.source().join("postgresql.conf")).unwrap();
    let tablespaces = vec![(16400, "fast".to_owned())];
    rig.back_up(&TreeOptions { tablespaces, ..TreeOptions::new("20240101-000000F") });
    rig
}

fn with(rig: &Rig, maps: MapOptions) -> RestoreOptions {
    RestoreOptions { maps, ..rig.options() }
}

fn space(to: PathBuf) -> MapOptions {
    MapOptions { tablespace: vec![("16400".to_owned(), to)], ..MapOptions::default() }
}

#[test]
fn tablespaces_go_where_they_are_mapped() {
    let rig = rig();
    let room = rig.room.path();
    let all = MapOptions { tablespace_all: Some(room.join("all")), ..MapOptions::default() };
    let by_name = MapOptions { tablespace: vec![("fast".to_owned(), room.join("named"))], ..all.clone() };
    let cases = [
        (space(room.join("by-oid")), room.join("by-oid")),
        (all, room.join("all/fast")),
        (by_name, room.join("named")),
    ];
    for (maps, location) in cases {
        rig.restore(&with(&rig, maps)).unwrap();
        let link = std::fs::read_link(rig.target().join("pg_tblspc/16400")).unwrap();
        assert_eq!(link, location);
        assert_same(&room.join("space").join(VERSION_DIRECTORY), &location.join(VERSION_DIRECTORY));
        // Other links become what they led to.
        assert!(rig.target().join("pg_wal").symlink_metadata().unwrap().is_dir());
        assert_same(&room.join("wal"), &rig.target().join("pg_wal"));
        assert!(rig.target().join("postgresql.conf").symlink_metadata().unwrap().is_file());
        std::fs::remove_dir_all(rig.target()).unwrap();
    }
}

#[test]
fn a_tablespace_that_holds_files_is_not_overwritten_unless_asked_for() {
    let rig = rig();
    let error = rig.restore(&rig.options()).unwrap_err();
    assert_eq!(error.kind(), Kind::PathNotEmpty, "{error}");
    assert!(!rig.target().exists());
}

#[test]
fn a_delta_reaches_into_tablespaces_but_not_into_those_of_other_versions() {
    let rig = rig();
    let place = rig.room.path().join("moved");
    rig.restore(&with(&rig, space(place.clone()))).unwrap();
    put(&place.join(VERSION_DIRECTORY).join("5/2001"), b"extra");
    put(&place.join(VERSION_DIRECTORY).join("5/2000"), b"damaged");
    put(&place.join("PG_16_202307071/5/2000"), b"another server's");
    let delta = RestoreOptions { delta: true, ..with(&rig, space(place.clone())) };
    let report = rig.restore(&delta).unwrap();
    assert_eq!((report.removed, report.files_written), (1, 1));
    assert_same(&rig.room.path().join("space").join(VERSION_DIRECTORY), &place.join(VERSION_DIRECTORY));
    assert!(place.join("PG_16_202307071/5/2000").exists());
    // Mapped elsewhere, the link follows and the old place is left.
    let other = rig.room.path().join("other");
    rig.restore(&RestoreOptions { maps: space(other.clone()), ..delta }).unwrap();
    assert_eq!(std::fs::read_link(rig.target().join("pg_tblspc/16400")).unwrap(), other);
    assert!(place.join(VERSION_DIRECTORY).join("5/2000").exists());
    assert_same(&rig.room.path().join("space").join(VERSION_DIRECTORY), &other.join(VERSION_DIRECTORY));
}

#[test]
fn links_are_made_again_or_made_anew_when_asked_for() {
    let rig = rig();
    let room = rig.room.path();
    let link = vec![
        ("pg_wal".to_owned(), room.join("wal2")),
        ("postgresql.conf".to_owned(), room.join("etc2/my.conf")),
        ("pg_xact".to_owned(), room.join("xact2")),
    ];
    let maps = MapOptions { link, ..space(room.join("moved")) };
    rig.restore(&with(&rig, maps.clone())).unwrap();
    let target = rig.target();
    assert_eq!(std::fs::read_link(target.join("pg_wal")).unwrap(), room.join("wal2"));
    assert_same(&room.join("wal"), &room.join("wal2"));
    assert_eq!(std::fs::read(room.join("etc2/my.conf")).unwrap(), b"port = 5432\n");
    assert_eq!(std::fs::read_link(target.join("postgresql.conf")).unwrap(), room.join("etc2/my.conf"));
    assert_same(&rig.source().join("pg_xact"), &room.join("xact2"));
    put(&room.join("etc2/my.conf"), b"port = 5433");
    put(&room.join("wal2/extra"), b"x");
    let report = rig.restore(&RestoreOptions { delta: true, ..with(&rig, maps) }).unwrap();
    assert_eq!((report.removed, report.files_written), (1, 1));
    assert_eq!(std::fs::read(room.join("etc2/my.conf")).unwrap(), b"port = 5432\n");

    // link-all: where they were, which is in use here.
    std::fs::remove_dir_all(&target).unwrap();
    let all = MapOptions { link_all: true, ..space(room.join("moved2")) };
    assert_eq!(rig.restore(&with(&rig, all.clone())).unwrap_err().kind(), Kind::PathNotEmpty);
    let copy = room.join("copy");
    std::fs::rename(room.join("wal"), &copy).unwrap();
    std::fs::remove_file(room.join("etc/postgresql.conf")).unwrap();
    rig.restore(&with(&rig, all)).unwrap();
    assert_eq!(std::fs::read_link(target.join("pg_wal")).unwrap(), room.join("wal"));
    assert_same(&copy, &room.join("wal"));
    assert_eq!(std::fs::read(room.join("etc/postgresql.conf")).unwrap(), b"port = 5432\n");
}

#[test]
fn maps_that_fit_nothing_and_places_that_overlap_are_refused() {
    let rig = rig();
    let room = rig.room.path();
    let link = |path: &str, to: PathBuf| MapOptions { link: vec![(path.to_owned(), to)], ..space(room.join("m")) };
    let unknown = MapOptions { tablespace: vec![("slow".to_owned(), room.join("m"))], ..MapOptions::default() };
    for (maps, kind) in [
        (unknown, Kind::TablespaceMap),
        (link("pg_nothing", room.join("n")), Kind::LinkMap),
        (link("pg_tblspc/16400", room.join("n")), Kind::LinkMap),
        (link("pg_wal", rig.target().join("elsewhere")), Kind::LinkDestination),
        (link("pg_wal", room.join("m").join(VERSION_DIRECTORY)), Kind::LinkDestination),
        (link("pg_wal", "/".into()), Kind::LinkDestination),
        (link("pg_wal", "".into()), Kind::LinkDestination),
    ] {
        let error = rig.restore(&with(&rig, maps)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!rig.target().exists());
    }
}

#[test]
fn a_refresh_that_forgets_the_map_leaves_the_other_servers_tablespace_alone() {
    let rig = rig();
    let room = rig.room.path();
    let place = room.join("second");
    let maps = space(place.clone());
    rig.restore(&with(&rig, maps.clone())).unwrap();
    let live = room.join("space").join(VERSION_DIRECTORY);
    put(&live.join("5/2000"), b"what the first server wrote since");
    let before = facts(&room.join("space"));
    let delta = RestoreOptions { delta: true, ..rig.options() };
    let link = rig.target().join("pg_tblspc/16400");
    for state in ["elsewhere", "gone", "no link"] {
        match state {
            "gone" => std::fs::remove_file(&link).unwrap(),
            "no link" => put(&link, b"a file"),
            _ => {}
        }
        let error = rig.restore(&delta).unwrap_err();
        assert_eq!(error.kind(), Kind::PathNotEmpty, "{state}: {error}");
        let text = error.to_string();
        for part in [live.to_str().unwrap(), link.to_str().unwrap(), "--tablespace-map"] {
            assert!(text.contains(part), "{state}: {text}");
        }
        assert_eq!(text.contains(place.to_str().unwrap()), state == "elsewhere", "{text}");
        assert_eq!(facts(&room.join("space")), before, "{state}");
    }
    // With the map it goes on; a link that is as it shall be needs no leave.
    std::fs::remove_file(&link).unwrap();
    symlink(&place, &link).unwrap();
    rig.restore(&RestoreOptions { maps, ..delta.clone() }).unwrap();
    // Asked for by name.
    rig.restore(&RestoreOptions { force: true, ..delta }).unwrap();
    assert_eq!(std::fs::read_link(&link).unwrap(), room.join("space"));
    assert_same(&place.join(VERSION_DIRECTORY), &live);

    // The same for other links.
    let wal = room.join("wal");
    put(&wal.join("000000010000000000000009"), b"the first server's");
    let all = RestoreOptions { delta: true, ..with(&rig, MapOptions { link_all: true, ..space(room.join("space")) }) };
    let text = rig.restore(&all).unwrap_err().to_string();
    assert!(text.contains("--link-map") && text.contains(wal.to_str().unwrap()), "{text}");
    assert!(wal.join("000000010000000000000009").exists());
}
