//! To be written.

use crate::Kind;

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
    /// No slot opens with what was given.
    #[error("no key slot of {store} opens with this passphrase")]
    NoSlotOpens {
        /// The repository.
        store: String,
    },
    /// The role held may not do this.
    #[error("the key at hand has no {secret}: it belongs to role {role}")]
    RoleLacks {
        /// Name of the secret.
        secret: &'static str,
        /// Name of the role held.
        role: String,
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
            Self::Unauthentic { .. } => Kind::Checksum,
            _ => Kind::Crypto,
        }
    }
}
