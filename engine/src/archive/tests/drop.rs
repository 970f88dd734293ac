//! Too much waits: who has what is given up, and what is never given up.

use super::ahead::{ID, OWN, Rig, word};
use super::*;
use crate::archive::spool::{Binding, Outcome};
use crate::observe::Cancel;
use crate::store::{Fault, FaultStore, Verb};

const HISTORY: &str = "00000002.history";

/// Runs with a queue of this many segments at most.
fn run(rig: &Rig, repositories: &[Configured], segments: u64) -> PushAheadReport {
    let mut options = rig.options();
    options.push.queue_max = Some(segments * SIZE.bytes());
    push_ahead(repositories, &options, &word, &Cancel::default()).unwrap()
}

fn broken(key: u32) -> Configured {
    Configured { key, repository: Err(Error::refused(Kind::Crypto, "no key slot opens")) }
}

/// A timeline's history that the server has ready.
fn history(rig: &Rig) {
    rig.cluster.file(HISTORY, b"1\t0/3000000\tno recovery target specified\n");
    std::fs::write(rig.mark(HISTORY), "").unwrap();
}

#[test]
fn what_works_is_fed_before_a_queue_is_given_up() {
    let rig = Rig::new();
    let repositories = [create(1, MemoryStore::new(), &OWN).into(), broken(2)];
    let names: Vec<_> = (3..12).map(|n| rig.ready(n, 1)).collect();
    history(&rig);
    assert_eq!(run(&rig, &repositories, 4), PushAheadReport { pushed: 0, failed: 1, dropped: 9 });
    for name in &names {
        assert!(archived(&repositories[0], ID, name).is_some(), "{name} is given up, and repo1 lacks it");
        let status = rig.look(name).unwrap();
        assert_eq!(status.outcome, Outcome::Dropped);
        assert!(status.message.starts_with(&format!("dropped WAL file '{name}'")), "{}", status.message);
        assert!(status.message.contains("it is in repo1, recovery past it from repo2"), "{}", status.message);
    }
    // Without its history a timeline is lost whole.
    assert!(archived(&repositories[0], ID, HISTORY).is_some());
    assert!(rig.look(HISTORY).is_none() && rig.error(HISTORY).is_some());
}

#[test]
fn a_queue_of_which_nobody_has_anything_is_given_up_whole() {
    let rig = Rig::new();
    let names: Vec<_> = (3..8).map(|n| rig.ready(n, 1)).collect();
    history(&rig);
    assert_eq!(run(&rig, &[broken(1), broken(2)], 4).dropped, 5);
    for name in &names {
        let status = rig.look(name).unwrap();
        assert_eq!(status.outcome, Outcome::Dropped);
        assert!(status.message.contains("it is in no repository, recovery past it needs"), "{}", status.message);
        std::fs::remove_file(rig.mark(name)).unwrap();
    }
    assert!(rig.look(HISTORY).is_none() && rig.error(HISTORY).is_some());
    // One that fails while it is fed ends the same way.
    let faulty = Arc::new(FaultStore::new(MemoryStore::new()));
    let repositories = [create(1, Arc::clone(&faulty), &OWN).into()];
    (8..14).for_each(|n| drop(rig.ready(n, 1)));
    (1..=60).for_each(|n| faulty.fail(Verb::Put, n, Fault::NoSpace));
    assert_eq!(run(&rig, &repositories, 4), PushAheadReport { pushed: 0, failed: 1, dropped: 6 });
}

#[test]
fn a_queue_that_can_be_stored_is_not_given_up() {
    let (rig, (_, repositories)) = (Rig::new(), one(Version::V16));
    let names: Vec<_> = (3..8).map(|n| rig.ready(n, 1)).collect();
    assert_eq!(run(&rig, &repositories, 4), PushAheadReport { pushed: 5, failed: 0, dropped: 0 });
    assert!(names.iter().all(|name| rig.look(name).unwrap().outcome == Outcome::Pushed));
}

#[test]
fn one_file_is_given_up_only_where_it_cannot_be_stored() {
    let rig = Rig::new();
    let (good, away) = (create(1, MemoryStore::new(), &OWN), broken(2));
    let repositories = [Arc::clone(&good).into(), away];
    let names: Vec<_> = (3..6).map(|n| rig.ready(n, 1)).collect();
    history(&rig);
    let max = 3 * SIZE.bytes();
    let with = |name: &str| PushOptions { queue_max: Some(max), ..rig.cluster.push_options(name) };
    let queued = 4 * SIZE.bytes();
    let dropped = push(&repositories, &with(&names[0])).unwrap();
    assert_eq!(dropped, PushReport::Dropped { queued, held: [1].into() });
    assert!(archived(&repositories[0], ID, &names[0]).is_some());
    assert_eq!(kind(push(&repositories, &with(HISTORY))), Kind::Command, "a history waits");
    let none = push(&[broken(1), broken(2)], &with(&names[0])).unwrap();
    assert_eq!(none, PushReport::Dropped { queued, held: [].into() });
    let whole = [good.into()];
    assert!(matches!(push(&whole, &with(&names[1])).unwrap(), PushReport::Archived(_)));

    // What is stored and waits for the server to ask is no part of the queue.
    let two = [open_of(&whole[0]), create(2, MemoryStore::new(), &OWN).into()];
    rig.push(&two).unwrap();
    let name = rig.ready(6, 1);
    let words = |mark: &str| Some(Words { spool: rig.spool.clone(), repositories: marked(&[mark]) });
    let failing = [open_of(&whole[0]), broken(2)];
    let push = |words| push(&failing, &PushOptions { words, ..with(&name) });
    assert_eq!(kind(push(words("first"))), Kind::Command);
    assert_eq!(push(words("made anew")).unwrap(), PushReport::Dropped { queued: 5 * SIZE.bytes(), held: [1].into() });
    let control = crate::pg::datadir::read_control(rig.cluster.path()).unwrap().fields;
    let binding = Binding::new("main", Some(&control), &marked(&["first"]));
    assert!(rig.spool.is_good(&names[1], &binding, &rig.cluster.wal(&names[1])).unwrap());
}

fn open_of(configured: &Configured) -> Configured {
    Arc::clone(configured.repository.as_ref().unwrap()).into()
}
