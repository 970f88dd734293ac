//! The disk of a clone is full while its server works: that is told, nothing is harmed, and all goes on once there is room.

use std::{fs, path::Path};

use postgres::error::SqlState;

use crate::disk::Disk;
use crate::ordeal::{self, Ordeal, Served, When};

/// What a clone of the world takes when all of it is there, and as much again.
const DISK_BYTES: u64 = 224 << 20;
/// What is left of it.
const LEFT_BYTES: u64 = 3 << 20;

/// Takes all room but a little.
fn fill(disk: &Disk) -> std::path::PathBuf {
    let (path, at) = (disk.point().join("ballast"), rustix::fs::statvfs(disk.point()).unwrap());
    let bytes = (at.f_bavail * at.f_frsize).saturating_sub(LEFT_BYTES);
    let file = fs::File::create(&path).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
    path
}

fn relieve(ballast: &Path) {
    fs::remove_file(ballast).unwrap();
}

#[test]
fn a_full_disk_fails_writers_and_hydration_and_harms_nothing() {
    let world = ordeal::world();
    let disk = Disk::new(&world.sandbox, "ext4", DISK_BYTES);
    let mut ordeal = Ordeal::new(world, Some(disk), Served::ByPostgres);
    ordeal.transfers_until(When::Acknowledged(50), |_| {});
    let table = ordeal.clone.data_dir().join(ordeal.clone.psql("SELECT pg_relation_filepath('pgbench_accounts')"));
    let ballast = fill(ordeal.disk.as_ref().unwrap());

    // A relation that cannot grow: an error like any other.
    let mut client = ordeal.clone.connect();
    let unlogged = "CREATE UNLOGGED TABLE big AS SELECT i, repeat('z', 1000) AS t FROM generate_series(1, 30000) AS i";
    let error = client.batch_execute(unlogged).expect_err("there is no room for it");
    assert_eq!(error.code(), Some(&SqlState::DISK_FULL), "{error:?}\n{}", ordeal.clone.log_tail());
    // What is absent is read all the same, though it cannot be kept. Not by the server: that would tidy up, and log it.
    // What the server has added since may be zeros until it writes it.
    let (pages, old) = (fs::read(&table).unwrap(), 20 << 20);
    assert!(pages.len() > old && pages[..old].chunks(8192).all(|page| page.iter().any(|byte| *byte != 0)));
    // Hydration leaves what is left to the server, and says so.
    let run = ordeal.world.sandbox.finish(ordeal.command("hydrate", &[]));
    assert!(run.code == Some(42) && run.says("are free beyond the reserve"), "{run}");
    let told = &ordeal.ok("list", &["--output=json"]).json()[0]["hydration"];
    assert!(told["state"] == "failed" && told["error"].as_str().unwrap().contains("free beyond the reserve"), "{told}");

    // WAL that cannot grow ends a server, whatever it runs on.
    let logged = "INSERT INTO shrinks SELECT 5000 + i, repeat('w', 1000) FROM generate_series(1, 1000) AS i";
    let error = (0..200).find_map(|_| client.batch_execute(logged).err()).expect("there is no room for it");
    let log = ordeal.clone.log();
    assert!(log.contains("No space left on device"), "{error:?}\n{}", ordeal.clone.log_tail());
    drop(client);
    ordeal.clone.kill9();
    relieve(&ballast);
    ordeal.check();
    ordeal.end_as_ordinary();
}
