//! Items 17 to 20: restores over what is there, of one database, and to every kind of target.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use support::{Cluster, Mode, account, world};

use crate::rig::{Guide, item, says};

/// Item 17.
pub(super) fn delta(guide: &mut Guide) {
    item("17", "a delta restore keeps what is right, removes what is foreign, and ends with pg_control");
    guide.cluster.stop(Mode::Fast);
    let data = guide.cluster.data_dir().to_owned();
    let foreign = data.join("base/foreign");
    fs::write(&foreign, "x").unwrap();
    account::give(&foreign);
    let kept = data.join("PG_VERSION");
    let inode = fs::metadata(&kept).unwrap().ino();
    let run = guide.ok("--delta --log-level-console=detail restore");
    assert!(!foreign.exists());
    assert_eq!(fs::metadata(&kept).unwrap().ino(), inode, "a file that was right has been made anew");
    says(&run, &[&format!("remove '{}'", foreign.display()), &format!("restore file {} (", kept.display())]);
    let line = run.stdout.lines().find(|line| line.contains(&format!("{} (", kept.display()))).unwrap();
    assert!(line.ends_with(", kept)"), "{line}");
    let changed = |path: &Path| {
        let facts = fs::metadata(path).unwrap();
        (facts.ctime(), facts.ctime_nsec())
    };
    let control = data.join("global/pg_control");
    let last = support::tree::files(&data).into_keys().max_by_key(|path| changed(path)).unwrap();
    assert_eq!(changed(&last), changed(&control), "{} is later than pg_control", last.display());
    guide.cluster.start();
    guide.cluster.wait_promoted();
    assert_eq!(guide.cluster.psql("SELECT t FROM kept WHERE n IN (777, 778) ORDER BY n"), "y\nz");
}

/// Item 18.
pub(super) fn one_database(guide: &mut Guide) {
    item("18", "one of two databases comes back, of an incremental");
    for name in ["test1", "test2"] {
        guide.cluster.psql(&format!("CREATE DATABASE {name}"));
        guide.cluster.psql_in(name, "CREATE TABLE t AS SELECT n, repeat('x', 200) FROM generate_series(1, 5000) n");
    }
    let incr = guide.backup("--type=incr");
    let oid = guide.cluster.psql("SELECT oid FROM pg_database WHERE datname = 'test1'");
    let table = guide.cluster.psql_in("test1", "SELECT pg_relation_filepath('t')");
    let path = guide.cluster.data_dir().join(&table);
    guide.cluster.stop(Mode::Fast);
    let run = guide.ok("--delta --db-include=test2 --type=immediate --target-action=promote restore");
    says(&run, &[&format!("restore backup set {incr}"), &format!("'test1' ({oid})")]);
    let facts = fs::metadata(&path).unwrap();
    assert!(facts.len() > 1_000_000 && facts.blocks() == 0, "not a file of zeros without room: {facts:?}");
    guide.cluster.start();
    guide.cluster.wait_promoted();
    assert_eq!(guide.cluster.psql_in("test2", "SELECT count(*) FROM t"), "5000");
    assert!(guide.cluster.config().dbname("test1").connect(postgres::NoTls).is_err(), "test1 can be used");
    guide.cluster.psql("DROP DATABASE test1");
    assert_eq!(guide.cluster.psql("SELECT count(*) FROM pg_database WHERE datname ~ '^test'"), "1");
    guide.cluster.psql("DROP DATABASE test2");
}

/// Item 19.
pub(super) fn point_in_time(guide: &mut Guide) {
    item("19", "a table is dropped, and a backup made after that");
    let before = guide.backup("--type=diff");
    guide.cluster.psql("CREATE TABLE important_table AS SELECT 'Important Data'::text message");
    let time = guide.time();
    guide.cluster.psql("DROP TABLE important_table");
    let after = guide.backup("--type=incr");
    guide.archive_now();
    guide.cluster.stop(Mode::Fast);

    item("19", "that backup is newer than the target: refused, and by the server if forced");
    let to = format!("--delta --type=time --target=\"{time}\" --target-action=promote");
    says(&guide.expect(75, &format!("{to} --set={after} restore")), &["[075]", &after]);
    let auto = guide.cluster.data_dir().join("postgresql.auto.conf");
    guide.ok(&format!("{to} --set={after} --target-timeline=current --force restore"));
    // As a hot standby it may answer before the end of the archive is reached.
    if guide.cluster.try_start().is_ok() {
        assert!(guide.cluster.wait_end(), "it came up with other than was asked for");
    }
    let log = guide.cluster.log();
    assert!(log.contains("recovery ended before configured recovery target was reached"), "{log}");

    item("19", "without a set an earlier one is chosen, and the table is back");
    let run = guide.restore(&to);
    says(&run, &[&format!("restore backup set {before}")]);
    let written = fs::read_to_string(&auto).unwrap();
    assert!(
        written.contains("recovery_target_time = '") && written.contains("recovery_target_action = 'promote'"),
        "{written}"
    );
    assert_eq!(guide.cluster.psql("SELECT message FROM important_table"), "Important Data");
}

/// Rows of the table of marks.
fn rows(cluster: &Cluster) -> String {
    cluster.psql("SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), 'none') FROM mark")
}

/// Item 20.
pub(super) fn every_target(guide: &Guide) {
    item("20", "marks: before the second there is a restore point, the third is behind all");
    guide.cluster.psql("CREATE TABLE mark (n int)");
    let full = guide.backup("--type=full");
    // A time target is behind the end of a backup, by whole seconds.
    guide.time();
    guide.cluster.psql("INSERT INTO mark VALUES (1)");
    guide.cluster.psql("SELECT pg_create_restore_point('before the second')");
    let mut client = guide.cluster.connect();
    let mut second = client.transaction().unwrap();
    second.execute("INSERT INTO mark VALUES (2)", &[]).unwrap();
    // The commit's own record begins where the log ends before it.
    let row = second.query_one("SELECT pg_current_xact_id()::text, pg_current_wal_insert_lsn()::text", &[]).unwrap();
    let (xid, lsn): (String, String) = (row.get(0), row.get(1));
    second.commit().unwrap();
    let time = guide.cluster.psql(&format!("SELECT pg_xact_commit_timestamp('{xid}'::xid)"));
    guide.cluster.psql("INSERT INTO mark VALUES (3)");
    guide.archive_now();

    let promoted = |args: &str, expected: &str| {
        item("20", args);
        let mut cluster = guide.beside(&format!("{args} --target-action=promote"));
        cluster.start();
        cluster.wait_promoted();
        assert_eq!(rows(&cluster), expected, "{args}\n{}", cluster.log_tail());
        cluster.stop(Mode::Fast);
    };
    promoted("--type=immediate", "none");
    promoted("--type=name --target='before the second'", "1");
    for (kind, target) in [("time", &time), ("xid", &xid), ("lsn", &lsn)] {
        promoted(&format!("--type={kind} --target='{target}'"), "1 2");
        promoted(&format!("--type={kind} --target='{target}' --target-exclusive"), "1");
    }
    promoted(&format!("--type=name --target='before the second' --set={full} --target-timeline=current"), "1");
    // A name is one place in the log: there is nothing to include in it.
    says(&guide.expect(31, "--type=name --target=x --target-exclusive restore"), &["target-exclusive"]);

    item("20", "a standby, then its settings preserved, then none");
    let mut cluster = guide.beside("--type=standby");
    cluster.start();
    cluster.wait_for("SELECT count(*) = 3 FROM mark");
    assert_eq!(cluster.psql("SELECT pg_is_in_recovery()"), "t");
    cluster.stop(Mode::Fast);
    let file = |name: &str| guide.side().join(name);
    let auto = fs::read_to_string(file("postgresql.auto.conf")).unwrap() + "work_mem = '7MB'\n";
    fs::write(file("postgresql.auto.conf"), &auto).unwrap();
    let mut cluster = guide.beside("--type=preserve");
    assert_eq!(fs::read_to_string(file("postgresql.auto.conf")).unwrap(), auto);
    assert!(file("standby.signal").exists());
    cluster.start();
    assert_eq!(cluster.psql("SELECT pg_is_in_recovery(), current_setting('work_mem')"), "t|7MB");
    cluster.stop(Mode::Fast);
    drop(guide.beside("--type=none"));
    assert!(["standby.signal", "recovery.signal"].iter().all(|name| !file(name).exists()));
    assert!(file("backup_label").exists(), "what makes the server replay WAL is there all the same");

    item("20", "a timeline that the backup is not on");
    let to = format!("--pg1-path={} --delta --set={full} --target-timeline=1 restore", guide.side().display());
    says(&guide.expect(58, &to), &["[058]", &full]);
    assert_eq!(world::label(&guide.ok("--type=full backup")).len(), 16);
}
