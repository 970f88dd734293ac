//! `archive-push` ahead: what the server is told, in order and out of it.

use std::{fs, os::unix::fs::FileExt as _, os::unix::fs::PermissionsExt as _, path::Path};

use super::{archived, cluster, expect_push, log, push, ready, rest, spool, spooled, two, two_with, wal, world};
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
    for name in &names {
        wait_until("the repository that works receives all", || archived(&world, "--repo=1", name).is_some());
    }
    rest(&world);
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
fn what_follows_a_segment_of_another_history_is_not_stored_behind_it() {
    let (world, _) = two();
    let names = ready(&world, 6);
    // As after a data directory was put back to an earlier state: one repository has another history from the third on.
    let other = world.sandbox.dir("other");
    for name in &names[2..4] {
        let copy = other.join(name);
        let mut bytes = fs::read(wal(&world, name)).unwrap();
        bytes[600_000] ^= 1;
        fs::write(&copy, bytes).unwrap();
        account::give(&copy);
        let away = format!("--repo2-path={}", world.path("away").display());
        world.expect(104, ["--no-archive-async", &away, "archive-push", copy.to_str().unwrap()]);
    }
    expect_push(&world, 0, &names[0]);
    rest(&world);
    let has = |repository: &str| -> Vec<bool> {
        let is_own = |name: &String| archived(&world, repository, name) == Some(fs::read(wal(&world, name)).unwrap());
        names.iter().map(is_own).collect()
    };
    assert_eq!(has("--repo=1"), [true, true, false, false, false, false]);
    assert!(archived(&world, "--repo=1", &names[4]).is_none(), "two histories are mixed");
    // The other repository has nothing that they could be mixed with.
    assert_eq!(has("--repo=2"), [true; 6]);
    let run = expect_push(&world, 45, &names[2]);
    assert!(run.says("different content"), "{run}");
    rest(&world);
    let word = fs::read_to_string(spool(&world, "out").join(format!("{}.error", names[5]))).unwrap();
    assert!(word.contains("is of another history"), "{word}");
    assert!(archived(&world, "--repo=1", &names[5]).is_none(), "two histories are mixed");
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
fn what_is_dropped_is_told_until_a_backup_covers_it() {
    let (world, second) = two_with(&[("archive-push-queue-max", "3MiB")]);
    world.cluster.pgbench_init(1);
    for repository in ["--repo=1", "--repo=2"] {
        world.ok([repository, "--start-fast", "--type=full", "backup"]);
    }
    world.archive_now();
    world.ok(["check"]);
    rest(&world);
    let names = ready(&world, 5);
    let away = second.with_extension("away");
    fs::rename(&second, &away).unwrap();
    for name in &names {
        let run = expect_push(&world, 0, name);
        let said = run.messages("ERROR");
        assert!(said.len() == 1 && said[0].contains("dropped WAL file") && said[0].contains(name.as_str()), "{run}");
        assert!(said[0].contains("it is in repo1, recovery past it from repo2 needs a new backup"), "{run}");
        assert!(archived(&world, "--repo=1", name).is_some(), "{name}: repo1 works, and lacks it");
    }
    assert!(log(&world, "push").contains("ERROR: dropped WAL file"));
    for name in &names {
        let mark = wal(&world, "archive_status").join(format!("{name}.ready"));
        fs::rename(&mark, mark.with_extension("done")).unwrap();
    }
    fs::rename(&away, &second).unwrap();
    world.set_archive_command(&world.sandbox.archive_command(STANZA));
    world.archive_now();

    let run = world.expect(82, ["check"]);
    assert!(run.says("repo2 lacks WAL ") && run.says(&names[4]) && run.says("hint: take a backup"), "{run}");
    assert!(!run.says("repo1 lacks"), "{run}");
    world.ok(["--no-archive-check", "check"]);
    // For who does not see the server they may be on their way, if what follows them came just now.
    age(&second.join("wal"));
    let text = world.ok(["info"]).stdout;
    // The archiver may have had the first one in its hands still.
    let is_missing = |first: &String| text.contains(&format!("wal missing (repo2): {first}/{}", names[4]));
    assert!(is_missing(&names[0]) || is_missing(&names[1]), "{text}");
    assert!(!text.contains("wal missing (repo1)"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&world.ok(["--output=json", "info"]).stdout).unwrap();
    let metrics = world.ok(["--output=prometheus", "info"]).stdout;
    let missing = |repo: u32| {
        let line = metrics
            .lines()
            .find(|l| l.starts_with("pgkeep_wal_missing_segments{") && l.contains(&format!("repo=\"{repo}\"")));
        line.and_then(|l| l.rsplit_once(' ')?.1.parse::<u64>().ok())
    };
    assert!(missing(1) == Some(0) && missing(2) > Some(0), "{metrics}");
    let holes: Vec<_> = json[0]["archive"].as_array().unwrap().iter().filter_map(|a| a.get("missing")).collect();
    assert!(holes.len() == 1 && holes[0][0]["last"].as_str() == Some(&names[4]), "{json:#}");
    assert_eq!(json[0]["status"]["code"], 0, "{json:#}");

    world.ok(["--repo=2", "--start-fast", "--type=incr", "backup"]);
    world.ok(["check"]);
    assert!(!world.ok(["info"]).says("wal missing"));
}

/// Makes all files below a directory an hour old.
fn age(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path);
        } else {
            let hour = std::time::Duration::from_secs(3600);
            fs::File::open(&path).unwrap().set_modified(std::time::SystemTime::now() - hour).unwrap();
        }
    }
}

#[test]
fn a_word_is_about_no_repository_that_was_made_anew() {
    let (world, second) = two();
    let names = ready(&world, 4);
    expect_push(&world, 0, &names[0]);
    wait_until("all are pushed ahead", || spooled(&world, "out").len() == names.len() - 1);
    rest(&world);
    fs::rename(&second, second.with_extension("away")).unwrap();
    world.sandbox.dir("repo2");
    world.ok(["stanza-create"]);
    for name in &names[1..] {
        expect_push(&world, 0, name);
        assert!(archived(&world, "--repo=2", name).is_some(), "{name} is acknowledged and not in repo2");
    }
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
