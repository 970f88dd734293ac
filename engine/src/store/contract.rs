//! What every store must do, as tests. [`crate::store_contract!`] makes one `#[test]` of each.
//!
//! Each check gets a store of its own that holds nothing, so a factory for a shared service gives each a fresh prefix or
//! bucket. A check panics with what it found.

use super::{Depth, Listed, Put, Range, Store, StoreError};
use std::any::Any;
use std::sync::{Arc, Barrier};

/// A store under test.
#[derive(Debug)]
pub struct Rig {
    /// The store, empty.
    pub store: Arc<dyn Store>,
    /// How many objects the largest listing makes; fewer where each put costs a round trip.
    pub many: usize,
    /// Removes what the store needed when dropped.
    pub keep: Option<Box<dyn Any + Send + Sync>>,
}

impl Rig {
    /// A store that needs nothing beside it.
    pub fn of(store: impl Store + 'static) -> Self {
        Self { store: Arc::new(store), many: 10_000, keep: None }
    }
}

/// Declares a module of tests, one for each check, for the stores that a factory makes.
///
/// `store_contract!(contract_of_memory, || Rig::of(MemoryStore::new()));`
#[macro_export]
macro_rules! store_contract {
    ($module:ident, $factory:expr) => {
        mod $module {
            #[allow(unused_imports, reason = "the factory may need what is around it")]
            use super::*;
            $crate::store_contract!(@each $factory;
                created_once_and_never_changed empty_objects every_edge_of_a_range missing_objects
                keys_of_all_kinds bad_keys_are_refused lists_all_below_a_prefix lists_children
                lists_what_is_there_now lists_many_in_order deleted_names_can_be_used_again
                one_of_many_creators_wins puts_and_deletes_side_by_side large_objects times_are_plausible
            );
        }
    };
    (@each $factory:expr; $($check:ident)*) => {
        $(#[test] fn $check() { $crate::store::contract::$check(&($factory)()); })*
    };
}

/// The whole object; panics if it cannot be read.
#[must_use]
pub fn read(store: &dyn Store, key: &str) -> Vec<u8> {
    ok(store.get(key, Range::Whole), key)
}

/// All listed entries; panics if they cannot be listed.
#[must_use]
pub fn listing(store: &dyn Store, prefix: &str, depth: Depth) -> Vec<Listed> {
    let mut found = Vec::new();
    ok(store.list(prefix, depth, &mut |listed| found.push(listed)), prefix);
    found
}

/// All listed keys; panics if they cannot be listed.
#[must_use]
pub fn keys(store: &dyn Store, prefix: &str, depth: Depth) -> Vec<String> {
    listing(store, prefix, depth).into_iter().map(|l| l.key).collect()
}

fn ok<T>(result: Result<T, StoreError>, about: &str) -> T {
    result.unwrap_or_else(|error| panic!("'{about}': {error}: {:?}", std::error::Error::source(&error)))
}

fn create(store: &dyn Store, key: &str, bytes: &[u8]) {
    assert_eq!(ok(store.put_if_absent(key, bytes), key), Put::Created, "'{key}'");
}

fn pattern(len: usize) -> Vec<u8> {
    // A period that is no power of two shows any shift.
    (0..251u8).cycle().take(len).collect()
}

/// A second put changes nothing.
pub fn created_once_and_never_changed(rig: &Rig) {
    let store = &*rig.store;
    create(store, "a/b", b"first");
    assert_eq!(read(store, "a/b"), b"first");
    for other in [&b"second"[..], b"first", b""] {
        assert_eq!(ok(store.put_if_absent("a/b", other), "a/b"), Put::Exists);
        assert_eq!(read(store, "a/b"), b"first");
    }
    assert_eq!(keys(store, "", Depth::All), ["a/b"]);
}

/// An object of no bytes is an object.
pub fn empty_objects(rig: &Rig) {
    let store = &*rig.store;
    create(store, "empty", b"");
    assert_eq!(ok(store.put_if_absent("empty", b"x"), "empty"), Put::Exists);
    for range in [Range::Whole, Range::Tail { len: 0 }, Range::Tail { len: 9 }, Range::Span { offset: 0, len: 0 }] {
        assert_eq!(ok(store.get("empty", range), "empty"), b"", "{range:?}");
    }
    let short = store.get("empty", Range::Span { offset: 0, len: 1 });
    assert!(matches!(short, Err(StoreError::TooShort { end: 1, .. })), "{short:?}");
    assert_eq!(listing(store, "", Depth::All).iter().map(|l| l.size).collect::<Vec<_>>(), [0]);
}

/// Ranges at, before and behind every edge.
pub fn every_edge_of_a_range(rig: &Rig) {
    let store = &*rig.store;
    let bytes = pattern(1000);
    create(store, "k", &bytes);
    for offset in [0, 1, 499, 999, 1000] {
        for len in [0, 1, 2, 500, 999, 1000] {
            let range = Range::Span { offset: offset as u64, len };
            match bytes.get(offset..offset + len) {
                Some(part) => assert_eq!(ok(store.get("k", range), "k"), part, "{range:?}"),
                None => match store.get("k", range) {
                    Err(StoreError::TooShort { key, end, .. }) => {
                        assert_eq!((&*key, end), ("k", (offset + len) as u64), "{range:?}");
                    }
                    other => panic!("{range:?}: {other:?}"),
                },
            }
        }
    }
    for (offset, len) in
        [(1001, 0), (u64::MAX, 0), (u64::MAX, 1), (0, usize::MAX), (500, usize::MAX), (u64::MAX, usize::MAX)]
    {
        let result = store.get("k", Range::Span { offset, len });
        assert!(matches!(result, Err(StoreError::TooShort { .. })), "{offset} {len}: {result:?}");
    }
    for len in [0, 1, 999, 1000, 1001, usize::MAX] {
        let part = &bytes[bytes.len() - len.min(bytes.len())..];
        assert_eq!(ok(store.get("k", Range::Tail { len }), "k"), part, "the last {len}");
    }
}

/// What is not there is clearly not there, also beside what is.
pub fn missing_objects(rig: &Rig) {
    let store = &*rig.store;
    create(store, "a/b/c", b"x");
    for key in ["x", "a", "a/b", "a/b/d", "a/b/c/d", "a/x/c", "a/b/c2", "A/b/c"] {
        for range in [Range::Whole, Range::Tail { len: 1 }, Range::Span { offset: 0, len: 1 }] {
            match store.get(key, range) {
                Err(StoreError::NotFound { key: named, .. }) => assert_eq!(named, key),
                other => panic!("'{key}': {other:?}"),
            }
        }
        ok(store.delete(key), key);
        let prefix = format!("{key}/");
        if !"a/b/c".starts_with(&prefix) {
            assert_eq!(keys(store, &prefix, Depth::All), [""; 0], "'{prefix}'");
            assert_eq!(keys(store, &prefix, Depth::Children), [""; 0], "'{prefix}'");
        }
    }
    assert_eq!(read(store, "a/b/c"), b"x");
}

/// Keys that upset paths, URLs or sorting.
pub fn keys_of_all_kinds(rig: &Rig) {
    let store = &*rig.store;
    let long = format!("l/{}", "ü".repeat(127));
    let deep = "d/".repeat(100) + "d";
    let mut all = [
        "a b",
        " ",
        "-",
        "--x",
        "~",
        "a%2Fb",
        "%00",
        "100%",
        "a+b",
        "a?b=c&d",
        "a#1",
        "a;b",
        "a:b",
        "a\\b",
        "\"q\"",
        "'q'",
        "*",
        "[x]",
        "{y}",
        "<z>",
        "|",
        "^",
        "`",
        "$HOME",
        "...",
        ".hidden",
        "x/.y",
        "é",
        "e\u{301}",
        "日本語/テスト",
        "🐘",
        "Ünï/cödé",
        "A",
        "aa",
        "0",
        "wal/15-1/0000000100000000/000000010000000000000001.partial",
        "tmp",
        "x/tmp",
        &long,
        &deep,
    ];
    for key in all {
        create(store, key, key.as_bytes());
    }
    for key in all {
        assert_eq!(read(store, key), key.as_bytes());
        assert_eq!(ok(store.put_if_absent(key, b""), key), Put::Exists);
    }
    all.sort_unstable();
    assert_eq!(keys(store, "", Depth::All), all);
    for key in all {
        ok(store.delete(key), key);
    }
    assert_eq!(keys(store, "", Depth::All), [""; 0]);
}

/// No verb takes a key that could leave the store or collide with its own files.
pub fn bad_keys_are_refused(rig: &Rig) {
    let store = &*rig.store;
    let long = "x".repeat(256);
    for key in [
        "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", ".tmp", ".tmp/a", "a/.tmp1", "a\nb", "a\0b",
        &long,
    ] {
        let results = [
            store.put_if_absent(key, b"x").err(),
            store.get(key, Range::Whole).err(),
            store.delete(key).err(),
            store.list(&format!("{key}//"), Depth::All, &mut |_| ()).err(),
        ];
        for (n, result) in results.into_iter().enumerate() {
            assert!(matches!(result, Some(StoreError::BadKey { .. })), "call {n} of {key:?}: {result:?}");
        }
    }
    for prefix in ["a", "/", "a//", "../", ".tmp/", "a/../"] {
        for depth in [Depth::All, Depth::Children] {
            let result = store.list(prefix, depth, &mut |_| ());
            assert!(matches!(result, Err(StoreError::BadKey { .. })), "{prefix:?}: {result:?}");
        }
    }
    assert_eq!(keys(store, "", Depth::All), [""; 0]);
}

const TREE: [&str; 9] = ["a-b/1", "a.b", "a/1", "a/b/2", "a/b/c/3", "a/b-c", "a/b0", "a0", "b/x"];

fn plant(store: &dyn Store) {
    for (size, key) in TREE.iter().enumerate() {
        create(store, key, &pattern(size));
    }
}

/// Every object below a prefix, in the order of whole keys, with its size.
pub fn lists_all_below_a_prefix(rig: &Rig) {
    let store = &*rig.store;
    plant(store);
    for prefix in ["", "a/", "a/b/", "a/b/c/", "a-b/", "b/", "c/", "a/1/", "a/b"] {
        if !prefix.is_empty() && !prefix.ends_with('/') {
            continue;
        }
        let mut expected: Vec<(String, u64)> = TREE
            .iter()
            .enumerate()
            .filter(|(_, key)| key.starts_with(prefix))
            .map(|(size, key)| ((*key).to_owned(), size as u64))
            .collect();
        expected.sort_unstable();
        let found: Vec<_> = listing(store, prefix, Depth::All).into_iter().map(|l| (l.key, l.size)).collect();
        assert_eq!(found, expected, "'{prefix}'");
    }
}

/// Direct children: objects, and one entry for each next component.
pub fn lists_children(rig: &Rig) {
    let store = &*rig.store;
    plant(store);
    let children = |prefix: &str| keys(store, prefix, Depth::Children);
    assert_eq!(children(""), ["a-b/", "a.b", "a/", "a0", "b/"]);
    assert_eq!(children("a/"), ["a/1", "a/b-c", "a/b/", "a/b0"]);
    assert_eq!(children("a/b/"), ["a/b/2", "a/b/c/"]);
    assert_eq!(children("a/b/c/"), ["a/b/c/3"]);
    assert_eq!(children("a/1/"), [""; 0]);
    assert_eq!(children("nothing/"), [""; 0]);
    for listed in listing(store, "a/", Depth::Children) {
        let size = TREE.iter().position(|key| *key == listed.key).unwrap_or(0);
        assert_eq!(listed.size, size as u64, "'{}'", listed.key);
        assert_eq!(listed.modified == 0, listed.key.ends_with('/'), "'{}'", listed.key);
    }
}

/// A listing shows a put and a delete that ended before it began; a prefix goes with its last object.
pub fn lists_what_is_there_now(rig: &Rig) {
    let store = &*rig.store;
    create(store, "a/b/c/1", b"1");
    create(store, "a/d", b"2");
    assert_eq!(keys(store, "a/", Depth::Children), ["a/b/", "a/d"]);
    ok(store.delete("a/b/c/1"), "a/b/c/1");
    assert_eq!(keys(store, "a/", Depth::Children), ["a/d"]);
    assert_eq!(keys(store, "a/b/", Depth::Children), [""; 0]);
    ok(store.delete("a/d"), "a/d");
    assert_eq!(keys(store, "", Depth::Children), [""; 0]);
    assert_eq!(keys(store, "", Depth::All), [""; 0]);
    create(store, "a/b/c/2", b"3");
    assert_eq!(keys(store, "", Depth::All), ["a/b/c/2"]);
}

/// Thousands of objects, flat and in directories, come in order and complete.
pub fn lists_many_in_order(rig: &Rig) {
    let mut expected: Vec<String> =
        (0..rig.many).map(|n| if n % 2 == 0 { format!("m/{n}") } else { format!("m/d{:02}/{n}", n % 97) }).collect();
    let threads = 16;
    std::thread::scope(|scope| {
        for part in expected.chunks(expected.len().div_ceil(threads)) {
            let store = &*rig.store;
            scope.spawn(move || part.iter().for_each(|key| create(store, key, b"x")));
        }
    });
    expected.sort_unstable();
    let found = keys(&*rig.store, "m/", Depth::All);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    let mut children: Vec<String> = expected
        .iter()
        .map(|key| key.match_indices('/').nth(1).and_then(|(at, _)| key.get(..=at)).unwrap_or(key).to_owned())
        .collect();
    children.sort_unstable();
    children.dedup();
    assert_eq!(keys(&*rig.store, "m/", Depth::Children), children);
}

/// Deleting is idempotent and frees the name.
pub fn deleted_names_can_be_used_again(rig: &Rig) {
    let store = &*rig.store;
    for round in 0..3u8 {
        create(store, "a/b/c", &[round]);
        assert_eq!(read(store, "a/b/c"), [round]);
        ok(store.delete("a/b/c"), "a/b/c");
        assert!(matches!(store.get("a/b/c", Range::Whole), Err(StoreError::NotFound { .. })));
        ok(store.delete("a/b/c"), "a/b/c");
    }
}

/// Of sixteen that create one key at once exactly one is told that it did, and its bytes are there, for all to read at once.
pub fn one_of_many_creators_wins(rig: &Rig) {
    const THREADS: usize = 16;
    for round in 0..8 {
        // Odd rounds race for the directories as well.
        let key = if round % 2 == 0 { format!("race-{round}") } else { format!("race/{round}/a/b") };
        let start = Barrier::new(THREADS);
        let contents = |n: usize| pattern(10_000 + n);
        let winners: Vec<usize> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..THREADS)
                .map(|n| {
                    let (key, start, store) = (&key, &start, &rig.store);
                    scope.spawn(move || {
                        start.wait();
                        let put = ok(store.put_if_absent(key, &contents(n)), key);
                        // Read after write, for winners and losers.
                        let len = read(&**store, key).len();
                        (put == Put::Created).then_some(n).inspect(|n| assert_eq!(len, contents(*n).len()))
                    })
                })
                .collect();
            racers.into_iter().filter_map(|racer| racer.join().expect("racer")).collect()
        });
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert_eq!(read(&*rig.store, &key), contents(winners[0]), "round {round}");
    }
}

/// Creating beside a delete that empties the directory always works.
pub fn puts_and_deletes_side_by_side(rig: &Rig) {
    let store = &*rig.store;
    std::thread::scope(|scope| {
        for n in 0..4 {
            scope.spawn(move || {
                for round in 0..25 {
                    let key = format!("same/deep/{n}");
                    create(store, &key, &[round]);
                    assert_eq!(read(store, &key), [round]);
                    ok(store.delete(&key), &key);
                }
            });
        }
    });
    assert_eq!(keys(store, "", Depth::All), [""; 0]);
}

/// An object as large as a pack.
pub fn large_objects(rig: &Rig) {
    let store = &*rig.store;
    let bytes = pattern((32 << 20) + 1);
    create(store, "packs/00/large", &bytes);
    assert!(read(store, "packs/00/large") == bytes, "32 MiB came back changed");
    let range = Range::Span { offset: (16 << 20) - 3, len: 1 << 20 };
    assert!(ok(store.get("packs/00/large", range), "large") == bytes[(16 << 20) - 3..][..1 << 20]);
    assert_eq!(ok(store.get("packs/00/large", Range::Tail { len: 7 }), "large"), bytes[bytes.len() - 7..]);
    assert_eq!(listing(store, "packs/", Depth::All)[0].size, bytes.len() as u64);
}

/// Times are seconds since 1970 and those of one store do not go backwards by much.
pub fn times_are_plausible(rig: &Rig) {
    let store = &*rig.store;
    create(store, "1", b"");
    create(store, "2", b"");
    let times: Vec<i64> = listing(store, "", Depth::All).iter().map(|l| l.modified).collect();
    // The year 2001; milliseconds would be beyond the year 5000.
    assert!(times.iter().all(|t| (1_000_000_000..100_000_000_000).contains(t)), "{times:?}");
    assert!(times[1] >= times[0] - 1, "{times:?}");
}
