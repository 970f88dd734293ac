//! The same SQL on a server of its own and on a clone of it: what both print is the same, to the byte.
//!
//! The scripts are in `tests/sql`: all kinds of definitions, indexes, scans and rewrites over relations of the backup,
//! among them errors on purpose, then a server that ends without a checkpoint, and what must be there after it.

use std::{
    fs::{self, File},
    path::Path,
    process::Stdio,
};

use support::{Cluster, Mode, World, account, world::data};

use crate::places::Places;

/// Feeds a script to psql; everything it prints, statements and errors too.
fn run(world: &World, cluster: &Cluster, script: &str) -> String {
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(script);
    let output = world.path(&format!("{script}.{}.out", cluster.port()));
    let out = File::create(&output).unwrap();
    let mut psql = account::command(cluster.binaries().client("psql"));
    psql.arg("-h").arg(cluster.socket_dir()).arg("-p").arg(cluster.port().to_string());
    psql.args(["-X", "-q", "-a", "-U", "postgres", "-d", "postgres"]);
    psql.stdin(Stdio::from(File::open(input).unwrap())).stdout(out.try_clone().unwrap()).stderr(out);
    let status = psql.status().unwrap();
    let printed = fs::read_to_string(&output).unwrap();
    assert!(status.success(), "{script} on {cluster:?}: {status}\n{printed}\n{}", cluster.log_tail());
    printed
}

/// From 15 on there are tablespaces in place and strategies of CREATE DATABASE.
fn same_everywhere(major: u32) {
    let builder = Cluster::builder(major).setting("max_prepared_transactions", "10").setting("autovacuum", "off");
    let mut world = World::of(builder, &[]);
    run(&world, &world.cluster, "before.sql");
    world.backup("full");
    // A backup of a running server has nothing of such tables.
    world.cluster.psql("TRUNCATE unlogged_before");
    world.archive_now();
    let places = Places::new(&world, "sql");
    places.create(&world, &[]);
    let mut clone = Cluster::adopt(major, &places.mountpoint);
    clone.start();
    clone.wait_promoted();
    for script in ["definitions.sql", "access.sql", "storage.sql", "after.sql"] {
        if script == "after.sql" {
            clone.kill9();
            clone.start();
            world.cluster.kill9();
            world.cluster.start();
        }
        let (native, cloned) = (run(&world, &world.cluster, script), run(&world, &clone, script));
        let differing = native.lines().zip(cloned.lines()).position(|(a, b)| a != b);
        if let Some(line) = differing {
            let around = |text: &str| text.lines().skip(line.saturating_sub(6)).take(12).collect::<Vec<_>>().join("\n");
            panic!("{script}, line {line}: native\n{}\n--- clone\n{}", around(&native), around(&cloned));
        }
        assert_eq!(native.len(), cloned.len(), "{script}");
        println!("{script}: {} lines, {} errors", native.lines().count(), native.matches("ERROR:").count());
    }
    assert_eq!(data(&clone), data(&world.cluster));
    clone.amcheck();
    clone.stop(Mode::Fast);
    world.ok(places.args("destroy"));
}

#[test]
fn everything_is_answered_as_by_a_server_of_its_own() {
    let all = support::pg::majors();
    // The newest one, or all if many are asked for.
    let from = if all.len() > 2 { 0 } else { all.len() - 1 };
    for major in all.into_iter().skip(from) {
        println!("PostgreSQL {major}");
        same_everywhere(major);
    }
}
