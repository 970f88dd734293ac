//! Against stores in memory, with made-up clusters.

use super::*;
use crate::clock::SystemClock;
use crate::crypto::Unlock;
use crate::lock;
use crate::observe::{Cancel, Silent};
use crate::repository::testing;
use crate::store::{FaultStore, Listed, MemoryStore, Range, StoreError};
use std::path::Path;

const PG15: ClusterIdentity =
    ClusterIdentity { version: 15, system_identifier: 7001, catalog_version: 202_209_061, control_version: 1300 };
const PG16: ClusterIdentity = ClusterIdentity { version: 16, system_identifier: 7002, ..PG15 };

fn options(key: u32) -> OpenOptions {
    OpenOptions { key, unlock: Unlock::None, cache: None }
}

fn target(store: &(impl Store + Clone + 'static), key: u32) -> RepoTarget {
    RepoTarget { store: Arc::new(store.clone()), options: options(key) }
}

fn one(outcomes: Result<Vec<RepoOutcome>>) -> Result<Outcome> {
    let mut outcomes = outcomes?;
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0).result
}

fn make(store: &(impl Store + Clone + 'static), stanza: &str, identity: &ClusterIdentity) -> Result<Outcome> {
    one(create(vec![target(store, 1)], stanza, identity, &SystemClock))
}

fn raise(store: &(impl Store + Clone + 'static), stanza: &str, identity: &ClusterIdentity) -> Result<Outcome> {
    one(upgrade(vec![target(store, 1)], stanza, identity, &SystemClock))
}

fn history(store: &(impl Store + Clone + 'static), stanza: &str) -> Vec<(u32, u32)> {
    let repository = Repository::open(Arc::new(store.clone()), options(1)).unwrap();
    repository.stanza_history(stanza).unwrap().iter().map(|h| (h.id, h.version)).collect()
}

fn outcome(change: Change, repository_created: bool, history_id: u32) -> Outcome {
    Outcome { change, repository_created, history_id }
}

#[test]
fn a_stanza_is_made_once_and_is_valid_after() {
    let store = MemoryStore::new();
    assert_eq!(make(&store, "demo", &PG15).unwrap(), outcome(Change::Created, true, 1));
    assert_eq!(make(&store, "demo", &PG15).unwrap(), outcome(Change::Unchanged, false, 1));
    assert_eq!(make(&store, "other", &PG16).unwrap(), outcome(Change::Created, false, 1));
    let repository = Repository::open(Arc::new(store.clone()), options(1)).unwrap();
    assert_eq!(repository.stanzas().unwrap(), ["demo", "other"]);
    assert_eq!(repository.stanza_history("demo").unwrap()[0].archive_id(), "15-1");
    assert!(store.snapshot().keys().all(|k| !k.contains("probe")));
}

#[test]
fn names_that_could_leave_their_place_are_refused_before_anything_is_made() {
    let store = MemoryStore::new();
    for name in ["", "..", "a/b", ".x"] {
        assert_eq!(make(&store, name, &PG15).unwrap_err().kind(), Kind::OptionInvalidValue);
        assert_eq!(raise(&store, name, &PG15).unwrap_err().kind(), Kind::OptionInvalidValue);
    }
    assert_eq!(store.snapshot().keys().count(), 0);
}

#[test]
fn another_cluster_is_refused_until_the_stanza_is_upgraded() {
    let store = MemoryStore::new();
    make(&store, "demo", &PG15).unwrap();
    let refused = make(&store, "demo", &PG16).unwrap_err();
    assert_eq!(refused.kind(), Kind::FileInvalid);
    let text = refused.to_string();
    assert!(text.contains("PostgreSQL 15 with system identifier 7001"), "{text}");
    assert!(text.contains("PostgreSQL 16 with system identifier 7002"), "{text}");
    assert_eq!(raise(&store, "demo", &PG16).unwrap(), outcome(Change::Upgraded, false, 2));
    assert_eq!(raise(&store, "demo", &PG16).unwrap(), outcome(Change::Unchanged, false, 2));
    assert_eq!(make(&store, "demo", &PG16).unwrap(), outcome(Change::Unchanged, false, 2));
    // A cluster made anew by initdb has the same version and is another all the same.
    let anew = ClusterIdentity { system_identifier: 7003, ..PG16 };
    assert_eq!(make(&store, "demo", &anew).unwrap_err().kind(), Kind::FileInvalid);
    assert_eq!(raise(&store, "demo", &anew).unwrap(), outcome(Change::Upgraded, false, 3));
    assert_eq!(history(&store, "demo"), [(1, 15), (2, 16), (3, 16)]);
}

#[test]
fn there_must_be_a_stanza_to_upgrade() {
    let store = MemoryStore::new();
    assert_eq!(raise(&store, "demo", &PG15).unwrap_err().kind(), Kind::FileMissing);
    make(&store, "other", &PG15).unwrap();
    assert_eq!(raise(&store, "demo", &PG15).unwrap_err().kind(), Kind::FileMissing);
}

#[test]
fn a_repository_that_fails_does_not_keep_the_others_from_theirs() {
    let (good, foreign) = (MemoryStore::new(), MemoryStore::new());
    foreign.put_if_absent("somebody/else", b"x").unwrap();
    let targets = vec![target(&foreign, 1), target(&good, 4)];
    let outcomes = create(targets, "demo", &PG15, &SystemClock).unwrap();
    assert_eq!(outcomes.iter().map(|o| o.key).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(outcomes[0].result.as_ref().unwrap_err().kind(), Kind::PathNotEmpty);
    assert_eq!(*outcomes[1].result.as_ref().unwrap(), outcome(Change::Created, true, 1));
    assert_eq!(foreign.snapshot().keys().collect::<Vec<_>>(), ["somebody/else"]);
}

#[test]
fn backups_or_wal_without_a_history_are_refused() {
    for key in ["backups/demo/00", "wal/demo/15-1/00000001.history"] {
        let store = MemoryStore::new();
        make(&store, "other", &PG15).unwrap();
        store.put_if_absent(key, b"x").unwrap();
        let refused = make(&store, "demo", &PG15).unwrap_err();
        assert_eq!(refused.kind(), Kind::PathNotEmpty, "{refused}");
    }
}

#[test]
fn making_a_stanza_can_be_interrupted_anywhere() {
    let whole = FaultStore::new(MemoryStore::new());
    let counted = Arc::new(whole);
    make(&counted, "demo", &PG15).unwrap();
    let steps = counted.mutations();
    assert!(steps >= 5, "{steps}");
    for n in 0..steps {
        let store = Arc::new(FaultStore::new(MemoryStore::new()));
        store.stop_after(n);
        assert!(make(&store, "demo", &PG15).is_err(), "step {n}");
        store.revive();
        make(&store, "demo", &PG15).unwrap();
        assert_eq!(history(&store, "demo"), [(1, 15)], "step {n}");
    }
}

#[test]
fn two_hosts_at_once_make_one_history() {
    let store = MemoryStore::new();
    make(&store, "other", &PG15).unwrap();
    let changes: Vec<Change> = std::thread::scope(|scope| {
        let hosts: Vec<_> = (0..8).map(|_| scope.spawn(|| make(&store, "demo", &PG15).unwrap().change)).collect();
        hosts.into_iter().map(|h| h.join().unwrap()).collect()
    });
    assert_eq!(changes.iter().filter(|c| **c == Change::Created).count(), 1);
    assert_eq!(history(&store, "demo"), [(1, 15)]);
}

/// Takes every put, like an object store that does not know conditions.
#[derive(Debug, Clone, Default)]
struct Overwriting(Arc<std::sync::Mutex<std::collections::BTreeMap<String, Vec<u8>>>>);

impl Store for Overwriting {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        self.0.lock().unwrap().insert(key.to_owned(), bytes.to_vec());
        Ok(Put::Created)
    }
    fn get(&self, key: &str, _: Range) -> Result<Vec<u8>, StoreError> {
        let found = self.0.lock().unwrap().get(key).cloned();
        found.ok_or_else(|| StoreError::NotFound { key: key.to_owned(), store: self.describe() })
    }
    fn list(&self, prefix: &str, _: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(k, _)| k.starts_with(prefix)).for_each(|(k, v)| {
            each(Listed { key: k.clone(), size: v.len() as u64, modified: 0 });
        });
        Ok(())
    }
    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.0.lock().unwrap().remove(key);
        Ok(())
    }
    fn describe(&self) -> String {
        "a careless store".to_owned()
    }
}

#[test]
fn a_store_that_overwrites_gets_no_repository() {
    let store = Overwriting::default();
    let refused = make(&store, "demo", &PG15).unwrap_err();
    assert_eq!(refused.kind(), Kind::RepoInvalid);
    assert!(refused.to_string().contains("a careless store"), "{refused}");
    assert!(store.0.lock().unwrap().is_empty());
}

/// A repository with two stanzas, both with objects of every kind that belongs to one.
fn full(store: &impl Store) {
    for stanza in ["demo", "other"] {
        for key in [
            format!("backups/{stanza}/aa"),
            format!("backups/{stanza}/bb"),
            format!("expired/{stanza}/aa"),
            format!("annotations/{stanza}/aa/1"),
            format!("traces/{stanza}/1"),
            format!("drills/{stanza}/1"),
            format!("wal/{stanza}/15-1/00000002.history"),
            format!("wal/{stanza}/15-1/0000000100000000/000000010000000000000001"),
            format!("wal/{stanza}/15-1/0000000100000001/000000010000000100000001"),
        ] {
            store.put_if_absent(&key, b"x").unwrap();
        }
    }
    store.put_if_absent("packs/aa/aa", b"x").unwrap();
}

fn remove(
    store: &(impl Store + Clone + 'static),
    lock_path: &Path,
    pgdata: Option<&Path>,
    when: WhenRunning,
) -> Result<Deleted> {
    let repository = Repository::open(Arc::new(store.clone()), options(1))?;
    let options = DeleteOptions { lock_path, pgdata, when_running: when };
    delete(&repository, "demo", &options, &Silent, &Cancel::default(), &SystemClock)
}

#[test]
fn a_stanza_is_deleted_only_when_stopped_and_without_server() {
    let dir = tempfile::tempdir().unwrap();
    let (locks, pgdata) = (dir.path().join("locks"), dir.path().join("data"));
    std::fs::create_dir(&pgdata).unwrap();
    let store = MemoryStore::new();
    make(&store, "demo", &PG15).unwrap();
    make(&store, "other", &PG15).unwrap();
    full(&store);
    let before = store.snapshot();
    assert_eq!(remove(&store, &locks, None, WhenRunning::Delete).unwrap_err().kind(), Kind::FileMissing);
    lock::stop(&locks, Some("demo")).unwrap();
    std::fs::write(pgdata.join("postmaster.pid"), "1\n").unwrap();
    let refused = remove(&store, &locks, Some(&pgdata), WhenRunning::Refuse).unwrap_err();
    assert_eq!(refused.kind(), Kind::PostgresRunning);
    assert_eq!(store.snapshot(), before);
    let deleted = remove(&store, &locks, Some(&pgdata), WhenRunning::Delete).unwrap();
    assert_eq!(deleted, Deleted { backups: 2, wal: 3, objects: 10 });
    let left = store.snapshot();
    assert!(left.keys().all(|k| !k.contains("demo")));
    assert_eq!(left.keys().filter(|k| k.contains("other")).count(), 10);
    assert!(left.get("packs/aa/aa").is_some());
    std::fs::remove_file(pgdata.join("postmaster.pid")).unwrap();
    assert_eq!(remove(&store, &locks, Some(&pgdata), WhenRunning::Refuse).unwrap(), Deleted::default());
    assert_eq!(make(&store, "demo", &PG16).unwrap(), outcome(Change::Created, false, 1));
}

#[test]
fn an_interrupted_removal_leaves_no_backup_without_its_history_and_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    lock::stop(dir.path(), Some("demo")).unwrap();
    let made = MemoryStore::new();
    make(&made, "demo", &PG15).unwrap();
    full(&made);
    for n in 0..9 {
        let store = Arc::new(FaultStore::new(made.from_snapshot(&made.snapshot())));
        store.stop_after(n);
        assert!(remove(&store, dir.path(), None, WhenRunning::Refuse).is_err());
        store.revive();
        let mut keys = Vec::new();
        store.list("", Depth::All, &mut |l| keys.push(l.key)).unwrap();
        let has = |prefix: &str| keys.iter().any(|k| k.starts_with(prefix));
        assert!(has("stanzas/demo/"), "step {n}: the history must go last");
        assert!(has("expired/demo/") || !has("backups/demo/"), "step {n}: an expired backup came back");
        remove(&store, dir.path(), None, WhenRunning::Refuse).unwrap();
        assert_eq!(make(&store, "demo", &PG15).unwrap().change, Change::Created, "step {n}");
    }
}

#[test]
fn a_stalled_session_cannot_commit_into_a_stanza_that_was_deleted_and_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    lock::stop(dir.path(), Some("demo")).unwrap();
    let store = MemoryStore::new();
    make(&store, "demo", &PG15).unwrap();
    let repository = Arc::new(Repository::open(Arc::new(store.clone()), options(1)).unwrap());
    let mut stalled = testing::session(&repository, "demo");
    stalled.needs_no_wal().unwrap();
    let fence = layout::backup("demo", stalled.id());
    testing::session(&repository, "demo").abandon("done", &SystemClock).unwrap();
    remove(&store, dir.path(), None, WhenRunning::Refuse).unwrap();
    let left: Vec<_> = store.snapshot().keys().map(str::to_owned).collect();
    assert!(!left.iter().any(|key| key.starts_with(layout::SESSIONS)), "{left:?}");
    assert_eq!(left.iter().filter(|key| key.starts_with(layout::BACKUPS)).collect::<Vec<_>>(), [&fence]);
    assert_eq!(make(&store, "demo", &PG16).unwrap().change, Change::Created);
    remove(&store, dir.path(), None, WhenRunning::Refuse).unwrap();
    assert!(store.snapshot().get(&fence).is_some(), "whom it keeps out may still come");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| testing::commit(stalled, |_| {})));
    assert!(outcome.is_err() && repository.backups("demo").unwrap().is_empty());
}
