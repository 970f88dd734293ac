//! Sealing a role's secrets into key slots, and opening them.
//!
//! What is given decides which kinds of slot are tried: a passphrase never opens a slot that needs none, so a
//! store cannot make its user accept secrets that the store knows.

use super::epochs::Epoch;
use super::names::NameKeys;
use super::{Keyring, Scope};
use crate::crypto::aead::AeadKey;
use crate::crypto::secret::{derive, random};
use crate::crypto::unlock::{key_file_kek, open_kek, passphrase_kek};
use crate::crypto::{CryptoError, KekCache, Passphrase, SecretBytes, Unlock};
use pgkeep_formats::id::{RepoId, SlotId};
use pgkeep_formats::repo::envelope::Cipher;
use pgkeep_formats::repo::keyslot::secrets::Secrets;
use pgkeep_formats::repo::keyslot::{Argon2Cost, NONCE_LEN, Role, SALT_LEN, Slot, SlotHeader, SlotKind, slot_aad};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// The random parts of a slot.
pub(in crate::crypto) struct SlotRandom {
    pub(in crate::crypto) slot: SlotId,
    pub(in crate::crypto) nonce: [u8; NONCE_LEN],
    pub(in crate::crypto) salt: [u8; SALT_LEN],
}

impl Keyring {
    /// Seals this keyring's secrets into a new slot, for its role; the object's name ends in the id returned.
    ///
    /// `cost` is for passphrases. `created` is in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`CryptoError::Malformed`] if the label is over 255 bytes or a cost is out of bounds.
    pub fn seal_slot(
        &self,
        unlock: &Unlock,
        cost: Argon2Cost,
        label: &str,
        created: i64,
    ) -> Result<(SlotId, Vec<u8>), CryptoError> {
        let random = SlotRandom { slot: SlotId(random()?), nonce: random()?, salt: random()? };
        Ok((random.slot, self.seal_slot_with(unlock, cost, label, created, random)?))
    }

    /// As [`Self::seal_slot`] with given random parts, which must not be used twice.
    pub(in crate::crypto) fn seal_slot_with(
        &self,
        unlock: &Unlock,
        cost: Argon2Cost,
        label: &str,
        created: i64,
        random: SlotRandom,
    ) -> Result<Vec<u8>, CryptoError> {
        let SlotRandom { slot, nonce, salt } = random;
        let kind = match unlock {
            Unlock::None => SlotKind::Open,
            Unlock::Passphrase(_) => SlotKind::Passphrase { cost, salt },
            Unlock::KeyFile(_) => SlotKind::KeyFile,
        };
        let cipher = Cipher::ChaCha20Poly1305;
        let header = SlotHeader { slot, role: self.role, created, label: label.to_owned(), kind, cipher, nonce };
        let mut secrets = self.encode_secrets()?;
        let mut out = header.encode(secrets.len()).map_err(CryptoError::malformed("a key slot"))?;
        let kek = match unlock {
            Unlock::None => open_kek(&self.repo),
            Unlock::Passphrase(passphrase) => passphrase_kek(passphrase, cost, &salt)?,
            Unlock::KeyFile(file) => key_file_kek(file),
        };
        let aad = slot_aad(&self.repo, &out);
        let tag = slot_key(&kek, &header)?.seal(0, &aad, &mut secrets)?;
        out.extend_from_slice(&secrets);
        out.extend_from_slice(&tag);
        Ok(out)
    }

    /// Opens the best slot that `unlock` opens: the one with the most rights, and of these the newest.
    ///
    /// `slots` are the names and contents of all slot objects. A slot that cannot be read is passed over with
    /// a warning. A passphrase costs one run of Argon2 a slot tried, unless `cache` has its result.
    ///
    /// # Errors
    /// [`CryptoError::NoSlots`]; [`CryptoError::NoSlotOpens`]; [`CryptoError::SlotNotSupported`] if there are slots, all of a kind this
    /// program cannot open.
    pub fn open_slots(
        repo: RepoId,
        slots: &[(String, Vec<u8>)],
        unlock: &Unlock,
        cache: Option<&dyn KekCache>,
    ) -> Result<Self, CryptoError> {
        let mut parsed = Vec::new();
        for (name, bytes) in slots {
            match Slot::parse(bytes) {
                Ok(slot) if name.rsplit('/').next() == Some(slot.header.slot.to_string().as_str()) => parsed.push(slot),
                Ok(slot) => {
                    tracing::warn!("key slot '{name}' is passed over: it is a copy of slot {}", slot.header.slot)
                }
                Err(e) => tracing::warn!("key slot '{name}' is passed over: {e}"),
            }
        }
        parsed.sort_by_key(|slot| (slot.header.role as u8, std::cmp::Reverse(slot.header.created)));
        for slot in &parsed {
            if let Some(keyring) = open_slot(repo, slot, unlock, cache)? {
                return Ok(keyring);
            }
        }
        let store = format!("repository {repo}");
        let not_supported = |slot: &&Slot<'_>| matches!(slot.header.kind, SlotKind::Other { .. });
        match parsed.iter().find(not_supported) {
            Some(slot) if parsed.iter().all(|slot| not_supported(&slot)) => {
                Err(CryptoError::SlotNotSupported { store, kind: slot.header.kind.name() })
            }
            _ if slots.is_empty() => Err(CryptoError::NoSlots { store }),
            _ => Err(CryptoError::NoSlotOpens { store }),
        }
    }

    fn encode_secrets(&self) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let expose = |key| Option::as_ref(key).map(SecretBytes::expose);
        let secrets = Secrets {
            authenticity: expose(&self.authenticity),
            id_key: expose(&self.id_key),
            cut_secret: expose(&self.cut_secret),
            meta_master: expose(&self.meta_master),
            epoch_signer: expose(&self.epoch_signer),
            epoch_verifier: self.epoch_verifier.as_ref(),
            scopes: self.scopes.iter().map(|(name, key)| (name.as_str(), key.expose())).collect(),
            epochs: self.epochs.iter().map(|(n, epoch)| epoch.encode(*n)).collect(),
        };
        // Reserved whole, so that growing leaves no copy behind.
        let mut out = Zeroizing::new(Vec::with_capacity(secrets.encoded_len()));
        secrets.encode(&mut out).map_err(CryptoError::malformed("a key slot"))?;
        Ok(out)
    }

    fn decode_secrets(repo: RepoId, role: Role, bytes: &[u8], object: &str) -> Result<Self, CryptoError> {
        let secrets = Secrets::decode(bytes).map_err(CryptoError::malformed(object))?;
        let copy = |key: Option<&[u8; 32]>| key.map(SecretBytes::copy_from);
        let mut epochs = BTreeMap::new();
        for keys in &secrets.epochs {
            let epoch = Epoch::decode(keys)
                .ok_or_else(|| CryptoError::Misplaced { object: object.to_owned(), what: "public key of an epoch" })?;
            epochs.insert(keys.epoch, epoch);
        }
        let id_key = copy(secrets.id_key);
        Ok(Self {
            repo,
            role,
            authenticity: copy(secrets.authenticity),
            names: id_key.as_ref().map(NameKeys::new),
            id_key,
            cut_secret: copy(secrets.cut_secret),
            meta_master: copy(secrets.meta_master),
            epoch_signer: copy(secrets.epoch_signer),
            epoch_verifier: secrets.epoch_verifier.copied(),
            scopes: secrets.scopes.iter().map(|(n, k)| ((*n).to_owned(), SecretBytes::copy_from(k))).collect(),
            epochs,
        })
    }

    /// Whether this keyring has the key of a scope.
    #[must_use]
    pub fn has_scope(&self, scope: &Scope<'_>) -> bool {
        self.meta_master.is_some() || self.scopes.contains_key(scope.text().as_ref())
    }
}

/// The keyring in a slot; none if the slot is of another kind than what is given, or does not open with it.
fn open_slot(
    repo: RepoId,
    slot: &Slot<'_>,
    unlock: &Unlock,
    cache: Option<&dyn KekCache>,
) -> Result<Option<Keyring>, CryptoError> {
    let id = &slot.header.slot;
    let secrets = match (unlock, &slot.header.kind) {
        (Unlock::None, SlotKind::Open) => try_kek(repo, slot, &open_kek(&repo))?,
        (Unlock::KeyFile(file), SlotKind::KeyFile) => try_kek(repo, slot, &key_file_kek(file))?,
        (Unlock::Passphrase(passphrase), SlotKind::Passphrase { cost, salt }) => {
            let cached = cache.and_then(|cache| cache.get(id, passphrase));
            let by_cache = cached.map(|kek| try_kek(repo, slot, &kek)).transpose()?.flatten();
            match by_cache {
                Some(secrets) => Some(secrets),
                None => {
                    let kek = passphrase_kek(passphrase, *cost, salt)?;
                    let secrets = try_kek(repo, slot, &kek)?;
                    if secrets.is_some() {
                        keep(cache, id, passphrase, &kek);
                    }
                    secrets
                }
            }
        }
        _ => None,
    };
    let object = format!("key slot {id}");
    secrets.map(|secrets| Keyring::decode_secrets(repo, slot.header.role, &secrets, &object)).transpose()
}

fn keep(cache: Option<&dyn KekCache>, slot: &SlotId, passphrase: &Passphrase, kek: &SecretBytes<32>) {
    if let Some(Err(e)) = cache.map(|cache| cache.put(slot, passphrase, kek)) {
        // Costs the next process a tenth of a second, and concerns nobody else.
        tracing::debug!("the key of slot {slot} cannot be cached: {e}");
    }
}

fn try_kek(repo: RepoId, slot: &Slot<'_>, kek: &SecretBytes<32>) -> Result<Option<Zeroizing<Vec<u8>>>, CryptoError> {
    let mut secrets = Zeroizing::new(slot.ciphertext.to_vec());
    let key = slot_key(kek, &slot.header)?;
    let opened = key.open_in_place(0, &slot_aad(&repo, slot.head), &mut secrets, slot.tag);
    Ok(opened.is_ok().then_some(secrets))
}

/// The key of a slot's secrets. The slot's nonce and id make it fresh for each slot, hence nonce 0.
fn slot_key(kek: &SecretBytes<32>, header: &SlotHeader) -> Result<AeadKey, CryptoError> {
    AeadKey::new(&derive("pgkeep v1 slot", &[kek.expose(), &header.nonce, &header.slot.0]))
}
