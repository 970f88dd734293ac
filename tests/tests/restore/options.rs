//! What else a restore does as asked: owners, links, tablespaces, recovery settings.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
};

use support::{Cluster, Mode, World, majors, tree, world};

#[test]
fn root_restores_owners_and_modes() {
    assert!(rustix::process::getuid().is_root(), "this test must run as root");
    let world = World::new(majors()[0]);
    world.create_marks();
    world.cluster.pgbench_init(1);
    let odd = world.cluster.data_dir().join("odd");
    fs::write(&odd, "x").unwrap();
    fs::set_permissions(&odd, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&odd, Some(1), Some(fs::metadata(world.cluster.data_dir()).unwrap().gid())).unwrap();
    world.backup("full");
    let mark = world.mark(1);
    world.archive_now();

    let target = world.path("as root");
    fs::create_dir(&target).unwrap();
    let mut command = Command::new(world.sandbox.binary());
    command.arg(format!("--config={}", world.sandbox.config().display()));
    command.args([
        "--stanza=demo",
        "--log-level-console=info",
        "--log-level-file=off",
        "--type=name",
        "--target-action=promote",
    ]);
    // The WAL is no link in the backup, and becomes one.
    let wal = world.path("wal of root");
    command.arg(format!("--link-map=pg_wal={}", wal.display()));
    // Nobody has run anything on this host yet.
    command.arg(format!("--lock-path={}", world.path("new/lock").display()));
    command.arg(format!("--cache-path={}", world.path("new/cache").display()));
    command.arg(format!("--target={}", mark.name)).arg(format!("--pg1-path={}", target.display())).arg("restore");
    let run = world.sandbox.finish(command);
    assert_eq!(run.code, Some(0), "{run}");
    let facts = |path: &std::path::Path| {
        let m = fs::symlink_metadata(path).unwrap();
        (m.uid(), m.gid(), m.mode() & 0o7777)
    };
    for name in
        ["", "PG_VERSION", "base", "global/pg_control", "postgresql.conf", "odd", "pg_wal/.", "pg_wal/archive_status"]
    {
        assert_eq!(facts(&target.join(name)), facts(&world.cluster.data_dir().join(name)), "'{name}'");
    }
    assert_eq!(fs::read_link(target.join("pg_wal")).unwrap(), wal);
    for name in ["", "lock", "cache"] {
        let made = world.path("new").join(name);
        assert_eq!(facts(&made).0, facts(world.cluster.data_dir()).0, "'{}' is root's", made.display());
    }
    for name in ["postgresql.auto.conf", "recovery.signal"] {
        assert_eq!(facts(&target.join(name)).0, facts(world.cluster.data_dir()).0, "{name}");
    }
    fs::remove_file(target.join("odd")).unwrap();
    let mut cluster = world.adopt(&target);
    cluster.start();
    cluster.wait_promoted();
    assert!(world::data(&cluster) == mark.data);
    // Locks and logs that root left behind do not stop the server's own user.
    world.backup("incr");
}

#[test]
fn links_and_tablespaces_go_where_they_are_sent() {
    let wal = support::account::Scratch::new("pgkeep-wal");
    let wal_dir = wal.path().join("wal");
    let mut world =
        World::of(Cluster::builder(majors()[0]).initdb_arg(&format!("--waldir={}", wal_dir.display())), &[]);
    world.create_marks();
    world.cluster.pgbench_init(1);
    let (first, second) = (world.cluster.side_dir("first"), world.cluster.side_dir("second"));
    world.cluster.psql(&format!("CREATE TABLESPACE first LOCATION '{}'", first.display()));
    world.cluster.psql(&format!("CREATE TABLESPACE second LOCATION '{}'", second.display()));
    world.cluster.psql("CREATE TABLE one TABLESPACE first AS SELECT generate_series(1, 20000) n");
    world.cluster.psql("CREATE TABLE two TABLESPACE second AS SELECT generate_series(1, 30000) n; CREATE INDEX ON two (n) TABLESPACE first");
    world.backup("full");
    let mark = world.mark(1);
    world.archive_now();
    let oid = |name: &str| world.cluster.psql(&format!("SELECT oid FROM pg_tablespace WHERE spcname = '{name}'"));
    let (first_oid, second_oid) = (oid("first"), oid("second"));
    let (elsewhere, rest, new_wal) =
        (world.sandbox.dir("elsewhere"), world.sandbox.dir("rest"), world.sandbox.dir("new_wal"));

    let mut cluster = world.restore(
        "target",
        [
            format!("--tablespace-map={first_oid}={}", elsewhere.display()),
            format!("--tablespace-map-all={}", rest.display()),
            format!("--link-map=pg_wal={}", new_wal.display()),
            "--type=name".into(),
            format!("--target={}", mark.name),
            "--target-action=promote".into(),
        ],
    );
    let link = |name: String| fs::read_link(cluster.data_dir().join(name)).unwrap();
    assert_eq!(link(format!("pg_tblspc/{first_oid}")), elsewhere);
    assert_eq!(link(format!("pg_tblspc/{second_oid}")), rest.join("second"));
    assert_eq!(link("pg_wal".into()), new_wal);
    assert!(!cluster.data_dir().join("tablespace_map").exists(), "the server would make the old links again");
    cluster.start();
    cluster.wait_promoted();
    assert!(world::data(&cluster) == mark.data);
    cluster.amcheck();
    cluster.stop(Mode::Fast);

    // In place, with the links as they were, and after the tablespaces were emptied.
    world.cluster.stop(Mode::Fast);
    for dir in [&first, &second] {
        fs::read_dir(dir).unwrap().for_each(|entry| fs::remove_dir_all(entry.unwrap().path()).unwrap());
    }
    world.ok([
        "--delta",
        "--link-all",
        "--type=name",
        &format!("--target={}", mark.name),
        "--target-action=promote",
        "restore",
    ]);
    assert_eq!(fs::read_link(world.cluster.data_dir().join("pg_wal")).unwrap(), wal_dir);
    world.cluster.start();
    world.cluster.wait_promoted();
    assert!(world::data(&world.cluster) == mark.data);
}

#[test]
fn recovery_settings_are_written_replaced_and_preserved() {
    let world = World::new(majors()[0]);
    world.cluster.psql("ALTER SYSTEM SET recovery_target_name = 'old one'");
    world.cluster.psql("ALTER SYSTEM SET work_mem = '5MB'");
    world.backup("full");
    world.archive_now();
    let target = world.sandbox.dir("target");
    let auto = || fs::read_to_string(target.join("postgresql.auto.conf")).unwrap();
    let set = |text: &str, name: &str| {
        text.lines().filter(|l| l.starts_with(&format!("{name} ="))).map(str::to_owned).collect::<Vec<_>>()
    };

    world.restore_to(
        &target,
        ["--type=immediate", "--recovery-option=primary-conninfo=host=x user=y", "--archive-mode=off"],
    );
    let text = auto();
    assert_eq!(set(&text, "recovery_target"), ["recovery_target = 'immediate'"], "{text}");
    assert_eq!(set(&text, "recovery_target_name"), Vec::<String>::new(), "{text}");
    assert_eq!(set(&text, "primary_conninfo"), ["primary_conninfo = 'host=x user=y'"], "{text}");
    assert_eq!(set(&text, "archive_mode"), ["archive_mode = 'off'"], "{text}");
    assert_eq!(set(&text, "recovery_target_timeline"), ["recovery_target_timeline = 'current'"], "{text}");
    assert_eq!(set(&text, "work_mem"), ["work_mem = '5MB'"], "{text}");
    let command = set(&text, "restore_command");
    assert!(command.len() == 1 && command[0].contains("archive-get") && command[0].contains("--stanza=demo"), "{text}");
    assert!(target.join("recovery.signal").exists());

    // Preserve leaves what is there.
    world.restore_to(&target, ["--type=preserve", "--delta"]);
    assert_eq!(auto(), text);
    assert!(target.join("recovery.signal").exists());
    // What is not there cannot be preserved: the backup's is used, and that is said.
    fs::remove_file(target.join("postgresql.auto.conf")).unwrap();
    let run = world.restore_to(&target, ["--type=preserve", "--delta"]);
    assert!(run.says("cannot be preserved: the backup's is used"), "{run}");
    assert_eq!(set(&auto(), "work_mem"), ["work_mem = '5MB'"]);
    assert!(target.join("recovery.signal").exists());
    // None asks for nothing, whatever a configuration file has for other types.
    world.sandbox.configure(world::STANZA, &world.cluster, &[("recovery-option", "primary-conninfo=host=x")]);
    world.restore_to(&target, ["--type=none", "--delta"]);
    world.expect(31, ["--type=none", "--delta", "--recovery-option=primary-conninfo=host=x", "restore"]);
    assert!(!target.join("recovery.signal").exists() && !target.join("standby.signal").exists());
    assert_eq!(set(&auto(), "restore_command"), Vec::<String>::new());
}

#[test]
fn two_restores_of_one_backup_are_equal_and_both_start() {
    let world = World::new(majors()[0]);
    world.create_marks();
    world.cluster.pgbench_init(2);
    world.backup("full");
    let mark = world.mark(1);
    world.archive_now();
    let to = ["--type=name", &format!("--target={}", mark.name), "--target-action=promote"];
    let (mut one, mut two) = (world.restore("one", to), world.restore("two", to.iter().chain(&["--process-max=1"])));
    tree::assert_same(one.data_dir(), two.data_dir(), |path| path.ends_with("postgresql.auto.conf"));
    one.start();
    two.start();
    one.wait_promoted();
    two.wait_promoted();
    assert!(world::data(&one) == mark.data && world::data(&two) == mark.data);
    // Neither knows of the other.
    one.psql("DROP TABLE pgbench_history");
    assert!(world::data(&two) == mark.data);
}
