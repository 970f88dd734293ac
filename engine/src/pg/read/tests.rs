//! Fabricated pages, and a writer that is caught in the middle.

use super::*;
use pgkeep_formats::pg::page::checksum;
use std::sync::atomic::AtomicBool;

const SIZE: usize = 8192;
const START: Lsn = Lsn(0x1_0000_0000);

/// A page as the server writes it: header, a fill, checksum.
fn page(block: u32, lsn: Lsn, fill: u8) -> Vec<u8> {
    let mut page = vec![fill; SIZE];
    let field = |page: &mut Vec<u8>, at: usize, value: &[u8]| page[at..at + value.len()].copy_from_slice(value);
    field(&mut page, 0, &((lsn.0 >> 32) as u32).to_le_bytes());
    field(&mut page, 4, &(lsn.0 as u32).to_le_bytes());
    for (at, value) in [(10, 0), (12, 24), (14, 8192), (16, 8192), (18, 0x2004_u16)] {
        field(&mut page, at, &value.to_le_bytes());
    }
    field(&mut page, 20, &[0; 4]);
    let sum = checksum(&page, block);
    field(&mut page, 8, &sum.to_le_bytes());
    page
}

fn pages(first_block: u32) -> Pages {
    let size = NonZero::new(SIZE).unwrap();
    Pages { size, first_block, check: PageCheck::ChecksumAndHeader, backup_start: Some(START) }
}

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

fn read(content: &[u8], pages: Pages, offset: u64) -> (Region, Vec<u8>) {
    let file = file(content);
    let reader = RegionReader::open(file.path(), Some(pages)).unwrap().unwrap();
    let mut buffer = vec![0xAA; 8 * SIZE];
    let region = reader.read(offset, &mut buffer).unwrap();
    buffer.truncate(region.len);
    (region, buffer)
}

#[test]
fn good_and_new_pages_pass_at_their_place_in_the_fork() {
    let old = Lsn(5);
    let content = [page(100, old, 1), vec![0; SIZE], page(102, old, 3)].concat();
    let (region, bytes) = read(&content, pages(100), 0);
    assert_eq!(region, Region { len: 3 * SIZE, ..Region::default() });
    assert_eq!(bytes, content);
    let (region, bytes) = read(&content, pages(100), 2 * SIZE as u64);
    assert_eq!((region.len, region.bad_pages.len()), (SIZE, 0));
    assert_eq!(bytes, content[2 * SIZE..]);
    assert_eq!(read(&content, pages(100), 1 << 40).0, Region::default());
    // Pages of another place are damage.
    assert_eq!(read(&content, pages(0), 0).0.bad_pages, [0, 2]);
}

#[test]
fn damage_is_reported_and_copied_as_it_is() {
    let mut content = [page(0, Lsn(5), 1), page(1, Lsn(5), 2), page(2, Lsn(5), 3)].concat();
    content[SIZE + 4000] ^= 1;
    let (region, bytes) = read(&content, pages(0), 0);
    assert_eq!((region.bad_pages.as_slice(), region.healed), (&[1][..], 0));
    assert_eq!(bytes, content);
    let (region, _) = read(&content, pages(0), SIZE as u64);
    assert_eq!(region.bad_pages, [1]);
}

#[test]
fn a_wrong_page_of_after_the_start_is_left_to_replay_unless_its_header_is_nonsense() {
    let wrong = |lsn: Lsn| {
        let mut page = page(0, lsn, 1);
        page[4000] ^= 1;
        page
    };
    let after = Lsn(START.0 + 100);
    assert_eq!(read(&wrong(after), pages(0), 0).0, Region { len: SIZE, healed: 1, bad_pages: vec![] });
    assert_eq!(read(&wrong(START), pages(0), 0).0.healed, 1);
    assert_eq!(read(&wrong(Lsn(START.0 - 1)), pages(0), 0).0.bad_pages, [0]);
    assert_eq!(read(&wrong(Lsn(u64::MAX)), pages(0), 0).0.bad_pages, [0]);
    // Nothing is replayed on a stopped cluster.
    assert_eq!(read(&wrong(after), Pages { backup_start: None, ..pages(0) }, 0).0.bad_pages, [0]);
}

#[test]
fn half_a_page_at_the_end_is_damage() {
    let content = [page(0, Lsn(5), 1), page(1, Lsn(5), 2)].concat();
    let (region, bytes) = read(&content[..SIZE + 100], pages(0), 0);
    assert_eq!((region.len, region.bad_pages.as_slice()), (SIZE + 100, &[1][..]));
    assert_eq!(bytes, content[..SIZE + 100]);
}

#[test]
fn files_without_pages_are_read_as_they_are() {
    let file = file(b"some text");
    let reader = RegionReader::open(file.path(), None).unwrap().unwrap();
    let mut buffer = [0; 20];
    assert_eq!(reader.read(5, &mut buffer).unwrap(), Region { len: 4, ..Region::default() });
    assert_eq!(&buffer[..4], b"text");
    assert_eq!(reader.size().unwrap(), 9);
}

#[test]
fn what_vanished_is_not_an_error_and_what_cannot_be_opened_is() {
    let dir = tempfile::tempdir().unwrap();
    assert!(RegionReader::open(&dir.path().join("gone"), None).unwrap().is_none());
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    let refused = RegionReader::open(&link, None).unwrap_err();
    assert_eq!(refused.kind(), Kind::FileOpen);
    assert!(refused.to_string().contains("link"), "{refused}");
    let kept = file(&[0; 2 * SIZE]);
    let reader = RegionReader::open(kept.path(), Some(pages(0))).unwrap().unwrap();
    assert_eq!(reader.read(1, &mut [0; SIZE]).unwrap_err().kind(), Kind::Assert);
}

/// A writer writes every page in two halves, over and over; no read may ever see a mixture.
#[test]
fn a_page_caught_in_the_middle_of_a_write_is_read_again() {
    let versions: Vec<Vec<u8>> =
        (0..4).map(|v| (0..4).flat_map(|block| page(block, Lsn(5), 10 * v + block as u8)).collect()).collect();
    let file = file(&versions[0]);
    let reader = RegionReader::open(file.path(), Some(pages(0))).unwrap().unwrap();
    let writer = std::fs::OpenOptions::new().write(true).open(file.path()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in versions.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                for at in (0..4 * SIZE).step_by(SIZE) {
                    writer.write_all_at(&version[at..at + SIZE / 2], at as u64).unwrap();
                    std::thread::yield_now();
                    writer.write_all_at(&version[at + SIZE / 2..at + SIZE], (at + SIZE / 2) as u64).unwrap();
                }
                // A server does not write one page all the time either.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut healed = 0;
        for _ in 0..20_000 {
            let mut buffer = vec![0; 4 * SIZE];
            let region = reader.read(0, &mut buffer).unwrap();
            assert_eq!((region.len, region.bad_pages.as_slice()), (4 * SIZE, &[][..]));
            for (i, page) in buffer.chunks(SIZE).enumerate() {
                assert!(versions.iter().any(|v| v[i * SIZE..(i + 1) * SIZE] == *page), "a mixture in page {i}");
            }
            healed += region.healed;
            if healed >= 20 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(healed > 0, "the writer was never caught");
    });
}

#[test]
fn a_file_truncated_while_a_page_is_read_again_ends_there() {
    let mut content = [page(0, Lsn(5), 1), page(1, Lsn(5), 2)].concat();
    content[SIZE + 4000] ^= 1;
    let file = file(&content);
    let reader = RegionReader::open(file.path(), Some(pages(0))).unwrap().unwrap();
    let wrong = || vec![Wrong { at: SIZE..2 * SIZE, number: 1 }];
    std::fs::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(SIZE as u64).unwrap();
    let mut region = Region { len: 2 * SIZE, ..Region::default() };
    reader.heal(&mut content, wrong(), &pages(0), &mut region).unwrap();
    assert_eq!(region, Region { len: 2 * SIZE, healed: 1, bad_pages: vec![] });
    let mut region = Region { len: SIZE + 100, ..Region::default() };
    let half = vec![Wrong { at: SIZE..SIZE + 100, number: 1 }];
    reader.heal(&mut content[..SIZE + 100], half, &pages(0), &mut region).unwrap();
    assert_eq!((region.len, region.bad_pages.len()), (SIZE, 0));
}

#[test]
fn what_a_copy_lacks_is_the_originals() {
    let original = |file: &tempfile::NamedTempFile, start| {
        let page = NonZero::new(SIZE);
        Some(Arc::new(Original { path: file.path().to_owned(), size: 4 * SIZE as u64, page, start, standby: 2 }))
    };
    let reader = |copy: &tempfile::NamedTempFile, original| {
        RegionReader::open(copy.path(), Some(pages(0))).unwrap().unwrap().completed_from(original)
    };
    let start = Lsn(1 << 30);
    let copied = page(0, Lsn(5 << 20), 1);
    // Logged later, added without WAL, and part of an index that is not logged yet.
    let rest = [page(1, Lsn(start.0 + 1), 2), vec![0; SIZE], page(3, Lsn(1), 4)].concat();
    let primary = file(&[page(0, Lsn(5 << 20), 9), rest.clone()].concat());
    // A page and a part of one.
    let copy = file(&[&copied[..], &rest[..100]].concat());
    let read = reader(&copy, original(&primary, Some(start)));
    let mut buffer = vec![7; 5 * SIZE];
    assert_eq!(read.read(0, &mut buffer).unwrap(), Region { len: 4 * SIZE, ..Region::default() });
    assert!(buffer[..SIZE] == copied && buffer[SIZE..4 * SIZE] == rest && buffer[4 * SIZE] == 7);
    assert_eq!(read.read(3 * SIZE as u64, &mut buffer).unwrap().len, SIZE);
    assert_eq!(read.read(4 * SIZE as u64, &mut buffer).unwrap().len, 0);

    // The original has been cut as well, and is gone.
    primary.as_file().set_len(2 * SIZE as u64 + 9).unwrap();
    assert_eq!(read.read(0, &mut buffer).unwrap(), Region { len: 4 * SIZE, ..Region::default() });
    assert!(buffer[..2 * SIZE] == [copied.clone(), rest[..SIZE].to_vec()].concat());
    assert!(is_zero(&buffer[2 * SIZE..4 * SIZE]));
    let gone = file(&[]);
    let named = original(&gone, Some(start));
    drop(gone);
    assert_eq!(reader(&copy, named).read(0, &mut buffer).unwrap().len, 4 * SIZE);
    assert!(buffer[..SIZE] == copied && is_zero(&buffer[SIZE..4 * SIZE]));

    // What was logged before must be there, where that can be told; and soon is, or is not needed any more.
    let all: Vec<u8> = (0..4).flat_map(|n| page(n, Lsn(6 << 20), n as u8)).collect();
    for (heals, tells) in [(None, true), (Some(true), true), (Some(false), true), (None, false)] {
        let (primary, copy) = (file(&all), file(&copied));
        let read = reader(&copy, original(&primary, tells.then_some(start)));
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(200));
                match heals {
                    Some(true) => std::fs::write(copy.path(), &all).unwrap(),
                    Some(false) => primary.as_file().set_len(SIZE as u64).unwrap(),
                    None => (),
                }
            });
            read.read(0, &mut buffer)
        });
        match (heals, tells) {
            (None, true) => {
                let error = result.unwrap_err();
                assert_eq!(error.kind(), Kind::DbMismatch);
                let text = error.chain();
                assert!(text.contains("pg2, is no copy") && text.contains("page 1"), "{text}");
            }
            (Some(false), _) => assert!(result.unwrap().len == 4 * SIZE && is_zero(&buffer[SIZE..4 * SIZE])),
            _ => assert!(result.unwrap().len == 4 * SIZE && buffer[SIZE..4 * SIZE] == all[SIZE..]),
        }
    }
}

#[test]
fn a_limited_reader_reads_the_same_in_pieces_and_stops_with_its_limits() {
    let content: Vec<u8> = (0..24).flat_map(|block| page(block, Lsn(5), block as u8)).collect();
    let file = file(&content);
    // 4 GiB a second: the pieces are as large as they get, and the waits too short to notice.
    let rate = NonZero::new(4 << 30);
    let limits = Limits::new(rate, None, &crate::observe::Cancel::default());
    let reader = RegionReader::open(file.path(), Some(pages(0))).unwrap().unwrap().limited(&limits);
    let mut buffer = vec![0; 24 * SIZE];
    assert_eq!(reader.read(0, &mut buffer).unwrap(), Region { len: 24 * SIZE, ..Region::default() });
    assert_eq!((buffer == content, limits.totals().bytes), (true, 24 * SIZE as u64));

    // The smallest pieces: three of them.
    let limits = Limits::new(NonZero::new(800 << 10), None, &crate::observe::Cancel::default());
    let reader = RegionReader::open(file.path(), Some(pages(0))).unwrap().unwrap().limited(&limits);
    buffer.fill(0);
    assert_eq!(reader.read(0, &mut buffer).unwrap(), Region { len: 24 * SIZE, ..Region::default() });
    assert!(buffer == content && !limits.totals().read_waited.is_zero());
    limits.end();
    assert_eq!(reader.read(0, &mut buffer).unwrap_err().kind(), Kind::Interrupted);
}
