//! What is in a backup: damaged pages with a warning, links and tablespaces, and not what must be left out.

use std::{fs, os::unix::fs::FileExt, path::Path};

use support::{Cluster, Mode, World, account, majors, spread};

/// Overwrites bytes in the middle of pages of a table, behind the server's back; the path below PGDATA.
fn damage(world: &World, table: &str, pages: &[u64]) -> String {
    let path = world.cluster.psql(&format!("SELECT pg_relation_filepath('{table}')"));
    let file = fs::OpenOptions::new().write(true).open(world.cluster.data_dir().join(&path)).unwrap();
    for page in pages {
        file.write_all_at(b"not what was written", page * 8192 + 4000).unwrap();
    }
    path
}

#[test]
fn damaged_pages_are_named_and_do_not_stop_the_backup() {
    for major in spread() {
        let world = World::new(major);
        world.cluster.psql("CREATE TABLE good AS SELECT n, repeat('x', 100) t FROM generate_series(1, 20000) n");
        world.cluster.psql("CREATE TABLE bad AS SELECT n, repeat('x', 100) t FROM generate_series(1, 20000) n");
        world.cluster.psql("CREATE TABLE small AS SELECT 1 n");
        world.cluster.checkpoint();
        let (bad, small) = (damage(&world, "bad", &[3, 200]), damage(&world, "small", &[0]));

        let run = world.ok(["--start-fast", "--type=full", "backup"]);
        let warnings = run.messages("WARN");
        let warns = |path: &str, pages: &str| warnings.iter().any(|w| w.contains(path) && w.ends_with(pages));
        assert!(warns(&bad, "3, 200") && warns(&small, "0"), "{run}");
        assert_eq!(warnings.len(), 2, "{run}");
        let full = support::world::label(&run);
        assert_eq!(world.backups()[0]["error"], true);
        let set = set_info(&world, &full);
        let list = set[0]["backup"][0]["error-list"].as_array().expect("a list of errors").clone();
        let mut names: Vec<_> = list.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        let mut expected = vec![bad, small];
        expected.sort_unstable();
        assert!(
            names.iter().zip(&expected).all(|(name, path)| name.ends_with(path.as_str())) && names.len() == 2,
            "{names:?}"
        );

        // Neither file changed since, and both are still damaged in what the next backup holds.
        world.backup("incr");
        assert_eq!(world.backups()[1]["error"], true);
        // Without checking there is nothing to say.
        let run = world.ok(["--start-fast", "--type=full", "--no-checksum-page", "backup"]);
        assert_eq!(run.messages("WARN"), Vec::<&str>::new(), "{run}");
        assert!(world.backups()[2]["error"].is_null());
    }
}

#[test]
fn a_cluster_without_checksums_is_copied_as_it_is() {
    let world = World::of(Cluster::builder(majors()[0]).checksums(false), &[]);
    world.cluster.psql("CREATE TABLE bad AS SELECT n, repeat('x', 100) t FROM generate_series(1, 20000) n");
    world.cluster.checkpoint();
    damage(&world, "bad", &[3]);
    let run = world.ok(["--start-fast", "--type=full", "backup"]);
    assert_eq!(run.messages("WARN"), Vec::<&str>::new(), "{run}");
}

/// What `info` tells of one backup.
fn set_info(world: &World, label: &str) -> serde_json::Value {
    world.ok(["--log-level-console=off", &format!("--set={label}"), "--output=json", "info"]).json()
}

fn touch(path: &Path) {
    fs::write(path, "content\n").unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    account::give(path);
}

fn make_dir(path: &Path) {
    account::private_dir(path);
}

#[test]
fn what_a_restored_server_must_not_see_is_left_out() {
    let mut world = World::new(majors()[0]);
    let data = world.cluster.data_dir().to_owned();
    world
        .cluster
        .psql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) n; CREATE TABLE logged AS SELECT 1 n");
    world.cluster.psql("SELECT pg_create_physical_replication_slot('slot')");
    let unlogged = world.cluster.psql("SELECT pg_relation_filepath('unlogged')");
    let base = Path::new(&unlogged).parent().unwrap();
    for dir in ["base/pgsql_tmp", "keep", "keep_empty", "gone"] {
        make_dir(&data.join(dir));
    }
    let left_out = [
        "base/pgsql_tmp/pgsql_tmp1.0",
        "backup_label.old",
        "backup_manifest",
        "postgresql.auto.conf.tmp",
        "recovery.signal",
        "standby.signal",
        "pg_stat_tmp/global.stat",
        "pg_notify/0000.x",
        "pg_snapshots/x",
        "global/pg_internal.init.77",
        "keep_empty/file",
        "gone/file",
        "keep/no",
    ];
    left_out.iter().for_each(|name| touch(&data.join(name)));
    touch(&data.join(base).join("t3_99999"));
    touch(&data.join("keep/yes"));
    let fifo = data.join("keep/fifo");
    assert!(account::command("/usr/bin/mkfifo").arg(&fifo).status().unwrap().success());

    let exclude = ["--exclude=keep_empty/", "--exclude=gone", "--exclude=keep/no"];
    let run = world.ok(exclude.iter().chain(&["--start-fast", "--type=full", "backup"]));
    let warnings = run.messages("WARN");
    assert!(warnings.len() == 1 && warnings[0].contains(fifo.to_str().unwrap()), "{run}");
    fs::remove_file(data.join("recovery.signal")).unwrap();
    fs::remove_file(data.join("standby.signal")).unwrap();

    let target = world.sandbox.dir("target");
    world.restore_to(&target, ["--type=none"]);
    let there = |name: &Path| target.join(name).exists();
    for name in left_out.iter().map(Path::new).chain([
        base.join("t3_99999").as_path(),
        Path::new("keep/fifo"),
        Path::new("gone"),
    ]) {
        assert!(!there(name), "{} is in the backup", name.display());
    }
    for name in ["postmaster.pid", "postmaster.opts", &unlogged, "pg_replslot/slot"] {
        assert!(!there(Path::new(name)), "{name} is in the backup");
    }
    for name in [
        "keep/yes",
        "keep_empty",
        "pg_stat_tmp",
        "pg_replslot",
        "pg_wal",
        "pg_wal/archive_status",
        &format!("{unlogged}_init"),
        "base/pgsql_tmp",
    ] {
        let expected = name != "base/pgsql_tmp";
        assert_eq!(there(Path::new(name)), expected, "{name}");
    }
    assert!(fs::read_dir(target.join("keep_empty")).unwrap().next().is_none());
    world.cluster.stop(Mode::Fast);
}

#[test]
fn links_and_tablespaces_are_followed_and_named() {
    let waldir = account::Scratch::new("pgkeep-wal");
    let wal = waldir.path().join("wal");
    let world = World::of(Cluster::builder(majors()[0]).initdb_arg(&format!("--waldir={}", wal.display())), &[]);
    let space = world.cluster.side_dir("space one");
    world.cluster.psql(&format!("CREATE TABLESPACE \"Space 1\" LOCATION '{}'", space.display()));
    world.cluster.psql("CREATE TABLE there TABLESPACE \"Space 1\" AS SELECT generate_series(1, 10000) n");
    let conf = world.cluster.side_dir("conf").join("extra.conf");
    touch(&conf);
    std::os::unix::fs::symlink(&conf, world.cluster.data_dir().join("extra.conf")).unwrap();

    let label = world.backup("full");
    let set = set_info(&world, &label);
    let backup = &set[0]["backup"][0];
    let space_facts = &backup["tablespace"][0];
    let oid: u32 = world.cluster.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'Space 1'").parse().unwrap();
    assert_eq!(
        *space_facts,
        serde_json::json!({ "destination": space.to_str(), "name": "Space 1", "oid": oid }),
        "{backup:#}"
    );
    let mut links: Vec<_> =
        backup["link"].as_array().unwrap().iter().map(|l| (l["name"].clone(), l["destination"].clone())).collect();
    links.sort_by_key(|l| l.0.to_string());
    let text = |path: &Path| serde_json::json!(path.to_str());
    assert_eq!(links, [("extra.conf".into(), text(&conf)), ("pg_wal".into(), text(&wal))], "{backup:#}");
    assert!(backup["database-ref"].as_array().unwrap().iter().any(|d| d["name"] == "postgres"), "{backup:#}");

    // As plain files and directories, the tablespace elsewhere.
    let moved = world.sandbox.dir("moved");
    let target = world.sandbox.dir("target");
    world.restore_to(&target, ["--type=none", &format!("--tablespace-map=Space 1={}", moved.display())]);
    assert!(target.join("pg_wal").is_dir() && !target.join("pg_wal").is_symlink());
    assert_eq!(fs::read(target.join("extra.conf")).unwrap(), b"content\n");
    assert!(!target.join("extra.conf").is_symlink());
    assert_eq!(fs::read_link(target.join(format!("pg_tblspc/{oid}"))).unwrap(), moved);
    let name = world.cluster.psql("SELECT pg_relation_filepath('there')");
    let inside = name.strip_prefix(&format!("pg_tblspc/{oid}/")).unwrap();
    assert!(fs::read(space.join(inside)).unwrap() == fs::read(moved.join(inside)).unwrap(), "{inside}");
}

#[test]
fn links_that_could_not_be_made_again_are_refused() {
    let world = World::new(majors()[0]);
    let data = world.cluster.data_dir();
    let refuse = |name: &str, target: &Path, code: i32| {
        std::os::unix::fs::symlink(target, data.join(name)).unwrap();
        let run = world.expect(code, ["--start-fast", "--type=full", "backup"]);
        assert!(run.says(name) && run.says(target.to_str().unwrap()), "{run}");
        fs::remove_file(data.join(name)).unwrap();
    };
    let outside = world.cluster.side_dir("outside");
    std::os::unix::fs::symlink(&outside, outside.with_file_name("second")).unwrap();
    refuse("into", &data.join("base"), 70);
    refuse("link", &outside.with_file_name("second"), 70);
    refuse("nowhere", &outside.join("missing"), 41);
    make_dir(&data.join("pg_tblspc/12345"));
    let run = world.expect(69, ["--start-fast", "--type=full", "backup"]);
    assert!(run.says("pg_tblspc/12345"), "{run}");
    fs::remove_dir(data.join("pg_tblspc/12345")).unwrap();
    world.backup("full");
    assert_eq!(world.labels().len(), 1);
}
