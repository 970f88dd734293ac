//! The account servers and `pgkeep` run under, and scratch directories it can enter.
//!
//! PostgreSQL refuses to run as root, and root is what a bare machine or a container offers. So as root everything
//! that touches a cluster runs as `postgres`, which Debian's server package creates.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The user and group to switch to, or `None` when the tests already run unprivileged.
fn switch() -> Option<(u32, u32)> {
    static IDS: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *IDS.get_or_init(|| rustix::process::getuid().is_root().then(|| (id("-u"), id("-g"))))
}

fn id(which: &str) -> u32 {
    let out = Command::new("id").args([which, "postgres"]).output().expect("cannot run id");
    let text = String::from_utf8_lossy(&out.stdout);
    text.trim().parse().unwrap_or_else(|_| panic!("there is no user postgres: run scripts/setup"))
}

/// A command that will run under the servers' account with an environment of four fixed variables.
///
/// `PATH` holds the system's directories only, so a program must be named by its full path or be the system's own.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs([
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("HOME", "/tmp"),
        ("LC_ALL", "C.UTF-8"),
        ("TZ", "UTC"),
    ]);
    // A directory everybody may enter: the checkout may lie below a home that is closed to others.
    command.current_dir("/");
    if let Some((uid, gid)) = switch() {
        command.gid(gid).uid(uid);
    }
    command
}

/// Hands one file or directory, not what is below it, to the servers' account.
pub fn give(path: &Path) {
    if let Some((uid, gid)) = switch() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .unwrap_or_else(|error| panic!("cannot hand {} to postgres: {error}", path.display()));
    }
}

/// Creates a directory (its parent must exist) with mode 0700, owned by the servers' account.
pub fn private_dir(path: &Path) -> PathBuf {
    fs::create_dir(path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("cannot set a mode");
    give(path);
    path.to_owned()
}

/// A directory of its own below the system's temporary directory, removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Creates `<tmp>/<prefix>-XXXXXX`, mode 0755, owned by the servers' account.
    ///
    /// # Panics
    /// When the temporary directory cannot be entered by that account, which would fail later and less clearly.
    pub fn new(prefix: &str) -> Self {
        let dir =
            tempfile::Builder::new().prefix(&format!("{prefix}-")).rand_bytes(6).tempdir().unwrap_or_else(|error| {
                panic!("cannot create a directory below {}: {error}", std::env::temp_dir().display())
            });
        let path = dir.keep();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("cannot set a mode");
        give(&path);
        assert!(may(&path, "-w"), "the servers' account cannot write below {}: set TMPDIR elsewhere", path.display());
        Self { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("PGKEEP_TEST_KEEP").is_some() {
            eprintln!("kept {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Whether the servers' account passes `test FLAG PATH`.
pub fn may(path: &Path, flag: &str) -> bool {
    command("/usr/bin/test").arg(flag).arg(path).status().is_ok_and(|status| status.success())
}
