//! Clones whose repository is slow, out of reach for a while, or answers with errors.

use std::{
    thread,
    time::{Duration, Instant},
};

use postgres::error::SqlState;
use support::{Cluster, Mode, Sandbox, World, faulty::Faulty, world::data};

use crate::MAJOR;
use crate::places::{Places, logged, restored, wait_until};

/// How long the store is out of reach: longer than any pause or patience of who serves a clone.
const OUTAGE: Duration = Duration::from_secs(8);
const SUM: &str = "SELECT count(*) || ' ' || sum(aid) || ' ' || sum(abalance) FROM pgbench_accounts";

/// A world with one backup in a repository that can be made to fail. Dropped before the world: nothing hangs then.
struct Rig {
    faulty: Faulty,
    world: World,
    label: String,
}

impl Rig {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let store = sandbox.dir("store");
        let faulty = Faulty::mount(&sandbox.repo(), &store);
        let path = store.display().to_string();
        let builder = Cluster::builder(MAJOR).setting("autovacuum", "off");
        let world = World::within(sandbox, builder, &[("repo1-path", &path)]);
        world.create_marks();
        world.cluster.pgbench_init(2);
        world.cluster.psql("UPDATE pgbench_accounts SET abalance = aid % 1000 WHERE aid % 5 = 0");
        // Or reading it later would put images of its pages into the WAL, and recovery need nothing of the backup.
        world.cluster.psql("VACUUM pgbench_accounts");
        let label = world.backup("full");
        world.mark(1);
        world.archive_now();
        Self { faulty, world, label }
    }

    /// A clone with its server. Of the tables it has fetched nothing yet but what recovery needed.
    fn clone(&self, name: &str) -> (Places, Cluster) {
        let places = Places::new(&self.world, name);
        places.create(&self.world, &[]);
        let clone = places.server();
        clone.psql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS i; CHECKPOINT");
        (places, clone)
    }

    /// Checks a clone, and removes it.
    fn end(&self, places: &Places, mut clone: Cluster) {
        clone.amcheck();
        clone.stop(Mode::Fast);
        self.world.ok(places.args("destroy"));
    }
}

#[test]
fn a_slow_store_makes_a_clone_slow_and_nothing_else() {
    let rig = Rig::new();
    let expected = data(&rig.world.cluster);
    rig.faulty.set_delay(Duration::from_millis(50));
    rig.faulty.set_name_delay(Duration::from_millis(5));
    let before = rig.faulty.reads();
    let (places, clone) = rig.clone("slow");
    clone.psql("DROP TABLE kept");
    assert_eq!(data(&clone), expected);
    assert!(rig.faulty.reads() > before + 10, "{} reads", rig.faulty.reads() - before);
    rig.end(&places, clone);
}

#[test]
fn what_hangs_is_waited_for_and_the_rest_goes_on() {
    let rig = Rig::new();
    let expected = rig.world.cluster.psql(SUM);
    let (places, mut clone) = rig.clone("hung");
    let (mut reader, mut writer) = (clone.connect(), clone.connect());
    rig.faulty.hang(true);
    let begun = Instant::now();
    let (summed, waited) = thread::scope(|scope| {
        let query = scope.spawn(|| {
            let rows = reader.query_one(SUM, &[]).expect("the query must be answered in the end");
            (rows.get::<_, String>(0), begun.elapsed())
        });
        wait_until("a read of the store", || rig.faulty.waiting() > 0);
        // Whatever is here already answers and takes writes, again and again.
        let mut number = 0;
        while begun.elapsed() < OUTAGE {
            number += 1;
            writer.execute("INSERT INTO kept VALUES ($1)", &[&-number]).expect("the clone must take writes");
            assert_eq!(writer.query("SELECT * FROM kept", &[]).unwrap().len(), 1000 + number as usize);
            thread::sleep(Duration::from_millis(100));
        }
        writer.batch_execute("CHECKPOINT").expect("a checkpoint needs nothing of the store");
        assert!(!query.is_finished(), "answered without the store");
        rig.faulty.hang(false);
        query.join().unwrap()
    });
    assert_eq!(summed, expected);
    assert!(waited >= OUTAGE);

    // Nobody waits for the store: then it is not needed to end, in order, either.
    drop((reader, writer));
    clone.stop(Mode::Fast);
    rig.faulty.hang(true);
    rig.world.ok(places.args("stop"));
    assert!(!places.is_mounted(&rig.world));
    rig.faulty.hang(false);
    rig.world.ok(places.args("mount"));
    clone.start();
    assert_eq!(clone.psql(SUM), expected);
    assert_eq!(clone.psql("SELECT count(*) FROM kept WHERE i > 0"), "1000");
    rig.end(&places, clone);
}

#[test]
fn queries_fail_while_the_store_does_and_need_no_remount_afterwards() {
    let rig = Rig::new();
    let expected = rig.world.cluster.psql(SUM);
    let (places, clone) = rig.clone("broken");
    let table = rig.world.cluster.psql("SELECT pg_relation_filepath('pgbench_accounts')");
    let mut client = clone.connect();
    // What the server needs to run these queries at all, such as pages of its catalog, comes in before.
    for sql in [&format!("EXPLAIN {SUM}"), "SELECT count(*) FROM kept"] {
        client.query(sql, &[]).unwrap();
    }
    rig.faulty.fail("packs/");
    for _ in 0..2 {
        let error = client.query(SUM, &[]).expect_err("nothing of this table is here");
        let told = error.as_db_error().unwrap_or_else(|| panic!("{error:?}\n{}", clone.log_tail()));
        assert_eq!(told.code(), &SqlState::IO_ERROR, "{told}");
        assert!(told.message().contains("Input/output error"), "{told}");
        assert_eq!(client.query_one("SELECT count(*) FROM kept", &[]).unwrap().get::<_, i64>(0), 1000);
    }
    let (log, of) = (logged(&rig.world), format!("of '{table}' of backup {}: ", rig.label));
    let line = log.lines().find(|line| line.contains("cannot fetch pages ") && line.contains(&of));
    let line = line.unwrap_or_else(|| panic!("no line names what could not be fetched\n{log}"));
    let why = line.split_once(&of).unwrap().1;
    assert!(why.contains("packs/") && why.contains("Input/output error"), "{line}");
    rig.faulty.heal();
    assert_eq!(client.query_one(SUM, &[]).unwrap().get::<_, String>(0), expected);

    // Now and then: a query fails or is right.
    rig.faulty.fail_some("packs/", 0.3);
    let index = "SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT sum(abalance) FROM pgbench_accounts WHERE aid > 0";
    let right = rig.world.cluster.psql(index);
    let (mut failed, mut answered) = (0, 0);
    while answered == 0 {
        match client.simple_query(index) {
            Ok(_) => answered += 1,
            Err(error) => {
                failed += 1;
                assert_eq!(error.code(), Some(&SqlState::IO_ERROR), "{error:?}");
                assert!(failed < 1000, "never answered");
            }
        }
    }
    println!("answered after {failed} failures");
    rig.faulty.heal();
    assert_eq!(clone.psql(index), right);
    rig.end(&places, clone);
}

#[test]
fn hydration_says_why_it_fails_and_goes_on_by_itself() {
    let rig = Rig::new();
    let classic = restored(&rig.world);
    let places = Places::new(&rig.world, "waits");
    places.create(&rig.world, &[]);
    rig.faulty.fail("packs/");
    let run = rig.world.expect(42, places.args("hydrate"));
    assert!(run.says("cannot fetch '") && run.says("it is tried again"), "{run}");
    let parent = format!("--dir={}", rig.world.sandbox.root().display());
    let listed =
        || rig.world.sandbox.run_ok(["clone", "list", &parent, "--output=json"]).json()[0]["hydration"].clone();
    let told = listed();
    assert_eq!(told["state"], "failed", "{told}");
    let why = told["error"].as_str().unwrap();
    assert!(why.contains("cannot fetch 'base/") && why.contains("Input/output error"), "{told}");
    let shown = rig.world.sandbox.run_ok(["clone", "list", &parent]);
    assert!(shown.says("hydration: failed, ") && shown.says(why), "{shown}");
    rig.faulty.heal();
    wait_until("hydration", || listed()["state"] == "done");
    rig.world.ok(places.args("promote"));
    support::tree::assert_same(&classic.join("base"), &places.mountpoint.join("base"), |_| false);
}
