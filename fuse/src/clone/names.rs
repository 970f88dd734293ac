//! Namespace requests: native operations on the skeleton, and the inode table kept in step.
//!
//! All of them run one at a time, so that a name's inode cannot change between looking at it and acting on it.

use super::backing::{Backing, attributes};
use super::identity::Identity;
use super::nodes::{LastName, Link, Regular};
use super::tablespaces;
use crate::errno::{Outcome, system};
use crate::owner::Owner;
use fuser::{Errno, FileAttr};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The namespace of a clone.
pub(super) struct Names {
    changing: Mutex<()>,
}

/// A new name and who asked for it.
pub(super) struct New<'a> {
    pub(super) parent: u64,
    pub(super) name: &'a OsStr,
    pub(super) owner: Owner,
    /// Type and permission bits, with the caller's umask applied.
    pub(super) mode: u32,
}

fn regular(stat: &Stat) -> Regular {
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile { Regular::Yes } else { Regular::No }
}

fn facts(parent: &OwnedFd, name: &OsStr) -> Outcome<Stat> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(system)
}

/// The inode of a name, with one more reference to its node; `None` if there is no such name.
pub(super) fn look_up(backing: &Backing, parent: u64, name: &OsStr) -> Outcome<Option<FileAttr>> {
    let directory = backing.directory(parent)?;
    let found = {
        let _modes = backing.modes();
        rustix::fs::statat(&*directory, name, AtFlags::SYMLINK_NOFOLLOW)
    };
    match found {
        Ok(stat) => {
            let number = backing.nodes.looked_up(Link::new(parent, name), stat.st_ino, regular(&stat));
            attributes(number, &stat).map(Some)
        }
        // An error is not remembered by the kernel, an answer is.
        Err(rustix::io::Errno::NOENT) if tablespaces::may_appear(backing, parent, name) => Err(Errno::ENOENT),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(system(error)),
    }
}

impl Names {
    pub(super) fn new() -> Self {
        Self { changing: Mutex::new(()) }
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode of a name; `None` if there is no such name.
    pub(super) fn lookup(&self, backing: &Backing, parent: u64, name: &OsStr) -> Outcome<Option<FileAttr>> {
        look_up(backing, parent, name)
    }

    /// Makes one name by `make` in the caller's identity and enters it.
    fn make<T>(
        &self,
        backing: &Backing,
        new: &New<'_>,
        make: impl Fn(&OwnedFd) -> rustix::io::Result<T>,
    ) -> Outcome<(FileAttr, T)> {
        let _changing = self.change();
        let parent = backing.directory(new.parent)?;
        let made = {
            let _identity = Identity::assume(new.owner);
            make(&parent)
        };
        let made = match made {
            // Supplementary groups are not taken along; the kernel has already checked with them.
            Err(rustix::io::Errno::ACCESS) => {
                let made = make(&parent).map_err(system)?;
                let (uid, gid) = (rustix::fs::Uid::from_raw(new.owner.uid), rustix::fs::Gid::from_raw(new.owner.gid));
                rustix::fs::chownat(&*parent, new.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(system)?;
                made
            }
            other => other.map_err(system)?,
        };
        let mut stat = facts(&parent, new.name)?;
        let permissions = new.mode & 0o7777;
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        if !is_link && permissions & 0o777 & !stat.st_mode != 0 {
            // This process's own umask took bits away.
            let wanted = Mode::from_raw_mode(permissions | (stat.st_mode & 0o2000));
            rustix::fs::chmodat(&*parent, new.name, wanted, AtFlags::empty()).map_err(system)?;
            stat = facts(&parent, new.name)?;
        }
        let number = backing.nodes.born(Link::new(new.parent, new.name), stat.st_ino, regular(&stat));
        Ok((attributes(number, &stat)?, made))
    }

    /// Creates a regular file that must not exist.
    pub(super) fn create(&self, backing: &Backing, new: &New<'_>) -> Outcome<(FileAttr, File)> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(new.mode & 0o7777);
        let (attr, fd) = self.make(backing, new, |parent| rustix::fs::openat(parent, new.name, flags, mode))?;
        Ok((attr, File::from(fd)))
    }

    pub(super) fn mkdir(&self, backing: &Backing, new: &New<'_>) -> Outcome<FileAttr> {
        let mode = Mode::from_raw_mode(new.mode & 0o7777);
        Ok(self.make(backing, new, |parent| rustix::fs::mkdirat(parent, new.name, mode))?.0)
    }

    /// Makes a pipe, a socket or a regular file; devices are refused.
    pub(super) fn mknod(&self, backing: &Backing, new: &New<'_>) -> Outcome<FileAttr> {
        let kind = FileType::from_raw_mode(new.mode);
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::EPERM);
        }
        let mode = Mode::from_raw_mode(new.mode & 0o7777);
        Ok(self.make(backing, new, |parent| rustix::fs::mknodat(parent, new.name, kind, mode, 0))?.0)
    }

    /// Makes a link. One that makes a tablespace leads into the clone, whatever its target, see `clone/tablespaces.rs`.
    pub(super) fn symlink(&self, backing: &Backing, new: &New<'_>, target: &Path) -> Outcome<FileAttr> {
        if tablespaces::is_link(backing, new.parent, new.name) {
            let inside = tablespaces::make(backing, new.name, new.owner)?;
            let link = |parent: &OwnedFd| rustix::fs::symlinkat(inside.as_str(), parent, new.name);
            return Ok(self.make(backing, new, link)?.0);
        }
        Ok(self.make(backing, new, |parent| rustix::fs::symlinkat(target, parent, new.name))?.0)
    }

    pub(super) fn link(&self, backing: &Backing, number: u64, parent: u64, name: &OsStr) -> Outcome<FileAttr> {
        let _changing = self.change();
        let node = backing.nodes.get(number)?;
        let directory = backing.directory(parent)?;
        if node.file.is_none() && tablespaces::is_link(backing, parent, name) {
            return Err(Errno::EXDEV);
        }
        backing.named(&node, |from, from_name| {
            let stat = rustix::fs::statat(from, from_name, AtFlags::SYMLINK_NOFOLLOW)?;
            if stat.st_ino == node.backing {
                rustix::fs::linkat(from, from_name, &*directory, name, AtFlags::empty())?;
            }
            Ok((stat.st_ino, ()))
        })?;
        let stat = facts(&directory, name)?;
        let number = backing.nodes.looked_up(Link::new(parent, name), stat.st_ino, regular(&stat));
        if let Ok(file) = backing.nodes.file(number) {
            file.touch_facts();
        }
        attributes(number, &stat)
    }

    pub(super) fn unlink(&self, backing: &Backing, parent: u64, name: &OsStr) -> Outcome<()> {
        let _changing = self.change();
        let directory = backing.directory(parent)?;
        let stat = facts(&directory, name)?;
        rustix::fs::unlinkat(&*directory, name, AtFlags::empty()).map_err(system)?;
        backing.nodes.unlinked(stat.st_ino, &Link::new(parent, name), last_name(&stat));
        Ok(())
    }

    pub(super) fn rmdir(&self, backing: &Backing, parent: u64, name: &OsStr) -> Outcome<()> {
        let _changing = self.change();
        let directory = backing.directory(parent)?;
        let stat = facts(&directory, name)?;
        rustix::fs::unlinkat(&*directory, name, AtFlags::REMOVEDIR).map_err(system)?;
        if let Some(number) = backing.nodes.number_of(stat.st_ino) {
            backing.drop_directory(number);
        }
        backing.nodes.unlinked(stat.st_ino, &Link::new(parent, name), LastName::Yes);
        Ok(())
    }

    /// Renames as `renameat2` does.
    pub(super) fn rename(
        &self,
        backing: &Backing,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: RenameFlags,
    ) -> Outcome<()> {
        let _changing = self.change();
        let (old, new) = (backing.directory(from.0)?, backing.directory(to.0)?);
        let moved = facts(&old, from.1)?;
        let replaced = facts(&new, to.1).ok();
        let is_tablespace = |place: (u64, &OsStr)| tablespaces::is_link(backing, place.0, place.1);
        let comes_in = |stat: &Stat, from, to| {
            FileType::from_raw_mode(stat.st_mode) == FileType::Symlink && is_tablespace(to) && !is_tablespace(from)
        };
        let exchanged = replaced.as_ref().filter(|_| flags.contains(RenameFlags::EXCHANGE));
        if comes_in(&moved, from, to) || exchanged.is_some_and(|other| comes_in(other, to, from)) {
            // Nobody looked at its target when it was made. Told so, who moves it makes it anew at its new place.
            return Err(Errno::EXDEV);
        }
        rustix::fs::renameat_with(&*old, from.1, &*new, to.1, flags).map_err(system)?;
        if replaced.is_some_and(|replaced| replaced.st_ino == moved.st_ino) {
            // Two names of one inode: the system did nothing.
            return Ok(());
        }
        let (old_link, new_link) = (Link::new(from.0, from.1), Link::new(to.0, to.1));
        if flags.contains(RenameFlags::EXCHANGE) {
            if let Some(other) = replaced {
                backing.nodes.renamed(other.st_ino, &new_link, old_link.clone());
            }
        } else if let Some(gone) = replaced {
            if FileType::from_raw_mode(gone.st_mode) == FileType::Directory {
                if let Some(number) = backing.nodes.number_of(gone.st_ino) {
                    backing.drop_directory(number);
                }
                backing.nodes.unlinked(gone.st_ino, &new_link, LastName::Yes);
            } else {
                backing.nodes.unlinked(gone.st_ino, &new_link, last_name(&gone));
            }
        }
        backing.nodes.renamed(moved.st_ino, &old_link, new_link);
        Ok(())
    }
}

fn last_name(stat: &Stat) -> LastName {
    if stat.st_nlink <= 1 { LastName::Yes } else { LastName::No }
}
