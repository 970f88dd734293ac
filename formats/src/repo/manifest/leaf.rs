//! Leaves: a stretch of a file's extents, in full or as what changed since another manifest's. FORMAT.md, "Tree records".
//!
//! Everything here goes over its lists once, so that a leaf costs what its extents cost, however many steps a patch has.

use super::{Extent, ExtentAt};
use crate::FormatError;

/// A step of a leaf patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PatchOp {
    /// That many units as in the base leaf, at the same place.
    Copy(u32),
    /// These extents, in place of as many units of the base leaf.
    Extents(Vec<Extent>),
}

/// A stretch of a file's extents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf {
    /// The extents themselves.
    Full(Vec<Extent>),
    /// Another manifest's leaf with changes. Its base is a full leaf.
    Patch {
        /// Index into the root's base pieces.
        piece: u32,
        /// Number of the record in that piece, from 0.
        record: u32,
        /// The steps.
        ops: Vec<PatchOp>,
    },
}

impl Leaf {
    /// Bytes of its record in a piece.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        super::record::leaf_len(self)
    }

    /// The leaf's extents; `base` are those of the base leaf, and are not looked at for a full one. What a patch puts
    /// together is joined where it continues.
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] if a step goes past the end of the base leaf.
    pub fn resolve(self, base: &[Extent]) -> Result<Vec<Extent>, FormatError> {
        let ops = match self {
            Self::Full(extents) => return Ok(extents),
            Self::Patch { ops, .. } => ops,
        };
        let mut base = Cursor::new(base);
        let mut out = Vec::new();
        for op in ops {
            match op {
                PatchOp::Copy(units) => {
                    let mut left = units;
                    while left > 0 {
                        let Some(run) = base.peek().map(|e| first(e, left)) else {
                            let found = left.into();
                            return Err(FormatError::OutOfRange { offset: 0, what: "leaf patch", found });
                        };
                        base.skip(run.units);
                        left -= run.units;
                        push_extent(&mut out, run);
                    }
                }
                PatchOp::Extents(extents) => {
                    for e in extents {
                        base.skip(e.units);
                        push_extent(&mut out, e);
                    }
                }
            }
        }
        Ok(out)
    }
}

/// The steps that make `now` of `base`. The patch of these steps resolves to exactly the places of `now`, joined where
/// they continue: places are compared as numbers, so a patch says nothing about what an ordinal stands for.
#[must_use]
pub fn patch_ops(base: &[Extent], now: &[Extent]) -> Vec<PatchOp> {
    let (mut base, mut now) = (Cursor::new(base), Cursor::new(now));
    let mut ops = Vec::new();
    while let Some(want) = now.peek() {
        let have = base.peek();
        let run = first(want, have.map_or(want.units, |e| e.units));
        now.skip(run.units);
        base.skip(run.units);
        match (have.is_some_and(|e| e.at == run.at), ops.last_mut()) {
            // A leaf has at most 2^32 units when it is made of pages; others end where the count does.
            (true, Some(PatchOp::Copy(units))) if units.checked_add(run.units).is_some() => *units += run.units,
            (true, _) => ops.push(PatchOp::Copy(run.units)),
            (false, Some(PatchOp::Extents(list))) => push_extent(list, run),
            (false, _) => ops.push(PatchOp::Extents(vec![run])),
        }
    }
    ops
}

/// Appends an extent to a list, as part of its last one if it continues that.
pub fn push_extent(out: &mut Vec<Extent>, e: Extent) {
    if let Some(last) = out.last_mut() {
        let goes_on = match (last.at, e.at) {
            (ExtentAt::Zero, ExtentAt::Zero) => true,
            (ExtentAt::Chunk { ordinal: a, offset }, ExtentAt::Chunk { ordinal: b, offset: next }) => {
                a == b && offset.checked_add(last.units) == Some(next)
            }
            _ => false,
        };
        if goes_on && let Some(units) = last.units.checked_add(e.units) {
            last.units = units;
            return;
        }
    }
    out.push(e);
}

/// The first units of an extent, at most `units`.
fn first(e: Extent, units: u32) -> Extent {
    Extent { units: e.units.min(units), at: e.at }
}

/// Goes forward over extents by units.
struct Cursor<'a> {
    extents: std::slice::Iter<'a, Extent>,
    rest: Option<Extent>,
}

impl<'a> Cursor<'a> {
    fn new(extents: &'a [Extent]) -> Self {
        let mut extents = extents.iter();
        let rest = extents.next().copied();
        Self { extents, rest }
    }

    /// What is left of the extent it stands in.
    fn peek(&self) -> Option<Extent> {
        self.rest
    }

    fn skip(&mut self, mut units: u32) {
        while let Some(e) = &mut self.rest {
            if units < e.units {
                e.units -= units;
                if let ExtentAt::Chunk { offset, .. } = &mut e.at {
                    *offset = offset.saturating_add(units);
                }
                return;
            }
            units -= e.units;
            self.rest = self.extents.next().copied();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(units: u32, ordinal: u32, offset: u32) -> Extent {
        Extent { units, at: ExtentAt::Chunk { ordinal, offset } }
    }

    /// Each unit's place.
    fn flat(extents: &[Extent]) -> Vec<Option<(u32, u32)>> {
        let place = |e: &Extent, i| match e.at {
            ExtentAt::Zero => None,
            ExtentAt::Chunk { ordinal, offset } => Some((ordinal, offset + i)),
        };
        extents.iter().flat_map(|e| (0..e.units).map(move |i| place(e, i))).collect()
    }

    fn joined(extents: &[Extent]) -> Vec<Extent> {
        let mut out = Vec::new();
        extents.iter().for_each(|e| push_extent(&mut out, *e));
        out
    }

    /// Few ordinals and offsets, so that some places are equal and some continue.
    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        let one = (1u32..9, 0u32..3, 0u32..6).prop_map(|(units, ordinal, offset)| match ordinal {
            0 => Extent { units, at: ExtentAt::Zero },
            _ => chunk(units, ordinal, offset),
        });
        proptest::collection::vec(one, 0..20)
    }

    proptest! {
        #[test]
        fn a_patch_gives_what_it_was_made_of(base in extents(), now in extents()) {
            let leaf = Leaf::Patch { piece: 0, record: 0, ops: patch_ops(&base, &now) };
            let back = leaf.resolve(&base).unwrap();
            prop_assert_eq!(&back, &joined(&now));
            prop_assert_eq!(flat(&back), flat(&now));
        }

        #[test]
        fn a_patch_gives_what_a_model_gives(base in extents(), marks in proptest::collection::vec(any::<bool>(), 1..120)) {
            let old = flat(&base);
            let (mut want, mut ops) = (Vec::new(), Vec::new());
            for (i, page) in old.iter().enumerate() {
                if marks[i % marks.len()] {
                    want.push(Some((99, i as u32)));
                    ops.push(PatchOp::Extents(vec![chunk(1, 99, i as u32)]));
                } else {
                    want.push(*page);
                    ops.push(PatchOp::Copy(1));
                }
            }
            let leaf = Leaf::Patch { piece: 0, record: 0, ops };
            prop_assert_eq!(flat(&leaf.resolve(&base).unwrap()), want);
        }
    }

    #[test]
    fn a_patch_past_its_base_is_refused() {
        let base = [Extent { units: 3, at: ExtentAt::Zero }];
        assert!(Leaf::Patch { piece: 0, record: 0, ops: vec![PatchOp::Copy(4)] }.resolve(&base).is_err());
    }

    #[test]
    fn only_what_continues_is_joined() {
        let zero = Extent { units: 1, at: ExtentAt::Zero };
        let all = [zero, zero, chunk(2, 7, 0), chunk(1, 7, 2), chunk(1, 7, 4), chunk(1, 8, 5), zero];
        let want = [Extent { units: 2, at: ExtentAt::Zero }, chunk(3, 7, 0), chunk(1, 7, 4), chunk(1, 8, 5), zero];
        assert_eq!(joined(&all), want);
        let most = Extent { units: u32::MAX, at: ExtentAt::Zero };
        assert_eq!(joined(&[most, zero]), [most, zero]);
    }
}
