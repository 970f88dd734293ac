//! *Cache* of DESIGN, section 5: with any content of the local cache, what is committed keeps *Closure*, and what is read
//! is right.

use pgkeep_engine::repository::{ChunkSource, Repository};
use pgkeep_engine::store::{MemoryStore, Store};
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{BackupType, Commit};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use support::offline::{Ledger, STANZA, Tree, World, invariants, open, open_with, read_back, text};

/// What happens to the cache directory. Numbers choose files and offsets, modulo what there is.
#[derive(Debug, Clone)]
enum Poison {
    /// A file gets random bytes.
    Garbage(usize, Vec<u8>),
    /// One bit of a file.
    Flip(usize, usize, u8),
    /// A file is cut.
    Truncate(usize, usize),
    /// A file is gone.
    Remove(usize),
    /// Two files change places.
    Swap(usize, usize),
    /// Every file has the bytes of some file of another repository's cache.
    Foreign,
    /// The cache as it was one backup earlier.
    Stale,
    /// Things where the head of the index will be made.
    Clutter(Vec<u8>),
    /// Nothing is left.
    Empty,
    /// A file is where the directory of segments should be.
    Blocked,
}

fn poison() -> impl Strategy<Value = Poison> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    prop_oneof![
        2 => (any::<usize>(), bytes()).prop_map(|(file, bytes)| Poison::Garbage(file, bytes)),
        4 => (any::<usize>(), any::<usize>(), 0..8u8).prop_map(|(file, at, bit)| Poison::Flip(file, at, bit)),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(file, len)| Poison::Truncate(file, len)),
        1 => any::<usize>().prop_map(Poison::Remove),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Poison::Swap(a, b)),
        2 => Just(Poison::Foreign),
        2 => Just(Poison::Stale),
        1 => bytes().prop_map(Poison::Clutter),
        1 => Just(Poison::Empty),
        1 => Just(Poison::Blocked),
    ]
}

/// A repository with two backups and a changed cluster, its cache after each, and a foreign cache.
struct Ground {
    world: World,
    expected: BTreeMap<String, Tree>,
    cache: PathBuf,
    stale: PathBuf,
    foreign: PathBuf,
    packs: Vec<String>,
}

static GROUND: LazyLock<Mutex<Ground>> = LazyLock::new(|| Mutex::new(Ground::new()));

impl Ground {
    fn new() -> Self {
        let world = World::new(5, 1);
        let (cache, stale) = (world.path("cache"), world.path("stale"));
        let mut expected = BTreeMap::new();
        for kind in [BackupType::Full, BackupType::Incr] {
            let tree = Tree::of_files(world.cluster.path());
            let report = world.backup_to(Arc::new(world.store.clone()), Some(&cache), kind).expect("a backup");
            expected.insert(report.commit.label, tree);
            world.cluster.churn_more();
            if kind == BackupType::Full {
                copy(&cache, &stale);
            }
        }
        // The next backup's load brings in what the last one published; a reader does the same.
        drop(open_with(Arc::new(world.store.clone()), Some(&cache)).unwrap().load_index_to_read().unwrap());
        let other = World::new(6, 1);
        let foreign = world.path("foreign");
        other.backup_to(Arc::new(other.store.clone()), Some(&foreign), BackupType::Full).expect("a backup");
        let packs = world.store.snapshot().keys().filter(|k| k.starts_with(layout::PACKS)).map(str::to_owned).collect();
        assert!(segments(&cache).len() >= 2 && !segments(&stale).is_empty() && !segments(&foreign).is_empty());
        Self { world, expected, cache, stale, foreign, packs }
    }
}

/// Files of segments below a cache directory.
fn segments(cache: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    visit(cache, &mut |path| out.extend(path.extension().is_some_and(|e| e == "seg").then(|| path.to_path_buf())));
    out.sort();
    out
}

fn visit(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).expect("cannot list") {
        let path = entry.expect("cannot list").path();
        if path.is_dir() { visit(&path, each) } else { each(&path) }
    }
}

fn copy(from: &Path, to: &Path) {
    visit(from, &mut |path| {
        let target = to.join(path.strip_prefix(from).expect("below"));
        fs::create_dir_all(target.parent().expect("below")).expect("cannot make a directory");
        fs::copy(path, target).expect("cannot copy");
    });
}

/// The directory of segments of the only repository in a cache.
fn segment_dir(ground: &Ground, cache: &Path) -> PathBuf {
    let inside = segments(&ground.cache)[0].strip_prefix(&ground.cache).expect("below").to_path_buf();
    cache.join(inside.parent().expect("a directory"))
}

fn apply(ground: &Ground, cache: &Path, poison: &Poison) {
    let files = segments(cache);
    let pick = |n: usize| files.get(n % files.len().max(1));
    match poison {
        Poison::Garbage(n, bytes) => pick(*n).into_iter().for_each(|f| fs::write(f, bytes).unwrap()),
        Poison::Flip(n, at, bit) => {
            let Some(file) = pick(*n) else { return };
            let mut bytes = fs::read(file).unwrap();
            let len = bytes.len().max(1);
            bytes.get_mut(at % len).into_iter().for_each(|byte| *byte ^= 1 << bit);
            fs::write(file, bytes).unwrap();
        }
        Poison::Truncate(n, len) => {
            let Some(file) = pick(*n) else { return };
            let mut bytes = fs::read(file).unwrap();
            bytes.truncate(len % (bytes.len() + 1));
            fs::write(file, bytes).unwrap();
        }
        Poison::Remove(n) => pick(*n).into_iter().for_each(|f| fs::remove_file(f).unwrap()),
        Poison::Swap(a, b) => {
            let (Some(a), Some(b)) = (pick(*a), pick(*b)) else { return };
            let (left, right) = (fs::read(a).unwrap(), fs::read(b).unwrap());
            fs::write(a, right).unwrap();
            fs::write(b, left).unwrap();
        }
        Poison::Foreign => {
            let theirs = segments(&ground.foreign);
            files
                .iter()
                .zip(theirs.iter().cycle())
                .for_each(|(ours, theirs)| fs::write(ours, fs::read(theirs).unwrap()).unwrap());
        }
        Poison::Stale => {
            files.iter().for_each(|file| fs::remove_file(file).unwrap());
            if !segment_dir(ground, cache).is_file() {
                copy(&ground.stale, cache);
            }
        }
        Poison::Clutter(bytes) => {
            let head = segment_dir(ground, cache).parent().expect("a directory").join("head");
            fs::create_dir_all(head.join("0-0")).unwrap();
            for name in ["db", "conf", "0-0/db", "0-0/conf"] {
                fs::write(head.join(name), bytes).unwrap();
            }
        }
        Poison::Empty => {
            fs::remove_dir_all(cache).unwrap();
            fs::create_dir(cache).unwrap();
        }
        Poison::Blocked => {
            let dir = segment_dir(ground, cache);
            if dir.is_dir() {
                fs::remove_dir_all(&dir).unwrap();
            }
            fs::create_dir_all(dir.parent().expect("a directory")).unwrap();
            fs::write(dir, "in the way").unwrap();
        }
    }
}

/// Reads one backup, with an index loaded through a cache or without.
fn read(repository: &Arc<Repository>, commit: &Commit) -> Result<Tree, Error> {
    let source = ChunkSource::new(Arc::clone(repository), repository.load_index_to_read()?, STANZA);
    read_back(&Arc::new(source), commit, &mut HashMap::new())
}

fn check(poisons: &[Poison], lost: Option<usize>, kind: BackupType) {
    let ground = GROUND.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = tempfile::tempdir().unwrap();
    let cache = scratch.path();
    copy(&ground.cache, cache);
    poisons.iter().for_each(|p| apply(&ground, cache, p));
    let blocked = segment_dir(&ground, cache).is_file();
    let store = ground.world.fork();
    if let Some(n) = lost {
        store.delete(&ground.packs[n % ground.packs.len()]).unwrap();
    }

    let tree = Tree::of_files(ground.world.cluster.path());
    match ground.world.backup_to(Arc::new(store.clone()), Some(cache), kind) {
        Ok(report) => {
            let plain =
                read(&open(&store).unwrap(), &report.commit).unwrap_or_else(|e| panic!("Closure: {}", text(&e)));
            assert_eq!(tree.differences(&plain), Vec::<String>::new(), "Closure");
            if lost.is_none() {
                let mut expected = ground.expected.clone();
                expected.insert(report.commit.label, tree);
                invariants(&store, &expected, &mut Ledger::default());
            }
        }
        Err(e) if blocked => assert!(text(&e).contains("idx"), "{}", text(&e)),
        Err(e) => {
            assert!(lost.is_some(), "the backup must succeed: {}", text(&e));
            assert_eq!(e.kind(), Kind::FileMissing, "{}", text(&e));
            assert!(text(&e).contains("pack"), "{}", text(&e));
        }
    }

    // A reader meets the same cache, poisoned again.
    poisons.iter().for_each(|p| apply(&ground, cache, p));
    if lost.is_none() && !blocked {
        read_all(&ground, &store, cache);
    }
}

fn read_all(ground: &Ground, store: &MemoryStore, cache: &Path) {
    let repository = open_with(Arc::new(store.clone()), Some(cache)).unwrap();
    for commit in repository.backups(STANZA).unwrap() {
        let Some(expected) = ground.expected.get(&commit.label) else { continue };
        let tree = read(&repository, &commit).unwrap_or_else(|e| panic!("{}", text(&e)));
        assert_eq!(expected.differences(&tree), Vec::<String>::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_cache_can_spoil_a_backup(
        poisons in prop::collection::vec(poison(), 0..4),
        lost in prop::option::weighted(0.3, any::<usize>()),
        full in any::<bool>(),
    ) {
        check(&poisons, lost, if full { BackupType::Full } else { BackupType::Incr });
    }
}

#[test]
fn every_single_poison_is_survived() {
    let each = [
        Poison::Garbage(0, vec![0xa5; 5000]),
        Poison::Truncate(0, 100),
        Poison::Remove(1),
        Poison::Swap(0, 1),
        Poison::Foreign,
        Poison::Stale,
        Poison::Clutter(vec![0xff; 100]),
        Poison::Empty,
        Poison::Blocked,
    ];
    for poison in each {
        println!("{poison:?}");
        check(&[poison], None, BackupType::Incr);
    }
}

#[test]
fn a_pack_that_is_gone_is_noticed_before_the_commit() {
    let packs = GROUND.lock().unwrap_or_else(PoisonError::into_inner).packs.len();
    for n in 0..packs {
        for kind in [BackupType::Full, BackupType::Incr] {
            check(&[], Some(n), kind);
        }
    }
}
