//! Two small records about keys: the public halves of an epoch, and one key wrapped to an epoch.
//!
//! An epoch is signed: a writer that could publish an epoch of its own would come to read what every other
//! writer seals from then on, and a keyed hash cannot tell writers apart. A wrap needs no authenticator: it
//! opens to a wrong key or not at all if altered. Layout: FORMAT.md, "Epoch" and "Wrapped key".

use super::envelope::{Domain, Wrap};
use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::{RepoId, SessionId};

/// First bytes of an epoch.
pub const EPOCH_MAGIC: [u8; 4] = *b"PGKE";
/// First bytes of a wrapped key.
pub const WRAP_MAGIC: [u8; 4] = *b"PGKW";
/// The only version of both.
pub const VERSION: u16 = 1;
/// Bytes of an epoch.
pub const EPOCH_LEN: usize = 4 + 2 + RepoId::LEN + 4 + 3 * 32 + 8 + SIGNATURE_LEN;
/// Bytes of a wrapped key's record.
pub const WRAP_RECORD_LEN: usize = 4 + 2 + 1 + 1 + RepoId::LEN + SessionId::LEN + 4 + 80;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_LEN: usize = 64;

const EPOCH_CONTEXT: &[u8] = b"pgkeep epoch v1";

/// `keys/epoch/<n>`: the public keys of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRecord {
    /// Of which repository.
    pub repo: RepoId,
    /// Its number, from 1.
    pub epoch: u32,
    /// X25519 public key of the data domain.
    pub data_public: [u8; 32],
    /// X25519 public key of the gc domain.
    pub gc_public: [u8; 32],
    /// When it was made, seconds since the Unix epoch.
    pub created: i64,
}

impl EpochRecord {
    /// The bytes the signature goes behind.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.bytes(&EPOCH_MAGIC).u16(VERSION).bytes(&self.repo.0).u32(self.epoch);
        // A public key of the meta domain is kept free: meta is symmetric in version 1.
        w.bytes(&self.data_public).bytes(&self.gc_public).bytes(&[0; 32]).i64(self.created);
        w.into_bytes()
    }

    /// Reads an epoch: the record, the bytes signed and the signature, which the caller must check.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8], &[u8]), FormatError> {
        let mut r = start(bytes, EPOCH_MAGIC, "epoch")?;
        let repo = RepoId::read(&mut r)?;
        let offset = r.offset();
        let epoch = r.u32("epoch")?;
        if epoch == 0 {
            return Err(FormatError::OutOfRange { offset, what: "epoch", found: 0 });
        }
        let (data_public, gc_public) = (r.array("data public key")?, r.array("gc public key")?);
        let offset = r.offset();
        if r.array::<32>("meta public key")? != [0; 32] {
            return Err(FormatError::OutOfRange { offset, what: "meta public key", found: 1 });
        }
        let created = r.i64("created")?;
        let signed = bytes.get(..r.offset()).unwrap_or_default();
        let signature = r.bytes(SIGNATURE_LEN, "signature")?;
        r.finish("epoch")?;
        Ok((Self { repo, epoch, data_public, gc_public, created }, signed, signature))
    }
}

/// What is signed for an epoch whose bytes before the signature are `record`.
#[must_use]
pub fn epoch_message(record: &[u8]) -> Vec<u8> {
    [EPOCH_CONTEXT, record].concat()
}

/// What a wrapped key is the key of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WrapPurpose {
    /// The data key of a session.
    Session = 1,
    /// The key of one object with an embedded wrap.
    Object = 2,
}

/// To what a wrapped key is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrapContext {
    /// Of which repository.
    pub repo: RepoId,
    /// Data or gc: whose public key of the epoch.
    pub domain: Domain,
    /// What it is the key of.
    pub purpose: WrapPurpose,
    /// The session, or the object's own id.
    pub session: SessionId,
    /// The epoch.
    pub epoch: u32,
}

impl WrapContext {
    /// Bytes of the encoding.
    pub const LEN: usize = RepoId::LEN + 2 + SessionId::LEN + 4;

    /// The bytes that go into the derivation of the wrapping key.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..16].copy_from_slice(&self.repo.0);
        out[16] = self.domain as u8;
        out[17] = self.purpose as u8;
        out[18..34].copy_from_slice(&self.session.0);
        out[34..].copy_from_slice(&self.epoch.to_le_bytes());
        out
    }
}

/// `sk/<session>/<epoch>`: a wrapped key and to what it is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrapRecord {
    /// To what.
    pub context: WrapContext,
    /// The wrapped key.
    pub wrap: Wrap,
}

impl WrapRecord {
    /// The whole object.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let c = &self.context;
        let mut w = Writer::new();
        w.bytes(&WRAP_MAGIC).u16(VERSION).u8(c.domain as u8).u8(c.purpose as u8);
        w.bytes(&c.repo.0).bytes(&c.session.0).u32(c.epoch).bytes(&self.wrap.0);
        w.into_bytes()
    }

    /// Reads the object.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = start(bytes, WRAP_MAGIC, "wrapped key")?;
        let domain = match r.u8("domain")? {
            1 => Domain::Data,
            3 => Domain::Gc,
            found => return Err(FormatError::OutOfRange { offset: 6, what: "domain", found: found.into() }),
        };
        let purpose = match r.u8("purpose")? {
            1 if domain == Domain::Data => WrapPurpose::Session,
            2 => WrapPurpose::Object,
            found => return Err(FormatError::OutOfRange { offset: 7, what: "purpose", found: found.into() }),
        };
        let (repo, session) = (RepoId::read(&mut r)?, SessionId::read(&mut r)?);
        let offset = r.offset();
        let epoch = r.u32("epoch")?;
        if epoch == 0 {
            return Err(FormatError::OutOfRange { offset, what: "epoch", found: 0 });
        }
        let wrap = Wrap(r.array("wrapped key")?);
        r.finish("wrapped key")?;
        Ok(Self { context: WrapContext { repo, domain, purpose, session, epoch }, wrap })
    }
}

fn start<'a>(bytes: &'a [u8], magic: [u8; 4], what: &'static str) -> Result<Reader<'a>, FormatError> {
    let mut r = Reader::new(bytes);
    if r.array::<4>("magic")? != magic {
        return Err(FormatError::BadMagic { what });
    }
    match r.u16("version")? {
        VERSION => Ok(r),
        found => Err(FormatError::BadVersion { what, found: found.into(), supported: "1" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epoch() -> Vec<u8> {
        let record =
            EpochRecord { repo: RepoId([1; 16]), epoch: 3, data_public: [2; 32], gc_public: [3; 32], created: 77 };
        let mut bytes = record.encode();
        bytes.extend_from_slice(&[4; SIGNATURE_LEN]);
        let (found, signed, signature) = EpochRecord::decode(&bytes).unwrap();
        assert_eq!((found, signed, signature), (record.clone(), &record.encode()[..], &[4; SIGNATURE_LEN][..]));
        bytes
    }

    fn wrap() -> Vec<u8> {
        let context = WrapContext {
            repo: RepoId([1; 16]),
            domain: Domain::Gc,
            purpose: WrapPurpose::Object,
            session: SessionId([2; 16]),
            epoch: 9,
        };
        let record = WrapRecord { context, wrap: Wrap([6; 80]) };
        assert_eq!(WrapRecord::decode(&record.encode()).unwrap(), record);
        record.encode()
    }

    #[test]
    fn records_have_one_length() {
        let (epoch, wrap) = (epoch(), wrap());
        assert_eq!((epoch.len(), wrap.len()), (EPOCH_LEN, WRAP_RECORD_LEN));
        assert!((0..EPOCH_LEN).all(|short| EpochRecord::decode(&epoch[..short]).is_err()));
        assert!((0..WRAP_RECORD_LEN).all(|short| WrapRecord::decode(&wrap[..short]).is_err()));
        assert!(EpochRecord::decode(&[&epoch[..], b"x"].concat()).is_err());
        assert!(WrapRecord::decode(&[&wrap[..], b"x"].concat()).is_err());
    }

    proptest! {
        #[test]
        fn damaged_records_never_panic(at in 0usize..190, to in any::<u8>(), cut in 0usize..200) {
            for mut bytes in [epoch(), wrap()] {
                if let Some(b) = bytes.get_mut(at) { *b = to; }
                bytes.truncate(cut);
                if let Ok(record) = WrapRecord::decode(&bytes) {
                    prop_assert_eq!(record.encode(), bytes);
                } else if let Ok((record, signed, _)) = EpochRecord::decode(&bytes) {
                    prop_assert_eq!(record.encode(), signed);
                }
            }
        }
    }
}
