//! Distinct identifiers, so that one kind can never stand where another is meant. Text form: lower-case hex.

use crate::FormatError;
use crate::codec::{Reader, Writer};
use std::fmt;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $bytes;

            /// Reads the raw bytes.
            ///
            /// # Errors
            /// [`FormatError::Truncated`] at the end of the buffer.
            pub fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
                Ok(Self(r.array(stringify!($name))?))
            }

            /// Appends the raw bytes.
            pub fn write(&self, w: &mut Writer) {
                w.bytes(&self.0);
            }

            /// Parses the hex text form.
            ///
            /// # Errors
            /// [`FormatError::BadText`] if it is not exactly that many lower-case hex digits.
            pub fn parse(text: &str) -> Result<Self, FormatError> {
                let mut out = [0u8; $bytes];
                if hex_into(text, &mut out) {
                    Ok(Self(out))
                } else {
                    Err(FormatError::BadText { what: stringify!($name), detail: text.chars().take(80).collect() })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

identifier!(
    /// Names a repository: random, drawn once at its creation.
    RepoId, 16
);
identifier!(
    /// Names one writer's run: random, never reused.
    SessionId, 16
);
identifier!(
    /// Names a chunk: BLAKE3 under the repository's id key over its type and plaintext.
    ChunkId, 32
);
identifier!(
    /// Names a pack: plain BLAKE3 over all its bytes, so that a pack can be checked without any key.
    PackId, 32
);
identifier!(
    /// Names an index segment: the repository's keyed content hash of its payload.
    IndexId, 32
);
identifier!(
    /// Names a key slot: random.
    SlotId, 16
);
identifier!(
    /// Names the record of a drill: when it began, in milliseconds since the Unix epoch, as a big-endian u64, so that the
    /// newest name comes last; then 8 random bytes.
    DrillId, 16
);
identifier!(
    /// Tells the claims of readers on one backup apart, and the runs that want it to expire: random.
    PinId, 16
);
identifier!(
    /// Names an access trace: when it was stored, as [`DrillId`] has it, so that the newest name comes last; then 8 random
    /// bytes.
    TraceId, 16
);

fn hex_into(text: &str, out: &mut [u8]) -> bool {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != out.len() * 2 {
        return false;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_is_strict() {
        let id = SessionId(std::array::from_fn(|i| i as u8 * 17));
        assert_eq!(SessionId::parse(&id.to_string()), Ok(id));
        assert!(SessionId::parse(&id.to_string().to_uppercase()).is_err());
        assert!(SessionId::parse("00").is_err());
        assert!(SessionId::parse(&"g".repeat(32)).is_err());
    }
}
