//! The rules of COMPAT for one repository: same, other and foreign content, kinds of files, clear answers.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use support::{Cluster, Mode, Run, World, account, majors, spread, wait_until, world::STANZA};

/// Pushes a file as the server of this world.
fn push(world: &World, file: &Path) -> Run {
    world.run(["archive-push", file.to_str().unwrap()])
}

fn expect_push(world: &World, code: i32, file: &Path) -> Run {
    let run = push(world, file);
    assert_eq!(run.code, Some(code), "expected exit status {code}\n{run}");
    run
}

/// Fetches a file; its content.
fn get(world: &World, name: &str) -> Vec<u8> {
    let target = world.path("got");
    world.ok(["archive-get", name, target.to_str().unwrap()]);
    let content = fs::read(&target).unwrap();
    fs::remove_file(&target).unwrap();
    content
}

/// Ends a segment; a copy of it in a directory of this name, so that the server cannot recycle it.
fn segment(world: &World, directory: &str) -> PathBuf {
    let dir = world.sandbox.dir(directory);
    let name = world.cluster.switch_wal();
    let copy = dir.join(&name);
    fs::copy(world.cluster.data_dir().join("pg_wal").join(&name), &copy).unwrap();
    account::give(&copy);
    world.wait_archived(&name);
    copy
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn what_the_server_archived_comes_back() {
    for major in spread() {
        let world = World::new(major);
        world.cluster.pgbench_init(1);
        let file = segment(&world, "taken");
        assert_eq!(get(&world, name(&file)), fs::read(&file).unwrap());
        let info = world.info();
        assert_eq!(info["archive"][0]["id"].as_str(), Some(format!("{major}-1").as_str()), "{info:#}");
        assert_eq!(info["archive"][0]["max"].as_str(), Some(name(&file)), "{info:#}");

        // Relative to the data directory, as restore_command gives it.
        let mut command = world.pgkeep(["archive-get", name(&file), "pg_wal/RECOVERYXLOG"]);
        command.current_dir(world.cluster.data_dir());
        let run = world.sandbox.finish(command);
        assert_eq!(run.code, Some(0), "{run}");
        let relative = world.cluster.data_dir().join("pg_wal/RECOVERYXLOG");
        assert_eq!(fs::read(&relative).unwrap(), fs::read(&file).unwrap());
        fs::remove_file(&relative).unwrap();
        // Called from anywhere else it is of another server, whose files are none of this one's.
        for args in [&["archive-get", name(&file), "pg_wal/RECOVERYXLOG"][..], &["archive-push", "pg_wal/x"]] {
            let run = world.expect(32, args);
            assert!(run.says(world.cluster.data_dir().to_str().unwrap()) && !relative.exists(), "{run}");
        }

        // A clear no: nothing written, status 1, no error.
        let target = world.path("absent");
        let run = world.expect(1, ["archive-get", "0000000100000FFF00000001", target.to_str().unwrap()]);
        assert!(!target.exists() && run.messages("ERROR").is_empty(), "{run}");
        world.expect(1, ["archive-get", "00000002.history", target.to_str().unwrap()]);
        let run = world.run(["archive-get", "../../etc/passwd", target.to_str().unwrap()]);
        assert!(run.code.is_some_and(|code| code > 1) && !target.exists(), "{run}");
        let run = world.run(["archive-get", name(&file), "/nonexistent/target"]);
        assert!(run.code.is_some_and(|code| code > 1) && run.says("/nonexistent/target"), "{run}");
    }
}

#[test]
fn equal_content_is_success_and_other_content_never_replaces_it() {
    let world = World::new(majors()[0]);
    world.cluster.pgbench_init(1);
    let file = segment(&world, "taken");
    let run = expect_push(&world, 0, &file);
    assert!(run.messages("WARN").len() == 1 && run.says(name(&file)) && run.says("already"), "{run}");
    let run = world.ok(["--no-archive-mode-check", "archive-push", file.to_str().unwrap()]);
    assert_eq!(run.messages("WARN"), Vec::<&str>::new(), "{run}");
    let run = world.ok(["--log-level-console=info", "archive-push", file.to_str().unwrap()]);
    assert_eq!(run.messages("INFO").iter().filter(|line| line.contains("pushed WAL file")).count(), 1, "{run}");

    let altered = world.sandbox.dir("altered").join(name(&file));
    fs::copy(&file, &altered).unwrap();
    account::give(&altered);
    fs::OpenOptions::new().write(true).open(&altered).unwrap().write_all_at(b"other", 1_000_000).unwrap();
    let run = expect_push(&world, 45, &altered);
    assert!(run.says("[045]") && run.says(name(&file)) && run.says("hint: "), "{run}");
    assert_eq!(get(&world, name(&file)), fs::read(&file).unwrap());
}

#[test]
fn foreign_and_broken_files_are_refused() {
    let mut world = World::new(majors()[0]);
    let file = segment(&world, "taken");
    let mut other = Cluster::builder(majors()[0]).init();
    other.start();
    other.psql("SELECT pg_switch_wal(); SELECT txid_current(); SELECT pg_switch_wal(); SELECT txid_current(); SELECT pg_switch_wal()");
    let foreign_name = other.switch_wal();
    let foreign = world.take(&other.data_dir().join("pg_wal").join(&foreign_name), &foreign_name);
    // The WAL of another cluster, from the directory of ours.
    let run = expect_push(&world, 44, &foreign);
    assert!(run.says("[044]") && run.says("system-id") && run.says("hint: "), "{run}");
    // Everything of another cluster.
    let run = world.expect(
        103,
        [&format!("--pg1-path={}", other.data_dir().display()), "archive-push", foreign.to_str().unwrap()],
    );
    assert!(run.says("[103]") && run.says("ArchiveMismatchError"), "{run}");
    world.expect(1, ["archive-get", &foreign_name, world.path("x").to_str().unwrap()]);

    let size = fs::metadata(&file).unwrap().len();
    let junk = world.sandbox.dir("junk").join("000000010000000000000077");
    let write = |bytes: &[u8]| {
        fs::write(&junk, bytes).unwrap();
        account::give(&junk);
    };
    let text: Vec<u8> = b"not WAL at all. ".iter().copied().cycle().take(size as usize).collect();
    for content in [vec![0; size as usize], text] {
        write(&content);
        let run = push(&world, &junk);
        assert!(matches!(run.code, Some(29 | 46)) && run.says(name(&junk)), "{run}");
    }
    // A good segment under a wrong name, and half a segment.
    write(&fs::read(&file).unwrap());
    expect_push(&world, 28, &junk);
    write(&fs::read(&file).unwrap()[..size as usize / 2]);
    let run = expect_push(&world, 28, &junk);
    assert!(run.says(&(size / 2).to_string()) && run.says(&size.to_string()), "{run}");
    expect_push(&world, 55, &junk.with_file_name("000000010000000000000078"));
    let strange = world.take(&file, "strange");
    expect_push(&world, 96, &strange);
    world.expect(1, ["archive-get", name(&junk), world.path("x").to_str().unwrap()]);
    world.cluster.stop(Mode::Fast);
}

#[test]
fn history_backup_and_partial_files_have_their_place() {
    let mut world = World::new(majors()[0]);
    world.cluster.pgbench_init(1);
    world.backup("full");
    // The backup history file, pushed by the server itself.
    world.archive_now();
    let status = fs::read_dir(world.cluster.data_dir().join("pg_wal")).unwrap();
    let backup =
        status.filter_map(|e| e.unwrap().file_name().into_string().ok()).find(|name| name.ends_with(".backup"));
    let backup = backup.expect("the server wrote a backup history file");
    world.wait_archived(&backup);
    assert!(String::from_utf8(get(&world, &backup)).unwrap().contains("START WAL LOCATION"));

    // A crashed primary whose standby was promoted: what it leaves is a partial segment and a history file.
    let segment = segment(&world, "taken");
    let partial = segment.with_file_name(format!("{}.partial", name(&segment)));
    fs::copy(&segment, &partial).unwrap();
    account::give(&partial);
    expect_push(&world, 0, &partial);
    assert_eq!(get(&world, name(&partial)), fs::read(&partial).unwrap());

    world.cluster.stop(Mode::Fast);
    fs::write(world.cluster.data_dir().join("standby.signal"), "").unwrap();
    world.cluster.override_setting("recovery_target_timeline", "latest");
    world.cluster.start();
    world.cluster.psql("SELECT pg_promote()");
    world.cluster.wait_promoted();
    let segment = world.archive_now();
    assert!(segment.starts_with("00000002"), "{segment}");
    let history = get(&world, "00000002.history");
    assert_eq!(history, fs::read(world.cluster.data_dir().join("pg_wal/00000002.history")).unwrap());
    // The same again is no harm.
    expect_push(&world, 0, &world.cluster.data_dir().join("pg_wal/00000002.history"));
    let info = world.info();
    assert_eq!(info["archive"][0]["max"].as_str(), Some(segment.as_str()), "{info:#}");
    // The cluster goes on being backed up; its files are compared because the timeline changed.
    let run = world.ok(["--start-fast", "--type=incr", "backup"]);
    assert!(run.messages("WARN").iter().any(|w| w.contains("timeline")), "{run}");
}

#[test]
fn no_stanza_no_key_no_answer() {
    let sealed = [("repo1-cipher-type", "aes-256-cbc"), ("repo1-cipher-pass", "right")];
    let world = World::of(Cluster::builder(majors()[0]).initdb_arg("--wal-segsize=1"), &sealed);
    let file = segment(&world, "taken");
    assert_eq!(get(&world, name(&file)), fs::read(&file).unwrap());
    let path = file.to_str().unwrap();
    let target = world.path("target").display().to_string();
    // The server takes status 1 for the end of the archive, so none of these may give it.
    let never_one = |what: &str| {
        let run = world.run(["archive-get", name(&file), &target]);
        assert!(run.code.is_some_and(|code| code > 1) && !Path::new(&target).exists(), "{what}\n{run}");
        let run = world.run(["archive-push", path]);
        assert!(run.code.is_some_and(|code| code > 1 && code <= 125), "{what}\n{run}");
    };
    world.sandbox.configure(
        STANZA,
        &world.cluster,
        &[("repo1-cipher-type", "aes-256-cbc"), ("repo1-cipher-pass", "wrong")],
    );
    never_one("wrong passphrase");
    for args in [&["archive-get", name(&file), &target][..], &["archive-push", path]] {
        let run = world.expect(95, args);
        assert!(
            run.says("[095]") && run.says("no key slot of repository") && run.says("hint: is the passphrase"),
            "{run}"
        );
    }
    world.sandbox.configure(STANZA, &world.cluster, &[("repo1-path", "/nonexistent")]);
    never_one("missing repository");
    world.sandbox.configure(STANZA, &world.cluster, &sealed);
    let wal = world.sandbox.repo().join("wal");
    let hidden = world.sandbox.repo().join("stanzas");
    fs::rename(&hidden, world.path("stanzas")).unwrap();
    never_one("missing stanza");
    // Who waits goes on when it is known.
    let mut command = world.pgkeep(["--on-error=wait", "archive-get", name(&file), &target]);
    // It has no log file: the server's has what it says.
    let log = world.path("said");
    let mut waiting = command.stdout(fs::File::create(&log).unwrap()).spawn().unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    wait_until("archive-get tries again", || said().contains("cannot tell whether") && said().contains("trying again"));
    assert!(waiting.try_wait().unwrap().is_none() && !Path::new(&target).exists(), "it did not wait");
    fs::rename(world.path("stanzas"), &hidden).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(0), "{}", said());
    assert_eq!(fs::read(&target).unwrap(), fs::read(&file).unwrap());
    fs::remove_file(&target).unwrap();

    // A damaged object is never returned, nor taken for absent.
    let object = find(&wal, name(&file)).expect("the segment's object");
    let length = fs::metadata(&object).unwrap().len();
    for at in [0, length / 2, length - 1] {
        let mut bytes = fs::read(&object).unwrap();
        bytes[at as usize] ^= 1;
        rewrite(&object, &bytes);
        never_one_get(&world, name(&file), &target);
        bytes[at as usize] ^= 1;
        rewrite(&object, &bytes);
    }
    let bytes = fs::read(&object).unwrap();
    for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        rewrite(&object, &bytes[..length]);
        never_one_get(&world, name(&file), &target);
    }
    rewrite(&object, &bytes);
    // Another segment's object in its place.
    let other = segment_after(&world);
    let swapped = fs::read(find(&wal, &other).expect("the other segment's object")).unwrap();
    rewrite(&object, &swapped);
    never_one_get(&world, name(&file), &target);
    rewrite(&object, &bytes);
    assert_eq!(get(&world, name(&file)), fs::read(&file).unwrap());
}

fn segment_after(world: &World) -> String {
    world.archive_now()
}

fn never_one_get(world: &World, name: &str, target: &str) {
    let run = world.run(["archive-get", name, target]);
    assert!(run.code.is_some_and(|code| code > 1) && !Path::new(target).exists(), "{run}");
    assert!(run.says(name), "{run}");
}

/// Replaces what a repository holds, whose files are read-only.
fn rewrite(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
    account::give(path);
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(directory).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() { find(&path, name) } else { path.to_str()?.contains(name).then_some(path) }
    })
}
