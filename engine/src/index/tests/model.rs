use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

#[derive(Debug, Clone)]
enum Op {
    Insert(u64, u8),
    Lookup(u64),
    /// Publish the head as a segment.
    Publish,
    /// Drain, but do not publish yet: the drained chunks must go on answering.
    Drain,
    /// Close and open the segments.
    Reopen,
    /// Replace all segments by one.
    Merge,
    Condemn(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..80u64, 0..4u8).prop_map(|(n, pack)| Op::Insert(n, pack)),
        8 => (0..80u64).prop_map(Op::Lookup),
        2 => Just(Op::Publish),
        1 => Just(Op::Drain),
        1 => Just(Op::Reopen),
        1 => Just(Op::Merge),
        1 => (0..4u8).prop_map(Op::Condemn),
    ]
}

/// The system under test, its published payloads, and the model.
struct World<'a> {
    dir: &'a Path,
    head: Arc<Head>,
    index: CombinedIndex,
    segments: Arc<SegmentSet>,
    published: Vec<(String, Vec<u8>)>,
    /// Objects ever published: names never return.
    names: usize,
    condemned: HashSet<PackId>,
    memory: MemoryIndex,
    model: BTreeMap<ChunkId, ChunkAt>,
}

impl<'a> World<'a> {
    fn new(dir: &'a Path, max_chunks: u64) -> Self {
        let options = HeadOptions { max_chunks, ..HeadOptions::default() };
        let head = Arc::new(Head::open(Some(dir), SessionId([1; 16]), &KEY, options));
        assert!(head.is_on_disk());
        let (segments, missing) = SegmentSet::open(dir.join("segments"), &KEY, &[]).unwrap();
        assert!(missing.is_empty());
        let segments = Arc::new(segments);
        let index = CombinedIndex::new(head.clone(), segments.clone(), HashSet::new(), None);
        let (published, condemned, memory, model) = (Vec::new(), HashSet::new(), MemoryIndex::new(), BTreeMap::new());
        Self { dir, head, index, segments, published, names: 0, condemned, memory, model }
    }

    fn publish(&mut self) {
        if let Some(builder) = self.head.drain().unwrap() {
            self.names += 1;
            let name = format!("idx/s/{}", self.names);
            let payload = builder.encode();
            self.segments.install(&name, 1000, &payload).unwrap();
            self.published.push((name, payload));
            self.head.release();
        }
    }

    fn insert(&mut self, n: u64, pack: u8) -> (bool, bool) {
        let at = at(pack, n as u32 * 1000 + u32::from(pack));
        // The model knows condemned chunks no more: they were published, and are replaced by being written anew.
        let is_new = !self.model.contains_key(&id(n));
        let inserted = match self.index.insert(id(n), at.clone()) {
            Err(IndexError::Full { .. }) => {
                self.publish();
                // What was draining before was published first; what was refused may need a second round.
                if self.head.is_full() {
                    self.publish();
                }
                self.index.insert(id(n), at.clone()).unwrap()
            }
            answer => answer.unwrap(),
        };
        if self.condemned.is_empty() {
            assert_eq!(self.memory.insert(id(n), at.clone()).unwrap(), is_new);
        }
        if is_new {
            self.model.insert(id(n), at);
        }
        (inserted, is_new)
    }

    fn reopen(&mut self) {
        let names: Vec<_> = self.published.iter().rev().map(|(name, _)| (name.clone(), 1000)).collect();
        let (segments, missing) = SegmentSet::open(self.dir.join("segments"), &KEY, &names).unwrap();
        assert!(missing.is_empty(), "{missing:?}");
        self.segments = Arc::new(segments);
        self.index = CombinedIndex::new(self.head.clone(), self.segments.clone(), self.condemned.clone(), None);
    }

    fn merge(&mut self) {
        let mut builder = IndexBuilder::new();
        for (name, bytes) in self.published.iter().rev() {
            builder.supersede(name.as_str());
            let view = pgkeep_formats::repo::index::IndexView::parse(bytes).unwrap();
            for entry in view.iter().filter(|e| !self.condemned.contains(&view.pack_of(e).unwrap().pack)) {
                let pack = builder.pack(view.pack_of(&entry).unwrap()).unwrap();
                builder.add(&IndexEntry { pack, ..entry }).unwrap();
            }
        }
        self.names += 1;
        let (name, payload) = (format!("idx/merged/{}", self.names), builder.encode());
        self.segments.install(&name, 1000, &payload).unwrap();
        self.published = vec![(name, payload)];
        self.reopen();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn sled_segments_and_memory_answer_as_a_map_does(
        ops in proptest::collection::vec(op(), 1..120),
        max_chunks in 3..20u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(dir.path(), max_chunks);
        for op in ops {
            match op {
                // Nothing is ever written to a condemned pack.
                Op::Insert(_, pack) if world.condemned.contains(&facts(pack).pack) => {}
                Op::Insert(n, pack) => {
                    let (inserted, is_new) = world.insert(n, pack);
                    prop_assert_eq!(inserted, is_new);
                }
                Op::Lookup(n) => {
                    prop_assert_eq!(world.index.lookup(&id(n)).unwrap(), world.model.get(&id(n)).cloned());
                    if world.condemned.is_empty() {
                        prop_assert_eq!(world.memory.lookup(&id(n)).unwrap(), world.model.get(&id(n)).cloned());
                    }
                }
                Op::Publish => world.publish(),
                Op::Drain => drop(world.head.drain().unwrap()),
                Op::Reopen => world.reopen(),
                Op::Merge => world.merge(),
                Op::Condemn(pack) => {
                    // Only packs of ended sessions are condemned: nothing of them is in the head.
                    world.publish();
                    world.publish();
                    world.condemned.insert(facts(pack).pack);
                    world.index.set_condemned(world.condemned.clone());
                    world.model.retain(|_, at| at.pack != facts(pack));
                }
            }
        }
        for n in 0..80 {
            prop_assert_eq!(world.index.lookup(&id(n)).unwrap(), world.model.get(&id(n)).cloned());
        }
    }
}

#[test]
fn a_chunk_in_a_condemned_pack_is_found_in_another_segments_pack() {
    let dir = tempfile::tempdir().unwrap();
    let (set, missing) = SegmentSet::open(dir.path(), &KEY, &wanted(&["new", "old"])).unwrap();
    assert_eq!(missing, ["new", "old"]);
    set.install("old", 1000, &payload([(id(1), at(1, 10))], &[])).unwrap();
    // Incomplete: the newer one might have it, but a hit is a hit.
    assert_eq!(set.lookup(&id(1)).unwrap(), Some(at(1, 10)));
    assert_eq!(set.lookup(&id(2)).unwrap_err().rebuild(), Some("new"));
    set.install("new", 1000, &payload([(id(1), at(2, 20))], &[])).unwrap();
    assert_eq!(set.lookup(&id(1)).unwrap(), Some(at(2, 20)));
    let condemned = HashSet::from([facts(2).pack]);
    let index = CombinedIndex::new(Arc::new(MemoryIndex::new()), Arc::new(set), condemned, None);
    assert_eq!(index.lookup(&id(1)).unwrap(), Some(at(1, 10)));
    index.set_condemned(HashSet::from([facts(1).pack, facts(2).pack]));
    assert_eq!(index.lookup(&id(1)).unwrap(), None);
    assert!(index.insert(id(1), at(3, 30)).unwrap());
    assert_eq!(index.lookup(&id(1)).unwrap(), Some(at(3, 30)));
}

#[test]
fn superseded_and_unwanted_copies_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    let (set, _) = SegmentSet::open(dir.path(), &KEY, &wanted(&["a", "b"])).unwrap();
    set.install("a", 1000, &payload([(id(1), at(1, 0))], &[])).unwrap();
    set.install("b", 1000, &payload([(id(2), at(1, 0))], &[])).unwrap();
    set.install("m", 1000, &payload([(id(1), at(1, 0)), (id(2), at(1, 0))], &["a", "b"])).unwrap();
    assert_eq!((files(), set.len()), (1, 2));
    assert!(set.missing().is_empty());
    // A listing may still name what the merged one replaces: it need not be fetched.
    let (set, missing) = SegmentSet::open(dir.path(), &KEY, &wanted(&["m", "b", "a"])).unwrap();
    assert!(missing.is_empty());
    assert!(set.lookup(&id(2)).unwrap().is_some());
    let (_, missing) = SegmentSet::open(dir.path(), &KEY, &wanted(&["x"])).unwrap();
    assert_eq!((missing, files()), (vec!["x".to_owned()], 0));
}

#[test]
fn segments_of_every_small_size_are_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (set, _) = SegmentSet::open(dir.path(), &KEY, &[]).unwrap();
    // 1 310 entries are a block: sizes around one and two blocks, and the smallest filters.
    for count in (0..12).chain([1309, 1310, 1311, 2620, 2621]) {
        let name = format!("n{count}");
        set.install(&name, count, &payload((0..count).map(|n| (id(n), at(1, n as u32))), &[])).unwrap();
        let (one, missing) = SegmentSet::open(dir.path(), &KEY, &[(name, count)]).unwrap();
        assert!(missing.is_empty());
        assert_eq!(one.len(), count);
        for n in 0..count + 50 {
            assert_eq!(one.lookup(&id(n)).unwrap(), (n < count).then(|| at(1, n as u32)));
        }
    }
}

#[test]
fn a_bad_payload_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (set, _) = SegmentSet::open(dir.path(), &KEY, &wanted(&["a"])).unwrap();
    let mut bytes = payload([(id(1), at(1, 0))], &[]);
    bytes.pop();
    assert!(matches!(set.install("a", 1000, &bytes), Err(IndexError::Payload { .. })));
    assert_eq!(set.missing(), ["a"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
