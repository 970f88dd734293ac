//! On real servers.

use std::{fs, path::Path, process::Command};

use rustix::process::test_kill_process;
use serde_json::Value;
use support::world::{data, label};
use support::{World, majors, tree};

/// Bytes of the packs.
fn stored(world: &World) -> u64 {
    tree::files(&world.sandbox.repo().join("packs")).values().sum()
}

/// Objects below a directory of the repository.
fn left(world: &World, dir: &str) -> usize {
    let dir = world.sandbox.repo().join(dir);
    if dir.exists() { tree::files(&dir).len() } else { 0 }
}

fn collect(world: &World, args: &[&str]) -> Value {
    let mut all = vec!["--log-level-console=info", "gc", "--output=json"];
    all.extend(args);
    world.sandbox.run_ok(all).json()[0].take()
}

#[test]
fn what_expires_gives_its_space_back_and_what_stays_restores() {
    let major = *majors().last().expect("a major");
    let world = World::new(major);
    world.cluster.pgbench_init(2);
    // More than a pack holds, so that some hold nothing else.
    world.cluster.psql(
        "CREATE TABLE old AS SELECT g, (SELECT decode(string_agg(md5(g::text || i::text), ''), 'hex') \
         FROM generate_series(1, 60) i) FROM generate_series(1, 70000) g",
    );
    let first = world.backup("full");
    world
        .cluster
        .psql("DROP TABLE old; CREATE TABLE new AS SELECT g, md5((g * 7)::text) FROM generate_series(1, 1000) g");
    world.backup("incr");
    world.cluster.psql("UPDATE pgbench_accounts SET filler = md5(aid::text)");
    let kept = world.backup("full");
    let last = world.backup("incr");

    // Nothing goes unless it is asked for.
    let before = stored(&world);
    world.ok(["expire", "--repo1-retention-full=1", "--no-gc-auto"]);
    assert_eq!((world.labels(), stored(&world)), (vec![kept.clone(), last], before));
    let dry = collect(&world, &["--dry-run"]);
    assert!(dry["pack"]["removed"]["size"].as_u64().is_some_and(|bytes| bytes > before / 4), "{dry}");
    assert_eq!((dry["published"].as_bool(), stored(&world)), (Some(false), before));

    // While a backup runs, which may use what is condemned, it stays.
    world.cluster.psql("UPDATE pgbench_branches SET filler = 'x'");
    let expected = data(&world.cluster);
    let slow = ["--start-fast", "--type=full", "--io-limit=16MiB", "--no-expire-auto", "backup"];
    let mut running = world.spawn(slow);
    let sessions = || tree::files(&world.sandbox.repo().join("ses")).keys().filter(|p| p.ends_with("open")).count();
    let known = 4;
    while sessions() == known && !running.ended() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let beside = collect(&world, &[]);
    let ended = running.ended();
    let run = running.wait();
    assert_eq!(run.code, Some(0), "{run}");
    assert!(!ended, "the backup was too fast for this test\n{run}");
    assert_eq!(beside["session"]["open"].as_array().map(Vec::len), Some(1), "{beside}");
    assert_eq!(beside["pack"]["removed"]["count"], 0, "{beside}");
    // That, and what was rewritten.
    let (waiting, dead) = (&beside["pack"]["waiting"]["size"], &dry["pack"]["removed"]["size"]);
    assert!(waiting.as_u64() > dead.as_u64() && beside["pack"]["rewritten"]["count"] != 0, "{beside} {dry}");
    assert!(world.labels().contains(&label(&run)));
    world.ok(["verify"]);
    // What a backup does not use may wait to go without harm to who builds on it.
    let next = world.ok(["--start-fast", "--type=incr", "--no-expire-auto", "backup"]);
    assert!(!next.says("nothing is compared with it"), "{next}");

    // Then it goes, with the records of its backups.
    let full = stored(&world);
    let after = collect(&world, &[]);
    let bytes = |report: &Value, what: &str| report["pack"][what].as_u64().expect("a number");
    let removed = after["pack"]["removed"]["size"].as_u64().expect("a number");
    assert!(removed > 0 && stored(&world) == full - removed + bytes(&after, "rewritten-to"), "{after}");
    collect(&world, &[]);
    let again = collect(&world, &[]);
    assert_eq!((again["pack"]["removed"]["count"].as_u64(), again["published"].as_bool()), (Some(0), Some(false)));
    assert_eq!((left(&world, "refs"), left(&world, "expired"), left(&world, "backups")), (4, 0, 4));
    let verified = world.ok(["verify"]);
    assert!(verified.messages("WARN").is_empty(), "{verified}");
    let set = format!("--set={kept}");
    let mut restored = world.restore("kept", [set.as_str()]);
    restored.start();
    restored.wait_promoted();
    assert_eq!(data(&restored), expected);
    drop(restored);

    // By itself at the end of a backup; and the next backups build on what is left.
    let before = stored(&world);
    let run = world.ok(["--start-fast", "--type=full", "--repo1-retention-full=1", "--gc-auto", "backup"]);
    assert!(run.messages("INFO").iter().any(|m| m.starts_with("repo1: removed ") && !m.contains("nothing")), "{run}");
    assert!(stored(&world) < before);
    world.backup("incr");
    world.ok(["verify"]);
    assert_ne!(first, kept);
    a_clone_of_what_expires_works_on(&world, &label(&run));
    a_host_that_froze_is_given_up(&world);
    what_fails_fails_neither_retention_nor_a_backup(&world);
}

/// A backup that stands still for days is given up by another host; when it wakes up it says so, and has changed nothing.
fn a_host_that_froze_is_given_up(world: &World) {
    let before = world.labels();
    let slow = ["--start-fast", "--type=full", "--io-limit=4MiB", "--no-expire-auto", "backup"];
    let mut running = world.spawn(slow);
    let sessions = world.sandbox.repo().join("ses");
    let known = tree::files(&sessions);
    support::wait_until("a sign of life", || {
        tree::files(&sessions).keys().any(|p| !known.contains_key(p) && !p.ends_with("open"))
    });
    running.signal(rustix::process::Signal::STOP);
    // By the times of the repository, that was four days ago.
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(4 * 24 * 3600);
    for path in tree::files(&sessions).keys() {
        fs::File::open(sessions.join(path)).and_then(|f| f.set_modified(long_ago)).expect("a time");
    }
    let collected = collect(world, &[]);
    assert_eq!(collected["session"]["fenced"].as_array().map(Vec::len), Some(1), "{collected}");
    running.signal(rustix::process::Signal::CONT);
    let run = running.wait();
    assert_eq!(run.code, Some(50), "{run}");
    assert!(run.says("was fenced by garbage collection after a long silence"), "{run}");
    assert_eq!(world.labels(), before);
    world.backup("incr");
    collect(world, &[]);
    world.ok(["verify"]);
}

/// One backup is there, and two more are made; of the newest nobody can tell any more what it uses.
fn what_fails_fails_neither_retention_nor_a_backup(world: &World) {
    world.backup("full");
    let refs = world.sandbox.repo().join("refs");
    let before = tree::files(&refs);
    world.backup("full");
    let new = tree::files(&refs).into_keys().find(|name| !before.contains_key(name)).expect("a record");
    fs::remove_file(refs.join(new)).expect("it can be removed");
    let run = world.expect(104, ["expire", "--repo1-retention-full=2", "--gc-auto", "--output=json"]);
    assert!(run.says("repo1: gc failed: [055]") && run.says("expire is complete"), "{run}");
    assert_eq!(run.json()[0]["repo"], 1, "{run}");
    assert_eq!(world.labels().len(), 2);
    let run = world.ok(["--start-fast", "--type=full", "--repo1-retention-full=2", "--gc-auto", "backup"]);
    assert!(run.messages("WARN").iter().any(|m| m.starts_with("repo1: gc failed, and is left to the next run: [055]")));
    assert_eq!(world.labels().len(), 2);
    assert!(world.labels().contains(&label(&run)));
}

fn a_clone_of_what_expires_works_on(world: &World, of: &str) {
    let set = format!("--set={of}");
    let plain = world.path("plain");
    world.restore_to(&plain, [set.as_str(), "--type=none"]);
    let (dir, mountpoint) = (world.path("c.clone"), world.path("c"));
    let places = [format!("--dir={}", dir.display()), format!("--mountpoint={}", mountpoint.display())];
    let clone = |what: &str, more: &[&str]| {
        let places = &places[..if what == "destroy" { 1 } else { 2 }];
        world.ok(["clone", what].into_iter().chain(places.iter().map(String::as_str)).chain(more.iter().copied()))
    };
    let same = || {
        let files = tree::files(&plain.join("base"));
        assert!(files.len() > 200);
        for file in files.keys() {
            let read = |root: &Path| fs::read(root.join("base").join(file)).expect("a file");
            assert!(read(&plain) == read(&mountpoint), "{}", file.display());
        }
    };
    clone("create", &[set.as_str(), "--type=immediate"]);
    let run = world.ok(["--start-fast", "--type=full", "--repo1-retention-full=1", "--gc-auto", "backup"]);
    assert_eq!(world.labels(), [label(&run)]);
    // What it reads may be moved, and not go.
    let collected = collect(world, &[]);
    assert_eq!(collected["pinned"].as_u64(), Some(1));
    same();
    // Also when it is mounted again.
    let daemon = support::sandbox::serving(&format!("--dir={}", dir.display()));
    let unmounted = Command::new("umount").arg(&mountpoint).status().expect("umount");
    assert!(unmounted.success());
    support::wait_until("the end of the process that served it", || test_kill_process(daemon).is_err());
    clone("mount", &[]);
    same();
    // With the clone the rest goes.
    clone("destroy", &[]);
    let collected = collect(world, &[]);
    assert_eq!(collected["pinned"], 0, "{collected}");
    assert!(collected["pack"]["removed"]["size"].as_u64().is_some_and(|bytes| bytes > 0), "{collected}");
    assert_eq!(left(world, "pins"), 0);
    world.ok(["verify"]);
}
