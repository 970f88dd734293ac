//! Items 11 to 16: what backups hold, what is noted of them, and which of them stay.

use serde_json::json;
use support::{Run, world};

use crate::rig::{Guide, item, no_warning, says};

/// Items 11 and 12. The options have no effect, which the command says; what they are for is so anyway.
pub(super) fn bundles_and_blocks(guide: &mut Guide) {
    item("11", "repo1-bundle=y: a full of few files");
    guide.set("global", "repo1-bundle", "y");
    let objects = |guide: &Guide| support::tree::files(&guide.sandbox.repo().join("packs")).len();
    let before = objects(guide);
    let run = guide.ok("--type=full backup");
    says(&run, &["repo1-bundle"]);
    no_warning(&run);
    let files: usize = guide.cluster.psql("SELECT count(*) FROM pg_class WHERE relfilenode > 0").parse().unwrap();
    let made = objects(guide) - before;
    assert!(made < 10 && files > 50, "{made} objects for {files} files");

    item("12", "repo1-block=y: an incremental after a small change is small");
    guide.set("global", "repo1-block", "y");
    guide.cluster.psql("UPDATE kept SET t = 'y' WHERE n = 777");
    let label = guide.backup("--type=incr");
    let info = guide.info("");
    let backup = info["backup"].as_array().unwrap().iter().find(|b| b["label"] == label).expect("it is listed").clone();
    let (repository, table) = (&backup["info"]["repository"], guide.cluster.psql("SELECT pg_relation_size('kept')"));
    // The table's file has changed, and is far larger than what was stored of all files.
    assert!(repository["delta"].as_u64().unwrap() * 4 < table.parse().unwrap(), "{backup:#}, table {table}");
    // Where readers take sizes from; pgBackRest leaves it out and has a map instead.
    assert!(repository["size"].is_u64() && repository.get("size-map").is_none(), "{backup:#}");
}

/// Item 13.
pub(super) fn annotations(guide: &Guide) {
    item("13", "notes are given, shown and changed");
    let before = guide.labels();
    let run = guide.ok("--annotation=source=\"demo backup\" --annotation=key=value --type=full backup");
    let label = world::label(&run);
    let text = guide.shell_expect(0, &format!("pgbackrest --stanza=demo --set={label} info"));
    says(&text, &["annotation(s)\n                key: value\n                source: demo backup\n"]);
    guide.ok(&format!("--set={label} --annotation=key= --annotation=new_key=new_value annotate"));
    let text = guide.shell_expect(0, &format!("pgbackrest --stanza=demo --set={label} info"));
    says(&text, &["annotation(s)\n                new_key: new_value\n                source: demo backup\n"]);
    let info = guide.info(&format!("--set={label}"));
    assert_eq!(info["backup"][0]["annotation"], json!({"new_key": "new_value", "source": "demo backup"}));

    item("14", "with a third full the first goes, and what depends on it");
    gone(&run, &before[..2]);
    assert_eq!(guide.labels(), [&before[2..], &[label]].concat());
}

/// Asserts that a run has told of each of these that it expired.
fn gone(run: &Run, labels: &[String]) {
    for label in labels {
        let said = run.messages("INFO").iter().any(|m| m.contains("expire") && m.contains(label.as_str()));
        assert!(said, "{label} has not expired\n{run}");
    }
}

/// Items 14 to 16.
pub(super) fn retention(guide: &mut Guide) {
    item("14", "with a fourth, the second, and its WAL");
    let before = guide.labels();
    let run = guide.ok("--type=full backup");
    gone(&run, &before[..2]);
    says(&run, &["remove archive, start = "]);
    let fourth = world::label(&run);
    assert_eq!(guide.labels(), [&before[2], &fourth].map(String::clone));
    let info = guide.info("");
    let start = |at: usize| info["backup"][at]["archive"]["start"].as_str().unwrap().to_owned();
    assert_eq!(guide.archived().first(), Some(&start(0)), "WAL before the oldest backup");

    item("15", "repo1-retention-diff=1: with a second differential the first goes, and its incremental");
    guide.set("global", "repo1-retention-diff", "1");
    let diff = guide.backup("--type=diff");
    guide.cluster.psql("UPDATE kept SET t = 'z' WHERE n = 778");
    let incr = guide.backup("--type=incr");
    assert!(diff.ends_with('D') && incr.ends_with('I'));
    // Between this and the next, which nothing needs but who wants to go there.
    let between = guide.archive_now();
    guide.archive_now();
    let run = guide.ok("--type=diff backup");
    gone(&run, &[diff, incr]);
    let last = world::label(&run);
    assert_eq!(guide.labels(), [&before[2], &fourth, &last].map(String::clone));
    guide.unset("global", "repo1-retention-diff");

    item("16", "expire by hand, for WAL back to the last differential; first dry");
    let archived = guide.archived();
    assert!(archived.contains(&between));
    let expire = "--repo1-retention-archive-type=diff --repo1-retention-archive=1 expire";
    let run = guide.ok(&format!("--dry-run {expire}"));
    says(&run, &["[DRY-RUN]", "remove archive"]);
    assert_eq!((guide.archived(), guide.labels().len()), (archived.clone(), 3));
    guide.ok(expire);
    let left = guide.archived();
    assert_eq!(guide.labels().len(), 3);
    let info = guide.info("");
    let ranges: Vec<_> = info["backup"].as_array().unwrap().iter().map(|b| &b["archive"]).collect();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let from = text(&ranges[2]["start"]);
    let needed =
        |name: &String| *name >= from || ranges.iter().any(|r| (text(&r["start"])..=text(&r["stop"])).contains(name));
    let expected: Vec<_> = archived.iter().filter(|name| needed(name)).cloned().collect();
    assert_eq!(left, expected, "of {archived:?}");
    assert!(!left.contains(&between));
    guide.shell_expect(0, "pgbackrest --stanza=demo verify");

    item("16", "what is left restores: the older ones to themselves");
    for label in [&before[2], &fourth] {
        let mut cluster = guide.beside(&format!("--set={label} --type=immediate --target-action=promote"));
        cluster.start();
        cluster.wait_promoted();
        assert_eq!(cluster.psql("SELECT count(*) FROM kept"), "20000");
        cluster.stop(support::Mode::Fast);
    }
}
