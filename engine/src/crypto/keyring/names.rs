//! Names and keyed hashes: everything derived from the id key and the cut secret.

use super::{Keyring, Scope};
use crate::crypto::secret::{derive, equal};
use crate::crypto::{CryptoError, SecretBytes};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::config::RepositoryConfig;

/// Keys derived from the id key once, since they are used for every chunk.
pub(super) struct NameKeys {
    chunk: SecretBytes<32>,
    scoped_chunk: SecretBytes<32>,
    content: SecretBytes<32>,
}

impl NameKeys {
    pub(super) fn new(id_key: &SecretBytes<32>) -> Self {
        let sub = |context| derive(context, &[id_key.expose()]);
        Self {
            chunk: sub("pgkeep v1 chunk id"),
            scoped_chunk: sub("pgkeep v1 scoped chunk id"),
            content: sub("pgkeep v1 content hash"),
        }
    }
}

/// A content hash in the making.
pub struct ContentHasher(blake3::Hasher);

impl ContentHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// The hash of all bytes taken so far.
    #[must_use]
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// Hashes pages: the first 8 bytes of a keyed BLAKE3. FORMAT.md, "Keys".
pub struct PageHasher(SecretBytes<32>);

impl PageHasher {
    /// The hash of one page.
    #[must_use]
    pub fn hash(&self, page: &[u8]) -> u64 {
        let hash = blake3::keyed_hash(self.0.expose(), page);
        hash.as_bytes().first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
    }
}

impl Keyring {
    /// The name of a chunk of the data domain. Safe to call for each chunk: costs only the hash.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the id key.
    pub fn chunk_id(&self, kind: u8, plaintext: &[u8]) -> Result<ChunkId, CryptoError> {
        let mut hasher = blake3::Hasher::new_keyed(self.names()?.chunk.expose());
        // The kind goes behind: in front it would shift the content off BLAKE3's 1 KiB grid, at up to half the speed.
        hasher.update(plaintext).update(&[kind]);
        Ok(ChunkId(*hasher.finalize().as_bytes()))
    }

    /// The name of a chunk of the meta domain. The scope is part of it: a chunk sealed for one stanza must not be
    /// found for another, whose readers could not open it.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the id key.
    pub fn chunk_id_scoped(&self, scope: &Scope<'_>, kind: u8, plaintext: &[u8]) -> Result<ChunkId, CryptoError> {
        let text = scope.text();
        let mut hasher = blake3::Hasher::new_keyed(self.names()?.scoped_chunk.expose());
        hasher.update(plaintext).update(text.as_bytes()).update(&(text.len() as u64).to_le_bytes()).update(&[kind]);
        Ok(ChunkId(*hasher.finalize().as_bytes()))
    }

    /// The keyed hash of a whole content, such as a WAL segment: equal for equal contents in this repository,
    /// and no help to someone who guesses the content.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the id key.
    pub fn content_hash(&self, bytes: &[u8]) -> Result<[u8; 32], CryptoError> {
        Ok(self.content_hasher()?.update(bytes).finish())
    }

    /// [`Self::content_hash`] for content that comes in pieces.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the id key.
    pub fn content_hasher(&self) -> Result<ContentHasher, CryptoError> {
        Ok(ContentHasher(blake3::Hasher::new_keyed(self.names()?.content.expose())))
    }

    /// Hashes pages as packs' hash sections do.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the id key.
    pub fn page_hasher(&self) -> Result<PageHasher, CryptoError> {
        Ok(PageHasher(self.subkey("page hash")?))
    }

    /// Hashes sub-blocks of pages, for what a host keeps of old pages.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the id key.
    pub fn sub_block_hasher(&self) -> Result<PageHasher, CryptoError> {
        Ok(PageHasher(self.subkey("sub-block hash")?))
    }

    /// A key for a purpose of the caller's: every keyring with the id key derives the same.
    /// `purpose` is a constant of the program, never input.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the id key.
    pub fn subkey(&self, purpose: &str) -> Result<SecretBytes<32>, CryptoError> {
        Ok(derive("pgkeep v1 subkey", &[self.id_key()?.expose(), purpose.as_bytes()]))
    }

    /// A key for a purpose of the cut, such as fingerprints of pages: only roles that cut derive it.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the cut secret.
    pub fn cut_key(&self, purpose: &str) -> Result<SecretBytes<32>, CryptoError> {
        let secret = self.need(&self.cut_secret, "cut secret")?;
        Ok(derive("pgkeep v1 cut key", &[secret.expose(), purpose.as_bytes()]))
    }

    /// The repository's secret gear table: cut points tell nothing to those who do not have it.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the cut secret.
    pub fn gear_table(&self) -> Result<Box<[u64; 256]>, CryptoError> {
        let secret = self.need(&self.cut_secret, "cut secret")?;
        let mut stream = blake3::Hasher::new_derive_key("pgkeep v1 gear table").update(secret.expose()).finalize_xof();
        let mut table = Box::new([0; 256]);
        for entry in table.iter_mut() {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            *entry = u64::from_le_bytes(bytes);
        }
        Ok(table)
    }

    /// A keyed hash that any role with secrets can make and check. `purpose` is a constant of the program.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] for a scrubber.
    pub fn mac(&self, purpose: &str, bytes: &[u8]) -> Result<[u8; 32], CryptoError> {
        let key = derive("pgkeep v1 mac", &[self.authenticity()?.expose(), purpose.as_bytes()]);
        Ok(*blake3::keyed_hash(key.expose(), bytes).as_bytes())
    }

    /// Whether `found` is [`Self::mac`] of these, compared in constant time.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] for a scrubber.
    pub fn mac_matches(&self, purpose: &str, bytes: &[u8], found: &[u8; 32]) -> Result<bool, CryptoError> {
        Ok(equal(&self.mac(purpose, bytes)?, found))
    }

    /// The whole `format` object.
    ///
    /// # Errors
    /// [`CryptoError::Malformed`] if a field is out of its bounds, [`CryptoError::Misplaced`] if the record is
    /// another repository's.
    pub fn seal_config(&self, config: &RepositoryConfig) -> Result<Vec<u8>, CryptoError> {
        if config.repo != self.repo {
            return Err(CryptoError::Misplaced { object: "'format'".into(), what: "repository" });
        }
        let mut bytes = config.encode().map_err(CryptoError::malformed("'format'"))?;
        let mac = self.config_mac(&bytes)?;
        bytes.extend_from_slice(&mac);
        Ok(bytes)
    }

    /// Reads and checks the `format` object. Features are the caller's to check.
    ///
    /// # Errors
    /// [`CryptoError::Malformed`]; [`CryptoError::Unauthentic`] if it was altered; [`CryptoError::Misplaced`] if it
    /// is another repository's.
    pub fn open_config(&self, bytes: &[u8]) -> Result<RepositoryConfig, CryptoError> {
        let (config, found) = RepositoryConfig::decode(bytes).map_err(CryptoError::malformed("'format'"))?;
        if config.repo != self.repo {
            return Err(CryptoError::Misplaced { object: "'format'".into(), what: "repository" });
        }
        if !equal(&self.config_mac(found.covered)?, &found.mac) {
            return Err(CryptoError::Unauthentic { object: "'format'".into() });
        }
        Ok(config)
    }

    fn config_mac(&self, covered: &[u8]) -> Result<[u8; 32], CryptoError> {
        let key = derive("pgkeep v1 format mac", &[self.authenticity()?.expose()]);
        Ok(*blake3::keyed_hash(key.expose(), covered).as_bytes())
    }

    fn names(&self) -> Result<&NameKeys, CryptoError> {
        self.need(&self.names, "id key")
    }
}
