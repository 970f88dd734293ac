//! A restore killed at any moment: nothing starts on what it left, and running it again completes it.

use std::{thread, time::Instant};

use support::{Mode, World, majors, seed::Seed, world::data};

#[test]
fn killed_at_any_moment_it_cannot_be_started_and_can_be_rerun() {
    let world = World::new(majors()[0]);
    world.create_marks();
    world.cluster.pgbench_init(5);
    world.backup("full");
    let mark = world.mark(1);
    world.archive_now();
    let args = |target: &str| {
        [
            "--type=name",
            &format!("--target={}", mark.name),
            "--target-action=promote",
            "--delta",
            &format!("--pg1-path={target}"),
            "restore",
        ]
        .map(str::to_owned)
    };
    let begun = Instant::now();
    let measured = world.sandbox.dir("measured");
    world.ok(args(measured.to_str().unwrap()));
    let usual = begun.elapsed();

    let mut seed = Seed::new();
    let mut finished = 0;
    for round in 0..6 {
        // Twice killed on the same directory, the second time on what the first one left.
        let target = world.sandbox.dir(&format!("target{round}"));
        for _ in 0..2 {
            let mut running = world.spawn(args(target.to_str().unwrap()));
            running.wait_for("command begin");
            thread::sleep(usual.mul_f64(seed.below(1000) as f64 / 1000.0));
            let run = running.kill9();
            let mut cluster = world.adopt(&target);
            if run.says("restored backup set") || target.join("global/pg_control").exists() {
                finished += 1;
                continue;
            }
            assert!(cluster.try_start().is_err(), "a server starts on half a restore\n{run}");
        }
        world.ok(args(target.to_str().unwrap()));
        let mut cluster = world.adopt(&target);
        cluster.start();
        cluster.wait_promoted();
        assert!(data(&cluster) == mark.data, "round {round}");
        if round == 0 {
            cluster.amcheck();
        }
        cluster.stop(Mode::Immediate);
        std::fs::remove_dir_all(&target).unwrap();
    }
    println!("{finished} restores were done before they were killed");
}
