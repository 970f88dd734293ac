//! Clones that others follow from: a standby of the original, and a cluster that goes its own way.

use std::fs;

use support::{Cluster, Mode, World, world::data};

use crate::MAJOR;
use crate::places::{Places, wait_until, world};

/// A clone's server.
fn started(world: &World, places: &Places, more: &[&str]) -> Cluster {
    places.create(world, more);
    let mut cluster = Cluster::adopt(MAJOR, &places.mountpoint);
    cluster.start();
    cluster
}

#[test]
fn a_standby_clone_follows_the_archive_until_it_is_promoted() {
    let (world, _) = world();
    let places = Places::new(&world, "standby");
    let mut clone = started(&world, &places, &["--type=standby"]);
    assert_eq!(clone.psql("SELECT pg_is_in_recovery()"), "t");
    for number in 1..=3 {
        world.mark(number);
        world.archive_now();
        wait_until("the mark on the standby", || clone.psql("SELECT max(number) FROM mark") == number.to_string());
    }
    clone.psql("SELECT pg_promote()");
    clone.wait_promoted();
    clone.psql("INSERT INTO mark VALUES (100)");
    assert_eq!(data(&clone), data(&world.cluster));
    clone.stop(Mode::Fast);
}

#[test]
fn a_clone_with_a_stanza_of_its_own_is_backed_up_and_cloned_in_turn() {
    let (world, _) = world();
    let run = world.run(Places::new(&world, "no").args("create").into_iter().chain(["--archive-to=demo".to_owned()]));
    assert_eq!(run.code, Some(32), "{run}");
    assert!(run.says("a clone archives for a stanza of its own"), "{run}");

    let places = Places::new(&world, "branch");
    let mut clone = started(&world, &places, &["--archive-to=branch"]);
    clone.wait_promoted();
    let own = |args: &[&str]| {
        let of_clone = ["--stanza=branch".to_owned(), format!("--pg1-path={}", places.mountpoint.display())];
        let server =
            [format!("--pg1-port={}", clone.port()), format!("--pg1-socket-path={}", clone.socket_dir().display())];
        let all = of_clone.into_iter().chain(server).chain(args.iter().map(|s| (*s).to_owned()));
        world.sandbox.run_ok(all)
    };
    own(&["stanza-create"]);
    own(&["check"]);
    clone.psql("CREATE TABLE ours AS SELECT generate_series(1, 1000) AS i");
    own(&["--start-fast", "--type=full", "backup"]);
    clone.psql("INSERT INTO ours SELECT generate_series(1, 500)");
    let last = clone.switch_wal();
    wait_until("the archive", || {
        let status = places.mountpoint.join(format!("pg_wal/archive_status/{last}.done"));
        status.exists() || !places.mountpoint.join("pg_wal").join(&last).exists()
    });
    let expected = data(&clone);
    assert_ne!(expected, data(&world.cluster));

    // A clone of the clone's backup, while both live.
    let second = Places::new(&world, "second");
    let args = second.args("create").into_iter().chain(["--stanza=branch".to_owned()]);
    world.sandbox.run_ok(args);
    let mut again = second.server();
    assert_eq!(data(&again), expected);
    again.stop(Mode::Fast);
    clone.stop(Mode::Fast);
    // Nothing of it has come into the original's archive.
    let info = world.info();
    assert_eq!(info["backup"].as_array().unwrap().len(), 1, "{info}");
    assert!(fs::read_dir(world.sandbox.repo().join("wal/branch")).is_ok());
}
