//! What a session stored once more that rewrote packs: which chunk lies where since. FORMAT.md, "Moves".

use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::{PackId, SessionId};
use crate::repo::pack::CHUNKS_MAX;
use std::collections::BTreeMap;

const VERSION: u8 = 1;

/// Chunks of packs, and their new places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moves {
    /// Session that rewrote.
    pub session: SessionId,
    /// Generation it started from.
    pub generation: u64,
    targets: Vec<PackId>,
    /// By pack and ordinal: which of the targets, and the ordinal there.
    sources: BTreeMap<PackId, BTreeMap<u16, (u32, u16)>>,
}

impl Moves {
    /// None yet.
    #[must_use]
    pub fn new(session: SessionId, generation: u64) -> Self {
        Self { session, generation, targets: Vec::new(), sources: BTreeMap::new() }
    }

    /// True if nothing was moved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Notes where a chunk lies too: pack and ordinal.
    pub fn insert(&mut self, from: (PackId, u16), to: (PackId, u16)) {
        // What is noted one after the other lies together.
        let known = self.targets.iter().rposition(|target| *target == to.0);
        let target = known.unwrap_or_else(|| {
            self.targets.push(to.0);
            self.targets.len() - 1
        });
        self.sources.entry(from.0).or_default().insert(from.1, (target as u32, to.1));
    }

    /// The packs that chunks were taken from, in order.
    pub fn sources(&self) -> impl Iterator<Item = PackId> + '_ {
        self.sources.keys().copied()
    }

    /// The packs that chunks were put into.
    #[must_use]
    pub fn targets(&self) -> &[PackId] {
        &self.targets
    }

    /// Where a chunk lies too.
    #[must_use]
    pub fn find(&self, pack: PackId, ordinal: u16) -> Option<(PackId, u16)> {
        let (target, to) = self.sources.get(&pack)?.get(&ordinal)?;
        Some((*self.targets.get(*target as usize)?, *to))
    }

    /// Number of chunks moved.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.sources.values().map(|chunks| chunks.len() as u64).sum()
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(VERSION).bytes(&self.session.0).varint(self.generation);
        w.varint(self.targets.len() as u64);
        self.targets.iter().for_each(|target| target.write(&mut w));
        w.varint(self.sources.len() as u64);
        for (pack, chunks) in &self.sources {
            pack.write(&mut w);
            let mut bits = vec![0u8; chunks.last_key_value().map_or(0, |(last, _)| usize::from(*last) / 8 + 1)];
            let mut runs: Vec<(u32, u16, u32)> = Vec::new();
            for (ordinal, (target, to)) in chunks {
                bits[usize::from(*ordinal) / 8] |= 1 << (ordinal % 8);
                match runs.last_mut() {
                    Some((last, first, count)) if last == target && u32::from(*first) + *count == u32::from(*to) => {
                        *count += 1;
                    }
                    _ => runs.push((*target, *to, 1)),
                }
            }
            w.blob(&bits).varint(runs.len() as u64);
            for (target, first, count) in runs {
                w.varint(target.into()).varint(first.into()).varint(count.into());
            }
        }
        w.into_bytes()
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`FormatError`] naming the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("moves version")?;
        if version != VERSION {
            return Err(FormatError::BadVersion { what: "moves", found: version.into(), supported: "1" });
        }
        let session = SessionId::read(&mut r)?;
        let generation = r.varint("moves generation")?;
        let count = r.count(PackId::LEN, "moves targets")?;
        let targets = (0..count).map(|_| PackId::read(&mut r)).collect::<Result<Vec<_>, _>>()?;
        let count = r.count(PackId::LEN + 2, "moves sources")?;
        let mut sources: BTreeMap<PackId, BTreeMap<u16, (u32, u16)>> = BTreeMap::new();
        for _ in 0..count {
            let offset = r.offset();
            let pack = PackId::read(&mut r)?;
            let bits = r.blob("moves bitmap")?;
            let sorted = sources.last_key_value().is_none_or(|(last, _)| *last < pack);
            if bits.len() > CHUNKS_MAX / 8 || bits.last().is_none_or(|last| *last == 0) || !sorted {
                return Err(FormatError::OutOfRange { offset, what: "moves bitmap", found: bits.len() as u64 });
            }
            let mut ordinals = (0..bits.len() * 8).filter(|o| bits[o / 8] & (1 << (o % 8)) != 0);
            let mut chunks = BTreeMap::new();
            for _ in 0..r.count(3, "moves runs")? {
                let offset = r.offset();
                let target = r.varint_max((targets.len() as u64).saturating_sub(1), "moves target")? as u32;
                let first = r.varint_max(CHUNKS_MAX as u64 - 1, "moves first ordinal")?;
                let count = r.varint_max(CHUNKS_MAX as u64 - first, "moves run")?;
                for to in first..first + count {
                    let Some(ordinal) = ordinals.next() else {
                        return Err(FormatError::OutOfRange { offset, what: "moves run", found: count });
                    };
                    chunks.insert(ordinal as u16, (target, to as u16));
                }
            }
            if targets.is_empty() || ordinals.next().is_some() {
                return Err(FormatError::OutOfRange { offset, what: "moves runs", found: chunks.len() as u64 });
            }
            sources.insert(pack, chunks);
        }
        r.finish("moves")?;
        Ok(Self { session, generation, targets, sources })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(chunks in proptest::collection::vec((0..4u8, any::<u16>(), 4..7u8, any::<u16>()), 0..60)) {
            let mut moves = Moves::new(SessionId([9; 16]), 3);
            for (p, o, q, to) in &chunks {
                moves.insert((PackId([*p; 32]), *o), (PackId([*q; 32]), *to));
            }
            let back = Moves::decode(&moves.encode()).unwrap();
            prop_assert_eq!(&back, &moves);
            for (p, o, ..) in chunks {
                prop_assert_eq!(back.find(PackId([p; 32]), o), moves.find(PackId([p; 32]), o));
                prop_assert!(back.find(PackId([p; 32]), o).is_some());
            }
        }

        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(moves) = Moves::decode(&[&[VERSION], bytes.as_slice()].concat()) {
                prop_assert_eq!(Moves::decode(&moves.encode()), Ok(moves));
            }
        }
    }

    #[test]
    fn neighbours_are_one_run() {
        let mut moves = Moves::new(SessionId([1; 16]), 7);
        for n in 0..1000u16 {
            moves.insert((PackId([1; 32]), 3 * n), (PackId([2; 32]), n));
        }
        assert_eq!(moves.chunks(), 1000);
        assert!(moves.encode().len() < 500);
    }
}
