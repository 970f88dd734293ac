//! Local copies of the repository's index segments, searched where they lie.
//!
//! Owns one directory: `<hash of object name>.seg` per segment, `.tmp` while written, `.poisoned` for files that
//! failed a check (the newest per segment is kept for a look). Any number of processes may share it: files
//! are immutable, appear by rename, and a mapping outlives the unlinking of its file. Each file carries the
//! name and size of the object it copies under a MAC; see [`file`] for what that promises.
//!
//! A lookup asks the filters in the order of the wanted list, newest first, and answers from the first
//! acceptable hit. `None` is certain: when a wanted segment is not installed and no other has the chunk, the
//! answer is an error that names it.
//!
//! Threads: lookups take a snapshot of the list under a short read lock and search without one.

mod file;

use super::error::{IndexError, io};
use super::{ChunkAt, ChunkIndex, PackFacts};
pub(super) use file::path_of;
use file::{OpenFailure, Segment};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::index::IndexView;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use zeroize::Zeroizing;

/// A temporary file this old was left by a process that died.
const STALE_TEMPORARY: Duration = Duration::from_secs(24 * 3600);

/// Tells temporary files of one process apart.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

#[derive(Clone)]
struct Slot {
    object: String,
    size: u64,
    /// `None`: wanted but not installed.
    segment: Option<Arc<Segment>>,
}

/// The segments of one repository.
pub struct SegmentSet {
    dir: PathBuf,
    key: Zeroizing<[u8; 32]>,
    slots: RwLock<Arc<Vec<Slot>>>,
}

impl SegmentSet {
    /// Opens the copies of the wanted objects, given by name and size in bytes, newest first; creates `dir`
    /// if need be. Copies of other objects are removed, damaged ones moved away.
    ///
    /// Returns also the names that must be fetched and given to [`Self::install`], in the same order.
    /// Objects that an installed segment supersedes are not among them.
    ///
    /// # Errors
    /// [`IndexError::File`] if the directory cannot be used.
    pub fn open(
        dir: impl Into<PathBuf>,
        key: &[u8; 32],
        wanted: &[(String, u64)],
    ) -> Result<(Self, Vec<String>), IndexError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(io("create", &dir))?;
        let mut seen = HashSet::new();
        let mut slots = Vec::with_capacity(wanted.len());
        for (object, size) in wanted.iter().filter(|(object, _)| seen.insert(object.as_str())) {
            let segment = match Segment::open(&path_of(&dir, object), key, object, *size) {
                Ok(segment) => Some(Arc::new(segment)),
                Err(OpenFailure::Absent) => None,
                Err(OpenFailure::Damaged(damage)) => {
                    move_away(&dir, object, damage.0);
                    None
                }
                Err(OpenFailure::Io(e)) => return Err(e),
            };
            slots.push(Slot { object: object.clone(), size: *size, segment });
        }
        drop_superseded(&dir, &mut slots);
        sweep(&dir, &slots);
        let set = Self { dir, key: Zeroizing::new(*key), slots: RwLock::new(Arc::new(slots)) };
        let missing = set.missing();
        Ok((set, missing))
    }

    /// Names of wanted objects that are not installed, newest first.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        self.snapshot().iter().filter(|slot| slot.segment.is_none()).map(|slot| slot.object.clone()).collect()
    }

    /// Checks the decrypted payload of an index object, writes the local copy and uses it from now on. What
    /// it supersedes is dropped. An object that was not wanted so far counts as the newest.
    ///
    /// `size` is that of the stored object, as in [`Self::open`].
    ///
    /// # Errors
    /// [`IndexError::Payload`] if the payload cannot be decoded, [`IndexError::File`] if the copy cannot be written,
    /// [`IndexError::Poisoned`] if what was written does not read back.
    pub fn install(&self, object: &str, size: u64, payload: &[u8]) -> Result<(), IndexError> {
        let view =
            IndexView::parse(payload).map_err(|source| IndexError::Payload { object: object.to_owned(), source })?;
        let path = path_of(&self.dir, object);
        let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
        file::write(&path, &temporary, &self.key, object, size, &view)?;
        let segment = match Segment::open(&path, &self.key, object, size) {
            Ok(segment) => Arc::new(segment),
            Err(OpenFailure::Io(e)) => return Err(e),
            Err(OpenFailure::Absent) => {
                return Err(IndexError::Poisoned { object: object.to_owned(), detail: "it vanished" });
            }
            Err(OpenFailure::Damaged(damage)) => {
                move_away(&self.dir, object, damage.0);
                return Err(IndexError::Poisoned { object: object.to_owned(), detail: damage.0 });
            }
        };
        self.change(|dir, slots| {
            match slots.iter_mut().find(|slot| slot.object == object) {
                Some(slot) => (slot.size, slot.segment) = (size, Some(segment)),
                None => slots.insert(0, Slot { object: object.to_owned(), size, segment: Some(segment) }),
            }
            drop_superseded(dir, slots);
        });
        Ok(())
    }

    /// As [`ChunkIndex::lookup`], but passes over places in packs that `accept` refuses: the same chunk may
    /// lie in another segment's pack.
    ///
    /// # Errors
    /// [`IndexError::Poisoned`] or [`IndexError::Incomplete`]: install the named object, then ask again.
    pub fn lookup_where(
        &self,
        id: &ChunkId,
        accept: impl Fn(&PackFacts) -> bool,
    ) -> Result<Option<ChunkAt>, IndexError> {
        let (mut absent, mut delta) = (None, None);
        for slot in self.snapshot().iter() {
            let Some(segment) = &slot.segment else {
                absent = absent.or(Some(&slot.object).cloned());
                continue;
            };
            match segment.lookup(id) {
                Ok(Some(at)) if accept(&at.pack) && !at.encoding.is_delta() => return Ok(Some(at)),
                Ok(Some(at)) if accept(&at.pack) => delta = delta.or(Some(at)),
                Ok(_) => {}
                Err(damage) => {
                    self.retire(&slot.object, segment, damage.0);
                    return Err(IndexError::Poisoned { object: slot.object.clone(), detail: damage.0 });
                }
            }
        }
        match absent {
            // It might hold the chunk in full.
            Some(object) => Err(IndexError::Incomplete { object }),
            None => Ok(delta),
        }
    }

    /// The packs that installed segments name.
    #[must_use]
    pub fn packs(&self) -> HashMap<PackId, Arc<PackFacts>> {
        let slots = self.snapshot();
        let segments = slots.iter().filter_map(|slot| slot.segment.as_ref());
        segments.flat_map(|segment| segment.packs()).map(|facts| (facts.pack, Arc::clone(facts))).collect()
    }

    /// How many objects are wanted.
    #[must_use]
    pub fn count(&self) -> usize {
        self.snapshot().len()
    }

    /// The size under which an object is wanted.
    #[must_use]
    pub fn size_of(&self, object: &str) -> Option<u64> {
        self.snapshot().iter().find(|slot| slot.object == object).map(|slot| slot.size)
    }

    fn snapshot(&self) -> Arc<Vec<Slot>> {
        Arc::clone(&self.slots.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, edit: impl FnOnce(&Path, &mut Vec<Slot>)) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        edit(&self.dir, Arc::make_mut(&mut slots));
    }

    /// Takes a damaged segment out of use, once, though several threads may have met the damage.
    fn retire(&self, object: &str, damaged: &Arc<Segment>, detail: &'static str) {
        self.change(|dir, slots| {
            let slot = slots.iter_mut().find(|slot| slot.object == object);
            if let Some(slot) = slot.filter(|slot| slot.segment.as_ref().is_some_and(|s| Arc::ptr_eq(s, damaged))) {
                slot.segment = None;
                move_away(dir, object, detail);
            }
        });
    }
}

impl ChunkIndex for SegmentSet {
    fn lookup(&self, id: &ChunkId) -> Result<Option<ChunkAt>, IndexError> {
        self.lookup_where(id, |_| true)
    }

    fn len(&self) -> u64 {
        self.snapshot().iter().filter_map(|slot| slot.segment.as_ref()).map(|segment| segment.len()).sum()
    }
}

/// Moves a file that failed a check out of the way. If even that fails it is met again and refused again.
fn move_away(dir: &Path, object: &str, detail: &str) {
    let path = path_of(dir, object);
    let away = path.with_extension("poisoned");
    tracing::warn!("cached copy of index segment '{object}' is damaged ({detail}): it is fetched again");
    if let Err(e) = fs::rename(&path, &away).or_else(|_| fs::remove_file(&path)) {
        tracing::debug!("cannot move '{}' away: {e}", path.display());
    }
}

/// Forgets the slots, and removes the copies, of objects that an installed segment replaces.
fn drop_superseded(dir: &Path, slots: &mut Vec<Slot>) {
    let installed = slots.iter().filter_map(|slot| slot.segment.as_ref().map(|segment| (&slot.object, segment)));
    let gone: HashSet<String> = installed
        .flat_map(|(object, segment)| segment.supersedes().iter().filter(move |name| *name != object))
        .cloned()
        .collect();
    slots.retain(|slot| {
        let keep = !gone.contains(&slot.object);
        if !keep && slot.segment.is_some() {
            remove(&path_of(dir, &slot.object));
        }
        keep
    });
}

/// Removes copies of objects that are no longer wanted, and what dead processes left.
fn sweep(dir: &Path, slots: &[Slot]) {
    let wanted: HashSet<PathBuf> = slots.iter().map(|slot| path_of(dir, &slot.object)).collect();
    let Ok(listing) = fs::read_dir(dir) else { return };
    for path in listing.flatten().map(|found| found.path()) {
        let unwanted = match path.extension().and_then(OsStr::to_str) {
            Some("seg") => !wanted.contains(&path),
            Some("poisoned") => !wanted.contains(&path.with_extension("seg")),
            Some("tmp") => is_stale(&path),
            _ => false,
        };
        if unwanted {
            remove(&path);
        }
    }
}

fn is_stale(path: &Path) -> bool {
    let written = fs::metadata(path).and_then(|facts| facts.modified());
    written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE_TEMPORARY))
}

/// Best effort: a file that stays costs space and is looked at again by the next `open`.
fn remove(path: &Path) {
    if let Err(e) = fs::remove_file(path) {
        tracing::debug!("cannot remove '{}': {e}", path.display());
    }
}
