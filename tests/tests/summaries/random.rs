//! Rounds of random changes; after each a backup by summaries and one that reads everything.

use std::{fs, path::Path};

use pgkeep_formats::pg::Lsn;
use support::{Cluster, Mode, Run, World, account, seed::Seed, world};

use crate::{builder, compare::compare, summarizing, workload::Workload};

const ROUNDS: u32 = 5;

fn restore(world: &World, name: &str, label: &str) -> Cluster {
    let tablespaces = world.sandbox.dir(&format!("{name}-tablespaces"));
    world.restore(
        name,
        [
            format!("--set={label}"),
            "--type=immediate".to_owned(),
            "--target-action=promote".to_owned(),
            format!("--tablespace-map-all={}", tablespaces.display()),
        ],
    )
}

fn start_of(world: &World, label: &str) -> Lsn {
    let backups = world.backups();
    let backup = backups.iter().find(|b| b["label"] == label).expect("the backup is there");
    Lsn::parse(backup["lsn"]["start"].as_str().expect("a position is text")).unwrap()
}

/// Goes on on a new timeline, in place.
fn promote(world: &mut World) {
    world.cluster.stop(Mode::Fast);
    let signal = world.cluster.data_dir().join("standby.signal");
    fs::write(&signal, "").unwrap();
    account::give(&signal);
    world.cluster.start();
    world.cluster.psql("SELECT pg_promote()");
    world.cluster.wait_promoted();
}

fn remove_summaries(data: &Path) {
    for entry in fs::read_dir(data.join("pg_wal/summaries")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// Bytes that summaries spared reading, and of how many.
fn spared_of(run: &Run) -> [u64; 2] {
    let told =
        run.messages("INFO").iter().find_map(|m| m.strip_prefix("WAL summaries spared reading ").map(str::to_owned));
    let told = told.unwrap_or_else(|| panic!("nothing of what was spared: {run}"));
    let [spared, "of", size, "bytes"] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
    [spared, size].map(|number| number.parse().unwrap())
}

/// Bytes that the backup says it read.
fn read_of(run: &Run) -> f64 {
    let told =
        run.messages("INFO").iter().find_map(|m| Some(m.split_once(", read = ")?.1.split(',').next()?.to_owned()));
    let told = told.unwrap_or_else(|| panic!("nothing of what was read: {run}"));
    let number = told.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = ["B", "KB", "MB", "GB"].iter().position(|unit| *unit == &told[number.len()..]).unwrap();
    number.parse::<f64>().unwrap() * 1024f64.powi(unit as i32)
}

fn rounds(major: u32, checksums: bool) {
    let mut world = World::of(builder(major).checksums(checksums), &[]);
    let mut seed = Seed::new();
    let mut work = Workload::new(&world.cluster, Seed::of(seed.bits()));
    world.cluster.pgbench_init(1);
    world.backup("full");
    let (mut used, mut spared) = (0, 0);
    for round in 0..ROUNDS {
        let (load, switch, forget) = (round % 3 == 1, round == 2, round == 3);
        println!("round {round}: load {load}, new timeline {switch}, summaries removed {forget}");
        work.run(&world.cluster, 15);
        if switch {
            promote(&mut world);
            work.run(&world.cluster, 5);
        }
        if !load {
            Workload::settle(&world.cluster);
        }
        if forget {
            // The next backup goes by times of change, and builds on one that did not read everything it was taken under.
            let load = world.cluster.load(2);
            assert!(world.ok(["--start-fast", "--type=incr", "backup"]).says("WAL summaries spared reading"));
            load.stop();
            Workload::settle(&world.cluster);
            let reached =
                "SELECT summarized_lsn >= redo_lsn FROM pg_get_wal_summarizer_state(), pg_control_checkpoint()";
            world.cluster.wait_for(reached);
            remove_summaries(world.cluster.data_dir());
        }
        let load = load.then(|| world.cluster.load(2));
        let run = world.ok(["--start-fast", "--type=incr", "backup"]);
        let by_summaries = run.messages("INFO").iter().any(|m| m.contains("WAL summaries tell what changed"));
        assert_eq!(by_summaries, !forget, "{run}");
        used += u32::from(by_summaries);
        if by_summaries {
            let [spare, size] = spared_of(&run);
            // What is told to a tenth of a unit may be a twentieth too much; the rest is files without pages of their own.
            assert!(read_of(&run) <= (size - spare) as f64 * 1.06 + f64::from(1 << 20), "{run}");
            spared += spare;
        }
        let first = world::label(&run);
        let busy = load.is_some();
        let prints = (!busy).then(|| world.cluster.fingerprint());
        let run = world.ok(["--start-fast", "--type=incr", "--delta", "backup"]);
        assert!(!run.says("WAL summaries"), "{run}");
        let second = world::label(&run);
        drop(load);

        let mut one = restore(&world, &format!("first-{round}"), &first);
        let mut two = restore(&world, &format!("second-{round}"), &second);
        let compared = compare(one.data_dir(), two.data_dir(), start_of(&world, &first), !checksums);
        println!("round {round}: {compared:?}");
        assert!(busy || compared.later < 50, "nobody was writing: {compared:?}");
        one.start();
        one.wait_promoted();
        if let Some(prints) = prints {
            assert!(one.fingerprint() == prints, "{}", one.log_tail());
        }
        one.amcheck();
        one.stop(Mode::Fast);
        if round + 1 == ROUNDS {
            two.start();
            two.wait_promoted();
            two.amcheck();
        }
        for name in [format!("first-{round}"), format!("second-{round}")] {
            drop(fs::remove_dir_all(world.path(&format!("{name}-tablespaces"))));
            if round + 1 < ROUNDS {
                fs::remove_dir_all(world.path(&name)).unwrap();
            }
        }
    }
    assert!(used >= 3 && spared > 50 << 20, "summaries were used {used} times and spared {spared} bytes");
}

#[test]
fn both_backups_hold_the_same() {
    for major in summarizing() {
        rounds(major, true);
    }
}

#[test]
fn without_checksums_they_differ_in_hints_at_most() {
    for major in summarizing() {
        rounds(major, false);
    }
}
