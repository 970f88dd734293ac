//! A spool that is in the way: it costs speed and a warning, never WAL.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::{ASYNC, archived, expect_push, ready, wal, world};
use support::{account, world::STANZA};

#[test]
fn without_a_spool_wal_is_pushed_and_fetched_alone() {
    let world = world(&[]);
    let names = ready(&world, 4);
    let target = world.path("target");
    let configure = |path: &str| {
        let all: Vec<_> = ASYNC.iter().copied().chain([("spool-path", path)]).collect();
        world.sandbox.configure(STANZA, &world.cluster, &all);
    };
    let file = world.sandbox.root().join("file");
    fs::write(&file, "").unwrap();
    let closed = world.sandbox.dir("closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    let full = world.sandbox.small_disk("full", 64 << 10);
    fs::write(full.join("filler"), vec![0; 64 << 10]).unwrap();
    account::give(&full.join("filler"));
    // Not there yet is no trouble.
    let new = world.sandbox.root().join("new/and/deep");
    fs::create_dir(world.sandbox.root().join("new")).unwrap();
    account::give(&world.sandbox.root().join("new"));
    for (path, is_usable, name) in
        [(&file, false, &names[0]), (&closed, false, &names[1]), (&full, false, &names[2]), (&new, true, &names[3])]
    {
        configure(path.to_str().unwrap());
        let run = expect_push(&world, 0, name);
        let warned = |run: &support::Run, what: &str| run.messages("WARN").iter().any(|w| w.contains(what));
        assert_eq!(warned(&run, "pushing '"), !is_usable, "{}\n{run}", path.display());
        assert!(is_usable || run.says(path.to_str().unwrap()), "{run}");
        assert!(archived(&world, "--repo=1", name).unwrap() == fs::read(wal(&world, name)).unwrap());

        let run = world.ok(["archive-get", name, target.to_str().unwrap()]);
        assert!(fs::read(&target).unwrap() == fs::read(wal(&world, name)).unwrap(), "{run}");
        fs::remove_file(&target).unwrap();
        assert!(is_usable || warned(&run, "cannot use the queue"), "{}\n{run}", path.display());
        world.expect(1, ["archive-get", "0000000100000FFF00000001", target.to_str().unwrap()]);
        assert!(!target.exists());
    }
}

#[test]
fn who_waits_too_long_says_so_and_who_is_in_the_way_is_named() {
    let world = world(&[]);
    let names = ready(&world, 1);
    // Somebody holds the stanza's archive lock, and does nothing.
    let lock = world.sandbox.locks().join(format!("{STANZA}-archive-1.lock"));
    fs::write(&lock, "{\"execId\":\"1-x\",\"pid\":1}\n").unwrap();
    account::give(&lock);
    let held = fs::File::open(&lock).unwrap();
    held.lock().unwrap();
    let path = wal(&world, &names[0]);
    let run = world.expect(82, ["--archive-timeout=1", "archive-push", path.to_str().unwrap()]);
    assert!(run.says("[082]") && run.says(&names[0]), "{run}");
    // Who is asked for WAL does not wait for others' work.
    let target = world.path("target");
    let run = world.expect(1, ["archive-get", &names[0], target.to_str().unwrap()]);
    assert!(!run.says("asynchronously"), "{run}");
    drop(held);
    expect_push(&world, 0, &names[0]);
    world.ok(["archive-get", &names[0], target.to_str().unwrap()]);
}
