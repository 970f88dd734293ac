//! The one error of every decoder.

/// Why bytes are not what they should be. `offset` is in bytes from the start of the decoded buffer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The buffer ends before the field does.
    #[error("truncated at byte {offset}: {need} more bytes expected for {what}")]
    Truncated {
        /// Where the field starts.
        offset: usize,
        /// Bytes missing from the buffer.
        need: usize,
        /// Name of the field.
        what: &'static str,
    },
    /// The leading bytes are not those of this kind of object.
    #[error("this is not a {what}: its first bytes are wrong")]
    BadMagic {
        /// Kind of object expected.
        what: &'static str,
    },
    /// Written by a version of the format this program does not know.
    #[error("{what} has format version {found}; this program reads {supported}")]
    BadVersion {
        /// Kind of object.
        what: &'static str,
        /// Version in the bytes.
        found: u64,
        /// Versions this program reads.
        supported: &'static str,
    },
    /// A checksum over the bytes does not match.
    #[error("checksum of {what} does not match: stored {stored:08x}, computed {computed:08x}")]
    BadChecksum {
        /// What the checksum covers.
        what: &'static str,
        /// Checksum found in the bytes.
        stored: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
    /// A field has a value the format does not allow.
    #[error("field {what} at byte {offset} has value {found}, which is out of range")]
    OutOfRange {
        /// Where the field starts.
        offset: usize,
        /// Name of the field.
        what: &'static str,
        /// Value found.
        found: u64,
    },
    /// Bytes follow where the object should end.
    #[error("{extra} unexpected bytes after the end of {what}")]
    TrailingBytes {
        /// Kind of object.
        what: &'static str,
        /// How many bytes follow.
        extra: usize,
    },
    /// A text field or line cannot be parsed.
    #[error("{what} cannot be parsed: {detail}")]
    BadText {
        /// Kind of text.
        what: &'static str,
        /// What was found, shortened.
        detail: String,
    },
}

impl FormatError {
    /// A text that cannot be parsed, shortened to what fits a message.
    pub(crate) fn bad_text(what: &'static str, found: &str) -> Self {
        Self::BadText { what, detail: found.chars().take(80).collect() }
    }
}
