//! Mounting, serving and unmounting.
//!
//! fuser mounts; unmounting is our own: its unmounter forgets the mount at the first EBUSY and then does nothing for
//! ever. Here a busy mount is tried again for [`BUSY_WAIT`]. A read-only one is then detached lazily, so that no name is
//! left behind. A writable one never is while it is served: a server on it would go on, and what it names by absolute
//! paths, its control file above all, would be written into whatever is mounted there next.
//!
//! Mounts can lie over each other. One is only unmounted while it is on top, told by the kernel's number of it.

use crate::clone::OpenMode;
use crate::errno::chain;
use fuser::{BackgroundSession, Config, Filesystem, MountOption, SessionACL};
use pgkeep_engine::{Error, FileError, Kind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the kernel lists this process's mounts.
const MOUNTS: &str = "/proc/self/mountinfo";
/// How long a busy mount is tried again before it is detached.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Pause between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long the session of a detached mount may go on for those who still use it.
const DETACHED_WAIT: Duration = Duration::from_secs(5);
/// Session threads unless asked otherwise: two suffice on two cores, more help where a disk makes handlers wait.
const THREADS_DEFAULT: usize = 4;
/// One readahead window in KiB; the kernel offers FUSE 128, root may ask for more on the mount's backing device.
const READAHEAD_KIB: &str = "1024";

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Threads answering the kernel, at least 2.
    pub threads: usize,
    /// Other users may use the mount: `None` decides by what the system permits (root, or `user_allow_other` in
    /// `/etc/fuse.conf`). Who may do what is then up to modes and owners, which the kernel checks.
    pub allow_other: Option<bool>,
    /// Name shown as the source of the mount.
    pub source: String,
    /// How files of a clone are opened; nothing to read-only trees.
    pub open_mode: OpenMode,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            threads: THREADS_DEFAULT,
            allow_other: None,
            source: "pgkeep".to_owned(),
            open_mode: OpenMode::default(),
        }
    }
}

/// What may change through a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// What to do with a mount that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfUsed {
    /// Leave it where it is.
    Stay,
    /// Take it out of sight; it ends with its last user.
    Detach,
}

/// What became of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It is not there any more.
    Gone,
    /// Somebody uses it: it stays.
    Used,
    /// Another mount lies over it: it stays.
    Covered,
}

/// One mount, told from others at the same place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is.
    pub on: PathBuf,
    /// The kernel's number of it, as in `/proc/self/mountinfo`.
    pub id: u64,
}

impl Mounted {
    /// What is on top at a path; for a path with nothing mounted on it, what it is a part of.
    ///
    /// # Errors
    /// `FileError`, and `Kernel` if the kernel does not say.
    pub fn at(on: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // Opened so, nothing is asked of the file system, which may be dead.
        let fd = rustix::fs::open(on, flags, Mode::empty()).map_err(|e| FileError::at("open", on)(e.into()))?;
        Ok(Self { on: on.to_path_buf(), id: number_of(&fd, on)? })
    }

    /// Unmounts it if it is on top: tries again while it is used, then does what the caller says. One that nobody serves
    /// any more is detached in any case.
    ///
    /// # Errors
    /// `FileError` with verb "unmount", or what reading the list of mounts says.
    pub fn unmount(&self, if_used: IfUsed) -> Result<Left> {
        let started = Instant::now();
        loop {
            if Self::at(&self.on)? != *self {
                return Ok(if is_listed(self.id)? { Left::Covered } else { Left::Gone });
            }
            let busy = match rustix::mount::unmount(&self.on, UnmountFlags::NOFOLLOW) {
                Ok(()) => return Ok(Left::Gone),
                // Another was quicker; the next look tells.
                Err(rustix::io::Errno::INVAL) => false,
                Err(rustix::io::Errno::BUSY) => true,
                Err(rustix::io::Errno::PERM) => match ask_helper(&self.on, &["-u"])? {
                    Said::Done => return Ok(Left::Gone),
                    Said::Busy => true,
                },
                Err(error) => return Err(FileError::at("unmount", &self.on)(error.into()).into()),
            };
            if busy && started.elapsed() > BUSY_WAIT {
                if if_used == IfUsed::Detach {
                    return detach(&self.on).map(|()| Left::Gone);
                }
                clear_stale(&self.on)?;
                return Ok(if is_listed(self.id)? { Left::Used } else { Left::Gone });
            }
            std::thread::sleep(BUSY_PAUSE);
        }
    }
}

/// The number of the mount a descriptor is on.
fn number_of(fd: &OwnedFd, path: &Path) -> Result<u64> {
    let list = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = std::fs::read_to_string(&list).map_err(FileError::at("read", &list))?;
    let number = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let text = || format!("the kernel does not say what is mounted on '{}'", path.display());
    number.ok_or_else(|| Error::refused(Kind::Kernel, text()))
}

fn is_listed(id: u64) -> Result<bool> {
    let text = std::fs::read(MOUNTS).map_err(FileError::at("read", MOUNTS))?;
    let start = format!("{id} ");
    Ok(text.split(|b| *b == b'\n').any(|line| line.starts_with(start.as_bytes())))
}

/// Runs once when the last request was answered and no more can come.
pub(crate) type AtEnd = Box<dyn FnOnce() -> Result<()> + Send>;

/// A served mount. Dropping it unmounts.
pub struct Session {
    mounted: Mounted,
    if_used: IfUsed,
    background: Option<BackgroundSession>,
    at_end: Option<AtEnd>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("mounted", &self.mounted).finish_non_exhaustive()
    }
}

impl Session {
    /// Where it is mounted, absolute.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mounted.on
    }

    /// Which mount it is.
    #[must_use]
    pub fn mounted(&self) -> &Mounted {
        &self.mounted
    }

    /// Serves until someone unmounts ([`unmount`], `umount`), then makes everything durable.
    ///
    /// # Errors
    /// The session's own failure, or that of making a clone durable.
    pub fn join(mut self) -> Result<()> {
        self.end()
    }

    /// Unmounts, waits for the last request and makes everything durable.
    ///
    /// # Errors
    /// As [`Mounted::unmount`] and [`Self::join`]; `Kernel` if the mount is still used: a writable one stays where it is,
    /// another ends with its last user. Both are served as long as this process lives; what is durable is what was
    /// fsynced.
    pub fn unmount(mut self) -> Result<()> {
        self.leave()
    }

    fn leave(&mut self) -> Result<()> {
        if self.background.as_ref().is_none_or(|background| background.guard.is_finished()) {
            return self.end();
        }
        let on = self.mounted.on.display().to_string();
        match self.mounted.unmount(self.if_used) {
            Ok(Left::Gone) => {}
            Ok(Left::Used) => return Err(self.abandon(format!("'{on}' is still in use; it stays mounted"))),
            Ok(Left::Covered) => return Err(self.abandon(format!("another mount lies over '{on}'; it stays mounted"))),
            Err(error) => {
                self.abandon(String::new());
                return Err(error);
            }
        }
        let started = Instant::now();
        while self.background.as_ref().is_some_and(|background| !background.guard.is_finished()) {
            if started.elapsed() > DETACHED_WAIT {
                let text = format!("'{on}' is still in use; it was detached and ends with its last user");
                return Err(self.abandon(text));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.end()
    }

    /// Lets the threads serve on. Leaking the handle avoids fuser's own unmount, which might hit another mount of the
    /// same name; leaking the end keeps its lock.
    fn abandon(&mut self, text: String) -> Error {
        std::mem::forget(self.background.take());
        std::mem::forget(self.at_end.take());
        Error::refused(Kind::Kernel, text)
    }

    fn end(&mut self) -> Result<()> {
        let Some(background) = self.background.take() else { return Ok(()) };
        match background.join() {
            // What a thread is told that was handed a request just as the kernel took the connection down.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::CONNABORTED.raw_os_error()) => {}
            result => result.map_err(FileError::at("serve", &self.mounted.on))?,
        }
        match self.at_end.take() {
            Some(at_end) => at_end(),
            None => Ok(()),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.leave() {
            tracing::warn!("cannot leave mount '{}': {}", self.mounted.on.display(), chain(&error));
        }
    }
}

/// Mounts `filesystem` and serves it on threads of its own.
pub(crate) fn serve<F: Filesystem>(
    filesystem: F,
    mountpoint: &Path,
    options: &MountOptions,
    access: Access,
    at_end: Option<AtEnd>,
) -> Result<Session> {
    clear_stale(mountpoint)?;
    let mountpoint = std::fs::canonicalize(mountpoint).map_err(FileError::at("open", mountpoint))?;
    let config = config(options, access);
    let session = fuser::Session::new(filesystem, &mountpoint, &config).map_err(FileError::at("mount", &mountpoint))?;
    let mounted = Mounted::at(&mountpoint)?;
    let background = session.spawn().map_err(FileError::at("serve", &mountpoint))?;
    widen_readahead(&mountpoint);
    let if_used = if access == Access::ReadWrite { IfUsed::Stay } else { IfUsed::Detach };
    Ok(Session { mounted, if_used, background: Some(background), at_end })
}

fn config(options: &MountOptions, access: Access) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.source.clone()),
        MountOption::Subtype("pgkeep".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    config.mount_options.push(match access {
        Access::ReadOnly => MountOption::RO,
        Access::ReadWrite => MountOption::RW,
    });
    if options.allow_other.unwrap_or_else(may_allow_other) {
        config.acl = SessionACL::All;
    }
    config.n_threads = Some(options.threads.max(2));
    config
}

fn may_allow_other() -> bool {
    rustix::process::geteuid().is_root()
        || std::fs::read_to_string("/etc/fuse.conf")
            .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"))
}

/// Detaches what a dead daemon left at the mountpoint, and nothing that is served.
///
/// # Errors
/// `FileError` with verb "open" or "unmount".
pub fn clear_stale(mountpoint: &Path) -> Result<()> {
    let opening = |error: rustix::io::Errno| Error::from(FileError::at("open", mountpoint)(error.into()));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(mountpoint, flags, Mode::empty()).map_err(opening)?;
    // Not `stat`: the kernel answers that from what it remembers of the dead mount's root.
    match rustix::fs::fstatfs(&fd) {
        Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED) => {
            tracing::info!("detaching the mount that an earlier process left at '{}'", mountpoint.display());
            // Through the descriptor it is this very mount, whatever was mounted over it since.
            let exact = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            match rustix::mount::unmount(&exact, UnmountFlags::DETACH) {
                Err(rustix::io::Errno::PERM) => detach(mountpoint),
                Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
                Err(error) => Err(FileError::at("unmount", mountpoint)(error.into()).into()),
            }
        }
        Err(error) => Err(opening(error)),
        Ok(_) => Ok(()),
    }
}

/// Sequential scans then fetch a MiB at a time. Only root may, and only speed is at stake.
fn widen_readahead(mountpoint: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let result = rustix::fs::stat(mountpoint).map_err(std::io::Error::from).and_then(|stat| {
        let device = format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READAHEAD_KIB)
    });
    if let Err(error) = result {
        tracing::debug!("readahead of '{}' stays as it is: {error}", mountpoint.display());
    }
}

/// Unmounts whatever is mounted at `mountpoint`: tries again while it is busy, then detaches it lazily. Not for clones
/// that a server may use: see [`Mounted::unmount`].
///
/// # Errors
/// `FileError` with verb "unmount". A mountpoint with nothing mounted is no error.
pub fn unmount(mountpoint: &Path) -> Result<()> {
    let started = Instant::now();
    loop {
        match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if started.elapsed() < BUSY_WAIT => std::thread::sleep(BUSY_PAUSE),
            Err(rustix::io::Errno::BUSY | rustix::io::Errno::PERM) => return detach(mountpoint),
            Err(error) => return Err(FileError::at("unmount", mountpoint)(error.into()).into()),
        }
    }
}

fn detach(mountpoint: &Path) -> Result<()> {
    match rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(rustix::io::Errno::PERM) => ask_helper(mountpoint, &["-u", "-z"]).map(|_| ()),
        Err(error) => Err(FileError::at("unmount", mountpoint)(error.into()).into()),
    }
}

/// What the helper said.
enum Said {
    Done,
    Busy,
}

/// Unprivileged processes unmount through fuse's setuid helper.
fn ask_helper(mountpoint: &Path, how: &[&str]) -> Result<Said> {
    let output = std::process::Command::new("fusermount3")
        .args(how)
        .arg("--")
        .arg(mountpoint)
        .output()
        .map_err(FileError::at("run fusermount3 for", mountpoint))?;
    if output.status.success() {
        return Ok(Said::Done);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // Not translated: the helper knows no languages, and strerror none without setlocale.
    if said.ends_with("busy") {
        return Ok(Said::Busy);
    }
    Err(Error::refused(Kind::Kernel, format!("cannot unmount '{}': {said}", mountpoint.display())))
}
