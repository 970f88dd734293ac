//! Reading chunks: from its place in a pack to checked plaintext.

use super::bases::{DecodedBases, InFlight};
use super::moved::Gone;
use super::{BaseCache, Repository};
use crate::chunk::{Decoder, delta};
use crate::crypto::{ChunkOpener, Scope};
use crate::index::{ChunkAt, ChunkIndex};
use crate::store::{Range, Store};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, SessionId};
use pgkeep_formats::repo::chunk::ChunkKind;
use pgkeep_formats::repo::envelope::ChunkHead;
use pgkeep_formats::repo::index::DOMAIN_DATA;
use pgkeep_formats::repo::layout;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Checked plaintext of a chunk.
pub type Plain = Arc<Vec<u8>>;

/// A chunk as it is encoded at a place.
pub(crate) type EncodedAt = (ChunkAt, Vec<u8>);

thread_local! {
    static DECODER: RefCell<Option<Decoder>> = const { RefCell::new(None) };
    /// Old pages of the delta that is decoded: half a megabyte each time, which is not worth asking the system for anew.
    static BASE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads the chunks of one stanza's backups.
///
/// Any thread may read; each read is one ranged get, unless the caller has the sealed bytes already.
pub struct ChunkSource {
    repository: Arc<Repository>,
    pub(super) index: RwLock<Arc<dyn ChunkIndex>>,
    /// Packs that were missed.
    pub(super) gone: Mutex<Gone>,
    stanza: String,
    meta_openers: Mutex<HashMap<SessionId, Arc<ChunkOpener>>>,
    pub(super) bases: DecodedBases,
    pub(super) bases_in_flight: InFlight,
    /// Where sealed bases are looked for before the store is asked.
    pub(super) base_cache: Option<Arc<BaseCache>>,
    /// Whether the store is asked for bases at all.
    pub(super) fetches_bases: bool,
    /// Whether the store is told what will be asked for.
    pub(super) announces: bool,
    /// Bytes fetched for bases.
    pub(super) base_bytes: AtomicU64,
}

impl ChunkSource {
    /// `index` must hold what is asked for; `stanza` is whose manifests can be opened.
    #[must_use]
    pub fn new(repository: Arc<Repository>, index: Arc<dyn ChunkIndex>, stanza: &str) -> Self {
        Self {
            repository,
            index: RwLock::new(index),
            gone: Mutex::default(),
            stanza: stanza.to_owned(),
            meta_openers: Mutex::default(),
            bases: DecodedBases::default(),
            bases_in_flight: InFlight::default(),
            base_cache: None,
            fetches_bases: true,
            announces: true,
            base_bytes: AtomicU64::new(0),
        }
    }

    /// The same, but bases of deltas are looked for in `cache` first and, unless `fetches`, nowhere else.
    #[must_use]
    pub fn with_base_cache(mut self, cache: Option<Arc<BaseCache>>, fetches: bool) -> Self {
        (self.base_cache, self.fetches_bases) = (cache, fetches);
        self
    }

    /// The same, but the store is not told ahead what will be asked for: for readers that may not ask for it yet.
    #[must_use]
    pub fn without_announcing(mut self) -> Self {
        self.announces = false;
        self
    }

    /// The repository.
    #[must_use]
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    /// The stanza.
    #[must_use]
    pub fn stanza(&self) -> &str {
        &self.stanza
    }

    /// Where a chunk is.
    ///
    /// # Errors
    /// `FileMissing` if the index does not know it; what the index said.
    pub fn locate(&self, id: &ChunkId) -> Result<ChunkAt> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.lookup(id)?.ok_or_else(|| {
            let place = self.repository.store.describe();
            Error::refused(Kind::FileMissing, format!("chunk {id} is in no pack of {place}"))
        })
    }

    /// The plaintext of a chunk, fetched, opened, decoded and checked against its name.
    ///
    /// # Errors
    /// `FileMissing` if chunk or pack are gone; `Checksum` if it is damaged; what the store said.
    pub fn read(&self, id: &ChunkId) -> Result<Vec<u8>> {
        let at = self.locate(id)?;
        let range = Range::Span { offset: at.offset.into(), len: at.stored_len as usize };
        match self.repository.store.get(&layout::pack(at.pack.pack), range) {
            Ok(mut blob) => self.open(id, &at, &mut blob),
            Err(e) => self.read_elsewhere(id, at.pack.pack, e.into()),
        }
    }

    /// As [`Self::read`], and how the chunk is encoded where it lies, unless it was not to be had from there.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_encoded(&self, id: &ChunkId) -> Result<(Vec<u8>, Option<EncodedAt>)> {
        let at = self.locate(id)?;
        let range = Range::Span { offset: at.offset.into(), len: at.stored_len as usize };
        let read = || {
            let mut blob = self.repository.store.get(&layout::pack(at.pack.pack), range)?;
            let encoded = self.unseal(id, &at, &mut blob)?;
            Ok::<_, Error>((self.decode(id, &at, encoded)?, encoded.to_vec()))
        };
        match read() {
            Ok((plain, encoded)) => Ok((plain, Some((at, encoded)))),
            // What can be done about it is done there, and what cannot is said.
            Err(_) => Ok((self.read(id)?, None)),
        }
    }

    /// Opens the sealed bytes of a chunk in place, decodes and checks them. What is returned has exactly
    /// `at.plain_len` bytes and hashes to `id`.
    ///
    /// # Errors
    /// `Checksum` naming the chunk and its pack if anything does not match.
    pub fn open(&self, id: &ChunkId, at: &ChunkAt, blob: &mut [u8]) -> Result<Vec<u8>> {
        let failure = match self.unseal(id, at, blob).and_then(|encoded| self.decode(id, at, encoded)) {
            // A delta's footer tells what it needs.
            Err(e) if e.is_not_found() || e.kind() == Kind::FileMissing => {
                return self.read_elsewhere(id, at.pack.pack, e);
            }
            Err(e) => e,
            opened => return opened,
        };
        let (pack, offset, len) = (layout::pack(at.pack.pack), at.offset.into(), at.stored_len as usize);
        if !self.repository.may_read_again(&failure, &pack, offset, len) {
            return Err(failure);
        }
        let mut blob = self.repository.store.get(&pack, Range::Span { offset, len })?;
        let encoded = self.unseal(id, at, &mut blob)?;
        self.decode(id, at, encoded)
    }

    /// The first half of [`Self::open`], which needs nothing but the sealed bytes: the encoding that was stored.
    ///
    /// # Errors
    /// As [`Self::open`]; what keeps the session's key from being read.
    pub(crate) fn unseal<'b>(&self, id: &ChunkId, at: &ChunkAt, blob: &'b mut [u8]) -> Result<&'b [u8]> {
        let opener = self.opener(at)?;
        let head = ChunkHead { kind: at.kind.as_u8(), encoding: at.encoding.as_u8(), id: *id, plain_len: at.plain_len };
        opener.open_chunk(&head, blob).map(|b| &*b).map_err(|e| Error::from(e).during(cannot_read(id, at)))
    }

    /// The other half of [`Self::open`], which may read chunks that this one is encoded against.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn decode(&self, id: &ChunkId, at: &ChunkAt, encoded: &[u8]) -> Result<Vec<u8>> {
        if !at.encoding.is_delta() {
            return self.decode_with(id, at, encoded, &[]);
        }
        // Taken out meanwhile: getting old pages decodes their chunks.
        let mut base = BASE.take();
        let page = delta::page_of(at.encoding, encoded);
        let joined = page.and_then(|page| self.base_pages(id, at, page, &mut base));
        let decoded =
            joined.map_err(|e| e.during(cannot_read(id, at))).and_then(|()| self.decode_with(id, at, encoded, &base));
        BASE.set(base);
        decoded
    }

    fn decode_with(&self, id: &ChunkId, at: &ChunkAt, encoded: &[u8], base: &[u8]) -> Result<Vec<u8>> {
        let place = || cannot_read(id, at);
        let mut plain = Vec::new();
        DECODER.with_borrow_mut(|decoder| {
            let decoder = match decoder {
                Some(d) => d,
                None => decoder.insert(Decoder::new()?),
            };
            let len = at.plain_len as usize;
            decoder.decode_delta(at.encoding, encoded, base, len, &mut plain).map_err(|e| e.during(place()))
        })?;
        let found = match at.kind {
            ChunkKind::Metadata => {
                self.repository.keyring.chunk_id_scoped(&Scope::Stanza(&self.stanza), at.kind.as_u8(), &plain)?
            }
            _ => self.repository.keyring.chunk_id(at.kind.as_u8(), &plain)?,
        };
        if found != *id {
            return Err(Error::refused(Kind::Checksum, format!("its content is that of chunk {found}")).during(place()));
        }
        Ok(plain)
    }

    fn opener(&self, at: &ChunkAt) -> Result<Arc<ChunkOpener>> {
        let session = at.pack.session;
        if at.pack.domain == DOMAIN_DATA {
            return self.repository.data_opener(session);
        }
        let mut openers = self.meta_openers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = openers.get(&session) {
            return Ok(Arc::clone(found));
        }
        let opener = Arc::new(self.repository.keyring.meta_opener(&session, &Scope::Stanza(&self.stanza))?);
        openers.insert(session, Arc::clone(&opener));
        Ok(opener)
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &**self.repository.store()
    }
}

fn cannot_read(id: &ChunkId, at: &ChunkAt) -> String {
    format!("cannot read chunk {id} at byte {} of '{}'", at.offset, layout::pack(at.pack.pack))
}
