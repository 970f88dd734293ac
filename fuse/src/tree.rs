//! The read-only tree of all backups: one directory a backup, and the link `latest`.
//!
//! A shim over [`Snapshot`]. What is below a backup's directory never changes, so the kernel may believe it for an
//! hour and keep its data; the list of backups it may believe for a second, so that new ones appear. The target of
//! `latest` changes, while the kernel keeps the text of a link: each target has its own inode.
//!
//! Inode numbers are given out once. Entries are remembered while the kernel refers to them; listing a directory
//! remembers nothing.

mod inodes;

use crate::clone::negotiate;
use crate::errno::{Outcome, chain, guard, lookup};
use crate::mount::{Access, MountOptions, Session};
use crate::owner::{Owner, Owners};
use crate::pool::Pool;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyXattr, Request,
};
use inodes::{Inodes, ROOT, Thing};
use pgkeep_engine::view::{Content, Entry, Snapshot};
use pgkeep_engine::{Error, Result};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

/// How long the kernel may believe what is in a backup.
const TTL: Duration = Duration::from_secs(3600);
/// How long the kernel and we may believe which backups there are.
const CATALOG_TTL: Duration = Duration::from_secs(1);
/// Name of the link to the newest backup.
const LATEST: &str = "latest";
/// Threads that read from the store.
const READ_THREADS: usize = 8;
/// Snapshots kept open: each holds a manifest's root and caches.
const SNAPSHOTS_MAX: usize = 16;

/// What the tree lists. Any thread may call any method.
pub trait Catalog: Send + Sync {
    /// Labels of all backups, oldest first; `latest` points to the last.
    ///
    /// # Errors
    /// What the store said.
    fn labels(&self) -> Result<Vec<String>>;

    /// Opens one backup.
    ///
    /// # Errors
    /// `Absent` if it is gone, and what the store or the decoder said.
    fn open(&self, label: &str) -> Result<Arc<dyn Snapshot>>;
}

/// The tree of a catalogue.
struct ReadOnlyTree {
    shared: Arc<Shared>,
    pool: Pool,
}

struct Shared {
    catalog: Box<dyn Catalog>,
    inodes: Inodes,
    labels: Mutex<Option<(Instant, Arc<Vec<String>>)>>,
    snapshots: Mutex<HashMap<String, Opened>>,
    handles: RwLock<HashMap<u64, Open>>,
    clock: AtomicU64,
    owners: Mutex<Owners>,
    mounted: SystemTime,
    owner: Owner,
}

/// A snapshot kept open, and when it was last used on the tree's clock.
type Opened = (Arc<dyn Snapshot>, u64);

/// One name of an open directory.
type Listed = (FileType, OsString);

#[derive(Clone)]
enum Open {
    File(Arc<dyn Content>),
    Directory(Arc<Vec<Listed>>),
}

impl ReadOnlyTree {
    /// A tree that asks `catalog` when the kernel asks it.
    fn new(catalog: impl Catalog + 'static, pool: Pool) -> Self {
        let owner = Owner::of_process();
        let shared = Shared {
            catalog: Box::new(catalog),
            inodes: Inodes::new(),
            labels: Mutex::new(None),
            snapshots: Mutex::default(),
            handles: RwLock::default(),
            clock: AtomicU64::new(1),
            owners: Mutex::new(Owners::new(owner)),
            mounted: SystemTime::now(),
            owner,
        };
        Self { shared: Arc::new(shared), pool }
    }
}

/// Mounts the tree of `catalog`, read-only.
///
/// # Errors
/// What the file system or the kernel said.
pub fn serve(catalog: impl Catalog + 'static, mountpoint: &Path, options: &MountOptions) -> Result<Session> {
    let pool = Pool::start("tree-read", READ_THREADS).map_err(pgkeep_engine::FileError::at("serve", mountpoint))?;
    crate::mount::serve(ReadOnlyTree::new(catalog, pool), mountpoint, options, Access::ReadOnly, None)
}

fn failed(what: &str, error: &Error) -> Errno {
    let errno = lookup(error);
    if errno.code() != libc::ENOENT {
        tracing::error!("cannot read '{what}': {}", chain(error));
    }
    errno
}

impl Shared {
    fn labels(&self) -> Outcome<Arc<Vec<String>>> {
        let known = self.labels.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, labels)) = known.filter(|(at, _)| at.elapsed() < CATALOG_TTL) {
            return Ok(labels);
        }
        let mut labels = self.catalog.labels().map_err(|error| failed("list of backups", &error))?;
        labels.retain(|label| !label.is_empty() && label != LATEST && !label.contains('/'));
        let labels = Arc::new(labels);
        let fresh = Some((Instant::now(), Arc::clone(&labels)));
        *self.labels.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(labels)
    }

    fn snapshot(&self, label: &str) -> Outcome<Arc<dyn Snapshot>> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((snapshot, used)) = snapshots.get_mut(label) {
            *used = now;
            return Ok(Arc::clone(snapshot));
        }
        drop(snapshots);
        let snapshot = self.catalog.open(label).map_err(|error| failed(label, &error))?;
        let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshots.len() >= SNAPSHOTS_MAX {
            let oldest = snapshots.iter().min_by_key(|(_, (_, used))| *used).map(|(label, _)| label.clone());
            oldest.and_then(|label| snapshots.remove(&label));
        }
        snapshots.insert(label.to_owned(), (Arc::clone(&snapshot), now));
        Ok(snapshot)
    }

    fn find(&self, parent: u64, name: &OsStr) -> Outcome<(FileAttr, Duration)> {
        // Paths of backups are text: other names are not in it.
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        let (thing, ttl) = match self.inodes.get(parent)? {
            Thing::Root => (self.find_top(name)?, CATALOG_TTL),
            Thing::Backup { label } => (Thing::Entry { label, path: name.to_owned() }, TTL),
            Thing::Entry { label, path } => (Thing::Entry { label, path: format!("{path}/{name}") }, TTL),
            Thing::Latest { .. } => return Err(Errno::ENOTDIR),
        };
        let facts = self.facts(&thing)?;
        Ok((facts.with(self.inodes.looked_up(thing)), ttl))
    }

    fn find_top(&self, name: &str) -> Outcome<Thing> {
        let labels = self.labels()?;
        if name == LATEST {
            return labels.last().map(|label| Thing::Latest { label: label.clone() }).ok_or(Errno::ENOENT);
        }
        let label = labels.iter().find(|label| *label == name).ok_or(Errno::ENOENT)?;
        Ok(Thing::Backup { label: label.clone() })
    }

    fn entry(&self, label: &str, path: &str) -> Outcome<Entry> {
        let found = self.snapshot(label)?.lookup(path).map_err(|error| failed(&format!("{label}/{path}"), &error))?;
        found.ok_or(Errno::ENOENT)
    }

    fn facts(&self, thing: &Thing) -> Outcome<Facts> {
        let plain = |kind, mode, size| Facts { kind, mode, size, modified: self.mounted, owner: self.owner };
        Ok(match thing {
            Thing::Root => plain(FileType::Directory, 0o755, 0),
            Thing::Latest { label } => plain(FileType::Symlink, 0o777, label.len() as u64),
            Thing::Backup { label } => {
                let root = self.snapshot(label)?.lookup("").map_err(|error| failed(label, &error))?;
                root.map_or_else(|| plain(FileType::Directory, 0o700, 0), |root| self.facts_of(&root))
            }
            Thing::Entry { label, path } => self.facts_of(&self.entry(label, path)?),
        })
    }

    fn facts_of(&self, entry: &Entry) -> Facts {
        // A mounter who is not root must be able to read what it mounted.
        let owner = if self.owner.uid == 0 {
            self.owners.lock().unwrap_or_else(PoisonError::into_inner).resolve(&entry.user, &entry.group)
        } else {
            self.owner
        };
        let since = Duration::from_secs(u64::try_from(entry.modified).unwrap_or_default());
        Facts {
            kind: kind(entry),
            mode: entry.mode,
            size: if entry.is_directory() { 0 } else { entry.size },
            modified: SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH),
            owner,
        }
    }

    fn list(&self, number: u64) -> Outcome<Vec<Listed>> {
        let mut listed = vec![(FileType::Directory, OsString::from(".")), (FileType::Directory, OsString::from(".."))];
        let (label, path) = match self.inodes.get(number)? {
            Thing::Root => {
                let labels = self.labels()?;
                if !labels.is_empty() {
                    listed.push((FileType::Symlink, LATEST.into()));
                }
                listed.extend(labels.iter().map(|label| (FileType::Directory, label.into())));
                return Ok(listed);
            }
            Thing::Backup { label } => (label, String::new()),
            Thing::Entry { label, path } => (label, path),
            Thing::Latest { .. } => return Err(Errno::ENOTDIR),
        };
        let children = self.snapshot(&label)?.children(&path);
        for child in children.map_err(|error| failed(&format!("{label}/{path}"), &error))? {
            let name = child.path.rsplit('/').next().unwrap_or_default();
            listed.push((kind(&child), name.into()));
        }
        Ok(listed)
    }

    fn open(&self, number: u64) -> Outcome<Open> {
        let Thing::Entry { label, path } = self.inodes.get(number)? else { return Err(Errno::EISDIR) };
        let content = self.snapshot(&label)?.open(&path);
        Ok(Open::File(content.map_err(|error| failed(&format!("{label}/{path}"), &error))?))
    }

    fn keep(&self, open: Open) -> FileHandle {
        let number = self.clock.fetch_add(1, Ordering::Relaxed);
        self.handles.write().unwrap_or_else(PoisonError::into_inner).insert(number, open);
        FileHandle(number)
    }

    fn handle(&self, handle: FileHandle) -> Outcome<Open> {
        self.handles.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn drop_handle(&self, handle: FileHandle) {
        let open = self.handles.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        drop(open);
    }

    fn read(&self, handle: FileHandle, offset: u64, size: u32) -> Outcome<Vec<u8>> {
        let Open::File(content) = self.handle(handle)? else { return Err(Errno::EISDIR) };
        let length = u64::from(size).min(content.size().saturating_sub(offset));
        let mut buffer = vec![0u8; usize::try_from(length).map_err(|_| Errno::EINVAL)?];
        let read = content.read_at(offset, &mut buffer).map_err(|error| {
            tracing::error!("cannot read {length} bytes at {offset} of a file in a backup: {}", chain(&error));
            Errno::EIO
        })?;
        if read != buffer.len() {
            return Err(Errno::EIO);
        }
        Ok(buffer)
    }
}

fn kind(entry: &Entry) -> FileType {
    if entry.is_directory() { FileType::Directory } else { FileType::RegularFile }
}

struct Facts {
    kind: FileType,
    mode: u32,
    size: u64,
    modified: SystemTime,
    owner: Owner,
}

impl Facts {
    fn with(&self, number: u64) -> FileAttr {
        FileAttr {
            ino: INodeNo(number),
            size: self.size,
            blocks: self.size.div_ceil(512),
            atime: self.modified,
            mtime: self.modified,
            ctime: self.modified,
            crtime: SystemTime::UNIX_EPOCH,
            kind: self.kind,
            perm: u16::try_from(self.mode & 0o7777).unwrap_or_default(),
            nlink: if self.kind == FileType::Directory { 2 } else { 1 },
            uid: self.owner.uid,
            gid: self.owner.gid,
            rdev: 0,
            blksize: 1 << 17,
            flags: 0,
        }
    }
}

impl ReadOnlyTree {
    /// Runs what may wait for the store away from the session's threads.
    fn run(&self, job: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.pool.submit(move || job(&shared));
    }
}

impl Filesystem for ReadOnlyTree {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_os_string();
        self.run(move |shared| match shared.find(parent.0, &name) {
            Ok((attr, ttl)) => reply.entry_with_ttls(&TTL, &ttl, &attr, Generation(0)),
            Err(error) => reply.error(error),
        });
    }

    fn forget(&self, _: &Request, number: INodeNo, count: u64) {
        guard("forget", || self.shared.inodes.forget(number.0, count));
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.run(move |shared| {
            let facts = shared.inodes.get(number.0).and_then(|thing| shared.facts(&thing));
            match facts {
                Ok(facts) => reply.attr(if number.0 == ROOT { &CATALOG_TTL } else { &TTL }, &facts.with(number.0)),
                Err(error) => reply.error(error),
            }
        });
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        guard("readlink", || match self.shared.inodes.get(number.0) {
            Ok(Thing::Latest { label }) => reply.data(label.as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        });
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        self.run(move |shared| match shared.open(number.0) {
            Ok(open) => reply.opened(shared.keep(open), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
            Err(error) => reply.error(error),
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
        self.run(move |shared| match shared.read(handle, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
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
            self.shared.drop_handle(handle);
            reply.ok();
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.run(move |shared| match shared.list(number.0) {
            Ok(list) => reply.opened(shared.keep(Open::Directory(Arc::new(list))), FopenFlags::empty()),
            Err(error) => reply.error(error),
        });
    }

    fn readdir(&self, _: &Request, number: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guard("readdir", || {
            let Ok(Open::Directory(list)) = self.shared.handle(handle) else { return reply.error(Errno::EBADF) };
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            for (at, (kind, name)) in list.iter().enumerate().skip(start) {
                // Numbers of names nobody looked up yet are not known; the kernel only shows them.
                let number = if name == "." { number.0 } else { u64::MAX - at as u64 };
                if reply.add(INodeNo(number), at as u64 + 1, *kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        guard("releasedir", || {
            self.shared.drop_handle(handle);
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // Overlays refuse a lower layer without an answer; a full file system of no size is the truth.
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
