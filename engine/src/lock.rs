//! Lock and stop files of this host, as pgBackRest has them.
//!
//! A lock is an exclusive `flock` on `<lock path>/<stanza>-<archive|backup|restore>-<repository key>.lock`. It ends with
//! the process, however that ends; a file left by a crash locks nothing. The file holds one line of JSON for `info` and
//! `stop --force`: `{"execId":text,"pctCplt"?:hundredths of a percent,"pid":number,"sz"?:bytes,"szCplt"?:bytes}`.
//!
//! *Invariant.* Who holds the `flock` on the file that has the name holds the lock. The holder removes the file before
//! it lets go, so whoever opened it meanwhile gets a lock on a file without a name; hence every new holder checks that
//! its file is the one of that name, and begins again if not. Locks keep apart processes of one host only. The safety
//! of a repository never rests on them.
//!
//! A stop file, `<stanza>.stop` or `all.stop`, keeps commands that write from starting: [`check_stopped`].

mod progress;

pub use progress::LockProgress;

use crate::{Error, FileError, Kind, Result};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use serde_json::{Map, Value};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest lock file that is read. Ours have one line of under 200 bytes.
const MAX_CONTENT: usize = 4096;

/// How often an acquire that meets only readers begins again, a millisecond apart.
const ATTEMPTS: u32 = 200;

/// What kind of work a lock keeps apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockType {
    /// Asynchronous `archive-push` and `archive-get`.
    Archive,
    /// `backup`, `expire`, and what else changes a stanza's backups.
    Backup,
    /// `restore`.
    Restore,
}

impl LockType {
    /// As it stands in file names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Backup => "backup",
            Self::Restore => "restore",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Archive, Self::Backup, Self::Restore].into_iter().find(|t| t.as_str() == text)
    }
}

/// Which lock: one for each stanza, kind of work and repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LockName {
    /// The stanza.
    pub stanza: String,
    /// The kind of work.
    pub lock_type: LockType,
    /// The repository's key, the N of its `repoN-` options.
    pub repo_key: u32,
}

impl LockName {
    /// The lock's file in `lock_path`.
    ///
    /// # Errors
    /// `OptionInvalidValue` for a stanza that cannot be in a file name.
    pub fn path(&self, lock_path: &Path) -> Result<PathBuf> {
        check_stanza(&self.stanza)?;
        Ok(lock_path.join(format!("{}-{}-{}.lock", self.stanza, self.lock_type.as_str(), self.repo_key)))
    }

    fn parse(file_name: &str) -> Option<Self> {
        let (rest, repo_key) = file_name.strip_suffix(".lock")?.rsplit_once('-')?;
        let (stanza, lock_type) = rest.rsplit_once('-')?;
        Some(Self {
            stanza: stanza.to_owned(),
            lock_type: LockType::parse(lock_type)?,
            repo_key: repo_key.parse().ok()?,
        })
    }
}

/// How far the holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes dealt with.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What a held lock's file says about its holder. A field is `None` if the file does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: Option<i32>,
    /// Name of the run, shared by the processes it started.
    pub exec_id: Option<String>,
    /// How far it is.
    pub progress: Option<Progress>,
}

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
    exec_id: String,
}

impl Lock {
    /// Takes a lock without waiting for another holder. Makes the lock path (0770) if need be.
    ///
    /// # Errors
    /// `LockAcquire`, naming the file and the holder's process; `PathCreate` if there can be no lock path.
    pub fn acquire(lock_path: &Path, name: &LockName, exec_id: &str) -> Result<Self> {
        let path = name.path(lock_path)?;
        make_lock_path(lock_path)?;
        for _ in 0..ATTEMPTS {
            let file = match open(&path, OFlags::RDWR | OFlags::CREATE) {
                // Someone has removed the lock path since.
                Err(Errno::NOENT) => {
                    make_lock_path(lock_path)?;
                    continue;
                }
                other => other.map_err(|errno| refused(&path, errno.into()))?,
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if !has_name(&file, &path)? => continue,
                Ok(()) => {
                    let lock = Self { path, file, exec_id: exec_id.to_owned() };
                    lock.write(None)?;
                    return Ok(lock);
                }
                Err(Errno::WOULDBLOCK) => (),
                Err(errno) => return Err(refused(&path, errno.into())),
            }
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
                // Only readers stand in the way, who test as we do here.
                Ok(()) => (),
                Err(Errno::WOULDBLOCK) => return Err(contended(&path, &content(&file, &path)?)),
                Err(errno) => return Err(refused(&path, errno.into())),
            }
            drop(file);
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(refused(&path, Errno::BUSY.into()))
    }

    /// Writes how far the work is into the file.
    ///
    /// # Errors
    /// `FileWrite`.
    pub fn progress(&self, progress: Progress) -> Result<()> {
        self.write(Some(progress))
    }

    /// The lock's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&self, progress: Option<Progress>) -> Result<()> {
        let line = encode(&self.exec_id, std::process::id(), progress);
        let written = self.file.write_all_at(line.as_bytes(), 0).and_then(|()| self.file.set_len(line.len() as u64));
        Ok(written.map_err(FileError::at("write", &self.path))?)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If the name is not ours, someone has removed our file and the name is another holder's. A file that stays
        // behind locks nothing, so failures do not matter.
        if matches!(has_name(&self.file, &self.path), Ok(true)) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Who holds a lock; `None` if nobody does. Never disturbs a holder.
///
/// # Errors
/// `FileOpen` or `FileRead`.
pub fn holder(lock_path: &Path, name: &LockName) -> Result<Option<Holder>> {
    holder_of(&name.path(lock_path)?)
}

/// All locks that are held, of one stanza or of all, in the order of their files' names.
///
/// # Errors
/// `PathOpen`, `FileOpen` or `FileRead`. A lock path that does not exist holds no locks.
pub fn holders(lock_path: &Path, stanza: Option<&str>) -> Result<Vec<(LockName, Holder)>> {
    let entries = match std::fs::read_dir(lock_path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(FileError::at("list", lock_path))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FileError::at("list", lock_path))?;
        names.extend(entry.file_name().to_str().map(str::to_owned));
    }
    names.sort_unstable();
    let mut held = Vec::new();
    for name in names.iter().filter_map(|name| LockName::parse(name)) {
        if stanza.is_none_or(|stanza| stanza == name.stanza)
            && let Some(holder) = holder(lock_path, &name)?
        {
            held.push((name, holder));
        }
    }
    Ok(held)
}

impl Holder {
    /// Asks the holder to end (SIGTERM). False if its process is not known or has ended.
    ///
    /// # Errors
    /// `Kernel` if it may not be asked.
    pub fn terminate(&self) -> Result<bool> {
        let Some(pid) = self.pid.filter(|pid| *pid > 0).and_then(Pid::from_raw) else { return Ok(false) };
        match rustix::process::kill_process(pid, Signal::TERM) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(Error::refused(
                Kind::Kernel,
                format!("cannot send SIGTERM to process {pid}: {}", std::io::Error::from(errno)),
            )),
        }
    }
}

/// Refuses if a stop file exists for the stanza or for all.
///
/// # Errors
/// `Stopped`; `FileInfo` if it cannot be found out.
pub fn check_stopped(lock_path: &Path, stanza: Option<&str>) -> Result<()> {
    let of_stanza = stanza.map(|stanza| (Some(stanza), format!("stanza '{stanza}'")));
    for (stanza, whom) in of_stanza.into_iter().chain([(None, "all stanzas".to_owned())]) {
        let path = stop_path(lock_path, stanza)?;
        match std::fs::symlink_metadata(&path) {
            Ok(_) => {
                return Err(Error::refused(Kind::Stopped, format!("stop file '{}' exists for {whom}", path.display())));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
            Err(error) => return Err(FileError::at("stat", &path)(error).into()),
        }
    }
    Ok(())
}

/// Makes the stop file of a stanza or, without one, of all. False if it was there already.
///
/// # Errors
/// `PathCreate`, `FileOpen`.
pub fn stop(lock_path: &Path, stanza: Option<&str>) -> Result<bool> {
    let path = stop_path(lock_path, stanza)?;
    make_lock_path(lock_path)?;
    match open(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL) {
        Ok(_) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(FileError::at("open", &path)(errno.into()).into()),
    }
}

/// Removes the stop file of a stanza or, without one, of all. False if there was none.
///
/// # Errors
/// `FileRemove`.
pub fn start(lock_path: &Path, stanza: Option<&str>) -> Result<bool> {
    let path = stop_path(lock_path, stanza)?;
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::at("remove", &path)(error).into()),
    }
}

fn stop_path(lock_path: &Path, stanza: Option<&str>) -> Result<PathBuf> {
    stanza.map_or(Ok(()), check_stanza)?;
    Ok(lock_path.join(format!("{}.stop", stanza.unwrap_or("all"))))
}

fn check_stanza(stanza: &str) -> Result<()> {
    if stanza.is_empty() || stanza.starts_with('.') || stanza.contains(['/', '\0']) {
        return Err(Error::refused(Kind::OptionInvalidValue, format!("'{stanza}' cannot be the name of a stanza")));
    }
    Ok(())
}

fn make_lock_path(path: &Path) -> Result<()> {
    Ok(DirBuilder::new().recursive(true).mode(0o770).create(path).map_err(FileError::at("create", path))?)
}

/// Opens without following a link: the lock path may be below a directory that anyone can write to.
fn open(path: &Path, flags: OFlags) -> rustix::io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::from_raw_mode(0o640)))?.into())
}

/// True if `path` names the file that is open.
fn has_name(file: &File, path: &Path) -> Result<bool> {
    let own = file.metadata().map_err(FileError::at("stat", path))?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::at("stat", path)(error).into()),
    }
}

fn holder_of(path: &Path) -> Result<Option<Holder>> {
    let file = match open(path, OFlags::RDONLY) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.map_err(|errno| FileError::at("open", path)(errno.into()))?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => Ok(Some(content(&file, path)?)),
        Err(errno) => Err(FileError::at("lock", path)(errno.into()).into()),
    }
}

/// What the file says; nothing if it is being written or was written by something else.
fn content(file: &File, path: &Path) -> Result<Holder> {
    let mut buffer = vec![0; MAX_CONTENT];
    let n = file.read_at(&mut buffer, 0).map_err(FileError::at("read", path))?;
    Ok(buffer.get(..n).and_then(decode).unwrap_or_default())
}

fn encode(exec_id: &str, pid: u32, progress: Option<Progress>) -> String {
    let mut fields = Map::new();
    fields.insert("execId".into(), exec_id.into());
    if let Some(Progress { done, total }) = progress {
        // An empty cluster is done from the start.
        let hundredths = (u128::from(done.min(total)) * 10_000).checked_div(u128::from(total)).unwrap_or(10_000);
        fields.insert("pctCplt".into(), u64::try_from(hundredths).unwrap_or(10_000).into());
    }
    fields.insert("pid".into(), pid.into());
    if let Some(Progress { done, total }) = progress {
        fields.insert("sz".into(), total.into());
        fields.insert("szCplt".into(), done.into());
    }
    format!("{}\n", Value::Object(fields))
}

fn decode(bytes: &[u8]) -> Option<Holder> {
    // A rewrite may be seen half done: the new line, then the end of a longer old one.
    let line = bytes.split(|byte| *byte == b'\n').next()?;
    let fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let number = |name: &str| fields.get(name).and_then(Value::as_u64);
    Some(Holder {
        pid: number("pid").and_then(|pid| i32::try_from(pid).ok()),
        exec_id: fields.get("execId").and_then(Value::as_str).map(str::to_owned),
        progress: number("sz").zip(number("szCplt")).map(|(total, done)| Progress { done, total }),
    })
}

fn contended(path: &Path, holder: &Holder) -> Error {
    let by = holder.pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    Error::refused(Kind::LockAcquire, format!("cannot acquire lock on file '{}': held by {by}", path.display()))
}

fn refused(path: &Path, error: std::io::Error) -> Error {
    Error::refused(Kind::LockAcquire, format!("cannot acquire lock on file '{}': {error}", path.display()))
}

#[cfg(test)]
mod tests;
