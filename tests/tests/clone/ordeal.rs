//! Transfers on a clone, each written down once it is acknowledged, and what must hold whatever ended them.
//!
//! The tables are pgbench's, so every sum of balances equals that of the history. Beside them a table shrinks and grows
//! whose pages come from the backup, and others come and go, with checkpoints in between.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use postgres::{Client, NoTls, error::SqlState};
use support::{Cluster, Mode, Run, Running, World, account, seed::Seed};

use crate::MAJOR;
use crate::disk::Disk;
use crate::places::{Places, Served, everything, restored, wait_until};

const SCALE: u32 = 2;
const CLIENTS: u64 = 3;
/// Rows of the shrinking table that never go.
const STAYING: u32 = 1000;
/// Rounds of each test unless `PGKEEP_TEST_ROUNDS` says otherwise.
const ROUNDS: u32 = 3;

/// How many times something is tried that ends at a random moment.
pub(crate) fn rounds() -> u32 {
    std::env::var("PGKEEP_TEST_ROUNDS")
        .map_or(ROUNDS, |text| text.parse().unwrap_or_else(|_| panic!("PGKEEP_TEST_ROUNDS: '{text}' is not a number")))
}

/// When a blow falls.
#[derive(Debug, Clone, Copy)]
pub(crate) enum When {
    /// Counted from the start of the server: in recovery, or soon after it.
    After(Duration),
    /// Once so many transfers were acknowledged.
    Acknowledged(usize),
}

impl When {
    /// A random moment, in the start of the server in every third round.
    pub(crate) fn random(seed: &mut Seed, round: u32) -> Self {
        if round % 3 == 2 {
            Self::After(Duration::from_millis(100 + seed.below(2000)))
        } else {
            Self::Acknowledged(1 + seed.below(400) as usize)
        }
    }
}

/// A clone, its server, and what was acknowledged.
pub(crate) struct Ordeal {
    pub(crate) clone: Cluster,
    pub(crate) places: Places,
    pub(crate) seed: Seed,
    served: Served,
    /// Numbers of the transfers that were acknowledged.
    acknowledged: Mutex<BTreeSet<u64>>,
    next: AtomicU64,
    pub(crate) disk: Option<Disk>,
    pub(crate) world: World,
}

/// A world whose backup has the tables that transfers need.
pub(crate) fn world() -> World {
    // Small segments: they are begun, reused and removed all the time.
    let builder = Cluster::builder(MAJOR).initdb_arg("--wal-segsize=1").setting("max_wal_size", "16MB");
    let world = World::of(builder.setting("min_wal_size", "4MB"), &[]);
    world.cluster.pgbench_init(SCALE);
    world.cluster.psql("CREATE TABLE shrinks AS SELECT i, repeat('x', 500) AS t FROM generate_series(1, 4000) AS i");
    world.backup("full");
    world.archive_now();
    world
}

impl Ordeal {
    /// Makes the clone, on a disk of its own if one is given. Its server is not started.
    pub(crate) fn new(world: World, disk: Option<Disk>, served: Served) -> Self {
        let seed = Seed::new();
        let mut places = Places::new(&world, "ordeal");
        if let Some(disk) = &disk {
            places = Places { dir: disk.point().join("clone"), mountpoint: disk.point().join("data") };
        }
        let clone = Cluster::adopt(MAJOR, &places.mountpoint);
        let acknowledged = Mutex::default();
        let ordeal = Self { clone, places, seed, served, acknowledged, next: AtomicU64::new(1), disk, world };
        ordeal.ok("create", &[]);
        ordeal
    }

    /// A command on the clone, by who serves it.
    pub(crate) fn command(&self, what: &str, more: &[&str]) -> Command {
        self.places.command(&self.world, what, more, self.served)
    }

    pub(crate) fn ok(&self, what: &str, more: &[&str]) -> Run {
        let run = self.world.sandbox.finish(self.command(what, more));
        assert_eq!(run.code, Some(0), "{run}");
        run
    }

    /// Has everything fetched, so many MiB a second. The command waits for that as long as the result lives.
    pub(crate) fn hydrating(&self, limit: u32) -> Running {
        let running = self.world.sandbox.spawn(self.command("hydrate", &[&format!("--io-limit={limit}MiB")]));
        wait_until("the wish", || self.places.dir.join("meta/hydrate").exists());
        running
    }

    pub(crate) fn hydration(&self) -> String {
        self.ok("info", &["--output=json"]).json()["hydration"]["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Starts the server and has it do transfers until `blow` has struck, `when` it is time.
    pub(crate) fn transfers_until(&mut self, when: When, blow: impl FnOnce(Option<&Disk>) + Send) {
        let stop = AtomicBool::new(false);
        let seeds: Vec<u64> = (0..=CLIENTS).map(|_| self.seed.bits()).collect();
        let (clone, disk, acknowledged, next) = (&mut self.clone, &self.disk, &self.acknowledged, &self.next);
        let before = acknowledged.lock().unwrap().len();
        thread::scope(|scope| {
            let striking = scope.spawn(|| {
                match when {
                    When::After(time) => thread::sleep(time),
                    When::Acknowledged(count) => {
                        wait_until("so many transfers", || acknowledged.lock().unwrap().len() >= before + count);
                    }
                }
                blow(disk.as_ref());
            });
            if let Err(why) = clone.try_start() {
                println!("the server did not start before the blow: {why}");
            }
            let clone = &*clone;
            for seed in &seeds[1..] {
                scope.spawn(|| transfer(clone, Seed::of(*seed), next, acknowledged, &stop));
            }
            scope.spawn(|| disturb(clone, Seed::of(seeds[0]), &stop));
            let struck = striking.join();
            // A server whose disk or mount is gone ends by itself, or is killed by the caller.
            stop.store(true, Ordering::Release);
            struck.unwrap();
        });
        let after = self.acknowledged.lock().unwrap().len();
        println!("{} transfers acknowledged, {after} in all", after - before);
    }

    /// Starts the server on the mounted clone and checks everything.
    pub(crate) fn check(&mut self) {
        self.clone.start();
        self.clone.wait_promoted();
        let clone = &self.clone;
        let sums = clone.psql(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
             (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
        );
        let first = sums.split('|').next().unwrap();
        assert!(sums.split('|').all(|sum| sum == first), "the balances do not agree: {sums}");
        let rows = clone.psql("SELECT filler::text FROM pgbench_history");
        let found: Vec<u64> = rows.lines().map(|row| row.trim().parse().unwrap()).collect();
        let distinct: BTreeSet<u64> = found.iter().copied().collect();
        assert_eq!(found.len(), distinct.len(), "a transfer is there twice");
        let acknowledged = self.acknowledged.lock().unwrap();
        let lost: Vec<&u64> = acknowledged.difference(&distinct).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let stayed = format!("SELECT count(*), sum(length(t)) FROM shrinks WHERE i <= {STAYING}");
        assert_eq!(clone.psql(&stayed), format!("{STAYING}|{}", STAYING * 500));
        assert_eq!(clone.psql("SELECT count(*) FROM pgbench_accounts"), (SCALE * 100_000).to_string());
        clone.amcheck();
    }

    /// Ends the server, has all fetched, makes it an ordinary directory, and checks that.
    pub(crate) fn end_as_ordinary(&mut self) {
        let restored = restored(&self.world);
        self.clone.stop(Mode::Fast);
        self.assert_no_zeroed_page(&restored);
        self.ok("hydrate", &[]);
        self.ok("promote", &[]);
        assert!(!self.places.dir.exists());
        self.assert_no_zeroed_page(&restored);
        // The data directory's owner is whose server it is.
        let mut check = account::command(self.clone.binaries().own("pg_checksums"));
        let out = check.arg("--check").arg("-D").arg(&self.places.mountpoint).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && said.contains("Bad checksums:  0"), "{said}");
        self.check();
        self.clone.stop(Mode::Fast);
    }

    /// No page of a relation reads as zeros that had content in the backup.
    fn assert_no_zeroed_page(&self, restored: &Path) {
        let shrinking = self.world.cluster.psql("SELECT pg_relation_filepath('shrinks')");
        for (path, (_, content)) in everything(&restored.join("base")) {
            let name = path.strip_prefix(restored).unwrap();
            // Free space maps are remade from nothing, and what shrank may have grown by a page of zeros.
            if name.to_string_lossy().contains('_') || name == Path::new(&shrinking) {
                continue;
            }
            let Ok(found) = fs::read(self.places.mountpoint.join(name)) else { continue };
            for (number, (old, new)) in content.chunks(8192).zip(found.chunks(8192)).enumerate() {
                let zeroed = old.iter().any(|byte| *byte != 0) && new.iter().all(|byte| *byte == 0);
                assert!(!zeroed, "page {number} of {} reads as zeros", name.display());
            }
        }
    }
}

/// Connects to a server that may be starting; `None` once there is none any more.
fn connect(clone: &Cluster, stop: &AtomicBool) -> Option<Client> {
    while !stop.load(Ordering::Acquire) {
        if let Ok(client) = clone.config().connect(NoTls) {
            return Some(client);
        }
        thread::sleep(Duration::from_millis(20));
    }
    None
}

/// Moves money until the server is gone or all is to stop.
fn transfer(clone: &Cluster, mut seed: Seed, next: &AtomicU64, acknowledged: &Mutex<BTreeSet<u64>>, stop: &AtomicBool) {
    let Some(mut client) = connect(clone, stop) else { return };
    while !stop.load(Ordering::Acquire) {
        let (number, delta) = (next.fetch_add(1, Ordering::Relaxed), seed.below(10_000) as i64 - 5000);
        let aid = seed.below(u64::from(SCALE) * 100_000) + 1;
        let (tid, bid) = (seed.below(u64::from(SCALE) * 10) + 1, seed.below(u64::from(SCALE)) + 1);
        let sql = format!(
            "BEGIN; UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {aid}; \
             UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {tid}; \
             UPDATE pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = {bid}; \
             INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) \
             VALUES ({tid}, {bid}, {aid}, {delta}, now(), '{number}'); COMMIT"
        );
        match client.batch_execute(&sql) {
            Ok(()) => _ = acknowledged.lock().unwrap().insert(number),
            // Recovery goes on behind the first connections.
            Err(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                _ = client.batch_execute("ROLLBACK");
                thread::sleep(Duration::from_millis(20));
            }
            Err(_) => return,
        }
    }
}

/// What a server does beside transactions: checkpoints, files that shrink, come and go.
fn disturb(clone: &Cluster, mut seed: Seed, stop: &AtomicBool) {
    let Some(mut client) = connect(clone, stop) else { return };
    let shrink: &[&str] = &[
        "DELETE FROM shrinks WHERE i > 1000",
        "VACUUM (TRUNCATE) shrinks",
        "INSERT INTO shrinks SELECT i, repeat('x', 500) FROM generate_series(1001, 4000) AS i",
    ];
    let side: &[&str] = &[
        "CREATE TABLE IF NOT EXISTS side (i int, t text)",
        "INSERT INTO side SELECT i, repeat('y', 300) FROM generate_series(1, 3000) AS i",
        "TRUNCATE side",
        "DROP TABLE side",
    ];
    let works = [&["CHECKPOINT"], &["SELECT pg_switch_wal()"], &["VACUUM pgbench_accounts"], shrink, side];
    while !stop.load(Ordering::Acquire) {
        for sql in *seed.pick(&works) {
            match client.batch_execute(sql) {
                Err(error) if error.code().is_none() => return,
                _ => {}
            }
        }
        thread::sleep(Duration::from_millis(seed.below(200)));
    }
}
