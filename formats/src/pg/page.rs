//! Pages of relation files: header, checksum, and whether a page is what the server would accept.
//!
//! Source: `storage/bufpage.h`, `storage/checksum_impl.h` and `PageIsVerified` in `page/bufpage.c`, equal in
//! 13 to 18. Pages are 1 to 32 KiB, a power of two. Everything here is pure computation on borrowed bytes.

use super::lsn::Lsn;

/// Length of the page header in bytes.
pub const PAGE_HEADER_LEN: usize = 24;
/// Smallest and largest page size in bytes.
pub const PAGE_SIZES: std::ops::RangeInclusive<usize> = 1024..=32768;

const CHECKSUM: usize = 8;
const VALID_FLAGS: u16 = 0x0007;

/// The fields at the start of every page that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Position after the last WAL record that changed the page.
    pub lsn: Lsn,
    /// Stored checksum; zero if the cluster has none.
    pub checksum: u16,
    /// Flag bits.
    pub flags: u16,
    /// Offset of the start of free space.
    pub lower: u16,
    /// Offset of its end; zero only on a page never initialised.
    pub upper: u16,
    /// Offset of the special space.
    pub special: u16,
    /// Page size plus layout version.
    pub pagesize_version: u16,
}

impl PageHeader {
    /// Reads the header; `None` if the page is shorter than one.
    #[must_use]
    pub fn read(page: &[u8]) -> Option<Self> {
        let bytes: &[u8; PAGE_HEADER_LEN] = page.first_chunk()?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let half = |at: usize| u64::from(u16_at(at)) | u64::from(u16_at(at + 2)) << 16;
        Some(Self {
            // Two 32-bit halves, the upper one first, whatever the byte order.
            lsn: Lsn(half(0) << 32 | half(4)),
            checksum: u16_at(CHECKSUM),
            flags: u16_at(10),
            lower: u16_at(12),
            upper: u16_at(14),
            special: u16_at(16),
            pagesize_version: u16_at(18),
        })
    }

    /// Page size that the page itself claims, in bytes.
    #[must_use]
    pub fn page_size(&self) -> usize {
        usize::from(self.pagesize_version & 0xff00)
    }

    /// Version of the page layout; 4 since PostgreSQL 8.3.
    #[must_use]
    pub fn layout_version(&self) -> u16 {
        self.pagesize_version & 0x00ff
    }

    /// True if flags and offsets are possible on a page of `page_size` bytes: the server's own test.
    #[must_use]
    pub fn is_sane(&self, page_size: usize) -> bool {
        self.flags & !VALID_FLAGS == 0
            && self.lower <= self.upper
            && self.upper <= self.special
            && usize::from(self.special) <= page_size
            && self.special.is_multiple_of(8)
    }
}

/// What a page is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageCheck {
    /// Checksum and header: a cluster with page checksums.
    ChecksumAndHeader,
    /// Checksum only: pages whose header fields are encrypted (`page-header-check=n`).
    ChecksumOnly,
    /// Header only: a cluster without page checksums.
    HeaderOnly,
}

/// Outcome of [`verify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// All bytes are zero: allocated, never initialised. Valid.
    New,
    /// Passed what was asked.
    Valid,
    /// The checksum differs: damaged, misplaced, or caught while being written.
    BadChecksum {
        /// Checksum on the page.
        stored: u16,
        /// Checksum of the page.
        computed: u16,
    },
    /// The header is impossible, or the length is not that of a page.
    BadHeader,
}

impl PageState {
    /// True for [`PageState::New`] and [`PageState::Valid`].
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::New | Self::Valid)
    }
}

/// True if every byte is zero.
#[must_use]
pub fn is_new(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<64>();
    // Blocks of 64 bytes are folded without a branch inside, which compiles to vector code.
    words.iter().all(|w| w.iter().fold(0, |a, b| a | b) == 0) && rest.iter().all(|b| *b == 0)
}

/// Checks one whole page as the server does when it reads it. `block` counts pages from the start of the
/// relation's fork, over all its segments.
#[must_use]
pub fn verify(page: &[u8], block: u32, check: PageCheck) -> PageState {
    let header = match PageHeader::read(page) {
        Some(header) if page.len().is_power_of_two() && PAGE_SIZES.contains(&page.len()) => header,
        _ => return PageState::BadHeader,
    };
    // Most pages are not new, so look at one field before looking at all bytes. It must be a field that no
    // valid page has zero: the checksum where the header may be encrypted, as pgBackRest does, else `upper`.
    let looks_new = match check {
        PageCheck::ChecksumOnly => header.checksum == 0,
        PageCheck::ChecksumAndHeader | PageCheck::HeaderOnly => header.upper == 0,
    };
    if looks_new {
        if is_new(page) {
            return PageState::New;
        }
        if check != PageCheck::ChecksumOnly {
            return PageState::BadHeader;
        }
    }
    if check != PageCheck::HeaderOnly {
        let computed = checksum(page, block);
        if computed != header.checksum {
            return PageState::BadChecksum { stored: header.checksum, computed };
        }
    }
    if check != PageCheck::ChecksumOnly && !header.is_sane(page.len()) {
        return PageState::BadHeader;
    }
    PageState::Valid
}

const LANES: usize = 32;
const ROW: usize = LANES * 4;
const FNV_PRIME: u32 = 16_777_619;

/// Start values of the 32 sums, from `checksum_impl.h`: part of the algorithm.
#[rustfmt::skip]
const BASE_OFFSETS: [u32; LANES] = [
    0x5B1F_36E9, 0xB852_5960, 0x02AB_50AA, 0x1DE6_6D2A, 0x79FF_467A, 0x9BB9_F8A3, 0x217E_7CD2, 0x83E1_3D2C,
    0xF8D4_474F, 0xE39E_B970, 0x42C6_AE16, 0x9932_16FA, 0x7B09_3B5D, 0x98DA_FF3C, 0xF718_902A, 0x0B1C_9CDB,
    0xE58F_764B, 0x1876_36BC, 0x5D7B_3BB1, 0xE73D_E7DE, 0x92BE_C979, 0xCCA6_C0B2, 0x304A_0979, 0x85AA_43D4,
    0x7831_25BB, 0x6CA8_EAA2, 0xE407_EAC6, 0x4B5C_FC3E, 0x9FBF_8C76, 0x15CA_20BE, 0xF2CA_9FD3, 0x959B_D756,
];

/// The checksum a page should carry: never zero. The stored one is not part of it, the block number is.
///
/// `page` must have the size of a page; bytes after the last whole 128 are not read.
#[must_use]
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = BASE_OFFSETS;
    let (rows, _) = page.as_chunks::<ROW>();
    if let Some((first, rest)) = rows.split_first() {
        let mut first = *first;
        first[CHECKSUM] = 0;
        first[CHECKSUM + 1] = 0;
        add_row(&mut sums, &first);
        for row in rest {
            add_row(&mut sums, row);
        }
    }
    // Two rows of zeroes mix the last words in.
    add_row(&mut sums, &[0; ROW]);
    add_row(&mut sums, &[0; ROW]);
    let folded = sums.iter().fold(block, |a, b| a ^ b);
    // At most 65 535, and one more than a remainder so that it is not zero.
    (folded % 65_535 + 1) as u16
}

/// One FNV-1a step in each lane. The lanes are independent and their number is known, so this is vector code.
#[inline(always)]
fn add_row(sums: &mut [u32; LANES], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(size: usize, block: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
        let size16 = size as u16;
        page[10..12].fill(0);
        page[12..14].copy_from_slice(&64u16.to_le_bytes());
        page[14..16].copy_from_slice(&512u16.to_le_bytes());
        page[16..18].copy_from_slice(&size16.to_le_bytes());
        page[18..20].copy_from_slice(&(size16 | 4).to_le_bytes());
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    /// The definition, word by word, without lanes side by side.
    fn plain_checksum(page: &[u8], block: u32) -> u16 {
        let mut page = page.to_vec();
        page[8..10].fill(0);
        page.extend_from_slice(&[0; 2 * ROW]);
        let lane = |j: usize| {
            page.chunks_exact(4).skip(j).step_by(LANES).fold(BASE_OFFSETS[j], |sum, word| {
                let mixed = sum ^ u32::from_le_bytes(word.try_into().unwrap());
                mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17)
            })
        };
        ((0..LANES).fold(block, |a, j| a ^ lane(j)) % 65_535 + 1) as u16
    }

    #[test]
    fn good_pages_of_every_size_are_good() {
        for size in (10..=15).map(|bits| 1usize << bits) {
            for check in [PageCheck::ChecksumAndHeader, PageCheck::ChecksumOnly, PageCheck::HeaderOnly] {
                assert_eq!(verify(&page(size, 131_073), 131_073, check), PageState::Valid, "{size} {check:?}");
                assert_eq!(verify(&vec![0; size], 5, check), PageState::New, "{size} {check:?}");
            }
            assert_eq!(PageHeader::read(&page(size, 0)).unwrap().page_size(), size);
        }
    }

    #[test]
    fn a_misplaced_page_is_not_good() {
        let found = verify(&page(8192, 1), 2, PageCheck::ChecksumAndHeader);
        assert!(matches!(found, PageState::BadChecksum { stored, computed } if stored != computed));
    }

    #[test]
    fn nearly_zero_pages_are_not_new() {
        for at in [0, 11, 4000, 8191] {
            let mut page = vec![0; 8192];
            page[at] = 1;
            assert!(!is_new(&page));
            assert_eq!(verify(&page, 0, PageCheck::ChecksumAndHeader), PageState::BadHeader);
            assert_eq!(verify(&page, 0, PageCheck::HeaderOnly), PageState::BadHeader);
            assert!(matches!(verify(&page, 0, PageCheck::ChecksumOnly), PageState::BadChecksum { stored: 0, .. }));
        }
    }

    #[test]
    fn impossible_headers_are_found_under_a_right_checksum() {
        for (at, value) in [(10, 8u16), (12, 513), (14, 8193), (16, 8200), (16, 8191)] {
            let mut page = page(8192, 3);
            page[at..at + 2].copy_from_slice(&value.to_le_bytes());
            let sum = checksum(&page, 3);
            page[8..10].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(verify(&page, 3, PageCheck::ChecksumAndHeader), PageState::BadHeader, "{at}");
            assert_eq!(verify(&page, 3, PageCheck::HeaderOnly), PageState::BadHeader, "{at}");
            assert_eq!(verify(&page, 3, PageCheck::ChecksumOnly), PageState::Valid, "{at}");
        }
    }

    /// Fixed positions and changes: 16 bits cannot promise to find each change, but these they do.
    #[test]
    fn changed_bytes_are_found() {
        let good = page(8192, 9);
        for at in (0..8192).step_by(13).chain(8..24) {
            let mut page = good.clone();
            page[at] ^= 0x55;
            assert!(!verify(&page, 9, PageCheck::ChecksumAndHeader).is_good(), "byte {at}");
        }
    }

    #[test]
    fn what_is_no_page_is_not_good() {
        for len in [0, 23, 512, 8191, 8193, 12288, 65536] {
            assert_eq!(verify(&vec![0; len], 0, PageCheck::ChecksumAndHeader), PageState::BadHeader, "{len}");
        }
    }

    /// Prints the speed, best of a few rounds over memory that is in the cache; asserts nothing about it.
    #[test]
    fn checksum_speed() {
        let pages = vec![0x5au8; 4 << 20];
        let round = |_| {
            let start = std::time::Instant::now();
            let sum = pages.chunks_exact(8192).zip(0..).fold(0, |a, (p, i)| a ^ checksum(p, i));
            std::hint::black_box(sum);
            pages.len() as f64 / start.elapsed().as_secs_f64() / 1e9
        };
        println!("page checksums: {:.1} GB/s", (0..8).map(round).fold(0.0, f64::max));
    }

    proptest! {
        #[test]
        fn lanes_side_by_side_equal_the_definition(
            bytes in proptest::collection::vec(any::<u8>(), 1024), times in 1usize..=32, block: u32,
        ) {
            let page = bytes.repeat(times.next_power_of_two());
            prop_assert_eq!(checksum(&page, block), plain_checksum(&page, block));
            prop_assert_ne!(checksum(&page, block), 0);
        }
    }
}
