//! Drills: a good backup passes and is known to, a bad one fails and is known to, and nothing is left of the clone.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::process::{Pid, Signal, getuid, kill_process};
use serde_json::Value;
use support::{Cluster, World, account, sandbox::Run, spread, wait_until};

struct Ground {
    world: World,
    dir: PathBuf,
}

impl Ground {
    fn of(world: World) -> Self {
        let dir = world.sandbox.dir("c");
        Self { world, dir }
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        self.world.scratch_args("drill", &self.dir, more)
    }

    fn drill(&self, code: i32, more: &[&str]) -> Run {
        let run = self.world.expect(code, self.args(more));
        self.assert_clean();
        run
    }

    fn assert_clean(&self) {
        let entries: Vec<_> = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(entries.is_empty() && self.world.sandbox.mounts().is_empty(), "{entries:?}");
    }

    /// Drills as `info` tells them.
    fn told(&self) -> Vec<Value> {
        self.world.info()["drill"].as_array().cloned().unwrap_or_default()
    }

    fn info(&self) -> String {
        self.world.ok(["--log-level-console=warn", "info"]).stdout
    }
}

/// The result of a check of a drill.
fn result<'a>(drill: &'a Value, name: &str) -> &'a str {
    let checks = drill["check"].as_array().unwrap();
    let check = checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no check {name}: {drill}"));
    check["result"].as_str().unwrap()
}

/// Own checks: names, statements, answers.
fn own(world: &World, checks: &[(&str, &str, &str)]) -> PathBuf {
    let dir = world.sandbox.dir("drill.d");
    for (name, sql, out) in checks {
        for (ext, text) in [("sql", sql), ("out", out)] {
            let path = dir.join(format!("{name}.{ext}"));
            fs::write(&path, text).unwrap();
            account::give(&path);
        }
    }
    dir
}

#[test]
fn a_good_backup_passes_and_is_known_to() {
    for major in spread() {
        let world = World::of(Cluster::builder(major).checksums(true), &[]);
        world.cluster.pgbench_init(1);
        let before = world.info();
        let label = world.backup("full");
        world.cluster.psql("CREATE TABLE later AS SELECT generate_series(1, 77) AS i");
        world.archive_now();
        let ground = Ground::of(world);
        assert!(ground.told().is_empty() && before.get("drill").is_none());

        let checks = own(
            &ground.world,
            &[
                ("a rows", "-- database: postgres\nSELECT count(*) FROM later;\nDROP TABLE later;", "77\n\n"),
                ("b write", "SELECT count(*) FROM pgbench_branches, pg_class WHERE relname = 'later'", "0"),
            ],
        );
        let drill_dir = format!("--drill-dir={}", checks.display());
        let run = ground.drill(0, &[&drill_dir, "--log-level-console=warn"]);
        assert!(run.stdout.starts_with(&format!("drill of backup {label} of repo1: passed\n")), "{run}");
        // The ready-made 13 has no such programs.
        let outcome = |program: &str| if ground.world.pg_bin().join(program).exists() { "passed" } else { "skipped" };
        for line in [
            "recovery: passed".to_owned(),
            "sql a rows: passed".to_owned(),
            "sql b write: passed".to_owned(),
            format!("pg_amcheck: {}", outcome("pg_amcheck")),
            format!("page checksums: {}", outcome("pg_checksums")),
        ] {
            assert!(run.stdout.contains(&format!("    {line} (")), "{line}\n{run}");
        }
        assert!(run.stdout.contains("consistent after ") && run.stdout.contains("first query after "), "{run}");

        let told = ground.told();
        assert_eq!(told.len(), 1);
        assert_eq!((&told[0]["passed"], &told[0]["label"]), (&Value::Bool(true), &Value::String(label.clone())));
        assert!(told[0]["age"].as_u64().is_some_and(|age| age < 3600), "{told:?}");
        let at = |name: &str| told[0][name].as_u64().unwrap_or_else(|| panic!("no {name}: {told:?}"));
        let (consistent, recovered) = (at("consistent-milliseconds"), at("recovered-milliseconds"));
        assert!(consistent <= recovered && recovered <= at("first-query-milliseconds"), "{told:?}");
        assert!(
            ground.info().contains("    drill: passed ") && ground.info().contains(&format!("backup {label} of repo1"))
        );
        // Nothing else minds the record.
        let run = ground.world.ok(["verify", "--log-level-console=warn"]);
        assert_eq!(run.stdout, "", "{run}");
        ground.world.backup("incr");

        // The same backup at its own end; JSON.
        let json = ground.drill(0, &["--type=immediate", &format!("--set={label}"), "--output=json"]).json();
        assert_eq!((&json["passed"], &json["type"]), (&Value::Bool(true), &Value::String("immediate".to_owned())));
        assert_eq!(result(&json, "pg_amcheck"), outcome("pg_amcheck"));
        assert_eq!(ground.told().len(), 2);
    }
}

#[test]
fn a_wrong_answer_fails_with_what_differs() {
    let world = World::of(Cluster::builder(15).checksums(false), &[]);
    world.cluster.psql("CREATE TABLE sums AS SELECT i FROM generate_series(1, 5) AS i");
    let label = world.backup("full");
    let ground = Ground::of(world);
    ground.drill(0, &[]);
    let checks = own(
        &ground.world,
        &[
            ("good", "SELECT sum(i) FROM sums", "15"),
            ("wrong", "SELECT i FROM sums ORDER BY i", "1\n2\n7\n4\n5"),
            ("zerror", "SELECT nothing FROM sums", ""),
        ],
    );
    let drill_dir = format!("--drill-dir={}", checks.display());
    let run = ground.drill(81, &[&drill_dir]);
    let path = checks.join("wrong.sql");
    assert!(run.says("sql wrong: failed") && run.says(path.to_str().unwrap()), "{run}");
    assert!(run.says("@@ line 3 @@\n        -7\n        +3\n"), "{run}");
    assert!(run.says("sql good: passed") && run.says("column \"nothing\" does not exist"), "{run}");
    // What follows is checked all the same, and what cannot be is said to be skipped.
    assert!(run.says("pg_amcheck: passed") && run.says("page checksums: skipped"), "{run}");
    assert!(run.says(&format!("the drill of backup {label} of repo1 has failed: sql wrong, sql zerror")), "{run}");

    let told = ground.told();
    assert_eq!((told.len(), &told[1]["passed"]), (2, &Value::Bool(false)));
    assert_eq!((result(&told[1], "sql wrong"), result(&told[1], "page checksums")), ("failed", "skipped"));
    let info = ground.info();
    assert!(info.contains("drill: failed") && info.contains(": sql wrong, sql zerror\n"), "{info}");
    assert!(info.contains("    drill: passed"), "the last one that passed is shown too: {info}");

    // Whoever reads what is printed has gone: it has failed all the same, and is recorded.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = ground.world.pgkeep(ground.args(&[&drill_dir, "--log-level-console=off"]));
    let ended = command.stdout(Stdio::from(writer)).stderr(Stdio::null()).status().unwrap();
    assert_eq!(ended.code(), Some(81));
    assert_eq!((ground.told().len(), &ground.told()[2]["passed"]), (3, &Value::Bool(false)));

    fs::remove_file(checks.join("good.out")).unwrap();
    let run = ground.drill(55, &[&drill_dir]);
    assert!(run.says("good.out"), "{run}");
    // That was no drill.
    let run = ground.drill(102, &["--pg-bin=/nowhere"]);
    assert!(run.says("/nowhere"), "{run}");
    assert_eq!(ground.told().len(), 3);
}

#[test]
fn a_damaged_pack_fails_and_is_known_to() {
    let world = World::new(15);
    world.cluster.pgbench_init(3);
    world.backup("full");
    world.archive_now();
    let ground = Ground::of(world);
    let pack = ground.world.sandbox.largest_pack();
    let whole = fs::read(&pack).unwrap();
    // Here and there, so that some of it is read whatever is read.
    let file = File::options().write(true).open(&pack).unwrap();
    for at in (4096..whole.len().saturating_sub(65_536)).step_by(8192) {
        file.write_all_at(&[0x5a; 64], at as u64).unwrap();
    }
    let run = ground.drill(81, &[]);
    assert!(run.says("has failed: "), "{run}");
    let told = ground.told();
    assert_eq!((told.len(), &told[0]["passed"]), (1, &Value::Bool(false)));
    assert!(ground.info().contains("drill: failed"), "{}", ground.info());
    fs::write(&pack, whole).unwrap();
    // Nothing to make a clone of.
    let (packs, away) = (ground.world.sandbox.repo().join("packs"), ground.world.path("away"));
    fs::rename(&packs, &away).unwrap();
    let run = ground.drill(81, &[]);
    assert!(run.says("clone: failed") && run.says("ERROR: [055]"), "{run}");
    assert_eq!(result(&ground.told()[1], "clone"), "failed");
    fs::rename(&away, &packs).unwrap();
    ground.drill(0, &[]);
    assert_eq!(ground.told()[2]["passed"], true);
}

#[test]
fn damage_that_was_there_before_the_backup_is_found() {
    let mut world = World::of(Cluster::builder(15).checksums(true), &[]);
    world.cluster.psql("CREATE TABLE hurt AS SELECT i, repeat('x', 100) AS t FROM generate_series(1, 20000) AS i");
    let path = world.cluster.data_dir().join(world.cluster.psql("SELECT pg_relation_filepath('hurt')"));
    world.cluster.stop(support::Mode::Fast);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0x77; 32], 40 * 8192 + 6000).unwrap();
    drop(file);
    world.cluster.start();
    world.ok(["--start-fast", "--type=full", "backup"]);
    world.archive_now();
    let ground = Ground::of(world);
    let run = ground.drill(81, &[]);
    assert!(run.says("page checksums: failed") && run.says("checksum verification failed in file"), "{run}");
    let told = ground.told();
    assert_eq!((result(&told[0], "recovery"), result(&told[0], "page checksums")), ("passed", "failed"));
}

#[test]
fn an_unreachable_target_fails_and_a_killed_drill_leaves_nothing() {
    let world = World::new(15);
    world.backup("full");
    world.archive_now();
    let ground = Ground::of(world);
    let run = ground.drill(81, &["--type=name", "--target=never made"]);
    assert!(run.says("recovery ended before configured recovery target was reached"), "{run}");
    assert_eq!(result(&ground.told()[0], "recovery"), "failed");

    let running = ground.world.spawn(ground.args(&[]));
    let has_server = || {
        let dirs = fs::read_dir(&ground.dir).unwrap().flatten();
        dirs.map(|d| d.path()).any(|dir| dir.join("clone/data/postmaster.pid").exists())
    };
    wait_until("a server", has_server);
    running.kill9();
    wait_until("the end of everything", || {
        fs::read_dir(&ground.dir).unwrap().next().is_none() && ground.world.sandbox.mounts().is_empty()
    });
    assert_eq!(ground.told().len(), 1, "a drill that was killed has no outcome");
}

/// The archived file of this name.
fn archived(world: &World, name: &str) -> PathBuf {
    let archives = fs::read_dir(world.sandbox.repo().join("wal/demo")).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<_> = archives.map(|a| a.join(&name[..16]).join(name)).filter(|path| path.is_file()).collect();
    let [path] = found.as_slice() else { panic!("{name}: {found:?}") };
    path.clone()
}

#[test]
fn a_hole_in_the_archive_is_not_taken_for_its_end() {
    let world = World::new(15);
    world.backup("full");
    let segments: Vec<_> = (0..4)
        .map(|i| {
            world.cluster.psql(&format!("CREATE TABLE later_{i} AS SELECT generate_series(1, 10) AS i"));
            world.archive_now()
        })
        .collect();
    let ground = Ground::of(world);
    ground.drill(0, &["--set=latest"]);
    let (whole, away) = (archived(&ground.world, &segments[2]), ground.world.path("away"));
    fs::rename(&whole, &away).unwrap();
    let run = ground.drill(81, &[]);
    assert!(run.says(&format!("goes on to {}", segments[3])), "{run}");
    assert!(run.says(&format!("segment {} is missing", segments[2])), "{run}");
    assert_eq!(result(&ground.told()[1], "recovery"), "failed");
    // The backup itself is none the worse for it.
    ground.drill(0, &["--type=immediate"]);
    fs::rename(&away, &whole).unwrap();
    ground.drill(0, &[]);
}

#[test]
fn a_database_that_was_half_dropped_is_passed_over() {
    let world = World::new(15);
    world.cluster.psql("CREATE TABLE orders AS SELECT generate_series(1, 10) AS i");
    world.cluster.psql("CREATE DATABASE half");
    world.cluster.psql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'half'");
    world.backup("full");
    let ground = Ground::of(world);
    let checks = own(&ground.world, &[("orders", "SELECT count(*) FROM orders", "10")]);
    let run = ground.drill(0, &[&format!("--drill-dir={}", checks.display())]);
    assert!(run.says("pg_amcheck: passed (") && !run.says("half"), "{run}");
}

#[test]
fn damage_that_lets_nobody_in_is_a_failed_drill() {
    let world = World::of(Cluster::builder(15).checksums(false), &[]);
    world.cluster.checkpoint();
    let path = world.cluster.data_dir().join(world.cluster.psql("SELECT pg_relation_filepath('pg_authid')"));
    // The running server has its pages in memory.
    File::options().write(true).open(&path).unwrap().write_all_at(&[0x77; 32], 0).unwrap();
    world.backup("full");
    world.archive_now();
    let ground = Ground::of(world);
    let run = ground.drill(81, &[]);
    assert!(run.says("recovery: failed") && run.says("does not let"), "{run}");
    assert_eq!(result(&ground.told()[0], "recovery"), "failed");
    // That is no fault of the backup.
    let world = World::new(15);
    world.backup("full");
    let ground = Ground::of(world);
    let run = ground.drill(89, &["--pg1-user=nobody"]);
    assert!(run.says("option pg1-user names a superuser") && ground.told().is_empty(), "{run}");
}

#[test]
fn what_is_no_fault_of_the_backup_is_not_recorded() {
    let world = World::new(15);
    world.cluster.psql("CREATE TABLE orders AS SELECT generate_series(1, 10) AS i");
    world.backup("full");
    world.archive_now();
    let ground = Ground::of(world);

    // The process that serves the clone dies.
    let checks = own(&ground.world, &[("long", "SELECT pg_sleep(3)", "")]);
    let drill_dir = format!("--drill-dir={}", checks.display());
    let mut running = ground.world.spawn(ground.args(&[&drill_dir]));
    running.wait_for("checking: sql long");
    let scratch = fs::read_dir(&ground.dir).unwrap().next().unwrap().unwrap().path();
    kill_process(serving(&scratch), Signal::KILL).unwrap();
    let run = running.wait();
    assert!(run.code == Some(122) && run.says("the process that served the clone has ended"), "{run}");
    ground.assert_clean();
    assert!(ground.told().is_empty());

    if !getuid().is_root() {
        return;
    }
    // No room for the whole backup, and room that was used up meanwhile.
    let disk = ground.world.sandbox.small_disk("disk", 140 << 20);
    let dir = format!("--dir={}", disk.display());
    let run = ground.world.expect(64, ground.args(&[&dir]));
    assert!(run.says("all of the backup is going to be read") && run.says("--dir names another directory"), "{run}");
    ground.world.sandbox.remount(&disk, "size=224m");
    ground.world.ok(ground.args(&[&dir]));
    let much = "CREATE TABLE much AS SELECT repeat(md5(i::text), 30) AS t FROM generate_series(1, 400000) AS i";
    fs::write(checks.join("long.sql"), much).unwrap();
    let run = ground.world.expect(64, ground.args(&[&dir, &drill_dir]));
    assert!(run.says("has become full") && run.says("No space left on device"), "{run}");
    assert_eq!((fs::read_dir(&disk).unwrap().count(), ground.world.sandbox.mounts()), (0, vec![disk]));
    assert_eq!(ground.told().len(), 1);
}

/// The process that serves the clone in a directory.
fn serving(scratch: &Path) -> Pid {
    let root = format!("--scratch={}", scratch.display());
    support::sandbox::serving(&root)
}
