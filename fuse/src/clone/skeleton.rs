//! Making a clone directory from a backup.
//!
//! Directories, links and files up to [`MATERIALISED_BYTES_MAX`] are made whole; larger files are made sparse, with the
//! right size and the number of their page map as an attribute. Some threads fetch small contents, as their cost is
//! latency. One `syncfs` makes everything durable, then the marker `complete` is made; a directory without the marker is
//! the rest of a creation that died, and is made anew.
//!
//! Links: PostgreSQL wants symbolic links in `pg_tblspc`, so a tablespace's content goes to `.tablespaces/<oid>` at
//! PGDATA's top and `pg_tblspc/<oid>` links there, relatively: valid in the mount and in the directory behind it. Any
//! other linked directory or file becomes a plain one. The backup's `tablespace_map` is left out, for the server would
//! follow it and replace those links by ones to the original's places.

use super::CreateOptions;
use super::state::{BASE_ATTRIBUTE, CloneInfo, FileTable, Layout, SessionState, boot_id, sync_directory, write_new};
use crate::owner::{Owner, Owners};
use pgkeep_engine::view::{Entry, EntryKind, Snapshot};
use pgkeep_engine::{Error, FileError, Kind, Result};
use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Files up to this size are copied when the clone is made.
pub(super) const MATERIALISED_BYTES_MAX: u64 = 64 << 10;
/// Files waiting for a thread.
const QUEUE_FILES_MAX: usize = 1024;
/// Where tablespaces live inside PGDATA.
pub(super) const TABLESPACES: &str = ".tablespaces";
/// Written last, as everywhere: without it no server starts.
pub(super) const CONTROL_FILE: &str = "global/pg_control";
/// See the module's header.
const TABLESPACE_MAP: &str = "tablespace_map";

/// A file to be made whole.
struct Small {
    from: String,
    to: String,
    size: u64,
    mode: u32,
    owner: Owner,
    modified: i64,
}

/// Facts a directory gets once it is filled.
struct Directory {
    path: String,
    mode: u32,
    modified: i64,
}

struct Skeleton<'a> {
    data: OwnedFd,
    data_path: std::path::PathBuf,
    owners: Owners,
    options: &'a CreateOptions,
    as_root: bool,
    table: FileTable,
    page_size: u32,
    directories: Vec<Directory>,
    files: u64,
    bytes: u64,
    /// Paths in the backup of linked directories, and where they go.
    moved: Vec<(String, String)>,
}

/// Makes the clone; `layout.root` is locked and empty but for `meta`.
pub(super) fn create(layout: &Layout, snapshot: &dyn Snapshot, options: &CreateOptions) -> Result<CloneInfo> {
    let page_size = snapshot.page_size();
    if !super::state::is_page_size(page_size) {
        return Err(Error::refused(Kind::FileInvalid, format!("the backup has pages of {page_size} bytes")));
    }
    let data_path = layout.data();
    std::fs::create_dir(&data_path).map_err(FileError::at("create", &data_path))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let data = rustix::fs::open(&data_path, flags, Mode::empty()).map_err(|e| at("open", &data_path, e))?;
    let fallback = options.owner.unwrap_or_else(Owner::of_process);
    let mut skeleton = Skeleton {
        data,
        data_path,
        owners: Owners::new(fallback),
        options,
        as_root: rustix::process::geteuid().is_root(),
        table: FileTable::default(),
        page_size,
        directories: Vec::new(),
        files: 0,
        bytes: 0,
        moved: Vec::new(),
    };
    if let Some(root) = snapshot.lookup("")? {
        skeleton.directories.push(Directory { path: String::new(), mode: root.mode, modified: root.modified });
        let owner = skeleton.owner(&root);
        skeleton.own(&skeleton.data, owner, "")?;
    } else {
        skeleton.directories.push(Directory { path: String::new(), mode: 0o700, modified: now() });
        skeleton.own(&skeleton.data, fallback, "")?;
    }
    let control = skeleton.fill(snapshot)?;
    skeleton.add_files(fallback)?;
    if let Some(control) = control {
        skeleton.copy_small(snapshot, &control)?;
    }
    skeleton.finish_directories()?;
    record(layout, &skeleton)
}

/// Writes the records, makes everything durable and sets the marker.
fn record(layout: &Layout, skeleton: &Skeleton<'_>) -> Result<CloneInfo> {
    let data = layout.data();
    let info = CloneInfo {
        identity: skeleton.options.identity.clone(),
        page_size: skeleton.page_size,
        files: skeleton.files,
        base_files: skeleton.table.len(),
        bytes: skeleton.bytes,
        created: now(),
        data_inode: std::fs::metadata(&data).map_err(FileError::at("stat", &data))?.ino(),
    };
    info.save(layout)?;
    skeleton.table.save(layout)?;
    for name in ["present", "durable"] {
        reserve(&layout.file(name), skeleton.table.map_bytes())?;
    }
    SessionState { boot: boot_id(layout)?, clean: true }.save(layout)?;
    rustix::fs::syncfs(&skeleton.data).map_err(|e| at("sync", &data, e))?;
    write_new(&layout.file("complete"), b"")?;
    sync_directory(&layout.meta())?;
    sync_directory(&layout.root)?;
    Ok(info)
}

/// Makes a file of zeros with its space reserved where the file system can.
fn reserve(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create_new(path).map_err(FileError::at("create", path))?;
    file.set_len(bytes).map_err(FileError::at("truncate", path))?;
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(at("allocate", path, error)),
    }
}

impl Skeleton<'_> {
    /// Walks the backup; returns the control file, which is written last.
    fn fill(&mut self, snapshot: &dyn Snapshot) -> Result<Option<Small>> {
        let mut control = None;
        let (queue, waiting) = sync_channel::<Small>(QUEUE_FILES_MAX);
        let waiting = Mutex::new(waiting);
        let target = Target {
            data: self.data.as_fd().try_clone_to_owned().map_err(FileError::at("open", &self.data_path))?,
            path: self.data_path.clone(),
            as_root: self.as_root,
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.options.threads.max(1))
                .map(|_| scope.spawn(|| copy_all(&waiting, snapshot, &target)))
                .collect();
            let walked = snapshot.entries(&mut |entry| {
                let Some(small) = self.enter(entry)? else { return Ok(()) };
                if small.to == CONTROL_FILE {
                    control = Some(small);
                    return Ok(());
                }
                queue.send(small).map_err(|_| Error::Interrupted)
            });
            drop(queue);
            let mut result = Ok(());
            for worker in workers {
                let copied = worker
                    .join()
                    .unwrap_or_else(|_| Err(Error::refused(Kind::Assert, "a thread that copies files panicked")));
                if result.is_ok() {
                    result = copied;
                }
            }
            // A worker's failure is the cause of the walk's: its queue closed.
            result.and(walked)
        })?;
        Ok(control)
    }

    /// Makes one entry, or returns it if its content is to be copied.
    fn enter(&mut self, entry: Entry) -> Result<Option<Small>> {
        if entry.path.is_empty() {
            return Ok(None);
        }
        check_path(&entry.path)?;
        if entry.path == TABLESPACE_MAP || self.is_left_out(&entry.path) {
            return Ok(None);
        }
        let owner = self.owner(&entry);
        let to = self.place(&entry.path);
        match &entry.kind {
            EntryKind::Directory => self.make_directory(&to, &entry, owner)?,
            EntryKind::LinkedDirectory { .. } => match tablespace(&entry.path) {
                Some(oid) => self.make_tablespace(&entry, oid, owner)?,
                None => self.make_directory(&to, &entry, owner)?,
            },
            EntryKind::File | EntryKind::LinkedFile { .. } => {
                self.files += 1;
                self.bytes += entry.size;
                if entry.size <= MATERIALISED_BYTES_MAX {
                    return Ok(Some(Small {
                        from: entry.path,
                        to,
                        size: entry.size,
                        mode: entry.mode,
                        owner,
                        modified: entry.modified,
                    }));
                }
                self.make_sparse(&to, &entry, owner)?;
            }
        }
        Ok(None)
    }

    fn is_left_out(&self, path: &str) -> bool {
        let below = |above: &str| path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.options.remove.iter().any(|removed| below(removed))
            || self.options.write.iter().any(|added| added.path == path)
    }

    fn owner(&mut self, entry: &Entry) -> Owner {
        match self.options.owner {
            Some(owner) => owner,
            None => self.owners.resolve(&entry.user, &entry.group),
        }
    }

    /// Where a path of the backup goes.
    fn place(&self, path: &str) -> String {
        for (from, to) in &self.moved {
            if let Some(rest) = path.strip_prefix(from.as_str()).filter(|rest| rest.starts_with('/')) {
                return format!("{to}{rest}");
            }
        }
        path.to_owned()
    }

    fn own(&self, fd: impl AsFd, owner: Owner, path: &str) -> Result<()> {
        own(self.as_root, fd, owner, &self.data_path.join(path))
    }

    fn make_directory(&mut self, path: &str, entry: &Entry, owner: Owner) -> Result<()> {
        let full = self.data_path.join(path);
        rustix::fs::mkdirat(&self.data, path, Mode::RWXU).map_err(|e| at("create", &full, e))?;
        if self.as_root {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            rustix::fs::chownat(&self.data, path, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| at("change owner of", &full, e))?;
        }
        self.directories.push(Directory { path: path.to_owned(), mode: entry.mode, modified: entry.modified });
        Ok(())
    }

    fn make_tablespace(&mut self, entry: &Entry, oid: &str, owner: Owner) -> Result<()> {
        if self.moved.is_empty() {
            let parent = Entry { mode: 0o700, ..entry.clone() };
            self.make_directory(TABLESPACES, &parent, owner)?;
        }
        let to = format!("{TABLESPACES}/{oid}");
        self.make_directory(&to, entry, owner)?;
        let full = self.data_path.join(&entry.path);
        rustix::fs::symlinkat(format!("../{to}"), &self.data, &entry.path).map_err(|e| at("create", &full, e))?;
        if self.as_root {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&self.data, &entry.path, Some(uid), Some(gid), flags)
                .map_err(|e| at("change owner of", &full, e))?;
        }
        self.moved.push((entry.path.clone(), to));
        Ok(())
    }

    fn make_sparse(&mut self, path: &str, entry: &Entry, owner: Owner) -> Result<()> {
        let full = self.data_path.join(path);
        let file = new_file(&self.data, path).map_err(|e| at("create", &full, e))?;
        file.set_len(entry.size).map_err(FileError::at("truncate", &full))?;
        let number = self.table.add(&entry.path, entry.size, self.page_size).to_string();
        rustix::fs::fsetxattr(&file, BASE_ATTRIBUTE, number.as_bytes(), XattrFlags::CREATE)
            .map_err(|e| at("set an attribute of", &full, e))?;
        set(self.as_root, &file, &full, owner, entry.mode, entry.modified)
    }

    /// Writes the files the caller adds.
    fn add_files(&mut self, owner: Owner) -> Result<()> {
        let owner = match self.options.owner {
            Some(owner) => owner,
            None => {
                let data = rustix::fs::fstat(&self.data).map_err(|e| at("stat", &self.data_path, e))?;
                if self.as_root { Owner { uid: data.st_uid, gid: data.st_gid } } else { owner }
            }
        };
        for added in &self.options.write {
            check_path(&added.path)?;
            let full = self.data_path.join(&added.path);
            let mut file = new_file(&self.data, &added.path).map_err(|e| at("create", &full, e))?;
            file.write_all(&added.bytes).map_err(FileError::at("write", &full))?;
            set(self.as_root, &file, &full, owner, added.mode, now())?;
            self.files += 1;
            self.bytes += added.bytes.len() as u64;
        }
        Ok(())
    }

    fn copy_small(&self, snapshot: &dyn Snapshot, small: &Small) -> Result<()> {
        let data = self.data.as_fd().try_clone_to_owned().map_err(FileError::at("open", &self.data_path))?;
        copy(snapshot, small, &Target { data, path: self.data_path.clone(), as_root: self.as_root })
    }

    /// Modes and times, innermost first: making a name changes its directory's time.
    fn finish_directories(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for directory in self.directories.iter().rev() {
            let full = self.data_path.join(&directory.path);
            let name = if directory.path.is_empty() { "." } else { directory.path.as_str() };
            let fd = rustix::fs::openat(&self.data, name, flags, Mode::empty()).map_err(|e| at("open", &full, e))?;
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(directory.mode & 0o7777))
                .map_err(|e| at("change mode of", &full, e))?;
            rustix::fs::futimens(&fd, &times(directory.modified)).map_err(|e| at("change times of", &full, e))?;
        }
        Ok(())
    }
}

/// Where the copying threads write.
struct Target {
    data: OwnedFd,
    path: std::path::PathBuf,
    as_root: bool,
}

fn copy_all(waiting: &Mutex<Receiver<Small>>, snapshot: &dyn Snapshot, target: &Target) -> Result<()> {
    loop {
        let small = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(small) = small else { return Ok(()) };
        if let Err(error) = copy(snapshot, &small, target) {
            // The others go on until the queue is empty; the walk is not held up by a full queue.
            while waiting.lock().unwrap_or_else(PoisonError::into_inner).recv().is_ok() {}
            return Err(error.during(format!("cannot copy '{}' out of the backup", small.from)));
        }
    }
}

fn copy(snapshot: &dyn Snapshot, small: &Small, target: &Target) -> Result<()> {
    let full = target.path.join(&small.to);
    let mut bytes = vec![0u8; usize::try_from(small.size).unwrap_or(0)];
    if !bytes.is_empty() {
        let read = snapshot.open(&small.from)?.read_at(0, &mut bytes)?;
        if read != bytes.len() {
            let message = format!("the backup gave {read} bytes of '{}' instead of {}", small.from, small.size);
            return Err(Error::refused(Kind::FileInvalid, message));
        }
    }
    let mut file = new_file(&target.data, &small.to).map_err(|e| at("create", &full, e))?;
    file.write_all(&bytes).map_err(FileError::at("write", &full))?;
    set(target.as_root, &file, &full, small.owner, small.mode, small.modified)
}

fn new_file(data: &OwnedFd, path: &str) -> rustix::io::Result<File> {
    // An attribute can be set only by who may write; the mode itself comes last, with the other facts.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(data, path, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

fn set(as_root: bool, file: &File, path: &Path, owner: Owner, mode: u32, modified: i64) -> Result<()> {
    own(as_root, file, owner, path)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777)).map_err(|e| at("change mode of", path, e))?;
    rustix::fs::futimens(file, &times(modified)).map_err(|e| at("change times of", path, e))
}

fn own(as_root: bool, fd: impl AsFd, owner: Owner, path: &Path) -> Result<()> {
    if !as_root {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(|e| at("change owner of", path, e))
}

fn times(modified: i64) -> Timestamps {
    let at = Timespec { tv_sec: modified, tv_nsec: 0 };
    Timestamps { last_access: at, last_modification: at }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default()
}

fn at(verb: &'static str, path: &Path, error: rustix::io::Errno) -> Error {
    FileError::at(verb, path)(error.into()).into()
}

/// Where a file of the backup is in a clone's data directory, if it is there.
pub(super) fn place_of(path: &str) -> std::borrow::Cow<'_, str> {
    match path.strip_prefix("pg_tblspc/") {
        Some(rest) if rest.contains('/') => format!("{TABLESPACES}/{rest}").into(),
        _ => path.into(),
    }
}

/// The oid of a tablespace's link.
fn tablespace(path: &str) -> Option<&str> {
    path.strip_prefix("pg_tblspc/").filter(|oid| !oid.contains('/'))
}

/// A backup comes from elsewhere: its names must stay inside the clone.
fn check_path(path: &str) -> Result<()> {
    let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
    if path.split('/').any(bad) {
        return Err(Error::refused(Kind::FileInvalid, format!("the backup has an impossible path '{path}'")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for path in ["base/1/2", "a", ".hidden"] {
            check_path(path).unwrap();
        }
        for path in ["/etc", "a//b", "a/../b", "..", "a/", "a\0b"] {
            assert!(check_path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn tablespace_links_are_recognised() {
        assert_eq!(tablespace("pg_tblspc/16400"), Some("16400"));
        assert_eq!(tablespace("pg_tblspc/16400/PG_15"), None);
        assert_eq!(tablespace("pg_wal"), None);
    }
}
