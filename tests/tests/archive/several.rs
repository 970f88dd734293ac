//! Several repositories: one that fails keeps WAL from none of the others, and the server keeps the file.

use std::{fs, os::unix::fs::PermissionsExt};

use support::{Cluster, Sandbox, World, majors, world::STANZA};

#[test]
fn a_lost_repository_does_not_keep_wal_from_the_other() {
    let sandbox = Sandbox::new();
    let second = sandbox.dir("repo2");
    let paths = [("repo2-path", second.to_str().unwrap().to_owned())];
    let global: Vec<_> = paths.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let world = World::within(sandbox, Cluster::builder(majors()[0]), &global);
    let target = world.path("got").display().to_string();
    let has = |repo: &str, segment: &str| world.run([repo, "archive-get", segment, &target]).code == Some(0);
    let both = world.archive_now();
    assert!(has("--repo=1", &both) && has("--repo=2", &both));

    // The first breaks: nothing in it can be entered.
    let (first, mode) = (world.sandbox.repo(), |bits| fs::Permissions::from_mode(bits));
    fs::set_permissions(&first, mode(0)).unwrap();
    let segment = world.cluster.switch_wal();
    let file = world.cluster.data_dir().join("pg_wal").join(&segment);
    let run = world.expect(104, ["archive-push", file.to_str().unwrap()]);
    assert!(run.says("[104]") && run.says("repo1: ") && run.says(first.to_str().unwrap()), "{run}");
    assert!(has("--repo=2", &segment), "the repository that works did not receive it");
    // A get that finds it says what was wrong on the way; one that does not may not say no.
    let run = world.ok(["archive-get", &segment, &target]);
    assert!(run.messages("WARN").iter().any(|w| w.contains("repo1")), "{run}");
    let run = world.run(["archive-get", "0000000100000FFF00000001", &target]);
    assert!(run.code.is_some_and(|code| code > 1), "{run}");
    // A standby goes on: it follows its primary, and asks again.
    let signal = world.cluster.data_dir().join("standby.signal");
    fs::write(&signal, "").unwrap();
    let run = world.expect(1, ["--on-error=abort", "archive-get", "0000000100000FFF00000001", &target]);
    assert!(run.says("not in repo2") && run.says("repo1: "), "{run}");
    fs::remove_file(&signal).unwrap();
    // A server that recovers to an end stops, and the restore says what to do about it.
    world.expect(126, ["--on-error=abort", "archive-get", "0000000100000FFF00000001", &target]);
    // A backup goes to one repository. Its WAL cannot arrive: the server archives in order, and an earlier segment waits.
    world.ok(["--repo=2", "--start-fast", "--no-archive-check", "backup"]);
    // Other commands go on with it, too, and end with what is wrong with the first.
    let others =
        [("check", "check repo2 configuration: ok"), ("stanza-create", "already exists and is valid on repo2")];
    for (command, done) in others {
        let run = world.run(["--no-archive-check", command][usize::from(command != "check")..].iter());
        assert!(run.code.is_some_and(|code| code > 0 && code != 104), "{run}");
        assert!(run.messages("INFO").iter().any(|line| line.contains(done)), "{run}");
        assert!(run.messages("ERROR").iter().any(|line| line.contains("repo1")), "{run}");
    }
    let stats = world.run(["--output=json", "repo-stats"]);
    assert!(stats.code != Some(0) && stats.json().as_array().map(Vec::len) == Some(1), "{stats}");

    fs::set_permissions(&second, mode(0)).unwrap();
    let run = world.expect(103, ["archive-push", file.to_str().unwrap()]);
    assert!(run.says("repo1: ") && run.says("repo2: "), "{run}");
    assert_eq!(world.run(["archive-get", &segment, &target]).code, Some(103));
    let run = world.expect(53, ["check"]);
    assert!(run.says("repo1") && run.says("repo2"), "{run}");

    // Both are back: the server pushes what it kept, and both have everything.
    fs::set_permissions(&first, mode(0o700)).unwrap();
    fs::set_permissions(&second, mode(0o700)).unwrap();
    let last = world.archive_now();
    world.wait_archived(&segment);
    for segment in [&segment, &last] {
        assert!(has("--repo=1", segment) && has("--repo=2", segment), "{segment}");
    }
}

#[test]
fn other_content_in_one_repository_is_told_and_the_other_receives() {
    let sandbox = Sandbox::new();
    let second = sandbox.dir("repo2");
    let first_only: [(&str, &str); 0] = [];
    let world = World::within(sandbox, Cluster::builder(majors()[0]).initdb_arg("--wal-segsize=1"), &first_only);
    let segment = world.archive_now();
    let wal = world.cluster.data_dir().join("pg_wal").join(&segment);
    let file = world.take(&wal, &segment);
    world.sandbox.configure(STANZA, &world.cluster, &[("repo2-path", second.to_str().unwrap())]);
    world.ok(["stanza-create"]);
    let mut bytes = fs::read(&file).unwrap();
    bytes[600_000] ^= 1;
    fs::write(&file, bytes).unwrap();
    let run = world.expect(45, ["archive-push", file.to_str().unwrap()]);
    assert!(run.says("repo1") && !run.says("repo2: "), "{run}");
    let target = world.path("got").display().to_string();
    world.ok(["--repo=2", "archive-get", &segment, &target]);
    // Now two repositories disagree. The first good copy is the one that counts.
    world.ok(["archive-get", &segment, &target]);
    assert_eq!(fs::read(&target).unwrap(), fs::read(&wal).unwrap());
}

#[test]
fn a_queue_that_grows_too_long_is_dropped_as_configured() {
    let world = World::of(Cluster::builder(majors()[0]).initdb_arg("--wal-segsize=1"), &[]);
    world.set_archive_command("false");
    let segments: Vec<_> = (0..4).map(|_| world.cluster.switch_wal()).collect();
    let push = |name: &str, max: &str| {
        let file = world.cluster.data_dir().join("pg_wal").join(name);
        world.ok([&format!("--archive-push-queue-max={max}"), "archive-push", file.to_str().unwrap()])
    };
    let target = world.path("got").display().to_string();
    let (repo, away) = (world.sandbox.repo(), world.path("away"));
    fs::rename(&repo, &away).unwrap();
    let run = push(&segments[0], "2MiB");
    assert!(run.says("dropped WAL file") && run.says(&segments[0]) && run.says("it is in no repository"), "{run}");
    fs::rename(&away, &repo).unwrap();
    world.expect(1, ["archive-get", &segments[0], &target]);
    // What can be stored is.
    let run = push(&segments[1], "2MiB");
    assert!(!run.says("dropped"), "{run}");
    world.ok(["archive-get", &segments[1], &target]);
}
