//! `diff` agrees with two restores compared page by page, and with the catalogs.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use support::{World, pg};

const PAGE: usize = 8192;

/// Pages of every relation file below a restored data directory, by database directory and number: forks and segments as
/// they are named.
fn files(data: &Path) -> BTreeMap<(u32, String), Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![(0, data.join("global"))];
    for entry in fs::read_dir(data.join("base")).unwrap().map(Result::unwrap) {
        directories.extend(entry.file_name().to_str().and_then(|n| n.parse().ok()).map(|oid| (oid, entry.path())));
    }
    for (oid, directory) in directories {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with(|c: char| c.is_ascii_digit()) {
                found.insert((oid, name), fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

/// What a comparison of all pages says: by database and number, changed, added and removed ones.
fn expected(before: &Path, after: &Path) -> BTreeMap<(u64, u64), [u64; 3]> {
    let (before, after) = (files(before), files(after));
    let mut found: BTreeMap<(u64, u64), [u64; 3]> = BTreeMap::new();
    let empty = Vec::new();
    for key in before.keys().chain(after.keys().filter(|key| !before.contains_key(key))) {
        let (old, new) = (before.get(key).unwrap_or(&empty), after.get(key).unwrap_or(&empty));
        let changed = old.chunks(PAGE).zip(new.chunks(PAGE)).filter(|(a, b)| a != b).count() as u64;
        let (old, new) = ((old.len() / PAGE) as u64, (new.len() / PAGE) as u64);
        let number = key.1.split(['_', '.']).next().unwrap().parse().unwrap();
        let sum = found.entry((key.0.into(), number)).or_default();
        for (sum, n) in sum.iter_mut().zip([changed, new.saturating_sub(old), old.saturating_sub(new)]) {
            *sum += n;
        }
    }
    found.retain(|_, sum| *sum != [0; 3]);
    found
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}

fn check(major: u32) {
    let world = World::new(major);
    world.cluster.psql("CREATE DATABASE other");
    world.cluster.psql(
        "CREATE TABLE stays AS SELECT g AS id, md5(g::text) AS a FROM generate_series(1, 20000) g;
         CREATE TABLE changes AS SELECT g AS id, 0 AS n, md5(g::text) AS a FROM generate_series(1, 40000) g;
         CREATE INDEX changes_index ON changes (id);
         CREATE TABLE goes AS SELECT g AS id FROM generate_series(1, 10000) g;
         CREATE TABLE shrinks AS SELECT g AS id FROM generate_series(1, 30000) g;
         CREATE TABLE \"odd|name\" (long text);
         ALTER TABLE \"odd|name\" ALTER long SET STORAGE EXTERNAL",
    );
    world.cluster.psql("VACUUM");
    let full = world.backup("full");
    world.cluster.psql(
        "UPDATE changes SET n = 1 WHERE id BETWEEN 10000 AND 10100;
         DROP TABLE goes;
         DELETE FROM shrinks WHERE id > 1000;
         INSERT INTO \"odd|name\" SELECT repeat(md5('x'), 1000) FROM generate_series(1, 20);
         CREATE TABLE comes AS SELECT g AS id FROM generate_series(1, 5000) g",
    );
    world.cluster.psql("VACUUM shrinks");
    let incr = world.backup("incr");
    let (before, after) = (world.path("before"), world.path("after"));
    world.restore_to(&before, [format!("--set={full}"), "--type=none".to_owned()]);
    world.restore_to(&after, [format!("--set={incr}"), "--type=none".to_owned()]);
    let expected = expected(&before, &after);

    let bin = format!("--pg-bin={}", world.cluster.binaries().dir().display());
    let told = world.ok(["diff", "--output=json", &bin]).json();
    assert_eq!((told["before"].as_str(), told["after"].as_str()), (Some(full.as_str()), Some(incr.as_str())));
    let relations = told["relation"].as_array().unwrap();
    let found: BTreeMap<(u64, u64), [u64; 3]> = relations
        .iter()
        .map(|r| {
            let pages = ["changed-pages", "added-pages", "removed-pages"].map(|name| number(r, name));
            ((number(r, "database-oid"), number(r, "filenode")), pages)
        })
        .filter(|(_, pages)| *pages != [0; 3])
        .collect();
    assert_eq!(found, expected);
    let sum: u64 = expected.values().flatten().sum();
    assert_eq!(number(&told, "changed-bytes"), sum * PAGE as u64);

    let named = |name: &str| relations.iter().find(|r| r["name"] == name);
    let pages = |name: &str| {
        let of = named(name).unwrap_or_else(|| panic!("{name} is not told\n{told}"));
        ["changed-pages", "added-pages", "removed-pages"].map(|name| number(of, name))
    };
    assert!(named("stays").is_none() || pages("stays")[1..] == [0, 0], "{told}");
    let [changed, ..] = pages("changes");
    assert!((1..=8).contains(&changed), "{changed}");
    let index = named("changes_index").unwrap();
    assert_eq!((index["kind"].as_str(), index["table"]["name"].as_str()), (Some("index"), Some("changes")));
    assert_eq!((index["database"].as_str(), index["schema"].as_str()), (Some("postgres"), Some("public")));
    assert!(named("goes").is_none() && named("comes").unwrap()["before-bytes"].is_null());
    assert!(relations.iter().any(|r| r["after-bytes"].is_null() && r["name"].is_null()), "goes is told without a name");
    assert!(pages("shrinks")[2] > 0, "{told}");
    let toast = relations.iter().find(|r| r["kind"] == "TOAST table" && r["table"]["name"] == "odd|name");
    assert!(toast.is_some_and(|t| number(t, "added-pages") > 0), "{told}");

    // The other way round, without a server; and what cannot be.
    let back =
        world.ok(["diff", "--output=json", "--no-names", &format!("--set={full}"), &format!("--compare-with={incr}")]);
    let back = back.json();
    assert_eq!(number(&back, "changed-pages"), number(&told, "changed-pages"));
    assert_eq!(number(&back, "added-pages"), number(&told, "removed-pages"));
    assert!(back["relation"].as_array().unwrap().iter().all(|r| r["name"].is_null() && r["database"].is_null()));
    let run = world.ok(["diff", &bin]);
    assert!(run.says("postgres: public.changes_index (index of public.changes)"), "{run}");
    let run = world.expect(75, ["diff", &format!("--set={full}")]);
    assert!(run.says("before the first"), "{run}");
    let run = world.expect(75, ["diff", "--compare-with=20200101-000000F"]);
    assert!(run.says("there is no backup 20200101-000000F"), "{run}");
    let run = world.expect(32, ["diff", &format!("--compare-with={incr}")]);
    assert!(run.says("would be compared with itself"), "{run}");
}

#[test]
fn pages_and_names() {
    pg::spread().into_iter().for_each(check);
}
