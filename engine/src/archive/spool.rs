//! The spool: what processes of `archive-async` on this host tell each other, as pgBackRest has it.
//!
//! `<spool path>/archive/<stanza>/out` holds the words of `archive-push:async` about files that the server has ready:
//! `<name>.ok`, `<name>.error`, and `global.error` about all. `in` is the queue of WAL that was fetched ahead.
//!
//! *Invariant.* A word is about one file with one content, of one cluster, in one set of repositories, and says so
//! ([`Identity`], [`Binding`]). It is believed about nothing else: names come again after a recovery to an earlier time, in
//! another cluster, with a repository that was added or made anew, and the spool may be older than all of these. So nothing here
//! needs to be durable or removed in time; a word that is lost costs work, and one that comes back costs nothing.
//!
//! Files appear whole, by rename; who reads one sees the old or the new. Any number of processes.

mod status;
#[cfg(test)]
mod tests;

pub use status::{Binding, Identity, Outcome, RepositoryIdentity, Status};

use crate::{FileError, Result};
use pgkeep_formats::pg::wal::ArchiveName;
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// As all that pgBackRest makes: the group may read.
const DIR_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;
/// Longest word that is read; ours have a line for each repository that failed.
const WORD_BYTES_MAX: u64 = 256 << 10;
/// Ends the names of files that are being written.
const TEMPORARY: &str = ".pgkeep.tmp";
/// Stands for all files in the name of a word.
const GLOBAL: &str = "global";
const OK: &str = ".ok";
const ERROR: &str = ".error";

/// Words about files that are ready.
#[derive(Debug, Default)]
pub struct Settled {
    /// Those that let the server go on.
    pub good: BTreeMap<String, Status>,
    /// Those about failures, of which most are gone now.
    pub failed: BTreeMap<String, Status>,
}

/// The spool of one stanza.
#[derive(Debug, Clone)]
pub struct Spool {
    out: PathBuf,
    queue: PathBuf,
}

impl Spool {
    /// The spool of a stanza below `spool-path`, which need not exist.
    #[must_use]
    pub fn of(spool_path: &Path, stanza: &str) -> Self {
        let own = spool_path.join("archive").join(stanza);
        Self { out: own.join("out"), queue: own.join("in") }
    }

    /// Where words about pushed files are.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Where fetched WAL is.
    #[must_use]
    pub fn queue(&self) -> &Path {
        &self.queue
    }

    /// Makes a directory of the spool unless it is there, and tries whether a file can be written in it.
    ///
    /// # Errors
    /// `PathCreate`, `FileWrite`, naming the directory or file.
    pub fn prepare(dir: &Path) -> Result<()> {
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).map_err(FileError::at("create", dir))?;
        let (path, mut file) = temporary(dir, "probe", FILE_MODE)?;
        let written = file.write_all(&[b'x'; 512]).map_err(FileError::at("write", &path));
        // A run that settles the spool may have been faster.
        let removed = remove(&path);
        written.map_err(crate::Error::from).and(removed)
    }

    /// Says a word about a file, in place of what was said of it.
    ///
    /// # Errors
    /// `FileWrite` and other file errors.
    pub fn say(&self, name: &str, status: &Status) -> Result<()> {
        let (end, other) = if status.is_failure() { (ERROR, OK) } else { (OK, ERROR) };
        put(&self.out, &format!("{name}{end}"), status.encode().as_bytes(), FILE_MODE)?;
        // What somebody has made good by hand stays good.
        if status.is_failure() { Ok(()) } else { remove(&self.out.join(format!("{name}{other}"))) }
    }

    /// Says that nothing could be pushed at all.
    ///
    /// # Errors
    /// As [`Self::say`].
    pub fn say_of_all(&self, status: &Status) -> Result<()> {
        put(&self.out, &format!("{GLOBAL}{ERROR}"), status.encode().as_bytes(), FILE_MODE)
    }

    /// What was said that lets the server go on, if anything.
    ///
    /// # Errors
    /// `FileOpen`, `FileRead`.
    pub fn ok(&self, name: &str) -> Result<Option<Status>> {
        Ok(read(&self.out.join(format!("{name}{OK}")))?.map(|text| Status::parse(&text)))
    }

    /// What was said of a failure with this file, or with all.
    ///
    /// # Errors
    /// `FileOpen`, `FileRead`.
    pub fn error(&self, name: &str) -> Result<Option<Status>> {
        for of in [name, GLOBAL] {
            if let Some(text) = read(&self.out.join(format!("{of}{ERROR}")))? {
                return Ok(Some(Status::parse(&text)));
            }
        }
        Ok(None)
    }

    /// Whether what was said of a file lets the server go on: there is a good word, and it is about the file at `path`.
    ///
    /// # Errors
    /// File errors of the spool and of the file.
    pub fn is_good(&self, name: &str, binding: &Binding, path: &Path) -> Result<bool> {
        self.ok(name)?.map_or(Ok(false), |status| status.is_believed(binding, path))
    }

    /// Takes the good word about a file away: it has been passed on.
    ///
    /// # Errors
    /// `FileRemove`.
    pub fn forget(&self, name: &str) -> Result<()> {
        remove(&self.out.join(format!("{name}{OK}")))
    }

    /// Takes away what was said of failures with this file and with all, before another try.
    ///
    /// # Errors
    /// `FileRemove`.
    pub fn forget_errors(&self, name: &str) -> Result<()> {
        [name, GLOBAL].iter().try_for_each(|of| remove(&self.out.join(format!("{of}{ERROR}"))))
    }

    /// Removes all words but good ones about files of `ready`, and those about failures of `tried`. For who holds the
    /// archive lock.
    ///
    /// # Errors
    /// `PathOpen`, `FileRemove` and other file errors.
    pub fn settle(&self, ready: &[String], tried: &HashSet<String>) -> Result<Settled> {
        let ready: HashSet<&str> = ready.iter().map(String::as_str).collect();
        let mut settled = Settled::default();
        for file in list(&self.out)? {
            let name = file.strip_suffix(OK).or(file.strip_suffix(ERROR)).filter(|name| ready.contains(name));
            let (Some(name), is_failure) = (name, file.ends_with(ERROR)) else {
                remove(&self.out.join(file))?;
                continue;
            };
            let of = if is_failure { &mut settled.failed } else { &mut settled.good };
            if let Some(text) = read(&self.out.join(&file))? {
                of.insert(name.to_owned(), Status::parse(&text));
            }
            if is_failure && !tried.contains(name) {
                remove(&self.out.join(&file))?;
            }
        }
        Ok(settled)
    }

    /// Removes all that commands have left for a stanza, and nothing else; how many files. Follows no link: the user who
    /// restores may be root, and the spool another's.
    ///
    /// # Errors
    /// `PathOpen`, `FileRemove`. A spool that does not exist is empty.
    pub fn wipe(spool_path: &Path, stanza: &str) -> Result<u64> {
        let spool = Self::of(spool_path, stanza);
        let mut removed = 0;
        for dir in [&spool.out, &spool.queue] {
            let parts = [OsStr::new("archive"), OsStr::new(stanza), dir.file_name().unwrap_or_default()];
            removed += wipe_one(spool_path, &parts).map_err(FileError::at("remove", dir))?;
        }
        Ok(removed)
    }
}

/// Empties a directory below `root` of files that have names of ours.
fn wipe_one(root: &Path, parts: &[&OsStr]) -> std::io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = match rustix::fs::open(root, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(0),
        other => other?,
    };
    for part in parts {
        dir = match openat(&dir, *part, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(0),
            other => other?,
        };
    }
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        names.extend(entry.file_name().to_str().ok().filter(|name| is_ours(name)).map(str::to_owned));
    }
    let mut removed = 0;
    for name in names {
        match unlinkat(&dir, &name, AtFlags::empty()) {
            Err(Errno::NOENT) => {}
            other => {
                other?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// Whether a name is one that commands give files in the spool: that of an archived file, with an end or without.
fn is_ours(name: &str) -> bool {
    let is_archived = |name: &str| ArchiveName::parse(name).is_ok();
    name.ends_with(TEMPORARY)
        || name == super::queue::PLAN
        || name.strip_prefix(GLOBAL).is_some_and(|end| end == ERROR || end == OK)
        || is_archived(name)
        || [OK, ERROR, super::queue::SUM].iter().any(|end| name.strip_suffix(end).is_some_and(is_archived))
}

/// Names in a directory of the spool; none if there is no such directory.
pub(super) fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(FileError::at("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FileError::at("list", dir))?;
        // What has no text for a name is not ours, and what is not ours stays.
        names.extend(entry.file_name().to_str().filter(|name| is_ours(name)).map(str::to_owned));
    }
    Ok(names)
}

/// A path that nobody else uses. Numbers keep processes and threads apart.
pub(super) fn temporary_path(dir: &Path, name: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("{name}.{}-{number}{TEMPORARY}", std::process::id()))
}

/// A new file to be renamed to its name.
pub(super) fn temporary(dir: &Path, name: &str, mode: u32) -> Result<(PathBuf, File), FileError> {
    let path = temporary_path(dir, name);
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(mode).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let opened = options.open(&path);
    let file = match opened {
        // A restore may have removed the directories since.
        Err(e) if e.kind() == ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).map_err(FileError::at("create", dir))?;
            options.open(&path)
        }
        other => other,
    };
    Ok((path.clone(), file.map_err(FileError::at("write", path))?))
}

/// Writes a file whole, in place of one of the same name.
pub(super) fn put(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let (path, mut file) = temporary(dir, name, mode)?;
    let to = dir.join(name);
    let written = file.write_all(bytes).map_err(FileError::at("write", &path));
    drop(file);
    let written = written.and_then(|()| std::fs::rename(&path, &to).map_err(FileError::at("rename", &to)));
    if let Err(e) = written {
        // Nothing more can be done about a leftover; what failed is what matters.
        let _ = std::fs::remove_file(&path);
        return Err(e.into());
    }
    Ok(())
}

/// The text of a small file; none if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = match File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(FileError::at("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(WORD_BYTES_MAX).read_to_end(&mut bytes).map_err(FileError::at("read", path))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Removes a file unless it is gone.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => Ok(other.map_err(FileError::at("remove", path))?),
    }
}
