//! What was read of packs, kept on this host as it is stored: many clones of one host read the same chunks, and a far store
//! need not bring them twice.
//!
//! *Shape.* One file for each pack, a log of *pieces*: a header with the piece's place in the pack, its length, and hashes
//! of header and bytes; then the bytes. No piece crosses a multiple of [`PIECE_BYTES`], so a part of a large read is found
//! again without reading all of it. Pieces are appended by one write each time, by any process; each remembers where the
//! pieces are that it has seen and looks for those of others when it misses something.
//!
//! *Trust.* Packs never change and names never return, so nothing can be out of date. The bytes are sealed: whoever uses
//! them finds out if they are not what was stored, and doubts them: the pieces that have them are spoiled in place then, so
//! that no process takes them for good. A piece whose hash does not fit is asked for again. So damage, here or once in the
//! repository, costs time only. What is behind a broken header is not used, and its file is removed.
//!
//! *Bounds.* When it has grown by a sixteenth of its limit the files used longest ago go, each as a whole; processes that
//! grow it at once may be over the limit by as much each. It leaves room to others on its file system as the base cache
//! does, and after a failure nothing more is written. Either is told once. No failure here fails a read.

use super::base_cache::files::{self, Space};
use crate::store::{Depth, Listed, Put, Range, Store, StoreError};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Longest piece, and what no piece crosses a multiple of.
const PIECE_BYTES: u64 = 64 << 10;
/// Place, length, hash of the bytes, hash of these three.
const HEADER_BYTES: usize = 8 + 4 + HASH_BYTES + HASH_BYTES;
const HASH_BYTES: usize = 16;
/// Files that are open at a time.
const OPEN_MAX: usize = 64;
/// Part of the limit after which room is made.
const GROWTH_SHARE: u64 = 16;
/// Unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;
/// Objects that are kept.
const PACKS: &str = "packs/";

/// A store that reads of packs only what is not kept on this host.
pub(super) struct PackCache {
    inner: Arc<dyn Store>,
    dir: PathBuf,
    limit: u64,
    open: Mutex<HashMap<String, Arc<Kept>>>,
    /// Written since room was made last.
    grown: AtomicU64,
    stopped: AtomicBool,
    /// That others need the room was told.
    full: AtomicBool,
}

/// The file of a pack.
struct Kept {
    file: File,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Bytes of the file that were looked at.
    upto: u64,
    /// Pieces by their place in the pack.
    pieces: BTreeMap<u64, Piece>,
    /// Nothing behind `upto` can be understood.
    broken: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    len: u32,
    /// Of its header, in the file.
    at: u64,
}

impl Seen {
    /// The piece, and its place in the pack, that has all of a part.
    fn holds(&self, part: &std::ops::Range<u64>) -> Option<(u64, Piece)> {
        let first = part.start / PIECE_BYTES * PIECE_BYTES;
        let mut near = self.pieces.range(first..=part.start).rev();
        near.find(|(offset, piece)| **offset + u64::from(piece.len) >= part.end).map(|(o, p)| (*o, *p))
    }
}

fn hash(parts: &[&[u8]]) -> [u8; HASH_BYTES] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    let mut out = [0; HASH_BYTES];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn header(offset: u64, bytes: &[u8]) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    let (facts, own) = out.split_at_mut(HEADER_BYTES - HASH_BYTES);
    let (place, sum) = facts.split_at_mut(12);
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    place.copy_from_slice(&[offset.to_le_bytes().as_slice(), len.to_le_bytes().as_slice()].concat());
    sum.copy_from_slice(&hash(&[place, bytes]));
    own.copy_from_slice(&hash(&[facts]));
    out
}

/// Place and length, if it is a header.
fn parse(header: &[u8; HEADER_BYTES]) -> Option<(u64, u32)> {
    let (facts, own) = header.split_at(HEADER_BYTES - HASH_BYTES);
    let (offset, rest) = facts.split_first_chunk::<8>()?;
    let len = u32::from_le_bytes(*rest.first_chunk::<4>()?);
    let fits = own == hash(&[facts]) && len > 0 && u64::from(len) <= PIECE_BYTES;
    fits.then_some((u64::from_le_bytes(*offset), len))
}

/// The parts of a span between multiples of [`PIECE_BYTES`].
fn parts(offset: u64, len: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    let end = offset.saturating_add(len);
    let mut at = offset;
    std::iter::from_fn(move || {
        let next = (at / PIECE_BYTES + 1).saturating_mul(PIECE_BYTES).min(end);
        let part = at..next;
        at = next;
        (part.start < part.end).then_some(part)
    })
}

impl Kept {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what was appended since, by whomever. A piece that is being written is looked at the next time.
    fn look(&self, seen: &mut Seen) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        while !seen.broken && seen.upto.saturating_add(HEADER_BYTES as u64) <= size {
            let mut found = [0; HEADER_BYTES];
            self.file.read_exact_at(&mut found, seen.upto)?;
            let Some((offset, len)) = parse(&found) else {
                seen.broken = true;
                break;
            };
            let end = seen.upto + HEADER_BYTES as u64 + u64::from(len);
            if end > size {
                break;
            }
            // Of two of a length the later one: it came because the other was damaged.
            if seen.pieces.get(&offset).is_none_or(|before| before.len <= len) {
                seen.pieces.insert(offset, Piece { len, at: seen.upto });
            }
            seen.upto = end;
        }
        Ok(())
    }

    /// A part of the pack that lies in one piece; `None` if it is not kept, or damaged.
    fn read(&self, part: &std::ops::Range<u64>) -> io::Result<Option<Vec<u8>>> {
        let mut seen = self.seen();
        let mut found = seen.holds(part);
        if found.is_none() {
            self.look(&mut seen)?;
            found = seen.holds(part);
        }
        drop(seen);
        let Some((offset, piece)) = found else { return Ok(None) };
        let mut bytes = vec![0; HEADER_BYTES + piece.len as usize];
        self.file.read_exact_at(&mut bytes, piece.at)?;
        let within = usize::try_from(part.start - offset).ok().zip(usize::try_from(part.end - offset).ok());
        let content = bytes.split_first_chunk::<HEADER_BYTES>();
        let good = content.filter(|(found, content)| **found == header(offset, content));
        match good.zip(within).and_then(|((_, content), (from, upto))| content.get(from..upto)) {
            Some(wanted) => Ok(Some(wanted.to_vec())),
            None => {
                self.seen().pieces.remove(&offset);
                Ok(None)
            }
        }
    }
}

impl PackCache {
    /// Keeps what is read of packs of `inner` in `dir`. The error says why it cannot.
    pub(super) fn over(inner: Arc<dyn Store>, dir: PathBuf, limit: u64) -> Result<Self, String> {
        files::prepare(&dir)?;
        let (open, grown, stopped, full) = Default::default();
        let cache = Self { inner, dir, limit, open, grown, stopped, full };
        // The limit may have been greater.
        cache.make_room();
        Ok(cache)
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        let name = key.strip_prefix(PACKS)?.rsplit('/').next()?;
        let is_plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
        is_plain.then(|| self.dir.join(name))
    }

    fn open(&self, key: &str) -> io::Result<Option<Arc<Kept>>> {
        let Some(path) = self.path(key) else { return Ok(None) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = open.get(key) {
            // Removed by whoever made room, or broken: a new one is begun.
            let (is_there, is_broken) = (kept.file.metadata()?.nlink() > 0, kept.seen().broken);
            if is_there && !is_broken {
                return Ok(Some(Arc::clone(kept)));
            }
            if is_there {
                fs::remove_file(&path)?;
            }
            open.remove(key);
        }
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
        let file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(&path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file"));
        }
        // What is used stays.
        file.set_modified(SystemTime::now())?;
        let kept = Arc::new(Kept { file, seen: Mutex::default() });
        if open.len() >= OPEN_MAX
            && let Some(any) = open.keys().next().cloned()
        {
            open.remove(&any);
        }
        open.insert(key.to_owned(), Arc::clone(&kept));
        Ok(Some(kept))
    }

    /// Bytes of a pack: kept ones, and the rest by one request for all between the first and the last that is missing.
    fn span(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let all = || self.inner.get(key, Range::Span { offset, len });
        let kept = match self.open(key) {
            Ok(Some(kept)) => kept,
            Ok(None) => return all(),
            Err(e) => {
                self.stop(&e);
                return all();
            }
        };
        let mut out = Vec::with_capacity(len);
        let mut missing: Option<std::ops::Range<u64>> = None;
        for part in parts(offset, len as u64) {
            let found = kept.read(&part).unwrap_or_else(|e| {
                self.stop(&e);
                None
            });
            match found {
                Some(bytes) => out.extend_from_slice(&bytes),
                None => {
                    missing = Some(missing.map_or(part.start, |m| m.start)..part.end);
                    out.resize(out.len() + (part.end - part.start) as usize, 0);
                }
            }
        }
        let Some(missing) = missing else { return Ok(out) };
        let length = (missing.end - missing.start) as usize;
        let bytes = self.inner.get(key, Range::Span { offset: missing.start, len: length })?;
        let from = (missing.start - offset) as usize;
        match out.get_mut(from..from + length) {
            Some(place) if bytes.len() == length => place.copy_from_slice(&bytes),
            // Whoever reads tells what the store has done.
            _ => return all(),
        }
        self.keep(&kept, missing.start, &bytes);
        Ok(out)
    }

    fn keep(&self, kept: &Kept, offset: u64, bytes: &[u8]) {
        let length = bytes.len() as u64;
        if self.stopped.load(Ordering::Relaxed) || length > self.limit / GROWTH_SHARE || !self.admits(length) {
            return;
        }
        let mut log = Vec::with_capacity(bytes.len() + HEADER_BYTES);
        let mut seen = kept.seen();
        // Another may have kept the same meanwhile.
        if let Err(e) = kept.look(&mut seen) {
            return self.stop(&e);
        }
        if seen.broken {
            return;
        }
        for part in parts(offset, bytes.len() as u64).filter(|part| seen.holds(part).is_none()) {
            let of = (part.start - offset) as usize..(part.end - offset) as usize;
            let piece = bytes.get(of).unwrap_or_default();
            log.extend_from_slice(&header(part.start, piece));
            log.extend_from_slice(piece);
        }
        // One write: pieces of others come before or behind.
        let written = (&kept.file).write(&log);
        drop(seen);
        match written {
            Ok(written) if written == log.len() => {}
            // Whoever looks at what comes behind half a piece finds that it is broken.
            Ok(_) => return self.stop(&io::ErrorKind::StorageFull.into()),
            Err(e) => return self.stop(&e),
        }
        let grown = self.grown.fetch_add(log.len() as u64, Ordering::Relaxed) + log.len() as u64;
        if grown > self.limit / GROWTH_SHARE {
            self.grown.store(0, Ordering::Relaxed);
            self.make_room();
        }
    }

    /// Removes the files used longest ago, so that it can grow again without being over the limit.
    fn make_room(&self) {
        if let Err(e) = clear_to(&self.dir, self.limit - self.limit / GROWTH_SHARE * 2) {
            self.stop(&e);
        }
    }

    /// Whether so much may be written now. There may be room again later.
    fn admits(&self, bytes: u64) -> bool {
        match Space::around(&self.dir) {
            Ok(space) if space.admits(bytes) => return true,
            Ok(_) if !self.full.swap(true, Ordering::Relaxed) => tracing::warn!(
                "what is read of packs is not kept while the file system of '{}' has so little room left",
                self.dir.display()
            ),
            Ok(_) => {}
            Err(e) => self.stop(&e),
        }
        false
    }

    /// Forgets what is kept of a part of a pack, for all processes. True if there was any.
    fn forget(&self, key: &str, part: std::ops::Range<u64>) -> io::Result<bool> {
        let Some(path) = self.path(key).filter(|path| path.exists()) else { return Ok(false) };
        let Some(kept) = self.open(key)? else { return Ok(false) };
        // Not the descriptor at hand: it appends, wherever it is told to write.
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(&path)?;
        if file.metadata()?.ino() != kept.file.metadata()?.ino() {
            return Err(io::Error::other("it was replaced meanwhile"));
        }
        let mut seen = kept.seen();
        kept.look(&mut seen)?;
        let first = part.start / PIECE_BYTES * PIECE_BYTES;
        let near = seen.pieces.range(first..part.end).map(|(offset, piece)| (*offset, *piece));
        let doubted: Vec<_> = near.filter(|(offset, piece)| offset + u64::from(piece.len) > part.start).collect();
        for (offset, piece) in &doubted {
            let mut bytes = vec![0; HEADER_BYTES + piece.len as usize];
            kept.file.read_exact_at(&mut bytes, piece.at)?;
            // One that does not fit its header already is used by nobody, and must not be made to fit.
            if let Some((found, content)) = bytes.split_first_chunk::<HEADER_BYTES>()
                && let Some(byte) = content.first().filter(|_| *found == header(*offset, content))
            {
                file.write_all_at(&[!byte], piece.at + HEADER_BYTES as u64)?;
            }
            seen.pieces.remove(offset);
        }
        Ok(!doubted.is_empty())
    }

    /// Writes nothing more.
    fn stop(&self, error: &io::Error) {
        if !self.stopped.swap(true, Ordering::Relaxed) {
            tracing::warn!("nothing more is kept of packs in '{}': {error}", self.dir.display());
        }
    }
}

fn clear_to(dir: &Path, bytes: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(facts) if facts.is_file() => {
                files.push((facts.modified()?, facts.blocks() * STAT_BLOCK_BYTES, entry.path()))
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    files.sort_unstable();
    let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in files {
        if total <= bytes {
            break;
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => total -= size,
        }
    }
    Ok(())
}

impl std::fmt::Debug for PackCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackCache").field("inner", &self.inner).field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Store for PackCache {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        self.inner.put_if_absent(key, bytes)
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        match range {
            Range::Span { offset, len } if len > 0 && key.starts_with(PACKS) => self.span(key, offset, len),
            _ => self.inner.get(key, range),
        }
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        self.inner.list(prefix, depth, each)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn will_get(&self, key: &str, spans: &[(u64, usize)]) {
        self.inner.will_get(key, spans);
    }

    fn doubt(&self, key: &str, offset: u64, len: usize) -> bool {
        let forgotten = self.forget(key, offset..offset.saturating_add(len as u64)).unwrap_or_else(|e| {
            tracing::debug!("what is kept of '{key}' goes as a whole: {e}");
            self.path(key).is_some_and(|path| fs::remove_file(path).is_ok())
        });
        forgotten | self.inner.doubt(key, offset, len)
    }

    fn gap(&self) -> u64 {
        self.inner.gap()
    }

    fn is_near(&self) -> bool {
        self.inner.is_near()
    }
}

#[cfg(test)]
mod tests;
