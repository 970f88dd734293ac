use super::*;
use crate::store::{LocalStore, MemoryStore, RecordingStore, Verb};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const KEY: &str = "packs/ab/abcdef";

struct Rig {
    dir: tempfile::TempDir,
    asked: Arc<RecordingStore>,
    pack: Vec<u8>,
}

impl Rig {
    fn new(bytes: usize) -> Self {
        let pack: Vec<u8> = (0..bytes).map(|i| (i / 7 + i % 251) as u8).collect();
        let asked = Arc::new(RecordingStore::new(MemoryStore::new()));
        asked.put_if_absent(KEY, &pack).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), asked, pack }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("packs")
    }

    fn cache(&self, limit: u64) -> PackCache {
        PackCache::over(Arc::clone(&self.asked) as Arc<dyn Store>, self.place(), limit).unwrap()
    }

    fn read(&self, cache: &PackCache, offset: usize, len: usize) {
        let found = cache.get(KEY, Range::Span { offset: offset as u64, len }).unwrap();
        assert!(found == self.pack[offset..offset + len], "{len} bytes from {offset}");
    }

    fn gets(&self) -> usize {
        self.asked.count(Verb::Get)
    }
}

#[test]
fn what_was_read_is_not_asked_for_again_by_any_process() {
    let rig = Rig::new(1_000_000);
    let (one, two) = (rig.cache(64 * MIB), rig.cache(64 * MIB));
    rig.read(&one, 100_000, 300_000);
    assert_eq!(rig.gets(), 1);
    rig.read(&one, 100_000, 300_000);
    // A part of it, by another, who had looked before it came.
    rig.read(&two, 150_000, 20_000);
    rig.read(&two, 399_999, 1);
    assert_eq!(rig.gets(), 1);
    // What goes beyond costs what is missing, from the beginning of the piece that lacks something.
    rig.read(&two, 380_000, 100_000);
    let calls = rig.asked.calls();
    assert_eq!(calls.last().unwrap().bytes, 480_000 - 6 * PIECE_BYTES);
    rig.read(&one, 100_000, 380_000);
    rig.read(&rig.cache(64 * MIB), 100_000, 380_000);
    assert_eq!(rig.gets(), 2);
}

#[test]
fn other_objects_and_ranges_are_passed_on() {
    let rig = Rig::new(1000);
    let cache = rig.cache(64 * MIB);
    cache.put_if_absent("idx/a", b"index").unwrap();
    for _ in 0..2 {
        assert_eq!(cache.get("idx/a", Range::Span { offset: 1, len: 2 }).unwrap(), b"nd");
        assert_eq!(cache.get(KEY, Range::Tail { len: 3 }).unwrap(), rig.pack[997..]);
    }
    assert_eq!(rig.gets(), 4);
    assert!(fs::read_dir(rig.place()).unwrap().next().is_none());
    assert!(matches!(cache.get(KEY, Range::Span { offset: 990, len: 11 }), Err(StoreError::TooShort { .. })));
    assert!(matches!(cache.get("packs/no/no", Range::Span { offset: 0, len: 1 }), Err(StoreError::NotFound { .. })));
}

#[test]
fn damage_is_asked_for_again() {
    let rig = Rig::new(200_000);
    rig.read(&rig.cache(64 * MIB), 0, 200_000);
    let path = rig.place().join("abcdef");
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(9_973).chain([0, 11, 12, 43, whole.len() - 1]) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let cache = rig.cache(64 * MIB);
        rig.read(&cache, 0, 200_000);
        rig.read(&cache, 0, 200_000);
        fs::write(&path, &whole).unwrap();
    }
    // Cut off by the death of a process, at any byte; what comes behind it is broken.
    for len in [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, 70_000, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        let cache = rig.cache(64 * MIB);
        for _ in 0..3 {
            rig.read(&cache, 0, 200_000);
        }
        rig.read(&rig.cache(64 * MIB), 0, 200_000);
    }
    let before = rig.gets();
    rig.read(&rig.cache(64 * MIB), 0, 200_000);
    rig.read(&rig.cache(64 * MIB), 0, 200_000);
    assert!(rig.gets() <= before + 1, "a broken file is not used for ever");
}

#[test]
fn what_is_doubted_is_forgotten_by_all_and_the_rest_is_not() {
    let rig = Rig::new(300_000);
    let (one, two) = (rig.cache(64 * MIB), rig.cache(64 * MIB));
    rig.read(&one, 0, 300_000);
    rig.read(&two, 0, 300_000);
    assert_eq!(rig.gets(), 1);
    let piece = PIECE_BYTES as usize;
    assert!(one.doubt(KEY, PIECE_BYTES + 100, 200));
    // The piece before it and those behind are as good as they were.
    for cache in [&one, &two, &rig.cache(64 * MIB)] {
        rig.read(cache, 0, piece);
        rig.read(cache, 2 * piece, 300_000 - 2 * piece);
    }
    assert_eq!(rig.gets(), 1);
    // Who had seen it and who comes later ask for it, the first of them for all.
    rig.read(&two, piece, piece);
    assert_eq!(rig.gets(), 2);
    for cache in [&one, &two, &rig.cache(64 * MIB)] {
        rig.read(cache, 0, 300_000);
    }
    assert_eq!(rig.gets(), 2);
    // A span over two pieces, doubted by one that has not looked yet.
    let fresh = rig.cache(64 * MIB);
    assert!(fresh.doubt(KEY, PIECE_BYTES - 1, 2));
    rig.read(&fresh, 2 * piece, 10);
    assert_eq!(rig.gets(), 2);
    rig.read(&fresh, piece - 1, 2);
    assert_eq!(rig.gets(), 3);
    // Nothing is kept of these.
    assert!(!one.doubt("packs/00/other", 0, 10) && !one.doubt("idx/a", 0, 10));
    assert!(!rig.place().join("other").exists());
}

#[test]
fn what_keeps_it_from_keeping_is_told_and_costs_nothing_but_the_cache() {
    let rig = Rig::new(1000);
    let cache = rig.cache(64 * MIB);
    let flags = || [&cache.full, &cache.stopped].map(|flag| flag.load(Ordering::Relaxed));
    assert!(cache.admits(1) && flags() == [false, false]);
    // There is no such room, but there may be some for less.
    assert!(!cache.admits(u64::MAX) && flags() == [true, false]);
    assert!(cache.admits(1));
    // Nobody can tell any more.
    fs::remove_dir(rig.place()).unwrap();
    assert!(!cache.admits(1) && flags() == [true, true]);
    rig.read(&cache, 0, 1000);
}

#[test]
fn it_stays_within_its_limit_and_the_oldest_go() {
    let rig = Rig::new(100_000);
    let limit = 4 * MIB;
    let cache = rig.cache(limit);
    for n in 0..100 {
        let key = format!("packs/00/{n}");
        rig.asked.put_if_absent(&key, &rig.pack).unwrap();
        cache.get(&key, Range::Span { offset: 0, len: 100_000 }).unwrap();
        let kept: u64 = fs::read_dir(rig.place()).unwrap().map(|e| e.unwrap().metadata().unwrap().blocks() * 512).sum();
        assert!(kept <= limit, "{kept}");
    }
    assert!(rig.place().join("99").exists() && !rig.place().join("0").exists());
    // What another has removed is asked for again, and kept again.
    fs::remove_file(rig.place().join("99")).unwrap();
    let before = rig.gets();
    for _ in 0..2 {
        cache.get("packs/00/99", Range::Span { offset: 0, len: 100_000 }).unwrap();
    }
    assert_eq!(rig.gets(), before + 1);
    // A smaller limit is kept from the beginning.
    rig.cache(MIB);
    let kept: u64 = fs::read_dir(rig.place()).unwrap().map(|e| e.unwrap().metadata().unwrap().blocks() * 512).sum();
    assert!(kept <= MIB, "{kept}");
}

#[test]
fn a_place_that_cannot_be_used_costs_nothing_but_the_cache() {
    let rig = Rig::new(1000);
    fs::write(rig.place(), b"a file").unwrap();
    assert!(PackCache::over(Arc::clone(&rig.asked) as Arc<dyn Store>, rig.place(), MIB).is_err());
    fs::remove_file(rig.place()).unwrap();
    let cache = rig.cache(64 * MIB);
    fs::create_dir(rig.place().join("abcdef")).unwrap();
    rig.read(&cache, 0, 1000);
    fs::remove_dir(rig.place().join("abcdef")).unwrap();
    fs::remove_dir(rig.place()).unwrap();
    rig.read(&cache, 0, 1000);
}

#[test]
fn threads_read_and_keep_at_once() {
    let rig = Rig::new(3_000_000);
    let cache = rig.cache(64 * MIB);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (rig, cache) = (&rig, &cache);
            scope.spawn(move || {
                for n in 0..60usize {
                    let offset = (n * 48_271 * (thread + 1)) % 2_900_000;
                    rig.read(cache, offset, 1 + (n * 7919) % 100_000);
                }
            });
        }
    });
    let fresh = rig.cache(64 * MIB);
    rig.read(&fresh, 0, 3_000_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_answers_as_the_store_does(spans in prop::collection::vec((0usize..300_000, 1usize..200_000), 1..12)) {
        let rig = Rig::new(500_000);
        let (one, two) = (rig.cache(64 * MIB), rig.cache(64 * MIB));
        for (n, (offset, len)) in spans.into_iter().enumerate() {
            rig.read(if n % 2 == 0 { &one } else { &two }, offset, len);
        }
    }

    #[test]
    fn no_file_makes_it_fail(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let rig = Rig::new(1000);
        rig.cache(64 * MIB);
        fs::write(rig.place().join("abcdef"), &bytes).unwrap();
        let cache = rig.cache(64 * MIB);
        rig.read(&cache, 0, 1000);
        rig.read(&cache, 0, 1000);
    }
}

crate::store_contract!(contract_of_a_cache, || {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::create(dir.path().join("store")).unwrap();
    let cache = PackCache::over(Arc::new(store), dir.path().join("cache"), 64 * MIB).unwrap();
    crate::store::contract::Rig { store: Arc::new(cache), many: 1000, keep: Some(Box::new(dir)) }
});
