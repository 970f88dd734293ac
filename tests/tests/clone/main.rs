//! Clones and mounts: a server runs on a backup within seconds, and nothing it does reaches the repository.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
};

use rustix::process::{Signal, kill_process};
use support::{
    Cluster, Mode, World, account, pg, tree,
    world::{data, marks},
};

mod branch;
mod damage;
mod disk;
mod faults;
mod full;
mod instant;
mod kept;
mod killed;
mod life;
mod modes;
mod options;
mod ordeal;
mod places;
mod power;
mod sql;
mod told;
mod traces;

use places::{Places, everything, logged, wait_ended, wait_until, world};

/// The major all these run with: what differs between majors is the restore's to test.
const MAJOR: u32 = 15;

/// Names and sizes of all objects of the repository but WAL, which the source goes on to archive, and what clones record
/// of what they needed first.
fn objects(world: &World) -> BTreeMap<PathBuf, u64> {
    let mut found = tree::files(&world.sandbox.repo());
    found.retain(|path, _| !["wal", "traces"].iter().any(|part| path.starts_with(world.sandbox.repo().join(part))));
    found
}

#[test]
fn a_clone_is_a_server_of_its_own_and_leaves_no_trace() {
    let (world, label) = world();
    let first = world.mark(1);
    world.mark(2);
    world.archive_now();
    let last = data(&world.cluster);
    let before = objects(&world);

    let (at_target, newest) = (Places::new(&world, "a"), Places::new(&world, "n"));
    let target = format!("--target={}", first.time);
    let run = at_target.create(&world, &["--type=time", &target, "--port=54999"]);
    assert!(run.says(&format!("clone of backup {label} is mounted on {}", at_target.mountpoint.display())), "{run}");
    let start = run.stdout.lines().find_map(|line| line.strip_prefix("to start:   ")).expect("how to start it");
    let program = start.strip_suffix(&format!(" -D {} start", at_target.mountpoint.display()));
    assert!(program.is_some_and(|p| p.starts_with('/') && Path::new(p).is_file()), "{run}");
    let destroy = format!("to remove:  {} clone destroy --dir=", world.sandbox.binary().display());
    assert!(run.says(&destroy), "{run}");
    let told = newest.create(&world, &["--output=json", "--log-level-console=info"]).json();
    assert_eq!(told["mountpoint"], newest.mountpoint.to_str().unwrap());
    assert_eq!(told["label"], label);
    let port = told["port"].as_u64().unwrap();
    assert!(port >= 5433, "{told}");

    let mut clone = at_target.server();
    assert!(data(&clone) == first.data);
    assert_eq!(marks(&clone), [0u32; 0]);
    for (name, value) in [("archive_mode", "off"), ("primary_conninfo", ""), ("recovery_init_sync_method", "fsync")] {
        assert_eq!(clone.psql(&format!("SHOW {name}")), value, "{name}");
    }
    assert!(clone.psql("SHOW cluster_name").starts_with("pgkeep_demo_"));
    clone.psql("CREATE TABLE ours AS SELECT generate_series(1, 10000) AS i");
    clone.psql("UPDATE pgbench_accounts SET abalance = 7");
    clone.psql("CHECKPOINT");
    clone.psql("SELECT pg_switch_wal()");

    // A second clone beside it, to the end of the archive, by its own settings alone.
    let auto = fs::read_to_string(newest.mountpoint.join("postgresql.auto.conf")).unwrap();
    assert!(auto.contains(&format!("port = '{port}'\nlisten_addresses = 'localhost'\n")), "{auto}");
    let mut other = newest.server();
    assert!(data(&other) == last);
    assert_eq!(marks(&other), [1, 2]);
    other.amcheck();

    let parent = format!("--dir={}", world.sandbox.root().display());
    let listed = world.sandbox.run_ok(["clone", "list", &parent, "--output=json"]).json();
    let rows = listed.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["dir"].as_str(), at_target.dir.to_str());
    assert_eq!(rows[0]["mountpoint"].as_str(), at_target.mountpoint.to_str());
    // The server says where it listens; it was told another port than the clone was made with.
    assert_eq!(
        (rows[0]["label"].as_str(), rows[0]["port"].as_u64()),
        (Some(label.as_str()), Some(clone.port().into()))
    );
    assert!(rows[1]["postmaster"].is_u64());

    // A clone somebody uses is not removed by mistake; by force its server ends with it.
    let run = world.expect(38, at_target.args("destroy"));
    assert!(run.says("--force"), "{run}");
    clone.stop(Mode::Fast);
    world.ok(at_target.args("destroy"));
    world.ok(newest.args("destroy").into_iter().chain(["--force".to_owned()]));
    assert!(other.wait_end() || !other.running());
    for places in [&at_target, &newest] {
        assert!(!places.dir.exists() && !places.is_mounted(&world));
        assert_eq!(fs::read_dir(&places.mountpoint).unwrap().count(), 0);
    }
    assert_eq!(objects(&world), before);
    assert!(data(&world.cluster) == last);
    assert_eq!(world.cluster.psql("SELECT count(*) FROM pg_tables WHERE tablename = 'ours'"), "0");
}

#[test]
fn a_clone_whose_daemon_died_is_mounted_again() {
    let (world, label) = world();
    world.archive_now();
    let places = Places::new(&world, "m");
    places.create(&world, &[]);
    let mut clone = places.server();
    clone.psql("CREATE TABLE kept AS SELECT generate_series(1, 10000) AS i");
    kill_process(places.daemon(), Signal::KILL).unwrap();
    wait_until("the end of the mount", || fs::read_dir(&places.mountpoint).is_err());
    // A server that is left on what is dead would write into the new mount.
    let run = world.expect(38, places.args("mount").into_iter().take(3));
    assert!(run.says("--force ends it"), "{run}");
    let run = world.ok(places.args("mount").into_iter().take(3).chain(["--force".to_owned()]));
    assert!(run.says(&format!("clone of backup {label} is mounted")), "{run}");
    assert!(clone.wait_end());
    clone.start();
    assert_eq!(clone.psql("SELECT count(*) FROM kept"), "10000");
    clone.amcheck();
    world.expect(
        50,
        places.args("mount").into_iter().take(3).chain([format!("--mountpoint={}", world.path("else").display())]),
    );
    clone.stop(Mode::Fast);

    // Asked to end, the daemon unmounts by itself; so it does when somebody else unmounts.
    let daemon = places.daemon();
    kill_process(daemon, Signal::TERM).unwrap();
    wait_ended(daemon);
    assert!(!places.is_mounted(&world));
    world.ok(places.args("mount"));
    let daemon = places.daemon();
    pgkeep_fuse::unmount(&places.mountpoint).unwrap();
    wait_ended(daemon);
    let log = logged(&world);
    assert_eq!(log.matches("is not mounted any more").count(), 2, "{log}");
    world.ok(places.args("mount"));
    clone.start();
    assert_eq!(clone.psql("SELECT count(*) FROM kept"), "10000");
    clone.stop(Mode::Fast);
    world.ok(places.args("destroy"));
}

fn a_tablespace_made_after_the_backup_is_the_clones_own_in(major: u32) {
    let world = World::of(Cluster::builder(major).setting("autovacuum", "off"), &[]);
    world.backup("full");
    let location = world.cluster.side_dir("space");
    world.cluster.psql(&format!("CREATE TABLESPACE later LOCATION '{}'", location.display()));
    world.cluster.psql("CREATE TABLE kept TABLESPACE later AS SELECT generate_series(1, 20000) AS i");
    world.cluster.psql("CREATE DATABASE there TABLESPACE later");
    world.cluster.psql("CHECKPOINT");
    world.archive_now();
    let before = everything(&location);
    assert!(before.len() > 100, "{}", before.len());

    let places = Places::new(&world, "m");
    places.create(&world, &[]);
    let mut clone = Cluster::adopt(major, &places.mountpoint);
    clone.start();
    clone.wait_promoted();
    assert!(everything(&location) == before, "replay changed the original's files");
    let sum = "SELECT count(*) || ' ' || sum(i) FROM kept";
    let whole = world.cluster.psql(sum);
    assert_eq!(clone.psql(sum), whole);
    clone.psql("UPDATE kept SET i = -i");
    clone.psql("CREATE TABLE fresh TABLESPACE later AS SELECT 1 AS i");
    clone.amcheck();
    clone.stop(Mode::Immediate);
    clone.start();
    assert_eq!(clone.psql(sum), whole.replace(' ', " -"));
    assert_eq!(clone.psql("SELECT i FROM fresh"), "1");
    assert!(everything(&location) == before, "the clone writes into the original's files");

    clone.psql("DROP TABLE kept, fresh");
    clone.psql("DROP DATABASE there");
    clone.psql("DROP TABLESPACE later");
    clone.stop(Mode::Fast);
    assert!(everything(&location) == before, "the clone removed the original's files");
    world.ok(places.args("destroy"));
    assert!(everything(&location) == before);
    assert_eq!(world.cluster.psql(sum), whole);
}

#[test]
fn a_tablespace_made_after_the_backup_is_the_clones_own() {
    pg::majors().into_iter().for_each(a_tablespace_made_after_the_backup_is_the_clones_own_in);
}

#[test]
fn a_clone_in_use_is_never_taken_away() {
    let (world, _) = world();
    let places = Places::new(&world, "m");
    places.create(&world, &[]);
    let mut clone = places.server();
    clone.psql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i");

    // Asked to end, the daemon stops the server first, in order.
    let daemon = places.daemon();
    kill_process(daemon, Signal::TERM).unwrap();
    assert!(clone.wait_end(), "the server runs on");
    wait_ended(daemon);
    assert!(!places.is_mounted(&world));
    assert!(clone.log().contains("received fast shutdown request"), "{}", clone.log_tail());
    assert!(!places.dir.join("data/postmaster.pid").exists());

    // While somebody else uses it, it stays: for the daemon and for `destroy`.
    world.ok(places.args("mount"));
    let held = fs::File::open(places.mountpoint.join("PG_VERSION")).unwrap();
    let daemon = places.daemon();
    let run = world.expect(100, places.args("destroy"));
    assert!(run.says("is used by processes"), "{run}");
    kill_process(daemon, Signal::TERM).unwrap();
    let log = || logged(&world);
    wait_until("the daemon's notice", || log().contains("is served until it can be unmounted"));
    assert!(places.is_mounted(&world));
    drop(held);
    wait_ended(daemon);
    assert!(!places.is_mounted(&world));

    // A server without a mount is found all the same.
    world.ok(places.args("mount"));
    clone.start();
    let daemon = places.daemon();
    pgkeep_fuse::unmount(&places.mountpoint).unwrap();
    assert!(!places.is_mounted(&world) && clone.running());
    let run = world.ok(places.args("list"));
    assert!(run.says("not mounted, but server"), "{run}");
    world.expect(38, places.args("mount"));
    world.expect(38, places.args("destroy"));
    let other = Places { dir: world.path("other.clone"), mountpoint: places.mountpoint.clone() };
    let run = world.expect(38, other.args("create"));
    assert!(run.says("takes") && !other.dir.exists(), "{run}");
    clone.kill9();
    wait_ended(daemon);
    world.ok(places.args("mount"));
    clone.start();
    assert_eq!(clone.psql("SELECT count(*) FROM kept"), "1000");
    clone.stop(Mode::Fast);
    world.ok(places.args("destroy"));
}

#[test]
fn a_clone_is_started_where_it_is_mounted_whatever_its_files_include() {
    let world = World::new(MAJOR);
    let (dir, data) = (world.sandbox.dir("conf.d"), world.cluster.data_dir().display().to_string());
    let included = dir.join("places.conf");
    let places_of =
        format!("data_directory = '{data}'\nhba_file = '{data}/pg_hba.conf'\nexternal_pid_file = '{data}/x.pid'\n");
    fs::write(&included, places_of).unwrap();
    world.cluster.configure("include_dir", &dir.display().to_string());
    world.backup("full");
    let before = fs::read(world.cluster.data_dir().join("postmaster.pid")).unwrap();
    let places = Places::new(&world, "m");
    let conninfo = "host=/nowhere user=x";
    places.create(&world, &["--type=standby", &format!("--recovery-option=primary_conninfo={conninfo}")]);
    let mut clone = Cluster::adopt(MAJOR, &places.mountpoint);
    for moved in [false, true] {
        if moved {
            world.ok([
                "clone",
                "mount",
                &format!("--dir={}", places.dir.display()),
                &format!("--mountpoint={}", world.path("n").display()),
            ]);
            clone = Cluster::adopt(MAJOR, &world.path("n"));
        }
        clone.start();
        let on = clone.data_dir().display().to_string();
        assert_eq!(clone.psql("SHOW data_directory"), on);
        assert_eq!(clone.psql("SHOW hba_file"), format!("{on}/pg_hba.conf"));
        assert_eq!(clone.psql("SHOW external_pid_file"), format!("{on}/external.pid"));
        assert_eq!(clone.psql("SHOW primary_conninfo"), conninfo);
        assert_eq!(clone.psql("SHOW max_logical_replication_workers"), "0");
        clone.stop(Mode::Fast);
        let daemon = places.daemon();
        pgkeep_fuse::unmount(clone.data_dir()).unwrap();
        wait_ended(daemon);
    }
    assert!(fs::read(world.cluster.data_dir().join("postmaster.pid")).unwrap() == before);
    world.ok(places.args("destroy"));
}

#[test]
fn clones_do_not_come_to_lie_over_each_other() {
    let (world, _) = world();
    let all: Vec<Places> =
        (0..3).map(|n| Places { dir: world.path(&format!("{n}.clone")), mountpoint: world.path("m") }).collect();
    let codes: Vec<Option<i32>> = thread::scope(|scope| {
        let runs: Vec<_> = all.iter().map(|places| scope.spawn(|| world.run(places.args("create")).code)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let count = |code| codes.iter().filter(|c| **c == Some(code)).count();
    assert_eq!((count(0), count(40)), (1, 2), "{codes:?}");
    assert_eq!(world.sandbox.mounts().iter().filter(|m| **m == all[0].mountpoint).count(), 1);
    let (winner, losers): (Vec<_>, Vec<_>) = all.iter().zip(&codes).partition(|(_, code)| **code == Some(0));
    assert!(losers.iter().all(|(places, _)| !places.dir.exists()));

    // What another lays over it is not unmounted in its place.
    let (winner, _) = winner[0];
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &winner.mountpoint, "tmpfs", flags, None).unwrap();
    let run = world.expect(100, winner.args("destroy"));
    assert!(run.says("another mount lies over"), "{run}");
    rustix::mount::unmount(&winner.mountpoint, rustix::mount::UnmountFlags::empty()).unwrap();

    // A clone whose directory is damaged does not hide the others; nobody at the other end of the pipe harms nobody.
    let (good, parent) = (Places::new(&world, "good"), format!("--dir={}", world.sandbox.root().display()));
    let out = world.pgkeep(good.args("create")).stdout(closed_pipe()).output().unwrap();
    assert!(out.status.success() && good.is_mounted(&world), "{out:?}");
    fs::write(winner.dir.join("meta/clone.json"), "{").unwrap();
    let run = world.run(["clone", "list", &parent]);
    assert!(run.code != Some(0) && run.says("clone.json") && run.says(&good.dir.display().to_string()), "{run}");
    for places in [winner, &good] {
        world.ok(places.args("destroy"));
    }

    // A link above the clone's directory does not hide that it is under its own mount.
    std::os::unix::fs::symlink(&good.mountpoint, world.path("link")).unwrap();
    world.expect(
        32,
        [
            "clone",
            "create",
            &format!("--dir={}/x", world.path("link").display()),
            &format!("--mountpoint={}", good.mountpoint.display()),
        ],
    );
}

/// The writing end of a pipe that nobody reads.
fn closed_pipe() -> std::process::Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let (world, _) = world();
    let places = Places::new(&world, "m");
    let create = |more: &[&str]| {
        places.args("create").into_iter().chain(more.iter().map(|s| (*s).to_owned())).collect::<Vec<_>>()
    };
    let run = world.expect(75, create(&["--set=20200101-000000F"]));
    assert!(run.says("backup set 20200101-000000F is not valid"), "{run}");
    assert_eq!(run.stdout.matches("ERROR: ").count(), 1, "told once\n{run}");
    world.expect(75, create(&["--type=time", "--target=2020-01-01 00:00:00+00"]));
    assert!(!places.dir.exists() && !places.mountpoint.exists());

    // The data directory of a server is no mountpoint, whatever somebody types.
    let run = world.expect(
        40,
        [
            "clone",
            "create",
            &format!("--dir={}", places.dir.display()),
            &format!("--mountpoint={}", world.cluster.data_dir().display()),
        ],
    );
    assert!(run.says("is not empty"), "{run}");
    world.expect(
        32,
        [
            "clone",
            "create",
            &format!("--dir={}/x", places.mountpoint.display()),
            &format!("--mountpoint={}", places.mountpoint.display()),
        ],
    );
    world.expect(37, places.args("create").into_iter().take(3));
    world.expect(96, places.args("frob"));
    world.expect(73, places.args("destroy"));
    world.expect(73, places.args("mount"));
    let full = world.sandbox.dir("full");
    fs::write(full.join("file"), "x").unwrap();
    world.expect(
        40,
        [
            "clone",
            "create",
            &format!("--dir={}", full.display()),
            &format!("--mountpoint={}", places.mountpoint.display()),
        ],
    );
    world.expect(40, ["clone", "destroy", &format!("--dir={}", full.display())]);
    assert_eq!(fs::read_to_string(full.join("file")).unwrap(), "x");
}

#[test]
fn the_tree_shows_what_a_restore_brings_and_new_backups_appear() {
    let (world, label) = world();
    let tree_at = world.path("tree");
    world.ok(["mount", &tree_at.display().to_string()]);
    let restored = world.sandbox.dir("restored");
    world.restore_to(&restored, [format!("--set={label}"), "--type=preserve".to_owned()]);
    // A restore makes the links itself, and takes the checkpoint out of pg_control.
    let others = ["tablespace_map", "global/pg_control"].map(Path::new);
    tree::assert_same(&tree_at.join(&label), &restored, |path| others.contains(&path));
    assert_eq!(fs::read_link(tree_at.join("latest")).unwrap(), Path::new(&label));
    let writing = account::command("touch").arg(tree_at.join("latest/x")).output().unwrap();
    assert!(!writing.status.success() && String::from_utf8_lossy(&writing.stderr).contains("Read-only"), "{writing:?}");

    world.cluster.psql("CREATE TABLE new AS SELECT generate_series(1, 5000) AS i");
    let incr = world.backup("incr");
    wait_until("the new backup", || tree_at.join(&incr).exists());
    let path = world.cluster.psql("SELECT pg_relation_filepath('new')");
    let shown = fs::read(tree_at.join("latest").join(&path)).unwrap();
    assert!(shown.len() >= 5000 * 36 / 2 && shown.len() % 8192 == 0, "{}", shown.len());
    world.expect(40, ["mount", &tree_at.display().to_string()]);
    pgkeep_fuse::unmount(&tree_at).unwrap();
    assert_eq!(fs::read_dir(&tree_at).unwrap().count(), 0);
}
