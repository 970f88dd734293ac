//! A host that writes a backup freezes between any two of its requests, while another gives it up and collects, days later. When
//! it wakes up, it finishes nothing that is not whole; and where it was not given up, it finishes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pgkeep_engine::gc::{self, GcOptions, Rewrite};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::repository::SILENT_AFTER;
use pgkeep_engine::store::{MemoryStore, Snapshot, Verb};
use pgkeep_engine::{Kind, clock::Clock};
use pgkeep_formats::repo::records::BackupType;
use support::offline::{HookedStore, Ledger, STANZA, TestClock, Tree, World, invariants, open, open_with};

struct Scenario {
    world: World,
    kept: (String, Tree),
    base: Snapshot,
}

impl Scenario {
    /// A full that has expired, of which an increment that stays uses a part, and the next backup would use more.
    fn new() -> Self {
        let world = World::new(5, 1);
        world.cluster.relation("base/5/20000", 512);
        let first = world.backup(BackupType::Full).commit.session;
        world.cluster.update("base/5/20000", &(0..300).collect::<Vec<u32>>());
        let kept = (world.backup(BackupType::Incr).commit.label, Tree::of_files(world.cluster.path()));
        world.cluster.churn();
        assert!(open(&world.store).unwrap().mark_expired(STANZA, first, "test", 1).unwrap());
        let base = world.store.snapshot();
        Self { world, kept, base }
    }
}

/// Collects until nothing changes.
fn collect(store: &MemoryStore, clock: &TestClock) {
    for _ in 0..3 {
        let options = GcOptions { rewrite: Rewrite::Always, ..GcOptions::default() };
        gc::run(&open(store).unwrap(), &options, &Silent, &Cancel::default(), clock).expect("a collection");
    }
}

/// The next backup, which stands still before its request `at`; who collects then may give it up. How many requests it made.
fn freeze(scenario: &Scenario, at: usize, gives_up: bool) -> usize {
    let world = &scenario.world;
    let store = world.store.from_snapshot(&scenario.base);
    let requests = Arc::new(AtomicUsize::new(0));
    let hook = {
        let (store, clock, requests) = (store.clone(), Arc::clone(&world.clock), Arc::clone(&requests));
        move |_: Verb, _: &str| {
            if requests.fetch_add(1, Ordering::SeqCst) == at {
                if gives_up {
                    clock.advance(SILENT_AFTER.as_secs() + 1);
                }
                collect(&store, &clock);
            }
        }
    };
    let repository = open_with(Arc::new(HookedStore::new(&store, hook)), None);
    let outcome = repository.and_then(|repository| world.backup_with(&repository, BackupType::Incr));
    let mut expected: BTreeMap<String, Tree> = [scenario.kept.clone()].into();
    match outcome {
        Ok(report) => drop(expected.insert(report.commit.label, Tree::of_files(world.cluster.path()))),
        Err(e) => {
            assert!(gives_up, "request {at}: it was not given up: {}", e.chain());
            assert!(matches!(e.kind(), Kind::LockAcquire | Kind::FileMissing), "request {at}: {}", e.chain());
        }
    }
    let visible: Vec<String> = open(&store).unwrap().backups(STANZA).unwrap().into_iter().map(|b| b.label).collect();
    assert!(visible.iter().eq(expected.keys()), "request {at}: {visible:?} is not what was reported");
    // And nothing of that changes when what it left is collected.
    world.clock.sleep(SILENT_AFTER * 2);
    collect(&store, &world.clock);
    assert!(invariants(&store, &expected, &mut Ledger::default()).iter().eq(&visible), "request {at}");
    requests.load(Ordering::SeqCst)
}

#[test]
fn at_any_request() {
    let scenario = Scenario::new();
    let all = freeze(&scenario, usize::MAX, false);
    println!("{all} requests");
    for at in 0..all {
        freeze(&scenario, at, true);
        freeze(&scenario, at, false);
    }
}
