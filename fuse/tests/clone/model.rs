//! Random use of a clone, with its daemon killed now and then, against the same use of a plain directory.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgkeep_fuse::clone::OpenMode;
use proptest::prelude::*;
use proptest::test_runner::Config;
use rustix::fs::{FallocateFlags, RenameFlags};

use crate::support::{Daemon, Place, noise};

/// Sequences tried; each mounts at least twice.
const CASES: u32 = 36;
const PAGE: u64 = 8192;
const SIZE_MAX: u64 = 3 << 20;

#[derive(Debug, Clone)]
enum Step {
    Write {
        file: usize,
        at: u64,
        bytes: u64,
        seed: u64,
    },
    Read {
        file: usize,
        at: u64,
        bytes: u64,
    },
    Truncate {
        file: usize,
        size: u64,
    },
    Allocate {
        file: usize,
        at: u64,
        bytes: u64,
        mode: u32,
    },
    Sync {
        file: usize,
    },
    /// All of it is read and synced: a base-backed file needs nothing of the backup from then on.
    Whole {
        file: usize,
    },
    /// A handle on the clone's file is kept, or let go.
    Hold {
        file: usize,
    },
    Release,
    Rename {
        from: usize,
        to: usize,
        flags: u32,
    },
    Link {
        from: usize,
        to: usize,
    },
    Remove {
        file: usize,
    },
    Create {
        file: usize,
        seed: u64,
    },
    Remount,
    Kill,
    PowerCut,
}

fn span() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        (0..SIZE_MAX / PAGE, 1..20u64).prop_map(|(page, pages)| (page * PAGE, pages * PAGE)),
        (0..SIZE_MAX, 1..100_000u64),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let file = 0..5usize;
    prop_oneof![
        8 => (file.clone(), span(), any::<u64>())
            .prop_map(|(file, (at, bytes), seed)| Step::Write { file, at, bytes, seed }),
        6 => (file.clone(), span()).prop_map(|(file, (at, bytes))| Step::Read { file, at, bytes }),
        3 => (file.clone(), 0..SIZE_MAX).prop_map(|(file, size)| Step::Truncate { file, size }),
        3 => (file.clone(), span(), 0..5usize).prop_map(|(file, (at, bytes), mode)| {
            let keep = FallocateFlags::KEEP_SIZE;
            let modes = [
                FallocateFlags::empty(),
                keep,
                FallocateFlags::PUNCH_HOLE | keep,
                FallocateFlags::ZERO_RANGE,
                FallocateFlags::ZERO_RANGE | keep,
            ];
            Step::Allocate { file, at, bytes, mode: modes[mode].bits() }
        }),
        2 => file.clone().prop_map(|file| Step::Sync { file }),
        3 => file.clone().prop_map(|file| Step::Whole { file }),
        2 => file.clone().prop_map(|file| Step::Hold { file }),
        2 => Just(Step::Release),
        2 => (file.clone(), file.clone(), 0..3u32).prop_map(|(from, to, flags)| Step::Rename { from, to, flags }),
        1 => (file.clone(), file.clone()).prop_map(|(from, to)| Step::Link { from, to }),
        1 => file.clone().prop_map(|file| Step::Remove { file }),
        1 => (file, any::<u64>()).prop_map(|(file, seed)| Step::Create { file, seed }),
        1 => Just(Step::Remount),
        1 => Just(Step::Kill),
        1 => Just(Step::PowerCut),
    ]
}

fn path(root: &Path, file: usize) -> PathBuf {
    // Two directories, so that renames cross them.
    root.join(["a", "b"][file % 2]).join(file.to_string())
}

/// Does one step in `root`; the outcome is what a program would see.
fn act(step: &Step, root: &Path) -> Result<Vec<u8>, Option<i32>> {
    let errno = |error: std::io::Error| error.raw_os_error();
    let system = |error: rustix::io::Errno| Some(error.raw_os_error());
    let open = |file: usize| OpenOptions::new().read(true).write(true).open(path(root, file)).map_err(errno);
    match *step {
        Step::Write { file, at, bytes, seed } => {
            open(file)?.write_all_at(&noise(seed, bytes as usize), at).map_err(errno)?;
        }
        Step::Read { file, at, bytes } => {
            let file = open(file)?;
            let mut buffer = vec![0; bytes as usize];
            let mut filled = 0;
            loop {
                match file.read_at(&mut buffer[filled..], at + filled as u64).map_err(errno)? {
                    0 => break,
                    read => filled += read,
                }
            }
            buffer.truncate(filled);
            return Ok(buffer);
        }
        Step::Truncate { file, size } => open(file)?.set_len(size).map_err(errno)?,
        Step::Allocate { file, at, bytes, mode } => {
            rustix::fs::fallocate(open(file)?, FallocateFlags::from_bits_retain(mode), at, bytes).map_err(system)?;
        }
        Step::Sync { file } => open(file)?.sync_all().map_err(errno)?,
        Step::Whole { file } => {
            let bytes = fs::read(path(root, file)).map_err(errno)?;
            open(file)?.sync_all().map_err(errno)?;
            return Ok(bytes);
        }
        Step::Rename { from, to, flags } => {
            let (from, to) = (path(root, from), path(root, to));
            let flags = RenameFlags::from_bits_retain(flags);
            rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags).map_err(system)?;
        }
        Step::Link { from, to } => fs::hard_link(path(root, from), path(root, to)).map_err(errno)?,
        Step::Remove { file } => fs::remove_file(path(root, file)).map_err(errno)?,
        Step::Create { file, seed } => {
            let bytes = noise(seed, (seed % 200_000) as usize);
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).open(path(root, file)).map_err(errno)?;
            fs::write(path(root, file), bytes).map_err(errno)?;
        }
        Step::Hold { .. } | Step::Release | Step::Remount | Step::Kill | Step::PowerCut => {}
    }
    Ok(Vec::new())
}

fn assert_same(model: &Path, clone: &Path) {
    for file in 0..5 {
        let (expected, found) = (fs::read(path(model, file)).ok(), fs::read(path(clone, file)).ok());
        let differs = || {
            let (a, b) = (expected.as_deref()?, found.as_deref()?);
            a.iter().zip(b).position(|(a, b)| a != b).or((a.len() != b.len()).then(|| a.len().min(b.len())))
        };
        assert!(expected == found, "file {file} differs, first at {:?}", differs());
    }
}

fn run(steps: &[Step], mode: &'static str) {
    let place = Place::in_mode(mode);
    let model = place.path("model");
    for root in [&place.base(), &model] {
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir_all(root.join("b")).unwrap();
        for (file, bytes) in [(0, SIZE_MAX), (1, 70_000), (2, 1_234_567), (3, 30_000)] {
            fs::write(path(root, file), noise(file as u64 + 1, bytes as usize)).unwrap();
        }
    }
    place.create();
    let mnt = place.mountpoint();
    let mut daemon = Daemon::start(&place);
    let mut held: Vec<fs::File> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        assert_eq!(act(step, &model), act(step, &mnt), "step {number}, {step:?}");
        match step {
            Step::Hold { file } => held.extend(OpenOptions::new().read(true).write(true).open(path(&mnt, *file))),
            Step::Release => drop(held.pop()),
            Step::Kill | Step::Remount | Step::PowerCut => held.clear(),
            _ => {}
        }
        match step {
            Step::Kill => {
                daemon.kill();
                daemon = Daemon::start(&place);
            }
            Step::Remount => {
                pgkeep_fuse::unmount(&mnt).unwrap();
                daemon.wait();
                daemon = Daemon::start(&place);
            }
            Step::PowerCut => {
                for file in 0..5 {
                    if let Ok(open) = fs::File::open(path(&mnt, file)) {
                        open.sync_all().unwrap();
                    }
                }
                daemon.kill();
                place.pretend_reboot();
                daemon = Daemon::start(&place);
            }
            _ => {}
        }
    }
    assert_same(&model, &mnt);
    drop(held);
    daemon.kill();
    let session = place.serve();
    assert_same(&model, &mnt);
    session.unmount().unwrap();
    let session = place.serve();
    assert_same(&model, &mnt);
    session.unmount().unwrap();
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, max_shrink_iters: 200, ..Config::default() })]

    #[test]
    fn a_clone_behaves_like_a_plain_directory(mode in 0..3usize, steps in proptest::collection::vec(step(), 1..60)) {
        run(&steps, OpenMode::NAMES[mode]);
    }
}
