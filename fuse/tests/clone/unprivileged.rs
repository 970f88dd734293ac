//! A clone made and served by a user whom file modes bind.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::{Place, noise, run};

const UNPRIVILEGED: &str = "PGKEEP_TEST_UNPRIVILEGED";
/// `nobody`: fuse's helper wants a user it finds the name of.
const USER: u32 = 65_534;
const BYTES: usize = 300_000;

#[test]
fn modes_hinder_neither_making_nor_serving_a_clone() {
    assert!(rustix::process::geteuid().is_root(), "this test gives up root's rights");
    // The user may not be allowed to where the build put this program.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", "unprivileged::unprivileged", "--nocapture"]).current_dir("/");
    let said = run(command.env(UNPRIVILEGED, "1").uid(USER).gid(USER));
    assert!(said.contains("1 passed"), "{said}");
}

/// The other side of the test above.
#[test]
fn unprivileged() {
    if std::env::var_os(UNPRIVILEGED).is_none() {
        return;
    }
    let mode = |bits| <fs::Permissions as PermissionsExt>::from_mode(bits);
    let place = Place::new();
    let snapshot_path = place.base();
    fs::write(snapshot_path.join("read_only"), noise(1, BYTES)).unwrap();
    fs::set_permissions(snapshot_path.join("read_only"), mode(0o400)).unwrap();
    fs::write(snapshot_path.join("small_read_only"), noise(2, 100)).unwrap();
    fs::set_permissions(snapshot_path.join("small_read_only"), mode(0o400)).unwrap();
    fs::write(snapshot_path.join("plain"), noise(3, BYTES)).unwrap();
    place.create();
    let session = place.serve();
    let at = |name: &str| place.mountpoint().join(name);
    let bits = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o7777;

    assert_eq!((bits("read_only"), bits("small_read_only")), (0o400, 0o400));
    assert!(fs::read(at("read_only")).unwrap() == noise(1, BYTES));
    assert!(fs::read(at("small_read_only")).unwrap() == noise(2, 100));
    assert!(OpenOptions::new().write(true).open(at("read_only")).is_err());

    fs::set_permissions(at("plain"), mode(0o200)).unwrap();
    let file = OpenOptions::new().write(true).open(at("plain")).unwrap();
    file.write_all_at(b"written", 100_000).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(File::open(at("plain")).is_err());

    fs::write(at("born"), "x").unwrap();
    for name in ["plain", "born"] {
        for bits_now in [0o000, 0o200, 0o400] {
            fs::set_permissions(at(name), mode(bits_now)).unwrap();
            let then = rustix::fs::Timespec { tv_sec: 1_000_000, tv_nsec: 7 };
            let times = rustix::fs::Timestamps { last_access: then, last_modification: then };
            rustix::fs::utimensat(rustix::fs::CWD, at(name), &times, rustix::fs::AtFlags::empty()).unwrap();
            let meta = fs::metadata(at(name)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (bits_now, 1_000_000, 7), "{name}");
        }
    }
    let mut model = noise(3, BYTES);
    model[100_000..][..7].copy_from_slice(b"written");
    assert!(fs::read(at("plain")).unwrap() == model);
    assert_eq!(fs::read(at("born")).unwrap(), b"x");
    session.unmount().unwrap();
    let behind = fs::metadata(place.clone_dir().join("data/plain")).unwrap();
    assert_eq!((behind.mode() & 0o7777, behind.mtime()), (0o400, 1_000_000));
}
