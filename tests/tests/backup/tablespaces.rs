//! Tablespaces that come or go while a backup runs: then it is none.

use std::fs;

use support::{Run, World, majors};

/// A backup during which this is done in the cluster, while the backup waits for the archive.
fn backup_during(world: &World, sql: &[&str]) -> Run {
    let (hold, archive) = (world.path("hold"), world.sandbox.archive_command(support::world::STANZA));
    fs::write(&hold, "").unwrap();
    world.set_archive_command(&format!("while test -e {}; do sleep 0.05; done; {archive}", hold.display()));
    // So that the start of the backup ends a segment, and waits for that.
    world.cluster.psql("SELECT pg_create_restore_point('before')");
    let mut running = world.spawn(["--start-fast", "--type=full", "backup"]);
    running.wait_for("check archive for prior segment");
    sql.iter().for_each(|sql| drop(world.cluster.psql(sql)));
    fs::remove_file(&hold).unwrap();
    running.wait()
}

#[test]
fn a_tablespace_that_is_created_or_dropped_meanwhile_fails_the_backup() {
    let major = *majors().last().unwrap();
    let world = World::new(major);
    let place = |name: &str| world.cluster.side_dir(name).display().to_string();
    world.cluster.psql(&format!("CREATE TABLESPACE old LOCATION '{}'", place("old")));

    let create = format!("CREATE TABLESPACE new LOCATION '{}'", place("new"));
    let run = backup_during(&world, &[&create, "CREATE TABLE inside (n int) TABLESPACE new"]);
    assert_eq!(run.code, Some(76), "{run}");
    assert!(run.says("[076]") && run.says("tablespace 'new' (") && run.says("was created while"), "{run}");
    assert!(run.says("hint: "), "{run}");

    let run = backup_during(&world, &["DROP TABLESPACE old"]);
    assert_eq!(run.code, Some(76), "{run}");
    assert!(run.says("tablespace 'old' (") && run.says("was dropped while"), "{run}");
    // Another one in its place.
    let create = format!("CREATE TABLESPACE third LOCATION '{}'", place("third"));
    let run = backup_during(&world, &[&create, "DROP TABLESPACE third"]);
    assert_eq!(run.code, Some(0), "gone again, with nothing in it\n{run}");

    world.cluster.psql("ALTER TABLESPACE new RENAME TO newer");
    let run = backup_during(&world, &["ALTER TABLESPACE newer RENAME TO newest"]);
    assert_eq!(run.code, Some(0), "{run}");
    assert_eq!(world.labels().len(), 2);
}
