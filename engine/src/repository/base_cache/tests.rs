use super::*;

const PAGE: u32 = 8192;

fn cache(dir: &Path, limit: u64) -> BaseCache {
    let cache = BaseCache {
        dir: dir.to_path_buf(),
        limit,
        key: SecretBytes::copy_from(&[7; 32]),
        state: Mutex::default(),
        loaded: Bounded::new(HASHES_BYTES),
        told: AtomicBool::new(false),
    };
    *cache.state() = survey(dir).unwrap();
    cache.reserve(0, What::Hashes);
    cache
}

fn keep(cache: &BaseCache, n: u8, bytes: usize) {
    cache.keep(PackId([n; 32]), &hashes(n.into()), Some(&vec![n; bytes]));
}

fn hashes(n: u64) -> SubHashes {
    SubHashes::collect(PAGE, [[n; 16].as_slice()].into_iter())
}

fn on_disk(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn what_was_kept_is_there_for_the_next_run_and_within_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("bases");
    let first = cache(&dir, 10_000);
    for n in 1..=4 {
        keep(&first, n, 4000);
    }
    // Copies of one run do not push each other out; hashes always fit first.
    assert_eq!((1..=4).map(|n| first.has(PackId([n; 32]))).collect::<Vec<_>>(), [true, true, false, false]);
    assert!((1..=4).all(|n| first.sub_hashes(PackId([n; 32])).is_some()));
    assert!(on_disk(&dir) <= 10_000);

    let second = cache(&dir, 10_000);
    assert_eq!(second.read(PackId([2; 32]), 100, 50).unwrap(), [2; 50]);
    assert_eq!(second.sub_hashes(PackId([3; 32])).unwrap().of_page(0, 0), Some([3; 16].as_slice()));
    // What was not used makes room.
    keep(&second, 5, 4000);
    assert_eq!((1..=5).map(|n| second.has(PackId([n; 32]))).collect::<Vec<_>>(), [false, true, false, false, true]);
    assert!(on_disk(&dir) <= 10_000);

    let small = cache(&dir, 1200);
    assert!(on_disk(&dir) <= 1200 && !small.has(PackId([5; 32])));
    assert_eq!(small.read(PackId([5; 32]), 0, 1), None);
}

#[test]
fn hashes_push_copies_out_and_nothing_larger_than_the_limit_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 1000);
    keep(&cache, 1, 600);
    keep(&cache, 2, 600);
    keep(&cache, 3, 600);
    assert!(cache.sub_hashes(PackId([3; 32])).is_some());
    cache.keep(PackId([4; 32]), &SubHashes::collect(PAGE, [vec![0; 200].as_slice()].into_iter()), Some(&[4; 1200]));
    assert!(cache.sub_hashes(PackId([4; 32])).is_none() && !cache.has(PackId([4; 32])));
    assert!(on_disk(dir.path()) <= 1000);
}

#[test]
fn damage_and_strange_files_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let first = cache(dir.path(), 100_000);
    keep(&first, 1, 400);
    let (copy, sub) = (first.path(PackId([1; 32]), What::Copy), first.path(PackId([1; 32]), What::Hashes));
    fs::write(dir.path().join("README"), "not ours").unwrap();
    let left = dir.path().join("x.1.new");
    fs::write(&left, "half").unwrap();
    File::open(&left).unwrap().set_modified(SystemTime::now() - 2 * LEFT_OVER).unwrap();
    let mut bytes = fs::read(&sub).unwrap();
    bytes[60] ^= 1;
    fs::write(&sub, bytes).unwrap();
    File::options().write(true).open(&copy).unwrap().set_len(100).unwrap();

    let second = cache(dir.path(), 100_000);
    assert!(!left.exists() && dir.path().join("README").exists());
    assert!(second.sub_hashes(PackId([1; 32])).is_none());
    assert_eq!(second.read(PackId([1; 32]), 0, 50), Some(vec![1; 50]));
    assert_eq!(second.read(PackId([1; 32]), 90, 50), None);
    assert!(!copy.exists() && !sub.exists());
    assert!(second.sub_hashes(PackId([1; 32])).is_none());
}

#[test]
fn a_directory_that_cannot_be_used_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 100_000);
    fs::remove_dir(dir.path()).unwrap();
    keep(&cache, 1, 400);
    assert!(cache.told.load(Ordering::Relaxed));
    assert!(!cache.has(PackId([1; 32])) && cache.read(PackId([1; 32]), 0, 1).is_none());
    assert_eq!(cache.state().bytes, 0);
}
