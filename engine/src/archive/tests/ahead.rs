//! The work of processes in the background: what they say, and that it is true wherever they are stopped.

use super::*;
use crate::archive::spool::{Binding, Outcome, Spool, Status};
use crate::lock;
use crate::observe::Cancel;
use crate::store::{Fault, FaultStore, RecordingStore, Verb};

pub(super) const OWN: [(Version, u64); 1] = [(Version::V16, SYSTEM)];
pub(super) const ID: &str = "16-1";

/// A cluster with files that are ready, and its spool.
pub(super) struct Rig {
    pub(super) cluster: Cluster,
    pub(super) spool: Spool,
}

impl Rig {
    pub(super) fn new() -> Self {
        let cluster = Cluster::new(Version::V16, SYSTEM);
        let spool = Spool::of(&cluster.path().join("spool"), "main");
        Self { cluster, spool }
    }

    /// A segment that the server has ready.
    pub(super) fn ready(&self, number: u64, seed: u8) -> String {
        let name = self.cluster.segment(number, seed);
        std::fs::write(self.mark(&name), "").unwrap();
        name
    }

    pub(super) fn mark(&self, name: &str) -> PathBuf {
        self.cluster.wal("archive_status").join(format!("{name}.ready"))
    }

    pub(super) fn options(&self) -> PushAheadOptions {
        PushAheadOptions {
            push: PushOptions { source: self.cluster.path().join("pg_wal"), ..self.cluster.push_options("") },
            spool: self.spool.clone(),
            repositories: marked(&["first"]),
            workers: 2,
            batch_bytes: u64::MAX,
        }
    }

    pub(super) fn push(&self, repositories: &[Configured]) -> Result<PushAheadReport> {
        push_ahead(repositories, &self.options(), &word, &Cancel::default())
    }

    /// What the server is told of a file.
    pub(super) fn look(&self, name: &str) -> Option<Status> {
        let control = crate::pg::datadir::read_control(self.cluster.path()).unwrap().fields;
        let binding = Binding::new("main", Some(&control), &marked(&["first"]));
        look(&self.spool, name, &self.cluster.wal(name), &binding).unwrap()
    }

    pub(super) fn error(&self, name: &str) -> Option<(Outcome, String)> {
        self.spool.error(name).unwrap().map(|status| (status.outcome, status.message))
    }
}

pub(super) fn word(error: &Error) -> (u8, String) {
    (if error.kind() == Kind::Command { 104 } else { 1 }, error.to_string())
}

#[test]
fn what_is_ready_is_pushed_and_told_once() {
    let (rig, (_, repositories)) = (Rig::new(), one(Version::V16));
    let names: Vec<_> = (3..8).map(|n| rig.ready(n, 1)).collect();
    let unmarked = rig.cluster.segment(9, 1);
    let report = rig.push(&repositories).unwrap();
    assert_eq!(report, PushAheadReport { pushed: 5, failed: 0, dropped: 0 });
    assert!(archived(&repositories[0], ID, &unmarked).is_none());
    for name in &names {
        assert!(archived(&repositories[0], ID, name).is_some());
        let status = rig.look(name).expect("a word");
        assert_eq!((status.outcome, status.message.as_str()), (Outcome::Pushed, ""));
        assert!(rig.look(name).is_none(), "a word is passed on once");
    }
    // As after a crash of the server before it had noted the answer.
    assert_eq!(rig.push(&repositories).unwrap().pushed, 5);
    assert!(rig.look(&names[0]).unwrap().message.contains("already exists in the repo1 archive"));
    assert_eq!(rig.push(&repositories).unwrap().pushed, 1, "what has a good word is not pushed again");
}

#[test]
fn a_good_word_is_about_no_other_file_of_the_name() {
    let (rig, (_, repositories)) = (Rig::new(), one(Version::V16));
    let name = rig.ready(3, 1);
    rig.push(&repositories).unwrap();
    // The cluster went back, and wrote other WAL under the name.
    rig.ready(3, 2);
    assert!(rig.look(&name).is_none());
    let report = rig.push(&repositories).unwrap();
    assert_eq!((report.pushed, report.failed), (0, 1));
    assert!(rig.look(&name).is_none());
    assert!(rig.error(&name).unwrap().1.contains("with different content"));
}

#[test]
fn a_repository_that_is_away_keeps_wal_from_no_other() {
    let rig = Rig::new();
    let good = Arc::new(RecordingStore::new(MemoryStore::new()));
    let repository = create(1, Arc::clone(&good), &OWN);
    let broken = Configured { key: 2, repository: Err(Error::refused(Kind::Crypto, "no key slot opens")) };
    let repositories = [repository.into(), broken];
    let mut names: Vec<_> = (3..40).map(|n| rig.ready(n, 1)).collect();
    assert_eq!(rig.push(&repositories).unwrap(), PushAheadReport { pushed: 0, failed: 37, dropped: 0 });
    for name in &names {
        assert!(archived(&repositories[0], ID, name).is_some(), "{name}");
        assert!(rig.look(name).is_none(), "{name} is acknowledged and not in repo2");
        let (outcome, message) = rig.error(name).unwrap();
        assert_eq!(outcome, Outcome::Failed(104));
        assert!(message.contains("repo2: [CryptoError] no key slot opens"), "{message}");
    }
    // What it holds is not stored there again while the other is away, and what is new is.
    names.push(rig.ready(40, 1));
    good.clear();
    assert_eq!(rig.push(&repositories).unwrap().failed, 38);
    assert_eq!(good.count(Verb::Put), 1, "{:?}", good.keys(Verb::Put));
    assert!(names.iter().all(|name| rig.error(name).is_some()));

    // Mended: the same run leaves no error behind.
    let repositories = [open_again(&repositories[0]), create(2, MemoryStore::new(), &OWN).into()];
    assert_eq!(rig.push(&repositories).unwrap(), PushAheadReport { pushed: 38, failed: 0, dropped: 0 });
    assert!(names.iter().all(|name| rig.error(name).is_none() && rig.look(name).is_some()));
    assert!(names.iter().all(|name| archived(&repositories[1], ID, name).is_some()));
}

#[test]
fn a_repository_that_fails_is_left_alone_for_the_rest_of_the_run() {
    let rig = Rig::new();
    let names: Vec<_> = (3..40).map(|n| rig.ready(n, 1)).collect();
    let faulty = Arc::new(FaultStore::new(MemoryStore::new()));
    let counted = Arc::new(RecordingStore::new(Arc::clone(&faulty)));
    let repositories = [create(1, MemoryStore::new(), &OWN).into(), create(2, Arc::clone(&counted), &OWN).into()];
    counted.clear();
    (1..=60).for_each(|n| faulty.fail(Verb::Put, n, Fault::NoSpace));
    let report = rig.push(&repositories).unwrap();
    assert_eq!((report.pushed, report.failed), (0, 37));
    assert!(names.iter().all(|name| archived(&repositories[0], ID, name).is_some()));
    // Each of four threads may have been on its way.
    assert!(counted.count(Verb::Put) <= 4, "{}", counted.count(Verb::Put));
}

#[test]
fn a_file_that_cannot_be_archived_keeps_no_other_back() {
    let (rig, (_, repositories)) = (Rig::new(), one(Version::V16));
    let names: Vec<_> = (3..20).map(|n| rig.ready(n, 1)).collect();
    rig.cluster.file(&names[4], b"no WAL at all");
    assert_eq!(rig.push(&repositories).unwrap(), PushAheadReport { pushed: 16, failed: 1, dropped: 0 });
    for (n, name) in names.iter().enumerate() {
        assert_eq!(rig.look(name).is_some(), n != 4, "{name}");
    }
    // Without a place that works, or anything to read, there is no sense in going on.
    let rig = Rig::new();
    let names: Vec<_> = (3..40).map(|n| rig.ready(n, 1)).collect();
    let faulty = Arc::new(FaultStore::new(MemoryStore::new()));
    let repositories = [create(1, Arc::clone(&faulty), &OWN).into()];
    (1..=60).for_each(|n| faulty.fail(Verb::Put, n, Fault::NoSpace));
    let report = rig.push(&repositories).unwrap();
    assert!(report.failed >= 1 && report.failed <= 4, "{report:?}");
    assert!(rig.error(&names[0]).is_some());
}

#[test]
fn a_good_word_is_about_the_repository_that_has_the_file() {
    let (rig, (_, repositories)) = (Rig::new(), one(Version::V16));
    let name = rig.ready(3, 1);
    rig.push(&repositories).unwrap();
    let control = crate::pg::datadir::read_control(rig.cluster.path()).unwrap().fields;
    let look = |mark: &str| {
        let binding = Binding::new("main", Some(&control), &marked(&[mark]));
        look(&rig.spool, &name, &rig.cluster.wal(&name), &binding).unwrap()
    };
    assert!(look("made anew").is_none() && look("").is_none());
    assert!(look("first").is_some());
}

#[test]
fn a_stanza_that_is_made_anew_has_another_mark() {
    let mark = |store: &MemoryStore| crate::repository::stanza_mark(store, "main").unwrap();
    let stores: Vec<_> = (0..2).map(|_| one(Version::V16).0).collect();
    assert_eq!(mark(&stores[0]), mark(&stores[0]));
    assert_ne!(mark(&stores[0]), mark(&stores[1]), "another repository");
    let before = mark(&stores[0]);
    let entry = layout::stanza_history("main", 1);
    let bytes = stores[0].get(&entry, crate::store::Range::Whole).unwrap();
    stores[0].delete(&entry).unwrap();
    assert_ne!(mark(&stores[0]), before, "no stanza");
    stores[0].put_if_absent(&entry, &bytes).unwrap();
    assert_eq!(mark(&stores[0]), before);
    assert!(stores[0].tamper(&entry, |bytes| *bytes.last_mut().unwrap() ^= 1));
    assert_ne!(mark(&stores[0]), before, "another stanza of the name");
    assert!(crate::repository::stanza_mark(&MemoryStore::new(), "main").is_err());
}

fn open_again(configured: &Configured) -> Configured {
    Arc::clone(configured.repository.as_ref().unwrap()).into()
}

#[test]
fn an_error_that_somebody_renames_lets_the_server_pass() {
    let (rig, (_, repositories)) = (Rig::new(), one(Version::V16));
    let (bad, next) = (rig.ready(3, 1), rig.ready(4, 1));
    rig.cluster.file(&bad, b"no WAL at all");
    assert_eq!(rig.push(&repositories).unwrap().failed, 1);
    let path = |end: &str| rig.spool.out().join(format!("{bad}{end}"));
    std::fs::rename(path(".error"), path(".ok")).unwrap();
    let report = rig.push(&repositories).unwrap();
    assert_eq!((report.pushed <= 1, report.failed), (true, 0), "it is passed over");
    assert!(archived(&repositories[0], ID, &next).is_some());
    assert!(matches!(rig.look(&bad).unwrap().outcome, Outcome::Failed(_)));
    // It was about that file, not about one that comes under its name.
    rig.push(&repositories).unwrap();
    std::fs::rename(path(".error"), path(".ok")).unwrap();
    rig.ready(3, 1);
    assert!(rig.look(&bad).is_none());
    rig.push(&repositories).unwrap();
    assert_eq!(rig.look(&bad).unwrap().outcome, Outcome::Pushed);
}

#[test]
fn a_batch_has_an_end_and_stop_files_and_signals_are_obeyed() {
    let (rig, (_, repositories)) = (Rig::new(), one(Version::V16));
    let names: Vec<_> = (3..8).map(|n| rig.ready(n, 1)).collect();
    let mut options = rig.options();
    options.batch_bytes = 2 * SIZE.bytes();
    let run = |cancel: &Cancel| push_ahead(&repositories, &options, &word, cancel);
    assert_eq!(run(&Cancel::default()).unwrap().pushed, 2);
    assert!(rig.look(&names[0]).is_some() && rig.look(&names[1]).is_some() && rig.look(&names[2]).is_none());
    let cancelled = Cancel::default();
    cancelled.cancel();
    assert_eq!(kind(run(&cancelled)), Kind::Interrupted);
    lock::stop(&options.push.lock_path, Some("main")).unwrap();
    assert_eq!(kind(run(&Cancel::default())), Kind::Stopped);
    assert!(archived(&repositories[0], ID, &names[2]).is_none());
}

#[test]
fn stopped_at_any_put_nothing_is_acknowledged_that_a_repository_lacks() {
    for stops in [[0, 9], [9, 0], [1, 3], [3, 1], [2, 2], [4, 9]] {
        let rig = Rig::new();
        let names: Vec<_> = (3..7).map(|n| rig.ready(n, 1)).collect();
        let memory = [MemoryStore::new(), MemoryStore::new()];
        memory.iter().enumerate().for_each(|(i, m)| drop(create(i as u32 + 1, m.clone(), &OWN)));
        let opened = |wrap: &dyn Fn(usize, MemoryStore) -> Arc<Repository>| -> Vec<Configured> {
            memory.iter().enumerate().map(|(i, m)| wrap(i, m.clone()).into()).collect()
        };
        let faulty: Vec<_> = memory.iter().map(|m| Arc::new(FaultStore::new(m.clone()))).collect();
        let repositories = opened(&|i, _| open(i as u32 + 1, Arc::clone(&faulty[i])));
        faulty.iter().zip(stops).for_each(|(store, n)| store.stop_after(n));
        rig.push(&repositories).unwrap();
        let reopened = opened(&|i, m| open(i as u32 + 1, m));
        let whole = |name: &String, number: u64| {
            let content = rig.cluster.content(segment(number), 1);
            reopened.iter().all(|r| archived(r, ID, name).is_some_and(|found| found == content))
        };
        for (name, number) in names.iter().zip(3..) {
            assert!(rig.look(name).is_none() || whole(name, number), "{stops:?}: {name} is acknowledged");
        }
        rig.push(&reopened).unwrap();
        for (name, number) in names.iter().zip(3..) {
            assert!(whole(name, number) && rig.look(name).is_some(), "{stops:?}: {name}");
        }
    }
}

#[test]
fn a_lost_reply_is_no_word() {
    let rig = Rig::new();
    let name = rig.ready(3, 1);
    let memory = MemoryStore::new();
    create(1, memory.clone(), &OWN);
    let faulty = Arc::new(FaultStore::new(memory));
    let repositories = [open(1, Arc::clone(&faulty)).into()];
    faulty.fail(Verb::Put, 1, Fault::LostReply);
    assert_eq!(rig.push(&repositories).unwrap().failed, 1);
    assert!(rig.look(&name).is_none() && rig.error(&name).is_some());
    assert_eq!(rig.push(&repositories).unwrap().pushed, 1);
    assert!(rig.look(&name).is_some() && rig.error(&name).is_none());
}

#[test]
fn what_was_acknowledged_a_moment_ago_is_not_pushed_again_by_the_same_run() {
    // The word is taken as soon as it is there, and the mark stays for a while.
    let (rig, (_, repositories)) = (Rig::new(), one(Version::V16));
    let name = rig.ready(3, 1);
    let word_taken = Cancel::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while rig.look(&name).is_none() && !word_taken.is_cancelled() {
                std::thread::yield_now();
            }
        });
        let report = rig.push(&repositories);
        word_taken.cancel();
        assert_eq!(report.unwrap().pushed, 1);
    });
    let again = rig.look(&name).is_some_and(|status| !status.message.is_empty());
    assert!(!again, "it was pushed a second time");
}

fn get_options(rig: &Rig, name: &str, segments: u64) -> GetAheadOptions {
    GetAheadOptions {
        get: GetOptions {
            stanza: "main".into(),
            name: name.into(),
            destination: PathBuf::new(),
            pg_path: rig.cluster.path().to_path_buf(),
            sparse: false,
        },
        spool: rig.spool.clone(),
        repositories: marked(&["first"]),
        workers: 2,
        queue_max: segments * SIZE.bytes(),
    }
}

fn queue(rig: &Rig) -> Queue {
    let control = crate::pg::datadir::read_control(rig.cluster.path()).unwrap().fields;
    Queue::new(&rig.spool, "main", &control, &marked(&["first"]))
}

#[test]
fn the_queue_is_filled_up_to_the_end_of_the_archive() {
    let (rig, (_, repositories)) = (Rig::new(), one(Version::V16));
    let names: Vec<_> = (3..8).map(|n| rig.ready(n, n as u8)).collect();
    rig.push(&repositories).unwrap();
    let (queue, to) = (queue(&rig), rig.cluster.path().join("got"));
    let run = |name: &str, segments| {
        get_ahead(&repositories, &get_options(&rig, name, segments), &word, &Cancel::default()).unwrap()
    };
    assert_eq!(run(&names[0], 3), GetAheadReport { fetched: 3, missing: false, failed: 0 });
    assert_eq!(run(&names[0], 3).fetched, 0, "what is there is kept");
    assert!(queue.take(&names[0], &to).unwrap().is_some());
    assert!(std::fs::read(&to).unwrap() == rig.cluster.content(segment(3), 3));
    let report = run(&names[1], 8);
    assert!(report.fetched == 2 && report.missing, "{report:?}");
    assert_eq!(queue.take_missing(&segment(8).name(SIZE)).unwrap(), Some(std::process::id()));
    for (name, number) in names.iter().zip(3..).skip(1) {
        assert!(queue.take(name, &to).unwrap().is_some());
        assert!(std::fs::read(&to).unwrap() == rig.cluster.content(segment(number), number as u8));
    }
    // What comes behind a gap is not waited for.
    assert_eq!(run(&names[4], 2).fetched, 1);
    run(&segment(50).name(SIZE), 2);
    assert!(queue.take(&names[4], &to).unwrap().is_none(), "the server goes on elsewhere");
}

#[test]
fn what_is_not_certain_is_not_said_to_be_missing() {
    let rig = Rig::new();
    let memory = MemoryStore::new();
    create(1, memory.clone(), &OWN);
    let faulty = Arc::new(FaultStore::new(memory));
    let broken = Configured { key: 2, repository: Err(Error::refused(Kind::Crypto, "no key slot opens")) };
    let repositories = [open(1, Arc::clone(&faulty)).into(), broken];
    let (name, queue) = (segment(3).name(SIZE), queue(&rig));
    let report = get_ahead(&repositories, &get_options(&rig, &name, 4), &word, &Cancel::default()).unwrap();
    assert!(report.failed >= 1 && !report.missing, "{report:?}");
    assert!(queue.take_missing(&name).unwrap().is_none() && queue.take_failed(&name).unwrap().is_some());
}
