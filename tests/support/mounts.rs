//! File systems that tests mount on this host.

use std::{io, path::Path, process::Command};

use rustix::{io::Errno, mount::UnmountFlags};

/// Runs a program of the host, as whoever runs the tests.
///
/// # Panics
/// When it does not succeed; with what it complained of.
pub fn run(command: &mut Command) {
    let out = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Mounts something, or changes how it is mounted, with these arguments of `mount`.
///
/// # Panics
/// When the tests do not run as root, who alone may, or `mount` refuses.
pub fn mount(args: &[&str], point: &Path) {
    assert!(rustix::process::getuid().is_root(), "a test that mounts a file system must run as root");
    run(Command::new("/bin/mount").args(args).arg(point));
}

/// Takes what is mounted on a directory out of sight at once, even if somebody has a file open there. Says so when that
/// fails: whoever calls this cleans up and goes on.
pub(crate) fn detach(point: &Path) {
    let gone = match rustix::mount::unmount(point, UnmountFlags::DETACH) {
        // Nothing is mounted there any more.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(Errno::PERM) => by_helper(point),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = gone {
        eprintln!("cannot unmount {}: {error}", point.display());
    }
}

fn by_helper(point: &Path) -> io::Result<()> {
    let status = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(point).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("fusermount3: {status}"))) }
}
