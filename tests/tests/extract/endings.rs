//! Ends in the middle: by signals, of the command and of the process that serves the clone.

use std::{fs, path::PathBuf, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use support::{Cluster, sandbox::Running, wait_until};

use crate::{conninfo, places::Shop};

/// The scratch directory, once there is one.
fn scratch(shop: &Shop) -> Option<PathBuf> {
    fs::read_dir(&shop.dir).unwrap().flatten().map(|entry| entry.path()).next()
}

/// Whether the clone's server has begun to run.
fn has_server(shop: &Shop) -> bool {
    scratch(shop).is_some_and(|dir| dir.join("clone/data/postmaster.pid").exists())
}

/// The process that serves the clone.
fn keeper(shop: &Shop) -> Pid {
    let root = format!("--scratch={}", scratch(shop).unwrap().display());
    support::sandbox::serving(&root)
}

/// A server that takes no table `orders` until the returned client lets it, and a dump of that table on its way there.
fn blocked(shop: &Shop) -> (Cluster, postgres::Client, Running) {
    let mut other = Cluster::builder(15).init();
    other.start();
    let mut client = other.connect();
    client.batch_execute("BEGIN; CREATE TABLE orders (id int)").unwrap();
    let then = shop.then();
    let into = format!("--into={}", conninfo(&other, "postgres"));
    let running = shop.world.spawn(shop.args(&["--table=orders", "--no-owner", &into], &[&then[0], &then[1]]));
    other.wait_for("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'");
    (other, client, running)
}

#[test]
fn asked_to_end_it_leaves_nothing() {
    let shop = Shop::new(15);
    for signal in [Signal::TERM, Signal::INT] {
        // In the middle of the dump.
        let (other, mut client, mut running) = blocked(&shop);
        running.signal(signal);
        let run = running.wait();
        assert_eq!(run.code, Some(63), "{run}");
        shop.assert_clean();
        client.batch_execute("ROLLBACK").unwrap();
        other.wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'CREATE TABLE%'");
        assert_eq!(other.psql("SELECT count(*) FROM pg_class WHERE relname = 'orders'"), "0");
        // In the middle of recovery, or before.
        let mut running = shop.world.spawn(shop.args(&["--table=orders"], &[]));
        wait_until("a directory", || scratch(&shop).is_some());
        if signal == Signal::INT {
            wait_until("a server", || has_server(&shop));
        }
        running.signal(signal);
        let run = running.wait();
        assert_eq!(run.code, Some(63), "{run}");
        assert_eq!(run.stdout, "");
        shop.assert_clean();
    }
}

#[test]
fn killed_it_leaves_nothing() {
    let shop = Shop::new(15);
    // In the middle of the dump into a server, which must not take half of it.
    let (other, mut client, running) = blocked(&shop);
    running.kill9();
    wait_until("the end of everything", || shop.is_clean());
    client.batch_execute("ROLLBACK").unwrap();
    other.wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'CREATE TABLE%'");
    assert_eq!(other.psql("SELECT count(*) FROM pg_class WHERE relname = 'orders'"), "0");

    // At whatever moment of the beginning.
    for millis in [0, 2, 4, 8, 12, 16, 24, 32, 64] {
        let running = shop.world.spawn(shop.args(&["--table=orders"], &[]));
        thread::sleep(Duration::from_millis(millis));
        running.kill9();
        wait_until("the end of everything", || shop.is_clean());
    }

    // As soon as there is a directory, a mount, a server; and in the middle of writing a file.
    let dumps = shop.world.sandbox.dir("dumps");
    for format in ["plain", "directory"] {
        for stage in 0..4 {
            let file = format!("--file={}", dumps.join("out").display());
            let then = shop.then();
            let args = shop.args(&["--table=orders", &file, &format!("--format={format}")], &[&then[0], &then[1]]);
            let running = shop.world.spawn(args);
            wait_until("the moment", || match stage {
                0 => scratch(&shop).is_some(),
                1 => !shop.world.sandbox.mounts().is_empty(),
                2 => has_server(&shop),
                _ => fs::read_dir(&dumps).unwrap().next().is_some(),
            });
            running.kill9();
            wait_until("the end of everything", || shop.is_clean());
            // Whole, or not there at all.
            wait_until("the end of what was written", || {
                fs::read_dir(&dumps).unwrap().flatten().all(|entry| entry.file_name() == "out")
            });
            let out = dumps.join("out");
            if out.is_dir() {
                assert!(out.join("toc.dat").is_file());
                fs::remove_dir_all(out).unwrap();
            } else if out.exists() {
                assert!(fs::read_to_string(&out).unwrap().contains("PostgreSQL database dump complete"));
                fs::remove_file(out).unwrap();
            }
        }
    }
}

#[test]
fn the_death_of_who_serves_the_clone_leaves_nothing_either() {
    let shop = Shop::new(15);
    let (other, mut client, running) = blocked(&shop);
    kill_process(keeper(&shop), Signal::KILL).unwrap();
    client.batch_execute("ROLLBACK").unwrap();
    let run = running.wait();
    // Small enough to have been dumped already: then all is well, and else it is told.
    assert!(matches!(run.code, Some(0 | 102)), "{run}");
    shop.assert_clean();
    let there = other.psql("SELECT count(*) FROM pg_class WHERE relname = 'orders'");
    assert_eq!(there == "1", run.code == Some(0), "{run}");

    let running = shop.world.spawn(shop.args(&["--table=orders"], &[]));
    wait_until("a server", || has_server(&shop));
    kill_process(keeper(&shop), Signal::KILL).unwrap();
    let run = running.wait();
    assert!(run.code.is_some_and(|code| code != 0) && run.stdout.is_empty(), "{run}");
    shop.assert_clean();
}

#[test]
fn what_two_dead_processes_left_the_next_one_removes() {
    let shop = Shop::new(15);
    let (_other, _client, running) = blocked(&shop);
    let left = scratch(&shop).unwrap();
    // Stopped first, so that it cannot do its work in between.
    kill_process(keeper(&shop), Signal::STOP).unwrap();
    let keeper = keeper(&shop);
    running.kill9();
    kill_process(keeper, Signal::KILL).unwrap();
    assert!(left.exists() && !shop.world.sandbox.mounts().is_empty());
    // One that is in use stays.
    let (_second, _client_of_second, mut used) = blocked(&shop);
    wait_until("the end of what was left", || !left.exists());
    let in_use = scratch(&shop).unwrap();
    shop.expect(0, &["--table=items"]);
    assert!(in_use.exists());
    used.signal(Signal::TERM);
    used.wait();
    shop.assert_clean();
}
