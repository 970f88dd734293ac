//! The end of a restore: recovery settings, everything durable, then pg_control.

use super::owners::Owners;
use super::place::{Place, at};
use super::plan::{CONTROL, CONTROL_TEMPORARY, MARKER, Plan};
use super::recovery::{self, RecoveryOptions};
use super::window::settle;
use crate::repository::manifests::{FileRecord, Manifest};
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::repo::manifest::{Content, Entry, ExtentAt};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

pub(super) const SETTINGS: &str = "postgresql.auto.conf";
/// Largest settings file that is read: the server's own has a few lines.
const SETTINGS_BYTES_MAX: u64 = 16 << 20;
/// File systems whose `syncfs` makes all their files durable and tells of failures. Others sync file by file: FUSE, for
/// one, answers without asking its daemon.
const SYNCED_WHOLE: [u64; 7] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // btrfs
    0x0102_1994, // tmpfs
    0x794C_7630, // overlayfs, which passes it on
    0x2FC1_2FC1, // ZFS
    0xF2F5_2010, // F2FS
];

/// True if every root lies on a file system that can be synced as a whole.
pub(super) fn syncs_whole(place: &Place) -> Result<bool> {
    for (path, fd) in place.roots() {
        let facts = rustix::fs::fstatfs(fd).map_err(at("stat", path))?;
        if !SYNCED_WHOLE.contains(&(facts.f_type as u64)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes all that was written durable. File by file that was done already, and directories are left.
pub(super) fn sync(place: &Place, plan: &Plan, whole: bool) -> Result<()> {
    if !whole {
        plan.directories.iter().try_for_each(|d| place.sync_directory(&d.path))?;
        return place.roots().try_for_each(|(path, fd)| Ok(rustix::fs::fsync(fd).map_err(at("sync", path))?));
    }
    let mut devices = Vec::new();
    for (path, fd) in place.roots() {
        let device = rustix::fs::fstat(fd).map_err(at("stat", path))?.st_dev;
        if !devices.contains(&device) {
            sync_file_system(path, fd)?;
            devices.push(device);
        }
    }
    Ok(())
}

fn sync_file_system(path: &Path, fd: &OwnedFd) -> Result<()> {
    rustix::fs::syncfs(fd).map_err(at("sync", path))?;
    Ok(())
}

/// Writes recovery settings and signal files.
pub(super) fn recovery_files(
    place: &Place,
    plan: &Plan,
    options: &RecoveryOptions,
    command: &str,
    now: &str,
) -> Result<()> {
    let mut existing = Vec::new();
    let found = match place.file(SETTINGS, OFlags::RDONLY) {
        Ok(file) => {
            let limited = (&file).take(SETTINGS_BYTES_MAX).read_to_end(&mut existing);
            limited.map_err(FileError::at("read", place.real(SETTINGS)))?;
            true
        }
        Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(e.into()),
    };
    let files = recovery::plan(&existing, options, command, now)?;
    if files.preserve && !plan.preserves_settings {
        let from = if found { "the backup's is used" } else { "the backup has none either" };
        tracing::warn!("'{}' did not exist and cannot be preserved: {from}", plan.target.join(SETTINGS).display());
    }
    if let Some(content) = files.auto_conf {
        write(place, SETTINGS, &content)?;
    }
    for signal in files.remove {
        place.unlink(signal.file_name())?;
    }
    if let Some(signal) = files.create {
        write(place, signal.file_name(), b"")?;
    }
    Ok(())
}

/// Writes a small file of ours, durably; one that is new gets the data directory's owner.
pub(super) fn write(place: &Place, path: &str, content: &[u8]) -> Result<()> {
    let real = place.real(path);
    let mut file = place.file(path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
    file.write_all(content).map_err(FileError::at("write", &real))?;
    let directory = place.directory("")?;
    let home = rustix::fs::fstat(&*directory).map_err(at("stat", place.real("")))?;
    let stat = rustix::fs::fstat(&file).map_err(at("stat", &real))?;
    if stat.st_uid != home.st_uid && rustix::process::geteuid().is_root() {
        let (uid, gid) = (rustix::fs::Uid::from_raw(home.st_uid), rustix::fs::Gid::from_raw(home.st_gid));
        rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(at("change owner of", &real))?;
    }
    file.sync_all().map_err(FileError::at("sync", &real))?;
    Ok(())
}

/// Puts the marker in place, then takes pg_control away: from here to the end no server starts on the directory, and a
/// restore that finds it knows why. The links of the plan are open already, should `global` be one of them.
pub(super) fn disarm(place: &Place, plan: &Plan, label: &str) -> Result<()> {
    write(place, MARKER, format!("{label}\n").as_bytes())?;
    place.sync_directory("")?;
    let (directory, name) = CONTROL.split_once('/').unwrap_or(("", CONTROL));
    let linked = plan.links.iter().any(|l| l.path == directory);
    match place.kind(directory)? {
        None if !linked => Ok(()),
        // A link that the backup does not have there would be removed anyhow.
        Some(kind) if !linked && kind != FileType::Directory => {
            place.remove("", directory.as_bytes())?;
            place.sync_directory("")
        }
        _ => {
            place.remove(directory, name.as_bytes())?;
            place.sync_directory(directory)
        }
    }
}

/// Writes pg_control under another name and, once that is durable, gives it its own. Then the marker goes.
pub(super) fn arm(place: &Place, owners: &Owners, control: Option<(Entry, Vec<u8>)>) -> Result<()> {
    if let Some((entry, content)) = control {
        let real = place.real(CONTROL_TEMPORARY);
        place.unlink(CONTROL_TEMPORARY)?;
        let mut file = place.file(CONTROL_TEMPORARY, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        file.write_all(&content).map_err(FileError::at("write", &real))?;
        settle(place, owners, &entry, &file)?;
        file.sync_all().map_err(FileError::at("sync", &real))?;
        place.rename(CONTROL_TEMPORARY, CONTROL)?;
        place.sync_directory("global")?;
    }
    place.unlink(MARKER)?;
    place.sync_directory("")
}

/// A small file of the backup, whole.
pub(super) fn read_small(manifest: &Arc<Manifest>, record: &FileRecord) -> Result<Vec<u8>> {
    let entry = &record.entry;
    let unit = match &entry.content {
        Content::None => return Ok(Vec::new()),
        Content::Inline(bytes) => return Ok(bytes.clone()),
        Content::Extents { unit, .. } => *unit as usize,
    };
    let damaged = || Error::refused(Kind::Format, format!("'{}' does not fit its chunks in the manifest", entry.path));
    let mut out = Vec::new();
    for extent in &record.extents {
        let len = (extent.units as usize * unit).min((entry.size as usize).saturating_sub(out.len()));
        match extent.at {
            ExtentAt::Zero => out.resize(out.len() + len, 0),
            ExtentAt::Chunk { ordinal, offset } => {
                let id = manifest.chunk_id(ordinal)?;
                let plain =
                    manifest.source().read(&id).map_err(|e| e.during(format!("cannot restore '{}'", entry.path)))?;
                let start = offset as usize * unit;
                out.extend_from_slice(plain.get(start..start + len).ok_or_else(damaged)?);
            }
        }
    }
    Ok(out)
}
