//! What the disk behind a clone says of bytes that were written to it.
//!
//! Writing puts bytes into the page cache; whether they reached the disk is learned later, or never. When the kernel
//! cannot write a page back it notes the failure at the inode, takes the page for clean, may drop it, and then reads
//! whatever the disk has there: for a sparse file, zeros. The note is given out once to each descriptor that was open
//! when it was made, and is lost with the inode when no descriptor is (Linux `lib/errseq.c`, `mm/filemap.c`).

use super::files::SyncScope;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Past the end of any file: nothing there to wait for.
const BEYOND: i64 = 1 << 60;

/// The two questions, so that tests can answer them.
pub(super) trait Disk: Send + Sync {
    /// Waits until all bytes written so far are on the disk.
    fn sync(&self, file: &File, scope: SyncScope) -> std::io::Result<()>;

    /// Fails if some page could not be written back since the descriptor was opened or last told so. Does no IO and
    /// waits for nothing.
    fn check(&self, file: &File) -> std::io::Result<()>;
}

/// The kernel's answers.
pub(super) struct Kernel;

impl Disk for Kernel {
    fn sync(&self, file: &File, scope: SyncScope) -> std::io::Result<()> {
        match scope {
            SyncScope::Data => file.sync_data(),
            SyncScope::DataAndFacts => file.sync_all(),
        }
    }

    fn check(&self, file: &File) -> std::io::Result<()> {
        // SAFETY: a plain system call on a descriptor that is borrowed for its duration.
        let result = unsafe { libc::sync_file_range(file.as_raw_fd(), BEYOND, 1, libc::SYNC_FILE_RANGE_WAIT_BEFORE) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_file_is_told_to_be_so() {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 10).unwrap();
        Kernel.check(&file).unwrap();
        Kernel.sync(&file, SyncScope::Data).unwrap();
        Kernel.sync(&file, SyncScope::DataAndFacts).unwrap();
        Kernel.check(&file).unwrap();
    }
}
