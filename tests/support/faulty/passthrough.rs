//! The file system itself: what the kernel asks is done to the source, once the faults let it pass.

use std::{
    ffi::{CString, OsStr},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, CWD};

use super::Faults;
use super::inodes::{Answer, Inner, New, ROOT, again, failed, read};

/// Nothing is remembered by the kernel.
const TTL: Duration = Duration::ZERO;
/// No delay of its own.
static AT_ONCE: AtomicU64 = AtomicU64::new(0);

/// A directory, shown.
pub(super) struct Passthrough {
    inner: Arc<Inner>,
    faults: Arc<Faults>,
}

impl Passthrough {
    pub(super) fn new(source: &Path, faults: Arc<Faults>) -> io::Result<Self> {
        Ok(Self { inner: Arc::new(Inner::new(source)?), faults })
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

fn data(reply: ReplyData, answer: Answer<Vec<u8>>) {
    match answer {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(error),
    }
}

fn opened(reply: ReplyOpen, answer: Answer<FileHandle>, flags: FopenFlags) {
    match answer {
        Ok(handle) => reply.opened(handle, flags),
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
            data(reply, target.map(CString::into_bytes));
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (name, owner) = (name.to_owned(), (request.uid(), request.gid()));
        self.at_once(move |inner| entry(reply, inner.make_directory(parent.0, &name, mode, owner)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.at_once(move |inner| {
            empty(reply, inner.remove(parent.0, &name, AtFlags::empty()));
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.at_once(move |inner| {
            empty(reply, inner.remove(parent.0, &name, AtFlags::REMOVEDIR));
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
        self.later(delay, move |inner| opened(reply, inner.open_file(number.0, flags.0), FopenFlags::FOPEN_DIRECT_IO));
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
            data(reply, inner.file(handle).and_then(|file| read(&file, offset, size)));
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
        self.inner.close(handle);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.at_once(move |inner| {
            empty(reply, inner.file(handle).and_then(|file| file.sync_all().map_err(failed)));
        });
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.at_once(move |inner| opened(reply, inner.open_directory(number.0), FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.at_once(move |inner| {
            let listed = match inner.listed(handle) {
                Ok(listed) => listed,
                Err(error) => return reply.error(error),
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
        self.inner.close(handle);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.at_once(move |inner| {
            empty(reply, inner.readable(number.0).and_then(|fd| rustix::fs::fsync(&fd).map_err(failed)));
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
