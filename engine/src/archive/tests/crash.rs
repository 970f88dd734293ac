//! A push to two repositories, stopped or failed at every call in turn, then repeated.
//!
//! Invariants: acknowledged means readable and equal in every repository; not acknowledged means absent, or whole and
//! equal, in each; repeating succeeds (*Idem*); a name maps to one content for ever (*Wal*).

use super::*;
use crate::clock::SystemClock;
use crate::store::{Fault, FaultStore, RetryPolicy, RetryStore, Verb};
use std::time::Duration;

const OWN: [(Version, u64); 1] = [(Version::V16, SYSTEM)];
const ID: &str = "16-1";

struct Rig {
    cluster: Cluster,
    name: String,
    memory: [MemoryStore; 2],
    faulty: [Arc<FaultStore>; 2],
}

impl Rig {
    fn new() -> Self {
        let memory = [MemoryStore::new(), MemoryStore::new()];
        for (i, m) in memory.iter().enumerate() {
            create(i as u32 + 1, m.clone(), &OWN);
        }
        let faulty = memory.clone().map(|m| Arc::new(FaultStore::new(m)));
        let cluster = Cluster::new(Version::V16, SYSTEM);
        let name = cluster.segment(7, 1);
        Self { cluster, name, memory, faulty }
    }

    fn push(&self, wrap: impl Fn(Arc<FaultStore>) -> Arc<Repository>) -> Result<PushReport> {
        let repositories: Vec<Configured> = self
            .faulty
            .iter()
            .enumerate()
            .map(|(i, s)| Configured { key: i as u32 + 1, ..wrap(Arc::clone(s)).into() })
            .collect();
        self.cluster.push(&repositories, &self.name)
    }

    /// Checks the invariants on what is durable, then that a repetition succeeds.
    fn check(&self, what: &str, acknowledged: bool) {
        let content = self.cluster.content(segment(7), 1);
        let reopened = || -> Vec<Configured> { self.memory.iter().map(|m| open(1, m.clone()).into()).collect() };
        for repository in reopened() {
            match archived(&repository, ID, &self.name) {
                Some(found) => assert!(found == content, "{what}"),
                None => assert!(!acknowledged, "{what}: acknowledged and absent"),
            }
        }
        self.cluster.push(&reopened(), &self.name).unwrap_or_else(|e| panic!("{what}: {e}"));
        self.cluster.segment(7, 2);
        assert_eq!(kind(self.cluster.push(&reopened(), &self.name)), Kind::ArchiveDuplicate, "{what}");
        for repository in reopened() {
            assert!(archived(&repository, ID, &self.name).unwrap() == content, "{what}");
        }
    }
}

fn plain(store: Arc<FaultStore>) -> Arc<Repository> {
    open(1, store)
}

fn retrying(store: Arc<FaultStore>) -> Arc<Repository> {
    let policy = RetryPolicy { first_wait: Duration::from_millis(1), ..RetryPolicy::default() };
    open(1, RetryStore::new(store, Arc::new(SystemClock), policy))
}

#[test]
fn stopped_after_every_mutation() {
    // One mutation a repository: before it, and after it with its reply lost or not.
    for stops in
        [[Some(0), None], [None, Some(0)], [Some(0), Some(0)], [Some(1), None], [Some(1), Some(0)], [None, None]]
    {
        let rig = Rig::new();
        let repositories: Vec<Configured> = rig.faulty.iter().map(|s| plain(Arc::clone(s)).into()).collect();
        for (store, stop) in rig.faulty.iter().zip(stops) {
            stop.into_iter().for_each(|n| store.stop_after(n));
        }
        let result = rig.cluster.push(&repositories, &rig.name);
        assert_eq!(result.is_ok(), stops.iter().all(|s| *s != Some(0)), "{stops:?}: {result:?}");
        assert!(rig.faulty.iter().all(|s| s.mutations() <= 1));
        rig.check(&format!("{stops:?}"), result.is_ok());
    }
}

#[test]
fn failed_at_every_call() {
    let calls = [(Verb::Put, 1), (Verb::List, 1), (Verb::List, 2), (Verb::List, 3), (Verb::Get, 3), (Verb::Get, 4)];
    for fault in [Fault::Transient, Fault::Permanent, Fault::NoSpace, Fault::LostReply] {
        for (verb, call) in calls {
            for which in [0, 1] {
                let what = format!("{fault:?} at {verb:?} {call} of repository {which}");
                let rig = Rig::new();
                // Opening is part of it here: a repository that does not open is one that failed.
                rig.faulty[which].fail(verb, call, fault);
                let repositories: Vec<_> = rig
                    .faulty
                    .iter()
                    .enumerate()
                    .map(|(i, s)| Configured {
                        key: i as u32 + 1,
                        repository: Repository::open(Arc::new(Arc::clone(s)), options(1)).map(Arc::new),
                    })
                    .collect();
                let result = rig.cluster.push(&repositories, &rig.name);
                if let Err(e) = &result {
                    assert_eq!(e.kind(), Kind::Command, "{what}: {e}");
                    // The other one was served all the same.
                    let other = open(1, rig.memory[1 - which].clone()).into();
                    assert!(archived(&other, ID, &rig.name).is_some(), "{what}");
                }
                rig.check(&what, result.is_ok());
            }
        }
    }
}

#[test]
fn a_lost_reply_is_settled_by_trying_again_inside() {
    for fault in [Fault::Transient, Fault::LostReply] {
        for verb in [Verb::Put, Verb::Get, Verb::List] {
            let rig = Rig::new();
            rig.faulty.iter().for_each(|s| s.fail(verb, 1, fault));
            let result = rig.push(retrying).unwrap();
            let PushReport::Archived(pushed) = &result else { panic!("{result:?}") };
            assert!(pushed.iter().all(|p| p.created), "{fault:?} {verb:?}: {pushed:?}");
            rig.check(&format!("{fault:?} {verb:?}"), true);
        }
    }
}

#[test]
fn a_repetition_after_one_repository_failed_serves_the_other_only() {
    let rig = Rig::new();
    rig.faulty[1].fail(Verb::Put, 1, Fault::NoSpace);
    assert_eq!(kind(rig.push(plain)), Kind::Command);
    let PushReport::Archived(pushed) = rig.push(plain).unwrap() else { panic!() };
    assert_eq!(pushed.iter().map(|p| p.created).collect::<Vec<_>>(), [false, true]);
    rig.check("repeated", true);
}
