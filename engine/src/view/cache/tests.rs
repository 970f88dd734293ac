//! Who fetches what, and how often.

use super::super::testing::{Backup, Dice, File, PAGE, Tree, backup};
use super::super::{ChunkCache, Content, Snapshot};
use super::ENTRY_BYTES;
use crate::store::{
    Depth, Fault, FaultStore, Listed, MemoryStore, Put, Range, RecordingStore, Store, StoreError, Verb,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};

/// Lets gets of packs through only when told to, and counts who waits.
#[derive(Debug)]
struct GateStore {
    inner: Arc<dyn Store>,
    open: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
}

impl GateStore {
    fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, open: Mutex::new(true), changed: Condvar::new(), waiting: AtomicUsize::new(0) }
    }

    fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.changed.notify_all();
    }

    fn wait_for_waiters(&self, count: usize) {
        while self.waiting.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }
}

impl Store for GateStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        self.inner.put_if_absent(key, bytes)
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
        drop(open);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.inner.get(key, range)
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.inner.list(prefix, depth, each)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// No page is zero and none is like another.
fn bytes(pages: usize) -> Vec<u8> {
    Dice(77).bytes(pages * PAGE).iter().enumerate().map(|(i, b)| b ^ (i / PAGE) as u8 ^ 0x5a).collect()
}

struct Bench {
    records: Arc<RecordingStore>,
    gate: Arc<GateStore>,
    backup: Backup,
    bytes: Vec<u8>,
}

/// One file of `pages` pages in chunks of 4, `pack_chunks` in a pack.
fn bench(pages: usize, pack_chunks: usize) -> Bench {
    let records = Arc::new(RecordingStore::new(MemoryStore::new()));
    let gate = Arc::new(GateStore::new(Arc::clone(&records) as _));
    let bytes = bytes(pages);
    let file = File::plain(bytes.clone(), 4);
    let tree = Tree::from([("".to_owned(), None), ("f".to_owned(), Some(file))]);
    let backup = backup(Arc::clone(&gate) as _, &tree, pack_chunks, 1);
    Bench { records, gate, backup, bytes }
}

impl Bench {
    /// Opens the file with everything loaded but its data.
    fn open(&self, cache: &Arc<ChunkCache>) -> Arc<dyn Content> {
        let content = self.backup.snapshot(cache).open("f").unwrap();
        // The chunk table and the session's key are read by the first read; that goes past the cache here.
        self.backup.snapshot(&Arc::default()).open("f").unwrap().read_at(0, &mut [0; 1]).unwrap();
        content.read_at(0, &mut [0; 1]).unwrap();
        self.records.clear();
        content
    }

    fn check(&self, content: &dyn Content, page: usize, pages: usize) {
        let mut buffer = vec![0; pages * PAGE];
        assert_eq!(content.read_at((page * PAGE) as u64, &mut buffer).unwrap(), buffer.len());
        assert_eq!(buffer, self.bytes[page * PAGE..(page + pages) * PAGE]);
    }
}

#[test]
fn readers_of_one_chunk_fetch_it_once() {
    let bench = bench(64, 1000);
    let content = bench.open(&Arc::default());
    bench.gate.set(false);
    let begin = Barrier::new(9);
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (bench, content, begin) = (&bench, &content, &begin);
            scope.spawn(move || {
                begin.wait();
                bench.check(&**content, 32 + i % 4, 1);
            });
        }
        begin.wait();
        bench.gate.wait_for_waiters(1);
        bench.gate.set(true);
    });
    assert_eq!(bench.records.count(Verb::Get), 1);
    bench.check(&*content, 32, 4);
    assert_eq!(bench.records.count(Verb::Get), 1);
}

#[test]
fn while_one_chunk_is_fetched_others_are_read() {
    let bench = bench(64, 1000);
    let content = bench.open(&Arc::default());
    bench.check(&*content, 60, 1);
    bench.gate.set(false);
    std::thread::scope(|scope| {
        scope.spawn(|| bench.check(&*content, 20, 1));
        bench.gate.wait_for_waiters(1);
        // The gate is shut: this needs no store, and no lock that the fetch holds.
        bench.check(&*content, 61, 1);
        scope.spawn(|| bench.check(&*content, 40, 1));
        bench.gate.wait_for_waiters(2);
        bench.gate.set(true);
    });
}

#[test]
fn random_reads_fetch_only_what_they_need_and_neighbours_come_together() {
    let bench = bench(256, 1000);
    let content = bench.open(&Arc::default());
    for page in [200, 100, 160] {
        bench.check(&*content, page, 1);
    }
    assert_eq!(bench.records.count(Verb::Get), 3);
    assert!(bench.records.bytes(Verb::Get) < 3 * 5 * PAGE as u64);
    bench.records.clear();
    // 96 pages in 24 chunks, 2 of them known: what lies together comes together.
    bench.check(&*content, 100, 96);
    assert!(bench.records.count(Verb::Get) <= 4, "{:?}", bench.records.calls());
    bench.records.clear();
    bench.check(&*content, 100, 96);
    assert_eq!(bench.records.count(Verb::Get), 0);
}

#[test]
fn a_scan_reads_ahead() {
    let bench = bench(256, 1000);
    let content = bench.open(&Arc::default());
    for page in 0..256 {
        bench.check(&*content, page, 1);
    }
    // 2 MiB in chunks of 32 KiB: 64 gets without reading ahead.
    assert!(bench.records.count(Verb::Get) <= 6, "{:?}", bench.records.calls());
    let stored: u64 = bench.records.bytes(Verb::Get);
    assert!(stored < 256 * PAGE as u64 + 64 * 1024, "nothing is read twice: {stored}");
}

#[test]
fn packs_are_not_joined_and_distant_chunks_come_in_parallel() {
    let bench = bench(64, 1);
    let content = bench.open(&Arc::default());
    bench.gate.set(false);
    std::thread::scope(|scope| {
        scope.spawn(|| bench.check(&*content, 4, 60));
        bench.gate.wait_for_waiters(super::fetch::GETS_MAX);
        bench.gate.set(true);
    });
    assert_eq!(bench.records.count(Verb::Get), 15);
}

#[test]
fn the_limit_holds_and_the_least_recently_used_goes() {
    let bench = bench(64, 1000);
    let limit = 3 * (4 * PAGE + ENTRY_BYTES);
    let cache = Arc::new(ChunkCache::new(limit));
    let content = bench.open(&cache);
    for page in [60, 20, 40, 60, 0] {
        bench.check(&*content, page, 1);
        assert!(cache.bytes() <= limit);
    }
    assert_eq!(cache.bytes(), limit);
    bench.records.clear();
    bench.check(&*content, 60, 1);
    bench.check(&*content, 40, 1);
    assert_eq!(bench.records.count(Verb::Get), 0);
    bench.check(&*content, 20, 1);
    assert_eq!(bench.records.count(Verb::Get), 1);
}

#[test]
fn a_failure_is_told_to_all_who_wait_and_then_forgotten() {
    let faults = Arc::new(FaultStore::new(MemoryStore::new()));
    let gate = Arc::new(GateStore::new(Arc::clone(&faults) as _));
    let file = File::plain(bytes(16), 4);
    let tree = Tree::from([("".to_owned(), None), ("f".to_owned(), Some(file))]);
    let backup = backup(Arc::clone(&gate) as _, &tree, 1000, 1);
    let content = backup.snapshot(&Arc::default()).open("f").unwrap();
    content.read_at(0, &mut [0; 1]).unwrap();
    gate.set(false);
    faults.fail(Verb::Get, 1, Fault::Permanent);
    let at = (8 * PAGE) as u64;
    let (mut failed, mut read) = (0, 0);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| content.read_at(at, &mut [0; 8]));
        gate.wait_for_waiters(1);
        let others: Vec<_> = (0..4).map(|_| scope.spawn(|| content.read_at(at, &mut [0; 8]))).collect();
        gate.set(true);
        for thread in others.into_iter().chain([first]) {
            // One that came after the failure has tried again by itself.
            match thread.join().unwrap() {
                Ok(_) => read += 1,
                Err(error) => {
                    failed += 1;
                    assert!(error.to_string().contains("'f'"), "{error}");
                    let cause = std::error::Error::source(&error).unwrap();
                    assert!(cause.to_string().contains("object 'packs/"), "{cause}");
                }
            }
        }
    });
    assert!(failed >= 1 && failed + read == 5);
    assert_eq!(content.read_at(at, &mut [0; 8]).unwrap(), 8);
}

#[test]
fn many_threads_read_what_was_stored_through_a_cache_that_is_too_small() {
    let bench = bench(512, 30);
    let cache = Arc::new(ChunkCache::new(6 * 4 * PAGE));
    let content = bench.open(&cache);
    std::thread::scope(|scope| {
        for seed in 1..9 {
            let (bench, content, cache) = (&bench, &content, &cache);
            scope.spawn(move || {
                let mut dice = Dice(seed * 0x9e37_79b9);
                let mut page = 0;
                for _ in 0..300 {
                    // Half of the reads follow each other.
                    page = if dice.roll(2) == 0 { (page + 3) % 480 } else { dice.roll(480) };
                    bench.check(&**content, page, 1 + dice.roll(30));
                    assert!(cache.bytes() <= 6 * 4 * PAGE);
                }
            });
        }
    });
}
