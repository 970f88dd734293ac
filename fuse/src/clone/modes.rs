//! How the kernel reads and writes an open file.
//!
//! | way | reads and writes | for |
//! |---|---|---|
//! | *cached* | the kernel's cache of the mount; this process for what is not in it, and for every write | files that lack pages of the backup |
//! | *through* (passthrough) | go to the backing file without this process | files of which it need not see anything: those born on the clone, and hydrated ones |
//! | *plain* | each one a request to this process | whoever asks for it: nothing is kept in memory twice |
//!
//! The rules are the kernel's (`fs/fuse/iomode.c`, Linux 6.9 and later): while a file is open through, all its handles
//! are, with the same registration; while one is cached, none is. So the first handle decides, and a file changes its way
//! when nobody holds it open. A close is counted by the kernel before this process hears of it, so what is counted here is
//! never less than what the kernel counts. Handles are opened and closed under [`Opens`]' lock.
//!
//! *What is not seen.* Of a file that is open through, nobody here knows whether it was written, so its syncs are never
//! spared: see [`FileState::unseen`]. Sizes are the kernel's own business: it updates what it knows of the file with each
//! write, and asks for the rest. The kernel's cache of the mount is stale after that, so a file that was open through and
//! then is not, because registering it failed, is opened with an empty cache.
//!
//! *Who may.* Registering takes the rights of root (CAP_SYS_ADMIN) and a backing file system that is not stacked itself.
//! What will be so for ever is asked once; what may pass (no descriptors, no memory) makes this one handle cached.
//! A registration lives as long as any handle of its file, so they count as open files do.

use super::nodes::{FileState, OpenFile};
use super::skeleton::MATERIALISED_BYTES_MAX;
use fuser::{BackingId, FopenFlags, InitFlags, KernelConfig};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// File systems that may lie over each other, the mount included: its backing file system must be an ordinary one, and
/// an overlay over the mount stays possible.
const STACK_DEPTH: u32 = 1;
/// The Linux that has passthrough first.
const PASSTHROUGH_SINCE: (u32, u32) = (6, 9);
/// No request at each close: nothing waits for it.
const ALWAYS: FopenFlags = FopenFlags::FOPEN_NOFLUSH;

/// How a clone's files are to be opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OpenMode {
    /// Past this process where it need not see reads and writes and the kernel offers that, otherwise cached.
    #[default]
    Auto,
    /// Cached by the kernel; every write is a request.
    Cached,
    /// Every read and write is a request.
    Plain,
}

impl OpenMode {
    /// As in options.
    pub const NAMES: [&'static str; 3] = ["auto", "cached", "plain"];

    /// The mode of a name; `None` if it is none.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "cached" => Some(Self::Cached),
            "plain" => Some(Self::Plain),
            _ => None,
        }
    }

    /// True if files of a clone that this process serves will probably bypass it: the kernel is asked when the clone is
    /// mounted, and may refuse.
    #[must_use]
    pub fn may_bypass(self) -> bool {
        let release = rustix::system::uname();
        let known = release.release().to_str().ok().and_then(|release| {
            let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
            Some((numbers.next()?, numbers.next()?))
        });
        self == Self::Auto && rustix::process::geteuid().is_root() && known >= Some(PASSTHROUGH_SINCE)
    }
}

/// What holds for all files of a session.
pub(super) struct Modes {
    wanted: OpenMode,
    /// The kernel offered passthrough and has not refused it for good.
    offered: AtomicBool,
    /// Some file was opened through.
    happened: AtomicBool,
}

/// The handles that the kernel has of one file.
#[derive(Default)]
pub(super) struct Opens {
    through: usize,
    others: usize,
    /// While any handle is open through.
    id: Option<Arc<BackingId>>,
    /// The kernel's cache may hold what is older than the file.
    stale: bool,
}

/// What the kernel is told of a new handle.
pub(super) enum Way {
    /// Open flags, none of them passthrough.
    Here(FopenFlags),
    /// Open flags, and what the file is registered as.
    Through(FopenFlags, Arc<BackingId>),
}

/// A handle of the kernel, counted until it is dropped.
pub(super) struct Counted {
    state: Arc<FileState>,
    through: bool,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut opens = lock(&self.state.opens);
        if !self.through {
            opens.others = opens.others.saturating_sub(1);
            return;
        }
        opens.through = opens.through.saturating_sub(1);
        if opens.through == 0 {
            opens.id = None;
        }
    }
}

fn lock(opens: &Mutex<Opens>) -> MutexGuard<'_, Opens> {
    opens.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Modes {
    pub(super) fn new(wanted: OpenMode) -> Self {
        Self { wanted, offered: AtomicBool::new(false), happened: AtomicBool::new(false) }
    }

    /// Asks the kernel for what the mode needs.
    pub(super) fn negotiate(&self, config: &mut KernelConfig) {
        let flag = match self.wanted {
            OpenMode::Auto => InitFlags::FUSE_PASSTHROUGH,
            OpenMode::Plain => InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            OpenMode::Cached => return,
        };
        if let Err(missing) = config.add_capabilities(flag) {
            tracing::debug!("the kernel does not offer {missing:?}");
            return;
        }
        if self.wanted == OpenMode::Auto {
            match config.set_max_stack_depth(STACK_DEPTH) {
                Ok(_) => self.offered.store(true, Ordering::Release),
                Err(most) => tracing::debug!("the kernel stacks file systems {most} deep at most"),
            }
        }
    }

    /// Counts a new handle of a file and decides on its way. `register` makes the backing file known to the kernel.
    pub(super) fn enter(
        &self,
        state: &Arc<FileState>,
        open: &OpenFile,
        register: impl FnOnce(&File) -> std::io::Result<BackingId>,
    ) -> (Way, Counted) {
        let mut opens = lock(&state.opens);
        let counted = |through| Counted { state: Arc::clone(state), through };
        let needs_nothing = self.wanted == OpenMode::Auto && needs_nothing(state, open);
        if let Some(id) = self.registered(&mut opens, needs_nothing, open, register) {
            opens.through += 1;
            opens.stale = true;
            self.happened.store(true, Ordering::Release);
            state.open_unseen();
            return (Way::Through(ALWAYS, id), counted(true));
        }
        opens.others += 1;
        if needs_nothing && self.happened.load(Ordering::Acquire) {
            // An earlier handle, forgotten since, may have written to it.
            state.open_unseen();
        }
        let kept = if opens.stale { FopenFlags::empty() } else { FopenFlags::FOPEN_KEEP_CACHE };
        let flags = if self.wanted == OpenMode::Plain { FopenFlags::FOPEN_DIRECT_IO } else { kept };
        (Way::Here(ALWAYS | flags), counted(false))
    }

    fn registered(
        &self,
        opens: &mut Opens,
        needs_nothing: bool,
        open: &OpenFile,
        register: impl FnOnce(&File) -> std::io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        if opens.through > 0 {
            return opens.id.clone();
        }
        if opens.others > 0 || !needs_nothing || !self.offered.load(Ordering::Acquire) {
            return None;
        }
        match register(&open.file) {
            Ok(id) => {
                opens.id = Some(Arc::new(id));
                opens.id.clone()
            }
            Err(error) => {
                self.refused(&error);
                None
            }
        }
    }

    fn refused(&self, error: &std::io::Error) {
        let for_now = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOSPC, libc::EINTR, libc::EAGAIN];
        if error.raw_os_error().is_some_and(|code| for_now.contains(&code)) {
            tracing::debug!("a file is not opened past this process: {error}");
        } else if self.offered.swap(false, Ordering::AcqRel) {
            tracing::info!("reads and writes of the clone's own files go through this process: {error}");
        }
    }
}

/// True if this process need not see what is read from and written to the file, now and for ever.
///
/// Pages that are durable stay so and the limit only sinks, so a base-backed file that is durable below its limit needs
/// nothing of the backup any more, whatever happens to it.
fn needs_nothing(state: &FileState, open: &OpenFile) -> bool {
    match state.base.get() {
        Some(Some(base)) => base.is_durable() && !base.has_failed(),
        // When recovery begins PostgreSQL syncs every file there is; those of the skeleton that nobody has written to
        // are known to be durable and cost nothing, as long as all writes are seen.
        Some(None) => state.was_written() || open.file.metadata().is_ok_and(|meta| meta.len() > MATERIALISED_BYTES_MAX),
        None => false,
    }
}
