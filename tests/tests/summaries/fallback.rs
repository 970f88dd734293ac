//! Summaries with a hole, damaged ones, none: everything is compared, and the log says why. Otherwise only what they
//! list is read.

use std::{fs, path::PathBuf};

use support::{Mode, Run, World};

use crate::{builder, summarizing};

const USED: &str = "WAL summaries tell what changed";
const UNUSED: &str = "WAL summaries are not used";

fn incr(world: &World, args: &[&str]) -> Run {
    world.ok(["--start-fast", "--type=incr"].iter().chain(args).chain(&["backup"]))
}

/// The summaries, oldest first: their names begin with where they begin.
fn summaries(world: &World) -> Vec<PathBuf> {
    let directory = world.cluster.data_dir().join("pg_wal/summaries");
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

fn change(world: &World) {
    for _ in 0..2 {
        world.cluster.psql("UPDATE big SET n = n + 1 WHERE n % 1000 = 0");
        world.cluster.checkpoint();
    }
    summarized(world);
}

fn summarized(world: &World) {
    world
        .cluster
        .wait_for("SELECT summarized_lsn >= redo_lsn FROM pg_get_wal_summarizer_state(), pg_control_checkpoint()");
}

#[test]
fn a_hole_is_told_and_makes_everything_be_read() {
    let world = World::of(builder(summarizing()[0]), &[]);
    world.cluster.psql("CREATE TABLE big AS SELECT n, repeat('x', 500) FROM generate_series(1, 50000) n");
    world.backup("full");
    change(&world);
    let run = incr(&world, &[]);
    assert!(run.says(USED), "{run}");

    change(&world);
    let all = summaries(&world);
    fs::remove_file(&all[all.len() - 1]).unwrap();
    let run = incr(&world, &[]);
    assert!(run.says(UNUSED) && run.says("no summary covers WAL at"), "{run}");

    change(&world);
    let all = summaries(&world);
    let last = &all[all.len() - 1];
    let mut bytes = fs::read(last).unwrap();
    bytes[5] ^= 1;
    fs::write(last, bytes).unwrap();
    let run = incr(&world, &[]);
    assert!(run.says(UNUSED) && run.says("checksum of WAL summary does not match"), "{run}");
    // One later all is well again.
    change(&world);
    assert!(incr(&world, &[]).says(USED));

    // What was asked not to use them, and what may not.
    let run = incr(&world, &["--delta"]);
    assert!(!run.says("WAL summaries"), "{run}");
    let run = world.ok(["--start-fast", "--type=full", "backup"]);
    assert!(!run.says("WAL summaries"), "{run}");
    world.cluster.psql("ALTER SYSTEM SET summarize_wal = off");
    world.cluster.psql("SELECT pg_reload_conf()");
    world.cluster.wait_for("SELECT NOT current_setting('summarize_wal')::bool");
    let run = incr(&world, &[]);
    assert!(!run.says("WAL summaries"), "{run}");
    // The cluster's data comes back from the last of this chain.
    let prints = world.cluster.fingerprint();
    let mut restored = world.restore("restored", ["--type=immediate", "--target-action=promote"]);
    restored.start();
    restored.wait_promoted();
    assert!(restored.fingerprint() == prints, "{}", restored.log_tail());
}

/// A summary that lists nothing.
fn empty() -> Vec<u8> {
    [&0x652b_137b_u32.to_le_bytes()[..], &[0; 24], &0x4b16_71b8_u32.to_le_bytes()].concat()
}

/// What the other tests rely on: the backup reads what is listed, and nothing else.
#[test]
fn what_is_not_listed_is_not_read() {
    let world = World::of(builder(summarizing()[0]), &[]);
    world.cluster.psql("CREATE TABLE big AS SELECT n, repeat('x', 500) FROM generate_series(1, 50000) n");
    world.cluster.psql("VACUUM FREEZE");
    world.backup("full");
    let path = world.cluster.psql("SELECT pg_relation_filepath('big')");
    let file = |name: &str| fs::read(world.path(name).join(&path)).unwrap();
    world.restore("before", ["--type=immediate"]);

    change(&world);
    for summary in summaries(&world) {
        fs::write(summary, empty()).unwrap();
    }
    let run = incr(&world, &[]);
    assert!(run.says(USED), "{run}");
    world.restore("unlisted", ["--type=immediate"]);
    assert!(file("unlisted") == file("before"), "something was read");

    // The same with the lists as they are.
    change(&world);
    assert!(incr(&world, &["--delta"]).says("new backup label"));
    change(&world);
    let run = incr(&world, &[]);
    assert!(run.says(USED), "{run}");
    world.restore("listed", ["--type=immediate"]);
    assert!(file("listed") == fs::read(world.cluster.data_dir().join(&path)).unwrap());
    assert!(file("listed") != file("before"));
}

#[test]
fn a_file_repaired_by_hand_is_read_again_however_damaged_it_was() {
    let mut world = World::of(builder(summarizing()[0]), &[]);
    // A page a row.
    world.cluster.psql("CREATE TABLE big (n int, x text STORAGE PLAIN)");
    world.cluster.psql("INSERT INTO big SELECT n, repeat(md5(n::text), 200) FROM generate_series(1, 17000) n");
    world.cluster.psql("CREATE INDEX ON big (n)");
    world.cluster.psql("VACUUM FREEZE big");
    let prints = world.cluster.fingerprint();
    let file = world.cluster.data_dir().join(world.cluster.psql("SELECT pg_relation_filepath('big')"));
    world.cluster.stop(Mode::Fast);
    let whole = fs::read(&file).unwrap();
    assert!(whole.len() > 16_900 * 8192);
    let mut damaged = whole.clone();
    damaged.chunks_mut(8192).for_each(|page| page[4000] ^= 1);
    fs::write(&file, &damaged).unwrap();
    world.cluster.start();
    let run = world.ok(["--start-fast", "--type=full", "backup"]);
    assert!(run.says("invalid page"), "{run}");

    world.cluster.stop(Mode::Fast);
    fs::write(&file, &whole).unwrap();
    world.cluster.start();
    world.cluster.checkpoint();
    summarized(&world);
    let run = incr(&world, &[]);
    assert!(run.says(USED) && !run.says("invalid page"), "{run}");
    let mut restored = world.restore("repaired", ["--type=immediate", "--target-action=promote"]);
    restored.start();
    restored.wait_promoted();
    assert!(restored.fingerprint() == prints, "{}", restored.log_tail());
}
