//! A cluster goes to a new major by `pg_upgrade`: the stanza goes with it, and what was before can still be restored.

use std::fs;

use support::{Cluster, Mode, Run, World, account, majors, world::STANZA};

#[test]
fn a_stanza_goes_on_with_a_cluster_that_was_upgraded() {
    // 15 is always there.
    let (old, new) = match majors().into_iter().max() {
        Some(14) => (14, 15),
        Some(newest @ 16..) => (15, newest),
        _ => (15, 17),
    };
    let mut world = World::new(old);
    world.cluster.psql("CREATE TABLE kept AS SELECT generate_series(1, 1000) n");
    let full = world.backup("full");
    let incr = world.backup("incr");
    world.archive_now();
    let system = world.info()["db"][0]["system-id"].clone();
    world.cluster.stop(Mode::Fast);

    let mut upgraded = Cluster::builder(new).init();
    pg_upgrade(&world, &upgraded);
    upgraded.configure("archive_mode", "on");
    upgraded.configure("archive_command", &world.sandbox.archive_command(STANZA));
    world.sandbox.configure(STANZA, &upgraded, &[]);

    // Before the stanza knows, nothing of the new cluster gets in.
    let run = world.run(["--no-online", "backup"]);
    assert!(run.code == Some(51) && run.says("stanza-upgrade"), "{run}");
    world.ok(["--no-online", "stanza-upgrade"]);
    assert!(world.ok(["--no-online", "stanza-upgrade"]).says("already up to date"));
    upgraded.start();
    world.ok(["check"]);
    let run = world.ok(["--start-fast", "--type=incr", "backup"]);
    assert!(run.messages("WARN").iter().any(|w| w.contains("full")), "an incr without a prior becomes a full\n{run}");
    let label = support::world::label(&run);
    assert!(label.ends_with('F'), "{label}");

    let info = world.info();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let ids: Vec<_> = info["archive"].as_array().unwrap().iter().map(|a| text(&a["id"])).collect();
    assert_eq!(ids, [format!("{old}-1"), format!("{new}-2")]);
    assert_eq!(world.labels(), [full, incr.clone(), label]);
    assert_eq!(info["db"][0]["system-id"], system);
    assert_ne!(info["db"][1]["system-id"], system);
    let listed = world.sandbox.run_ok(["repo-ls", &format!("archive/{STANZA}")]).stdout;
    assert_eq!(listed, format!("{old}-1\n{new}-2\narchive.info\n"));

    // The newest by default, and one of the old cluster by its name.
    let target = world.sandbox.dir("old");
    world.restore_to(&target, [format!("--set={incr}"), "--type=immediate".into(), "--target-action=promote".into()]);
    let mut restored = Cluster::adopt(old, &target);
    restored.override_setting("archive_mode", "off");
    restored.start();
    restored.wait_promoted();
    assert_eq!(restored.psql("SELECT sum(n) FROM kept"), "500500");
    let target = world.sandbox.dir("new");
    world.restore_to(&target, ["--type=immediate", "--target-action=promote"]);
    let mut restored = Cluster::adopt(new, &target);
    restored.override_setting("archive_mode", "off");
    restored.start();
    restored.wait_promoted();
    assert_eq!(restored.psql("SELECT sum(n) FROM kept"), "500500");
    assert_eq!(restored.psql("SHOW server_version_num").len(), 6);
}

fn pg_upgrade(world: &World, to: &Cluster) {
    let (from, logs) = (&world.cluster, world.sandbox.dir("upgrade"));
    let mut command = account::command(to.binaries().own("pg_upgrade"));
    command.current_dir(&logs).args(["--username=postgres", "--copy"]);
    command.arg("-b").arg(from.binaries().dir()).arg("-B").arg(to.binaries().dir());
    command.arg("-d").arg(from.data_dir()).arg("-D").arg(to.data_dir());
    // Its servers listen where no path is too long for a socket.
    command.arg("--socketdir").arg(to.socket_dir());
    command.arg("-p").arg(from.port().to_string()).arg("-P").arg(to.port().to_string());
    let run: Run = world.sandbox.finish(command);
    let more = || {
        let entries = fs::read_dir(&logs).unwrap().map(|e| fs::read_to_string(e.unwrap().path()).unwrap_or_default());
        entries.collect::<String>()
    };
    assert_eq!(run.code, Some(0), "{run}\n{}", more());
}
