//! Walks the target in the manifest's order, going down only where it is told to.

use crate::{Error, FileError, Kind, Result};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Directories below one another: as many as the walk of a backup goes down.
const DEPTH_MAX: usize = 130;

/// What something in the target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FoundKind {
    Directory,
    File,
    Link(PathBuf),
    Other,
}

/// Something in the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Path as the manifest would have it.
    pub(super) path: Vec<u8>,
    pub(super) kind: FoundKind,
    /// Where it is.
    pub(super) real: PathBuf,
}

impl Found {
    /// What is at `real`, links not followed; `None` if nothing is.
    pub(super) fn at(path: Vec<u8>, real: PathBuf) -> Result<Option<Self>> {
        let facts = match std::fs::symlink_metadata(&real) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(FileError::at("stat", &real))?.file_type(),
        };
        let kind = if facts.is_dir() {
            FoundKind::Directory
        } else if facts.is_file() {
            FoundKind::File
        } else if facts.is_symlink() {
            FoundKind::Link(std::fs::read_link(&real).map_err(FileError::at("stat", &real))?)
        } else {
            FoundKind::Other
        };
        Ok(Some(Self { path, kind, real }))
    }
}

struct Level {
    path: Vec<u8>,
    real: PathBuf,
    names: std::vec::IntoIter<Vec<u8>>,
    /// What was taken from here and given back.
    held: Option<Found>,
}

/// Yields what lies in the directories it was told to descend into.
#[derive(Default)]
pub(super) struct Lister {
    levels: Vec<Level>,
}

impl Lister {
    /// The next thing in path order.
    pub(super) fn next(&mut self) -> Result<Option<Found>> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            if let Some(held) = level.held.take() {
                return Ok(Some(held));
            }
            let Some(name) = level.names.next() else {
                self.levels.pop();
                continue;
            };
            let real = level.real.join(OsStr::from_bytes(&name));
            let path =
                if level.path.is_empty() { name } else { [level.path.as_slice(), b"/", name.as_slice()].concat() };
            // What has gone since its directory was listed need not be removed.
            if let Some(found) = Found::at(path, real)? {
                return Ok(Some(found));
            }
        }
    }

    /// Takes back what [`Self::next`] gave last. It comes again after what is descended into before.
    pub(super) fn give_back(&mut self, found: Found) {
        if let Some(level) = self.levels.last_mut() {
            level.held = Some(found);
        }
    }

    /// Goes down into `real`, whose content stands below `path`; into one of its entries alone if `only` is given. A
    /// directory that does not exist is empty.
    pub(super) fn descend(&mut self, path: &[u8], real: &Path, only: Option<&str>) -> Result<()> {
        if self.levels.len() > DEPTH_MAX {
            let text = format!("'{}' is more than {DEPTH_MAX} directories deep", real.display());
            return Err(Error::refused(Kind::PathOpen, text));
        }
        let entries = match std::fs::read_dir(real) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(FileError::at("list", real))?,
        };
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.map(|e| OsString::into_vec(e.file_name()));
        let mut names: Vec<Vec<u8>> =
            entries.map(name).collect::<Result<_, _>>().map_err(FileError::at("list", real))?;
        names.retain(|name| only.is_none_or(|only| name == only.as_bytes()));
        names.sort_unstable();
        self.levels.push(Level { path: path.to_vec(), real: real.to_owned(), names: names.into_iter(), held: None });
        Ok(())
    }
}
