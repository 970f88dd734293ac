//! Where clones are made, and looking at what is there.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Pid, test_kill_process};
use serde_json::Value;
use support::{Cluster, World, sandbox::Run};

pub(crate) use support::wait_until;

use crate::MAJOR;

/// A world with one backup, and two marks behind it in the archive.
pub(crate) fn world() -> (World, String) {
    world_of(MAJOR)
}

/// The same with a server of another major.
pub(crate) fn world_of(major: u32) -> (World, String) {
    let world = World::new(major);
    world.create_marks();
    world.cluster.pgbench_init(2);
    // A key that nobody may write.
    let key = world.cluster.data_dir().join("server.key");
    fs::write(&key, "secret").unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    support::account::give(&key);
    let label = world.backup("full");
    (world, label)
}

/// Who serves a clone: as root Linux lets files past the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    ByRoot,
    ByPostgres,
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

    /// A command on it, by who serves it.
    pub(crate) fn command(&self, world: &World, what: &str, more: &[&str], served: Served) -> Command {
        let more = more.iter().map(|arg| (*arg).to_owned());
        let mut command = world.pgkeep(self.args(what).into_iter().chain(more));
        if served == Served::ByRoot {
            command.uid(0).gid(0);
        }
        command
    }

    /// What `clone info` tells of it.
    pub(crate) fn info(&self, world: &World) -> Value {
        world.ok(self.args("info").into_iter().chain(["--output=json".to_owned()])).json()
    }

    /// Its server, past recovery.
    pub(crate) fn server(&self) -> Cluster {
        let mut server = Cluster::adopt(MAJOR, &self.mountpoint);
        server.start();
        server.wait_promoted();
        server
    }

    /// The process that serves it.
    pub(crate) fn daemon(&self) -> Pid {
        support::sandbox::serving(&format!("--dir={}", self.dir.display()))
    }

    pub(crate) fn is_mounted(&self, world: &World) -> bool {
        world.sandbox.mounts().contains(&self.mountpoint)
    }
}

/// Waits until a process that served a clone is gone.
pub(crate) fn wait_ended(daemon: Pid) {
    wait_until("the daemon's end", || test_kill_process(daemon).is_err());
}

/// What those who serve clones have logged.
pub(crate) fn logged(world: &World) -> String {
    fs::read_to_string(world.sandbox.logs().join("demo-clone.log")).unwrap_or_default()
}

/// A restore of the newest backup, without recovery.
pub(crate) fn restored(world: &World) -> PathBuf {
    let target = world.path("restored");
    world.restore_to(&target, ["--type=none"]);
    target
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

/// The same, by names below the directory.
pub(crate) fn below(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    everything(dir).into_iter().map(|(path, what)| (path.strip_prefix(dir).unwrap().to_owned(), what)).collect()
}
