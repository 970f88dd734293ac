//! Tablespaces that come into being on a clone: their files stay in the clone.
//!
//! The server makes a tablespace by linking `pg_tblspc/<oid>` to the absolute path of its location, also when it replays
//! the creation from WAL; then that path is the original's, whose server may be at work in it. So whatever link is made
//! under such a name gets another target here: `.tablespaces/<oid>` at PGDATA's top, where the skeleton puts the
//! tablespaces of the backup too. The location itself sees one thing only, before the link is made: the server sets its
//! mode and makes its version directory there (`commands/tablespace.c`, `create_tablespace_directories`).
//!
//! The version directory is made here as well, since the server has just made it elsewhere and counts on it.

use super::backing::Backing;
use super::identity::Identity;
use super::nodes::{Link, ROOT};
use super::skeleton::{CONTROL_FILE, TABLESPACES};
use crate::errno::{Outcome, io, system};
use crate::owner::Owner;
use pgkeep_formats::pg::control::{CONTROL_FILE_SIZE, ControlFile};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

/// Where the server looks for tablespaces.
const LINKS: &str = "pg_tblspc";
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// True if the node is this directory at PGDATA's top.
fn is_at_top(backing: &Backing, number: u64, name: &str) -> bool {
    let link = Link::new(ROOT, OsStr::new(name));
    backing.nodes.get(number).is_ok_and(|node| node.links.contains(&link))
}

/// True if the server takes a link of this name for a tablespace.
pub(super) fn is_link(backing: &Backing, parent: u64, name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit) && is_at_top(backing, parent, LINKS)
}

/// True for names that may be made without the kernel's knowledge: it must not remember that they were missing.
pub(super) fn may_appear(backing: &Backing, parent: u64, name: &OsStr) -> bool {
    (parent == ROOT && name == TABLESPACES) || is_at_top(backing, parent, TABLESPACES)
}

/// Makes the private directory of a tablespace if it is missing, durably, and returns the text of the link to it.
pub(super) fn make(backing: &Backing, oid: &OsStr, owner: Owner) -> Outcome<String> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(backing.root()).map_err(system)?.st_mode & 0o777);
    let all = directory(backing.root(), OsStr::new(TABLESPACES), mode, owner)?;
    let one = directory(&all, oid, mode, owner)?;
    if let Some(version) = version_directory(backing)? {
        directory(&one, OsStr::new(&version), mode, owner)?;
    }
    let oid = oid.to_str().unwrap_or_default();
    tracing::info!("tablespace {oid}, which the server made, has its files in the clone");
    Ok(format!("../{TABLESPACES}/{oid}"))
}

fn directory(above: &OwnedFd, name: &OsStr, mode: Mode, owner: Owner) -> Outcome<OwnedFd> {
    let made = {
        let _identity = Identity::assume(owner);
        rustix::fs::mkdirat(above, name, mode)
    };
    let made = match made {
        // As for other names: supplementary groups are not taken along.
        Err(Errno::ACCESS) => rustix::fs::mkdirat(above, name, mode).and_then(|()| {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            rustix::fs::chownat(above, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        }),
        other => other,
    };
    match made {
        Ok(()) => {
            rustix::fs::chmodat(above, name, mode, AtFlags::empty()).map_err(system)?;
            rustix::fs::fsync(above).map_err(system)?;
        }
        Err(Errno::EXIST) => {}
        Err(error) => return Err(system(error)),
    }
    rustix::fs::openat(above, name, DIRECTORY, Mode::empty()).map_err(system)
}

/// `PG_<major>_<catalog version>`; `None` for what is no data directory of a server.
fn version_directory(backing: &Backing) -> Outcome<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(backing.root(), CONTROL_FILE, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => File::from(other.map_err(system)?),
    };
    let mut bytes = Vec::with_capacity(CONTROL_FILE_SIZE);
    file.take(CONTROL_FILE_SIZE as u64).read_to_end(&mut bytes).map_err(io)?;
    // Written whole in one request, but maybe just now: without the directory the server reports what it misses.
    let control = ControlFile::parse(&bytes).ok();
    Ok(control.map(|control| format!("PG_{}_{}", control.version.major(), control.catalog_version)))
}
