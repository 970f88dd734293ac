//! What files of a clone hold: the backup's pages, what was written since, and nothing else.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::PAGE;
use crate::backup::{fill, same_tree};
use crate::support::{DirectorySnapshot, Place, noise};

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
