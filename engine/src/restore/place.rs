//! The target as a restore may touch it: directories reached without following any link but its own.
//!
//! A *root* is the data directory, or what a tablespace's or another kept link leads to. Paths are those of the manifest;
//! the longest root that begins a path holds it. Below a root every component is opened by itself and refuses to be a
//! link, so nothing that lies in the target, or is put there meanwhile, can lead a write outside. Any thread may call.

use crate::{Error, FileError, Kind, Result};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Directories kept open. A window of files touches a few; more would only spend descriptors.
const DIRECTORIES_MAX: usize = 64;
/// Directories below one another that a removal goes down.
const DEPTH_MAX: usize = 256;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

struct Root {
    path: PathBuf,
    fd: Arc<OwnedFd>,
}

/// The open target of a restore.
pub(super) struct Place {
    /// By path in the manifest; the data directory's is empty.
    roots: HashMap<String, Root>,
    /// Files that lie behind links of their own: directory, its path, name.
    files: HashMap<String, (Arc<OwnedFd>, PathBuf, String)>,
    open: Mutex<HashMap<String, Arc<OwnedFd>>>,
}

impl Place {
    /// Opens the data directory.
    pub(super) fn open(target: &Path) -> Result<Self> {
        let mut place = Self { roots: HashMap::new(), files: HashMap::new(), open: Mutex::default() };
        place.add_root("", target)?;
        Ok(place)
    }

    /// From now on what is at and below `path` of the manifest lies in `directory`, which exists.
    pub(super) fn add_root(&mut self, path: &str, directory: &Path) -> Result<()> {
        let fd = rustix::fs::open(directory, DIRECTORY, Mode::empty()).map_err(at("open", directory))?;
        self.roots.insert(path.to_owned(), Root { path: directory.to_owned(), fd: Arc::new(fd) });
        Ok(())
    }

    /// From now on the file at `path` of the manifest is `file`, whose directory exists.
    pub(super) fn add_file(&mut self, path: &str, file: &Path) -> Result<()> {
        let (Some(directory), Some(name)) = (file.parent(), file.file_name().and_then(|n| n.to_str())) else {
            let text = format!("link '{path}' cannot lead to '{}'", file.display());
            return Err(Error::refused(Kind::LinkDestination, text));
        };
        let fd = rustix::fs::open(directory, DIRECTORY, Mode::empty()).map_err(at("open", directory))?;
        self.files.insert(path.to_owned(), (Arc::new(fd), directory.to_owned(), name.to_owned()));
        Ok(())
    }

    /// Descriptors of all roots and of the directories of linked files.
    pub(super) fn roots(&self) -> impl Iterator<Item = (&Path, &OwnedFd)> {
        let roots = self.roots.values().map(|r| (r.path.as_path(), &*r.fd));
        roots.chain(self.files.values().map(|(fd, path, _)| (path.as_path(), &**fd)))
    }

    /// Where a path of the manifest is, for messages.
    pub(super) fn real(&self, path: &str) -> PathBuf {
        if let Some((_, directory, name)) = self.files.get(path) {
            return directory.join(name);
        }
        let (root, rest) = self.split(path);
        root.map_or_else(|| PathBuf::from(path), |r| if rest.is_empty() { r.path.clone() } else { r.path.join(rest) })
    }

    fn split<'p>(&self, path: &'p str) -> (Option<&Root>, &'p str) {
        let mut end = path.len();
        loop {
            let (prefix, rest) = path.split_at(end);
            if let Some(root) = self.roots.get(prefix) {
                return (Some(root), rest.trim_start_matches('/'));
            }
            match prefix.rfind('/') {
                Some(slash) => end = slash,
                None if end == 0 => return (None, path),
                None => end = 0,
            }
        }
    }

    /// Opens a directory.
    pub(super) fn directory(&self, path: &str) -> Result<Arc<OwnedFd>> {
        if let Some(root) = self.roots.get(path) {
            return Ok(Arc::clone(&root.fd));
        }
        if let Some(found) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(path) {
            return Ok(Arc::clone(found));
        }
        let (root, rest) = self.split(path);
        let Some(root) = root else {
            return Err(Error::refused(Kind::Assert, format!("no directory of the target holds '{path}'")));
        };
        let mut fd = Arc::clone(&root.fd);
        for part in rest.split('/') {
            let next = rustix::fs::openat(&*fd, part, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
            fd = Arc::new(next.map_err(at("open", self.real(path)))?);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= DIRECTORIES_MAX {
            open.clear();
        }
        open.insert(path.to_owned(), Arc::clone(&fd));
        Ok(fd)
    }

    /// Forgets open directories, because some were removed or replaced.
    pub(super) fn forget(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The directory that holds a file, and the file's name in it.
    fn parent<'p>(&'p self, path: &'p str) -> Result<(Arc<OwnedFd>, &'p str)> {
        if let Some((fd, _, name)) = self.files.get(path) {
            return Ok((Arc::clone(fd), name));
        }
        self.parent_of_link(path)
    }

    /// As [`Self::parent`], of the link itself if the path is one.
    fn parent_of_link<'p>(&self, path: &'p str) -> Result<(Arc<OwnedFd>, &'p str)> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.directory(directory)?, name))
    }

    /// Facts about what is at the path itself.
    pub(super) fn stat(&self, path: &str) -> Result<Option<Stat>> {
        let (fd, name) = self.parent(path)?;
        match rustix::fs::statat(&*fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(at("stat", self.real(path))(e).into()),
        }
    }

    /// What is at the path itself, link or not; `None` if nothing is.
    pub(super) fn kind(&self, path: &str) -> Result<Option<FileType>> {
        Ok(self.stat(path)?.map(|s| FileType::from_raw_mode(s.st_mode)))
    }

    /// Opens a file; what is not a regular file is refused.
    pub(super) fn file(&self, path: &str, flags: OFlags) -> Result<File, FileError> {
        let parent = self.parent(path).map_err(|e| FileError {
            verb: "open",
            path: self.real(path),
            source: std::io::Error::other(e.to_string()),
        })?;
        let (fd, name) = parent;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file =
            rustix::fs::openat(&*fd, name, flags, Mode::RUSR | Mode::WUSR).map_err(at("open", self.real(path)))?;
        let stat = rustix::fs::fstat(&file).map_err(at("stat", self.real(path)))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(at("open", self.real(path))(Errno::INVAL));
        }
        Ok(File::from(file))
    }

    /// Removes one file; one that is not there is no error.
    pub(super) fn unlink(&self, path: &str) -> Result<()> {
        let (fd, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&*fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(at("remove", self.real(path))(e).into()),
        }
    }

    /// Gives a file another name in its directory, over what has it.
    pub(super) fn rename(&self, path: &str, to: &str) -> Result<()> {
        let (fd, name) = self.parent(path)?;
        let (to_fd, to_name) = self.parent(to)?;
        rustix::fs::renameat(&*fd, name, &*to_fd, to_name).map_err(at("rename", self.real(path)))?;
        Ok(())
    }

    /// Makes a directory that may exist, open to its owner alone for now.
    pub(super) fn make_directory(&self, path: &str) -> Result<()> {
        let (fd, name) = self.parent_of_link(path)?;
        match rustix::fs::mkdirat(&*fd, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(at("create", self.real(path))(e).into()),
        }
    }

    /// Makes a link.
    pub(super) fn make_link(&self, path: &str, text: &Path) -> Result<()> {
        let (fd, name) = self.parent_of_link(path)?;
        rustix::fs::symlinkat(text, &*fd, name).map_err(at("create", self.real(path)))?;
        Ok(())
    }

    /// Removes whatever is at a path of the directory `path`, with all that is in it. Links are removed, not followed.
    pub(super) fn remove(&self, directory: &str, name: &[u8]) -> Result<()> {
        let fd = self.directory(directory)?;
        let shown = self.real(directory).join(std::ffi::OsStr::from_bytes(name));
        remove_at(&fd, name, &shown, 0)
    }

    /// Syncs a directory.
    pub(super) fn sync_directory(&self, path: &str) -> Result<()> {
        let fd = self.directory(path)?;
        rustix::fs::fsync(&*fd).map_err(at("sync", self.real(path)))?;
        Ok(())
    }
}

/// For `map_err`, from the system's number to our error.
pub(super) fn at(verb: &'static str, path: impl AsRef<Path>) -> impl FnOnce(Errno) -> FileError {
    move |errno| FileError { verb, path: path.as_ref().to_owned(), source: errno.into() }
}

fn remove_at(parent: &impl AsFd, name: &[u8], shown: &Path, depth: usize) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(at("remove", shown)(e).into()),
    }
    if depth > DEPTH_MAX {
        let text = format!("'{}' is more than {DEPTH_MAX} directories deep", shown.display());
        return Err(Error::refused(Kind::PathRemove, text));
    }
    let fd =
        rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(at("open", shown))?;
    let entries = Dir::read_from(&fd).map_err(at("list", shown))?;
    let names: Vec<_> =
        entries.map(|e| e.map(|e| e.file_name().to_owned())).collect::<Result<_, _>>().map_err(at("list", shown))?;
    for child in &names {
        let child: &CStr = child;
        if child != c"." && child != c".." {
            remove_at(&fd, child.to_bytes(), &shown.join(std::ffi::OsStr::from_bytes(child.to_bytes())), depth + 1)?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(at("remove", shown))?;
    Ok(())
}
