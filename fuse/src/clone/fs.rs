//! The clone as the kernel sees it: requests in, answers out.
//!
//! Everything is cached by the kernel, since nobody else writes: attributes and names for an hour, data until it is
//! replaced through the mount (explicit invalidation only; automatic invalidation would drop a file's pages whenever its
//! time stamp is refreshed); data of files that need nothing of the backup do not come by here at all ([`super::modes`]).
//! The writeback cache stays off: a page write is one request, in PostgreSQL's order.
//! Not answered, on purpose: extended attributes, copy_file_range (the kernel then reads and writes), locks (the
//! kernel keeps them).

use super::backing::{Backing, attributes, kind};
use super::files::{Facts, Handle, SyncScope, set_facts};
use super::modes::{Counted, Modes, Way};
use super::names::{Names, New};
use crate::errno::{Outcome, guard, io, system};
use crate::owner::Owner;
use crate::pool::Pool;
use fuser::{
    BackingId, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

/// How long the kernel may believe names and attributes.
const TTL: Duration = Duration::from_secs(3600);
/// Largest write request; the kernel caps requests at 256 pages.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Readahead requests the kernel may have under way.
const BACKGROUND_MAX: u16 = 64;

/// One name of an open directory.
struct Listed {
    number: u64,
    kind: FileType,
    name: OsString,
}

enum Open {
    File(Handle, Counted),
    Directory(Arc<Mutex<Vec<Listed>>>),
}

/// A clone, to be served by a session.
pub(super) struct CloneFs {
    backing: Arc<Backing>,
    names: Names,
    handles: RwLock<HashMap<u64, Open>>,
    next_handle: AtomicU64,
    pool: Pool,
    modes: Modes,
}

impl CloneFs {
    pub(super) fn new(backing: Arc<Backing>, pool: Pool, modes: Modes) -> Self {
        Self { backing, names: Names::new(), handles: RwLock::default(), next_handle: AtomicU64::new(1), pool, modes }
    }

    fn keep(&self, open: Open) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().unwrap_or_else(PoisonError::into_inner).insert(number, open);
        FileHandle(number)
    }

    fn drop_handle(&self, handle: FileHandle) {
        let open = self.handles.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        // The last close of a removed file frees its space: outside the lock.
        if let Some(Open::File(handle, counted)) = open {
            drop(handle);
            drop(counted);
        }
    }

    fn file(&self, handle: FileHandle) -> Outcome<Handle> {
        match self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0) {
            Some(Open::File(handle, _)) => Ok(handle.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Opens a file for the kernel.
    fn open_file(&self, number: u64, flags: OpenFlags, register: impl Register) -> Outcome<(FileHandle, Way)> {
        let writable = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let (state, open) = self.backing.open(number, writable)?;
        Ok(self.hand_out(Handle { state, open }, register))
    }

    fn hand_out(&self, handle: Handle, register: impl Register) -> (FileHandle, Way) {
        let (way, counted) = self.modes.enter(&handle.state, &handle.open, register);
        (self.keep(Open::File(handle, counted)), way)
    }

    fn create_file(&self, new: &New<'_>, flags: i32, register: impl Register) -> Outcome<(FileAttr, FileHandle, Way)> {
        match self.names.create(&self.backing, new) {
            Ok((attr, file)) => {
                let (state, open) = self.backing.adopt(attr.ino.0, file)?;
                let (handle, way) = self.hand_out(Handle { state, open }, register);
                Ok((attr, handle, way))
            }
            Err(error) if error.code() == libc::EEXIST && flags & libc::O_EXCL == 0 => {
                let attr = self.names.lookup(&self.backing, new.parent, new.name)?.ok_or(Errno::ENOENT)?;
                let (handle, way) = self.open_file(attr.ino.0, OpenFlags(flags), register)?;
                if flags & libc::O_TRUNC != 0 {
                    self.file(handle)?.truncate(0)?;
                }
                Ok((attributes(attr.ino.0, &self.backing.stat(attr.ino.0)?)?, handle, way))
            }
            Err(error) => Err(error),
        }
    }

    fn set(&self, number: u64, size: Option<u64>, handle: Option<FileHandle>, facts: &Facts) -> Outcome<FileAttr> {
        if let Some(size) = size {
            match handle.and_then(|handle| self.file(handle).ok()).filter(|handle| handle.open.writable) {
                Some(handle) => handle.truncate(size)?,
                None => {
                    let (state, open) = self.backing.open(number, true)?;
                    Handle { state, open }.truncate(size)?;
                }
            }
        }
        let asked = facts.mode.is_some() || facts.uid.is_some() || facts.gid.is_some();
        if asked || facts.accessed.is_some() || facts.modified.is_some() {
            set_facts(&self.backing, number, facts)?;
        }
        attributes(number, &self.backing.stat(number)?)
    }

    fn list(&self, number: u64) -> Outcome<Vec<Listed>> {
        let directory = self.backing.directory(number)?;
        let mut listed = Vec::new();
        for entry in rustix::fs::Dir::read_from(&*directory).map_err(system)? {
            let entry = entry.map_err(system)?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            let number = self.backing.nodes.number_of(entry.ino()).unwrap_or(entry.ino());
            listed.push(Listed { number, kind: kind(entry.file_type()), name });
        }
        Ok(listed)
    }

    fn listed(&self, number: u64, handle: FileHandle, offset: u64, reply: &mut ReplyDirectory) -> Outcome<()> {
        let list = match self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0) {
            Some(Open::Directory(list)) => Arc::clone(list),
            _ => return Err(Errno::EBADF),
        };
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 {
            *list = self.list(number)?;
        }
        let start = usize::try_from(offset).map_err(|_| Errno::EINVAL)?;
        for (at, entry) in list.iter().enumerate().skip(start) {
            if reply.add(INodeNo(entry.number), at as u64 + 1, entry.kind, &entry.name) {
                break;
            }
        }
        Ok(())
    }

    fn sync_file(&self, handle: FileHandle, datasync: bool) -> Outcome<()> {
        self.file(handle)?.sync(if datasync { SyncScope::Data } else { SyncScope::DataAndFacts })
    }
}

/// Makes a backing file known to the kernel.
trait Register: FnOnce(&File) -> std::io::Result<BackingId> {}

impl<T: FnOnce(&File) -> std::io::Result<BackingId>> Register for T {}

/// Answers a request for a name.
fn entry(reply: ReplyEntry, outcome: Outcome<FileAttr>) {
    match outcome {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn empty(reply: ReplyEmpty, outcome: Outcome<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn attr(reply: ReplyAttr, outcome: Outcome<FileAttr>) {
    match outcome {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(error) => reply.error(error),
    }
}

fn new<'a>(request: &Request, parent: INodeNo, name: &'a OsStr, mode: u32) -> New<'a> {
    New { parent: parent.0, name, owner: Owner { uid: request.uid(), gid: request.gid() }, mode }
}

/// Answer to a look-up of a name that does not exist; the kernel may believe it until the name is made.
fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// What every session asks of the kernel.
pub(crate) fn negotiate(config: &mut KernelConfig) {
    let wanted = [
        InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_NO_EXPORT_SUPPORT,
    ];
    for flag in wanted {
        if let Err(missing) = config.add_capabilities(flag) {
            tracing::debug!("the kernel does not offer {missing:?}");
        }
    }
    for result in [
        config.set_max_write(WRITE_BYTES_MAX).map_err(u64::from),
        config.set_max_background(BACKGROUND_MAX).map(u32::from).map_err(u64::from),
    ] {
        if let Err(nearest) = result {
            tracing::debug!("the kernel's nearest limit is {nearest}");
        }
    }
}

impl Filesystem for CloneFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config);
        self.modes.negotiate(config);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guard("lookup", || {
            let found = self.names.lookup(&self.backing, parent.0, name);
            entry(reply, found.map(|found| found.unwrap_or_else(absent)));
        });
    }

    fn forget(&self, _: &Request, number: INodeNo, count: u64) {
        guard("forget", || self.backing.nodes.forget(number.0, count));
    }

    fn getattr(&self, _: &Request, number: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        guard("getattr", || {
            let open = handle.and_then(|handle| self.file(handle).ok());
            let stat = match open {
                Some(handle) => {
                    let _modes = self.backing.modes();
                    rustix::fs::fstat(&handle.open.file).map_err(system)
                }
                None => self.backing.stat(number.0),
            };
            attr(reply, stat.and_then(|stat| attributes(number.0, &stat)));
        });
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
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        guard("setattr", || {
            attr(reply, self.set(number.0, size, handle, &Facts { mode, uid, gid, accessed, modified }));
        });
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        guard("readlink", || {
            let target = self.backing.nodes.get(number.0).and_then(|node| {
                self.backing.named(&node, |parent, name| {
                    let stat = rustix::fs::statat(parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
                    Ok((stat.st_ino, rustix::fs::readlinkat(parent, name, Vec::new())?))
                })
            });
            match target {
                Ok(target) => reply.data(target.as_bytes()),
                Err(error) => reply.error(error),
            }
        });
    }

    fn mknod(&self, r: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: u32, reply: ReplyEntry) {
        guard("mknod", || {
            entry(reply, self.names.mknod(&self.backing, &new(r, parent, name, mode & !umask)));
        });
    }

    fn mkdir(&self, r: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        guard("mkdir", || {
            entry(reply, self.names.mkdir(&self.backing, &new(r, parent, name, mode & !umask)));
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guard("unlink", || empty(reply, self.names.unlink(&self.backing, parent.0, name)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guard("rmdir", || empty(reply, self.names.rmdir(&self.backing, parent.0, name)));
    }

    fn symlink(&self, r: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        guard("symlink", || {
            entry(reply, self.names.symlink(&self.backing, &new(r, parent, name, 0o777), target));
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
        guard("rename", || {
            let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
            empty(reply, self.names.rename(&self.backing, (parent.0, name), (new_parent.0, new_name), flags));
        });
    }

    fn link(&self, _: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guard("link", || entry(reply, self.names.link(&self.backing, number.0, parent.0, name)));
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guard("open", || match self.open_file(number.0, flags, |file| reply.open_backing(file)) {
            Ok((handle, Way::Here(flags))) => reply.opened(handle, flags),
            Ok((handle, Way::Through(flags, id))) => reply.opened_passthrough(handle, flags, &id),
            Err(error) => reply.error(error),
        });
    }

    fn create(
        &self,
        r: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        guard("create", || {
            let new = new(r, parent, name, mode & !umask);
            match self.create_file(&new, flags, |file| reply.open_backing(file)) {
                Ok((attr, handle, Way::Here(flags))) => reply.created(&TTL, &attr, Generation(0), handle, flags),
                Ok((attr, handle, Way::Through(flags, id))) => {
                    reply.created_passthrough(&TTL, &attr, Generation(0), handle, flags, &id);
                }
                Err(error) => reply.error(error),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let answer = move |handle: &Handle, reply: ReplyData| match handle.read(offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        };
        guard("read", || match self.file(handle) {
            Ok(handle) if handle.holds(offset, size) => answer(&handle, reply),
            Ok(handle) => self.pool.submit(move || answer(&handle, reply)),
            Err(error) => reply.error(error),
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
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        guard("write", || {
            let written = self.file(handle).and_then(|handle| handle.write(offset, data, flags.0));
            match written.and_then(|()| u32::try_from(data.len()).map_err(|_| Errno::EINVAL)) {
                Ok(bytes) => reply.written(bytes),
                Err(error) => reply.error(error),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
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
        guard("release", || {
            self.drop_handle(handle);
            reply.ok();
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        guard("fsync", || empty(reply, self.sync_file(handle, datasync)));
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        guard("opendir", || reply.opened(self.keep(Open::Directory(Arc::default())), FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, number: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guard("readdir", || match self.listed(number.0, handle, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        guard("releasedir", || {
            self.drop_handle(handle);
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        guard("fsyncdir", || {
            let synced = self.backing.directory(number.0).and_then(|fd| rustix::fs::fsync(&*fd).map_err(system));
            empty(reply, synced);
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        guard("statfs", || match rustix::fs::fstatvfs(self.backing.root()) {
            Ok(at) => reply.statfs(
                at.f_blocks,
                at.f_bfree,
                at.f_bavail,
                at.f_files,
                at.f_ffree,
                u32::try_from(at.f_bsize).unwrap_or(4096),
                u32::try_from(at.f_namemax).unwrap_or(255),
                u32::try_from(at.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(io(error.into())),
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        guard("fallocate", || {
            empty(reply, self.file(handle).and_then(|handle| handle.allocate(offset, length, mode)));
        });
    }

    fn lseek(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        guard("lseek", || match self.file(handle).and_then(|handle| handle.seek(offset, whence)) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(error),
        });
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
