//! Epochs: generations of the key pairs that data and gc objects are wrapped to.
//!
//! Rotation: [`Keyring::add_epoch`], publish [`Keyring::epoch_record`], give every role that opens data or refs
//! a new slot, re-wrap every wrapped key, and only then retire the old epoch's secrets by deleting the slots
//! that hold them. Writers' slots stay as they are: they hold no secret of an epoch and adopt the signed record.

use super::Keyring;
use crate::crypto::wrap;
use crate::crypto::{CryptoError, SecretBytes};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use pgkeep_formats::repo::envelope::{Domain, Head, KeySource, Wrap};
use pgkeep_formats::repo::keyrecord::{EpochRecord, WrapContext, WrapPurpose, WrapRecord, epoch_message};
use pgkeep_formats::repo::keyslot::Role;
use pgkeep_formats::repo::keyslot::secrets::EpochKeys;

/// The keys of one epoch, as far as the role has them.
pub(super) struct Epoch {
    data_public: [u8; 32],
    gc_public: [u8; 32],
    data_secret: Option<SecretBytes<32>>,
    gc_secret: Option<SecretBytes<32>>,
}

impl Epoch {
    pub(super) fn from_secrets(data: SecretBytes<32>, gc: SecretBytes<32>) -> Self {
        Self {
            data_public: wrap::public_of(&data),
            gc_public: wrap::public_of(&gc),
            data_secret: Some(data),
            gc_secret: Some(gc),
        }
    }

    pub(super) fn restrict(&self, role: Role) -> Self {
        let copy = |key: &Option<SecretBytes<32>>, wanted: bool| {
            key.as_ref().filter(|_| wanted).map(|key| SecretBytes::copy_from(key.expose()))
        };
        Self {
            data_public: self.data_public,
            gc_public: self.gc_public,
            data_secret: copy(&self.data_secret, matches!(role, Role::All | Role::Reader)),
            gc_secret: copy(&self.gc_secret, matches!(role, Role::All | Role::Gc)),
        }
    }

    pub(super) fn decode(keys: &EpochKeys<'_>) -> Option<Self> {
        let data_secret = keys.data_secret.map(SecretBytes::copy_from);
        let gc_secret = keys.gc_secret.map(SecretBytes::copy_from);
        let fits = |secret: &Option<_>, public: &[u8; 32]| {
            secret.as_ref().is_none_or(|secret| wrap::public_of(secret) == *public)
        };
        let consistent = fits(&data_secret, keys.data_public) && fits(&gc_secret, keys.gc_public);
        consistent.then_some(Self {
            data_public: *keys.data_public,
            gc_public: *keys.gc_public,
            data_secret,
            gc_secret,
        })
    }

    pub(super) fn encode(&self, epoch: u32) -> EpochKeys<'_> {
        EpochKeys {
            epoch,
            data_public: &self.data_public,
            gc_public: &self.gc_public,
            data_secret: self.data_secret.as_ref().map(SecretBytes::expose),
            gc_secret: self.gc_secret.as_ref().map(SecretBytes::expose),
        }
    }
}

impl Keyring {
    /// The epoch that new keys are wrapped to: the newest one known.
    ///
    /// # Errors
    /// [`CryptoError::NoEpoch`] if none is.
    pub fn current_epoch(&self) -> Result<u32, CryptoError> {
        self.epochs.keys().next_back().copied().ok_or(CryptoError::NoEpoch { epoch: 1 })
    }

    /// The epochs known, ascending.
    #[must_use]
    pub fn epochs(&self) -> Vec<u32> {
        self.epochs.keys().copied().collect()
    }

    /// Adds an epoch with fresh keys after the newest one, and returns its number.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] without the signing key, which only [`Role::All`] has.
    pub fn add_epoch(&mut self) -> Result<u32, CryptoError> {
        self.add_epoch_of(SecretBytes::random()?, SecretBytes::random()?)
    }

    pub(in crate::crypto) fn add_epoch_of(
        &mut self,
        data: SecretBytes<32>,
        gc: SecretBytes<32>,
    ) -> Result<u32, CryptoError> {
        self.need(&self.epoch_signer, "epoch signing key")?;
        let newest = self.epochs.keys().next_back().copied().unwrap_or(0);
        let epoch = newest.checked_add(1).ok_or(CryptoError::NoEpoch { epoch: newest })?;
        self.epochs.insert(epoch, Epoch::from_secrets(data, gc));
        Ok(epoch)
    }

    /// Forgets an epoch's secrets; its public keys stay, so that its number is not used again.
    pub fn retire_epoch(&mut self, epoch: u32) {
        if let Some(epoch) = self.epochs.get_mut(&epoch) {
            epoch.data_secret = None;
            epoch.gc_secret = None;
        }
    }

    /// The object `keys/epoch/<n>` that publishes an epoch; `created` in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`CryptoError::NoEpoch`]; [`CryptoError::RoleLacks`] without the signing key.
    pub fn epoch_record(&self, epoch: u32, created: i64) -> Result<Vec<u8>, CryptoError> {
        let keys = self.epoch(epoch)?;
        let signer = self.need(&self.epoch_signer, "epoch signing key")?;
        let pair = Ed25519KeyPair::from_seed_unchecked(signer.expose())
            .map_err(|_| CryptoError::Primitive { what: "Ed25519 key pair" })?;
        let (data_public, gc_public) = (keys.data_public, keys.gc_public);
        let mut bytes = EpochRecord { repo: self.repo, epoch, data_public, gc_public, created }.encode();
        let signature = pair.sign(&epoch_message(&bytes));
        bytes.extend_from_slice(signature.as_ref());
        Ok(bytes)
    }

    /// Learns an epoch from its published record and returns its number; one already known must agree.
    ///
    /// # Errors
    /// [`CryptoError::Malformed`]; [`CryptoError::Unauthentic`] if its signature is not this repository's;
    /// [`CryptoError::Misplaced`] if it is another repository's, not of the number its name gives, or not the one known.
    pub fn adopt_epoch(&mut self, object_key: &str, bytes: &[u8]) -> Result<u32, CryptoError> {
        let object = || format!("'{object_key}'");
        let (record, signed, signature) = EpochRecord::decode(bytes).map_err(CryptoError::malformed(object()))?;
        let verifier = self.need(&self.epoch_verifier, "epoch verification key")?;
        UnparsedPublicKey::new(&ED25519, verifier)
            .verify(&epoch_message(signed), signature)
            .map_err(|_| CryptoError::Unauthentic { object: object() })?;
        if record.repo != self.repo {
            return Err(CryptoError::Misplaced { object: object(), what: "repository" });
        }
        // Names pad the number with zeros.
        if object_key.rsplit('/').next().and_then(|n| n.parse().ok()) != Some(record.epoch) {
            return Err(CryptoError::Misplaced { object: object(), what: "epoch" });
        }
        let (data_public, gc_public) = (record.data_public, record.gc_public);
        let new = Epoch { data_public, gc_public, data_secret: None, gc_secret: None };
        let known = self.epochs.entry(record.epoch).or_insert(new);
        if (known.data_public, known.gc_public) != (data_public, gc_public) {
            return Err(CryptoError::Misplaced { object: object(), what: "public key" });
        }
        Ok(record.epoch)
    }

    /// The wrapped key of a session or object, wrapped again to the newest epoch, as a new `sk` object with the
    /// number of its epoch; none if it already is the newest epoch's.
    ///
    /// # Errors
    /// [`CryptoError::Malformed`]; [`CryptoError::Misplaced`] if it is another repository's; [`CryptoError::NoEpoch`];
    /// [`CryptoError::RoleLacks`] without the old epoch's secret; [`CryptoError::Unauthentic`] if it was altered.
    pub fn rewrap(&self, record: &[u8]) -> Result<Option<(u32, Vec<u8>)>, CryptoError> {
        let record = WrapRecord::decode(record).map_err(CryptoError::malformed("a wrapped key"))?;
        self.rewrap_record(&record)
    }

    /// As [`Self::rewrap`], for an object that carries its wrapped key in its head. The result goes to
    /// `sk/<the head's session>/<epoch>`.
    ///
    /// # Errors
    /// As [`Self::rewrap`]; [`CryptoError::Misplaced`] if the object has no wrapped key.
    pub fn rewrap_embedded(&self, head: &Head<'_>) -> Result<Option<(u32, Vec<u8>)>, CryptoError> {
        self.rewrap_record(&self.embedded_record(head)?)
    }

    fn rewrap_record(&self, record: &WrapRecord) -> Result<Option<(u32, Vec<u8>)>, CryptoError> {
        let epoch = self.current_epoch()?;
        if record.context.epoch == epoch {
            return Ok(None);
        }
        let key = self.unwrap_key(record)?;
        let new = self.wrap_key(WrapContext { epoch, ..record.context }, &key, &SecretBytes::random()?)?;
        Ok(Some((epoch, new.encode())))
    }

    /// The wrapped key in an object's head, as a record.
    pub(super) fn embedded_record(&self, head: &Head<'_>) -> Result<WrapRecord, CryptoError> {
        let header = &head.header;
        match header.source {
            KeySource::Embedded(wrap) => {
                let (repo, domain, purpose) = (self.repo, header.domain, WrapPurpose::Object);
                let context = WrapContext { repo, domain, purpose, session: header.session, epoch: header.epoch };
                Ok(WrapRecord { context, wrap })
            }
            KeySource::MetaSession => Err(CryptoError::Misplaced { object: "an object".into(), what: "key source" }),
        }
    }

    /// Wraps a key to the public key of `context`'s domain and epoch; `ephemeral` must not be used twice.
    pub(in crate::crypto) fn wrap_key(
        &self,
        context: WrapContext,
        key: &SecretBytes<32>,
        ephemeral: &SecretBytes<32>,
    ) -> Result<WrapRecord, CryptoError> {
        let epoch = self.epoch(context.epoch)?;
        let recipient = match context.domain {
            Domain::Data => &epoch.data_public,
            Domain::Gc => &epoch.gc_public,
            Domain::Meta => return Err(no_meta_pair()),
        };
        let wrap: Wrap = wrap::seal(&context, recipient, key, ephemeral)?;
        Ok(WrapRecord { context, wrap })
    }

    /// Unwraps a key.
    ///
    /// # Errors
    /// [`CryptoError::Misplaced`] if it is another repository's, [`CryptoError::NoEpoch`],
    /// [`CryptoError::RoleLacks`] without the secret, [`CryptoError::Unauthentic`] if it was altered.
    pub(in crate::crypto) fn unwrap_key(&self, record: &WrapRecord) -> Result<SecretBytes<32>, CryptoError> {
        let context = &record.context;
        let object = format!("the wrapped key of {} for epoch {}", context.session, context.epoch);
        if context.repo != self.repo {
            return Err(CryptoError::Misplaced { object, what: "repository" });
        }
        let epoch = self.epoch(context.epoch)?;
        let (secret, name) = match context.domain {
            Domain::Data => (&epoch.data_secret, "secret key of the data domain"),
            Domain::Gc => (&epoch.gc_secret, "secret key of the gc domain"),
            Domain::Meta => return Err(no_meta_pair()),
        };
        wrap::open(context, self.need(secret, name)?, &record.wrap, &object)
    }

    fn epoch(&self, epoch: u32) -> Result<&Epoch, CryptoError> {
        self.epochs.get(&epoch).ok_or(CryptoError::NoEpoch { epoch })
    }
}

fn no_meta_pair() -> CryptoError {
    CryptoError::Misplaced { object: "a wrapped key".into(), what: "domain" }
}
