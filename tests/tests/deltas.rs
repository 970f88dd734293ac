//! Increments cost what changed: pages are gathered, encoded against their old versions, and come back.

use pgkeep_engine::index::{ChunkIndex, Encoding};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pack::read_footer;
use pgkeep_engine::repository::ChunkSource;
use pgkeep_engine::repository::manifests::Manifest;
use pgkeep_engine::verify::{self, VerifyOptions};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::pack::{Dependency, FooterEntry};
use pgkeep_formats::repo::records::BackupType;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use support::offline::{Ledger, STANZA, Tree, World, invariants, open, read_back, text};
use support::seed::Seed;

const TABLES: [&str; 3] = ["base/5/16384", "base/5/16385", "base/5/16386"];

/// Every chunk of every pack, with the names of its bases.
fn chunks(world: &World) -> Vec<(FooterEntry, Vec<pgkeep_formats::id::ChunkId>)> {
    let repository = open(&world.store).unwrap();
    let snapshot = world.store.snapshot();
    let mut out = Vec::new();
    for key in snapshot.keys() {
        let Some(pack) = layout::parse_pack(key) else { continue };
        let (_, footer) = read_footer(&repository, pack, snapshot.get(key).unwrap().len() as u64).unwrap();
        for entry in footer.entries {
            let bases = match &entry.dependency {
                Dependency::Bases(runs) => runs.iter().map(|r| footer.bases[r.base as usize]).collect(),
                _ => Vec::new(),
            };
            out.push((entry, bases));
        }
    }
    out
}

fn edit(world: &World, seed: &mut Seed, share: u64) {
    for table in TABLES {
        let pages = std::fs::metadata(world.cluster.path().join(table)).unwrap().len() / 8192;
        let blocks: Vec<u32> = (0..pages).filter(|_| seed.below(100) < share).map(|b| b as u32).collect();
        world.cluster.edit(table, &blocks);
    }
}

#[test]
fn a_month_of_small_changes_costs_little_and_every_day_comes_back() {
    let (mut seed, world) = (Seed::of(41), World::new(41, 4));
    let mut expected = BTreeMap::new();
    let mut ledger = Ledger::default();
    let first = world.backup(BackupType::Full);
    expected.insert(first.commit.label, Tree::of_files(world.cluster.path()));
    for day in 1..=12 {
        edit(&world, &mut seed, 10);
        // One relation grows; another is made anew.
        world.cluster.update(TABLES[2], &[600 + day, 601 + day]);
        if day == 6 {
            world.cluster.relation("base/5/17000", 40);
        }
        let kind = if day % 5 == 0 { BackupType::Diff } else { BackupType::Incr };
        let report = world.backup(kind);
        let label = report.commit.label.clone();
        expected.insert(label.clone(), Tree::of_files(world.cluster.path()));
        // A tenth of some 900 pages are 720 KiB, of which most do not compress. Deltas take some bytes a page, the manifest more.
        // A differential, too, stores only what the newest backup has not.
        let limit = if day == 6 { 500 << 10 } else { 100 << 10 };
        assert!(report.commit.repository_delta < limit, "{label}: {} bytes", report.commit.repository_delta);
    }
    let last = world.backup(BackupType::Full);
    assert!(last.commit.repository_delta < 100 << 10, "{} bytes", last.commit.repository_delta);
    expected.insert(last.commit.label, Tree::of_files(world.cluster.path()));
    invariants(&world.store, &expected, &mut ledger);

    let chunks = chunks(&world);
    let encodings: HashMap<_, _> = chunks.iter().map(|(e, _)| (e.id, e.encoding)).collect();
    let deltas: Vec<_> = chunks.iter().filter(|(e, _)| e.encoding == Encoding::ZstdPrefix).collect();
    assert!(deltas.len() >= 12, "{} deltas", deltas.len());
    for (delta, bases) in &deltas {
        assert_eq!(delta.page_hashes, delta.plain_len / 8192);
        assert!(delta.plain_len <= 512 << 10 && !bases.is_empty());
        for base in bases {
            assert!(matches!(encodings[base], Encoding::Raw | Encoding::Zstd), "a delta of a delta");
        }
    }
    // Gathered: days of a hundred changed pages in three files made a few chunks each, not one a file and page.
    assert!(deltas.len() <= 12 * 6, "{} deltas", deltas.len());
}

#[test]
fn damage_of_a_base_is_told_and_the_next_backup_after_verify_is_whole() {
    let (mut seed, world) = (Seed::of(43), World::new(43, 2));
    world.backup(BackupType::Full);
    edit(&world, &mut seed, 20);
    let incr = world.backup(BackupType::Incr).commit;
    let chunks = chunks(&world);
    let (_, bases) = chunks.iter().find(|(e, _)| e.encoding == Encoding::ZstdPrefix).unwrap();
    let repository = open(&world.store).unwrap();
    let index = repository.load_index_to_read().unwrap();
    let at = index.lookup(&bases[0]).unwrap().unwrap();
    assert!(world.store.tamper(&layout::pack(at.pack.pack), |bytes| bytes[at.offset as usize + 30] ^= 1));

    let read = |commit| {
        let repository = open(&world.store).unwrap();
        let index = repository.load_index_to_read().unwrap();
        read_back(&Arc::new(ChunkSource::new(repository, index, STANZA)), commit, &mut HashMap::new())
    };
    let error = text(&read(&incr).err().expect("a damaged base must be seen"));
    assert!(error.contains(&bases[0].to_string()), "{error}");

    // Built upon or not, a backup succeeds: pages whose base cannot be read are stored in full.
    edit(&world, &mut seed, 20);
    world.backup(BackupType::Incr);
    let report =
        verify::run(&repository, &VerifyOptions { jobs: 2, ..VerifyOptions::default() }, &Silent, &Cancel::default())
            .unwrap();
    assert!(!report.is_clean(), "verify saw nothing");
    edit(&world, &mut seed, 20);
    let full = world.backup(BackupType::Full).commit;
    let tree = read(&full).unwrap_or_else(|e| panic!("{}", text(&e)));
    assert_eq!(Tree::of_files(world.cluster.path()).differences(&tree), Vec::<String>::new());
}

#[test]
fn more_zeros_than_an_extent_can_have_cost_nothing_and_come_back() {
    let world = World::new(47, 1);
    // Sparse, as a core dump of a server with large shared buffers is; one byte at the end.
    let size = (4 << 30) + (3 << 20) + 5;
    let core = File::create(world.cluster.path().join("core")).unwrap();
    core.write_all_at(b"x", size - 1).unwrap();
    let full = world.backup(BackupType::Full).commit;
    assert!(full.size > size && full.repository_delta < 4 << 20, "{} bytes stored", full.repository_delta);
    let incr = world.backup(BackupType::Incr).commit;
    let repository = open(&world.store).unwrap();
    let index = repository.load_index_to_read().unwrap();
    let source = Arc::new(ChunkSource::new(repository, index, STANZA));
    for commit in [full, incr] {
        let record = Manifest::open(&source, &commit).unwrap();
        let record = Arc::new(record).find("core").unwrap().unwrap();
        let units: u64 = record.extents.iter().map(|e| u64::from(e.units)).sum();
        assert_eq!((record.entry.size, units), (size, size), "{:?}", record.extents);
        assert!(record.extents.len() <= 4, "{:?}", record.extents);
    }
}
