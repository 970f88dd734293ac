//! A server on a clone whose disk is full: it reads on, what it cannot write fails and nothing else, hydration waits.

use std::{fs, path::Path};

use support::{Cluster, Mode, World};

use crate::{
    MAJOR,
    places::{Places, wait_until},
};

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 256 * MIB;
/// What reads of a clone leave of a small file system: a fiftieth.
const RESERVE_BYTES: u64 = DISK_BYTES / 50;
/// More than is left of the disk for the clone, and some: the table has some 60 MiB.
const ROOM_BYTES: u64 = 24 * MIB;
/// `disk_full`.
const DISK_FULL: &str = "53100";

fn free(place: &Path) -> u64 {
    let facts = rustix::fs::statvfs(place).unwrap();
    facts.f_bavail * facts.f_frsize
}

#[test]
fn on_a_full_disk_a_server_reads_on_and_only_what_needs_room_fails() {
    let world = World::of(Cluster::builder(MAJOR).setting("autovacuum", "off"), &[]);
    let text = "(SELECT string_agg(md5(g::text || s), '') FROM generate_series(1, 60) s)";
    world.cluster.psql(&format!("CREATE TABLE big AS SELECT g, {text} AS t FROM generate_series(1, 30000) g"));
    world.cluster.psql("ALTER TABLE big ADD PRIMARY KEY (g)");
    // There are no hint bits to be set, by which reading would be writing.
    world.cluster.connect().batch_execute("VACUUM (FREEZE, ANALYZE) big").unwrap();
    let sums = "SELECT count(*), sum(hashtext(t)::bigint) FROM big WHERE g > 0";
    let expected = world.cluster.psql(sums);
    world.backup("full");
    let disk = world.sandbox.small_disk("disk", DISK_BYTES);
    let mut places = Places::new(&world, "full");
    places.dir = disk.join("clone");
    places.create(&world, &[]);
    let mut server = places.server();
    // From here on WAL is written into files that are there.
    server.psql("CREATE TABLE small AS SELECT 0 AS n");
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; usize::try_from(free(&disk) - ROOM_BYTES).unwrap()]).unwrap();

    assert_eq!(server.psql(sums), expected);
    assert!(free(&disk) >= RESERVE_BYTES, "reading has left {} bytes", free(&disk));
    // No WAL is written of what is in it: the room ends for the table alone.
    let error = server.connect().simple_query("CREATE TEMPORARY TABLE copy AS SELECT * FROM big").unwrap_err();
    assert_eq!(error.code().map(postgres::error::SqlState::code), Some(DISK_FULL), "{error:?}\n{}", server.log_tail());
    for n in 1..=50 {
        server.psql(&format!("INSERT INTO small VALUES ({n})"));
    }
    server.checkpoint();
    let run = world.expect(42, places.args("hydrate"));
    assert!(run.says("it goes on when there is room"), "{run}");
    assert_eq!(server.psql(sums), expected);
    assert_eq!(server.psql("SELECT count(*) FROM small"), "51");
    assert!(!server.log().contains("PANIC"), "{}", server.log_tail());

    fs::remove_file(&ballast).unwrap();
    wait_until("hydration", || places.info(&world)["hydration"]["state"] == "done");
    assert_eq!(server.psql(sums), expected);
    server.kill9();
    server.start();
    assert_eq!(server.psql("SELECT count(*) FROM small"), "51");
    assert_eq!(server.psql(sums), expected);
    server.stop(Mode::Fast);
    world.ok(places.args("destroy"));
}
