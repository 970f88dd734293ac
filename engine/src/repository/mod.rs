//! A repository: its objects by meaning instead of by name.
//!
//! Owns the order in which objects are created and the rules of DESIGN's sections 4 and 5 that concern one object; the
//! operations decide what to write. Submodules: `chunks` (reading chunks), `bases` (what deltas need), `base_cache` (what a host
//! keeps of it), `session` (a writer's run), `manifests`
//! (reading and building manifests), `catalogue` (which backups are visible), `index` and `rebuild` (where chunks are),
//! `wal` (archived files), `notes` (what is said of backups later), `pins` (what readers hold), `refs` (what backups use), `unfinished` (sessions that have not ended).
//!
//! Opening costs a handful of small reads and no index: `archive-push` and `archive-get` need no more. The index is
//! loaded by [`Repository::load_index`], once, by who needs it. Any thread may call any method.

mod base_cache;
mod bases;
mod catalogue;
mod chunks;
mod drills;
mod index;
pub mod manifests;
mod mark;
mod moved;
mod moves;
mod notes;
mod pack_cache;
mod pins;
mod presence;
mod rebuild;
mod refs;
mod segments;
mod session;
#[cfg(test)]
pub(crate) mod testing;
mod traces;
mod unfinished;
pub mod wal;

pub use base_cache::{BaseCache, PendingHashes, SubHashes};
pub use catalogue::Backup;
pub use chunks::{ChunkSource, Plain};
pub use index::RepositoryIndex;
pub use mark::stanza_mark;
pub(crate) use moves::Rewritten;
pub use notes::Notes;
pub use pins::PinGuard;
pub use rebuild::Rebuilt;
pub(crate) use segments::Segments;
pub(crate) use session::end_scope;
pub use session::{AllChunks, Stored, WriterSession, seal_data};
pub use unfinished::{BACKUP, Needs, SILENT_AFTER, Unfinished};

use crate::crypto::{ChunkOpener, Keyring, Opened, Scope, Unlock};
use crate::crypto::{FileKekCache, KekCache};
use crate::store::{Depth, Put, Range, Store, StoreError};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{RepoId, SessionId};
use pgkeep_formats::repo::config::RepositoryConfig;
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::keyslot::Argon2Cost;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::Generation;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// How to open a repository.
pub struct OpenOptions {
    /// Number of the repository in the configuration, for messages and locks.
    pub key: u32,
    /// What opens a key slot.
    pub unlock: Unlock,
    /// Directory for what can be rebuilt: index segments, derived keys. `None` keeps it in memory.
    pub cache: Option<PathBuf>,
}

/// An open repository.
pub struct Repository {
    key: u32,
    store: Arc<dyn Store>,
    config: RepositoryConfig,
    keyring: Arc<Keyring>,
    cache: Option<PathBuf>,
    openers: Mutex<HashMap<SessionId, Arc<ChunkOpener>>>,
    contents: bases::ContentsCache,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repository(repo{} at {})", self.key, self.store.describe())
    }
}

impl Repository {
    /// Makes a repository in an empty store and opens it.
    ///
    /// The `format` object comes last, so an interrupted creation leaves no repository, and its leftovers are
    /// removed by the next one. Of two creations at once one fails.
    ///
    /// # Errors
    /// `PathNotEmpty` if the store holds something else; what the store or the key slot said.
    pub fn create(store: Arc<dyn Store>, options: OpenOptions, created: i64) -> Result<Self> {
        clear_leftovers(&*store)?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| crate::crypto::CryptoError::Primitive { what: "system randomness" })?;
        let keyring = Keyring::generate(RepoId(id))?;
        let keyring = Arc::new(keyring);
        let (slot, bytes) = keyring.seal_slot(&options.unlock, Argon2Cost::default(), "first", created)?;
        put_new(&*store, &layout::key_slot(slot), &bytes)?;
        let epoch = keyring.current_epoch()?;
        put_new(&*store, &layout::key_epoch(epoch), &keyring.epoch_record(epoch, created)?)?;
        let sealer = crate::crypto::SessionSealer::new(Arc::clone(&keyring))?;
        let name = layout::generation(0);
        let first = Generation::default().encode();
        let bytes = sealer.seal_object(ObjectKind::Generation, &Scope::Repo, &name, &[], &first)?;
        put_new(&*store, &name, &bytes)?;
        let config = RepositoryConfig::new(RepoId(id), created);
        put_new(&*store, layout::FORMAT, &keyring.seal_config(&config)?)?;
        // Another creation may have taken our keys for leftovers: only a repository that opens was created.
        Self::open(store, options)
    }

    /// True if the store holds a repository.
    ///
    /// # Errors
    /// What the store said.
    pub fn exists(store: &dyn Store) -> Result<bool> {
        let mut found = false;
        store.list("", Depth::Children, &mut |l| found |= l.key == layout::FORMAT)?;
        Ok(found)
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// `FileMissing` if the store holds none; `Crypto` if no key slot opens; `FeatureNotSupported` if it is of another
    /// version; what the store said.
    pub fn open(store: Arc<dyn Store>, options: OpenOptions) -> Result<Self> {
        let place = store.describe();
        Self::open_in(store, options, &place).map_err(|e| match e {
            // Those name the place.
            Error::Refused { .. } => e,
            _ => e.during(format!("cannot open the repository in {place}")),
        })
    }

    fn open_in(store: Arc<dyn Store>, options: OpenOptions, place: &str) -> Result<Self> {
        let format = match store.get(layout::FORMAT, Range::Whole) {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => {
                return Err(Error::refused(Kind::FileMissing, format!("there is no repository in {place}")));
            }
            Err(e) => return Err(e.into()),
        };
        let (config, _) = RepositoryConfig::decode(&format).map_err(Error::damaged(layout::FORMAT))?;
        config.check_read().map_err(|e| {
            Error::refused(
                Kind::FeatureNotSupported,
                format!(
                    "the repository in {place} needs feature '{}' for {}, which this version lacks",
                    e.feature, e.purpose
                ),
            )
        })?;
        let slots = read_slots(&*store)?;
        let cache = options.cache.as_ref().map(|dir| FileKekCache::new(dir.join("keys")));
        let cache: Option<&dyn KekCache> = cache.as_ref().map(|c| c as &dyn KekCache);
        let mut keyring = Keyring::open_slots(config.repo, &slots, &options.unlock, cache)?;
        let mut epochs = Vec::new();
        store.list(layout::KEY_EPOCHS, Depth::All, &mut |l| epochs.extend(layout::parse_key_epoch(&l.key)))?;
        for epoch in epochs {
            let name = layout::key_epoch(epoch);
            let adopted = store.get(&name, Range::Whole).map_err(Error::from);
            let adopted = adopted.and_then(|bytes| Ok(keyring.adopt_epoch(&name, &bytes)?));
            // The slot holds the keys of the epochs it was made for; records tell of those made since.
            match adopted {
                Ok(_) => {}
                Err(e) if keyring.epochs().contains(&epoch) => {
                    tracing::warn!("'{name}' cannot be used, but the key slot has what it says: {}", e.chain());
                }
                Err(e) => return Err(e),
            }
        }
        let config = keyring.open_config(&format)?;
        let (key, openers) = (options.key, Mutex::default());
        let (keyring, contents) = (Arc::new(keyring), bases::ContentsCache::default());
        Ok(Self { key, store, config, keyring, cache: options.cache, openers, contents })
    }

    /// The same, but keeping what it reads of packs on this host, up to `limit` bytes, for every process of this user that
    /// does so. Where that cannot be it says why in the log and keeps nothing.
    #[must_use]
    pub fn keeping_packs(mut self, limit: u64) -> Self {
        let dir = self.cache().map(|dir| dir.join("packs")).ok_or_else(|| "there is no cache directory".to_owned());
        match dir.and_then(|dir| pack_cache::PackCache::over(Arc::clone(&self.store), dir, limit)) {
            Ok(cache) => self.store = Arc::new(cache),
            Err(why) => tracing::warn!("nothing is kept of the packs of repo{}: {why}", self.key),
        }
        self
    }

    /// Number of the repository in the configuration.
    #[must_use]
    pub fn key(&self) -> u32 {
        self.key
    }

    /// True if a part of an object that could not be used is worth being read once more: what was kept of it may be what is
    /// wrong, and the object good.
    pub(crate) fn may_read_again(&self, failure: &Error, key: &str, offset: u64, len: usize) -> bool {
        matches!(failure.kind(), Kind::Checksum | Kind::Format | Kind::Crypto) && self.store.doubt(key, offset, len)
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Its parameters.
    #[must_use]
    pub fn config(&self) -> &RepositoryConfig {
        &self.config
    }

    /// Its keys.
    #[must_use]
    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// Directory for what can be rebuilt, of this repository alone.
    #[must_use]
    pub fn cache(&self) -> Option<PathBuf> {
        self.cache.as_ref().map(|dir| dir.join("cache").join(self.config.repo.to_string()))
    }

    /// Refuses if this program must not write to the repository.
    ///
    /// # Errors
    /// `FeatureNotSupported`.
    pub fn check_writable(&self) -> Result<()> {
        self.config.check_write().map_err(|e| {
            let place = self.store.describe();
            let text = format!("the repository in {place} can only be read: feature '{}' is unknown here", e.feature);
            Error::refused(Kind::FeatureNotSupported, text)
        })
    }

    /// Reads and opens an object of the meta domain.
    ///
    /// # Errors
    /// What the store or the cipher said.
    pub fn read_object(&self, name: &str, kinds: &[ObjectKind], scope: &Scope<'_>) -> Result<Opened> {
        let bytes = self.store.get(name, Range::Whole)?;
        Ok(self.keyring.open_object(name, &bytes, kinds, scope)?)
    }

    /// The newest generation.
    ///
    /// # Errors
    /// `FileMissing` if there is none; what the store, the cipher or the decoder said.
    pub fn newest_generation(&self) -> Result<Generation> {
        let mut newest = None;
        self.store.list(layout::GENERATIONS, Depth::All, &mut |l| {
            newest = newest.max(layout::parse_generation(&l.key));
        })?;
        let place = self.store.describe();
        let newest = newest.ok_or_else(|| {
            Error::refused(Kind::FileMissing, format!("the repository in {place} has no generation record"))
        })?;
        let name = layout::generation(newest);
        let opened = self.read_object(&name, &[ObjectKind::Generation], &Scope::Repo)?;
        let generation = Generation::decode(&opened.plaintext).map_err(Error::damaged(&name))?;
        if generation.number != newest {
            return Err(Error::refused(Kind::Format, format!("'{name}' holds generation {}", generation.number)));
        }
        Ok(generation)
    }

    /// Whether an object is there.
    pub(crate) fn is_there(&self, name: &str) -> Result<bool> {
        match self.store.get(name, Range::Tail { len: 1 }) {
            Err(StoreError::NotFound { .. }) => Ok(false),
            found => Ok(found.map(|_| true)?),
        }
    }

    /// An opener for a session's data chunks; asks the store once a session.
    pub(crate) fn data_opener(&self, session: SessionId) -> Result<Arc<ChunkOpener>> {
        if let Some(found) = self.openers.lock().unwrap_or_else(PoisonError::into_inner).get(&session) {
            return Ok(Arc::clone(found));
        }
        // Of the wraps of several epochs any one that this role can open will do; the newest comes last.
        let mut wraps = Vec::new();
        self.store.list(&format!("sk/{session}/"), Depth::All, &mut |l| wraps.push(l.key))?;
        let mut failure =
            Error::refused(Kind::FileMissing, format!("the key of session {session} is missing: 'sk/{session}/'"));
        for name in wraps.iter().rev() {
            let wrapped = self.store.get(name, Range::Whole)?;
            match self.keyring.data_opener(&session, &wrapped) {
                Ok(opener) => {
                    let opener = Arc::new(opener);
                    self.openers.lock().unwrap_or_else(PoisonError::into_inner).insert(session, Arc::clone(&opener));
                    return Ok(opener);
                }
                Err(e) => failure = Error::from(e).during(format!("cannot open '{name}'")),
            }
        }
        Err(failure)
    }
}

/// Creates an object whose name is new, and settles what an ambiguous reply means: if it exists with our bytes, it is ours.
pub(crate) fn put_new(store: &dyn Store, name: &str, bytes: &[u8]) -> Result<()> {
    match store.put_if_absent(name, bytes)? {
        Put::Created => Ok(()),
        Put::Exists if store.get(name, Range::Whole)? == bytes => Ok(()),
        Put::Exists => {
            let place = store.describe();
            Err(Error::refused(Kind::FileExists, format!("object '{name}' exists in {place} with other content")))
        }
    }
}

fn read_slots(store: &dyn Store) -> Result<Vec<(String, Vec<u8>)>> {
    let mut names = Vec::new();
    store.list(layout::KEY_SLOTS, Depth::All, &mut |l| names.push(l.key))?;
    names.retain(|name| layout::parse_key_slot(name).is_some());
    let mut out = Vec::with_capacity(names.len());
    for name in names {
        let bytes = store.get(&name, Range::Whole)?;
        out.push((name, bytes));
    }
    Ok(out)
}

/// Removes what an interrupted creation left, and nothing else.
fn clear_leftovers(store: &dyn Store) -> Result<()> {
    let (mut ours, mut foreign) = (Vec::new(), None);
    store.list("", Depth::Children, &mut |l| match l.key.as_str() {
        "keys/" | "gen/" => ours.push(l.key),
        _ => foreign = Some(l.key),
    })?;
    if let Some(found) = foreign {
        let place = store.describe();
        return Err(Error::refused(
            Kind::PathNotEmpty,
            format!("cannot make a repository in {place}: it is not empty, '{found}' is there"),
        ));
    }
    let mut names = Vec::new();
    for prefix in ours {
        store.list(&prefix, Depth::All, &mut |l| names.push(l.key))?;
    }
    for name in names {
        store.delete(&name)?;
    }
    Ok(())
}
