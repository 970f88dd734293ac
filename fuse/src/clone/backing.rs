//! The skeleton's side: directories by descriptor, files by (directory, name), never by path and never through links.
//!
//! A descriptor names a directory whatever it is called by now, so renames invalidate nothing. A file opened by name is
//! compared with the backing inode its node has; a name that leads elsewhere is not followed.
//!
//! The kernel has checked a request against the file's mode before it arrives here, so the mode must not hinder what is
//! then done: reading a file may mean to fill it in, though its mode lets nobody write. Where this process is not root
//! it lends itself the right for the moment of opening; nobody looks at modes meanwhile ([`Backing::modes`]).

use super::base::{BaseFile, Shared};
use super::nodes::{FileState, Node, Nodes, OpenFile, ROOT};
use super::state::{BASE_ATTRIBUTE, FileTable};
use crate::errno::{Outcome, chain, system};
use fuser::{Errno, FileAttr, FileType, INodeNo};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

/// Directories kept open; a PGDATA has a few dozen that matter.
const DIRECTORIES_MAX: usize = 256;
/// Directories deep a path may go; PostgreSQL's deepest has five.
const DEPTH_MAX: u32 = 64;
/// Bytes of the stored number of a base-backed file.
const NUMBER_BYTES_MAX: usize = 20;

/// What a clone serves from.
pub(super) struct Backing {
    pub(super) nodes: Nodes,
    root: Arc<OwnedFd>,
    directories: Mutex<Directories>,
    table: FileTable,
    shared: Arc<Shared>,
    /// Held for writing while a file's mode is changed, for reading while modes are looked at.
    modes: RwLock<()>,
}

#[derive(Default)]
struct Directories {
    open: HashMap<u64, (Arc<OwnedFd>, u64)>,
    clock: u64,
}

impl Backing {
    pub(super) fn new(root: OwnedFd, dirty_at_start: bool, table: FileTable, shared: Shared) -> std::io::Result<Self> {
        let stat = rustix::fs::fstat(&root)?;
        Ok(Self {
            nodes: Nodes::new(stat.st_ino, dirty_at_start),
            root: Arc::new(root),
            directories: Mutex::default(),
            table,
            shared: Arc::new(shared),
            modes: RwLock::new(()),
        })
    }

    /// While this is held every file has its own mode.
    pub(super) fn modes(&self) -> RwLockReadGuard<'_, ()> {
        self.modes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this is held nobody else looks at modes or changes them. No other lock is taken meanwhile.
    pub(super) fn modes_alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.modes.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// An open directory.
    pub(super) fn directory(&self, number: u64) -> Outcome<Arc<OwnedFd>> {
        self.directory_at(number, DEPTH_MAX)
    }

    fn directory_at(&self, number: u64, depth: u32) -> Outcome<Arc<OwnedFd>> {
        if number == ROOT {
            return Ok(Arc::clone(&self.root));
        }
        {
            let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
            directories.clock += 1;
            let clock = directories.clock;
            if let Some((fd, used)) = directories.open.get_mut(&number) {
                *used = clock;
                return Ok(Arc::clone(fd));
            }
        }
        let node = self.nodes.get(number)?;
        let above = depth.checked_sub(1).ok_or(Errno::ELOOP)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for link in &node.links {
            let Ok(parent) = self.directory_at(link.parent, above) else { continue };
            let Ok(fd) = rustix::fs::openat(&*parent, &link.name, flags, Mode::empty()) else { continue };
            if rustix::fs::fstat(&fd).map_err(system)?.st_ino == node.backing {
                let fd = Arc::new(fd);
                self.keep(number, &fd);
                return Ok(fd);
            }
        }
        Err(Errno::ESTALE)
    }

    fn keep(&self, number: u64, fd: &Arc<OwnedFd>) {
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if directories.open.len() >= DIRECTORIES_MAX {
            let oldest = directories.open.iter().min_by_key(|(_, (_, used))| *used).map(|(number, _)| *number);
            if let Some(oldest) = oldest {
                directories.open.remove(&oldest);
            }
        }
        let clock = directories.clock;
        directories.open.insert(number, (Arc::clone(fd), clock));
    }

    /// Forgets the descriptor of a removed directory.
    pub(super) fn drop_directory(&self, number: u64) {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&number);
    }

    /// The facts of an inode, through its open file or one of its names.
    pub(super) fn stat(&self, number: u64) -> Outcome<Stat> {
        let node = self.nodes.get(number)?;
        if let Some(open) = node.file.as_ref().and_then(|file| opened(file)) {
            let _modes = self.modes();
            return rustix::fs::fstat(&open.file).map_err(system);
        }
        if number == ROOT {
            return rustix::fs::fstat(&*self.root).map_err(system);
        }
        self.named(&node, |parent, name| {
            let _modes = self.modes();
            let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok((stat.st_ino, stat))
        })
    }

    /// Runs `act` on the node's names until one leads to its backing inode, which `act` tells.
    pub(super) fn named<T>(
        &self,
        node: &Node,
        act: impl Fn(&OwnedFd, &OsStr) -> rustix::io::Result<(u64, T)>,
    ) -> Outcome<T> {
        let mut failure = Errno::ENOENT;
        for link in &node.links {
            let Ok(parent) = self.directory(link.parent) else { continue };
            match act(&parent, &link.name) {
                Ok((backing, result)) if backing == node.backing => return Ok(result),
                Ok(_) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => failure = system(error),
            }
        }
        Err(failure)
    }

    /// The open file of a node, for writing too if `writable`.
    pub(super) fn open(&self, number: u64, writable: bool) -> Outcome<(Arc<FileState>, Arc<OpenFile>)> {
        let node = self.nodes.get(number)?;
        let state = node.file.clone().ok_or(Errno::EINVAL)?;
        let mut slot = state.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = slot.upgrade()
            && (open.writable || !writable)
        {
            drop(slot);
            return Ok((state, open));
        }
        let Pair { open, mark } =
            self.named(&node, |parent, name| self.open_named(parent, name, node.backing, writable))?;
        if state.base.get().is_none() {
            let base = self.load_base(&open.file, mark)?;
            state.base.get_or_init(|| base);
        }
        let open = Arc::new(open);
        *slot = Arc::downgrade(&open);
        drop(slot);
        Ok((state, open))
    }

    /// Opens a file by name, twice if it is base-backed, and tells its inode. For writing if that is possible: reading a
    /// page may mean to fill it in.
    fn open_named(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        inode: u64,
        writable: bool,
    ) -> rustix::io::Result<(u64, Pair)> {
        let by_name = |access| rustix::fs::openat(parent, name, access | HOW | OFlags::NOFOLLOW, Mode::empty());
        match pair(&by_name, Access::ReadWrite) {
            Err(rustix::io::Errno::ACCESS) => {}
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ROFS) if !writable => {
                return pair(&by_name, Access::Read);
            }
            other => return other,
        }
        if !writable
            && let Ok((inode, pair)) = pair(&by_name, Access::Read)
            && pair.mark.is_none()
        {
            return Ok((inode, pair));
        }
        self.with_rights(parent, name, inode, |by_path| pair(by_path, Access::ReadWrite))
    }

    /// Runs `act` while the owner, who this process is, may read and write the file.
    fn with_rights<T>(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        inode: u64,
        act: impl FnOnce(&dyn Fn(OFlags) -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        let _alone = self.modes_alone();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&handle)?;
        if stat.st_ino != inode {
            return Err(rustix::io::Errno::NOENT);
        }
        let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let chmod = |mode| rustix::fs::chmod(&path, Mode::from_raw_mode(mode));
        let mode = stat.st_mode & 0o7777;
        chmod(mode | 0o600).map_err(|_| rustix::io::Errno::ACCESS)?;
        let result = act(&|access| rustix::fs::open(&path, access | HOW, Mode::empty()));
        chmod(mode)?;
        result
    }

    /// The open file of a node that has one.
    pub(super) fn opened(&self, node: &Node) -> Option<Arc<OpenFile>> {
        node.file.as_ref().and_then(|file| opened(file))
    }

    /// Takes over a file that was just created: it has no base.
    pub(super) fn adopt(&self, number: u64, file: File) -> Outcome<(Arc<FileState>, Arc<OpenFile>)> {
        let state = self.nodes.file(number)?;
        state.base.get_or_init(|| None);
        let open = Arc::new(OpenFile { file, witness: None, writable: true });
        *state.open.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&open);
        Ok((state, open))
    }

    fn load_base(&self, file: &File, mark: Option<Vec<u8>>) -> Outcome<Option<Arc<BaseFile>>> {
        let Some(mark) = mark else { return Ok(None) };
        let entry = std::str::from_utf8(&mark)
            .ok()
            .and_then(|text| text.parse().ok())
            .and_then(|number| self.table.get(number));
        let Some(entry) = entry else {
            tracing::error!("a file of the clone is marked as part of the backup but is not in the clone's table");
            return Err(Errno::EIO);
        };
        let size = file.metadata().map_err(crate::errno::io)?.len();
        match BaseFile::load(entry, size, Arc::clone(&self.shared)) {
            Ok(base) => Ok(Some(Arc::new(base))),
            Err(error) => {
                tracing::error!("cannot read the page map of '{}': {}", entry.path, chain(&error));
                Err(Errno::EIO)
            }
        }
    }
}

/// How files are opened: appending, direct and synchronous modes are the kernel's and ours to honour, per request.
const HOW: OFlags = OFlags::CLOEXEC.union(OFlags::NONBLOCK);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    ReadWrite,
}

/// What [`pair`] finds.
struct Pair {
    open: OpenFile,
    /// The base-backed file's number as it is stored.
    mark: Option<Vec<u8>>,
}

/// Opens a file by `open`, twice if it is base-backed, and tells its inode.
fn pair(open: &dyn Fn(OFlags) -> rustix::io::Result<OwnedFd>, access: Access) -> rustix::io::Result<(u64, Pair)> {
    let flags = match access {
        Access::Read => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    let file = File::from(open(flags)?);
    let inode = rustix::fs::fstat(&file)?.st_ino;
    // Now: reading an attribute later takes the right to read then.
    let mut text = [0u8; NUMBER_BYTES_MAX];
    let mark = match rustix::fs::fgetxattr(&file, BASE_ATTRIBUTE, &mut text) {
        Ok(bytes) => Some(text.iter().take(bytes).copied().collect::<Vec<_>>()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => return Err(error),
    };
    let witness = match mark {
        Some(_) => Some(File::from(open(OFlags::RDONLY)?)),
        None => None,
    };
    if let Some(witness) = &witness
        && rustix::fs::fstat(witness)?.st_ino != inode
    {
        // Renamed in between; another of its names may do, or the caller tries again.
        return Err(rustix::io::Errno::STALE);
    }
    Ok((inode, Pair { open: OpenFile { file, witness, writable: access == Access::ReadWrite }, mark }))
}

fn opened(state: &FileState) -> Option<Arc<OpenFile>> {
    state.open.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
}

/// What the kernel is told about an inode.
pub(super) fn attributes(number: u64, stat: &Stat) -> Outcome<FileAttr> {
    Ok(FileAttr {
        ino: INodeNo(number),
        size: u64::try_from(stat.st_size).map_err(|_| Errno::EIO)?,
        blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or_default(),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        flags: 0,
    })
}

/// The kernel's word for a kind of file; devices cannot be in a skeleton.
pub(super) fn kind(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let fraction = Duration::from_nanos(nanoseconds);
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = SystemTime::UNIX_EPOCH;
    let at = if seconds < 0 { base.checked_sub(whole) } else { base.checked_add(whole) };
    at.and_then(|at| at.checked_add(fraction)).unwrap_or(base)
}
