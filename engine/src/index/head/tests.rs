use super::*;
use crate::index::tests::{KEY, at, id};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn open(dir: &Path, max_chunks: u64) -> Head {
    let head = Head::open(Some(dir), SessionId([7; 16]), &KEY, HeadOptions { max_chunks, ..HeadOptions::default() });
    assert!(head.is_on_disk());
    head
}

fn fault(panicked: bool) -> Fault {
    Fault { message: "made up".into(), panicked }
}

#[test]
fn a_full_head_is_drained_and_answers_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let head = open(dir.path(), 100);
    assert!(head.drain().unwrap().is_none());
    for n in 0..100 {
        assert!(head.insert(id(n), at(n as u8 % 3, n as u32)).unwrap());
        assert!(!head.insert(id(n), at(9, 0)).unwrap());
    }
    assert!(head.is_full());
    assert!(matches!(head.insert(id(100), at(0, 0)), Err(IndexError::Full { entries: 100 })));
    assert!(!head.insert(id(5), at(9, 0)).unwrap());
    let first = head.drain().unwrap().unwrap().encode();
    assert!(head.insert(id(100), at(0, 100)).unwrap());
    assert!(!head.insert(id(5), at(9, 0)).unwrap());
    assert_eq!(head.lookup(&id(5)).unwrap(), Some(at(2, 5)));
    assert_eq!(head.drain().unwrap().unwrap().encode(), first);
    assert_eq!(head.len(), 101);
    head.release();
    assert_eq!((head.lookup(&id(5)).unwrap(), head.len()), (None, 1));
    assert_eq!(head.drain().unwrap().unwrap().len(), 1);
    assert!(head.is_on_disk());
}

#[test]
fn facts_are_remembered_up_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let options = HeadOptions { max_facts: 2, ..HeadOptions::default() };
    let head = Head::open(Some(dir.path()), SessionId([7; 16]), &KEY, options);
    for n in 0..3u8 {
        head.put_fact(&[n], &[n; 40]);
    }
    assert_eq!(head.fact(&[0]), Some(vec![0; 40]));
    assert_eq!(head.fact(&[1]), Some(vec![1; 40]));
    assert_eq!(head.fact(&[2]), None);
    let key = head.fact_key(&[0]);
    let other = head.read().facts.get(&head.fact_key(&[1])).unwrap().unwrap();
    head.read().facts.put(&key, &other).unwrap();
    assert_eq!(head.fact(&[0]), None);
}

#[test]
fn every_opening_is_empty_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let head = open(dir.path(), 10);
    head.insert(id(1), at(1, 1)).unwrap();
    let second = open(dir.path(), 10);
    assert_eq!(second.lookup(&id(1)).unwrap(), None);
    drop((head, second));
    assert_eq!(open(dir.path(), 10).lookup(&id(1)).unwrap(), None);
    assert_eq!(std::fs::read_dir(dir.path().join("head")).unwrap().count(), 0);
}

#[test]
fn an_unusable_directory_means_a_head_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("head"), b"not a directory").unwrap();
    let head = Head::open(Some(dir.path()), SessionId([7; 16]), &KEY, HeadOptions::default());
    assert!(!head.is_on_disk());
    assert!(head.insert(id(1), at(1, 1)).unwrap());
    assert_eq!(head.lookup(&id(1)).unwrap(), Some(at(1, 1)));
    assert_eq!(head.drain().unwrap().unwrap().len(), 1);
}

#[test]
fn a_failing_sled_is_replaced_with_what_it_held() {
    let dir = tempfile::tempdir().unwrap();
    let head = open(dir.path(), 100);
    for n in 0..50 {
        head.insert(id(n), at(1, n as u32)).unwrap();
    }
    drop(head.drain().unwrap());
    for n in 50..80 {
        head.insert(id(n), at(1, n as u32)).unwrap();
    }
    head.put_fact(b"a", b"b");
    head.fall_back(&fault(false));
    assert!(!head.is_on_disk());
    assert_eq!(head.fact(b"a").as_deref(), Some(&b"b"[..]));
    assert!((0..80).all(|n| head.lookup(&id(n)).unwrap() == Some(at(1, n as u32))));
    assert_eq!(head.drain().unwrap().unwrap().len(), 50);
    head.release();
    assert_eq!(head.drain().unwrap().unwrap().len(), 30);
}

#[test]
fn after_a_panic_nothing_is_believed_and_the_loss_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let head = open(dir.path(), 100);
    for n in 0..50 {
        head.insert(id(n), at(1, n as u32)).unwrap();
    }
    let caught = table::guarded::<()>(|| panic!("sled says so")).unwrap_err();
    assert!(caught.panicked && caught.message.contains("sled says so"));
    head.fall_back(&caught);
    assert!((0..50).all(|n| head.lookup(&id(n)).unwrap().is_none()));
    assert!(head.insert(id(3), at(1, 3)).unwrap());
    assert!(matches!(head.drain(), Err(IndexError::Lost { .. })));
    head.release();
    assert!(head.insert(id(4), at(1, 4)).unwrap());
    assert_eq!(head.drain().unwrap().unwrap().len(), 1);
}

#[test]
fn threads_inserting_the_same_chunks_agree_on_who_was_first() {
    let dir = tempfile::tempdir().unwrap();
    let head = open(dir.path(), 10_000);
    let insert = |pack: u8| (0..500).filter(|n| head.insert(id(*n), at(pack, *n as u32)).unwrap()).count();
    let new = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|pack| scope.spawn(move || insert(pack))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert_eq!((new, head.len()), (500, 500));
    assert_eq!(head.drain().unwrap().unwrap().len(), 500);
}

#[derive(Debug, Clone)]
enum Tamper {
    Flip(u64, prop::sample::Index, u8),
    Truncate(u64, prop::sample::Index),
    /// Put the value of the second under the key of the first.
    Copy(u64, u64),
    Arbitrary(u64, Vec<u8>),
    /// Put back a value of an earlier generation.
    Replay(u64),
}

fn tamper() -> impl Strategy<Value = Tamper> {
    prop_oneof![
        (0..40u64, any::<prop::sample::Index>(), 1..=255u8).prop_map(|(n, at, mask)| Tamper::Flip(n, at, mask)),
        (0..40u64, any::<prop::sample::Index>()).prop_map(|(n, at)| Tamper::Truncate(n, at)),
        (0..40u64, 0..40u64).prop_map(|(n, m)| Tamper::Copy(n, m)),
        (0..40u64, proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(n, v)| Tamper::Arbitrary(n, v)),
        (0..40u64).prop_map(Tamper::Replay),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_tampered_value_is_a_miss_and_its_loss_is_told(tampers in proptest::collection::vec(tamper(), 1..20)) {
        let dir = tempfile::tempdir().unwrap();
        let head = open(dir.path(), 1000);
        let mut old = BTreeMap::new();
        for n in 0..40 {
            head.insert(id(n), at(1, 9000 + n as u32)).unwrap();
            old.insert(n, head.read().active.table.get(&id(n).0).unwrap().unwrap());
        }
        drop(head.drain().unwrap());
        head.release();
        let mut model: BTreeMap<u64, ChunkAt> = BTreeMap::new();
        for n in 0..30 {
            head.insert(id(n), at(2, n as u32)).unwrap();
            model.insert(n, at(2, n as u32));
        }
        for tamper in &tampers {
            let state = head.read();
            let value = |n: &u64| state.active.table.get(&id(*n).0).unwrap().unwrap_or_default();
            let (n, bytes) = match tamper {
                Tamper::Flip(n, at, mask) => {
                    let mut bytes = value(n);
                    if !bytes.is_empty() {
                        let at = at.index(bytes.len());
                        bytes[at] ^= mask;
                    }
                    (n, bytes)
                }
                Tamper::Truncate(n, at) => {
                    let mut bytes = value(n);
                    bytes.truncate(at.index(bytes.len() + 1));
                    (n, bytes)
                }
                Tamper::Copy(n, m) => (n, value(m)),
                Tamper::Arbitrary(n, bytes) => (n, bytes.clone()),
                Tamper::Replay(n) => (n, old[n].clone()),
            };
            state.active.table.put(&id(*n).0, &bytes).unwrap();
        }
        let mut lost = 0;
        for n in 0..40 {
            match head.lookup(&id(n)).unwrap() {
                Some(found) => prop_assert_eq!(Some(&found), model.get(&n)),
                None => lost += u64::from(model.contains_key(&n)),
            }
        }
        match head.drain() {
            Ok(builder) => prop_assert_eq!((lost, builder.unwrap().len()), (0, model.len())),
            Err(IndexError::Lost { lost: told, .. }) => prop_assert_eq!(told, lost),
            Err(e) => prop_assert!(false, "{e}"),
        }
    }

    #[test]
    fn damaged_sled_files_never_give_a_false_answer(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..200),
        cut in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        // A tiny page cache, so that sled goes back to its files.
        let options = HeadOptions { cache_bytes: 1024, ..HeadOptions::default() };
        let head = Head::open(Some(dir.path()), SessionId([7; 16]), &KEY, options);
        for n in 0..3000 {
            head.insert(id(n), at(1, n as u32)).unwrap();
        }
        match &head.read().active.table {
            Table::Sled(db) => drop(db.flush().unwrap()),
            Table::Map(_) => panic!("not on disk"),
        }
        let path = head.read().place.as_ref().unwrap().dir().join("chunks-0/db");
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, mask) in &flips {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        if cut {
            bytes.truncate(bytes.len() / 2);
        }
        std::fs::write(&path, bytes).unwrap();
        let mut hits = 0;
        for n in 0..3000 {
            if let Some(found) = head.lookup(&id(n)).unwrap() {
                prop_assert_eq!(found, at(1, n as u32));
                hits += 1;
            }
        }
        match head.drain() {
            Ok(builder) => prop_assert_eq!((builder.unwrap().len(), hits), (3000, 3000)),
            Err(e) => prop_assert!(matches!(e, IndexError::Lost { .. }), "{} after {} hits", e, hits),
        }
    }
}
