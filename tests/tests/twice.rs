//! One chunk in two packs, once in full and once as a delta: writers at once, interrupted runs and lost packs make that. A
//! base is then the copy that is in full, whoever came first, and a delta without its base is as good as not there.

use pgkeep_engine::backup::{self, DeltaMode, Deltas};
use pgkeep_engine::index::Encoding;
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pack::read_footer;
use pgkeep_engine::repository::ChunkSource;
use pgkeep_engine::store::{MemoryStore, Store};
use pgkeep_engine::verify::{self, VerifyOptions};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::pack::FooterEntry;
use pgkeep_formats::repo::records::{BackupType, Commit};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use support::offline::{STANZA, Tree, World, open, open_with, read_back, text};

const TABLE: &str = "base/5/16384";
const EDITED: std::ops::Range<u32> = 10..30;

fn backup(world: &World, store: &MemoryStore, kind: BackupType, mode: DeltaMode) -> Commit {
    let repository = open_with(Arc::new(store.clone()), None).unwrap();
    let mut options = world.options(kind);
    options.deltas = Deltas { mode, cache_bytes: None };
    world.clock.advance(60);
    let report = backup::run(&repository, &options, &Silent, &Cancel::default(), &*world.clock);
    world.clock.advance(60);
    report.unwrap_or_else(|e| panic!("{}", text(&e))).commit
}

/// Reads a backup with an index in memory, and with one on disk.
fn assert_reads(world: &World, commit: &Commit, expected: &Tree, what: &str) {
    let cache = world.path("cache");
    for cache in [None, Some(cache.as_path())] {
        let repository = open_with(Arc::new(world.store.clone()), cache.map(Path::new)).unwrap();
        let index = repository.load_index_to_read().unwrap();
        let source = Arc::new(ChunkSource::new(repository, index, STANZA));
        let tree = read_back(&source, commit, &mut HashMap::new());
        let tree = tree.unwrap_or_else(|e| panic!("{what}: {}", text(&e)));
        assert_eq!(expected.differences(&tree), Vec::<String>::new(), "{what}");
    }
}

fn is_clean(world: &World) -> bool {
    let options = VerifyOptions { jobs: 2, ..VerifyOptions::default() };
    verify::run(&open(&world.store).unwrap(), &options, &Silent, &Cancel::default()).unwrap().is_clean()
}

fn entries(store: &MemoryStore, pack: &str) -> Vec<FooterEntry> {
    let size = store.snapshot().get(pack).unwrap().len() as u64;
    read_footer(&open(store).unwrap(), layout::parse_pack(pack).unwrap(), size).unwrap().1.entries
}

fn is_delta(e: &FooterEntry) -> bool {
    e.kind == ChunkKind::Relation && e.encoding == Encoding::ZstdPrefix
}

fn packs(store: &MemoryStore) -> HashSet<String> {
    store.snapshot().keys().filter(|k| layout::parse_pack(k).is_some()).map(str::to_owned).collect()
}

/// Puts what is in `other` and not in the world's store there, if it is wanted.
fn arrive(world: &World, other: &MemoryStore, wanted: impl Fn(&str) -> bool) {
    let snapshot = other.snapshot();
    for key in snapshot.keys().filter(|k| wanted(k)) {
        world.store.put_if_absent(key, snapshot.get(key).unwrap()).unwrap();
    }
}

/// The chunks that are there both in full and as a delta.
fn twice(world: &World) -> usize {
    let all: Vec<FooterEntry> = packs(&world.store).iter().flat_map(|p| entries(&world.store, p)).collect();
    let full: HashSet<_> = all.iter().filter(|e| !e.encoding.is_delta()).map(|e| e.id).collect();
    all.iter().filter(|e| is_delta(e) && full.contains(&e.id)).count()
}

#[test]
fn a_base_that_another_writer_stores_as_a_delta_stays_a_base() {
    let world = World::new(71, 2);
    backup(&world, &world.store, BackupType::Full, DeltaMode::Fetch);
    let blocks: Vec<u32> = EDITED.collect();
    world.cluster.edit(TABLE, &blocks);
    // One begins now, and its objects arrive last.
    let other = world.fork();
    let late = backup(&world, &other, BackupType::Incr, DeltaMode::Fetch);
    let then = Tree::of_files(world.cluster.path());
    // Meanwhile the same is stored in full, and built upon.
    backup(&world, &world.store, BackupType::Incr, DeltaMode::Off);
    world.cluster.edit(TABLE, &blocks[3..9]);
    let built = backup(&world, &world.store, BackupType::Incr, DeltaMode::Fetch);
    let now = Tree::of_files(world.cluster.path());
    arrive(&world, &other, |_| true);
    assert!(twice(&world) > 0, "the test makes what it is about");

    assert_reads(&world, &built, &now, "what was built on the full copy");
    assert_reads(&world, &late, &then, "the late one");
    world.cluster.edit("base/5/16385", &[7]);
    let next = backup(&world, &world.store, BackupType::Full, DeltaMode::Fetch);
    assert_reads(&world, &next, &Tree::of_files(world.cluster.path()), "the next full");
    assert!(is_clean(&world));
}

#[test]
fn an_index_made_anew_names_the_copy_in_full() {
    for seed in 81..89 {
        let world = World::new(seed, 2);
        backup(&world, &world.store, BackupType::Full, DeltaMode::Fetch);
        let blocks: Vec<u32> = EDITED.collect();
        world.cluster.edit(TABLE, &blocks);
        let other = world.fork();
        backup(&world, &other, BackupType::Incr, DeltaMode::Fetch);
        // Killed before index, refs and commit.
        arrive(&world, &other, |key| ["packs/", "sk/", "ses/"].iter().any(|part| key.starts_with(part)));
        backup(&world, &world.store, BackupType::Incr, DeltaMode::Off);
        world.cluster.edit(TABLE, &blocks[3..9]);
        let built = backup(&world, &world.store, BackupType::Incr, DeltaMode::Fetch);
        assert!(twice(&world) > 0, "the test makes what it is about");
        open(&world.store).unwrap().rebuild_index(&Silent, &Cancel::default()).unwrap();
        assert_reads(&world, &built, &Tree::of_files(world.cluster.path()), &format!("seed {seed}"));
    }
}

#[test]
fn a_delta_whose_base_is_lost_is_stored_again() {
    let world = World::new(72, 2);
    let blocks: Vec<u32> = EDITED.collect();
    backup(&world, &world.store, BackupType::Full, DeltaMode::Fetch);
    world.cluster.update(TABLE, &blocks);
    let before = packs(&world.store);
    backup(&world, &world.store, BackupType::Incr, DeltaMode::Off);
    let bases = packs(&world.store);
    world.cluster.edit(TABLE, &blocks);
    backup(&world, &world.store, BackupType::Incr, DeltaMode::Fetch);
    let deltas =
        packs(&world.store).difference(&bases).filter(|p| entries(&world.store, p).iter().any(is_delta)).count();
    assert!(deltas > 0, "the test makes what it is about");
    for pack in bases.difference(&before) {
        if entries(&world.store, pack).iter().any(|e| e.kind == ChunkKind::Relation) {
            world.store.delete(pack).unwrap();
        }
    }
    let expected = Tree::of_files(world.cluster.path());
    for kind in [BackupType::Incr, BackupType::Full] {
        let commit = backup(&world, &world.store, kind, DeltaMode::Fetch);
        assert_reads(&world, &commit, &expected, kind.as_str());
    }
}
