//! What docs/compat.md says is different on purpose, and rules of output, where no other test sees the command do it. What is
//! of no item has the number 0.

use std::fs;

use rustix::fs::Timestamps;
use support::{Cluster, majors, wait_until};

use crate::rig::{Guide, item, no_warning, says};

#[test]
fn what_differs_on_purpose_is_so_at_the_command() {
    let mut guide = Guide::prepared(Cluster::builder(majors().into_iter().max().expect("a major")));
    output(&guide);
    distrust(&guide);
    dependents(&guide);
    levels(&mut guide);
    at_once(&mut guide);
    always(&mut guide);
    gap(&guide);
}

fn output(guide: &Guide) {
    item("0", "process-max is the number of cores");
    says(&guide.shell_expect(0, "pgbackrest help backup process-max"), &["number of cores"]);

    item("1", "JSON of info is all of standard output, without an end of line; its own lines are at DEBUG");
    let run = guide.shell_expect(0, "pgbackrest --log-level-console=info --log-level-stderr=info --output=json info");
    assert!(run.stdout.ends_with(']') && run.stderr.is_empty(), "{run}");
    assert!(!guide.shell_expect(0, "pgbackrest --log-level-console=info info").says("info command begin"));
    let run = guide.shell_expect(0, "pgbackrest --log-level-console=debug info");
    says(&run, &["DEBUG:     info command begin", "DEBUG:     info command end: completed successfully"]);

    item("1", "log-timestamp=n");
    let run = guide.ok("--log-timestamp=n check");
    assert!(run.stdout.lines().filter(|line| line.contains(": ")).all(|line| line.starts_with(['P', ' '])), "{run}");
    says(&run, &["P00   INFO: check command end: completed successfully\n"]);
}

/// Times of files that cannot be trusted make a backup compare all of them.
fn distrust(guide: &Guide) {
    let path = guide.cluster.data_dir().join("odd");
    let put = |content: &str, seconds: i64| {
        fs::write(&path, content).unwrap();
        support::account::give(&path);
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
    };
    let past = 1_700_000_000;
    put("1", past);
    no_warning(&guide.ok("--type=incr backup"));
    for (what, content, seconds, told) in [
        ("an earlier time", "2", past - 1, "an earlier time"),
        ("the same time with another size", "33", past - 1, "another size but the same time"),
        ("a time to come", "44", 4_000_000_000, "a time in the future"),
    ] {
        item("3", &format!("delta is forced by {what}"));
        put(content, seconds);
        let run = guide.ok("--type=incr backup");
        assert!(run.messages("WARN").iter().any(|w| w.contains("'pg_data/odd'") || w.contains("odd'")), "{run}");
        says(&run, &[told, "enabling delta checksum for this backup"]);
    }
    fs::remove_file(&path).unwrap();
    no_warning(&guide.ok("--type=incr backup"));
}

fn dependents(guide: &Guide) {
    item("14", "expire-dependents=n leaves increments without their full");
    let (full, incr) = (guide.backup("--type=full"), guide.backup("--type=incr"));
    guide.backup("--type=full");
    guide.ok("--expire-dependents=n --repo1-retention-full=1 expire");
    let left = guide.labels();
    assert!(!left.contains(&full) && left.contains(&incr), "{left:?}");
    let mut cluster = guide.beside(&format!("--set={incr} --type=immediate --target-action=promote"));
    cluster.start();
    cluster.wait_promoted();
    cluster.stop(support::Mode::Fast);
    // From then on it goes when it is named, or by rules that look at each backup alone.
    guide.ok(&format!("--set={incr} expire"));
    assert!(!guide.labels().contains(&incr));
}

/// Leaves a second repository in the configuration.
fn levels(guide: &mut Guide) {
    item("2", "compress-level of [global:archive-push] is what WAL is stored with, and of no other command");
    guide.cluster.psql("CREATE TABLE text AS SELECT n, md5(n::text) || md5(n::text) FROM generate_series(1, 30000) n");
    let name = guide.archive_now();
    let second = guide.sandbox.dir("repo2").display().to_string();
    guide.set("global", "repo2-path", &second);
    guide.set("global", "repo2-retention-full", "9");
    guide.set("global:archive-push", "compress-level", "19");
    guide.ok("stanza-create");
    let wal = guide.cluster.data_dir().join("pg_wal").join(&name);
    // The first repository has it, by the level that is the default.
    guide.ok(&format!("archive-push {}", wal.display()));
    let bytes = |repo: u32| {
        let run =
            guide.shell_expect(0, &format!("pgbackrest --repo={repo} repo-ls archive/demo --recurse --output=json"));
        let listed = run.json();
        let entry = listed.as_object().unwrap().iter().find(|(path, _)| path.contains(&format!("/{name}-")));
        entry.unwrap_or_else(|| panic!("{name} is not there\n{run}")).1["size"].as_u64().expect("a size")
    };
    assert!(bytes(2) < bytes(1), "level 19: {}, default: {}", bytes(2), bytes(1));
    assert!(!guide.ok("--type=incr --repo=1 backup").says("--compress-level"));
    guide.unset("global:archive-push", "compress-level");
}

fn at_once(guide: &mut Guide) {
    item("22", "two backups at once, to two repositories");
    guide.cluster.psql("CREATE TABLE large AS SELECT n, md5(n::text) FROM generate_series(1, 100000) n; CHECKPOINT");
    // It would take minutes: the other is done long before.
    let mut slow = guide.spawn("--repo=1 --log-level-console=detail --io-limit=512KB --type=full backup");
    slow.wait_for("backup file ");
    // A thread that has just begun does not have its name yet.
    let cores = std::thread::available_parallelism().unwrap().get();
    wait_until("process-max is the number of cores", || workers(guide) == cores);
    let label = guide.backup("--repo=2 --type=full");
    assert!(!slow.ended(), "they were not at once");
    says(&guide.expect(50, "--repo=1 backup"), &["[050]"]);
    slow.signal(rustix::process::Signal::TERM);
    assert_eq!(slow.wait().code, Some(63));
    let info = guide.info("--repo=2");
    assert_eq!(info["backup"][0]["label"], label);

    item("0", "restore goes on with the next repository until it copies");
    let (packs, away) = (guide.sandbox.repo().join("packs"), guide.sandbox.root().join("away"));
    fs::rename(&packs, &away).unwrap();
    let run = guide.ok(&format!("--pg1-path={} --delta restore", guide.side().display()));
    assert!(run.messages("WARN").iter().any(|w| w.contains("trying the next repository")), "{run}");
    says(&run, &[&format!("repo2: restore backup set {label}")]);
    fs::rename(&away, &packs).unwrap();
    guide.unset("global", "repo2-path");
    guide.unset("global", "repo2-retention-full");
}

fn always(guide: &mut Guide) {
    item("5", "archive_mode=always is refused, unless archive-mode-check=n");
    guide.cluster.stop(support::Mode::Fast);
    guide.cluster.configure("archive_mode", "always");
    guide.cluster.start();
    says(&guide.expect(67, "check"), &["[067]", "archive_mode=always"]);
    guide.ok("--archive-mode-check=n check");
}

fn gap(guide: &Guide) {
    item("0", "verify sees a missing segment, and says so by its status");
    // Between backups that are older than the newest full WAL may be gone, as retention has it.
    let last = guide.backup("--type=full");
    for label in guide.labels() {
        if label != last && guide.labels().contains(&label) {
            guide.ok(&format!("--set={label} expire"));
        }
    }
    guide.cluster.psql("CREATE TABLE later AS SELECT 1 n");
    let gone = guide.archive_now();
    guide.archive_now();
    let wal = support::tree::files(&guide.sandbox.repo().join("wal")).into_keys();
    let objects: Vec<_> = wal.filter(|path| path.ends_with(&gone)).collect();
    assert_eq!(objects.len(), 1, "{objects:?}");
    guide.shell_expect(0, "pgbackrest --stanza=demo verify");
    fs::remove_file(&objects[0]).unwrap();
    let run = guide.shell_expect(82, "pgbackrest --stanza=demo --log-level-console=info --output=text verify");
    says(&run, &["[082]", &gone]);
}

/// Threads of the backup under way that copy files.
fn workers(guide: &Guide) -> usize {
    let lock = fs::read(guide.sandbox.locks().join("demo-backup-1.lock")).unwrap();
    let pid = serde_json::from_slice::<serde_json::Value>(&lock).unwrap()["pid"].as_u64().expect("its process");
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path().join("comm"));
    let names = threads.filter_map(|path| fs::read_to_string(path).ok());
    let number =
        |name: &str| name.trim_end().strip_prefix("pgkeep-").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    names.filter(|name| number(name)).count()
}
