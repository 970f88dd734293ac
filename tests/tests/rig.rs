//! The rigs themselves: what other targets build on must be seen to work, and to notice when something is wrong.

use std::fs;

use support::{Cluster, Mode, Sandbox, Work, majors, pg::Binaries, spread};

#[test]
fn every_major_starts_with_checksums() {
    for major in majors() {
        let mut cluster = Cluster::builder(major).init();
        cluster.start();
        assert_eq!(cluster.psql("SHOW server_version_num").parse::<u32>().unwrap() / 10_000, major);
        assert_eq!(cluster.psql("SHOW data_checksums").lines().next(), Some("on"));
    }
}

#[test]
fn new_clusters_are_alike_but_for_their_identifiers() {
    for major in spread() {
        let identifier = || {
            let mut cluster = Cluster::builder(major).init();
            // Which it does only if all of its files agree on who it is.
            cluster.start();
            cluster.psql("SELECT system_identifier FROM pg_control_system()")
        };
        assert_ne!(identifier(), identifier());
    }
}

#[test]
fn fingerprints_see_changes_and_survive_a_crash() {
    for major in spread() {
        let mut cluster = Cluster::builder(major).init();
        cluster.start();
        cluster.pgbench_init(1);
        cluster.psql("CREATE DATABASE \"Other db\"");
        cluster.psql_in(
            "Other db",
            "CREATE SCHEMA \"S\"; CREATE TABLE \"S\".\"T t\" AS SELECT generate_series(1, 1000) n",
        );
        let before = cluster.fingerprint();
        assert!(before["Other db.S.T t"].starts_with("1000:"), "{before:?}");
        assert!(before["postgres.public.pgbench_accounts"].starts_with("100000:"), "{before:?}");
        assert_eq!(cluster.fingerprint(), before);

        cluster.pgbench(2, Work::Transactions(100));
        let after = cluster.fingerprint();
        assert!(after["postgres.public.pgbench_history"].starts_with("200:"), "{after:?}");
        assert_ne!(after["postgres.public.pgbench_accounts"], before["postgres.public.pgbench_accounts"]);

        cluster.kill9();
        assert!(!cluster.running());
        cluster.start();
        assert!(cluster.log().contains("automatic recovery in progress"), "{}", cluster.log());
        assert_eq!(cluster.fingerprint(), after);
        cluster.amcheck();
        cluster.stop(Mode::Fast);
    }
}

#[test]
fn amcheck_finds_a_damaged_page() {
    for major in spread() {
        let mut cluster = Cluster::builder(major).checksums(false).init();
        cluster.start();
        cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 5000) n; CREATE INDEX i ON t (n)");
        let index = cluster.data_dir().join(cluster.psql("SELECT pg_relation_filepath('i')"));
        cluster.stop(Mode::Fast);
        let mut bytes = fs::read(&index).unwrap();
        // Two neighbouring line pointers of the first leaf change places: the order of keys is wrong, nothing else.
        let (one, other) = (8192 + 24 + 40, 8192 + 24 + 44);
        for byte in 0..4 {
            bytes.swap(one + byte, other + byte);
        }
        fs::write(&index, bytes).unwrap();
        cluster.start();
        let found = std::panic::catch_unwind(|| cluster.amcheck());
        assert!(found.is_err(), "amcheck of {major} is content with a damaged index");
    }
}

#[test]
fn load_runs_in_the_background_until_stopped() {
    let mut cluster = Cluster::builder(15).init();
    cluster.start();
    cluster.pgbench_init(1);
    let load = cluster.load(2);
    while cluster.psql("SELECT count(*) >= 10 FROM pgbench_history") == "f" {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    load.stop();
    assert_eq!(cluster.psql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nobody'"), "0");
}

#[test]
fn a_copied_data_directory_is_adopted_beside_the_original() {
    let mut cluster = Cluster::builder(15).init();
    cluster.start();
    cluster.pgbench_init(1);
    let before = cluster.fingerprint();
    cluster.stop(Mode::Immediate);
    let sandbox = Sandbox::new();
    let copy = sandbox.root().join("copy");
    let status = support::account::command("/bin/cp").arg("-a").arg(cluster.data_dir()).arg(&copy).status().unwrap();
    assert!(status.success());
    support::tree::assert_same(cluster.data_dir(), &copy, |_| false);

    let mut adopted = Cluster::adopt(15, &copy);
    adopted.override_setting("cluster_name", "copy");
    cluster.start();
    adopted.start();
    assert_eq!(adopted.psql("SHOW cluster_name"), "copy");
    assert_eq!(adopted.fingerprint(), before);
    assert_eq!(cluster.switch_wal().len(), 24);
    adopted.stop(Mode::Fast);
    drop(adopted);
    assert!(copy.exists(), "an adopted directory belongs to somebody else");
}

#[test]
fn a_server_that_refuses_to_start_is_reported_with_its_log() {
    let mut cluster = Cluster::builder(15).init();
    cluster.configure("shared_buffers", "many");
    let refusal = cluster.try_start().unwrap_err();
    assert!(refusal.contains("ended while starting"), "{refusal}");
    assert!(cluster.log_tail().contains("invalid value for parameter \"shared_buffers\""), "{}", cluster.log());
}

#[test]
fn servers_and_the_command_do_not_run_as_root() {
    let out = support::account::command("/usr/bin/id").arg("-un").output().unwrap();
    let name = String::from_utf8(out.stdout).unwrap();
    assert_ne!(name.trim(), "root");
    assert!(Binaries::find(15).own("postgres").starts_with("/usr/lib/postgresql/15/bin"));
}

#[test]
fn a_sandbox_runs_the_built_binary_with_an_empty_environment_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    sandbox.write_config(&[("global", &[("log-path", "/elsewhere")]), ("main", &[("pg1-path", "/data")])]);
    let config = fs::read_to_string(sandbox.config()).unwrap();
    assert!(config.contains("log-path=/elsewhere\n") && !config.contains("log-path=/tmp"), "{config}");
    assert!(config.ends_with("\n[main]\npg1-path=/data\n"), "{config}");
    assert!(sandbox.binary().ends_with("pgkeep") && support::account::may(sandbox.binary(), "-x"));

    let mut environment = support::account::command("/usr/bin/env");
    environment.env("EXTRA", "1");
    let run = sandbox.finish(environment);
    let mut names: Vec<_> = run.stdout.lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    assert_eq!((names, run.code), (vec!["EXTRA", "HOME", "LC_ALL", "PATH", "TZ"], Some(0)));

    let root = sandbox.root().to_owned();
    assert_eq!(sandbox.mounts(), Vec::<std::path::PathBuf>::new());
    drop(sandbox);
    assert!(!root.exists() || std::env::var_os("PGKEEP_TEST_KEEP").is_some());
}
