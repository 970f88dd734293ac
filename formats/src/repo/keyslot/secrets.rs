//! What a key slot seals: the secrets of one role.
//!
//! Nothing here copies a secret: decoding borrows from the caller's buffer, encoding appends to the caller's
//! vector, which is [`Secrets::encoded_len`] longer afterwards; the caller reserves that and wipes both.
//! No type here can be printed. Layout: FORMAT.md, "Key slot", payload.

use crate::FormatError;
use crate::codec::Reader;

/// The only version.
pub const VERSION: u8 = 1;
/// Most scopes of one slot.
pub const SCOPES_MAX: usize = 4096;
/// Most bytes of a scope's name.
pub const SCOPE_LEN_MAX: usize = 512;
/// Most epochs of one slot.
pub const EPOCHS_MAX: usize = 1024;

/// A borrowed key.
pub type Key<'a> = &'a [u8; 32];

/// The secrets of a role; what the role lacks is absent.
#[derive(Default)]
pub struct Secrets<'a> {
    /// Proves membership: derived from the id key, held by every role with secrets.
    pub authenticity: Option<Key<'a>>,
    /// Names chunks.
    pub id_key: Option<Key<'a>>,
    /// Seeds the cut.
    pub cut_secret: Option<Key<'a>>,
    /// Gives every scope's key.
    pub meta_master: Option<Key<'a>>,
    /// Ed25519 seed that signs epochs.
    pub epoch_signer: Option<Key<'a>>,
    /// Ed25519 public key that checks epochs.
    pub epoch_verifier: Option<Key<'a>>,
    /// Keys of single scopes, sorted by name.
    pub scopes: Vec<(&'a str, Key<'a>)>,
    /// Epochs, sorted by number.
    pub epochs: Vec<EpochKeys<'a>>,
}

/// The keys of one epoch.
pub struct EpochKeys<'a> {
    /// Its number, from 1.
    pub epoch: u32,
    /// X25519 public key of the data domain.
    pub data_public: Key<'a>,
    /// X25519 public key of the gc domain.
    pub gc_public: Key<'a>,
    /// X25519 secret key of the data domain.
    pub data_secret: Option<Key<'a>>,
    /// X25519 secret key of the gc domain.
    pub gc_secret: Option<Key<'a>>,
}

impl<'a> Secrets<'a> {
    fn single(&self) -> [Option<Key<'a>>; 6] {
        [self.authenticity, self.id_key, self.cut_secret, self.meta_master, self.epoch_signer, self.epoch_verifier]
    }

    /// Bytes [`Self::encode`] appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let single = self.single().iter().flatten().count() * 32;
        let scopes: usize = self.scopes.iter().map(|(name, _)| 2 + name.len() + 32).sum();
        let epochs: usize = self
            .epochs
            .iter()
            .map(|e| 4 + 1 + 64 + 32 * (usize::from(e.data_secret.is_some()) + usize::from(e.gc_secret.is_some())))
            .sum();
        2 + single + 2 + scopes + 2 + epochs
    }

    /// Appends the encoding.
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] if there are too many scopes or epochs or a name is too long. What has been
    /// appended by then is of no use.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FormatError> {
        limit(self.scopes.len(), SCOPES_MAX, "scope count")?;
        limit(self.epochs.len(), EPOCHS_MAX, "epoch count")?;
        let single = self.single();
        let present = single.iter().enumerate().fold(0u8, |bits, (i, key)| bits | u8::from(key.is_some()) << i);
        out.extend_from_slice(&[VERSION, present]);
        single.iter().flatten().for_each(|key| out.extend_from_slice(*key));
        out.extend_from_slice(&(self.scopes.len() as u16).to_le_bytes());
        for (name, key) in &self.scopes {
            limit(name.len(), SCOPE_LEN_MAX, "scope length")?;
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(*key);
        }
        out.extend_from_slice(&(self.epochs.len() as u16).to_le_bytes());
        for e in &self.epochs {
            out.extend_from_slice(&e.epoch.to_le_bytes());
            out.push(u8::from(e.data_secret.is_some()) | u8::from(e.gc_secret.is_some()) << 1);
            for key in [Some(e.data_public), Some(e.gc_public), e.data_secret, e.gc_secret].into_iter().flatten() {
                out.extend_from_slice(key);
            }
        }
        Ok(())
    }

    /// Reads the secrets, borrowing from `bytes`.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let version = r.u8("version")?;
        if version != VERSION {
            return Err(FormatError::BadVersion { what: "role secrets", found: version.into(), supported: "1" });
        }
        let present = r.u8("present")?;
        if present >> 6 != 0 {
            return Err(FormatError::OutOfRange { offset: 1, what: "present", found: present.into() });
        }
        let mut single = [None; 6];
        for (bit, slot) in single.iter_mut().enumerate() {
            *slot = optional(&mut r, present >> bit & 1 == 1)?;
        }
        let [authenticity, id_key, cut_secret, meta_master, epoch_signer, epoch_verifier] = single;
        let count = r.u16("scope count")?;
        limit(count.into(), SCOPES_MAX, "scope count")?;
        let mut scopes: Vec<(&str, Key<'_>)> = Vec::new();
        for _ in 0..count {
            let len = r.u16("scope length")?;
            limit(len.into(), SCOPE_LEN_MAX, "scope length")?;
            let name = std::str::from_utf8(r.bytes(len.into(), "scope")?)
                .map_err(|e| FormatError::BadText { what: "scope", detail: e.to_string() })?;
            if scopes.last().is_some_and(|(last, _)| *last >= name) {
                return Err(FormatError::BadText { what: "scope", detail: "list is not in order".into() });
            }
            scopes.push((name, key(&mut r)?));
        }
        let count = r.u16("epoch count")?;
        limit(count.into(), EPOCHS_MAX, "epoch count")?;
        let mut epochs: Vec<EpochKeys<'_>> = Vec::new();
        for _ in 0..count {
            let offset = r.offset();
            let epoch = r.u32("epoch")?;
            if epoch <= epochs.last().map_or(0, |last| last.epoch) {
                return Err(FormatError::OutOfRange { offset, what: "epoch", found: epoch.into() });
            }
            let bits = r.u8("epoch secrets")?;
            if bits > 3 {
                return Err(FormatError::OutOfRange { offset: offset + 4, what: "epoch secrets", found: bits.into() });
            }
            let (data_public, gc_public) = (key(&mut r)?, key(&mut r)?);
            let data_secret = optional(&mut r, bits & 1 == 1)?;
            let gc_secret = optional(&mut r, bits & 2 == 2)?;
            epochs.push(EpochKeys { epoch, data_public, gc_public, data_secret, gc_secret });
        }
        r.finish("role secrets")?;
        Ok(Self { authenticity, id_key, cut_secret, meta_master, epoch_signer, epoch_verifier, scopes, epochs })
    }
}

fn key<'a>(r: &mut Reader<'a>) -> Result<Key<'a>, FormatError> {
    let offset = r.offset();
    r.bytes(32, "key")?.first_chunk().ok_or(FormatError::Truncated { offset, need: 32, what: "key" })
}

fn optional<'a>(r: &mut Reader<'a>, present: bool) -> Result<Option<Key<'a>>, FormatError> {
    if present { key(r).map(Some) } else { Ok(None) }
}

fn limit(found: usize, max: usize, what: &'static str) -> Result<(), FormatError> {
    if found > max { Err(FormatError::OutOfRange { offset: 0, what, found: found as u64 }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let secrets = Secrets {
            authenticity: Some(&[1; 32]),
            meta_master: Some(&[2; 32]),
            scopes: vec![("index", &[3; 32]), ("repo", &[4; 32])],
            epochs: vec![
                EpochKeys {
                    epoch: 1,
                    data_public: &[5; 32],
                    gc_public: &[6; 32],
                    data_secret: None,
                    gc_secret: Some(&[7; 32]),
                },
                EpochKeys {
                    epoch: 4,
                    data_public: &[8; 32],
                    gc_public: &[9; 32],
                    data_secret: Some(&[10; 32]),
                    gc_secret: None,
                },
            ],
            ..Secrets::default()
        };
        let mut out = Vec::new();
        secrets.encode(&mut out).unwrap();
        assert_eq!(out.len(), secrets.encoded_len());
        out
    }

    #[test]
    fn secrets_round_trip() {
        let bytes = sample();
        let secrets = Secrets::decode(&bytes).ok().unwrap();
        assert_eq!((secrets.authenticity, secrets.id_key), (Some(&[1; 32]), None));
        assert_eq!(secrets.scopes[1], ("repo", &[4; 32]));
        assert_eq!((secrets.epochs[0].gc_secret, secrets.epochs[1].data_secret), (Some(&[7; 32]), Some(&[10; 32])));
        let mut again = Vec::new();
        secrets.encode(&mut again).unwrap();
        assert_eq!(again, bytes);
        for short in 0..bytes.len() {
            assert!(Secrets::decode(&bytes[..short]).is_err());
        }
    }

    #[test]
    fn order_is_kept() {
        let mut out = Vec::new();
        Secrets { scopes: vec![("b", &[0; 32]), ("a", &[0; 32])], ..Secrets::default() }.encode(&mut out).unwrap();
        assert!(Secrets::decode(&out).is_err());
    }

    proptest! {
        #[test]
        fn damaged_secrets_never_panic(at in 0usize..400, to in any::<u8>(), cut in 0usize..400) {
            let mut bytes = sample();
            if let Some(b) = bytes.get_mut(at) { *b = to; }
            bytes.truncate(cut);
            if let Ok(secrets) = Secrets::decode(&bytes) {
                let mut again = Vec::new();
                secrets.encode(&mut again).unwrap();
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
