use super::*;
use proptest::prelude::*;

const TLI: TimelineId = TimelineId(3);

fn sizes() -> impl Strategy<Value = WalSegmentSize> {
    (20u32..=30).prop_map(|bits| WalSegmentSize::new(1 << bits).unwrap())
}

#[test]
fn only_the_servers_sizes_are_sizes() {
    for bytes in [0, 1, 1 << 19, (16 << 20) + 1, 3 << 20, 1 << 31, 1 << 32, u64::MAX] {
        assert_eq!(WalSegmentSize::new(bytes), None, "{bytes}");
    }
    assert_eq!((20..=30).filter_map(|b| WalSegmentSize::new(1 << b)).count(), 11);
}

#[test]
fn names_wrap_where_four_gibibytes_end() {
    let name = |number, size| WalSegment { timeline: TLI, number }.name(size);
    assert_eq!(name(0x100, WalSegmentSize::DEFAULT), "000000030000000100000000");
    assert_eq!(name(0xff, WalSegmentSize::DEFAULT), "0000000300000000000000FF");
    assert_eq!(name(5, WalSegmentSize::MAX), "000000030000000100000001");
    assert_eq!(name(0xfff, WalSegmentSize::MIN), "000000030000000000000FFF");
}

#[test]
fn names_of_another_segment_size_are_refused() {
    assert!(WalSegment::parse("0000000300000000000000FF", WalSegmentSize::DEFAULT).is_ok());
    assert!(WalSegment::parse("000000030000000000000100", WalSegmentSize::DEFAULT).is_err());
    assert!(WalSegment::parse("000000030000000000000004", WalSegmentSize::MAX).is_err());
}

#[test]
fn a_stop_on_a_boundary_needs_no_further_segment() {
    let numbers = |start, stop| {
        let all = WalSegment::range(TLI, Lsn(start), Lsn(stop), WalSegmentSize::DEFAULT);
        all.map(|s| s.number).collect::<Vec<_>>()
    };
    assert_eq!(numbers(0x200_0028, 0x200_0138), [2]);
    assert_eq!(numbers(0x200_0028, 0x300_0000), [2]);
    assert_eq!(numbers(0x200_0028, 0x300_0001), [2, 3]);
    assert_eq!(numbers(0xff00_0028, 0x1_0100_0001), [0xff, 0x100, 0x101]);
    assert_eq!(numbers(0x300_0000, 0), [3]);
}

#[test]
fn archive_names() {
    let kind = ArchiveName::parse("00000003000000010000000A.00000028.backup").unwrap();
    let segment = SegmentName { timeline: TLI, high: 1, low: 10 };
    assert_eq!(kind, ArchiveName::Backup { segment, offset: 0x28 });
    assert_eq!(kind.directory().as_deref(), Some("0000000300000001"));
    assert_eq!(ArchiveName::parse("00000003000000010000000A"), Ok(ArchiveName::Segment(segment)));
    assert_eq!(ArchiveName::parse("00000003000000010000000A.partial"), Ok(ArchiveName::Partial(segment)));
    assert_eq!(ArchiveName::parse("00000003.history"), Ok(ArchiveName::History(TLI)));
    assert_eq!(ArchiveName::History(TLI).directory(), None);
    let not_archived = [
        "",
        "00000003000000010000000a",
        "00000003000000010000000A.backup",
        "00000003000000010000000A.0000028.backup",
        "00000003000000010000000A.ready",
        "00000003000000010000000A.partial.partial",
        "00000003000000010000000ä",
        "0000000300000001000000ä",
        "3.history",
        "../00000003.history",
    ];
    for name in not_archived {
        assert!(ArchiveName::parse(name).is_err(), "{name}");
    }
}

fn header() -> WalHeader {
    WalHeader {
        version: Version::V17,
        info: WalHeader::LONG | WalHeader::FIRST_IS_CONTINUATION,
        timeline: TLI,
        page_address: Lsn(0x300_0000),
        remaining: 77,
        system_identifier: 7_000_000_000_000_000_001,
        segment_size: WalSegmentSize::DEFAULT,
        block_size: 8192,
    }
}

#[test]
fn headers_round_trip_for_every_version() {
    for version in Version::ALL {
        let header = WalHeader { version, ..header() };
        let bytes = header.encode();
        assert_eq!(bytes.len(), WalHeader::LEN);
        assert_eq!(WalHeader::parse(&bytes), Ok(header));
        assert_eq!(header.segment().name(header.segment_size), "000000030000000000000003");
    }
}

#[test]
fn headers_the_server_would_refuse_are_refused() {
    let broken = |at: usize, value: u8| {
        let mut bytes = header().encode();
        bytes[at] = value;
        WalHeader::parse(&bytes)
    };
    assert!(matches!(broken(0, 0), Err(FormatError::BadVersion { .. })));
    for (at, value) in [(2, 0), (2, 0x12), (4, 0), (9, 0x20), (34, 3), (37, 0), (39, 1)] {
        assert!(matches!(broken(at, value), Err(FormatError::OutOfRange { .. })), "byte {at}");
    }
    assert!(matches!(WalHeader::parse(&header().encode()[..39]), Err(FormatError::Truncated { .. })));
}

proptest! {
    #[test]
    fn names_and_positions_agree(lsn: u64, size in sizes()) {
        let segment = WalSegment::at(TLI, Lsn(lsn), size);
        prop_assert_eq!(WalSegment::parse(&segment.name(size), size), Ok(segment));
        prop_assert!(segment.start(size) <= Lsn(lsn));
        prop_assert_eq!(segment.segment_name(size).high, (lsn >> 32) as u32);
        prop_assert!(lsn - segment.start(size).0 < size.bytes());
    }

    #[test]
    fn names_sort_as_segments_do(a: u64, b: u64, size in sizes()) {
        let (a, b) = (WalSegment::at(TLI, Lsn(a), size), WalSegment::at(TLI, Lsn(b), size));
        prop_assert_eq!(a.cmp(&b), a.name(size).cmp(&b.name(size)));
    }

    #[test]
    fn ranges_are_contiguous(start in 0u64..1 << 40, length in 1u64..1 << 31, size in sizes()) {
        let all: Vec<_> = WalSegment::range(TLI, Lsn(start), Lsn(start + length), size).collect();
        prop_assert_eq!(all[0], WalSegment::at(TLI, Lsn(start), size));
        prop_assert!(all.windows(2).all(|w| w[0].next() == w[1]));
        prop_assert_eq!(*all.last().unwrap(), WalSegment::at(TLI, Lsn(start + length - 1), size));
    }

    #[test]
    fn archive_names_round_trip(timeline: u32, high: u32, low: u32, offset: u32) {
        let segment = SegmentName { timeline: TimelineId(timeline), high, low };
        let kinds = [
            ArchiveName::Segment(segment),
            ArchiveName::Partial(segment),
            ArchiveName::Backup { segment, offset },
            ArchiveName::History(TimelineId(timeline)),
        ];
        for kind in kinds {
            prop_assert_eq!(ArchiveName::parse(&kind.to_string()), Ok(kind));
        }
    }
}
