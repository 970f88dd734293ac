//! What a backup uses: for each pack a bitmap over its chunks. FORMAT.md, "References". Sealed in the gc domain.

use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::{PackId, SessionId};
use crate::repo::pack::CHUNKS_MAX;
use std::collections::BTreeMap;

const VERSION: u8 = 1;

/// Chunks of packs, by ordinal in the pack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refs {
    /// Session whose backup this is.
    pub session: Option<SessionId>,
    /// Generation the session started from.
    pub generation: u64,
    packs: BTreeMap<PackId, Vec<u8>>,
}

impl Refs {
    /// No chunk yet.
    #[must_use]
    pub fn new(session: SessionId, generation: u64) -> Self {
        Self { session: Some(session), generation, packs: BTreeMap::new() }
    }

    /// Marks a chunk as used.
    pub fn insert(&mut self, pack: PackId, ordinal: u16) {
        let bits = self.packs.entry(pack).or_default();
        let byte = usize::from(ordinal) / 8;
        if bits.len() <= byte {
            bits.resize(byte + 1, 0);
        }
        bits[byte] |= 1 << (ordinal % 8);
    }

    /// True if the chunk is marked.
    #[must_use]
    pub fn contains(&self, pack: PackId, ordinal: u16) -> bool {
        let bit = |bits: &Vec<u8>| bits.get(usize::from(ordinal) / 8).is_some_and(|b| b & (1 << (ordinal % 8)) != 0);
        self.packs.get(&pack).is_some_and(bit)
    }

    /// The packs used, in order.
    pub fn packs(&self) -> impl Iterator<Item = PackId> + '_ {
        self.packs.keys().copied()
    }

    /// Adds all that another marks.
    pub fn union(&mut self, other: &Self) {
        for (pack, theirs) in &other.packs {
            let bits = self.packs.entry(*pack).or_default();
            if bits.len() < theirs.len() {
                bits.resize(theirs.len(), 0);
            }
            bits.iter_mut().zip(theirs).for_each(|(bit, theirs)| *bit |= theirs);
        }
    }

    /// The ordinals that are marked of a pack, in order.
    pub fn ordinals(&self, pack: PackId) -> impl Iterator<Item = u16> + '_ {
        let bits = self.packs.get(&pack).map_or(&[] as &[u8], Vec::as_slice);
        // A bitmap has at most 2^16 bits.
        (0..=u16::MAX).take(bits.len() * 8).filter(|o| bits[usize::from(*o) / 8] & (1 << (o % 8)) != 0)
    }

    /// Number of chunks marked.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.packs.values().flatten().map(|b| u64::from(b.count_ones())).sum()
    }

    /// The record's bytes. Bitmaps end with their last non-zero byte.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(VERSION).bytes(&self.session.unwrap_or(SessionId([0; 16])).0).varint(self.generation);
        w.varint(self.packs.len() as u64);
        for (pack, bits) in &self.packs {
            pack.write(&mut w);
            w.blob(bits);
        }
        w.into_bytes()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("refs version")?;
        if version != VERSION {
            return Err(FormatError::BadVersion { what: "refs", found: version.into(), supported: "1" });
        }
        let session = SessionId::read(&mut r)?;
        let generation = r.varint("refs generation")?;
        let count = r.count(PackId::LEN + 1, "refs packs")?;
        let mut packs = BTreeMap::new();
        for _ in 0..count {
            let offset = r.offset();
            let pack = PackId::read(&mut r)?;
            let bits = r.blob("refs bitmap")?;
            let sorted = packs.last_key_value().is_none_or(|(last, _)| *last < pack);
            if bits.len() > CHUNKS_MAX / 8 || bits.last() == Some(&0) || !sorted {
                return Err(FormatError::OutOfRange { offset, what: "refs bitmap", found: bits.len() as u64 });
            }
            packs.insert(pack, bits.to_vec());
        }
        r.finish("refs")?;
        Ok(Self { session: (session.0 != [0; 16]).then_some(session), generation, packs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(chunks in proptest::collection::vec((any::<u8>(), any::<u16>()), 0..50)) {
            let mut refs = Refs::new(SessionId([9; 16]), 3);
            for (p, o) in &chunks {
                refs.insert(PackId([*p; 32]), *o);
            }
            let back = Refs::decode(&refs.encode()).unwrap();
            prop_assert_eq!(&back, &refs);
            for (p, o) in chunks {
                prop_assert!(back.contains(PackId([p; 32]), o));
            }
        }
    }
}
