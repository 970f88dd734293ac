//! The file system itself: each inode is held by a descriptor that opens nothing, so names may change under it.

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
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use super::Faults;

/// Nothing is remembered by the kernel.
const TTL: Duration = Duration::ZERO;
const ROOT: u64 = 1;
/// No delay of its own.
static AT_ONCE: AtomicU64 = AtomicU64::new(0);

type Answer<T> = Result<T, Errno>;

struct Node {
    fd: Arc<OwnedFd>,
    /// Below the source, for the patterns of faults.
    path: PathBuf,
    lookups: u64,
}

enum Open {
    File(Arc<File>),
    Directory(Arc<Vec<(u64, FileType, OsString)>>),
}

struct Inner {
    nodes: Mutex<HashMap<u64, Node>>,
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
}

/// A directory, shown.
pub(super) struct Passthrough {
    inner: Arc<Inner>,
    faults: Arc<Faults>,
}

impl Passthrough {
    pub(super) fn new(source: &Path, faults: Arc<Faults>) -> io::Result<Self> {
        let fd = rustix::fs::open(source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let root = Node { fd: Arc::new(fd), path: PathBuf::new(), lookups: 1 };
        let nodes = Mutex::new(HashMap::from([(ROOT, root)]));
        Ok(Self { inner: Arc::new(Inner { nodes, open: Mutex::default(), next: AtomicU64::new(1) }), faults })
    }

    /// Does something with the inodes when the faults let it pass.
    fn later(&self, delay_us: &AtomicU64, work: impl FnOnce(&Inner) + Send + 'static) {
        let inner = Arc::clone(&self.inner);
        self.faults.pass(delay_us, move || work(&inner));
    }

    fn at_once(&self, work: impl FnOnce(&Inner) + Send + 'static) {
        self.later(&AT_ONCE, work);
    }
}

fn failed(error: impl Into<io::Error>) -> Errno {
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
fn again(fd: &OwnedFd) -> PathBuf {
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
    fn fd(&self, number: u64) -> Answer<Arc<OwnedFd>> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&number).map(|node| Arc::clone(&node.fd)).ok_or(Errno::ESTALE)
    }

    fn path(&self, number: u64) -> PathBuf {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&number).map(|node| node.path.clone()).unwrap_or_default()
    }

    /// Finds a name and counts the look-up.
    fn look_up(&self, parent: u64, name: &OsStr) -> Answer<FileAttr> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*self.fd(parent)?, name, flags, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let path = self.path(parent).join(name);
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Node { fd: Arc::new(fd), path: PathBuf::new(), lookups: 0 };
        let node = nodes.entry(stat.st_ino).or_insert(new);
        node.lookups += 1;
        node.path = path;
        Ok(attributes(stat.st_ino, &stat))
    }

    fn forget(&self, number: u64, count: u64) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 && number != ROOT {
                nodes.remove(&number);
            }
        }
    }

    fn stat(&self, number: u64) -> Answer<FileAttr> {
        Ok(attributes(number, &rustix::fs::fstat(&*self.fd(number)?).map_err(failed)?))
    }

    fn keep(&self, open: Open) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, open);
        FileHandle(number)
    }

    fn file(&self, handle: FileHandle) -> Answer<Arc<File>> {
        match self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&handle.0) {
            Some(Open::File(file)) => Ok(Arc::clone(file)),
            _ => Err(Errno::EBADF),
        }
    }

    fn open_file(&self, number: u64, flags: i32) -> Answer<FileHandle> {
        let flags = OFlags::from_bits_retain((flags & libc::O_ACCMODE) as u32) | OFlags::CLOEXEC;
        let fd = rustix::fs::open(again(&*self.fd(number)?), flags, Mode::empty()).map_err(failed)?;
        Ok(self.keep(Open::File(Arc::new(fd.into()))))
    }

    fn open_directory(&self, number: u64) -> Answer<FileHandle> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*self.fd(number)?, ".", flags, Mode::empty()).map_err(failed)?;
        let mut listed = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            listed.push((entry.ino(), kind(entry.file_type()), name));
        }
        Ok(self.keep(Open::Directory(Arc::new(listed))))
    }

    /// Gives a new name to who asked for it: we may be root on behalf of somebody else.
    fn give(&self, parent: u64, name: &OsStr, owner: (u32, u32)) -> Answer<FileAttr> {
        let (uid, gid) = (Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)));
        rustix::fs::chownat(&*self.fd(parent)?, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        self.look_up(parent, name)
    }

    fn create(
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

    fn make_directory(&self, parent: u64, name: &OsStr, mode: u32, owner: (u32, u32)) -> Answer<FileAttr> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::mkdirat(&*self.fd(parent)?, name, mode).map_err(failed)?;
        rustix::fs::chmodat(&*self.fd(parent)?, name, mode, AtFlags::empty()).map_err(failed)?;
        self.give(parent, name, owner)
    }

    fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), flags: RenameFlags) -> Answer<()> {
        let (old, new) = (self.fd(from.0)?, self.fd(to.0)?);
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        rustix::fs::renameat_with(&*old, from.1, &*new, to.1, flags).map_err(failed)?;
        let moved = rustix::fs::statat(&*new, to.1, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let path = self.path(to.0).join(to.1);
        if let Some(node) = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&moved.st_ino) {
            node.path = path;
        }
        Ok(())
    }

    fn set(&self, number: u64, new: &New) -> Answer<FileAttr> {
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
struct New {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    accessed: Option<TimeOrNow>,
    modified: Option<TimeOrNow>,
}

fn read(file: &File, offset: u64, size: u32) -> Answer<Vec<u8>> {
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

fn entry(reply: ReplyEntry, answer: Answer<FileAttr>) {
    match answer {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn attr(reply: ReplyAttr, answer: Answer<FileAttr>) {
    match answer {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(error) => reply.error(error),
    }
}

fn empty(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn opened(reply: ReplyOpen, answer: Answer<FileHandle>) {
    match answer {
        Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it look-ups in a directory wait for each other. An older kernel does without.
        _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.later(&self.faults.name_delay_us, move |inner| entry(reply, inner.look_up(parent.0, &name)));
    }

    fn forget(&self, _: &Request, number: INodeNo, count: u64) {
        self.inner.forget(number.0, count);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.at_once(move |inner| attr(reply, inner.stat(number.0)));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let new = New { mode, uid, gid, size, accessed, modified };
        self.at_once(move |inner| attr(reply, inner.set(number.0, &new)));
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        self.at_once(move |inner| {
            let target = inner.fd(number.0).and_then(|fd| rustix::fs::readlinkat(&*fd, "", Vec::new()).map_err(failed));
            match target {
                Ok(target) => reply.data(target.to_bytes()),
                Err(error) => reply.error(error),
            }
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (name, owner) = (name.to_owned(), (request.uid(), request.gid()));
        self.at_once(move |inner| entry(reply, inner.make_directory(parent.0, &name, mode, owner)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.at_once(move |inner| {
            let parent = inner.fd(parent.0);
            let done = parent.and_then(|fd| rustix::fs::unlinkat(&*fd, &name, AtFlags::empty()).map_err(failed));
            empty(reply, done);
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.at_once(move |inner| {
            let parent = inner.fd(parent.0);
            let done = parent.and_then(|fd| rustix::fs::unlinkat(&*fd, &name, AtFlags::REMOVEDIR).map_err(failed));
            empty(reply, done);
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target, owner) = (name.to_owned(), target.to_owned(), (request.uid(), request.gid()));
        self.at_once(move |inner| {
            let fd = inner.fd(parent.0);
            let made = fd.and_then(|fd| rustix::fs::symlinkat(&target, &*fd, &name).map_err(failed));
            entry(reply, made.and_then(|()| inner.give(parent.0, &name, owner)));
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.at_once(move |inner| empty(reply, inner.rename((parent.0, &name), (new_parent.0, &new_name), flags)));
    }

    fn link(&self, _: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.at_once(move |inner| {
            let linked = inner.fd(number.0).and_then(|fd| {
                let parent = inner.fd(parent.0)?;
                rustix::fs::linkat(CWD, again(&fd), &*parent, &name, AtFlags::SYMLINK_FOLLOW).map_err(failed)
            });
            entry(reply, linked.and_then(|()| inner.look_up(parent.0, &name)));
        });
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let delay = &self.faults.name_delay_us;
        self.later(delay, move |inner| opened(reply, inner.open_file(number.0, flags.0)));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, owner) = (name.to_owned(), (request.uid(), request.gid()));
        self.at_once(move |inner| match inner.create(parent.0, &name, mode, flags, owner) {
            Ok((attr, handle)) => {
                reply.created(&TTL, &attr, Generation(0), handle, FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error),
        });
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.faults.reads.fetch_add(1, Ordering::AcqRel);
        let faults = Arc::clone(&self.faults);
        self.later(&self.faults.read_delay_us, move |inner| {
            if faults.fails(&inner.path(number.0)) {
                return reply.error(Errno::EIO);
            }
            match inner.file(handle).and_then(|file| read(&file, offset, size)) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(error),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.at_once(move |inner| {
            let written = inner.file(handle).and_then(|file| file.write_all_at(&data, offset).map_err(failed));
            match written {
                Ok(()) => reply.written(data.len() as u32),
                Err(error) => reply.error(error),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.at_once(|_| reply.ok());
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // Nobody waits for it.
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.at_once(move |inner| {
            empty(reply, inner.file(handle).and_then(|file| file.sync_all().map_err(failed)));
        });
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.at_once(move |inner| match inner.open_directory(number.0) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(error) => reply.error(error),
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.at_once(move |inner| {
            let listed = match inner.open.lock().unwrap_or_else(PoisonError::into_inner).get(&handle.0) {
                Some(Open::Directory(listed)) => Arc::clone(listed),
                _ => return reply.error(Errno::EBADF),
            };
            for (at, (number, kind, name)) in listed.iter().enumerate().skip(offset as usize) {
                if reply.add(INodeNo(*number), at as u64 + 1, *kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.at_once(move |inner| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let synced = inner.fd(number.0).and_then(|fd| {
                let fd = rustix::fs::openat(&*fd, ".", flags, Mode::empty()).map_err(failed)?;
                rustix::fs::fsync(&fd).map_err(failed)
            });
            empty(reply, synced);
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.at_once(move |inner| {
            match inner.fd(ROOT).and_then(|fd| rustix::fs::statvfs(again(&fd)).map_err(failed)) {
                Ok(at) => reply.statfs(
                    at.f_blocks,
                    at.f_bfree,
                    at.f_bavail,
                    at.f_files,
                    at.f_ffree,
                    at.f_bsize as u32,
                    at.f_namemax as u32,
                    at.f_frsize as u32,
                ),
                Err(error) => reply.error(error),
            }
        });
    }
}
