//! What a host keeps of its backups so that increments need not fetch old pages: copies of packs, and hashes of the
//! sub-blocks of their pages.
//!
//! A directory of this repository alone, `bases/` in its cache: `<pack>.pack` and `<pack>.sub`. None of it is trusted: a copy
//! holds sealed chunks, which open only if they are what the index says, and the hashes are authenticated
//! ([`SubHashes`]). Losing it, or a part, costs size in the next increment and nothing else, so nothing is made durable
//! and no failure here fails a backup.
//!
//! Bounded in bytes, files used last stay. Hashes go before copies: they are a sixtieth of the pages and serve nearly as
//! well. Copies of this run never make room for each other, or a first full would write itself through the cache.
//!
//! Any thread may call; the lock is held for book-keeping and removals, not for reads. Several processes may share it:
//! each sees the others' files when it starts, so together they may be over the limit for a while.

mod sub_hashes;

pub use sub_hashes::{PendingHashes, SubHashes};

use super::Repository;
use super::bases::Bounded;
use crate::crypto::SecretBytes;
use crate::{Error, Result};
use pgkeep_formats::id::PackId;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Bytes of sub-block hashes kept in memory: those of some 2 GiB of pages.
const HASHES_BYTES: usize = 32 << 20;
/// Files that a killed process did not finish are removed when they are this old.
const LEFT_OVER: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum What {
    Copy,
    Hashes,
}

impl What {
    fn suffix(self) -> &'static str {
        match self {
            Self::Copy => "pack",
            Self::Hashes => "sub",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    bytes: u64,
    /// Written or used by this run.
    ours: bool,
}

#[derive(Default)]
struct State {
    kept: HashMap<(PackId, What), Kept>,
    /// Of earlier runs: what to remove first.
    oldest: BTreeMap<(What, SystemTime, PackId), ()>,
    bytes: u64,
}

impl State {
    /// What goes for something new: copies of earlier runs, for hashes also other copies, and then hashes of earlier runs.
    fn victim(&mut self, room_for: What) -> Option<(PackId, What)> {
        let mut old = |of: What| {
            while let Some(entry) = self.oldest.first_entry().filter(|e| e.key().0 == of) {
                let ((what, _, pack), ()) = entry.remove_entry();
                if self.kept.get(&(pack, what)).is_some_and(|k| !k.ours) {
                    return Some((pack, what));
                }
            }
            None
        };
        match (old(What::Copy), room_for) {
            (None, What::Hashes) => {
                let any = self.kept.keys().find(|(_, what)| *what == What::Copy).copied();
                any.or_else(|| old(What::Hashes))
            }
            (found, _) => found,
        }
    }
}

/// A host's copies of packs, and hashes of sub-blocks.
pub struct BaseCache {
    dir: PathBuf,
    limit: u64,
    key: SecretBytes<32>,
    state: Mutex<State>,
    loaded: Bounded<PackId, Option<Arc<SubHashes>>>,
    /// A failure was told.
    told: AtomicBool,
}

impl BaseCache {
    /// Opens the cache of a repository, which may grow to `limit` bytes; `None` if the repository keeps nothing on this host.
    ///
    /// # Errors
    /// A key role that names no chunks. That the directory cannot be made or read is a warning, and the cache empty.
    pub fn open(repository: &Repository, limit: u64) -> Result<Option<Self>> {
        let Some(dir) = repository.cache().map(|dir| dir.join("bases")) else { return Ok(None) };
        let key = repository.keyring().subkey("sub-block hashes kept")?;
        let cache = Self {
            dir,
            limit,
            key,
            state: Mutex::default(),
            loaded: Bounded::new(HASHES_BYTES),
            told: AtomicBool::new(false),
        };
        match survey(&cache.dir) {
            Ok(state) => *cache.state() = state,
            Err(e) => cache.tell("look through", &e),
        }
        // The limit may have been greater.
        cache.reserve(0, What::Hashes);
        Ok(Some(cache))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, pack: PackId, what: What) -> PathBuf {
        self.dir.join(format!("{pack}.{}", what.suffix()))
    }

    fn tell(&self, what: &str, error: &io::Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let dir = self.dir.display();
            tracing::warn!("cannot {what} the base cache '{dir}': {error}; increments store more until that works");
        }
    }

    /// True if there is a copy of this pack.
    #[must_use]
    pub fn has(&self, pack: PackId) -> bool {
        self.state().kept.contains_key(&(pack, What::Copy))
    }

    /// Keeps hashes of a pack that is durable in the repository, if there are any, and a copy of it, if there is room.
    /// `bytes` are the pack's.
    pub fn keep(&self, pack: PackId, hashes: &SubHashes, bytes: Option<&[u8]>) {
        if !hashes.is_empty() {
            self.write(pack, What::Hashes, &hashes.encode(pack, &self.key));
        }
        if let Some(bytes) = bytes {
            self.write(pack, What::Copy, bytes);
        }
    }

    fn write(&self, pack: PackId, what: What, bytes: &[u8]) {
        let size = bytes.len() as u64;
        if !self.reserve(size, what) {
            return;
        }
        let written = replace(&self.path(pack, what), bytes);
        let mut state = self.state();
        let before = match &written {
            Ok(()) => state.kept.insert((pack, what), Kept { bytes: size, ours: true }).map_or(0, |k| k.bytes),
            Err(_) => size,
        };
        state.bytes = state.bytes.saturating_sub(before);
        drop(state);
        match written {
            // It may have been looked for in vain before.
            Ok(()) if what == What::Hashes => {
                self.loaded.put(pack, SubHashes::decode(bytes, pack, &self.key).map(Arc::new), bytes.len());
            }
            Ok(()) => {}
            Err(e) => self.tell("write to", &e),
        }
    }

    /// Takes so many bytes of the limit, removing files for them; false if there is no room.
    fn reserve(&self, bytes: u64, what: What) -> bool {
        let mut state = self.state();
        if bytes > self.limit {
            return false;
        }
        while state.bytes + bytes > self.limit {
            let Some(victim) = state.victim(what) else { return false };
            self.remove(&mut state, victim);
        }
        state.bytes += bytes;
        true
    }

    fn remove(&self, state: &mut State, (pack, what): (PackId, What)) {
        if let Some(kept) = state.kept.remove(&(pack, what)) {
            state.bytes = state.bytes.saturating_sub(kept.bytes);
        }
        match fs::remove_file(self.path(pack, what)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => self.tell("remove files from", &e),
            _ => {}
        }
    }

    /// Notes that a file was used, for this process and those to come.
    fn touch(&self, pack: PackId, what: What, file: &File) {
        let mut state = self.state();
        if let Some(kept) = state.kept.get_mut(&(pack, what)).filter(|k| !k.ours) {
            kept.ours = true;
            drop(state);
            if let Err(e) = file.set_modified(SystemTime::now()) {
                tracing::debug!("cannot note the use of {pack} in the base cache: {e}");
            }
        }
    }

    /// Bytes of a pack, sealed as they are; `None` if there is no copy, or not of all of them.
    #[must_use]
    pub fn read(&self, pack: PackId, offset: u64, len: usize) -> Option<Vec<u8>> {
        if !self.has(pack) {
            return None;
        }
        let mut bytes = vec![0; len];
        let read = File::open(self.path(pack, What::Copy)).and_then(|file| {
            file.read_exact_at(&mut bytes, offset)?;
            self.touch(pack, What::Copy, &file);
            Ok(())
        });
        match read {
            Ok(()) => Some(bytes),
            Err(e) => {
                tracing::debug!("the base cache's copy of pack {pack} cannot be read and is removed: {e}");
                self.remove(&mut self.state(), (pack, What::Copy));
                None
            }
        }
    }

    /// Removes a copy of which something did not open.
    pub fn forget(&self, pack: PackId, error: &Error) {
        tracing::warn!("the base cache's copy of pack {pack} is damaged and is removed: {}", error.chain());
        self.remove(&mut self.state(), (pack, What::Copy));
    }

    /// Hashes of the sub-blocks of a pack's pages, if they are known.
    #[must_use]
    pub fn sub_hashes(&self, pack: PackId) -> Option<Arc<SubHashes>> {
        if let Some(found) = self.loaded.get(&pack) {
            return found;
        }
        let known = self.state().kept.contains_key(&(pack, What::Hashes));
        let hashes = if known { self.load(pack) } else { None };
        self.loaded.put(pack, hashes.clone(), hashes.as_ref().map_or(64, |h| h.weight()));
        hashes
    }

    fn load(&self, pack: PackId) -> Option<Arc<SubHashes>> {
        let path = self.path(pack, What::Hashes);
        let read = File::open(&path).and_then(|file| {
            let bytes = fs::read(&path)?;
            self.touch(pack, What::Hashes, &file);
            Ok(bytes)
        });
        let hashes = read.map(|bytes| SubHashes::decode(&bytes, pack, &self.key));
        match hashes {
            Ok(Some(hashes)) => return Some(Arc::new(hashes)),
            Ok(None) => tracing::warn!("the base cache's hashes of pack {pack} are damaged and are removed"),
            Err(e) => tracing::debug!("the base cache's hashes of pack {pack} cannot be read and are removed: {e}"),
        }
        self.remove(&mut self.state(), (pack, What::Hashes));
        None
    }
}

/// What is there. Makes the directory, and removes what nobody finishes any more.
fn survey(dir: &Path) -> io::Result<State> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut state = State::default();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let facts = match entry.metadata() {
            Ok(facts) => facts,
            // Another process removed it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let modified = facts.modified()?;
        let parsed = name.to_str().and_then(|name| name.split_once('.'));
        let parsed = parsed.and_then(|(id, suffix)| Some((PackId::parse(id).ok()?, suffix)));
        let what = match parsed {
            Some((_, "pack")) => What::Copy,
            Some((_, "sub")) => What::Hashes,
            _ => {
                let old = modified.elapsed().is_ok_and(|age| age > LEFT_OVER);
                if old && name.to_str().is_some_and(|name| name.ends_with(".new")) {
                    fs::remove_file(entry.path())?;
                }
                continue;
            }
        };
        let Some((pack, _)) = parsed else { continue };
        state.bytes += facts.len();
        state.kept.insert((pack, what), Kept { bytes: facts.len(), ours: false });
        state.oldest.insert((what, modified, pack), ());
    }
    Ok(state)
}

/// Whole or not at all, as far as other processes see. Not durable.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new =
        path.with_extension(format!("{}.{}.new", path.extension().unwrap_or_default().display(), std::process::id()));
    let written = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
    let written = written.and_then(|file| file.write_all_at(bytes, 0)).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // What failed is told; this is only tidying up.
        drop(fs::remove_file(&new));
    }
    written
}

#[cfg(test)]
mod tests;
