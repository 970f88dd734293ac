//! Writers, collectors, an expirer and a reader on one store, which takes their requests one at a time in an order that a seed
//! decides: the real code, with processes that stall or die between any two requests, replies that get lost, lists that are
//! taken in two halves, and clocks that differ by days.
//!
//! After each pack or key that goes, and at the end, every chunk of every visible backup, and of those in a reader's hands, is
//! read. A backup that was reported is visible until it is expired.
//!
//! `PGKEEP_TEST_LIVES` is how many lives are tried; a failing one names its seed, and `PGKEEP_TEST_SEED=<n> cargo test
//! --release -p pgkeep-tests --test gc lives` tries that one alone. Ids are random in each run; the order of requests
//! and all that goes wrong are the seed's.

use std::collections::{BTreeMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use pgkeep_engine::clock::Clock;
use pgkeep_engine::crypto::Unlock;
use pgkeep_engine::gc::{self, GcOptions, Rewrite};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pack::PackedChunk;
use pgkeep_engine::repository::{ChunkSource, OpenOptions, Repository, SILENT_AFTER, WriterSession, seal_data};
use pgkeep_engine::store::{Depth, Listed, MemoryStore, Put, Range, RetryPolicy, RetryStore, Store, StoreError};
use pgkeep_formats::id::{ChunkId, SessionId};
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{BackupType, Commit};
use support::offline::{STANZA, TestClock, make_stanza, open, text};
use support::seed::Seed;

/// Contents there are.
const CONTENTS: u64 = 12;
/// Lives that are tried.
const ROUNDS: u64 = 1500;
/// Lives in which something that is needed is amiss; the first that comes to harm ends them.
const AMISS: u64 = 5000;

/// What is amiss, beside all that may go wrong: it shows that these lives can come to harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amiss {
    Nothing,
    /// The store's lists lack sessions.
    Sessions,
    /// Markers of expiry are taken back.
    Markers,
    /// A key goes though packs are sealed with it.
    Keys,
}

/// Lets one of several go on at a time.
struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    seed: Seed,
    /// Who takes part, and whether it waits.
    waits: Vec<Option<bool>>,
    /// Who may go on.
    turn: Option<usize>,
    /// Turns until which each stands still.
    frozen: Vec<u64>,
    step: u64,
}

impl Turns {
    fn new(seed: Seed, actors: usize) -> Arc<Self> {
        let state = State { seed, waits: vec![Some(false); actors], turn: None, frozen: vec![0; actors], step: 0 };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Waits for a turn; a random number comes with it.
    fn take(&self, me: usize) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.waits[me] = Some(true);
        state.choose();
        self.changed.notify_all();
        while state.turn != Some(me) {
            state = self.changed.wait(state).unwrap();
        }
        state.turn = None;
        state.waits[me] = Some(false);
        state.seed.bits()
    }

    fn leave(&self, me: usize) {
        let mut state = self.state.lock().unwrap();
        state.waits[me] = None;
        state.choose();
        self.changed.notify_all();
    }
}

impl State {
    /// Chooses who goes on, once all wait.
    fn choose(&mut self) {
        if self.turn.is_some() || self.waits.contains(&Some(false)) {
            return;
        }
        let all: Vec<usize> = (0..self.waits.len()).filter(|a| self.waits[*a].is_some()).collect();
        let awake: Vec<usize> = all.iter().copied().filter(|a| self.frozen[*a] <= self.step).collect();
        let from = if awake.is_empty() { &all } else { &awake };
        if from.is_empty() {
            return;
        }
        let chosen = *self.seed.pick(from);
        self.step += 1;
        if self.seed.below(40) == 0 {
            // It stands still just before its request.
            self.frozen[chosen] = self.step + self.seed.below(250);
            if awake.len() > 1 {
                return self.choose();
            }
        }
        self.turn = Some(chosen);
    }
}

/// What one of them sees of the store.
struct Seen {
    me: usize,
    store: MemoryStore,
    turns: Arc<Turns>,
    clock: Arc<TestClock>,
    dead: Mutex<bool>,
    oracle: Arc<Oracle>,
    /// How often something goes wrong: once in so many requests.
    trouble: u64,
    amiss: Amiss,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seen({})", self.me)
    }
}

impl Seen {
    fn error(&self, key: &str, kind: std::io::ErrorKind) -> StoreError {
        let source = std::io::Error::new(kind, "made to fail");
        StoreError::Io { verb: "read", key: key.to_owned(), store: "memory".to_owned(), source }
    }

    fn call<T>(&self, key: &str, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let lot = self.turns.take(self.me);
        let gone = || self.error(key, std::io::ErrorKind::PermissionDenied);
        if *self.dead.lock().unwrap() {
            return Err(gone());
        }
        self.clock.advance(if lot % 512 == 511 { 4 * 24 * 3600 } else { 1 });
        match (lot >> 16) % self.trouble {
            0 => {
                // It dies, perhaps after the request has gone out.
                *self.dead.lock().unwrap() = true;
                if lot & 1 == 0 {
                    drop(call());
                }
                Err(gone())
            }
            1..4 => Err(self.error(key, std::io::ErrorKind::TimedOut)),
            4..8 => {
                drop(call());
                Err(self.error(key, std::io::ErrorKind::ConnectionReset))
            }
            _ => call(),
        }
    }
}

impl Store for Seen {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        self.call(key, || self.store.put_if_absent(key, bytes))
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        self.call(key, || self.store.get(key, range))
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        let all = |prefix: &str| {
            let mut out = Vec::new();
            self.store.list(prefix, depth, &mut |l| out.push(l)).map(|()| out)
        };
        let first = self.call(prefix, || all(prefix))?;
        if self.amiss == Amiss::Sessions && prefix == layout::SESSIONS {
            return Ok(());
        }
        // The second half tells of a later moment.
        let middle = first.get(first.len() / 2).map(|l| l.key.clone()).unwrap_or_default();
        let second = self.call(prefix, || all(prefix))?;
        first.into_iter().filter(|l| l.key < middle).for_each(&mut *each);
        second.into_iter().filter(|l| l.key >= middle).for_each(each);
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.call(key, || {
            let deleted = self.store.delete(key);
            if layout::parse_pack(key).is_some() || layout::parse_session_key(key).is_some() {
                self.oracle.check(&self.store, &format!("{} deleted '{key}'", self.me));
            }
            deleted
        })
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn is_near(&self) -> bool {
        true
    }
}

/// A clock that is wrong.
struct Skewed(Arc<TestClock>, i64);

impl Clock for Skewed {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.now().as_secs().saturating_add_signed(self.1))
    }

    fn sleep(&self, time: Duration) {
        self.0.sleep(time);
    }
}

/// What must be true.
#[derive(Default)]
struct Oracle {
    /// What backups hold, and whether they were reported.
    holds: Mutex<BTreeMap<SessionId, (Vec<u64>, bool)>>,
    /// Backups that somebody meant to expire.
    expired: Mutex<HashSet<SessionId>>,
    /// Backups in readers' hands.
    held: Mutex<HashSet<SessionId>>,
    wrong: Mutex<Option<String>>,
    /// Packs that were rewritten.
    rewritten: AtomicU64,
}

impl Oracle {
    fn check(&self, store: &MemoryStore, when: &str) {
        if let Err(what) = self.judge(store) {
            self.wrong.lock().unwrap().get_or_insert(format!("{when}: {what}"));
        }
    }

    /// What is visible, or in a reader's hands, can be read.
    fn judge(&self, store: &MemoryStore) -> Result<HashSet<SessionId>, String> {
        let repository = open(store).map_err(|e| text(&e))?;
        let visible: HashSet<SessionId> =
            repository.backups(STANZA).map_err(|e| text(&e))?.into_iter().map(|c| c.session).collect();
        let index = repository.load_index_of_what_is_there().map_err(|e| text(&e))?;
        let source = ChunkSource::new(Arc::clone(&repository), index, STANZA);
        let (holds, held) = (self.holds.lock().unwrap(), self.held.lock().unwrap());
        for session in visible.union(&held) {
            for n in &holds.get(session).ok_or("a backup of nobody")?.0 {
                let found = source.read(&id(&repository, *n)).map_err(|e| format!("backup {session}: {}", text(&e)))?;
                if found != content(*n) {
                    return Err(format!("backup {session}: content {n} is another"));
                }
            }
        }
        Ok(visible)
    }

    /// What was reported is there.
    fn end(&self, store: &MemoryStore) -> Result<(), String> {
        let visible = self.judge(store)?;
        let expired = self.expired.lock().unwrap();
        let holds = self.holds.lock().unwrap();
        let mut missing = holds.iter().filter(|(s, (_, reported))| *reported && !expired.contains(*s));
        match missing.find(|(session, _)| !visible.contains(session)) {
            Some((session, _)) => Err(format!("backup {session} was reported, and is not visible")),
            None => Ok(()),
        }
    }
}

fn content(n: u64) -> Vec<u8> {
    let mut out = vec![0; 300];
    Seed::of(n).fill(&mut out);
    out
}

fn id(repository: &Repository, n: u64) -> ChunkId {
    repository.keyring().chunk_id(ChunkKind::Relation.as_u8(), &content(n)).expect("a name")
}

/// One actor: where it works, and its own choices.
struct Actor {
    store: Arc<dyn Store>,
    clock: Skewed,
    seed: Seed,
    oracle: Arc<Oracle>,
    amiss: Amiss,
}

impl Actor {
    fn open(&self) -> pgkeep_engine::Result<Arc<Repository>> {
        let options = OpenOptions { key: 1, unlock: Unlock::None, cache: None };
        Ok(Arc::new(Repository::open(Arc::clone(&self.store), options)?))
    }

    fn write(&mut self) -> pgkeep_engine::Result<()> {
        for _ in 0..2 {
            let repository = self.open()?;
            let mut session = WriterSession::begin(&repository, STANZA, "backup", "test", &self.clock)?;
            let contents: Vec<u64> = (0..3 + self.seed.below(4)).map(|_| self.seed.below(CONTENTS)).collect();
            for n in &contents {
                let (id, plain) = (id(&repository, *n), content(*n));
                if session.knows(&id)? {
                    continue;
                }
                let (kind, encoding, plain_len) = (ChunkKind::Relation, Encoding::Raw, plain.len() as u32);
                let sealed = seal_data(session.sealer(), id, kind, encoding, plain_len, &plain)?;
                session.add_data(PackedChunk { id, kind, encoding, plain_len }, &sealed, &[], &[])?;
                if self.seed.below(2) == 0 {
                    self.flush(&repository, &mut session)?;
                }
            }
            self.flush(&repository, &mut session)?;
            if self.seed.below(12) == 0 {
                session.abandon("as arranged", &self.clock)?;
                continue;
            }
            let record = record(&session);
            let mut chunks = |each: &mut dyn FnMut(&ChunkId) -> pgkeep_engine::Result<()>| {
                contents.iter().try_for_each(|n| each(&id(&repository, *n)))
            };
            self.oracle.holds.lock().unwrap().insert(session.id(), (contents.clone(), false));
            let session = session.commit(&mut chunks, |_, _| record, &self.clock)?.session;
            self.oracle.holds.lock().unwrap().insert(session, (contents, true));
        }
        Ok(())
    }

    fn flush(&mut self, repository: &Repository, session: &mut WriterSession) -> pgkeep_engine::Result<()> {
        if let Some(pack) = session.finish_data()? {
            // What it answers is settled by the name, which is the content's.
            repository.store().put_if_absent(&layout::pack(pack.facts.pack), &pack.bytes)?;
            session.note_durable(&pack)?;
        }
        if self.seed.below(2) == 0 { session.publish() } else { Ok(()) }
    }

    fn collect(&mut self) -> pgkeep_engine::Result<()> {
        for _ in 0..3 {
            let hasty = self.seed.below(2) == 0;
            let silent_after = if hasty { Duration::from_secs(20) } else { SILENT_AFTER };
            let rewrite = *self.seed.pick(&[Rewrite::Never, Rewrite::AfterExpiry, Rewrite::Always]);
            let options = GcOptions { silent_after, rewrite, host: "test", ..GcOptions::default() };
            let repository = self.open()?;
            if self.amiss == Amiss::Keys {
                let mut keys = Vec::new();
                repository.store().list(layout::SESSION_KEYS, Depth::All, &mut |l| keys.push(l.key))?;
                if !keys.is_empty() {
                    repository.store().delete(self.seed.pick::<String>(&keys))?;
                }
            }
            let report = gc::run(&repository, &options, &Silent, &Cancel::default(), &self.clock)?;
            self.oracle.rewritten.fetch_add(report.rewritten.packs, Ordering::Relaxed);
        }
        Ok(())
    }

    fn expire(&mut self) -> pgkeep_engine::Result<()> {
        for _ in 0..3 {
            let repository = self.open()?;
            let backups = repository.backups(STANZA)?;
            if !backups.is_empty() {
                let session = self.seed.pick(&backups).session;
                // Before: the marker may be there though its reply is lost.
                self.oracle.expired.lock().unwrap().insert(session);
                repository.mark_expired(STANZA, session, "test", 1)?;
                if self.amiss == Amiss::Markers {
                    repository.store().delete(&layout::expired(STANZA, session))?;
                }
            }
        }
        Ok(())
    }

    fn read(&mut self) -> pgkeep_engine::Result<()> {
        for _ in 0..3 {
            let repository = self.open()?;
            let backups = repository.backups(STANZA)?;
            if backups.is_empty() {
                continue;
            }
            let session = self.seed.pick(&backups).session;
            let day = Duration::from_secs(3 * 365 * 24 * 3600);
            let Ok(pin) = repository.pin(STANZA, session, "test", day, &self.clock) else { continue };
            self.oracle.held.lock().unwrap().insert(session);
            for _ in 0..20 {
                drop(repository.store().get("nothing", Range::Whole));
            }
            self.oracle.held.lock().unwrap().remove(&session);
            drop(pin);
        }
        Ok(())
    }
}

fn record(session: &WriterSession) -> Commit {
    Commit {
        session: session.id(),
        generation: session.generation(),
        label: "20260101-000000F".to_owned(),
        backup_type: BackupType::Full,
        prior: None,
        reference: Vec::new(),
        history_id: 1,
        version: 15,
        system_identifier: 1,
        timeline: 1,
        start: 1,
        copy_start_nanos: 0,
        keeps_wal: false,
        stop: 2,
        lsn: None,
        wal: None,
        wal_segment_size: 16 << 20,
        size: 0,
        delta: 0,
        repository_size: 0,
        repository_delta: 0,
        manifest: Vec::new(),
        annotations: BTreeMap::new(),
        page_checksums: false,
        error_list: Vec::new(),
        databases: Vec::new(),
        tablespaces: Vec::new(),
        links: Vec::new(),
        program: "test".to_owned(),
        online: false,
    }
}

/// What happened in a life.
struct Life {
    /// Actors that gave up.
    failed: u64,
    /// Packs that were rewritten.
    rewritten: u64,
}

/// One life; what was wrong with it.
fn live(number: u64, amiss: Amiss) -> Result<Life, String> {
    type Part = fn(&mut Actor) -> pgkeep_engine::Result<()>;
    let parts: [Part; 6] = [Actor::write, Actor::write, Actor::collect, Actor::collect, Actor::expire, Actor::read];
    let mut seed = Seed::of(number);
    let clock = TestClock::new();
    let store = MemoryStore::with_clock(Arc::clone(&clock) as Arc<dyn Clock>);
    make_stanza(&store, OpenOptions { key: 1, unlock: Unlock::None, cache: None }, STANZA, 1);
    let turns = Turns::new(Seed::of(seed.bits()), parts.len());
    let oracle = Arc::new(Oracle::default());
    // Some lives are calm, so that they come far.
    let trouble = *seed.pick(&[150, 600, 4000]);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .iter()
            .enumerate()
            .map(|(me, part)| {
                let skew = seed.below(5) as i64 - 2;
                let seen = Seen {
                    me,
                    store: store.clone(),
                    turns: Arc::clone(&turns),
                    clock: Arc::clone(&clock),
                    dead: Mutex::new(false),
                    oracle: Arc::clone(&oracle),
                    trouble,
                    amiss,
                };
                let policy = RetryPolicy { tries: 4, ..RetryPolicy::default() };
                let store = Arc::new(RetryStore::new(seen, Arc::clone(&clock) as Arc<dyn Clock>, policy));
                let clock = Skewed(Arc::clone(&clock), skew * 24 * 3600);
                let mut actor = Actor { store, clock, seed: Seed::of(seed.bits()), oracle: Arc::clone(&oracle), amiss };
                let turns = Arc::clone(&turns);
                scope.spawn(move || {
                    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| part(&mut actor)));
                    turns.leave(me);
                    outcome.map_err(|_| "a panic".to_owned())
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a panic".to_owned()))).collect()
    });
    if let Some(what) = oracle.wrong.lock().unwrap().take() {
        return Err(what);
    }
    let mut failed = 0u64;
    for outcome in outcomes {
        failed += u64::from(outcome?.is_err());
    }
    oracle.end(&store)?;
    // Who comes later without trouble collects what all of them left, and that harms nothing either.
    clock.advance(10 * 24 * 3600);
    for _ in 0..2 {
        let repository = open(&store).map_err(|e| text(&e))?;
        let options = GcOptions { rewrite: Rewrite::Always, ..GcOptions::default() };
        gc::run(&repository, &options, &Silent, &Cancel::default(), &*clock).map_err(|e| text(&e))?;
    }
    oracle.end(&store)?;
    Ok(Life { failed, rewritten: oracle.rewritten.load(Ordering::Relaxed) })
}

#[test]
fn lives_that_go_wrong_harm_no_backup() {
    if let Ok(one) = std::env::var("PGKEEP_TEST_SEED") {
        live(one.parse().expect("PGKEEP_TEST_SEED is a number"), Amiss::Nothing)
            .unwrap_or_else(|what| panic!("{what}"));
        return;
    }
    let rounds = std::env::var("PGKEEP_TEST_LIVES").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    let first = Seed::new().bits() >> 16;
    let (next, failures) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let (failed, rewritten) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= rounds || failures.lock().unwrap().len() > 3 {
                        return;
                    }
                    match live(first + n, Amiss::Nothing) {
                        Err(what) => failures.lock().unwrap().push(format!("PGKEEP_TEST_SEED={}: {what}", first + n)),
                        Ok(life) => {
                            failed.fetch_add(life.failed, Ordering::Relaxed);
                            rewritten.fetch_add(life.rewritten, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let (failed, rewritten) = (failed.into_inner(), rewritten.into_inner());
    println!("{rounds} lives, {failed} of {} actors gave up, {rewritten} packs rewritten", 6 * rounds);
    assert!(rounds < 100 || failed > 0 && rewritten > 0, "nothing went wrong, or nothing was rewritten");
}

#[test]
fn harm_would_be_seen() {
    for amiss in [Amiss::Sessions, Amiss::Markers, Amiss::Keys] {
        let harmed = (0..AMISS).find_map(|n| live(n, amiss).err());
        let what = harmed.unwrap_or_else(|| panic!("{amiss:?}: no life came to harm"));
        println!("{amiss:?}: {what}");
    }
}
