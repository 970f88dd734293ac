//! The secrets of one role, and what follows from them alone.
//!
//! - `names`: chunk ids, keyed hashes, the cut's table   - `slots`: sealing and opening key slots
//! - `epochs`: publishing, adopting, rotating, re-wrapping   - `objects`: objects outside a session's counter
//!
//! Derivations: FORMAT.md, "Keys". Each method that needs a secret its role lacks fails with
//! [`CryptoError::RoleLacks`].

mod epochs;
mod names;
mod objects;
mod slots;

pub use names::{ContentHasher, PageHasher};
#[cfg(test)]
pub(super) use objects::EmbeddedRandom;
pub use objects::Opened;
#[cfg(test)]
pub(super) use slots::SlotRandom;

use super::secret::derive;
use super::{CryptoError, SecretBytes};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use pgkeep_formats::id::{RepoId, SessionId};
use pgkeep_formats::repo::keyslot::Role;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A part of the meta domain with a key of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope<'a> {
    /// Sessions, heartbeats, generations, pins, expired markers.
    Repo,
    /// Index segments, pack footers, page-hash sections.
    Index,
    /// One stanza's history, commits and fences, manifests, annotations, traces.
    Stanza(&'a str),
}

impl Scope<'_> {
    /// The scope's text, as it goes into derivations.
    #[must_use]
    pub fn text(&self) -> Cow<'static, str> {
        match self {
            Self::Repo => Cow::Borrowed("repo"),
            Self::Index => Cow::Borrowed("index"),
            Self::Stanza(name) => Cow::Owned(format!("stanza/{name}")),
        }
    }
}

/// The secrets of one role in one repository.
///
/// Shared by `Arc` among the threads of a process; the methods that change epochs are for a keyring not yet shared.
pub struct Keyring {
    repo: RepoId,
    role: Role,
    authenticity: Option<SecretBytes<32>>,
    id_key: Option<SecretBytes<32>>,
    cut_secret: Option<SecretBytes<32>>,
    meta_master: Option<SecretBytes<32>>,
    epoch_signer: Option<SecretBytes<32>>,
    epoch_verifier: Option<[u8; 32]>,
    scopes: BTreeMap<String, SecretBytes<32>>,
    epochs: BTreeMap<u32, epochs::Epoch>,
    names: Option<names::NameKeys>,
}

impl Keyring {
    /// The secrets of a new repository, with epoch 1; role [`Role::All`].
    ///
    /// # Errors
    /// [`CryptoError::Primitive`].
    pub fn generate(repo: RepoId) -> Result<Self, CryptoError> {
        let roots = Roots {
            id_key: SecretBytes::random()?,
            cut_secret: SecretBytes::random()?,
            meta_master: SecretBytes::random()?,
            epoch_signer: SecretBytes::random()?,
        };
        let mut keyring = Self::from_roots(repo, roots)?;
        keyring.add_epoch()?;
        Ok(keyring)
    }

    pub(super) fn from_roots(repo: RepoId, roots: Roots) -> Result<Self, CryptoError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(roots.epoch_signer.expose())
            .map_err(|_| CryptoError::Primitive { what: "Ed25519 key pair" })?;
        let verifier = pair.public_key().as_ref().try_into();
        Ok(Self {
            repo,
            role: Role::All,
            authenticity: Some(derive("pgkeep v1 authenticity", &[roots.id_key.expose()])),
            names: Some(names::NameKeys::new(&roots.id_key)),
            id_key: Some(roots.id_key),
            cut_secret: Some(roots.cut_secret),
            meta_master: Some(roots.meta_master),
            epoch_signer: Some(roots.epoch_signer),
            epoch_verifier: Some(verifier.map_err(|_| CryptoError::Primitive { what: "Ed25519 public key" })?),
            scopes: BTreeMap::new(),
            epochs: BTreeMap::new(),
        })
    }

    /// The repository.
    #[must_use]
    pub fn repo(&self) -> RepoId {
        self.repo
    }

    /// The role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// A keyring with only what `role` needs.
    ///
    /// `stanzas` are those whose metadata it may read and write, besides the scopes repo and index;
    /// `None` means all stanzas, also of the future.
    ///
    /// # Errors
    /// [`CryptoError::RoleLacks`] if this keyring itself lacks what the role needs.
    pub fn restrict(&self, role: Role, stanzas: Option<&[&str]>) -> Result<Self, CryptoError> {
        let copy = |key: &SecretBytes<32>| SecretBytes::copy_from(key.expose());
        let mut out = Self {
            repo: self.repo,
            role,
            authenticity: None,
            id_key: None,
            cut_secret: None,
            meta_master: None,
            epoch_signer: None,
            epoch_verifier: None,
            scopes: BTreeMap::new(),
            epochs: BTreeMap::new(),
            names: None,
        };
        if role == Role::Scrubber {
            return Ok(out);
        }
        out.authenticity = Some(copy(self.authenticity()?));
        out.epoch_verifier = self.epoch_verifier;
        if matches!(role, Role::All | Role::Writer | Role::Reader) {
            out.id_key = Some(copy(self.id_key()?));
            out.names = Some(names::NameKeys::new(self.id_key()?));
        }
        if matches!(role, Role::All | Role::Writer) {
            out.cut_secret = Some(copy(self.need(&self.cut_secret, "cut secret")?));
        }
        if role == Role::All {
            out.epoch_signer = Some(copy(self.need(&self.epoch_signer, "epoch signing key")?));
        }
        match stanzas {
            None => out.meta_master = Some(copy(self.need(&self.meta_master, "master key of the meta domain")?)),
            Some(names) => {
                let stanzas = names.iter().map(|name| Scope::Stanza(name));
                for scope in [Scope::Repo, Scope::Index].into_iter().chain(stanzas) {
                    out.scopes.insert(scope.text().into_owned(), self.scope_key(&scope)?);
                }
            }
        }
        out.epochs = self.epochs.iter().map(|(n, epoch)| (*n, epoch.restrict(role))).collect();
        Ok(out)
    }

    /// The key of a scope.
    pub(super) fn scope_key(&self, scope: &Scope<'_>) -> Result<SecretBytes<32>, CryptoError> {
        let text = scope.text();
        if let Some(master) = &self.meta_master {
            return Ok(derive("pgkeep v1 meta scope", &[master.expose(), text.as_bytes()]));
        }
        match self.scopes.get(text.as_ref()) {
            Some(key) => Ok(SecretBytes::copy_from(key.expose())),
            None => Err(self.lacks(match scope {
                Scope::Repo => "key of the scope 'repo'",
                Scope::Index => "key of the scope 'index'",
                Scope::Stanza(_) => "key of this stanza",
            })),
        }
    }

    /// The key with which a session seals the metadata of a scope.
    pub(super) fn meta_session_key(
        &self,
        scope: &Scope<'_>,
        session: &SessionId,
    ) -> Result<SecretBytes<32>, CryptoError> {
        Ok(derive("pgkeep v1 meta session", &[self.scope_key(scope)?.expose(), &session.0]))
    }

    /// The key with which a session seals its data, from its random data key. Deriving with the authenticity key
    /// keeps those who only know the epoch's public key from making data keys.
    pub(super) fn data_session_key(
        &self,
        data_key: &SecretBytes<32>,
        session: &SessionId,
    ) -> Result<SecretBytes<32>, CryptoError> {
        let authenticity = self.authenticity()?;
        Ok(derive("pgkeep v1 data session", &[data_key.expose(), authenticity.expose(), &session.0]))
    }

    pub(super) fn authenticity(&self) -> Result<&SecretBytes<32>, CryptoError> {
        self.need(&self.authenticity, "authenticity key")
    }

    fn id_key(&self) -> Result<&SecretBytes<32>, CryptoError> {
        self.need(&self.id_key, "id key")
    }

    fn need<'k, T>(&self, secret: &'k Option<T>, name: &'static str) -> Result<&'k T, CryptoError> {
        secret.as_ref().ok_or_else(|| self.lacks(name))
    }

    fn lacks(&self, secret: &'static str) -> CryptoError {
        CryptoError::RoleLacks { secret, role: self.role.name().to_owned() }
    }
}

#[cfg(test)]
impl Keyring {
    /// Takes the public keys of another keyring's epochs, as a store can.
    pub(super) fn borrow_epochs(&mut self, other: &Self) {
        self.epochs = other.epochs.iter().map(|(n, epoch)| (*n, epoch.restrict(Role::Writer))).collect();
    }
}

/// What a repository's other secrets are derived from.
pub(super) struct Roots {
    pub(super) id_key: SecretBytes<32>,
    pub(super) cut_secret: SecretBytes<32>,
    pub(super) meta_master: SecretBytes<32>,
    pub(super) epoch_signer: SecretBytes<32>,
}
