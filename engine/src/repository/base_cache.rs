//! What a host keeps of its backups so that increments need not fetch old pages: copies of packs, and hashes of the
//! sub-blocks of their pages.
//!
//! A directory of this repository alone, `bases/` in its cache: `<pack>.pack` and `<pack>.sub`. None of it is trusted: a copy
//! holds sealed chunks, which open only if they are what the index says, and the hashes are authenticated
//! ([`SubHashes`]). Losing it, or a part, costs size in the next increment and nothing else, so nothing is made durable
//! and no failure here fails a backup. It gives way to everything else on its file system, which may be the server's: some
//! is always left free, and after the first write that failed nothing is written any more.
//!
//! Bounded in bytes, files used last stay. Hashes go before copies: they are a sixtieth of the pages and serve nearly as
//! well. Copies of this run never make room for each other, or a first full would write itself through the cache.
//!
//! Any thread may call; the lock is held for book-keeping, not for IO. Several processes may share it: each sees the others'
//! files when it starts, so together they may be over the limit for a while.

pub(super) mod files;
mod sub_hashes;

pub use sub_hashes::{PendingHashes, SubHashes};

use self::files::Space;
use super::Repository;
use super::bases::Bounded;
use crate::crypto::SecretBytes;
use crate::{Error, Result};
use pgkeep_formats::id::PackId;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Bytes of sub-block hashes kept in memory: those of some 2 GiB of pages.
const HASHES_BYTES: usize = 32 << 20;

/// Tells of the file system that holds a directory.
type Measure = dyn Fn(&Path) -> io::Result<Space> + Send + Sync;

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
    measure: Box<Measure>,
    /// A write failed: nothing is written any more.
    stopped: AtomicBool,
    /// Told that the file system has too little room.
    tight: AtomicBool,
    /// Told that a file could not be removed.
    stuck: AtomicBool,
}

impl BaseCache {
    /// Opens the cache of a repository, which may grow to `limit` bytes. The inner error says why there is none: the
    /// repository keeps nothing on this host, or its directory cannot be made or is not this user's alone to write to.
    ///
    /// # Errors
    /// A key role that names no chunks.
    pub fn open(repository: &Repository, limit: u64) -> Result<std::result::Result<Self, String>> {
        let Some(dir) = Self::place(repository) else { return Ok(Err("there is no cache directory".to_owned())) };
        let key = repository.keyring().subkey("sub-block hashes kept")?;
        Ok(Self::open_in(dir, limit, key, Box::new(Space::around)))
    }

    fn open_in(
        dir: PathBuf,
        limit: u64,
        key: SecretBytes<32>,
        measure: Box<Measure>,
    ) -> std::result::Result<Self, String> {
        files::prepare(&dir)?;
        let state = Mutex::new(files::survey(&dir)?);
        let loaded = Bounded::new(HASHES_BYTES);
        let (stopped, tight, stuck) = Default::default();
        let cache = Self { dir, limit, key, state, loaded, measure, stopped, tight, stuck };
        // The limit may have been greater.
        cache.reserve(0, What::Hashes);
        Ok(cache)
    }

    /// Removes what a repository that is to keep nothing any more has kept on this host.
    pub fn clear(repository: &Repository) {
        if let Some(dir) = Self::place(repository) {
            clear(&dir);
        }
    }

    fn place(repository: &Repository) -> Option<PathBuf> {
        repository.cache().map(|dir| dir.join("bases"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, pack: PackId, what: What) -> PathBuf {
        path(&self.dir, pack, what)
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
        if !self.may_write(size) || !self.reserve(size, what) {
            return;
        }
        let written = files::replace(&self.path(pack, what), bytes);
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
            Err(e) => self.stop(&e),
        }
    }

    /// False if so much could never stay, or is not to be written. Trying again and again would fill the disk each time.
    fn may_write(&self, bytes: u64) -> bool {
        if bytes > self.limit || self.stopped.load(Ordering::Relaxed) {
            return false;
        }
        let space = match (self.measure)(&self.dir) {
            Ok(space) => space,
            Err(e) => {
                self.stop(&e);
                return false;
            }
        };
        let admits = space.admits(bytes);
        if !admits && !self.tight.swap(true, Ordering::Relaxed) {
            let (dir, free, leaves) = (self.dir.display(), space.free >> 20, space.headroom() >> 20);
            tracing::warn!(
                "the base cache '{dir}' leaves {leaves} MiB of its file system free, which has {free} MiB: what is not kept makes \
                 increments larger"
            );
        }
        admits
    }

    /// Writes nothing more.
    fn stop(&self, error: &io::Error) {
        if !self.stopped.swap(true, Ordering::Relaxed) {
            let dir = self.dir.display();
            tracing::warn!(
                "cannot write to the base cache '{dir}': {error}; nothing more is kept of this run, which makes increments larger"
            );
        }
    }

    /// Takes so many bytes of the limit, removing files for them; false if there is no room.
    fn reserve(&self, bytes: u64, what: What) -> bool {
        if bytes > self.limit {
            return false;
        }
        loop {
            let mut state = self.state();
            if state.bytes + bytes <= self.limit {
                state.bytes += bytes;
                return true;
            }
            let Some(victim) = state.victim(what) else { return false };
            drop(state);
            self.remove(victim);
        }
    }

    /// Of threads that remove the same file one does.
    fn remove(&self, (pack, what): (PackId, What)) {
        let Some(kept) = self.state().kept.remove(&(pack, what)) else { return };
        match fs::remove_file(self.path(pack, what)) {
            // It is of no use but takes its room.
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                if !self.stuck.swap(true, Ordering::Relaxed) {
                    tracing::warn!("cannot remove files from the base cache '{}': {e}", self.dir.display());
                }
            }
            _ => {
                let mut state = self.state();
                state.bytes = state.bytes.saturating_sub(kept.bytes);
            }
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
        let read = files::open(&self.path(pack, What::Copy)).and_then(|file| {
            file.read_exact_at(&mut bytes, offset)?;
            self.touch(pack, What::Copy, &file);
            Ok(())
        });
        match read {
            Ok(()) => Some(bytes),
            Err(e) => {
                tracing::debug!("the base cache's copy of pack {pack} cannot be read and is removed: {e}");
                self.remove((pack, What::Copy));
                None
            }
        }
    }

    /// Removes a copy of which something did not open.
    pub fn forget(&self, pack: PackId, error: &Error) {
        tracing::warn!("the base cache's copy of pack {pack} is damaged and is removed: {}", error.chain());
        self.remove((pack, What::Copy));
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
        let read = files::open(&self.path(pack, What::Hashes)).and_then(|mut file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            self.touch(pack, What::Hashes, &file);
            Ok(bytes)
        });
        let hashes = read.map(|bytes| SubHashes::decode(&bytes, pack, &self.key));
        match hashes {
            Ok(Some(hashes)) => return Some(Arc::new(hashes)),
            Ok(None) => tracing::warn!("the base cache's hashes of pack {pack} are damaged and are removed"),
            Err(e) => tracing::debug!("the base cache's hashes of pack {pack} cannot be read and are removed: {e}"),
        }
        self.remove((pack, What::Hashes));
        None
    }
}

/// Removes the files of a cache that is used no more, if there is one.
fn clear(dir: &Path) {
    if fs::symlink_metadata(dir).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return;
    }
    let state = match files::check(dir).and_then(|()| files::survey(dir)) {
        Ok(state) => state,
        Err(why) => {
            // Not ours, so neither what is in it.
            tracing::debug!("the base cache, which is used no more, is left as it is: {why}");
            return;
        }
    };
    let (mut bytes, mut failure) = (0, None);
    for ((pack, what), kept) in &state.kept {
        match fs::remove_file(path(dir, *pack, *what)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => failure = Some(e),
            _ => bytes += kept.bytes,
        }
    }
    let dir = dir.display();
    if bytes > 0 {
        tracing::info!("removed {bytes} bytes from the base cache '{dir}', which is used no more");
    }
    if let Some(e) = failure {
        tracing::warn!("cannot remove files from the base cache '{dir}', which is used no more: {e}");
    }
}

fn path(dir: &Path, pack: PackId, what: What) -> PathBuf {
    dir.join(format!("{pack}.{}", what.suffix()))
}

#[cfg(test)]
mod tests;
