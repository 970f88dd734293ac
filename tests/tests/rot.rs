//! Damage that nobody has noticed yet: it must not spoil what is backed up later, nor keep it from being backed up.

use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::repository::ChunkSource;
use pgkeep_engine::repository::manifests::Manifest;
use pgkeep_engine::stanza::rebuild_history;
use pgkeep_engine::store::{MemoryStore, Store};
use pgkeep_engine::verify::{self, VerifyOptions, VerifyReport};
use pgkeep_engine::{Kind, Result};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{BackupType, Commit, StanzaHistory};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use support::offline::{STANZA, Tree, World, object, open, read_back, text};

/// A full and, after some churn, an incremental.
fn two() -> World {
    let world = World::new(11, 1);
    world.backup(BackupType::Full);
    world.cluster.churn();
    world.backup(BackupType::Incr);
    world
}

fn keys(store: &MemoryStore, prefix: &str) -> Vec<String> {
    store.snapshot().keys().filter(|key| key.starts_with(prefix)).map(str::to_owned).collect()
}

fn flip(store: &MemoryStore, key: &str) {
    let middle = object(store, key).len() / 2;
    assert!(store.tamper(key, |bytes| bytes[middle] ^= 0x10));
}

fn source(store: &MemoryStore) -> Arc<ChunkSource> {
    let repository = open(store).unwrap();
    let index = repository.load_index_to_read().unwrap();
    Arc::new(ChunkSource::new(repository, index, STANZA))
}

fn verify(store: &MemoryStore) -> VerifyReport {
    let options = VerifyOptions { jobs: 1, ..VerifyOptions::default() };
    verify::run(&open(store).unwrap(), &options, &Silent, &Cancel::default()).unwrap()
}

/// Backs up and reads back, which must give what the cluster has.
#[track_caller]
fn assert_whole(world: &World, store: &MemoryStore, kind: BackupType, what: &str) {
    let tree = Tree::of_files(world.cluster.path());
    let report = world.backup_to(Arc::new(store.clone()), None, kind);
    let report = report.unwrap_or_else(|e| panic!("{what} keeps a backup from being made: {}", text(&e)));
    let read = read_back(&source(store), &report.commit, &mut HashMap::new());
    let read = read.unwrap_or_else(|e| panic!("the backup after {what} cannot be read: {}", text(&e)));
    assert_eq!(tree.differences(&read), Vec::<String>::new(), "{what}");
}

#[test]
fn what_verify_found_damaged_is_stored_again() {
    let world = two();
    let objects: Vec<String> = ["packs/", "sk/"].iter().flat_map(|p| keys(&world.store, p)).collect();
    for key in &objects {
        let store = world.fork();
        flip(&store, key);
        let report = verify(&store);
        assert!(report.damage_total > 0, "{key}");
        let marks = keys(&store, layout::BAD_PACKS);
        assert_eq!(report.marked, marks.len() as u64, "{key}");
        if let Some(pack) = layout::parse_pack(key) {
            assert_eq!(marks, [layout::bad_pack(pack)]);
        }
        for kind in [BackupType::Full, BackupType::Incr] {
            assert_whole(&world, &store, kind, &format!("a flip in '{key}' and {kind:?}"));
        }
        // Said again, it is the same; and the backups made since are whole.
        let again = verify(&store);
        assert_eq!(keys(&store, layout::BAD_PACKS), marks, "{key}");
        let hit: Vec<_> = again.backups.iter().filter(|b| !b.problems.is_empty()).map(|b| &b.label).collect();
        assert!(again.backups.len() == 4 && hit.len() <= 2, "{key}: {hit:?}");
        // Put back from a copy, a pack is as good as before.
        assert!(store.tamper(key, |bytes| *bytes = object(&world.store, key)));
        assert!(verify(&store).is_clean(), "{key}");
        assert_eq!(keys(&store, layout::BAD_PACKS), Vec::<String>::new(), "{key}");
    }
}

#[test]
fn a_whole_repository_gets_no_marks_and_a_mark_costs_no_backup() {
    let world = two();
    assert_eq!((verify(&world.store).marked, keys(&world.store, layout::BAD_PACKS).len()), (0, 0));
    // By name alone, whoever made it and whatever it holds.
    for key in keys(&world.store, layout::PACKS) {
        let pack = layout::parse_pack(&key).unwrap();
        world.store.put_if_absent(&layout::bad_pack(pack), b"").unwrap();
    }
    for commit in open(&world.store).unwrap().backups(STANZA).unwrap() {
        read_back(&source(&world.store), &commit, &mut HashMap::new()).unwrap();
    }
    assert_whole(&world, &world.store, BackupType::Incr, "marks on all packs");
}

/// Reads a manifest as whoever compares with it does.
fn read_manifest(store: &MemoryStore, commit: &Commit) -> Result<()> {
    let manifest = Arc::new(Manifest::open(&source(store), commit)?);
    manifest.files().try_for_each(|record| record.map(drop))?;
    (0..manifest.root().table.len()).try_for_each(|number| manifest.table_piece(number).map(drop))
}

#[test]
fn a_damaged_manifest_stops_no_backup() {
    let world = two();
    let newest = open(&world.store).unwrap().backups(STANZA).unwrap().pop().unwrap();
    let mut met = 0;
    for key in keys(&world.store, layout::PACKS) {
        let len = object(&world.store, &key).len();
        for at in (0..len).step_by((len / 7).max(1)) {
            let store = world.fork();
            assert!(store.tamper(&key, |bytes| bytes[at] ^= 0x10));
            if read_manifest(&store, &newest).is_ok() {
                continue;
            }
            met += 1;
            for kind in [BackupType::Full, BackupType::Incr, BackupType::Diff] {
                assert_whole(&world, &store, kind, &format!("a flip in '{key}' at {at} and {kind:?}"));
            }
        }
    }
    assert!(met > 3, "{met} flips hit the manifest");
}

#[test]
fn one_bad_record_or_stray_file_stops_no_backup() {
    let world = two();
    for stray in [".nfs000000000000000100000001", "README", "ffffffffffffffffffffffffffffffff~"] {
        for prefix in [layout::backups(STANZA), layout::stanza_histories(STANZA), layout::KEY_EPOCHS.to_owned()] {
            world.store.put_if_absent(&format!("{prefix}{stray}"), b"not ours").unwrap();
        }
    }
    assert_whole(&world, &world.store, BackupType::Incr, "strays");
    let commits = open(&world.store).unwrap().backups(STANZA).unwrap();
    assert_eq!(commits.len(), 3);
    for (n, commit) in commits.iter().enumerate() {
        let store = world.fork();
        flip(&store, &layout::backup(STANZA, commit.session));
        for kind in [BackupType::Incr, BackupType::Diff, BackupType::Full] {
            assert_whole(&world, &store, kind, &format!("a flip in the record of backup {n} and {kind:?}"));
        }
    }
}

#[test]
fn a_damaged_epoch_record_is_no_harm_to_who_has_its_keys() {
    let world = two();
    let key = layout::key_epoch(1);
    for at in 0..object(&world.store, &key).len() {
        let store = world.fork();
        assert!(store.tamper(&key, |bytes| bytes[at] ^= 1));
        open(&store).unwrap_or_else(|e| panic!("byte {at}: {}", text(&e)));
    }
}

#[test]
fn a_lost_history_is_made_anew_from_backups() {
    let world = two();
    let (key, clock) = (layout::stanza_history(STANZA, 1), &*world.clock);
    let before = open(&world.store).unwrap().stanza_history(STANZA).unwrap();
    assert_eq!(rebuild_history(&open(&world.store).unwrap(), STANZA, clock).unwrap(), Vec::<u32>::new());
    world.store.delete(&key).unwrap();
    assert!(verify(&world.store).is_damaged());
    assert_eq!(rebuild_history(&open(&world.store).unwrap(), STANZA, clock).unwrap(), [1]);
    let after = open(&world.store).unwrap().stanza_history(STANZA).unwrap();
    let identity = |h: &StanzaHistory| (h.id, h.version, h.system_identifier, h.catalog_version, h.control_version);
    assert_eq!(before.iter().map(identity).collect::<Vec<_>>(), after.iter().map(identity).collect::<Vec<_>>());
    assert!(verify(&world.store).is_clean());
    assert_whole(&world, &world.store, BackupType::Incr, "a history made anew");
}

#[test]
fn a_link_whose_text_is_not_utf8_is_refused_by_name() {
    let world = two();
    let elsewhere = world.path("elsewhere").join(OsStr::from_bytes(b"caf\xe9"));
    std::fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, world.cluster.path().join("linked")).unwrap();
    let error = world.backup_to(Arc::new(world.store.clone()), None, BackupType::Full).unwrap_err();
    assert_eq!(error.kind(), Kind::FileInvalid);
    assert!(error.to_string().contains("'linked'") && error.to_string().contains("not UTF-8"), "{error}");
}
