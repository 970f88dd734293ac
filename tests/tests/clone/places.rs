//! Where clones are made, and looking at what is there.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Pid;
use support::{World, sandbox::Run};

use crate::{MAJOR, PATIENCE};

/// A world with one backup, and two marks behind it in the archive.
pub(crate) fn world() -> (World, String) {
    world_of(MAJOR)
}

/// The same with a server of another major.
pub(crate) fn world_of(major: u32) -> (World, String) {
    let world = World::new(major);
    world.create_marks();
    world.cluster.pgbench_init(2);
    let label = world.backup("full");
    (world, label)
}

/// Where one clone is.
pub(crate) struct Places {
    pub(crate) dir: PathBuf,
    pub(crate) mountpoint: PathBuf,
}

impl Places {
    pub(crate) fn new(world: &World, name: &str) -> Self {
        Self { dir: world.path(&format!("{name}.clone")), mountpoint: world.path(name) }
    }

    pub(crate) fn args(&self, what: &str) -> Vec<String> {
        let mut args = vec!["clone".to_owned(), what.to_owned(), format!("--dir={}", self.dir.display())];
        if matches!(what, "create" | "mount") {
            args.push(format!("--mountpoint={}", self.mountpoint.display()));
        }
        args
    }

    pub(crate) fn create(&self, world: &World, more: &[&str]) -> Run {
        world.ok(self.args("create").into_iter().chain(more.iter().map(|s| (*s).to_owned())))
    }

    /// The process that serves it.
    pub(crate) fn daemon(&self) -> Pid {
        support::sandbox::serving(&format!("--dir={}", self.dir.display()))
    }

    pub(crate) fn is_mounted(&self, world: &World) -> bool {
        world.sandbox.mounts().contains(&self.mountpoint)
    }
}

pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}

/// All below a directory, with modes and contents.
pub(crate) fn everything(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let facts = fs::symlink_metadata(&path).unwrap();
        let content = if facts.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if facts.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (facts.mode(), content));
    }
    found
}
