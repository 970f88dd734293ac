//! Items 1 to 10: from an empty machine to the first restore, and what monitoring reads.

use std::fs;

use serde_json::Value;
use support::{Mode, world};

use crate::rig::{Guide, item, no_warning, says};

/// Items 1 to 5.
pub(super) fn install(guide: &mut Guide) {
    item("1", "help shows the value in force");
    says(
        &guide.shell_expect(0, "PGBACKREST_LOG_PATH=/x pgbackrest help backup log-path"),
        &["current      /x", "PGBACKREST_LOG_PATH"],
    );

    item("2", "repository, archive_command, and an option for one command");
    guide.archive();
    guide.set("global:archive-push", "compress-level", "3");
    let level =
        |command: &str| guide.shell_expect(0, &format!("pgbackrest --stanza=demo help {command} compress-level"));
    says(&level("archive-push"), &["current      3"]);
    assert!(!level("backup").says("current      3"));

    item("3", "retention and encryption");
    guide.set("global", "repo1-retention-full", "2");
    guide.set("global", "repo1-cipher-type", "aes-256-cbc");
    guide.set("global", "repo1-cipher-pass", "zWaf6XtpjIVZC5444yXB+cgFDFl7MxGlgkZSaoPvTGirhPygu4jOKOXf9LO4vjfO");

    item("4", "stanza-create, twice");
    guide.cluster.start();
    says(&guide.ok("stanza-create"), &["stanza-create command end: completed successfully"]);
    let run = guide.ok("stanza-create");
    says(&run, &["already exists", "stanza-create command end: completed successfully"]);
    no_warning(&run);

    item("5", "check");
    let run = guide.ok("check");
    let archived = |m: &&&str| m.contains("successfully archived to") && m.ends_with("on repo1");
    assert_eq!(run.messages("INFO").iter().filter(archived).count(), 1, "{run}");
    // What it can be given is honoured where it stands: the server's own command did not say so.
    let segment = guide.archive_now();
    let wal = guide.cluster.data_dir().join("pg_wal").join(&segment);
    let run = guide.ok(&format!("archive-push {}", wal.display()));
    says(&run, &["archive-push command begin", "--compress-level=3", "already exists"]);

    item("5", "check fails if WAL does not arrive");
    let command = guide.cluster.psql("SHOW archive_command");
    let set = |command: &str| {
        guide.cluster.configure("archive_command", command);
        guide.cluster.psql("SELECT pg_reload_conf()");
        guide.cluster.wait_for(&format!("SELECT current_setting('archive_command') = $g${command}$g$"));
    };
    set("false # pgbackrest");
    says(&guide.expect(82, "--archive-timeout=.1 check"), &["[082]", "before the 100 ms timeout"]);
    set(&command);
    guide.ok("check");
}

/// Items 6 to 8.
pub(super) fn backups(guide: &mut Guide) {
    guide.cluster.psql("CREATE TABLE kept AS SELECT n, repeat('x', 100) t FROM generate_series(1, 20000) n");
    item("6", "the first backup is a full, with start-fast");
    guide.set("global", "start-fast", "y");
    let run = guide.ok("backup");
    assert_eq!(run.messages("WARN"), ["no prior backup exists, incr backup has been changed to full"], "{run}");
    says(&run, &["--start-fast", "backup command end: completed successfully"]);
    // The level is for another command.
    assert!(!run.says("--compress-level"), "{run}");
    let full = world::label(&run);
    assert!(full.ends_with('F') && full.len() == 16, "{full}");
    let log = guide.cluster.log();
    assert!(
        ["immediate", "fast"].iter().any(|how| log.contains(&format!("checkpoint starting: {how} force wait"))),
        "{log}"
    );

    item("7", "a differential");
    let run = guide.ok("--type=diff backup");
    no_warning(&run);
    let diff = world::label(&run);
    assert!(diff.starts_with(&format!("{full}_")) && diff.ends_with('D') && diff.len() == 33, "{diff}");

    item("8", "info, all of its text");
    assert_eq!(guide.shell_expect(0, "pgbackrest info").stdout, text_of(&guide.info("")));
}

/// What `info` shows of a stanza with sealed backups, made of its JSON.
fn text_of(stanza: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text: {stanza:#}")).to_owned();
    let size = |value: &Value| pgkeep_engine::size::human_size(value.as_u64().expect("a size"));
    let time = |value: &Value| {
        let time = jiff::Timestamp::from_second(value.as_i64().expect("a time")).expect("a time of our days");
        // The tests' host has this zone.
        time.strftime("%Y-%m-%d %H:%M:%S+00").to_string()
    };
    let archive = &stanza["archive"][0];
    let version = text(&stanza["db"][0]["version"]);
    let mut out = format!(
        "stanza: demo\n    status: ok\n    cipher: aes-256-cbc\n\n    db (current)\n        \
         wal archive min/max ({version}): {}/{}\n",
        text(&archive["min"]),
        text(&archive["max"]),
    );
    for backup in stanza["backup"].as_array().expect("a list") {
        let (stamp, wal, info) = (&backup["timestamp"], &backup["archive"], &backup["info"]);
        out += &format!(
            "\n        {} backup: {}\n            timestamp start/stop: {} / {}\n            wal start/stop: {} / {}\n            \
             database size: {}, database backup size: {}\n            repo1: backup set size: {}, backup size: {}\n",
            text(&backup["type"]),
            text(&backup["label"]),
            time(&stamp["start"]),
            time(&stamp["stop"]),
            text(&wal["start"]),
            text(&wal["stop"]),
            size(&info["size"]),
            size(&info["delta"]),
            size(&info["repository"]["size"]),
            size(&info["repository"]["delta"]),
        );
        if let Some(reference) = backup["reference"].as_array() {
            let labels: Vec<_> = reference.iter().map(text).collect();
            out += &format!("            backup reference list: {}\n", labels.join(", "));
        }
    }
    out
}

/// Item 9.
pub(super) fn disaster(guide: &mut Guide) {
    item("9", "pg_control is lost, the directory emptied and restored");
    guide.cluster.stop(Mode::Fast);
    let data = guide.cluster.data_dir().to_owned();
    fs::remove_file(data.join("global/pg_control")).unwrap();
    assert!(guide.cluster.try_start().is_err(), "it starts without pg_control");
    // Not empty yet.
    says(&guide.expect(40, "restore"), &["[040]"]);
    guide.shell_expect(0, &format!("find {} -mindepth 1 -delete", data.display()));
    guide.ok("restore");
    guide.cluster.start();
    guide.cluster.wait_promoted();
    assert_eq!(guide.cluster.psql("SELECT count(*), sum(n) FROM kept"), "20000|200010000");
}

/// Item 10.
pub(super) fn monitor(guide: &Guide) {
    item("10", "the server reads info into a table");
    let line = guide.archive_command().replace("--stanza=demo archive-push %p", "--output=json info");
    guide.cluster.psql("CREATE SCHEMA monitor; CREATE TABLE monitor.info (data jsonb)");
    guide.cluster.psql(&format!("COPY monitor.info (data) FROM PROGRAM '{line}'"));
    let info = guide.info("");
    let (stop, max) = (&info["backup"][1]["timestamp"]["stop"], info["archive"][0]["max"].as_str().unwrap());
    let sql = "SELECT stanza->>'name', stanza->'backup'->-1->'timestamp'->>'stop', stanza->'archive'->-1->>'max' \
               FROM monitor.info, jsonb_array_elements(data) AS stanza";
    assert_eq!(guide.cluster.psql(sql), format!("demo|{stop}|{max}"));

    item("10", "jq does");
    let jq = |filter: &str| {
        let line = format!("pgbackrest --output=json --stanza=demo info | jq -r '.[0] | {filter}'");
        guide.shell_expect(0, &line).stdout
    };
    assert_eq!(jq(".backup[-1] | .timestamp.stop"), format!("{stop}\n"));
    assert_eq!(jq(".archive[-1].max"), format!("{max}\n"));
}
