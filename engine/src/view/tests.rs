//! Trees of backups against the trees they were made from.

use super::testing::{Backup, Dice, File, LABEL, PAGE, Tree, backup};
use super::{ChunkCache, Entry, EntryKind, Snapshot};
use crate::Kind;
use crate::store::{Damage, FaultStore, MemoryStore, RecordingStore, Verb};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::path_cmp;
use proptest::prelude::*;
use std::sync::Arc;

fn read(snapshot: &dyn Snapshot, path: &str) -> Vec<u8> {
    let content = snapshot.open(path).unwrap();
    let mut bytes = vec![0xee; content.size() as usize + 9];
    let read = content.read_at(0, &mut bytes).unwrap();
    assert!(bytes.split_off(read).iter().all(|b| *b == 0xee), "bytes behind the end were touched");
    bytes
}

fn file() -> impl Strategy<Value = File> {
    let shape = prop_oneof![Just((PAGE as u32, 5, 6)), Just((1u32, 9000, 1)), Just((PAGE as u32, 32, 1))];
    (shape, 0usize..400_000, any::<u64>(), any::<bool>()).prop_map(
        |((unit, extent_units, chunk_extents), len, seed, shuffled)| {
            // Every other file is small, and some are empty.
            let len = if seed % 3 == 0 { len % 500 } else { len };
            File { bytes: Dice(seed | 1).bytes(len), unit, extent_units, chunk_extents, shuffled }
        },
    )
}

fn one(file: File) -> Tree {
    Tree::from([("".to_owned(), None), ("f".to_owned(), Some(file))])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_reads_give_the_bytes_that_were_stored(
        file in file(),
        reads in proptest::collection::vec((0u64..420_000, 0usize..150_000), 1..30),
        pack_chunks in 1usize..9,
        limit in prop_oneof![Just(0), Just(300_000), Just(64 << 20)],
        seed in any::<u64>(),
    ) {
        let bytes = file.bytes.clone();
        let backup = backup(Arc::new(MemoryStore::new()), &one(file), pack_chunks, seed);
        let cache = Arc::new(ChunkCache::new(limit));
        let snapshot = backup.snapshot(&cache);
        let content = snapshot.open("f").unwrap();
        prop_assert_eq!(content.size(), bytes.len() as u64);
        let mut next = 0;
        for (offset, len) in reads {
            // Some go on where the one before ended.
            let offset = if len % 3 == 0 { next } else { offset };
            let mut buffer = vec![0xee; len];
            let read = content.read_at(offset, &mut buffer).unwrap();
            let from = (offset as usize).min(bytes.len());
            prop_assert_eq!(&buffer[..read], &bytes[from..(from + len).min(bytes.len())]);
            prop_assert!(cache.bytes() <= limit);
            next = offset + read as u64;
        }
    }
}

fn names() -> impl Strategy<Value = Tree> {
    let path = "([a-c]|a-b|a\\.b|é){1}(/([a-c]|a-|linked)){0,3}";
    proptest::collection::vec((path, any::<bool>()), 0..60).prop_map(|list| {
        let mut tree = Tree::from([("".to_owned(), None)]);
        for (path, is_file) in list {
            // All that is above is a directory.
            let above = path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect::<Vec<_>>();
            if above.iter().any(|p| matches!(tree.get(p), Some(Some(_)))) || tree.contains_key(&path) {
                continue;
            }
            for p in above {
                tree.entry(p).or_insert(None);
            }
            let content = path.clone().into_bytes();
            tree.insert(path, is_file.then(|| File::plain(content, 1)));
        }
        tree
    })
}

fn check_tree(snapshot: &dyn Snapshot, tree: &Tree) {
    let mut paths: Vec<&String> = tree.keys().collect();
    paths.sort_by(|a, b| path_cmp(a, b));
    let mut listed = Vec::new();
    snapshot
        .entries(&mut |e| {
            listed.push(e);
            Ok(())
        })
        .unwrap();
    assert_eq!(listed.iter().map(|e| &e.path).collect::<Vec<_>>(), paths);
    for round in 0..2 {
        for entry in &listed {
            assert_eq!(snapshot.lookup(&entry.path).unwrap().as_ref(), Some(entry), "round {round}");
            // Listing a file gives nothing; trying some is enough.
            if !entry.is_directory() && entry.path.len() % 7 != 0 {
                continue;
            }
            let below = |e: &&Entry| {
                !e.path.is_empty() && e.path.rsplit_once('/').map_or("", |(parent, _)| parent) == entry.path
            };
            let children: Vec<Entry> = listed.iter().filter(below).cloned().collect();
            assert_eq!(snapshot.children(&entry.path).unwrap(), children, "children of '{}'", entry.path);
        }
    }
    for (path, file) in tree {
        assert_eq!(snapshot.lookup(&format!("{path}x")).unwrap(), None);
        match file {
            Some(file) => assert_eq!(read(snapshot, path), file.bytes),
            None => assert_eq!(snapshot.open(path).err().map(|e| e.kind()), Some(Kind::FileMissing)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn lists_and_look_ups_agree_with_the_tree(tree in names()) {
        let backup = backup(Arc::new(MemoryStore::new()), &tree, 100, 1);
        check_tree(&backup.snapshot(&Arc::default()), &tree);
    }
}

#[test]
fn a_tree_of_many_pieces_is_listed_without_reading_what_lies_deeper() {
    let mut tree = Tree::from([("".to_owned(), None), ("base".to_owned(), None), ("zz".to_owned(), None)]);
    for database in 1..5 {
        tree.insert(format!("base/{database}"), None);
        // Enough for a dozen pieces, wherever a random key cuts.
        for relation in 0..1500 {
            let bytes = Dice(database * 10_000 + relation + 1).bytes(299);
            tree.insert(format!("base/{database}/{relation}"), Some(File::plain(bytes, 1)));
        }
    }
    let store = Arc::new(RecordingStore::new(MemoryStore::new()));
    let backup = backup(Arc::clone(&store) as _, &tree, 100, 1);
    check_tree(&backup.snapshot(&Arc::default()), &tree);
    let snapshot = backup.snapshot(&Arc::default());
    store.clear();
    let names = |dir: &str| snapshot.children(dir).unwrap().into_iter().map(|e| e.path).collect::<Vec<_>>();
    assert_eq!(names(""), ["base", "zz"]);
    assert_eq!(names("base"), ["base/1", "base/2", "base/3", "base/4"]);
    let whole = store.bytes(Verb::Get);
    snapshot.entries(&mut |_| Ok(())).unwrap();
    let all = store.count(Verb::Get);
    store.clear();
    let again = backup.snapshot(&Arc::default());
    assert_eq!(again.children("").unwrap().len(), 2);
    assert!(store.count(Verb::Get) < all, "{} of {all} gets, {whole} bytes", store.count(Verb::Get));
}

#[test]
fn entries_say_what_was_recorded() {
    let mut tree = Tree::from([("".to_owned(), None), ("pg_tblspc".to_owned(), None)]);
    tree.insert("pg_tblspc/linked".to_owned(), None);
    tree.insert("pg_tblspc/linked/x.linked".to_owned(), Some(File::plain(vec![7; 20], 1)));
    let backup = backup(Arc::new(MemoryStore::new()), &tree, 100, 1);
    let snapshot = backup.snapshot(&Arc::default());
    assert_eq!(snapshot.page_size(), PAGE as u32);
    let directory = snapshot.lookup("pg_tblspc/linked").unwrap().unwrap();
    assert_eq!(directory.kind, EntryKind::LinkedDirectory { destination: "/elsewhere".to_owned() });
    let expected = Entry {
        path: "pg_tblspc/linked/x.linked".to_owned(),
        kind: EntryKind::LinkedFile { destination: "/elsewhere/file".to_owned() },
        mode: 0o600,
        user: "postgres".to_owned(),
        group: "dba".to_owned(),
        modified: 25,
        size: 20,
    };
    assert_eq!(snapshot.lookup(&expected.path).unwrap(), Some(expected.clone()));
    assert_eq!(snapshot.children("pg_tblspc/linked").unwrap(), [expected]);
}

fn data_packs(backup: &Backup) -> Vec<String> {
    let mut names = Vec::new();
    let store = backup.source.store();
    store.list(layout::PACKS, crate::store::Depth::All, &mut |l| names.push((l.size, l.key))).unwrap();
    // The pack of metadata is the smallest here.
    names.sort();
    names.into_iter().skip(1).map(|n| n.1).collect()
}

#[test]
fn damage_is_an_error_never_zeros() {
    let faults = Arc::new(FaultStore::new(MemoryStore::new()));
    let bytes: Vec<u8> = Dice(9).bytes(40 * PAGE).iter().map(|b| b | 1).collect();
    let backup = backup(Arc::clone(&faults) as _, &one(File::plain(bytes.clone(), 4)), 100, 1);
    let packs = data_packs(&backup);
    assert_eq!(packs.len(), 1);
    for (damage, kind) in [
        (Damage::Flip(20_000), Kind::Checksum),
        (Damage::Flip(100), Kind::Checksum),
        (Damage::Truncate(9_000), Kind::FileRead),
        (Damage::Truncate(0), Kind::FileRead),
    ] {
        let cache = Arc::default();
        let content = backup.snapshot(&cache).open("f").unwrap();
        faults.damage(&packs[0], damage);
        let mut buffer = vec![0; bytes.len()];
        let error = content.read_at(0, &mut buffer).unwrap_err();
        assert!(matches!(error.kind(), Kind::Checksum | Kind::Crypto) || error.kind() == kind, "{damage:?}: {error:?}");
        assert!(error.to_string().contains(&format!("of 'f' in backup {LABEL}")), "{error}");
        let mut intact = 0;
        for offset in (0..bytes.len()).step_by(PAGE) {
            let mut page = [0; PAGE];
            if let Ok(read) = content.read_at(offset as u64, &mut page) {
                assert_eq!((read, &page[..]), (PAGE, &bytes[offset..offset + PAGE]));
                intact += 1;
            }
        }
        assert!(intact < 40, "{damage:?} hits something");
        // What failed is not remembered.
        faults.heal();
        assert_eq!(content.read_at(0, &mut buffer).unwrap(), bytes.len());
        assert_eq!(buffer, bytes);
    }
}
