//! check_pgbackrest, the check of Nagios and its kin: good states are OK, and no bad one is.

use std::{fs, path::PathBuf};

use super::{environment, shell};
use support::{Cluster, Mode, Run, Sandbox, World, majors, world::STANZA};

const OK: i32 = 0;
const WARNING: i32 = 1;
const CRITICAL: i32 = 2;
const UNKNOWN: i32 = 3;

/// Runs a service on a stanza; its status must be this, and it must say this.
fn check_of(stanza: &str, world: &World, status: i32, says: &str, args: &str) -> Run {
    let line = format!("check_pgbackrest --config={} --stanza={stanza} {args}", world.sandbox.config().display());
    let run = shell(&world.sandbox, &environment(&world.sandbox), &line);
    assert!(run.code == Some(status) && run.says(says), "expected status {status} and '{says}'\n{run}");
    // What it says of every version with three numbers, as pgBackRest's own has.
    let told = run.stderr.lines().filter(|line| !line.contains("isn't numeric")).collect::<Vec<_>>();
    assert!(told.is_empty(), "{run}");
    run
}

fn check(world: &World, status: i32, says: &str, args: &str) -> Run {
    check_of(STANZA, world, status, says, args)
}

/// The object of a segment of the first archive.
fn object(world: &World, segment: &str) -> PathBuf {
    world.sandbox.repo().join(format!("wal/{STANZA}/{}-1/{}/{segment}", world.cluster.major(), &segment[..16]))
}

#[test]
fn retention_and_archives_are_watched_as_ever() {
    let world = World::new(majors()[0]);
    let early = world.archive_now();
    for service in ["retention", "archives"] {
        check(&world, CRITICAL, "repo1: no valid backups", &format!("--service={service}"));
        check_of("nobody", &world, CRITICAL, "repo1: missing stanza path", &format!("--service={service}"));
    }

    world.backup("full");
    let between = world.archive_now();
    world.archive_now();
    world.backup("diff");
    let last = world.backup("incr");
    let recent = world.archive_now();
    world.archive_now();
    let newest = world.archive_now();

    let all = "--service=retention --retention-full=1 --retention-diff=1 --retention-incr=1 --retention-age=1h \
               --retention-age-to-full=1h";
    check(&world, OK, "backups policy checks ok", all);
    check(&world, OK, &format!("latest_bck={last}"), "--service=retention --repo=1");
    for (args, says) in [
        ("--retention-full=2", "not enough full backups: 2 required"),
        ("--retention-diff=2", "not enough differential backups: 2 required"),
        ("--retention-incr=2", "not enough incremental backups: 2 required"),
        ("--retention-age=0s", "backups are too old"),
        ("--retention-age-to-full=0s", "full backups are too old"),
        ("--retention-age-to-oldest=1h", "backups are too young"),
    ] {
        check(&world, CRITICAL, says, &format!("--service=retention {args}"));
    }

    check(&world, OK, "unique WAL archived", "--service=archives");
    let run = check(&world, OK, "unique WAL archived", "--service=archives --repo=1 --output=json");
    assert_eq!(run.json()[0]["long_message"]["max_wal"], newest, "{run}");
    let quiet = "--ignore-archived-before=1h --latest-archive-age-alert=1h --max-archives-check-number=1000";
    let run =
        check(&world, OK, &format!("found {newest}"), &format!("--service=archives {quiet} --debug --list-archives"));
    assert!(!run.says(&format!("found {early}")), "what is before the oldest backup is left out\n{run}");
    // Archived before the first backup.
    check(&world, WARNING, "min WAL is not the oldest archive", "--service=archives --extended-check");
    check(&world, UNKNOWN, "no archived WAL found", "--service=archives --ignore-archived-after=1h");
    for output in ["human", "json", "nagios_strict", "prtg"] {
        check(&world, OK, "", &format!("--service=archives --output={output}"));
        check(&world, OK, "", &format!("--service=retention --output={output}"));
    }

    // Of what is between two backups only a recovery that goes there needs it; what is behind the newest, all.
    for (segment, status) in [(&between, WARNING), (&recent, CRITICAL)] {
        let (object, aside) = (object(&world, segment), world.path("aside"));
        fs::rename(&object, &aside).unwrap_or_else(|e| panic!("{}: {e}", object.display()));
        let says = format!("wrong sequence, 1 missing file(s) ({segment} / {segment})");
        check(&world, status, &says, "--service=archives");
        fs::rename(&aside, &object).unwrap();
    }
    check(&world, OK, "unique WAL archived", "--service=archives");
    let version = shell(&world.sandbox, &environment(&world.sandbox), "check_pgbackrest --version");
    let version = version.stdout.split_whitespace().nth(2).unwrap().trim_end_matches(',').to_owned();
    check(&world, OK, &version, &format!("--service=check_pgb_version --target-version={version}"));
    check(&world, CRITICAL, &version, "--service=check_pgb_version --target-version=1.0");
}

#[test]
fn a_timeline_is_followed_by_its_history_and_another_repository_compared() {
    let sandbox = Sandbox::new();
    let second = sandbox.dir("repo2");
    let mut world = World::within(sandbox, Cluster::builder(majors()[0]), &[("repo2-path", second.to_str().unwrap())]);
    world.backup("full");
    world.ok(["--repo=2", "--start-fast", "backup"]);
    world.archive_now();
    world.cluster.stop(Mode::Fast);
    world.ok(["--delta", "--type=default", "restore"]);
    world.cluster.start();
    world.cluster.wait_promoted();
    world.archive_now();
    let newest = world.archive_now();
    assert!(newest.starts_with("00000002"), "{newest}");
    for args in ["", " --repo=1", " --repo=2"] {
        check(&world, OK, "unique WAL archived", &format!("--service=archives{args}"));
        check(&world, OK, "policy checks ok", &format!("--service=retention{args}"));
    }
    let run = check(&world, OK, "history file to open", "--service=archives --repo=1 --debug --list-boundaries");
    assert!(run.says("to boundary list"), "{run}");
    // The history is what tells where the timelines part.
    let history = world.sandbox.repo().join(format!("wal/{STANZA}/{}-1/00000002.history", world.cluster.major()));
    let aside = world.path("aside");
    fs::rename(&history, &aside).unwrap();
    check(&world, CRITICAL, "boundary WAL not determined", "--service=archives --repo=1");
    fs::rename(&aside, &history).unwrap();

    // The second repository is not there any more.
    fs::rename(&second, world.path("gone")).unwrap();
    check(&world, CRITICAL, "repo2: ", "--service=retention");
    check(&world, CRITICAL, "repo2: ", "--service=archives");
    check(&world, OK, "policy checks ok", "--service=retention --repo=1");
}
