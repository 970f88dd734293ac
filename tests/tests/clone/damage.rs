//! Clones of a backup that has lost a pack, or has a damaged one: exactly what is damaged cannot be read.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Advice, fadvise};
use support::{Mode, World, tree};

use crate::places::{Places, everything, logged, restored, world};

const PAGE: usize = 8192;
/// What one chunk of a relation holds at most.
const CHUNK_PAGES: usize = 32;

/// Pages below `base` of a clone that cannot be read. All others are those of the restore.
fn unreadable(clone: &Path, restored: &Path) -> Vec<(PathBuf, usize)> {
    read(clone, restored, Advice::Normal)
}

/// As [`unreadable`], with or without the kernel reading ahead, which costs a try at each page that fails.
fn read(clone: &Path, restored: &Path, advice: Advice) -> Vec<(PathBuf, usize)> {
    let mut found = Vec::new();
    for (path, (_, content)) in everything(&restored.join("base")) {
        let path = path.strip_prefix(restored).unwrap().to_owned();
        if content.is_empty() {
            continue;
        }
        let file = File::open(clone.join(&path)).unwrap();
        fadvise(&file, 0, None, advice).unwrap();
        for (number, expected) in content.chunks(PAGE).enumerate() {
            let mut page = vec![0; expected.len()];
            match file.read_exact_at(&mut page, (number * PAGE) as u64) {
                Ok(()) => assert!(page == expected, "page {number} of {} is another", path.display()),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "page {number} of {}: {error}", path.display());
                    found.push((path.clone(), number));
                }
            }
        }
    }
    found
}

/// A clone of the newest backup, and a restore of it to compare with.
fn clone_and_restore(world: &World, name: &str) -> (Places, PathBuf) {
    let restored = restored(world);
    let places = Places::new(world, name);
    places.create(world, &[]);
    (places, restored)
}

/// Each page that cannot be read is told: in which backup, file and pages, and why.
fn assert_told(world: &World, label: &str, pages: &[(PathBuf, usize)], why: &str) {
    let log = logged(world);
    for (path, number) in pages {
        let of = format!(" of '{}' of backup {label}: ", path.display());
        let told = log.lines().any(|line| {
            let Some((before, cause)) = line.split_once(&of) else { return false };
            let Some((_, range)) = before.split_once("cannot fetch pages ") else { return false };
            let numbers: Vec<usize> = range.split([' ', '(']).filter_map(|word| word.parse().ok()).collect();
            cause.contains(why) && numbers.len() == 2 && (numbers[0]..=numbers[1]).contains(number)
        });
        assert!(told, "page {number} of {} is not told of\n{log}", path.display());
    }
}

#[test]
fn of_a_damaged_pack_only_the_pages_of_its_damaged_chunk_are_lost() {
    let (world, label) = world();
    let (places, restored) = clone_and_restore(&world, "flipped");
    let pack = world.sandbox.largest_pack();
    let whole = fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    fs::write(&pack, &damaged).unwrap();

    let lost = unreadable(&places.mountpoint, &restored);
    assert!(!lost.is_empty(), "the damage is nowhere");
    assert!(lost.len() <= CHUNK_PAGES, "one chunk is damaged, and lost are {lost:?}");
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert_told(&world, &label, &lost, name);
    // It stays so for whoever asks again, and heals with the pack.
    assert_eq!(unreadable(&places.mountpoint, &restored), lost);
    fs::write(&pack, &whole).unwrap();
    assert_eq!(unreadable(&places.mountpoint, &restored), []);
    let mut clone = places.server();
    clone.amcheck();
    clone.stop(Mode::Fast);
    world.ok(places.args("destroy"));
}

#[test]
fn what_an_increment_has_lost_takes_no_page_of_older_packs_with_it() {
    let (world, _) = world();
    let first = world.path("first");
    world.restore_to(&first, ["--type=none"]);
    let packs = || tree::files(&world.sandbox.repo().join("packs"));
    let before = packs();
    world.cluster.psql("UPDATE pgbench_accounts SET abalance = 1 WHERE aid % 9973 = 0");
    world.cluster.checkpoint();
    let label = world.backup("incr");
    let (places, restored) = clone_and_restore(&world, "increment");
    for path in packs().keys().filter(|path| !before.contains_key(*path)) {
        fs::remove_file(path).unwrap();
    }
    let lost = unreadable(&places.mountpoint, &restored);
    assert!(!lost.is_empty(), "the increment held nothing");
    for (path, number) in &lost {
        let page = |root: &Path| fs::read(root.join(path)).ok().and_then(|b| Some(b.get(number * PAGE..)?.to_vec()));
        let (old, new) = (page(&first), page(&restored));
        let same = old.is_some_and(|old| old.get(..PAGE) == new.as_ref().unwrap().get(..PAGE));
        assert!(!same, "page {number} of {} is in an older pack", path.display());
    }
    assert_told(&world, &label, &lost, "packs/");
    world.ok(places.args("destroy"));
}

#[test]
fn without_a_pack_the_pages_in_it_are_lost_until_it_is_back() {
    let (world, label) = world();
    let (places, restored) = clone_and_restore(&world, "gone");
    let (pack, away) = (world.sandbox.largest_pack(), world.path("away"));
    fs::rename(&pack, &away).unwrap();
    let lost = read(&places.mountpoint, &restored, Advice::Random);
    assert!(!lost.is_empty(), "nothing was in the pack");
    assert_told(&world, &label, &lost, pack.file_name().unwrap().to_str().unwrap());
    fs::rename(&away, &pack).unwrap();
    assert_eq!(unreadable(&places.mountpoint, &restored), []);
    world.ok(places.args("destroy"));
}
