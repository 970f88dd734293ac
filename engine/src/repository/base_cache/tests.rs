use super::*;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};

const PAGE: u32 = 8192;

const EMPTY: Space = Space { total: 1 << 40, free: 1 << 40 };

fn cache(dir: &Path, limit: u64) -> BaseCache {
    cache_on(dir, limit, || EMPTY)
}

fn cache_on(dir: &Path, limit: u64, space: impl Fn() -> Space + Send + Sync + 'static) -> BaseCache {
    open(dir, limit, space).unwrap()
}

fn open(
    dir: &Path,
    limit: u64,
    space: impl Fn() -> Space + Send + Sync + 'static,
) -> std::result::Result<BaseCache, String> {
    let measure = move |dir: &Path| fs::metadata(dir).map(|_| space());
    BaseCache::open_in(dir.to_path_buf(), limit, SecretBytes::copy_from(&[7; 32]), Box::new(measure))
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
    File::open(&left).unwrap().set_modified(SystemTime::now() - 2 * files::LEFT_OVER).unwrap();
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
fn after_a_write_that_failed_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 100_000);
    fs::remove_dir(dir.path()).unwrap();
    keep(&cache, 1, 400);
    assert!(cache.stopped.load(Ordering::Relaxed));
    assert!(!cache.has(PackId([1; 32])) && cache.read(PackId([1; 32]), 0, 1).is_none());
    assert_eq!(cache.state().bytes, 0);
    fs::DirBuilder::new().mode(0o700).create(dir.path()).unwrap();
    keep(&cache, 2, 400);
    assert_eq!(on_disk(dir.path()), 0);

    // The write itself: the name is taken by what cannot be replaced.
    let cache = self::cache(dir.path(), 100_000);
    fs::create_dir(cache.path(PackId([3; 32]), What::Copy)).unwrap();
    keep(&cache, 3, 400);
    keep(&cache, 4, 400);
    assert!(cache.stopped.load(Ordering::Relaxed) && cache.sub_hashes(PackId([3; 32])).is_some());
    assert!(!cache.has(PackId([3; 32])) && !cache.has(PackId([4; 32])));
    // Nothing half-written stays.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn some_of_the_file_system_is_left_to_others() {
    const GIB: u64 = 1 << 30;
    let admits = |total, free, bytes| Space { total, free }.admits(bytes);
    assert!(admits(2 * GIB, GIB + 10, 10) && !admits(2 * GIB, GIB + 10, 11));
    assert!(admits(100 * GIB, 5 * GIB + 10, 10) && !admits(100 * GIB, 5 * GIB + 10, 11));
    assert!(!admits(100 * GIB, 0, 1) && !admits(0, 0, 0));

    let dir = tempfile::tempdir().unwrap();
    let free = Arc::new(std::sync::atomic::AtomicU64::new(GIB + 500));
    let measured = Arc::clone(&free);
    let cache = cache_on(dir.path(), 100_000, move || Space { total: GIB, free: measured.load(Ordering::Relaxed) });
    // Room for the hashes alone.
    keep(&cache, 1, 1000);
    assert!(cache.sub_hashes(PackId([1; 32])).is_some() && !cache.has(PackId([1; 32])));
    assert!(cache.tight.load(Ordering::Relaxed) && !cache.stopped.load(Ordering::Relaxed));
    // That may change.
    free.store(2 * GIB, Ordering::Relaxed);
    keep(&cache, 2, 1000);
    assert!(cache.has(PackId([2; 32])));
    assert!(Space::around(dir.path()).is_ok_and(|space| space.total >= space.free && space.total > 0));
}

#[test]
fn one_strange_entry_does_not_cost_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let first = cache(dir.path(), 100_000);
    keep(&first, 1, 400);
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), [2; 400]).unwrap();
    let of = |n| first.path(PackId([n; 32]), What::Copy);
    symlink(elsewhere.path(), of(2)).unwrap();
    symlink("nowhere", dir.path().join("x.pack.1.2.new")).unwrap();
    fs::create_dir(of(3)).unwrap();
    let new = dir.path().join("y.pack.1.2.new");
    fs::create_dir(&new).unwrap();
    File::open(&new).unwrap().set_modified(SystemTime::now() - 2 * files::LEFT_OVER).unwrap();

    let second = cache(dir.path(), 100_000);
    assert_eq!([1, 2, 3].map(|n| second.has(PackId([n; 32]))), [true, false, false]);
    assert!(second.sub_hashes(PackId([1; 32])).is_some());
    // Swapped while open: links are not followed.
    fs::remove_file(of(1)).unwrap();
    symlink(elsewhere.path(), of(1)).unwrap();
    assert_eq!(second.read(PackId([1; 32]), 0, 10), None);
    assert_eq!(fs::read(elsewhere.path()).unwrap(), [2; 400]);
}

#[test]
fn what_cannot_be_removed_still_takes_its_room() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), 10_000);
    keep(&cache, 1, 400);
    let before = cache.state().bytes;
    let path = cache.path(PackId([1; 32]), What::Copy);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(cache.read(PackId([1; 32]), 0, 10), None);
    assert!(!cache.has(PackId([1; 32])) && cache.stuck.load(Ordering::Relaxed));
    assert_eq!(cache.state().bytes, before);
    // Gone is gone.
    keep(&cache, 2, 200);
    fs::remove_file(cache.path(PackId([2; 32]), What::Copy)).unwrap();
    let with_both = cache.state().bytes;
    assert_eq!(cache.read(PackId([2; 32]), 0, 10), None);
    assert_eq!(cache.state().bytes, with_both - 200);
}

#[test]
fn a_directory_of_others_is_neither_used_nor_cleared() {
    let mode = |dir: &Path, mode| fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("bases");
    keep(&cache(&dir, 100_000), 1, 400);
    let kept = on_disk(&dir);
    for open_to in [0o720, 0o702, 0o777] {
        mode(&dir, open_to);
        assert!(open(&dir, 100_000, || EMPTY).is_err_and(|why| why.contains("written to by others")));
        clear(&dir);
        assert_eq!(on_disk(&dir), kept);
    }
    mode(&dir, 0o755);
    assert!(cache(&dir, 100_000).has(PackId([1; 32])));
    let link = home.path().join("link");
    symlink(&dir, &link).unwrap();
    assert!(open(&link, 100_000, || EMPTY).is_err_and(|why| why.contains("is not a directory")));
    clear(&link);
    assert_eq!(on_disk(&dir), kept);
    assert!(open(&home.path().join("link/1/2"), 100_000, || EMPTY).is_ok());

    fs::write(dir.join("README"), "not ours").unwrap();
    clear(&dir);
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "README" || name == "1") && left.len() == 2, "{left:?}");
    clear(&home.path().join("nothing"));
    assert!(!home.path().join("nothing").exists());
}
