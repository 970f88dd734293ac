//! Mountpoints: preparing one, and finding ours among all.
//!
//! Which clone is mounted where is asked of the kernel, not remembered: the source of a clone's mount names its
//! directory, so nothing can be out of date.

use crate::error::Failure;
use crate::option::Settings;
use crate::servers;
use pgkeep_engine::{Error, FileError, Kind, Result};
use pgkeep_fuse::Mounted;
use rustix::fs::FlockOperation;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

/// Where the kernel lists this process's mounts.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Refuses a resolved path inside a data directory, of whatever cluster: its backups would take what is there for part of
/// the cluster. And one in a repository that is configured: that is for the objects of the repository alone, and what a
/// mount or a clone has in its place would hide them, or be taken for some.
///
/// # Errors
/// `OptionInvalidValue`.
pub(crate) fn refuse_inside(settings: &Settings, path: &Path) -> Result<(), Failure> {
    refuse_in_any(path, settings.repos().filter(|repo| repo.is_local()).map(|repo| repo.path().to_owned()))
}

fn refuse_in_any(path: &Path, mut repositories: impl Iterator<Item = PathBuf>) -> Result<(), Failure> {
    let is_data = |dir: &&Path| dir.join("PG_VERSION").is_file() && dir.join("global/pg_control").is_file();
    let refused = |text| Err(Error::refused(Kind::OptionInvalidValue, text).into());
    if let Some(data) = path.ancestors().skip(1).find(is_data) {
        return refused(format!("'{}' lies in the data directory '{}'", path.display(), data.display()));
    }
    match repositories.find(|repository| path.starts_with(resolved(repository))) {
        None => Ok(()),
        Some(repository) => refused(format!("'{}' lies in the repository '{}'", path.display(), repository.display())),
    }
}

/// Makes the directory if it is missing, and refuses one that something is in or on.
///
/// # Errors
/// `PathNotEmpty`; what the file system said.
pub(crate) fn prepare(mountpoint: &Path) -> Result<PathBuf, Failure> {
    if mountpoint.as_os_str().is_empty() {
        return Err(Error::refused(Kind::ParamRequired, "a mountpoint is needed").into());
    }
    let entries = match std::fs::read_dir(mountpoint) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(mountpoint).map_err(|e| Failure::file(FileError::at("create", mountpoint)(e)))?;
            None
        }
        // A daemon that died has left its mount; serving detaches it.
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => return Ok(resolved(mountpoint)),
        other => other.map_err(|e| Failure::file(FileError::at("list", mountpoint)(e)))?.next(),
    };
    let path = mountpoint.canonicalize().map_err(|e| Failure::file(FileError::at("open", mountpoint)(e)))?;
    refuse_mounted(&path)?;
    if entries.is_some() {
        return Err(not_empty(&path));
    }
    Ok(path)
}

fn refuse_mounted(path: &Path) -> Result<(), Failure> {
    if all()?.iter().any(|m| m.on == path) {
        let text = format!("something is mounted on '{}' already", path.display());
        return Err(Error::refused(Kind::PathNotEmpty, text).into());
    }
    Ok(())
}

fn not_empty(path: &Path) -> Failure {
    Error::refused(Kind::PathNotEmpty, format!("mountpoint '{}' is not empty", path.display())).into()
}

/// A mountpoint that nobody else mounts on while this is held.
#[derive(Debug)]
pub(crate) struct Claim {
    _directory: File,
}

/// Takes a prepared mountpoint, after whoever has it now, and looks again: between preparing and mounting a clone may be
/// made. What a dead daemon left there is detached.
///
/// # Errors
/// As [`prepare`]; `PostgresRunning` if a server thinks that its data directory is there.
pub(crate) fn claim(mountpoint: &Path) -> Result<Claim, Failure> {
    pgkeep_fuse::clear_stale(mountpoint)?;
    let opening = FileError::at("open", mountpoint);
    let directory = File::open(mountpoint).map_err(|e| Failure::file(opening(e)))?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive)
        .map_err(|e| Failure::file(FileError::at("lock", mountpoint)(e.into())))?;
    // The lock is on the directory, the name may lead to what the one before has mounted on it.
    refuse_mounted(mountpoint)?;
    let mut entries = std::fs::read_dir(mountpoint).map_err(|e| Failure::file(FileError::at("list", mountpoint)(e)))?;
    if entries.next().is_some() {
        return Err(not_empty(mountpoint));
    }
    if let Some(pid) = servers::at(mountpoint) {
        let text = format!(
            "server {pid} takes '{}' for its data directory and would write into what is mounted there",
            mountpoint.display()
        );
        return Err(Error::refused(Kind::PostgresRunning, text).into());
    }
    Ok(Claim { _directory: directory })
}

/// The path without links and dots as far as it exists, absolute.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    // A dead mount cannot be asked, and what is missing has no links; their parents may be links.
    match (path.parent(), path.components().next_back()) {
        (Some(above), Some(Component::ParentDir)) => {
            let mut above = resolved(above);
            above.pop();
            above
        }
        (Some(above), Some(last)) => resolved(above).join(last),
        _ => path,
    }
}

/// Begins the sources of our mounts; what follows is a clone's directory, which is absolute, or a stanza.
const SOURCE: &str = "pgkeep:";

/// The source under which a clone directory is mounted.
pub(crate) fn source_of(dir: &Path) -> String {
    let mut text = String::from(SOURCE);
    for byte in dir.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'_' | b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("%{byte:02x}")),
        }
    }
    text
}

/// The clone directory that a source names, if it names one.
fn clone_of(source: &str) -> Option<PathBuf> {
    let coded = source.strip_prefix(SOURCE).filter(|path| path.starts_with('/'))?;
    let mut bytes = Vec::with_capacity(coded.len());
    let mut rest = coded.as_bytes();
    while let Some((byte, later)) = rest.split_first() {
        if *byte == b'%' {
            let code = std::str::from_utf8(later.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(code, 16).ok()?);
            rest = later.get(2..)?;
        } else {
            bytes.push(*byte);
            rest = later;
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// The directories of all clones that are mounted on this host, in order.
///
/// # Errors
/// As [`of_source`].
pub(crate) fn clones() -> Result<Vec<PathBuf>> {
    let mut found: Vec<_> = all()?.iter().filter_map(|mount| clone_of(&mount.source)).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// The directory of the clone that is mounted on a path, on top.
///
/// # Errors
/// As [`of_source`].
pub(crate) fn clone_on(path: &Path) -> Result<Option<PathBuf>> {
    Ok(all()?.iter().rfind(|mount| mount.on == path).and_then(|mount| clone_of(&mount.source)))
}

/// Where this source is mounted.
///
/// # Errors
/// `FileRead` and its like if the kernel's list cannot be read.
pub(crate) fn of_source(source: &str) -> Result<Vec<Mounted>> {
    Ok(all()?.into_iter().filter(|m| m.source == source).map(|m| Mounted { on: m.on, id: m.id }).collect())
}

struct Mount {
    id: u64,
    on: PathBuf,
    source: String,
}

fn all() -> Result<Vec<Mount>> {
    let text = std::fs::read(MOUNTS).map_err(FileError::at("read", MOUNTS))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /root /mountpoint options [optional]... - type source options`, see proc(5).
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let on = PathBuf::from(std::ffi::OsString::from_vec(plain(fields.nth(3)?)));
    let mut rest = fields.skip_while(|f| *f != b"-");
    let source = String::from_utf8_lossy(&plain(rest.nth(2)?)).into_owned();
    Some(Mount { id, on, source })
}

/// Undoes the octal escapes.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, later)) = rest.split_first() {
        rest = later;
        let digits = later.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| *byte == b'\\') {
            Some(code) => {
                out.push(code);
                rest = later.get(3..).unwrap_or_default();
            }
            None => out.push(*byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read_with_their_escapes() {
        let line = b"36 35 0:55 / /mnt/a\\040b rw,noatime master:1 - fuse.pgkeep pgkeep:/d rw,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!((mount.on.to_str(), mount.source.as_str()), (Some("/mnt/a b"), "pgkeep:/d"));
        assert_eq!(mount.id, 36);
        assert_eq!(
            Mounted::at(Path::new("/proc")).unwrap().id,
            all().unwrap().iter().rfind(|m| m.on == Path::new("/proc")).unwrap().id
        );
        assert!(parse(b"").is_none() && parse(b"36 35 0:55 / /mnt rw").is_none());
        assert_eq!(plain(b"a\\134b\\"), b"a\\b\\");
        assert!(all().unwrap().iter().any(|m| m.on == Path::new("/proc")));
    }

    #[test]
    fn sources_keep_directories_apart() {
        assert_eq!(source_of(Path::new("/srv/clones/a-1.x")), "pgkeep:/srv/clones/a-1.x");
        assert_eq!(source_of(Path::new("/a b,c%")), "pgkeep:/a%20b%2cc%25");
        for dir in ["/srv/clones/a-1.x", "/a b,c%", "/ä", "/"] {
            assert_eq!(clone_of(&source_of(Path::new(dir))).as_deref(), Some(Path::new(dir)));
        }
        for other in ["pgkeep:main", "pgkeep", "/dev/sda1", "pgkeep:/a%2", "pgkeep:/a%zz", ""] {
            assert_eq!(clone_of(other), None, "{other}");
        }
    }

    #[test]
    fn links_above_what_is_missing_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        assert_eq!(resolved(&root.join("link/a/b")), root.join("real/a/b"));
        assert_eq!(resolved(&root.join("link/a/../b/./c")), root.join("real/b/c"));
        assert_eq!(resolved(&root.join("link/../x")), root.join("x"));
        assert_eq!(resolved(Path::new("/")), Path::new("/"));
    }

    #[test]
    fn data_directories_and_repositories_are_no_places() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (data, repository) = (root.join("data"), root.join("repository"));
        for made in [data.join("global"), repository.join("packs")] {
            std::fs::create_dir_all(made).unwrap();
        }
        for name in ["PG_VERSION", "global/pg_control"] {
            std::fs::write(data.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(&repository, root.join("link")).unwrap();
        let check = |path: &str| refuse_in_any(&resolved(&root.join(path)), [root.join("link")].into_iter());
        for path in ["data/x", "data/x/y", "repository", "repository/x", "link/packs", "link/x/y"] {
            let failure = check(path).unwrap_err();
            assert_eq!(failure.status().0, 32, "{path}: {failure}");
        }
        for path in ["data", "x", "repository2", "repository-clones/x"] {
            check(path).unwrap_or_else(|failure| panic!("{path}: {failure}"));
        }
    }

    #[test]
    fn a_claim_is_waited_for_and_what_came_in_between_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let held = claim(&path).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| claim(&path).map(|_| ()));
            std::fs::write(path.join("came"), "").unwrap();
            drop(held);
            assert_eq!(second.join().unwrap().unwrap_err().status().0, 40);
        });
    }

    #[test]
    fn a_mountpoint_must_be_free() {
        let dir = tempfile::tempdir().unwrap();
        let made = prepare(&dir.path().join("x/y")).unwrap();
        assert!(made.is_dir());
        prepare(&made).unwrap();
        std::fs::write(made.join("f"), "").unwrap();
        assert_eq!(prepare(&made).unwrap_err().status().0, 40);
        assert_eq!(prepare(Path::new("/proc")).unwrap_err().status().0, 40);
        assert_eq!(prepare(Path::new("")).unwrap_err().status().0, 43);
    }
}
