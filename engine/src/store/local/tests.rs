use super::*;
use crate::Kind;
use crate::store::contract::{self, Rig};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

crate::store_contract!(contract_of_local, || rig(false));
crate::store_contract!(contract_of_local_by_link, || rig(true));

fn rig(by_link: bool) -> Rig {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = LocalStore::create(dir.path().join("repo")).expect("create");
    store.by_link.store(by_link, Ordering::Relaxed);
    Rig { keep: Some(Box::new(dir)), ..Rig::of(store) }
}

fn fresh() -> (tempfile::TempDir, LocalStore) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = LocalStore::create(dir.path()).expect("create");
    (dir, store)
}

fn temporary(dir: &Path) -> usize {
    fs::read_dir(dir.join(".tmp")).map_or(0, Iterator::count)
}

#[test]
fn creating_makes_the_whole_path_and_may_be_repeated() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("a/b/repo");
    let missing = LocalStore::open(&path).expect_err("not there yet");
    assert_eq!(missing.kind(), Kind::PathMissing);
    assert!(missing.is_permanent());
    assert_eq!(missing.to_string(), format!("cannot open repository directory '{}'", path.display()));
    LocalStore::create(&path).expect("create").put_if_absent("k", b"v").expect("put");
    assert_eq!(contract::read(&LocalStore::create(&path).expect("again"), "k"), b"v");
    assert_eq!(contract::read(&LocalStore::open(path.join("..//repo/")).expect("open"), "k"), b"v");
}

#[test]
fn a_file_is_no_repository() {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    assert_eq!(LocalStore::open(file.path()).expect_err("a file").kind(), Kind::PathOpen);
    assert!(LocalStore::create(file.path()).is_err());
    assert_eq!(LocalStore::create(file.path().join("below")).expect_err("below a file").kind(), Kind::PathCreate);
}

#[test]
fn modes_are_those_of_the_peer_and_nothing_is_left_behind() {
    let (dir, store) = fresh();
    store.put_if_absent("a/b/c", b"x").expect("put");
    store.put_if_absent("a/b/c", b"y").expect("put");
    let mode = |path: &str| fs::metadata(dir.path().join(path)).expect("stat").permissions().mode() & 0o777;
    // The umask of the test run may take rights away, never add them.
    assert_eq!(mode("a/b/c") & !0o640, 0);
    assert_eq!(mode("a/b/c") & 0o600, 0o600);
    assert_eq!(mode("a/b") & !0o750, 0);
    assert_eq!(mode("a") & 0o700, 0o700);
    assert_eq!(temporary(dir.path()), 0);
    assert!(store.unsynced.is_empty());
}

#[test]
fn a_key_cannot_be_a_directory_of_others() {
    let (dir, store) = fresh();
    store.put_if_absent("a/b", b"x").expect("put");
    let over = store.put_if_absent("a", b"y").expect_err("a directory");
    assert!(matches!(&over, StoreError::Io { verb: "create", key, .. } if key == "a"), "{over:?}");
    let below = store.put_if_absent("a/b/c", b"y").expect_err("below a file");
    assert!(below.is_permanent() && over.is_permanent());
    assert_eq!(below.kind(), Kind::FileWrite);
    assert_eq!(temporary(dir.path()), 0);
}

#[test]
fn garbage_of_crashes_is_not_listed_and_is_swept_when_old() {
    let (dir, store) = fresh();
    store.put_if_absent("a/b", b"x").expect("put");
    fs::create_dir_all(dir.path().join("empty/deep")).expect("mkdir");
    fs::create_dir(dir.path().join("lost+found")).expect("mkdir");
    let (old, new) = (dir.path().join(".tmp/1-00"), dir.path().join(".tmp/2-00"));
    let file = fs::File::create(&old).expect("create");
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200)).expect("utimes");
    fs::write(&new, b"half").expect("write");
    assert_eq!(contract::keys(&store, "", Depth::All), ["a/b"]);
    assert_eq!(contract::keys(&store, "", Depth::Children), ["a/"]);
    assert_eq!(store.sweep_temporary(Duration::from_secs(3600)).expect("sweep"), 1);
    assert!(!old.exists() && new.exists());
    assert_eq!(store.sweep_temporary(Duration::from_secs(3600)).expect("sweep"), 0);
    assert_eq!(store.sweep_temporary(Duration::ZERO).expect("sweep"), 1);
    assert_eq!(temporary(dir.path()), 0);
}

#[test]
fn foreign_entries_are_passed_over_and_links_followed() {
    use std::os::unix::ffi::OsStrExt;
    let (dir, store) = fresh();
    let elsewhere = tempfile::tempdir().expect("temporary directory");
    store.put_if_absent("a", b"x").expect("put");
    fs::write(elsewhere.path().join("k"), b"there").expect("write");
    let at = |name: &str| dir.path().join(name);
    std::os::unix::fs::symlink(elsewhere.path(), at("linked")).expect("symlink");
    std::os::unix::fs::symlink("nowhere", at("broken")).expect("symlink");
    fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), b"").expect("write");
    fs::write(at("line\nbreak"), b"").expect("write");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("bind");
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, FILE_MODE, 0).expect("mkfifo");
    assert_eq!(contract::keys(&store, "", Depth::All), ["a", "linked/k"]);
    assert_eq!(contract::keys(&store, "", Depth::Children), ["a", "linked/"]);
    assert_eq!(contract::read(&store, "linked/k"), b"there");
    // A pipe without a writer must not block the reader.
    assert!(matches!(store.get("fifo", Range::Whole), Err(StoreError::NotFound { .. })));
}

#[test]
fn a_delete_takes_empty_directories_along_but_not_the_root() {
    let (dir, store) = fresh();
    store.put_if_absent("a/b/c", b"x").expect("put");
    store.put_if_absent("a/d", b"x").expect("put");
    store.delete("a/b/c").expect("delete");
    assert!(dir.path().join("a").exists() && !dir.path().join("a/b").exists());
    store.delete("a/d").expect("delete");
    assert!(dir.path().exists() && !dir.path().join("a").exists());
}

#[test]
fn a_file_that_shrinks_is_too_short() {
    let (dir, store) = fresh();
    store.put_if_absent("k", b"12345").expect("put");
    fs::OpenOptions::new().write(true).open(dir.path().join("k")).expect("open").set_len(3).expect("truncate");
    let result = store.get("k", Range::Span { offset: 2, len: 3 });
    assert!(matches!(result, Err(StoreError::TooShort { end: 5, .. })), "{result:?}");
}

#[test]
fn after_a_failed_directory_sync_no_put_claims_success() {
    let (_dir, store) = fresh();
    store.put_if_absent("a", b"1").expect("put");
    store.broken.set(Errno::IO).expect("first");
    for key in ["a", "b"] {
        let error = store.put_if_absent(key, b"2").expect_err("broken");
        assert_eq!(error.kind(), Kind::FileSync);
        assert!(error.is_permanent());
    }
    assert_eq!(contract::read(&store, "a"), b"1");
}

#[test]
fn a_full_file_system_says_so_and_keeps_nothing() {
    // A limit on file size stands in for a full disk: both end a write early.
    let (dir, store) = fresh();
    let status = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            "ulimit -f 8; trap '' XFSZ; exec \"$0\" --exact store::local::tests::child_writes_too_much --ignored",
        ])
        .arg(std::env::current_exe().expect("own path"))
        .env("PGKEEP_TEST_ROOT", dir.path())
        .stdout(std::process::Stdio::null())
        .status()
        .expect("child");
    assert!(status.success());
    assert_eq!(contract::keys(&store, "", Depth::All), ["small"]);
    assert_eq!(temporary(dir.path()), 0);
}

#[test]
#[ignore = "run by a_full_file_system_says_so_and_keeps_nothing, under a limit"]
fn child_writes_too_much() {
    let store = LocalStore::open(std::env::var_os("PGKEEP_TEST_ROOT").expect("root")).expect("open");
    store.put_if_absent("small", b"x").expect("below the limit");
    let error = store.put_if_absent("large", &vec![1; 1 << 20]).expect_err("above the limit");
    assert!(matches!(&error, StoreError::Io { verb: "write", key, .. } if key == "large"), "{error:?}");
    assert_eq!(error.kind(), Kind::FileWrite);
}

#[test]
fn reading_needs_no_right_to_write() {
    if rustix::process::geteuid().is_root() {
        // Rights do not bind root; a child without them does the same test.
        let (dir, store) = fresh();
        store.put_if_absent("a/b", b"x").expect("put");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o755)).expect("chmod");
        fs::set_permissions(dir.path().join("a/b"), fs::Permissions::from_mode(0o644)).expect("chmod");
        let copy = tempfile::tempdir().expect("temporary directory");
        fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let program = copy.path().join("test");
        fs::copy(std::env::current_exe().expect("own path"), &program).expect("copy");
        let status = std::os::unix::process::CommandExt::gid(
            std::os::unix::process::CommandExt::uid(&mut std::process::Command::new(&program), 65534),
            65534,
        )
        .args(["--exact", "store::local::tests::child_reads_only", "--ignored"])
        .env("PGKEEP_TEST_ROOT", dir.path())
        .stdout(std::process::Stdio::null())
        .status()
        .expect("child");
        assert!(status.success());
    } else {
        let (dir, store) = fresh();
        store.put_if_absent("a/b", b"x").expect("put");
        for path in ["a", ".tmp", "."] {
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(0o555)).expect("chmod");
        }
        reads_only(dir.path());
        for path in [".", ".tmp", "a"] {
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(0o755)).expect("chmod");
        }
    }
}

#[test]
#[ignore = "run by reading_needs_no_right_to_write, as another user"]
fn child_reads_only() {
    reads_only(Path::new(&std::env::var_os("PGKEEP_TEST_ROOT").expect("root")));
}

fn reads_only(root: &Path) {
    let store = LocalStore::open(root).expect("open");
    assert_eq!(contract::read(&store, "a/b"), b"x");
    assert_eq!(contract::keys(&store, "", Depth::All), ["a/b"]);
    let put = store.put_if_absent("c", b"x").expect_err("not ours to write");
    assert!(matches!(put, StoreError::Io { verb: "write", .. }) && put.is_permanent(), "{put:?}");
    let delete = store.delete("a/b").expect_err("not ours to remove");
    assert!(delete.kind() == Kind::FileRemove && delete.is_permanent(), "{delete:?}");
}
