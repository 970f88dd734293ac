//! Retention on real servers: what stays restores, to its end and to any time in its window; what goes, goes with its WAL;
//! notes and pins; what is asked for and refused.

use serde_json::{Value, json};
use support::world::{data, label};
use support::{World, majors, spread};

/// Names of the archived segments.
fn archived(world: &World) -> Vec<String> {
    let mut names: Vec<String> = (support::tree::files(&world.sandbox.repo().join("wal")).into_keys())
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .filter(|name| name.len() == 24)
        .collect();
    names.sort();
    names
}

/// First and last segment a backup needs.
fn needs(world: &World, label: &str) -> (String, String) {
    let backups = world.backups();
    let backup = backups.iter().find(|b| b["label"] == label).expect("the backup is listed");
    let text = |key: &str| backup["archive"][key].as_str().expect("a segment").to_owned();
    (text("start"), text("stop"))
}

/// What `expire` says in JSON of the first repository.
fn decided(world: &World, args: &[&str]) -> Value {
    let mut all = vec!["expire", "--output=json"];
    all.extend(args);
    world.ok(all).json()[0].take()
}

fn going(decided: &Value) -> Vec<&str> {
    let backups = decided["backup"].as_array().expect("a list");
    backups.iter().filter(|b| b["expire"] == true).map(|b| b["label"].as_str().expect("a label")).collect()
}

fn change(world: &World, n: u32) {
    world.cluster.psql(&format!("CREATE TABLE t{n} AS SELECT g, md5(g::text) FROM generate_series(1, 2000) g"));
    world.archive_now();
}

#[test]
fn retention_takes_what_it_should_and_what_stays_restores() {
    for major in spread() {
        let world = World::new(major);
        world.create_marks();
        world.cluster.pgbench_init(1);
        change(&world, 1);
        let first = world.backup("full");
        change(&world, 2);
        let second = world.backup("incr");
        change(&world, 3);
        let third = world.backup("full");
        change(&world, 4);
        let old_incr = world.backup("incr");
        let mark = world.mark(1);
        change(&world, 5);
        assert_eq!(world.labels(), [&first, &second, &third, &old_incr].map(String::clone));
        let before = archived(&world);

        // Nothing is done by a dry run, which says all of it.
        let args = ["--repo1-retention-full=1", "--explain"];
        let dry = decided(&world, &args);
        assert_eq!(going(&dry), [&first, &second]);
        assert_eq!(dry["backup"][1]["reason"], json!([format!("was compared with {first}, which is not kept")]));
        let text = world.ok(["expire", "--repo1-retention-full=1", "--dry-run"]);
        assert!(text.messages("INFO").iter().any(|m| m.starts_with("[DRY-RUN] repo1: expire backup ")), "{text}");
        assert_eq!((archived(&world), world.labels().len()), (before.clone(), 4));

        // A backup applies retention at its end.
        let run = world.ok(["--start-fast", "--type=full", "--repo1-retention-full=2", "backup"]);
        let fourth = label(&run);
        assert_eq!(world.labels(), [&third, &old_incr, &fourth].map(String::clone));
        let from = needs(&world, &third).0;
        assert!(run.messages("INFO").iter().any(|m| m.contains("remove archive, start = ")), "{run}");
        assert_eq!(archived(&world).first(), Some(&from));
        assert!(before.contains(&from) && before.first() != Some(&from));
        // What is left is whole, and any time since the oldest backup can be recovered.
        world.ok(["verify"]);
        let target = format!("--target={}", mark.time);
        let mut restored = world.restore("pitr", ["--type=time", &target, "--target-action=promote"]);
        restored.start();
        restored.wait_promoted();
        assert_eq!(data(&restored), mark.data);
        drop(restored);

        // An incremental goes alone, on request; the last full does not.
        world.expect(32, ["expire", "--set=20200101"]);
        // That there is no such backup is not said of what cannot be looked at.
        let away = format!("--repo2-path={}", world.path("away").display());
        let unknown = world.expect(104, [away.as_str(), "expire", "--set=20200101-000000F"]);
        assert!(unknown.says("repo2: ") && unknown.says("away"), "{unknown}");
        let refused = world.expect(104, ["expire", "--set=20200101-000000F"]);
        assert!(
            refused.messages("ERROR").iter().any(|m| m.contains("[075]") && m.contains("does not exist")),
            "{refused}"
        );
        world.ok(["expire", &format!("--set={old_incr}")]);
        assert_eq!(world.labels(), [&third, &fourth].map(String::clone));
        world.ok(["expire", "--oldest"]);
        assert_eq!(world.labels(), std::slice::from_ref(&fourth));
        let refused = world.expect(104, ["expire", &format!("--set={fourth}")]);
        assert!(refused.messages("ERROR").iter().any(|m| m.contains("is the last one")), "{refused}");
        assert_eq!(archived(&world).first(), Some(&needs(&world, &fourth).0));
        world.ok(["verify"]);
        let mut restored = world.restore("latest", [""; 0]);
        restored.start();
        restored.wait_promoted();
        assert_eq!(restored.psql("SELECT count(*) FROM t5"), "2000");
    }
}

#[test]
fn pins_notes_and_rules_that_keep() {
    let world = World::new(majors()[0]);
    change(&world, 1);
    let first = world.ok([
        "--start-fast",
        "--type=full",
        "--annotation=source=demo backup",
        "--annotation=key=value",
        "backup",
    ]);
    let first = label(&first);
    change(&world, 2);
    let second = world.backup("incr");
    change(&world, 3);
    let third = world.backup("incr");
    change(&world, 4);
    let fourth = world.backup("full");

    // Notes change after the commit, and `info` shows them.
    let set = format!("--set={first}");
    world.ok(["annotate", &set, "--annotation=key=", "--annotation=new_key=new_value"]);
    let notes = |label: &str| {
        let backups = world.backups();
        backups.into_iter().find(|b| b["label"] == label).map(|b| b["annotation"].clone())
    };
    assert_eq!(notes(&first), Some(json!({"source": "demo backup", "new_key": "new_value"})));
    let text = world.ok([&set, "info"]).stdout;
    assert!(text.contains("new_key: new_value") && !text.contains("key: value\n    key"), "{text}");
    world.expect(75, ["annotate", "--set=20200101-000000F", "--annotation=a=b"]);
    world.expect(32, ["annotate", &set, "--pin-until=yesterday"]);
    world.expect(37, ["annotate", &set]);

    // A pin keeps the backup and the WAL that makes it consistent, and nothing else.
    world.ok(["annotate", &set, "--pin-until=forever"]);
    let pinned = decided(&world, &["--repo1-retention-full=1", "--explain"]);
    assert_eq!(going(&pinned), [&second, &third]);
    assert_eq!(pinned["backup"][0]["reason"], json!(["pinned for ever"]));
    assert_eq!(pinned["archive"][0]["range"][0]["backup"], json!(first));
    world.expect(104, ["expire", &set]);

    // Rules that keep take backups one by one: an incremental without its full.
    // What the sandbox's configuration keeps is not to be added.
    const ALONE: &str = "--reset-repo1-retention-full";
    let args = [ALONE, "--repo1-keep-last=2", "--repo1-retention-archive=1", "--repo1-retention-archive-type=incr"];
    let kept = decided(&world, &args);
    assert_eq!(going(&kept), [&second]);
    assert_eq!(world.labels(), [&first, &third, &fourth].map(String::clone));
    assert_eq!(notes(&first).map(|n| n["source"].clone()), Some(json!("demo backup")));
    world.ok(["verify"]);
    for (name, label, table) in [("a", &first, "t1"), ("b", &third, "t3")] {
        let set = format!("--set={label}");
        let mut restored = world.restore(name, [set.as_str(), "--type=immediate", "--target-action=promote"]);
        restored.start();
        restored.wait_promoted();
        assert_eq!(restored.psql(&format!("SELECT count(*) FROM {table}")), "2000");
    }
    // Behind it is the hole that retention made: whoever wants to go further is told.
    let target = world.sandbox.dir("further");
    let run = world.restore_to(&target, [set.as_str()]);
    assert!(run.messages("WARN").iter().any(|m| m.contains("recovery ends with the backup")), "{run}");
    // Without the pin it goes like any other.
    world.ok(["annotate", &set, "--pin-until=none"]);
    decided(&world, &[ALONE, "--repo1-retention-policy=REDUNDANCY 1"]);
    assert_eq!(world.labels(), [fourth]);
    let refused = world.expect(32, ["expire", "--repo1-retention-policy=SOME DAYS"]);
    assert!(refused.to_string().contains("RECOVERY WINDOW OF n DAYS"), "{refused}");
    world.expect(31, ["expire", "--oldest", "--set=x"]);
}
