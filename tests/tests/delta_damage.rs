//! What becomes of deltas when something they need is damaged or unknown: it is named, and costs no more than it must.

use pgkeep_engine::index::{ChunkAt, ChunkIndex, Encoding};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pack::read_footer;
use pgkeep_engine::repository::ChunkSource;
use pgkeep_engine::restore::{self, Env, RestoreOptions, RestoreReport};
use pgkeep_engine::stats;
use pgkeep_engine::store::{MemoryStore, Range, Store};
use pgkeep_engine::verify::{self, BackupProblem, Flaw, VerifyOptions, VerifyReport};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::envelope::{Domain, ObjectKind};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::pack::{Dependency, Footer};
use pgkeep_formats::repo::records::{BackupType, Commit};
use pgkeep_formats::repo::refs::Refs;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use support::offline::{STANZA, World, object, open, read_back, text};

const TABLES: [(&str, u32); 3] = [("base/5/16384", 192), ("base/5/16385", 150), ("base/5/16386", 256)];

fn verify(store: &MemoryStore) -> VerifyReport {
    let options = VerifyOptions { jobs: 2, ..VerifyOptions::default() };
    verify::run(&open(store).unwrap(), &options, &Silent, &Cancel::default()).unwrap_or_else(|e| panic!("{}", text(&e)))
}

/// Footers of all packs, which must be readable.
fn footers(store: &MemoryStore) -> BTreeMap<PackId, Footer> {
    let (repository, snapshot) = (open(store).unwrap(), store.snapshot());
    let packs = snapshot.keys().filter_map(|key| Some((layout::parse_pack(key)?, snapshot.get(key)?.len() as u64)));
    packs.map(|(pack, size)| (pack, read_footer(&repository, pack, size).unwrap().1)).collect()
}

/// The packs with deltas, and what these are encoded against.
fn deltas(footers: &BTreeMap<PackId, Footer>) -> (BTreeSet<PackId>, HashSet<ChunkId>) {
    let (mut packs, mut bases) = (BTreeSet::new(), HashSet::new());
    for (pack, footer) in footers {
        for entry in &footer.entries {
            if let Dependency::Bases(runs) = &entry.dependency {
                packs.insert(*pack);
                bases.extend(runs.iter().map(|r| footer.bases[r.base as usize]));
            }
        }
    }
    (packs, bases)
}

fn locate(store: &MemoryStore, id: &ChunkId) -> ChunkAt {
    open(store).unwrap().load_index_to_read().unwrap().lookup(id).unwrap().unwrap()
}

fn refs(store: &MemoryStore, commit: &Commit) -> Refs {
    let name = layout::refs(commit.session);
    let repository = open(store).unwrap();
    let opened =
        repository.keyring().open_embedded(&name, &object(store, &name), &[ObjectKind::Refs], Domain::Gc, None);
    Refs::decode(&opened.unwrap().plaintext).unwrap()
}

fn put_refs(store: &MemoryStore, commit: &Commit, refs: &Refs) {
    let name = layout::refs(commit.session);
    let repository = open(store).unwrap();
    let sealed = repository.keyring().seal_embedded(ObjectKind::Refs, Domain::Gc, &name, &[], &refs.encode()).unwrap();
    assert!(store.tamper(&name, |bytes| *bytes = sealed));
}

fn marked(store: &MemoryStore) -> HashSet<PackId> {
    open(store).unwrap().marked_packs().unwrap()
}

fn damaged(report: &VerifyReport) -> BTreeSet<&str> {
    report.damage.iter().map(|d| d.object.as_str()).collect()
}

/// Labels of backups with problems.
fn hit(report: &VerifyReport) -> Vec<&str> {
    report.backups.iter().filter(|b| !b.problems.is_empty()).map(|b| b.label.as_str()).collect()
}

fn edit_everything(world: &World) {
    TABLES.iter().for_each(|(table, pages)| world.cluster.edit(table, &(0..*pages).collect::<Vec<u32>>()));
}

/// A full backup, and an increment in which all pages are deltas.
fn full_and_deltas(seed: u64) -> (World, Commit, Commit) {
    let world = World::new(seed, 2);
    let full = world.backup(BackupType::Full).commit;
    edit_everything(&world);
    let incr = world.backup(BackupType::Incr).commit;
    (world, full, incr)
}

/// Spoils the footer, and no chunk.
fn spoil_footer(store: &MemoryStore, pack: PackId) {
    assert!(store.tamper(&layout::pack(pack), |bytes| {
        let at = bytes.len() - 60;
        bytes[at] ^= 1;
    }));
}

#[test]
fn packs_with_nothing_but_bases_are_used() {
    let (world, full, incr) = full_and_deltas(75);
    // As if it had expired.
    world.store.delete(&layout::backup(STANZA, full.session)).unwrap();
    world.store.delete(&layout::refs(full.session)).unwrap();
    let (footers, refs) = (footers(&world.store), refs(&world.store, &incr));
    let (_, bases) = deltas(&footers);
    let of_bases = |pack: &PackId| {
        let mut used = footers[pack].entries.iter().enumerate().filter(|(n, _)| refs.contains(*pack, *n as u16));
        used.all(|(_, e)| bases.contains(&e.id))
    };
    assert!(refs.packs().any(|pack| of_bases(&pack)), "no pack is needed for its bases alone");
    let report = verify(&world.store);
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(report.garbage.unwrap().packs as usize, footers.len() - refs.packs().count());
    let counted = stats::run(&open(&world.store).unwrap(), &Default::default(), &Silent, &Cancel::default()).unwrap();
    assert_eq!(counted.packs.dead_packs, report.garbage.unwrap().packs);
}

#[test]
fn references_that_lack_a_base_are_found() {
    let (world, full, incr) = full_and_deltas(76);
    let (_, bases) = deltas(&footers(&world.store));
    // All pages have changed: no extent of the increment names it.
    let lost = bases.iter().min().unwrap();
    let at = locate(&world.store, lost);
    let all = refs(&world.store, &incr);
    assert!(all.contains(at.pack.pack, at.ordinal));
    let mut fewer = Refs::new(incr.session, all.generation);
    for pack in all.packs() {
        let kept = (0..u16::MAX).filter(|n| all.contains(pack, *n) && (pack, *n) != (at.pack.pack, at.ordinal));
        kept.for_each(|n| fewer.insert(pack, n));
    }
    assert_eq!(fewer.chunks() + 1, all.chunks());
    put_refs(&world.store, &incr, &fewer);
    let report = verify(&world.store);
    assert_eq!(hit(&report), [incr.label.as_str()], "not {}", full.label);
    let [damage] = &report.damage[..] else { panic!("{report:#?}") };
    assert_eq!((damage.object.as_str(), damage.flaw), (&*layout::refs(incr.session), Flaw::Inconsistent));
    assert!(damage.detail.contains(&lost.to_string()), "{damage:?}");
}

#[test]
fn a_damaged_base_is_the_fault_of_its_own_pack() {
    let (world, full, incr) = full_and_deltas(77);
    // Another day, so that more than one pack has deltas.
    edit_everything(&world);
    let last = world.backup(BackupType::Incr).commit;
    let (packs, bases) = deltas(&footers(&world.store));
    assert!(packs.len() >= 2, "{packs:?}");
    let base = bases.iter().min().unwrap();
    let at = locate(&world.store, base);
    let name = layout::pack(at.pack.pack);
    assert!(!packs.contains(&at.pack.pack));
    assert!(world.store.tamper(&name, |bytes| bytes[at.offset as usize + 30] ^= 1));

    let report = verify(&world.store);
    assert_eq!(damaged(&report), [name.as_str()].into(), "{:#?}", report.damage);
    // The hash of the whole, the chunk, and what cannot be decoded without it.
    assert_eq!(report.damage.len(), 3, "{:#?}", report.damage);
    let named = |d: &&verify::Damage| d.detail.contains("cannot be decoded without base chunk");
    let told = report.damage.iter().find(named).unwrap();
    assert!(told.detail.contains(&base.to_string()) && told.flaw == Flaw::Damaged, "{told:?}");
    assert!(packs.iter().any(|pack| told.detail.contains(&layout::pack(*pack))), "{told:?}");
    assert_eq!((report.marked, marked(&world.store)), (1, [at.pack.pack].into()));
    // Who needs the delta is hit.
    assert_eq!(hit(&report), [full.label.as_str(), &incr.label, &last.label]);
    for backup in &report.backups {
        assert!(matches!(&backup.problems[..], [BackupProblem::Files { .. }]), "{backup:?}");
    }
    // Whole again: no mark is left.
    assert!(world.store.tamper(&name, |bytes| bytes[at.offset as usize + 30] ^= 1));
    assert!(verify(&world.store).is_clean());
    assert_eq!(marked(&world.store), HashSet::new());
}

#[test]
fn a_missing_pack_of_bases_takes_no_blame_to_those_of_deltas() {
    let (world, full, incr) = full_and_deltas(78);
    let (_, bases) = deltas(&footers(&world.store));
    let pack = locate(&world.store, bases.iter().min().unwrap()).pack.pack;
    world.store.delete(&layout::pack(pack)).unwrap();
    let report = verify(&world.store);
    assert_eq!(damaged(&report), [layout::pack(pack).as_str()].into(), "{:#?}", report.damage);
    assert!(report.damage.iter().all(|d| d.flaw == Flaw::Missing), "{:#?}", report.damage);
    // One for the deltas, one for those who name its chunks.
    assert!(report.damage.len() <= 2, "{:#?}", report.damage);
    assert_eq!(hit(&report), [full.label.as_str(), &incr.label]);
    assert_eq!((report.marked, marked(&world.store)), (0, HashSet::new()));
}

#[test]
fn a_delta_that_is_damaged_itself_is_the_fault_of_its_pack() {
    let (world, full, incr) = full_and_deltas(79);
    let footers = footers(&world.store);
    let mut entries = footers.iter().flat_map(|(pack, f)| f.entries.iter().map(move |e| (*pack, e)));
    let (pack, entry) = entries.find(|(_, e)| e.encoding == Encoding::ZstdPrefix).unwrap();
    let name = layout::pack(pack);
    assert!(world.store.tamper(&name, |bytes| bytes[entry.offset as usize + 10] ^= 1));
    let report = verify(&world.store);
    assert_eq!(damaged(&report), [name.as_str()].into(), "{:#?}", report.damage);
    assert_eq!(marked(&world.store), [pack].into());
    assert_eq!(hit(&report), [incr.label.as_str()], "not {}", full.label);
}

#[test]
fn statistics_go_on_without_the_packs_that_do_not_tell() {
    let (world, _, _) = full_and_deltas(80);
    let run = || stats::run(&open(&world.store).unwrap(), &Default::default(), &Silent, &Cancel::default());
    let whole = run().unwrap();
    assert!(whole.packs.unreadable.is_empty() && whole.selection.backups[1].bases.chunks > 0);
    let (packs, _) = deltas(&footers(&world.store));
    packs.iter().for_each(|pack| spoil_footer(&world.store, *pack));
    let found = run().unwrap_or_else(|e| panic!("{}", text(&e)));
    assert_eq!(found.packs.unreadable.iter().map(|(pack, _)| *pack).collect::<BTreeSet<_>>(), packs);
    assert_eq!(found.packs.unreadable.len(), packs.len(), "each is told once");
    assert_eq!(found.packs.packs.count + packs.len() as u64, whole.packs.packs.count);
    assert_eq!(found.selection.backups.len(), 2);
    assert_eq!(found.selection.backups[0], whole.selection.backups[0]);
    assert_eq!(found.selection.backups[1].named, whole.selection.backups[1].named);
    // One that is not there at all is told as well.
    let gone = *packs.first().unwrap();
    world.store.delete(&layout::pack(gone)).unwrap();
    let found = run().unwrap_or_else(|e| panic!("{}", text(&e)));
    assert!(found.packs.unreadable.iter().any(|(pack, e)| *pack == gone && e.is_not_found()));
}

#[test]
fn files_are_restored_in_place_though_no_pack_tells_the_hashes_of_its_pages() {
    const TABLE: &str = "base/5/16384";
    let world = World::new(81, 2);
    world.backup(BackupType::Full);
    let first: Vec<PackId> = footers(&world.store).into_keys().collect();
    world.cluster.edit(TABLE, &[5, 50, 100]);
    let incr = world.backup(BackupType::Incr).commit;
    let path = world.cluster.path().join(TABLE);
    let wanted = std::fs::read(&path).unwrap();
    let restore = || -> RestoreReport {
        let mut options = RestoreOptions::new(STANZA, world.cluster.path());
        options.delta = true;
        let env = Env { observer: &Silent, cancel: &Cancel::default(), clock: &*world.clock };
        restore::run(&[open(&world.store).unwrap()], &options, &env).unwrap_or_else(|e| panic!("{}", text(&e)))
    };
    let compared = restore().fetched;
    // What holds the chunks of the full backup, which are whole.
    for pack in first {
        let name = layout::pack(pack);
        let size = world.store.get(&name, Range::Whole).unwrap().len() as u64;
        let (_, footer) = read_footer(&open(&world.store).unwrap(), pack, size).unwrap();
        if footer.entries.iter().any(|e| e.kind == ChunkKind::Relation) {
            spoil_footer(&world.store, pack);
        }
    }
    let index = open(&world.store).unwrap().load_index_to_read().unwrap();
    let source = Arc::new(ChunkSource::new(open(&world.store).unwrap(), index, STANZA));
    read_back(&source, &incr, &mut HashMap::new()).unwrap_or_else(|e| panic!("{}", text(&e)));
    world.cluster.edit(TABLE, &[6, 51]);
    let fetched = restore().fetched;
    assert!(fetched > compared, "{fetched} bytes were fetched, {compared} with all footers");
    assert!(std::fs::read(&path).unwrap() == wanted);
}
