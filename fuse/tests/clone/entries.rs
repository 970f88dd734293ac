//! Names, links, owners, modes, times and tablespaces of a clone.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use pgkeep_formats::pg::control;
use pgkeep_formats::pg::version::Version;

use crate::backup::fill;
use crate::support::{Place, noise};

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
