//! A file system of its own on a loop device, whose power can be cut.

use std::{
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
};

use support::{Sandbox, account, mounts, wait_until};

/// `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN` are one number.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;

/// What is lost with the power.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lost {
    /// The journal's last changes too.
    Log = 2,
    /// The journal is written out, so names and sizes are newer than the data.
    DataOnly = 1,
}

/// Mounted as long as this lives.
pub(crate) struct Disk {
    image: PathBuf,
    point: PathBuf,
}

impl Disk {
    /// Makes and mounts one, sparse, owned by the servers' account.
    ///
    /// # Panics
    /// When a program is missing or the tests do not run as root.
    pub(crate) fn new(sandbox: &Sandbox, kind: &str, bytes: u64) -> Self {
        let disk = Self { image: sandbox.root().join("disk.image"), point: sandbox.dir("disk") };
        File::create(&disk.image).unwrap().set_len(bytes).unwrap();
        let program = format!("/sbin/mkfs.{kind}");
        assert!(Path::new(&program).exists(), "there is no {program}: run scripts/setup");
        mounts::run(Command::new(program).arg("-q").arg(&disk.image));
        disk.mount();
        _ = fs::remove_dir(disk.point.join("lost+found")); // ext4 has one
        account::give(&disk.point);
        disk
    }

    pub(crate) fn point(&self) -> &Path {
        &self.point
    }

    fn mount(&self) {
        mounts::mount(&["-o", "loop", self.image.to_str().unwrap()], &self.point);
    }

    /// Nothing reaches the disk any more.
    pub(crate) fn cut(&self, lost: Lost) {
        let directory = File::open(&self.point).unwrap();
        let what = lost as u32;
        // SAFETY: the request reads one number.
        let result = unsafe { libc::ioctl(directory.as_raw_fd(), SHUTDOWN, &what) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// What a host finds when it is back. Nobody may use the disk any more.
    pub(crate) fn mount_again(&self) {
        wait_until("the end of the disk's use", || {
            match rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) => false,
                unmounted => unmounted.map(|()| true).expect("cannot unmount the disk"),
            }
        });
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A clone's mount may lie on it: the sandbox takes away what is left.
        _ = rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH);
    }
}
