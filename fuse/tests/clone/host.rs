//! What tests have the host do: run programs, mount disks, cut their power.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use crate::support::run;

/// Runs a program that must succeed.
pub(crate) fn command(program: &str, arguments: &[&dyn AsRef<OsStr>]) {
    run(Command::new(program).args(arguments));
}

/// Mounts a disk in memory on a directory.
pub(crate) fn mount_memory(bytes: u64, directory: &Path) {
    command("mount", &[&"-t", &"tmpfs", &"-o", &format!("size={bytes}"), &"tmpfs", &directory]);
}

/// Stops a file system as a power cut does: nothing is written any more, not even the journal.
pub(crate) fn cut_power(mounted: &Path) {
    const SHUTDOWN: libc::c_ulong = 0x8004_587d;
    const WITHOUT_LOG_FLUSH: u32 = 2;
    let directory = File::open(mounted).unwrap();
    // SAFETY: the request reads one number.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), SHUTDOWN, &WITHOUT_LOG_FLUSH) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
