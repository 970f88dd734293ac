//! Positions in the WAL.
//!
//! Text form as in `pg_lsn.c`: the upper and the lower 32 bits as upper-case hexadecimal without padding.

use super::wal::WalSegmentSize;
use crate::FormatError;
use std::fmt;
use std::str::FromStr;

/// A byte position in the WAL, counted from the creation of the cluster. Zero stands for "none".
///
/// Displays as `16/B374D848`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The value that stands for "none".
    pub const INVALID: Self = Self(0);

    /// True unless this is the value that stands for "none".
    #[must_use]
    pub fn is_valid(self) -> bool {
        self != Self::INVALID
    }

    /// The position `bytes` further on, or `None` past the end of the number range.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Bytes from `earlier` to this position, or `None` if `earlier` is later.
    #[must_use]
    pub fn checked_since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Number of the WAL segment that holds the byte at this position.
    #[must_use]
    pub fn segment_number(self, size: WalSegmentSize) -> u64 {
        self.0 / size.bytes()
    }

    /// Number of the WAL segment that holds the byte *before* this position: the last segment needed when this
    /// is the end of a record, such as a backup's stop position. Segment 0 for position 0.
    #[must_use]
    pub fn segment_number_before(self, size: WalSegmentSize) -> u64 {
        Self(self.0.saturating_sub(1)).segment_number(size)
    }

    /// Bytes from the start of its WAL segment.
    #[must_use]
    pub fn segment_offset(self, size: WalSegmentSize) -> u64 {
        self.0 % size.bytes()
    }

    /// Parses the text form; one to eight hex digits of either case on both sides, as the server does.
    ///
    /// # Errors
    /// [`FormatError::BadText`].
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let half = |digits: &str| match digits.len() {
            1..=8 if digits.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok(),
            _ => None,
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| FormatError::bad_text("WAL position", text))
    }
}

impl FromStr for Lsn {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        Self::parse(text)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lsn({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_form_is_the_servers() {
        assert_eq!(Lsn::parse("16/B374D848"), Ok(Lsn(0x16_B374_D848)));
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!(Lsn(0x1_0000_0028).to_string(), "1/28");
        assert_eq!(Lsn::parse("0/0"), Ok(Lsn::INVALID));
        assert_eq!(Lsn::parse("ffffffff/FFFFFFFF"), Ok(Lsn(u64::MAX)));
        for text in ["", "/", "1/", "/1", "1", "1/2/3", "123456789/0", "0/123456789", "+1/2", "1/ 2", "g/0"] {
            assert!(Lsn::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_end_on_a_boundary_belongs_to_the_segment_before() {
        let size = WalSegmentSize::DEFAULT;
        assert_eq!(Lsn(0x200_0000).segment_number(size), 2);
        assert_eq!(Lsn(0x200_0000).segment_number_before(size), 1);
        assert_eq!(Lsn(0x200_0001).segment_number_before(size), 2);
        assert_eq!(Lsn(0).segment_number_before(size), 0);
        assert_eq!(Lsn(0x200_0028).segment_offset(size), 0x28);
    }

    #[test]
    fn arithmetic_is_checked() {
        assert_eq!(Lsn(u64::MAX).checked_add(1), None);
        assert_eq!(Lsn(5).checked_since(Lsn(6)), None);
        assert_eq!(Lsn(6).checked_since(Lsn(5)), Some(1));
    }

    proptest! {
        #[test]
        fn text_form_round_trips(n in any::<u64>()) {
            prop_assert_eq!(Lsn::parse(&Lsn(n).to_string()), Ok(Lsn(n)));
        }
    }
}
