//! How the serving of a clone ends, in order or not, and what is there when it is served again.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::PAGE;
use crate::backup::fill;
use crate::host::{command, cut_power};
use crate::support::{Daemon, Place, noise};

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

#[test]
fn a_real_power_cut_keeps_what_was_synced() {
    Place::in_each_mode(a_real_power_cut);
}

fn a_real_power_cut(place: Place) {
    fill(&place);
    let image = place.path("image");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    command("mkfs.ext4", &[&"-q", &"-F", &image]);
    let dir = place.clone_dir();
    fs::create_dir(&dir).unwrap();
    let attach = || command("mount", &[&"-o", &"loop", &image, &dir]);
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
    command("umount", &[&dir]);
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
