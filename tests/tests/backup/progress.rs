//! How far a backup or a restore is, as `info` on the same host shows it.

use std::{
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use support::{Running, World, faulty::Faulty, majors};

/// Waits until `info` says that some of the work is done, and not all.
fn wait_for_part(world: &World, running: &mut Running, what: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let lock = world.info()["status"]["lock"][what].clone();
        let (size, done) = (lock["size"].as_u64().unwrap_or(0), lock["size-cplt"].as_u64().unwrap_or(0));
        if 0 < done && done < size {
            assert_eq!(lock["held"], true);
            return lock;
        }
        assert!(!running.ended() && Instant::now() < deadline, "{lock}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn info_tells_how_far_a_backup_and_a_restore_are() {
    let world = World::new(majors()[0]);
    world.cluster.pgbench_init(2);
    // Half a minute for all of it, of which some seconds are seen.
    let mut running = world.spawn(["--start-fast", "--type=full", "--io-limit=1MiB", "backup"]);
    let lock = wait_for_part(&world, &mut running, "backup");
    assert_eq!(lock["repo"][0]["size"], lock["size"]);
    let text = world.ok(["info"]);
    assert!(text.says("backup/expire running - "), "{text}");
    running.signal(Signal::TERM);
    let run = running.wait();
    assert_eq!(run.code, Some(63), "{run}");

    world.backup("full");
    let slow = Faulty::mount(&world.sandbox.repo(), &world.sandbox.dir("slow"));
    slow.set_delay(Duration::from_millis(50));
    let target = world.sandbox.dir("target");
    let mut running = world.spawn([
        &format!("--repo1-path={}", slow.mountpoint().display()),
        &format!("--pg1-path={}", target.display()),
        "--process-max=1",
        "restore",
    ]);
    let lock = wait_for_part(&world, &mut running, "restore");
    assert!(lock["size"].as_u64() > Some(20 << 20), "{lock}");
    let text = world.ok(["info"]);
    assert!(text.says("restore running - "), "{text}");
    slow.set_delay(Duration::ZERO);
    let run = running.wait();
    assert_eq!(run.code, Some(0), "{run}");
}
