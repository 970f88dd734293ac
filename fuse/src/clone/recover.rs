//! Starting a session on a clone directory, whatever ended the one before, and ending one in order.
//!
//! | the last session | the host and the file system since | what is trusted |
//! |---|---|---|
//! | ended in order | any | `present`: it was made durable |
//! | died | stayed up | `present`: the page cache still has it and all data written before it |
//! | died | restarted, or mounted anew | `durable`: `present` is overwritten with it before anything is served |
//!
//! The record of the boot is replaced only after `present` is right and durable, so a death in between repeats it.

use super::base::Maps;
use super::state::{CloneInfo, FileTable, Layout, SessionState, boot_id, invalid};
use pgkeep_engine::{Error, FileError, Kind, Result};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// Bytes copied at once between the stored maps.
const COPY_BYTES: usize = 1 << 20;

/// A clone directory opened for serving.
pub(super) struct Opened {
    pub(super) info: CloneInfo,
    pub(super) table: FileTable,
    pub(super) maps: Arc<Maps>,
    /// Whether the last session may have left writes that are not durable.
    pub(super) dirty: bool,
    pub(super) lock: File,
}

/// Locks a complete clone and brings its maps to a state that can be trusted.
pub(super) fn open(layout: &Layout) -> Result<Opened> {
    if !layout.is_complete() {
        return Err(Error::refused(Kind::PathMissing, format!("'{}' is not a complete clone", layout.root.display())));
    }
    let lock = super::state::lock(layout)?;
    let info = CloneInfo::load(layout)?;
    let data = std::fs::metadata(layout.data()).map_err(FileError::at("open", layout.data()))?;
    if data.ino() != info.data_inode {
        return Err(Error::refused(
            Kind::FileInvalid,
            format!("clone '{}' was copied or restored; only the original can be served", layout.root.display()),
        ));
    }
    let table = FileTable::load(layout, info.page_size)?;
    let maps = Maps { present: map(layout, "present", &table)?, durable: map(layout, "durable", &table)? };
    let last = SessionState::load(layout)?;
    let boot = boot_id(layout)?;
    if !last.clean && last.boot != boot {
        tracing::info!(
            "the host went down while clone '{}' was served; pages not synced then are the backup's again",
            layout.root.display()
        );
        copy(&maps.durable, &maps.present, &layout.file("present"))?;
    }
    SessionState { boot, clean: false }.save(layout)?;
    Ok(Opened { info, table, maps: Arc::new(maps), dirty: !last.clean, lock })
}

/// Makes everything durable and says so. No request may be running.
pub(super) fn close(layout: &Layout, maps: &Maps) -> Result<()> {
    let data = File::open(layout.data()).map_err(FileError::at("open", layout.data()))?;
    rustix::fs::syncfs(&data).map_err(|error| FileError::at("sync", layout.data())(error.into()))?;
    maps.present.sync_all().map_err(FileError::at("sync", layout.file("present")))?;
    copy(&maps.present, &maps.durable, &layout.file("durable"))?;
    SessionState { boot: boot_id(layout)?, clean: true }.save(layout)
}

fn map(layout: &Layout, name: &str, table: &FileTable) -> Result<File> {
    let path = layout.file(name);
    let file = File::options().read(true).write(true).open(&path).map_err(FileError::at("open", &path))?;
    let bytes = file.metadata().map_err(FileError::at("stat", &path))?.len();
    if bytes != table.map_bytes() {
        return Err(invalid(&path, &format!("it has {bytes} bytes, expected {}", table.map_bytes())));
    }
    Ok(file)
}

/// Makes one stored map equal to the other, durably, writing only what differs.
fn copy(from: &File, to: &File, to_path: &Path) -> Result<()> {
    let (mut new, mut old) = (vec![0u8; COPY_BYTES], vec![0u8; COPY_BYTES]);
    let mut offset = 0u64;
    loop {
        let read = from.read_at(&mut new, offset).map_err(FileError::at("read", to_path))?;
        let Some(bytes) = new.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        let known = to.read_at(&mut old, offset).map_err(FileError::at("read", to_path))?;
        if old.get(..known) != Some(bytes) {
            to.write_all_at(bytes, offset).map_err(FileError::at("write", to_path))?;
        }
        offset += read as u64;
    }
    to.sync_all().map_err(FileError::at("sync", to_path))?;
    Ok(())
}
