//! Seeded data of real shape for the benches.

pub mod bounded;
mod record;

pub use record::commit_record;

/// A gear table.
#[must_use]
pub fn gear() -> Box<[u64; 256]> {
    let mut random = Random(7);
    Box::new(std::array::from_fn(|_| random.next()))
}

/// Pages that look like a heap: header, line pointers, free space, tuples of words and numbers.
///
/// `pages` pages of 8 KiB; the same `seed` gives the same bytes.
#[must_use]
pub fn heap(pages: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut out = vec![0; pages * 8192];
    for (number, page) in out.as_chunks_mut::<8192>().0.iter_mut().enumerate() {
        fill_page(page, number as u64 * 40, &mut random);
    }
    out
}

/// Changes a share of the pages in place, evenly spread, as small updates do: a new tuple, a new LSN. Returns how many.
pub fn update(heap: &mut [u8], share: f64, seed: u64) -> usize {
    let mut random = Random(seed);
    let pages = heap.as_chunks_mut::<8192>().0;
    let count = (pages.len() as f64 * share) as usize;
    for _ in 0..count {
        let number = random.next() as usize % pages.len();
        let page = &mut pages[number];
        page[..8].copy_from_slice(&random.next().to_le_bytes());
        let at = 4000 + random.next() as usize % 4000;
        let value = random.next().to_le_bytes();
        let end = (at + 8).min(8192);
        page[at..end].copy_from_slice(&value[..end - at]);
    }
    count
}

fn fill_page(page: &mut [u8; 8192], first_id: u64, random: &mut Random) {
    const WORDS: [&str; 24] = [
        "account",
        "order",
        "invoice",
        "customer",
        "payment",
        "delivery",
        "product",
        "status",
        "created",
        "updated",
        "region",
        "market",
        "price",
        "amount",
        "currency",
        "shipment",
        "returned",
        "pending",
        "complete",
        "cancelled",
        "priority",
        "warehouse",
        "supplier",
        "contract",
    ];
    page[..8].copy_from_slice(&(1u64 << 32 | random.next() & 0xffff_ffff).to_le_bytes());
    let (mut lower, mut upper) = (24usize, 8192usize);
    for id in first_id..first_id + 40 {
        let mut tuple = Vec::with_capacity(200);
        tuple.extend_from_slice(&(700 + id as u32 % 3).to_le_bytes());
        tuple.extend_from_slice(&[0; 19]);
        tuple.extend_from_slice(&id.to_le_bytes());
        tuple.extend_from_slice(&random.next().to_le_bytes());
        for _ in 0..12 {
            tuple.extend_from_slice(WORDS[(random.next() % 24).min(random.next() % 24) as usize].as_bytes());
            tuple.push(b' ');
        }
        let len = tuple.len().next_multiple_of(8);
        if upper - len < lower + 4 {
            break;
        }
        upper -= len;
        page[upper..upper + tuple.len()].copy_from_slice(&tuple);
        page[lower..lower + 4].copy_from_slice(&((upper as u32) | (tuple.len() as u32) << 17 | 1 << 15).to_le_bytes());
        lower += 4;
    }
    page[12..14].copy_from_slice(&(lower as u16).to_le_bytes());
    page[14..16].copy_from_slice(&(upper as u16).to_le_bytes());
    page[16..18].copy_from_slice(&8192u16.to_le_bytes());
    page[18..20].copy_from_slice(&8196u16.to_le_bytes());
}

/// Splitmix64: small, seeded, good enough for test data.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
