//! Promise: a stanza is stopped, started, removed and checked by pgBackRest's rules, whatever runs meanwhile.

use std::{fs, path::Path};

use support::{Cluster, Mode, Run, Sandbox, World, majors, world::STANZA};

fn assert_says(run: &Run, texts: &[&str]) {
    texts.iter().for_each(|text| assert!(run.says(text), "does not say '{text}'\n{run}"));
}

#[test]
fn what_a_stop_forbids_and_what_it_does_not() {
    let world = World::new(majors()[0]);
    world.backup("full");
    let segment = world.archive_now();
    let file = world.cluster.data_dir().join("pg_wal").join(&segment);
    let file = if file.exists() { file } else { world.cluster.data_dir().join("pg_wal/000000010000000000000001") };
    let (target, got) = (world.sandbox.dir("target"), world.path("got"));
    let to = format!("--pg1-path={}", target.display());
    let stop = |args: &[&str]| world.sandbox.run_ok([args, &["--log-level-console=warn", "stop"]].concat());
    // Of one stanza by its name, and of all on this host.
    for scope in [&["--stanza=demo"][..], &[]] {
        assert_eq!(stop(scope).stdout, "");
        assert_says(&stop(scope), &["WARN: there is a stop file for"]);
        let name = if scope.is_empty() { "all.stop" } else { "demo.stop" };
        for args in
            [&["backup"][..], &["archive-push", file.to_str().unwrap()], &["stanza-create"], &["stanza-upgrade"]]
        {
            assert_says(&world.expect(62, args), &["[062]", name, "hint: "]);
        }
        // Reading goes on: a standby or a restore may need it.
        world.ok(["archive-get", &segment, got.to_str().unwrap()]);
        world.ok(["verify"]);
        assert_eq!(world.labels().len(), 1);
        world.ok([&to, "--delta", "restore"]);
        fs::remove_file(&got).unwrap();
        world.ok(["--no-archive-check", "check"]);
        // What nothing archives does not arrive, and the hint names the way out.
        assert_says(&world.expect(82, ["--archive-timeout=300ms", "check"]), &["[082]", "hint: "]);
        assert_eq!(world.sandbox.run_ok([scope, &["start"]].concat()).stdout, "");
        let again = world.sandbox.run_ok([scope, &["start"]].concat());
        assert_says(&again, &["WARN: there is no stop file for"]);
    }
    world.backup("incr");
    // A stop of another stanza is none of this one.
    stop(&["--stanza=other"]);
    world.backup("incr");
}

#[test]
fn a_stanza_is_removed_from_one_repository_when_it_is_stopped_and_its_server_too() {
    let sandbox = Sandbox::new();
    let second = sandbox.dir("repo2");
    let mut world = World::within(sandbox, Cluster::builder(majors()[0]), &[("repo2-path", second.to_str().unwrap())]);
    world.backup("full");
    world.ok(["--repo=2", "--start-fast", "backup"]);
    assert_says(&world.expect(37, ["stanza-delete"]), &["[037]", "repo"]);
    assert_says(&world.expect(55, ["--repo=1", "stanza-delete"]), &["[055]", "stop file", "run 'stop' first"]);
    world.ok(["stop"]);
    assert_says(&world.expect(38, ["--repo=1", "stanza-delete"]), &["[038]", "postmaster.pid"]);
    let codes = |world: &World| {
        let info = world.info();
        info["repo"].as_array().unwrap().iter().map(|r| r["status"]["code"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(codes(&world), [0, 0], "what was refused has removed nothing");
    world.ok(["--repo=2", "--force", "stanza-delete"]);
    assert_eq!(codes(&world), [0, 1]);
    // The stop has served its purpose, as with pgBackRest.
    assert!(!world.sandbox.locks().join("demo.stop").exists());
    assert_says(&world.expect(55, ["--repo=1", "stanza-delete"]), &["stop file"]);

    world.cluster.stop(Mode::Fast);
    world.ok(["stop"]);
    world.ok(["--repo=1", "stanza-delete"]);
    assert_eq!(codes(&world), [1, 1]);
    for repo in [&world.sandbox.repo(), &second] {
        for kind in ["backups", "wal", "stanzas"] {
            assert!(is_empty(&repo.join(kind).join(STANZA)), "{kind} of {}", repo.display());
        }
    }
    // And anew, without more ado.
    world.cluster.start();
    world.ok(["stanza-create"]);
    world.backup("full");
    world.ok(["check"]);
}

fn is_empty(dir: &Path) -> bool {
    !dir.exists() || support::tree::files(dir).is_empty()
}

#[test]
fn a_check_without_a_stanza_goes_through_all_of_the_configuration() {
    let world = World::new(majors()[0]);
    let push = world.sandbox.archive_command("other");
    let mut other = Cluster::builder(*majors().last().unwrap())
        .setting("archive_mode", "on")
        .setting("archive_command", &push)
        .init();
    other.start();
    let section = |stanza: &str, cluster: &Cluster| {
        format!(
            "\n[{stanza}]\npg1-path={}\npg1-socket-path={}\npg1-port={}\npg1-user=postgres\n",
            cluster.data_dir().display(),
            cluster.socket_dir().display(),
            cluster.port()
        )
    };
    let mut text = fs::read_to_string(world.sandbox.config()).unwrap();
    text += &section("other", &other);
    fs::write(world.sandbox.config(), text).unwrap();
    world.sandbox.run_ok(["--stanza=other", "stanza-create"]);

    let run = world.sandbox.run_ok(["--log-level-console=info", "check"]);
    let archived = run.messages("INFO").iter().filter(|m| m.contains("successfully archived to")).count();
    assert_eq!(archived, 2, "{run}");
    for stanza in ["wal/demo/", "wal/other/"] {
        assert_says(&run, &[stanza]);
    }
    // One that fails is not passed over.
    other.stop(Mode::Fast);
    let run = world.sandbox.run(["check"]);
    assert!(run.code == Some(27) && run.says(other.socket_dir().to_str().unwrap()), "{run}");
    world.sandbox.run_ok(["--stanza=demo", "check"]);
}
