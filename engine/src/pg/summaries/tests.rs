use super::*;
use pgkeep_formats::pg::path::{PathClass, classify};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::BTreeSet;

const GEOMETRY: Geometry = Geometry { page_size: 8192, segment_blocks: 1000 };
/// Tablespace, database, relfilenode, fork; limit; blocks.
type Entry = ([u32; 4], Option<u32>, BTreeSet<u32>);

/// A summary as the server would write it.
fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = 0x652b_137b_u32.to_le_bytes().to_vec();
    for (key, limit, blocks) in entries {
        let count = blocks.last().map_or(0, |b| b / 65_536 + 1);
        let mut chunks: Vec<Vec<u16>> = vec![Vec::new(); count as usize];
        blocks.iter().for_each(|b| chunks[(b / 65_536) as usize].push((b % 65_536) as u16));
        for chunk in chunks.iter_mut().filter(|c| c.len() >= 4096) {
            let mut bitmap = vec![0u16; 4096];
            chunk.iter().for_each(|n| bitmap[usize::from(n / 16)] |= 1 << (n % 16));
            *chunk = bitmap;
        }
        let head = key.iter().copied().chain([limit.unwrap_or(u32::MAX), count]);
        out.extend(head.flat_map(u32::to_le_bytes));
        out.extend(chunks.iter().flat_map(|c| (c.len() as u16).to_le_bytes()));
        out.extend(chunks.iter().flatten().flat_map(|n| n.to_le_bytes()));
    }
    out.extend([0; 24]);
    let crc = crc32c(&out);
    out.extend(crc.to_le_bytes());
    out
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn entry(filenode: u32, limit: Option<u32>, blocks: &[u32]) -> Entry {
    ([1663, 5, filenode, 0], limit, blocks.iter().copied().collect())
}

fn merge(files: &[Vec<Entry>]) -> ChangedBlocks {
    let mut table = BlockTable::default();
    for file in files {
        table.add(&WalSummary::parse(&encode(file)).unwrap()).unwrap();
    }
    table.finish();
    ChangedBlocks { table, geometry: GEOMETRY, files: files.len() }
}

fn file(path: &str) -> RelationFile {
    match classify(path) {
        PathClass::Relation(file) => file,
        other => panic!("{path}: {other:?}"),
    }
}

fn ask(changed: &ChangedBlocks, path: &str, blocks: u64) -> Verdict {
    changed.verdict(&file(path), blocks * 8192)
}

fn blocks(end: u32, changed: &[u32]) -> Verdict {
    Verdict::Blocks(BlockSet::new(end, changed.to_vec()))
}

#[test]
fn each_file_gets_its_verdict() {
    let changed = merge(&[
        vec![entry(10, None, &[3, 999, 1000, 2500]), entry(11, Some(1200), &[7]), entry(12, Some(0), &[1])],
        vec![entry(10, None, &[4]), entry(13, Some(5), &[]), entry(14, None, &(0..900).collect::<Vec<_>>())],
        vec![([1663, 6, 0, 0], Some(0), BTreeSet::new()), ([1700, 5, 10, 0], None, BTreeSet::from([8]))],
        vec![([1663, 5, 15, 2], Some(0), BTreeSet::from([0])), ([1664, 0, 1262, 0], None, BTreeSet::from([0]))],
    ]);
    let all = |why| Verdict::ReadAll(why);
    for (path, length, expected) in [
        // Several segments, merged from two summaries.
        ("base/5/10", 1000, blocks(1000, &[3, 4, 999])),
        ("base/5/10.1", 1000, blocks(1000, &[0])),
        ("base/5/10.2", 700, blocks(1000, &[500])),
        // A block that is listed and gone again.
        ("base/5/10.2", 400, blocks(1000, &[])),
        // The same number elsewhere, and a relation nothing happened to.
        ("pg_tblspc/1700/PG_17_202406281/5/10", 20, blocks(1000, &[8])),
        ("base/7/10", 20, blocks(1000, &[])),
        ("base/5/99", 1000, blocks(1000, &[])),
        ("global/1262", 2, blocks(1000, &[0])),
        // Cut in the second segment: the first is not touched, of the second 200 blocks remain.
        ("base/5/11", 1000, blocks(1000, &[7])),
        ("base/5/11.1", 1000, blocks(200, &[])),
        ("base/5/11.2", 1000, all(ReadAll::Cut)),
        ("base/5/13", 40, blocks(5, &[])),
        ("base/5/12", 40, all(ReadAll::Cut)),
        // Nine tenths.
        ("base/5/14", 1000, all(ReadAll::Most)),
        ("base/5/14.1", 1000, blocks(1000, &[])),
        // What summaries say nothing of, or too little.
        ("base/5/99_fsm", 3, all(ReadAll::Fork(Fork::Fsm))),
        ("base/5/15_vm", 1, all(ReadAll::Fork(Fork::Vm))),
        ("base/5/99_init", 1, all(ReadAll::Fork(Fork::Init))),
        ("base/5/t3_99", 1, all(ReadAll::Temporary)),
        ("base/5/15", 10, blocks(1000, &[])),
        // Made by FILE_COPY: nothing else tells of its files.
        ("base/6/99", 10, all(ReadAll::Database)),
        ("pg_tblspc/1700/PG_17_202406281/6/10", 20, blocks(1000, &[])),
        ("base/5/10", 1001, all(ReadAll::Length)),
        ("base/5/4294967295.4294967295", 1, all(ReadAll::Length)),
    ] {
        assert_eq!(ask(&changed, path, length), expected, "{path}, {length} blocks");
    }
    assert_eq!(changed.verdict(&file("base/5/10"), 8193), all(ReadAll::Length));
}

/// A server's view of one relation: what happened, and how it is summarized.
#[derive(Debug, Clone, Copy)]
enum Event {
    Write(u32),
    Cut(u32),
    /// Zero pages appear, without WAL.
    Grow(u32),
    /// A new summary begins.
    Checkpoint,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0u32..3000).prop_map(Event::Write),
        1 => (0u32..3000).prop_map(Event::Cut),
        2 => (0u32..3000).prop_map(Event::Grow),
        2 => Just(Event::Checkpoint),
    ]
}

proptest! {
    /// Blocks that need not be read are what they were, whatever happened and in whatever order summaries are merged.
    #[test]
    fn unread_blocks_are_what_they_were(
        length in 0u32..3000, events in proptest::collection::vec(event(), 0..60), order in any::<u64>(),
    ) {
        // Content of each block: 0 is a page of zeros, others are versions.
        let before: Vec<u32> = (0..length).map(|_| 1).collect();
        let mut now = before.clone();
        let mut files: Vec<Entry> = vec![entry(10, None, &[])];
        for (n, event) in events.iter().enumerate() {
            let last = files.last_mut().unwrap();
            match *event {
                Event::Write(block) => {
                    now.resize(now.len().max(block as usize + 1), 0);
                    now[block as usize] = n as u32 + 2;
                    last.2.insert(block);
                }
                Event::Cut(to) => {
                    now.truncate(to as usize);
                    last.2.retain(|b| *b < to);
                    last.1 = Some(last.1.map_or(to, |l| l.min(to)));
                }
                Event::Grow(to) => now.resize(now.len().max(to as usize), 0),
                Event::Checkpoint => files.push(entry(10, None, &[])),
            }
        }
        let pivot = order as usize % files.len();
        files.rotate_left(pivot);
        let changed = merge(&files.into_iter().map(|f| vec![f]).collect::<Vec<_>>());
        for segment in 0..now.len().div_ceil(1000) {
            let here = &now[segment * 1000..now.len().min(segment * 1000 + 1000)];
            let then = before.get(segment * 1000..before.len().min(segment * 1000 + 1000)).unwrap_or_default();
            let path = if segment == 0 { "base/5/10".to_owned() } else { format!("base/5/10.{segment}") };
            if let Verdict::Blocks(set) = ask(&changed, &path, here.len() as u64) {
                let set = set.within(then.len() as u32, &[]);
                for (block, content) in here.iter().enumerate().filter(|(b, _)| !set.contains(*b as u32)) {
                    prop_assert_eq!(*content, then[block], "segment {} block {}", segment, block);
                }
            }
        }
    }

    /// Without cuts exactly the union of what the summaries list is read.
    #[test]
    fn merging_is_a_union(
        files in proptest::collection::vec(proptest::collection::btree_set(0u32..140_000, 0..50), 1..6),
        dense in proptest::option::of((0u32..70_000, 4000u32..5000)),
    ) {
        let mut files: Vec<BTreeSet<u32>> = files;
        files.extend(dense.map(|(first, count)| (first..first + count).collect()));
        let union: BTreeSet<u32> = files.iter().flatten().copied().collect();
        let entries: Vec<_> = files.iter().map(|blocks| vec![([1663, 5, 10, 0], None, blocks.clone())]).collect();
        let mut changed = merge(&entries);
        changed.geometry.segment_blocks = 200_000;
        let expected: Vec<u32> = union.into_iter().collect();
        prop_assert_eq!(changed.verdict(&file("base/5/10"), 200_000 * 8192), blocks(200_000, &expected));
    }
}

/// A clock that only moves when it is waited for.
#[derive(Default)]
struct Patient(std::sync::Mutex<Duration>);

impl Clock for Patient {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }

    fn sleep(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

struct Fixture {
    directory: tempfile::TempDir,
    clock: Patient,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("elsewhere/summaries")).unwrap();
        // pg_wal may be a link.
        std::os::unix::fs::symlink("elsewhere", directory.path().join("pg_wal")).unwrap();
        Self { directory, clock: Patient::default() }
    }

    fn put(&self, timeline: u32, (start, end): (u64, u64), entries: &[Entry]) -> PathBuf {
        let name = SummaryName { timeline: TimelineId(timeline), start: Lsn(start), end: Lsn(end) };
        let path = self.directory.path().join("pg_wal/summaries").join(name.to_string());
        std::fs::write(&path, encode(entries)).unwrap();
        path
    }

    fn find(
        &self,
        since: (u32, u64, u64),
        until: (u32, u64),
        state: &mut dyn FnMut() -> Option<SummarizerState>,
    ) -> Outcome {
        let since = Since { timeline: TimelineId(since.0), start: Lsn(since.1), stop: Lsn(since.2) };
        let until = Until { timeline: TimelineId(until.0), start: Lsn(until.1) };
        let place = (&since, &until);
        find(self.directory.path(), place, GEOMETRY, state, &Cancel::default(), &self.clock).unwrap()
    }

    fn reason(&self, since: (u32, u64, u64), until: (u32, u64)) -> String {
        match self.find(since, until, &mut || None) {
            Outcome::Unknown(reason) => reason,
            Outcome::Known(_) => panic!("known"),
        }
    }
}

fn known(outcome: Outcome) -> ChangedBlocks {
    match outcome {
        Outcome::Known(changed) => changed,
        Outcome::Unknown(reason) => panic!("{reason}"),
    }
}

#[test]
fn summaries_are_found_across_timelines() {
    let f = Fixture::new();
    std::fs::write(f.directory.path().join("pg_wal/00000002.history"), "1\t0/64\tno recovery target specified\n")
        .unwrap();
    f.put(1, (0, 40), &[entry(10, None, &[1])]);
    f.put(1, (40, 120), &[entry(10, None, &[2])]);
    f.put(1, (120, 200), &[entry(10, None, &[3])]);
    f.put(2, (100, 150), &[entry(10, None, &[4])]);
    std::fs::write(f.directory.path().join("pg_wal/summaries/temp.summary"), "half of one").unwrap();
    let changed = known(f.find((1, 50, 60), (2, 150), &mut || None));
    assert_eq!(changed.files(), 2);
    assert_eq!(ask(&changed, "base/5/10", 100), blocks(1000, &[2, 4]));
    // The branch was left before the prior backup ended.
    assert!(f.reason((1, 50, 101), (2, 150)).contains("not in the history of timeline 2"));
    assert!(f.reason((1, 50, 60), (3, 150)).contains("00000003.history"));
}

#[test]
fn whatever_is_wrong_is_a_reason_and_no_error() {
    let f = Fixture::new();
    let first = f.put(1, (0, 100), &[entry(10, None, &[1])]);
    let second = f.put(1, (100, 200), &[entry(10, None, &[2])]);
    assert_eq!(known(f.find((1, 10, 20), (1, 200), &mut || None)).files(), 2);

    let mut bytes = std::fs::read(&first).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&first, &bytes).unwrap();
    assert!(f.reason((1, 10, 20), (1, 200)).contains("checksum of WAL summary"));
    std::fs::File::create(&first).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
    assert!(f.reason((1, 10, 20), (1, 200)).contains("too large"));
    std::fs::remove_file(&first).unwrap();
    assert!(f.reason((1, 10, 20), (1, 200)).contains("no summary covers WAL at 0/A on timeline 1"));
    // Gone between listing and reading, as far as a test can tell: a link to nothing.
    std::os::unix::fs::symlink("nothing", &first).unwrap();
    assert!(f.reason((1, 10, 20), (1, 200)).contains("cannot read"));
    assert_eq!(f.clock.now(), Duration::ZERO, "nothing of this is waited for");

    std::fs::remove_file(&second).unwrap();
    std::fs::remove_file(&first).unwrap();
    assert!(f.reason((1, 10, 20), (1, 200)).contains("does not summarize it in time"));
    assert!(f.clock.now() >= PATIENCE);
    std::fs::remove_dir(f.directory.path().join("pg_wal/summaries")).unwrap();
    assert!(f.reason((1, 10, 20), (1, 200)).contains("cannot list"));
}

fn state(enabled: bool, summarized: u64, pending: u64) -> SummarizerState {
    SummarizerState::new(enabled, TimelineId(1), Lsn(summarized), Lsn(pending))
}

#[test]
fn a_summarizer_that_moves_is_waited_for() {
    let f = Fixture::new();
    f.put(1, (0, 100), &[]);
    let asked = Cell::new(0u64);
    // It takes longer than the patience for one that stands still.
    let changed = known(f.find((1, 10, 20), (1, 5000), &mut || {
        asked.set(asked.get() + 1);
        if asked.get() == 1000 {
            f.put(1, (100, 5000), &[entry(10, None, &[9])]);
        }
        Some(state(true, 100, 100 + asked.get()))
    }));
    assert_eq!(ask(&changed, "base/5/10", 100), blocks(1000, &[9]));
    assert!(f.clock.now() > PATIENCE);

    // One that is off, or past it, is not.
    let before = f.clock.now();
    for state in [state(false, 100, 100), state(true, 6000, 6000)] {
        let outcome = f.find((1, 10, 20), (1, 6000), &mut || Some(state.clone()));
        assert!(matches!(outcome, Outcome::Unknown(_)));
    }
    assert_eq!(f.clock.now(), before);
}

#[test]
fn waiting_can_be_interrupted() {
    let f = Fixture::new();
    let cancel = Cancel::default();
    cancel.cancel();
    let since = Since { timeline: TimelineId(1), start: Lsn(10), stop: Lsn(20) };
    let until = Until { timeline: TimelineId(1), start: Lsn(30) };
    let result = find(f.directory.path(), (&since, &until), GEOMETRY, &mut || None, &cancel, &f.clock);
    assert!(matches!(result, Err(crate::Error::Interrupted)));
}

#[test]
fn too_much_is_given_up() {
    // Sparse chunks of many relations: what costs most.
    let entries = |from: u32| -> Vec<Entry> { (from..from + 50_000).map(|n| entry(n + 1, None, &[1])).collect() };
    let mut table = BlockTable::default();
    let result = (0..20).try_for_each(|n| {
        let file = encode(&entries(n * 50_000));
        table.add(&WalSummary::parse(&file).unwrap())
    });
    assert!(result.is_err());
}
