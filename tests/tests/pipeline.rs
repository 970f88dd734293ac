//! The stages of a backup work while others wait, and a restore asks for nothing twice. No clock decides: who waits is let
//! go when the others have done what they must be able to do meanwhile, and a stage that idles keeps him waiting for good.

use pgkeep_engine::backup::{self, DeltaMode, Deltas};
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::index::Encoding;
use pgkeep_engine::limit::{Limits, Meter};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::restore::{self, Env, RestoreOptions};
use pgkeep_engine::store::{Call, Range, RecordingStore, Verb};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::BackupType;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use support::offline::{HookedStore, Ledger, STANZA, Tree, World, invariants, open, open_with};

const MIB: u64 = 1 << 20;
/// After this long somebody has waited for good.
const FOR_GOOD: Duration = Duration::from_secs(120);

/// A number that others are waited for to raise.
#[derive(Default)]
struct Count {
    now: Mutex<u64>,
    raised: Condvar,
}

impl Count {
    fn raise(&self) -> u64 {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now += 1;
        self.raised.notify_all();
        *now
    }

    /// Waits until it is at least `least`; false if that never happens.
    fn wait(&self, least: u64) -> bool {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, _) = self.raised.wait_timeout_while(now, FOR_GOOD, |now| *now < least).unwrap();
        *now >= least
    }
}

/// Limits that are never reached: they tell what is read.
fn counting() -> Arc<Limits> {
    Limits::with_meter(NonZero::new(u64::MAX), None, &Cancel::default(), Box::new(pgkeep_engine::limit::SystemMeter))
}

/// The only backup is the cluster as it is.
fn check(world: &World, label: &str) {
    let expected = BTreeMap::from([(label.to_owned(), Tree::of_files(world.cluster.path()))]);
    invariants(&world.store, &expected, &mut Ledger::default());
}

#[test]
fn while_the_store_takes_its_time_two_packs_are_under_way_and_reading_goes_on() {
    let world = World::new(91, 24);
    let limits = counting();
    let (begun, idled) = (Arc::new(Count::default()), Arc::new(AtomicUsize::new(0)));
    let hook = {
        let (begun, idled, limits) = (Arc::clone(&begun), Arc::clone(&idled), Arc::clone(&limits));
        move |verb, key: &str| {
            if verb != Verb::Put || layout::parse_pack(key).is_none() {
                return;
            }
            let number = begun.raise();
            // The first two wait for each other, so that no uploader is left, and then for the workers to read on: what fills
            // the next pack.
            if number > 2 {
                return;
            }
            let goes_on = begun.wait(2) && {
                let (read, waiting) = (limits.totals().bytes, Instant::now());
                while limits.totals().bytes < read + MIB / 2 && waiting.elapsed() < FOR_GOOD {
                    std::thread::sleep(Duration::from_millis(5));
                }
                waiting.elapsed() < FOR_GOOD
            };
            if !goes_on {
                idled.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let repository = open_with(Arc::new(HookedStore::new(&world.store, hook)), None).unwrap();
    let mut options = world.options(BackupType::Full);
    options.limits = limits;
    world.clock.advance(60);
    let report = backup::run(&repository, &options, &Silent, &Cancel::default(), &*world.clock).unwrap();
    assert_eq!(idled.load(Ordering::SeqCst), 0, "somebody waited in vain");
    check(&world, &report.commit.label);
}

/// Lets the first who waits go when another one waits as well.
struct Together {
    waiting: Arc<Count>,
    idled: Arc<AtomicUsize>,
    now: AtomicUsize,
}

impl Meter for Together {
    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst) as u64
    }

    fn cpu(&self) -> u64 {
        0
    }

    fn sleep_until(&self, time: u64) {
        if self.waiting.raise() == 1 && !self.waiting.wait(2) {
            self.idled.fetch_add(1, Ordering::SeqCst);
        }
        self.now.fetch_max(time as usize, Ordering::SeqCst);
    }
}

#[test]
fn workers_read_one_file_side_by_side() {
    let world = World::new(92, 8);
    let (waiting, idled) = (Arc::new(Count::default()), Arc::new(AtomicUsize::new(0)));
    let meter = Together { waiting, idled: Arc::clone(&idled), now: AtomicUsize::new(0) };
    let mut options = world.options(BackupType::Full);
    // Small files pass without waiting.
    options.limits = Limits::with_meter(NonZero::new(20 * MIB), None, &Cancel::default(), Box::new(meter));
    world.clock.advance(60);
    let repository = open(&world.store).unwrap();
    let report = backup::run(&repository, &options, &Silent, &Cancel::default(), &*world.clock).unwrap();
    assert_eq!(idled.load(Ordering::SeqCst), 0, "one reader waited and no other came");
    check(&world, &report.commit.label);
}

/// Parts of packs that were asked for, without headers, which come before all else.
fn parts(calls: &[Call]) -> BTreeMap<String, Vec<(u64, u64)>> {
    let mut parts: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    for call in calls.iter().filter(|c| c.verb == Verb::Get && layout::parse_pack(&c.key).is_some()) {
        if let Some(Range::Span { offset, len }) = call.range.filter(|r| !matches!(r, Range::Span { offset: 0, .. })) {
            parts.entry(call.key.clone()).or_default().push((offset, offset + len as u64));
        }
    }
    parts.values_mut().for_each(|p| p.sort_unstable());
    parts
}

#[test]
fn a_restore_after_a_month_of_deltas_asks_for_no_chunk_twice() {
    let world = World::new(93, 8);
    world.backup(BackupType::Full);
    for day in 0..30 {
        for (table, pages) in [("base/5/16384", 300), ("base/5/16386", 1000)] {
            let blocks: Vec<u32> = (0..pages).filter(|b| (b * 7 + day * 13) % 29 < 3).collect();
            world.cluster.edit(table, &blocks);
        }
        world.backup(BackupType::Incr);
    }
    let recording = Arc::new(RecordingStore::new(HookedStore::new(&world.store, |_, _| ())));
    let repository = open_with(Arc::clone(&recording) as _, None).unwrap();
    let target = world.path("restored");
    let env = Env { observer: &Silent, cancel: &Cancel::default(), clock: &SystemClock };
    let mut options = RestoreOptions { process_max: 2, ..RestoreOptions::new(STANZA, &target) };
    options.maps.tablespace_all = Some(world.path("tablespaces"));
    recording.clear();
    let report = restore::run(&[repository], &options, &env).unwrap();
    let (mut asked, mut twice) = (0, 0);
    for parts in parts(&recording.calls()).values() {
        let mut end = 0;
        for (from, to) in parts {
            asked += to - from;
            twice += end.min(*to).saturating_sub(*from);
            end = end.max(*to);
        }
    }
    assert!(asked > report.bytes / 2, "{asked} bytes asked for to restore {}", report.bytes);
    assert_eq!(twice, 0, "bytes of {asked}");
    let restored = Tree::of_files(&target);
    for name in ["base/5/16384", "base/5/16386"] {
        let content = |root: &std::path::Path| std::fs::read(root.join(name)).unwrap();
        assert!(content(&target) == content(world.cluster.path()), "{name}");
        assert!(restored.files().any(|f| f == name));
    }
}

#[test]
fn a_far_repository_is_not_asked_for_old_pages_unless_told_to() {
    for (mode, near, asks) in
        [(DeltaMode::Auto, false, false), (DeltaMode::Auto, true, true), (DeltaMode::Fetch, false, true)]
    {
        let world = World::new(94, 4);
        let cache = world.path("cache");
        let mut hooked = HookedStore::new(&world.store, |_, _| ());
        hooked.near = near;
        let recording = Arc::new(RecordingStore::new(hooked));
        let back_up = |kind| {
            let repository = open_with(Arc::clone(&recording) as _, Some(&cache)).unwrap();
            let mut options = world.options(kind);
            options.deltas = Deltas { mode, cache_bytes: None };
            world.clock.advance(60);
            backup::run(&repository, &options, &Silent, &Cancel::default(), &*world.clock).unwrap().commit
        };
        let full = back_up(BackupType::Full);
        let mut expected = BTreeMap::from([(full.label.clone(), Tree::of_files(world.cluster.path()))]);
        let (index, table) = (open(&world.store).unwrap(), "base/5/16386");
        world.cluster.edit(table, &(0..400).step_by(3).collect::<Vec<_>>());
        recording.clear();
        let incr = back_up(BackupType::Incr);
        assert!(incr.repository_delta < full.repository_delta / 8, "{mode:?}: {} bytes", incr.repository_delta);
        // What was asked for is known by where chunks of relations lie.
        let mut relations: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        let snapshot = world.store.snapshot();
        for key in snapshot.keys() {
            let Some(pack) = layout::parse_pack(key) else { continue };
            let size = snapshot.get(key).unwrap().len() as u64;
            let (_, footer) = pgkeep_engine::pack::read_footer(&index, pack, size).unwrap();
            let spans = footer.entries.iter().filter(|e| e.page_hashes > 0 && e.encoding != Encoding::ZstdPrefix);
            let spans = spans.map(|e| (u64::from(e.offset), u64::from(e.offset) + u64::from(e.stored_len)));
            relations.insert(key.to_owned(), spans.collect());
        }
        let overlaps = |(a, b): &(u64, u64), (c, d): &(u64, u64)| a < d && c < b;
        let asked = parts(&recording.calls()).iter().any(|(key, parts)| {
            let spans = relations.get(key).map(Vec::as_slice).unwrap_or_default();
            parts.iter().any(|part| spans.iter().any(|span| overlaps(part, span)))
        });
        assert_eq!(asked, asks, "{mode:?}, near: {near}");
        expected.insert(incr.label, Tree::of_files(world.cluster.path()));
        invariants(&world.store, &expected, &mut Ledger::default());
    }
}

#[test]
fn old_pages_are_announced_unless_a_limit_forbids_to_read_them_yet() {
    for (limited, announces) in [(false, true), (true, false)] {
        let world = World::new(95, 4);
        world.backup(BackupType::Full);
        world.cluster.edit("base/5/16386", &(0..400).step_by(3).collect::<Vec<_>>());
        let recording = Arc::new(RecordingStore::new(HookedStore::new(&world.store, |_, _| ())));
        let repository = open_with(Arc::clone(&recording) as _, None).unwrap();
        let mut options = world.options(BackupType::Incr);
        if limited {
            options.limits = counting();
        }
        world.clock.advance(60);
        backup::run(&repository, &options, &Silent, &Cancel::default(), &*world.clock).unwrap();
        let told: u64 = recording.bytes(Verb::WillGet);
        assert_eq!(told > 100 << 10, announces, "{told} bytes");
        let packs: BTreeSet<_> = parts(&recording.calls()).into_keys().collect();
        let announced: BTreeSet<_> = recording.keys(Verb::WillGet).into_iter().collect();
        assert!(announced.is_subset(&packs), "{announced:?} are not among {packs:?}");
    }
}
