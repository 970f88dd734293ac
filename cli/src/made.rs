//! Directories of ours that a restore as root makes: they go to the owner of the data directory, whose commands use them next.
//! A lock directory that only root can enter would keep the server from archiving.

use crate::option::{Command, Opt, Settings};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

/// Directories that were not there when the command began.
pub(crate) struct Made {
    missing: Vec<Missing>,
    like: Option<PathBuf>,
}

/// A directory of ours, and those on the way to it.
struct Missing {
    path: PathBuf,
    above: Vec<PathBuf>,
}

impl Made {
    /// What the command may make, noted before anything is made.
    pub(crate) fn before(settings: &Settings) -> Self {
        let is_handed_over = settings.command() == Command::Restore && rustix::process::geteuid().is_root();
        let paths = [Opt::LockPath, Opt::LogPath, Opt::CachePath, Opt::SpoolPath];
        let paths = paths.into_iter().filter(|_| is_handed_over).filter_map(|opt| settings.path(opt));
        Self { missing: paths.filter_map(missing).collect(), like: settings.pg(1).path().map(Path::to_path_buf) }
    }

    /// Gives what was made to the owner of the data directory. What cannot be given is warned of.
    pub(crate) fn hand_over(self) {
        let Some(owner) = self.like.and_then(|path| std::fs::metadata(path).ok()) else { return };
        if owner.uid() == 0 {
            return;
        }
        let (uid, gid) = (owner.uid(), owner.gid());
        for Missing { path, above } in self.missing {
            // Others may lie beside it on the way, and are nobody's business here.
            let way = above.iter().try_for_each(|path| give_one(path, uid, gid));
            if let Err((path, e)) = way.and_then(|()| give(&path, uid, gid)) {
                tracing::warn!(
                    "'{}' cannot be given to the owner of the data directory, whose commands need it: {e}",
                    path.display()
                );
            }
        }
    }
}

/// A path and the directories on the way to it, if it does not exist.
fn missing(path: &Path) -> Option<Missing> {
    let mut ways = path.ancestors().filter(|p| std::fs::symlink_metadata(p).is_err()).map(Path::to_path_buf);
    Some(Missing { path: ways.next()?, above: ways.collect() })
}

/// Gives away one directory or file, if it is root's.
fn give_one(path: &Path, uid: u32, gid: u32) -> Result<(), (PathBuf, std::io::Error)> {
    match std::fs::symlink_metadata(path) {
        Ok(facts) if facts.uid() == 0 => lchown(path, Some(uid), Some(gid)).map_err(|e| (path.to_path_buf(), e)),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err((path.to_path_buf(), e)),
        _ => Ok(()),
    }
}

/// Gives away a tree, as far as it is root's; links are not followed.
fn give(path: &Path, uid: u32, gid: u32) -> Result<(), (PathBuf, std::io::Error)> {
    let at = |e| (path.to_path_buf(), e);
    let facts = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        facts => facts.map_err(at)?,
    };
    if facts.is_dir() {
        for entry in std::fs::read_dir(path).map_err(at)? {
            give(&entry.map_err(at)?.path(), uid, gid)?;
        }
    }
    give_one(path, uid, gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missing_is_found_and_given_with_all_below_it() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("a/b/c");
        let Missing { path: found, above } = missing(&path).unwrap();
        assert_eq!((found, above), (path.clone(), vec![room.path().join("a/b"), room.path().join("a")]));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("file"), b"").unwrap();
        std::os::unix::fs::symlink("/etc", path.join("link")).unwrap();
        assert!(missing(&path).is_none());
        if !rustix::process::geteuid().is_root() {
            return;
        }
        give(&room.path().join("a"), 12_345, 12_346).unwrap();
        for name in ["a", "a/b", "a/b/c", "a/b/c/file", "a/b/c/link"] {
            let facts = std::fs::symlink_metadata(room.path().join(name)).unwrap();
            assert_eq!((facts.uid(), facts.gid()), (12_345, 12_346), "{name}");
        }
        assert_eq!(std::fs::metadata("/etc").unwrap().uid(), 0);
    }
}
