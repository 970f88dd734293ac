//! `repo-stats` of a real cluster's repository agrees with the directory, with `info` and with the files backed up.

use serde_json::Value;
use std::fs;
use std::path::Path;
use support::world::{STANZA, World};

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number {pointer} in {value}"))
}

/// Bytes of all files below a directory but those that are being written.
fn bytes_below(dir: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            t if t.is_dir() && entry.file_name() == ".tmp" => {}
            t if t.is_dir() => sum += bytes_below(&entry.path()),
            _ => sum += entry.metadata().unwrap().len(),
        }
    }
    sum
}

#[test]
fn it_counts_what_is_there() {
    let world = World::new(15);
    world.cluster.psql(
        "create table t as select g as id, md5(g::text) as a, repeat(md5((g / 7)::text), 3) as b from generate_series(1, 40000) g;
         create index on t (a)",
    );
    let full = world.backup("full");
    world.cluster.psql("update t set a = md5(a) where id % 400 = 0");
    let incr = world.backup("incr");
    // Nothing may come into the archive while it is counted.
    world.archive_now();
    world.set_archive_command("false");
    let stats = |args: &[&str]| {
        let mut all = vec!["--output=json"];
        all.extend(args);
        all.push("repo-stats");
        let mut repos = world.sandbox.run_ok(all).json();
        repos.get_mut(0).map(Value::take).expect("one repository")
    };
    let all = stats(&[]);
    let repo = world.sandbox.repo();
    assert_eq!(number(&all, "/bytes"), bytes_below(&repo), "{all}");
    for prefix in ["packs", "idx", "refs", "wal", "backups"] {
        let pointer = format!("/object/{prefix}/bytes");
        assert_eq!(number(&all, &pointer), bytes_below(&repo.join(prefix)), "{prefix}");
    }
    assert_eq!(number(&all, "/pack/bytes"), bytes_below(&repo.join("packs")));
    assert_eq!(number(&all, "/selection/wal-bytes"), bytes_below(&repo.join("wal")));
    let stored = number(&all, "/pack/chunk/all/stored-bytes");
    assert_eq!(stored + number(&all, "/pack/overhead-bytes"), number(&all, "/pack/bytes"));
    // All of it belongs to the two backups.
    assert_eq!(number(&all, "/pack/dead-chunk/chunks"), 0, "{all}");
    assert_eq!(number(&all, "/pack/live-chunk/stored-bytes"), stored);
    assert_eq!(all["selection"]["chunk"], all["pack"]["chunk"]);
    let list = all["selection"]["backup"].as_array().expect("a list");
    assert_eq!(list.iter().map(|b| b["label"].as_str().unwrap()).collect::<Vec<_>>(), [&full, &incr]);
    for (told, known) in list.iter().zip(world.backups()) {
        assert_eq!(number(told, "/file-bytes"), number(&known, "/info/size"), "{told}");
        assert_eq!(number(told, "/added-bytes"), number(&known, "/info/repository/delta"), "{told}");
        let inside = number(told, "/chunk/plain-bytes") + number(told, "/inline-bytes") + number(told, "/zero-bytes");
        assert!(inside > 0 && told["read-amplification"].as_f64().unwrap() < 3.0, "{told}");
        assert!(number(told, "/references") >= number(told, "/chunk/chunks"), "{told}");
    }
    // The increment shares nearly everything.
    assert!(all["selection"]["deduplication"].as_f64().unwrap() > 1.5, "{all}");
    assert!(all["selection"]["compression"].as_f64().unwrap() > 1.5, "{all}");
    // One backup, and one stanza.
    let one = stats(&[&format!("--set={incr}")]);
    assert_eq!(one["selection"]["backup"].as_array().unwrap().as_slice(), &list[1..]);
    assert!(one["pack"]["dead-chunk"].is_null());
    assert_eq!(stats(&[&format!("--stanza={STANZA}")])["selection"], all["selection"]);
    let text = world.sandbox.run_ok(["repo-stats"]);
    assert!(text.says(&incr) && text.says("deduplication"), "{text}");
    world.sandbox.run_expect(55, ["--stanza=other", "repo-stats"]);
    world.expect(75, ["--set=20200101-000000F", "repo-stats"]);
    // Without the increment's commit, what only it used is dead; nothing else of the full changes.
    for commit in fs::read_dir(repo.join("backups").join(STANZA)).unwrap().map(|e| e.unwrap().path()) {
        let content = fs::read(&commit).unwrap();
        fs::remove_file(&commit).unwrap();
        if stats(&[])["selection"]["backup"][0]["label"] == Value::String(full.clone()) {
            break;
        }
        fs::write(&commit, content).unwrap();
    }
    let rest = stats(&[]);
    assert_eq!(rest["selection"]["backup"].as_array().unwrap().as_slice(), &list[..1]);
    let dead = number(&rest, "/pack/dead-chunk/stored-bytes");
    assert!(dead > 0 && dead + number(&rest, "/pack/live-chunk/stored-bytes") == stored, "{rest}");
}
