//! Started, stopped, hydrated, promoted, and what comes between.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::PathBuf,
    process::Command,
};

use rustix::process::{Pid, Signal, kill_process};
use support::{Cluster, Mode, PATIENCE, World, world::data};

use crate::MAJOR;
use crate::places::{Places, below, restored, wait_until, world};

#[test]
fn a_clone_is_started_hydrated_under_load_and_becomes_an_ordinary_data_directory() {
    let (world, _) = world();
    world.mark(1);
    world.archive_now();
    let last = data(&world.cluster);
    let places = Places::new(&world, "h");
    // The source's own number, which nobody else has: it listens on its socket alone.
    let (sockets, port) = (world.sandbox.dir("sockets"), format!("--port={}", world.cluster.port()));
    let socket = format!("--socket-path={}", sockets.display());
    let pg_bin = format!("--pg-bin={}", world.cluster.binaries().dir().display());
    let told = places.create(&world, &["--start", &socket, &port, &pg_bin, "--output=json"]).json();
    assert!(told["postmaster"].as_u64().is_some_and(|pid| pid > 0), "{told}");
    let port = told["port"].as_u64().unwrap();
    let sql = |text: &str| {
        let mut psql = Command::new(world.cluster.binaries().client("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-c", text]);
        let out = psql.arg("-h").arg(&sockets).args(["-p", &port.to_string()]).output().unwrap();
        assert!(out.status.success(), "{text}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    // Recovery has ended when the command has.
    assert_eq!(sql("SELECT pg_is_in_recovery()"), "f");
    assert!(places.info(&world)["hydration"].is_null());

    // A table changes while everything is fetched, one is dropped, one is truncated, and one is made.
    sql(
        "UPDATE pgbench_accounts SET abalance = aid WHERE aid % 3 = 0; DROP TABLE pgbench_history; TRUNCATE pgbench_tellers",
    );
    let hydrate = places.args("hydrate").into_iter().chain(["--io-limit=8MiB".to_owned()]);
    let running = world.spawn(hydrate);
    sql("CREATE TABLE ours AS SELECT generate_series(1, 50000) AS i");
    sql("UPDATE pgbench_accounts SET filler = 'x' WHERE aid % 7 = 0");
    let run = running.wait();
    assert_eq!(run.code, Some(0), "{run}");
    let hydration = &places.info(&world)["hydration"];
    assert_eq!(hydration["state"], "done", "{hydration}");
    assert_eq!(hydration["done"], hydration["total"], "{hydration}");
    let expected = sql("SELECT sum(abalance), count(*) FROM pgbench_accounts WHERE filler <> 'x'");

    // Stopped and started it is as it was, also while there is no repository.
    world.ok(places.args("stop"));
    let away = world.path("repo.away");
    fs::rename(world.sandbox.repo(), &away).unwrap();
    assert!(!places.is_mounted(&world) && places.info(&world)["postmaster"].is_null());
    let started = world.ok(places.args("start").into_iter().chain([pg_bin.clone()]));
    assert!(started.says("to connect: psql") && started.says("is served without its backup"), "{started}");
    fs::rename(&away, world.sandbox.repo()).unwrap();
    assert_eq!(sql("SELECT sum(abalance), count(*) FROM pgbench_accounts WHERE filler <> 'x'"), expected);

    // Without the repository, as it is not needed any more.
    let run = world.ok(places.args("promote").into_iter().chain([pg_bin.clone()]));
    fs::rename(world.sandbox.repo(), &away).unwrap();
    assert!(run.says("is an ordinary data directory now; its server runs again"), "{run}");
    assert!(!places.is_mounted(&world) && !places.dir.exists());
    assert_eq!(sql("SELECT sum(abalance), count(*) FROM pgbench_accounts WHERE filler <> 'x'"), expected);
    assert_eq!(sql("SELECT count(*) FROM ours"), "50000");
    let pidfile = places.mountpoint.join("postmaster.pid");
    let pid = fs::read_to_string(&pidfile).unwrap().lines().next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    wait_until("the end of the server", || !pidfile.exists());
    let mut clone = Cluster::adopt(MAJOR, &places.mountpoint);
    clone.start();
    assert_ne!(data(&clone), last);
    clone.amcheck();
    clone.stop(Mode::Fast);
    fs::rename(&away, world.sandbox.repo()).unwrap();
}

#[test]
fn what_is_not_served_is_neither_hydrated_nor_promoted_and_nothing_is_lost() {
    let (world, _) = world();
    let places = Places::new(&world, "w");
    places.create(&world, &[]);
    let expected = expected(&world);
    let base = |places: &Places| below(&places.mountpoint.join("base"));
    world.ok(places.args("stop"));
    let run = world.expect(73, places.args("hydrate"));
    assert!(run.says("is not served") && run.says("clone '"), "{run}");
    // What it lacks it needs; what is asked for is refused before anything is changed.
    let run = world.expect(55, places.args("promote"));
    assert!(run.says("the clone lacks page 0 of '"), "{run}");
    // The wish of before is remembered: it is fulfilled by the next mount.
    world.ok(places.args("mount"));
    wait_until("hydration", || is_done(&world, &places));
    assert!(base(&places) == expected);
    // Something in the place of the mountpoint.
    world.ok(places.args("stop"));
    fs::write(places.mountpoint.join("mine"), b"mine").unwrap();
    let run = world.expect(40, places.args("promote"));
    assert!(run.says("is not empty"), "{run}");
    fs::remove_file(places.mountpoint.join("mine")).unwrap();
    world.ok(places.args("promote"));
    assert!(base(&places) == expected);
    assert!(places.mountpoint.join("PG_VERSION").is_file() && !places.dir.exists());
}

fn is_done(world: &World, places: &Places) -> bool {
    places.info(world)["hydration"]["state"] == "done"
}

/// What a clone of the only backup holds in the end, if no server has used it.
fn expected(world: &World) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    below(&restored(world).join("base"))
}

#[test]
fn hydration_goes_on_after_the_death_of_the_daemon() {
    let (world, _) = world();
    let expected = expected(&world);
    let places = Places::new(&world, "k");
    places.create(&world, &[]);
    // Slow enough to be in the middle for some seconds, and without anybody who waits for it.
    let running = world.spawn(places.args("hydrate").into_iter().chain(["--io-limit=1MiB".to_owned()]));
    let done = |world: &World| places.info(world)["hydration"]["done"].as_u64().unwrap_or_default();
    let before = done(&world);
    wait_until("the begin of hydration", || done(&world) > before);
    kill_process(places.daemon(), Signal::KILL).unwrap();
    let run = running.wait();
    assert_eq!(run.code, Some(73), "{run}");
    assert!(run.says("is not served: it goes on once it is mounted"), "{run}");
    assert_ne!(places.info(&world)["hydration"]["state"], "done");
    world.ok(places.args("mount"));
    // Without a limit it is there soon.
    world.ok(places.args("hydrate"));
    assert!(is_done(&world, &places));
    world.ok(places.args("promote"));
    assert!(below(&places.mountpoint.join("base")) == expected);
}

#[test]
fn what_cannot_be_fetched_is_told_and_the_rest_is_fetched() {
    let (world, _) = world();
    let expected = expected(&world);
    let places = Places::new(&world, "d");
    places.create(&world, &[]);
    // A pack in the middle is away.
    let largest = world.sandbox.largest_pack();
    let away = world.path("away");
    fs::rename(&largest, &away).unwrap();
    let run = world.expect(42, places.args("hydrate"));
    assert!(run.says("cannot fetch '") && run.says("it is tried again"), "{run}");
    let failed = &places.info(&world)["hydration"];
    assert_eq!(failed["state"], "failed");
    assert!(failed["done"].as_u64() < failed["total"].as_u64() && failed["error"].is_string(), "{failed}");
    // Not whole, so not to be promoted, and nothing has happened to it.
    let run = world.expect(42, places.args("promote"));
    assert!(run.says("cannot fetch '") && places.is_mounted(&world), "{run}");
    fs::rename(&away, &largest).unwrap();
    world.ok(places.args("hydrate"));
    world.ok(places.args("promote"));
    assert!(below(&places.mountpoint.join("base")) == expected);
}

#[test]
fn a_promotion_that_was_cut_off_is_ended_by_the_next() {
    let (world, _) = world();
    let expected = expected(&world);
    // What is left after each step: the mark alone; the skeleton in its place and the rest of the clone still there.
    for (step, name) in ["p", "q"].into_iter().enumerate() {
        let places = Places::new(&world, name);
        places.create(&world, &[]);
        world.ok(places.args("hydrate"));
        world.ok(places.args("stop"));
        fs::write(places.dir.join("meta/promoted"), places.mountpoint.to_str().unwrap()).unwrap();
        if step == 1 {
            fs::rename(places.dir.join("data"), &places.mountpoint).unwrap();
        } else {
            // It is never served again: marks may be gone already.
            let run = world.expect(28, places.args("mount"));
            assert!(run.says("is being promoted: 'clone promote' ends that"), "{run}");
        }
        world.ok(places.args("promote"));
        assert!(below(&places.mountpoint.join("base")) == expected && !places.dir.exists(), "step {step}");
    }
}

#[test]
fn a_full_disk_ends_a_round_and_reads_go_on() {
    let (world, _) = world();
    let expected = expected(&world);
    let disk = world.sandbox.small_disk("disk", 192 << 20);
    let mut places = Places::new(&world, "f");
    places.dir = disk.join("clone");
    let run = places.create(&world, &[]);
    assert!(run.code == Some(0), "{run}");
    let room = disk.join("room");
    // What the skeleton takes is there; of the rest half has no place.
    let free = rustix::fs::statvfs(&disk).unwrap();
    let free = free.f_bavail * free.f_frsize;
    fs::write(&room, vec![1; usize::try_from(free.saturating_sub(8 << 20)).unwrap()]).unwrap();
    let run = world.expect(42, places.args("hydrate"));
    assert!(run.says("MB are to be fetched, and "), "{run}");
    assert!(run.says(&format!("the file system of '{}' has", places.dir.display())), "{run}");
    assert!(below(&places.mountpoint.join("base")) == expected);
    fs::remove_file(&room).unwrap();
    wait_until("hydration", || is_done(&world, &places));
    assert!(below(&places.mountpoint.join("base")) == expected);
    // Another file system: told before the server or the mount is touched.
    let run = world.expect(32, places.args("promote"));
    assert!(run.says("are on different file systems") && places.is_mounted(&world), "{run}");
    world.ok(places.args("destroy"));
}

#[test]
fn in_front_systemd_is_told_when_the_mount_is_ready_and_when_it_ends() {
    let (world, _) = world();
    let places = Places::new(&world, "s");
    let path = world.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // The command runs with the rights of the servers' account.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = world.pgkeep(places.args("create").into_iter().chain(["--foreground".to_owned()]));
    command.env("NOTIFY_SOCKET", &path);
    let mut running = world.sandbox.spawn(command);
    let heard = || {
        let mut word = [0; 64];
        let length = socket.recv(&mut word).unwrap();
        String::from_utf8_lossy(&word[..length]).into_owned()
    };
    assert_eq!(heard(), "READY=1");
    assert!(places.is_mounted(&world));
    running.signal(Signal::TERM);
    assert_eq!(heard(), "STOPPING=1");
    let run = running.wait();
    assert_eq!(run.code, Some(0), "{run}");
    assert!(!places.is_mounted(&world));
}

#[test]
fn a_clone_is_reset_to_what_it_was_made_from() {
    let (world, label) = world();
    let first = world.mark(1);
    world.mark(2);
    world.archive_now();
    let places = Places::new(&world, "r");
    let target = format!("--target={}", first.lsn);
    let pg_bin = format!("--pg-bin={}", world.cluster.binaries().dir().display());
    let (sockets, port) = (world.sandbox.dir("sockets"), format!("--port={}", world.cluster.port()));
    let socket = format!("--socket-path={}", sockets.display());
    let made = [
        "--type=lsn",
        &target,
        "--target-exclusive",
        "--recovery-option=work_mem=5MB",
        &socket,
        &port,
        &pg_bin,
        "--start",
    ];
    places.create(&world, &made);
    let record = || -> serde_json::Value {
        let text = fs::read_to_string(places.dir.join("meta/clone.json")).unwrap();
        let mut record = serde_json::from_str::<serde_json::Value>(&text).unwrap()["identity"].take();
        // Each has a pin of its own.
        assert!(record.as_object_mut().unwrap().remove("pin").is_some());
        record
    };
    let before = (record(), fs::read_to_string(places.mountpoint.join("postgresql.conf")).unwrap());
    let settings = |text: String| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    let auto = || settings(fs::read_to_string(places.mountpoint.join("postgresql.auto.conf")).unwrap());
    let told = auto();
    assert!(told.iter().any(|line| line.starts_with("work_mem = '5MB'")), "{told:?}");
    fs::write(places.mountpoint.join("mine"), b"mine").unwrap();
    // A newer backup is not what it was made from.
    world.backup("full");
    let run = world.expect(38, places.args("reset"));
    assert!(run.says("runs on clone '") && places.mountpoint.join("mine").exists(), "{run}");
    let more = [pg_bin.clone(), "--force".to_owned(), "--start".to_owned()];
    let run = world.ok(places.args("reset").into_iter().chain(more));
    assert!(run.says("server ") && run.says("to connect: psql"), "{run}");
    assert!(!places.mountpoint.join("mine").exists());
    let after = (record(), fs::read_to_string(places.mountpoint.join("postgresql.conf")).unwrap());
    assert_eq!(after, before);
    assert_eq!((record()["label"].as_str().unwrap(), auto()), (label.as_str(), told));
    // What is not there any more cannot be made anew, and what there is stays, its server too.
    let away = world.path("away");
    fs::rename(world.sandbox.repo(), &away).unwrap();
    let run = world.run(places.args("reset").into_iter().chain(["--force".to_owned()]));
    assert_ne!(run.code, Some(0), "{run}");
    assert!(places.dir.join("meta/complete").exists() && places.is_mounted(&world));
    assert!(places.info(&world)["postmaster"].is_u64());
    fs::rename(&away, world.sandbox.repo()).unwrap();
    world.ok(places.args("stop"));
    world.ok(places.args("destroy"));
}
