//! Processes killed at random moments: the server, who serves the clone, both; under load, while all of it is fetched.

use std::{thread, time::Duration};

use rustix::process::Signal;
use support::tree;

use crate::ordeal::{self, Ordeal, When, rounds};
use crate::places::{Places, Served, restored, wait_ended, wait_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Server,
    Daemon,
    Both,
}

fn under_load(served: Served) {
    let mut ordeal = Ordeal::new(ordeal::world(), None, served);
    let mut hydrating = None;
    for round in 0..rounds() {
        let victim = [Victim::Server, Victim::Daemon, Victim::Both][round as usize % 3];
        if round == 1 {
            // Slowly, so that it goes on through the rounds that follow.
            hydrating = Some(ordeal.hydrating(3));
        }
        let when = When::random(&mut ordeal.seed, round);
        println!("round {round}: {victim:?}, {when:?}, hydration: {}", ordeal.hydration());
        let daemon = ordeal.places.daemon();
        ordeal.transfers_until(when, |_| {
            if victim != Victim::Server {
                rustix::process::kill_process(daemon, Signal::KILL).unwrap();
                wait_ended(daemon);
            }
        });
        match victim {
            Victim::Server | Victim::Both => ordeal.clone.kill9(),
            // It finds its files gone and ends, or is ended.
            Victim::Daemon => {}
        }
        if victim != Victim::Server {
            ordeal.ok("mount", &["--force"]);
        }
        if victim == Victim::Daemon {
            assert!(ordeal.clone.wait_end());
        }
        ordeal.check();
        ordeal.clone.kill9();
    }
    drop(hydrating);
    ordeal.check();
    ordeal.end_as_ordinary();
}

#[test]
fn under_load_whoever_is_killed() {
    under_load(Served::ByPostgres);
}

#[test]
fn under_load_whoever_is_killed_past_the_daemon() {
    under_load(Served::ByRoot);
}

#[test]
fn a_promotion_that_is_killed_is_ended_by_the_next() {
    let world = ordeal::world();
    let mut seed = support::seed::Seed::new();
    let restored = restored(&world);
    for round in 0..2 * rounds() {
        let places = Places::new(&world, &format!("p{round}"));
        places.create(&world, &[]);
        world.ok(places.args("hydrate"));
        let after = Duration::from_millis(seed.below(400));
        let running = world.spawn(places.args("promote"));
        thread::sleep(after);
        let run = running.kill9();
        println!("round {round}: killed after {after:?}, and it ended with {:?}", run.code);
        if places.dir.join("meta/complete").exists() {
            // It may have been killed just when who serves the clone had been told to end.
            wait_until("the daemon's end", || {
                places.is_mounted(&world) || pgkeep_fuse::clone::check_free(&places.dir).is_ok()
            });
            world.ok(places.args("promote"));
        }
        tree::assert_same(&restored.join("base"), &places.mountpoint.join("base"), |_| false);
        assert!(!places.is_mounted(&world));
    }
}
