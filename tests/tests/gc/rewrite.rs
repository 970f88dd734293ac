//! Packs of which much is dead are rewritten: the space comes back, and every backup stays as it was, for those who read
//! meanwhile as well, wherever the collection stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgkeep_engine::gc::{self, GcOptions, GcReport, Rewrite};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::repository::SILENT_AFTER;
use pgkeep_engine::restore::{self, Env, RestoreOptions};
use pgkeep_engine::store::{Depth, Fault, FaultStore, MemoryStore, Snapshot, Store, Verb};
use pgkeep_engine::verify::{self, VerifyOptions};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::BackupType;
use support::offline::{HookedStore, Ledger, STANZA, Tree, World, invariants, open, open_with, text};

use crate::kept::{self, Kept, reader};

const TABLE: &str = "base/5/20000";
/// Pages of it: 8 MiB.
const PAGES: u32 = 1024;

struct Scenario {
    world: World,
    stay: Kept,
    base: Snapshot,
}

impl Scenario {
    /// A full that has expired; of what it stored a quarter is in use by three increments, partly as what deltas build on.
    fn new() -> Self {
        let world = World::new(11, 1);
        world.cluster.relation(TABLE, PAGES);
        let first = world.backup(BackupType::Full).commit.session;
        let most: Vec<u32> = (0..PAGES / 4 * 3).collect();
        world.cluster.update(TABLE, &most);
        let mut stay = Kept::new();
        for n in 0..3 {
            let some: Vec<u32> = (PAGES / 4 * 3 + n * 40..).take(30).collect();
            world.cluster.edit(TABLE, &some);
            let label = world.backup(BackupType::Incr).commit.label;
            stay.insert(label, Tree::of_files(world.cluster.path()));
        }
        assert!(open(&world.store).unwrap().mark_expired(STANZA, first, "test", 1).unwrap());
        let base = world.store.snapshot();
        Self { world, stay, base }
    }

    fn fork(&self) -> MemoryStore {
        self.world.store.from_snapshot(&self.base)
    }

    fn collect(&self, store: Arc<dyn Store>) -> pgkeep_engine::Result<GcReport> {
        let options = GcOptions { rewrite: Rewrite::Always, host: "test", ..GcOptions::default() };
        gc::run(&open_with(store, None)?, &options, &Silent, &Cancel::default(), &*self.world.clock)
    }
}

fn sizes(store: &MemoryStore, prefix: &str) -> Vec<u64> {
    let mut sizes = Vec::new();
    store.list(prefix, Depth::All, &mut |l| sizes.push(l.size)).unwrap();
    sizes
}

fn stored(store: &MemoryStore) -> u64 {
    sizes(store, layout::PACKS).iter().sum()
}

fn verified(store: &MemoryStore, when: &str) {
    let options = VerifyOptions { jobs: 2, ..VerifyOptions::default() };
    let report = verify::run(&open(store).unwrap(), &options, &Silent, &Cancel::default()).unwrap();
    assert!(report.is_clean(), "{when}: {report:?}");
}

#[test]
fn what_is_in_use_is_moved_and_the_rest_goes() {
    let scenario = Scenario::new();
    let store = scenario.fork();
    let before = stored(&store);
    let early = reader(&store);
    let report = scenario.collect(Arc::new(store.clone())).expect("a collection");
    assert!(report.rewritten.packs > 0 && report.deleted.packs >= report.rewritten.packs, "{report:?}");
    assert!(report.rewritten_to * 2 < report.rewritten.bytes, "{report:?}");
    let after = stored(&store);
    println!("{before} bytes before, {after} after; {report:?}");
    assert!(after + report.rewritten.bytes / 2 < before, "{before} {after}");
    kept::check(&scenario.stay, &reader(&store), "afterwards");
    // Who has the old index misses packs, and finds where the chunks are now.
    kept::check(&scenario.stay, &early, "for a reader");
    invariants(&store, &scenario.stay, &mut Ledger::default());
    verified(&store, "afterwards");
    // Nothing is left to do.
    let again = scenario.collect(Arc::new(store.clone())).expect("a collection");
    assert_eq!((again.rewritten.packs, again.deleted.packs, again.condemned.packs), (0, 0, 0), "{again:?}");
    assert_eq!(sizes(&store, layout::MOVES).len(), 1);

    // The next backup builds on it.
    let repository = open(&store).unwrap();
    let next = scenario.world.backup_with(&repository, BackupType::Incr).expect("a backup").commit;
    let mut stay = scenario.stay.clone();
    stay.insert(next.label, Tree::of_files(scenario.world.cluster.path()));
    invariants(&store, &stay, &mut Ledger::default());
    assert!(stored(&store) < after + after / 8, "it stored again what is there");

    // When nobody names the old packs any more, what was moved is forgotten.
    for backup in repository.backups(STANZA).unwrap().into_iter().take(stay.len() - 1) {
        repository.mark_expired(STANZA, backup.session, "test", 1).unwrap();
    }
    let full = scenario.world.backup_with(&repository, BackupType::Full).expect("a backup").commit;
    for backup in repository.backups(STANZA).unwrap().into_iter().filter(|b| b.label != full.label) {
        repository.mark_expired(STANZA, backup.session, "test", 1).unwrap();
    }
    stay = [(full.label, Tree::of_files(scenario.world.cluster.path()))].into();
    for _ in 0..4 {
        scenario.collect(Arc::new(store.clone())).expect("a collection");
        verified(&store, "at the end");
    }
    invariants(&store, &stay, &mut Ledger::default());
    assert!(sizes(&store, layout::MOVES).len() <= 2, "what was moved is remembered for ever");
}

#[test]
fn stopped_anywhere_it_harms_nothing_and_is_done_by_the_next() {
    let scenario = Scenario::new();
    let store = scenario.fork();
    let counted = Arc::new(FaultStore::new(store.clone()));
    scenario.collect(Arc::clone(&counted) as _).expect("a collection");
    let (steps, end) = (counted.mutations(), stored(&store));
    println!("{steps} mutations");
    let settle = |store: &MemoryStore, when: &str| {
        kept::check(&scenario.stay, &reader(store), when);
        // Who was stopped may be alive; then it is given up.
        scenario.world.clock.advance(SILENT_AFTER.as_secs() + 1);
        for _ in 0..3 {
            scenario.collect(Arc::new(store.clone())).unwrap_or_else(|e| panic!("{when}: {}", text(&e)));
        }
        invariants(store, &scenario.stay, &mut Ledger::default());
        let left = stored(store);
        assert!(left <= end + end / 50, "{when}: {left} bytes are left instead of {end}");
    };
    for n in 0..steps {
        let store = scenario.fork();
        let crashing = Arc::new(FaultStore::new(store.clone()));
        crashing.stop_after(n);
        drop(scenario.collect(Arc::clone(&crashing) as _).expect_err("a stopped store"));
        settle(&store, &format!("stopped after {n} of {steps}"));
    }
    for n in 1..=12 {
        let store = scenario.fork();
        let losing = Arc::new(FaultStore::new(store.clone()));
        losing.fail(Verb::Put, n, Fault::LostReply);
        drop(scenario.collect(Arc::clone(&losing) as _));
        settle(&store, &format!("reply {n} lost"));
    }
}

/// A restore and a verification in the middle of which packs are rewritten that they have not read yet.
#[test]
fn who_reads_meanwhile_finds_what_was_moved() {
    let scenario = Arc::new(Scenario::new());
    let beside = |store: &MemoryStore| {
        let (store, scenario, done) = (store.clone(), Arc::clone(&scenario), Arc::new(AtomicBool::new(false)));
        let base = store.clone();
        let is_done = Arc::clone(&done);
        let hook = move |verb: Verb, key: &str| {
            if verb == Verb::Get && layout::parse_pack(key).is_some() && !done.swap(true, Ordering::SeqCst) {
                let report = scenario.collect(Arc::new(store.clone())).expect("a collection");
                assert!(report.rewritten.packs > 0 && report.deleted.packs > 0, "{report:?}");
            }
        };
        (open_with(Arc::new(HookedStore::new(&base, hook)), None).unwrap(), is_done)
    };

    let (repository, is_done) = beside(&scenario.fork());
    let target = scenario.world.path("restored");
    let mut options = RestoreOptions { process_max: 2, ..RestoreOptions::new(STANZA, &target) };
    options.maps.tablespace_all = Some(scenario.world.path("tablespaces"));
    let env = Env { observer: &Silent, cancel: &Cancel::default(), clock: &*scenario.world.clock };
    restore::run(&[repository], &options, &env).unwrap_or_else(|e| panic!("{}", text(&e)));
    assert!(is_done.load(Ordering::SeqCst));
    let content = |root: &std::path::Path| std::fs::read(root.join(TABLE)).unwrap();
    assert!(content(&target) == content(scenario.world.cluster.path()));

    let (repository, is_done) = beside(&scenario.fork());
    let options = VerifyOptions { jobs: 2, ..VerifyOptions::default() };
    let report = verify::run(&repository, &options, &Silent, &Cancel::default()).unwrap();
    assert!(is_done.load(Ordering::SeqCst) && report.is_clean(), "{report:?}");
}
