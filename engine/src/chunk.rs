//! Cutting files into chunks, and encoding chunks.
//!
//! Relation files are cut into aligned regions: PostgreSQL never shifts a page, so a content-defined cut finds nothing
//! that an aligned one does not, and its longest chunks cost space: half as much again in `benches/cut.rs`, where one
//! page in a hundred of a heap changes every day.
//! [`Gear::cut_pages`] is the content-defined, page-aligned alternative a repository may choose at its creation.
//! Other files are cut by FastCDC under a gear table derived from the repository's cut secret, so that chunk lengths tell
//! nothing to who does not hold it. Source: Xia et al., "FastCDC", 2016 and 2020.

pub mod delta;

use crate::{Error, Kind, Result};
use pgkeep_formats::repo::chunk::Encoding;
use zstd::zstd_safe::{CParameter, Strategy};

/// FastCDC under a secret gear table.
pub struct Gear {
    gear: Box<[u64; 256]>,
    shifted: Box<[u64; 256]>,
    min: usize,
    average: usize,
    max: usize,
}

impl Gear {
    /// `gear` is the repository's secret table, [`crate::crypto::Keyring::gear_table`]; sizes are bytes, powers of two.
    #[must_use]
    pub fn new(gear: Box<[u64; 256]>, min: u32, average: u32, max: u32) -> Self {
        let shifted = Box::new(gear.map(|g| g << 1));
        Self { gear, shifted, min: min as usize, average: average as usize, max: max as usize }
    }

    /// Largest chunk in bytes.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Length of the first chunk of `bytes`. Stable only if `bytes` holds [`Self::max`] bytes or ends with the file.
    #[must_use]
    pub fn cut(&self, bytes: &[u8]) -> usize {
        if bytes.len() <= self.min {
            return bytes.len();
        }
        let (small, large) = fastcdc::v2020::select_masks(self.average, fastcdc::v2020::Normalization::Level1);
        let (_, cut) = fastcdc::v2020::cut_gear(
            bytes,
            self.min,
            self.average,
            self.max,
            small,
            large,
            small << 1,
            large << 1,
            &self.gear[..],
            &self.shifted[..],
        );
        cut.clamp(1, bytes.len())
    }

    /// Length of the first chunk of `bytes`, cut between pages only: gear over one fingerprint a page, with the
    /// average `average` and the bounds of a quarter and four times that.
    #[must_use]
    pub fn cut_pages(&self, bytes: &[u8], page_size: usize, average: usize) -> usize {
        let (min, max) = (average / 4 / page_size, (average * 4).min(1 << 20) / page_size);
        let bits = (average / page_size).max(2).trailing_zeros();
        for (i, page) in bytes.chunks(page_size).enumerate().skip(min.max(1) - 1).take(max) {
            let print = u64::from_le_bytes(blake3::hash(page).as_bytes()[..8].try_into().unwrap_or_default());
            let mixed = self.gear[(print & 0xff) as usize].wrapping_add(print);
            if mixed.trailing_zeros() >= bits || i + 1 >= max {
                return ((i + 1) * page_size).min(bytes.len());
            }
        }
        bytes.len()
    }
}

/// True if every byte is zero. Reads in words the compiler turns into vectors.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<64>();
    words.iter().all(|w| w.iter().fold(0u8, |acc, b| acc | b) == 0) && tail.iter().all(|b| *b == 0)
}

/// The level with parameters of our own for chunks of files and frames of WAL.
const TUNED_LEVEL: i32 = 3;
/// They fit chunks of 256 KiB; the table of 2^16 places fits a second-level cache.
pub const FILES_PARAMETERS: [CParameter; 4] = [
    CParameter::Strategy(Strategy::ZSTD_fast),
    CParameter::MinMatch(6),
    CParameter::HashLog(16),
    CParameter::TargetLength(0),
];
/// Records of WAL repeat less at a time than pages do.
const WAL_PARAMETERS: [CParameter; 4] = [
    CParameter::Strategy(Strategy::ZSTD_fast),
    CParameter::MinMatch(5),
    CParameter::HashLog(16),
    CParameter::TargetLength(0),
];

/// Compresses chunks; one for each thread, as it keeps its contexts.
pub struct Encoder {
    compressor: zstd::bulk::Compressor<'static>,
    decoder: Decoder,
    encoded: Vec<u8>,
    check: Vec<u8>,
}

impl Encoder {
    /// `level` is zstd's.
    ///
    /// # Errors
    /// `Memory` if no context can be made.
    pub fn new(level: i32) -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(level).map_err(|e| codec("prepare compression", &e))?;
        Ok(Self { compressor, decoder: Decoder::new()?, encoded: Vec::new(), check: Vec::new() })
    }

    /// As [`Self::new`], for chunks of a cluster's files. Level 3, the default, is zstd's fast strategy with longer matches
    /// here: pages repeat whole headers and tuples, and zstd's own choice of level 3 finds shorter, worse matches at more
    /// cost. `benches/levels.rs` shows by file of a cluster what that does; other levels are zstd's.
    ///
    /// # Errors
    /// `Memory` if no context can be made.
    pub fn for_files(level: i32) -> Result<Self> {
        Self::tuned(level, &FILES_PARAMETERS)
    }

    /// As [`Self::for_files`], for frames of WAL: a third faster than zstd's level 3 at its size, from 4 % smaller to 5 %
    /// larger by what wrote the WAL.
    ///
    /// # Errors
    /// `Memory` if no context can be made.
    pub fn for_wal(level: i32) -> Result<Self> {
        Self::tuned(level, &WAL_PARAMETERS)
    }

    fn tuned(level: i32, parameters: &[CParameter]) -> Result<Self> {
        let mut encoder = Self::new(level)?;
        if level == TUNED_LEVEL {
            for parameter in parameters {
                encoder.compressor.set_parameter(*parameter).map_err(|e| codec("prepare compression", &e))?;
            }
        }
        Ok(encoder)
    }

    /// Encodes a chunk, raw if compression does not make it smaller. What is returned was decoded and compared.
    ///
    /// # Errors
    /// `Assert` if the encoded bytes do not decode to `plain`: a fault of memory or of the library.
    pub fn encode(&mut self, plain: &[u8]) -> Result<(Encoding, &[u8])> {
        self.encoded.clear();
        self.encoded.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let len =
            self.compressor.compress_to_buffer(plain, &mut self.encoded).map_err(|e| codec("compress a chunk", &e))?;
        if len >= plain.len() {
            self.encoded.clear();
            self.encoded.extend_from_slice(plain);
            return Ok((Encoding::Raw, &self.encoded));
        }
        self.decoder.decode(Encoding::Zstd, &self.encoded, plain.len(), &mut self.check)?;
        if self.check != plain {
            return Err(Error::refused(
                Kind::Assert,
                "a compressed chunk does not decode to what was read: memory or processor are not reliable",
            ));
        }
        Ok((Encoding::Zstd, &self.encoded))
    }
}

/// Decompresses chunks; one for each thread, as it keeps its context.
pub struct Decoder {
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    /// Makes the context.
    ///
    /// # Errors
    /// `Memory` if no context can be made.
    pub fn new() -> Result<Self> {
        let decompressor = zstd::bulk::Decompressor::new().map_err(|e| codec("prepare decompression", &e))?;
        Ok(Self { decompressor })
    }

    /// Decodes into `out`, which then holds exactly `plain_len` bytes.
    ///
    /// # Errors
    /// `Checksum` if the bytes do not decode or have another length; `FeatureNotSupported` for an encoding that needs more
    /// than these bytes: see [`Self::decode_delta`].
    pub fn decode(&mut self, encoding: Encoding, bytes: &[u8], plain_len: usize, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        match encoding {
            Encoding::Raw => out.extend_from_slice(bytes),
            Encoding::Zstd => {
                out.reserve(plain_len);
                self.decompressor
                    .decompress_to_buffer(bytes, out)
                    .map_err(|e| Error::refused(Kind::Checksum, format!("a chunk does not decompress: {e}")))?;
            }
            Encoding::ZstdDictionary | Encoding::ZstdPrefix | Encoding::Patch => {
                return Err(Error::refused(
                    Kind::FeatureNotSupported,
                    format!(
                        "chunk encoding {encoding:?} is not known here: it was written by a newer version of pgkeep"
                    ),
                ));
            }
        }
        if out.len() != plain_len {
            return Err(Error::refused(
                Kind::Checksum,
                format!("a chunk decodes to {} bytes instead of {plain_len}", out.len()),
            ));
        }
        Ok(())
    }
}

fn codec(doing: &str, source: &std::io::Error) -> Error {
    Error::refused(Kind::Memory, format!("cannot {doing}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize, seed: u8) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut out);
        out
    }

    fn gear(seed: u8) -> Gear {
        let bytes = noise(2048, seed);
        let table = std::array::from_fn(|i| u64::from_le_bytes(bytes[i * 8..i * 8 + 8].try_into().unwrap()));
        Gear::new(Box::new(table), 16 << 10, 64 << 10, 256 << 10)
    }

    fn lengths(gear: &Gear, bytes: &[u8]) -> Vec<usize> {
        let mut at = 0;
        let mut out = Vec::new();
        while at < bytes.len() {
            let n = gear.cut(&bytes[at..]);
            out.push(n);
            at += n;
        }
        out
    }

    #[test]
    fn cut_points_are_what_they_always_were() {
        let gear = gear(7);
        let got = lengths(&gear, &noise(600_000, 1));
        assert_eq!(got.iter().sum::<usize>(), 600_000);
        assert_eq!(got, include!("chunk/golden-cuts.in"));
    }

    #[test]
    fn another_secret_cuts_elsewhere() {
        let bytes = noise(600_000, 1);
        let cuts = |s| lengths(&gear(s), &bytes);
        assert_ne!(cuts(7), cuts(8));
    }

    #[test]
    fn cuts_find_themselves_again_after_an_insertion() {
        let gear = gear(7);
        let old = noise(2_000_000, 1);
        let mut new = old.clone();
        new.splice(100_000..100_000, [1, 2, 3]);
        let (a, b) = (lengths(&gear, &old), lengths(&gear, &new));
        assert_eq!(a.last(), b.last());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn chunks_round_trip(len in 1usize..300_000, seed in any::<u8>(), runs in any::<bool>()) {
            let mut plain = noise(len, seed);
            if runs { plain.iter_mut().for_each(|b| *b &= 1); }
            let mut encoder = Encoder::new(3).unwrap();
            let (encoding, bytes) = encoder.encode(&plain).unwrap();
            prop_assert_eq!(encoding == Encoding::Zstd, runs && len > 64 || encoding == Encoding::Zstd);
            let mut out = Vec::new();
            Decoder::new().unwrap().decode(encoding, bytes, len, &mut out).unwrap();
            prop_assert_eq!(out, plain);
        }

        #[test]
        fn zeros_are_seen(len in 0usize..5000, at in 0usize..5000) {
            let mut bytes = vec![0; len];
            prop_assert!(is_zero(&bytes));
            if at < len { bytes[at] = 1; prop_assert!(!is_zero(&bytes)); }
        }
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let mut encoder = Encoder::new(3).unwrap();
        let plain = vec![5u8; 10_000];
        let (encoding, bytes) = encoder.encode(&plain).unwrap();
        let bytes = bytes.to_vec();
        let mut out = Vec::new();
        assert!(Decoder::new().unwrap().decode(encoding, &bytes, 9_999, &mut out).is_err());
        assert!(Decoder::new().unwrap().decode(encoding, &bytes, 10_001, &mut out).is_err());
        assert!(Decoder::new().unwrap().decode(encoding, &bytes[..bytes.len() - 1], 10_000, &mut out).is_err());
    }
}
