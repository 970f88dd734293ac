use super::super::{Fault, FaultStore, MemoryStore, RecordingStore, Verb, contract::Rig};
use super::*;
use std::sync::Mutex;

/// A clock that only its own sleeps move.
#[derive(Debug, Default)]
struct Slept(Mutex<Vec<Duration>>);

impl Clock for Slept {
    fn now(&self) -> Duration {
        self.0.lock().expect("clock").iter().sum()
    }

    fn sleep(&self, time: Duration) {
        self.0.lock().expect("clock").push(time);
    }
}

const POLICY: RetryPolicy = RetryPolicy {
    tries: 4,
    total: Duration::from_secs(100),
    first_wait: Duration::from_secs(1),
    longest_wait: Duration::from_secs(3),
};

struct Bench {
    memory: MemoryStore,
    fault: Arc<FaultStore>,
    clock: Arc<Slept>,
    store: RetryStore,
}

fn bench(policy: RetryPolicy) -> Bench {
    let memory = MemoryStore::new();
    let fault = Arc::new(FaultStore::new(memory.clone()));
    let clock = Arc::new(Slept::default());
    let store = RetryStore::new(Arc::clone(&fault), Arc::clone(&clock) as Arc<dyn Clock>, policy);
    Bench { memory, fault, clock, store }
}

crate::store_contract!(contract_of_retry, || Rig::of(bench(POLICY).store));

#[test]
fn transient_failures_are_outlasted_with_growing_bounded_waits() {
    let b = bench(POLICY);
    b.store.put_if_absent("a", b"1").expect("put");
    (1..=3).for_each(|k| b.fault.fail(Verb::Get, k, Fault::Transient));
    assert_eq!(b.store.get("a", Range::Whole).expect("fourth try"), b"1");
    let waits = b.clock.0.lock().expect("clock").clone();
    let expected = [1, 2, 3].map(Duration::from_secs);
    assert_eq!(waits.len(), expected.len());
    for (wait, limit) in waits.iter().zip(expected) {
        assert!(*wait >= limit / 2 && *wait <= limit, "{waits:?}");
    }
}

#[test]
fn tries_are_bounded() {
    let b = bench(POLICY);
    (1..=4).for_each(|k| b.fault.fail(Verb::Delete, k, Fault::Transient));
    b.store.delete("a").expect_err("all four failed");
    b.store.delete("a").expect("no fault is left over");
}

#[test]
fn what_took_all_the_time_at_once_is_tried_once_more() {
    let b = bench(RetryPolicy { total: Duration::ZERO, ..POLICY });
    b.fault.fail(Verb::Put, 1, Fault::Transient);
    assert_eq!(b.store.put_if_absent("a", b"1").expect("second try"), Put::Created);
    (1..=2).for_each(|k| b.fault.fail(Verb::Put, k, Fault::Transient));
    b.store.put_if_absent("b", b"1").expect_err("both failed");
    assert_eq!(b.store.put_if_absent("b", b"1").expect("no fault is left over"), Put::Created);
}

#[test]
fn time_is_bounded() {
    let policy = RetryPolicy { tries: 1000, total: Duration::from_secs(10), ..POLICY };
    let b = bench(policy);
    (1..=1000).for_each(|k| b.fault.fail(Verb::Get, k, Fault::Transient));
    b.store.get("a", Range::Whole).expect_err("never succeeds");
    assert!(b.clock.now() <= policy.total);
    assert!(b.clock.now() >= policy.total - policy.longest_wait);
}

#[test]
fn permanent_failures_are_not_tried_again() {
    let b = bench(POLICY);
    b.fault.fail(Verb::Put, 1, Fault::NoSpace);
    b.fault.fail(Verb::Get, 1, Fault::Permanent);
    b.store.put_if_absent("a", b"1").expect_err("full");
    b.store.get("a", Range::Whole).expect_err("denied");
    assert!(matches!(b.store.get("a", Range::Whole), Err(StoreError::NotFound { .. })));
    assert_eq!(b.clock.now(), Duration::ZERO);
}

#[test]
fn a_put_whose_reply_was_lost_is_recognised_as_ours() {
    let b = bench(POLICY);
    b.fault.fail(Verb::Put, 1, Fault::LostReply);
    // The read back may need patience too.
    b.fault.fail(Verb::Get, 1, Fault::Transient);
    assert_eq!(b.store.put_if_absent("a", b"ours").expect("put"), Put::Created);
    assert_eq!(b.store.put_if_absent("a", b"ours").expect("again"), Put::Exists);
    assert_eq!(b.memory.snapshot().get("a"), Some(&b"ours"[..]));
}

#[test]
fn what_another_wrote_is_not_taken_for_ours() {
    for theirs in [&b"their"[..], b"xours", b"oursx", b"our", b""] {
        let b = bench(POLICY);
        b.memory.put_if_absent("a", theirs).expect("put");
        b.fault.fail(Verb::Put, 1, Fault::Transient);
        assert_eq!(b.store.put_if_absent("a", b"ours").expect("put"), Put::Exists, "{theirs:?}");
    }
}

#[test]
fn a_first_try_that_finds_the_key_taken_reads_nothing() {
    let recording = Arc::new(RecordingStore::new(MemoryStore::new()));
    let store = RetryStore::new(Arc::clone(&recording), Arc::new(Slept::default()), POLICY);
    store.put_if_absent("a", b"1").expect("put");
    assert_eq!(store.put_if_absent("a", b"1").expect("put"), Put::Exists);
    assert_eq!(recording.count(Verb::Get), 0);
}

/// Lists some entries, then fails, once for each number in `breaks`.
#[derive(Debug)]
struct Breaking {
    inner: MemoryStore,
    breaks: Mutex<Vec<usize>>,
}

impl Store for Breaking {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        self.inner.put_if_absent(key, bytes)
    }
    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        self.inner.get(key, range)
    }
    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        let limit = self.breaks.lock().expect("breaks").pop();
        let mut left = limit.unwrap_or(usize::MAX);
        self.inner.list(prefix, depth, &mut |listed| {
            if left > 0 {
                left -= 1;
                each(listed);
            }
        })?;
        let source = std::io::ErrorKind::ConnectionReset.into();
        let error = StoreError::Io { verb: "list", key: prefix.to_owned(), store: self.describe(), source };
        limit.map_or(Ok(()), |_| Err(error))
    }
    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key)
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[test]
fn a_list_that_breaks_reports_every_entry_once() {
    let inner = MemoryStore::new();
    let keys: Vec<String> = (0..10).map(|n| format!("p/{n}")).collect();
    for key in &keys {
        inner.put_if_absent(key, b"").expect("put");
    }
    let breaking = Breaking { inner, breaks: Mutex::new(vec![10, 3, 6]) };
    let store = RetryStore::new(breaking, Arc::new(Slept::default()), POLICY);
    let mut seen = Vec::new();
    store.list("p/", Depth::All, &mut |l| seen.push(l.key)).expect("fourth try");
    assert_eq!(seen, keys);
}
