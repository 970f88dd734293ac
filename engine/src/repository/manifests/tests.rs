//! Manifests of many days against plain maps of pages.

use super::*;
use crate::Kind;
use crate::clock::SystemClock;
use crate::crypto::Unlock;
use crate::repository::testing::record;
use crate::repository::{ChunkSource, OpenOptions, Repository, WriterSession};
use crate::store::{MemoryStore, Store};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{
    Extent, ExtentAt, FREE_BASE, LEAF_PAGES, Leaf, Node, PieceReader, Record, path_cmp, push_extent,
};
use pgkeep_formats::repo::records::Commit;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

const PAGE: u32 = 8192;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// Each unit's chunk and place in it; `None` is zeros.
type Pages = Vec<Option<(ChunkId, u32)>>;

#[derive(Debug, Clone, PartialEq)]
struct File {
    unit: u32,
    pages: Pages,
}

type Tree = BTreeMap<String, File>;

struct World {
    repository: Arc<Repository>,
    /// Chunks named so far.
    chunks: u64,
}

struct Made {
    commit: Commit,
    summary: ManifestSummary,
}

impl World {
    fn new() -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let options = || OpenOptions { key: 1, unlock: Unlock::None, cache: None };
        Repository::create(Arc::clone(&store), options(), 1).unwrap();
        Self { repository: Arc::new(Repository::open(store, options()).unwrap()), chunks: 0 }
    }

    fn source(&self) -> Arc<ChunkSource> {
        let index = self.repository.load_index_to_read().unwrap();
        Arc::new(ChunkSource::new(Arc::clone(&self.repository), index, "demo"))
    }

    fn open(&self, commit: &Commit) -> Arc<Manifest> {
        Arc::new(Manifest::open(&self.source(), commit).unwrap())
    }

    /// Pages in new chunks, in file order, `per_chunk` to a chunk.
    fn gather(&mut self, file: &mut File, changed: impl Iterator<Item = usize>, per_chunk: u32) {
        let mut offset = per_chunk;
        for page in changed {
            if offset == per_chunk {
                self.chunks += 1;
                offset = 0;
            }
            let mut id = [7; 32];
            id[..8].copy_from_slice(&self.chunks.to_le_bytes());
            file.pages[page] = Some((ChunkId(id), offset));
            offset += 1;
        }
    }

    /// Makes a manifest of `tree`; pages that the parent has at the same place keep the parent's ordinal.
    fn make(&self, parent: Option<(&Commit, &Tree)>, tree: &Tree, unchanged_api: bool) -> Made {
        let mut session = WriterSession::begin(&self.repository, "demo", "test", "host", &SystemClock).unwrap();
        let was = parent.map(|(commit, _)| self.open(commit));
        let mut builder = ManifestBuilder::new(&session, PAGE, was.clone()).unwrap();
        let mut paths: Vec<&String> = tree.keys().collect();
        paths.sort_by(|a, b| path_cmp(a, b));
        for path in paths {
            let file = &tree[path];
            let old = parent.and_then(|(_, old)| old.get(path)).filter(|old| old.unit == file.unit);
            let mut built = BuiltEntry {
                path: path.clone(),
                node: Node::File,
                mode: 0o600,
                user: "postgres".into(),
                group: "postgres".into(),
                modified: (1, 2),
                size: file.pages.len() as u64 * u64::from(file.unit),
                inline: None,
                unit: file.unit,
                extents: Vec::new(),
                bad_pages: vec![3],
            };
            if unchanged_api && old == Some(file) {
                (built.size, built.bad_pages) = (0, Vec::new());
                builder.add_unchanged(&mut session, built).unwrap();
                continue;
            }
            let known = was.as_ref().filter(|_| old.is_some()).map(|m| m.find(path).unwrap().unwrap().extents);
            let places = known.map(|extents| places(&extents)).unwrap_or_default();
            for (n, page) in file.pages.iter().enumerate() {
                let at = match page {
                    None => ExtentAt::Zero,
                    Some((id, offset)) => {
                        let same = old.is_some_and(|old| old.pages.get(n) == Some(page));
                        let ordinal = match places.get(n).copied().flatten() {
                            Some((ordinal, _)) if same => builder.parent_ordinal(&mut session, ordinal).unwrap(),
                            _ => builder.ordinal(&mut session, *id).unwrap(),
                        };
                        ExtentAt::Chunk { ordinal, offset: *offset }
                    }
                };
                built.extents.push(Extent { units: 1, at });
            }
            builder.add(&mut session, built).unwrap();
        }
        let summary = builder.finish(&mut session, Vec::new()).unwrap();
        session.publish().unwrap();
        let commit = commit(&session, &summary);
        Made { commit, summary }
    }

    fn check(&self, made: &Made, tree: &Tree) {
        let manifest = self.open(&made.commit);
        let mut paths: Vec<&String> = tree.keys().collect();
        paths.sort_by(|a, b| path_cmp(a, b));
        let all: Vec<FileRecord> = manifest.files().collect::<crate::Result<_>>().unwrap();
        assert_eq!(all.iter().map(|r| &r.entry.path).collect::<Vec<_>>(), paths);
        let entries: Vec<_> = manifest.entries().collect::<crate::Result<_>>().unwrap();
        assert_eq!(entries, all.iter().map(|r| r.entry.clone()).collect::<Vec<_>>());
        let mut used = HashSet::new();
        for record in &all {
            let file = &tree[&record.entry.path];
            let place = |p: &Option<(u32, u32)>| p.map(|(o, offset)| (manifest.chunk_id(o).unwrap(), offset));
            let pages: Pages = places(&record.extents).iter().map(place).collect();
            assert_eq!(pages.len(), file.pages.len());
            assert!(pages == file.pages, "{} has other pages", record.entry.path);
            assert_eq!(record.entry.bad_pages, [3]);
            let mut joined = Vec::new();
            record.extents.iter().for_each(|e| push_extent(&mut joined, *e));
            assert_eq!(joined, record.extents, "extents that continue each other are joined");
            assert_eq!(manifest.find(&record.entry.path).unwrap().as_ref(), Some(record));
            used.extend(pages.iter().flatten().map(|p| p.0));
        }
        if let Some(middle) = all.get(all.len() / 2) {
            let rest: Vec<FileRecord> = manifest.files_from(&middle.entry.path).collect::<crate::Result<_>>().unwrap();
            assert_eq!(rest, all[all.len() / 2..]);
        }
        let mut named = HashSet::new();
        let note = &mut |id: &ChunkId| {
            named.insert(*id);
            Ok(())
        };
        made.summary.chunks(&self.source(), note).unwrap();
        let needed = made.summary.root.pieces().chain(&made.summary.manifest).copied().chain(used);
        assert_eq!(named, needed.collect::<HashSet<_>>(), "exactly what is needed is named");
        assert!(made.summary.root.bases.last() != Some(&FREE_BASE));
    }

    /// Full leaves and patches.
    fn leaves(&self, made: &Made) -> (usize, usize) {
        let source = self.source();
        let (mut full, mut patches) = (0, 0);
        for piece in &made.summary.root.tree {
            let bytes = source.read(&piece.id).unwrap();
            for record in PieceReader::new(&bytes).unwrap() {
                match record.unwrap() {
                    Record::Leaf(Leaf::Full(_)) => full += 1,
                    Record::Leaf(Leaf::Patch { .. }) => patches += 1,
                    Record::Entry(_) => {}
                }
            }
        }
        (full, patches)
    }
}

fn places(extents: &[Extent]) -> Vec<Option<(u32, u32)>> {
    let place = |e: &Extent, i| match e.at {
        ExtentAt::Zero => None,
        ExtentAt::Chunk { ordinal, offset } => Some((ordinal, offset + i)),
    };
    extents.iter().flat_map(|e| (0..e.units).map(move |i| place(e, i))).collect()
}

fn commit(session: &WriterSession, summary: &ManifestSummary) -> Commit {
    Commit { manifest: summary.manifest.clone(), ..record(session) }
}

/// What happens to each file of a day.
#[derive(Debug, Clone, Copy)]
struct Day {
    seed: u64,
    /// Of 1000 pages.
    rate: u64,
    /// Of 100 files: removed, made anew, or written anew as a whole.
    churn: u64,
    /// How many days back the parent is; 0: there is none.
    back: usize,
    per_chunk: u32,
    unchanged_api: bool,
}

fn day() -> impl Strategy<Value = Day> {
    let rate = prop_oneof![Just(0u64), Just(2), Just(20), Just(80), Just(500)];
    let back = prop_oneof![8 => Just(1usize), 1 => Just(0), 1 => Just(2)];
    (any::<u64>(), rate, prop_oneof![2 => Just(0u64), 1 => Just(40)], back, 1u32..70, any::<bool>()).prop_map(
        |(seed, rate, churn, back, per_chunk, unchanged_api)| Day { seed, rate, churn, back, per_chunk, unchanged_api },
    )
}

fn change(world: &mut World, tree: &mut Tree, day: &Day) {
    let mut dice = Dice(day.seed);
    for n in 0..6 {
        let path = format!("base/{}/{n}", n / 2);
        if dice.roll(100) < day.churn || tree.is_empty() {
            if dice.roll(3) == 0 {
                tree.remove(&path);
                continue;
            }
            let len = dice.roll(3500) as usize;
            let mut file = File { unit: if n == 5 { 1 } else { PAGE }, pages: vec![None; len] };
            let zeros = dice.roll(2) == 0;
            let filled = (0..len).filter(|i| !zeros || i % 300 < 200);
            world.gather(&mut file, filled, 32);
            tree.insert(path.clone(), file);
        }
        let Some(mut file) = tree.remove(&path) else { continue };
        match dice.roll(8) {
            0 => file.pages.resize(file.pages.len() + dice.roll(600) as usize, None),
            1 => file.pages.truncate(dice.roll(3000) as usize),
            _ => {}
        }
        let changed: Vec<usize> = (0..file.pages.len()).filter(|_| dice.roll(1000) < day.rate).collect();
        world.gather(&mut file, changed.into_iter(), day.per_chunk);
        tree.insert(path, file);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_was_put_in_is_read_back(days in proptest::collection::vec(day(), 1..9)) {
        let mut world = World::new();
        let mut made: Vec<(Made, Tree)> = Vec::new();
        let mut tree = Tree::new();
        for day in &days {
            change(&mut world, &mut tree, day);
            let parent = made.len().checked_sub(day.back).and_then(|at| made.get(at));
            let this = world.make(parent.map(|(m, t)| (&m.commit, t)), &tree, day.unchanged_api);
            world.check(&this, &tree);
            made.push((this, tree.clone()));
        }
    }
}

/// A file of `leaves` leaves and a small one behind it.
fn two_files(world: &mut World, leaves: usize) -> Tree {
    let mut tree = Tree::new();
    for (path, len) in [("a", leaves * 1024), ("b", 40)] {
        let mut file = File { unit: PAGE, pages: vec![None; len] };
        world.gather(&mut file, 0..len, 32);
        tree.insert(path.into(), file);
    }
    tree
}

fn update(world: &mut World, tree: &mut Tree, dice: &mut Dice, per_thousand: u64) {
    let mut file = tree["a"].clone();
    let changed: Vec<usize> = (0..file.pages.len()).filter(|_| dice.roll(1000) < per_thousand).collect();
    world.gather(&mut file, changed.into_iter(), 64);
    tree.insert("a".into(), file);
}

#[test]
fn changed_leaves_become_patches_and_full_ones_again() {
    let (mut world, mut dice) = (World::new(), Dice(3));
    let mut tree = two_files(&mut world, 8);
    update(&mut world, &mut tree, &mut dice, 500);
    let mut last = world.make(None, &tree, false);
    assert_eq!(world.leaves(&last), (9, 0));
    let (mut rewritten, mut patched) = (0, 0);
    for _ in 0..12 {
        let old = tree.clone();
        update(&mut world, &mut tree, &mut dice, 30);
        let next = world.make(Some((&last.commit, &old)), &tree, false);
        world.check(&next, &tree);
        let (full, patches) = world.leaves(&next);
        assert_eq!(full + patches, 9);
        (rewritten, patched) = (rewritten + full - 1, patched + patches);
        assert!(next.summary.root.bases.len() <= 9 + 64);
        last = next;
    }
    assert!(patched > 40 && rewritten > 4, "{patched} patches, {rewritten} full leaves");
    // Nothing changed: the same bytes, patches among them, so the same pieces.
    for unchanged_api in [false, true] {
        let same = world.make(Some((&last.commit, &tree)), &tree, unchanged_api);
        assert_eq!(same.summary.root.tree, last.summary.root.tree);
        assert_eq!(same.summary.root.bases, last.summary.root.bases);
        world.check(&same, &tree);
    }
}

#[test]
fn a_table_that_is_written_anew_takes_no_patches_along() {
    let (mut world, mut dice) = (World::new(), Dice(5));
    let mut tree = two_files(&mut world, 1);
    // A table that is large enough to be rewritten: every page its own chunk.
    let mut file = File { unit: PAGE, pages: vec![None; 40_000] };
    world.gather(&mut file, 0..40_000, 1);
    tree.insert("c".into(), file);
    update(&mut world, &mut tree, &mut dice, 500);
    let first = world.make(None, &tree, false);
    let old = tree.clone();
    tree.remove("c");
    update(&mut world, &mut tree, &mut dice, 20);
    let second = world.make(Some((&first.commit, &old)), &tree, false);
    assert_eq!(world.leaves(&second).1, 1, "the table is extended once more");
    let old = tree.clone();
    update(&mut world, &mut tree, &mut dice, 10);
    for unchanged_api in [false, true] {
        let third = world.make(Some((&second.commit, &old)), &tree, unchanged_api);
        world.check(&third, &tree);
        assert!(third.summary.root.ids() < 1000);
        assert_eq!((world.leaves(&third).1, third.summary.root.bases.len()), (0, 0));
    }
}

#[test]
fn bases_keep_their_numbers_and_are_given_up() {
    let (mut world, mut dice) = (World::new(), Dice(9));
    let mut tree = two_files(&mut world, 40);
    update(&mut world, &mut tree, &mut dice, 500);
    let mut last = world.make(None, &tree, false);
    let mut seen = HashSet::new();
    for _ in 0..8 {
        let old = tree.clone();
        update(&mut world, &mut tree, &mut dice, 60);
        let next = world.make(Some((&last.commit, &old)), &tree, false);
        let (was, is) = (&last.summary.root.bases, &next.summary.root.bases);
        let stayed = was.iter().zip(is).filter(|(a, b)| a == b && **a != FREE_BASE).count();
        let common = was.iter().filter(|id| **id != FREE_BASE && is.contains(id)).count();
        assert_eq!(stayed, common);
        seen.extend(is.iter().copied());
        last = next;
    }
    let live = last.summary.root.live_bases().count();
    assert!(live < seen.len() - 1, "{live} of {} bases are still in use", seen.len());
}

fn empty(path: &str) -> BuiltEntry {
    BuiltEntry {
        path: path.into(),
        node: Node::File,
        mode: 0,
        user: String::new(),
        group: String::new(),
        modified: (0, 0),
        size: 0,
        inline: None,
        unit: PAGE,
        extents: Vec::new(),
        bad_pages: Vec::new(),
    }
}

#[test]
fn an_unchanged_file_the_parent_lacks_is_refused() {
    let mut world = World::new();
    let tree = two_files(&mut world, 1);
    let made = world.make(None, &tree, false);
    let mut session = WriterSession::begin(&world.repository, "demo", "test", "host", &SystemClock).unwrap();
    let mut builder = ManifestBuilder::new(&session, PAGE, Some(world.open(&made.commit))).unwrap();
    builder.add_unchanged(&mut session, empty("a")).unwrap();
    assert!(builder.add_unchanged(&mut session, empty("a")).is_err(), "out of order");
    assert!(builder.add_unchanged(&mut session, empty("aa")).is_err(), "no such file");
    builder.add_unchanged(&mut session, empty("b")).unwrap();
    let summary = builder.finish(&mut session, Vec::new()).unwrap();
    assert_eq!((summary.root.files, summary.root.bytes), (2, (1024 + 40) * u64::from(PAGE)));
}

#[test]
fn a_file_whose_extents_do_not_add_up_is_refused() {
    let world = World::new();
    let mut session = WriterSession::begin(&world.repository, "demo", "test", "host", &SystemClock).unwrap();
    let mut builder = ManifestBuilder::new(&session, PAGE, None).unwrap();
    let entry = |path: &str, size: u64, units: u32| BuiltEntry {
        size,
        extents: vec![Extent { units, at: ExtentAt::Zero }; usize::from(units > 0)],
        ..empty(path)
    };
    for (size, units) in [(0, 1), (1, 0), (u64::from(PAGE), 2), (u64::from(PAGE) + 1, 1)] {
        let error = builder.add(&mut session, entry("a", size, units)).unwrap_err();
        assert!(error.kind() == Kind::Assert && error.to_string().contains("'a'"), "{error}");
    }
    for (path, size, units) in [("a", 0, 0), ("b", u64::from(PAGE) + 1, 2)] {
        builder.add(&mut session, entry(path, size, units)).unwrap();
    }
    builder.finish(&mut session, Vec::new()).unwrap();
}

#[test]
fn late_files_are_read_back_with_their_extents_among_the_others() {
    let world = World::new();
    let mut session = WriterSession::begin(&world.repository, "demo", "test", "host", &SystemClock).unwrap();
    let mut builder = ManifestBuilder::new(&session, PAGE, None).unwrap();
    for path in ["a", "pg_wal/b", "z"] {
        builder.add(&mut session, empty(path)).unwrap();
    }
    // More pages than one leaf has, then zeros.
    let units = 3 * LEAF_PAGES + 5;
    let ordinal = builder.ordinal(&mut session, ChunkId([5; 32])).unwrap();
    let extents =
        vec![Extent { units, at: ExtentAt::Chunk { ordinal, offset: 0 } }, Extent { units: 2, at: ExtentAt::Zero }];
    let large =
        BuiltEntry { size: u64::from((units + 2) * PAGE) - 9, extents: extents.clone(), ..empty("pg_wal/large") };
    let wrong = BuiltEntry { size: large.size + 9 + 1, ..large.clone() };
    let inline = BuiltEntry { size: 3, inline: Some(b"new".to_vec()), ..empty("z") };
    let summary = builder.finish(&mut session, vec![large.clone(), inline]).unwrap();
    session.publish().unwrap();
    let mut used = Vec::new();
    let mut note = |id: &ChunkId| {
        used.push(*id);
        Ok(())
    };
    summary.chunks(&world.source(), &mut note).unwrap();
    assert!(used.contains(&ChunkId([5; 32])), "what a late file is made of is in use");

    let manifest = world.open(&commit(&session, &summary));
    let files: Vec<_> = manifest.files().map(Result::unwrap).collect();
    let paths: Vec<_> = files.iter().map(|f| f.entry.path.as_str()).collect();
    assert_eq!(paths, ["a", "pg_wal/b", "pg_wal/large", "z"]);
    assert_eq!((files[2].entry.size, &files[2].extents), (large.size, &extents));
    assert_eq!(manifest.find("pg_wal/large").unwrap().as_ref(), Some(&files[2]));
    assert_eq!(files[3].entry.size, 3);

    let builder = ManifestBuilder::new(&session, PAGE, None).unwrap();
    assert_eq!(builder.finish(&mut session, vec![wrong]).unwrap_err().kind(), Kind::Assert);
}
