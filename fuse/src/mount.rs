//! Mounting, serving and unmounting.
//!
//! fuser mounts; unmounting is our own: its unmounter forgets the mount at the first EBUSY and then does nothing for
//! ever. Here a busy mount is tried again for [`BUSY_WAIT`], then detached lazily, so that no name is left behind.

use crate::errno::chain;
use fuser::{BackgroundSession, Config, Filesystem, MountOption, SessionACL};
use pgkeep_engine::{Error, FileError, Kind, Result};
use rustix::mount::UnmountFlags;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { threads: THREADS_DEFAULT, allow_other: None, source: "pgkeep".to_owned() }
    }
}

/// What may change through a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// Runs once when the last request was answered and no more can come.
pub(crate) type AtEnd = Box<dyn FnOnce() -> Result<()> + Send>;

/// A served mount. Dropping it unmounts.
pub struct Session {
    mountpoint: PathBuf,
    background: Option<BackgroundSession>,
    at_end: Option<AtEnd>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("mountpoint", &self.mountpoint).finish_non_exhaustive()
    }
}

impl Session {
    /// Where it is mounted, absolute.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
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
    /// As [`unmount`] and [`Self::join`]; `Kernel` if the mount is still used some seconds after it was detached. What
    /// is durable then is what was fsynced.
    pub fn unmount(mut self) -> Result<()> {
        self.leave()
    }

    fn leave(&mut self) -> Result<()> {
        if self.background.is_none() {
            return Ok(());
        }
        unmount(&self.mountpoint)?;
        let started = Instant::now();
        while self.background.as_ref().is_some_and(|background| !background.guard.is_finished()) {
            if started.elapsed() > DETACHED_WAIT {
                // The thread serves until the last user is gone; leaking the handle avoids fuser's second unmount,
                // which might hit a newer mount of the same name.
                std::mem::forget(self.background.take());
                self.at_end = None;
                return Err(Error::refused(
                    Kind::Kernel,
                    format!(
                        "'{}' is still in use; it was detached and ends with its last user",
                        self.mountpoint.display()
                    ),
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(background) = self.background.take() else { return Ok(()) };
        background.join().map_err(FileError::at("serve", &self.mountpoint))?;
        match self.at_end.take() {
            Some(at_end) => at_end(),
            None => Ok(()),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.leave() {
            tracing::warn!("cannot leave mount '{}': {}", self.mountpoint.display(), chain(&error));
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
    let background = session.spawn().map_err(FileError::at("serve", &mountpoint))?;
    widen_readahead(&mountpoint);
    Ok(Session { mountpoint, background: Some(background), at_end })
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

/// Detaches what a dead daemon left at the mountpoint.
fn clear_stale(mountpoint: &Path) -> Result<()> {
    // Not `stat`: the kernel answers that from what it remembers of the dead mount's root.
    match rustix::fs::statfs(mountpoint) {
        Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED) => {
            tracing::info!("detaching the mount that an earlier process left at '{}'", mountpoint.display());
            detach(mountpoint)
        }
        Err(error) => Err(FileError::at("open", mountpoint)(error.into()).into()),
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

/// Unmounts whatever is mounted at `mountpoint`: tries again while it is busy, then detaches it lazily.
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
        Err(rustix::io::Errno::PERM) => ask_helper(mountpoint),
        Err(error) => Err(FileError::at("unmount", mountpoint)(error.into()).into()),
    }
}

/// Unprivileged processes unmount through fuse's setuid helper.
fn ask_helper(mountpoint: &Path) -> Result<()> {
    let output = std::process::Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(mountpoint)
        .output()
        .map_err(FileError::at("run fusermount3 for", mountpoint))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::refused(Kind::Kernel, format!("cannot unmount '{}': {said}", mountpoint.display())))
}
