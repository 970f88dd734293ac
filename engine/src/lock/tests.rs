use super::*;
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

fn name(stanza: &str, lock_type: LockType, repo_key: u32) -> LockName {
    LockName { stanza: stanza.to_owned(), lock_type, repo_key }
}

fn backup() -> LockName {
    name("main", LockType::Backup, 1)
}

fn fresh() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary directory")
}

#[test]
fn a_held_lock_is_refused_with_its_file_and_holder() {
    let dir = fresh();
    let lock = Lock::acquire(dir.path(), &backup(), "1-abc").expect("free");
    assert_eq!(lock.path(), dir.path().join("main-backup-1.lock"));
    let error = Lock::acquire(dir.path(), &backup(), "2-def").expect_err("held");
    assert_eq!(error.kind(), Kind::LockAcquire);
    let expected =
        format!("cannot acquire lock on file '{}': held by process {}", lock.path().display(), std::process::id());
    assert_eq!(error.to_string(), expected);
    let others = [
        name("main", LockType::Backup, 2),
        name("main", LockType::Archive, 1),
        name("main", LockType::Restore, 1),
        name("other", LockType::Backup, 1),
    ];
    let _held = others.map(|other| Lock::acquire(dir.path(), &other, "1-abc").expect("another lock"));
    drop(lock);
    assert!(!dir.path().join("main-backup-1.lock").exists());
    Lock::acquire(dir.path(), &backup(), "2-def").expect("free again");
}

#[test]
fn the_file_tells_who_and_how_far() {
    let dir = fresh();
    assert_eq!(holder(dir.path(), &backup()).expect("read"), None);
    let lock = Lock::acquire(dir.path(), &backup(), "7-x").expect("free");
    let pid = std::process::id();
    let text = || fs::read_to_string(lock.path()).expect("read");
    assert_eq!(text(), format!("{{\"execId\":\"7-x\",\"pid\":{pid}}}\n"));
    lock.progress(Progress { done: 123_456, total: 1_000_000 }).expect("write");
    assert_eq!(
        text(),
        format!("{{\"execId\":\"7-x\",\"pctCplt\":1234,\"pid\":{pid},\"sz\":1000000,\"szCplt\":123456}}\n")
    );
    // Shorter than before: nothing of the old line may stay.
    lock.progress(Progress { done: 0, total: 0 }).expect("write");
    assert_eq!(text(), format!("{{\"execId\":\"7-x\",\"pctCplt\":10000,\"pid\":{pid},\"sz\":0,\"szCplt\":0}}\n"));
    let expected = Holder {
        pid: i32::try_from(pid).ok(),
        exec_id: Some("7-x".to_owned()),
        progress: Some(Progress { done: 0, total: 0 }),
    };
    assert_eq!(holder(dir.path(), &backup()).expect("read"), Some(expected.clone()));
    let _restore = Lock::acquire(dir.path(), &name("b-c", LockType::Restore, 12), "8-y").expect("free");
    let held = |stanza| {
        let held = holders(dir.path(), stanza).expect("list");
        held.into_iter().map(|(name, _)| (name.stanza, name.repo_key)).collect::<Vec<_>>()
    };
    assert_eq!(held(None), [("b-c".to_owned(), 12), ("main".to_owned(), 1)]);
    assert_eq!(held(Some("b-c")), [("b-c".to_owned(), 12)]);
    assert_eq!(held(Some("b")), []);
    drop(lock);
    assert_eq!(holder(dir.path(), &backup()).expect("read"), None);
}

#[test]
fn what_a_crash_leaves_locks_nothing() {
    let dir = fresh();
    let path = dir.path().join("main-backup-1.lock");
    let stale = format!("{}\n", "x".repeat(500));
    fs::write(&path, &stale).expect("write");
    fs::write(dir.path().join("junk.lock"), "").expect("write");
    assert_eq!(holder(dir.path(), &backup()).expect("read"), None);
    assert_eq!(holders(dir.path(), None).expect("list"), []);
    let lock = Lock::acquire(dir.path(), &backup(), "1").expect("free");
    assert!(fs::metadata(&path).expect("stat").len() < 100);
    drop(lock);
    assert!(!path.exists());
}

#[test]
fn the_lock_of_a_process_that_was_killed_is_free() {
    let dir = fresh();
    let path = dir.path().join("main-backup-1.lock");
    let mut child = std::process::Command::new("/usr/bin/flock")
        .arg("--exclusive")
        .arg(&path)
        .args(["/bin/sh", "-c", "echo locked; exec sleep 600"])
        .stdout(std::process::Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("flock of util-linux");
    let mut first = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().expect("pipe"), &mut first).expect("locked");
    // Its file says nothing of ours, so the message cannot name it.
    let error = Lock::acquire(dir.path(), &backup(), "1").expect_err("held");
    assert!(error.to_string().ends_with("held by another process"), "{error}");
    assert_eq!(holder(dir.path(), &backup()).expect("read"), Some(Holder::default()));
    let group = Pid::from_raw(i32::try_from(child.id()).expect("pid")).expect("pid");
    rustix::process::kill_process_group(group, Signal::KILL).expect("kill");
    child.wait().expect("wait");
    // The sleeping grandchild held the same lock; its end is the end of its pipe.
    std::io::Read::read_to_end(child.stdout.as_mut().expect("pipe"), &mut Vec::new()).expect("end");
    let mut tries = 0;
    let lock = loop {
        match Lock::acquire(dir.path(), &backup(), "1") {
            Ok(lock) => break lock,
            // The kernel closes a dead process's files in its own order.
            Err(error) if tries < 1000 && error.kind() == Kind::LockAcquire => tries += 1,
            Err(error) => panic!("{error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    drop(lock);
}

#[test]
fn two_never_hold_one_lock_while_files_come_and_go() {
    let dir = fresh();
    let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..300 {
                    match Lock::acquire(dir.path(), &backup(), "1") {
                        Ok(lock) => {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                            taken.fetch_add(1, Ordering::SeqCst);
                            assert!(holder(dir.path(), &backup()).expect("read").is_some());
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                        Err(error) => assert_eq!(error.kind(), Kind::LockAcquire),
                    }
                }
            });
        }
    });
    assert!(taken.into_inner() > 0);
    Lock::acquire(dir.path(), &backup(), "1").expect("free");
}

#[test]
fn readers_do_not_keep_a_free_lock_from_its_taker() {
    let dir = fresh();
    let path = dir.path().join("main-backup-1.lock");
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while done.load(Ordering::SeqCst) == 0 {
                holder(dir.path(), &backup()).expect("read");
            }
        });
        for _ in 0..200 {
            // As a crash leaves it, so that readers have something to test.
            fs::write(&path, "").expect("write");
            let lock = Lock::acquire(dir.path(), &backup(), "1");
            if lock.is_err() {
                done.store(1, Ordering::SeqCst);
            }
            drop(lock.expect("only readers"));
        }
        done.store(1, Ordering::SeqCst);
    });
}

#[test]
fn a_file_removed_by_hand_does_not_take_the_next_holders_file_along() {
    let dir = fresh();
    let first = Lock::acquire(dir.path(), &backup(), "1").expect("free");
    fs::remove_file(first.path()).expect("remove");
    let second = Lock::acquire(dir.path(), &backup(), "2").expect("a new file");
    drop(first);
    assert!(second.path().exists());
    assert!(Lock::acquire(dir.path(), &backup(), "3").is_err());
}

#[test]
fn the_lock_path_is_made_and_links_are_not_followed() {
    let dir = fresh();
    let path = dir.path().join("a/locks");
    let lock = Lock::acquire(&path, &backup(), "1").expect("free");
    let mode = |path: &Path| fs::metadata(path).expect("stat").permissions().mode() & 0o777;
    assert_eq!((mode(&path) & !0o770, mode(lock.path()) & !0o640), (0, 0));
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").expect("write");
    let other = name("x", LockType::Backup, 1);
    std::os::unix::fs::symlink(&victim, other.path(&path).expect("path")).expect("symlink");
    assert_eq!(Lock::acquire(&path, &other, "1").expect_err("a link").kind(), Kind::LockAcquire);
    assert_eq!(fs::read_to_string(&victim).expect("read"), "precious");
    assert_eq!(Lock::acquire(&victim, &backup(), "1").expect_err("a file").kind(), Kind::PathCreate);
    for bad in ["", ".", "..", "../x", "a/b", ".hidden", "a\0"] {
        let error = Lock::acquire(&path, &name(bad, LockType::Backup, 1), "1").expect_err("bad name");
        assert_eq!(error.kind(), Kind::OptionInvalidValue, "{bad:?}");
        assert!(stop(&path, Some(bad)).is_err() && check_stopped(&path, Some(bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn stop_files_stop_a_stanza_or_all() {
    let dir = fresh();
    let path = dir.path().join("locks");
    check_stopped(&path, Some("main")).expect("no lock path, not stopped");
    assert!(!start(&path, None).expect("start"));
    assert!(stop(&path, Some("main")).expect("stop"));
    assert!(!stop(&path, Some("main")).expect("stopped already"));
    let error = check_stopped(&path, Some("main")).expect_err("stopped");
    assert_eq!(error.kind(), Kind::Stopped);
    assert_eq!(error.to_string(), format!("stop file '{}/main.stop' exists for stanza 'main'", path.display()));
    check_stopped(&path, Some("other")).expect("not stopped");
    check_stopped(&path, None).expect("not all");
    assert!(stop(&path, None).expect("stop"));
    for stanza in [Some("other"), None] {
        let error = check_stopped(&path, stanza).expect_err("all are stopped");
        assert!(error.to_string().ends_with("/all.stop' exists for all stanzas"), "{error}");
    }
    assert!(start(&path, Some("main")).expect("start"));
    assert!(!start(&path, Some("main")).expect("started already"));
    check_stopped(&path, Some("main")).expect_err("all are still stopped");
    assert!(start(&path, None).expect("start"));
    check_stopped(&path, Some("main")).expect("not stopped");
}

#[test]
fn terminating_asks_the_process_and_only_it() {
    let mut child = std::process::Command::new("/bin/sleep").arg("600").spawn().expect("sleep");
    let holder = Holder { pid: i32::try_from(child.id()).ok(), ..Holder::default() };
    assert!(holder.terminate().expect("ours"));
    let status = child.wait().expect("wait");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    for pid in [None, Some(0), Some(-1)] {
        assert!(!Holder { pid, ..Holder::default() }.terminate().expect("nobody"), "{pid:?}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(exec_id in "\\PC{0,40}", pid in 1..i32::MAX, done: u64, total: u64, with: bool) {
        let progress = with.then_some(Progress { done, total });
        let line = encode(&exec_id, pid.unsigned_abs(), progress);
        let holder = Holder { pid: Some(pid), exec_id: Some(exec_id), progress };
        prop_assert_eq!(decode(line.as_bytes()), Some(holder.clone()));
        let half_rewritten = format!("{line}\"szCplt\":12345678901234}}\n");
        prop_assert_eq!(decode(half_rewritten.as_bytes()), Some(holder));
    }

    #[test]
    fn any_content_is_read_without_harm(bytes: Vec<u8>) {
        decode(&bytes);
    }
}

#[test]
fn progress_is_in_the_file_from_the_begin_on_and_at_every_percent() {
    use crate::observe::{Counter, Observer, Silent};
    let dir = tempfile::tempdir().expect("a directory");
    let of = name("main", LockType::Backup, 1);
    let lock = Lock::acquire(dir.path(), &of, "1-a").expect("free");
    let said = || holder(dir.path(), &of).expect("readable").and_then(|held| held.progress);
    let progress = LockProgress::new(&Silent, Some(&lock));
    assert_eq!(said(), None);
    progress.begin("backup", 1000);
    assert_eq!(said(), Some(Progress { done: 0, total: 1000 }));
    progress.add(Counter::Done, 10);
    assert_eq!(said(), Some(Progress { done: 10, total: 1000 }));
    progress.add(Counter::New, 500);
    progress.add(Counter::Done, 990);
    assert_eq!(said(), Some(Progress { done: 1000, total: 1000 }));
    // More than was expected, and nothing at all.
    progress.add(Counter::Done, 500);
    assert_eq!(said(), Some(Progress { done: 1500, total: 1000 }));
    progress.begin("backup", 0);
    assert_eq!(said(), Some(Progress { done: 0, total: 0 }));
    LockProgress::new(&Silent, None).add(Counter::Done, 1);
}
