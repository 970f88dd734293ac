//! The power of a clone's disk is cut: nothing that was acknowledged is lost, and what was not synced is old or new.
//!
//! Each test cuts at random moments, a few times; `PGKEEP_TEST_ROUNDS` says how many, `PGKEEP_TEST_SEED` repeats a run as
//! far as the machine does.

use std::{fs, path::PathBuf, thread, time::Duration};

use rustix::process::{Signal, kill_process};
use support::{Sandbox, World, seed::Seed, tree};

use crate::disk::{Disk, Lost};
use crate::ordeal::{self, Ordeal, When, rounds};
use crate::places::{Places, Served, restored, wait_ended};

/// The smallest that mkfs.xfs makes, and more than a clone needs.
const DISK_BYTES: u64 = 512 << 20;

fn lost(seed: &mut Seed) -> Lost {
    *seed.pick(&[Lost::Log, Lost::DataOnly])
}

/// The host is back: the processes of before are gone, and so is the mount.
fn back(places: &Places, disk: &Disk) {
    let daemon = places.daemon();
    kill_process(daemon, Signal::KILL).unwrap();
    wait_ended(daemon);
    pgkeep_fuse::unmount(&places.mountpoint).unwrap();
    disk.mount_again();
}

fn under_load(kind: &str, served: Served) {
    let world = ordeal::world();
    let disk = Disk::new(&world.sandbox, kind, DISK_BYTES);
    let mut ordeal = Ordeal::new(world, Some(disk), served);
    for round in 0..rounds() {
        // Everything comes in while the server works, in some rounds.
        let hydrating = (round % 2 == 1).then(|| ordeal.hydrating(6));
        let (when, lost) = (When::random(&mut ordeal.seed, round), lost(&mut ordeal.seed));
        println!("round {round}: {lost:?}, {when:?}, hydrating: {}", hydrating.is_some());
        ordeal.transfers_until(when, |disk| {
            disk.unwrap().cut(lost);
            // Until everybody has seen it.
            thread::sleep(Duration::from_millis(300));
        });
        ordeal.clone.kill9();
        back(&ordeal.places, ordeal.disk.as_ref().unwrap());
        ordeal.ok("mount", &[]);
        ordeal.check();
        ordeal.clone.kill9();
    }
    ordeal.check();
    ordeal.end_as_ordinary();
}

#[test]
fn under_load_on_ext4() {
    under_load("ext4", Served::ByPostgres);
}

#[test]
fn under_load_on_xfs() {
    under_load("xfs", Served::ByPostgres);
}

#[test]
fn under_load_on_ext4_past_the_daemon() {
    under_load("ext4", Served::ByRoot);
}

#[test]
fn under_load_on_xfs_past_the_daemon() {
    under_load("xfs", Served::ByRoot);
}

/// A clone on a disk, without a server, and a restore to compare it with.
struct Quiet {
    places: Places,
    restored: PathBuf,
    disk: Disk,
    world: World,
}

impl Quiet {
    fn new(kind: &str) -> Self {
        let world = ordeal::world();
        let disk = Disk::new(&world.sandbox, kind, DISK_BYTES);
        let places = Places { dir: disk.point().join("clone"), mountpoint: disk.point().join("data") };
        places.create(&world, &[]);
        let restored = restored(&world);
        Self { places, restored, disk, world }
    }

    fn assert_same(&self) {
        tree::assert_same(&self.restored.join("base"), &self.places.mountpoint.join("base"), |_| false);
    }

    fn sandbox(&self) -> &Sandbox {
        &self.world.sandbox
    }
}

fn while_hydrating(kind: &str) {
    let (quiet, mut seed) = (Quiet::new(kind), Seed::new());
    for round in 0..rounds() {
        let (after, lost) = (Duration::from_millis(seed.below(2500)), lost(&mut seed));
        println!("round {round}: {lost:?} after {after:?}");
        let hydrate = quiet.places.args("hydrate").into_iter().chain(["--io-limit=12MiB".to_owned()]);
        let _hydrating = quiet.world.spawn(hydrate);
        thread::sleep(after);
        quiet.disk.cut(lost);
        back(&quiet.places, &quiet.disk);
        quiet.world.ok(quiet.places.args("mount"));
        if round % 2 == 0 {
            quiet.assert_same();
        }
    }
    quiet.world.ok(quiet.places.args("hydrate"));
    // What is called done is on the disk: no orderly end, and nothing to fetch it from.
    quiet.disk.cut(Lost::Log);
    back(&quiet.places, &quiet.disk);
    let packs = quiet.sandbox().repo().join("packs");
    fs::rename(&packs, quiet.world.path("away")).unwrap();
    quiet.world.ok(quiet.places.args("promote"));
    quiet.assert_same();
    fs::rename(quiet.world.path("away"), &packs).unwrap();
}

#[test]
fn while_hydrating_on_ext4() {
    while_hydrating("ext4");
}

#[test]
fn while_hydrating_on_xfs() {
    while_hydrating("xfs");
}

fn while_promoting(kind: &str) {
    let (mut quiet, mut seed) = (Quiet::new(kind), Seed::new());
    for round in 0..rounds() {
        if round > 0 {
            let at = |name: &str| quiet.disk.point().join(format!("{name}{round}"));
            quiet.places = Places { dir: at("clone"), mountpoint: at("data") };
            quiet.places.create(&quiet.world, &[]);
        }
        quiet.world.ok(quiet.places.args("hydrate"));
        let (after, lost) = (Duration::from_millis(seed.below(600)), lost(&mut seed));
        let promoting = quiet.world.spawn(quiet.places.args("promote"));
        thread::sleep(after);
        quiet.disk.cut(lost);
        let run = promoting.wait();
        println!("round {round}: {lost:?} after {after:?}, and it ended with {:?}", run.code);
        if quiet.places.is_mounted(&quiet.world) {
            back(&quiet.places, &quiet.disk);
        } else {
            quiet.disk.mount_again();
        }
        let promoted = !quiet.places.dir.join("meta/complete").exists();
        assert!(run.code != Some(0) || promoted || quiet.places.mountpoint.join("PG_VERSION").exists(), "{run}");
        if !promoted {
            quiet.world.ok(quiet.places.args("promote"));
        }
        quiet.assert_same();
        fs::remove_dir_all(&quiet.places.mountpoint).unwrap();
        _ = fs::remove_dir_all(&quiet.places.dir); // an empty rest, if any
    }
}

#[test]
fn while_promoting_on_ext4() {
    while_promoting("ext4");
}

#[test]
fn while_promoting_on_xfs() {
    while_promoting("xfs");
}
