//! Who has a clone: the process that creates, serves or changes it holds the lock, until it dies.

use super::state::{CloneInfo, Layout};
use pgkeep_engine::{Error, FileError, Kind, Result};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

/// Content of `lock`: nobody else's file of that name has it.
const LOCK_TEXT: &str = "pgkeep clone\n";
/// How often the lock is tried while others look at it, each for some microseconds.
const LOOKS_MAX: u32 = 100;
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// The clone's lock: held until this is dropped or the process dies.
#[derive(Debug)]
pub(super) struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // Closing alone would leave it to a child that was forked meanwhile and has not come to its exec. What cannot
        // be unlocked is closed all the same.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes the clone's lock. Whoever only looks, as [`is_held`] does, is waited for.
pub(super) fn take(layout: &Layout) -> Result<Held> {
    let path = layout.file("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(FileError::at("open", &path))?;
    for _ in 0..LOOKS_MAX {
        if flocked(&file, &path, FlockOperation::NonBlockingLockExclusive)? {
            let held = Held(file);
            if held.0.metadata().map_err(FileError::at("stat", &path))?.len() == 0 {
                (&held.0).write_all(LOCK_TEXT.as_bytes()).map_err(FileError::at("write", &path))?;
            }
            return Ok(held);
        }
        if is_held(layout)? {
            break;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    Err(Error::refused(Kind::LockAcquire, format!("clone '{}' is in use by another process", layout.root.display())))
}

/// Whether somebody creates, serves or changes the clone at this moment. Looking keeps nobody from that.
pub(super) fn is_held(layout: &Layout) -> Result<bool> {
    let path = layout.file("lock");
    let file = match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        other => other.map_err(FileError::at("open", &path))?,
    };
    // A lock that those who look share, and that nobody else has beside the one who holds the clone.
    if flocked(&file, &path, FlockOperation::NonBlockingLockShared)? {
        drop(Held(file));
        return Ok(false);
    }
    Ok(true)
}

/// False if another has the lock.
fn flocked(file: &File, path: &Path, how: FlockOperation) -> Result<bool> {
    match rustix::fs::flock(file, how) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(FileError::at("lock", path)(error.into()).into()),
    }
}

/// True if `lock` or the record says that this is a clone.
pub(super) fn is_marked(layout: &Layout) -> bool {
    let is_lock = std::fs::symlink_metadata(layout.file("lock"))
        .is_ok_and(|meta| meta.is_file() && meta.len() <= LOCK_TEXT.len() as u64);
    // Clones of versions before the mark have an empty lock, and a record unless their creation died.
    is_lock
        && (std::fs::read(layout.file("lock")).is_ok_and(|text| text == LOCK_TEXT.as_bytes())
            || CloneInfo::load(layout).is_ok())
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::layout;
    use super::*;

    #[test]
    fn the_lock_is_exclusive() {
        let (_dir, layout) = layout();
        let held = take(&layout).unwrap();
        assert_eq!(take(&layout).unwrap_err().kind(), Kind::LockAcquire);
        // What a child has between its fork and its exec.
        let inherited = held.0.try_clone().unwrap();
        drop(held);
        take(&layout).unwrap();
        drop(inherited);
    }

    #[test]
    fn whoever_looks_is_in_nobodys_way() {
        let (_dir, layout) = layout();
        assert!(!is_held(&layout).unwrap() && !layout.file("lock").exists());
        let held = take(&layout).unwrap();
        assert!(is_held(&layout).unwrap());
        drop(held);
        std::thread::scope(|scope| {
            let looks: Vec<_> =
                (0..2).map(|_| scope.spawn(|| (0..2000).for_each(|_| _ = is_held(&layout).unwrap()))).collect();
            while !looks.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                drop(take(&layout).unwrap());
            }
        });
        assert!(!is_held(&layout).unwrap());
    }
}
