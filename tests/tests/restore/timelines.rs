//! After a recovery the cluster goes on on another timeline; both pasts can still be reached.

use support::{Mode, World, spread, world};

#[test]
fn both_sides_of_a_fork_can_be_reached() {
    for major in spread() {
        let mut world = World::new(major);
        world.create_marks();
        world.cluster.pgbench_init(1);
        let load = world.cluster.load(1);
        let full = world.backup("full");
        let fork = world.mark(1);
        let old = world.mark(2);
        load.stop();
        world.archive_now();
        world.cluster.stop(Mode::Fast);

        world.ok(["--delta", "--type=lsn", &format!("--target={}", fork.lsn), "--target-action=promote", "restore"]);
        world.cluster.start();
        world.cluster.wait_promoted();
        assert!(world::data(&world.cluster) == fork.data);
        let load = world.cluster.load(1);
        let run = world.ok(["--start-fast", "--type=incr", "backup"]);
        assert!(run.messages("WARN").iter().any(|w| w.contains("timeline")), "{run}");
        let incr = world::label(&run);
        let new = world.mark(3);
        load.stop();
        world.archive_now();

        let check = |name: &str, args: &[&str], mark: &world::Mark, rows: &[u32]| {
            let mut cluster = world.restore(name, args.iter().chain(&["--target-action=promote"]));
            cluster.start();
            cluster.wait_promoted();
            assert!(world::data(&cluster) == mark.data, "{name}: {}", cluster.log_tail());
            assert_eq!(world::marks(&cluster), rows, "{name}");
        };
        // The new side, from the new backup and, over the fork, from the old one.
        check("new", &["--type=name", &format!("--target={}", new.name)], &new, &[]);
        check("over", &["--type=name", &format!("--target={}", new.name), &format!("--set={full}")], &new, &[]);
        // What the recovery gave up is still in the archive.
        let old_set = format!("--set={full}");
        check(
            "old",
            &["--type=xid", &format!("--target={}", old.xid), &old_set, "--target-timeline=current"],
            &old,
            &[1, 2],
        );
        check("one", &["--type=name", &format!("--target={}", old.name), &old_set, "--target-timeline=1"], &old, &[1]);
        // The new backup has nothing to do with the old timeline's end.
        let target = world.sandbox.dir("refused");
        let run = world.expect(
            58,
            [&format!("--pg1-path={}", target.display()), &format!("--set={incr}"), "--target-timeline=1", "restore"],
        );
        assert!(run.says("[058]") && run.says(&incr), "{run}");
        let run = world.expect(58, [&format!("--pg1-path={}", target.display()), "--target-timeline=9", "restore"]);
        assert!(run.says("00000009.history"), "{run}");
    }
}
