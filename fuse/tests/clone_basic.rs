//! What a clone promises, one promise a test, through the kernel.
#![allow(clippy::unwrap_used, reason = "a test that fails here has found something")]

mod support;

use pgkeep_engine::Kind;
use pgkeep_formats::pg::control;
use pgkeep_formats::pg::version::Version;
use pgkeep_fuse::clone::{self, Added, CreateOptions};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::{Daemon, DirectorySnapshot, Place, noise};

const PAGE: usize = 8192;

#[test]
fn daemon() {
    support::daemon_main();
}

fn same_tree(a: &Path, b: &Path) {
    let mut names: Vec<_> = fs::read_dir(a).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let mut others: Vec<_> = fs::read_dir(b).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    others.sort();
    assert_eq!(names, others, "in {}", a.display());
    for name in names {
        let (a, b) = (a.join(&name), b.join(&name));
        let (left, right) = (fs::metadata(&a).unwrap(), fs::metadata(&b).unwrap());
        assert_eq!(left.mode(), right.mode(), "mode of {}", a.display());
        assert_eq!(left.mtime(), right.mtime(), "time of {}", a.display());
        assert_eq!((left.uid(), left.gid()), (right.uid(), right.gid()), "owner of {}", a.display());
        if left.is_dir() {
            same_tree(&a, &b);
        } else {
            assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap(), "content of {}", a.display());
        }
    }
}

fn fill(place: &Place) {
    let base = place.base();
    fs::create_dir_all(base.join("base/5")).unwrap();
    fs::create_dir(base.join("pg_tblspc")).unwrap();
    fs::write(base.join("PG_VERSION"), "15\n").unwrap();
    fs::write(base.join("empty"), "").unwrap();
    fs::write(base.join("base/5/small"), noise(1, 65_536)).unwrap();
    fs::write(base.join("base/5/large"), noise(2, 3 << 20)).unwrap();
    fs::write(base.join("base/5/odd"), noise(3, 100_001)).unwrap();
    fs::set_permissions(base.join("base/5/odd"), PermissionsExt::from_mode(0o640)).unwrap();
}

#[test]
fn a_clone_reads_as_its_backup() {
    Place::in_each_mode(reads_as_its_backup);
}

fn reads_as_its_backup(place: Place) {
    fill(&place);
    place.create();
    let session = place.serve();
    same_tree(&place.base(), &place.mountpoint());
    let file = File::open(place.mountpoint().join("base/5/odd")).unwrap();
    assert_eq!(file.read_at(&mut [0; 10], 100_001).unwrap(), 0);
    drop(file);
    session.unmount().unwrap();
    assert_eq!(fs::read_dir(place.mountpoint()).unwrap().count(), 0, "still mounted");
}

#[test]
fn creating_copies_only_small_files_and_a_miss_fetches_its_chunk() {
    let place = Place::new();
    fill(&place);
    let snapshot = DirectorySnapshot::new(&place.base());
    let fetched = snapshot.fetched();
    let info = clone::create(&place.clone_dir(), &snapshot, &CreateOptions::default()).unwrap();
    assert_eq!((info.files, info.base_files), (5, 2));
    assert_eq!(fetched.swap(0, Ordering::SeqCst), 65_536 + 3);
    let session = place.serve_snapshot(snapshot);
    let file = File::open(place.mountpoint().join("base/5/large")).unwrap();
    file.read_exact_at(&mut [0; 100], 1_500_000).unwrap();
    assert_eq!(fetched.load(Ordering::SeqCst), 256 << 10, "what a chunk holds");
    drop(file);
    session.unmount().unwrap();
}

#[test]
fn what_is_written_stays_and_survives_remounts() {
    Place::in_each_mode(what_is_written_stays);
}

fn what_is_written_stays(place: Place) {
    fill(&place);
    place.create();
    let mut model = noise(2, 3 << 20);
    let session = place.serve();
    {
        let file = OpenOptions::new().read(true).write(true).open(place.mountpoint().join("base/5/large")).unwrap();
        for (at, seed, bytes) in [(0, 10, PAGE), (5 * PAGE, 11, 3 * PAGE), (77_777, 12, 20_000), (3 << 20, 13, 5000)] {
            let data = noise(seed, bytes);
            file.write_all_at(&data, at as u64).unwrap();
            model.resize(model.len().max(at + bytes), 0);
            model[at..at + bytes].copy_from_slice(&data);
        }
        file.sync_all().unwrap();
    }
    assert!(fs::read(place.mountpoint().join("base/5/large")).unwrap() == model);
    session.unmount().unwrap();
    let session = place.serve();
    assert!(fs::read(place.mountpoint().join("base/5/large")).unwrap() == model);
    session.unmount().unwrap();
    assert!(fs::read(place.base().join("base/5/large")).unwrap() == noise(2, 3 << 20), "the backup was changed");
}

#[test]
fn whole_pages_are_written_without_fetching() {
    Place::in_each_mode(whole_pages);
}

fn whole_pages(place: Place) {
    fill(&place);
    place.create();
    let snapshot = DirectorySnapshot::new(&place.base());
    let fetched = snapshot.fetched();
    let session = place.serve_snapshot(snapshot);
    let file = OpenOptions::new().write(true).open(place.mountpoint().join("base/5/large")).unwrap();
    for page in [0u64, 9, 200] {
        file.write_all_at(&noise(page, PAGE), page * PAGE as u64).unwrap();
    }
    file.sync_all().unwrap();
    assert_eq!(fetched.load(Ordering::SeqCst), 0);
    file.write_all_at(b"x", 9 * PAGE as u64).unwrap();
    assert_eq!(fetched.load(Ordering::SeqCst), 0);
    file.write_all_at(b"x", 10 * PAGE as u64).unwrap();
    assert!(fetched.load(Ordering::SeqCst) > 0);
    drop(file);
    session.unmount().unwrap();
}

#[test]
fn truncated_and_extended_files_read_zeros() {
    Place::in_each_mode(truncated_and_extended);
}

fn truncated_and_extended(place: Place) {
    fill(&place);
    place.create();
    let session = place.serve();
    let path = place.mountpoint().join("base/5/large");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1_000_001).unwrap();
    file.set_len(2 << 20).unwrap();
    let mut model = noise(2, 1_000_001);
    model.resize(2 << 20, 0);
    assert!(fs::read(&path).unwrap() == model);
    drop(file);
    session.unmount().unwrap();
    let session = place.serve();
    assert!(fs::read(&path).unwrap() == model);
    session.unmount().unwrap();
}

#[test]
fn holes_and_zeroed_ranges() {
    Place::in_each_mode(holes);
}

fn holes(place: Place) {
    fill(&place);
    place.create();
    let session = place.serve();
    let path = place.mountpoint().join("base/5/large");
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut model = noise(2, 3 << 20);
    use rustix::fs::FallocateFlags as F;
    rustix::fs::fallocate(&file, F::PUNCH_HOLE | F::KEEP_SIZE, 10_000, 50_000).unwrap();
    model[10_000..60_000].fill(0);
    rustix::fs::fallocate(&file, F::ZERO_RANGE, 1 << 20, 1 << 20).unwrap();
    model[1 << 20..2 << 20].fill(0);
    rustix::fs::fallocate(&file, F::empty(), 3 << 20, 1 << 20).unwrap();
    model.resize(4 << 20, 0);
    // Holes of the sparse file that stand for the backup's pages are data.
    assert!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap() >= 3 << 20);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(500)).unwrap(), 500);
    assert!(fs::read(&path).unwrap() == model);
    // Once everything is present, holes are holes.
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap(), 12_288);
    drop(file);
    session.unmount().unwrap();
}

#[test]
fn names_move_vanish_and_share_inodes() {
    Place::in_each_mode(names);
}

fn names(place: Place) {
    fill(&place);
    place.create();
    let session = place.serve();
    let mnt = place.mountpoint();
    let at = |name: &str| mnt.join(name);
    // A base-backed file keeps its pages under another name, in another directory, below a renamed directory.
    fs::create_dir(at("other")).unwrap();
    fs::rename(at("base/5/large"), at("other/moved")).unwrap();
    fs::rename(at("other"), at("again")).unwrap();
    assert!(fs::read(at("again/moved")).unwrap() == noise(2, 3 << 20));
    // A new file of the old name has nothing of the base.
    fs::write(at("base/5/large"), "new").unwrap();
    assert_eq!(fs::read(at("base/5/large")).unwrap(), b"new");
    // Open files outlive their last name.
    let mut odd = OpenOptions::new().read(true).write(true).open(at("base/5/odd")).unwrap();
    fs::remove_file(at("base/5/odd")).unwrap();
    assert_eq!(odd.metadata().unwrap().nlink(), 0);
    odd.write_all(b"changed").unwrap();
    odd.seek(SeekFrom::Start(0)).unwrap();
    let mut bytes = Vec::new();
    odd.read_to_end(&mut bytes).unwrap();
    assert!(&bytes[..7] == b"changed" && bytes[7..] == noise(3, 100_001)[7..]);
    assert_eq!(fs::metadata(at("base/5/odd")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    // Hard links.
    fs::hard_link(at("again/moved"), at("linked")).unwrap();
    assert_eq!(fs::metadata(at("linked")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(at("linked")).unwrap().ino(), fs::metadata(at("again/moved")).unwrap().ino());
    fs::remove_file(at("again/moved")).unwrap();
    assert!(fs::read(at("linked")).unwrap() == noise(2, 3 << 20));
    // renameat2.
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    fs::write(at("a"), "a").unwrap();
    let result = renameat_with(CWD, at("a"), CWD, at("linked"), RenameFlags::NOREPLACE);
    assert_eq!(result, Err(rustix::io::Errno::EXIST));
    renameat_with(CWD, at("a"), CWD, at("linked"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(at("linked")).unwrap(), b"a");
    assert!(fs::read(at("a")).unwrap() == noise(2, 3 << 20));
    fs::rename(at("linked"), at("a")).unwrap();
    assert_eq!(fs::read(at("a")).unwrap(), b"a");
    // Links, directories, and errors as anywhere.
    symlink("../x/y", at("soft")).unwrap();
    assert_eq!(fs::read_link(at("soft")).unwrap(), Path::new("../x/y"));
    assert_eq!(fs::remove_dir(at("base")).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
    fs::remove_dir(at("again")).unwrap();
    assert_eq!(fs::create_dir(at("base")).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    let mut names: Vec<_> =
        fs::read_dir(&mnt).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["PG_VERSION", "a", "base", "empty", "pg_tblspc", "soft"]);
    drop(odd);
    session.unmount().unwrap();
}

#[test]
fn owners_modes_and_times_can_be_set() {
    Place::in_each_mode(owners_modes_and_times);
}

fn owners_modes_and_times(place: Place) {
    fill(&place);
    place.create();
    let session = place.serve();
    let path = place.mountpoint().join("base/5/large");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, Some(101), Some(102)).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000, 5);
    File::open(&path).unwrap().set_modified(time).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.modified().unwrap()), (0o640, 101, 102, time));
    let dir = place.mountpoint().join("made");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).unwrap();
    symlink("x", dir.join("link")).unwrap();
    std::os::unix::fs::lchown(dir.join("link"), Some(101), None).unwrap();
    session.unmount().unwrap();
    let behind = place.clone_dir().join("data");
    assert_eq!(fs::metadata(behind.join("base/5/large")).unwrap().uid(), 101);
    assert_eq!(fs::metadata(behind.join("made")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::symlink_metadata(behind.join("made/link")).unwrap().uid(), 101);
}

#[test]
fn a_failed_fetch_is_an_error_never_zeros_and_heals() {
    Place::in_each_mode(a_failed_fetch);
}

fn a_failed_fetch(place: Place) {
    fill(&place);
    place.create();
    let snapshot = DirectorySnapshot::new(&place.base());
    let broken = snapshot.broken();
    let session = place.serve_snapshot(snapshot);
    let file = OpenOptions::new().read(true).write(true).open(place.mountpoint().join("base/5/large")).unwrap();
    broken.store(true, Ordering::SeqCst);
    let mut page = vec![0; PAGE];
    assert_eq!(file.read_exact_at(&mut page, 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(file.write_all_at(b"part", 100).unwrap_err().raw_os_error(), Some(libc::EIO));
    file.write_all_at(&noise(50, PAGE), PAGE as u64).unwrap();
    broken.store(false, Ordering::SeqCst);
    file.read_exact_at(&mut page, 0).unwrap();
    assert!(page == noise(2, PAGE));
    file.read_exact_at(&mut page, PAGE as u64).unwrap();
    assert!(page == noise(50, PAGE));
    drop(file);
    session.unmount().unwrap();
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_answered() {
    Place::in_each_mode(a_killed_daemon);
}

fn a_killed_daemon(place: Place) {
    fill(&place);
    place.create();
    let daemon = Daemon::start(&place);
    let path = place.mountpoint().join("base/5/large");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut model = noise(2, 3 << 20);
    for page in (0..384).step_by(3) {
        let data = noise(1000 + page as u64, PAGE);
        file.write_all_at(&data, (page * PAGE) as u64).unwrap();
        model[page * PAGE..][..PAGE].copy_from_slice(&data);
    }
    file.set_len(300 * PAGE as u64).unwrap();
    model.truncate(300 * PAGE);
    file.set_len(350 * PAGE as u64).unwrap();
    model.resize(350 * PAGE, 0);
    fs::write(place.mountpoint().join("born"), noise(9, 200_000)).unwrap();
    daemon.kill();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    drop(file);
    let session = place.serve();
    assert!(fs::read(&path).unwrap() == model);
    assert!(fs::read(place.mountpoint().join("born")).unwrap() == noise(9, 200_000));
    session.unmount().unwrap();
}

#[test]
fn after_a_power_cut_unsynced_pages_are_the_backups_and_synced_ones_are_kept() {
    Place::in_each_mode(after_a_power_cut);
}

fn after_a_power_cut(place: Place) {
    fill(&place);
    place.create();
    let daemon = Daemon::start(&place);
    let path = place.mountpoint().join("base/5/large");
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(&noise(70, PAGE), 0).unwrap();
    file.sync_data().unwrap();
    file.write_all_at(&noise(71, PAGE), PAGE as u64).unwrap();
    let mut page = vec![0; PAGE];
    file.read_exact_at(&mut page, 2 << 20).unwrap();
    daemon.kill();
    drop(file);
    place.pretend_reboot();
    // What the disk may hold of a page that was not synced: anything.
    let behind = OpenOptions::new().write(true).open(place.clone_dir().join("data/base/5/large")).unwrap();
    behind.write_all_at(&vec![0; PAGE], PAGE as u64).unwrap();
    behind.write_all_at(&vec![0; PAGE], 2 << 20).unwrap();
    let session = place.serve();
    let mut model = noise(2, 3 << 20);
    model[..PAGE].copy_from_slice(&noise(70, PAGE));
    assert!(fs::read(&path).unwrap() == model);
    session.unmount().unwrap();
}

fn command(program: &str, arguments: &[&std::ffi::OsStr]) {
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Stops a file system as a power cut does: nothing is written any more, not even the journal.
fn cut_power(mounted: &Path) {
    const SHUTDOWN: libc::c_ulong = 0x8004_587d;
    const WITHOUT_LOG_FLUSH: u32 = 2;
    let directory = File::open(mounted).unwrap();
    // SAFETY: the request reads one number.
    let result = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&directory), SHUTDOWN, &WITHOUT_LOG_FLUSH) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_real_power_cut_keeps_what_was_synced() {
    Place::in_each_mode(a_real_power_cut);
}

fn a_real_power_cut(place: Place) {
    fill(&place);
    let image = place.path("image");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    command("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_ref()]);
    let dir = place.clone_dir();
    fs::create_dir(&dir).unwrap();
    let attach = || command("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), dir.as_ref()]);
    attach();
    fs::remove_dir(dir.join("lost+found")).unwrap();
    place.create();

    let daemon = Daemon::start(&place);
    let path = place.mountpoint().join("base/5/large");
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for page in 0..64u64 {
        file.write_all_at(&noise(page, PAGE), page * 3 * PAGE as u64).unwrap();
    }
    file.write_all_at(b"within a page", 200 * PAGE as u64 + 5).unwrap();
    file.set_len(300 * PAGE as u64).unwrap();
    file.sync_data().unwrap();
    file.set_len(310 * PAGE as u64).unwrap();
    file.sync_all().unwrap();
    for page in 210..220u64 {
        file.write_all_at(&noise(7000 + page, PAGE), page * PAGE as u64).unwrap();
    }
    // A file that the backup does not have, and one of which all of it is here: neither need be seen by the daemon.
    let at = |name: &str| place.mountpoint().join(name);
    let born = OpenOptions::new().create_new(true).write(true).open(at("born")).unwrap();
    assert!(fs::read(at("base/5/odd")).unwrap() == noise(3, 100_001));
    File::open(at("base/5/odd")).unwrap().sync_all().unwrap();
    let whole = OpenOptions::new().write(true).open(at("base/5/odd")).unwrap();
    for file in [&born, &whole] {
        file.write_all_at(&noise(80, 20_000), 0).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(&noise(81, 20_000), 20_000).unwrap();
        file.sync_data().unwrap();
    }
    // As a server writes WAL that is told to spare itself the syncs.
    let mut options = OpenOptions::new();
    options.create_new(true).write(true).custom_flags(libc::O_DSYNC);
    let log = options.open(at("log")).unwrap();
    log.write_all_at(&noise(90, 200_000), 0).unwrap();
    File::open(place.mountpoint()).unwrap().sync_all().unwrap();
    log.write_all_at(&noise(91, 20_000), 100_000).unwrap();
    fs::write(place.mountpoint().join("unsynced"), "x").unwrap();
    cut_power(&dir);
    daemon.kill();
    drop((file, born, whole, log));
    pgkeep_fuse::unmount(&place.mountpoint()).unwrap();
    command("umount", &[dir.as_ref()]);
    attach();

    let session = place.serve();
    let found = fs::read(&path).unwrap();
    let mut model = noise(2, 300 * PAGE);
    model.resize(310 * PAGE, 0);
    for page in 0..64 {
        model[page * 3 * PAGE..][..PAGE].copy_from_slice(&noise(page as u64, PAGE));
    }
    model[200 * PAGE + 5..][..13].copy_from_slice(b"within a page");
    assert_eq!(found.len(), model.len());
    for page in 0..310 {
        let at = page * PAGE..(page + 1) * PAGE;
        let new = (210..220).contains(&page) && found[at.clone()] == noise(7000 + page as u64, PAGE);
        assert!(found[at.clone()] == model[at] || new, "page {page} is neither old nor new");
    }
    let mut model = noise(90, 200_000);
    model[100_000..120_000].copy_from_slice(&noise(91, 20_000));
    assert!(fs::read(place.mountpoint().join("log")).unwrap() == model, "log");
    for (name, size) in [("born", 40_000), ("base/5/odd", 100_001)] {
        let mut model = [noise(80, 20_000), noise(81, 20_000)].concat();
        model.extend_from_slice(&noise(3, 100_001)[40_000..]);
        model.truncate(size);
        assert!(fs::read(place.mountpoint().join(name)).unwrap() == model, "{name}");
    }
    session.unmount().unwrap();
}

#[test]
fn a_full_disk_refuses_writes_and_still_reads() {
    Place::in_each_mode(a_full_disk);
}

fn a_full_disk(place: Place) {
    fill(&place);
    let dir = place.clone_dir();
    fs::create_dir(&dir).unwrap();
    command(
        "mount",
        &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), "size=2m".as_ref(), "tmpfs".as_ref(), dir.as_ref()],
    );
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

#[test]
fn an_orderly_end_is_trusted_after_a_reboot() {
    Place::in_each_mode(an_orderly_end);
}

fn an_orderly_end(place: Place) {
    fill(&place);
    place.create();
    let session = place.serve();
    let path = place.mountpoint().join("base/5/large");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&noise(70, PAGE), 0).unwrap();
    drop(file);
    session.unmount().unwrap();
    place.pretend_reboot();
    let session = place.serve();
    assert!(fs::read(&path).unwrap()[..PAGE] == noise(70, PAGE));
    session.unmount().unwrap();
}

#[test]
fn tablespaces_are_inside_and_linked_directories_plain() {
    let place = Place::new();
    fill(&place);
    let (outside, wal) = (place.path("space"), place.path("wal"));
    fs::create_dir_all(outside.join("PG_15_202209061/5")).unwrap();
    fs::write(outside.join("PG_15_202209061/5/1"), noise(20, 200_000)).unwrap();
    fs::create_dir(&wal).unwrap();
    fs::write(wal.join("segment"), "wal").unwrap();
    symlink(&outside, place.base().join("pg_tblspc/16400")).unwrap();
    symlink(&wal, place.base().join("pg_wal")).unwrap();
    fs::write(place.base().join("tablespace_map"), "16400 /somewhere\n").unwrap();
    place.create();
    let session = place.serve();
    let mnt = place.mountpoint();
    assert_eq!(fs::read_link(mnt.join("pg_tblspc/16400")).unwrap(), Path::new("../.tablespaces/16400"));
    assert!(fs::read(mnt.join("pg_tblspc/16400/PG_15_202209061/5/1")).unwrap() == noise(20, 200_000));
    assert!(fs::symlink_metadata(mnt.join("pg_wal")).unwrap().is_dir());
    assert_eq!(fs::read(mnt.join("pg_wal/segment")).unwrap(), b"wal");
    assert!(!mnt.join("tablespace_map").exists());
    session.unmount().unwrap();
}

#[test]
fn the_caller_adds_replaces_and_leaves_out() {
    let place = Place::new();
    fill(&place);
    let added = |path: &str, text: &str| Added { path: path.into(), bytes: text.into(), mode: 0o600 };
    let options = CreateOptions {
        identity: vec![("label".into(), "x".into())],
        write: vec![added("PG_VERSION", "16\n"), added("recovery.signal", ""), added("base/5/odd", "replaced")],
        remove: vec!["base/5/small".into()],
        ..CreateOptions::default()
    };
    clone::create(&place.clone_dir(), &DirectorySnapshot::new(&place.base()), &options).unwrap();
    assert_eq!(clone::info(&place.clone_dir()).unwrap().identity, options.identity);
    assert_eq!(clone::list(&place.path("")).unwrap().len(), 1);
    let session = place.serve();
    let mnt = place.mountpoint();
    assert_eq!(fs::read(mnt.join("PG_VERSION")).unwrap(), b"16\n");
    assert_eq!(fs::read(mnt.join("base/5/odd")).unwrap(), b"replaced");
    assert!(mnt.join("recovery.signal").exists() && !mnt.join("base/5/small").exists());
    session.unmount().unwrap();
}

#[test]
fn a_creation_that_died_is_made_anew_and_nothing_else_is_touched() {
    let place = Place::new();
    fill(&place);
    let snapshot = DirectorySnapshot::new(&place.base());
    snapshot.broken().store(true, Ordering::SeqCst);
    clone::create(&place.clone_dir(), &snapshot, &CreateOptions::default()).unwrap_err();
    assert!(place.clone_dir().join("data").exists());
    let error = clone::serve(
        &place.clone_dir(),
        std::sync::Arc::new(DirectorySnapshot::new(&place.base())),
        &place.mountpoint(),
        &Default::default(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::PathMissing);
    place.create();
    let again = clone::create(&place.clone_dir(), &snapshot, &CreateOptions::default()).unwrap_err();
    assert_eq!(again.kind(), Kind::PathNotEmpty);
    let foreign = place.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("precious"), "").unwrap();
    for error in [
        clone::create(&foreign, &snapshot, &CreateOptions::default()).unwrap_err(),
        clone::destroy(&foreign).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::PathNotEmpty);
    }
    let session = place.serve();
    same_tree(&place.base(), &place.mountpoint());
    let second = clone::serve(
        &place.clone_dir(),
        std::sync::Arc::new(DirectorySnapshot::new(&place.base())),
        &place.base(),
        &Default::default(),
    )
    .unwrap_err();
    assert_eq!(second.kind(), Kind::LockAcquire);
    assert_eq!(clone::destroy(&place.clone_dir()).unwrap_err().kind(), Kind::LockAcquire);
    session.unmount().unwrap();
    clone::destroy(&place.clone_dir()).unwrap();
    assert!(!place.clone_dir().exists());
}

#[test]
fn a_directory_that_is_not_marked_as_a_clone_is_left_alone() {
    let place = Place::new();
    fill(&place);
    let snapshot = DirectorySnapshot::new(&place.base());
    let dir = place.path("project");
    let refused = |what: &str| {
        let destroyed = clone::destroy(&dir).unwrap_err();
        let created = clone::create(&dir, &snapshot, &CreateOptions::default()).unwrap_err();
        assert_eq!((destroyed.kind(), created.kind()), (Kind::PathNotEmpty, Kind::PathNotEmpty), "{what}");
    };
    fs::create_dir_all(dir.join("meta")).unwrap();
    fs::write(dir.join("meta/report.txt"), "x").unwrap();
    refused("a file of somebody's meta");
    fs::remove_file(dir.join("meta/report.txt")).unwrap();
    fs::write(dir.join("meta/lock"), "somebody's").unwrap();
    refused("somebody's lock");
    fs::write(dir.join("meta/lock"), "").unwrap();
    fs::create_dir(dir.join("data")).unwrap();
    fs::write(dir.join("data/table.csv"), "x").unwrap();
    refused("somebody's data beside an empty lock");
    fs::write(dir.join("meta/files"), "x").unwrap();
    refused("a name of ours without the mark");
    for path in ["meta/files", "data/table.csv", "meta/lock"] {
        assert!(dir.join(path).exists(), "{path} is gone");
    }
    fs::remove_dir_all(&dir).unwrap();

    // A clone with a stranger's file in it is left whole.
    place.create();
    for stranger in ["note", "meta/note"] {
        fs::write(place.clone_dir().join(stranger), "x").unwrap();
        assert_eq!(clone::destroy(&place.clone_dir()).unwrap_err().kind(), Kind::PathNotEmpty);
        clone::info(&place.clone_dir()).unwrap();
        fs::remove_file(place.clone_dir().join(stranger)).unwrap();
    }
    // One made before the mark was.
    fs::write(place.clone_dir().join("meta/lock"), "").unwrap();
    clone::destroy(&place.clone_dir()).unwrap();
    assert!(!place.clone_dir().exists());
}

#[test]
fn reading_does_not_change_a_files_time() {
    Place::in_each_mode(reading_keeps_times);
}

fn reading_keeps_times(place: Place) {
    fill(&place);
    let then = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    File::options().write(true).open(place.base().join("base/5/large")).unwrap().set_modified(then).unwrap();
    place.create();
    for _ in 0..2 {
        let session = place.serve();
        let path = place.mountpoint().join("base/5/large");
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), then);
        assert!(fs::read(&path).unwrap() == noise(2, 3 << 20));
        session.unmount().unwrap();
    }
}

#[test]
fn a_copied_clone_is_refused() {
    let place = Place::new();
    fill(&place);
    place.create();
    let status =
        std::process::Command::new("cp").arg("-r").arg(place.clone_dir()).arg(place.path("copy")).status().unwrap();
    assert!(status.success());
    let error = clone::serve(
        &place.path("copy"),
        std::sync::Arc::new(DirectorySnapshot::new(&place.base())),
        &place.mountpoint(),
        &Default::default(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::FileInvalid);
}

#[test]
fn a_busy_mount_is_detached() {
    let place = Place::new();
    fill(&place);
    place.create();
    let session = place.serve();
    let file = File::open(place.mountpoint().join("PG_VERSION")).unwrap();
    pgkeep_fuse::unmount(&place.mountpoint()).unwrap();
    assert_eq!(fs::read_dir(place.mountpoint()).unwrap().count(), 0);
    drop(file);
    session.join().unwrap();
    pgkeep_fuse::unmount(&place.mountpoint()).unwrap();
}

#[test]
fn a_tablespace_made_on_a_clone_is_private_whatever_its_link_says() {
    let place = Place::new();
    fill(&place);
    let control = control::fabricate(Version::from_major(15).unwrap(), 1);
    let version = format!("PG_15_{}", control::ControlFile::parse(&control).unwrap().catalog_version);
    fs::create_dir(place.base().join("global")).unwrap();
    fs::write(place.base().join("global/pg_control"), &control).unwrap();
    place.create();
    let outside = place.path("outside");
    fs::create_dir(&outside).unwrap();
    let session = place.serve();
    let data = place.mountpoint();
    let inside = data.join(".tablespaces/16400");
    // Looked for before: the kernel must not go on believing that it is missing.
    assert!(!data.join(".tablespaces").exists() && !inside.exists());
    let link = data.join("pg_tblspc/16400");
    symlink(&outside, &link).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("../.tablespaces/16400"));
    fs::write(link.join(&version).join("file"), "x").unwrap();
    assert_eq!(fs::read(inside.join(&version).join("file")).unwrap(), b"x");

    // Dropped and made again, as a recovery that begins anew does.
    fs::remove_file(&link).unwrap();
    symlink(&outside, &link).unwrap();
    assert_eq!(fs::read(link.join(&version).join("file")).unwrap(), b"x");

    // Other ways to such a link are shut; moving one between two names of tablespaces is not one.
    let temporary = data.join("pg_tblspc/tmp");
    symlink(&outside, &temporary).unwrap();
    for to in ["pg_tblspc/16401", "pg_tblspc/16400"] {
        assert_eq!(fs::rename(&temporary, data.join(to)).unwrap_err().raw_os_error(), Some(libc::EXDEV));
        assert!(fs::hard_link(&temporary, data.join(to)).is_err());
    }
    fs::rename(&link, data.join("pg_tblspc/16402")).unwrap();
    assert_eq!(fs::read_link(data.join("pg_tblspc/16402")).unwrap(), Path::new("../.tablespaces/16400"));
    symlink("/elsewhere", data.join("base/16400")).unwrap();
    assert_eq!(fs::read_link(data.join("base/16400")).unwrap(), Path::new("/elsewhere"));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    session.unmount().unwrap();
}
