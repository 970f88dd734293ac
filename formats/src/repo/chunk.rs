//! What a chunk is, and how its bytes are encoded: the two one-byte fields that index entries, pack
//! footers and sealed chunks share. Layout: `FORMAT.md`, "Chunk".

use crate::FormatError;
use crate::codec::{Reader, Writer};

macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$vdoc])* $variant = $value),+
        }

        impl $name {
            /// Every value, in the order of their bytes.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The byte that stands for it.
            #[must_use]
            pub const fn as_u8(self) -> u8 {
                self as u8
            }

            /// The value a byte stands for; the error's offset is 0.
            ///
            /// # Errors
            /// [`FormatError::OutOfRange`] if the format gives the byte no meaning.
            pub const fn from_u8(byte: u8) -> Result<Self, FormatError> {
                match byte {
                    $($value => Ok(Self::$variant),)+
                    _ => Err(FormatError::OutOfRange { offset: 0, what: $what, found: byte as u64 }),
                }
            }

            /// Reads the byte; the error's offset is the reader's.
            ///
            /// # Errors
            /// [`FormatError::Truncated`] or [`FormatError::OutOfRange`].
            pub fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
                let offset = r.offset();
                let byte = r.u8($what)?;
                Self::from_u8(byte).map_err(|_| FormatError::OutOfRange { offset, what: $what, found: u64::from(byte) })
            }

            /// Appends the byte.
            pub fn write(self, w: &mut Writer) {
                w.u8(self.as_u8());
            }
        }
    };
}

byte_enum! {
    /// What a chunk holds. Part of what its id is the hash of, so that equal bytes of two kinds are two chunks.
    ChunkKind, "chunk kind" {
        /// Pages of a relation fork.
        Relation = 1,
        /// Bytes of any other file.
        Other = 2,
        /// A piece of a manifest or of another record stream: the metadata domain.
        Metadata = 3,
        /// A compression dictionary.
        Dictionary = 4,
    }
}

byte_enum! {
    /// How a chunk's plaintext became the bytes that were sealed. Free to change without changing the id.
    Encoding, "chunk encoding" {
        /// As it is.
        Raw = 0,
        /// One zstd frame.
        Zstd = 1,
        /// One zstd frame that needs a dictionary chunk.
        ZstdDictionary = 2,
        /// One zstd frame that needs the pages of a base list as its prefix.
        ZstdPrefix = 3,
        /// Sub-block patches onto base pages.
        Patch = 4,
    }
}

impl Encoding {
    /// True if decoding needs pages of other chunks. No such chunk may be the base of another.
    #[must_use]
    pub const fn is_delta(self) -> bool {
        matches!(self, Self::ZstdPrefix | Self::Patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_listed_bytes_have_a_meaning() {
        for byte in 0..=u8::MAX {
            assert_eq!(ChunkKind::from_u8(byte).is_ok(), (1..=4).contains(&byte));
            assert_eq!(Encoding::from_u8(byte).is_ok(), byte <= 4);
        }
        for kind in ChunkKind::ALL {
            assert_eq!(ChunkKind::from_u8(kind.as_u8()), Ok(*kind));
        }
        for encoding in Encoding::ALL {
            assert_eq!(Encoding::from_u8(encoding.as_u8()), Ok(*encoding));
        }
    }

    #[test]
    fn a_bad_byte_is_named_with_its_offset() {
        let mut r = Reader::new(&[0, 9]);
        assert_eq!(Encoding::read(&mut r), Ok(Encoding::Raw));
        let bad = FormatError::OutOfRange { offset: 1, what: "chunk encoding", found: 9 };
        assert_eq!(Encoding::read(&mut r), Err(bad));
    }
}
