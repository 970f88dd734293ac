//! What a clone directory holds beside the skeleton, and who may use it.
//!
//! ```text
//! D/            mode 0700, so that nobody starts PostgreSQL on a skeleton full of holes by mistake
//!   data/       the skeleton: PGDATA
//!   meta/
//!     lock      held by the process that creates or serves the clone; its content marks the directory as a clone
//!     clone.json    what this is a clone of; written once
//!     files     table of base-backed files, [`FileTable`]; written once
//!     present   per base-backed file: bytes removed from its base, then one bit a page; see `super::base`
//!     durable   the same, as far as it is known to have reached the disk
//!     session.json  boot the present file belongs to, and whether the last session ended in order; absent once the
//!                   disk has failed, and then only `durable` is trusted
//!     complete  exists once the skeleton is whole and durable
//!     hydrate   exists if everything is to be fetched; see `super::hydrate`
//!     hydration.json  how far that is
//!     promoted  exists once the clone is to become an ordinary data directory: it is never served again
//! ```

use super::bitmap::Bitmap;
use pgkeep_engine::{Error, FileError, Kind, Result};
use pgkeep_formats::codec::{Reader, Writer};
use rustix::fs::{AtFlags, StatxFlags};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Write;
use std::num::NonZero;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Version of everything under `meta/`.
pub(super) const STATE_VERSION: u64 = 1;
/// Extended attribute of a base-backed file: its number in the table, in digits. It moves and dies with the inode, so
/// renames and removals need no bookkeeping and survive crashes exactly as the names do.
pub(super) const BASE_ATTRIBUTE: &str = "user.pgkeep.base";
/// Everything `meta` may hold.
pub(super) const META_NAMES: [&str; 13] = [
    "lock",
    "clone.json",
    "files",
    "present",
    "durable",
    "session.json",
    "session.json.new",
    "complete",
    "hydrate",
    "hydrate.new",
    "hydration.json",
    "hydration.json.new",
    "promoted",
];
/// First bytes of `files`.
const FILES_MAGIC: &[u8; 8] = b"PGKCLN01";
/// Before a file's bits: 8 bytes, how much of the base was cut off by truncation.
pub(super) const BLOCK_HEADER_BYTES: u64 = 8;

/// A clone directory's paths.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(super) fn meta(&self) -> PathBuf {
        self.root.join("meta")
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.meta().join(name)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.file("complete").exists()
    }
}

/// What is recorded of a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneInfo {
    /// What it is a clone of, as its creator named it (stanza, label, repository, target, ...).
    pub identity: Vec<(String, String)>,
    /// Bytes of a page.
    pub page_size: u32,
    /// Files of the skeleton, base-backed ones included.
    pub files: u64,
    /// Files whose pages come from the backup when they are first needed.
    pub base_files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// When it was created, seconds since the Unix epoch.
    pub created: i64,
    /// The data directory's inode: a copied clone directory is recognised by it.
    pub(super) data_inode: u64,
}

impl CloneInfo {
    pub(super) fn save(&self, layout: &Layout) -> Result<()> {
        let identity: Map<String, Value> =
            self.identity.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let value = json!({
            "version": STATE_VERSION,
            "identity": identity,
            "pageSize": self.page_size,
            "files": self.files,
            "baseFiles": self.base_files,
            "bytes": self.bytes,
            "created": self.created,
            "dataInode": self.data_inode,
        });
        write_new(&layout.file("clone.json"), &pretty(&value))
    }

    pub(super) fn load(layout: &Layout) -> Result<Self> {
        let path = layout.file("clone.json");
        let value = read_json(&path)?;
        let number = |name: &str| {
            value.get(name).and_then(Value::as_u64).ok_or_else(|| invalid(&path, &format!("'{name}' is not a number")))
        };
        if number("version")? != STATE_VERSION {
            return Err(Error::refused(
                Kind::FeatureNotSupported,
                format!("'{}' has version {}, expected {STATE_VERSION}", path.display(), number("version")?),
            ));
        }
        let identity = value
            .get("identity")
            .and_then(Value::as_object)
            .ok_or_else(|| invalid(&path, "'identity' is missing"))?
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        let page_size = u32::try_from(number("pageSize")?).ok().filter(|bytes| is_page_size(*bytes));
        Ok(Self {
            identity,
            page_size: page_size.ok_or_else(|| invalid(&path, "'pageSize' is out of range"))?,
            files: number("files")?,
            base_files: number("baseFiles")?,
            bytes: number("bytes")?,
            created: value.get("created").and_then(Value::as_i64).unwrap_or_default(),
            data_inode: number("dataInode")?,
        })
    }
}

/// True for sizes a PostgreSQL page can have, with some room.
pub(super) fn is_page_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && (512..=65_536).contains(&bytes)
}

/// That everything is to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// Bytes a second at most.
    pub(super) io_limit: Option<NonZero<u64>>,
}

impl Wish {
    pub(super) fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.file("hydrate");
        if !path.try_exists().map_err(FileError::at("open", &path))? {
            return Ok(None);
        }
        let value = read_json(&path)?;
        Ok(Some(Self { io_limit: value.get("ioLimit").and_then(Value::as_u64).and_then(NonZero::new) }))
    }

    /// Records it durably, and whole to whoever reads it meanwhile.
    pub(super) fn save(&self, layout: &Layout) -> Result<()> {
        let (path, temporary) = (layout.file("hydrate"), layout.file("hydrate.new"));
        let value = json!({ "version": STATE_VERSION, "ioLimit": self.io_limit });
        write_synced(&temporary, &pretty(&value))?;
        std::fs::rename(&temporary, &path).map_err(FileError::at("rename", &temporary))?;
        sync_directory(&layout.meta())
    }
}

/// What hydration does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HydrationState {
    /// It fetches, or will as soon as the clone is served.
    Running,
    /// Something could not be fetched; it is tried again.
    Failed,
    /// Everything is in the clone's directory, durably.
    Done,
}

/// How far hydration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hydration {
    /// What it does.
    pub state: HydrationState,
    /// Bytes of the backup that the clone's files still have or had when it began.
    pub total: u64,
    /// How many of these are in the clone's directory.
    pub done: u64,
    /// Why it failed.
    pub error: Option<String>,
}

impl HydrationState {
    const NAMES: [(&'static str, Self); 3] =
        [("running", Self::Running), ("failed", Self::Failed), ("done", Self::Done)];

    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(_, state)| *state == self).map_or("", |(name, _)| name)
    }
}

impl Hydration {
    /// `None` if there was none. Progress is not written durably: where a host that went down has left a record without
    /// its bytes there was none either, and whoever serves the clone next writes it anew.
    pub(super) fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.file("hydration.json");
        if !path.try_exists().map_err(FileError::at("open", &path))? {
            return Ok(None);
        }
        let bytes = std::fs::read(&path).map_err(FileError::at("read", &path))?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| invalid(&path, &error.to_string()))?;
        let number = |name: &str| {
            value.get(name).and_then(Value::as_u64).ok_or_else(|| invalid(&path, &format!("'{name}' is not a number")))
        };
        let name = value.get("state").and_then(Value::as_str).unwrap_or_default();
        let state = HydrationState::NAMES.iter().find(|(known, _)| *known == name).map(|(_, state)| *state);
        Ok(Some(Self {
            state: state.ok_or_else(|| invalid(&path, "'state' is unknown"))?,
            total: number("total")?,
            done: number("done")?,
            error: value.get("error").and_then(Value::as_str).map(str::to_owned),
        }))
    }

    /// Replaces the record. That everything is there is recorded durably.
    pub(super) fn save(&self, layout: &Layout) -> Result<()> {
        let (path, temporary) = (layout.file("hydration.json"), layout.file("hydration.json.new"));
        let value = json!({
            "version": STATE_VERSION,
            "state": self.state.as_str(),
            "total": self.total,
            "done": self.done,
            "error": self.error,
        });
        let done = self.state == HydrationState::Done;
        let write = if done { write_synced } else { write_new };
        write(&temporary, &pretty(&value))?;
        std::fs::rename(&temporary, &path).map_err(FileError::at("rename", &temporary))?;
        if done { sync_directory(&layout.meta()) } else { Ok(()) }
    }
}

/// How the last session left the clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SessionState {
    /// The boot and mount in which `present` was written, [`boot_id`].
    pub(super) boot: String,
    /// True if the last session made everything durable before it ended.
    pub(super) clean: bool,
}

impl SessionState {
    /// `None` if there is no record.
    pub(super) fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.file("session.json");
        if !path.try_exists().map_err(FileError::at("open", &path))? {
            return Ok(None);
        }
        let value = read_json(&path)?;
        let boot = value.get("boot").and_then(Value::as_str).ok_or_else(|| invalid(&path, "'boot' is missing"))?;
        let clean = value.get("clean").and_then(Value::as_bool).ok_or_else(|| invalid(&path, "'clean' is missing"))?;
        Ok(Some(Self { boot: boot.to_owned(), clean }))
    }

    /// Replaces the record durably.
    pub(super) fn save(&self, layout: &Layout) -> Result<()> {
        let path = layout.file("session.json");
        let temporary = layout.file("session.json.new");
        let value = json!({ "version": STATE_VERSION, "boot": self.boot, "clean": self.clean });
        write_synced(&temporary, &pretty(&value))?;
        std::fs::rename(&temporary, &path).map_err(FileError::at("rename", &temporary))?;
        sync_directory(&layout.meta())
    }
}

/// Names this boot of this machine and this mount of the clone's file system: page cache written in it is still there.
/// A mount seen from elsewhere has another name; that only costs trust, never data that was synced.
pub(super) fn boot_id(layout: &Layout) -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let boot = std::fs::read_to_string(path).map_err(FileError::at("read", path))?;
    let unique = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
    let meta = layout.meta();
    let stat = rustix::fs::statx(rustix::fs::CWD, &meta, AtFlags::empty(), unique | StatxFlags::MNT_ID)
        .map_err(|error| FileError::at("stat", &meta)(error.into()))?;
    Ok(format!("{} {}:{} {}", boot.trim(), stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id))
}

/// Asks for a mount's number that is never given out again (Linux 6.8); older kernels answer with one that may be.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// One base-backed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaseEntry {
    /// Path in the backup.
    pub(super) path: String,
    /// Bytes in the backup.
    pub(super) size: u64,
    /// Where its block starts in `present` and `durable`.
    pub(super) block: u64,
}

/// All base-backed files, by number.
#[derive(Debug, Default)]
pub(super) struct FileTable {
    entries: Vec<BaseEntry>,
    end: u64,
}

impl FileTable {
    /// Adds a file and returns its number.
    pub(super) fn add(&mut self, path: &str, size: u64, page_size: u32) -> u64 {
        let number = self.entries.len() as u64;
        self.entries.push(BaseEntry { path: path.to_owned(), size, block: self.end });
        let block = BLOCK_HEADER_BYTES + Bitmap::stored_bytes(size.div_ceil(u64::from(page_size)));
        // An absurd sum of a damaged table is found when it is compared with the maps' size.
        self.end = self.end.saturating_add(block);
        number
    }

    pub(super) fn get(&self, number: u64) -> Option<&BaseEntry> {
        usize::try_from(number).ok().and_then(|at| self.entries.get(at))
    }

    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Bytes of `present` and of `durable`.
    pub(super) fn map_bytes(&self) -> u64 {
        self.end
    }

    pub(super) fn save(&self, layout: &Layout) -> Result<()> {
        let mut writer = Writer::new();
        writer.bytes(FILES_MAGIC);
        writer.u64(self.len());
        for entry in &self.entries {
            writer.u64(entry.size);
            writer.blob(entry.path.as_bytes());
        }
        write_new(&layout.file("files"), &writer.into_bytes())
    }

    pub(super) fn load(layout: &Layout, page_size: u32) -> Result<Self> {
        let path = layout.file("files");
        let bytes = std::fs::read(&path).map_err(FileError::at("read", &path))?;
        let damaged = || Error::damaged(path.display().to_string());
        let mut reader = Reader::new(&bytes);
        if reader.array::<8>("magic").map_err(damaged())? != *FILES_MAGIC {
            return Err(invalid(&path, "it does not start as a table of files does"));
        }
        let mut table = Self::default();
        for _ in 0..reader.u64("count").map_err(damaged())? {
            let size = reader.u64("size").map_err(damaged())?;
            let name = reader.text("path").map_err(damaged())?;
            table.add(name, size, page_size);
        }
        reader.finish("table of files").map_err(damaged())?;
        Ok(table)
    }
}

/// Syncs a directory, so that the names in it are durable.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(FileError::at("sync", path))
        .map_err(Error::from)
}

/// Writes a file; whoever calls it syncs the whole file system afterwards.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    create(path)?.write_all(bytes).map_err(FileError::at("write", path)).map_err(Error::from)
}

/// Writes a file and syncs it.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = create(path)?;
    file.write_all(bytes).map_err(FileError::at("write", path))?;
    file.sync_all().map_err(FileError::at("sync", path))?;
    Ok(())
}

/// Makes or empties a file of ours; a link in its place is somebody else's.
fn create(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_NOFOLLOW);
    Ok(options.open(path).map_err(FileError::at("create", path))?)
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(FileError::at("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| invalid(path, &error.to_string()))
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

pub(super) fn invalid(path: &Path, what: &str) -> Error {
    Error::refused(Kind::FileInvalid, format!("'{}' is not valid: {what}", path.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of a clone that is about to be made.
    pub(in crate::clone) fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        std::fs::create_dir(layout.meta()).unwrap();
        (dir, layout)
    }

    #[test]
    fn the_records_come_back() {
        let (_dir, layout) = layout();
        let info = CloneInfo {
            identity: vec![("stanza".into(), "main".into()), ("label".into(), "20260101-000000F".into())],
            page_size: 8192,
            files: 3,
            base_files: 1,
            bytes: 77,
            created: 5,
            data_inode: 2,
        };
        info.save(&layout).unwrap();
        assert_eq!(CloneInfo::load(&layout).unwrap(), info);
        let session = SessionState { boot: "b".into(), clean: true };
        session.save(&layout).unwrap();
        assert_eq!(SessionState::load(&layout).unwrap(), Some(session));
        std::fs::remove_file(layout.file("session.json")).unwrap();
        assert_eq!(SessionState::load(&layout).unwrap(), None);
        let mut table = FileTable::default();
        table.add("base/1/1", 100_000, 8192);
        table.add("base/1/2", 8192 * 65, 8192);
        table.save(&layout).unwrap();
        let again = FileTable::load(&layout, 8192).unwrap();
        assert_eq!(again.entries, table.entries);
        assert_eq!(again.map_bytes(), 8 + 8 + 8 + 16);
    }

    #[test]
    fn wishes_and_what_came_of_them_come_back() {
        let (_dir, layout) = layout();
        assert_eq!((Wish::load(&layout).unwrap(), Hydration::load(&layout).unwrap()), (None, None));
        for wish in [Wish { io_limit: NonZero::new(1 << 20) }, Wish { io_limit: None }] {
            wish.save(&layout).unwrap();
            assert_eq!(Wish::load(&layout).unwrap(), Some(wish));
        }
        for (_, state) in HydrationState::NAMES {
            let error = (state == HydrationState::Failed).then(|| "no space".to_owned());
            let hydration = Hydration { state, total: 10, done: 7, error };
            hydration.save(&layout).unwrap();
            assert_eq!(Hydration::load(&layout).unwrap(), Some(hydration));
        }
        std::fs::write(layout.file("hydration.json"), b"{\"state\":\"odd\",\"total\":1,\"done\":1}").unwrap();
        assert_eq!(Hydration::load(&layout).unwrap_err().kind(), Kind::FileInvalid);
        // What XFS has of a file that was renamed before its bytes were written.
        for lost in [&b""[..], &[0; 90]] {
            std::fs::write(layout.file("hydration.json"), lost).unwrap();
            assert_eq!(Hydration::load(&layout).unwrap(), None);
        }
    }

    #[test]
    fn damaged_records_are_refused() {
        let (_dir, layout) = layout();
        std::fs::write(layout.file("files"), b"PGKCLN01\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
        assert_eq!(FileTable::load(&layout, 8192).unwrap_err().kind(), Kind::Format);
        std::fs::write(layout.file("session.json"), b"{\"boot\":1}").unwrap();
        assert_eq!(SessionState::load(&layout).unwrap_err().kind(), Kind::FileInvalid);
        let absurd = "{\"version\":1,\"identity\":{},\"pageSize\":0}";
        std::fs::write(layout.file("clone.json"), absurd).unwrap();
        assert_eq!(CloneInfo::load(&layout).unwrap_err().kind(), Kind::FileInvalid);
        std::fs::write(layout.file("clone.json"), b"{\"version\":99}").unwrap();
        assert_eq!(CloneInfo::load(&layout).unwrap_err().kind(), Kind::FeatureNotSupported);
    }
}
