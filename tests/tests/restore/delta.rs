//! Delta: whatever lies in the directory, afterwards it is what a restore into an empty one gives.

use std::{fs, os::unix::fs::FileExt};

use support::{Mode, Work, World, account, majors, spread, tree};

#[test]
fn delta_brings_back_exactly_the_backup() {
    for major in spread() {
        let mut world = World::new(major);
        world.cluster.pgbench_init(3);
        world.cluster.psql("CREATE TABLE shrinks AS SELECT n, repeat('x', 500) t FROM generate_series(1, 20000) n");
        world.cluster.psql("CREATE TABLE grows AS SELECT 1 n; CREATE TABLE gone AS SELECT generate_series(1, 5000) n");
        world.backup("full");
        let fresh = world.sandbox.dir("fresh");
        world.restore_to(&fresh, ["--type=immediate"]);

        // Churn: rows, files that are longer, shorter, new and missing.
        world.cluster.pgbench(2, Work::Transactions(500));
        world.cluster.psql("DELETE FROM shrinks WHERE n > 10; INSERT INTO grows SELECT generate_series(1, 50000)");
        world.cluster.psql("CREATE TABLE new AS SELECT generate_series(1, 5000) n");
        world.cluster.psql("DROP TABLE gone");
        world.cluster.psql_in("postgres", "VACUUM shrinks");
        world.cluster.psql("CREATE DATABASE strange");
        world.cluster.stop(Mode::Fast);
        let data = world.cluster.data_dir().to_owned();

        // Foreign files, links and directories, and a file where a directory belongs.
        let outside = world.sandbox.dir("outside");
        fs::write(outside.join("precious"), "not ours").unwrap();
        fs::write(data.join("foreign"), "x").unwrap();
        fs::create_dir(data.join("foreign_dir")).unwrap();
        fs::write(data.join("foreign_dir/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, data.join("foreign_link")).unwrap();
        fs::remove_dir_all(data.join("pg_multixact")).unwrap();
        fs::write(data.join("pg_multixact"), "a file").unwrap();
        fs::remove_dir_all(data.join("pg_xact")).unwrap();
        std::os::unix::fs::symlink(&outside, data.join("pg_xact")).unwrap();
        // Same size and time, other content.
        let conf = data.join("pg_hba.conf");
        let time = fs::metadata(&conf).unwrap().modified().unwrap();
        let file = fs::OpenOptions::new().write(true).open(&conf).unwrap();
        file.write_all_at(b"#!", 0).unwrap();
        file.set_modified(time).unwrap();
        for name in ["foreign", "foreign_dir", "foreign_dir/file", "pg_multixact"] {
            account::give(&data.join(name));
        }

        let run = world.restore_to(&data, ["--type=immediate", "--delta"]);
        // The one line that differs says when the restore was made.
        tree::assert_same(&fresh, &data, |path| {
            path.ends_with("postgresql.auto.conf") || path.ends_with("backup_label.old")
        });
        assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "not ours");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        let summary = run.messages("INFO").into_iter().find(|m| m.contains("kept")).expect("a summary").to_owned();
        assert!(!summary.contains("kept = 0,"), "{summary}");

        // Unchanged, nothing is fetched but what always is.
        let again = world.restore_to(&data, ["--type=immediate", "--delta"]);
        let summary = again.messages("INFO").into_iter().find(|m| m.contains("kept")).expect("a summary").to_owned();
        assert!(summary.contains("fetched = 0B") || summary.contains("KB"), "{summary}");
        tree::assert_same(&fresh, &data, |path| path.ends_with("postgresql.auto.conf"));
    }
}

#[test]
fn in_place_recovery_of_a_lost_cluster() {
    let mut world = World::new(majors()[0]);
    world.create_marks();
    world.cluster.pgbench_init(2);
    world.backup("full");
    world.cluster.pgbench(1, Work::Transactions(100));
    let expected = support::world::data(&world.cluster);
    world.archive_now();
    world.cluster.stop(Mode::Fast);
    // As the user guide loses it.
    fs::remove_file(world.cluster.data_dir().join("global/pg_control")).unwrap();
    assert!(world.cluster.try_start().is_err());
    world.ok(["--delta", "restore"]);
    world.cluster.start();
    world.cluster.wait_promoted();
    assert!(support::world::data(&world.cluster) == expected);
    // It archives on, on its new timeline, and is backed up on.
    let segment = world.archive_now();
    assert!(segment.starts_with("00000002"), "{segment}");
    world.backup("incr");
    assert_eq!(world.labels().len(), 2);
}
