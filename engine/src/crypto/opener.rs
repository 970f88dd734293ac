//! Opening chunks of one session.

use super::aead::AeadKey;
use super::{ChunkDomain, CryptoError, Keyring, Scope};
use pgkeep_formats::id::{RepoId, SessionId};
use pgkeep_formats::repo::envelope::{CHUNK_AAD_LEN, ChunkHead, Domain, TAG_LEN, chunk_aad};
use pgkeep_formats::repo::keyrecord::{WrapPurpose, WrapRecord};

/// Opens chunks of one session and one domain or scope; any number of threads may at once.
pub struct ChunkOpener {
    repo: RepoId,
    session: SessionId,
    domain: Domain,
    key: AeadKey,
}

impl Keyring {
    /// An opener for the data chunks of a session; `wrapped` is the content of `sk/<session>/<epoch>`.
    ///
    /// # Errors
    /// [`CryptoError::Malformed`]; [`CryptoError::Misplaced`] if it is not this session's; [`CryptoError::NoEpoch`];
    /// [`CryptoError::RoleLacks`] without the epoch's secret; [`CryptoError::Unauthentic`].
    pub fn data_opener(&self, session: &SessionId, wrapped: &[u8]) -> Result<ChunkOpener, CryptoError> {
        let object = format!("the wrapped key of {session}");
        let record = WrapRecord::decode(wrapped).map_err(CryptoError::malformed(object.as_str()))?;
        if record.context.session != *session {
            return Err(CryptoError::Misplaced { object, what: "session" });
        }
        if record.context.domain != Domain::Data || record.context.purpose != WrapPurpose::Session {
            return Err(CryptoError::Misplaced { object, what: "purpose" });
        }
        let key = AeadKey::new(&self.data_session_key(&self.unwrap_key(&record)?, session)?)?;
        Ok(ChunkOpener { repo: self.repo(), session: *session, domain: Domain::Data, key })
    }

    /// An opener for the chunks a session sealed in a scope.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the scope's key.
    pub fn meta_opener(&self, session: &SessionId, scope: &Scope<'_>) -> Result<ChunkOpener, CryptoError> {
        let key = AeadKey::new(&self.meta_session_key(scope, session)?)?;
        let domain = ChunkDomain::Meta(*scope).number();
        Ok(ChunkOpener { repo: self.repo(), session: *session, domain, key })
    }
}

impl ChunkOpener {
    /// The session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Opens in place and returns the encoded bytes, which lie inside `blob`.
    ///
    /// The caller checks the id once it has decoded them.
    ///
    /// # Errors
    /// [`CryptoError::Unauthentic`]; `blob` then holds nothing of use.
    pub fn open_chunk<'b>(&self, head: &ChunkHead, blob: &'b mut [u8]) -> Result<&'b mut [u8], CryptoError> {
        let failed = || unauthentic(head);
        let (counter, rest) = blob.split_first_chunk_mut::<8>().ok_or_else(failed)?;
        let (content, tag) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or_else(failed)?;
        let aad = self.aad(head, content.len())?;
        let opened = self.key.open_in_place(u64::from_le_bytes(*counter), &aad, content, tag);
        opened.map(|()| content).map_err(|_| failed())
    }

    /// Opens into `out`, which is cleared first; for bytes that are shared or mapped.
    ///
    /// # Errors
    /// [`CryptoError::Unauthentic`]; `out` is then empty.
    pub fn open_chunk_to(&self, head: &ChunkHead, blob: &[u8], out: &mut Vec<u8>) -> Result<(), CryptoError> {
        out.clear();
        let failed = || unauthentic(head);
        let (counter, rest) = blob.split_first_chunk::<8>().ok_or_else(failed)?;
        let (content, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or_else(failed)?;
        let aad = self.aad(head, content.len())?;
        out.resize(content.len(), 0);
        self.key.open_to(u64::from_le_bytes(*counter), &aad, content, tag, out).map_err(|_| {
            out.clear();
            failed()
        })
    }

    fn aad(&self, head: &ChunkHead, encoded_len: usize) -> Result<[u8; CHUNK_AAD_LEN], CryptoError> {
        let encoded_len = u32::try_from(encoded_len).map_err(|_| unauthentic(head))?;
        Ok(chunk_aad(&self.repo, &self.session, self.domain, head, encoded_len))
    }
}

fn unauthentic(head: &ChunkHead) -> CryptoError {
    CryptoError::Unauthentic { object: format!("chunk {}", head.id) }
}
