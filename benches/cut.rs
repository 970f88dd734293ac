//! Space, not time: daily backups of page files, cut at aligned regions or between pages by content.
//!
//! `cargo bench --profile release -p pgkeep-benches --bench cut [-- DIRECTORY ...]`. Each directory is a snapshot of `base/`
//! of one cluster, in order of time; without any, a made-up heap lives through ten days of evenly spread updates. Printed
//! is what would be stored: zstd 3 of every chunk not seen before, and 48 bytes a chunk.

use pgkeep_benches::{heap, update};
use pgkeep_engine::chunk::{Gear, is_zero};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Calls what it is given with the content of every file of a snapshot.
type Files<'a> = dyn FnMut(&mut dyn FnMut(&[u8])) + 'a;

struct Store {
    name: &'static str,
    seen: HashSet<[u8; 32]>,
    bytes: u64,
}

fn main() {
    let region = 256 << 10;
    let gear = Gear::new(pgkeep_benches::gear(), 16 << 10, 64 << 10, 256 << 10);
    let mut stores = ["aligned 256 KiB", "page CDC 256 KiB"].map(|name| Store { name, seen: HashSet::new(), bytes: 0 });
    let mut day = |number: usize, files: &mut Files<'_>| {
        let before = stores.each_ref().map(|s| s.bytes);
        files(&mut |file| {
            add(&mut stores[0], file, |rest| rest.len().min(region));
            add(&mut stores[1], file, |rest| gear.cut_pages(rest, 8192, region));
        });
        let grown: Vec<String> =
            stores.iter().zip(before).map(|(s, b)| format!("{} +{}", s.name, s.bytes - b)).collect();
        println!("snapshot {number}: {}", grown.join(", "));
    };
    let directories: Vec<PathBuf> =
        std::env::args().skip(1).filter(|a| !a.starts_with('-')).map(PathBuf::from).collect();
    if directories.is_empty() {
        let mut table = heap(16 << 10, 1);
        for number in 0..10 {
            day(number, &mut |each| each(&table));
            update(&mut table, 0.01, number as u64 + 2);
        }
    }
    for (number, directory) in directories.iter().enumerate() {
        day(number, &mut |each| walk(directory, each));
    }
    let total = stores.each_ref().map(|s| s.bytes);
    println!(
        "total: {} {}, {} {}: ratio {:.3}",
        stores[0].name,
        total[0],
        stores[1].name,
        total[1],
        total[1] as f64 / total[0] as f64
    );
}

fn add(store: &mut Store, file: &[u8], cut: impl Fn(&[u8]) -> usize) {
    let mut rest = file;
    while !rest.is_empty() {
        let (chunk, tail) = rest.split_at(cut(rest).clamp(1, rest.len()));
        if !is_zero(chunk) && store.seen.insert(*blake3::hash(chunk).as_bytes()) {
            store.bytes += 48 + zstd::bulk::compress(chunk, 3).expect("compression").len() as u64;
        }
        rest = tail;
    }
}

fn walk(directory: &Path, each: &mut dyn FnMut(&[u8])) {
    let mut entries: Vec<_> =
        std::fs::read_dir(directory).expect("a directory").map(|e| e.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, each);
        } else {
            each(&std::fs::read(&path).expect("a readable file"));
        }
    }
}
