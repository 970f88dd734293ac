use super::*;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::collections::BTreeMap;

const GOLDEN: &[u8] = include_bytes!("../../../golden/repo/index-v1.bin");

fn facts(n: u8) -> PackFacts {
    PackFacts {
        pack: PackId([n; 32]),
        session: SessionId([n ^ 0xff; 16]),
        epoch: u32::from(n) + 1,
        domain: if n.is_multiple_of(2) { DOMAIN_DATA } else { DOMAIN_META },
        scope: [n; 8],
        size: 1 << 20,
    }
}

fn entry(id: [u8; 32], pack: u32, offset: u32) -> IndexEntry {
    IndexEntry {
        id: ChunkId(id),
        pack,
        offset,
        stored_len: 1000,
        plain_len: 8192,
        kind: ChunkKind::Relation,
        encoding: Encoding::Zstd,
        ordinal: 7,
    }
}

/// The content of `golden/repo/index-v1.bin`.
fn golden() -> IndexBuilder {
    let mut b = IndexBuilder::new();
    b.supersede("idx/0102030405060708090a0b0c0d0e0f10/1-aa");
    b.supersede("idx/merged/3-0-bb");
    for n in 0..3 {
        b.pack(&facts(n)).unwrap();
    }
    for n in (0..10u8).rev() {
        let mut e = entry(std::array::from_fn(|i| n.wrapping_mul(25).wrapping_add(i as u8)), u32::from(n) % 3, 4096);
        e.kind = ChunkKind::ALL[usize::from(n) % ChunkKind::ALL.len()];
        e.encoding = Encoding::ALL[usize::from(n) % Encoding::ALL.len()];
        e.stored_len += u32::from(n);
        b.add(&e).unwrap();
    }
    b
}

#[test]
fn the_golden_payload_is_written_and_read() {
    assert_eq!(golden().encode(), GOLDEN);
    let view = IndexView::parse(GOLDEN).unwrap();
    assert_eq!(view.supersedes(), ["idx/0102030405060708090a0b0c0d0e0f10/1-aa", "idx/merged/3-0-bb"]);
    assert_eq!(view.packs(), [facts(0), facts(1), facts(2)]);
    assert_eq!(view.len(), 10);
    for (n, e) in view.iter().enumerate() {
        assert_eq!(usize::from(e.id.0[0]), n * 25);
        assert_eq!((e.pack as usize, e.offset, e.stored_len as usize, e.plain_len), (n % 3, 4096, 1000 + n, 8192));
        assert_eq!((e.kind, e.encoding), (ChunkKind::ALL[n % 4], Encoding::ALL[n % 5]));
        assert_eq!(view.lookup(&e.id), Some(e));
    }
}

#[test]
fn every_truncation_and_any_trailing_byte_is_refused() {
    for len in 0..GOLDEN.len() {
        assert!(IndexView::parse(&GOLDEN[..len]).is_err(), "{len}");
    }
    let mut longer = GOLDEN.to_vec();
    longer.push(0);
    assert_eq!(IndexView::parse(&longer).unwrap_err(), FormatError::TrailingBytes { what: "index", extra: 1 });
}

#[test]
fn another_version_is_named() {
    let mut bytes = GOLDEN.to_vec();
    bytes[0] = 2;
    assert!(matches!(IndexView::parse(&bytes), Err(FormatError::BadVersion { found: 2, .. })));
}

fn raw(entries: &[IndexEntry]) -> Vec<u8> {
    let mut b = IndexBuilder::new();
    b.pack(&facts(0)).unwrap();
    let mut bytes = b.encode();
    let at = bytes.len() - 8;
    bytes.truncate(at);
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend(entries.iter().flat_map(IndexEntry::to_bytes));
    bytes
}

#[test]
fn what_the_builder_would_not_write_is_refused() {
    let good = entry([7; 32], 0, 0);
    assert_eq!(IndexView::parse(&raw(&[good])).unwrap().lookup(&good.id), Some(good));
    let refused = |entries: &[IndexEntry]| match IndexView::parse(&raw(entries)).unwrap_err() {
        FormatError::OutOfRange { what, .. } => what,
        other => panic!("{other}"),
    };
    assert_eq!(refused(&[good, good]), "order of chunk ids");
    assert_eq!(refused(&[good, entry([6; 32], 0, 0)]), "order of chunk ids");
    assert_eq!(refused(&[entry([7; 32], 1, 0)]), "pack ordinal");
    assert_eq!(refused(&[entry([7; 32], 0, 1 << 20)]), "end of chunk in pack");
    for (at, what) in [(AT_KIND, "chunk kind"), (AT_ENCODING, "chunk encoding")] {
        let mut bytes = raw(&[good]);
        let start = bytes.len() - ENTRY_LEN;
        bytes[start + at] = 0x77;
        let bad = FormatError::OutOfRange { offset: start + at, what, found: 0x77 };
        assert_eq!(IndexView::parse(&bytes).unwrap_err(), bad);
    }
}

#[test]
fn the_builder_refuses_what_cannot_be_read_back() {
    let mut b = IndexBuilder::new();
    assert!(b.add(&entry([1; 32], 0, 0)).is_err());
    assert_eq!(b.pack(&facts(4)), Ok(0));
    assert_eq!(b.pack(&facts(4)), Ok(0));
    assert!(b.pack(&PackFacts { size: 5, ..facts(4) }).is_err());
    assert!(b.pack(&PackFacts { domain: 3, ..facts(6) }).is_err());
    assert!(b.add(&entry([1; 32], 0, u32::MAX)).is_err());
}

#[test]
fn clustered_ids_are_found_too() {
    // The worst case of interpolation: all ids share their first bytes.
    let ids: Vec<[u8; 32]> = (0..5000u32)
        .map(|n| {
            let mut id = [0xee; 32];
            id[28..].copy_from_slice(&(n * 3).to_be_bytes());
            id
        })
        .collect();
    let bytes = raw(&ids.iter().map(|id| entry(*id, 0, 0)).collect::<Vec<_>>());
    let view = IndexView::parse(&bytes).unwrap();
    for id in &ids {
        assert!(view.lookup(&ChunkId(*id)).is_some());
        let mut miss = *id;
        miss[31] ^= 1;
        assert_eq!(view.lookup(&ChunkId(miss)).is_some(), ids.binary_search(&miss).is_ok());
    }
}

proptest! {
    #[test]
    fn a_segment_answers_as_a_map_does(
        model in btree_map(any::<[u8; 32]>(), (0..3u32, 0..1000u32), 0..200),
        misses in vec(any::<[u8; 32]>(), 0..20),
    ) {
        let model: BTreeMap<[u8; 32], IndexEntry> =
            model.into_iter().map(|(id, (pack, offset))| (id, entry(id, pack, offset))).collect();
        let mut b = IndexBuilder::new();
        for n in 0..3 {
            b.pack(&facts(n)).unwrap();
        }
        for e in model.values().rev() {
            b.add(e).unwrap();
        }
        for e in model.values() {
            b.add(&IndexEntry { offset: 5, ..*e }).unwrap();
        }
        let bytes = b.encode();
        let view = IndexView::parse(&bytes).unwrap();
        prop_assert!(view.iter().eq(model.values().copied()));
        for id in model.keys().chain(&misses) {
            prop_assert_eq!(view.lookup(&ChunkId(*id)), model.get(id).copied());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        if let Ok(view) = IndexView::parse(&bytes) {
            prop_assert_eq!(view.iter().count(), view.len());
        }
    }

    #[test]
    fn a_damaged_payload_never_panics(at in 0..GOLDEN.len(), byte in any::<u8>(), id in any::<[u8; 32]>()) {
        let mut bytes = GOLDEN.to_vec();
        bytes[at] = byte;
        if let Ok(view) = IndexView::parse(&bytes) {
            prop_assert_eq!(view.iter().count(), view.len());
            let _ = view.lookup(&ChunkId(id));
        }
    }
}
