//! Items 33 and 34: what goes wrong, with its exit status, and what the guide's questions and answers are about.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, symlink},
    path::PathBuf,
};

use rustix::fs::{FlockOperation, flock};
use support::{Cluster, Mode, account};

use crate::{
    rig::{Guide, item, no_warning, says},
    whole,
};

#[test]
fn items_33_and_34_what_goes_wrong_and_odd_jobs() {
    for major in whole() {
        println!("== PostgreSQL {major}");
        let mut guide = Guide::new(Cluster::builder(major));
        guide.archive();
        guide.set("global", "repo1-retention-full", "9");
        guide.set("global", "start-fast", "y");
        guide.cluster.start();
        let early = guide.time();
        guide.ok("stanza-create");
        let full = guide.backup("--type=full");
        wal(&guide, major);
        refusals(&guide, &full, &early);
        left_out_and_linked(&guide);
        killed(&guide);
        queue(&guide);
        offline(&mut guide);
    }
}

/// A file for the command, with these bytes.
fn file(guide: &Guide, name: &str, bytes: &[u8]) -> PathBuf {
    let path = guide.sandbox.root().join(name);
    fs::create_dir_all(path.parent().expect("it has a directory")).unwrap();
    fs::write(&path, bytes).unwrap();
    account::give(&path);
    path
}

/// Item 33: WAL.
fn wal(guide: &Guide, major: u32) {
    item("33", "a segment again, altered, of another cluster, and one that is not there");
    let name = guide.archive_now();
    let segment = guide.cluster.data_dir().join("pg_wal").join(&name);
    let push =
        |code: i32, path: &PathBuf, more: &str| guide.expect(code, &format!("{more} archive-push {}", path.display()));
    let run = push(0, &segment, "");
    assert!(run.messages("WARN").len() == 1 && run.says("already exists"), "{run}");
    let altered = file(guide, &format!("altered/{name}"), &fs::read(&segment).unwrap());
    fs::OpenOptions::new().write(true).open(&altered).unwrap().write_all_at(b"other", 1_000_000).unwrap();
    says(&push(45, &altered, ""), &["[045]", &name]);
    let mut other = Cluster::builder(major).init();
    other.start();
    let theirs = other.switch_wal();
    let bytes = fs::read(other.data_dir().join("pg_wal").join(&theirs)).unwrap();
    let theirs = file(guide, &format!("theirs/{theirs}"), &bytes);
    says(&push(44, &theirs, ""), &["[044]"]);
    let run = push(103, &theirs, &format!("--pg1-path={}", other.data_dir().display()));
    says(&run, &["[103]", "[ArchiveMismatchError]"]);
    let target = guide.sandbox.root().join("got");
    guide.expect(0, &format!("archive-get {name} {}", target.display()));
    assert!(fs::read(&target).unwrap() == fs::read(&segment).unwrap());
    guide.expect(1, &format!("archive-get 0000000100000FFF00000001 {}", target.display()));
}

/// Item 33: what else is refused.
fn refusals(guide: &Guide, full: &str, early: &str) {
    item("33", "locks, secrets, root");
    let lock = file(guide, "lock/demo-backup-1.lock", br#"{"execId":"1-a","pid":1}"#);
    let held = fs::File::open(lock).unwrap();
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    for command in ["backup", "expire", "stanza-create"] {
        says(&guide.expect(50, command), &["[050]", "demo-backup-1.lock"]);
    }
    drop(held);
    let run = guide.shell_expect(31, "pgbackrest --stanza=demo --repo1-cipher-pass=hush backup");
    assert!(run.says("[031]") && !run.says("hush backup"), "{run}");
    if rustix::process::getuid().is_root() {
        let mut command = std::process::Command::new(guide.sandbox.binary());
        command.arg(format!("--config={}", guide.sandbox.config().display())).args(["--stanza=demo", "backup"]);
        let run = guide.sandbox.finish(command);
        assert!(run.code == Some(31) && run.says("[031]") && run.says("root"), "{run}");
    }

    item("33", "sets, databases, tablespaces and targets that are not there");
    says(&guide.expect(32, "--set=bogus --annotation=a=b annotate"), &["[032]", "bogus"]);
    says(&guide.expect(75, "--set=20200101-000000F --annotation=a=b annotate"), &["[075]"]);
    let to = format!("--pg1-path={}", guide.side().display());
    for (code, args, named) in [
        (75, "--set=bogus", "bogus"),
        (75, "--set=20200101-000000F", "20200101-000000F"),
        (80, "--db-include=bogus", "bogus"),
        (76, "--tablespace-map=bogus=/nowhere", "bogus"),
        (29, "--type=time --target=bogus", "bogus"),
    ] {
        says(&guide.expect(code, &format!("{to} {args} restore")), &[&format!("[{code:03}]"), named]);
    }
    let run = guide.expect(75, &format!("{to} --type=time --target='{early}' restore"));
    says(&run, &["[075]", "earliest"]);
    let run = guide.expect(75, &format!("{to} --type=time --target='{early}' --set={full} restore"));
    says(&run, &["[075]", full]);
    assert_eq!(fs::read_dir(guide.side()).unwrap().count(), 0, "what is refused leaves the directory alone");
}

/// Item 34: exclusions, links, options about how a repository of files is laid out.
fn left_out_and_linked(guide: &Guide) {
    item("34", "exclusions, a link, hardlink");
    let data = guide.cluster.data_dir();
    for name in ["left/out", "emptied/out", "kept/in"] {
        let path = data.join(name);
        account::private_dir(path.parent().unwrap());
        fs::write(&path, "x").unwrap();
        account::give(&path);
    }
    let outside = file(guide, "outside/settings", b"# x\n");
    symlink(&outside, data.join("linked")).unwrap();
    let run = guide.ok("--exclude=left --exclude=emptied/ --repo1-hardlink --type=full backup");
    says(&run, &["option 'repo1-hardlink'"]);
    no_warning(&run);
    let linked = guide.sandbox.root().join("mapped");
    let target = guide.side();
    guide.ok(&format!("--pg1-path={} --link-map=linked={} restore", target.display(), linked.display()));
    assert!(!target.join("left").exists() && target.join("kept/in").exists());
    assert!(target.join("emptied").exists() && !target.join("emptied/out").exists());
    assert_eq!(fs::read_link(target.join("linked")).unwrap(), linked);
    assert_eq!(fs::read_to_string(&linked).unwrap(), "# x\n");
    guide.shell_expect(0, &format!("rm -r {0} {1}", target.display(), linked.display()));
    // Without a word of them, links become what they lead to.
    guide.ok(&format!("--pg1-path={} restore", guide.side().display()));
    assert!(fs::symlink_metadata(target.join("linked")).unwrap().is_file());
    fs::remove_file(data.join("linked")).unwrap();
}

/// Item 34: a backup is killed, and the next one finds what it had stored.
fn killed(guide: &Guide) {
    item("34", "a backup that was killed, and the next");
    guide.cluster.psql("CREATE TABLE large AS SELECT n, md5(n::text) FROM generate_series(1, 100000) n; CHECKPOINT");
    let mut backup = guide.spawn("--log-level-console=detail --io-limit=512KB --type=full backup");
    backup.wait_for("backup file ");
    let before = guide.labels();
    backup.kill9();
    assert_eq!(guide.labels(), before);
    // No lock is left, nor a backup in the server.
    let label = guide.backup("--type=full");
    guide.shell_expect(0, "pgbackrest --stanza=demo verify");
    let mut cluster = guide.beside(&format!("--set={label} --type=immediate --target-action=promote"));
    cluster.start();
    cluster.wait_promoted();
    assert_eq!(cluster.psql("SELECT count(*) FROM large"), "100000");
    cluster.stop(Mode::Fast);
}

/// Item 34: WAL is dropped when more waits than may, and the repository is away.
fn queue(guide: &Guide) {
    item("34", "archive-push-queue-max");
    let command = guide.cluster.psql("SHOW archive_command");
    let set = |command: &str| {
        guide.cluster.configure("archive_command", command);
        guide.cluster.psql("SELECT pg_reload_conf()");
        guide.cluster.wait_for(&format!("SELECT current_setting('archive_command') = $g${command}$g$"));
    };
    set("false");
    let segments: Vec<_> = (0..3).map(|_| guide.cluster.switch_wal()).collect();
    let path = guide.cluster.data_dir().join("pg_wal").join(&segments[0]);
    // A repository that works would get it first.
    let (repo, away) = (guide.sandbox.repo().to_owned(), guide.sandbox.root().join("away"));
    fs::rename(&repo, &away).unwrap();
    let run = guide.ok(&format!("--archive-push-queue-max=16MiB archive-push {}", path.display()));
    fs::rename(&away, &repo).unwrap();
    assert!(run.messages("ERROR").iter().any(|m| m.contains(&segments[0])), "the loss is no error\n{run}");
    assert!(!guide.archived().contains(&segments[0]));
    set(&command);
    guide.archive_now();
}

/// Item 34: a backup without a server, and a restore by root.
fn offline(guide: &mut Guide) {
    item("34", "an offline backup, restored by root");
    says(&guide.expect(38, "--no-online --type=full backup"), &["[038]"]);
    guide.cluster.stop(Mode::Fast);
    let label = guide.backup("--no-online --type=full");
    let target = guide.sandbox.root().join("by root");
    fs::create_dir(&target).unwrap();
    account::give(&target);
    let mut command = std::process::Command::new(guide.sandbox.binary());
    command.arg(format!("--config={}", guide.sandbox.config().display()));
    command.arg("--log-level-file=off").arg(format!("--pg1-path={}", target.display()));
    let run = guide.sandbox.finish({
        command.args(["--stanza=demo", "--log-level-console=info", &format!("--set={label}"), "restore"]);
        command
    });
    assert_eq!(run.code, Some(0), "{run}");
    let owner = |path: PathBuf| fs::metadata(path).unwrap().uid();
    let expected = owner(guide.cluster.data_dir().join("PG_VERSION"));
    for name in ["PG_VERSION", "base", "global/pg_control"] {
        assert_eq!(owner(target.join(name)), expected, "{name}");
    }
    assert!(!target.join("recovery.signal").exists());
    let mut cluster = guide.adopt(&target);
    cluster.start();
    assert_eq!(cluster.psql("SELECT count(*) FROM large"), "100000");
}
