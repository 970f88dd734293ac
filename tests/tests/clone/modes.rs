//! However a clone's files are opened, and whoever serves it, its server finds what it has written.

use std::fs;

use rustix::process::{Signal, kill_process};
use support::{Cluster, Mode, World, pg};

use crate::MAJOR;
use crate::places::{Places, Served, Served::*, wait_until, world_of};

#[test]
fn a_clone_keeps_what_was_committed_however_its_files_are_opened() {
    for major in pg::majors() {
        let (world, _) = world_of(major);
        world.archive_now();
        // Root alone can have files opened past the serving process. It comes last: its log file is closed to others.
        let ways = [("plain", ByPostgres), ("cached", ByRoot), ("auto", ByPostgres), ("auto", ByRoot)];
        // What differs between majors differs most past the serving process.
        let skipped = if major == MAJOR || pg::majors().len() > 2 { 0 } else { 3 };
        for (number, (mode, served)) in ways.into_iter().enumerate().skip(skipped) {
            println!("{major}, {mode}, served {served:?}");
            Use { places: Places::new(&world, &format!("w{number}")), world: &world, major, mode, served }.all();
        }
    }
}

struct Use<'a> {
    world: &'a World,
    places: Places,
    major: u32,
    mode: &'a str,
    served: Served,
}

impl Use<'_> {
    fn clone(&self, what: &str, more: &[&str]) {
        let mode = format!("--clone-open-mode={}", self.mode);
        let command = self.places.command(self.world, what, &[more, &[mode.as_str()]].concat(), self.served);
        let run = self.world.sandbox.finish(command);
        assert_eq!(run.code, Some(0), "{run}");
    }

    /// The serving process dies under its server, and both come back.
    fn die(&self, server: &mut Cluster) {
        kill_process(self.places.daemon(), Signal::KILL).unwrap();
        wait_until("the end of the mount", || fs::read_dir(&self.places.mountpoint).is_err());
        self.clone("mount", &["--force"]);
        assert!(server.wait_end());
        server.start();
    }

    fn all(&self) {
        self.clone("create", &[]);
        let mut server = Cluster::adopt(self.major, &self.places.mountpoint);
        server.start();
        server.wait_promoted();
        // Where the test runs Linux offers passthrough.
        let syncs = if self.served == ByRoot && self.mode == "auto" { "open_datasync" } else { "fdatasync" };
        assert_eq!(server.psql("SHOW wal_sync_method"), syncs);
        let sums = "SELECT sum(abalance) || ' ' || (SELECT sum(i) FROM kept) FROM pgbench_accounts";
        server.psql("CREATE TABLE kept AS SELECT generate_series(1, 100000) AS i");
        server.psql("UPDATE pgbench_accounts SET abalance = aid");
        let first = server.psql(sums);
        self.die(&mut server);
        assert_eq!(server.psql(sums), first);

        // Once everything is here and opened anew.
        self.clone("hydrate", &[]);
        server.stop(Mode::Fast);
        self.clone("stop", &[]);
        self.clone("mount", &[]);
        server.start();
        server.psql("UPDATE pgbench_accounts SET abalance = 2 * aid WHERE aid % 2 = 0");
        server.psql("CHECKPOINT");
        server.psql("UPDATE pgbench_accounts SET abalance = 3 * aid WHERE aid % 3 = 0");
        let second = server.psql(sums);
        self.die(&mut server);
        assert_eq!(server.psql(sums), second);
        server.amcheck();
        server.psql("VACUUM FULL pgbench_accounts");
        server.stop(Mode::Immediate);
        server.start();
        assert_eq!(server.psql(sums), second);
        server.stop(Mode::Fast);
        self.clone("destroy", &[]);
    }
}
