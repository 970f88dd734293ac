//! Packs of which much is dead are rewritten: the space comes back, and every backup stays as it was, for those who read
//! meanwhile as well, wherever the collection stops.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pgkeep_engine::gc::{self, GcOptions, GcReport, Rewrite};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::repository::{ChunkSource, SILENT_AFTER};
use pgkeep_engine::store::{Depth, Fault, FaultStore, MemoryStore, Snapshot, Store, Verb};
use pgkeep_engine::verify::{self, VerifyOptions};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::BackupType;
use support::offline::{Ledger, STANZA, Tree, World, invariants, open, open_with, read_back, text};

const TABLE: &str = "base/5/20000";
/// Pages of it: 8 MiB.
const PAGES: u32 = 1024;

struct Scenario {
    world: World,
    stay: BTreeMap<String, Tree>,
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
        let mut stay = BTreeMap::new();
        for n in 0..3 {
            let label = world.backup(BackupType::Incr).commit.label;
            stay.insert(label, Tree::of_files(world.cluster.path()));
            let some: Vec<u32> = (PAGES / 4 * 3 + n * 40..).take(30).collect();
            world.cluster.edit(TABLE, &some);
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

    fn check(&self, source: &Arc<ChunkSource>, when: &str) {
        let visible = source.repository().backups(STANZA).expect("the backups must be listed");
        let labels: Vec<&String> = visible.iter().map(|c| &c.label).collect();
        assert_eq!(labels, self.stay.keys().collect::<Vec<_>>(), "{when}");
        let mut seen = HashMap::new();
        for commit in &visible {
            let tree = read_back(source, commit, &mut seen).unwrap_or_else(|e| panic!("{when}: {}", text(&e)));
            assert_eq!(self.stay[&commit.label].differences(&tree), Vec::<String>::new(), "{when}: {}", commit.label);
        }
    }
}

fn source(store: &MemoryStore) -> Arc<ChunkSource> {
    let repository = open(store).expect("the repository must open");
    let index = repository.load_index_of_what_is_there().expect("the index must load");
    Arc::new(ChunkSource::new(repository, index, STANZA))
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
    let reader = source(&store);
    let report = scenario.collect(Arc::new(store.clone())).expect("a collection");
    assert!(report.rewritten.packs > 0 && report.deleted.packs >= report.rewritten.packs, "{report:?}");
    assert!(report.rewritten_to * 2 < report.rewritten.bytes, "{report:?}");
    let after = stored(&store);
    println!("{before} bytes before, {after} after; {report:?}");
    assert!(after + report.rewritten.bytes / 2 < before, "{before} {after}");
    scenario.check(&source(&store), "afterwards");
    // Who has the old index misses packs, and finds where the chunks are now.
    scenario.check(&reader, "for a reader");
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
        scenario.check(&source(store), when);
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
