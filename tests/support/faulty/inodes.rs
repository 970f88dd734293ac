//! The inodes of what is shown: each is held by a descriptor that opens nothing, so names may change under it.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::FileExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, RenameFlags, TimeOrNow};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use super::lock;

pub(super) const ROOT: u64 = 1;

pub(super) type Answer<T> = Result<T, Errno>;

struct Node {
    fd: Arc<OwnedFd>,
    /// Below the source, for the patterns of faults.
    path: PathBuf,
    lookups: u64,
}

/// Names of a directory as they were when it was opened.
pub(super) type Listed = Vec<(u64, FileType, OsString)>;

enum Open {
    File(Arc<File>),
    Directory(Arc<Listed>),
}

/// All of them, and what is open.
pub(super) struct Inner {
    nodes: Mutex<HashMap<u64, Node>>,
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
}

pub(super) fn failed(error: impl Into<io::Error>) -> Errno {
    Errno::from_i32(error.into().raw_os_error().unwrap_or(libc::EIO))
}

fn kind(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        _ => FileType::RegularFile,
    }
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or(0), nanoseconds as u32)
}

fn attributes(number: u64, stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}

/// The way to open an inode anew, whatever it is called by now.
pub(super) fn again(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn stamp(when: Option<TimeOrNow>) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match when {
        None => special(UTIME_OMIT),
        Some(TimeOrNow::Now) => special(UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Timespec { tv_sec: since.as_secs() as i64, tv_nsec: i64::from(since.subsec_nanos()) }
        }
    }
}

impl Inner {
    pub(super) fn new(source: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let root = Node { fd: Arc::new(fd), path: PathBuf::new(), lookups: 1 };
        let nodes = Mutex::new(HashMap::from([(ROOT, root)]));
        Ok(Self { nodes, open: Mutex::default(), next: AtomicU64::new(1) })
    }

    pub(super) fn fd(&self, number: u64) -> Answer<Arc<OwnedFd>> {
        lock(&self.nodes).get(&number).map(|node| Arc::clone(&node.fd)).ok_or(Errno::ESTALE)
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        lock(&self.nodes).get(&number).map(|node| node.path.clone()).unwrap_or_default()
    }

    /// Finds a name and counts the look-up.
    pub(super) fn look_up(&self, parent: u64, name: &OsStr) -> Answer<FileAttr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*self.fd(parent)?, name, flags, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let path = self.path(parent).join(name);
        let mut nodes = lock(&self.nodes);
        let new = Node { fd: Arc::new(fd), path: PathBuf::new(), lookups: 0 };
        let node = nodes.entry(stat.st_ino).or_insert(new);
        node.lookups += 1;
        node.path = path;
        Ok(attributes(stat.st_ino, &stat))
    }

    pub(super) fn forget(&self, number: u64, count: u64) {
        let mut nodes = lock(&self.nodes);
        if let Some(node) = nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 && number != ROOT {
                nodes.remove(&number);
            }
        }
    }

    pub(super) fn stat(&self, number: u64) -> Answer<FileAttr> {
        Ok(attributes(number, &rustix::fs::fstat(&*self.fd(number)?).map_err(failed)?))
    }

    fn keep(&self, open: Open) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(number, open);
        FileHandle(number)
    }

    pub(super) fn file(&self, handle: FileHandle) -> Answer<Arc<File>> {
        match lock(&self.open).get(&handle.0) {
            Some(Open::File(file)) => Ok(Arc::clone(file)),
            _ => Err(Errno::EBADF),
        }
    }

    pub(super) fn listed(&self, handle: FileHandle) -> Answer<Arc<Listed>> {
        match lock(&self.open).get(&handle.0) {
            Some(Open::Directory(listed)) => Ok(Arc::clone(listed)),
            _ => Err(Errno::EBADF),
        }
    }

    pub(super) fn close(&self, handle: FileHandle) {
        lock(&self.open).remove(&handle.0);
    }

    pub(super) fn open_file(&self, number: u64, flags: i32) -> Answer<FileHandle> {
        let flags = OFlags::from_bits_retain((flags & libc::O_ACCMODE) as u32) | OFlags::CLOEXEC;
        let fd = rustix::fs::open(again(&*self.fd(number)?), flags, Mode::empty()).map_err(failed)?;
        Ok(self.keep(Open::File(Arc::new(fd.into()))))
    }

    /// A directory, opened anew to be listed or synced.
    pub(super) fn readable(&self, number: u64) -> Answer<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&*self.fd(number)?, ".", flags, Mode::empty()).map_err(failed)
    }

    pub(super) fn open_directory(&self, number: u64) -> Answer<FileHandle> {
        let fd = self.readable(number)?;
        let mut listed = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            listed.push((entry.ino(), kind(entry.file_type()), name));
        }
        Ok(self.keep(Open::Directory(Arc::new(listed))))
    }

    /// Gives a new name to who asked for it: we may be root on behalf of somebody else.
    pub(super) fn give(&self, parent: u64, name: &OsStr, owner: (u32, u32)) -> Answer<FileAttr> {
        let (uid, gid) = (Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)));
        rustix::fs::chownat(&*self.fd(parent)?, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        self.look_up(parent, name)
    }

    pub(super) fn create(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
        owner: (u32, u32),
    ) -> Answer<(FileAttr, FileHandle)> {
        let asked = OFlags::from_bits_retain((flags & (libc::O_ACCMODE | libc::O_EXCL)) as u32);
        let flags = asked | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let fd = rustix::fs::openat(&*self.fd(parent)?, name, flags, mode).map_err(failed)?;
        rustix::fs::fchmod(&fd, mode).map_err(failed)?;
        let attr = self.give(parent, name, owner)?;
        Ok((attr, self.keep(Open::File(Arc::new(fd.into())))))
    }

    pub(super) fn make_directory(&self, parent: u64, name: &OsStr, mode: u32, owner: (u32, u32)) -> Answer<FileAttr> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::mkdirat(&*self.fd(parent)?, name, mode).map_err(failed)?;
        rustix::fs::chmodat(&*self.fd(parent)?, name, mode, AtFlags::empty()).map_err(failed)?;
        self.give(parent, name, owner)
    }

    /// Removes a name; the flags say whether of a directory.
    pub(super) fn remove(&self, parent: u64, name: &OsStr, flags: AtFlags) -> Answer<()> {
        rustix::fs::unlinkat(&*self.fd(parent)?, name, flags).map_err(failed)
    }

    pub(super) fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), flags: RenameFlags) -> Answer<()> {
        let (old, new) = (self.fd(from.0)?, self.fd(to.0)?);
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        rustix::fs::renameat_with(&*old, from.1, &*new, to.1, flags).map_err(failed)?;
        let moved = rustix::fs::statat(&*new, to.1, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let path = self.path(to.0).join(to.1);
        if let Some(node) = lock(&self.nodes).get_mut(&moved.st_ino) {
            node.path = path;
        }
        Ok(())
    }

    pub(super) fn set(&self, number: u64, new: &New) -> Answer<FileAttr> {
        let fd = self.fd(number)?;
        let path = again(&fd);
        if let Some(mode) = new.mode {
            rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty()).map_err(failed)?;
        }
        if new.uid.is_some() || new.gid.is_some() {
            let (uid, gid) = (new.uid.map(Uid::from_raw), new.gid.map(Gid::from_raw));
            rustix::fs::chownat(fd.as_fd(), "", uid, gid, AtFlags::EMPTY_PATH).map_err(failed)?;
        }
        if let Some(size) = new.size {
            let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
            rustix::fs::ftruncate(&file, size).map_err(failed)?;
        }
        if new.accessed.is_some() || new.modified.is_some() {
            let times = Timestamps { last_access: stamp(new.accessed), last_modification: stamp(new.modified) };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).map_err(failed)?;
        }
        self.stat(number)
    }
}

/// What may change about an inode.
pub(super) struct New {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<TimeOrNow>,
    pub(super) modified: Option<TimeOrNow>,
}

pub(super) fn read(file: &File, offset: u64, size: u32) -> Answer<Vec<u8>> {
    let mut buffer = vec![0; size as usize];
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], offset + count as u64).map_err(failed)? {
            0 => break,
            more => count += more,
        }
    }
    buffer.truncate(count);
    Ok(buffer)
}
