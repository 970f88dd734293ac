//! `archive-get` ahead: the server gets what was archived, and hears of an end only where there is one.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, thread, time::Duration};

use super::{ASYNC, log, rest, spool, spooled, wal, world};
use support::{Mode, World, account, wait_until, world::STANZA};

/// Fetches a segment and compares it with the server's own.
fn expect_get(world: &World, args: &[&str], name: &str) -> support::Run {
    let target = world.path("target");
    let mut all = args.to_vec();
    all.extend(["archive-get", name, target.to_str().unwrap()]);
    let run = world.ok(&all);
    assert!(fs::read(&target).unwrap() == fs::read(wal(world, name)).unwrap(), "{name}\n{run}");
    fs::remove_file(&target).unwrap();
    run
}

#[test]
fn segments_come_from_the_queue_and_the_end_is_certain() {
    let world = world(&[("archive-get-queue-max", "4MiB")]);
    world.cluster.pgbench_init(1);
    let names: Vec<_> = (0..9).map(|_| world.cluster.switch_wal()).collect();
    world.wait_archived(&names[8]);
    rest(&world);
    let target = world.path("target").display().to_string();

    assert!(expect_get(&world, &[], &names[0]).says("asynchronously"));
    rest(&world);
    let queued = |name: &String| spooled(&world, "in").contains(name);
    assert!(queued(&names[1]) && queued(&names[3]) && !queued(&names[5]), "{:?}", spooled(&world, "in"));
    assert!(log(&world, "get").contains("INFO: get 4 WAL file(s) from archive: "), "{}", log(&world, "get"));

    // The repository is gone for a while: what is queued does not need it, what is not is no end of the archive.
    let mode = |bits| fs::set_permissions(world.sandbox.repo(), fs::Permissions::from_mode(bits)).unwrap();
    mode(0);
    assert!(expect_get(&world, &[], &names[1]).says("asynchronously"));
    rest(&world);
    world.expect(103, ["archive-get", &names[7], &target]);
    world.expect(126, ["--on-error=abort", "archive-get", &names[7], &target]);
    mode(0o700);
    rest(&world);

    // Torn by a crash, or by somebody: fetched anew.
    expect_get(&world, &[], &names[2]);
    rest(&world);
    let path = spool(&world, "in").join(&names[3]);
    let mut content = fs::read(&path).unwrap();
    content[300_000] ^= 1;
    fs::write(&path, content).unwrap();
    let run = expect_get(&world, &[], &names[3]);
    assert!(run.messages("WARN").iter().any(|w| w.contains("is not what was fetched")), "{run}");

    // Not the next one: the queue begins anew there, up to the end of the archive.
    rest(&world);
    expect_get(&world, &[], &names[7]);
    rest(&world);
    assert!(!queued(&names[4]) && queued(&names[8]), "{:?}", spooled(&world, "in"));
    expect_get(&world, &[], &names[8]);
    rest(&world);
    let next = world.cluster.psql("SELECT pg_walfile_name(pg_create_restore_point('in the next one'))");
    let run = world.expect(1, ["archive-get", &next, &target]);
    assert!(run.messages("ERROR").is_empty() && run.messages("WARN").is_empty(), "{run}");
    rest(&world);

    // It was missing when it was looked for ahead, and has come since.
    let missing = spool(&world, "in").join(format!("{next}.ok"));
    expect_get(&world, &[], &names[8]);
    wait_until("the next one is missed", || missing.exists());
    rest(&world);
    let word = fs::read(&missing).unwrap();
    assert_eq!(world.archive_now(), next);
    rest(&world);
    expect_get(&world, &[], &next);
    rest(&world);
    fs::write(&missing, &word).unwrap();
    account::give(&missing);
    let _ = fs::remove_file(spool(&world, "in").join(&next));
    let _ = fs::remove_file(spool(&world, "in").join(format!("{next}.sum")));
    expect_get(&world, &["--no-archive-missing-retry"], &next);
    rest(&world);

    // Nor is it an answer that somebody who works already has looked in vain: that may have been before it was asked for.
    let lock = world.sandbox.locks().join(format!("{STANZA}-archive-1.lock"));
    let put = |path: &Path, text: &[u8]| {
        let new = world.path("new");
        fs::write(&new, text).unwrap();
        account::give(&new);
        fs::rename(&new, path).unwrap();
    };
    put(&lock, b"{\"execId\":\"1-x\",\"pid\":1}\n");
    let held = fs::File::open(&lock).unwrap();
    held.lock().unwrap();
    for left in [next.clone(), format!("{next}.sum")] {
        let _ = fs::remove_file(spool(&world, "in").join(left));
    }
    put(&spool(&world, "in").join("plan"), format!("1 {next} 8\n").as_bytes());
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            put(&missing, &word);
        });
        expect_get(&world, &[], &next);
    });
    drop(held);

    // Histories are asked for now, and the server's names only.
    world.expect(1, ["archive-get", "00000002.history", &target]);
    world.expect(96, ["archive-get", "../../etc/passwd", &target]);
    world.expect(64, ["archive-get", &names[0], "/nonexistent/target"]);
    // Under the file system's other roof the file is copied.
    let other = world.sandbox.small_disk("other", 8 << 20);
    let run = world.ok(["archive-get", &names[0], other.join("got").to_str().unwrap()]);
    assert!(fs::read(other.join("got")).unwrap() == fs::read(wal(&world, &names[0])).unwrap(), "{run}");
    rest(&world);
}

#[test]
fn a_restore_replays_ahead_and_a_promoted_standby_archives_on() {
    let mut world = world(&[("archive-get-queue-max", "8MiB")]);
    world.cluster.pgbench_init(2);
    let backup = world.backup("full");
    world.cluster.pgbench(2, support::Work::Transactions(400));
    for _ in 0..12 {
        world.cluster.psql("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid < 3000");
        world.cluster.switch_wal();
    }
    world.archive_now();
    let data = world.cluster.fingerprint();
    // What an earlier cluster has left in the spool goes with a restore.
    rest(&world);
    let left = spool(&world, "out").join("0000000100000000000000FF.ok");
    fs::write(&left, "0\n").unwrap();
    let mut restored = world.restore("restored", [format!("--set={backup}")]);
    assert!(!left.exists());
    let says = |dir: &Path, word: &str| fs::read_to_string(dir.join("postgresql.auto.conf")).unwrap().contains(word);
    assert!(says(restored.data_dir(), "--on-error=abort"), "a recovery must not end early");
    restored.start();
    restored.wait_promoted();
    assert_eq!(restored.fingerprint(), data);
    restored.stop(Mode::Fast);
    let said = log(&world, "get");
    assert!(said.contains("archive-get:async command begin") && said.contains("DETAIL: found 0000"), "{said}");
    rest(&world);

    // A standby follows the archive, and takes over when the primary is gone.
    let target = world.sandbox.dir("standby");
    world.restore_to(&target, ["--type=standby", &format!("--set={backup}")]);
    assert!(says(&target, "--on-error=wait") && !says(&target, "--on-error=abort"), "a standby can wait");
    let mut standby = support::Cluster::adopt(world.cluster.major(), &target);
    let command = world.sandbox.archive_command(STANZA);
    let command = command.replacen(" archive-push", &format!(" --pg1-path={} archive-push", target.display()), 1);
    standby.override_setting("archive_command", &command);
    standby.start();
    world.cluster.psql("CREATE TABLE later AS SELECT generate_series(1, 1000) AS n");
    world.archive_now();
    standby.wait_for("SELECT to_regclass('later') IS NOT NULL");
    world.cluster.stop(Mode::Fast);
    thread::sleep(Duration::from_millis(100));
    standby.psql("SELECT pg_promote()");
    standby.wait_promoted();
    standby.psql("INSERT INTO later VALUES (0)");
    let promoted = World { cluster: standby, sandbox: world.sandbox };
    let all: Vec<_> = ASYNC.iter().copied().chain([("archive-get-queue-max", "8MiB")]).collect();
    promoted.sandbox.configure(STANZA, &promoted.cluster, &all);
    let segment = promoted.archive_now();
    assert!(segment.starts_with("00000002"), "{segment}");
    let data = promoted.cluster.fingerprint();
    let mut again = promoted.restore("again", [format!("--set={backup}")]);
    again.start();
    again.wait_promoted();
    assert_eq!(again.fingerprint(), data);
    promoted.ok(["verify"]);
}
