//! Requests on one file: reading, writing, sizing, syncing, facts.

use super::backing::Backing;
use super::base::{BaseFile, Wanted};
use super::disk::Disk as _;
use super::nodes::{FileState, OpenFile};
use crate::errno::{Outcome, io, system};
use fuser::{Errno, TimeOrNow};
use rustix::fs::{AtFlags, FallocateFlags, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

/// How often a read is tried again when the disk fails, before it is answered from the backup alone.
const READ_TRIES: u32 = 2;

/// An open file of the kernel.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) state: Arc<FileState>,
    pub(super) open: Arc<OpenFile>,
}

/// How much of a file a sync is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SyncScope {
    Data,
    DataAndFacts,
}

/// What `setattr` asks for beside the size.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) accessed: Option<TimeOrNow>,
    pub(super) modified: Option<TimeOrNow>,
}

impl Handle {
    fn base(&self) -> Option<&Arc<BaseFile>> {
        self.state.base.get().and_then(Option::as_ref)
    }

    fn file(&self) -> &File {
        &self.open.file
    }

    /// True if reading the bytes needs no store.
    pub(super) fn holds(&self, offset: u64, size: u32) -> bool {
        self.base().is_none_or(|base| base.holds(offset..offset.saturating_add(u64::from(size))))
    }

    /// Up to `size` bytes; fewer only at the end of the file. Blocks on the store unless [`Self::holds`].
    pub(super) fn read(&self, offset: u64, size: u32) -> Outcome<Vec<u8>> {
        let range = offset..offset.saturating_add(u64::from(size));
        let Some(base) = self.base() else { return self.read_native(offset, size) };
        for _ in 0..READ_TRIES {
            let generation = base.generation();
            match base.ensure_now(&self.open, range.clone(), Wanted::ToRead) {
                Ok(()) => {
                    let bytes = self.read_native(offset, size)?;
                    if base.vouches(&self.open, range.clone(), generation) {
                        return Ok(bytes);
                    }
                }
                // Reading goes on when nothing more can be kept, or what is left of the disk is for others.
                Err(full) if matches!(full.code(), libc::ENOSPC | libc::EDQUOT | libc::EROFS) => break,
                Err(error) => return Err(error),
            }
        }
        self.read_around(base, offset, size)
    }

    /// Reads without keeping what is fetched. Which pages are the base's is asked first: one that is written meanwhile
    /// reads as it was before, never as a hole.
    fn read_around(&self, base: &BaseFile, offset: u64, size: u32) -> Outcome<Vec<u8>> {
        let range = offset..offset.saturating_add(u64::from(size));
        let unchanged = base.unchanged(range.clone());
        let generation = base.generation();
        let mut bytes = self.read_native(offset, size)?;
        // Pages the server wrote are all that counts here of what was read.
        if !base.vouches(&self.open, range, generation) && base.has_failed() {
            return Err(Errno::EIO);
        }
        base.overlay(&unchanged, offset, &mut bytes)?;
        Ok(bytes)
    }

    fn read_native(&self, offset: u64, size: u32) -> Outcome<Vec<u8>> {
        let length = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
        let mut buffer = Vec::with_capacity(length);
        while buffer.len() < length {
            let at = offset + buffer.len() as u64;
            // Into what is not cleared before. The allocator may have given more than was asked for.
            let rest = rustix::buffer::spare_capacity(&mut buffer);
            match rustix::io::pread(self.file(), rest, at) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(system(error)),
            }
        }
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Writes all of `data`, and syncs if the file was opened so.
    pub(super) fn write(&self, offset: u64, data: &[u8], flags: i32) -> Outcome<()> {
        let result = match self.base() {
            Some(base) => base.write(&self.open, offset, data),
            None => self.file().write_all_at(data, offset).map_err(io),
        };
        self.state.touch_data();
        result?;
        if flags & libc::O_SYNC == libc::O_SYNC {
            self.sync(SyncScope::DataAndFacts)
        } else if flags & libc::O_DSYNC != 0 {
            self.sync(SyncScope::Data)
        } else {
            Ok(())
        }
    }

    pub(super) fn truncate(&self, size: u64) -> Outcome<()> {
        let result = match self.base() {
            Some(base) => base.truncate(&self.open, size),
            None => self.file().set_len(size).map_err(io),
        };
        self.state.touch_data();
        result
    }

    /// `fallocate`: reserve, punch a hole, zero. Modes that move bytes are not supported.
    pub(super) fn allocate(&self, offset: u64, length: u64, mode: i32) -> Outcome<()> {
        let flags = u32::try_from(mode).map_err(|_| Errno::EINVAL).map(FallocateFlags::from_bits_retain)?;
        let end = offset.checked_add(length).ok_or(Errno::EFBIG)?;
        let clearing = FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !(clearing | FallocateFlags::KEEP_SIZE).contains(flags) {
            return Err(Errno::EOPNOTSUPP);
        }
        let result = match self.base() {
            Some(base) if flags.intersects(clearing) => base.clear(&self.open, offset..end, flags),
            _ => rustix::fs::fallocate(self.file(), flags, offset, length).map_err(system),
        };
        self.state.touch_data();
        result
    }

    /// `SEEK_DATA` and `SEEK_HOLE`; what may be the base's is data, holes of the sparse file there mean nothing.
    pub(super) fn seek(&self, offset: i64, whence: i32) -> Outcome<i64> {
        let start = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        let size = self.file().metadata().map_err(io)?.len();
        if start >= size {
            return Err(Errno::ENXIO);
        }
        let opaque = self.base().map_or(0, |base| base.opaque_bytes()).min(size);
        let found = match whence {
            libc::SEEK_DATA if start < opaque => start,
            libc::SEEK_DATA => self.seek_native(SeekFrom::Data(start))?,
            libc::SEEK_HOLE if opaque == size => size,
            libc::SEEK_HOLE => self.seek_native(SeekFrom::Hole(start.max(opaque)))?,
            _ => return Err(Errno::EINVAL),
        };
        i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
    }

    fn seek_native(&self, to: SeekFrom) -> Outcome<u64> {
        // The shared descriptor's position is used by nothing else: all reads and writes name their offset.
        rustix::fs::seek(self.file(), to).map_err(system)
    }

    /// Makes durable what was acknowledged before the call. A failure is for ever.
    pub(super) fn sync(&self, scope: SyncScope) -> Outcome<()> {
        let state = &self.state;
        let _one_at_a_time = state.sync.lock().unwrap_or_else(PoisonError::into_inner);
        if state.failed.load(Ordering::Acquire) || self.base().is_some_and(|base| base.has_failed()) {
            return Err(Errno::EIO);
        }
        let (data, facts) = match (state.is_unseen(), scope) {
            // The flags stay as they are: the next write is not seen either.
            (true, scope) => (true, scope == SyncScope::DataAndFacts),
            (false, SyncScope::Data) => (state.dirty_data.swap(false, Ordering::AcqRel), false),
            (false, SyncScope::DataAndFacts) => {
                (state.dirty_data.swap(false, Ordering::AcqRel), state.dirty_facts.swap(false, Ordering::AcqRel))
            }
        };
        if !data && !facts {
            return Ok(());
        }
        let scope = if facts { SyncScope::DataAndFacts } else { SyncScope::Data };
        let result = match self.base() {
            Some(base) => {
                if state.is_unseen() {
                    base.suspect_change();
                }
                base.sync(&self.open, scope)
            }
            None => super::disk::Kernel.sync(self.file(), scope).map_err(io),
        };
        if let Err(error) = result {
            state.failed.store(true, Ordering::Release);
            tracing::error!("syncing a file of the clone failed (errno {}); it will not be tried again", error.code());
        }
        result
    }
}

/// Sets mode, owner and times of any inode.
pub(super) fn set_facts(backing: &Backing, number: u64, facts: &Facts) -> Outcome<()> {
    let node = backing.nodes.get(number)?;
    if let Some(state) = &node.file
        && let Some(open) = backing.opened(&node)
    {
        let set = || {
            let _alone = backing.modes_alone();
            set_by_descriptor(&open.file, facts)
        };
        let result = match state.base.get().and_then(Option::as_ref) {
            Some(base) => base.with_facts(set),
            None => set(),
        };
        state.touch_facts();
        return result;
    }
    if node.file.is_none()
        && let Ok(directory) = backing.directory(number)
    {
        return set_by_descriptor(&*directory, facts);
    }
    // Not opened for this: a file's mode may forbid that to its owner, who may change the mode all the same.
    let result = backing.named(&node, |parent, name| {
        let _alone = backing.modes_alone();
        let handle =
            rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let backing = rustix::fs::fstat(&handle)?.st_ino;
        if backing == node.backing {
            set_by_name(parent, name, facts)?;
        }
        Ok((backing, ()))
    });
    if let Some(state) = &node.file {
        state.touch_facts();
    }
    result
}

fn set_by_descriptor(fd: impl std::os::fd::AsFd, facts: &Facts) -> Outcome<()> {
    let fd = fd.as_fd();
    if facts.uid.is_some() || facts.gid.is_some() {
        let (uid, gid) = owner(facts);
        rustix::fs::fchown(fd, uid, gid).map_err(system)?;
    }
    if let Some(mode) = facts.mode {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o7777)).map_err(system)?;
    }
    match timestamps(facts)? {
        Some(times) => rustix::fs::futimens(fd, &times).map_err(system),
        None => Ok(()),
    }
}

/// For what is not open, and for links, pipes and sockets, which cannot be opened for this.
fn set_by_name(parent: &OwnedFd, name: &std::ffi::OsStr, facts: &Facts) -> rustix::io::Result<()> {
    if facts.uid.is_some() || facts.gid.is_some() {
        let (uid, gid) = owner(facts);
        rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if let Some(mode) = facts.mode {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Symlink {
            return Err(rustix::io::Errno::OPNOTSUPP);
        }
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
    }
    match timestamps(facts) {
        Ok(Some(times)) => rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW),
        Ok(None) => Ok(()),
        Err(_) => Err(rustix::io::Errno::INVAL),
    }
}

fn owner(facts: &Facts) -> (Option<Uid>, Option<Gid>) {
    (facts.uid.map(Uid::from_raw), facts.gid.map(Gid::from_raw))
}

fn timestamps(facts: &Facts) -> Outcome<Option<Timestamps>> {
    if facts.accessed.is_none() && facts.modified.is_none() {
        return Ok(None);
    }
    Ok(Some(Timestamps { last_access: timespec(facts.accessed)?, last_modification: timespec(facts.modified)? }))
}

fn timespec(time: Option<TimeOrNow>) -> Outcome<Timespec> {
    let at = match time {
        None => return Ok(Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT }),
        Some(TimeOrNow::Now) => return Ok(Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW }),
        Some(TimeOrNow::SpecificTime(at)) => at,
    };
    let (seconds, nanoseconds) = match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).map(|seconds| -seconds);
            match before.subsec_nanos() {
                0 => (whole, 0),
                fraction => (whole.map(|seconds| seconds - 1), 1_000_000_000 - fraction),
            }
        }
    };
    Ok(Timespec { tv_sec: seconds.map_err(|_| Errno::EINVAL)?, tv_nsec: nanoseconds.into() })
}
