//! A collection that is stopped after any of its mutations, or loses any reply, leaves every visible backup whole, and the
//! next one comes to the same end.

use std::collections::BTreeSet;
use std::sync::Arc;

use pgkeep_engine::gc::{self, GcOptions, GcReport, Rewrite};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::repository::SILENT_AFTER;
use pgkeep_engine::store::{Fault, FaultStore, MemoryStore, Snapshot, Store, Verb};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::BackupType;
use support::offline::{Ledger, STANZA, Tree, World, invariants, open, open_with, text};

use crate::kept::{self, Kept, reader};

struct Scenario {
    world: World,
    stay: Kept,
    base: Snapshot,
}

impl Scenario {
    /// A full and an increment that have expired, a full and an increment that stay, and one that was killed.
    fn new() -> Self {
        let world = World::new(7, 2);
        world.backup(BackupType::Full);
        world.cluster.churn();
        world.backup(BackupType::Incr);
        let killed = Arc::new(FaultStore::new(world.store.clone()));
        killed.stop_after(6);
        world.cluster.churn_more();
        world.backup_to(killed, None, BackupType::Incr).expect_err("a killed backup");
        let going = open(&world.store).unwrap().backups(STANZA).unwrap();
        let mut stay = Kept::new();
        for kind in [BackupType::Full, BackupType::Incr] {
            world.cluster.update("base/5/16386", &[1, 3]);
            let made = world.backup(kind).commit.label;
            stay.insert(made, Tree::of_files(world.cluster.path()));
        }
        let repository = open(&world.store).unwrap();
        for backup in going {
            assert!(repository.mark_expired(STANZA, backup.session, "test", 1).unwrap());
        }
        let base = world.store.snapshot();
        Self { world, stay, base }
    }

    fn collect(&self, store: Arc<dyn Store>) -> pgkeep_engine::Result<GcReport> {
        let options = GcOptions { rewrite: Rewrite::Never, ..GcOptions::default() };
        gc::run(&open_with(store, None)?, &options, &Silent, &Cancel::default(), &*self.world.clock)
    }

    fn check(&self, store: &MemoryStore, when: &str) {
        kept::check(&self.stay, &reader(store), when);
    }

    /// After two collections without trouble nothing is left but what the backups need.
    fn settle(&self, store: &MemoryStore, when: &str) -> BTreeSet<String> {
        for _ in 0..3 {
            self.collect(Arc::new(store.clone())).unwrap_or_else(|e| panic!("{when}: {}", text(&e)));
        }
        self.check(store, when);
        assert_eq!(invariants(store, &self.stay, &mut Ledger::default()).len(), self.stay.len(), "{when}");
        // Segments and decisions may be others, and what asks for the time may be left.
        let passing = ["idx/", "gen/", "keys/probe/"];
        keys(store).into_iter().filter(|key| !passing.iter().any(|prefix| key.starts_with(prefix))).collect()
    }
}

fn keys(store: &MemoryStore) -> BTreeSet<String> {
    store.snapshot().keys().map(str::to_owned).collect()
}

#[test]
fn stopped_anywhere_it_harms_nothing_and_comes_to_the_same_end() {
    let scenario = Scenario::new();
    let fork = || scenario.world.store.from_snapshot(&scenario.base);
    // The killed backup may still be alive: what it stored stays, and so does what it may use.
    let store = fork();
    let counted = Arc::new(FaultStore::new(store.clone()));
    let report = scenario.collect(Arc::clone(&counted) as _).expect("a collection");
    assert_eq!((report.open.len(), report.deleted.packs, report.backups), (1, 0, 2));
    assert!(report.waiting.packs > 0 && report.condemned == report.waiting, "{report:?}");
    scenario.check(&store, "beside a session");
    // It is given up when it was silent for long.
    scenario.world.clock.advance(SILENT_AFTER.as_secs() + 1);
    let report = scenario.collect(Arc::clone(&counted) as _).expect("a collection");
    assert_eq!((report.fenced.len(), report.open.len(), report.waiting.packs), (1, 0, 0));
    assert!(report.deleted.packs > 0, "{report:?}");
    let end = scenario.settle(&store, "without trouble");
    // Records of what expired are gone, those of the two backups and of the killed one's fence are there.
    let below = |prefix: &str| end.iter().filter(|key| key.starts_with(prefix)).count();
    assert_eq!((below("refs/"), below("backups/"), below("expired/")), (2, 3, 0), "{end:?}");
    assert!(below("packs/") < scenario.base.keys().filter(|key| key.starts_with(layout::PACKS)).count());

    // Now at once, with every interruption.
    let store = fork();
    let counted = Arc::new(FaultStore::new(store.clone()));
    scenario.collect(Arc::clone(&counted) as _).expect("a collection");
    let steps = counted.mutations();
    assert_eq!(scenario.settle(&store, "at once"), end);
    println!("{steps} mutations");
    for n in 0..=steps {
        let when = format!("stopped after {n} of {steps}");
        let store = fork();
        let crashing = Arc::new(FaultStore::new(store.clone()));
        crashing.stop_after(n);
        drop(scenario.collect(Arc::clone(&crashing) as _).expect_err("a stopped store"));
        scenario.check(&store, &when);
        assert_eq!(scenario.settle(&store, &when), end, "{when}");
    }
    for (verb, n) in (1..=4).map(|n| (Verb::Put, n)).chain((1..=steps).step_by(3).map(|n| (Verb::Delete, n))) {
        let when = format!("reply {n} of {verb:?} lost");
        let store = fork();
        let losing = Arc::new(FaultStore::new(store.clone()));
        losing.fail(verb, n, Fault::LostReply);
        // It may have made fewer.
        drop(scenario.collect(Arc::clone(&losing) as _));
        scenario.check(&store, &when);
        assert_eq!(scenario.settle(&store, &when), end, "{when}");
    }
}
