//! Chunks encoded against old pages: zstd with the old pages as prefix, and sub-block patches.
//! Layout: FORMAT.md, "Chunk", encodings 3 and 4.
//!
//! A prefix finds bytes that moved within a page, as pruning and index insertions make them do; a patch needs only to know
//! *which* half kilobytes changed, and that can be told from hashes without the old page. Contexts are made for each
//! chunk: a prefix belongs to one frame, and chunks of many pages are worth it.

use super::{Decoder, codec};
use crate::{Error, Kind, Result};
use pgkeep_formats::repo::chunk::Encoding;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, get_error_name};

/// Bytes of a sub-block.
pub const SUB_BLOCK: usize = 512;
/// Reaches over 4 MiB of old pages and 1 MiB of new ones.
const WINDOW_LOG_MAX: u32 = 23;

/// Least level of a delta.
const LEVEL_MIN: i32 = 3;
/// Up to this window zstd's own tables hold every place.
const SMALL_LOG: u32 = 17;

fn damaged(text: impl Into<String>) -> Error {
    Error::refused(Kind::Checksum, text)
}

fn page_log(page: usize) -> Result<u8> {
    if page.is_power_of_two() && page <= 1 << 15 {
        return Ok(page.trailing_zeros() as u8);
    }
    Err(Error::refused(Kind::Assert, format!("{page} bytes cannot be the size of a page")))
}

/// Encodes with the joined old pages as prefix into `out`. `page` is the size of a page in bytes.
///
/// # Errors
/// `Memory` if there is no room for a context; `Assert` if what was encoded does not decode to `plain`.
pub fn encode_prefix(plain: &[u8], base: &[u8], page: usize, level: i32, out: &mut Vec<u8>) -> Result<()> {
    let failed = |code| codec("compress a delta", &std::io::Error::other(get_error_name(code)));
    out.clear();
    out.push(page_log(page)?);
    let mut context = CCtx::create();
    let window = (plain.len() + base.len()).max(1 << 10).next_power_of_two().trailing_zeros().min(WINDOW_LOG_MAX);
    // Levels below do not remember where in half a megabyte of old pages something was, and gain nothing here.
    context.set_parameter(CParameter::CompressionLevel(level.max(LEVEL_MIN))).map_err(failed)?;
    context.set_parameter(CParameter::WindowLog(window)).map_err(failed)?;
    if level <= LEVEL_MIN && window > SMALL_LOG {
        context.set_parameter(CParameter::HashLog(18)).map_err(failed)?;
        context.set_parameter(CParameter::ChainLog(17)).map_err(failed)?;
    }
    context.ref_prefix(base).map_err(failed)?;
    let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()));
    context.compress2(&mut frame, plain).map_err(failed)?;
    out.extend_from_slice(&frame);
    let mut check = Vec::new();
    decode_prefix(out, base, plain.len(), &mut check)?;
    if check != plain {
        let text = "a delta does not decode to what was read: memory or processor are not reliable";
        return Err(Error::refused(Kind::Assert, text));
    }
    Ok(())
}

/// The size of the pages that an encoded delta counts its base in.
///
/// # Errors
/// `Checksum` if it is none.
pub fn page_of(encoding: Encoding, encoded: &[u8]) -> Result<usize> {
    let least = if encoding == Encoding::Patch { 9 } else { 0 };
    match encoded.first() {
        Some(log) if (least..=15).contains(log) => Ok(1 << log),
        _ => Err(damaged("a delta does not begin with the size of its pages")),
    }
}

pub(super) fn decode_prefix(encoded: &[u8], base: &[u8], plain_len: usize, out: &mut Vec<u8>) -> Result<()> {
    let frame = encoded.get(1..).unwrap_or_default();
    out.clear();
    out.reserve(plain_len);
    let mut context = DCtx::create();
    let failed = |code| damaged(format!("a delta does not decompress: {}", get_error_name(code)));
    context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(failed)?;
    context.ref_prefix(base).map_err(failed)?;
    context.decompress(out, frame).map_err(failed)?;
    Ok(())
}

/// Encodes the sub-blocks of each page that `changed` names: one bit a sub-block, [`bitmap_len`] bytes a page, the rest
/// being the old page's. Both are whole pages.
///
/// # Errors
/// `Assert` for sizes that cannot be; `Memory` if there is no room for a context.
pub fn encode_patch(plain: &[u8], changed: &[u8], page: usize, level: i32, out: &mut Vec<u8>) -> Result<()> {
    let log = page_log(page)?;
    let width = bitmap_len(page);
    if page < SUB_BLOCK || !plain.len().is_multiple_of(page) || changed.len() != plain.len() / page * width {
        return Err(Error::refused(Kind::Assert, "a patch needs whole pages and a bitmap for each"));
    }
    let mut literals = Vec::new();
    for (content, bits) in plain.chunks(page).zip(changed.chunks(width)) {
        for (j, block) in content.chunks(SUB_BLOCK).enumerate() {
            if bit(bits, j) {
                literals.extend_from_slice(block);
            }
        }
    }
    let packed = zstd::bulk::compress(&literals, level).map_err(|e| codec("compress a patch", &e))?;
    // The old pages are not at hand, so what can be compared is this.
    let check = zstd::bulk::decompress(&packed, literals.len()).map_err(|e| codec("decompress a patch", &e))?;
    if check != literals {
        return Err(Error::refused(
            Kind::Assert,
            "a patch does not decode to what was read: memory or processor are not reliable",
        ));
    }
    out.clear();
    out.push(log);
    out.push(u8::from(packed.len() < literals.len()));
    out.extend_from_slice(changed);
    out.extend_from_slice(if packed.len() < literals.len() { &packed } else { &literals });
    Ok(())
}

/// Bytes of the bitmap of one page.
#[must_use]
pub fn bitmap_len(page: usize) -> usize {
    page.div_ceil(SUB_BLOCK * 8)
}

fn bit(bits: &[u8], j: usize) -> bool {
    bits.get(j / 8).is_some_and(|b| b & (1 << (j % 8)) != 0)
}

fn decode_patch(decoder: &mut Decoder, encoded: &[u8], base: &[u8], plain_len: usize, out: &mut Vec<u8>) -> Result<()> {
    let page = page_of(Encoding::Patch, encoded)?;
    let pages = plain_len / page;
    let short = || damaged("a patch is cut short");
    let literal_encoding = *encoded.get(1).ok_or_else(short)?;
    let (bitmaps, literals) =
        encoded.get(2..).unwrap_or_default().split_at_checked(pages * bitmap_len(page)).ok_or_else(short)?;
    if !plain_len.is_multiple_of(page) || base.len() != plain_len {
        return Err(damaged("a patch needs one old page for each of its own"));
    }
    let sub_blocks = page / SUB_BLOCK;
    let ones: usize = bitmaps.iter().map(|b| b.count_ones() as usize).sum();
    let named: usize = bitmaps.chunks(bitmap_len(page)).map(|b| (0..sub_blocks).filter(|j| bit(b, *j)).count()).sum();
    if ones != named {
        return Err(damaged("a patch names sub-blocks behind the end of its pages"));
    }
    let mut unpacked = Vec::new();
    match literal_encoding {
        0 => decoder.decode(Encoding::Raw, literals, ones * SUB_BLOCK, &mut unpacked)?,
        1 => decoder.decode(Encoding::Zstd, literals, ones * SUB_BLOCK, &mut unpacked)?,
        _ => return Err(damaged("a patch has literals of an unknown encoding")),
    }
    out.clear();
    out.extend_from_slice(base);
    let mut blocks = unpacked.chunks(SUB_BLOCK);
    for (content, bits) in out.chunks_mut(page).zip(bitmaps.chunks(bitmap_len(page))) {
        for (j, block) in content.chunks_mut(SUB_BLOCK).enumerate() {
            if bit(bits, j) {
                block.copy_from_slice(blocks.next().ok_or_else(short)?);
            }
        }
    }
    Ok(())
}

impl Decoder {
    /// Decodes a delta into `out`, which then holds exactly `plain_len` bytes. `base` are its old pages, joined.
    ///
    /// # Errors
    /// `Checksum` if the bytes do not decode or have another length.
    pub fn decode_delta(
        &mut self,
        encoding: Encoding,
        encoded: &[u8],
        base: &[u8],
        plain_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        match encoding {
            Encoding::ZstdPrefix => decode_prefix(encoded, base, plain_len, out)?,
            Encoding::Patch => decode_patch(self, encoded, base, plain_len, out)?,
            other => return self.decode(other, encoded, plain_len, out),
        }
        if out.len() != plain_len {
            return Err(damaged(format!("a delta decodes to {} bytes instead of {plain_len}", out.len())));
        }
        Ok(())
    }
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn prefixes_round_trip(pages in 1usize..65, seed in any::<u8>(), edits in proptest::collection::vec((any::<u32>(), any::<u8>()), 0..40)) {
            let base = noise(pages * 8192, seed);
            let mut plain = base.clone();
            for (at, byte) in &edits {
                let at = *at as usize % plain.len();
                plain[at] = *byte;
            }
            let mut encoded = Vec::new();
            encode_prefix(&plain, &base, 8192, 3, &mut encoded).unwrap();
            prop_assert!(encoded.len() < 200 + edits.len() * 40 + pages * 8, "{} bytes", encoded.len());
            let mut out = Vec::new();
            let mut decoder = Decoder::new().unwrap();
            decoder.decode_delta(Encoding::ZstdPrefix, &encoded, &base, plain.len(), &mut out).unwrap();
            prop_assert_eq!(&out, &plain);
            prop_assert!(decoder.decode_delta(Encoding::ZstdPrefix, &encoded, &base, plain.len() - 1, &mut out).is_err());
        }

        #[test]
        fn patches_round_trip(pages in 1usize..20, log in 9u32..=15, seed in any::<u8>(), edits in proptest::collection::vec((any::<u32>(), any::<u8>()), 0..40)) {
            let page = 1usize << log;
            let base = noise(pages * page, seed);
            let mut plain = base.clone();
            for (at, byte) in &edits {
                let at = *at as usize % plain.len();
                plain[at] = *byte;
            }
            let width = bitmap_len(page);
            let mut changed = vec![0u8; pages * width];
            for (p, (a, b)) in plain.chunks(page).zip(base.chunks(page)).enumerate() {
                for (j, (x, y)) in a.chunks(SUB_BLOCK).zip(b.chunks(SUB_BLOCK)).enumerate() {
                    if x != y { changed[p * width + j / 8] |= 1 << (j % 8); }
                }
            }
            let mut encoded = Vec::new();
            encode_patch(&plain, &changed, page, 3, &mut encoded).unwrap();
            let (mut out, mut decoder) = (Vec::new(), Decoder::new().unwrap());
            decoder.decode_delta(Encoding::Patch, &encoded, &base, plain.len(), &mut out).unwrap();
            prop_assert_eq!(&out, &plain);
            prop_assert!(decoder.decode_delta(Encoding::Patch, &encoded[..encoded.len() - 1], &base, plain.len(), &mut out).is_err() || encoded.len() == 2 + pages * width);
            prop_assert!(decoder.decode_delta(Encoding::Patch, &encoded, &base[page..], plain.len(), &mut out).is_err());
        }

        #[test]
        fn any_bytes_are_refused_or_decode_to_the_length_asked_for(bytes in proptest::collection::vec(any::<u8>(), 0..200), len in 0usize..70_000, prefix in any::<bool>()) {
            let base = noise(len, 1);
            let encoding = if prefix { Encoding::ZstdPrefix } else { Encoding::Patch };
            let mut out = Vec::new();
            if Decoder::new().unwrap().decode_delta(encoding, &bytes, &base, len, &mut out).is_ok() {
                prop_assert_eq!(out.len(), len);
            }
        }
    }

    #[test]
    fn another_base_gives_other_bytes_or_none() {
        let base = noise(8192 * 8, 1);
        let mut plain = base.clone();
        plain[5000] ^= 1;
        let mut encoded = Vec::new();
        encode_prefix(&plain, &base, 8192, 3, &mut encoded).unwrap();
        let mut out = Vec::new();
        let got = Decoder::new().unwrap().decode_delta(
            Encoding::ZstdPrefix,
            &encoded,
            &noise(8192 * 8, 2),
            plain.len(),
            &mut out,
        );
        assert!(got.is_err() || out != plain);
    }
}
