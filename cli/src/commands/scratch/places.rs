//! Where a scratch clone lies, and the lock that says that somebody uses it.

use super::dismantle;
use crate::error::Failure;
use crate::mounts;
use crate::option::{Command, Opt, Settings};
use crate::size::human_size;
use pgkeep_engine::{Error, FileError, Kind};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Port of a scratch clone's server: it names the socket, and nothing listens on a network.
pub(super) const PORT: u16 = 5432;
/// Begins the names of the directories.
const PREFIX: &str = "pgkeep-scratch.";
/// Others may pass, as the server's user must; they see nothing.
const MODE: u32 = 0o711;
/// A clone without room for a few WAL segments does not start. Bytes.
const ROOM_MIN: u64 = 128 << 20;
/// With less left, whoever failed may have failed for that: a server gives up with a segment of WAL half written. Bytes.
const ROOM_LEFT_MIN: u64 = 32 << 20;
/// The kernel's limit of a socket's path, in bytes.
const SOCKET_PATH_LEN_MAX: usize = 107;
/// A directory without a lock is being made, unless it is older than this.
const MADE_IN: Duration = Duration::from_secs(60);
const LOCK: &str = "lock";
const FUSE: &str = "/dev/fuse";

/// The directories of a scratch clone.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) root: PathBuf,
    /// What the clone is made of.
    pub(super) clone: PathBuf,
    /// Its mountpoint: the data directory.
    pub(super) data: PathBuf,
    /// Directory of the server's socket.
    pub(super) sockets: PathBuf,
}

impl Places {
    pub(super) fn of(root: &Path) -> Self {
        Self { root: root.to_path_buf(), clone: root.join("clone"), data: root.join("data"), sockets: root.join("s") }
    }

    /// Makes the directories, held by this process.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn create(&self) -> Result<Held, Failure> {
        let creating = |path: &Path| {
            let path = path.to_path_buf();
            move |e| Failure::file(FileError::at("create", &path)(e))
        };
        std::fs::DirBuilder::new().mode(MODE).create(&self.root).map_err(creating(&self.root))?;
        // Held before it has its name: who finds it is too late or too early.
        let (new, lock) = (self.root.join("lock.new"), self.root.join(LOCK));
        let made = || -> Result<Held, Failure> {
            let file = File::create(&new).map_err(creating(&new))?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)
                .map_err(|e| Failure::file(FileError::at("lock", &new)(e.into())))?;
            std::fs::rename(&new, &lock).map_err(|e| Failure::file(FileError::at("rename", &new)(e)))?;
            std::fs::DirBuilder::new().mode(0o700).create(&self.sockets).map_err(creating(&self.sockets))?;
            Ok(Held { _lock: file })
        };
        made().inspect_err(|_| {
            if let Err(e) = std::fs::remove_dir_all(&self.root) {
                tracing::warn!("cannot remove '{}': {e}", self.root.display());
            }
        })
    }

    /// Says that this process uses it.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn hold(&self) -> Result<Held, Failure> {
        let path = self.root.join(LOCK);
        let lock = File::open(&path).map_err(|e| Failure::file(FileError::at("open", &path)(e)))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared)
            .map_err(|e| Failure::file(FileError::at("lock", &path)(e.into())))?;
        Ok(Held { _lock: lock })
    }
}

/// While this lives nobody else removes the directory.
pub(super) struct Held {
    _lock: File,
}

/// Where a scratch clone is to be made: in the directory that `--dir` names, after what dead commands left there is
/// removed. Nothing of it is there yet. So many bytes of it are going to be read.
///
/// # Errors
/// `Kernel` without FUSE, `PathMissing`, `FileWrite` without room, `OptionInvalidValue` if the path is too long.
pub(super) fn choose(settings: &Settings, read: u64) -> Result<Places, Failure> {
    check_fuse(settings.command())?;
    let parent = mounts::resolved(settings.path(Opt::Dir).unwrap_or(Path::new("/var/tmp")));
    if !parent.is_dir() {
        let text = format!("there is no directory '{}' to make a clone in: --dir names another", parent.display());
        return Err(Error::refused(Kind::PathMissing, text).into());
    }
    sweep(&parent);
    check_room(&parent, read)?;
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let places = Places::of(&parent.join(format!("{PREFIX}{}-{:x}", std::process::id(), nanos & 0xffff_ffff)));
    let socket = places.sockets.join(format!(".s.PGSQL.{PORT}"));
    if socket.as_os_str().len() > SOCKET_PATH_LEN_MAX {
        let text = format!(
            "the path of the server's socket, '{}', is longer than {SOCKET_PATH_LEN_MAX} bytes: --dir must be shorter",
            socket.display()
        );
        return Err(Error::refused(Kind::OptionInvalidValue, text).into());
    }
    Ok(places)
}

fn check_fuse(command: Command) -> Result<(), Failure> {
    if let Err(e) = File::options().read(true).write(true).open(FUSE) {
        let text = format!(
            "{} needs FUSE, and '{FUSE}' cannot be opened: {e}; load the module fuse, or give the container the device",
            command.name()
        );
        return Err(Error::refused(Kind::Kernel, text).into());
    }
    Ok(())
}

fn check_room(parent: &Path, read: u64) -> Result<(), Failure> {
    let (free, needed) = (free(parent)?, ROOM_MIN.saturating_add(read));
    if free < needed {
        let (shown, free, needed) = (parent.display(), human_size(free), human_size(needed));
        let why = match read {
            0 => format!("a clone needs {needed} and what its server writes"),
            _ => format!("all of the backup is going to be read, which needs {needed} and what its server writes"),
        };
        let text = format!("'{shown}' has room for {free} only, {why}: --dir names another directory");
        return Err(Error::refused(Kind::FileWrite, text).into());
    }
    Ok(())
}

/// Whether room is left where a clone lies, which has gone wrong. `said` is where somebody said that none is.
///
/// # Errors
/// `FileWrite`.
pub(super) fn check_left(root: &Path, said: Option<&str>) -> Result<(), Failure> {
    let free = free(root)?;
    let why = match said {
        Some(said) => format!(": {}", said.trim()),
        None if free < ROOM_LEFT_MIN => format!(", {} are left", human_size(free)),
        None => return Ok(()),
    };
    let text = format!(
        "the file system of '{}' has become full, so nothing is known of the backup{why}; make room there, or name \
         another directory by --dir",
        root.display()
    );
    Err(Error::refused(Kind::FileWrite, text).into())
}

/// Bytes that may be written to the file system of a directory.
fn free(dir: &Path) -> Result<u64, Failure> {
    let found = rustix::fs::statvfs(dir).map_err(|e| Failure::file(FileError::at("stat", dir)(e.into())))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Removes what commands left that died together with their keepers.
fn sweep(parent: &Path) {
    let entries = match std::fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(e) => return tracing::warn!("cannot look for what earlier commands left in '{}': {e}", parent.display()),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())
            && is_ours(&path)
            && let Err(failure) = sweep_one(&path)
        {
            tracing::warn!("cannot remove what an earlier command left in '{}': {failure}", path.display());
        }
    }
}

/// Anybody may make directories of any name where all may write.
pub(super) fn is_ours(path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|facts| facts.is_dir() && facts.uid() == rustix::process::geteuid().as_raw())
}

fn sweep_one(path: &Path) -> Result<(), Failure> {
    let Ok(lock) = File::open(path.join(LOCK)) else {
        let age = std::fs::symlink_metadata(path).and_then(|facts| facts.modified()).ok();
        if age.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > MADE_IN) {
            dismantle::all(&Places::of(path), None)?;
        }
        return Ok(());
    };
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    tracing::info!("removing '{}', which a command left that was killed", path.display());
    dismantle::all(&Places::of(path), None)
}
