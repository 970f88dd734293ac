//! Full, differential and incremental backups under load: labels, what they build on, what they report.

use support::{Cluster, Work, World, majors, spread};

/// `YYYYMMDD-HHMMSS` and a letter.
fn is_stamp(text: &str, letter: char) -> bool {
    let Some(stamp) = text.strip_suffix(letter) else { return false };
    let digits = |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
    stamp.split_once('-').is_some_and(|(date, time)| digits(date, 8) && digits(time, 6))
}

fn is_label(label: &str, full: &str, letter: char) -> bool {
    label.strip_prefix(full).and_then(|rest| rest.strip_prefix('_')).is_some_and(|rest| is_stamp(rest, letter))
}

#[test]
fn backups_under_load_form_the_chain_that_pgbackrest_would_show() {
    for major in spread() {
        let world = World::new(major);
        world.cluster.pgbench_init(5);
        let load = world.cluster.load(2);

        let first = world.ok(["--start-fast", "--type=incr", "backup"]);
        assert_eq!(first.messages("WARN"), ["no prior backup exists, incr backup has been changed to full"]);
        let full = support::world::label(&first);
        assert!(is_stamp(&full, 'F'), "{full}");
        let mut runs = Vec::new();
        for backup_type in ["incr", "diff", "incr"] {
            let run = world.ok(["--start-fast", &format!("--type={backup_type}"), "backup"]);
            // Pages are torn while pgbench writes: none of them may be taken for damaged.
            assert_eq!(run.messages("WARN"), Vec::<&str>::new(), "{run}");
            runs.push(support::world::label(&run));
        }
        let [incr, diff, last] = runs.as_slice() else { panic!("{runs:?}") };
        assert!(is_label(incr, &full, 'I') && is_label(diff, &full, 'D') && is_label(last, &full, 'I'), "{runs:?}");
        load.stop();
        assert!(world.labels().is_sorted(), "labels sort by age: {:?}", world.labels());

        let info = world.info();
        assert_eq!((&info["name"], &info["status"]["code"]), (&"demo".into(), &0.into()), "{info:#}");
        let backups = world.backups();
        let facts: Vec<_> =
            backups.iter().map(|b| (b["label"].as_str().unwrap(), &b["prior"], &b["reference"])).collect();
        let (null, list) = (serde_json::Value::Null, |labels: &[&str]| serde_json::json!(labels));
        let prior = |label: &str| serde_json::json!(label);
        assert_eq!(
            facts,
            [
                (full.as_str(), &null, &null),
                (incr, &prior(&full), &list(&[&full])),
                (diff, &prior(&full), &list(&[&full])),
                (last, &prior(diff), &list(&[&full, diff])),
            ]
        );
        let system: u64 = world.cluster.psql("SELECT system_identifier FROM pg_control_system()").parse().unwrap();
        assert_eq!(info["db"][0]["system-id"].as_u64(), Some(system), "{info:#}");
        assert_eq!(info["db"][0]["version"].as_str(), Some(major.to_string().as_str()), "{info:#}");
        for backup in &backups {
            assert_eq!(backup["error"], false, "{backup:#}");
            let (start, stop) = (backup["archive"]["start"].as_str(), backup["archive"]["stop"].as_str());
            assert!(start.is_some() && start <= stop, "{backup:#}");
            let (begin, end) = (backup["timestamp"]["start"].as_i64(), backup["timestamp"]["stop"].as_i64());
            assert!(begin.is_some() && begin <= end, "{backup:#}");
            assert!(backup["lsn"]["start"].as_str().is_some_and(|lsn| lsn.contains('/')), "{backup:#}");
            // Both ends of its range are in the archive already.
            for segment in [start.unwrap(), stop.unwrap()] {
                world.ok(["archive-get", segment, world.path("got").to_str().unwrap()]);
            }
        }
    }
}

#[test]
fn an_increment_after_little_change_is_small() {
    let world = World::new(majors()[0]);
    world.cluster.pgbench_init(10);
    world.cluster.psql("VACUUM FREEZE");
    world.backup("full");
    // Twice: the first sees what the checkpoint of the full wrote after it had been copied.
    world.backup("incr");
    world.cluster.psql("UPDATE pgbench_branches SET bbalance = 1 WHERE bid = 1");
    world.backup("incr");
    let backups = world.backups();
    let delta = |at: usize| backups[at]["info"]["repository"]["delta"].as_u64().unwrap();
    assert!(delta(2) * 20 < delta(0), "{} new bytes after {}", delta(2), delta(0));
    assert_eq!(
        backups[2]["info"]["size"].as_u64().unwrap() / (1 << 20) / 8,
        backups[0]["info"]["size"].as_u64().unwrap() / (1 << 20) / 8
    );
    // A second full of the same data costs next to nothing either.
    world.backup("full");
    let again = world.backups()[3]["info"]["repository"]["delta"].as_u64().unwrap();
    assert!(again * 20 < delta(0), "{again} new bytes after {}", delta(0));
}

#[test]
fn annotations_and_segment_size_are_kept() {
    let world = World::of(Cluster::builder(majors()[0]).initdb_arg("--wal-segsize=1"), &[]);
    world.cluster.pgbench_init(1);
    world.ok(["--start-fast", "--annotation=source=demo backup", "--annotation=key=value", "backup"]);
    world.cluster.pgbench(1, Work::Transactions(10));
    let backup = world.backups().remove(0);
    assert_eq!(backup["annotation"], serde_json::json!({ "key": "value", "source": "demo backup" }), "{backup:#}");
    // 4 KiB of segments of 1 MiB share the first half of their names.
    let start = backup["archive"]["start"].as_str().unwrap();
    assert_eq!(&start[..16], "0000000100000000", "{backup:#}");
}
