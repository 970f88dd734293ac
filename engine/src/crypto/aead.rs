//! ChaCha20-Poly1305 with nonces made of a counter.
//!
//! The caller answers for counters never repeating under a key; only `sealer`, `wrap`, the slots and the KEK
//! cache call the sealing side, and each says why its nonces are fresh. The library wipes its key state.

use super::{CryptoError, SecretBytes};
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use pgkeep_formats::repo::envelope::TAG_LEN;

/// A key ready for use.
pub(super) struct AeadKey(LessSafeKey);

/// Authentication failed; the caller names the object.
pub(super) struct Unauthentic;

impl AeadKey {
    pub(super) fn new(key: &SecretBytes<32>) -> Result<Self, CryptoError> {
        UnboundKey::new(&CHACHA20_POLY1305, key.expose())
            .map(|key| Self(LessSafeKey::new(key)))
            .map_err(|_| CryptoError::Primitive { what: "ChaCha20-Poly1305 key" })
    }

    /// Enciphers in place and returns the tag.
    pub(super) fn seal(&self, counter: u64, aad: &[u8], in_out: &mut [u8]) -> Result<[u8; TAG_LEN], CryptoError> {
        let failed = |_| CryptoError::Primitive { what: "ChaCha20-Poly1305 sealing" };
        let tag = self.0.seal_in_place_separate_tag(nonce(counter), Aad::from(aad), in_out).map_err(failed)?;
        tag.as_ref().try_into().map_err(|_| CryptoError::Primitive { what: "ChaCha20-Poly1305 tag" })
    }

    /// Deciphers in place. After a failure `in_out` holds nothing of use.
    pub(super) fn open_in_place(
        &self,
        counter: u64,
        aad: &[u8],
        in_out: &mut [u8],
        tag: &[u8],
    ) -> Result<(), Unauthentic> {
        match self.0.open_in_place_separate_tag(nonce(counter), Aad::from(aad), tag, in_out) {
            Ok(_) => Ok(()),
            Err(_) => Err(Unauthentic),
        }
    }

    /// Deciphers `ciphertext` into `out`, which is as long.
    pub(super) fn open_to(
        &self,
        counter: u64,
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8],
        out: &mut [u8],
    ) -> Result<(), Unauthentic> {
        self.0.open_separate_gather(nonce(counter), Aad::from(aad), ciphertext, tag, out).map_err(|_| Unauthentic)
    }
}

/// Four zero bytes, then the counter, little-endian.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
