//! What one core does in each step of a backup. Bound: CPU. Expected magnitude, 2024 server core: page checksum and keyed
//! hash 5 GB/s and more, zstd 3 on heap pages 0.4 to 0.7 GB/s, decoding twice that, sealing 1.5 to 2.7 GB/s.
//!
//! `cargo bench --profile release -p pgkeep-benches --features criterion --bench parts`

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgkeep_benches::heap;
use pgkeep_engine::chunk::{Decoder, Encoder, Gear, is_zero};
use pgkeep_engine::crypto::{Keyring, SessionSealer};
use pgkeep_engine::repository::seal_data;
use pgkeep_formats::id::RepoId;
use pgkeep_formats::pg::page::checksum;
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use std::hint::black_box;
use std::sync::Arc;

const REGION: usize = 256 << 10;

fn steps(c: &mut Criterion) {
    let region = heap(REGION / 8192, 1);
    let keyring = Arc::new(Keyring::generate(RepoId([1; 16])).expect("random numbers"));
    let sealer = SessionSealer::new(Arc::clone(&keyring)).expect("random numbers");
    let mut encoder = Encoder::new(3).expect("a compression context");
    let encoded = encoder.encode(&region).expect("encoding").1.to_vec();
    let id = keyring.chunk_id(1, &region).expect("an id key");
    let gear = Gear::new(pgkeep_benches::gear(), 16 << 10, 64 << 10, 256 << 10);
    let mut group = c.benchmark_group("region of 256 KiB");
    group.throughput(Throughput::Bytes(REGION as u64));
    group.bench_function("page checksums", |b| {
        b.iter(|| {
            region.as_chunks::<8192>().0.iter().enumerate().map(|(n, p)| u64::from(checksum(p, n as u32))).sum::<u64>()
        });
    });
    group.bench_function("zero test", |b| b.iter(|| is_zero(black_box(&vec![0; REGION]))));
    group.bench_function("name", |b| b.iter(|| keyring.chunk_id(1, black_box(&region))));
    group.bench_function("cut (FastCDC)", |b| b.iter(|| gear.cut(black_box(&region))));
    group.bench_function("encode, decode, compare", |b| {
        b.iter(|| encoder.encode(black_box(&region)).map(|e| e.1.len()))
    });
    let mut decoder = Decoder::new().expect("a decompression context");
    let mut out = Vec::new();
    group
        .bench_function("decode", |b| b.iter(|| decoder.decode(Encoding::Zstd, black_box(&encoded), REGION, &mut out)));
    group.bench_function("seal (encoded bytes)", |b| {
        b.iter(|| seal_data(&sealer, id, ChunkKind::Relation, Encoding::Zstd, REGION as u32, black_box(&encoded)));
    });
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
