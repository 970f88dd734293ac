//! Which files are opened past the daemon, when that changes, and that nobody notices.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::support::{Daemon, Place, noise};

const BYTES: usize = 300_000;

fn writable(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn place(mode: &'static str) -> Place {
    let place = Place::in_mode(mode);
    fs::write(place.base().join("base"), noise(1, BYTES)).unwrap();
    fs::write(place.base().join("small"), noise(2, 100)).unwrap();
    place.create();
    place
}

/// What is written through a handle once its daemon is dead: it went past the daemon if that is no error.
fn goes_past(file: &File) -> bool {
    match file.write_all_at(b"last words", 5) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
            false
        }
    }
}

/// All of a base-backed file is here, durably.
fn make_whole(path: &Path) {
    fs::read(path).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

#[test]
fn files_that_need_nothing_of_the_backup_go_past_the_daemon() {
    for (mode, past) in [("auto", true), ("cached", false), ("plain", false)] {
        let place = place(mode);
        let at = |name: &str| place.mountpoint().join(name);
        let daemon = Daemon::start(&place);
        let born = File::create(at("born")).unwrap();
        // What nobody has written to is known to be durable; that knowledge is kept.
        let (lacking, untouched) = (writable(&at("base")), writable(&at("small")));
        daemon.kill();
        let found = [&born, &lacking, &untouched].map(goes_past);
        assert_eq!(found, [past, false, false], "{mode}");
        drop((born, lacking, untouched));

        let daemon = Daemon::start(&place);
        make_whole(&at("base"));
        fs::write(at("written"), noise(7, BYTES)).unwrap();
        let files = ["base", "born", "written"].map(|name| writable(&at(name)));
        daemon.kill();
        assert!(files.iter().all(|file| goes_past(file) == past), "{mode}");
        drop(files);

        // What reached the files is there, whoever serves them; and files born in an earlier session are told by their size.
        for mode in ["cached", "auto", "plain"] {
            let place = place.again(mode);
            let session = place.serve();
            let mut model = noise(1, BYTES);
            if past {
                model[5..15].copy_from_slice(b"last words");
            }
            assert!(fs::read(at("base")).unwrap() == model);
            session.unmount().unwrap();
        }
        let daemon = Daemon::start(&place);
        let written = writable(&at("written"));
        daemon.kill();
        assert_eq!(goes_past(&written), past, "{mode}");
    }
}

#[test]
fn the_way_changes_only_when_nobody_holds_the_file() {
    Place::in_each_mode(the_way_changes);
}

fn the_way_changes(place: Place) {
    fs::write(place.base().join("base"), noise(1, BYTES)).unwrap();
    place.create();
    let session = place.serve();
    let path = place.mountpoint().join("base");
    let mut model = noise(1, BYTES);
    let mut step = 0u64;
    let mut write = |file: &File| {
        step += 1;
        let data = noise(100 + step, 9000);
        let at = (step * 8192 % 200_000) as usize;
        file.write_all_at(&data, at as u64).unwrap();
        model[at..at + data.len()].copy_from_slice(&data);
        model.clone()
    };
    let same = |file: &File, model: &[u8]| {
        let mut found = vec![0; BYTES];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == model);
    };
    // Held from before it is whole.
    let held = writable(&path);
    write(&held);
    make_whole(&path);
    let beside = writable(&path);
    same(&beside, &write(&held));
    same(&held, &write(&beside));
    drop(held);
    let third = writable(&path);
    same(&third, &write(&beside));
    drop((beside, third));
    // Nobody holds it: what was cached of it must not be seen any more.
    for _ in 0..3 {
        let (one, two) = (writable(&path), writable(&path));
        same(&two, &write(&one));
        drop(one);
        let three = File::open(&path).unwrap();
        same(&three, &write(&two));
        drop(two);
        two_names(&path, &three);
    }
    let last = model.clone();
    assert!(fs::read(&path).unwrap() == last);
    session.unmount().unwrap();
    let session = place.serve();
    assert!(fs::read(&path).unwrap() == last);
    session.unmount().unwrap();
}

/// A file is the same by all its names.
fn two_names(path: &Path, open: &File) {
    let other = path.with_extension("other");
    fs::hard_link(path, &other).unwrap();
    let through = File::open(&other).unwrap();
    assert_eq!(through.metadata().unwrap().ino(), open.metadata().unwrap().ino());
    assert_eq!(through.metadata().unwrap().len(), open.metadata().unwrap().len());
    fs::remove_file(&other).unwrap();
}

#[test]
fn sizes_are_never_stale() {
    Place::in_each_mode(sizes);
}

fn sizes(place: Place) {
    fs::write(place.base().join("base"), noise(1, BYTES)).unwrap();
    place.create();
    let session = place.serve();
    make_whole(&place.mountpoint().join("base"));
    for name in ["born", "base"] {
        let path = place.mountpoint().join(name);
        let mut one = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let mut two = writable(&path);
        let check = |one: &mut File, two: &mut File, size: u64| {
            for file in [one, two] {
                assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), size, "{name}");
                assert_eq!(file.metadata().unwrap().len(), size, "{name}");
            }
            assert_eq!(fs::metadata(&path).unwrap().len(), size, "{name}");
        };
        let mut size = one.metadata().unwrap().len();
        for round in 0..5u64 {
            // As a server extends a relation: by a page at its end, or by reserving many.
            two.write_all_at(&noise(round, 8192), size).unwrap();
            size += 8192;
            check(&mut one, &mut two, size);
            rustix::fs::fallocate(&one, rustix::fs::FallocateFlags::empty(), size, 65_536).unwrap();
            size += 65_536;
            check(&mut one, &mut two, size);
            let before = fs::metadata(&path).unwrap().mtime_nsec();
            std::thread::sleep(std::time::Duration::from_millis(20));
            one.write_all_at(b"x", 0).unwrap();
            assert_ne!(fs::metadata(&path).unwrap().mtime_nsec(), before, "{name}");
            two.set_len(size - 10_000).unwrap();
            size -= 10_000;
            check(&mut one, &mut two, size);
        }
        let mut appended = OpenOptions::new().append(true).open(&path).unwrap();
        appended.write_all(b"end").unwrap();
        check(&mut one, &mut two, size + 3);
        let emptied = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        check(&mut one, &mut two, 0);
        emptied.write_all_at(b"again", 3).unwrap();
        check(&mut one, &mut two, 8);
        let mut text = Vec::new();
        one.seek(SeekFrom::Start(0)).unwrap();
        one.read_to_end(&mut text).unwrap();
        assert_eq!(text, b"\0\0\0again");
    }
    session.unmount().unwrap();
}

#[test]
fn names_come_and_go_while_files_are_open() {
    Place::in_each_mode(names_come_and_go);
}

fn names_come_and_go(place: Place) {
    fs::write(place.base().join("base"), noise(1, BYTES)).unwrap();
    place.create();
    let session = place.serve();
    let at = |name: &str| place.mountpoint().join(name);
    make_whole(&at("base"));
    fs::write(at("born"), noise(2, BYTES)).unwrap();
    for (name, seed) in [("base", 1), ("born", 2)] {
        let file = writable(&at(name));
        // As a WAL segment that is used again.
        fs::rename(at(name), at("moved")).unwrap();
        file.write_all_at(b"moved", 10).unwrap();
        let mut model = noise(seed, BYTES);
        model[10..15].copy_from_slice(b"moved");
        assert!(fs::read(at("moved")).unwrap() == model);
        // Another file of the old name is another file.
        fs::write(at(name), b"new").unwrap();
        assert_eq!(fs::read(at(name)).unwrap(), b"new");
        fs::rename(at(name), at("moved")).unwrap();
        assert_eq!(fs::read(at("moved")).unwrap(), b"new");
        // Open without a name it is what it was.
        file.write_all_at(b"gone", 20).unwrap();
        model[20..24].copy_from_slice(b"gone");
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        let mut found = vec![0; BYTES];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == model);
        fs::remove_file(at("moved")).unwrap();
    }
    // Opened as servers open WAL.
    let flags = libc::O_DSYNC | libc::O_DIRECT;
    let direct = OpenOptions::new().create(true).truncate(false).write(true).custom_flags(flags).open(at("direct"));
    match direct {
        Ok(file) => {
            let buffer = Aligned([7; 8192]);
            file.write_all_at(&buffer.0, 8192).unwrap();
            assert_eq!(fs::read(at("direct")).unwrap()[8192..], buffer.0);
        }
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "the disk does without: {error}"),
    }
    session.unmount().unwrap();
}

#[repr(align(4096))]
struct Aligned([u8; 8192]);

#[test]
fn mapped_files_are_the_files() {
    for mode in ["auto", "cached"] {
        let place = place(mode);
        let session = place.serve();
        let at = |name: &str| place.mountpoint().join(name);
        make_whole(&at("base"));
        fs::write(at("born"), noise(2, BYTES)).unwrap();
        for name in ["base", "born"] {
            let file = writable(&at(name));
            let mapped = Mapped::new(&file);
            file.write_all_at(b"written", 100).unwrap();
            assert_eq!(mapped.read(100, 7), b"written", "{name}");
            mapped.write(200, b"mapped");
            let mut found = [0; 6];
            writable(&at(name)).read_exact_at(&mut found, 200).unwrap();
            assert_eq!(&found, b"mapped", "{name}");
            drop(mapped);
            file.sync_all().unwrap();
        }
        session.unmount().unwrap();
        for name in ["base", "born"] {
            assert_eq!(fs::read(place.clone_dir().join("data").join(name)).unwrap()[200..206], *b"mapped", "{name}");
        }
    }
}

struct Mapped(*mut libc::c_void);

impl Mapped {
    fn new(file: &File) -> Self {
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, std::os::fd::AsRawFd::as_raw_fd(file));
        // SAFETY: the kernel chooses the place, and the file has so many bytes as long as the test maps it.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, access, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(at)
    }

    fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        assert!(at + bytes <= BYTES);
        // SAFETY: inside the mapping.
        unsafe { std::slice::from_raw_parts(self.0.cast::<u8>().add(at), bytes) }.to_vec()
    }

    fn write(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= BYTES);
        // SAFETY: inside the mapping.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.0.cast::<u8>().add(at), data.len()) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` and used by nobody else.
        unsafe { libc::munmap(self.0, BYTES) };
    }
}

#[test]
fn where_the_kernel_refuses_to_go_past_the_daemon_files_are_cached() {
    // A backing file system that is stacked itself.
    let place = place_on_overlay();
    let daemon = Daemon::start(&place);
    let path = place.mountpoint().join("born");
    let file = File::create(&path).unwrap();
    file.write_all_at(&noise(5, BYTES), 0).unwrap();
    file.sync_all().unwrap();
    assert!(fs::read(&path).unwrap() == noise(5, BYTES));
    assert!(fs::read(place.mountpoint().join("base")).unwrap() == noise(1, BYTES));
    daemon.kill();
    assert!(!goes_past(&file));
    drop(file);
    let session = place.serve();
    assert!(fs::read(&path).unwrap() == noise(5, BYTES));
    session.unmount().unwrap();
}

fn place_on_overlay() -> Place {
    let place = Place::new();
    fs::write(place.base().join("base"), noise(1, BYTES)).unwrap();
    for name in ["lower", "upper", "work", "clone"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    let of = |name: &str| place.path(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", of("lower"), of("upper"), of("work"));
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", place.clone_dir(), "overlay", flags, Some(options.as_c_str())).unwrap();
    place.create();
    place
}
