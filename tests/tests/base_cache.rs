//! What a host keeps of old pages makes increments small without reading the repository; missing, damaged or strange, it
//! costs size and nothing else.

use pgkeep_engine::backup::{self, BackupReport, DeltaMode, Deltas};
use pgkeep_engine::index::Encoding;
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::pack::read_footer;
use pgkeep_engine::verify::{self, VerifyOptions};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::pack::FooterEntry;
use pgkeep_formats::repo::records::BackupType;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::offline::{Ledger, Tree, World, invariants, open, open_with};
use support::seed::Seed;

const TABLES: [&str; 3] = ["base/5/16384", "base/5/16385", "base/5/16386"];
/// Room for hashes of the sub-blocks of all pages, and for no copy of a pack.
const HASHES_ONLY: u64 = 300 << 10;

struct Rig {
    world: World,
    seed: Seed,
    cache: PathBuf,
    expected: BTreeMap<String, Tree>,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let world = World::new(seed, 4);
        let cache = world.path("cache");
        Self { world, seed: Seed::of(seed), cache, expected: BTreeMap::new() }
    }

    fn edit(&mut self) {
        for table in TABLES {
            let pages = std::fs::metadata(self.world.cluster.path().join(table)).unwrap().len() / 8192;
            let blocks: Vec<u32> = (0..pages).filter(|_| self.seed.below(100) < 15).map(|b| b as u32).collect();
            self.world.cluster.edit(table, &blocks);
        }
    }

    fn backup(&mut self, kind: BackupType, mode: DeltaMode, cache_bytes: Option<u64>) -> BackupReport {
        let repository = open_with(Arc::new(self.world.store.clone()), Some(&self.cache)).unwrap();
        let mut options = self.world.options(kind);
        options.deltas = Deltas { mode, cache_bytes };
        self.world.clock.advance(60);
        let report = backup::run(&repository, &options, &Silent, &Cancel::default(), &*self.world.clock).unwrap();
        self.world.clock.advance(60);
        self.expected.insert(report.commit.label.clone(), Tree::of_files(self.world.cluster.path()));
        report
    }

    /// Chunks of relations by their encoding.
    fn encodings(&self) -> HashMap<Encoding, usize> {
        let mut counted = HashMap::new();
        self.each(|entry| *counted.entry(entry.encoding).or_default() += 1);
        counted
    }

    /// Pages of relations by the encoding of their chunk.
    fn pages(&self) -> HashMap<Encoding, u32> {
        let mut counted = HashMap::new();
        self.each(|entry| *counted.entry(entry.encoding).or_default() += entry.plain_len / 8192);
        counted
    }

    /// Every chunk of a relation.
    fn each(&self, mut each: impl FnMut(&FooterEntry)) {
        let repository = open(&self.world.store).unwrap();
        let snapshot = self.world.store.snapshot();
        for key in snapshot.keys() {
            let Some(pack) = layout::parse_pack(key) else { continue };
            let (_, footer) = read_footer(&repository, pack, snapshot.get(key).unwrap().len() as u64).unwrap();
            footer.entries.iter().filter(|e| e.kind == ChunkKind::Relation).for_each(&mut each);
        }
    }

    fn count(&self, encoding: Encoding) -> usize {
        self.encodings().get(&encoding).copied().unwrap_or_default()
    }

    fn bases(&self) -> Vec<PathBuf> {
        let of_repository = self.cache.join("cache").read_dir().unwrap().next().unwrap().unwrap().path();
        files(&of_repository.join("bases"))
    }

    /// Every backup comes back, and every chunk decodes.
    fn check(&self) {
        invariants(&self.world.store, &self.expected, &mut Ledger::default());
        let repository = open(&self.world.store).unwrap();
        let options = VerifyOptions { jobs: 2, ..VerifyOptions::default() };
        let report = verify::run(&repository, &options, &Silent, &Cancel::default()).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn flip(path: &Path, mask: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    // In the middle of whatever it is, often enough to be in every chunk.
    bytes.iter_mut().step_by(997).for_each(|b| *b ^= mask);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn with_copies_of_packs_increments_are_deltas_and_the_store_is_not_asked() {
    let mut rig = Rig::new(51);
    rig.backup(BackupType::Full, DeltaMode::Cache, None);
    for _ in 0..3 {
        rig.edit();
        let new = rig.backup(BackupType::Incr, DeltaMode::Cache, None).commit.repository_delta;
        assert!(new < 100 << 10, "{new} bytes");
    }
    assert!(rig.count(Encoding::ZstdPrefix) >= 3 && rig.count(Encoding::Patch) == 0, "{:?}", rig.encodings());
    rig.check();
}

#[test]
fn with_hashes_alone_increments_are_patches() {
    let mut rig = Rig::new(52);
    rig.backup(BackupType::Full, DeltaMode::Cache, Some(HASHES_ONLY));
    let mut sizes = Vec::new();
    for _ in 0..4 {
        rig.edit();
        sizes.push(rig.backup(BackupType::Incr, DeltaMode::Cache, Some(HASHES_ONLY)).commit.repository_delta);
    }
    assert!(rig.count(Encoding::Patch) >= 4 && rig.count(Encoding::ZstdPrefix) == 0, "{:?}", rig.encodings());
    let kept: u64 = rig.bases().iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(kept <= HASHES_ONLY && kept > 0, "{kept} bytes");
    // A sixth of 500 pages, of which a page has one or two changed sub-blocks; in full they would be 600 KiB.
    assert!(sizes.iter().all(|s| *s < 250 << 10), "{sizes:?}");
    rig.backup(BackupType::Full, DeltaMode::Cache, Some(HASHES_ONLY));
    rig.check();
}

#[test]
fn without_its_directory_pages_are_stored_in_full_and_are_bases_again() {
    let mut rig = Rig::new(53);
    rig.backup(BackupType::Full, DeltaMode::Cache, None);
    rig.edit();
    std::fs::remove_dir_all(&rig.cache).unwrap();
    rig.backup(BackupType::Incr, DeltaMode::Cache, None);
    assert_eq!((rig.count(Encoding::ZstdPrefix), rig.count(Encoding::Patch)), (0, 0));
    // Pages that changed then are known now.
    rig.edit();
    rig.backup(BackupType::Incr, DeltaMode::Cache, None);
    assert!(rig.count(Encoding::ZstdPrefix) > 0, "{:?}", rig.encodings());
    rig.check();
}

#[test]
fn damage_to_it_harms_no_backup() {
    let mut rig = Rig::new(54);
    rig.backup(BackupType::Full, DeltaMode::Cache, None);
    rig.edit();
    // Copies only: hashes take over.
    rig.bases().iter().filter(|f| f.extension().unwrap() == "pack").for_each(|f| flip(f, 1));
    rig.backup(BackupType::Incr, DeltaMode::Cache, None);
    assert!(rig.count(Encoding::Patch) > 0 && rig.count(Encoding::ZstdPrefix) == 0, "{:?}", rig.encodings());
    rig.check();
    // Both: in full.
    let patches = rig.count(Encoding::Patch);
    rig.edit();
    rig.bases().iter().for_each(|f| flip(f, 2));
    rig.backup(BackupType::Incr, DeltaMode::Cache, None);
    assert_eq!((rig.count(Encoding::Patch), rig.count(Encoding::ZstdPrefix)), (patches, 0));
    rig.check();
    // Cut short, empty, a directory.
    rig.edit();
    for (n, file) in rig.bases().iter().enumerate() {
        match n % 3 {
            0 => std::fs::File::options().write(true).open(file).unwrap().set_len(1000).unwrap(),
            1 => std::fs::write(file, []).unwrap(),
            _ => {
                std::fs::remove_file(file).unwrap();
                std::fs::create_dir(file).unwrap();
            }
        }
    }
    rig.backup(BackupType::Incr, DeltaMode::Cache, None);
    rig.check();
}

#[test]
fn files_of_another_repository_are_not_believed() {
    let (mut rig, mut other) = (Rig::new(55), Rig::new(56));
    for rig in [&mut rig, &mut other] {
        rig.backup(BackupType::Full, DeltaMode::Cache, None);
    }
    // Under the names of ours.
    for (ours, theirs) in rig.bases().iter().zip(other.bases()) {
        std::fs::copy(theirs, ours).unwrap();
    }
    rig.edit();
    rig.backup(BackupType::Incr, DeltaMode::Cache, None);
    assert_eq!((rig.count(Encoding::Patch), rig.count(Encoding::ZstdPrefix)), (0, 0));
    rig.check();
}

#[test]
fn fetching_uses_copies_if_there_are_any_and_damaged_ones_are_fetched() {
    let mut rig = Rig::new(57);
    rig.backup(BackupType::Full, DeltaMode::Fetch, Some(64 << 20));
    assert!(!rig.bases().is_empty());
    rig.edit();
    rig.bases().iter().for_each(|f| flip(f, 1));
    let new = rig.backup(BackupType::Incr, DeltaMode::Fetch, Some(64 << 20)).commit.repository_delta;
    assert!(new < 100 << 10, "{new} bytes");
    assert!(rig.count(Encoding::ZstdPrefix) > 0);
    rig.check();
}

#[test]
fn what_is_kept_for_nobody_is_removed() {
    for (mode, bytes) in [(DeltaMode::Off, Some(1 << 30)), (DeltaMode::Fetch, None), (DeltaMode::Cache, Some(0))] {
        let mut rig = Rig::new(59);
        rig.backup(BackupType::Full, DeltaMode::Cache, None);
        assert!(!rig.bases().is_empty());
        rig.edit();
        rig.backup(BackupType::Incr, mode, bytes);
        assert!(rig.bases().is_empty(), "{mode:?}");
        assert_eq!(rig.count(Encoding::Patch), 0);
        assert_eq!(rig.count(Encoding::ZstdPrefix) > 0, mode == DeltaMode::Fetch);
        rig.check();
    }
}

#[test]
fn a_directory_that_others_can_write_to_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let mut rig = Rig::new(60);
    rig.backup(BackupType::Full, DeltaMode::Cache, None);
    let kept = rig.bases();
    let dir = kept[0].parent().unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o770)).unwrap();
    rig.edit();
    rig.backup(BackupType::Incr, DeltaMode::Cache, None);
    assert_eq!((rig.count(Encoding::ZstdPrefix), rig.count(Encoding::Patch)), (0, 0));
    assert_eq!(rig.bases(), kept);
    rig.check();
}

#[test]
fn off_means_no_delta_at_all() {
    let mut rig = Rig::new(58);
    rig.backup(BackupType::Full, DeltaMode::Off, None);
    rig.edit();
    rig.backup(BackupType::Incr, DeltaMode::Off, None);
    assert_eq!((rig.count(Encoding::Patch), rig.count(Encoding::ZstdPrefix)), (0, 0));
    rig.check();
}

/// Pages in chunks of each encoding that a backup added.
fn added(rig: &mut Rig, blocks: &[u32], mode: DeltaMode, cache_bytes: Option<u64>) -> HashMap<Encoding, u32> {
    let before = rig.pages();
    rig.world.cluster.edit(TABLES[0], blocks);
    rig.backup(BackupType::Incr, mode, cache_bytes);
    let mut after = rig.pages();
    after.retain(|encoding, pages| {
        *pages -= before.get(encoding).copied().unwrap_or_default();
        *pages > 0
    });
    after
}

#[test]
fn a_base_is_read_where_enough_of_it_is_wanted() {
    // Chunks of 32 pages: one page of the first changes, two of the second.
    let (alone, together) = ([5], [40, 50]);
    let both = [5, 40, 50];
    let prefix = |pages| (Encoding::ZstdPrefix, pages);

    let mut rig = Rig::new(57);
    rig.backup(BackupType::Full, DeltaMode::Auto, None);
    let new = added(&mut rig, &both, DeltaMode::Auto, None);
    assert_eq!(new.get(&Encoding::ZstdPrefix), Some(&2), "{new:?}");
    assert_eq!(new.values().sum::<u32>(), 3, "{new:?}");
    // Stored in full it is a base of its own, and a small one.
    assert_eq!(added(&mut rig, &alone, DeltaMode::Auto, None), HashMap::from([prefix(1)]));
    assert_eq!(added(&mut rig, &together, DeltaMode::Auto, None), HashMap::from([prefix(2)]));
    rig.check();

    let mut rig = Rig::new(58);
    rig.backup(BackupType::Full, DeltaMode::Fetch, None);
    assert_eq!(added(&mut rig, &both, DeltaMode::Fetch, None), HashMap::from([prefix(3)]));
    rig.check();

    // With hashes at hand the one alone is a patch.
    let mut rig = Rig::new(59);
    let room = Some(64 << 20);
    rig.backup(BackupType::Full, DeltaMode::Auto, room);
    assert_eq!(added(&mut rig, &both, DeltaMode::Auto, room), HashMap::from([prefix(2), (Encoding::Patch, 1)]));
    assert_eq!(added(&mut rig, &alone, DeltaMode::Auto, room), HashMap::from([(Encoding::Patch, 1)]));
    rig.check();
}
