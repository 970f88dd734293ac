//! Turning a clone that lacks nothing into an ordinary data directory, which then needs neither mount nor repository.
//!
//! The skeleton takes the mountpoint's place: its server's configuration names that path. Both must be on one file system,
//! so that this is a rename.
//!
//! *Crash.* The mark `promoted` is made durable when all that is asked has been found true. From then on the clone is not
//! served, and whoever promotes it anew goes on where this ended: marks of base-backed files are taken off, the directory is
//! renamed, what is left of the clone is removed. Nothing of the server's data changes in any of it. If the directory cannot
//! be renamed the mark is taken back: files that lack nothing are served as well without their marks.

use super::base::block_of;
use super::recover;
use super::state::{self, BASE_ATTRIBUTE, CloneInfo, FileTable, Layout};
use super::{foreign, lock};
use pgkeep_engine::{Error, FileError, Kind, Result};
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The mark's name.
const MARK: &str = "promoted";
/// Begins the names of directories that [`try_promote`] makes; killed in between, it leaves one.
const TRIAL: &str = ".pgkeep-promote-";
/// Directories deep the walk goes; PostgreSQL's deepest has five.
const DEPTH_MAX: usize = 64;

/// Refuses a clone that has begun to become an ordinary directory.
pub(super) fn refuse_begun(layout: &Layout) -> Result<()> {
    if layout.file(MARK).exists() {
        let text = format!("clone '{}' is being promoted: 'clone promote' ends that", layout.root.display());
        return Err(Error::refused(Kind::FileInvalid, text));
    }
    Ok(())
}

/// Makes `place`, an empty directory or nothing, the ordinary data directory that the clone in `dir` has become, and
/// removes what else there is of the clone. Nobody may serve it.
///
/// # Errors
/// `PathMissing` if `dir` is no clone; `LockAcquire` while it is served; `FileMissing` if it lacks pages of the backup;
/// `PathNotEmpty` if `place` holds something; `OptionInvalidValue` if it is on another file system; what the file system said.
/// After a failure the clone is as it was, or the next call goes on.
pub fn promote(dir: &Path, place: &Path) -> Result<()> {
    let layout = Layout::new(dir);
    foreign::check_complete(&layout)?;
    let lock = if layout.file(MARK).exists() {
        lock::take(&layout)?
    } else {
        let opened = recover::open(&layout)?;
        check_place(&layout, place)?;
        let durable = &opened.maps.durable;
        visit(&layout.data(), DEPTH_MAX, &mut |file, path| {
            check_whole(&opened.table, &opened.info, durable, file, path)
        })?;
        sync(&layout.data())?;
        state::write_synced(&layout.file(MARK), place.as_os_str().as_bytes())?;
        state::sync_directory(&layout.meta())?;
        opened.lock
    };
    let data = layout.data();
    if data.is_dir() {
        if let Err(error) = put_in_place(&layout, &data, place) {
            if !data.is_dir() {
                // It was moved, and only that is not known to be durable: the next call ends it.
                return Err(error);
            }
            let mark = layout.file(MARK);
            std::fs::remove_file(&mark).map_err(FileError::at("remove", &mark))?;
            state::sync_directory(&layout.meta())?;
            return Err(error);
        }
    } else if !place.join("global/pg_control").is_file() {
        let text = format!("clone '{}' was promoted, but not to '{}'", dir.display(), place.display());
        return Err(Error::refused(Kind::OptionInvalidValue, text));
    }
    drop(lock);
    super::destroy(dir)
}

fn put_in_place(layout: &Layout, data: &Path, place: &Path) -> Result<()> {
    check_place(layout, place)?;
    visit(data, DEPTH_MAX, &mut |file, path| unmark(file).map_err(|e| FileError::at("unmark", path)(e.into()).into()))?;
    sync(data)?;
    std::fs::rename(data, place).map_err(FileError::at("rename", data))?;
    // It is there now; that the names are durable is all that is left.
    state::sync_directory(place.parent().unwrap_or(Path::new("/")))?;
    state::sync_directory(&layout.root)
}

/// Takes a file's mark off. Its mode may keep its owner from that.
fn unmark(file: &File) -> rustix::io::Result<()> {
    match rustix::fs::fremovexattr(file, BASE_ATTRIBUTE) {
        Err(rustix::io::Errno::NODATA) => Ok(()),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
            let mode = Mode::from_raw_mode(rustix::fs::fstat(file)?.st_mode & 0o7777);
            rustix::fs::fchmod(file, mode | Mode::RUSR | Mode::WUSR)?;
            let result = rustix::fs::fremovexattr(file, BASE_ATTRIBUTE);
            rustix::fs::fchmod(file, mode)?;
            match result {
                Err(rustix::io::Errno::NODATA) => Ok(()),
                other => other,
            }
        }
        other => other,
    }
}

/// Whether the clone's data directory can be moved into the directory that `place` is in, tried with an empty one.
///
/// # Errors
/// `OptionInvalidValue` if that is another file system, and what the file system said.
pub fn try_promote(dir: &Path, place: &Path) -> Result<()> {
    let name = format!("{TRIAL}{}", std::process::id());
    let (here, there) = (dir.join(&name), place.parent().unwrap_or(Path::new("/")).join(&name));
    std::fs::create_dir(&here).map_err(FileError::at("create", &here))?;
    let moved = std::fs::rename(&here, &there);
    let left = if moved.is_ok() { &there } else { &here };
    std::fs::remove_dir(left).map_err(FileError::at("remove", left))?;
    match moved {
        Err(e) if e.kind() == ErrorKind::CrossesDevices => Err(other_file_system(dir, place)),
        moved => Ok(moved.map_err(FileError::at("rename", &there))?),
    }
}

/// True for a directory that a trial made.
pub(super) fn is_trial(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(TRIAL))
}

/// The skeleton can be renamed to `place`.
fn check_place(layout: &Layout, place: &Path) -> Result<()> {
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).map_err(FileError::at("stat", path));
    let above = place.parent().unwrap_or(Path::new("/"));
    let here = match std::fs::read_dir(place) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                let text = format!("'{}' is not empty", place.display());
                return Err(Error::refused(Kind::PathNotEmpty, text));
            }
            device(place)?
        }
        Err(e) if e.kind() == ErrorKind::NotFound => device(above)?,
        Err(e) => return Err(FileError::at("list", place)(e).into()),
    };
    if device(&layout.data())? != here || device(above)? != here {
        return Err(other_file_system(&layout.root, place));
    }
    Ok(())
}

fn other_file_system(dir: &Path, place: &Path) -> Error {
    let (dir, place) = (dir.display(), place.display());
    let text =
        format!("clone '{dir}' and '{place}' are on different file systems: it cannot take the mountpoint's place");
    Error::refused(Kind::OptionInvalidValue, text)
}

/// All the bytes that a file has of the backup are in it.
fn check_whole(table: &FileTable, info: &CloneInfo, durable: &File, file: &File, path: &Path) -> Result<()> {
    let mut text = [0u8; 20];
    let mark = match rustix::fs::fgetxattr(file, BASE_ATTRIBUTE, &mut text) {
        Ok(bytes) => text.get(..bytes).and_then(|t| std::str::from_utf8(t).ok()).and_then(|t| t.parse().ok()),
        Err(rustix::io::Errno::NODATA) => return Ok(()),
        Err(error) => return Err(FileError::at("read the mark of", path)(error.into()).into()),
    };
    let Some(entry) = mark.and_then(|number: u64| table.get(number)) else {
        let text = format!("'{}' is marked as part of the backup but is not in the clone's table", path.display());
        return Err(Error::refused(Kind::FileInvalid, text));
    };
    let size = file.metadata().map_err(FileError::at("stat", path))?.len();
    let read = block_of(durable, entry, u64::from(info.page_size)).map_err(FileError::at("read the map of", path))?;
    let (cut, present) = read;
    let limit = entry.size.saturating_sub(cut).min(size);
    let needed = limit.div_ceil(u64::from(info.page_size));
    if let Some(absent) = present.first_absent(0..needed) {
        let text = format!("the clone lacks page {absent} of '{}' and perhaps more", path.display());
        return Err(Error::refused(Kind::FileMissing, text));
    }
    Ok(())
}

/// Calls `each` for every regular file below a directory; links are not followed.
fn visit(directory: &Path, depth: usize, each: &mut dyn FnMut(&File, &Path) -> Result<()>) -> Result<()> {
    let too_deep = || Error::refused(Kind::FileInvalid, format!("'{}' is too deep", directory.display()));
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(FileError::at("list", directory))? {
        names.push(entry.map_err(FileError::at("list", directory))?.path());
    }
    for path in names {
        let facts = std::fs::symlink_metadata(&path).map_err(FileError::at("stat", &path))?;
        if facts.is_dir() {
            visit(&path, depth, each)?;
        } else if facts.is_file() {
            with_file(&path, each)?;
        }
    }
    Ok(())
}

/// Opens a file, whatever its mode says, if its owner is who this process is.
fn with_file(path: &Path, each: &mut dyn FnMut(&File, &Path) -> Result<()>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = || rustix::fs::open(path, flags, Mode::empty());
    let failed = |error: rustix::io::Errno| Error::from(FileError::at("open", path)(error.into()));
    match open() {
        Err(rustix::io::Errno::ACCESS) => {
            let stat = rustix::fs::lstat(path).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(failed(rustix::io::Errno::ACCESS));
            }
            let mode = |bits| rustix::fs::chmod(path, Mode::from_raw_mode(bits)).map_err(failed);
            mode(0o600)?;
            let result = open().map_err(failed).and_then(|fd| each(&File::from(fd), path));
            mode(stat.st_mode & 0o7777)?;
            result
        }
        other => each(&File::from(other.map_err(failed)?), path),
    }
}

fn sync(data: &Path) -> Result<()> {
    let directory = File::open(data).map_err(FileError::at("open", data))?;
    rustix::fs::syncfs(&directory).map_err(|error| FileError::at("sync", data)(error.into()))?;
    Ok(())
}
