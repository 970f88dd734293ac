//! What a restore refuses before it changes anything.

use std::{fs, thread, time::Duration};

use support::{Mode, Run, Sandbox, Work, World, majors};

fn listing(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn says(run: &Run, texts: &[&str]) {
    texts.iter().for_each(|text| assert!(run.says(text), "does not say '{text}'\n{run}"));
}

#[test]
fn directories_in_use_and_sets_that_do_not_fit_are_refused() {
    let mut world = World::new(majors()[0]);
    world.cluster.pgbench_init(1);
    let early = world.cluster.psql("SELECT clock_timestamp()");
    let early_lsn = world.cluster.psql("SELECT pg_current_wal_lsn()");
    thread::sleep(Duration::from_millis(1100));
    let label = world.backup("full");
    let before = world.cluster.fingerprint();

    let run = world.expect(38, ["--delta", "restore"]);
    says(&run, &["[038]", "postmaster.pid", "hint: "]);
    world.cluster.stop(Mode::Fast);
    let run = world.expect(40, ["restore"]);
    says(&run, &["[040]", world.cluster.data_dir().to_str().unwrap(), "hint: "]);

    let target = world.sandbox.dir("target");
    let to = format!("--pg1-path={}", target.display());
    let refuse = |code: i32, args: &[&str], texts: &[&str]| {
        let run = world.expect(code, args.iter().chain(&[to.as_str(), "restore"]));
        says(&run, &[&format!("[{code:03}]")]);
        says(&run, texts);
        assert_eq!(listing(&target), Vec::<String>::new(), "{run}");
    };
    refuse(75, &["--set=20200101-000000F"], &["20200101-000000F", "hint: "]);
    refuse(75, &["--type=time", &format!("--target={early}")], &["earliest"]);
    refuse(75, &["--type=lsn", &format!("--target={early_lsn}")], &["earliest"]);
    refuse(75, &["--type=time", &format!("--target={early}"), &format!("--set={label}")], &[&label]);
    refuse(29, &["--type=time", "--target=yesterday"], &["option 'target': 'yesterday' is not a time"]);
    let run = world.expect(29, ["--type=time", "--target=yesterday", to.as_str(), "restore"]);
    assert!(!run.says("hint: "), "nothing stored is damaged\n{run}");
    refuse(58, &["--target-timeline=7"], &["timeline 7", &label]);
    refuse(37, &["--type=time"], &["target"]);
    refuse(31, &["--type=immediate", "--target=x"], &["target"]);
    refuse(76, &["--tablespace-map=none=/tmp/x"], &["none"]);
    assert!(
        world.run([&to, "--repo1-path=/nonexistent", "restore"]).code.is_some_and(|code| code == 55 || code == 103)
    );

    world.cluster.start();
    assert!(world.cluster.fingerprint() == before, "a refused restore changed the cluster");
    fs::write(target.join("something"), "else").unwrap();
    let run = world.expect(40, [&to, "restore"]);
    says(&run, &["[040]", target.to_str().unwrap()]);
    // Delta over what is no cluster would remove a stranger's files.
    let run = world.run([to.as_str(), "--delta", "restore"]);
    assert!(!run.messages("WARN").is_empty() && run.code == Some(40), "{run}");
    assert!(run.says("hint: move away what is there") && !run.says("hint: --delta"), "{run}");
    assert_eq!(listing(&target), ["something"]);
}

#[test]
fn without_backups_there_is_nothing_to_restore() {
    let world = World::new(majors()[0]);
    let target = world.sandbox.dir("target");
    let run = world.expect(75, [&format!("--pg1-path={}", target.display()), "restore"]);
    says(&run, &["[075]", "no backup"]);
    assert_eq!(listing(&target), Vec::<String>::new());
}

#[test]
fn a_full_target_disk_fails_and_room_lets_it_go_on() {
    let sandbox = Sandbox::new();
    let small = sandbox.small_disk("small", 16 << 20);
    let world = World::within(sandbox, support::Cluster::builder(majors()[0]), &[]);
    world.create_marks();
    world.cluster.pgbench_init(2);
    world.cluster.pgbench(1, Work::Transactions(100));
    world.backup("full");
    let mark = world.mark(1);
    world.archive_now();
    let to = [
        format!("--pg1-path={}", small.display()),
        "--type=name".into(),
        format!("--target={}", mark.name),
        "--target-action=promote".into(),
    ];
    let run = world.expect(64, to.iter().map(String::as_str).chain(["restore"]));
    says(&run, &["[064]", "o space left on device", small.to_str().unwrap(), "hint: "]);
    let mut cluster = world.adopt(&small);
    assert!(cluster.try_start().is_err(), "half a restore can be started");
    world.sandbox.remount(&small, "size=1g");
    world.ok(to.iter().map(String::as_str).chain(["--delta", "restore"]));
    cluster.start();
    cluster.wait_promoted();
    assert!(support::world::data(&cluster) == mark.data);
}
