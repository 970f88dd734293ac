//! One cluster, all commands, its repository in S3.

use support::{
    Cluster, Work, World,
    objects::{Kind, Server},
    world::data,
};

/// What differs between majors is not the store's to know.
const MAJOR: u32 = 17;

fn options<'a>(owned: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    owned.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[test]
fn a_repository_in_s3_does_all_that_one_in_a_directory_does() {
    let server = Server::start(Kind::S3);
    let owned = server.options("/repo");
    let world = World::of(Cluster::builder(MAJOR), &options(&owned));
    world.cluster.pgbench_init(5);
    let full = world.backup("full");
    world.cluster.pgbench(2, Work::Transactions(200));
    let incr = world.backup("incr");
    world.cluster.pgbench(2, Work::Transactions(100));
    world.archive_now();
    assert_eq!(world.labels(), [full.clone(), incr.clone()]);

    let before = data(&world.cluster);
    let mut restored = world.restore("restored", &[] as &[&str]);
    restored.start();
    assert_eq!(data(&restored), before);
}
