//! Fabricated trees.

use super::*;
use crate::observe::Cancel;
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::control::fabricate;
use proptest::prelude::*;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

const VERSION: Version = Version::V15;

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(tree.pgdata()).unwrap();
        tree
    }

    fn pgdata(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// A path beside the data directory.
    fn beside(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Files, with the directories they need; a trailing slash makes a directory.
    fn add(&self, paths: &[&str]) -> &Self {
        for path in paths {
            self.put(&self.pgdata(), path);
        }
        self
    }

    fn put(&self, base: &Path, path: &str) {
        let full = base.join(path);
        match path.ends_with('/') {
            true => fs::create_dir_all(full).unwrap(),
            false => {
                fs::create_dir_all(full.parent().unwrap()).unwrap();
                fs::write(full, path).unwrap();
            }
        }
    }

    fn link(&self, path: &str, destination: impl AsRef<Path>) -> &Self {
        let full = self.pgdata().join(path);
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        symlink(destination, full).unwrap();
        self
    }

    fn entries(&self, options: &WalkOptions) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        walk(&self.pgdata(), options, &Cancel::default(), |entry| {
            all.push(entry);
            Ok(())
        })?;
        Ok(all)
    }

    /// Paths without the root; directories with a trailing slash.
    fn paths(&self, options: &WalkOptions) -> Vec<String> {
        let entries = self.entries(options).unwrap();
        assert!(entries.is_sorted_by(|a, b| path_cmp(&a.path, &b.path) == Ordering::Less));
        assert!(entries[0].path.is_empty() && entries[0].kind == EntryKind::Directory);
        let text = |e: &Entry| format!("{}{}", e.path.escape_ascii(), if e.kind.is_file() { "" } else { "/" });
        entries[1..].iter().map(text).collect()
    }

    fn refusal(&self) -> (Kind, String) {
        let error = self.entries(&online()).unwrap_err();
        (error.kind(), error.to_string())
    }
}

fn online() -> WalkOptions {
    WalkOptions { version: VERSION, online: true, exclude: Exclusions::default(), report: true }
}

#[test]
fn an_entry_says_what_a_restore_needs() {
    let tree = Tree::new();
    tree.add(&["base/1/1259"]);
    let file = tree.pgdata().join("base/1/1259");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
    fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    let entries = tree.entries(&online()).unwrap();
    let entry = entries.last().unwrap();
    assert_eq!((entry.path.as_slice(), &entry.kind, entry.mode), (&b"base/1/1259"[..], &EntryKind::File, 0o640));
    assert_eq!((entry.size, entry.mtime, entry.mtime_nanos), (11, 1_700_000_000, 123_456_789));
    assert_eq!(fs::read(&entry.source).unwrap(), b"base/1/1259");
    assert_eq!(entry.uid, rustix::process::geteuid().as_raw());
    assert_eq!(entry.user.as_deref(), names::user(entry.uid).as_deref());
    assert_eq!((entries[0].path.len(), entries[0].size), (0, 0));
}

#[test]
fn what_a_restored_server_must_not_see_is_left_out() {
    let tree = Tree::new();
    let kept = [
        "PG_VERSION",
        "backup_labels",
        "base/1/16384",
        "base/1/16384.1",
        "base/1/16384_fsm",
        "base/1/16384_vm",
        "base/1/pg_filenode.map",
        "base/1/pg_internal.inits",
        "base/1/t3_x",
        "base/1/xpgsql_tmp",
        "global/1262",
        "global/pg_control",
        "log/postmaster.pid",
        "pg_logical/mappings/x",
        "pg_stat/pgstat.stat",
        "pg_twophase/00000001",
        "pg_xact/0000",
        "postgresql.auto.conf",
        "postgresql.conf",
    ];
    let left = [
        "backup_label",
        "backup_label.old",
        "backup_manifest",
        "backup_manifest.tmp",
        "base/1/pg_internal.init",
        "base/1/pg_internal.init.4711",
        "base/1/pgsql_tmp17.2",
        "base/1/t12_16384",
        "base/1/t12_16384_fsm",
        "base/1/t12_16384.2",
        "base/pgsql_tmp/pgsql_tmp1.0",
        "global/pg_internal.init",
        "postgresql.auto.conf.tmp",
        "postmaster.opts",
        "postmaster.pid",
        "recovery.conf",
        "recovery.done",
        "recovery.signal",
        "standby.signal",
        "tablespace_map",
        "tablespace_map.old",
    ];
    tree.add(&kept).add(&left);
    let found: Vec<_> = tree.paths(&online()).into_iter().filter(|p| !p.ends_with('/')).collect();
    assert_eq!(found, kept);
    assert!(!tree.paths(&online()).contains(&"base/pgsql_tmp/".to_owned()));
}

#[test]
fn directories_whose_content_the_server_makes_again_stay_empty() {
    let tree = Tree::new();
    let emptied =
        ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"];
    for name in emptied {
        tree.add(&[&format!("{name}/x"), &format!("{name}/deeper/y")]);
    }
    let all: Vec<_> = emptied.iter().map(|name| format!("{name}/")).collect();
    assert_eq!(tree.paths(&online()), all);
}

#[test]
fn wal_is_copied_only_from_a_stopped_cluster() {
    let tree = Tree::new();
    tree.add(&["pg_wal/000000010000000000000001", "pg_wal/00000002.history", "pg_wal/archive_status/x.ready"]);
    tree.add(&["pg_wal/summaries/y.summary"]);
    assert_eq!(tree.paths(&online()), ["pg_wal/", "pg_wal/archive_status/", "pg_wal/summaries/"]);
    let offline = WalkOptions { online: false, ..online() };
    let expected = [
        "pg_wal/",
        "pg_wal/000000010000000000000001",
        "pg_wal/00000002.history",
        "pg_wal/archive_status/",
        "pg_wal/summaries/",
        "pg_wal/summaries/y.summary",
    ];
    assert_eq!(tree.paths(&offline), expected);
}

#[test]
fn of_unlogged_relations_only_the_init_fork_is_copied() {
    let tree = Tree::new();
    tree.add(&["base/5/700", "base/5/700.1", "base/5/700_fsm", "base/5/700_vm", "base/5/700_init", "base/5/7000"]);
    tree.add(&["base/6/700", "pg_xact/0001_init", "pg_xact/0001"]);
    let files: Vec<_> = tree.paths(&online()).into_iter().filter(|p| !p.ends_with('/')).collect();
    assert_eq!(files, ["base/5/7000", "base/5/700_init", "base/6/700", "pg_xact/0001", "pg_xact/0001_init"]);
}

#[test]
fn the_user_leaves_out_paths_or_the_content_of_directories() {
    let tree = Tree::new();
    tree.add(&["log/a", "log/sub/b", "junk/c", "junk.txt", "base/1/16385"]);
    let exclude = Exclusions::parse(&["log/", "junk", "base/1/16385", "missing"]);
    assert_eq!(tree.paths(&WalkOptions { exclude, ..online() }), ["base/", "base/1/", "junk.txt", "log/"]);
    for bad in ["", "/", "/absolute", "a//b", "../up", "a/./b", "a//"] {
        assert_eq!(Exclusions::parse(&[bad]), Exclusions::default(), "{bad}");
    }
}

#[test]
fn tablespaces_show_their_own_version_below_their_link() {
    let tree = Tree::new();
    let space = tree.beside("space");
    tree.put(&space, "PG_15_202209061/5/16390");
    tree.put(&space, "PG_15_202209061/pgsql_tmp/x");
    tree.put(&space, "PG_14_202107181/5/16390");
    tree.put(&space, "unrelated");
    tree.link("pg_tblspc/16389", &space);
    let expected = [
        "pg_tblspc/",
        "pg_tblspc/16389/",
        "pg_tblspc/16389/PG_15_202209061/",
        "pg_tblspc/16389/PG_15_202209061/5/",
        "pg_tblspc/16389/PG_15_202209061/5/16390",
    ];
    assert_eq!(tree.paths(&online()), expected);
    let entries = tree.entries(&online()).unwrap();
    assert_eq!(entries[2].kind, EntryKind::LinkToDirectory { destination: space.clone() });
    assert_eq!(entries[5].source, space.join("PG_15_202209061/5/16390"));
    // The next tablespace may lie inside the first, as long as their versions' directories are apart.
    let inner = space.join("inner");
    tree.put(&inner, "PG_15_202209061/5/16400");
    tree.link("pg_tblspc/16399", &inner);
    assert!(tree.paths(&online()).contains(&"pg_tblspc/16399/PG_15_202209061/5/16400".to_owned()));
}

#[test]
fn linked_files_and_directories_are_followed() {
    let tree = Tree::new();
    tree.put(&tree.beside("etc"), "my.conf");
    tree.put(&tree.beside("wal"), "archive_status/x");
    tree.put(&tree.beside("wal"), "000000010000000000000001");
    tree.put(&tree.beside("extra"), "a/b");
    tree.link("postgresql.conf", "../etc/my.conf").link("pg_wal", tree.beside("wal")).link("extra", "../extra/./");
    let paths = tree.paths(&online());
    assert_eq!(paths, ["extra/", "extra/a/", "extra/a/b", "pg_wal/", "pg_wal/archive_status/", "postgresql.conf"]);
    let entries = tree.entries(&online()).unwrap();
    let conf = entries.last().unwrap();
    assert_eq!(conf.kind, EntryKind::LinkToFile { destination: PathBuf::from("../etc/my.conf") });
    assert_eq!(conf.kind.destination(), Some(&PathBuf::from("../etc/my.conf")));
    assert_eq!((conf.size, fs::read(&conf.source).unwrap().as_slice()), (7, &b"my.conf"[..]));
    // The data directory may be reached through a link itself.
    symlink(tree.pgdata(), tree.beside("alias")).unwrap();
    let mut count = 0;
    walk(&tree.beside("alias"), &online(), &Cancel::default(), |_| {
        count += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(count, entries.len());
}

#[test]
fn links_that_cannot_be_made_again_are_refused() {
    let refusal = |make: &dyn Fn(&Tree)| {
        let tree = Tree::new();
        fs::create_dir(tree.beside("a")).unwrap();
        make(&tree);
        tree.refusal()
    };
    let expect = |(kind, message): (Kind, String), wanted: Kind, part: &str| {
        assert!(kind == wanted && message.contains(part), "{kind:?}: {message}");
    };
    let to_link = |t: &Tree| {
        symlink(t.beside("a"), t.beside("b")).unwrap();
        t.link("x", t.beside("b"));
    };
    expect(refusal(&to_link), Kind::LinkDestination, "which is a link itself");
    let inside = |t: &Tree| {
        t.add(&["real/file"]).link("x", "real");
    };
    expect(refusal(&inside), Kind::LinkDestination, "inside the data directory");
    let own = |t: &Tree| {
        t.link("x", t.pgdata());
    };
    expect(refusal(&own), Kind::LinkDestination, "inside the data directory");
    let above = |t: &Tree| {
        t.link("x", "..");
    };
    expect(refusal(&above), Kind::LinkDestination, "contains the data directory");
    let twice = |t: &Tree| {
        t.link("x", t.beside("a")).link("y", t.beside("a"));
    };
    expect(refusal(&twice), Kind::LinkDestination, "overlaps");
    let circle = |t: &Tree| {
        symlink(t.beside("a"), t.beside("a").join("again")).unwrap();
        t.link("x", t.beside("a"));
    };
    expect(refusal(&circle), Kind::LinkDestination, "overlaps");
    let dangling = |t: &Tree| {
        t.link("x", "/nowhere/at/all");
    };
    expect(refusal(&dangling), Kind::FileOpen, "which is missing");
    let no_link = |t: &Tree| {
        t.add(&["pg_tblspc/16384/"]);
    };
    expect(refusal(&no_link), Kind::LinkExpected, "pg_tblspc/16384");
    let stray = |t: &Tree| {
        t.add(&["pg_tblspc/readme"]);
    };
    expect(refusal(&stray), Kind::LinkExpected, "pg_tblspc/readme");
    let to_file = |t: &Tree| {
        t.put(&t.beside("a"), "file");
        t.link("pg_tblspc/1", t.beside("a").join("file"));
    };
    expect(refusal(&to_file), Kind::LinkDestination, "does not point to a directory");
}

#[test]
fn special_files_are_passed_over() {
    let tree = Tree::new();
    tree.add(&["a", "z"]);
    let socket = std::os::unix::net::UnixListener::bind(tree.pgdata().join("socket")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.pgdata().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    tree.link("null", "/dev/null");
    assert_eq!(tree.paths(&online()), ["a", "z"]);
    drop(socket);
}

#[test]
fn odd_names_are_kept_byte_by_byte_and_in_order() {
    let tree = Tree::new();
    tree.add(&["a/x", "a-b", "a.c/y", "ab", "a b", "new\nline", "ünï", "-f", "a/pg_tblspc/z"]);
    fs::write(tree.pgdata().join(OsStr::from_bytes(b"\xff\xfe")), "x").unwrap();
    let expected = [
        "-f",
        "a/",
        "a/pg_tblspc/",
        "a/pg_tblspc/z",
        "a/x",
        "a b",
        "a-b",
        "a.c/",
        "a.c/y",
        "ab",
        "new\\nline",
        "\\xc3\\xbcn\\xc3\\xaf",
        "\\xff\\xfe",
    ];
    assert_eq!(tree.paths(&online()), expected);
}

#[test]
fn what_cannot_be_walked_is_named() {
    let tree = Tree::new();
    let missing = walk(&tree.beside("none"), &online(), &Cancel::default(), |_| Ok(())).unwrap_err();
    assert_eq!(missing.kind(), Kind::PathMissing);
    assert!(missing.to_string().contains("none"), "{missing}");
    tree.add(&["a", "b"]);
    let file = walk(&tree.pgdata().join("a"), &online(), &Cancel::default(), |_| Ok(())).unwrap_err();
    assert_eq!(file.kind(), Kind::PathOpen);
    let cancel = Cancel::default();
    let mut seen = 0;
    let stopped = walk(&tree.pgdata(), &online(), &cancel, |_| {
        seen += 1;
        cancel.cancel();
        Ok(())
    });
    assert_eq!((stopped.unwrap_err().kind(), seen), (Kind::Interrupted, 1));
    let own = walk(&tree.pgdata(), &online(), &Cancel::default(), |_| Err(Error::refused(Kind::Memory, "enough")));
    assert_eq!(own.unwrap_err().kind(), Kind::Memory);
}

#[test]
fn a_directory_without_permission_is_named() {
    let tree = Tree::new();
    tree.add(&["base/1/x"]);
    let closed = tree.pgdata().join("base");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    // Root reads everything, so another account walks: a thread may change its own identity for the file system.
    let result = std::thread::scope(|scope| {
        let walk = || {
            if is_root {
                fs::set_permissions(tree.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
                rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(65_534)).unwrap();
            }
            tree.refusal()
        };
        scope.spawn(walk).join().unwrap()
    });
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(result.0, Kind::PathOpen);
    assert!(result.1.contains("data/base"), "{}", result.1);
}

#[test]
fn files_that_vanish_during_the_walk_are_not_missed() {
    let tree = Tree::new();
    tree.add(&["a/1", "b", "c/d", "e"]);
    let mut paths = Vec::new();
    walk(&tree.pgdata(), &online(), &Cancel::default(), |entry| {
        if entry.path == b"a" {
            fs::remove_dir_all(tree.pgdata().join("a")).unwrap();
            fs::remove_file(tree.pgdata().join("b")).unwrap();
            fs::remove_dir_all(tree.pgdata().join("c")).unwrap();
        }
        paths.push(String::from_utf8(entry.path).unwrap());
        Ok(())
    })
    .unwrap();
    assert_eq!(paths, ["", "a", "e"]);
}

#[test]
fn pg_control_is_read_again_while_it_is_being_written() {
    let tree = Tree::new();
    let path = tree.pgdata().join("global/pg_control");
    assert_eq!(read_control(&tree.pgdata()).unwrap_err().kind(), Kind::FileMissing);
    let good = fabricate(VERSION, 4711);
    let mut torn = good.clone();
    torn[100] ^= 1;
    tree.add(&["global/"]);
    fs::write(&path, &torn).unwrap();
    let control = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(60));
            fs::write(tree.pgdata().join("new"), &good).unwrap();
            fs::rename(tree.pgdata().join("new"), &path).unwrap();
        });
        read_control(&tree.pgdata()).unwrap()
    });
    assert_eq!((control.fields.system_identifier, &control.bytes), (4711, &good));
    fs::write(&path, &torn).unwrap();
    let damaged = read_control(&tree.pgdata()).unwrap_err();
    assert_eq!(damaged.kind(), Kind::Format);
    assert!(damaged.to_string().contains("global/pg_control"), "{damaged}");
}

#[test]
fn postmaster_pid_tells_who_runs() {
    let tree = Tree::new();
    let file = tree.pgdata().join("postmaster.pid");
    assert_eq!(postmaster(&tree.pgdata()).unwrap(), None);
    assert!(!is_running(&tree.pgdata()).unwrap());
    let own = std::process::id();
    fs::write(&file, format!("{own}\n/data\n1700000000\n5433\n/run/pg\nlocalhost\n")).unwrap();
    let found = postmaster(&tree.pgdata()).unwrap().unwrap();
    let socket = Some(PathBuf::from("/run/pg"));
    assert_eq!(found, Postmaster { pid: Some(own), alive: true, port: Some(5433), socket_directory: socket });
    assert!(is_running(&tree.pgdata()).unwrap());
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    fs::write(&file, format!("-{}\n", child.id())).unwrap();
    assert!(!is_running(&tree.pgdata()).unwrap());
    // A file that is just being written is somebody's.
    for content in ["", "rubbish\n", "0\n"] {
        fs::write(&file, content).unwrap();
        assert!(is_running(&tree.pgdata()).unwrap());
    }
}

proptest! {
    #[test]
    fn the_order_of_paths_is_that_of_their_parts(a in "[ab./-]{0,6}", b in "[ab./-]{0,6}") {
        let parts = |p: &str| p.split('/').map(|s| s.as_bytes().to_vec()).collect::<Vec<_>>();
        // An empty first part is no path but the root; a walk has none.
        prop_assume!([&a, &b].iter().all(|p| p.split('/').all(|s| !s.is_empty())));
        prop_assert_eq!(path_cmp(a.as_bytes(), b.as_bytes()), parts(&a).cmp(&parts(&b)));
    }
}
