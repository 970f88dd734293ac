//! `archive-push` ahead: what the server is told, in order and out of it.

use std::{fs, os::unix::fs::FileExt as _, os::unix::fs::PermissionsExt as _, path::Path};

use super::{archived, cluster, expect_push, log, push, ready, spool, spooled, two, wal, world};
use support::{Sandbox, World, account, wait_until, world::STANZA};

#[test]
fn the_server_archives_all_kinds_of_files_ahead() {
    // The option stands in a section of the command.
    let sandbox = Sandbox::new();
    let mut world = World::within(sandbox, cluster(), &[]);
    let config = fs::read_to_string(world.sandbox.config()).unwrap();
    let section = "\n[global:archive-push]\narchive-async=y\nprocess-max=2\nlog-level-file=detail\n";
    fs::write(world.sandbox.config(), format!("{config}{section}")).unwrap();
    world.cluster.pgbench_init(1);
    let waiting = ready(&world, 8);
    world.set_archive_command(&world.sandbox.archive_command(STANZA));
    let last = world.archive_now();
    for name in waiting.iter().chain([&last]) {
        world.wait_archived(name);
        assert!(archived(&world, "--repo=1", name).unwrap() == fs::read(wal(&world, name)).unwrap(), "{name}");
    }
    let said = log(&world, "push");
    assert!(said.contains("archive-push:async command begin") && said.contains("--archive-async"), "{said}");
    assert!(said.lines().any(|l| l.contains("INFO: push ") && l.contains("...")), "no batch\n{said}");
    assert!(said.contains("P01 DETAIL: pushed WAL file '"), "{said}");
    wait_until("the spool is empty", || spooled(&world, "out").is_empty());

    // A backup history file, then a new timeline and its history.
    world.backup("full");
    world.archive_now();
    world.cluster.stop(support::Mode::Fast);
    fs::write(world.cluster.data_dir().join("standby.signal"), "").unwrap();
    world.cluster.override_setting("recovery_target_timeline", "latest");
    world.cluster.start();
    world.cluster.psql("SELECT pg_promote()");
    world.cluster.wait_promoted();
    let segment = world.archive_now();
    assert!(segment.starts_with("00000002"), "{segment}");
    assert!(archived(&world, "--repo=1", "00000002.history").is_some());
    let said = log(&world, "push");
    assert!(said.contains("'00000002.history'") && said.contains(".backup'"), "{said}");
    world.ok(["check"]);
    world.ok(["verify"]);
}

#[test]
fn a_broken_repository_keeps_wal_from_no_other_and_acknowledges_nothing() {
    let (world, second) = two();
    let names = ready(&world, 6);
    let mode = |path: &Path, bits| fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
    mode(&second, 0);
    let run = expect_push(&world, 104, &names[0]);
    assert!(run.says("[104]") && run.says("repo2: ") && run.says(second.to_str().unwrap()), "{run}");
    assert!(archived(&world, "--repo=1", &names[0]).is_some(), "the repository that works did not receive it");
    let word = fs::read_to_string(spool(&world, "out").join(format!("{}.error", names[0]))).unwrap();
    assert!(word.starts_with("104\n"), "{word}");
    assert!(log(&world, "push").contains("WARN: could not push WAL file"), "{}", log(&world, "push"));
    assert!(!spooled(&world, "out").iter().any(|file| file.ends_with(".ok")), "{:?}", spooled(&world, "out"));
    mode(&world.sandbox.repo(), 0);
    let run = expect_push(&world, 103, &names[0]);
    assert!(run.says("repo1: ") && run.says("repo2: "), "{run}");
    assert!(spooled(&world, "out").contains(&"global.error".to_owned()));

    mode(&world.sandbox.repo(), 0o700);
    mode(&second, 0o700);
    world.ok(["stop"]);
    expect_push(&world, 62, &names[0]);
    world.ok(["start"]);
    for name in &names {
        let run = expect_push(&world, 0, name);
        assert!(run.says("asynchronously"), "{run}");
        for repository in ["--repo=1", "--repo=2"] {
            let found = archived(&world, repository, name).unwrap_or_else(|| panic!("{name} is not in {repository}"));
            assert!(found == fs::read(wal(&world, name)).unwrap());
        }
    }
    assert_eq!(spooled(&world, "out"), Vec::<String>::new(), "words that were passed on are gone");
}

#[test]
fn a_word_acknowledges_only_what_it_was_said_of() {
    let world = world(&[]);
    let names = ready(&world, 6);
    expect_push(&world, 0, &names[0]);
    wait_until("all are pushed ahead", || spooled(&world, "out").len() == names.len() - 1);
    // Other content under the name, as after a recovery to an earlier time: the archive says no, not the spool yes.
    let file = fs::OpenOptions::new().write(true).open(wal(&world, &names[1])).unwrap();
    file.write_all_at(b"other", 500_000).unwrap();
    let run = expect_push(&world, 45, &names[1]);
    assert!(run.says("different content") && run.says("hint: "), "{run}");
    // An operator passes over it. What is behind it was found stored.
    let word = |end: &str| spool(&world, "out").join(format!("{}{end}", names[1]));
    fs::rename(word(".error"), word(".ok")).unwrap();
    let run = expect_push(&world, 0, &names[1]);
    assert!(run.messages("WARN").iter().any(|w| w.contains("NOT in the archive") && w.contains("[045]")), "{run}");

    // A repository that was added has to have what is acknowledged from then on.
    let second = world.sandbox.dir("repo2");
    let options = [("repo2-path", second.to_str().unwrap())];
    let all: Vec<_> = super::ASYNC.iter().copied().chain(options).collect();
    world.sandbox.configure(STANZA, &world.cluster, &all);
    world.ok(["stanza-create"]);
    expect_push(&world, 45, &names[1]); // the first in the list, again
    let path = wal(&world, &names[1]).with_file_name("archive_status").join(format!("{}.ready", names[1]));
    fs::rename(&path, path.with_extension("done")).unwrap();
    for name in &names[2..] {
        expect_push(&world, 0, name);
        assert!(archived(&world, "--repo=2", name).is_some(), "{name} is acknowledged and not in repo2");
    }

    // Words of another program, or made by hand, are about nothing; nor does anybody wait for what is not ready.
    let name = world.cluster.switch_wal();
    for text in ["", "0\n"] {
        fs::write(spool(&world, "out").join(format!("{name}.ok")), text).unwrap();
        account::give(&spool(&world, "out").join(format!("{name}.ok")));
        expect_push(&world, 0, &name);
        assert!(archived(&world, "--repo=1", &name).is_some());
    }
    let alone = world.take(&wal(&world, &name), &name);
    let run = world.ok(["archive-push", alone.to_str().unwrap()]);
    assert!(!run.says("asynchronously"), "{run}");
}

#[test]
fn a_queue_that_grows_too_long_is_dropped_whole() {
    let world = world(&[("archive-push-queue-max", "3MiB")]);
    let names = ready(&world, 5);
    for name in &names {
        let run = expect_push(&world, 0, name);
        let said = run.messages("ERROR");
        assert!(said.len() == 1 && said[0].contains("dropped WAL file") && said[0].contains(name.as_str()), "{run}");
    }
    assert!(names.iter().all(|name| archived(&world, "--repo=1", name).is_none()));
    assert!(log(&world, "push").contains("ERROR: dropped WAL file"));
}

#[test]
fn roles_are_known_and_others_are_not() {
    let world = world(&[]);
    let names = ready(&world, 3);
    let wal_dir = world.cluster.data_dir().join("pg_wal");
    world.ok(["archive-push:async", wal_dir.to_str().unwrap()]);
    assert_eq!(spooled(&world, "out"), names.iter().map(|name| format!("{name}.ok")).collect::<Vec<_>>());
    assert!(names.iter().all(|name| archived(&world, "--repo=1", name).is_some()));
    let before = log(&world, "push");
    assert!(names.iter().all(|name| push(&world, name).says("asynchronously")));
    assert_eq!(log(&world, "push"), before, "nothing had to be started");
    for (name, code) in [("archive-push:local", 48), ("backup:async", 48), ("archive-push:", 48)] {
        world.expect(code, [name, "x"]);
    }
    world.expect(43, ["archive-push:async"]);
    world.expect(96, ["archive-push:async", "a", "b"]);
}
