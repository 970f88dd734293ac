//! What a clone's server needed first is recorded, and is there before the server of the next clone asks.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use pgkeep_engine::{
    crypto::Unlock,
    repository::{OpenOptions, Repository},
    store::LocalStore,
};
use pgkeep_formats::{
    id::SessionId,
    repo::records::{Trace, TraceRun},
};
use rustix::process::{Signal, kill_process};
use support::{Mode, World, faulty::Faulty};

use crate::places::{Places, logged, wait_until, world};

const QUERY: &str = "SELECT sum(hashtext(b::text)) || ' ' || (SELECT abalance FROM pgbench_accounts WHERE aid = 77777) \
                     FROM pgbench_branches b";

fn traces(world: &World) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(world.sandbox.repo().join("traces/demo")) else { return Vec::new() };
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort_unstable();
    found
}

/// How much was fetched for a clone before it was asked for, once that is over.
fn prefetched(world: &World, places: &Places) -> u64 {
    let begin = format!("clone '{}': fetched ", places.dir.display());
    let told = || {
        let log = logged(world);
        log.rsplit_once(&begin).and_then(|(_, rest)| Some(rest.split_once(" that earlier clones")?.0.to_owned()))
    };
    wait_until("the end of fetching", || told().is_some());
    // As people read it: `12.5MB`.
    let told = told().unwrap();
    let (number, unit) = told.split_at(told.find(|c: char| c.is_ascii_alphabetic()).unwrap());
    let power = ["B", "KB", "MB", "GB"].iter().position(|known| *known == unit).unwrap();
    (number.parse::<f64>().unwrap() * 1024_f64.powi(i32::try_from(power).unwrap())) as u64
}

/// Starts a server on a clone, asks it, and ends both.
fn used(world: &World, places: &Places) -> String {
    let mut server = places.server();
    let answer = server.psql(QUERY);
    server.stop(Mode::Fast);
    world.ok(places.args("stop"));
    answer
}

#[test]
fn what_one_clone_needed_is_there_before_the_next_one_asks() {
    let (world, _) = world();
    world.archive_now();
    let (first, second, without) =
        (Places::new(&world, "first"), Places::new(&world, "second"), Places::new(&world, "without"));
    first.create(&world, &[]);
    let answer = used(&world, &first);
    assert_eq!(answer, world.cluster.psql(QUERY));
    wait_until("the first trace", || traces(&world).len() == 1);

    without.create(&world, &["--clone-trace=n"]);
    second.create(&world, &[]);
    let bytes = prefetched(&world, &second);
    assert!(bytes > 1 << 20, "{bytes}");
    assert!(!logged(&world).contains(&format!("clone '{}': fetched", without.dir.display())));

    // From now on nothing of the backup can be read; WAL can.
    let (packs, away) = (world.sandbox.repo().join("packs"), world.sandbox.repo().join("packs.away"));
    fs::rename(&packs, &away).unwrap();
    assert_eq!(used(&world, &second), answer);
    let table = world.cluster.psql("SELECT pg_relation_filepath('pgbench_accounts')");
    assert!(fs::read(without.mountpoint.join(table)).is_err());
    fs::rename(&away, &packs).unwrap();
    world.ok(without.args("destroy"));

    // The second one's trace is as good: what was there before it was asked for counts too.
    wait_until("the second trace", || traces(&world).len() == 2);
    fs::remove_file(&traces(&world)[0]).unwrap();
    let third = Places::new(&world, "third");
    third.create(&world, &[]);
    prefetched(&world, &third);
    fs::rename(&packs, &away).unwrap();
    assert_eq!(used(&world, &third), answer);
    fs::rename(&away, &packs).unwrap();

    // With hydration what is left comes after it; a clone that has been used records nothing more.
    world.ok(third.args("mount"));
    world.ok(third.args("hydrate"));
    world.ok(third.args("stop"));
    wait_until("the third trace", || traces(&world).len() == 2);
    world.ok(["verify"]);
    for places in [&first, &second, &third] {
        world.ok(places.args("destroy"));
    }
    // Those that are too many are deleted.
    for number in 0..3 {
        let places = Places::new(&world, &format!("n{number}"));
        places.create(&world, &[]);
        used(&world, &places);
        world.ok(places.args("destroy"));
    }
    wait_until("the deletion of old traces", || traces(&world).len() == 3);
}

#[test]
fn traces_that_cannot_be_used_are_passed_over() {
    let (world, _) = world();
    world.archive_now();
    let open = || {
        let store = LocalStore::open(world.sandbox.repo()).unwrap();
        Repository::open(Arc::new(store), OpenOptions { key: 1, unlock: Unlock::None, cache: None }).unwrap()
    };
    let run = |path, first, count| TraceRun { path, first, count };
    let table = world.cluster.psql("SELECT pg_relation_filepath('pgbench_accounts')");
    let paths =
        ["base/1/999999", "../../../etc/passwd", "PG_VERSION", "base", "global/pg_control", "base/1/888888", &table];
    let mut runs: Vec<_> = (0..7).map(|path| run(path, 0, 1)).collect();
    runs.extend([run(6, 1 << 20, 5), run(6, 1, 16_000)]);
    let mut trace = Trace {
        session: SessionId([9; 16]),
        unit: 1 << 16,
        paths: paths.map(str::to_owned).into(),
        runs,
        created: 1,
        host: String::new(),
        program: String::new(),
    };
    open().put_trace("demo", Duration::from_secs(1), &trace, None).unwrap();
    trace.runs = vec![run(6, 0, 1)];
    open().put_trace("demo", Duration::from_secs(2), &trace, None).unwrap();
    // As root the test has made what belongs to the repository's user.
    support::account::give(&world.sandbox.repo().join("traces"));
    support::account::give(&world.sandbox.repo().join("traces/demo"));
    traces(&world).iter().for_each(|path| support::account::give(path));
    let newest = traces(&world).pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&newest, bytes).unwrap();

    let places = Places::new(&world, "c");
    places.create(&world, &[]);
    // All of the table.
    let size: u64 = world.cluster.psql("SELECT pg_relation_size('pgbench_accounts')").parse().unwrap();
    assert!(prefetched(&world, &places) > size / 2);
    let (packs, away) = (world.sandbox.repo().join("packs"), world.sandbox.repo().join("packs.away"));
    fs::rename(&packs, &away).unwrap();
    assert_eq!(fs::read(places.mountpoint.join(&table)).unwrap().len() as u64, size);
    fs::rename(&away, &packs).unwrap();
    let log = logged(&world);
    let told = |level: &str| {
        log.lines().filter(|line| line.contains(level) && line.contains("(an access trace) is ignored")).count()
    };
    // The other one is as good: nobody need look.
    assert_eq!((told("WARN"), told("INFO")), (0, 1), "{log}");
    assert_eq!(used(&world, &places), world.cluster.psql(QUERY));
    world.ok(places.args("destroy"));
}

#[test]
fn a_repository_that_cannot_be_written_to_has_clones_all_the_same() {
    let (world, _) = world();
    world.archive_now();
    let set = |mode| fs::set_permissions(world.sandbox.repo(), fs::Permissions::from_mode(mode)).unwrap();
    set(0o555);
    let places = Places::new(&world, "c");
    places.create(&world, &[]);
    let answer = used(&world, &places);
    wait_until("the failure to record", || logged(&world).contains("what this clone needed first is not recorded"));
    set(0o750);
    assert_eq!(answer, world.cluster.psql(QUERY));
    assert!(traces(&world).is_empty());
    world.ok(places.args("destroy"));
}

#[test]
fn a_clone_whose_daemon_dies_while_it_fetches_ahead_is_mounted_again() {
    let (world, _) = world();
    world.archive_now();
    let first = Places::new(&world, "first");
    first.create(&world, &[]);
    let answer = used(&world, &first);
    wait_until("the trace", || traces(&world).len() == 1);
    let slow = Faulty::mount(&world.sandbox.repo(), &world.sandbox.dir("slow"));
    let repo = format!("--repo1-path={}", slow.mountpoint().display());
    let second = Places::new(&world, "second");
    second.create(&world, &["--clone-trace=n"]);
    world.ok(second.args("stop"));
    let table = second.dir.join("data").join(world.cluster.psql("SELECT pg_relation_filepath('pgbench_accounts')"));
    let here = || fs::metadata(&table).unwrap().blocks() * 512;
    let before = here();
    slow.set_delay(Duration::from_millis(500));
    world.ok(second.args("mount").into_iter().chain([repo]));
    wait_until("the first pages", || here() > before);
    assert!(here() < fs::metadata(&table).unwrap().len(), "it died too late");
    kill_process(second.daemon(), Signal::KILL).unwrap();
    wait_until("the end of the mount", || fs::read_dir(&second.mountpoint).is_err());
    drop(slow);
    world.ok(second.args("mount"));
    prefetched(&world, &second);
    assert_eq!(used(&world, &second), answer);
    world.ok(second.args("destroy"));
    world.ok(first.args("destroy"));
}
