//! The envelope around every sealed object except packs, and the bound context of objects and chunks.
//!
//! Owns the header's layout, the rules that tie its fields together, and the associated data, which is what
//! makes a swapped, renamed, re-typed, truncated or replayed object fail. Knows no key: sealing and opening
//! are `engine::crypto`'s. Everything in the header is readable without a key and trusted only after opening.
//! Layout: FORMAT.md, "Envelope" and "Chunk blob".

use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::{ChunkId, RepoId, SessionId};

/// First bytes of every sealed object.
pub const MAGIC: [u8; 4] = *b"PGKO";
/// The only version of the envelope.
pub const VERSION: u16 = 1;
/// Bytes of the header before the wrap and the public part.
pub const FIXED_LEN: usize = 52;
/// Bytes of a wrapped key: ephemeral public key 32, ciphertext 32, tag 16.
pub const WRAP_LEN: usize = 80;
/// Bytes of the authentication tag.
pub const TAG_LEN: usize = 16;
/// Most bytes a public part may have: it is for hashes and lengths, not for content.
pub const PUBLIC_LEN_MAX: usize = 4096;
/// A ranged read of this many bytes always covers the whole head of an object.
pub const HEAD_LEN_MAX: usize = FIXED_LEN + WRAP_LEN + PUBLIC_LEN_MAX;
/// Bytes a sealed chunk is longer than its encoded bytes: counter 8, tag 16.
pub const CHUNK_OVERHEAD: usize = 8 + TAG_LEN;
/// Most bytes of an object's key.
pub const OBJECT_KEY_LEN_MAX: usize = 1024;

const OBJECT_CONTEXT: &[u8] = b"pgkeep object v1";
const CHUNK_CONTEXT: &[u8] = b"pgkeep chunk v1";
/// Bytes of a chunk's associated data.
pub const CHUNK_AAD_LEN: usize = 15 + RepoId::LEN + SessionId::LEN + 3 + ChunkId::LEN + 8;

/// What a sealed object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum ObjectKind {
    /// `ses/<session>/open`.
    Session = 1,
    /// `ses/<session>/hb/<n>`.
    Heartbeat = 2,
    /// `stanzas/<stanza>/history/<n>`.
    StanzaHistory = 3,
    /// `backups/<stanza>/<session>`: the commit record.
    Commit = 4,
    /// `backups/<stanza>/<session>`: the fence that excludes a commit.
    Fence = 5,
    /// `gen/<n>`.
    Generation = 6,
    /// `refs/<session>`.
    Refs = 7,
    /// `idx/...`.
    Index = 8,
    /// `wal/...`: a segment, partial segment, backup history or timeline history file.
    Wal = 9,
    /// `pins/<session>/<id>`.
    Pin = 10,
    /// `expired/<stanza>/<session>`.
    Expired = 11,
    /// `annotations/...`.
    Annotation = 12,
    /// `traces/<stanza>/<id>`.
    Trace = 13,
    /// A compression dictionary.
    Dictionary = 14,
    /// The record of a drill.
    Drill = 15,
    /// `moves/<session>`: where chunks lie that were stored once more.
    Moves = 16,
}

impl ObjectKind {
    const ALL: [Self; 16] = [
        Self::Session,
        Self::Heartbeat,
        Self::StanzaHistory,
        Self::Commit,
        Self::Fence,
        Self::Generation,
        Self::Refs,
        Self::Index,
        Self::Wal,
        Self::Pin,
        Self::Expired,
        Self::Annotation,
        Self::Trace,
        Self::Dictionary,
        Self::Drill,
        Self::Moves,
    ];

    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == value)
    }
}

/// Which family of keys seals something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Domain {
    /// Bytes of the cluster: pages, files, WAL. Writers cannot open it.
    Data = 1,
    /// Manifests, index, records.
    Meta = 2,
    /// What gc alone reads.
    Gc = 3,
}

impl Domain {
    /// The domain with this number, if there is one.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::Data, Self::Meta, Self::Gc].into_iter().find(|d| *d as u8 == value)
    }
}

/// How the bytes are enciphered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cipher {
    /// ChaCha20-Poly1305 of RFC 8439. Number 2 is kept for AES-256-GCM.
    ChaCha20Poly1305 = 1,
}

impl Cipher {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let offset = r.offset();
        match r.u8("cipher")? {
            1 => Ok(Self::ChaCha20Poly1305),
            found => Err(FormatError::OutOfRange { offset, what: "cipher", found: found.into() }),
        }
    }
}

/// A key wrapped to an epoch's public key; public, but opens only with the epoch's secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrap(pub [u8; WRAP_LEN]);

/// Where the key of an object comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource {
    /// From the key of its scope and the session: number 1, domain meta only.
    MetaSession,
    /// From its own wrap, in the header: number 2, domains data and gc only.
    Embedded(Wrap),
}

/// The fields of an envelope's header.
///
/// Meta objects have epoch 0. Objects with an embedded wrap have an epoch of at least 1, counter 0, and in
/// `session` 16 random bytes of their own, under which a later re-wrap of their key is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub kind: ObjectKind,
    /// Which keys seal it.
    pub domain: Domain,
    /// How it is enciphered.
    pub cipher: Cipher,
    /// Where its key comes from.
    pub source: KeySource,
    /// Epoch of the wrap, or 0.
    pub epoch: u32,
    /// Session that sealed it, or the object's own random id.
    pub session: SessionId,
    /// Nonce counter.
    pub counter: u64,
    /// Bytes of plaintext and of ciphertext.
    pub plain_len: u64,
}

/// The part of an object that can be read without a key, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    /// The fields.
    pub header: Header,
    /// The public part.
    pub public: &'a [u8],
    /// All bytes before the ciphertext: the part of the associated data that the object itself holds.
    pub bytes: &'a [u8],
}

/// A whole sealed object, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// What precedes the ciphertext.
    pub head: Head<'a>,
    /// As long as the plaintext.
    pub ciphertext: &'a [u8],
    /// [`TAG_LEN`] bytes.
    pub tag: &'a [u8],
}

impl Header {
    /// The head's bytes, in a vector that has room for the ciphertext and the tag behind them.
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] if the public part is longer than [`PUBLIC_LEN_MAX`], or if fields contradict
    /// each other as [`Head::parse`] would find.
    pub fn encode(&self, public: &[u8]) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        if public.len() > PUBLIC_LEN_MAX {
            return Err(out_of_range(48, "public part length", public.len() as u64));
        }
        let mut fixed = Writer::new();
        fixed.bytes(&MAGIC).u16(VERSION).u8(self.kind as u8).u8(self.domain as u8).u8(self.cipher as u8);
        fixed.u8(match self.source {
            KeySource::MetaSession => 1,
            KeySource::Embedded(_) => 2,
        });
        fixed.u16(0).u32(self.epoch).bytes(&self.session.0).u64(self.counter).u64(self.plain_len);
        fixed.u32(public.len() as u32);
        let room = usize::try_from(self.plain_len).unwrap_or(0);
        let mut out = Vec::with_capacity(FIXED_LEN + WRAP_LEN + public.len() + TAG_LEN + room);
        out.extend_from_slice(fixed.as_bytes());
        if let KeySource::Embedded(wrap) = &self.source {
            out.extend_from_slice(&wrap.0);
        }
        out.extend_from_slice(public);
        Ok(out)
    }

    fn check(&self) -> Result<(), FormatError> {
        let embedded = matches!(self.source, KeySource::Embedded(_));
        if embedded == (self.domain == Domain::Meta) {
            return Err(out_of_range(9, "key source", if embedded { 2 } else { 1 }));
        }
        if embedded == (self.epoch == 0) {
            return Err(out_of_range(12, "epoch", self.epoch.into()));
        }
        if embedded && self.counter != 0 {
            return Err(out_of_range(32, "counter", self.counter));
        }
        Ok(())
    }
}

impl<'a> Head<'a> {
    /// Reads the head from an object or from a prefix of one; [`HEAD_LEN_MAX`] bytes are always enough.
    ///
    /// # Errors
    /// [`FormatError`]; `Truncated` if the prefix is too short.
    pub fn parse(prefix: &'a [u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new(prefix);
        if r.array::<4>("magic")? != MAGIC {
            return Err(FormatError::BadMagic { what: "sealed object" });
        }
        let version = r.u16("version")?;
        if version != VERSION {
            let found = version.into();
            return Err(FormatError::BadVersion { what: "sealed object", found, supported: "1" });
        }
        let kind = r.u8("object kind")?;
        let kind = ObjectKind::from_u8(kind).ok_or_else(|| out_of_range(6, "object kind", kind.into()))?;
        let domain = r.u8("domain")?;
        let domain = Domain::from_u8(domain).ok_or_else(|| out_of_range(7, "domain", domain.into()))?;
        let cipher = Cipher::read(&mut r)?;
        let source = r.u8("key source")?;
        let reserved = r.u16("reserved")?;
        if reserved != 0 {
            return Err(out_of_range(10, "reserved", reserved.into()));
        }
        let epoch = r.u32("epoch")?;
        let session = SessionId::read(&mut r)?;
        let counter = r.u64("counter")?;
        let plain_len = r.u64("plaintext length")?;
        let public_len = r.u32("public part length")?;
        if public_len as usize > PUBLIC_LEN_MAX {
            return Err(out_of_range(48, "public part length", public_len.into()));
        }
        let source = match source {
            1 => KeySource::MetaSession,
            2 => KeySource::Embedded(Wrap(r.array("wrapped key")?)),
            found => return Err(out_of_range(9, "key source", found.into())),
        };
        let public = r.bytes(public_len as usize, "public part")?;
        let header = Header { kind, domain, cipher, source, epoch, session, counter, plain_len };
        header.check()?;
        let bytes = prefix.get(..r.offset()).unwrap_or_default();
        Ok(Self { header, public, bytes })
    }

    /// Bytes the whole object must have; none if that cannot be counted.
    #[must_use]
    pub fn object_len(&self) -> Option<u64> {
        (self.bytes.len() as u64 + TAG_LEN as u64).checked_add(self.header.plain_len)
    }
}

impl<'a> Sealed<'a> {
    /// Takes an object apart. Its length must be exactly what the header says.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn parse(object: &'a [u8]) -> Result<Self, FormatError> {
        let head = Head::parse(object)?;
        let mut r = Reader::new(object);
        r.bytes(head.bytes.len(), "head")?;
        let len = usize::try_from(head.header.plain_len)
            .map_err(|_| out_of_range(40, "plaintext length", head.header.plain_len))?;
        let ciphertext = r.bytes(len, "ciphertext")?;
        let tag = r.bytes(TAG_LEN, "tag")?;
        r.finish("sealed object")?;
        Ok(Self { head, ciphertext, tag })
    }
}

/// The associated data of an object: its repository, its name, and everything before its ciphertext.
///
/// # Errors
/// [`FormatError::OutOfRange`] if the key is longer than [`OBJECT_KEY_LEN_MAX`].
pub fn object_aad(repo: &RepoId, object_key: &str, head: &[u8]) -> Result<Vec<u8>, FormatError> {
    if object_key.len() > OBJECT_KEY_LEN_MAX {
        return Err(out_of_range(0, "object key length", object_key.len() as u64));
    }
    let mut w = Writer::new();
    w.bytes(OBJECT_CONTEXT).bytes(&repo.0).u16(object_key.len() as u16).bytes(object_key.as_bytes()).bytes(head);
    Ok(w.into_bytes())
}

/// What is bound to a chunk besides its repository, session and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHead {
    /// Kind of chunk, as in its id.
    pub kind: u8,
    /// Encoding of the plaintext into what is sealed.
    pub encoding: u8,
    /// Name of the chunk.
    pub id: ChunkId,
    /// Bytes before encoding.
    pub plain_len: u32,
}

/// The associated data of a chunk.
#[must_use]
pub fn chunk_aad(
    repo: &RepoId,
    session: &SessionId,
    domain: Domain,
    head: &ChunkHead,
    encoded_len: u32,
) -> [u8; CHUNK_AAD_LEN] {
    let mut out = [0; CHUNK_AAD_LEN];
    let mut at = 0;
    let types = [domain as u8, head.kind, head.encoding];
    let lengths = [head.plain_len.to_le_bytes(), encoded_len.to_le_bytes()];
    for part in [CHUNK_CONTEXT, &repo.0, &session.0, &types, &head.id.0, &lengths[0], &lengths[1]] {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    debug_assert_eq!(at, CHUNK_AAD_LEN);
    out
}

fn out_of_range(offset: usize, what: &'static str, found: u64) -> FormatError {
    FormatError::OutOfRange { offset, what, found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta() -> Header {
        Header {
            kind: ObjectKind::Commit,
            domain: Domain::Meta,
            cipher: Cipher::ChaCha20Poly1305,
            source: KeySource::MetaSession,
            epoch: 0,
            session: SessionId([7; 16]),
            counter: 9,
            plain_len: 3,
        }
    }

    fn embedded() -> Header {
        Header { source: KeySource::Embedded(Wrap([5; 80])), domain: Domain::Data, epoch: 2, counter: 0, ..meta() }
    }

    fn object(header: Header, public: &[u8]) -> Vec<u8> {
        let mut out = header.encode(public).unwrap();
        out.extend_from_slice(&[1; 3 + TAG_LEN]);
        out
    }

    #[test]
    fn lengths_are_those_of_the_description() {
        assert_eq!(meta().encode(b"").unwrap().len(), FIXED_LEN);
        assert_eq!(embedded().encode(b"ab").unwrap().len(), FIXED_LEN + WRAP_LEN + 2);
        assert_eq!(CHUNK_AAD_LEN, 90);
    }

    #[test]
    fn objects_come_apart_as_they_were_put_together() {
        for header in [meta(), embedded()] {
            let bytes = object(header, b"hash");
            let sealed = Sealed::parse(&bytes).unwrap();
            assert_eq!(sealed.head.header, header);
            assert_eq!((sealed.head.public, sealed.ciphertext), (&b"hash"[..], &[1u8; 3][..]));
            assert_eq!(sealed.head.object_len(), Some(bytes.len() as u64));
            assert_eq!(Head::parse(&bytes[..sealed.head.bytes.len()]).unwrap(), sealed.head);
            for short in 0..bytes.len() {
                assert!(Sealed::parse(&bytes[..short]).is_err());
            }
            assert!(Sealed::parse(&[&bytes[..], b"x"].concat()).is_err());
        }
    }

    #[test]
    fn contradictions_are_refused_both_ways() {
        let bad = [
            Header { domain: Domain::Gc, ..meta() },
            Header { epoch: 1, ..meta() },
            Header { domain: Domain::Meta, ..embedded() },
            Header { epoch: 0, ..embedded() },
            Header { counter: 1, ..embedded() },
        ];
        for header in bad {
            assert!(header.encode(b"").is_err(), "{header:?}");
        }
        assert!(meta().encode(&[0; PUBLIC_LEN_MAX + 1]).is_err());
        let mut bytes = object(meta(), b"");
        bytes[7] = Domain::Gc as u8;
        assert!(Head::parse(&bytes).is_err());
    }

    #[test]
    fn names_cannot_run_into_heads() {
        let repo = RepoId([1; 16]);
        assert_ne!(object_aad(&repo, "ab", b"c").unwrap(), object_aad(&repo, "a", b"bc").unwrap());
        assert!(object_aad(&repo, &"k".repeat(OBJECT_KEY_LEN_MAX + 1), b"").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Head::parse(&bytes).is_ok(), Sealed::parse(&bytes).is_ok());
        }

        #[test]
        fn damaged_objects_never_panic(at in 0usize..150, to in any::<u8>(), cut in 0usize..160, emb in any::<bool>()) {
            let mut bytes = object(if emb { embedded() } else { meta() }, b"hash");
            if let Some(b) = bytes.get_mut(at) { *b = to; }
            bytes.truncate(cut);
            if let Ok(sealed) = Sealed::parse(&bytes) {
                prop_assert_eq!(sealed.head.header.encode(sealed.head.public).unwrap(), sealed.head.bytes);
            }
        }
    }
}
