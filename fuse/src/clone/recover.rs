//! Starting a session on a clone directory, whatever ended the one before, and ending one in order.
//!
//! | the last session | the host and the file system since | what is trusted |
//! |---|---|---|
//! | ended in order | any | `present`: it was made durable |
//! | died | stayed up | `present`: the page cache still has it and all data written before it; both are synced first, and if that fails `durable` |
//! | died | restarted, or mounted anew | `durable`: `present` is overwritten with it before anything is served |
//! | saw a write or a sync fail, its last ones included | any | `durable` |
//!
//! The record of the boot is replaced only after `present` is right and durable, so a death in between repeats it. A
//! failure is recorded by removing that record: the disk that cannot take data may still do that, and one that cannot
//! must be mounted anew, which is a new boot.
//!
//! When serving begins the two maps are equal, and everything in them is on the disk.

use super::base::Maps;
use super::settle::Settler;
use super::state::{CloneInfo, FileTable, Layout, SessionState, boot_id, invalid, sync_directory};
use pgkeep_engine::{Error, FileError, Kind, Result};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes copied at once between the stored maps.
const COPY_BYTES: usize = 1 << 20;

/// A clone directory opened for serving.
pub(super) struct Opened {
    pub(super) info: CloneInfo,
    pub(super) table: FileTable,
    pub(super) maps: Arc<Maps>,
    /// Whether the last session may have left writes that are not durable.
    pub(super) dirty: bool,
    pub(super) lock: super::lock::Held,
}

/// Remembers, beyond this process, that the disk lost something.
pub(super) struct Doubt {
    layout: Layout,
    raised: AtomicBool,
}

impl Doubt {
    pub(super) fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone(), raised: AtomicBool::new(false) }
    }

    /// From now on only what is known to be durable counts for the next session.
    pub(super) fn raise(&self) {
        if self.raised.swap(true, Ordering::AcqRel) {
            return;
        }
        let path = self.layout.file("session.json");
        let removed = std::fs::remove_file(&path).map_err(FileError::at("remove", &path));
        if let Err(error) = removed.map_err(Error::from).and_then(|()| sync_directory(&self.layout.meta())) {
            tracing::error!("cannot record that the disk behind the clone failed: {}", crate::errno::chain(&error));
        }
    }

    fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }
}

/// Locks a complete clone and brings its maps to a state that can be trusted.
pub(super) fn open(layout: &Layout) -> Result<Opened> {
    super::foreign::check_complete(layout)?;
    let lock = super::lock::take(layout)?;
    let info = CloneInfo::load(layout)?;
    let data = std::fs::metadata(layout.data()).map_err(FileError::at("open", layout.data()))?;
    if data.ino() != info.data_inode {
        return Err(Error::refused(
            Kind::FileInvalid,
            format!("clone '{}' was copied or restored; only the original can be served", layout.root.display()),
        ));
    }
    let table = FileTable::load(layout, info.page_size)?;
    let maps = Maps::new(map(layout, "present", &table)?, map(layout, "durable", &table)?);
    let last = SessionState::load(layout)?;
    let boot = boot_id(layout)?;
    let root = layout.root.display();
    let what_happened = match &last {
        Some(last) if last.clean => None,
        _ => {
            // Also where nothing follows from it: a failure is told once, and this session's end must not be told of it.
            let synced = sync_all(layout, &maps);
            match (last.as_ref().map(|last| last.boot == boot), synced) {
                (Some(true), Ok(())) => {
                    copy(&maps.present, &maps.durable, &layout.file("durable"))?;
                    None
                }
                (Some(true), Err(error)) => {
                    let why = crate::errno::chain(&error);
                    Some(format!("the process that served clone '{root}' died and the disk has failed: {why}"))
                }
                (Some(false), _) => Some(format!("the host went down while clone '{root}' was served")),
                (None, _) => Some(format!("the disk failed while clone '{root}' was served")),
            }
        }
    };
    if let Some(what_happened) = what_happened {
        tracing::info!("{what_happened}; pages not synced then are the backup's again");
        copy(&maps.durable, &maps.present, &layout.file("present"))?;
    }
    SessionState { boot, clean: false }.save(layout)?;
    let dirty = !last.is_some_and(|last| last.clean);
    Ok(Opened { info, table, maps: Arc::new(maps), dirty, lock })
}

/// Syncs the file system and `present`; fails also if a write failed before and nobody was told.
fn sync_all(layout: &Layout, maps: &Maps) -> Result<()> {
    let data = File::open(layout.data()).map_err(FileError::at("open", layout.data()))?;
    rustix::fs::syncfs(&data).map_err(|error| FileError::at("sync", layout.data())(error.into()))?;
    maps.present.sync_all().map_err(FileError::at("sync", layout.file("present")))?;
    Ok(())
}

/// Makes everything durable and says so. No request may be running.
pub(super) fn close(layout: &Layout, maps: &Maps, settler: Settler, doubt: &Doubt) -> Result<()> {
    settler.finish();
    let made_durable = || {
        let synced = sync_all(layout, maps);
        if doubt.is_raised() {
            let message = format!(
                "the disk failed while clone '{}' was served; only what was synced before is kept",
                layout.root.display()
            );
            return Err(Error::refused(Kind::FileWrite, message));
        }
        synced?;
        copy(&maps.present, &maps.durable, &layout.file("durable"))?;
        SessionState { boot: boot_id(layout)?, clean: true }.save(layout)
    };
    let result = made_durable();
    if result.is_err() {
        doubt.raise();
    }
    result
}

/// True if no page was written to the clone or made durable in it: no server has used it.
pub(super) fn holds_nothing(maps: &Maps, layout: &Layout) -> Result<bool> {
    let mut buffer = vec![0u8; COPY_BYTES];
    let mut offset = 0u64;
    loop {
        let read = maps.present.read_at(&mut buffer, offset).map_err(FileError::at("read", layout.file("present")))?;
        match buffer.get(..read) {
            Some([]) | None => return Ok(true),
            Some(bytes) if bytes.iter().any(|byte| *byte != 0) => return Ok(false),
            Some(_) => offset += read as u64,
        }
    }
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
