//! Option `archive-copy`: a backup that needs no archive.

use std::{collections::BTreeSet, ffi::OsStr, fs};

use pgkeep_formats::repo::layout;
use support::{Mode, World, spread, world};

#[test]
fn a_backup_that_keeps_its_wal_needs_no_archive() {
    for major in spread() {
        let world = World::new(major);
        world.expect(31, ["--no-archive-check", "--archive-copy", "backup"]);
        world.create_marks();
        world.cluster.pgbench_init(2);
        world.mark(1);
        let load = world.cluster.load(1);
        world.ok(["--archive-copy", "--start-fast", "--type=full", "backup"]);
        load.stop();
        let mut target = world.restore("target", ["--type=immediate", "--target-action=promote"]);
        let backup = world.backups().pop().unwrap();
        let names: BTreeSet<&str> = ["start", "stop"].map(|end| backup["archive"][end].as_str().unwrap()).into();
        for name in &names {
            let fetched = world.path(name);
            world.ok([OsStr::new("archive-get"), name.as_ref(), fetched.as_ref()]);
            let kept = target.data_dir().join("pg_wal").join(name);
            assert!(fs::read(&kept).unwrap() == fs::read(&fetched).unwrap(), "{name}");
        }
        // The next one does not ask for it, and has none.
        world.backup("incr");
        let listed = world.ok(["manifest"]).stdout;
        assert!(listed.contains("pg_wal") && !listed.contains("pg_wal/0000"), "{listed}");
        world.ok(["verify"]);
        world.mark(2);
        world.archive_now();

        for name in &names {
            fs::remove_file(world.sandbox.repo().join(layout::wal("demo", &format!("{major}-1"), name))).unwrap();
        }
        let label = backup["label"].as_str().unwrap();
        // The archive has lost it, and nobody needs it from there.
        let verified = world.ok(["--output=text", "verify"]).stdout;
        assert!(verified.contains("kept by the backup that needs it"), "{verified}");
        world.ok(["check"]);
        let mut past = world.restore("past", [format!("--set={label}")]);
        past.start();
        past.wait_promoted();
        assert_eq!(world::marks(&past), [1, 2]);
        past.stop(Mode::Fast);
        let mut alone = world.restore("alone", ["--type=none", &format!("--set={label}")]);
        target.start();
        target.wait_promoted();
        assert_eq!(world::marks(&target), [1]);
        target.stop(Mode::Fast);
        // Without any archive to ask.
        fs::rename(world.sandbox.repo(), world.path("away")).unwrap();
        alone.start();
        assert_eq!(world::marks(&alone), [1]);
        alone.stop(Mode::Fast);
    }
}
