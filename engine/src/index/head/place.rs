//! A directory of one's own under the cache, held by a lock file, and the sweeping of those whose owner died.
//!
//! `<name>.lock` is created and locked before `<name>` exists and unlinked after `<name>` is gone, always
//! under the lock; so a directory without a lock file, or with one that can be locked, belongs to nobody.

use crate::index::error::{IndexError, io};
use rustix::fs::{FlockOperation, flock};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names tried before giving up: more than processes that could share one session.
const ATTEMPTS: u32 = 64;

/// An empty directory that belongs to this value; removed when dropped.
pub(super) struct Place {
    dir: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Place {
    /// Takes `<base>/<name>`, or `<base>/<name>-<n>` while others hold that, and empties it; sweeps the rest of `base`.
    pub(super) fn take(base: &Path, name: &str) -> Result<Self, IndexError> {
        fs::create_dir_all(base).map_err(io("create", base))?;
        sweep(base);
        for attempt in 0..ATTEMPTS {
            let dir = base.join(if attempt == 0 { name.to_owned() } else { format!("{name}-{attempt}") });
            let lock_path = dir.with_extension("lock");
            if let Some(lock) = try_lock(&lock_path)? {
                clear(&dir)?;
                fs::create_dir(&dir).map_err(io("create", &dir))?;
                return Ok(Self { dir, lock_path, _lock: lock });
            }
        }
        let taken = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
        Err(io("lock", base.join(name))(taken))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves the content away, for a look; it is removed with the place.
    pub(super) fn move_away(&self) -> Result<PathBuf, IndexError> {
        let away = self.dir.with_extension("broken");
        clear(&away)?;
        fs::rename(&self.dir, &away).map_err(io("rename", &self.dir))?;
        Ok(away)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays behind is swept by the next process that takes a place. Broken content is kept until then.
        if clear(&self.dir).is_ok() {
            let _ = fs::remove_file(&self.lock_path);
        }
    }
}

/// The locked file, or `None` if another holds it.
fn try_lock(path: &Path) -> Result<Option<File>, IndexError> {
    loop {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path).map_err(io("open", path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(io("lock", path)(e.into())),
        }
        // Its last owner may have unlinked it between our open and our lock: then this lock guards nothing.
        let ours = file.metadata().map_err(io("stat", path))?;
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(Some(file)),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io("stat", path)(e)),
        }
    }
}

/// Removes a directory inside a place. Best effort: it goes with the place at the latest.
pub(super) fn remove(dir: &Path) {
    if let Err(e) = clear(dir) {
        tracing::debug!("{e}");
    }
}

fn clear(dir: &Path) -> Result<(), IndexError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Removes the places of processes that died. Best effort: what stays costs space only.
fn sweep(base: &Path) {
    let Ok(listing) = fs::read_dir(base) else { return };
    for path in listing.flatten().map(|found| found.path()) {
        let is_lock = path.extension() == Some(OsStr::new("lock"));
        let lock_path = path.with_extension("lock");
        if !is_lock && lock_path.exists() {
            continue;
        }
        let Ok(Some(_lock)) = try_lock(&lock_path) else { continue };
        if clear(&lock_path.with_extension("")).is_ok() && clear(&lock_path.with_extension("broken")).is_ok() {
            let _ = fs::remove_file(&lock_path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_place_is_left_alone_and_a_dead_one_swept() {
        let base = tempfile::tempdir().unwrap();
        let held = Place::take(base.path(), "s").unwrap();
        fs::write(held.dir().join("mine"), b"x").unwrap();
        fs::create_dir(base.path().join("dead")).unwrap();
        fs::write(base.path().join("dead/file"), b"x").unwrap();
        fs::write(base.path().join("gone.lock"), b"").unwrap();
        fs::create_dir(base.path().join("gone.broken")).unwrap();
        let other = Place::take(base.path(), "s").unwrap();
        assert_ne!(held.dir(), other.dir());
        assert!(held.dir().join("mine").exists());
        let left = |base: &Path| {
            let mut names: Vec<_> = fs::read_dir(base).unwrap().map(|f| f.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(left(base.path()), ["s", "s-1", "s-1.lock", "s.lock"]);
        drop((held, other));
        assert!(left(base.path()).is_empty());
    }

    #[test]
    fn broken_content_is_kept_until_the_next_taking() {
        let base = tempfile::tempdir().unwrap();
        let place = Place::take(base.path(), "s").unwrap();
        fs::write(place.dir().join("bad"), b"x").unwrap();
        let away = place.move_away().unwrap();
        drop(place);
        assert!(away.join("bad").exists());
        let _next = Place::take(base.path(), "t").unwrap();
        assert!(!away.exists());
    }
}
