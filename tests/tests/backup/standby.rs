//! Files copied from a standby: what comes back is the primary's, wherever the files were read and however far behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use support::{Cluster, Mode, Run, Work, World, account, majors, spread, world::STANZA};

/// Files that a server leaves alone, of the names of relations, so that they tell where a backup read them: their sizes
/// make them an entry's, a pool's and one of their own.
const TELLING: [(&str, usize); 3] =
    [("base/1/4000000001", 60), ("base/1/4000000002", 5001), ("base/1/4000000003", 100_001)];
/// One that replay does not keep, whoever has it.
const ODD: &str = "base/1/odd";
/// One that only the primary has.
const ALONE: &str = "base/1/4000000004";
/// One that the primary has made longer, by zeros and without WAL.
const LONGER: &str = "base/1/4000000005";
/// One of which the standby has a part, and how much of what.
const PART: (&str, usize, usize) = ("base/1/4000000006", 50_000, 100_001);

/// A streaming standby of the world's cluster. Its tablespaces are elsewhere.
pub(super) fn standby_of(world: &World, name: &str, spaces: &[(PathBuf, PathBuf)]) -> Cluster {
    let primary = &world.cluster;
    let data = world.sandbox.dir(name);
    let port = primary.port().to_string();
    let mut copy = account::command(primary.binaries().own("pg_basebackup"));
    copy.arg("-D").arg(&data).arg("-h").arg(primary.socket_dir()).args(["-p", &port, "-U", "postgres"]);
    for (from, to) in spaces {
        copy.arg("-T").arg(format!("{}={}", from.display(), to.display()));
    }
    let out = copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]).output().expect("cannot run pg_basebackup");
    assert!(out.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&out.stderr));
    let mut standby = Cluster::adopt(primary.major(), &data);
    // What pg_basebackup writes is for its own libpq, which need not be the server's.
    let socket = primary.socket_dir().display();
    standby.override_setting("primary_conninfo", &format!("host={socket} port={port} user=postgres"));
    standby.start();
    standby
}

/// Configures these clusters as pg1 and pg2.
pub(super) fn configure(world: &World, first: &Cluster, second: &Cluster) {
    let mut options = Vec::new();
    for (key, cluster) in [(1, first), (2, second)] {
        options.push((format!("pg{key}-path"), cluster.data_dir().display().to_string()));
        options.push((format!("pg{key}-socket-path"), cluster.socket_dir().display().to_string()));
        options.push((format!("pg{key}-port"), cluster.port().to_string()));
        options.push((format!("pg{key}-user"), "postgres".to_owned()));
    }
    let options: Vec<_> = options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    world.sandbox.write_config(&[(STANZA, &options)]);
}

fn put(cluster: &Cluster, path: &str, content: &[u8]) {
    let path = cluster.data_dir().join(path);
    fs::write(&path, content).unwrap();
    account::give(&path);
}

fn plant(primary: &Cluster, standby: &Cluster) {
    for (path, size) in TELLING {
        put(primary, path, &vec![b'p'; size]);
        put(standby, path, &vec![b's'; size]);
    }
    put(primary, ODD, b"p");
    put(standby, ODD, b"s");
    put(primary, ALONE, b"p");
    put(primary, LONGER, &[0; 3 * 8192]);
    put(standby, LONGER, &[0; 8192]);
    let (path, part, size) = PART;
    put(primary, path, &vec![b'p'; size]);
    put(standby, path, &vec![b's'; part]);
}

#[track_caller]
fn assert_read_from(letter: u8, target: &Path) {
    for (path, size) in TELLING {
        assert!(
            fs::read(target.join(path)).unwrap() == vec![letter; size],
            "{path} is not that of '{}'",
            letter as char
        );
    }
    assert_eq!(fs::read(target.join(ODD)).unwrap(), b"p");
    assert_eq!(fs::read(target.join(ALONE)).unwrap(), b"p");
    assert!(fs::read(target.join(LONGER)).unwrap() == [0; 3 * 8192]);
    let (path, part, size) = PART;
    let expected = [vec![letter; part], vec![b'p'; size - part]].concat();
    assert!(fs::read(target.join(path)).unwrap() == expected, "{path} is not of both");
}

fn backup(world: &World, kind: &str, standby: &str) -> Run {
    world.ok(["--start-fast", &format!("--type={kind}"), &format!("--backup-standby={standby}"), "backup"])
}

/// Restores to the end of the WAL and compares everything with the primary, which must be at rest.
#[track_caller]
fn assert_comes_back(world: &World, name: &str, more: &[String]) -> PathBuf {
    world.archive_now();
    let mut restored = world.restore(name, more);
    restored.start();
    restored.wait_promoted();
    assert!(restored.fingerprint() == world.cluster.fingerprint(), "{name} differs from the primary");
    restored.amcheck();
    restored.stop(Mode::Fast);
    restored.data_dir().to_owned()
}

#[test]
fn files_of_a_standby_make_backups_of_the_primary() {
    for major in spread() {
        let builder = Cluster::builder(major);
        let world = World::of(if major >= 17 { builder.setting("summarize_wal", "on") } else { builder }, &[]);
        let (place, its_place) = (world.cluster.side_dir("space"), world.sandbox.dir("its space"));
        world.cluster.psql(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
        world.cluster.pgbench_init(3);
        world
            .cluster
            .psql("CREATE TABLE away TABLESPACE space AS SELECT n, repeat('x', 200) FROM generate_series(1, 20000) n");
        let standby = standby_of(&world, "standby", &[(place, its_place)]);
        configure(&world, &world.cluster, &standby);
        plant(&world.cluster, &standby);
        let map = |name: &str| [format!("--tablespace-map-all={}", world.sandbox.dir(name).display())];

        // Under load, so that the two are never the same.
        let load = world.cluster.load(2);
        let run = backup(&world, "full", "y");
        assert!(run.says("wait for replay on the standby, pg2, to reach"), "{run}");
        assert!(run.says("files were copied from the standby, pg2"), "{run}");
        world.cluster.psql("UPDATE away SET n = n + 1 WHERE n % 2 = 0; CREATE TABLE late AS TABLE away");
        let run = backup(&world, "incr", "y");
        assert!(run.says("files were copied from the standby, pg2"), "{run}");
        load.stop();
        let target = assert_comes_back(&world, "one", &map("one space"));
        assert_read_from(b's', &target);

        // From one to the other and back: times and pages of earlier backups are right for either.
        world.cluster.pgbench(1, Work::Transactions(200));
        let run = backup(&world, "incr", "n");
        assert!(!run.says("from the standby"), "{run}");
        assert_eq!(run.messages("WARN"), Vec::<&str>::new(), "times and sizes are the primary's\n{run}");
        for sql in ["DELETE FROM away WHERE n > 10000", "VACUUM away", "DROP TABLE late"] {
            world.cluster.psql(sql);
        }
        world.cluster.pgbench(1, Work::Transactions(200));
        backup(&world, "diff", "prefer");
        assert_comes_back(&world, "two", &map("two space"));
        let run = world.ok(["verify"]);
        assert_eq!(run.messages("ERROR"), Vec::<&str>::new(), "{run}");
    }
}

#[test]
fn a_standby_that_lags_while_it_is_copied_is_made_up_for() {
    let world = World::new(majors()[0]);
    world.cluster.pgbench_init(2);
    world.cluster.psql("CREATE TABLE t AS SELECT n, repeat('x', 100) s FROM generate_series(1, 20000) n");
    world.cluster.psql("CREATE TABLE cut AS TABLE t");
    let standby = standby_of(&world, "standby", &[]);
    configure(&world, &world.cluster, &standby);
    backup(&world, "full", "y");

    // The backup has seen the standby at its start, and now waits for the archive.
    let hold = world.path("hold");
    fs::write(&hold, "").unwrap();
    let archive = world.sandbox.archive_command(STANZA);
    world.set_archive_command(&format!("while test -e {}; do sleep 0.05; done; {archive}", hold.display()));
    let mut running = world.spawn(["--start-fast", "--type=incr", "--backup-standby=y", "backup"]);
    running.wait_for("check archive for prior segment");
    standby.psql("SELECT pg_wal_replay_pause()");
    standby.wait_for("SELECT pg_is_wal_replay_paused()");
    world.cluster.psql("UPDATE t SET n = -n; CREATE TABLE late AS TABLE t");
    world.cluster.psql("TRUNCATE cut");
    world.cluster.psql("DELETE FROM pgbench_accounts WHERE aid > 50000");
    world.cluster.psql("VACUUM pgbench_accounts");
    world.cluster.checkpoint();
    fs::remove_file(&hold).unwrap();
    let run = running.wait();
    assert_eq!(run.code, Some(0), "{run}");
    assert!(run.says("files were copied from the standby, pg2"), "{run}");
    assert_comes_back(&world, "one", &[]);
    // What the standby lacked then is not believed to be in that backup.
    standby.psql("SELECT pg_wal_replay_resume()");
    backup(&world, "incr", "y");
    assert_comes_back(&world, "two", &[]);
    backup(&world, "incr", "n");
    assert_comes_back(&world, "three", &[]);
}

#[test]
fn a_standby_that_lost_the_tail_of_a_file_is_no_copy() {
    let world = World::new(majors()[0]);
    // Nothing writes to it later, which replay would find out.
    world.cluster.psql(
        "CREATE TABLE lost WITH (autovacuum_enabled = off) AS SELECT n, repeat('x', 200) FROM generate_series(1, 12000) n",
    );
    let file = world.cluster.psql("SELECT pg_relation_filepath('lost')");
    world.cluster.checkpoint();
    let mut standby = standby_of(&world, "standby", &[]);
    configure(&world, &world.cluster, &standby);
    standby.stop(Mode::Fast);
    let path = standby.data_dir().join(file);
    let size = fs::metadata(&path).unwrap().len();
    assert!(size > 300 * 8192, "{size}");
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100 * 8192).unwrap();
    standby.start();
    let run = world.expect(58, ["--start-fast", "--type=full", "--backup-standby=prefer", "backup"]);
    assert!(run.says("[058]") && run.says("the standby, pg2, is no copy of the primary"), "{run}");
    assert!(run.says(" ends at 819200 bytes, but ") && run.says("hint: "), "{run}");
    assert_eq!(world.labels(), Vec::<String>::new());

    // Cut by the server, before the backup and while the standby lags, it is right.
    world.cluster.psql("TRUNCATE lost");
    world.cluster.psql("INSERT INTO lost SELECT n, repeat('y', 200) FROM generate_series(1, 3000) n");
    backup(&world, "full", "y");
    assert_comes_back(&world, "one", &[]);
}

#[test]
fn which_is_which_is_found_out_and_what_is_missing_is_told() {
    let world = World::new(majors()[0]);
    world.cluster.pgbench_init(1);
    let mut standby = standby_of(&world, "standby", &[]);
    // WAL is pushed by the primary, whatever its number.
    let archive = world.sandbox.archive_command(STANZA);
    world.set_archive_command(&format!("{archive} --pg1-path={}", world.cluster.data_dir().display()));
    configure(&world, &standby, &world.cluster);
    plant(&world.cluster, &standby);

    // pg1 is the standby here.
    let run = backup(&world, "full", "y");
    assert!(run.says("files were copied from the standby, pg1"), "{run}");
    assert_read_from(b's', &assert_comes_back(&world, "one", &[]));
    let run = backup(&world, "full", "n");
    assert!(!run.says("from the standby"), "{run}");
    assert_read_from(b'p', &assert_comes_back(&world, "two", &[]));
    let run = world.ok(["--backup-standby", "check"]);
    assert!(
        run.says("switch wal not performed because this is a standby") && run.says("successfully archived"),
        "{run}"
    );

    // It does not get any further.
    standby.psql("SELECT pg_wal_replay_pause()");
    standby.wait_for("SELECT pg_is_wal_replay_paused()");
    world.archive_now();
    let slow = ["--start-fast", "--archive-timeout=3"];
    let run = world.expect(82, slow.iter().chain(&["--backup-standby=y", "backup"]));
    assert!(run.says("the standby, pg1, has replayed up to ") && run.says("the backup starts at "), "{run}");
    assert!(run.says("hint: "), "{run}");
    let run = world.ok(slow.iter().chain(&["--backup-standby=prefer", "backup"]));
    assert!(run.messages("WARN").iter().any(|m| m.starts_with("all files are copied from the primary")), "{run}");

    // It is not there.
    standby.psql("SELECT pg_wal_replay_resume()");
    standby.stop(Mode::Fast);
    let labels = world.labels().len();
    for command in [&["--start-fast", "backup"][..], &["check"]] {
        let run = world.expect(56, command.iter().chain(&["--backup-standby=y"]));
        assert!(run.says("[056]") && run.says("no running standby was found"), "{run}");
        let run = world.ok(command.iter().chain(&["--backup-standby=prefer"]));
        assert!(run.messages("WARN").iter().any(|m| m.starts_with("no running standby was found")), "{run}");
    }
    assert_eq!(world.labels().len(), labels + 1);

    // Nor is the primary, or there are two.
    standby.start();
    let mut world = world;
    world.cluster.stop(Mode::Fast);
    let run = world.expect(56, ["--start-fast", "--backup-standby=y", "backup"]);
    assert!(run.says("no primary was found") && run.says("hint: "), "{run}");
    let port = world.cluster.port().to_string();
    world.cluster.start();
    assert_eq!(world.cluster.port().to_string(), port);
    standby.psql("SELECT pg_promote()");
    standby.wait_promoted();
    let run = world.expect(56, ["--start-fast", "--backup-standby=y", "backup"]);
    assert!(run.says("are both primaries"), "{run}");
}
