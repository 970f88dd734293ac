//! Promise: with `archive-async` the server is told what it is told without, only sooner: what it hears of a file is true of
//! that file in every repository, and what it gets is what was archived.

mod get;
mod kill;
mod push;
mod spool;

use std::{fs, path::PathBuf};

use rustix::process::Pid;
use support::{Cluster, Run, Sandbox, World, majors, pg::Builder, wait_until, world::STANZA};

/// Segments of 1 MiB, all kept by the server so that they can be compared.
fn cluster() -> Builder {
    Cluster::builder(majors()[0])
        .initdb_arg("--wal-segsize=1")
        .setting("wal_keep_size", "1GB")
        .setting("min_wal_size", "2MB")
}

/// Options of `[global]` that every test here has.
const ASYNC: [(&str, &str); 4] =
    [("archive-async", "y"), ("process-max", "2"), ("archive-timeout", "60"), ("log-level-file", "detail")];

/// A world that archives asynchronously, with these further options in `[global]`.
fn world(global: &[(&str, &str)]) -> World {
    let all: Vec<_> = ASYNC.iter().chain(global).copied().collect();
    World::of(cluster(), &all)
}

/// The same with a second repository.
fn two() -> (World, PathBuf) {
    two_with(&[])
}

/// The same with these further options in `[global]`.
fn two_with(global: &[(&str, &str)]) -> (World, PathBuf) {
    let sandbox = Sandbox::new();
    let second = sandbox.dir("repo2");
    let path = second.to_str().unwrap().to_owned();
    let all: Vec<_> = ASYNC.iter().chain(global).copied().chain([("repo2-path", path.as_str())]).collect();
    (World::within(sandbox, cluster(), &all), second)
}

/// Names of segments that the server has marked ready because its archiver may not push; one is in progress behind them.
fn ready(world: &World, count: usize) -> Vec<String> {
    world.set_archive_command("false");
    (0..count).map(|_| world.cluster.switch_wal()).collect()
}

fn wal(world: &World, name: &str) -> PathBuf {
    world.cluster.data_dir().join("pg_wal").join(name)
}

/// Pushes a file as the server would.
fn push(world: &World, name: &str) -> Run {
    world.run(["archive-push", wal(world, name).to_str().unwrap()])
}

fn expect_push(world: &World, code: i32, name: &str) -> Run {
    let run = push(world, name);
    assert_eq!(run.code, Some(code), "expected exit status {code}\n{run}\n{}", log(world, "push"));
    run
}

/// Fetches a file out of one repository, without a queue; its content, or none if it is certainly not there.
fn archived(world: &World, repository: &str, name: &str) -> Option<Vec<u8>> {
    let target = world.path("archived");
    let run = world.run([repository, "--no-archive-async", "archive-get", name, target.to_str().unwrap()]);
    if run.code == Some(1) {
        return None;
    }
    assert_eq!(run.code, Some(0), "{run}");
    let content = fs::read(&target).unwrap();
    fs::remove_file(&target).unwrap();
    Some(content)
}

/// A directory of the stanza's spool: `in` or `out`.
fn spool(world: &World, which: &str) -> PathBuf {
    world.sandbox.spool().join("archive").join(STANZA).join(which)
}

/// Names of files there, sorted.
fn spooled(world: &World, which: &str) -> Vec<String> {
    let mut names: Vec<_> = match fs::read_dir(spool(world, which)) {
        Ok(entries) => entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect(),
        Err(_) => Vec::new(),
    };
    names.sort();
    names
}

/// Running processes of this sandbox whose command begins with these words.
fn running(world: &World, command: &str) -> Vec<Pid> {
    let root = world.sandbox.root().to_str().unwrap().to_owned();
    let of_ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.starts_with(world.sandbox.binary().to_str().unwrap()) && line.contains(command) && line.contains(&root)
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(of_ours).filter_map(Pid::from_raw).collect()
}

/// Waits until nobody works in the background.
fn rest(world: &World) {
    let at_work = || ["archive-get:async", "archive-push:async"].iter().any(|role| !running(world, role).is_empty());
    wait_until("nobody works in the background", || !at_work());
}

/// What processes in the background have logged.
fn log(world: &World, direction: &str) -> String {
    let path = world.sandbox.logs().join(format!("{STANZA}-archive-{direction}-async.log"));
    fs::read_to_string(path).unwrap_or_default()
}
