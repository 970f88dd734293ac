//! What is said of clones: how they are, what was done to them, and what is none.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, thread};

use rustix::process::{Signal, kill_process};
use support::{Cluster, Mode, World, account};

use crate::MAJOR;
use crate::places::{Places, everything, wait_until, world};

fn info(world: &World, dir: &Path) -> serde_json::Value {
    world.ok(["clone", "info", &format!("--dir={}", dir.display()), "--output=json"]).json()
}

/// Options of a server that nobody else's is in the way of.
fn server(world: &World) -> [String; 3] {
    let sockets = world.sandbox.root().join("sockets");
    if !sockets.exists() {
        world.sandbox.dir("sockets");
    }
    [
        format!("--port={}", world.cluster.port()),
        format!("--socket-path={}", sockets.display()),
        format!("--pg-bin={}", world.pg_bin().display()),
    ]
}

fn kill_daemon(places: &Places) {
    kill_process(places.daemon(), Signal::KILL).unwrap();
    wait_until("the end of the mount", || fs::read_dir(&places.mountpoint).is_err());
}

#[test]
fn a_clone_whose_daemon_died_is_broken_and_started_again_at_the_first_call() {
    let (world, _) = world();
    let places = Places::new(&world, "b");
    let own = server(&world);
    places.create(&world, &own.each_ref().map(String::as_str));
    // A child of this process, which does not wait for it: it stays a zombie, as where the first process of a container
    // waits for nobody.
    let mut clone = Cluster::adopt(MAJOR, &places.mountpoint);
    clone.start();
    clone.wait_promoted();
    clone.psql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i; CHECKPOINT");
    let before = info(&world, &places.dir);
    assert_eq!(before["status"], "mounted");
    // Where it was told to listen, not what its files say.
    assert_ne!(clone.port(), world.cluster.port());
    assert_eq!(before["port"], clone.port());
    assert_eq!(before["socket"].as_str(), clone.socket_dir().to_str());
    let listed = world.ok(places.args("info"));
    assert!(listed.says(&format!("on port {}", clone.port())), "{listed}");

    kill_daemon(&places);
    let broken = info(&world, &places.dir);
    assert_eq!(broken["status"], "broken");
    assert_eq!(broken["mountpoint"].as_str(), places.mountpoint.to_str());
    for what in ["info", "list"] {
        let run = world.ok(places.args(what));
        assert!(run.says("status: broken: the process that served it on ") && run.says("'clone start'"), "{run}");
    }
    let run = world.expect(38, places.args("start"));
    assert!(run.says("--force ends it"), "{run}");
    let run = world.ok(places.args("start").into_iter().chain(["--force".to_owned(), own[2].clone()]));
    assert!(run.says("to connect: psql"), "{run}");
    let after = info(&world, &places.dir);
    assert_eq!((&after["status"], &after["port"]), (&"mounted".into(), &world.cluster.port().into()));
    assert!(clone.wait_end());

    // The same for a server that was killed on a mount that is served.
    world.ok(places.args("stop"));
    world.ok(places.args("mount"));
    clone.start();
    assert_eq!(clone.psql("SELECT count(*) FROM kept"), "1000");
    let pid = info(&world, &places.dir)["postmaster"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // One of its processes is busy and does not notice. It could still write.
    let mut busy = clone.connect();
    let busy = thread::spawn(move || busy.batch_execute("DO $$ BEGIN LOOP END LOOP; END $$").is_err());
    clone.wait_for("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'DO %'");
    kill_process(pid, Signal::KILL).unwrap();
    wait_until("the server's end", || info(&world, &places.dir)["postmaster"].is_null());
    let run = world.expect(38, places.args("start").into_iter().chain([own[2].clone()]));
    assert!(run.says("of a server that died run on clone '") && run.says("--force ends them"), "{run}");
    world.ok(places.args("start").into_iter().chain([own[2].clone(), "--force".to_owned()]));
    assert!(busy.join().unwrap() && clone.wait_end());
    let run = world.ok(places.args("stop"));
    assert!(run.says("its server ") && run.says("was stopped in order") && run.says("'clone start' goes on"), "{run}");
    let run = world.ok(places.args("stop"));
    assert!(run.says("was not mounted; no server ran on it"), "{run}");
    world.ok(places.args("destroy"));
}

#[test]
fn a_server_that_shuts_itself_down_at_the_target_is_not_said_to_run() {
    let (world, _) = world();
    let mark = world.mark(1);
    world.mark(2);
    world.archive_now();
    let places = Places::new(&world, "t");
    let target = format!("--target={}", mark.lsn);
    let own = server(&world);
    let made = ["--type=lsn", &target, "--target-action=shutdown", "--start", &own[0], &own[1], &own[2]];
    let run = places.create(&world, &made);
    let told = |text: &str| text.contains("no server runs on clone '") && text.contains("--target-action=shutdown");
    assert!(told(&run.stdout) && !run.says("to connect"), "{run}");
    assert!(run.says("recovery_target_action=promote"), "{run}");
    let state = info(&world, &places.dir);
    assert_eq!((&state["status"], state["postmaster"].is_null()), (&"mounted".into(), true));
    // So it is each time.
    let json = ["--output=json".to_owned(), own[2].clone()];
    let told = world.ok(places.args("start").into_iter().chain(json)).json();
    assert!(told["postmaster"].is_null() && told["connect"].is_null(), "{told}");
    assert_eq!(told["server"], "shut down at the target");
    // One that does not start at all is another matter.
    let conf = places.mountpoint.join("postgresql.auto.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{text}shared_buffers = 'no size'\n")).unwrap();
    let run = world.expect(56, places.args("start").into_iter().chain([own[2].clone()]));
    assert!(run.says("does not start"), "{run}");
    fs::write(&conf, text).unwrap();

    let mut clone = Cluster::adopt(MAJOR, &places.mountpoint);
    clone.override_setting("recovery_target_action", "promote");
    clone.start();
    clone.wait_promoted();
    assert_eq!(support::world::marks(&clone), [0u32; 0]);
    clone.stop(Mode::Fast);
    world.ok(places.args("destroy"));
}

#[test]
fn what_is_no_clone_is_told_for_what_it_is_and_nothing_of_it_changes() {
    let (world, _) = world();
    let places = Places::new(&world, "c");
    places.create(&world, &[]);
    let says = |code: i32, what: &str, dir: &Path, texts: &[&str]| {
        let run = world.expect(code, ["clone", what, &format!("--dir={}", dir.display())]);
        assert!(texts.iter().all(|text| run.says(text)), "{texts:?}: {run}");
    };
    let root = world.sandbox.root().to_owned();
    let ordinary = world.sandbox.dir("ordinary");
    let empty = world.sandbox.dir("empty");
    // As if somebody meant the directory of a cluster's: the server below is not touched, even by force.
    fs::create_dir(ordinary.join("meta")).unwrap();
    std::os::unix::fs::symlink(world.cluster.data_dir(), ordinary.join("data")).unwrap();
    let before = everything(&ordinary);
    let absent = world.path("absent");
    for what in ["info", "start", "stop", "hydrate", "promote", "destroy", "list"] {
        says(73, what, &absent, &["there is no directory '", "'clone list' shows"]);
        says(73, what, &places.mountpoint, &["is where clone '", "the clone's own directory"]);
        says(73, what, &places.dir.join("data"), &["is a part of clone '"]);
        if what != "list" {
            says(73, what, &root, &["is not a clone, but holds some: '", "c.clone'"]);
        }
        if !matches!(what, "list" | "destroy") {
            says(73, what, &ordinary, &["is not a clone", "'clone list' shows"]);
            says(73, what, world.cluster.data_dir(), &["is an ordinary data directory, not a clone"]);
        }
    }
    says(73, "destroy", &empty, &["is not a clone, and nothing of it is removed"]);
    says(40, "destroy", &ordinary, &["is not a clone, and nothing of it is removed", "other means"]);
    world.expect(40, ["clone", "destroy", "--force", &format!("--dir={}", ordinary.display())]);
    says(73, "destroy", world.cluster.data_dir(), &["is an ordinary data directory, not a clone"]);
    assert!(everything(&ordinary) == before && empty.is_dir());
    assert_eq!(world.cluster.psql("SELECT 1"), "1");

    // The rest of one that was being made, while that goes on and after it has died.
    let half = world.path("half");
    for path in [&half, &half.join("meta")] {
        fs::create_dir(path).unwrap();
        account::give(path);
    }
    let lock = half.join("meta/lock");
    fs::write(&lock, "pgkeep clone\n").unwrap();
    account::give(&lock);
    says(73, "info", &half, &["is not complete", "'clone destroy' removes what is left"]);
    let held = fs::File::open(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    says(50, "info", &half, &["is being made or removed by another process", "wait"]);
    drop(held);
    says(0, "destroy", &half, &[]);
    assert!(!half.exists());

    // Another user's. An unprivileged run has no other.
    if rustix::process::getuid().is_root() {
        let theirs = root.join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
        says(53, "info", &theirs, &["is closed to this user: it belongs to user 0", "as that user"]);
    }
    world.ok(places.args("destroy"));
}

#[test]
fn clones_are_listed_where_they_are_and_without_a_directory_if_they_are_mounted() {
    let (world, _) = world();
    let (one, two) = (Places::new(&world, "one"), Places::new(&world, "t w,o"));
    one.create(&world, &[]);
    two.create(&world, &[]);
    let here = || {
        let listed = world.ok(["clone", "list", "--output=json"]).json();
        let dirs: Vec<_> =
            listed.as_array().unwrap().iter().map(|row| row["dir"].as_str().unwrap().to_owned()).collect();
        // Other tests have clones, too.
        dirs.into_iter().filter(|dir| Path::new(dir).starts_with(world.sandbox.root())).collect::<Vec<_>>()
    };
    let both = [&one, &two].map(|places| places.dir.display().to_string());
    assert_eq!(here(), both);
    world.ok(one.args("stop"));
    assert_eq!(here(), both[1..]);
    let parent = format!("--dir={}", world.sandbox.root().display());
    let listed = world.ok(["clone", "list", &parent, "--output=json"]).json();
    let status: Vec<_> = listed.as_array().unwrap().iter().map(|row| row["status"].as_str().unwrap()).collect();
    assert_eq!(status, ["unmounted", "mounted"]);
    let run = world.expect(37, ["clone", "info"]);
    assert!(run.says("'clone info' needs option 'dir'") && run.says("'clone list' shows"), "{run}");
    for places in [&one, &two] {
        world.ok(places.args("destroy"));
    }
}
