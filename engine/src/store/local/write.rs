//! Creating files atomically and durably.
//!
//! Write `.tmp/<pid>-<random>`, sync it, give it its name with a rename that refuses to replace, sync the directory,
//! then upwards the parents of directories that are new. Where the file system has no such rename (NFS) a hard link
//! does it; where it has neither the put fails, as nothing else is both atomic and create-only.

use super::{DIR_MODE, FILE_MODE, LocalStore, OPEN_DIR};
use crate::store::{Put, StoreError, key};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, retry_on_intr};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often a put makes its directories again after deletes have removed them as empty. Each try is a few system
/// calls; deletes in step with all of them do not happen.
const ATTEMPTS: u32 = 1000;

impl LocalStore {
    pub(super) fn put(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        if let Some(errno) = self.broken.get() {
            return Err(self.error("sync", key)(*errno));
        }
        // Worth a look before writing what may be a whole pack; the rename below decides.
        if self.occupied(key, None)? == Occupied::ByOther {
            return self.exists(key);
        }
        let temporary = self.write_temporary(key, bytes)?;
        let mut made = Made { all: &self.unsynced, dirs: Vec::new() };
        for attempt in 1..=ATTEMPTS {
            match self.publish(&temporary, key) {
                Ok(()) => {
                    self.sync_upwards(key, made)?;
                    return Ok(Put::Created);
                }
                Err(Errno::EXIST) => match self.occupied(key, Some(&temporary))? {
                    Occupied::No => (),
                    Occupied::ByOther => return self.exists(key),
                    Occupied::ByThis => {
                        self.sync_upwards(key, made)?;
                        return Ok(Put::Created);
                    }
                },
                Err(Errno::NOENT) if attempt < ATTEMPTS => match self.make_directories(key, &mut made) {
                    // One of them went while the next was made.
                    Ok(()) | Err(Errno::NOENT) => (),
                    Err(errno) => return Err(self.error("create", key)(errno)),
                },
                Err(errno) => return Err(self.error("create", key)(errno)),
            }
        }
        Err(self.error("create", key)(Errno::BUSY))
    }

    /// Removes what crashed writers left in `.tmp`: files not written to for `older_than`, by the clock of the file
    /// system that holds them. Returns how many. A writer that is still alive fails if its file goes, so allow hours.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sweep_temporary(&self, older_than: Duration) -> Result<usize, StoreError> {
        // Made for its time: hosts that share a file system need not agree on theirs.
        let probe = self.write_temporary(key::TEMPORARY, b"")?;
        let now = rustix::fs::fstat(&probe.file).map_err(self.error("stat", key::TEMPORARY))?.st_mtime;
        let limit = now.saturating_sub(i64::try_from(older_than.as_secs()).unwrap_or(i64::MAX));
        let mut removed = 0;
        for name in self.names(key::TEMPORARY).map_err(self.error("list", key::TEMPORARY))?.unwrap_or_default() {
            let path = format!("{}/{}", key::TEMPORARY, name.name);
            if path == probe.name {
                continue;
            }
            let stat = match rustix::fs::statat(&self.root, &*path, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other.map_err(self.error("stat", &path))?,
            };
            if stat.st_mtime > limit || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                continue;
            }
            match rustix::fs::unlinkat(&self.root, &*path, AtFlags::empty()) {
                Ok(()) => removed += 1,
                Err(Errno::NOENT) => (),
                Err(errno) => return Err(self.error("remove", &path)(errno)),
            }
        }
        Ok(removed)
    }

    /// Syncs the directory `dir`, or what is left above it if a delete has removed it; `key` is for the message.
    pub(super) fn sync_directory(&self, dir: &str, key: &str) -> Result<(), StoreError> {
        let name = if dir.is_empty() { "." } else { dir };
        let opened = retry_on_intr(|| rustix::fs::openat(&self.root, name, OPEN_DIR, Mode::empty()));
        match opened.and_then(|fd| sync(&fd)) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) if !dir.is_empty() => self.sync_directory(key::parent(dir), key),
            Err(errno) => {
                // The kernel reports a lost write once. What follows could look durable and not be.
                let first = self.broken.get_or_init(|| errno);
                Err(self.error("sync", key)(*first))
            }
        }
    }

    /// The answer `Exists`, given only once the name that was found is durable: its maker may have died before that,
    /// and the caller may drop its own copy on our word.
    fn exists(&self, key: &str) -> Result<Put, StoreError> {
        self.sync_upwards(key, Made { all: &self.unsynced, dirs: Vec::new() })?;
        Ok(Put::Exists)
    }

    fn write_temporary(&self, key: &str, bytes: &[u8]) -> Result<Temporary<'_>, StoreError> {
        let temporary = self.create_temporary().map_err(self.error("write", key))?;
        self.give(&temporary.name);
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = retry_on_intr(|| rustix::io::write(&temporary.file, rest)).map_err(self.error("write", key))?;
            rest = rest.get(n..).unwrap_or_default();
        }
        retry_on_intr(|| rustix::fs::fsync(&temporary.file)).map_err(self.error("sync", key))?;
        Ok(temporary)
    }

    fn create_temporary(&self) -> Result<Temporary<'_>, Errno> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|_| Errno::IO)?;
        let name = format!("{}/{}-{:016x}", key::TEMPORARY, std::process::id(), u64::from_le_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let open = || retry_on_intr(|| rustix::fs::openat(&self.root, &*name, flags, FILE_MODE));
        let file = match open() {
            Err(Errno::NOENT) => match rustix::fs::mkdirat(&self.root, key::TEMPORARY, DIR_MODE) {
                Ok(()) | Err(Errno::EXIST) => open()?,
                Err(errno) => return Err(errno),
            },
            other => other?,
        };
        Ok(Temporary { store: self, name, file })
    }

    fn publish(&self, temporary: &Temporary<'_>, key: &str) -> Result<(), Errno> {
        let (root, from) = (self.root.as_fd(), &*temporary.name);
        if !self.by_link.load(Ordering::Relaxed) {
            match rustix::fs::renameat_with(root, from, root, key, RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.by_link.store(true, Ordering::Relaxed),
                other => return other,
            }
        }
        rustix::fs::linkat(root, from, root, key, AtFlags::empty())
    }

    fn occupied(&self, key: &str, temporary: Option<&Temporary<'_>>) -> Result<Occupied, StoreError> {
        let found = match rustix::fs::statat(&self.root, key, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Occupied::No),
            other => other.map_err(self.error("create", key))?,
        };
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Err(self.error("create", key)(Errno::ISDIR));
        }
        let Some(temporary) = temporary else { return Ok(Occupied::ByOther) };
        // A link over NFS whose reply was lost is sent again and then finds itself.
        let own = rustix::fs::fstat(&temporary.file).map_err(self.error("create", key))?;
        let same = (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino);
        Ok(if same { Occupied::ByThis } else { Occupied::ByOther })
    }

    fn make_directories(&self, key: &str, made: &mut Made<'_>) -> Result<(), Errno> {
        for dir in ancestors(key) {
            // Noted before it exists, so that nobody finds it there and not noted.
            made.note(dir);
            match rustix::fs::mkdirat(&self.root, dir, DIR_MODE) {
                Ok(()) => self.give(dir),
                Err(Errno::EXIST) => made.forget_last(),
                Err(errno) => {
                    made.forget_last();
                    return Err(errno);
                }
            }
        }
        Ok(())
    }

    /// What root makes in somebody's repository becomes theirs, or their next writer could not even list it. Where that is
    /// not allowed, as on NFS, root is nobody special anyway.
    fn give(&self, name: &str) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let given = rustix::fs::fstat(&self.root).and_then(|owner| {
            let (user, group) = (rustix::fs::Uid::from_raw(owner.st_uid), rustix::fs::Gid::from_raw(owner.st_gid));
            rustix::fs::chownat(&self.root, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
        });
        if let Err(errno) = given {
            tracing::debug!("'{name}' stays root's: {errno}");
        }
    }

    /// Syncs the directory of `key`, then upwards those that name a directory made a moment ago, by whichever thread.
    fn sync_upwards(&self, key: &str, made: Made<'_>) -> Result<(), StoreError> {
        self.sync_directory(key::parent(key), key)?;
        let mut dir = key::parent(key);
        while !dir.is_empty() {
            let above = key::parent(dir);
            if self.unsynced.has(dir) {
                self.sync_directory(above, key)?;
            }
            dir = above;
        }
        made.forget_all();
        Ok(())
    }
}

/// Who has the name.
#[derive(PartialEq, Eq)]
enum Occupied {
    No,
    ByThis,
    ByOther,
}

/// A file in `.tmp`, removed when dropped. After a rename there is nothing of that name and nothing happens.
struct Temporary<'a> {
    store: &'a LocalStore,
    name: String,
    file: OwnedFd,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is garbage, which `sweep_temporary` removes.
        let _ = rustix::fs::unlinkat(&self.store.root, &*self.name, AtFlags::empty());
    }
}

/// How many puts have made each directory and not yet synced its parent.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<HashMap<String, usize>>);

impl Unsynced {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn has(&self, dir: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(dir)
    }

    fn add(&self, dir: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(dir.to_owned()).or_default() += 1;
    }

    fn remove(&self, dir: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(dir) {
            *count -= 1;
            if *count == 0 {
                all.remove(dir);
            }
        }
    }
}

/// One put's share of [`Unsynced`]. A put that fails leaves its share there: later puts sync once more than they need to.
struct Made<'a> {
    all: &'a Unsynced,
    dirs: Vec<String>,
}

impl Made<'_> {
    fn note(&mut self, dir: &str) {
        self.all.add(dir);
        self.dirs.push(dir.to_owned());
    }

    fn forget_last(&mut self) {
        if let Some(dir) = self.dirs.pop() {
            self.all.remove(&dir);
        }
    }

    fn forget_all(self) {
        self.dirs.iter().for_each(|dir| self.all.remove(dir));
    }
}

/// The directories that lead to `key`, from the top.
fn ancestors(key: &str) -> impl Iterator<Item = &str> {
    key.match_indices('/').filter_map(|(at, _)| key.get(..at))
}

/// Syncs a directory. Some file systems (CIFS, some FUSE ones) cannot, say EINVAL, and write names through.
pub(super) fn sync(dir: &OwnedFd) -> Result<(), Errno> {
    match retry_on_intr(|| rustix::fs::fsync(dir)) {
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}
