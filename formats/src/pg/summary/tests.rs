use super::*;
use crate::pg::path::{PathClass, classify};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

type Content = BTreeMap<(u32, u32, u32, u32), (Option<u32>, BTreeSet<u32>)>;

/// Writes a summary as the server does.
fn encode(content: &Content) -> Vec<u8> {
    let mut out = MAGIC.to_le_bytes().to_vec();
    for ((tablespace, database, filenode, fork), (limit, blocks)) in content {
        let mut chunks: Vec<Vec<u16>> = Vec::new();
        for block in blocks {
            let n = (block / CHUNK_BLOCKS) as usize;
            chunks.resize(chunks.len().max(n + 1), Vec::new());
            chunks[n].push((block % CHUNK_BLOCKS) as u16);
        }
        for chunk in chunks.iter_mut().filter(|c| c.len() >= BITMAP_ENTRIES) {
            let mut bitmap = vec![0u16; BITMAP_ENTRIES];
            chunk.iter().for_each(|n| bitmap[usize::from(n / 16)] |= 1 << (n % 16));
            *chunk = bitmap;
        }
        let head = [*tablespace, *database, *filenode, *fork, limit.unwrap_or(NO_LIMIT), chunks.len() as u32];
        out.extend(head.iter().flat_map(|n| n.to_le_bytes()));
        out.extend(chunks.iter().flat_map(|c| (c.len() as u16).to_le_bytes()));
        // The server does not sort what it keeps as offsets.
        out.extend(chunks.iter().flat_map(|c| {
            match c.len() {
                BITMAP_ENTRIES => c.clone(),
                _ => c.iter().rev().copied().collect(),
            }
            .into_iter()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>()
        }));
    }
    out.extend([0; HEAD_LEN]);
    let crc = crc32c::crc32c(&out);
    out.extend(crc.to_le_bytes());
    out
}

fn decode(bytes: &[u8]) -> Content {
    let summary = WalSummary::parse(bytes).unwrap();
    let entry = |e: SummaryEntry<'_>| {
        let key = (e.relation.tablespace_oid, e.relation.database_oid, e.relation.filenode, e.fork);
        (key, (e.limit, e.blocks().collect()))
    };
    summary.entries().map(entry).collect()
}

fn reseal(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() - CRC_LEN);
    let crc = crc32c::crc32c(bytes);
    bytes.extend(crc.to_le_bytes());
}

fn sample() -> Vec<u8> {
    encode(&Content::from([
        ((1663, 5, 16384, 0), (None, BTreeSet::from([3, 70_000]))),
        ((1663, 5, 16385, 0), (Some(2), (0..5000).collect())),
        ((1663, 6, 0, 0), (Some(0), BTreeSet::new())),
    ]))
}

#[test]
fn names_hold_the_range() {
    let text = "00000003000000010000002800000002FFFFFFFF.summary";
    let name = SummaryName { timeline: TimelineId(3), start: Lsn(0x1_0000_0028), end: Lsn(0x2_FFFF_FFFF) };
    assert_eq!((SummaryName::parse(text), name.to_string().as_str()), (Some(name), text));
    for other in [
        "temp.summary",
        "00000003000000010000002800000002FFFFFFF.summary",
        "00000003000000010000002800000002FFFFFFFF",
        "00000003000000010000002800000002fffffffF.summary",
        "00000003000000010000002800000002FFFFFFFF0.summary",
        "+0000003000000010000002800000002FFFFFFFF.summary",
        "0000000300000001000000280000000ä2FFFFFF.summary",
    ] {
        assert_eq!(SummaryName::parse(other), None, "{other}");
    }
}

#[test]
fn files_know_their_relation() {
    let of = |path| match classify(path) {
        PathClass::Relation(file) => RelationLocator::of(&file),
        other => panic!("{path}: {other:?}"),
    };
    let locator = |tablespace_oid, database_oid, filenode| RelationLocator { tablespace_oid, database_oid, filenode };
    assert_eq!(of("global/1262"), locator(1664, 0, 1262));
    assert_eq!(of("base/5/16384.2"), locator(1663, 5, 16384));
    let moved = of("pg_tblspc/16400/PG_17_202406281/5/2619_vm");
    assert_eq!(moved, locator(16400, 5, 2619));
    assert_eq!(moved.whole_database(), locator(16400, 5, 0));
}

#[test]
fn every_damage_is_noticed() {
    let good = sample();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert!(WalSummary::parse(&bytes).is_err(), "byte {at}");
        assert!(WalSummary::parse(&good[..at]).is_err(), "cut at {at}");
    }
    assert!(matches!(WalSummary::parse(&[good.as_slice(), &[0]].concat()), Err(FormatError::BadChecksum { .. })));
}

#[test]
fn a_right_checksum_does_not_make_a_right_file() {
    let good = sample();
    for (at, value, what) in [
        // The first entry's fork, number of chunks, size of its first chunk; the size of the second entry's chunk.
        (4 + 12, 4u32, "fork"),
        (4 + 20, CHUNKS_MAX + 1, "number of chunks"),
        (4 + 24, 0xffff, "size of a chunk"),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        reseal(&mut bytes);
        match WalSummary::parse(&bytes) {
            Err(FormatError::OutOfRange { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{what}: {other:?}"),
        }
    }
    // Without the end mark, and with something behind it.
    let mut bytes = good.clone();
    bytes.drain(good.len() - CRC_LEN - HEAD_LEN..good.len() - CRC_LEN);
    reseal(&mut bytes);
    assert!(matches!(WalSummary::parse(&bytes), Err(FormatError::Truncated { .. })));
    let mut bytes = good;
    bytes.splice(4..4, [0; HEAD_LEN]);
    reseal(&mut bytes);
    assert!(matches!(WalSummary::parse(&bytes), Err(FormatError::TrailingBytes { .. })));
}

fn blocks() -> impl Strategy<Value = BTreeSet<u32>> {
    let sparse = proptest::collection::btree_set(0u32..400_000, 0..40);
    // Around the number of blocks where a chunk becomes a bitmap.
    let dense =
        (0u32..200_000, 4090u32..4100, 1u32..5).prop_map(|(first, n, step)| (0..n).map(|i| first + i * step).collect());
    prop_oneof![3 => sparse, 1 => dense]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        content in proptest::collection::btree_map(
            (1u32.., any::<u32>(), any::<u32>(), 0u32..4), (proptest::option::of(0..NO_LIMIT), blocks()), 0..6),
    ) {
        prop_assert_eq!(decode(&encode(&content)), content);
    }

    #[test]
    fn nothing_panics_under_a_right_checksum(at: proptest::sample::Index, value: u32, cut: proptest::sample::Index) {
        let mut bytes = sample();
        let at = 4 + at.index(bytes.len() - 8);
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes.truncate(4 + cut.index(bytes.len()));
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        if let Ok(summary) = WalSummary::parse(&bytes) {
            prop_assert!(summary.entries().all(|e| e.blocks().count() <= 1 << 20));
        }
    }
}
