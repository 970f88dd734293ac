//! `restore --instant`: used at once, ordinary in the end, whatever happens in between.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Cluster, Mode, World, world::data};

use crate::places::{below, wait_until, world};
use crate::{MAJOR, account};

/// Where the clone is as long as there is one.
fn hidden(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap().to_str().unwrap();
    target.with_file_name(format!(".{name}.pgkeep"))
}

fn is_ordinary(world: &World, target: &Path) -> bool {
    !world.sandbox.mounts().contains(&target.to_path_buf()) && !hidden(target).exists()
}

/// The process that serves it.
fn daemon(target: &Path) -> Pid {
    support::sandbox::serving(&format!("--pg1-path={}", target.display()))
}

#[test]
fn a_server_runs_at_once_and_in_the_end_on_an_ordinary_directory() {
    let (world, _) = world();
    world.mark(1);
    world.archive_now();
    let expected = data(&world.cluster);
    let target = world.path("instant");
    let run = world.restore_to(&target, ["--instant"]);
    assert!(run.says("can be used: start its server as always"), "{run}");
    assert!(world.sandbox.mounts().contains(&target));
    // Settings are those of a restore, not of a clone.
    let auto_conf = fs::read_to_string(target.join("postgresql.auto.conf")).unwrap();
    assert!(auto_conf.contains("restore_command = '") && !auto_conf.contains("cluster_name"), "{auto_conf}");
    let conf = fs::read(target.join("postgresql.conf")).unwrap();
    assert!(conf == fs::read(world.cluster.data_dir().join("postgresql.conf")).unwrap());
    let run = world.restore_to(&target, ["--instant"]);
    assert!(run.says("is served already"), "{run}");
    // Another target is not taken for this one, and what the server writes is not removed by accident.
    let place = format!("--pg1-path={}", target.display());
    let run = world.expect(32, [place.as_str(), "--instant", "--type=immediate", "restore"]);
    assert!(run.says("was begun from backup") && run.says("with type 'default', not 'immediate'"), "{run}");
    let run = world.expect(32, ["clone", "destroy", &format!("--dir={}", hidden(&target).display())]);
    assert!(run.says("--force removes it"), "{run}");

    let mut cluster = world.adopt(&target);
    cluster.start();
    cluster.wait_promoted();
    assert_eq!(data(&cluster), expected);
    cluster.psql("UPDATE pgbench_accounts SET abalance = aid WHERE aid % 3 = 0; CREATE TABLE ours AS SELECT 1 AS one");
    let changed = data(&cluster);
    let state = || {
        let dir = format!("--dir={}", hidden(&target).display());
        world.ok(["clone", "info", &dir, "--output=json"]).json()["hydration"]["state"].clone()
    };
    wait_until("hydration", || state() == "done");
    // Where its server listens is known as long as it runs.
    let dir = format!("--dir={}", hidden(&target).display());
    let told = world.ok(["clone", "info", &dir, "--output=json"]).json();
    assert_eq!((&told["port"], told["postmaster"].is_u64()), (&cluster.port().into(), true), "{told}");
    // What is not the restore's own to say.
    for what in ["start", "reset"] {
        let run = world.expect(32, ["clone", what, &format!("--dir={}", hidden(&target).display())]);
        assert!(run.says("is a restore that is not complete"), "{run}");
    }
    assert_eq!(data(&cluster), changed);
    cluster.stop(Mode::Fast);
    wait_until("an ordinary directory", || is_ordinary(&world, &target));
    cluster.start();
    assert_eq!(data(&cluster), changed);
    cluster.amcheck();
    cluster.stop(Mode::Fast);
}

#[test]
fn it_is_promoted_with_its_server_when_asked() {
    let (world, _) = world();
    let target = world.path("asked");
    world.restore_to(&target, ["--instant", "--type=immediate", "--target-action=promote"]);
    let mut cluster = world.adopt(&target);
    cluster.start();
    cluster.wait_promoted();
    let before = data(&cluster);
    let (dir, bin) = (hidden(&target), world.cluster.binaries().dir().display().to_string());
    let dir = format!("--dir={}", dir.display());
    let run = world.ok(["clone", "promote", &dir, &format!("--pg-bin={bin}")]);
    assert!(run.says("is an ordinary data directory now; its server runs again") && !run.says("port"), "{run}");
    assert!(is_ordinary(&world, &target));
    let pid = fs::read_to_string(target.join("postmaster.pid")).unwrap().lines().next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    wait_until("the end of the server", || !target.join("postmaster.pid").exists());
    drop(cluster);
    let mut cluster = Cluster::adopt(MAJOR, &target);
    cluster.start();
    assert_eq!(data(&cluster), before);
    cluster.stop(Mode::Fast);
}

#[test]
fn without_a_server_it_becomes_what_a_restore_brings_even_if_its_daemon_is_killed() {
    let (world, _) = world();
    let classic = world.path("classic");
    world.restore_to(&classic, ["--type=none"]);
    let target = world.path("killed");
    world.restore_to(&target, ["--instant", "--type=none"]);
    kill_process(daemon(&target), Signal::KILL).unwrap();
    wait_until("the end of the mount", || fs::read_dir(&target).is_err());
    let run = world.restore_to(&target, ["--instant", "--type=none"]);
    assert!(run.says("can be used") || run.says("is an ordinary data directory now"), "{run}");
    wait_until("an ordinary directory", || is_ordinary(&world, &target));
    let (mut classic, mut instant) = (below(&classic), below(&target));
    // A classic restore takes the checkpoint out, which is 8 bytes and 4 of the CRC.
    let control = Path::new("global/pg_control");
    let (a, b) = (classic.remove(control).unwrap(), instant.remove(control).unwrap());
    let differ = a.1.iter().zip(&b.1).filter(|(a, b)| a != b).count();
    assert!(a.0 == b.0 && a.1.len() == b.1.len() && differ <= 12, "{differ} bytes of pg_control differ");
    for (a, b) in classic.iter().zip(&instant) {
        assert!(a == b, "{} and {} differ: modes {:o} and {:o}", a.0.display(), b.0.display(), a.1.0, b.1.0);
    }
    assert_eq!(classic.len(), instant.len());
}

#[test]
fn looked_at_elsewhere_it_stays_a_restore_of_its_place() {
    let (world, _) = world();
    let (target, look) = (world.path("looked"), world.path("look"));
    world.restore_to(&target, ["--instant", "--type=none"]);
    let dir = format!("--dir={}", hidden(&target).display());
    let run = world.ok(["clone", "stop", &dir]);
    assert!(run.says("the restore of '") && run.says("until the same 'restore --instant' as before goes on"), "{run}");
    let run = world.ok(["clone", "info", &dir]);
    assert!(run.says("status: not mounted\n"), "{run}");
    world.ok(["clone", "mount", &dir, &format!("--mountpoint={}", look.display())]);
    let place = format!("--pg1-path={}", target.display());
    let run = world.expect(40, [place.as_str(), "--instant", "--type=none", "restore"]);
    assert!(run.says(&format!("is mounted on '{}'", look.display())), "{run}");
    let state = || world.ok(["clone", "info", &dir, "--output=json"]).json()["hydration"]["state"].clone();
    wait_until("hydration", || state() == "done");
    world.ok(["clone", "stop", &dir]);
    assert!(hidden(&target).is_dir() && fs::read_dir(&target).unwrap().next().is_none());
    // All is there: nothing is served for it.
    let run = world.restore_to(&target, ["--instant", "--type=none"]);
    assert!(run.says("is an ordinary data directory now"), "{run}");
    assert!(is_ordinary(&world, &target) && target.join("PG_VERSION").is_file());
}

#[test]
fn what_an_instant_restore_cannot_do_it_refuses_and_leaves_all_as_it_was() {
    let (world, _) = world();
    let target = world.sandbox.dir("refused");
    let restore = |code, more: &[&str]| {
        let place = format!("--pg1-path={}", target.display());
        let run =
            world.expect(code, [&place].into_iter().map(String::as_str).chain(more.iter().copied()).chain(["restore"]));
        assert!(!world.sandbox.mounts().contains(&target), "{run}");
        assert!(!hidden(&target).join("meta").exists(), "{run}");
        run
    };
    fs::write(target.join("mine"), "mine").unwrap();
    for more in [&["--instant"][..], &["--instant", "--delta"], &["--instant", "--delta", "--force"]] {
        let run = restore(40, more);
        assert!(run.says("is not empty") && run.says("needs an empty directory, also with --delta"), "{run}");
        assert!(!run.says("hint: --delta"), "{run}");
    }
    assert_eq!(fs::read(target.join("mine")).unwrap(), b"mine");
    fs::remove_file(target.join("mine")).unwrap();

    let run = restore(31, &["--instant", "--tablespace-map-all=/srv"]);
    assert!(run.says("option 'tablespace-map-all' is not valid with option 'instant'"), "{run}");
    let run = restore(31, &["--instant", "--link-all"]);
    assert!(run.says("option 'link-all' is not valid with option 'instant'"), "{run}");
    let run = restore(31, &["--foreground"]);
    assert!(run.says("option foreground is not valid without option 'instant'"), "{run}");
    let run = restore(75, &["--instant", "--set=20200101-000000F"]);
    assert!(run.says("20200101-000000F"), "{run}");
    // Another one's directory where the clone would be.
    fs::create_dir(hidden(&target)).unwrap();
    account::give(&hidden(&target));
    fs::write(hidden(&target).join("theirs"), "theirs").unwrap();
    let run = restore(40, &["--instant"]);
    assert!(run.says("theirs"), "{run}");
    assert_eq!(fs::read(hidden(&target).join("theirs")).unwrap(), b"theirs");
}

#[test]
fn a_backup_with_tablespaces_is_left_to_a_classic_restore() {
    let world = World::new(MAJOR);
    let space = world.sandbox.dir("space");
    world.cluster.psql(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()));
    world.backup("full");
    let target = world.path("spaces");
    let place = format!("--pg1-path={}", target.display());
    let run = world.run([place.as_str(), "--instant", "restore"]);
    assert_ne!(run.code, Some(0), "{run}");
    assert!(run.says("has tablespaces, which an instant restore cannot put where they belong"), "{run}");
    assert!(!hidden(&target).exists() && !world.sandbox.mounts().contains(&target));
}
