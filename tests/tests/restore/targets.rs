//! The proof: under load, to every kind of target, the tables are what they were at that moment.

use std::{fs, thread, time::Duration};

use support::{
    Cluster, Mode, Work, World, majors, spread,
    world::{Mark, data, marks},
};

/// Starts a restored cluster, waits for the end of its recovery, compares with a mark.
fn assert_at(mut cluster: Cluster, mark: &Mark, expected: &[u32]) {
    cluster.start();
    cluster.wait_promoted();
    assert!(data(&cluster) == mark.data, "{cluster:?} does not hold what mark {} saw", mark.number);
    assert_eq!(marks(&cluster), expected, "{cluster:?}");
    cluster.stop(Mode::Fast);
}

#[test]
fn every_target_under_load_brings_back_that_moment() {
    for major in spread() {
        let world = World::new(major);
        world.create_marks();
        world.cluster.pgbench_init(3);
        let load = world.cluster.load(2);
        let full = world.backup("full");
        let first = world.mark(1);
        world.archive_now();
        let incr = world.backup("incr");
        let second = world.mark(2);
        let third = world.mark(3);
        load.stop();
        let before_drop = world.mark(4);
        world.cluster.psql("DROP TABLE pgbench_accounts");
        let last = data(&world.cluster);
        world.archive_now();

        let promote = "--target-action=promote";
        let to =
            |kind: &str, target: &str| vec![format!("--type={kind}"), format!("--target={target}"), promote.to_owned()];
        // A first one into an empty directory; the rest go over it.
        let target = world.sandbox.dir("target");
        let restore = |args: Vec<String>| {
            let run = world.restore_to(&target, args.iter().map(String::as_str).chain(["--delta"]));
            let set =
                run.messages("INFO").into_iter().find_map(|m| m.split_once("restore backup set ")).expect("a set").1;
            (world.adopt(&target), set.to_owned())
        };
        let (cluster, set) = restore(to("time", &first.time));
        // The newest backup is of later: the one before it is chosen.
        assert_eq!(set, full);
        assert_at(cluster, &first, &[]);
        let (cluster, set) = restore(to("lsn", &first.lsn));
        assert_eq!(set, full);
        assert_at(cluster, &first, &[]);
        let (cluster, set) = restore(to("time", &second.time));
        assert_eq!(set, incr);
        assert_at(cluster, &second, &[1]);
        assert_at(restore(to("name", &second.name)).0, &second, &[1]);
        assert_at(restore(to("xid", &third.xid)).0, &third, &[1, 2, 3]);
        let mut exclusive = to("xid", &third.xid);
        exclusive.push("--target-exclusive".into());
        assert_at(restore(exclusive).0, &third, &[1, 2]);
        // From the full, over all the WAL.
        let mut from_full = to("lsn", &third.lsn);
        from_full.push(format!("--set={full}"));
        assert_at(restore(from_full).0, &third, &[1, 2]);
        // To just before the disaster, and to the end of the archive.
        let (mut cluster, _) = restore(to("time", &before_drop.time));
        cluster.start();
        cluster.wait_promoted();
        assert!(data(&cluster) == before_drop.data);
        cluster.amcheck();
        cluster.stop(Mode::Fast);
        let (mut cluster, set) = restore(vec!["--type=default".into()]);
        assert_eq!(set, incr);
        cluster.start();
        cluster.wait_promoted();
        assert!(data(&cluster) == last);
        assert_eq!(marks(&cluster), [1, 2, 3, 4]);
        cluster.amcheck();
    }
}

#[test]
fn immediate_is_consistent_and_standby_follows() {
    for major in spread() {
        let world = World::new(major);
        world.create_marks();
        world.cluster.pgbench_init(2);
        let load = world.cluster.load(2);
        let label = world.backup("full");
        load.stop();
        world.cluster.psql("INSERT INTO mark VALUES (1)");
        world.archive_now();

        let mut cluster =
            world.restore("immediate", ["--type=immediate", "--target-action=promote", &format!("--set={label}")]);
        cluster.start();
        cluster.wait_promoted();
        cluster.amcheck();
        assert_eq!(marks(&cluster), Vec::<u32>::new(), "recovered further than asked");
        // A TPC-B history adds up, wherever it was cut.
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
        assert_eq!(cluster.psql(sums), "t");
        cluster.pgbench(1, Work::Transactions(50));
        cluster.stop(Mode::Fast);

        let mut standby = world.restore("standby", ["--type=standby"]);
        assert!(standby.data_dir().join("standby.signal").exists());
        standby.start();
        let see = |standby: &Cluster, number: u32| {
            let deadline = std::time::Instant::now() + Duration::from_secs(120);
            while !marks(standby).contains(&number) {
                assert!(std::time::Instant::now() < deadline, "{}", standby.log_tail());
                thread::sleep(Duration::from_millis(50));
            }
        };
        see(&standby, 1);
        assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "t");
        world.cluster.psql("INSERT INTO mark VALUES (2)");
        world.archive_now();
        see(&standby, 2);
        standby.psql("SELECT pg_promote()");
        standby.wait_promoted();
        assert!(data(&standby) == data(&world.cluster));
    }
}

#[test]
fn pause_waits_and_shutdown_ends() {
    let world = World::new(majors()[0]);
    world.create_marks();
    world.cluster.pgbench_init(1);
    world.backup("full");
    let mark = world.mark(1);
    world.archive_now();
    let name = format!("--target={}", mark.name);
    let mut cluster = world.restore("pause", ["--type=name", &name]);
    cluster.start();
    while cluster.psql("SELECT pg_get_wal_replay_pause_state()") != "paused" {
        thread::sleep(Duration::from_millis(20));
    }
    assert!(data(&cluster) == mark.data);
    cluster.psql("SELECT pg_wal_replay_resume()");
    cluster.wait_promoted();

    let mut cluster = world.restore("shutdown", ["--type=name", &name, "--target-action=shutdown"]);
    // It may end before or after it answers for the first time.
    if cluster.try_start().is_ok() {
        assert!(cluster.wait_end());
    }
    assert!(cluster.log().contains("recovery stopping at restore point"), "{}", cluster.log());
}

/// Whether the server ends by itself. As a hot standby it may answer before its recovery fails.
fn never_comes_up(cluster: &mut Cluster) -> bool {
    cluster.try_start().is_err() || cluster.wait_end()
}

#[test]
fn a_target_that_is_never_reached_does_not_come_up() {
    let world = World::new(majors()[0]);
    world.backup("full");
    world.archive_now();
    let mut cluster = world.restore("target", ["--type=name", "--target=no such point", "--target-action=promote"]);
    assert!(never_comes_up(&mut cluster), "{}", cluster.log());
    assert!(
        cluster.log().contains("recovery ended before configured recovery target was reached"),
        "{}",
        cluster.log()
    );
    // The archive fails instead of answering: neither does it come up with less than there is.
    let mut cluster = world.restore("broken", ["--type=default"]);
    let (wal, away) = (world.sandbox.repo().join("stanzas"), world.path("stanzas"));
    fs::rename(&wal, &away).unwrap();
    assert!(never_comes_up(&mut cluster), "{}", cluster.log());
    fs::rename(&away, &wal).unwrap();
    cluster.start();
    cluster.wait_promoted();
}

#[test]
fn an_offline_backup_starts_without_any_wal() {
    let mut world = World::new(majors()[0]);
    world.create_marks();
    world.cluster.pgbench_init(2);
    world.cluster.pgbench(2, Work::Transactions(200));
    let expected = data(&world.cluster);
    world.cluster.stop(Mode::Fast);
    world.ok(["--no-online", "backup"]);
    world.cluster.start();
    let target = world.sandbox.dir("target");
    world.restore_to(&target, Vec::<&str>::new());
    // All of it, WAL too, is as it was; nothing asks for recovery.
    assert!(!target.join("recovery.signal").exists() && !target.join("backup_label").exists());
    let mut cluster = world.adopt(&target);
    cluster.start();
    assert!(data(&cluster) == expected);
    assert!(!cluster.log().contains("recovery"), "{}", cluster.log());
    cluster.amcheck();
    // Two at once.
    let mut second = world.restore("second", ["--type=none"]);
    second.start();
    assert!(data(&second) == expected);
}

#[test]
fn without_its_label_a_restored_online_backup_does_not_start() {
    let world = World::new(majors()[0]);
    world.cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) n");
    let last = world.archive_now();
    // The backup recycles the segment.
    let wal = fs::read(world.cluster.data_dir().join("pg_wal").join(&last)).unwrap();
    world.backup("full");
    let mut restored = world.restore("target", ["--type=none"]);
    let target = restored.data_dir().to_owned();
    // WAL of before the backup: a checkpoint of that time would be found in it.
    fs::write(target.join("pg_wal").join(&last), wal).unwrap();
    fs::remove_file(target.join("backup_label")).unwrap();
    let (pg, to) =
        (format!("--pg1-path={}", target.display()), target.join("pg_wal/RECOVERYXLOG").display().to_string());
    let refused = world.expect(29, ["archive-get", &pg, &last, &to]);
    assert!(refused.says("backup_label"), "{refused}");
    restored.try_start().expect_err("it started at a wrong place");
    assert!(restored.log().contains("could not locate a valid checkpoint record"), "{}", restored.log());
}
