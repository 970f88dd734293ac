//! How the old version of a changed page is to be had: its bytes, hashes of its sub-blocks, or not at all.
//!
//! Bytes give the smallest deltas but must be read, from this host's base cache or from the repository. Hashes of
//! sub-blocks need no old page: what they say is unchanged is left out. Both are optional; a page of which nothing is at
//! hand is stored in full and becomes a base itself.

use crate::chunk::delta::SUB_BLOCK;
use crate::crypto::PageHasher;
use crate::index::{ChunkAt, ChunkIndex};
use crate::limit::Limits;
use crate::pack::{BasePages, FinishedPack};
use crate::repository::{BaseCache, ChunkSource, PendingHashes, Repository, RepositoryIndex};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use pgkeep_formats::repo::keyslot::Role;
use pgkeep_formats::repo::pack::FooterEntry;
use std::collections::HashMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Pages that [`DeltaMode::Auto`] decodes for one that it wants, at most: half a chunk of the usual size.
///
/// A chunk of 32 pages then needs two. Of chunks with any change, two or more pages changed in a seventh when 1 % of all pages
/// did, each for itself, and in seven of eight at 10 %.
const DECODED_FOR_ONE: u32 = 16;

/// Bytes a base cache may grow to if nothing is said.
pub const BASE_CACHE_BYTES: u64 = 1 << 30;

/// Where old pages may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeltaMode {
    /// Of a repository that is near ([`Store::is_near`]) as [`Self::Fetch`], but chunks of which few pages are among the 64
    /// gathered are not read: a page in full is larger than its delta, and decoding more than sixteen for it takes longer.
    /// Of any other as [`Self::Cache`].
    ///
    /// [`Store::is_near`]: crate::store::Store::is_near
    #[default]
    Auto,
    /// From the base cache if it has them, else from the repository.
    Fetch,
    /// From the base cache, which also keeps hashes of sub-blocks for pages it has no room for.
    Cache,
    /// From nowhere: changed pages are stored in full.
    Off,
}

impl FromStr for DeltaMode {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "fetch" => Ok(Self::Fetch),
            "cache" => Ok(Self::Cache),
            "off" => Ok(Self::Off),
            _ => Err(()),
        }
    }
}

/// How increments use old pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deltas {
    /// Where they come from.
    pub mode: DeltaMode,
    /// Bytes the base cache of the repository may grow to; `None` is [`BASE_CACHE_BYTES`] with [`DeltaMode::Cache`], else
    /// no cache.
    pub cache_bytes: Option<u64>,
}

impl Deltas {
    /// [`DeltaMode::Auto`] far from here is [`DeltaMode::Cache`].
    fn of(self, repository: &Repository) -> Self {
        match self.mode {
            DeltaMode::Auto if !repository.store().is_near() => Self { mode: DeltaMode::Cache, ..self },
            _ => self,
        }
    }
}

/// How a page can be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Against the bytes of the old page.
    Prefix,
    /// Against hashes of its sub-blocks.
    Patch,
    /// In full.
    Full,
}

/// Pages encoded in each way.
#[derive(Default)]
pub(super) struct Pages([AtomicU64; 3]);

impl Pages {
    pub(super) fn add(&self, way: Way, pages: usize) {
        if let Some(of) = self.0.get(way as usize) {
            of.fetch_add(pages as u64, Ordering::Relaxed);
        }
    }

    /// For the log.
    pub(super) fn told(&self) -> String {
        let [prefix, patch, full] = self.0.each_ref().map(|n| n.load(Ordering::Relaxed));
        format!("changed pages: {prefix} stored as deltas, {patch} as patches, {full} in full")
    }
}

/// Old pages of a repository.
pub(super) struct OldPages {
    source: ChunkSource,
    /// Fetched bytes are charged: the repository may be on the disk that the limit is for.
    limits: Arc<Limits>,
    charged: AtomicU64,
    cache: Option<Arc<BaseCache>>,
    /// Data can be opened, and may be fetched.
    opens: bool,
    fetches: bool,
    /// The store is told ahead what will be read.
    announces: bool,
    /// Chunks of which few pages are wanted are not read.
    sparingly: bool,
    /// Hashes are kept.
    hasher: Option<PageHasher>,
    pending: Mutex<PendingHashes>,
    page_size: u32,
    pub(super) pages: Pages,
    /// Told that old pages could not be read.
    told: AtomicBool,
}

impl OldPages {
    /// `None` if no page is to be encoded against another.
    pub(super) fn open(
        repository: &Arc<Repository>,
        index: &Arc<RepositoryIndex>,
        stanza: &str,
        deltas: Deltas,
        page_size: u32,
        limits: &Arc<Limits>,
    ) -> Result<Option<Self>> {
        let deltas = deltas.of(repository);
        let cache = open_cache(repository, deltas)?.map(Arc::new);
        if deltas.mode == DeltaMode::Off {
            return Ok(None);
        }
        let opens = matches!(repository.keyring().role(), Role::All | Role::Reader);
        let sparingly = deltas.mode == DeltaMode::Auto;
        let fetches = sparingly || deltas.mode == DeltaMode::Fetch;
        let patches = cache.is_some() && (sparingly || !(fetches && opens)) && page_size as usize >= SUB_BLOCK;
        let hasher = patches.then(|| repository.keyring().sub_block_hasher()).transpose()?;
        let index = Arc::clone(index) as Arc<dyn ChunkIndex>;
        // What is read is announced here, and earlier than the source would.
        let source = ChunkSource::new(Arc::clone(repository), index, stanza)
            .with_base_cache(cache.clone(), fetches)
            .without_announcing();
        // Under a limit nothing may be read before it is paid for.
        let announces = opens && fetches && !limits.limits_reading();
        let (pending, pages, told, charged) = Default::default();
        let limits = Arc::clone(limits);
        Ok(Some(Self {
            source,
            limits,
            charged,
            cache,
            opens,
            fetches,
            announces,
            sparingly,
            hasher,
            pending,
            page_size,
            pages,
            told,
        }))
    }

    /// How a page of the base chunk at this place can be used, of which `wanted` pages are.
    pub(super) fn way(&self, at: &ChunkAt, page: u32, wanted: u32) -> Way {
        if self.is_read(at, wanted) {
            return Way::Prefix;
        }
        match self.sub_hashes(at.pack.pack, at.ordinal, page) {
            Some(_) => Way::Patch,
            None => Way::Full,
        }
    }

    /// Whether [`Self::announce`] does anything.
    pub(super) fn announces(&self) -> bool {
        self.announces
    }

    /// Says which old pages a gather will need, long before they are: so disk and cores work at once. A favour: what cannot
    /// be found is met again, and told, when it is read.
    pub(super) fn announce(&self, bases: &[(ChunkId, u32)]) {
        let mut wanted: HashMap<ChunkId, u32> = HashMap::new();
        for (chunk, _) in bases {
            *wanted.entry(*chunk).or_default() += 1;
        }
        let mut chunks: Vec<(ChunkId, ChunkAt)> = Vec::new();
        for (chunk, wanted) in wanted {
            if let Ok(at) = self.source.locate(&chunk)
                && !at.encoding.is_delta()
                && self.is_read(&at, wanted)
                && !self.source.keeps_base(&chunk)
            {
                chunks.push((chunk, at));
            }
        }
        chunks.sort_unstable_by_key(|(_, at)| (at.pack.pack, at.offset));
        self.source.will_read(&chunks);
    }

    /// Whether a base chunk is read, of which `wanted` pages are.
    fn is_read(&self, at: &ChunkAt, wanted: u32) -> bool {
        let pays = !self.sparingly || at.plain_len / self.page_size <= wanted.saturating_mul(DECODED_FOR_ONE);
        pays && self.opens && (self.fetches || self.cache.as_ref().is_some_and(|cache| cache.has(at.pack.pack)))
    }

    /// Hashes of the sub-blocks of an old page.
    pub(super) fn sub_hashes(&self, pack: PackId, ordinal: u16, page: u32) -> Option<Vec<u64>> {
        self.hasher.as_ref()?;
        let hashes = self.cache.as_ref()?.sub_hashes(pack)?;
        hashes.of_page(ordinal, page).map(<[u64]>::to_vec)
    }

    /// Hashes of the sub-blocks of pages that are stored in full; none if they are not kept.
    pub(super) fn hash(&self, plain: &[u8]) -> Vec<u64> {
        match &self.hasher {
            Some(hasher) if plain.len().is_multiple_of(self.page_size as usize) => {
                plain.chunks(SUB_BLOCK).map(|block| hasher.hash(block)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Old pages, joined.
    pub(super) fn join(&self, runs: &[BasePages]) -> Result<Vec<u8>> {
        let mut pages = Vec::new();
        let joined = self.source.join_pages(runs, self.page_size as usize, &mut pages);
        let fetched = self.source.base_bytes();
        let charged = self.charged.fetch_max(fetched, Ordering::Relaxed);
        self.limits.charge(usize::try_from(fetched.saturating_sub(charged)).unwrap_or(usize::MAX));
        joined.map(|()| pages)
    }

    /// Tells once why old pages could not be read, which makes a backup larger and no worse.
    ///
    /// # Errors
    /// Failures that are not about these pages, as they were.
    pub(super) fn tell(&self, error: Error) -> Result<()> {
        if error.concerns_the_run() {
            return Err(error);
        }
        let why = error.chain();
        if !self.fetches && error.kind() == Kind::FileMissing {
            // Made room for another, or damaged, which the cache has told.
            tracing::debug!("{why}: changed pages are stored as patches or in full");
        } else if self.told.swap(true, Ordering::Relaxed) {
            tracing::debug!("{why}: changed pages are stored in full");
        } else {
            tracing::warn!("{why}: changed pages are stored in full; 'verify' tells what else the damage concerns");
        }
        Ok(())
    }

    /// Notes the hashes of a chunk that is to be packed.
    pub(super) fn note(&self, id: ChunkId, hashes: Vec<u64>) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).note(id, hashes);
    }

    /// Keeps a pack that is durable.
    pub(super) fn keep(&self, pack: &FinishedPack) {
        let Some(cache) = &self.cache else { return };
        let ids = pack.entries.iter().map(|e| e.id);
        let hashes = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take(self.page_size, ids);
        // Deltas are no bases.
        let is_base =
            |e: &FooterEntry| e.kind == ChunkKind::Relation && matches!(e.encoding, Encoding::Raw | Encoding::Zstd);
        let copy = self.opens && pack.entries.iter().any(is_base);
        cache.keep(pack.facts.pack, &hashes, copy.then_some(&pack.bytes));
    }
}

/// The base cache; says why there is none if one was asked for. What is kept for nobody is removed.
fn open_cache(repository: &Repository, deltas: Deltas) -> Result<Option<BaseCache>> {
    let limit = match (deltas.mode, deltas.cache_bytes) {
        (DeltaMode::Off, _) => 0,
        (DeltaMode::Cache, limit) => limit.unwrap_or(BASE_CACHE_BYTES),
        (DeltaMode::Auto | DeltaMode::Fetch, limit) => limit.unwrap_or(0),
    };
    let why = if limit > 0 {
        match BaseCache::open(repository, limit)? {
            Ok(cache) => return Ok(Some(cache)),
            Err(why) => why,
        }
    } else {
        BaseCache::clear(repository);
        "its size is 0".to_owned()
    };
    match deltas.mode {
        DeltaMode::Cache => tracing::warn!("no base cache, so changed pages are stored in full: {why}"),
        DeltaMode::Auto | DeltaMode::Fetch if limit > 0 => {
            tracing::warn!("no base cache, so old pages are read from the repository: {why}");
        }
        DeltaMode::Auto | DeltaMode::Fetch | DeltaMode::Off => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Unlock;
    use crate::repository::OpenOptions;
    use crate::store::{MemoryStore, Store, StoreError};

    fn old_pages(mode: DeltaMode) -> OldPages {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let options = OpenOptions { key: 1, unlock: Unlock::None, cache: None };
        let repository = Arc::new(Repository::create(store, options, 1).unwrap());
        let index = repository.load_index_to_read().unwrap();
        let deltas = Deltas { mode, cache_bytes: None };
        OldPages::open(&repository, &index, "main", deltas, 8192, &Limits::none()).unwrap().unwrap()
    }

    #[test]
    fn unreadable_pages_are_told_once_and_what_concerns_the_run_ends_it() {
        let missing = || Error::refused(Kind::FileMissing, "chunk is not there");
        let root = || {
            let source = std::io::ErrorKind::NotFound.into();
            Error::from(StoreError::Root { verb: "open", store: "there".to_owned(), source }).during("cannot read")
        };
        for mode in [DeltaMode::Fetch, DeltaMode::Cache] {
            let old = old_pages(mode);
            assert!(old.tell(root()).is_err() && old.tell(Error::refused(Kind::Interrupted, "stop")).is_err());
            assert!(!old.told.load(Ordering::Relaxed));
            old.tell(missing()).unwrap();
            // A base cache lacks many pages.
            assert_eq!(old.told.load(Ordering::Relaxed), mode == DeltaMode::Fetch);
            old.tell(Error::refused(Kind::Checksum, "damaged")).unwrap();
            assert!(old.told.load(Ordering::Relaxed));
        }
    }
}
