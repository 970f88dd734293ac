//! A local cache of KEKs, so that `archive-push`, which is a process for each segment, does not pay for Argon2
//! every time.
//!
//! The trade: a file here opens with one fast hash, so whoever reads it can guess the passphrase as fast as
//! BLAKE3 goes, where the slot itself makes every guess cost Argon2. Files are for their owner only. The same
//! user's configuration commonly holds the passphrase itself, and then nothing is lost; where it does not,
//! give no cache. A file that is damaged, foreign, or of another passphrase is not used; deleting any is safe.
//! Layout: FORMAT.md, "KEK cache".

use super::aead::AeadKey;
use super::secret::{derive, random};
use super::{CryptoError, Passphrase, SecretBytes};
use crate::{Error, FileError};
use pgkeep_formats::id::SlotId;
use rustix::fs::OFlags;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"PGKEKC1\0";
const SALT_LEN: usize = 16;
const FILE_LEN: usize = 8 + SALT_LEN + 32 + 16;

/// Where KEKs of passphrase slots may be kept between processes.
pub trait KekCache: Send + Sync {
    /// The KEK kept for a slot and this passphrase, if there is one of use.
    fn get(&self, slot: &SlotId, passphrase: &Passphrase) -> Option<SecretBytes<32>>;

    /// Keeps a KEK.
    ///
    /// # Errors
    /// Whatever prevents it; the caller goes on without.
    fn put(&self, slot: &SlotId, passphrase: &Passphrase, kek: &SecretBytes<32>) -> Result<(), Error>;
}

/// One file a slot in a directory of its own.
#[derive(Debug)]
pub struct FileKekCache {
    directory: PathBuf,
}

impl FileKekCache {
    /// A cache in `directory`, which is created for its owner only when first needed.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    fn path(&self, slot: &SlotId) -> PathBuf {
        self.directory.join(format!("{slot}.kek"))
    }
}

impl KekCache for FileKekCache {
    fn get(&self, slot: &SlotId, passphrase: &Passphrase) -> Option<SecretBytes<32>> {
        let bytes = read_private(&self.path(slot))?;
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (salt, rest) = rest.split_first_chunk::<SALT_LEN>()?;
        let (ciphertext, tag) = rest.split_first_chunk::<32>()?;
        if magic != MAGIC {
            return None;
        }
        let mut kek = SecretBytes::copy_from(ciphertext);
        cache_key(salt, slot, passphrase).ok()?.open_in_place(0, MAGIC, kek.expose_mut(), tag).ok()?;
        Some(kek)
    }

    fn put(&self, slot: &SlotId, passphrase: &Passphrase, kek: &SecretBytes<32>) -> Result<(), Error> {
        let salt = random()?;
        let mut sealed = SecretBytes::copy_from(kek.expose());
        // The salt is fresh, so the key is, so nonce 0 is.
        let tag = cache_key(&salt, slot, passphrase)?.seal(0, MAGIC, sealed.expose_mut())?;
        let bytes = [&MAGIC[..], &salt, sealed.expose(), &tag].concat();
        let directory = &self.directory;
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(FileError::at("create", directory))?;
        let temporary = directory.join(format!("{slot}.{:016x}.tmp", u64::from_le_bytes(random()?)));
        let written = write_private(&temporary, &bytes).and_then(|()| {
            let path = self.path(slot);
            std::fs::rename(&temporary, &path).map_err(FileError::at("rename", path))
        });
        if written.is_err() {
            // Best effort: the first error is the one to report, and a leftover is harmless.
            let _ = std::fs::remove_file(&temporary);
        }
        Ok(written?)
    }
}

fn cache_key(salt: &[u8; SALT_LEN], slot: &SlotId, passphrase: &Passphrase) -> Result<AeadKey, CryptoError> {
    AeadKey::new(&derive("pgkeep v1 kek cache", &[salt, &slot.0, passphrase.bytes()]))
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(FileError::at("open", path))?;
    file.write_all(bytes).map_err(FileError::at("write", path))
}

/// The content, if the file is regular, ours, for us only, and of the right size.
fn read_private(path: &Path) -> Option<[u8; FILE_LEN]> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let mut file = OpenOptions::new().read(true).custom_flags(i32::try_from(flags).ok()?).open(path).ok()?;
    let facts = file.metadata().ok()?;
    let ours = facts.uid() == rustix::process::geteuid().as_raw();
    if !facts.is_file() || !ours || facts.mode() & 0o077 != 0 || facts.len() != FILE_LEN as u64 {
        return None;
    }
    let mut bytes = [0; FILE_LEN];
    file.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.to_owned())
    }

    #[test]
    fn keeps_a_kek_for_one_slot_and_passphrase() {
        let home = tempfile::tempdir().unwrap();
        let cache = FileKekCache::new(home.path().join("a/b"));
        let (slot, other) = (SlotId([1; 16]), SlotId([2; 16]));
        let kek = SecretBytes::random().unwrap();
        assert!(cache.get(&slot, &passphrase("right")).is_none());
        cache.put(&slot, &passphrase("right"), &kek).unwrap();
        assert_eq!(cache.get(&slot, &passphrase("right")).unwrap().expose(), kek.expose());
        assert!(cache.get(&slot, &passphrase("wrong")).is_none());
        std::fs::copy(cache.path(&slot), cache.path(&other)).unwrap();
        assert!(cache.get(&other, &passphrase("right")).is_none());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&cache.directory), mode(&cache.path(&slot))), (0o700, 0o600));
        // Replaced, not refused; nothing temporary stays.
        cache.put(&slot, &passphrase("new"), &kek).unwrap();
        assert!(cache.get(&slot, &passphrase("new")).is_some());
        assert_eq!(std::fs::read_dir(&cache.directory).unwrap().count(), 2);
    }

    #[test]
    fn damaged_and_open_files_are_not_used() {
        let home = tempfile::tempdir().unwrap();
        let cache = FileKekCache::new(home.path());
        let slot = SlotId([1; 16]);
        cache.put(&slot, &passphrase("p"), &SecretBytes::random().unwrap()).unwrap();
        let path = cache.path(&slot);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(cache.get(&slot, &passphrase("p")).is_none(), "byte {at}");
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(cache.get(&slot, &passphrase("p")).is_none());
        std::fs::write(&path, &good).unwrap();
        assert!(cache.get(&slot, &passphrase("p")).is_some());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(cache.get(&slot, &passphrase("p")).is_none());
    }
}
