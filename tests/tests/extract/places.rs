//! A cluster with something to take out, and the command that does.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use support::{Cluster, World, sandbox::Run};

use crate::{code, load, pause, users_of};

/// What was there at the time to go back to.
#[derive(Default)]
pub(crate) struct Then {
    pub(crate) time: String,
    pub(crate) orders: String,
    pub(crate) bills: String,
}

pub(crate) struct Shop {
    pub(crate) world: World,
    pub(crate) then: Then,
    /// Where clones are made.
    pub(crate) dir: PathBuf,
    loads: AtomicU32,
}

impl Shop {
    /// Tables, a backup, changes, a time, and a mistake.
    pub(crate) fn new(major: u32) -> Self {
        let world = World::new(major);
        let sql = |text: &str| world.cluster.psql(text);
        sql("CREATE TABLE orders AS SELECT i AS id, 'order ' || i AS note FROM generate_series(1, 5000) AS i");
        sql("CREATE TABLE items AS SELECT i AS id FROM generate_series(1, 200) AS i");
        sql("CREATE SCHEMA sales");
        sql("CREATE TABLE sales.bills AS SELECT i AS id, i * 3 AS amount FROM generate_series(1, 700) AS i");
        world.backup("full");
        pause();
        sql("INSERT INTO orders SELECT i, 'later' FROM generate_series(5001, 6000) AS i");
        sql("UPDATE sales.bills SET amount = 7 WHERE id % 7 = 0");
        let time = sql("SELECT clock_timestamp()");
        let then = Then {
            orders: sql("SELECT count(*), sum(id) FROM orders"),
            bills: sql("SELECT count(*), sum(amount) FROM sales.bills"),
            time,
        };
        pause();
        sql("DELETE FROM orders; INSERT INTO orders VALUES (0, 'all gone')");
        sql("DROP TABLE sales.bills; INSERT INTO items SELECT generate_series(201, 300)");
        world.archive_now();
        Self { then, ..Self::of(world) }
    }

    pub(crate) fn of(world: World) -> Self {
        let dir = world.sandbox.dir("c");
        Self { world, then: Then::default(), dir, loads: AtomicU32::new(0) }
    }

    /// The arguments to take something out at the time.
    pub(crate) fn args(&self, more: &[&str], target: &[&str]) -> Vec<String> {
        self.world.scratch_args("extract", &self.dir, &[more, target].concat())
    }

    pub(crate) fn then(&self) -> [String; 2] {
        ["--type=time".to_owned(), format!("--target={}", self.then.time)]
    }

    /// Takes out what was there at the time.
    pub(crate) fn expect(&self, code: i32, more: &[&str]) -> Run {
        let then = self.then();
        self.expect_at(code, more, &[&then[0], &then[1]])
    }

    pub(crate) fn expect_at(&self, expected: i32, more: &[&str], target: &[&str]) -> Run {
        let run = self.world.run(self.args(more, target));
        assert_eq!(code(&run), expected, "{run}");
        run
    }

    /// A dump loaded into a database of its own, to be asked.
    pub(crate) fn loaded(&self, name: &str, sql: &str) -> impl Fn(&str) -> String + '_ {
        let database = format!("{name}_{}", self.loads.fetch_add(1, Ordering::Relaxed));
        load(&self.world.cluster, &database, sql);
        move |sql| self.world.cluster.psql_in(&database, sql)
    }

    /// A client program that finds the source's server.
    pub(crate) fn reaches<'a>(&self, command: &'a mut Command, database: &str) -> &'a mut Command {
        let cluster: &Cluster = &self.world.cluster;
        command.env("PGHOST", cluster.socket_dir()).env("PGPORT", cluster.port().to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", database)
    }

    /// Whether nothing of a clone is left: no directory, mount or process.
    pub(crate) fn is_clean(&self) -> bool {
        fs::read_dir(&self.dir).unwrap().next().is_none()
            && self.world.sandbox.mounts().is_empty()
            && users_of(&self.dir).is_empty()
    }

    pub(crate) fn assert_clean(&self) {
        let entries: Vec<_> = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        let left = (entries, self.world.sandbox.mounts(), users_of(&self.dir));
        assert!(left.0.is_empty() && left.1.is_empty() && left.2.is_empty(), "{left:?}");
    }
}
