//! What a backup does not even begin with: each has its exit status and says what is wrong.

use std::{fs, path::Path, process::Command};

use rustix::process::Signal;
use support::{Cluster, Mode, Run, Sandbox, World, account, majors, world::STANZA};

/// One of the majors, in turn: these tests are about our side.
fn major(turn: usize) -> u32 {
    let all = majors();
    all[turn % all.len()]
}

fn assert_says(run: &Run, texts: &[&str]) {
    texts.iter().for_each(|text| assert!(run.says(text), "does not say '{text}'\n{run}"));
}

#[test]
fn one_backup_at_a_time_and_the_first_goes_on() {
    let world = World::new(major(0));
    world.cluster.pgbench_init(2);
    // Without start-fast the server takes its time over the checkpoint, so this one waits.
    let mut first = world.spawn(["--type=full", "--no-start-fast", "backup"]);
    first.wait_for("backup begins after");
    let second = world.expect(50, ["--start-fast", "backup"]);
    assert_says(&second, &["[050]", "demo-backup-1.lock", "hint: "]);
    world.cluster.checkpoint();
    let first = first.wait();
    assert_eq!(first.code, Some(0), "{first}");
    assert_eq!(world.labels(), [support::world::label(&first)]);
}

#[test]
fn a_signal_ends_a_backup_and_the_next_one_works() {
    let world = World::new(major(1));
    world.cluster.pgbench_init(2);
    let mut running = world.spawn(["--no-start-fast", "backup"]);
    running.wait_for("backup begins after");
    // Whoever signals the group and the process, as a terminal and a supervisor do, means one.
    running.signal(Signal::INT);
    running.signal(Signal::TERM);
    let run = running.wait();
    assert_eq!(run.code, Some(63), "{run}");
    assert_eq!(world.labels(), Vec::<String>::new());
    assert_eq!(open_sessions(&world), Vec::<String>::new());
    // What was killed says nothing; its host knows.
    let mut running = world.spawn(["--no-start-fast", "backup"]);
    running.wait_for("backup begins after");
    running.kill9();
    assert_eq!(open_sessions(&world).len(), 1);
    // The server does not notice at once that its client is gone.
    world.cluster.checkpoint();
    world.cluster.wait_for("SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')");
    let mut running = world.spawn(["--no-start-fast", "backup"]);
    running.wait_for("backup begins after");
    let run = world.ok(["--dry-run", "expire"]);
    assert!(run.says("was killed and is given up") && run.says("has not ended"), "{run}");
    assert_eq!(open_sessions(&world).len(), 2);
    world.cluster.checkpoint();
    let run = running.wait();
    assert!(run.code == Some(0) && run.says("was killed and is given up"), "{run}");
    assert_eq!(open_sessions(&world), Vec::<String>::new());
    world.backup("full");
    assert_eq!(world.labels().len(), 2);
}

/// Sessions that have begun and not ended, by the names of their records.
fn open_sessions(world: &World) -> Vec<String> {
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(world.sandbox.repo().join(dir));
        entries.into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let ended = names("backups/demo");
    names("ses").into_iter().filter(|session| !ended.contains(session)).collect()
}

#[test]
fn stopped_means_stopped() {
    let world = World::new(major(0));
    world.ok(["stop"]);
    assert!(!world.ok(["stop"]).messages("WARN").is_empty());
    let run = world.expect(62, ["--start-fast", "backup"]);
    assert_says(&run, &["[062]", "demo.stop", "hint: "]);
    world.expect(62, ["stanza-create"]);
    let segment = world.cluster.data_dir().join("pg_wal/000000010000000000000001");
    world.expect(62, ["archive-push", segment.to_str().unwrap()]);
    world.ok(["start"]);
    assert!(!world.ok(["start"]).messages("WARN").is_empty());
    world.backup("full");
}

#[test]
fn the_cluster_must_be_the_stanzas_and_the_server_the_clusters() {
    let world = World::new(major(0));
    let mut other = Cluster::builder(major(1)).setting("archive_mode", "on").setting("archive_command", "true").init();
    other.start();
    // Everything of another cluster.
    world.sandbox.configure(STANZA, &other, &[]);
    let run = world.expect(51, ["--start-fast", "backup"]);
    assert_says(&run, &["[051]", "system identifier", STANZA]);
    assert!(world.run(["stanza-create"]).code != Some(0));
    // The server of one and the directory of the other.
    let (path, socket) = (world.cluster.data_dir().to_str().unwrap(), other.socket_dir().to_str().unwrap());
    let mixed = [
        ("pg1-path", path),
        ("pg1-socket-path", socket),
        ("pg1-port", &other.port().to_string()),
        ("pg1-user", "postgres"),
    ];
    world.sandbox.write_config(&[(STANZA, &mixed)]);
    let run = world.expect(58, ["--start-fast", "backup"]);
    assert_says(&run, &["[058]", path, other.data_dir().to_str().unwrap()]);
    world.sandbox.configure(STANZA, &world.cluster, &[]);
    world.backup("full");
}

#[test]
fn a_server_that_is_not_there_cannot_be_backed_up_online() {
    let mut world = World::new(major(1));
    let port = world.cluster.port().to_string();
    let wrong = if port == "1" { "2" } else { "1" };
    let run = world.expect(56, ["--start-fast", &format!("--pg1-port={wrong}"), "backup"]);
    assert_says(&run, &["[056]", world.cluster.socket_dir().to_str().unwrap(), "hint: "]);
    let run = world.expect(56, ["--start-fast", "--pg1-socket-path=/nonexistent", "backup"]);
    assert_says(&run, &["[056]", "/nonexistent"]);
    let run = world.expect(56, ["--start-fast", "--pg1-user=nobody", "backup"]);
    assert_says(&run, &["[056]", "nobody"]);
    world.cluster.stop(Mode::Fast);
    world.expect(56, ["--start-fast", "backup"]);
    assert_eq!(world.labels(), Vec::<String>::new());
}

#[test]
fn online_needs_archiving_and_offline_needs_a_stopped_server() {
    let mut world = World::new(major(0));
    let run = world.expect(38, ["--no-online", "backup"]);
    assert_says(&run, &["[038]", world.cluster.data_dir().to_str().unwrap(), "hint: "]);

    world.cluster.stop(Mode::Fast);
    // As after a restore: without its label the copy would start from the wrong checkpoint.
    let label_file = world.cluster.data_dir().join("backup_label");
    fs::write(&label_file, "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n").unwrap();
    let run = world.expect(28, ["--no-online", "backup"]);
    assert_says(&run, &["[028]", label_file.to_str().unwrap(), "start and stop its server first"]);
    fs::remove_file(&label_file).unwrap();
    let offline = world.ok(["--no-online", "backup"]);
    let label = support::world::label(&offline);
    let backup = world.backups().remove(0);
    assert_eq!(backup["label"], label.as_str());
    assert!(backup["archive"]["start"].is_null() && backup["archive"]["stop"].is_null(), "{backup:#}");

    world.cluster.override_setting("archive_mode", "off");
    world.cluster.start();
    let run = world.expect(87, ["--start-fast", "backup"]);
    assert_says(&run, &["[087]", "archive_mode", "hint: "]);
    assert_eq!(world.labels(), [label]);
}

#[test]
fn a_server_without_a_command_is_not_waited_for() {
    let world = World::new(major(0));
    world.set_archive_command("");
    // With so long a timeout the test would not end.
    let run = world.expect(68, ["--start-fast", "--archive-timeout=1d", "backup"]);
    assert_says(&run, &["[068]", "archive_command is empty", "hint: set archive_command to"]);
    let run = world.expect(68, ["--archive-timeout=1d", "check"]);
    assert_says(&run, &["[068]", "archive_command is empty"]);
    assert_eq!(world.labels(), Vec::<String>::new());
    world.ok(["--start-fast", "--no-archive-check", "backup"]);
    assert_eq!(world.labels().len(), 1);
}

#[test]
fn wal_that_does_not_arrive_fails_the_backup() {
    let world = World::new(major(1));
    world.set_archive_command("false");
    let run = world.expect(82, ["--start-fast", "--archive-timeout=1", "backup"]);
    assert_says(&run, &["[082]", "0000000100000000", "hint: "]);
    assert_eq!(world.labels(), Vec::<String>::new());
    world.set_archive_command(&world.sandbox.archive_command(STANZA));
    world.backup("full");
}

#[test]
fn a_repository_needs_its_passphrase_and_must_be_there() {
    let sealed = [("repo1-cipher-type", "aes-256-cbc"), ("repo1-cipher-pass", "right")];
    let world = World::of(Cluster::builder(major(0)), &sealed);
    world.backup("full");
    let with = |global: &[(&str, &str)]| world.sandbox.configure(STANZA, &world.cluster, global);

    with(&[("repo1-cipher-type", "aes-256-cbc"), ("repo1-cipher-pass", "wrong")]);
    let run = world.expect(95, ["--start-fast", "backup"]);
    assert_says(&run, &["[095]", world.sandbox.repo().to_str().unwrap(), "hint: "]);
    assert!(!run.says("wrong\"") && !run.says("=wrong"), "a passphrase is shown\n{run}");
    // To those who only look it is a status, and they see of which repository.
    let info = world.sandbox.run_ok(["--output=json", "info"]).json();
    let status = &info[0]["repo"][0]["status"];
    let message = status["message"].as_str().unwrap_or_default();
    assert!(status["code"] == 99 && message.contains(world.sandbox.repo().to_str().unwrap()), "{info:#}");
    assert!(message.contains("no key slot"), "{info:#}");
    // It is sealed, so reading it without a passphrase must fail as well.
    with(&[]);
    world.expect(95, ["--start-fast", "backup"]);
    with(&[("repo1-path", "/nonexistent/repo")]);
    let run = world.expect(55, ["--start-fast", "backup"]);
    assert_says(&run, &["[055]", "/nonexistent/repo", "hint: "]);
    let empty = world.sandbox.dir("empty");
    with(&[("repo1-path", empty.to_str().unwrap())]);
    let run = world.expect(55, ["--start-fast", "backup"]);
    assert_says(&run, &["[055]", empty.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "a failed command left something in an empty repository");

    with(&sealed);
    let run = world.sandbox.run_expect(
        55,
        ["--stanza=other", &format!("--pg1-path={}", path(&world)), "--no-online", "--force", "backup"],
    );
    assert_says(&run, &["[055]", "other"]);
    world.backup("incr");
    assert_eq!(world.labels().len(), 2);
    // Nothing in the repository shows what it holds.
    let grep = account::command("/bin/grep")
        .args(["-rlaE", "pgbench|backup_label|PG_VERSION"])
        .arg(world.sandbox.repo())
        .output();
    assert_eq!(String::from_utf8_lossy(&grep.unwrap().stdout), "", "plain text in a sealed repository");
}

fn path(world: &World) -> String {
    Path::new(world.cluster.data_dir()).display().to_string()
}

#[test]
fn root_is_refused_and_secrets_are_not_for_the_command_line() {
    let sandbox = Sandbox::new();
    sandbox.write_config(&[(STANZA, &[("pg1-path", "/nonexistent")])]);
    let run = sandbox.run_expect(31, ["--stanza=demo", "--repo1-cipher-pass=x", "backup"]);
    assert_says(&run, &["[031]", "repo1-cipher-pass"]);
    if rustix::process::getuid().is_root() {
        let mut command = Command::new(sandbox.binary());
        command.arg(format!("--config={}", sandbox.config().display())).args(["--stanza=demo", "backup"]);
        let run = sandbox.finish(command);
        assert_eq!(run.code, Some(31), "{run}");
        assert_says(&run, &["root", "allow-root"]);
    }
}

fn run(command: &str, arguments: &[&Path]) {
    let done = Command::new(command).arg(if command == "cp" { "-a" } else { "--" }).args(arguments).status().unwrap();
    assert!(done.success(), "{command} {arguments:?}: {done}");
}

#[test]
fn an_archive_of_another_history_is_not_taken_for_ours() {
    let mut world = World::new(major(0));
    world.cluster.stop(Mode::Fast);
    let data = world.cluster.data_dir().to_owned();
    let (earlier, left) = (world.path("earlier"), world.path("left"));
    run("cp", &[&data, &earlier]);
    world.cluster.start();
    world.cluster.pgbench_init(1);
    for _ in 0..3 {
        world.archive_now();
    }
    world.backup("full");
    world.cluster.stop(Mode::Fast);

    // Back to the earlier state, on the same timeline: every segment that a backup waits for is there, by name.
    run("mv", &[&data, &left]);
    run("mv", &[&earlier, &data]);
    world.cluster.start();
    world.cluster.psql("CREATE TABLE other AS SELECT generate_series(1, 1000) AS id");
    for option in ["--type=full", "--type=incr", "--no-archive-check"] {
        let run = world.expect(45, ["--start-fast", option, "backup"]);
        assert_says(&run, &["[045]", "another history of the same timeline", STANZA]);
    }
    assert_eq!(world.labels().len(), 1);
    world.cluster.stop(Mode::Fast);

    // The history that is in the archive goes on.
    run("mv", &[&data, &earlier]);
    run("mv", &[&left, &data]);
    world.cluster.start();
    world.backup("incr");
}
