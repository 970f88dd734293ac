//! The walk itself.

use super::links::Links;
use super::names::Names;
use super::rules::{Verdict, join, judge, unlogged};
use super::{Entry, EntryKind, WalkOptions};
use crate::observe::Cancel;
use crate::{Error, FileError, Kind, Result};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories below one another. The server's own go four deep; each level costs stack.
const DEPTH_MAX: usize = 128;

/// Visits everything under `pgdata` that belongs into a backup, in [`super::path_cmp`] order.
///
/// The first entry is the directory itself, with an empty path. Sockets, pipes and devices are skipped
/// with a warning. `visit` may end the walk with an error of its own.
///
/// # Errors
/// [`Kind::PathMissing`] if there is no such directory, [`Kind::PathOpen`] for a directory that cannot be
/// listed, [`Kind::LinkExpected`] for what is not a link in `pg_tblspc`, [`Kind::LinkDestination`] for
/// links that cannot be made again, [`Error::Interrupted`].
pub fn walk(
    pgdata: &Path,
    options: &WalkOptions,
    cancel: &Cancel,
    visit: impl FnMut(Entry) -> Result<()>,
) -> Result<()> {
    let root = std::fs::canonicalize(pgdata).map_err(FileError::at("list", pgdata))?;
    let facts = std::fs::metadata(&root).map_err(FileError::at("list", pgdata))?;
    if !facts.is_dir() {
        return Err(Error::refused(Kind::PathOpen, format!("'{}' is not a directory", pgdata.display())));
    }
    let mut walk = Walk {
        options,
        cancel,
        visit,
        owners: Owners { names: Names::load(), users: HashMap::new(), groups: HashMap::new() },
        links: Links::new(root.clone()),
    };
    walk.emit(Vec::new(), EntryKind::Directory, &facts, &root)?;
    walk.directory(&[], &root, Verdict::Take, 0)
}

struct Walk<'a, F> {
    options: &'a WalkOptions,
    cancel: &'a Cancel,
    visit: F,
    owners: Owners,
    links: Links,
}

impl<F: FnMut(Entry) -> Result<()>> Walk<'_, F> {
    /// Visits the content of a directory.
    fn directory(&mut self, path: &[u8], source: &Path, verdict: Verdict, depth: usize) -> Result<()> {
        if verdict == Verdict::TakeEmpty {
            return Ok(());
        }
        if depth > DEPTH_MAX {
            let message = format!("'{}' is more than {DEPTH_MAX} directories deep", source.display());
            return Err(Error::refused(Kind::PathOpen, message));
        }
        let Some(mut names) = list(source)? else {
            return Ok(());
        };
        if is_tablespace(path) {
            let own = self.options.version.facts().tablespace_directory.as_bytes();
            names.retain(|name| name == own);
        }
        names.sort_unstable();
        let unlogged = unlogged(path, &names);
        for name in names {
            self.cancel.check()?;
            let (path, source) = (join(path, &name), source.join(OsStr::from_bytes(&name)));
            let found = judge(&path, self.options, &unlogged);
            if found == Verdict::Leave {
                continue;
            }
            let Some(facts) = stat(&source)? else {
                continue;
            };
            if verdict == Verdict::TakeDirectories && !facts.is_dir() {
                continue;
            }
            // Of what lies in such a directory only the directories are kept, whatever they are.
            let found = if verdict == Verdict::TakeDirectories { Verdict::TakeEmpty } else { found };
            self.one(path, source, &facts, found, depth)?;
        }
        Ok(())
    }

    /// Visits one thing, and what is in it.
    fn one(&mut self, path: Vec<u8>, source: PathBuf, facts: &Metadata, verdict: Verdict, depth: usize) -> Result<()> {
        let in_tablespaces = path.strip_prefix(b"pg_tblspc/").is_some_and(|rest| !rest.contains(&b'/'));
        if in_tablespaces && !facts.is_symlink() {
            let message = format!("'{}' is not a link, and pg_tblspc must hold nothing else", source.display());
            return Err(Error::refused(Kind::LinkExpected, message));
        }
        if facts.is_dir() {
            self.emit(path.clone(), EntryKind::Directory, facts, &source)?;
            return self.directory(&path, &source, verdict, depth + 1);
        }
        if facts.is_file() {
            return self.emit(path, EntryKind::File, facts, &source);
        }
        if !facts.is_symlink() {
            if self.options.report {
                tracing::warn!("special file '{}' is left out of the backup", source.display());
            }
            return Ok(());
        }
        let inside = in_tablespaces.then(|| self.options.version.facts().tablespace_directory);
        let Some(link) = self.links.follow(&source, inside)? else {
            return Ok(());
        };
        let destination = link.text;
        if link.facts.is_dir() {
            self.emit(path.clone(), EntryKind::LinkToDirectory { destination }, &link.facts, &link.target)?;
            return self.directory(&path, &link.target, verdict, depth + 1);
        }
        if in_tablespaces {
            let message =
                format!("'{}' does not point to a directory but to '{}'", source.display(), destination.display());
            return Err(Error::refused(Kind::LinkDestination, message));
        }
        if link.facts.is_file() {
            return self.emit(path, EntryKind::LinkToFile { destination }, &link.facts, &link.target);
        }
        if self.options.report {
            tracing::warn!("link '{}' to a special file is left out of the backup", source.display());
        }
        Ok(())
    }

    fn emit(&mut self, path: Vec<u8>, kind: EntryKind, facts: &Metadata, source: &Path) -> Result<()> {
        (self.visit)(Entry {
            size: if kind.is_file() { facts.len() } else { 0 },
            path,
            kind,
            mode: facts.mode() & 0o7777,
            uid: facts.uid(),
            gid: facts.gid(),
            user: self.owners.user(facts.uid()),
            group: self.owners.group(facts.gid()),
            mtime: facts.mtime(),
            // The system gives less than a second here.
            mtime_nanos: u32::try_from(facts.mtime_nsec()).unwrap_or(0),
            source: source.to_path_buf(),
        })
    }
}

/// Names of owners, each made once.
struct Owners {
    names: Names,
    users: HashMap<u32, Option<Arc<str>>>,
    groups: HashMap<u32, Option<Arc<str>>>,
}

impl Owners {
    fn user(&mut self, uid: u32) -> Option<Arc<str>> {
        self.users.entry(uid).or_insert_with(|| self.names.user(uid).map(Arc::from)).clone()
    }

    fn group(&mut self, gid: u32) -> Option<Arc<str>> {
        self.groups.entry(gid).or_insert_with(|| self.names.group(gid).map(Arc::from)).clone()
    }
}

fn is_tablespace(path: &[u8]) -> bool {
    path.strip_prefix(b"pg_tblspc/").is_some_and(|oid| !oid.contains(&b'/'))
}

/// The names in a directory, or `None` if it has vanished.
fn list(path: &Path) -> Result<Option<Vec<Vec<u8>>>> {
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(FileError::at("list", path))?,
    };
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.map(|e| OsString::into_vec(e.file_name()));
    Ok(Some(entries.map(name).collect::<Result<_, _>>().map_err(FileError::at("list", path))?))
}

/// Facts about a path itself, or `None` if it has vanished.
fn stat(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        other => Ok(Some(other.map_err(FileError::at("stat", path))?)),
    }
}
