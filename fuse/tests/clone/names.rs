//! Names, links and permissions on a clone, compared with a plain directory, outcome by outcome.

use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};

use crate::support::{Place, noise};

/// Two users who are not root and not each other.
const ONE: u32 = 40_001;
const OTHER: u32 = 40_002;

/// What came of each step, in words that do not name the place.
struct Outcomes {
    root: PathBuf,
    all: Vec<String>,
}

impl Outcomes {
    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn note<T: Debug>(&mut self, what: &str, outcome: rustix::io::Result<T>) {
        self.all.push(format!("{what}: {outcome:?}"));
    }

    fn rename(&mut self, from: &str, to: &str, flags: RenameFlags) {
        let done = rustix::fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags);
        self.note(&format!("rename {from} to {to}, {flags:?}"), done);
    }

    fn open(&mut self, name: &str, flags: OFlags) {
        let opened = rustix::fs::open(self.at(name), flags, Mode::from_raw_mode(0o640)).map(drop);
        self.note(&format!("open {name}, {flags:?}"), opened);
    }

    fn make(&mut self, name: &str) {
        self.open(name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY);
    }

    fn directory(&mut self, name: &str, mode: u32) {
        let made = rustix::fs::mkdir(self.at(name), Mode::from_raw_mode(0o700));
        self.note(&format!("mkdir {name}"), made);
        let set = rustix::fs::chmod(self.at(name), Mode::from_raw_mode(mode));
        self.note(&format!("chmod {name} {mode:o}"), set);
    }

    fn remove(&mut self, name: &str, flags: AtFlags) {
        let gone = rustix::fs::unlinkat(CWD, self.at(name), flags);
        self.note(&format!("remove {name}, {flags:?}"), gone);
    }

    fn link(&mut self, from: &str, to: &str) {
        let done = rustix::fs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty());
        self.note(&format!("link {from} to {to}"), done);
    }

    fn facts(&mut self, name: &str) {
        let facts = fs::symlink_metadata(self.at(name)).map(|m| {
            let size = if m.is_dir() { 0 } else { m.len() };
            (format!("{:o}", m.mode()), m.nlink(), m.uid(), m.gid(), size)
        });
        self.all.push(format!("{name} is {:?}", facts.map_err(|error| error.raw_os_error())));
    }
}

/// Runs steps as another user: the kernel asks for the thread's own identity, so it is a thread's.
fn as_user(user: u32, out: &mut Outcomes, steps: impl FnOnce(&mut Outcomes) + Send) {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            // SAFETY: both change this thread's identity towards file systems and nothing else.
            unsafe {
                libc::setfsgid(user);
                libc::setfsuid(user);
            }
            steps(out);
        });
        run.join().unwrap();
    });
}

fn names(out: &mut Outcomes) {
    let (plain, keep, swap) = (RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE);
    // Over what exists: files over files, directories over empty ones, nothing over the other kind.
    out.rename("backed", "small", plain);
    out.facts("small");
    out.facts("backed");
    out.rename("absent", "small", plain);
    out.rename("small", "dir", plain);
    out.rename("dir", "small", plain);
    out.directory("empty", 0o755);
    out.directory("full", 0o755);
    out.make("full/file");
    out.rename("empty", "full", plain);
    out.rename("full", "empty", plain);
    out.rename("empty", "empty/below", plain);
    out.rename("dir", "small/x", plain);
    out.rename("small", "second", keep);
    out.rename("small", "second", swap);
    out.facts("second");
    out.rename("small", "absent", swap);
    out.rename("small", "small", plain);
    out.remove("empty", AtFlags::REMOVEDIR);
    out.remove("empty", AtFlags::empty());
    out.remove("empty/file", AtFlags::REMOVEDIR);
    out.remove("empty/file", AtFlags::empty());
    out.remove("empty", AtFlags::REMOVEDIR);
    out.remove("empty", AtFlags::REMOVEDIR);
    out.remove("dir/.", AtFlags::REMOVEDIR);
    // Links and how many there are.
    for name in ["one", "two", "dir/three"] {
        out.link("second", name);
    }
    out.link("second", "one");
    out.link("dir", "dirs");
    out.facts("second");
    // Two names of one file: nothing is to be done.
    out.rename("one", "two", plain);
    out.facts("one");
    out.remove("second", AtFlags::empty());
    out.facts("dir/three");
    out.directory("dir/a", 0o755);
    out.directory("dir/b", 0o755);
    out.rename("dir/a", "moved", plain);
    // Opening.
    out.make("one");
    out.make("fresh");
    out.open("fresh/", OFlags::RDONLY);
    out.open("dir", OFlags::WRONLY);
    out.open("one", OFlags::RDONLY | OFlags::DIRECTORY);
    out.open("absent", OFlags::RDONLY);
    out.open("one/below", OFlags::RDONLY);
    // Lengths.
    let longest = "n".repeat(255);
    out.make(&longest);
    out.rename(&longest, &"m".repeat(255), plain);
    out.make(&"n".repeat(256));
    out.directory(&"d".repeat(256), 0o755);
    out.rename("one", &"o".repeat(256), plain);
    out.open(&"d/".repeat(3000), OFlags::RDONLY);
    // Symbolic links, those in a circle too.
    for (target, name) in [("round", "circle"), ("circle", "round"), ("nowhere", "dangling"), ("dir", "into")] {
        symlink(target, out.at(name)).unwrap();
    }
    out.open("circle", OFlags::RDONLY);
    out.open("dangling", OFlags::RDONLY);
    out.open("dangling", OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY);
    out.open("into", OFlags::RDONLY | OFlags::NOFOLLOW);
    out.open("into/three", OFlags::RDONLY | OFlags::NOFOLLOW);
    out.remove("into", AtFlags::REMOVEDIR);
    out.link("dangling", "dangling2");
    out.facts("dangling2");
    out.open("dangling", OFlags::CREATE | OFlags::WRONLY);
    out.facts("nowhere");
    out.facts("dir");
}

fn permissions(out: &mut Outcomes) {
    fs::set_permissions(&out.root, PermissionsExt::from_mode(0o755)).unwrap();
    out.directory("open", 0o777);
    out.directory("sticky", 0o1777);
    out.directory("closed", 0o700);
    out.directory("group", 0o2777);
    rustix::fs::chown(out.at("group"), None, Some(rustix::fs::Gid::from_raw(OTHER))).unwrap();
    as_user(ONE, out, |out| {
        out.make("mine");
        out.make("closed/mine");
        out.make("open/mine");
        out.make("sticky/mine");
        out.make("group/mine");
        out.directory("group/dir", 0o755);
        out.open("backed", OFlags::RDWR);
        out.open("closed/x", OFlags::RDONLY);
        let given = rustix::fs::chown(out.at("open/mine"), Some(rustix::fs::Uid::from_raw(OTHER)), None);
        out.note("give away", given);
        let set = rustix::fs::chmod(out.at("backed"), Mode::from_raw_mode(0o666));
        out.note("chmod another's", set);
    });
    for name in ["open/mine", "sticky/mine", "group/mine", "group"] {
        out.facts(name);
    }
    as_user(OTHER, out, |out| {
        out.open("open/mine", OFlags::RDONLY);
        out.open("open/mine", OFlags::WRONLY);
        out.remove("sticky/mine", AtFlags::empty());
        out.rename("sticky/mine", "sticky/yours", RenameFlags::empty());
        out.make("sticky/yours");
        out.rename("sticky/yours", "sticky/mine", RenameFlags::empty());
        out.remove("sticky/yours", AtFlags::empty());
        out.remove("open/mine", AtFlags::empty());
        out.remove("backed", AtFlags::empty());
    });
    // What is one's own one may cut, whoever made it.
    for name in ["backed", "sticky/mine"] {
        rustix::fs::chown(out.at(name), Some(rustix::fs::Uid::from_raw(ONE)), None).unwrap();
        rustix::fs::chmod(out.at(name), Mode::from_raw_mode(0o644)).unwrap();
        as_user(ONE, out, |out| {
            let cut = rustix::fs::open(out.at(name), OFlags::WRONLY, Mode::empty())
                .map(|file| rustix::fs::ftruncate(file, 10));
            out.note("truncate", cut);
        });
        out.facts(name);
    }
}

fn outcomes(root: &Path, steps: fn(&mut Outcomes)) -> Vec<String> {
    let mut out = Outcomes { root: root.to_path_buf(), all: Vec::new() };
    steps(&mut out);
    out.all
}

fn same(place: &Place, steps: fn(&mut Outcomes)) {
    // Others must get there.
    let above = place.base().parent().unwrap().to_path_buf();
    fs::set_permissions(&above, PermissionsExt::from_mode(0o755)).unwrap();
    let plain = place.path("plain");
    fs::create_dir(&plain).unwrap();
    for root in [&place.base(), &plain] {
        fs::write(root.join("backed"), noise(1, 300_000)).unwrap();
        fs::write(root.join("small"), noise(2, 500)).unwrap();
        fs::write(root.join("second"), noise(3, 200_000)).unwrap();
        fs::create_dir(root.join("dir")).unwrap();
    }
    place.create();
    let session = place.serve();
    let (expected, found) = (outcomes(&plain, steps), outcomes(&place.mountpoint(), steps));
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(found, expected);
    }
    assert!(expected.len() == found.len() && found.len() > 20);
    session.unmount().unwrap();
}

#[test]
fn names_are_those_of_a_plain_directory() {
    Place::in_each_mode(|place| same(&place, names));
}

#[test]
fn permissions_are_those_of_a_plain_directory() {
    assert!(rustix::process::getuid().is_root(), "a test with several users must run as root");
    Place::in_each_mode(|place| same(&place, permissions));
}
