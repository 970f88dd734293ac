//! What a person or a configuration gives to open a slot, and how it becomes a KEK.

use super::secret::derive;
use super::{CryptoError, SecretBytes};
use crate::{Error, FileError};
use argon2::{Algorithm, Argon2, Params, Version};
use pgkeep_formats::id::RepoId;
use pgkeep_formats::repo::keyslot::{Argon2Cost, KEY_FILE_LEN_MIN, SALT_LEN};
use std::io::Read;
use std::path::Path;
use zeroize::Zeroizing;

/// Most bytes of a key file.
const KEY_FILE_LEN_MAX: u64 = 1 << 20;

/// A passphrase; wiped when dropped.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes the text as it is: no trimming, no normalisation.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The content of a key file; wiped when dropped.
pub struct KeyFile(Zeroizing<Vec<u8>>);

impl KeyFile {
    /// Takes the content.
    ///
    /// # Errors
    /// [`CryptoError::KeyFileSize`] if it has under 32 bytes or over 1 MiB.
    pub fn new(content: Vec<u8>) -> Result<Self, CryptoError> {
        let content = Zeroizing::new(content);
        if content.len() < KEY_FILE_LEN_MIN || content.len() as u64 > KEY_FILE_LEN_MAX {
            return Err(CryptoError::KeyFileSize { len: content.len() as u64 });
        }
        Ok(Self(content))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::File`], or as [`Self::new`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = std::fs::File::open(path).map_err(FileError::at("open", path))?;
        let len = file.metadata().map_err(FileError::at("stat", path))?.len();
        // Reserved once, so that no half-read copy is left behind by growing.
        let mut content = Vec::with_capacity(len.min(KEY_FILE_LEN_MAX) as usize + 64);
        file.take(KEY_FILE_LEN_MAX + 1).read_to_end(&mut content).map_err(FileError::at("read", path))?;
        Ok(Self::new(content)?)
    }
}

/// What opens a slot.
pub enum Unlock {
    /// Nothing: opens only slots that give no secrecy.
    None,
    /// Opens passphrase slots only.
    Passphrase(Passphrase),
    /// Opens key file slots only.
    KeyFile(KeyFile),
}

/// The KEK of open slots: known to anyone who can read the repository's id.
pub(super) fn open_kek(repo: &RepoId) -> SecretBytes<32> {
    derive("pgkeep v1 open repository", &[&repo.0])
}

/// The KEK of passphrase slots. Takes its time and memory.
pub(super) fn passphrase_kek(
    passphrase: &Passphrase,
    cost: Argon2Cost,
    salt: &[u8; SALT_LEN],
) -> Result<SecretBytes<32>, CryptoError> {
    let failed = |_| CryptoError::Primitive { what: "Argon2id" };
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(failed)?;
    let mut kek = SecretBytes::copy_from(&[0; 32]);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(passphrase.bytes(), salt, kek.expose_mut()).map_err(failed)?;
    Ok(kek)
}

/// The KEK of key file slots.
pub(super) fn key_file_kek(file: &KeyFile) -> SecretBytes<32> {
    derive("pgkeep v1 key file", &[&file.0])
}
