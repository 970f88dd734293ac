//! Objects: sealing those with a key of their own, and opening all.

use super::{Keyring, Scope};
use crate::crypto::aead::AeadKey;
use crate::crypto::secret::{derive, random};
use crate::crypto::{CryptoError, SecretBytes};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::envelope::{Cipher, Domain, Header, KeySource, ObjectKind, Sealed, object_aad};
use pgkeep_formats::repo::keyrecord::{WrapContext, WrapPurpose, WrapRecord};

/// An object that has been authenticated and opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its header.
    pub header: Header,
    /// Its public part.
    pub public: Vec<u8>,
    /// Its content.
    pub plaintext: Vec<u8>,
}

/// The random parts of an object with an embedded wrap.
pub(in crate::crypto) struct EmbeddedRandom {
    pub(in crate::crypto) id: SessionId,
    pub(in crate::crypto) key: SecretBytes<32>,
    pub(in crate::crypto) ephemeral: SecretBytes<32>,
}

impl Keyring {
    /// Seals an object of the data or gc domain under a key of its own, wrapped in its head to the newest epoch.
    /// Costs two X25519 operations; needs no session.
    ///
    /// `object_key` is the object's full name in the store. `public` is readable without a key.
    ///
    /// # Errors
    /// [`CryptoError::Malformed`] if name or public part are too long, or the domain is meta;
    /// [`CryptoError::NoEpoch`]; [`CryptoError::RoleLacks`] for a scrubber.
    pub fn seal_embedded(
        &self,
        kind: ObjectKind,
        domain: Domain,
        object_key: &str,
        public: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let (key, ephemeral) = (SecretBytes::random()?, SecretBytes::random()?);
        let random = EmbeddedRandom { id: SessionId(random()?), key, ephemeral };
        self.seal_embedded_with(kind, domain, object_key, public, plaintext, &random)
    }

    /// As [`Self::seal_embedded`] with given random parts, which must not be used twice.
    pub(in crate::crypto) fn seal_embedded_with(
        &self,
        kind: ObjectKind,
        domain: Domain,
        object_key: &str,
        public: &[u8],
        plaintext: &[u8],
        random: &EmbeddedRandom,
    ) -> Result<Vec<u8>, CryptoError> {
        let (epoch, session) = (self.current_epoch()?, random.id);
        let context = WrapContext { repo: self.repo, domain, purpose: WrapPurpose::Object, session, epoch };
        let record = self.wrap_key(context, &random.key, &random.ephemeral)?;
        let header = Header {
            kind,
            domain,
            cipher: Cipher::ChaCha20Poly1305,
            source: KeySource::Embedded(record.wrap),
            epoch,
            session,
            counter: 0,
            plain_len: plaintext.len() as u64,
        };
        let key = self.embedded_key(&random.key, &session)?;
        self.seal_with(&key, &header, object_key, public, plaintext)
    }

    /// Opens an object of the meta domain.
    ///
    /// `kinds` are those that may stand at this name; the caller tells them apart by the header returned.
    ///
    /// # Errors
    /// [`CryptoError::Malformed`], [`CryptoError::Misplaced`], [`CryptoError::Unauthentic`], naming the object;
    /// [`CryptoError::RoleLacks`] without the scope's key.
    pub fn open_object(
        &self,
        object_key: &str,
        bytes: &[u8],
        kinds: &[ObjectKind],
        scope: &Scope<'_>,
    ) -> Result<Opened, CryptoError> {
        let sealed = self.expect(object_key, bytes, kinds, Domain::Meta)?;
        let key = AeadKey::new(&self.meta_session_key(scope, &sealed.head.header.session)?)?;
        self.open_with(&key, &sealed, object_key)
    }

    /// Opens an object of the data or gc domain, with the key in its head, or with `rewrapped`: the content of
    /// `sk/<the head's session>/<epoch>`, once the epoch of the head has been retired.
    ///
    /// # Errors
    /// As [`Self::open_object`]; [`CryptoError::NoEpoch`]; [`CryptoError::RoleLacks`] without the epoch's secret.
    pub fn open_embedded(
        &self,
        object_key: &str,
        bytes: &[u8],
        kinds: &[ObjectKind],
        domain: Domain,
        rewrapped: Option<&[u8]>,
    ) -> Result<Opened, CryptoError> {
        let sealed = self.expect(object_key, bytes, kinds, domain)?;
        let embedded = self.embedded_record(&sealed.head)?;
        let record = match rewrapped {
            None => embedded,
            Some(bytes) => {
                let object = format!("the new wrapped key of '{object_key}'");
                let record = WrapRecord::decode(bytes).map_err(CryptoError::malformed(object.as_str()))?;
                let expected = WrapContext { epoch: record.context.epoch, ..embedded.context };
                if record.context != expected {
                    return Err(CryptoError::Misplaced { object, what: "session, domain or purpose" });
                }
                record
            }
        };
        let key = self.embedded_key(&self.unwrap_key(&record)?, &embedded.context.session)?;
        self.open_with(&key, &sealed, object_key)
    }

    /// Seals a content under a key and a header whose counter the caller has made sure is fresh.
    pub(in crate::crypto) fn seal_with(
        &self,
        key: &AeadKey,
        header: &Header,
        object_key: &str,
        public: &[u8],
        plaintext: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let malformed = || CryptoError::malformed(format!("'{object_key}'"));
        let mut out = header.encode(public).map_err(malformed())?;
        let aad = object_aad(&self.repo, object_key, &out).map_err(malformed())?;
        let head = out.len();
        out.extend_from_slice(plaintext);
        let content = out.get_mut(head..).unwrap_or_default();
        let tag = key.seal(header.counter, &aad, content)?;
        out.extend_from_slice(&tag);
        Ok(out)
    }

    fn open_with(&self, key: &AeadKey, sealed: &Sealed<'_>, object_key: &str) -> Result<Opened, CryptoError> {
        let object = || format!("'{object_key}'");
        let aad = object_aad(&self.repo, object_key, sealed.head.bytes).map_err(CryptoError::malformed(object()))?;
        let mut plaintext = vec![0; sealed.ciphertext.len()];
        key.open_to(sealed.head.header.counter, &aad, sealed.ciphertext, sealed.tag, &mut plaintext)
            .map_err(|_| CryptoError::Unauthentic { object: object() })?;
        Ok(Opened { header: sealed.head.header, public: sealed.head.public.to_vec(), plaintext })
    }

    fn expect<'a>(
        &self,
        object_key: &str,
        bytes: &'a [u8],
        kinds: &[ObjectKind],
        domain: Domain,
    ) -> Result<Sealed<'a>, CryptoError> {
        let object = || format!("'{object_key}'");
        let sealed = Sealed::parse(bytes).map_err(CryptoError::malformed(object()))?;
        if !kinds.contains(&sealed.head.header.kind) {
            return Err(CryptoError::Misplaced { object: object(), what: "kind" });
        }
        if sealed.head.header.domain != domain {
            return Err(CryptoError::Misplaced { object: object(), what: "domain" });
        }
        Ok(sealed)
    }

    fn embedded_key(&self, key: &SecretBytes<32>, id: &SessionId) -> Result<AeadKey, CryptoError> {
        let authenticity = self.authenticity()?;
        AeadKey::new(&derive("pgkeep v1 embedded object", &[key.expose(), authenticity.expose(), &id.0]))
    }
}
