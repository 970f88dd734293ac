//! Prints how long `archive-push` takes inside the process, part by part, with and without the disk.
//!
//! `cargo run --release -p pgkeep-engine --example archive_push -- [WAL-FILE] [DIRECTORY]`; without a file a segment of
//! row-like bytes is made up. Bound: zstd on the processors there are, then one file and directory sync.

use pgkeep_engine::crypto::Unlock;
use pgkeep_engine::repository::wal::{WalFile, WalPut};
use pgkeep_engine::repository::{OpenOptions, Repository};
use pgkeep_engine::store::{LocalStore, MemoryStore, Store};
use std::sync::Arc;
use std::time::Instant;

const ROUNDS: u32 = 15;
const LEVEL: i32 = 3;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let content = match arguments.next().filter(|path| path != "-") {
        Some(path) => std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}")),
        None => made_up(16 << 20),
    };
    let file = WalFile::encode(&content, LEVEL).expect("encode");
    println!("{} bytes, {} compressed", file.size(), file.encoded_size());
    median("compress and compare", |_| drop(WalFile::encode(&content, LEVEL).expect("encode")));
    let dir = arguments.next().map_or_else(tempfile::tempdir, tempfile::tempdir_in).expect("a directory");
    let stores: [(&str, Arc<dyn Store>); 2] = [
        ("memory", Arc::new(MemoryStore::new())),
        ("local", Arc::new(LocalStore::create(dir.path().join("repo")).expect("a store"))),
    ];
    for (what, store) in stores {
        let options = || OpenOptions { key: 1, unlock: Unlock::None, cache: None };
        let repository = Repository::create(Arc::clone(&store), options(), 0).expect("a repository");
        median(&format!("{what}: open"), |_| drop(Repository::open(Arc::clone(&store), options()).expect("open")));
        median(&format!("{what}: hash, seal, put"), |i| put(&repository, &format!("{i:024X}"), &file));
        median(&format!("{what}: all of it"), |i| {
            let repository = Repository::open(Arc::clone(&store), options()).expect("open");
            let file = WalFile::encode(&content, LEVEL).expect("encode");
            put(&repository, &format!("00000001{i:016X}"), &file);
        });
        median(&format!("{what}: get"), |i| {
            let found = repository.wal_get("main", "15-1", &format!("{i:024X}")).expect("get");
            assert!(found.is_some_and(|f| f == content));
        });
    }
}

fn put(repository: &Repository, name: &str, file: &WalFile<'_>) {
    assert_eq!(repository.wal_put("main", "15-1", name, file).expect("put"), WalPut::Created);
}

/// Medians of the wall time and of the processor time of all threads: on a busy machine only the second says much.
fn median(what: &str, mut run: impl FnMut(u32)) {
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for i in 0..ROUNDS {
        let (begun, used) = (Instant::now(), cpu_ms());
        run(i);
        wall.push(begun.elapsed().as_secs_f64() * 1e3);
        cpu.push(cpu_ms() - used);
    }
    wall.sort_by(f64::total_cmp);
    cpu.sort_by(f64::total_cmp);
    println!("{what:28} {:8.2} ms wall {:8.2} ms CPU", wall[wall.len() / 2], cpu[cpu.len() / 2]);
}

fn cpu_ms() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// Small records of counters and repeated words, with a page image of noise-like text now and then.
fn made_up(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8192);
    let mut state = 1u64;
    while out.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let n = state >> 33;
        out.extend_from_slice(&n.to_le_bytes()[..4]);
        out.extend_from_slice(&[0, 0, 0, 0, (n % 7) as u8, 10, 0, 0]);
        out.extend_from_slice(format!("account {} balance {} filler          ", n % 100_000, n % 977).as_bytes());
        if n.is_multiple_of(40) {
            out.extend((0..4096u64).map(|i| (n.wrapping_mul(i ^ 0x9e37_79b9) >> 13) as u8 & 0x3f));
        }
    }
    out.truncate(len);
    out
}
