//! Random choices that can be had again: every test that makes some prints its seed.

/// A small generator (splitmix64), the same on every machine and release. Not for secrets.
#[derive(Debug, Clone)]
pub struct Seed {
    state: u64,
}

impl Seed {
    /// A fresh seed, or the one in `PGKEEP_TEST_SEED`; printed, so a failing test shows how to repeat it.
    ///
    /// # Panics
    /// When the variable is not a number.
    pub fn new() -> Self {
        let seed = match std::env::var("PGKEEP_TEST_SEED") {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("PGKEEP_TEST_SEED: '{text}' is not a number")),
            Err(_) => getrandom::u64().expect("the system gives no random bytes"),
        };
        println!("seed {seed} (repeat with PGKEEP_TEST_SEED={seed})");
        Self::of(seed)
    }

    /// The sequence of one given seed: a failure that became a test.
    pub fn of(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`, which must not be 0. The bias is below 2⁻³² for every bound tests use.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// One of the items, which must be some.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Fills a buffer: incompressible bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.bits().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

impl Default for Seed {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Seed;

    #[test]
    fn a_seed_gives_the_known_sequence() {
        // First outputs of splitmix64 for seed 1234567, as published with the reference code.
        let mut seed = Seed::of(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| seed.bits()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn fill_reaches_a_short_tail() {
        let mut buffer = [0_u8; 11];
        Seed::of(1).fill(&mut buffer);
        assert!(buffer[8..].iter().any(|byte| *byte != 0));
    }
}
