//! A standby that is backed up without its primary.

use std::fs;

use support::{Cluster, Mode, World, majors, spread, world::STANZA};

use super::standby::{configure, standby_of};

/// The standby configured alone; its primary archives as before.
fn configure_alone(world: &World, standby: &Cluster) {
    let path = world.cluster.data_dir().display();
    world.set_archive_command(&format!("{} --pg1-path={path}", world.sandbox.archive_command(STANZA)));
    world.sandbox.configure(STANZA, standby, &[]);
}

const PREFER: [&str; 3] = ["--start-fast", "--backup-standby=prefer", "backup"];

#[test]
fn a_standby_alone_makes_backups_that_come_back() {
    for major in spread() {
        // Segments end by themselves on the primary.
        let world = World::of(Cluster::builder(major).setting("archive_timeout", "1"), &[]);
        world.cluster.pgbench_init(2);
        let standby = standby_of(&world, "standby", &[]);
        configure_alone(&world, &standby);
        let run = world.expect(56, ["--start-fast", "--backup-standby=y", "backup"]);
        assert!(run.says("is a standby: no primary is configured") && run.says("prefer"), "{run}");
        world.expect(56, ["--start-fast", "backup"]);

        let load = world.cluster.load(2);
        let run = world.ok(PREFER.iter().chain(&["--type=full"]));
        assert!(run.messages("WARN").iter().any(|m| m.starts_with("no primary was found")), "{run}");
        world.cluster.psql("CREATE TABLE late AS SELECT n FROM generate_series(1, 10000) n");
        let incremental = support::world::label(&world.ok(PREFER.iter().chain(&["--type=incr"])));
        load.stop();

        // As soon as it is consistent, and to the end.
        let mut early = world.restore("early", ["--type=immediate", "--target-action=promote"]);
        let label = fs::read_to_string(early.data_dir().join("backup_label")).unwrap();
        assert!(label.contains("BACKUP FROM: standby"), "{label}");
        early.start();
        early.wait_promoted();
        early.amcheck();
        early.stop(Mode::Fast);
        world.archive_now();
        for set in [&world.labels()[0], &incremental] {
            let mut late = world.restore(set, [format!("--set={set}")]);
            late.start();
            late.wait_promoted();
            assert!(late.fingerprint() == world.cluster.fingerprint(), "{set} differs from the primary");
            late.amcheck();
            late.stop(Mode::Fast);
        }

        // One of the primary builds on it, and it on that one.
        configure(&world, &standby, &world.cluster);
        let run = world.ok(["--start-fast", "--type=incr", "backup"]);
        assert!(!run.says("alone"), "{run}");
        world.archive_now();
        let mut back = world.restore("back", Vec::<String>::new());
        back.start();
        back.wait_promoted();
        assert!(back.fingerprint() == world.cluster.fingerprint(), "the primary's differs from it");
        back.stop(Mode::Fast);
        let run = world.ok(["verify"]);
        assert_eq!(run.messages("ERROR"), Vec::<&str>::new(), "{run}");
    }
}

#[test]
fn a_standby_alone_says_what_it_cannot_do() {
    let world = World::new(majors()[0]);
    let standby = standby_of(&world, "standby", &[]);
    configure_alone(&world, &standby);

    // Nobody ends the segment that it needs.
    world.cluster.psql("CREATE TABLE t AS SELECT 1 AS n");
    world.cluster.checkpoint();
    let replayed = world.cluster.psql("SELECT pg_current_wal_lsn()");
    standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{replayed}'"));
    let run = world.expect(82, PREFER.iter().chain(&["--archive-timeout=2"]));
    assert!(run.says("cannot end a WAL segment: its primary does") && run.says("pg_switch_wal()"), "{run}");
    world.archive_now();

    // Pages of which replay has no images.
    world.cluster.psql("ALTER SYSTEM SET full_page_writes = off");
    world.cluster.psql("SELECT pg_reload_conf()");
    world.cluster.wait_for("SELECT current_setting('full_page_writes') = 'off'");
    world.cluster.checkpoint();
    world.cluster.psql("UPDATE t SET n = n + 1");
    world.archive_now();
    let replayed = world.cluster.psql("SELECT pg_current_wal_lsn()");
    standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{replayed}'"));
    let run = world.expect(57, PREFER);
    assert!(run.says("full_page_writes"), "{run}");
    world.cluster.psql("ALTER SYSTEM RESET full_page_writes");
    world.cluster.psql("SELECT pg_reload_conf()");
    world.cluster.wait_for("SELECT current_setting('full_page_writes') = 'on'");
    // The checkpointer may hear of it after this session.
    world.cluster.checkpoint();
    world.cluster.checkpoint();
    world.archive_now();
    let replayed = world.cluster.psql("SELECT pg_current_wal_lsn()");
    standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{replayed}'"));

    // It becomes a primary meanwhile.
    let mut running = world.spawn(PREFER.iter().chain(&["--io-limit=4MiB"]));
    running.wait_for("backup start archive");
    standby.psql("SELECT pg_promote()");
    let run = running.wait();
    assert!(matches!(run.code, Some(57 | 58)), "{run}");
    assert!(run.says("was promoted"), "{run}");
    assert_eq!(world.labels(), Vec::<String>::new());
}
