//! The sealed box: a key wrapped to an X25519 public key, so that its writer cannot open it again.
//!
//! Each box has an ephemeral key pair, hence a wrapping key of its own, hence nonce 0 is fresh. Anyone can make
//! a box for a public key: what is wrapped is therefore never used alone, but derived from together with the
//! repository's authenticity key (`keyring`). Layout: FORMAT.md, "Wrapped key".

use super::aead::AeadKey;
use super::secret::derive;
use super::{CryptoError, SecretBytes};
use pgkeep_formats::repo::envelope::{WRAP_LEN, Wrap};
use pgkeep_formats::repo::keyrecord::WrapContext;
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};

const CONTEXT: &str = "pgkeep v1 wrap";

/// Wraps `key` to `recipient` with an ephemeral secret, which must be random and not be used twice.
pub(super) fn seal(
    context: &WrapContext,
    recipient: &[u8; 32],
    key: &SecretBytes<32>,
    ephemeral: &SecretBytes<32>,
) -> Result<Wrap, CryptoError> {
    let ephemeral = StaticSecret::from(*ephemeral.expose());
    let public = PublicKey::from(&ephemeral);
    let shared = ephemeral.diffie_hellman(&PublicKey::from(*recipient));
    let wrapping = wrapping_key(&shared, public.as_bytes(), recipient, context)?;
    let mut sealed = SecretBytes::copy_from(key.expose());
    let tag = wrapping.seal(0, &[], sealed.expose_mut())?;
    let mut out = [0; WRAP_LEN];
    out[..32].copy_from_slice(public.as_bytes());
    out[32..64].copy_from_slice(sealed.expose());
    out[64..].copy_from_slice(&tag);
    Ok(Wrap(out))
}

/// Unwraps with the recipient's secret.
///
/// # Errors
/// [`CryptoError::Unauthentic`], naming `object`.
pub(super) fn open(
    context: &WrapContext,
    secret: &SecretBytes<32>,
    wrap: &Wrap,
    object: &str,
) -> Result<SecretBytes<32>, CryptoError> {
    let unauthentic = || CryptoError::Unauthentic { object: object.to_owned() };
    let secret = StaticSecret::from(*secret.expose());
    let (public, rest) = wrap.0.split_first_chunk::<32>().ok_or_else(unauthentic)?;
    let (ciphertext, tag) = rest.split_first_chunk::<32>().ok_or_else(unauthentic)?;
    let shared = secret.diffie_hellman(&PublicKey::from(*public));
    let recipient = PublicKey::from(&secret);
    let wrapping = wrapping_key(&shared, public, recipient.as_bytes(), context).map_err(|_| unauthentic())?;
    let mut key = SecretBytes::copy_from(ciphertext);
    wrapping.open_in_place(0, &[], key.expose_mut(), tag).map_err(|_| unauthentic())?;
    Ok(key)
}

/// The public half of an X25519 secret.
pub(super) fn public_of(secret: &SecretBytes<32>) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*secret.expose())).to_bytes()
}

fn wrapping_key(
    shared: &SharedSecret,
    ephemeral: &[u8; 32],
    recipient: &[u8; 32],
    context: &WrapContext,
) -> Result<AeadKey, CryptoError> {
    // A public key of low order makes the shared secret zero whatever the secret: anyone could unwrap.
    if !shared.was_contributory() {
        return Err(CryptoError::Primitive { what: "X25519 with a public key of low order" });
    }
    AeadKey::new(&derive(CONTEXT, &[shared.as_bytes(), ephemeral, recipient, &context.encode()]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_formats::id::{RepoId, SessionId};
    use pgkeep_formats::repo::envelope::Domain;
    use pgkeep_formats::repo::keyrecord::WrapPurpose;

    fn context() -> WrapContext {
        WrapContext {
            repo: RepoId([1; 16]),
            domain: Domain::Data,
            purpose: WrapPurpose::Session,
            session: SessionId([2; 16]),
            epoch: 1,
        }
    }

    #[test]
    fn opens_only_for_its_recipient_and_context() {
        let (secret, other) = (SecretBytes::random().unwrap(), SecretBytes::random().unwrap());
        let key = SecretBytes::random().unwrap();
        let wrap = seal(&context(), &public_of(&secret), &key, &SecretBytes::random().unwrap()).unwrap();
        assert_eq!(open(&context(), &secret, &wrap, "w").ok().unwrap().expose(), key.expose());
        assert!(open(&context(), &other, &wrap, "w").is_err());
        let others = [
            WrapContext { repo: RepoId([9; 16]), ..context() },
            WrapContext { domain: Domain::Gc, ..context() },
            WrapContext { purpose: WrapPurpose::Object, ..context() },
            WrapContext { session: SessionId([9; 16]), ..context() },
            WrapContext { epoch: 2, ..context() },
        ];
        assert!(others.iter().all(|c| open(c, &secret, &wrap, "w").is_err()));
        for at in 0..WRAP_LEN {
            // The top bit of an X25519 public key is ignored by the curve, but not by the derivation.
            let mut bad = wrap;
            bad.0[at] ^= 0x80;
            assert!(open(&context(), &secret, &bad, "w").is_err(), "byte {at}");
        }
    }

    #[test]
    fn public_keys_of_low_order_are_refused() {
        let secret = SecretBytes::random().unwrap();
        let key = SecretBytes::random().unwrap();
        let mut one = [0; 32];
        one[0] = 1;
        for low in [[0; 32], one] {
            assert!(matches!(
                seal(&context(), &low, &key, &SecretBytes::random().unwrap()),
                Err(CryptoError::Primitive { .. })
            ));
            let mut wrap = seal(&context(), &public_of(&secret), &key, &SecretBytes::random().unwrap()).unwrap();
            wrap.0[..32].copy_from_slice(&low);
            assert!(matches!(open(&context(), &secret, &wrap, "w"), Err(CryptoError::Unauthentic { .. })));
        }
    }
}
