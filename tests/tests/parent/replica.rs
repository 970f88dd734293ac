//! Real servers: differentials behind increments, and a replica that is backed up beside its primary.

use pgkeep_engine::crypto::Unlock;
use pgkeep_engine::pack::read_footer;
use pgkeep_engine::repository::{OpenOptions, Repository};
use pgkeep_engine::store::{Depth, LocalStore};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::layout;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use support::{Cluster, Run, Work, World, account, majors};

/// The stanza of the replica.
const REPLICA: &str = "replica";

fn world(major: u32) -> World {
    let builder = Cluster::builder(major).setting("autovacuum", "off");
    World::of(if major >= 17 { builder.setting("summarize_wal", "on") } else { builder }, &[])
}

fn new_bytes(backup: &Value) -> u64 {
    backup["info"]["repository"]["delta"].as_u64().unwrap()
}

#[test]
fn a_differential_behind_an_incremental_stores_next_to_nothing_and_comes_back() {
    for major in majors() {
        let world = world(major);
        world.cluster.pgbench_init(2);
        world.backup("full");
        world.cluster.psql("CREATE TABLE noise AS SELECT n, md5(n::text) t FROM generate_series(1, 200000) n");
        world.cluster.pgbench(1, Work::Transactions(300));
        world.cluster.psql("VACUUM (FREEZE) noise");
        world.cluster.checkpoint();
        let data = world.cluster.fingerprint();
        world.backup("incr");
        let run = world.ok(["--start-fast", "--type=diff", "backup"]);
        assert_eq!(run.says("WAL summaries tell what changed"), major >= 17, "{run}");
        let backups = world.backups();
        let (incr, diff) = (new_bytes(&backups[1]), new_bytes(&backups[2]));
        assert_eq!(backups[2]["prior"], backups[0]["label"]);
        assert!(incr > 2 << 20 && diff * 10 < incr, "{major}: {diff} new bytes after {incr}");

        let mut restored = world.restore("restored", ["--type=immediate", "--target-action=promote"]);
        restored.start();
        restored.wait_promoted();
        assert_eq!(restored.fingerprint(), data);
        restored.amcheck();
        let run = world.ok(["verify"]);
        assert_eq!(run.messages("ERROR"), Vec::<&str>::new(), "{run}");
    }
}

/// Runs the command for the replica's stanza.
fn replica_ok(world: &World, args: &[&str]) -> Run {
    let mut all = vec!["--stanza=replica", "--log-level-console=info"];
    all.extend(args);
    world.sandbox.run_ok(all)
}

/// A standby of the world's cluster, which has caught up and been promoted, and archives into a stanza of its own.
fn promoted_replica(world: &World) -> Cluster {
    let primary = &world.cluster;
    let data = world.sandbox.dir("replica");
    let port = primary.port().to_string();
    let mut copy = account::command(primary.binaries().own("pg_basebackup"));
    copy.arg("-D").arg(&data).arg("-h").arg(primary.socket_dir()).args(["-p", &port, "-U", "postgres"]);
    let out = copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]).output().expect("cannot run pg_basebackup");
    assert!(out.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&out.stderr));
    let mut replica = Cluster::adopt(primary.major(), &data);
    replica.configure("archive_command", &world.sandbox.archive_command(REPLICA));
    let options = |cluster: &Cluster| {
        let (data, socket) = (cluster.data_dir().display().to_string(), cluster.socket_dir().display().to_string());
        [data, socket, cluster.port().to_string(), "postgres".to_owned()]
    };
    let (own, other) = (options(primary), options(&replica));
    let names = ["pg1-path", "pg1-socket-path", "pg1-port", "pg1-user"];
    let sections = [&own, &other].map(|values| std::array::from_fn::<_, 4, _>(|n| (names[n], values[n].as_str())));
    world.sandbox.write_config(&[("demo", &sections[0]), (REPLICA, &sections[1])]);
    replica.start();
    let lsn = primary.psql("SELECT pg_current_wal_lsn()");
    replica.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"));
    replica.psql("SELECT pg_promote()");
    replica.wait_promoted();
    replica
}

#[test]
fn a_replica_in_a_stanza_of_its_own_costs_little_and_damage_there_does_not_reach_the_primary() {
    for major in majors() {
        let world = world(major);
        world.cluster.pgbench_init(10);
        world.backup("full");
        world.cluster.pgbench(1, Work::Transactions(200));
        let replica = promoted_replica(&world);
        replica_ok(&world, &["stanza-create"]);
        let before = pack_files(&world);
        let run = replica_ok(&world, &["--start-fast", "--type=full", "backup"]);
        assert!(run.says("pages are compared with backup"), "{run}");
        let data = replica.fingerprint();
        let info = world.sandbox.run_ok(["--stanza=replica", "--output=json", "info"]).json();
        let backup = &info[0]["backup"][0];
        let size = backup["info"]["size"].as_u64().unwrap();
        assert!(size > 100 << 20 && new_bytes(backup) * 100 <= 3 * size, "{major}: {} of {size}", new_bytes(backup));

        let target = world.sandbox.dir("restored");
        let path = format!("--pg1-path={}", target.display());
        replica_ok(&world, &[&path, "--type=immediate", "--target-action=promote", "restore"]);
        let mut restored = world.adopt(&target);
        restored.start();
        restored.wait_promoted();
        assert_eq!(restored.fingerprint(), data);
        restored.amcheck();

        // The primary's next backups, with the replica's unreadable: its manifest, and then its record too.
        let manifest = metadata_packs(&world).difference(&before).cloned().collect::<Vec<_>>();
        assert!(!manifest.is_empty());
        manifest.iter().for_each(flip);
        let label = backup["label"].as_str().unwrap();
        let run = world.ok(["--start-fast", "--type=full", "backup"]);
        let warned =
            |run: &Run, what: &str| run.messages("WARN").iter().any(|m| m.contains(what) && m.contains(REPLICA));
        assert!(warned(&run, label), "{run}");
        for record in fs::read_dir(world.sandbox.repo().join("backups").join(REPLICA)).unwrap() {
            flip(&record.unwrap().path());
        }
        world.cluster.pgbench(1, Work::Transactions(200));
        let data = world.cluster.fingerprint();
        let run = world.ok(["--start-fast", "--type=diff", "backup"]);
        assert!(warned(&run, "passed over"), "{run}");
        let mut restored = world.restore("primary", ["--type=immediate", "--target-action=promote"]);
        restored.start();
        restored.wait_promoted();
        assert_eq!(restored.fingerprint(), data);
    }
}

fn flip(path: &PathBuf) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // In place, or the file would be root's.
    fs::write(path, bytes).unwrap_or_else(|e| panic!("cannot damage {}: {e}", path.display()));
}

fn open(world: &World) -> Repository {
    let store = LocalStore::open(world.sandbox.repo()).unwrap();
    Repository::open(Arc::new(store), OpenOptions { key: 1, unlock: Unlock::None, cache: None }).unwrap()
}

fn pack_files(world: &World) -> BTreeSet<PathBuf> {
    let mut out = BTreeSet::new();
    let add = &mut |listed: pgkeep_engine::store::Listed| _ = out.insert(world.sandbox.repo().join(listed.key));
    open(world).store().list(layout::PACKS, Depth::All, add).unwrap();
    out
}

/// Files of packs that hold nothing but metadata.
fn metadata_packs(world: &World) -> BTreeSet<PathBuf> {
    let repository = open(world);
    let mut all = Vec::new();
    repository.store().list(layout::PACKS, Depth::All, &mut |listed| all.push(listed)).unwrap();
    let is_metadata = |key: &str, size| {
        let (_, footer) = read_footer(&repository, layout::parse_pack(key).unwrap(), size).unwrap();
        footer.entries.iter().all(|e| e.kind == ChunkKind::Metadata)
    };
    let wanted = all.into_iter().filter(|l| is_metadata(&l.key, l.size));
    wanted.map(|l| world.sandbox.repo().join(l.key)).collect()
}
