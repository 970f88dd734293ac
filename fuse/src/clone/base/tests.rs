//! A disk that loses pages, behind one base-backed file.

use super::*;
use crate::clone::files::{Handle, SyncScope};
use crate::clone::nodes::{Link, Nodes, Regular};
use crate::clone::state::{FileTable, Layout, SessionState};
use pgkeep_engine::view::Entry;
use pgkeep_engine::{Error, Kind, Result};
use std::collections::HashMap;
use std::os::fd::AsRawFd;

const PAGE: u64 = 8192;
const SIZE: u64 = 3 << 20;

fn pattern_at(seed: u8, at: u64) -> u8 {
    (at / PAGE) as u8 ^ (at as u8) ^ seed | 1
}

fn pattern(seed: u8, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| pattern_at(seed, at)).collect()
}

struct Backup {
    size: u64,
    fetched: Arc<AtomicU64>,
}

struct Bytes {
    size: u64,
    fetched: Arc<AtomicU64>,
}

impl Content for Bytes {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.fetched.fetch_add(buffer.len() as u64, Ordering::SeqCst);
        buffer.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = pattern_at(0, at));
        Ok(buffer.len())
    }
}

impl Snapshot for Backup {
    fn page_size(&self) -> u32 {
        PAGE as u32
    }

    fn entries(&self, _: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        Ok(())
    }

    fn lookup(&self, _: &str) -> Result<Option<Entry>> {
        Ok(None)
    }

    fn children(&self, _: &str) -> Result<Vec<Entry>> {
        Err(Error::refused(Kind::Assert, "not asked for"))
    }

    fn open(&self, _: &str) -> Result<Arc<dyn Content>> {
        Ok(Arc::new(Bytes { size: self.size, fetched: Arc::clone(&self.fetched) }))
    }
}

/// Tells each failure once to each descriptor, as the kernel does.
#[derive(Clone, Default)]
struct Fragile {
    failures: Arc<AtomicU64>,
    told: Arc<Mutex<HashMap<i32, u64>>>,
}

impl Disk for Fragile {
    fn sync(&self, file: &File, _: SyncScope) -> std::io::Result<()> {
        self.check(file)
    }

    fn check(&self, file: &File) -> std::io::Result<()> {
        let failures = self.failures.load(Ordering::SeqCst);
        let told = lock(&self.told).insert(file.as_raw_fd(), failures).unwrap_or(0);
        if told == failures { Ok(()) } else { Err(std::io::Error::from_raw_os_error(libc::EIO)) }
    }
}

struct Rig {
    dir: tempfile::TempDir,
    size: u64,
    layout: Layout,
    table: FileTable,
    disk: Fragile,
    fetched: Arc<AtomicU64>,
    queue: Arc<Queue>,
    doubt: Arc<Doubt>,
}

impl Rig {
    fn new() -> Self {
        Self::of(SIZE)
    }

    fn of(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        std::fs::create_dir(layout.meta()).unwrap();
        let mut table = FileTable::default();
        table.add("base/1/1", size, PAGE as u32);
        for name in ["present", "durable"] {
            File::create(layout.file(name)).unwrap().set_len(table.map_bytes()).unwrap();
        }
        SessionState { boot: "b".into(), clean: false }.save(&layout).unwrap();
        File::create(dir.path().join("sparse")).unwrap().set_len(size).unwrap();
        let doubt = Arc::new(Doubt::new(&layout));
        Self {
            dir,
            size,
            layout,
            table,
            disk: Fragile::default(),
            fetched: Arc::default(),
            queue: Arc::default(),
            doubt,
        }
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(self.dir.path().join("sparse")).unwrap()
    }

    fn handle(&self) -> Handle {
        let map = |name| File::options().read(true).write(true).open(self.layout.file(name)).unwrap();
        let shared = Arc::new(Shared {
            page_size: PAGE as u32,
            backup: "b".to_owned(),
            snapshot: Arc::new(Backup { size: self.size, fetched: Arc::clone(&self.fetched) }),
            maps: Arc::new(Maps::new(map("present"), map("durable"))),
            disk: Box::new(self.disk.clone()),
            queue: Arc::clone(&self.queue),
            doubt: Arc::clone(&self.doubt),
            demand: Arc::default(),
            ahead: Arc::default(),
            recorder: Arc::default(),
            room: Room::new(self.layout.root.clone()),
        });
        let base = BaseFile::load(self.table.get(0).unwrap(), self.size, shared).unwrap();
        let nodes = Nodes::new(1, false);
        let number = nodes.looked_up(Link::new(1, "sparse".as_ref()), 2, Regular::Yes);
        let state = nodes.file(number).unwrap();
        assert!(state.base.set(Some(Arc::new(base))).is_ok());
        let open = OpenFile { file: self.open(), witness: Some(self.open()), writable: true };
        for file in [&open.file, open.witness.as_ref().unwrap()] {
            lock(&self.disk.told).insert(file.as_raw_fd(), self.disk.failures.load(Ordering::SeqCst));
        }
        Handle { state, open: Arc::new(open) }
    }

    /// The kernel cannot write `range` back, notes that and drops the pages.
    fn lose(&self, range: Range<u64>) {
        let zeros = vec![0; (range.end - range.start) as usize];
        self.open().write_all_at(&zeros, range.start).unwrap();
        self.disk.failures.fetch_add(1, Ordering::SeqCst);
    }

    fn fetched(&self) -> u64 {
        self.fetched.swap(0, Ordering::SeqCst)
    }

    /// Bits set in a stored map.
    fn stored(&self, name: &str) -> u32 {
        std::fs::read(self.layout.file(name)).unwrap()[8..].iter().map(|byte| byte.count_ones()).sum()
    }
}

fn read_all(handle: &Handle) -> Vec<u8> {
    let pieces = (0..SIZE / (1 << 17)).map(|piece| handle.read(piece << 17, 1 << 17).unwrap());
    pieces.collect::<Vec<_>>().concat()
}

#[test]
fn fetched_pages_are_present_on_disk_only_once_they_were_synced() {
    let rig = Rig::new();
    let handle = rig.handle();
    assert!(read_all(&handle) == pattern(0, SIZE));
    assert_eq!((rig.stored("present"), rig.stored("durable")), (0, 0));
    assert!(handle.state.base.get().unwrap().as_ref().unwrap().is_unsettled());
    rig.queue.settle();
    assert!(!handle.state.base.get().unwrap().as_ref().unwrap().is_unsettled());
    assert_eq!((rig.stored("present"), rig.stored("durable")), (384, 384));
    assert_eq!(rig.fetched(), SIZE);
    assert!(read_all(&rig.handle()) == pattern(0, SIZE));
    assert_eq!(rig.fetched(), 0);
}

#[test]
fn a_file_is_not_durable_while_a_crash_may_bring_back_what_was_cut_off() {
    let rig = Rig::new();
    let handle = rig.handle();
    let base = || handle.state.base.get().unwrap().as_ref().unwrap();
    handle.write(0, &pattern(5, SIZE / 2), 0).unwrap();
    handle.sync(SyncScope::Data).unwrap();
    assert!(!base().is_durable());
    // Every page that is left is durable, but not that the others are gone.
    handle.truncate(SIZE / 2).unwrap();
    assert!(base().holds(0..SIZE) && !base().is_durable());
    rig.queue.settle();
    assert!(base().is_durable());
}

#[test]
fn fetched_pages_that_the_disk_lost_are_fetched_again_and_never_read_as_zeros() {
    let rig = Rig::new();
    let handle = rig.handle();
    assert!(read_all(&handle) == pattern(0, SIZE));
    // Dropped before anyone synced: the next reader finds out.
    rig.lose(0..SIZE);
    assert!(read_all(&handle) == pattern(0, SIZE));
    assert!(!rig.layout.file("session.json").exists());
    // The background's sync finds out.
    rig.lose(100 * PAGE..200 * PAGE);
    rig.queue.settle();
    assert_eq!((rig.stored("present"), rig.stored("durable")), (0, 0));
    rig.fetched();
    assert!(read_all(&handle) == pattern(0, SIZE));
    assert_eq!(rig.fetched(), SIZE);
    // And once the disk takes them they stay.
    rig.queue.settle();
    assert_eq!((rig.stored("present"), rig.stored("durable")), (384, 384));
    handle.sync(SyncScope::Data).unwrap();
    assert!(read_all(&rig.handle()) == pattern(0, SIZE));
}

#[test]
fn a_partly_written_page_is_not_completed_with_what_the_disk_lost() {
    let rig = Rig::new();
    let handle = rig.handle();
    let mut model = pattern(0, SIZE);
    assert!(read_all(&handle) == model);
    rig.lose(0..SIZE);
    handle.write(PAGE + 100, b"part", 0).unwrap();
    model[PAGE as usize + 100..][..4].copy_from_slice(b"part");
    assert!(read_all(&handle) == model);
}

#[test]
fn what_the_server_wrote_and_the_disk_lost_is_an_error_for_ever() {
    let rig = Rig::new();
    let handle = rig.handle();
    handle.write(0, &pattern(7, PAGE), 0).unwrap();
    handle.sync(SyncScope::Data).unwrap();
    handle.write(PAGE, &pattern(8, PAGE), 0).unwrap();
    assert_eq!((rig.stored("present"), rig.stored("durable")), (2, 1));
    rig.lose(PAGE..2 * PAGE);
    rig.queue.settle();
    for _ in 0..2 {
        assert_eq!(handle.sync(SyncScope::Data).unwrap_err().code(), libc::EIO);
        assert_eq!(handle.read(PAGE, PAGE as u32).unwrap_err().code(), libc::EIO);
        assert_eq!(handle.write(PAGE, &pattern(9, PAGE), 0).unwrap_err().code(), libc::EIO);
    }
    assert!(handle.read(0, PAGE as u32).unwrap() == pattern(7, PAGE));
    assert_eq!((rig.stored("present"), rig.stored("durable")), (1, 1));
    // The next session has what was synced, and the backup's for the rest.
    let again = rig.handle();
    assert!(again.read(0, PAGE as u32).unwrap() == pattern(7, PAGE));
    assert!(again.read(PAGE, PAGE as u32).unwrap() == pattern(0, SIZE)[PAGE as usize..][..PAGE as usize]);
}

#[test]
fn a_failed_sync_by_the_server_is_told_and_stays() {
    let rig = Rig::new();
    let handle = rig.handle();
    handle.write(5, b"x", 0).unwrap();
    rig.lose(0..PAGE);
    assert_eq!(handle.sync(SyncScope::DataAndFacts).unwrap_err().code(), libc::EIO);
    assert_eq!(handle.sync(SyncScope::DataAndFacts).unwrap_err().code(), libc::EIO);
    assert_eq!(handle.read(0, 10).unwrap_err().code(), libc::EIO);
}

#[test]
fn fetching_keeps_the_time_and_writing_does_not() {
    let rig = Rig::new();
    let then = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 5);
    rig.open().set_modified(then).unwrap();
    let handle = rig.handle();
    assert!(read_all(&handle) == pattern(0, SIZE));
    assert_eq!(rig.open().metadata().unwrap().modified().unwrap(), then);
    handle.write(5, b"x", 0).unwrap();
    assert!(rig.open().metadata().unwrap().modified().unwrap() > then);
}

#[test]
fn a_file_that_is_worked_on_is_fetched_ahead_block_for_block_and_one_that_is_looked_into_is_not() {
    const LOOKS: u64 = 64;
    let rig = Rig::of((4 * LOOKS + 1) * BLOCK_BYTES);
    let handle = rig.handle();
    let base = handle.state.base.get().unwrap().as_ref().unwrap();
    let expected = || base.shared.ahead.blocks();
    // No block is read whose predecessor was: nobody reads on.
    let look = |n: u64| assert_eq!(handle.read(2 * n * BLOCK_BYTES, 1).unwrap(), [pattern_at(0, 2 * n * BLOCK_BYTES)]);
    (0..LOOKS).for_each(look);
    assert_eq!(expected(), []);
    assert_eq!(rig.fetched(), LOOKS * BLOCK_BYTES);
    look(LOOKS);
    look(LOOKS + 5);
    assert_eq!(expected(), [2 * LOOKS + 1..2 * LOOKS + 2, 2 * LOOKS + 11..2 * LOOKS + 12]);
    // What is here is no miss.
    look(0);
    assert_eq!(expected().len(), 2);
    // Behind the last block the file begins again.
    look(2 * LOOKS);
    assert_eq!(expected().last(), Some(&(1..2)));
}
