//! Made-up stopped clusters, and a copy of each as a second stanza.

use pgkeep_engine::backup::{self, BackupOptions};
use pgkeep_engine::crypto::{KeyFile, Unlock};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pack::read_footer;
use pgkeep_engine::repository::{ChunkSource, OpenOptions, Repository};
use pgkeep_engine::store::{MemoryStore, Range, Store, Verb};
use pgkeep_engine::{Kind, Result};
use pgkeep_formats::id::{PackId, SessionId};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::keyslot::{Argon2Cost, Role};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{BackupType, Commit};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use support::offline::{HookedStore, STANZA, Tree, World, make_stanza, open, read_back, text};
use support::seed::Seed;

/// The stanza of the copy.
const COPY: &str = "copy";
const TABLES: [&str; 3] = ["base/5/16384", "base/5/16385", "base/5/16386"];
/// What a backup may add that has nothing new: its manifest, index and records.
const NEXT_TO_NOTHING: u64 = 24 << 10;
/// Where sessions say which packs they use.
const REFS: &str = "refs/";

fn edit(world: &World, seed: &mut Seed, share: u64) {
    for table in TABLES {
        let pages = std::fs::metadata(world.cluster.path().join(table)).unwrap().len() / 8192;
        let blocks: Vec<u32> = (0..pages).filter(|_| seed.below(100) < share).map(|b| b as u32).collect();
        world.cluster.edit(table, &blocks);
    }
}

/// A cluster whose repository has a stanza for its copy as well, with nothing backed up.
fn world(seed: u64, megabytes: u64) -> World {
    let world = World::new(seed, megabytes);
    make_stanza(&world.store, OpenOptions { key: 1, unlock: Unlock::None, cache: None }, COPY, seed);
    world
}

/// Copies the cluster as it is now, with times.
fn copy(world: &World) -> PathBuf {
    let to = world.path("copy").join("data");
    drop(std::fs::remove_dir_all(&to));
    assert!(Command::new("cp").arg("-a").args([world.cluster.path(), &to]).status().unwrap().success());
    to
}

/// Backs up the copy into its stanza.
fn backup_copy(world: &World, store: Arc<dyn Store>, pgdata: &Path, kind: BackupType) -> Result<Commit> {
    let options = BackupOptions { stanza: COPY.into(), pgdata: pgdata.to_owned(), ..world.options(kind) };
    let repository = support::offline::open_with(store, None)?;
    world.clock.advance(60);
    let report = backup::run(&repository, &options, &Silent, &Cancel::default(), &*world.clock);
    world.clock.advance(60);
    Ok(report?.commit)
}

#[track_caller]
fn assert_holds(store: &MemoryStore, stanza: &str, commit: &Commit, expected: &Tree) {
    let repository = open(store).unwrap();
    let index = repository.load_index_to_read().unwrap();
    let source = Arc::new(ChunkSource::new(repository, index, stanza));
    let tree = read_back(&source, commit, &mut HashMap::new()).unwrap_or_else(|e| panic!("{}", text(&e)));
    assert_eq!(expected.differences(&tree), Vec::<String>::new(), "{}", commit.label);
}

#[test]
fn a_differential_stores_nothing_that_an_incremental_has_stored() {
    let (mut seed, world) = (Seed::of(71), World::new(71, 8));
    world.backup(BackupType::Full);
    edit(&world, &mut seed, 30);
    world.cluster.relation("base/5/17000", 100);
    let incr = world.backup(BackupType::Incr).commit;
    let tree = Tree::of_files(world.cluster.path());
    let diff = world.backup(BackupType::Diff).commit;
    assert_eq!(diff.prior, Some(world.backups()[0].label.clone()));
    assert!(
        diff.repository_delta < NEXT_TO_NOTHING,
        "{} new bytes after {}",
        diff.repository_delta,
        incr.repository_delta
    );
    assert_holds(&world.store, STANZA, &diff, &tree);
    // The same again on top of it, and a full, whose manifest goes on from the differential's.
    for kind in [BackupType::Diff, BackupType::Incr, BackupType::Full, BackupType::Diff] {
        let again = world.backup(kind).commit;
        assert!(again.repository_delta < NEXT_TO_NOTHING, "{}: {} new bytes", again.label, again.repository_delta);
        assert_holds(&world.store, STANZA, &again, &tree);
    }
    // And what has changed since is new once: against the newest, not against the full.
    edit(&world, &mut seed, 2);
    let small = world.backup(BackupType::Diff).commit;
    assert!(small.repository_delta < incr.repository_delta / 2, "{} new bytes", small.repository_delta);
    assert_holds(&world.store, STANZA, &small, &Tree::of_files(world.cluster.path()));
}

/// The world's own backups, oldest first.
trait Backups {
    fn backups(&self) -> Vec<Commit>;
}

impl Backups for World {
    fn backups(&self) -> Vec<Commit> {
        open(&self.store).unwrap().backups(STANZA).unwrap()
    }
}

#[test]
fn a_copy_in_a_stanza_of_its_own_costs_what_differs_and_each_stanza_stands_alone() {
    let (mut seed, world) = (Seed::of(72), world(72, 16));
    let first = world.backup(BackupType::Full).commit;
    edit(&world, &mut seed, 5);
    world.backup(BackupType::Incr);
    // It goes on a little before it is copied.
    edit(&world, &mut seed, 1);
    let data = copy(&world);
    let tree = Tree::of_files(&data);
    let store = || Arc::new(world.store.clone()) as Arc<dyn Store>;
    let full = backup_copy(&world, store(), &data, BackupType::Full).unwrap();
    assert_eq!((full.backup_type, &full.prior, &full.reference), (BackupType::Full, &None, &Vec::new()));
    assert!(full.repository_delta * 100 <= 3 * full.size, "{} new bytes of {}", full.repository_delta, full.size);
    assert_holds(&world.store, COPY, &full, &tree);

    // Back in the first stanza the newest backup is the copy's; its own manifest is still the one built on.
    let own = world.backup(BackupType::Incr).commit;
    assert!(own.repository_delta < NEXT_TO_NOTHING, "{} new bytes", own.repository_delta);
    assert_holds(&world.store, STANZA, &own, &Tree::of_files(world.cluster.path()));
    edit(&world, &mut seed, 10);
    let data = copy(&world);
    let incr = backup_copy(&world, store(), &data, BackupType::Incr).unwrap();
    assert_holds(&world.store, COPY, &incr, &Tree::of_files(&data));
    for kind in [BackupType::Full, BackupType::Diff] {
        let own = world.backup(kind).commit;
        assert!(own.repository_delta < 2 * NEXT_TO_NOTHING, "{}: {} new bytes", own.label, own.repository_delta);
        assert_holds(&world.store, STANZA, &own, &Tree::of_files(world.cluster.path()));
    }

    // Of two stanzas' backups none needs a record of the other's.
    for (gone, left) in [(STANZA, COPY), (COPY, STANZA)] {
        let store = world.fork();
        let records = [layout::backups(gone), layout::stanza_histories(gone)];
        let keys: Vec<String> = world.store.snapshot().keys().map(str::to_owned).collect();
        for key in keys.iter().filter(|key| records.iter().any(|prefix| key.starts_with(prefix))) {
            store.delete(key).unwrap();
        }
        let last = open(&store).unwrap().backups(left).unwrap().pop().unwrap();
        let files = if left == COPY { data.as_path() } else { world.cluster.path() };
        assert_holds(&store, left, &last, &Tree::of_files(files));
    }
    assert!(first.repository_delta > 10 << 20);
}

/// Packs that sessions wrote: of data, or of metadata.
fn packs(store: &MemoryStore, session: SessionId, metadata: bool) -> Vec<PackId> {
    let repository = open(store).unwrap();
    let snapshot = store.snapshot();
    let all = snapshot.keys().filter_map(|key| Some((layout::parse_pack(key)?, snapshot.get(key)?.len() as u64)));
    let wanted = all.filter(|(pack, size)| {
        let (facts, footer) = read_footer(&repository, *pack, *size).unwrap();
        facts.session == session && footer.entries.iter().all(|e| (e.kind == ChunkKind::Metadata) == metadata)
    });
    wanted.map(|(pack, _)| pack).collect()
}

/// A full, a copy's full with much that is new, and what the first stanza would find there.
fn newest_in_another_stanza(seed: u64) -> (World, Commit) {
    let (mut dice, world) = (Seed::of(seed), world(seed, 2));
    world.backup(BackupType::Full);
    edit(&world, &mut dice, 30);
    world.cluster.relation("base/5/17000", 200);
    let data = copy(&world);
    let copied = backup_copy(&world, Arc::new(world.store.clone()), &data, BackupType::Full).unwrap();
    (world, copied)
}

#[test]
fn a_newest_backup_that_cannot_be_read_is_passed_over() {
    let (world, copied) = newest_in_another_stanza(73);
    let tree = Tree::of_files(world.cluster.path());
    let mut damaged = vec![layout::backup(COPY, copied.session), layout::stanza_history(COPY, 1)];
    damaged.extend(packs(&world.store, copied.session, true).into_iter().map(layout::pack));
    assert!(damaged.len() >= 3);
    for key in damaged {
        for flip in [true, false] {
            let store = world.fork();
            let flip_it = |bytes: &mut Vec<u8>| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            };
            if flip {
                assert!(store.tamper(&key, flip_it));
            } else {
                store.delete(&key).unwrap();
            }
            for kind in [BackupType::Incr, BackupType::Full] {
                let report = world.backup_to(Arc::new(store.clone()), None, kind);
                let report = report.unwrap_or_else(|e| panic!("'{key}' stops a backup: {}", text(&e)));
                assert_holds(&store, STANZA, &report.commit, &tree);
            }
        }
    }
}

#[test]
fn a_damaged_prior_and_a_whole_newest_backup_make_a_whole_backup() {
    let (mut seed, world) = (Seed::of(74), World::new(74, 2));
    let full = world.backup(BackupType::Full).commit;
    edit(&world, &mut seed, 20);
    let incr = world.backup(BackupType::Incr).commit;
    edit(&world, &mut seed, 5);
    let tree = Tree::of_files(world.cluster.path());
    // Either is the prior of one of these, and the page parent is the second.
    for session in [full.session, incr.session] {
        for pack in packs(&world.store, session, true) {
            let len = world.store.get(&layout::pack(pack), Range::Whole).unwrap().len();
            for at in (100..len).step_by((len / 9).max(1)) {
                let store = world.fork();
                assert!(store.tamper(&layout::pack(pack), |bytes| bytes[at] ^= 4));
                for kind in [BackupType::Diff, BackupType::Incr, BackupType::Full] {
                    let report = world.backup_to(Arc::new(store.clone()), None, kind);
                    let report = report.unwrap_or_else(|e| panic!("{pack} at {at}, {kind:?}: {}", text(&e)));
                    assert_holds(&store, STANZA, &report.commit, &tree);
                }
            }
        }
    }
}

#[test]
fn a_key_for_one_stanza_backs_it_up_beside_others() {
    let (world, _) = newest_in_another_stanza(75);
    let all = open(&world.store).unwrap();
    let unlock = || Unlock::KeyFile(KeyFile::new(vec![9; 32]).unwrap());
    let writer = all.keyring().restrict(Role::Writer, Some(&[STANZA])).unwrap();
    let (slot, bytes) = writer.seal_slot(&unlock(), Argon2Cost::default(), "writer", 0).unwrap();
    world.store.put_if_absent(&layout::key_slot(slot), &bytes).unwrap();
    let options = OpenOptions { key: 1, unlock: unlock(), cache: None };
    let writer = Arc::new(Repository::open(Arc::new(world.store.clone()), options).unwrap());
    assert_eq!(writer.keyring().role(), Role::Writer);
    let tree = Tree::of_files(world.cluster.path());
    for kind in [BackupType::Incr, BackupType::Full] {
        let report = world.backup_with(&writer, kind).unwrap_or_else(|e| panic!("{}", text(&e)));
        assert_holds(&world.store, STANZA, &report.commit, &tree);
    }
}

#[test]
fn a_clock_that_goes_back_changes_neither_order_nor_what_is_stored() {
    let (mut seed, world) = (Seed::of(76), world(76, 4));
    world.backup(BackupType::Full);
    edit(&world, &mut seed, 20);
    let incr = world.backup(BackupType::Incr).commit;
    let tree = Tree::of_files(world.cluster.path());
    // A minute was let pass before and after that; now it is earlier than its start.
    world.clock.set_back(140);
    let diff = world.backup(BackupType::Diff).commit;
    assert!(diff.start < incr.start && diff.label > incr.label, "{} after {}", diff.label, incr.label);
    assert!(diff.repository_delta < NEXT_TO_NOTHING, "{} new bytes", diff.repository_delta);
    assert_holds(&world.store, STANZA, &diff, &tree);
    assert_eq!(world.backups().last().map(|c| &c.label), Some(&diff.label));
    // What is built on it is built on the newest, whose time of stop is not the latest.
    let next = world.backup(BackupType::Incr).commit;
    assert_eq!(next.prior, Some(diff.label));
    assert!(next.repository_delta < NEXT_TO_NOTHING, "{} new bytes", next.repository_delta);

    // A host whose clock is far behind: its backup is not the newest by time, and still of use to itself.
    world.clock.set_back(1_000_000);
    let data = copy(&world);
    let copied = backup_copy(&world, Arc::new(world.store.clone()), &data, BackupType::Full).unwrap();
    assert!(copied.label < incr.label);
    assert!(copied.repository_delta * 100 <= 3 * copied.size, "{} new bytes", copied.repository_delta);
    assert_holds(&world.store, COPY, &copied, &Tree::of_files(&data));
    // Nor can the first stanza go on there: a label would sort before what it is built on.
    let error = world.backup_to(Arc::new(world.store.clone()), None, BackupType::Incr).unwrap_err();
    assert_eq!(error.kind(), Kind::Clock, "{}", text(&error));
}

/// A store in which something happens when the first object of a kind is to be written. The first pack is written when all
/// manifests have been read, references when all has been copied.
fn meanwhile(
    inner: &MemoryStore,
    before: &'static str,
    act: impl FnOnce(&MemoryStore) + Send + 'static,
) -> (Arc<HookedStore>, Arc<AtomicBool>) {
    let (store, act, has_happened) = (inner.clone(), Mutex::new(Some(act)), Arc::new(AtomicBool::new(false)));
    let happened = Arc::clone(&has_happened);
    let hook = move |verb, key: &str| {
        if verb == Verb::Put
            && key.starts_with(before)
            && let Some(act) = act.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            act(&store);
            happened.store(true, Ordering::SeqCst);
        }
    };
    (Arc::new(HookedStore::new(inner, hook)), has_happened)
}

#[test]
fn a_backup_whose_parent_expires_meanwhile_is_whole() {
    let (world, copied) = newest_in_another_stanza(77);
    world.cluster.relation("base/5/17001", 300);
    let tree = Tree::of_files(world.cluster.path());
    let prior = world.backups().pop().unwrap();
    for kind in [BackupType::Incr, BackupType::Diff, BackupType::Full] {
        let store = world.fork();
        let records = [(STANZA, prior.session), (COPY, copied.session)];
        let (meanwhile, has_happened) = meanwhile(&store, layout::PACKS, move |store| {
            for (stanza, session) in records {
                store.put_if_absent(&layout::expired(stanza, session), b"").unwrap();
                store.delete(&layout::backup(stanza, session)).unwrap();
                store.delete(&layout::refs(session)).unwrap();
            }
        });
        let report = world.backup_to(Arc::clone(&meanwhile) as Arc<dyn Store>, None, kind);
        let report = report.unwrap_or_else(|e| panic!("{kind:?}: {}", text(&e)));
        assert!(has_happened.load(Ordering::SeqCst));
        assert_holds(&store, STANZA, &report.commit, &tree);
        let left: Vec<_> = open(&store).unwrap().backups(STANZA).unwrap().into_iter().map(|c| c.label).collect();
        assert_eq!(left, [report.commit.label]);
    }
}

#[test]
fn a_pack_of_the_parent_that_is_deleted_meanwhile_is_named_and_nothing_is_visible() {
    let (world, copied) = newest_in_another_stanza(78);
    world.cluster.relation("base/5/17001", 300);
    let tree = Tree::of_files(world.cluster.path());
    let before = world.backups().len();
    for pack in packs(&world.store, copied.session, false) {
        for (at, kind) in [(layout::PACKS, BackupType::Incr), (REFS, BackupType::Incr), (REFS, BackupType::Full)] {
            let store = world.fork();
            let (meanwhile, has_happened) =
                meanwhile(&store, at, move |store| store.delete(&layout::pack(pack)).unwrap());
            let outcome = world.backup_to(Arc::clone(&meanwhile) as Arc<dyn Store>, None, kind);
            assert!(has_happened.load(Ordering::SeqCst));
            match outcome {
                Err(error) => {
                    assert!(text(&error).contains(&pack.to_string()), "{}", text(&error));
                    assert_eq!(open(&store).unwrap().backups(STANZA).unwrap().len(), before);
                }
                // It was missed before anything was found in it.
                Ok(report) if at == layout::PACKS => assert_holds(&store, STANZA, &report.commit, &tree),
                Ok(_) => panic!("{kind:?} does not miss pack {pack}"),
            }
            // The next run stores again what was in it.
            let next = world.backup_to(Arc::new(store.clone()), None, kind);
            let next = next.unwrap_or_else(|e| panic!("{kind:?}: {}", text(&e)));
            assert_holds(&store, STANZA, &next.commit, &tree);
        }
    }
    // Metadata of the other stanza has been read by then, or is done without.
    for pack in packs(&world.store, copied.session, true) {
        let store = world.fork();
        let (meanwhile, has_happened) =
            meanwhile(&store, layout::PACKS, move |store| store.delete(&layout::pack(pack)).unwrap());
        let report = world.backup_to(Arc::clone(&meanwhile) as Arc<dyn Store>, None, BackupType::Incr);
        let report = report.unwrap_or_else(|e| panic!("pack {pack}: {}", text(&e)));
        assert!(has_happened.load(Ordering::SeqCst));
        assert_holds(&store, STANZA, &report.commit, &tree);
    }
}
