//! Sealing what one writer's run makes.
//!
//! Nonces: a sealer draws its session id, 128 random bits, and cannot be made for a given one; every key it uses
//! is derived from that id; all of them share one counter that only counts up. So a (key, nonce) pair could
//! repeat only if two sessions drew one id. In particular a process that takes over an interrupted run must
//! seal under a sealer, and hence a session id, of its own: the old counter died with its process.

use super::aead::AeadKey;
use super::secret::random;
use super::{CryptoError, Keyring, Scope, SecretBytes};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::envelope::{
    CHUNK_OVERHEAD, ChunkHead, Cipher, Domain, Header, KeySource, ObjectKind, chunk_aad,
};
use pgkeep_formats::repo::keyrecord::{WrapContext, WrapPurpose};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Whose keys seal a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChunkDomain<'a> {
    /// The session's data key.
    Data,
    /// The session's key of this scope.
    Meta(Scope<'a>),
}

impl ChunkDomain<'_> {
    pub(super) fn number(&self) -> Domain {
        match self {
            Self::Data => Domain::Data,
            Self::Meta(_) => Domain::Meta,
        }
    }
}

/// Seals chunks and objects of one session; any number of threads may at once.
pub struct SessionSealer {
    keyring: Arc<Keyring>,
    session: SessionId,
    counter: AtomicU64,
    data_secret: SecretBytes<32>,
    data: AeadKey,
    meta: RwLock<BTreeMap<Cow<'static, str>, Arc<AeadKey>>>,
}

impl SessionSealer {
    /// Starts a session with a fresh id and a fresh data key.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] for a scrubber; [`CryptoError::Primitive`].
    pub fn new(keyring: Arc<Keyring>) -> Result<Self, CryptoError> {
        Self::with(keyring, SessionId(random()?), SecretBytes::random()?)
    }

    /// As [`Self::new`] with a given id and key, which must not be used twice.
    pub(super) fn with(
        keyring: Arc<Keyring>,
        session: SessionId,
        data_secret: SecretBytes<32>,
    ) -> Result<Self, CryptoError> {
        let data = AeadKey::new(&keyring.data_session_key(&data_secret, &session)?)?;
        let (counter, meta) = (AtomicU64::new(0), RwLock::default());
        Ok(Self { keyring, session, counter, data_secret, data, meta })
    }

    /// The session's id.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The keyring it seals with.
    #[must_use]
    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// The object `sk/<session>/<epoch>`: the session's data key, wrapped to an epoch. Each call gives other bytes.
    ///
    /// # Errors
    /// [`CryptoError::NoEpoch`].
    pub fn wrapped_data_key(&self, epoch: u32) -> Result<Vec<u8>, CryptoError> {
        self.wrapped_data_key_with(epoch, &SecretBytes::random()?)
    }

    pub(super) fn wrapped_data_key_with(
        &self,
        epoch: u32,
        ephemeral: &SecretBytes<32>,
    ) -> Result<Vec<u8>, CryptoError> {
        let (repo, domain, purpose) = (self.keyring.repo(), Domain::Data, WrapPurpose::Session);
        let context = WrapContext { repo, domain, purpose, session: self.session, epoch };
        Ok(self.keyring.wrap_key(context, &self.data_secret, ephemeral)?.encode())
    }

    /// Seals an object of the meta domain. Objects of the other domains: [`Keyring::seal_embedded`].
    ///
    /// `object_key` is the object's full name in the store. `public` is readable without a key.
    ///
    /// # Errors
    /// [`CryptoError::Malformed`] if name or public part are too long; [`CryptoError::RoleLacks`] without the scope's key.
    pub fn seal_object(
        &self,
        kind: ObjectKind,
        scope: &Scope<'_>,
        object_key: &str,
        public: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let header = Header {
            kind,
            domain: Domain::Meta,
            cipher: Cipher::ChaCha20Poly1305,
            source: KeySource::MetaSession,
            epoch: 0,
            session: self.session,
            counter: self.next_counter()?,
            plain_len: plaintext.len() as u64,
        };
        self.keyring.seal_with(&*self.meta_key(scope)?, &header, object_key, public, plaintext)
    }

    /// Appends a sealed chunk to `out`: [`CHUNK_OVERHEAD`] bytes more than `encoded`. Copies once.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the scope's key; [`CryptoError::Primitive`] if `encoded` has over 4 GiB.
    /// `out` is then as it was.
    pub fn seal_chunk(
        &self,
        domain: &ChunkDomain<'_>,
        head: &ChunkHead,
        encoded: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), CryptoError> {
        let start = out.len();
        out.reserve(encoded.len() + CHUNK_OVERHEAD);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(encoded);
        let sealed = self.seal_chunk_in_place(domain, head, out, start);
        if sealed.is_err() {
            out.truncate(start);
        }
        sealed
    }

    /// Seals the chunk whose encoded bytes end `buffer`: 8 bytes for the counter at `start`, the encoded bytes
    /// behind them. Appends the tag. Copies nothing, if `buffer` has room for 16 bytes more.
    ///
    /// # Errors
    /// As [`Self::seal_chunk`]; [`CryptoError::Primitive`] if `buffer` ends before `start + 8`. What is behind `start` is
    /// then of no use.
    pub fn seal_chunk_in_place(
        &self,
        domain: &ChunkDomain<'_>,
        head: &ChunkHead,
        buffer: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), CryptoError> {
        let no_room = CryptoError::Primitive { what: "a chunk's buffer has no room for its counter" };
        let blob = buffer.get_mut(start..).and_then(|blob| blob.split_first_chunk_mut::<8>());
        let Some((counter_bytes, content)) = blob else { return Err(no_room) };
        let encoded_len = u32::try_from(content.len())
            .map_err(|_| CryptoError::Primitive { what: "a chunk's encoded bytes are more than 4 GiB" })?;
        let aad = chunk_aad(&self.keyring.repo(), &self.session, domain.number(), head, encoded_len);
        let counter = self.next_counter()?;
        *counter_bytes = counter.to_le_bytes();
        let tag = match domain {
            ChunkDomain::Data => self.data.seal(counter, &aad, content)?,
            ChunkDomain::Meta(scope) => self.meta_key(scope)?.seal(counter, &aad, content)?,
        };
        buffer.extend_from_slice(&tag);
        Ok(())
    }

    fn next_counter(&self) -> Result<u64, CryptoError> {
        // Relaxed: only that no value is given out twice matters, and an atomic addition alone sees to that.
        match self.counter.fetch_add(1, Ordering::Relaxed) {
            // Far below a wrap even with every thread of the process past this test.
            counter if counter < 1 << 63 => Ok(counter),
            _ => Err(CryptoError::Primitive { what: "the session's nonces are used up" }),
        }
    }

    fn meta_key(&self, scope: &Scope<'_>) -> Result<Arc<AeadKey>, CryptoError> {
        let text = scope.text();
        // A panic elsewhere cannot leave the map half changed, so a poisoned lock is no danger.
        if let Some(key) = self.meta.read().unwrap_or_else(PoisonError::into_inner).get(&text) {
            return Ok(Arc::clone(key));
        }
        let key = Arc::new(AeadKey::new(&self.keyring.meta_session_key(scope, &self.session)?)?);
        self.meta.write().unwrap_or_else(PoisonError::into_inner).insert(text, Arc::clone(&key));
        Ok(key)
    }
}
