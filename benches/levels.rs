//! Compression by level: speed one way and back, and size, of the files given.
//!
//! `cargo bench --profile release -p pgkeep-benches --bench levels -- [--chunk BYTES] FILE ...`, files of `base/` with chunks
//! of 256 KiB (the default), or WAL segments with `--chunk 4194304` and `--chunk 16777216`. One thread; each line is the better of
//! two rounds. `files` is what `Encoder::for_files` does at level 3.

use pgkeep_engine::chunk::FILES_PARAMETERS;
use std::time::{Duration, Instant};
use zstd::bulk::{Compressor, Decompressor};

fn main() {
    let mut chunk = 256 << 10;
    let mut content = Vec::new();
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(argument) = arguments.next() {
        if argument == "--chunk" {
            chunk = arguments.next().and_then(|n| n.parse().ok()).expect("--chunk needs a number of bytes");
        } else {
            content.extend(std::fs::read(&argument).unwrap_or_else(|e| panic!("cannot read {argument}: {e}")));
        }
    }
    if content.is_empty() {
        content = pgkeep_benches::heap(8 << 10, 1);
    }
    for (name, level, own) in
        [("1", 1, false), ("2", 2, false), ("3", 3, false), ("files", 3, true), ("4", 4, false), ("5", 5, false)]
    {
        let mut compressor = Compressor::new(level).expect("a compression context");
        if own {
            FILES_PARAMETERS
                .into_iter()
                .for_each(|parameter| compressor.set_parameter(parameter).expect("a parameter of zstd"));
        }
        let mut decompressor = Decompressor::new().expect("a decompression context");
        let mut best = [Duration::MAX; 2];
        let mut size = 0;
        for _ in 0..2 {
            let mut times = [Duration::ZERO; 2];
            size = 0;
            for plain in content.chunks(chunk) {
                let begun = Instant::now();
                let packed = compressor.compress(plain).expect("room in memory");
                times[0] += begun.elapsed();
                let begun = Instant::now();
                let back = decompressor.decompress(&packed, plain.len()).expect("what was just compressed");
                times[1] += begun.elapsed();
                assert!(back == plain);
                size += packed.len();
            }
            best.iter_mut().zip(times).for_each(|(best, time)| *best = time.min(*best));
        }
        let speed = |time: Duration| content.len() as f64 / time.as_secs_f64() / 1e6;
        println!("level {name:5} {size:>12} bytes  {:6.0} MB/s  back {:6.0} MB/s", speed(best[0]), speed(best[1]));
    }
}
