//! A clone on a disk that is full and says so, or says so late: a file system on a loop device over a full tmpfs; and one on
//! a disk that reads must not fill.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use crate::PAGE;
use crate::backup::fill;
use crate::host::{command, mount_memory};
use crate::support::{Place, noise};

/// Room for what a session writes beside pages.
const RECORDS_BYTES: u64 = 128 << 10;
const IMAGE_BYTES: u64 = 48 << 20;

/// The memory behind the disk; mounted as long as this lives.
struct Memory {
    path: PathBuf,
}

impl Memory {
    fn mount(path: &Path, bytes: u64) -> Self {
        fs::create_dir(path).unwrap();
        mount_memory(bytes, path);
        Self { path: path.to_path_buf() }
    }

    /// Takes what is free but for the small records of a session, so that the disk can take no relation's pages.
    fn exhaust(&self) {
        let mut ballast = File::create(self.path.join("ballast")).unwrap();
        while ballast.write_all(&[1; 4096]).is_ok() {}
        ballast.set_len(ballast.metadata().unwrap().len() - RECORDS_BYTES).unwrap();
    }

    fn relieve(&self) {
        fs::remove_file(self.path.join("ballast")).unwrap();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Makes a clone on a disk of which only what the clone uses now is really there.
fn create_on_thin_disk(place: &Place) -> Memory {
    let memory = Memory::mount(&place.path("memory"), IMAGE_BYTES + (1 << 20));
    let image = memory.path.join("image");
    File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
    command("mkfs.ext4", &[&"-q", &"-F", &"-b", &"4096", &image]);
    let whole = OpenOptions::new().write(true).open(&image).unwrap();
    fallocate(&whole, FallocateFlags::empty(), 0, IMAGE_BYTES).unwrap();
    drop(whole);
    let dir = place.clone_dir();
    fs::create_dir(&dir).unwrap();
    command("mount", &[&"-o", &"loop,noinit_itable", &image, &dir]);
    fs::remove_dir(dir.join("lost+found")).unwrap();
    place.create();
    command("sync", &[&"-f", &dir]);
    command("fstrim", &[&dir]);
    memory.exhaust();
    memory
}

/// Lets the kernel write a file back and forget its pages, as it does in time.
fn write_back_and_forget(path: &Path) -> std::io::Result<()> {
    let file = File::open(path).unwrap();
    let result = file.sync_data();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    result
}

fn forget(path: &Path) {
    fadvise(File::open(path).unwrap(), 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn fetched_pages_that_could_not_be_kept_are_fetched_again() {
    let place = Place::new();
    fs::write(place.base().join("relation"), noise(2, 3 << 20)).unwrap();
    let memory = create_on_thin_disk(&place);
    let (path, behind) = (place.mountpoint().join("relation"), place.clone_dir().join("data/relation"));

    let session = place.serve();
    assert!(fs::read(&path).unwrap() == noise(2, 3 << 20));
    write_back_and_forget(&behind).expect_err("the disk took what it has no room for");
    assert!(fs::read(&behind).unwrap().contains(&0) && fs::read(&behind).unwrap() != noise(2, 3 << 20));
    forget(&path);
    assert!(fs::read(&path).unwrap() == noise(2, 3 << 20), "read what the disk lost");
    memory.relieve();
    assert!(fs::read(&path).unwrap() == noise(2, 3 << 20));
    session.unmount().expect_err("the session did not say that the disk had failed");

    for _ in 0..2 {
        let session = place.serve();
        assert!(fs::read(&path).unwrap() == noise(2, 3 << 20));
        session.unmount().unwrap();
    }
}

#[test]
fn a_clone_whose_end_failed_is_taken_up_from_what_was_durable() {
    let place = Place::new();
    fs::write(place.base().join("relation"), noise(2, 3 << 20)).unwrap();
    let memory = create_on_thin_disk(&place);
    let (path, behind) = (place.mountpoint().join("relation"), place.clone_dir().join("data/relation"));

    let session = place.serve();
    assert!(fs::read(&path).unwrap() == noise(2, 3 << 20));
    session.unmount().expect_err("the disk took what it has no room for");
    forget(&behind);
    memory.relieve();
    let session = place.serve();
    assert!(fs::read(&path).unwrap() == noise(2, 3 << 20), "read what the disk lost");
    session.unmount().unwrap();
}

#[test]
fn a_page_the_server_wrote_and_the_disk_lost_is_told_for_ever() {
    let place = Place::new();
    fs::write(place.base().join("relation"), noise(2, 3 << 20)).unwrap();
    let memory = create_on_thin_disk(&place);
    let path = place.mountpoint().join("relation");
    let session = place.serve();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(&noise(9, 3 << 20), 0).unwrap();
    file.sync_data().expect_err("the disk took what it has no room for");
    memory.relieve();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(file);
    let again = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(again.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
    drop(again);
    session.unmount().unwrap_err();
    let session = place.serve();
    assert!(fs::read(&path).unwrap() == noise(2, 3 << 20));
    session.unmount().unwrap();
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn reads_leave_the_servers_room_alone() {
    const DISK_BYTES: u64 = 64 << 20;
    const RESERVE: u64 = DISK_BYTES / 50;
    const RELATION_BYTES: usize = 72 << 20;
    Place::in_each_mode(|place| {
        fs::write(place.base().join("relation"), noise(2, RELATION_BYTES)).unwrap();
        let _disk = Memory::mount(&place.clone_dir(), DISK_BYTES);
        place.create();
        let session = place.serve();
        let (path, behind) = (place.mountpoint().join("relation"), place.clone_dir().join("data/relation"));
        let free = || {
            let facts = rustix::fs::statvfs(place.clone_dir()).unwrap();
            facts.f_bavail * facts.f_frsize
        };
        // What others take is room that reads do not have.
        fs::write(place.clone_dir().join("ballast"), noise(3, 8 << 20)).unwrap();
        assert!(fs::read(&path).unwrap() == noise(2, RELATION_BYTES));
        assert!(free() >= RESERVE, "{} bytes are left of {RESERVE}", free());
        let kept = allocated(&behind);
        assert!(kept > 0 && kept < RELATION_BYTES as u64, "{kept} bytes are kept");
        // Nothing more is, however often it is read and however small the piece that would still have room.
        std::thread::sleep(Duration::from_millis(1100));
        forget(&path);
        assert!(fs::read(&path).unwrap() == noise(2, RELATION_BYTES));
        assert!(free() >= RESERVE, "{} bytes are left of {RESERVE}", free());
        // The server has what is left.
        fs::write(place.mountpoint().join("segment"), noise(4, 1 << 20)).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&noise(9, 100), (RELATION_BYTES - 5000) as u64).unwrap();
        file.sync_data().unwrap();
        // And once there is room again pages are kept again.
        fs::remove_file(place.clone_dir().join("ballast")).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        forget(&path);
        let read = fs::read(&path).unwrap();
        assert!(allocated(&behind) >= kept + (4 << 20), "{} bytes are kept", allocated(&behind));
        let mut expected = noise(2, RELATION_BYTES);
        expected[RELATION_BYTES - 5000..][..100].copy_from_slice(&noise(9, 100));
        assert!(read == expected);
        drop(file);
        session.unmount().unwrap();
    });
}

#[test]
fn a_full_disk_refuses_writes_and_still_reads() {
    Place::in_each_mode(a_full_disk);
}

fn a_full_disk(place: Place) {
    fill(&place);
    let dir = place.clone_dir();
    fs::create_dir(&dir).unwrap();
    mount_memory(2 << 20, &dir);
    place.create();
    let session = place.serve();
    let path = place.mountpoint().join("base/5/large");
    let mut born = File::create(place.mountpoint().join("born")).unwrap();
    let error = (0..1000).find_map(|_| born.write_all(&noise(5, 4096)).err()).expect("the disk is full");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(fs::read(&path).unwrap() == noise(2, 3 << 20));
    let large = OpenOptions::new().write(true).open(&path).unwrap();
    let error = large.write_all_at(&noise(6, PAGE), 300 * PAGE as u64).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(fs::read(&path).unwrap() == noise(2, 3 << 20));
    drop(born);
    fs::remove_file(place.mountpoint().join("born")).unwrap();
    // The kernel tells of the last close when it likes, and only then is there room.
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = large.write_all_at(&noise(6, PAGE), 300 * PAGE as u64) {
        assert!(error.raw_os_error() == Some(libc::ENOSPC) && Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Not more: fetched pages that are kept would leave no room for the session's end.
    let mut page = vec![0; PAGE];
    File::open(&path).unwrap().read_exact_at(&mut page, 300 * PAGE as u64).unwrap();
    assert!(page == noise(6, PAGE));
    drop(large);
    session.unmount().unwrap();
}
