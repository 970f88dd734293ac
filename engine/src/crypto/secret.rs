//! Bytes that are wiped, and where they come from: the system's randomness, or derivation.

use super::CryptoError;
use zeroize::Zeroize;

/// Secret bytes on the heap: never printed, never cloned, wiped when dropped.
pub struct SecretBytes<const N: usize>(Box<[u8; N]>);

impl<const N: usize> SecretBytes<N> {
    /// Draws from the system's generator.
    ///
    /// # Errors
    /// [`CryptoError::Primitive`] if the system gives none.
    pub fn random() -> Result<Self, CryptoError> {
        let mut out = Self(Box::new([0; N]));
        getrandom::fill(out.0.as_mut_slice()).map_err(|_| CryptoError::Primitive { what: "system randomness" })?;
        Ok(out)
    }

    /// Takes a copy; the caller wipes its own.
    #[must_use]
    pub fn copy_from(bytes: &[u8; N]) -> Self {
        Self(Box::new(*bytes))
    }

    /// The bytes, for a keyed hash or a comparison in constant time; not to be stored or printed.
    #[must_use]
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    pub(super) fn expose_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl<const N: usize> Drop for SecretBytes<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Public random bytes, for ids, salts and nonces.
pub(super) fn random<const N: usize>() -> Result<[u8; N], CryptoError> {
    let mut out = [0; N];
    getrandom::fill(&mut out).map_err(|_| CryptoError::Primitive { what: "system randomness" })?;
    Ok(out)
}

/// BLAKE3's derivation mode over the parts one after another. All parts but the last must be of fixed length.
pub(super) fn derive(context: &str, parts: &[&[u8]]) -> SecretBytes<32> {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    let mut out = SecretBytes(Box::new([0; 32]));
    hasher.finalize_xof().fill(out.0.as_mut_slice());
    out
}

/// Equality in constant time.
pub(super) fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    blake3::Hash::from_bytes(*a) == blake3::Hash::from_bytes(*b)
}
