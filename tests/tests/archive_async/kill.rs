//! Processes killed at any moment while a server archives: what it was told is true, and nothing is lost.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, kill_process};
use support::{World, seed::Seed, world::STANZA};

use super::{archived, running, two, wal};

/// Segments that the server was told are archived, and what they hold.
fn acknowledged(world: &World) -> BTreeMap<String, Vec<u8>> {
    let marks = fs::read_dir(wal(world, "archive_status")).unwrap();
    let names = marks.filter_map(|mark| mark.unwrap().file_name().to_str()?.strip_suffix(".done").map(str::to_owned));
    let held = names.filter_map(|name| fs::read(wal(world, &name)).ok().map(|content| (name, content)));
    held.collect()
}

#[test]
fn acknowledged_wal_is_in_every_repository_whoever_is_killed() {
    let (world, _) = two();
    // The shell stays between: the archiver itself would end for seconds when its own child is killed.
    world.set_archive_command(&format!("{} || exit 1", world.sandbox.archive_command(STANZA)));
    world.cluster.pgbench_init(1);
    let backup = world.backup("full");
    let stop = AtomicBool::new(false);
    let mut seed = Seed::new();
    let (killed, last) = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut killed = 0;
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(seed.below(120)));
                let running = running(&world, "archive-push");
                // One of them, the one that was asked or the one behind it.
                if let Some(pid) = running.get(seed.below(running.len().max(1) as u64) as usize) {
                    _ = kill_process(*pid, Signal::KILL); // it may have ended by itself
                    killed += 1;
                }
            }
            killed
        });
        let begun = Instant::now();
        let mut last = String::new();
        while begun.elapsed() < Duration::from_secs(8) {
            world.cluster.psql("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid < 500");
            // A switch wakes the archiver, which otherwise rests for a minute after three failures.
            last = world.cluster.switch_wal();
            thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        (killer.join().unwrap(), last)
    });
    assert!(killed > 5, "{killed} processes were killed");
    for (name, content) in acknowledged(&world) {
        for repository in ["--repo=1", "--repo=2"] {
            let found = archived(&world, repository, &name);
            assert!(found.is_some_and(|found| found == content), "{name} is acknowledged and not in {repository}");
        }
    }
    world.archive_now();
    world.wait_archived(&last);
    world.ok(["verify"]);

    // All of it can be replayed, out of the repository that the backup is not in too.
    let data = world.cluster.fingerprint();
    let mut restored = world.restore("restored", [format!("--set={backup}"), "--target-timeline=current".into()]);
    restored.start();
    restored.wait_promoted();
    assert_eq!(restored.fingerprint(), data);
}
