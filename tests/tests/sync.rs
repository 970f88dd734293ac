//! Promise: what `repo-sync` shows in the other repository is whole, under the other one's keys, whatever ended it early.

use std::{fs, path::Path, thread, time::Duration};

use pgkeep_formats::repo::layout;
use support::{Cluster, Mode, Sandbox, World, account, majors, tree, world, world::STANZA};

/// A cluster with a full backup and an increment in its first repository; the second one is not configured yet.
fn two_backups() -> World {
    let world = World::new(majors()[0]);
    world.create_marks();
    world.cluster.pgbench_init(2);
    world.backup("full");
    world.mark(1);
    world.backup("incr");
    world
}

/// Adds a second repository, sealed with a passphrase of its own, and makes the stanza in it.
fn add_second(world: &World) {
    let path = world.sandbox.dir("repo2").display().to_string();
    let options = [
        ("repo2-path", path.as_str()),
        ("repo2-cipher-type", "aes-256-cbc"),
        ("repo2-cipher-pass", "a passphrase of its own"),
    ];
    world.sandbox.configure(STANZA, &world.cluster, &options);
    world.ok(["stanza-create"]);
}

fn restored(world: &World, name: &str, args: &[&str]) -> Cluster {
    world.restore(name, args.iter().copied().chain(["--type=immediate", "--target-action=promote"]))
}

/// Labels of the backups that a repository shows.
fn labels(world: &World, repo: u64) -> Vec<String> {
    let of = |b: &serde_json::Value| b["database"]["repo-key"] == repo;
    world.backups().iter().filter(|b| of(b)).map(|b| b["label"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn what_another_repository_lacks_is_copied_once_and_comes_back_from_there() {
    let world = two_backups();
    let both = labels(&world, 1);
    add_second(&world);
    let plan = world.ok(["--dry-run", "--output=json", "repo-sync", "1", "2"]).json();
    assert_eq!(plan["backup"].as_array().map(Vec::len), Some(2), "{plan}");
    assert_eq!(labels(&world, 2), Vec::<String>::new());

    let done = world.ok(["--output=json", "repo-sync", "1", "2"]).json();
    assert!(done["wal"].as_u64() >= Some(2), "{done}");
    assert_eq!(labels(&world, 2), both);
    let mut trees = Vec::new();
    for repo in ["--repo=1", "--repo=2"] {
        let mut cluster = restored(&world, &format!("from{}", &repo[7..]), &[repo]);
        trees.push(cluster.data_dir().join("base"));
        if repo == "--repo=2" {
            tree::assert_same(&trees[0], &trees[1], |_| false);
            cluster.start();
            cluster.wait_promoted();
            assert_eq!(world::marks(&cluster), [1]);
            cluster.stop(Mode::Fast);
        }
    }
    world.ok(["--repo=2", "verify"]);

    // Nothing is copied twice; an increment costs what changed, and is one there as well.
    let again = world.ok(["--output=json", "repo-sync", "1", "2"]).json();
    assert_eq!((again["backup"].as_array().map(Vec::len), again["wal"].as_u64()), (Some(0), Some(0)), "{again}");
    world.mark(2);
    world.ok(["--repo=1", "--start-fast", "--type=incr", "backup"]);
    let label = labels(&world, 1).pop().unwrap();
    let more = world.ok(["--output=json", "repo-sync", "repo1", "repo2"]).json();
    let (size, stored) = (more["backup"][0]["size"].as_u64().unwrap(), more["backup"][0]["stored"].as_u64().unwrap());
    assert!(more["backup"][0]["label"] == label && stored * 10 < size, "{more}");
    // The other repository goes on by itself from what it was given.
    world.mark(3);
    world.ok(["--repo=2", "--start-fast", "--type=incr", "backup"]);
    let mut cluster = restored(&world, "on", &["--repo=2"]);
    cluster.start();
    cluster.wait_promoted();
    assert_eq!(world::marks(&cluster), [1, 2, 3]);
    cluster.stop(Mode::Fast);

    // What retention took there stays away.
    world.ok(["--repo=2", &format!("--set={}", labels(&world, 2)[1]), "expire"]);
    world.ok(["--repo=2", "--start-fast", "--type=full", "backup"]);
    world.ok(["--repo=2", "--repo2-retention-full=1", "expire"]);
    assert_eq!(labels(&world, 2).len(), 1);
    let after = world.ok(["--output=json", "repo-sync", "1", "2"]).json();
    assert_eq!(after["backup"].as_array().map(Vec::len), Some(0), "{after}");

    // A backup that keeps the WAL it needs goes there without any of the archive. Its label is the second it began in: not
    // the one of the backup that the other repository just took.
    thread::sleep(Duration::from_secs(1));
    world.ok(["--repo=1", "--archive-copy", "--start-fast", "--type=full", "backup"]);
    let backup = world.backups().pop().unwrap();
    let label = backup["label"].as_str().unwrap();
    for end in ["start", "stop"] {
        let name = backup["archive"][end].as_str().unwrap();
        for repo in [world.sandbox.repo().to_owned(), world.path("repo2")] {
            let object = repo.join(layout::wal(STANZA, &format!("{}-1", majors()[0]), name));
            assert!(fs::remove_file(object).is_ok() || backup["archive"]["start"] == backup["archive"]["stop"]);
        }
    }
    world.ok([&format!("--set={label}"), "repo-sync", "1", "2"]);
    assert!(labels(&world, 2).contains(&label.to_owned()));
    let mut cluster = world.restore("alone", ["--repo=2", &format!("--set={label}"), "--type=none"]);
    cluster.start();
    assert_eq!(world::marks(&cluster), [1, 2, 3]);
    cluster.stop(Mode::Fast);

    for (code, args) in [(96, ["repo-sync", "1", "1"]), (96, ["repo-sync", "1", "7"]), (96, ["repo-sync", "one", "2"])]
    {
        let run = world.expect(code, args);
        assert!(run.says("repo"), "{run}");
    }
    world.expect(75, ["--set=20200101-000000F", "repo-sync", "1", "2"]);
}

#[test]
fn one_backup_is_for_all_repositories_and_one_that_fails_catches_up() {
    let world = two_backups();
    add_second(&world);
    // What is new gets what the label builds on; deltas stay deltas.
    world.mark(2);
    world.backup("incr");
    assert_eq!(labels(&world, 1).len(), 3);
    assert_eq!(labels(&world, 2), labels(&world, 1));
    let packs = |repo: &Path| tree::files(&repo.join("packs")).into_values().sum::<u64>();
    let (theirs, ours) = (packs(&world.sandbox.repo()), packs(&world.path("repo2")));
    assert!(theirs > 0 && ours * 10 < theirs * 11, "{ours} bytes of {theirs}");

    let missing = world.path("missing").display().to_string();
    let (first, second) = (format!("--repo1-path={missing}"), format!("--repo2-path={missing}"));
    for (key, away) in [(2, &second), (1, &first)] {
        let run = world.expect(104, [away.as_str(), "--start-fast", "--type=incr", "backup"]);
        assert!(run.says(&format!("repo{key} cannot be used")) && run.says(&missing), "{run}");
        let (with, without) = (labels(&world, 3 - key), labels(&world, key));
        assert_eq!(with[..with.len() - 1], without, "repository {key} was away");
        world.mark(2 + key as u32);
        world.backup("incr");
        assert_eq!(labels(&world, 1), labels(&world, 2));
    }
    for key in ["--repo=1", "--repo=2"] {
        world.ok([key, "verify"]);
        let mut cluster = restored(&world, &format!("all{}", &key[7..]), &[key]);
        cluster.start();
        cluster.wait_promoted();
        assert_eq!(world::marks(&cluster), [1, 2, 3, 4]);
        cluster.stop(Mode::Fast);
    }

    // Nothing can be used, or the server cannot: one status, and nothing anywhere.
    let all = labels(&world, 1);
    let other = second.replace("missing", "missing too");
    let run = world.expect(55, [first.as_str(), other.as_str(), "backup"]);
    assert!(run.says("repo1") && run.says("repo2"), "{run}");
    world.expect(56, ["--pg1-port=1", "backup"]);
    assert_eq!((labels(&world, 1), labels(&world, 2)), (all.clone(), all));
}

#[test]
fn ended_at_any_moment_it_shows_only_what_is_whole_and_goes_on() {
    let world = two_backups();
    let both = labels(&world, 1);
    add_second(&world);
    for pause in [30, 90, 200, 400] {
        let running = world.spawn(["repo-sync", "1", "2"]);
        thread::sleep(Duration::from_millis(pause));
        running.kill9();
        let shown = labels(&world, 2);
        assert!(both.starts_with(&shown), "{shown:?}");
        world.ok(["--repo=2", "verify"]);
    }
    world.ok(["repo-sync", "1", "2"]);
    assert_eq!(labels(&world, 2), both);
    world.ok(["--repo=2", "verify"]);
}

#[test]
fn what_is_damaged_is_not_carried_on() {
    let world = two_backups();
    let pack = world.sandbox.largest_pack();
    add_second(&world);
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let run = world.run(["repo-sync", "1", "2"]);
    assert!(run.code == Some(26) && run.says("cannot copy backup"), "{run}");
    assert!(labels(&world, 2).is_empty(), "a backup that is not whole is shown");
    world.ok(["--repo=2", "verify"]);
}

#[test]
fn an_incremental_alone_is_whole_without_what_its_deltas_were_encoded_against() {
    let world = two_backups();
    world.cluster.psql("UPDATE pgbench_accounts SET abalance = aid WHERE aid % 40 = 0");
    world.backup("incr");
    let label = labels(&world, 1).pop().unwrap();
    add_second(&world);
    world.ok([&format!("--set={label}"), "repo-sync", "1", "2"]);
    world.ok(["--repo=2", "verify"]);
    let first = restored(&world, "from1", &["--repo=1", &format!("--set={label}")]).data_dir().join("base");
    let second = restored(&world, "from2", &["--repo=2"]).data_dir().join("base");
    tree::assert_same(&first, &second, |_| false);
}

#[test]
fn two_histories_are_not_mixed() {
    let world = two_backups();
    add_second(&world);
    // As after a data directory was put back while the first repository was away.
    let name = world.backups()[0]["archive"]["start"].as_str().unwrap().to_owned();
    let copy = world.sandbox.dir("other").join(&name);
    world.ok(["--repo=1", "archive-get", &name, copy.to_str().unwrap()]);
    let mut bytes = fs::read(&copy).unwrap();
    bytes[600_000] ^= 1;
    fs::write(&copy, bytes).unwrap();
    account::give(&copy);
    let away = format!("--repo1-path={}", world.path("away").display());
    world.expect(104, [&away, "archive-push", copy.to_str().unwrap()]);
    let run = world.expect(45, ["repo-sync", "1", "2"]);
    assert!(run.says(&name) && run.says("of another history"), "{run}");
    assert!(labels(&world, 2).is_empty(), "a backup is shown whose WAL is another one's");
}

#[test]
fn a_backup_whose_wal_is_not_there_is_not_shown() {
    let world = two_backups();
    add_second(&world);
    let needed = world.backups()[0]["archive"]["start"].as_str().unwrap().to_owned();
    let object = layout::wal(STANZA, &format!("{}-1", majors()[0]), &needed);
    fs::remove_file(world.sandbox.repo().join(object)).unwrap();
    let run = world.expect(82, ["repo-sync", "1", "2"]);
    assert!(run.says(&needed) && run.says("lacks WAL"), "{run}");
    // The other one is whole, and is copied.
    assert_eq!(labels(&world, 2), labels(&world, 1)[1..], "a backup that cannot be recovered is shown");
}

#[test]
fn another_cluster_of_that_name_is_refused() {
    let world = two_backups();
    let other = World::within(Sandbox::new(), Cluster::builder(majors()[0]), &[]);
    let path = other.sandbox.repo().display().to_string();
    world.sandbox.configure(STANZA, &world.cluster, &[("repo2-path", &path)]);
    let run = world.expect(51, ["repo-sync", "1", "2"]);
    assert!(run.says("another cluster"), "{run}");
}
