//! A backup stopped after any of its mutations of the store leaves a valid repository, and the next one carries on.
//!
//! *Commit, Closure, Order, Unique, Idem* and *Rebuild* of DESIGN, section 5, over every crash point of a first full and of
//! an incremental after changes. What a crash leaves is what the store held at that moment: nothing else survives.

use pgkeep_engine::backup::BackupReport;
use pgkeep_engine::clock::Clock;
use pgkeep_engine::pack::read_footer;
use pgkeep_engine::store::{
    Fault, FaultStore, MemoryStore, RecordingStore, RetryPolicy, RetryStore, Snapshot, Store, Verb,
};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::BackupType;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use support::offline::{Ledger, STANZA, Tree, World, chunk_ids, invariants, open, rebuild, text};

/// One backup to be stopped at every point, with what was there before it.
struct Scenario {
    world: World,
    kind: BackupType,
    /// What every backup before it holds.
    before: BTreeMap<String, Tree>,
    /// What it will hold.
    tree: Tree,
    base: Snapshot,
    ledger: Ledger,
    /// Mutations of the whole backup, and bytes it puts.
    steps: u64,
    bytes: u64,
}

impl Scenario {
    fn new(world: World, kind: BackupType, before: BTreeMap<String, Tree>) -> Self {
        let (tree, base) = (Tree::of_files(world.cluster.path()), world.store.snapshot());
        let mut scenario = Self { world, kind, before, tree, base, ledger: Ledger::default(), steps: 0, bytes: 0 };
        let store = scenario.world.fork();
        let counted = Arc::new(FaultStore::new(store.clone()));
        let report = scenario.run(Arc::clone(&counted) as _).expect("the whole backup");
        (scenario.steps, scenario.bytes) = (counted.mutations(), put_bytes(&scenario.base, &store.snapshot()));
        let labels = scenario.check(&store, Some(&report.commit.label));
        assert!(labels.contains(&report.commit.label));
        let segments = store.snapshot().keys().filter(|key| key.starts_with(layout::INDEX)).count();
        println!("{} mutations, {} bytes, {segments} index segments", scenario.steps, scenario.bytes);
        drop(rebuild(&store));
        scenario
    }

    fn run(&self, store: Arc<dyn Store>) -> pgkeep_engine::Result<BackupReport> {
        self.world.backup_to(store, None, self.kind)
    }

    /// Checks all invariants; `made` is the label of a backup of the tree beside those of before.
    fn check(&mut self, store: &MemoryStore, made: Option<&str>) -> BTreeSet<String> {
        let mut expected = self.before.clone();
        expected.extend(made.map(|label| (label.to_owned(), self.tree.clone())));
        let labels = invariants(store, &expected, &mut self.ledger);
        let after = store.snapshot();
        for key in self.base.keys() {
            assert_eq!(self.base.get(key), after.get(key), "'{key}' was changed");
        }
        assert!(self.before.keys().all(|label| labels.contains(label)), "an old backup has vanished: {labels:?}");
        labels
    }

    /// What must hold after the store was left as it is: at step `n`, with the commit there or not.
    fn recover(&mut self, store: &MemoryStore, n: u64, committed: bool) {
        let visible = open(store).and_then(|r| r.backups(STANZA)).expect("the backups must be listed");
        let new: Vec<String> =
            visible.into_iter().map(|c| c.label).filter(|label| !self.before.contains_key(label)).collect();
        assert_eq!(new.len(), usize::from(committed), "Commit: after step {n} of {}", self.steps);
        self.check(store, new.first().map(String::as_str));
        drop(rebuild(store));

        let indexed = chunk_ids(store);
        let stopped = store.snapshot();
        let recording = Arc::new(RecordingStore::new(store.clone()));
        let report = self.run(Arc::clone(&recording) as _).unwrap_or_else(|e| panic!("after step {n}: {}", text(&e)));
        assert!(report.commit.label > new.first().cloned().unwrap_or_default());
        let again = new_chunks(store, &stopped).intersection(&indexed).count();
        assert_eq!(again, 0, "after step {n}: chunks that were indexed are stored again");
        let (put, known) = (recording.bytes(Verb::Put), stored_bytes(store, &stopped, &self.base, &indexed));
        assert!(put <= self.bytes + 4096, "after step {n}: {put} bytes, {} without a crash", self.bytes);
        // Manifests carry the time of the backup, so a little is always new.
        assert!(put + known <= self.bytes + 64_000, "after step {n}: {put} bytes put though {known} were indexed");
        let mut expected = self.before.clone();
        expected.extend(new.into_iter().chain([report.commit.label]).map(|label| (label, self.tree.clone())));
        assert_eq!(invariants(store, &expected, &mut self.ledger).len(), expected.len(), "after step {n}");
    }

    fn stopped_everywhere(&mut self) {
        for n in 0..=self.steps {
            let store = self.world.fork();
            let crashing = Arc::new(FaultStore::new(store.clone()));
            crashing.stop_after(n);
            let failed = self.run(Arc::clone(&crashing) as _).expect_err("a stopped store");
            assert!(text(&failed).contains("the store has stopped"), "step {n}: {}", text(&failed));
            assert!(crashing.is_stopped(), "step {n}");
            self.recover(&store, n, n == self.steps);
        }
    }

    /// The reply to one put is lost and nobody tries again: the backup fails, and says so in the repository.
    fn lost_everywhere(&mut self) {
        for n in 1..=self.steps {
            let store = self.world.fork();
            let losing = Arc::new(FaultStore::new(store.clone()));
            losing.fail(Verb::Put, n, Fault::LostReply);
            let failed = self.run(Arc::clone(&losing) as _).expect_err("a lost reply");
            assert!(text(&failed).contains("the reply was lost"), "step {n}: {}", text(&failed));
            self.recover(&store, n, n == self.steps);
        }
    }

    /// *Idem*: with retries underneath, one failure of a put changes nothing, whether it took effect or not.
    fn retried_everywhere(&mut self) {
        for n in 1..=self.steps {
            for fault in [Fault::LostReply, Fault::Transient] {
                let store = self.world.fork();
                let failing = Arc::new(FaultStore::new(store.clone()));
                failing.fail(Verb::Put, n, fault);
                let clock = Arc::clone(&self.world.clock) as Arc<dyn Clock>;
                let retrying = RetryStore::new(Arc::clone(&failing), clock, RetryPolicy::default());
                let report =
                    self.run(Arc::new(retrying)).unwrap_or_else(|e| panic!("put {n}, {fault:?}: {}", text(&e)));
                self.check(&store, Some(&report.commit.label));
                let objects = store.snapshot().keys().count() - self.base.keys().count();
                assert_eq!(objects as u64, self.steps, "put {n}, {fault:?}");
            }
        }
    }
}

/// Bytes of the objects that are in `after` only.
fn put_bytes(before: &Snapshot, after: &Snapshot) -> u64 {
    let new = after.keys().filter(|key| before.get(key).is_none());
    new.map(|key| after.get(key).expect("listed").len() as u64).sum()
}

/// The chunks in packs that came after `before`.
fn new_chunks(store: &MemoryStore, before: &Snapshot) -> HashSet<ChunkId> {
    let repository = open(store).expect("the repository must open");
    let after = store.snapshot();
    let new = after.keys().filter(|key| before.get(key).is_none()).filter_map(layout::parse_pack);
    let size = |pack| after.get(&layout::pack(pack)).expect("listed").len() as u64;
    new.flat_map(|pack| read_footer(&repository, pack, size(pack)).expect("a footer").1.entries)
        .map(|entry| entry.id)
        .collect()
}

/// Bytes of indexed chunks in packs that a stopped backup left beside those of before.
fn stored_bytes(store: &MemoryStore, stopped: &Snapshot, base: &Snapshot, indexed: &HashSet<ChunkId>) -> u64 {
    let repository = open(store).expect("the repository must open");
    let left = stopped.keys().filter(|key| base.get(key).is_none()).filter_map(layout::parse_pack);
    let size = |pack| stopped.get(&layout::pack(pack)).expect("listed").len() as u64;
    left.flat_map(|pack| read_footer(&repository, pack, size(pack)).expect("a footer").1.entries)
        .filter(|entry| indexed.contains(&entry.id))
        .map(|entry| u64::from(entry.stored_len))
        .sum()
}

/// Large enough to publish an index segment in mid-backup.
fn first_full() -> Scenario {
    let scenario = Scenario::new(World::new(1, 8), BackupType::Full, BTreeMap::new());
    assert!(scenario.steps >= 16, "{} steps", scenario.steps);
    scenario
}

fn incremental() -> Scenario {
    let world = World::new(2, 1);
    let full = Tree::of_files(world.cluster.path());
    let label = world.backup(BackupType::Full).commit.label;
    world.cluster.churn();
    // More than what is gathered into one pack.
    world.cluster.relation("base/5/18000", 150);
    let scenario = Scenario::new(world, BackupType::Incr, [(label, full)].into());
    assert!(scenario.steps >= 8, "{} steps", scenario.steps);
    scenario
}

#[test]
fn a_first_full_may_stop_anywhere() {
    first_full().stopped_everywhere();
}

#[test]
fn an_incremental_may_stop_anywhere() {
    incremental().stopped_everywhere();
}

#[test]
fn a_first_full_may_lose_any_reply() {
    first_full().lost_everywhere();
}

#[test]
fn an_incremental_may_lose_any_reply() {
    incremental().lost_everywhere();
}

#[test]
fn a_retried_put_changes_nothing() {
    incremental().retried_everywhere();
}
