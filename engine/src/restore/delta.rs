//! Comparing what lies in the target with the backup, without reading the repository.
//!
//! A chunk's name is the keyed hash of its bytes. So if the pieces of a window cover a chunk whole, what lies in the
//! target in their places is put together and hashed: the same name means the same bytes. That holds for the regions of
//! large files as for small files that share a chunk. Of a chunk of which the window has only parts the pages are compared
//! by the hashes beside it. One without must be fetched; `transfer` then writes only what differs, in blocks.

use super::transfer::read;
use super::window::{Group, Job, Window, Zeros};
use super::workers::for_each;
use crate::chunk::is_zero;
use crate::crypto::PageHasher;
use crate::observe::Counter;
use crate::{FileError, Result};
use pgkeep_formats::id::PackId;
use pgkeep_formats::repo::layout;
use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

/// Zeros looked at, and if need be written, at a time.
const ZERO_BYTES: usize = 256 << 10;

/// Groups a thread compares in a row, so that what it reads of a file is one stretch: 8 MiB of regions of the usual size.
const BATCH: usize = 32;

/// Packs that do not tell the hashes of their pages. Each is asked once and warned of once.
#[derive(Debug, Default)]
pub(super) struct Incomparable(Mutex<HashSet<PackId>>);

impl Incomparable {
    fn contains(&self, pack: PackId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&pack)
    }

    /// True if the pack was not among them.
    fn insert(&self, pack: PackId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pack)
    }
}

/// One comparing thread.
#[derive(Default)]
struct Reader {
    open: Option<(u32, File)>,
    plain: Vec<u8>,
    again: Vec<u8>,
    hasher: Option<PageHasher>,
}

/// Puts zeros where the backup has them.
pub(super) fn put_zeros(job: &Job<'_>, window: &Window) -> Result<()> {
    for_each("restore-zeros", job.threads, window.zeros.len(), job.env.cancel, |reader: &mut Reader, n| {
        window.zeros.get(n).map_or(Ok(()), |zeros| reader.zeros(job, window, zeros))
    })
}

/// Decides for each of these groups whether it must be fetched.
pub(super) fn compare(job: &Job<'_>, window: &Window, groups: &[Group]) -> Result<()> {
    let count = groups.chunks(BATCH).len();
    for_each("restore-compare", job.threads, count, job.env.cancel, |reader: &mut Reader, n| {
        let batch = groups.chunks(BATCH).nth(n).unwrap_or_default();
        reader.announce(job, window, batch);
        for group in batch {
            job.env.cancel.check()?;
            let same = reader.is_same(job, window, group)?;
            group.wanted.store(!same, Ordering::Relaxed);
            if same {
                let bytes = window.pieces(group).iter().map(|p| u64::from(p.len)).sum();
                job.env.observer.add(Counter::Done, bytes);
            }
        }
        Ok(())
    })
}

impl Reader {
    fn file(&mut self, job: &Job<'_>, window: &Window, number: u32) -> Result<&File> {
        let open = match self.open.take() {
            Some(open) if open.0 == number => open,
            _ => (number, job.place.file(&window.file(number)?.entry.path, OFlags::RDWR)?),
        };
        Ok(&self.open.insert(open).1)
    }

    /// Has the system read a batch's stretch of a file ahead: threads that take turns on a file defeat its own guess.
    fn announce(&mut self, job: &Job<'_>, window: &Window, batch: &[Group]) {
        let mut pieces = batch.iter().filter_map(|group| window.pieces(group).first());
        let Some(first) = pieces.next() else { return };
        let end = pieces.filter(|p| p.file == first.file).map(|p| p.in_file + u64::from(p.len)).max();
        let len = end.and_then(|end| NonZeroU64::new(end.saturating_sub(first.in_file)));
        // A favour: what cannot be opened or announced is met again, and told, when it is read.
        if let (Some(len), Ok(file)) = (len, self.file(job, window, first.file)) {
            let _ = rustix::fs::fadvise(file, first.in_file, Some(len), Advice::WillNeed);
        }
    }

    /// True if all pieces are known to hold what the chunk holds.
    fn is_same(&mut self, job: &Job<'_>, window: &Window, group: &Group) -> Result<bool> {
        let pieces = window.pieces(group);
        let (mut reach, mut whole) = (0, true);
        for piece in pieces {
            // New files hold zeros.
            if window.file(piece.file)?.is_fresh() {
                return Ok(false);
            }
            // The pieces are sorted: a gap is never filled later.
            whole &= piece.range().start <= reach;
            reach = reach.max(piece.range().end);
        }
        if !whole || reach != group.at.plain_len as usize {
            return self.has_same_pages(job, window, group);
        }
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        plain.resize(reach, 0);
        let same = self.assemble(job, window, group, &mut plain);
        self.plain = plain;
        same
    }

    /// True if every page of the pieces has the hash that stands beside the chunk.
    fn has_same_pages(&mut self, job: &Job<'_>, window: &Window, group: &Group) -> Result<bool> {
        let repository = job.source.repository();
        let pack = group.at.pack.pack;
        if job.incomparable.contains(pack) {
            return Ok(false);
        }
        let contents = match repository.pack_contents(&group.at.pack) {
            Ok(contents) => contents,
            Err(e) if e.concerns_the_run() => return Err(e),
            // Its chunks may be whole all the same: fetching them will tell.
            Err(e) => {
                if job.incomparable.insert(pack) {
                    let name = layout::pack(pack);
                    tracing::warn!("pages of '{name}' cannot be compared and are fetched: {}", e.chain());
                }
                return Ok(false);
            }
        };
        let hashes = contents.hashes(group.at.ordinal);
        if contents.id(group.at.ordinal) != Some(group.id) || hashes.is_empty() {
            return Ok(false);
        }
        let page = group.at.plain_len as usize / hashes.len();
        if self.hasher.is_none() {
            self.hasher = Some(repository.keyring().page_hasher()?);
        }
        let mut there = std::mem::take(&mut self.plain);
        let mut same = page > 0;
        for piece in window.pieces(group) {
            let range = piece.range();
            if !same || !range.start.is_multiple_of(page) || !range.len().is_multiple_of(page) {
                same = false;
                break;
            }
            there.resize(range.len(), 0);
            let path = &window.file(piece.file)?.entry.path;
            read(self.file(job, window, piece.file)?, job.place, path, &mut there, piece.in_file)?;
            let wanted = hashes.iter().skip(range.start / page);
            let hasher = self.hasher.as_ref();
            same = there.chunks(page).zip(wanted).all(|(p, h)| hasher.is_some_and(|hasher| hasher.hash(p) == *h));
        }
        self.plain = there;
        Ok(same)
    }

    fn assemble(&mut self, job: &Job<'_>, window: &Window, group: &Group, plain: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        for piece in window.pieces(group) {
            let path = &window.file(piece.file)?.entry.path;
            let range = piece.range();
            if range.start == filled {
                filled = range.end;
                let Some(out) = plain.get_mut(range) else { return Ok(false) };
                read(self.file(job, window, piece.file)?, job.place, path, out, piece.in_file)?;
                continue;
            }
            // The same bytes once more, in another place or file.
            let mut again = std::mem::take(&mut self.again);
            again.resize(range.len(), 0);
            let done = read(self.file(job, window, piece.file)?, job.place, path, &mut again, piece.in_file);
            let known = filled.saturating_sub(range.start).min(range.len());
            let (old, new) = again.split_at(known);
            let mut same = plain.get(range.start..range.start + known) == Some(old);
            if let Some(rest) = plain.get_mut(range.start + known..range.end) {
                rest.copy_from_slice(new);
                filled = filled.max(range.end);
            } else {
                same = false;
            }
            self.again = again;
            done?;
            if !same {
                return Ok(false);
            }
        }
        let keyring = job.source.repository().keyring();
        Ok(keyring.chunk_id(group.at.kind.as_u8(), plain)? == group.id)
    }

    /// Makes a stretch zero that is not.
    fn zeros(&mut self, job: &Job<'_>, window: &Window, zeros: &Zeros) -> Result<()> {
        let work = window.file(zeros.file)?;
        let path = &work.entry.path;
        let end = zeros.in_file + zeros.len;
        let mut at = if work.is_fresh() { end } else { zeros.in_file };
        let mut buffer = std::mem::take(&mut self.plain);
        while at < end {
            let len = (end - at).min(ZERO_BYTES as u64);
            buffer.resize(len as usize, 0);
            let file = self.file(job, window, zeros.file)?;
            read(file, job.place, path, &mut buffer, at)?;
            if !is_zero(&buffer) {
                match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len) {
                    Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                        buffer.fill(0);
                        file.write_all_at(&buffer, at).map_err(FileError::at("write", job.place.real(path)))?;
                    }
                    other => other.map_err(super::place::at("write", job.place.real(path)))?,
                }
                work.note_change();
                job.totals.written.fetch_add(len, Ordering::Relaxed);
            }
            at += len;
        }
        self.plain = buffer;
        job.env.observer.add(Counter::Done, zeros.len);
        Ok(())
    }
}
