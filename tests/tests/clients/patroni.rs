//! Patroni: `pgbackrest --stanza=<scope> --delta restore` makes replicas, in an empty directory and over an old one.

use std::fs;

use super::{environment, shell, shell_expect};
use support::{Mode, World, majors, world::STANZA};

#[test]
fn a_replica_is_made_in_an_empty_directory_and_over_existing_data() {
    let mut world = World::new(majors()[0]);
    world.cluster.psql("CREATE TABLE kept AS SELECT 1 AS n");
    world.backup("full");
    world.archive_now();
    let line = format!("pgbackrest --stanza={STANZA} --delta restore");
    let restore = |world: &World| shell(&world.sandbox, &environment(&world.sandbox), &line);
    // Its server runs: the status is what Patroni goes by.
    assert_eq!(restore(&world).code, Some(38));
    world.cluster.stop(Mode::Fast);

    let data = world.cluster.data_dir().to_owned();
    fs::write(data.join("left over"), "x").unwrap();
    shell_expect(0, &world.sandbox, &environment(&world.sandbox), &line);
    assert!(!data.join("left over").exists());
    world.cluster.start();
    world.cluster.wait_promoted();
    assert_eq!(world.cluster.psql("SELECT n FROM kept"), "1");
    world.cluster.stop(Mode::Fast);

    for entry in fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    shell_expect(0, &world.sandbox, &environment(&world.sandbox), &line);
    world.cluster.start();
    world.cluster.wait_promoted();
    assert_eq!(world.cluster.psql("SELECT n FROM kept"), "1");
    // What it cannot do is no success.
    fs::rename(world.sandbox.repo(), world.path("gone")).unwrap();
    world.cluster.stop(Mode::Fast);
    assert!(restore(&world).code.is_some_and(|code| code > 0));
}
