//! Items 25 to 31: the program on several processes, stopped, and beside standbys.

use std::fs;

use support::{Cluster, Mode, account, wait_until};

use crate::{
    rig::{Guide, item, no_warning, says},
    whole,
};

#[test]
fn items_25_to_31_beside_standbys() {
    for major in whole() {
        println!("== PostgreSQL {major}");
        let mut guide = Guide::prepared(Cluster::builder(major));
        guide.cluster.psql("CREATE TABLE seen AS SELECT 0 n");
        processes(&guide);
        stopped(&guide);
        let standby = standby(&guide);
        let (mut standby, file) = streaming(&mut guide, standby);
        from_standby(&mut guide, &standby);
        asynchronous(&mut guide, &mut standby, &file);
    }
}

/// Item 25.
fn processes(guide: &Guide) {
    for processes in [1, 3] {
        item("25", &format!("a full with process-max={processes}"));
        let run = guide.ok(&format!("--process-max={processes} --type=full backup"));
        says(&run, &[&format!("--process-max={processes}")]);
        no_warning(&run);
    }
}

/// Item 26. What runs on one host is stopped on it.
fn stopped(guide: &Guide) {
    let label = guide.labels().pop().expect("a backup");
    for scope in ["--stanza=demo", ""] {
        let name = if scope.is_empty() { "all.stop" } else { "demo.stop" };
        item("26", &format!("stop, for {name}"));
        let control = |command: &str| guide.shell_expect(0, &format!("pgbackrest {scope} {command}"));
        no_warning(&control("stop"));
        says(&control("stop"), &["WARN: there is a stop file"]);
        let annotate = format!("--set={label} --annotation=a=b annotate");
        for command in ["backup", "expire", &annotate] {
            says(&guide.expect(62, command), &["[062]", name]);
        }
        no_warning(&control("start"));
        says(&control("start"), &["WARN: there is no stop file"]);
    }
    guide.ok("backup");

    item("26", "stop --force ends a backup");
    guide.cluster.psql("CREATE TABLE large AS SELECT n, md5(n::text) FROM generate_series(1, 100000) n; CHECKPOINT");
    // It would take minutes.
    let mut backup = guide.spawn("--log-level-console=detail --io-limit=512KB --type=full backup");
    backup.wait_for("backup file ");
    let before = guide.labels();
    guide.ok("--force stop");
    let run = backup.wait();
    assert_eq!(run.code, Some(63), "{run}");
    says(&run, &["[063]"]);
    guide.ok("start");
    assert_eq!(guide.labels(), before);
    guide.ok("check");
}

/// Item 27.
fn standby(guide: &Guide) -> Cluster {
    item("27", "a hot standby follows the archive");
    let mut standby = guide.beside("--type=standby");
    standby.start();
    assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "t");
    guide.cluster.psql("INSERT INTO seen VALUES (27)");
    guide.archive_now();
    standby.wait_for("SELECT count(*) = 1 FROM seen WHERE n = 27");

    item("27", "check on it switches no WAL");
    let to = |name: &str, value: &str| format!("PGBACKREST_PG1_{name}={value}");
    let there = [
        to("PATH", &standby.data_dir().display().to_string()),
        to("PORT", &standby.port().to_string()),
        to("SOCKET_PATH", &standby.socket_dir().display().to_string()),
    ];
    let run =
        guide.shell_expect(0, &format!("{} pgbackrest --stanza=demo --log-level-console=info check", there.join(" ")));
    says(&run, &["standby"]);
    assert!(!run.says("successfully archived"), "{run}");
    standby.stop(Mode::Fast);
    standby
}

/// Item 28. The standby has a host of its own: other files of configuration, locks, spool, logs.
fn streaming(guide: &mut Guide, standby: Cluster) -> (Cluster, String) {
    item("28", "recovery-option=primary_conninfo, and it streams");
    let conninfo = format!(
        "primary_conninfo=host={} port={} user=postgres",
        guide.cluster.socket_dir().display(),
        guide.cluster.port()
    );
    let host = guide.sandbox.dir("standby-host");
    let own = |name: &str| account::private_dir(&host.join(name)).display().to_string();
    let (locks, logs, spool) = (own("lock"), own("log"), own("spool"));
    let file = guide.other_file(
        "standby.conf",
        &[
            ("global", "lock-path", &locks),
            ("global", "log-path", &logs),
            ("global", "spool-path", &spool),
            ("global", "log-level-file", "detail"),
            ("global", "archive-async", "y"),
            ("demo", "pg1-path", &standby.data_dir().display().to_string()),
            ("demo", "recovery-option", &conninfo),
        ],
    );
    guide.shell_expect(0, &format!("PGBACKREST_CONFIG={file} pgbackrest --stanza=demo --delta --type=standby restore"));
    let auto = fs::read_to_string(standby.data_dir().join("postgresql.auto.conf")).unwrap();
    assert!(auto.contains("primary_conninfo = 'host="), "{auto}");
    drop(standby);
    let mut standby = guide.adopt(&guide.side());
    standby.start();
    wait_until("streaming", || {
        guide.cluster.psql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
    });
    // Of a segment that is not archived.
    guide.cluster.psql("INSERT INTO seen VALUES (28)");
    standby.wait_for("SELECT count(*) = 1 FROM seen WHERE n = 28");
    (standby, logs)
}

/// Item 30.
fn asynchronous(guide: &mut Guide, standby: &mut Cluster, standby_logs: &str) {
    item("30", "archive-async: WAL is pushed ahead");
    guide.set("global", "archive-async", "y");
    guide.set("global", "log-level-file", "detail");
    let log = |dir: &std::path::Path, direction: &str| {
        fs::read_to_string(dir.join(format!("demo-archive-{direction}-async.log"))).unwrap_or_default()
    };
    // The archiver waits for the first; when that is done, the rest has been done with it.
    let switch = |from: u32| {
        for n in from..from + 5 {
            guide.cluster.psql(&format!("INSERT INTO seen VALUES ({n})"));
            guide.cluster.switch_wal();
        }
    };
    switch(3000);
    guide.archive_now();
    let pushed = log(&guide.sandbox.logs(), "push");
    assert!(pushed.contains("archive-push:async command begin"), "{pushed}");
    assert!(pushed.matches("DETAIL: pushed WAL file '").count() >= 5, "{pushed}");

    item("30", "cut off from its primary, a standby fetches ahead");
    standby.override_setting("primary_conninfo", "host=/nowhere");
    standby.stop(Mode::Fast);
    switch(3010);
    guide.archive_now();
    standby.start();
    standby.wait_for("SELECT count(*) = 1 FROM seen WHERE n = 3014");
    let got = log(std::path::Path::new(standby_logs), "get");
    assert!(got.contains("archive-get:async command begin") && got.contains("DETAIL: found 0000"), "{got}");
    standby.stop(Mode::Fast);
}

/// Item 31. The rest of it: "backup::standby".
fn from_standby(guide: &mut Guide, standby: &Cluster) {
    item("31", "backup-standby: most files come from the standby");
    guide.set("demo", "pg2-path", &standby.data_dir().display().to_string());
    guide.set("demo", "pg2-port", &standby.port().to_string());
    guide.set("demo", "pg2-socket-path", &standby.socket_dir().display().to_string());
    guide.set("demo", "pg2-user", "postgres");
    guide.set("global", "backup-standby", "y");
    let run = guide.ok("--type=full --log-level-console=detail backup");
    says(&run, &["standby"]);
    guide.unset("global", "backup-standby");
    for name in ["path", "port", "socket-path", "user"] {
        guide.unset("demo", &format!("pg2-{name}"));
    }
}
