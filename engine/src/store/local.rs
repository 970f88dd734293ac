//! Objects as files below a directory, named by their keys.
//!
//! *Owns* everything below the root. Files are 0640 and directories 0750 (pgBackRest's) less the process's umask.
//! The root stays open: a repository disk that is unmounted gives errors, never objects in the mount point below.
//!
//! *Invariants.* A file under a key is whole, durable before anyone can see it, and never changed. When
//! `put_if_absent` returns, whether `Created` or `Exists`, the file's name is durable too: its directory was synced,
//! and so was the parent of each directory that this process made for it ([`write`]). Losing the first gives torn
//! objects, losing the second gives acknowledged WAL that a power cut takes away. A directory that was there before is
//! taken to be durable: a sync of something inside it carries it along (ext4 and xfs by journal order, btrfs by logging
//! new ancestors, NFS because the server makes directories durable at once).
//!
//! A crash leaves files in `.tmp` and empty directories, nothing else; neither is ever listed.
//! [`LocalStore::sweep_temporary`] removes the former, a delete beside them the latter.
//!
//! *Threads.* Any number, and any number of processes, on one root. No lock is held across IO. *Cost.* A put is one file
//! sync and one directory sync; a get is open, stat, read, close.

mod list;
mod write;

use super::{Depth, Listed, Put, Range, Store, StoreError, key};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const DIR_MODE: Mode = Mode::from_raw_mode(0o750);
const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A store in a directory of a local or network file system.
#[derive(Debug)]
pub struct LocalStore {
    path: PathBuf,
    root: OwnedFd,
    /// Directories made here whose names in their parents may not be durable yet.
    unsynced: write::Unsynced,
    /// Set once the file system has refused a rename that does not replace.
    by_link: AtomicBool,
    /// What the first failed directory sync said; no put succeeds after it.
    broken: OnceLock<Errno>,
}

impl LocalStore {
    /// Makes the directory, and those above it, durably, unless they exist; then opens it.
    ///
    /// # Errors
    /// [`StoreError::Root`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        make_root(path).map_err(|errno| root_error("create", path, errno))?;
        Self::open(path)
    }

    /// Opens a directory that exists. Writes nothing, so a read-only file system or user is enough for reading.
    ///
    /// # Errors
    /// [`StoreError::Root`]; its kind is `PathMissing` if the directory does not exist.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let root = retry_on_intr(|| rustix::fs::openat(CWD, path, OPEN_DIR, Mode::empty()))
            .map_err(|errno| root_error("open", path, errno))?;
        Ok(Self {
            path: path.to_path_buf(),
            root,
            unsynced: write::Unsynced::default(),
            by_link: AtomicBool::new(false),
            broken: OnceLock::new(),
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, verb: &'static str, key: &str) -> impl FnOnce(Errno) -> StoreError {
        let (key, store) = (key.to_owned(), self.describe());
        move |errno| StoreError::Io { verb, key, store, source: errno.into() }
    }

    fn open_object(&self, key: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        retry_on_intr(|| rustix::fs::openat(&self.root, key, flags, Mode::empty()))
    }

    fn not_found(&self, key: &str) -> StoreError {
        StoreError::NotFound { key: key.to_owned(), store: self.describe() }
    }

    /// Removes directories that have become empty, from `dir` upwards. Returns the lowest that is left.
    fn prune<'a>(&self, dir: &'a str) -> &'a str {
        let mut dir = dir;
        // Refusal is the ordinary end: the directory has other entries, or is not ours to remove.
        while !dir.is_empty() && rustix::fs::unlinkat(&self.root, dir, AtFlags::REMOVEDIR).is_ok() {
            dir = key::parent(dir);
        }
        dir
    }
}

impl Store for LocalStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        key::check(key)?;
        self.put(key, bytes)
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        key::check(key)?;
        let file = match self.open_object(key) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(self.not_found(key)),
            other => other.map_err(self.error("read", key))?,
        };
        let stat = rustix::fs::fstat(&file).map_err(self.error("read", key))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.not_found(key));
        }
        let short = |end| StoreError::TooShort { key: key.to_owned(), store: self.describe(), end };
        let (offset, len) = range.within(u64::try_from(stat.st_size).unwrap_or(0)).map_err(short)?;
        let bytes = read_at(&file, offset, len).map_err(self.error("read", key))?;
        if bytes.len() == len { Ok(bytes) } else { Err(short(offset.saturating_add(len as u64))) }
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        key::check_prefix(prefix)?;
        self.list_below(prefix, depth, each)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        key::check(key)?;
        match rustix::fs::unlinkat(&self.root, key, AtFlags::empty()) {
            // Linux says EISDIR for a directory: there is no object of this name.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) => Ok(()),
            Err(errno) => Err(self.error("remove", key)(errno)),
            Ok(()) => self.sync_directory(self.prune(key::parent(key)), key),
        }
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn will_get(&self, key: &str, spans: &[(u64, usize)]) {
        // Who then asks for the bytes is told what is wrong.
        if key::check(key).is_err() {
            return;
        }
        let Ok(file) = self.open_object(key) else { return };
        for (offset, len) in spans {
            let _ = rustix::fs::fadvise(&file, *offset, NonZero::new(*len as u64), Advice::WillNeed);
        }
    }

    fn gap(&self) -> u64 {
        // What the disk reads in the time of a call or two.
        16 << 10
    }

    fn is_near(&self) -> bool {
        true
    }
}

/// Up to `len` bytes; fewer only if the file ends.
fn read_at(file: impl AsFd, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::NOMEM)?;
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        let n = retry_on_intr(|| rustix::io::pread(&file, rustix::buffer::spare_capacity(&mut bytes), at))?;
        if n == 0 {
            break;
        }
    }
    // The allocator may have given room for more than was asked for.
    bytes.truncate(len);
    Ok(bytes)
}

fn root_error(verb: &'static str, path: &Path, errno: Errno) -> StoreError {
    StoreError::Root { verb, store: format!("repository directory '{}'", path.display()), source: errno.into() }
}

/// `mkdir -p`, each new name durable.
fn make_root(path: &Path) -> Result<(), Errno> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    let made = match rustix::fs::mkdirat(CWD, path, DIR_MODE) {
        Err(Errno::NOENT) => {
            make_root(parent)?;
            rustix::fs::mkdirat(CWD, path, DIR_MODE)
        }
        other => other,
    };
    match made {
        // What exists but is no directory is found out when it is opened.
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
        Ok(()) => write::sync(&retry_on_intr(|| rustix::fs::openat(CWD, parent, OPEN_DIR, Mode::empty()))?),
    }
}

#[cfg(test)]
mod tests;
