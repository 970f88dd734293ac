//! What a day adds to the manifest: 1 GiB of a table in pages of 8 KiB, of which 8 % change each day, anywhere, and are
//! gathered 64 to a chunk. Bound: bytes in the repository, after compression. Expected magnitude: some 130 KiB a day with
//! leaf patches, 310 KiB without, where every leaf is written in full; the chunk table adds 5 KiB, the root 1 or 2.
//!
//! `cargo bench --profile release -p pgkeep-benches --bench manifest -- [changed pages of 1000] [days]`

use pgkeep_benches::{Random, commit_record};
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::crypto::Unlock;
use pgkeep_engine::index::ChunkIndex;
use pgkeep_engine::repository::manifests::{BuiltEntry, Manifest, ManifestBuilder};
use pgkeep_engine::repository::{ChunkSource, OpenOptions, Repository, WriterSession};
use pgkeep_engine::store::{MemoryStore, Store};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt, Node, push_extent};
use pgkeep_formats::repo::records::Commit;
use std::collections::HashSet;
use std::sync::Arc;

const PAGES: usize = 131_072;
const PAGE: u32 = 8192;
const STANZA: &str = "demo";

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let rate = numbers.first().copied().unwrap_or(80);
    let days = numbers.get(1).copied().unwrap_or(30);
    let (mut with, mut without) = (Series::new(), Series::new());
    // Page to chunk and place in it; chunks of 256 KiB at first.
    let mut pages: Vec<(u32, u32)> = (0..PAGES as u32).map(|n| (n / 32, n % 32)).collect();
    let mut chunks = PAGES as u32 / 32;
    let mut random = Random(11);
    let mut sums = [0; 6];
    println!("day   with patches: tree, table, root   without: tree, table, root   (bytes added)");
    for day in 0..=days {
        if day > 0 {
            let mut place = 64;
            for page in &mut pages {
                if random.next() % 1000 < rate {
                    (chunks, place) = if place == 64 { (chunks + 1, 0) } else { (chunks, place) };
                    *page = (chunks - 1, place);
                    place += 1;
                }
            }
        }
        let a = with.day(&pages, chunks, true);
        let b = without.day(&pages, chunks, false);
        println!("{day:3}   {:9} {:8} {:7}   {:9} {:8} {:7}", a[0], a[1], a[2], b[0], b[1], b[2]);
        if day > 0 {
            a.iter().chain(&b).zip(&mut sums).for_each(|(n, sum)| *sum += n);
        }
    }
    let mean = sums.map(|n| n / days.max(1));
    println!("mean  {:9} {:8} {:7}   {:9} {:8} {:7}", mean[0], mean[1], mean[2], mean[3], mean[4], mean[5]);
}

/// One repository with a backup a day.
struct Series {
    repository: Arc<Repository>,
    parent: Option<Commit>,
    seen: HashSet<ChunkId>,
    known: u32,
}

impl Series {
    fn new() -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let options = || OpenOptions { key: 1, unlock: Unlock::None, cache: None };
        Repository::create(Arc::clone(&store), options(), 1).expect("a repository");
        let repository = Arc::new(Repository::open(store, options()).expect("the repository"));
        Self { repository, parent: None, seen: HashSet::new(), known: 0 }
    }

    /// Bytes that a manifest adds: tree, table, root.
    fn day(&mut self, pages: &[(u32, u32)], chunks: u32, chained: bool) -> [u64; 3] {
        let mut session =
            WriterSession::begin(&self.repository, STANZA, "bench", "host", &SystemClock).expect("a session");
        let parent = self.parent.as_ref().filter(|_| chained).map(|commit| {
            let index = self.repository.load_index_to_read().expect("an index");
            let source = Arc::new(ChunkSource::new(Arc::clone(&self.repository), index, STANZA));
            Arc::new(Manifest::open(&source, commit).expect("the parent"))
        });
        let first = if parent.is_some() { self.known } else { 0 };
        let mut builder = ManifestBuilder::new(&session, PAGE, parent).expect("a builder");
        for n in first..chunks {
            let id = ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes());
            assert_eq!(builder.ordinal(&mut session, id).expect("an ordinal"), n);
        }
        let mut extents = Vec::new();
        for (ordinal, offset) in pages {
            let at = ExtentAt::Chunk { ordinal: *ordinal, offset: *offset };
            push_extent(&mut extents, Extent { units: 1, at });
        }
        let built = BuiltEntry {
            path: "base/5/16384".into(),
            node: Node::File,
            mode: 0o600,
            user: "postgres".into(),
            group: "postgres".into(),
            modified: (i64::from(chunks), 0),
            size: pages.len() as u64 * u64::from(PAGE),
            inline: None,
            unit: PAGE,
            extents,
            bad_pages: Vec::new(),
        };
        builder.add(&mut session, built).expect("an entry");
        let summary = builder.finish(&mut session, Vec::new()).expect("a manifest");
        session.publish().expect("an index");
        let mut added = |ids: &mut dyn Iterator<Item = ChunkId>| -> u64 {
            let new = ids.filter(|id| self.seen.insert(*id));
            let len = |id| session.index().lookup(&id).expect("an index").map_or(0, |at| u64::from(at.stored_len));
            new.map(len).sum()
        };
        let tree = added(&mut summary.root.tree.iter().map(|p| p.id));
        let table = added(&mut summary.root.table.iter().map(|p| p.id));
        let root = added(&mut summary.manifest.iter().copied());
        self.parent = Some(commit_record(&session, &summary, i64::from(chunks)));
        self.known = chunks;
        [tree, table, root]
    }
}
