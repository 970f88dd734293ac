//! `archive-push` killed at any moment: what was acknowledged is there, and what was not can be pushed again.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Cluster, Mode, World, majors, seed::Seed};

/// Segments of 1 MiB, all kept by the server so that they can be compared.
fn cluster() -> support::pg::Builder {
    Cluster::builder(majors()[0])
        .initdb_arg("--wal-segsize=1")
        .setting("wal_keep_size", "1GB")
        .setting("min_wal_size", "2MB")
}

/// Every complete segment the server has, with its content.
fn segments(world: &World, up_to: &str) -> BTreeMap<String, Vec<u8>> {
    let wal = world.cluster.data_dir().join("pg_wal");
    let names = fs::read_dir(&wal).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let segments = names.filter(|name| name.len() == 24 && name.as_str() <= up_to);
    segments.map(|name| (name.clone(), fs::read(wal.join(&name)).unwrap())).collect()
}

fn assert_archived(world: &World, segments: &BTreeMap<String, Vec<u8>>) {
    let target = world.path("got");
    for (name, content) in segments {
        world.ok(["archive-get", name, target.to_str().unwrap()]);
        assert!(fs::read(&target).unwrap() == *content, "{name} came back with other content");
    }
}

#[test]
fn acknowledged_wal_survives_kills_while_the_server_archives() {
    let world = World::of(cluster(), &[]);
    // The shell stays between: the archiver itself would end for seconds when its own child is killed.
    let command = format!("{} || exit 1", world.sandbox.archive_command(support::world::STANZA));
    world.set_archive_command(&command);
    world.cluster.pgbench_init(1);
    let stop = AtomicBool::new(false);
    let mut seed = Seed::new();
    let (killed, last) = thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut killed = 0;
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(seed.below(60)));
                for pid in pushes(world.sandbox.binary(), world.sandbox.root()) {
                    _ = kill_process(pid, Signal::KILL); // it may have ended by itself
                    killed += 1;
                    thread::sleep(Duration::from_millis(100));
                }
            }
            killed
        });
        let begun = Instant::now();
        let mut last = String::new();
        while begun.elapsed() < Duration::from_secs(6) {
            // A switch wakes the archiver, which otherwise rests for a minute after three failures.
            last = world.cluster.switch_wal();
            thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        (killer.join().unwrap(), last)
    });
    assert!(killed > 0, "no push was ever killed");
    world.archive_now();
    world.wait_archived(&last);
    let segments = segments(&world, &last);
    assert!(segments.len() > 10, "{:?}", segments.keys());
    assert_archived(&world, &segments);
    world.ok(["verify"]);
}

/// Running `archive-push` of this sandbox.
fn pushes(binary: &Path, sandbox: &Path) -> Vec<Pid> {
    let of_ours = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.starts_with(binary.to_str().unwrap())
            && line.contains("archive-push")
            && line.contains(sandbox.to_str().unwrap())
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| of_ours(*pid)).filter_map(Pid::from_raw).collect()
}

#[test]
fn a_push_killed_at_any_moment_can_be_repeated() {
    let mut world = World::of(cluster(), &[]);
    world.set_archive_command("false");
    world.cluster.pgbench_init(1);
    let last = world.cluster.switch_wal();
    let segments = segments(&world, &last);
    world.cluster.stop(Mode::Fast);
    let wal = world.cluster.data_dir().join("pg_wal");
    let mut names = segments.keys();
    let push = |name: &str| wal.join(name).to_str().unwrap().to_owned();
    let begun = Instant::now();
    world.ok(["archive-push", &push(names.next().unwrap())]);
    let usual = begun.elapsed();
    let mut seed = Seed::new();
    let mut acknowledged = 0;
    for name in names {
        for _ in 0..2 {
            let mut running = world.spawn(["archive-push", &push(name)]);
            thread::sleep(usual.mul_f64(seed.below(1200) as f64 / 1000.0));
            running.signal(Signal::KILL);
            acknowledged += u32::from(running.wait().code == Some(0));
        }
        world.ok(["archive-push", &push(name)]);
    }
    println!("{acknowledged} of {} pushes ended before they were killed", 2 * (segments.len() - 1));
    assert_archived(&world, &segments);
    world.ok(["verify"]);
}
