use super::*;
use crate::crypto::Unlock;
use crate::repository::OpenOptions;
use crate::store::{MemoryStore, Range, Store};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::records::TraceRun;

fn repository(store: &MemoryStore) -> Repository {
    let options = OpenOptions { key: 1, unlock: Unlock::None, cache: None };
    let repository = Repository::create(Arc::new(store.clone()), options, 0).unwrap();
    for stanza in ["demo", "other"] {
        store.put_if_absent(&layout::stanza_history(stanza, 1), b"there").unwrap();
    }
    repository
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
fn names_of_a_clock_that_was_wrong_do_not_stay_and_a_new_trace_does() {
    let store = MemoryStore::new();
    let repository = repository(&store);
    let day = 24 * 3600;
    for number in 0..KEPT as u64 {
        repository.put_trace("demo", Duration::from_secs(900 * day + number), &trace(1), None).unwrap();
    }
    for number in 1..=2 {
        let name = repository.put_trace("demo", Duration::from_secs(number * day), &trace(2), None).unwrap();
        assert!(names(&store).contains(&name));
    }
    assert_eq!(names(&store).len(), 2);
    // One that cannot be read hides none that can.
    let mut id = [0xff; TraceId::LEN];
    for byte in 0..KEPT as u8 {
        id[15] = byte;
        store.put_if_absent(&layout::trace("demo", TraceId(id)), b"junk").unwrap();
    }
    let (found, problems) = repository.traces("demo").unwrap();
    assert_eq!((found.len(), problems.len()), (2, KEPT));
}

#[test]
fn nothing_is_stored_for_a_stanza_that_is_not_there() {
    let store = MemoryStore::new();
    let refused = repository(&store).put_trace("gone", Duration::from_secs(1), &trace(1), None).unwrap_err();
    assert_eq!(refused.kind(), Kind::FileMissing);
    assert!(names(&store).is_empty());
}

#[test]
fn where_nothing_can_be_deleted_no_more_than_a_few_are_stored() {
    let store = MemoryStore::new();
    let repository = repository(&store);
    for number in 0..LOOKED_AT as u64 {
        let mut id = [0; TraceId::LEN];
        id[15] = number as u8;
        store.put_if_absent(&layout::trace("demo", TraceId(id)), b"stays").unwrap();
    }
    let refused = repository.put_trace("demo", Duration::from_secs(1), &trace(1), None).unwrap_err();
    assert!(refused.to_string().contains("none could be deleted"), "{refused}");
    assert_eq!(names(&store).len(), LOOKED_AT);
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
    // Who stores the next takes away what nobody can read, and nothing else.
    let own = repository.put_trace("demo", Duration::from_secs(3), &trace(3), None).unwrap();
    let (found, problems) = repository.traces("demo").unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(found, [trace(3), trace(1)]);
    let left: Vec<_> = names(&store).into_iter().filter(|name| name.starts_with("traces/demo/")).collect();
    assert!(left.len() == 2 && left.contains(&own), "{left:?}");
    // What was stored for one stanza is not another's.
    let stolen = layout::trace("other", TraceId([1; 16]));
    store.put_if_absent(&stolen, &sealed).unwrap();
    let (found, problems) = repository.traces("other").unwrap();
    assert!(found.is_empty() && problems.len() == 1);
}
