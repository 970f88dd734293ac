//! Real servers: differentials behind increments, and a replica that is backed up beside its primary.

use pgkeep_engine::crypto::Unlock;
use pgkeep_engine::pack::read_footer;
use pgkeep_engine::repository::{OpenOptions, Repository};
use pgkeep_engine::store::{Depth, LocalStore};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::layout;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{Cluster, Run, Work, World, account, majors, spread};

/// The stanza of the replica.
const REPLICA: &str = "replica";
/// A second stanza of the primary.
const SECOND: &str = "second";

fn world(major: u32) -> World {
    let builder = Cluster::builder(major).setting("autovacuum", "off");
    World::of(if major >= 17 { builder.setting("summarize_wal", "on") } else { builder }, &[])
}

fn new_bytes(backup: &Value) -> u64 {
    backup["info"]["repository"]["delta"].as_u64().unwrap()
}

#[test]
fn a_differential_behind_an_incremental_stores_next_to_nothing_and_comes_back() {
    for major in spread() {
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

/// Runs the command for another stanza.
fn ok_for(world: &World, stanza: &str, args: &[&str]) -> Run {
    let stanza = format!("--stanza={stanza}");
    let mut all = vec![stanza.as_str(), "--log-level-console=info"];
    all.extend(args);
    world.sandbox.run_ok(all)
}

/// The last backup of another stanza.
fn last_of(world: &World, stanza: &str) -> Value {
    let info = world.sandbox.run_ok([&format!("--stanza={stanza}"), "--output=json", "info"]).json();
    info[0]["backup"].as_array().and_then(|all| all.last()).expect("a backup").clone()
}

/// Adds a stanza for this cluster to the configuration.
fn configure(world: &World, stanza: &str, cluster: &Cluster) {
    let options = |cluster: &Cluster| {
        let (data, socket) = (cluster.data_dir().display().to_string(), cluster.socket_dir().display().to_string());
        [data, socket, cluster.port().to_string(), "postgres".to_owned()]
    };
    let (own, other) = (options(&world.cluster), options(cluster));
    let names = ["pg1-path", "pg1-socket-path", "pg1-port", "pg1-user"];
    let [own, other] = [&own, &other].map(|values| std::array::from_fn::<_, 4, _>(|n| (names[n], values[n].as_str())));
    world.sandbox.write_config(&[("demo", &own), (stanza, &other)]);
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
    configure(world, REPLICA, &replica);
    replica.start();
    let lsn = primary.psql("SELECT pg_current_wal_lsn()");
    replica.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"));
    replica.psql("SELECT pg_promote()");
    replica.wait_promoted();
    replica
}

#[test]
fn a_replica_in_a_stanza_of_its_own_costs_little_and_comes_back() {
    let all = majors();
    let ends: BTreeSet<u32> = [all[0], all[all.len() - 1]].into();
    for major in ends {
        let world = world(major);
        world.cluster.pgbench_init(6);
        world.backup("full");
        world.cluster.pgbench(1, Work::Transactions(200));
        let replica = promoted_replica(&world);
        ok_for(&world, REPLICA, &["stanza-create"]);
        let run = ok_for(&world, REPLICA, &["--start-fast", "--type=full", "backup"]);
        assert!(run.says("pages are compared with backup") && run.says("of stanza 'demo'"), "{run}");
        let data = replica.fingerprint();
        let backup = last_of(&world, REPLICA);
        let (new, size) = (new_bytes(&backup), backup["info"]["size"].as_u64().unwrap());
        assert!(size > 80 << 20 && new * 100 <= 3 * size, "{major}: {new} new bytes of {size}");

        let target = world.sandbox.dir("restored");
        let path = format!("--pg1-path={}", target.display());
        ok_for(&world, REPLICA, &[&path, "--type=immediate", "--target-action=promote", "restore"]);
        let mut restored = world.adopt(&target);
        restored.start();
        restored.wait_promoted();
        assert_eq!(restored.fingerprint(), data);
        restored.amcheck();

        // The replica is a fork now: the primary's newest backup is its own, and costs as little as ever.
        let run = world.ok(["--start-fast", "--type=full", "backup"]);
        assert!(!run.says("pages are compared with backup"), "{run}");
        let again = new_bytes(world.backups().last().unwrap());
        assert!(again * 100 <= size, "{major}: {again} new bytes of {size}");
    }
}

#[test]
fn damage_of_the_newest_backup_in_another_stanza_is_told_and_harms_no_backup() {
    let world = world(majors()[0]);
    world.cluster.pgbench_init(2);
    world.backup("full");
    configure(&world, SECOND, &world.cluster);
    ok_for(&world, SECOND, &["stanza-create"]);
    world.cluster.pgbench(1, Work::Transactions(200));
    // Its WAL goes to the first stanza.
    ok_for(&world, SECOND, &["--start-fast", "--no-archive-check", "--type=full", "backup"]);
    let label = last_of(&world, SECOND)["label"].as_str().unwrap().to_owned();
    let run = world.ok(["--start-fast", "--type=incr", "backup"]);
    assert!(run.says(&format!("pages are compared with backup {label} of stanza 'second'")), "{run}");
    world.cluster.pgbench(1, Work::Transactions(200));
    ok_for(&world, SECOND, &["--start-fast", "--no-archive-check", "--type=full", "backup"]);
    let label = last_of(&world, SECOND)["label"].as_str().unwrap().to_owned();

    // Its manifest, and then its record too.
    let index = world.backups().len();
    let own = metadata_packs(&world, SECOND);
    assert!(own.len() >= 2);
    own.iter().for_each(|path| flip(path));
    let warned = |run: &Run, what: &str| run.messages("WARN").iter().any(|m| m.contains(what) && m.contains(SECOND));
    let run = world.ok(["--start-fast", "--type=full", "backup"]);
    assert!(warned(&run, &label), "{run}");
    for record in fs::read_dir(world.sandbox.repo().join("backups").join(SECOND)).unwrap() {
        flip(&record.unwrap().path());
    }
    world.cluster.pgbench(1, Work::Transactions(200));
    let data = world.cluster.fingerprint();
    let run = world.ok(["--start-fast", "--type=diff", "backup"]);
    assert!(warned(&run, "passed over"), "{run}");
    assert_eq!(world.backups().len(), index + 2);
    let mut restored = world.restore("primary", ["--type=immediate", "--target-action=promote"]);
    restored.start();
    restored.wait_promoted();
    assert_eq!(restored.fingerprint(), data);
}

fn flip(path: &Path) {
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

/// Files of packs that hold metadata of a stanza.
fn metadata_packs(world: &World, stanza: &str) -> Vec<PathBuf> {
    let repository = open(world);
    let sessions: Vec<SessionId> = repository.backups(stanza).unwrap().iter().map(|c| c.session).collect();
    let mut all = Vec::new();
    repository.store().list(layout::PACKS, Depth::All, &mut |listed| all.push(listed)).unwrap();
    let is_wanted = |key: &str, size| {
        let (facts, footer) = read_footer(&repository, layout::parse_pack(key).unwrap(), size).unwrap();
        sessions.contains(&facts.session) && footer.entries.iter().all(|e| e.kind == ChunkKind::Metadata)
    };
    let wanted = all.into_iter().filter(|l| is_wanted(&l.key, l.size));
    wanted.map(|l| world.sandbox.repo().join(l.key)).collect()
}
