//! Faults in mid-backup: nothing half done is ever visible, and the next backup works.

use std::{fs, os::unix::fs::PermissionsExt, thread, time::Instant};

use support::{Cluster, Mode, Sandbox, World, majors, seed::Seed, spread};

#[test]
fn a_server_that_goes_down_fails_the_backup_and_the_next_one_works() {
    for major in spread() {
        let mut world = World::new(major);
        world.cluster.pgbench_init(5);
        // While the server prepares, and while we copy.
        for (flag, moment) in [("--no-start-fast", "backup begins after"), ("--start-fast", "backup file ")] {
            let mut running = world.spawn([flag, "--log-level-console=detail", "--type=full", "backup"]);
            running.wait_for(moment);
            world.cluster.stop(Mode::Immediate);
            let run = running.wait();
            assert!(matches!(run.code, Some(56 | 57)), "{run}");
            let errors = run.messages("ERROR");
            assert!(errors.len() == 1 && errors[0].contains("server"), "{run}");
            assert!(!run.says("panicked"), "{run}");
            world.cluster.start();
            assert_eq!(world.labels(), Vec::<String>::new());
        }
        world.backup("full");
        world.ok(["verify"]);
    }
}

#[test]
fn killed_at_any_moment_a_backup_leaves_nothing_visible_and_nothing_lost() {
    let world = World::new(majors()[0]);
    let mut seed = Seed::new();
    world.cluster.pgbench_init(5);
    let begun = Instant::now();
    world.backup("full");
    let usual = begun.elapsed();
    let mut known = world.labels();
    let load = world.cluster.load(1);
    for round in 0..8 {
        let mut running =
            world.spawn(["--start-fast", if round % 2 == 0 { "--type=full" } else { "--type=incr" }, "backup"]);
        running.wait_for("command begin");
        thread::sleep(usual.mul_f64(seed.below(1000) as f64 / 1000.0));
        let run = running.kill9();
        // It may have been done: then, and only then, there is one more.
        let now = world.labels();
        assert_eq!(now[..known.len()], known, "{run}");
        let more = now.len() - known.len();
        let done = run.says("new backup label");
        assert!(more == 0 || (more == 1 && done), "{now:?} after {known:?}\n{run}");
        known = now;
        // A server process that waits for a checkpoint does not notice at once that its client is gone.
        world.cluster.wait_for("SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')");
        if round % 4 == 3 {
            known.push(world.backup("incr"));
            assert_eq!(world.labels(), known);
        }
    }
    load.stop();
    let run = world.ok(["verify"]);
    assert_eq!(run.messages("ERROR"), Vec::<&str>::new(), "{run}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let world = World::new(majors()[0]);
    world.backup("full");
    for (name, content) in
        [("tiny", "x".to_owned()), ("small", "0123456789".repeat(500)), ("large", "0123456789".repeat(10_000))]
    {
        let path = world.cluster.data_dir().join(name);
        fs::write(&path, content).unwrap();
        support::account::give(&path);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
        let run = world.expect(41, ["--start-fast", "backup"]);
        let errors = run.messages("ERROR");
        assert!(
            errors.len() == 1 && errors[0].contains(path.to_str().unwrap()) && errors[0].contains("ermission denied"),
            "{run}"
        );
        fs::remove_file(&path).unwrap();
    }
    let dir = world.cluster.side_dir("closed");
    let inside = world.cluster.data_dir().join("closed");
    fs::rename(dir, &inside).unwrap();
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o0)).unwrap();
    let run = world.expect(53, ["--start-fast", "backup"]);
    assert!(run.says(inside.to_str().unwrap()), "{run}");
    fs::remove_dir(&inside).unwrap();
    assert_eq!(world.labels().len(), 1);
    world.backup("incr");
}

#[test]
fn a_full_disk_fails_the_backup_and_room_lets_the_next_one_work() {
    let sandbox = Sandbox::new();
    let small = sandbox.small_disk("small", 8 << 20);
    let path = small.to_str().unwrap().to_owned();
    let world = World::within(sandbox, Cluster::builder(majors()[0]), &[("repo1-path", &path)]);
    // What does not compress.
    world.cluster.psql("SET synchronous_commit = off; CREATE TABLE noise AS SELECT gen_random_uuid() id FROM generate_series(1, 300000)");
    // Its WAL does not fit either, and would be waited for.
    let run = world.run(["--start-fast", "--type=full", "--no-archive-check", "backup"]);
    assert_eq!(run.code, Some(64), "{run}");
    let errors = run.messages("ERROR");
    assert!(errors.len() == 1 && errors[0].contains("o space left on device") && errors[0].contains(&path), "{run}");
    assert!(run.says("hint: "), "{run}");
    assert_eq!(world.labels(), Vec::<String>::new());

    world.sandbox.remount(&small, "size=1g");
    // The server tries again what it could not archive.
    world.archive_now();
    let label = world.backup("full");
    assert_eq!(world.labels(), [label]);
    world.ok(["verify"]);
}

#[test]
fn a_repository_that_cannot_be_written_is_still_read() {
    let sandbox = Sandbox::new();
    let disk = sandbox.small_disk("disk", 1 << 30);
    let path = disk.to_str().unwrap().to_owned();
    let world = World::within(sandbox, Cluster::builder(majors()[1 % majors().len()]), &[("repo1-path", &path)]);
    let label = world.backup("full");
    let start = world.backups()[0]["archive"]["start"].as_str().unwrap().to_owned();
    world.sandbox.remount(&disk, "ro");
    let run = world.run(["--start-fast", "backup"]);
    assert!(run.code.is_some_and(|code| code != 0), "{run}");
    let errors = run.messages("ERROR");
    assert!(errors.len() == 1 && errors[0].contains("ead-only file system") && errors[0].contains(&path), "{run}");
    assert_eq!(world.labels(), [label.as_str()]);
    world.ok(["archive-get", &start, world.path("got").to_str().unwrap()]);
    world.ok(["verify"]);
    world.restore("target", ["--type=immediate", "--target-action=promote"]).start();
    world.sandbox.remount(&disk, "rw");
    world.backup("incr");
    assert_eq!(world.labels().len(), 2);
}

/// All files below a directory of the repository.
fn objects(world: &World, prefix: &str) -> Vec<std::path::PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![world.sandbox.repo().join(prefix)]);
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() { waiting.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    found
}

#[test]
fn a_lost_index_is_made_anew_and_lost_packs_are_stored_again() {
    let world = World::new(majors()[0]);
    world.cluster.pgbench_init(1);
    world.backup("full");
    world.backup("incr");
    for object in objects(&world, "idx") {
        fs::remove_file(object).unwrap();
    }
    let target = format!("--pg1-path={}", world.sandbox.dir("target").display());
    let run = world.expect(55, ["--type=none", &target, "restore"]);
    assert!(run.says("is in no pack") && run.says("repair index"), "{run}");
    let run = world.sandbox.run_ok(["--log-level-console=info", "repair", "index"]);
    assert!(run.says("are in the new index"), "{run}");
    world.ok(["verify"]);
    world.restore_to(&world.sandbox.dir("again"), ["--type=none"]);

    // Without any generation nobody knows which backups count; another one shows them all.
    let labels = world.labels();
    for object in objects(&world, "gen") {
        fs::remove_file(object).unwrap();
    }
    let run = world.expect(55, ["--start-fast", "backup"]);
    assert!(run.says("has no generation record") && run.says("hint: 'repair generation'"), "{run}");
    let repair = || world.sandbox.run_ok(["--log-level-console=info", "repair", "generation"]);
    let run = repair();
    assert!(run.says("made anew: 'gen/") && run.says("with 2 backups; nothing builds any more on 0 packs"), "{run}");
    assert!(repair().says("there is a generation record"));
    assert_eq!(world.labels(), labels);
    world.ok(["verify"]);
    world.backup("incr");

    // All packs are gone: nothing can be restored any more, and that is said; the next backup is whole.
    for object in objects(&world, "packs") {
        fs::remove_file(object).unwrap();
    }
    world.expect(26, ["verify"]);
    let run = world.ok(["--start-fast", "--type=incr", "backup"]);
    assert!(run.messages("WARN").iter().any(|m| m.contains("packs cannot be read")), "{run}");
    let label = support::world::label(&run);
    let data = support::world::data(&world.cluster);
    world.archive_now();
    let mut restored = world.restore("healed", [format!("--set={label}"), "--type=default".to_owned()]);
    restored.start();
    restored.wait_promoted();
    assert!(support::world::data(&restored) == data);
    restored.amcheck();
    world.expect(96, ["repair", "everything"]);
    // Its keys are something else than a wrong passphrase.
    fs::rename(world.sandbox.repo().join("keys"), world.path("keys")).unwrap();
    let run = world.expect(95, ["verify"]);
    assert!(
        run.says("has no key slot") && run.says("put 'keys/' back") && !run.says("passphrase or key file"),
        "{run}"
    );
    fs::rename(world.path("keys"), world.sandbox.repo().join("keys")).unwrap();
    world.ok(["check"]);
}
