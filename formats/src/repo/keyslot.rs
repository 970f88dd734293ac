//! Key slots: one way each to unlock a role's secrets.
//!
//! A slot is a plaintext header, which tells how to come by its key-encryption key (KEK), and the sealed
//! [`secrets`]. The whole header is authenticated with the secrets, so a slot of one kind, role or repository
//! cannot be passed off as another. Layout: FORMAT.md, "Key slot".

pub mod secrets;

use super::envelope::{Cipher, TAG_LEN};
use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::{RepoId, SlotId};

/// First bytes of a slot.
pub const MAGIC: [u8; 4] = *b"PGKS";
/// The only version.
pub const VERSION: u16 = 1;
/// Bytes of a slot's nonce.
pub const NONCE_LEN: usize = 24;
/// Bytes of an Argon2 salt.
pub const SALT_LEN: usize = 16;
/// Most bytes of a label.
pub const LABEL_LEN_MAX: usize = 255;
/// Most bytes of what a kind of slot needs.
pub const PARAMETERS_LEN_MAX: usize = 4096;
/// Most bytes of sealed secrets.
pub const PAYLOAD_LEN_MAX: usize = 1 << 20;
/// Fewest bytes of a key file.
pub const KEY_FILE_LEN_MIN: usize = 32;

const CONTEXT: &[u8] = b"pgkeep slot v1";

/// What a holder of a slot's secrets may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Everything, and publish epochs.
    All = 1,
    /// Write backups and WAL; cannot open data.
    Writer = 2,
    /// Read backups and WAL.
    Reader = 3,
    /// Collect garbage.
    Gc = 4,
    /// Check packs by name; holds no secret.
    Scrubber = 5,
}

impl Role {
    /// Lower-case name for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Gc => "gc",
            Self::Scrubber => "scrubber",
        }
    }
}

/// Cost of Argon2id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory, KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Argon2Cost {
    /// Bounds of the memory: a store must not be able to make its reader allocate without limit.
    pub const MEMORY_KIB: std::ops::RangeInclusive<u32> = 64..=1024 * 1024;
    /// Bounds of the passes.
    pub const PASSES: std::ops::RangeInclusive<u32> = 1..=16;
    /// Bounds of the lanes.
    pub const LANES: std::ops::RangeInclusive<u32> = 1..=8;
}

impl Default for Argon2Cost {
    /// 64 MiB, 3 passes, 1 lane: about a tenth of a second.
    fn default() -> Self {
        Self { memory_kib: 64 * 1024, passes: 3, lanes: 1 }
    }
}

/// How a slot's KEK is come by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotKind {
    /// From the repository's id, which is public: number 0. Gives no secrecy.
    Open,
    /// Argon2id over a passphrase: number 1.
    Passphrase {
        /// Its cost.
        cost: Argon2Cost,
        /// Random.
        salt: [u8; SALT_LEN],
    },
    /// From the bytes of a key file: number 2.
    KeyFile,
    /// Not known to this program, or reserved: an X25519 recipient is number 3, an external command 4.
    Other {
        /// Its number.
        number: u8,
        /// What it needs.
        parameters: Vec<u8>,
    },
}

impl SlotKind {
    /// Name for messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Passphrase { .. } => "passphrase",
            Self::KeyFile => "key file",
            Self::Other { number: 3, .. } => "X25519 recipient",
            Self::Other { number: 4, .. } => "external command",
            Self::Other { .. } => "unknown",
        }
    }
}

/// The plaintext part of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotHeader {
    /// Name of the slot: random, also in its object's name.
    pub slot: SlotId,
    /// What its secrets allow.
    pub role: Role,
    /// When it was made, seconds since the Unix epoch.
    pub created: i64,
    /// For people, at most [`LABEL_LEN_MAX`] bytes.
    pub label: String,
    /// How the KEK is come by.
    pub kind: SlotKind,
    /// How the secrets are enciphered.
    pub cipher: Cipher,
    /// Random; goes into the key of the secrets, together with the KEK.
    pub nonce: [u8; NONCE_LEN],
}

/// A slot, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot<'a> {
    /// The plaintext part.
    pub header: SlotHeader,
    /// All bytes before the sealed secrets: part of the associated data.
    pub head: &'a [u8],
    /// The enciphered secrets.
    pub ciphertext: &'a [u8],
    /// Their tag.
    pub tag: &'a [u8],
}

impl SlotHeader {
    /// The bytes before the sealed secrets, of which there will be `plain_len` bytes.
    ///
    /// # Errors
    /// [`FormatError`] if a field is out of its bounds.
    pub fn encode(&self, plain_len: usize) -> Result<Vec<u8>, FormatError> {
        let mut parameters = Writer::new();
        let kind = match &self.kind {
            SlotKind::Open => 0,
            SlotKind::Passphrase { cost, salt } => {
                parameters.u32(cost.memory_kib).u32(cost.passes).u32(cost.lanes).bytes(salt);
                1
            }
            SlotKind::KeyFile => 2,
            SlotKind::Other { number, parameters: bytes } => {
                parameters.bytes(bytes);
                *number
            }
        };
        let mut w = Writer::new();
        w.bytes(&MAGIC).u16(VERSION).bytes(&self.slot.0).u8(kind).u8(self.role as u8).i64(self.created);
        w.u8(clamp(self.label.len(), LABEL_LEN_MAX, "label length")? as u8).bytes(self.label.as_bytes());
        w.u16(clamp(parameters.len(), PARAMETERS_LEN_MAX, "parameter length")? as u16).bytes(parameters.as_bytes());
        w.u8(self.cipher as u8).bytes(&self.nonce);
        w.u32(clamp(plain_len, PAYLOAD_LEN_MAX, "payload length")? as u32);
        header(&mut Reader::new(w.as_bytes()))?;
        Ok(w.into_bytes())
    }
}

impl<'a> Slot<'a> {
    /// Takes a slot apart. A kind this program does not know is no error here.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(bytes);
        let (header, plain_len) = header(&mut r)?;
        let head = bytes.get(..r.offset()).unwrap_or_default();
        let ciphertext = r.bytes(plain_len, "sealed secrets")?;
        let tag = r.bytes(TAG_LEN, "tag")?;
        r.finish("key slot")?;
        Ok(Self { header, head, ciphertext, tag })
    }
}

/// The associated data of a slot's secrets.
#[must_use]
pub fn slot_aad(repo: &RepoId, head: &[u8]) -> Vec<u8> {
    [CONTEXT, &repo.0, head].concat()
}

fn header(r: &mut Reader<'_>) -> Result<(SlotHeader, usize), FormatError> {
    if r.array::<4>("magic")? != MAGIC {
        return Err(FormatError::BadMagic { what: "key slot" });
    }
    let version = r.u16("version")?;
    if version != VERSION {
        return Err(FormatError::BadVersion { what: "key slot", found: version.into(), supported: "1" });
    }
    let slot = SlotId::read(r)?;
    let number = r.u8("slot kind")?;
    let offset = r.offset();
    let role = match r.u8("role")? {
        1 => Role::All,
        2 => Role::Writer,
        3 => Role::Reader,
        4 => Role::Gc,
        5 => Role::Scrubber,
        found => return Err(FormatError::OutOfRange { offset, what: "role", found: found.into() }),
    };
    let created = r.i64("created")?;
    let len = r.u8("label length")?;
    let label = std::str::from_utf8(r.bytes(len.into(), "label")?)
        .map_err(|e| FormatError::BadText { what: "label", detail: e.to_string() })?
        .to_owned();
    let offset = r.offset();
    let len = clamp_at(offset, r.u16("parameter length")?.into(), PARAMETERS_LEN_MAX, "parameter length")?;
    let kind = kind(number, r.offset(), r.bytes(len, "parameters")?)?;
    let cipher = Cipher::read(r)?;
    let nonce = r.array("nonce")?;
    let offset = r.offset();
    let plain_len = clamp_at(offset, r.u32("payload length")? as usize, PAYLOAD_LEN_MAX, "payload length")?;
    Ok((SlotHeader { slot, role, created, label, kind, cipher, nonce }, plain_len))
}

fn kind(number: u8, offset: usize, parameters: &[u8]) -> Result<SlotKind, FormatError> {
    let mut r = Reader::new(parameters);
    let kind = match number {
        0 => SlotKind::Open,
        1 => {
            let mut cost = |what, bounds: std::ops::RangeInclusive<u32>| {
                let offset = offset + r.offset();
                let found = r.u32(what)?;
                if bounds.contains(&found) {
                    Ok(found)
                } else {
                    Err(FormatError::OutOfRange { offset, what, found: found.into() })
                }
            };
            let memory_kib = cost("argon2 memory", Argon2Cost::MEMORY_KIB)?;
            let passes = cost("argon2 passes", Argon2Cost::PASSES)?;
            let lanes = cost("argon2 lanes", Argon2Cost::LANES)?;
            SlotKind::Passphrase { cost: Argon2Cost { memory_kib, passes, lanes }, salt: r.array("salt")? }
        }
        2 => SlotKind::KeyFile,
        _ => return Ok(SlotKind::Other { number, parameters: parameters.to_vec() }),
    };
    r.finish("slot parameters")?;
    Ok(kind)
}

fn clamp(found: usize, max: usize, what: &'static str) -> Result<usize, FormatError> {
    clamp_at(0, found, max, what)
}

fn clamp_at(offset: usize, found: usize, max: usize, what: &'static str) -> Result<usize, FormatError> {
    if found > max { Err(FormatError::OutOfRange { offset, what, found: found as u64 }) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(kind: SlotKind) -> SlotHeader {
        SlotHeader {
            slot: SlotId([1; 16]),
            role: Role::Writer,
            created: 1_700_000_000,
            label: "backup host".into(),
            kind,
            cipher: Cipher::ChaCha20Poly1305,
            nonce: [9; NONCE_LEN],
        }
    }

    fn kinds() -> [SlotKind; 4] {
        let salt = [2; SALT_LEN];
        [
            SlotKind::Open,
            SlotKind::Passphrase { cost: Argon2Cost::default(), salt },
            SlotKind::KeyFile,
            SlotKind::Other { number: 4, parameters: b"fetch-key".to_vec() },
        ]
    }

    #[test]
    fn slots_round_trip_and_are_not_cut_short() {
        for kind in kinds() {
            let header = sample(kind);
            let mut bytes = header.encode(5).unwrap();
            let head = bytes.len();
            bytes.extend_from_slice(&[4; 5 + TAG_LEN]);
            let slot = Slot::parse(&bytes).unwrap();
            assert_eq!(slot.header, header);
            assert_eq!((slot.head.len(), slot.ciphertext.len(), slot.tag.len()), (head, 5, TAG_LEN));
            for short in 0..bytes.len() {
                assert!(Slot::parse(&bytes[..short]).is_err());
            }
        }
    }

    #[test]
    fn a_store_cannot_ask_for_unbounded_work() {
        for cost in [
            Argon2Cost { memory_kib: 2 << 20, passes: 1, lanes: 1 },
            Argon2Cost { memory_kib: 1024, passes: 17, lanes: 1 },
            Argon2Cost { memory_kib: 1024, passes: 1, lanes: 0 },
        ] {
            assert!(sample(SlotKind::Passphrase { cost, salt: [0; SALT_LEN] }).encode(5).is_err());
        }
        assert!(SlotHeader { label: "x".repeat(256), ..sample(SlotKind::Open) }.encode(5).is_err());
        assert!(sample(SlotKind::Open).encode(PAYLOAD_LEN_MAX + 1).is_err());
    }

    proptest! {
        #[test]
        fn damaged_slots_never_panic(which in 0usize..4, at in 0usize..140, to in any::<u8>(), cut in 0usize..150) {
            let mut bytes = sample(kinds()[which].clone()).encode(5).unwrap();
            bytes.extend_from_slice(&[4; 5 + TAG_LEN]);
            if let Some(b) = bytes.get_mut(at) { *b = to; }
            bytes.truncate(cut);
            if let Ok(slot) = Slot::parse(&bytes) {
                prop_assert_eq!(slot.header.encode(slot.ciphertext.len()).unwrap(), slot.head);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Slot::parse(&bytes).is_ok();
        }
    }
}
