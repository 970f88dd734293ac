use super::*;
use crate::crypto::Unlock;
use crate::repository::OpenOptions;
use crate::store::{MemoryStore, Range, Store};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::records::TraceRun;

fn repository(store: &MemoryStore) -> Repository {
    let options = OpenOptions { key: 1, unlock: Unlock::None, cache: None };
    Repository::create(Arc::new(store.clone()), options, 0).unwrap()
}

fn trace(number: i64) -> Trace {
    let paths: Vec<_> = (0..100).map(|n| format!("base/5/{}", 16_384 + n)).collect();
    let runs = (0..3_000).map(|n| TraceRun { path: n % 100, first: u64::from(n) / 7, count: 1 + u64::from(n) % 3 });
    Trace {
        session: SessionId([7; 16]),
        unit: 1 << 18,
        paths,
        runs: runs.collect(),
        created: number,
        host: "h:1".into(),
        program: "0.1.0".into(),
    }
}

fn names(store: &MemoryStore) -> Vec<String> {
    let mut names = Vec::new();
    store.list("traces/", Depth::All, &mut |l| names.push(l.key)).unwrap();
    names
}

#[test]
fn the_newest_are_kept_and_come_first() {
    let store = MemoryStore::new();
    let repository = repository(&store);
    assert!(repository.traces("demo").unwrap().0.is_empty());
    store.put_if_absent("traces/demo/.nfs1", b"not ours").unwrap();
    for number in 1..=5 {
        repository.put_trace("demo", Duration::from_secs(number), &trace(number as i64), None).unwrap();
        repository.put_trace("other", Duration::from_secs(number), &trace(-1), None).unwrap();
    }
    let (found, problems) = repository.traces("demo").unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(found, [trace(5), trace(4), trace(3)]);
    assert_eq!(names(&store).len(), 2 * KEPT + 1);
    assert!(names(&store).contains(&"traces/demo/.nfs1".to_owned()));
}

#[test]
fn a_trace_that_is_replaced_goes() {
    let store = MemoryStore::new();
    let repository = repository(&store);
    let first = repository.put_trace("demo", Duration::from_secs(1), &trace(1), None).unwrap();
    let second = repository.put_trace("demo", Duration::from_secs(2), &trace(2), Some(&first)).unwrap();
    assert_eq!(names(&store), [second]);
}

#[test]
fn a_trace_is_compressed() {
    let store = MemoryStore::new();
    repository(&store).put_trace("demo", Duration::ZERO, &trace(1), None).unwrap();
    let sealed = store.get(&names(&store)[0], Range::Whole).unwrap();
    assert!(sealed.len() < trace(1).encode().len() * 3 / 4, "{} bytes", sealed.len());
}

#[test]
fn damaged_and_foreign_traces_are_told_and_passed_over() {
    let store = MemoryStore::new();
    let repository = repository(&store);
    for number in 1..=2 {
        repository.put_trace("demo", Duration::from_secs(number), &trace(number as i64), None).unwrap();
    }
    let name = names(&store).pop().unwrap();
    let sealed = store.get(&name, Range::Whole).unwrap();
    let moved = layout::trace("demo", TraceId([0xff; 16]));
    let mut flipped = sealed.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (key, bytes) in
        [(&name, flipped.as_slice()), (&name, &sealed[..sealed.len() / 2]), (&name, b""), (&moved, &sealed)]
    {
        store.delete(key).unwrap();
        store.put_if_absent(key, bytes).unwrap();
        let (found, problems) = repository.traces("demo").unwrap();
        assert_eq!(problems.len(), if *key == moved { 2 } else { 1 }, "{problems:?}");
        assert_eq!(found, [trace(1)]);
    }
    // What was stored for one stanza is not another's.
    let stolen = layout::trace("other", TraceId([1; 16]));
    store.put_if_absent(&stolen, &sealed).unwrap();
    let (found, problems) = repository.traces("other").unwrap();
    assert!(found.is_empty() && problems.len() == 1);
}
