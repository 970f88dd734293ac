//! Selective restore: some databases come back, the others can be dropped.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use support::{Cluster, Mode, Sandbox, World, majors, spread};

/// Bytes of all files below a directory, and what they take on disk.
fn room(dir: &Path) -> (u64, u64) {
    let facts: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().metadata().unwrap()).collect();
    (facts.iter().map(|m| m.len()).sum(), facts.iter().map(|m| m.blocks() * 512).sum())
}

#[test]
fn one_database_comes_back_and_the_others_can_be_dropped() {
    for major in spread() {
        let world = World::new(major);
        let place = world.cluster.side_dir("ts");
        for sql in [
            &format!("CREATE TABLESPACE ts LOCATION '{}'", place.display()),
            "CREATE DATABASE test1",
            "CREATE DATABASE test2",
            "CREATE DATABASE spaced TABLESPACE ts",
        ] {
            world.cluster.psql(sql);
        }
        let table = "CREATE TABLE t AS SELECT n, repeat('x', 100) FROM generate_series(1, 30000) n";
        for database in ["test1", "test2", "spaced"] {
            world.cluster.psql_in(database, table);
        }
        world.cluster.psql_in("test2", &format!("{table}; ALTER TABLE t RENAME TO u").replace(" t AS", " v AS"));
        world.cluster.psql_in("test1", "CREATE TABLE away TABLESPACE ts AS SELECT generate_series(1, 30000) n");
        world.backup("full");
        // WAL that names what is left out is replayed.
        world.cluster.psql_in("test1", "UPDATE t SET n = n + 1 WHERE n % 3 = 0; CREATE TABLE late AS TABLE t");
        world.cluster.psql_in("test1", "CHECKPOINT");
        world.cluster.psql_in("test1", "UPDATE t SET n = n + 1; DROP TABLE away");
        world.cluster.psql_in("test2", "UPDATE u SET n = n + 1");
        let expected = world.cluster.fingerprint_of("test2");
        world.archive_now();
        let oid = |name: &str| world.cluster.psql(&format!("SELECT oid FROM pg_database WHERE datname = '{name}'"));
        let (test1, spaced, ts) =
            (oid("test1"), oid("spaced"), world.cluster.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'ts'"));

        let elsewhere = world.sandbox.dir("elsewhere");
        let map = format!("--tablespace-map=ts={}", elsewhere.display());
        let target = world.sandbox.dir("target");
        let run = world.restore_to(&target, ["--db-include=test2", &map]);
        assert!(
            run.says(&format!("databases left out, to be dropped later: 'test1' ({test1}), 'spaced' ({spaced})")),
            "{run}"
        );
        let directory = |ts: Option<&str>, database: &str| match ts {
            None => target.join("base").join(database),
            Some(ts) => {
                let version = fs::read_dir(target.join("pg_tblspc").join(ts)).unwrap().next().unwrap().unwrap();
                version.path().join(database)
            }
        };
        for dir in [directory(None, &test1), directory(Some(&ts), &test1), directory(Some(&ts), &spaced)] {
            let (bytes, blocks) = room(&dir);
            assert!(bytes > 1 << 20 && blocks <= 4096, "{}: {bytes} bytes take {blocks}", dir.display());
        }
        let mut cluster = world.adopt(&target);
        cluster.start();
        cluster.wait_promoted();
        assert!(cluster.fingerprint_of("test2") == expected);
        for database in ["test1", "spaced"] {
            let error = cluster.config().dbname(database).connect(postgres::NoTls).err().expect("it cannot be used");
            assert!(error.to_string().contains("db error"), "{error:?}");
            cluster.psql(&format!("DROP DATABASE {database}"));
        }
        assert!(!directory(None, &test1).exists() && !directory(Some(&ts), &test1).exists());
        cluster.psql("CREATE DATABASE test1 TABLESPACE ts");
        cluster.amcheck();
        cluster.stop(Mode::Fast);

        // The other way round, over what is there, to the moment of consistency; system databases go by name alone.
        let run = world.restore_to(
            &target,
            [
                "--delta",
                "--db-exclude=test2",
                &format!("--db-exclude={test1}"),
                "--db-exclude=template1",
                "--type=immediate",
                "--target-action=promote",
                &map,
            ],
        );
        assert!(run.says("'template1' ("), "{run}");
        cluster.start();
        cluster.wait_promoted();
        assert_eq!(cluster.psql_in("spaced", "SELECT count(*) FROM t"), "30000");
        for database in ["test1", "test2", "template1"] {
            assert!(cluster.config().dbname(database).connect(postgres::NoTls).is_err(), "{database}");
        }
        cluster.psql("DROP DATABASE test1");
        cluster.psql("DROP DATABASE test2");
        cluster.stop(Mode::Fast);

        // And all of it, trusting sizes and times: what held nothing is not taken for right.
        world.restore_to(&target, ["--delta", "--force", &map]);
        cluster.start();
        cluster.wait_promoted();
        for database in ["test1", "test2", "spaced"] {
            assert!(cluster.fingerprint_of(database) == world.cluster.fingerprint_of(database), "{database}");
        }
        cluster.amcheck();
    }
}

#[test]
fn vacuum_without_page_images_does_not_end_the_recovery_of_the_others() {
    for major in spread() {
        let world = World::within(Sandbox::new(), Cluster::builder(major).checksums(false), &[]);
        world.cluster.psql("CREATE DATABASE test1");
        world.cluster.psql_in("test1", "CREATE TABLE t AS SELECT generate_series(1, 20000) n");
        world.cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 100) n");
        world.cluster.psql("CHECKPOINT");
        world.backup("full");
        // The first VACUUM of a table logs nothing but that its pages are all-visible.
        world.cluster.psql_in("test1", "VACUUM t");
        world.archive_now();
        let target = world.sandbox.dir("target");
        for args in [&["--type=default"][..], &["--delta", "--type=immediate", "--target-action=promote"]] {
            let run = world.restore_to(&target, [&["--db-exclude=test1"], args].concat());
            assert!(run.says("ALTER SYSTEM RESET ignore_invalid_pages"), "{run}");
            let mut cluster = world.adopt(&target);
            cluster.start();
            cluster.wait_promoted();
            assert_eq!(cluster.psql("SHOW ignore_invalid_pages"), "on");
            assert_eq!(cluster.psql("SELECT count(*) FROM t"), "100");
            cluster.psql("ALTER SYSTEM RESET ignore_invalid_pages");
            cluster.psql("DROP DATABASE test1");
            cluster.stop(Mode::Fast);
            cluster.start();
            assert_eq!(cluster.psql("SHOW ignore_invalid_pages"), "off");
            cluster.stop(Mode::Fast);
        }
    }
}

#[test]
fn what_the_backup_does_not_have_is_refused() {
    let world = World::new(majors()[0]);
    world.cluster.psql("CREATE DATABASE app");
    world.backup("full");
    let target = world.sandbox.dir("target");
    let to = format!("--pg1-path={}", target.display());
    for (code, args) in [
        (80, &["--db-include=none"][..]),
        (80, &["--db-exclude=99999"]),
        (80, &["--db-include=app", "--db-exclude=017"]),
        (81, &["--db-include=app", "--db-exclude=app"]),
        (31, &["--db-include=app", "--instant"]),
    ] {
        let run = world.expect(code, args.iter().chain(&[to.as_str(), "restore"]));
        assert!(run.says(&format!("[{code:03}]")) && run.says("hint: "), "{run}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{run}");
    }
    // A stopped server tells no names, and numbers do.
    let mut world = world;
    let oid = world.cluster.psql("SELECT oid FROM pg_database WHERE datname = 'app'");
    world.cluster.stop(Mode::Fast);
    world.ok(["--no-online", "--type=full", "backup"]);
    let run = world.expect(80, ["--db-exclude=app", &to, "restore"]);
    assert!(run.says("stopped server"), "{run}");
    world.restore_to(&target, [format!("--db-exclude={oid}")]);
    let mut cluster = world.adopt(&target);
    cluster.start();
    assert!(cluster.config().dbname("app").connect(postgres::NoTls).is_err());
    cluster.psql("DROP DATABASE app");
}
