//! Directories of ours that a restore as root makes: they go to the owner of the data directory, whose commands use them next.
//! A lock directory that only root can enter would keep the server from archiving.
//!
//! Nothing is given away by its path, which that owner may change meanwhile: directories are opened one below the other, links
//! are not followed, what lies in one goes before it does, and only what is root's and has no second name.

use crate::option::{Command, Opt, Settings};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchown, fstat, openat, statat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Directories that were not there when the command began.
pub(crate) struct Made {
    missing: Vec<Missing>,
    like: Option<PathBuf>,
}

/// A directory that did not exist.
struct Missing {
    /// The nearest one above it that did.
    there: PathBuf,
    /// What leads from that to it.
    names: Vec<OsString>,
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
        let owner = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        for missing in self.missing {
            if let Err(e) = give(&missing, owner) {
                let path = missing.there.join(missing.names.iter().collect::<PathBuf>());
                tracing::warn!(
                    "'{}' cannot be given to the owner of the data directory, whose commands need it: {e}",
                    path.display()
                );
            }
        }
    }
}

fn missing(path: &Path) -> Option<Missing> {
    let there = path.ancestors().find(|p| std::fs::symlink_metadata(p).is_ok())?;
    let names: Vec<OsString> = path.strip_prefix(there).ok()?.iter().map(OsString::from).collect();
    (!names.is_empty()).then(|| Missing { there: there.to_path_buf(), names })
}

fn give(missing: &Missing, owner: (Uid, Gid)) -> Result<(), Errno> {
    let mut above = openat(CWD, &missing.there, DIRECTORY, Mode::empty())?;
    let mut made: Vec<OwnedFd> = Vec::new();
    for name in &missing.names {
        let found = match openat(&above, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
            // It was not needed.
            Err(Errno::NOENT) => break,
            found => found?,
        };
        above = found.try_clone().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        made.push(found);
    }
    if let Some(last) = made.last().filter(|_| made.len() == missing.names.len()) {
        give_below(last, owner)?;
    }
    made.iter().rev().try_for_each(|dir| give_one(dir, owner))
}

/// Gives away a directory, if it is root's.
fn give_one(dir: &OwnedFd, (uid, gid): (Uid, Gid)) -> Result<(), Errno> {
    if fstat(dir)?.st_uid == 0 { fchown(dir, Some(uid), Some(gid)) } else { Ok(()) }
}

fn give_below(dir: &OwnedFd, owner: (Uid, Gid)) -> Result<(), Errno> {
    if fstat(dir)?.st_uid != 0 {
        return Ok(());
    }
    for entry in Dir::read_from(dir.as_fd())? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let facts = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            facts => facts?,
        };
        if FileType::from_raw_mode(facts.st_mode) == FileType::Directory {
            let below = openat(dir, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
            give_below(&below, owner)?;
            give_one(&below, owner)?;
        } else if facts.st_uid == 0 && facts.st_nlink == 1 {
            chownat(dir, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missing_is_given_with_all_below_it_and_nothing_else() {
        assert!(rustix::process::geteuid().is_root(), "this test must run as root");
        let room = tempfile::tempdir().unwrap();
        let at = |name: &str| room.path().join(name);
        let made = missing(&at("a/b/c")).unwrap();
        assert_eq!((made.there.as_path(), made.names.len()), (room.path(), 3));
        std::fs::create_dir_all(at("a/b/c/d")).unwrap();
        std::fs::write(at("a/b/c/file"), b"").unwrap();
        std::fs::write(at("a/b/beside"), b"").unwrap();
        std::fs::write(at("root's"), b"").unwrap();
        std::fs::hard_link(at("root's"), at("a/b/c/second name")).unwrap();
        std::os::unix::fs::symlink(at("root's"), at("a/b/c/link")).unwrap();
        assert!(missing(&at("a/b/c")).is_none());
        let owner = (Uid::from_raw(12_345), Gid::from_raw(12_346));
        give(&made, owner).unwrap();
        let uid = |name: &str| std::fs::symlink_metadata(at(name)).unwrap().uid();
        for name in ["a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/file", "a/b/c/link"] {
            assert_eq!(uid(name), 12_345, "{name}");
        }
        assert_eq!([uid("root's"), uid("a/b/beside"), uid("")], [0, 0, 0]);

        // Somebody has put a link in its place.
        let made = missing(&at("x/y")).unwrap();
        std::fs::create_dir_all(at("other/y")).unwrap();
        std::os::unix::fs::symlink(at("other"), at("x")).unwrap();
        assert!(give(&made, owner).is_err());
        assert_eq!([uid("other"), uid("other/y")], [0, 0]);
    }
}
