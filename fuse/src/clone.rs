//! The writable clone of a backup: a sparse PGDATA on a local file system, served through FUSE.
//!
//! [`create`] makes the directory, [`serve`] mounts it; what PostgreSQL then writes stays in the directory and never
//! reaches the repository. The directory's layout is described in `clone/state.rs`, the rules that keep what was
//! written in `clone/base.rs`, and starting after a crash in `clone/recover.rs`.
//!
//! Two rules for those who use the directory: it needs a file system with user attributes (ext4, XFS, btrfs; tmpfs from
//! Linux 6.6), and it must not be used beside the mount while it is served.

mod ahead;
mod backing;
mod base;
mod bitmap;
mod demand;
mod disk;
mod files;
mod foreign;
mod fs;
mod hydrate;
mod identity;
mod lock;
mod modes;
mod names;
mod nodes;
mod prefetch;
mod promote;
mod recover;
mod room;
mod settle;
mod skeleton;
mod state;
mod tablespaces;
mod trace;

pub(crate) use fs::negotiate;
pub use modes::OpenMode;
pub use promote::{promote, try_promote};
pub use state::{CloneInfo, Hydration, HydrationState};
pub use trace::{Access, Keep, Load, Tracing};

use crate::mount::{self, MountOptions, Session};
use crate::owner::Owner;
use crate::pool::Pool;
use pgkeep_engine::view::Snapshot;
use pgkeep_engine::{Error, FileError, Kind, Result};
use rustix::fs::{Mode, OFlags};
use state::Layout;
use std::io::ErrorKind;
use std::num::NonZero;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Threads that copy small files when a clone is made.
const COPY_THREADS: usize = 4;
/// Threads that fetch pages while a clone is served.
const FETCH_THREADS: usize = 8;

/// A file the caller puts into a new clone.
#[derive(Debug, Clone)]
pub struct Added {
    /// Path relative to PGDATA; its directory must be in the backup.
    pub path: String,
    /// Content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// How to make a clone.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// What the clone is of, in names and values of the caller's choice; comes back in [`CloneInfo::identity`].
    pub identity: Vec<(String, String)>,
    /// Who owns everything; without it, who owned it on the server, as far as this system knows the names. Only root
    /// can give files away: for others everything belongs to them.
    pub owner: Option<Owner>,
    /// Files to add, or to put in place of the backup's.
    pub write: Vec<Added>,
    /// Files and directories of the backup to leave out.
    pub remove: Vec<String>,
    /// Threads that copy small files.
    pub threads: usize,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { identity: Vec::new(), owner: None, write: Vec::new(), remove: Vec::new(), threads: COPY_THREADS }
    }
}

/// Makes a clone of `snapshot` in `dir`, which must be absent, empty, or the rest of a creation that died.
///
/// On return the clone is durable. Blocks on the store for the content of small files.
///
/// # Errors
/// `PathNotEmpty` if `dir` holds something else, `LockAcquire` if another process is at it, and what the store, the
/// decoder or the file system said. A failed creation is taken up by calling this again.
pub fn create(dir: &Path, snapshot: &dyn Snapshot, options: &CreateOptions) -> Result<CloneInfo> {
    let layout = Layout::new(dir);
    let mut private = std::fs::DirBuilder::new();
    private.mode(0o700).recursive(true);
    private.create(dir).map_err(FileError::at("create", dir))?;
    foreign::check_place(&layout)?;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).map_err(FileError::at("change mode of", dir))?;
    private.create(layout.meta()).map_err(FileError::at("create", layout.meta()))?;
    let _lock = lock::take(&layout)?;
    if layout.is_complete() {
        return Err(Error::refused(Kind::PathNotEmpty, format!("clone '{}' exists already", dir.display())));
    }
    clear(&layout)?;
    skeleton::create(&layout, snapshot, options)
}

/// Removes what a creation that died has left. The lock file stays: it is held.
fn clear(layout: &Layout) -> Result<()> {
    let data = layout.data();
    if data.exists() {
        std::fs::remove_dir_all(&data).map_err(FileError::at("remove", &data))?;
    }
    for entry in std::fs::read_dir(layout.meta()).map_err(FileError::at("list", layout.meta()))? {
        let entry = entry.map_err(FileError::at("list", layout.meta()))?;
        if entry.file_name() != "lock" {
            std::fs::remove_file(entry.path()).map_err(FileError::at("remove", entry.path()))?;
        }
    }
    Ok(())
}

/// Mounts a clone. `snapshot` must be the backup it was made from: [`info`] tells which.
///
/// Returns once the mount answers. PGDATA is `mountpoint` itself.
///
/// # Errors
/// `PathMissing` if `dir` is no complete clone, `LockAcquire` if it is in use, `FileInvalid` if it was copied or does not
/// fit the backup, and what the file system or the kernel said.
pub fn serve(dir: &Path, snapshot: Arc<dyn Snapshot>, mountpoint: &Path, options: &MountOptions) -> Result<Session> {
    serve_traced(dir, snapshot, mountpoint, options, Tracing::default())
}

/// As [`serve`]; what servers on earlier clones needed first is fetched at once, and what this clone's needs is recorded if
/// the clone holds nothing yet.
///
/// # Errors
/// As [`serve`]. What comes of traces is no error.
pub fn serve_traced(
    dir: &Path,
    snapshot: Arc<dyn Snapshot>,
    mountpoint: &Path,
    options: &MountOptions,
    tracing: Tracing,
) -> Result<Session> {
    let layout = Layout::new(dir);
    promote::refuse_begun(&layout)?;
    let opened = recover::open(&layout)?;
    if snapshot.page_size() != opened.info.page_size {
        let (pages, expected) = (snapshot.page_size(), opened.info.page_size);
        let message = format!("the backup has pages of {pages} bytes, clone '{}' of {expected}", dir.display());
        return Err(Error::refused(Kind::FileInvalid, message));
    }
    let data = layout.data();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open(&data, flags, Mode::empty()).map_err(|error| FileError::at("open", &data)(error.into()))?;
    let (maps, queue) = (opened.maps, Arc::new(settle::Queue::default()));
    let doubt = Arc::new(recover::Doubt::new(&layout));
    let demand = Arc::new(demand::Demand::default());
    let ahead = Arc::new(ahead::Ahead::default());
    let label = opened.info.identity.iter().find(|(name, _)| name == "label").map(|(_, label)| label.clone());
    let keep = match tracing.keep {
        Some(keep) if recover::holds_nothing(&maps, &layout)? => Some(keep),
        _ => None,
    };
    let recorder = Arc::new(if keep.is_some() { trace::Recorder::default() } else { trace::Recorder::off() });
    let shared = base::Shared {
        page_size: opened.info.page_size,
        backup: label.unwrap_or_else(|| "without a label".to_owned()),
        snapshot,
        maps: Arc::clone(&maps),
        disk: Box::new(disk::Kernel),
        queue: Arc::clone(&queue),
        doubt: Arc::clone(&doubt),
        demand: Arc::clone(&demand),
        ahead: Arc::clone(&ahead),
        recorder: Arc::clone(&recorder),
        room: room::Room::new(dir.to_path_buf()),
    };
    let backing =
        backing::Backing::new(root, opened.dirty, opened.table, shared).map_err(FileError::at("open", &data))?;
    let backing = Arc::new(backing);
    let settler = settle::Settler::start(Arc::clone(&queue)).map_err(FileError::at("serve", dir))?;
    let readers = ahead::Readers::start(ahead).map_err(FileError::at("serve", dir))?;
    let keeper = keep.map(|keep| trace::Keeper::start(Arc::clone(&recorder), keep)).transpose();
    let keeper = keeper.map_err(FileError::at("serve", dir))?;
    let (prefetcher, prefetching) = match tracing.load {
        None => (None, prefetch::Prefetching::default()),
        Some(load) => {
            let its = (Arc::clone(&backing), Arc::clone(&demand));
            let started = prefetch::Prefetcher::start(&layout, its.0, its.1, recorder, load, tracing.near);
            let (prefetcher, prefetching) = started.map_err(FileError::at("serve", dir))?;
            (Some(prefetcher), prefetching)
        }
    };
    let hydrator = hydrate::Hydrator::start(&layout, Arc::clone(&backing), demand, queue, prefetching);
    let hydrator = hydrator.map_err(FileError::at("serve", dir))?;
    let pool = Pool::start("clone-fetch", FETCH_THREADS).map_err(FileError::at("serve", dir))?;
    let lock = opened.lock;
    let at_end = Box::new(move || {
        // Beside what follows.
        if let Some(keeper) = &keeper {
            keeper.stop();
        }
        // Whoever serves the clone next must be the only one who writes to it.
        drop(readers);
        drop(prefetcher);
        drop(hydrator);
        let result = recover::close(&layout, &maps, settler, &doubt);
        drop(maps);
        if let Some(keeper) = keeper {
            keeper.end();
        }
        drop(lock);
        result
    });
    mount::serve(
        fs::CloneFs::new(backing, pool, modes::Modes::new(options.open_mode)),
        mountpoint,
        options,
        mount::Access::ReadWrite,
        Some(at_end),
    )
}

/// What a clone is of.
///
/// # Errors
/// `PathMissing` if `dir` is no complete clone, `LockAcquire` if it is being made, `PathOpen` if it is closed to this user;
/// `FileInvalid` if its record is damaged.
pub fn info(dir: &Path) -> Result<CloneInfo> {
    let layout = Layout::new(dir);
    foreign::check_complete(&layout)?;
    CloneInfo::load(&layout)
}

/// Asks for everything that a clone lacks, at most so many bytes a second. Whoever serves the clone fetches it, from now
/// on or from the next mount on, until it is there.
///
/// # Errors
/// `PathMissing` if `dir` is no complete clone, and what the file system said.
pub fn hydrate(dir: &Path, io_limit: Option<NonZero<u64>>) -> Result<()> {
    info(dir)?;
    let layout = Layout::new(dir);
    if Hydration::load(&layout)?.is_some_and(|h| h.state == HydrationState::Failed) {
        // What is read there from now on is of this wish.
        let record = layout.file("hydration.json");
        std::fs::remove_file(&record).map_err(FileError::at("remove", &record))?;
    }
    state::Wish { io_limit }.save(&layout)
}

/// How far hydration of a clone is; `None` if nobody asked for it or nobody has served the clone since.
///
/// # Errors
/// `FileInvalid` if the record is damaged, and what the file system said.
pub fn hydration(dir: &Path) -> Result<Option<Hydration>> {
    Hydration::load(&Layout::new(dir))
}

/// Succeeds if nobody serves or changes the clone at this moment.
///
/// # Errors
/// `LockAcquire` if somebody does.
pub fn check_free(dir: &Path) -> Result<()> {
    if is_held(dir)? {
        let text = format!("clone '{}' is in use by another process", dir.display());
        return Err(Error::refused(Kind::LockAcquire, text));
    }
    Ok(())
}

/// Whether somebody serves or changes the clone at this moment. Looking keeps nobody from that.
///
/// # Errors
/// What the file system said.
pub fn is_held(dir: &Path) -> Result<bool> {
    lock::is_held(&Layout::new(dir))
}

/// The complete clones in the directory `parent`, by name, each as [`info`] tells it.
///
/// # Errors
/// What the file system said of `parent`.
pub fn list(parent: &Path) -> Result<Vec<(PathBuf, Result<CloneInfo>)>> {
    let mut clones = Vec::new();
    for entry in std::fs::read_dir(parent).map_err(FileError::at("list", parent))? {
        let path = entry.map_err(FileError::at("list", parent))?.path();
        if Layout::new(&path).is_complete() {
            clones.push((path.clone(), info(&path)));
        }
    }
    clones.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(clones)
}

/// Succeeds if [`destroy`] would remove what is in `dir`: a clone, or the rest of one.
///
/// # Errors
/// `PathNotEmpty` or `PathMissing` if it is something else, and what the file system said.
pub fn try_destroy(dir: &Path) -> Result<()> {
    foreign::check_own(&Layout::new(dir))
}

/// Removes a clone, complete or not, with everything written to it.
///
/// # Errors
/// `LockAcquire` while it is served, as [`try_destroy`] if `dir` is something else: then nothing is removed, and what the
/// file system said.
pub fn destroy(dir: &Path) -> Result<()> {
    let layout = Layout::new(dir);
    foreign::check_own(&layout)?;
    let meta = layout.meta();
    if meta.is_dir() {
        let _lock = lock::take(&layout)?;
        foreign::remove_trials(&layout)?;
        // First the sign that it is whole, last the one that it is ours: whoever comes after a death can go on.
        let complete = layout.file("complete");
        if layout.is_complete() {
            std::fs::remove_file(&complete).map_err(FileError::at("remove", &complete))?;
        }
        clear(&layout)?;
        let lock = layout.file("lock");
        std::fs::remove_file(&lock).map_err(FileError::at("remove", &lock))?;
        std::fs::remove_dir(&meta).map_err(FileError::at("remove", &meta))?;
    }
    // The clone is gone; its directory may have been made by somebody who lets us only write into it.
    match std::fs::remove_dir(dir) {
        Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::ResourceBusy) => {
            tracing::info!("the empty directory '{}' stays: {e}", dir.display());
            Ok(())
        }
        other => Ok(other.map_err(FileError::at("remove", dir))?),
    }
}
