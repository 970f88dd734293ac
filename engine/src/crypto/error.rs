//! Why cryptography failed.

use crate::Kind;
use pgkeep_formats::FormatError;

/// Why cryptography failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// Authentication failed: damaged, altered, swapped, or sealed under another key.
    #[error("{object} does not authenticate: it is damaged, altered, or belongs elsewhere")]
    Unauthentic {
        /// Name of the object or chunk.
        object: String,
    },
    /// An object's bytes cannot be taken apart, or one cannot be put together.
    #[error("{object} is malformed")]
    Malformed {
        /// Name of the object.
        object: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// An object is of another kind, domain or repository than its place demands.
    #[error("{object} does not belong where it was found: its {what} is another")]
    Misplaced {
        /// Name of the object.
        object: String,
        /// Which property.
        what: &'static str,
    },
    /// No slot opens with what was given.
    #[error("no key slot of {store} opens with the passphrase or key file given")]
    NoSlotOpens {
        /// The repository.
        store: String,
    },
    /// There is no slot at all: without one nobody can open anything, whatever he has.
    #[error("{store} has no key slot: 'keys/slot/' is empty")]
    NoSlots {
        /// The repository.
        store: String,
    },
    /// The only slots are of kinds this program cannot open.
    #[error("the key slots of {store} are of kind '{kind}', which this program cannot open")]
    SlotNotSupported {
        /// The repository.
        store: String,
        /// The kind of one of them.
        kind: &'static str,
    },
    /// The role held may not do this.
    #[error("the key at hand has no {secret}: it belongs to role {role}")]
    RoleLacks {
        /// Name of the secret.
        secret: &'static str,
        /// Name of the role held.
        role: String,
    },
    /// Something was sealed to an epoch that the key at hand does not have.
    #[error("the key at hand has no keys of epoch {epoch}: the object is damaged, or the epoch was rotated in or out")]
    NoEpoch {
        /// The epoch.
        epoch: u32,
    },
    /// A key file is too small to be a key, or too large.
    #[error("a key file must have 32 bytes to 1 MiB; this one has {len}")]
    KeyFileSize {
        /// Bytes found.
        len: u64,
    },
    /// The system gives no randomness, or a primitive failed.
    #[error("cryptographic primitive failed: {what}")]
    Primitive {
        /// Which.
        what: &'static str,
    },
}

impl CryptoError {
    /// The cause, for branching and for the exit status.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Unauthentic { .. } | Self::Misplaced { .. } => Kind::Checksum,
            Self::Malformed { source: FormatError::BadVersion { .. }, .. } | Self::SlotNotSupported { .. } => {
                Kind::FeatureNotSupported
            }
            Self::Malformed { .. } => Kind::Format,
            _ => Kind::Crypto,
        }
    }

    /// For `map_err` on decoders and encoders: names the object.
    pub(crate) fn malformed(object: impl Into<String>) -> impl FnOnce(FormatError) -> Self {
        move |source| Self::Malformed { object: object.into(), source }
    }
}
