//! The directory of a base cache: whose it may be, what is in it, and how its files are read and made.
//!
//! A cache gives way to everything else on its file system, which may be the server's: see [`Space`]. One entry that is
//! strange, or that another process has just removed, never costs the view of the others.

use super::{Kept, State, What};
use pgkeep_formats::id::PackId;
use rustix::fs::OFlags;
use std::fs::{self, DirBuilder, DirEntry, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Files that a killed process did not finish are removed when they are this old.
pub(super) const LEFT_OVER: Duration = Duration::from_secs(3600);
/// Bytes of its file system that a cache leaves free, if that is more than its share.
const HEADROOM: u64 = 1 << 30;
/// Part of its file system that a cache leaves free.
const HEADROOM_SHARE: u64 = 20;

/// A file system, in bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::repository) struct Space {
    pub(in crate::repository) total: u64,
    /// For who is not root.
    pub(in crate::repository) free: u64,
}

impl Space {
    /// Of the file system that holds this directory.
    pub(in crate::repository) fn around(dir: &Path) -> io::Result<Self> {
        let facts = rustix::fs::statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(facts.f_frsize);
        Ok(Self { total: bytes(facts.f_blocks), free: bytes(facts.f_bavail) })
    }

    /// Bytes that are left to others.
    pub(super) fn headroom(self) -> u64 {
        HEADROOM.max(self.total / HEADROOM_SHARE)
    }

    /// True if so much can be written.
    pub(in crate::repository) fn admits(self, bytes: u64) -> bool {
        self.free.checked_sub(bytes).is_some_and(|left| left >= self.headroom())
    }
}

/// Makes the directory if it is not there. The error says why it cannot be used.
pub(in crate::repository) fn prepare(dir: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| format!("cannot create '{}': {e}", dir.display()))?;
    check(dir)
}

/// What others can write to is not ours to remove files from, nor to write to.
pub(super) fn check(dir: &Path) -> Result<(), String> {
    let shown = dir.display();
    let facts = fs::symlink_metadata(dir).map_err(|e| format!("cannot stat '{shown}': {e}"))?;
    if !facts.is_dir() {
        Err(format!("'{shown}' is not a directory"))
    } else if facts.uid() != rustix::process::geteuid().as_raw() {
        Err(format!("'{shown}' belongs to another user"))
    } else if facts.mode() & 0o022 != 0 {
        Err(format!("'{shown}' can be written to by others"))
    } else {
        Ok(())
    }
}

/// What is there. Removes what nobody finishes any more.
pub(super) fn survey(dir: &Path) -> Result<State, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("cannot list '{}': {e}", dir.display()))?;
    let mut state = State::default();
    for entry in entries {
        let entry = entry.map_err(|e| format!("cannot list '{}': {e}", dir.display()))?;
        if let Err(e) = note(&entry, &mut state) {
            // Another process removed it, or it is not ours to understand.
            tracing::debug!("'{}' in the base cache is passed over: {e}", entry.path().display());
        }
    }
    Ok(state)
}

fn note(entry: &DirEntry, state: &mut State) -> io::Result<()> {
    let name = entry.file_name();
    let Some((id, suffix)) = name.to_str().and_then(|name| name.split_once('.')) else { return Ok(()) };
    let facts = entry.metadata()?;
    if !facts.is_file() {
        return Ok(());
    }
    let what = match suffix {
        "pack" => What::Copy,
        "sub" => What::Hashes,
        _ if suffix.ends_with(".new") => return remove_left_over(entry, &facts),
        _ => return Ok(()),
    };
    let Ok(pack) = PackId::parse(id) else { return Ok(()) };
    let modified = facts.modified()?;
    state.bytes += facts.len();
    state.kept.insert((pack, what), Kept { bytes: facts.len(), ours: false });
    state.oldest.insert((what, modified, pack), ());
    Ok(())
}

fn remove_left_over(entry: &DirEntry, facts: &Metadata) -> io::Result<()> {
    let age = SystemTime::now().duration_since(facts.modified()?).unwrap_or_default();
    if age > LEFT_OVER { fs::remove_file(entry.path()) } else { Ok(()) }
}

/// Opens a file for reading; what is none is an error, and nothing waits.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file"))
    }
}

/// Whole or not at all, as far as other processes see. Not durable.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let suffix = path.extension().unwrap_or_default().display();
    let new = path.with_extension(format!("{suffix}.{}.{number}.new", std::process::id()));
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(&new)?;
    let written = file.write_all_at(bytes, 0).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // What failed is told; this is only tidying up.
        drop(fs::remove_file(&new));
    }
    written
}
