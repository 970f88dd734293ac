//! Restoring content, a window of files at a time.
//!
//! A window is a stretch of the manifest: up to [`PIECES_MAX`] extents or [`FILES_MAX`] files. Within it every chunk is
//! fetched, opened and checked once, however many extents use it, and packs are read in order; that also serves as the
//! cache that scattered extents need. Steps: `prepare` files, `delta` (compare what is there), `transfer`, finish files.
//! A step runs on several threads and ends before the next begins. Memory: some 100 bytes an extent of the window, and
//! what `transfer` has in flight.

use super::databases::LeftOut;
use super::owners::Owners;
use super::place::{Place, at};
use super::plan::{Mode, Plan, is_file, is_special};
use super::workers::{for_each, spawn};
use super::{Env, delta, transfer};
use crate::index::{ChunkAt, Encoding};
use crate::observe::Counter;
use crate::repository::ChunkSource;
use crate::repository::manifests::{FileRecord, Manifest};
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{Content, Entry, ExtentAt};
use rustix::fs::{FileType, Mode as Bits, OFlags, Stat, Timespec, Timestamps};
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Extents in a window: 16 GiB of first-sight chunks, 7 MiB of memory. One file with more is a window of its own.
const PIECES_MAX: usize = 64 << 10;
/// Files in a window: each costs under a kilobyte.
const FILES_MAX: usize = 8 << 10;

/// Groups compared before they are transferred: 256 MiB of regions of the usual size.
const STAGE_GROUPS: usize = 1 << 10;
/// Plaintext of the chunks of a stage, if some of them are deltas: their bases then stay at hand.
const STAGE_BYTES: u64 = 48 << 20;

/// What has been done so far. Bytes unless the name says otherwise.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) written: AtomicU64,
    pub(super) fetched: AtomicU64,
    pub(super) files_kept: AtomicU64,
    pub(super) files_written: AtomicU64,
}

/// What every step needs.
pub(super) struct Job<'a> {
    pub(super) plan: &'a Plan,
    pub(super) place: &'a Place,
    pub(super) manifest: &'a Arc<Manifest>,
    pub(super) source: &'a Arc<ChunkSource>,
    pub(super) owners: &'a Owners,
    pub(super) left_out: &'a LeftOut,
    pub(super) threads: usize,
    /// Files must be synced one by one, as the file system cannot be as a whole.
    pub(super) sync_each: bool,
    pub(super) env: &'a Env<'a>,
    pub(super) totals: &'a Totals,
    pub(super) incomparable: &'a delta::Incomparable,
}

/// A file of the window.
pub(super) struct Work {
    pub(super) entry: Entry,
    /// Its database is left out: it has its size, and holds nothing.
    left_out: bool,
    /// It holds nothing but zeros yet: there is nothing to compare.
    fresh: AtomicBool,
    /// It is taken to be right as it is.
    skip: AtomicBool,
    /// Something of it was written.
    changed: AtomicBool,
}

impl Work {
    fn new(entry: Entry, left_out: bool) -> Self {
        let flag = || AtomicBool::new(false);
        Self { entry, left_out, fresh: flag(), skip: flag(), changed: flag() }
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.fresh.load(Ordering::Relaxed)
    }

    pub(super) fn note_change(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }
}

/// A part of a file that is a part of a chunk. Offsets and lengths are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    ordinal: u32,
    pub(super) in_chunk: u32,
    pub(super) len: u32,
    /// Number in the window.
    pub(super) file: u32,
    pub(super) in_file: u64,
}

impl Piece {
    /// The piece's bytes in the chunk.
    pub(super) fn range(&self) -> Range<usize> {
        self.in_chunk as usize..self.in_chunk as usize + self.len as usize
    }
}

/// A part of a file that is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Zeros {
    pub(super) file: u32,
    pub(super) in_file: u64,
    pub(super) len: u64,
}

/// A chunk and the pieces that need it.
pub(super) struct Group {
    pub(super) id: ChunkId,
    pub(super) at: ChunkAt,
    pieces: Range<usize>,
    /// It must be fetched.
    pub(super) wanted: AtomicBool,
}

impl Group {
    pub(super) fn is_delta(&self) -> bool {
        matches!(self.at.encoding, Encoding::ZstdPrefix | Encoding::Patch)
    }
}

/// A stretch of the manifest.
#[derive(Default)]
pub(super) struct Window {
    pub(super) files: Vec<Work>,
    pieces: Vec<Piece>,
    pub(super) zeros: Vec<Zeros>,
    pub(super) groups: Vec<Group>,
    /// Some groups' chunks are deltas.
    pub(super) has_deltas: bool,
}

impl Window {
    pub(super) fn pieces(&self, group: &Group) -> &[Piece] {
        self.pieces.get(group.pieces.clone()).unwrap_or_default()
    }

    pub(super) fn file(&self, number: u32) -> Result<&Work> {
        self.files.get(number as usize).ok_or_else(|| Error::refused(Kind::Assert, "a window lacks one of its files"))
    }

    /// Path of the first file that needs the chunk, for messages.
    pub(super) fn name_of(&self, group: &Group, place: &Place) -> String {
        let work = self.pieces(group).first().and_then(|p| self.files.get(p.file as usize));
        work.map_or_else(String::new, |w| place.real(&w.entry.path).display().to_string())
    }

    fn is_full(&self) -> bool {
        self.pieces.len() + self.zeros.len() >= PIECES_MAX || self.files.len() >= FILES_MAX
    }

    fn push(&mut self, record: FileRecord) -> Result<()> {
        let FileRecord { entry, extents } = record;
        let file = self.files.len() as u32;
        let unit = match entry.content {
            Content::Extents { unit, .. } => u64::from(unit),
            _ => 1,
        };
        if matches!(entry.content, Content::None) && entry.size != 0 {
            let text = format!("'{}' has {} bytes but no content in the manifest", entry.path, entry.size);
            return Err(Error::refused(Kind::Format, text));
        }
        let mut in_file = 0;
        for extent in &extents {
            // The last unit may be cut short by the end of the file.
            let len = (u64::from(extent.units) * unit).min(entry.size.saturating_sub(in_file));
            match extent.at {
                ExtentAt::Zero => self.zeros.push(Zeros { file, in_file, len }),
                ExtentAt::Chunk { ordinal, offset } => {
                    let in_chunk = u32::try_from(u64::from(offset) * unit).ok();
                    let (Some(in_chunk), Ok(len)) = (in_chunk, u32::try_from(len)) else {
                        let text = format!("'{}' has an extent that no chunk can hold", entry.path);
                        return Err(Error::refused(Kind::Format, text));
                    };
                    self.pieces.push(Piece { ordinal, in_chunk, len, file, in_file });
                }
            }
            in_file += len;
        }
        self.files.push(Work::new(entry, false));
        Ok(())
    }

    /// Takes a file that is made without its content.
    fn push_left_out(&mut self, entry: Entry) {
        self.files.push(Work::new(entry, true));
    }
}

/// Restores the content of all files but the special ones.
pub(super) fn restore_files(job: &Job<'_>) -> Result<()> {
    let mut records = job.manifest.files();
    loop {
        job.env.cancel.check()?;
        let mut window = Window::default();
        while !window.is_full()
            && let Some(record) = records.next().transpose()?
        {
            let entry = &record.entry;
            if !is_file(&entry.node) || is_special(&entry.path) || job.plan.keeps(&entry.path) {
                continue;
            }
            if job.left_out.has_file(&entry.path) {
                window.push_left_out(record.entry);
            } else {
                window.push(record)?;
            }
        }
        if window.files.is_empty() {
            return Ok(());
        }
        restore_window(job, window)?;
    }
}

fn restore_window(job: &Job<'_>, mut window: Window) -> Result<()> {
    let cancel = job.env.cancel;
    for_each("restore-prepare", job.threads, window.files.len(), cancel, |_: &mut (), n| {
        window.files.get(n).map_or(Ok(()), |work| prepare(job, work))
    })?;
    let skipped: Vec<bool> = window.files.iter().map(|w| w.skip.load(Ordering::Relaxed)).collect();
    let skips = |file: u32| skipped.get(file as usize).copied().unwrap_or(false);
    window.pieces.retain(|p| !skips(p.file));
    window.zeros.retain(|z| !skips(z.file));
    group(job, &mut window)?;
    if matches!(job.plan.mode, Mode::Delta | Mode::Timestamps) {
        delta::put_zeros(job, &window)?;
    } else {
        let zeros = window.zeros.iter().map(|z| z.len).sum();
        job.env.observer.add(Counter::Done, zeros);
    }
    if matches!(job.plan.mode, Mode::Delta | Mode::Timestamps) {
        compare_and_transfer(job, &window)?;
    } else {
        let mut turns = Turns::new(job, &window);
        stages(&window, usize::MAX).into_iter().try_for_each(|stage| turns.next(stage))?;
    }
    for_each("restore-finish", job.threads, window.files.len(), cancel, |_: &mut (), n| {
        window.files.get(n).map_or(Ok(()), |work| finish(job, work))
    })
}

/// Stage by stage, the next being compared while one is transferred: comparing waits for the disk, transferring computes.
fn compare_and_transfer(job: &Job<'_>, window: &Window) -> Result<()> {
    let mut stages = stages(window, STAGE_GROUPS).into_iter();
    let mut turns = Turns::new(job, window);
    let mut compared = stages.next().unwrap_or_default();
    delta::compare(job, window, compared)?;
    while !compared.is_empty() {
        let next = stages.next().unwrap_or_default();
        beside("restore-ahead", || delta::compare(job, window, next), || turns.next(compared))?;
        compared = next;
    }
    Ok(())
}

/// Runs `aside` on a thread of its own while `work` runs here.
fn beside(name: &str, aside: impl FnOnce() -> Result<()> + Send, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = Mutex::new(Ok(()));
    std::thread::scope(|scope| {
        let aside = || *result.lock().unwrap_or_else(PoisonError::into_inner) = aside();
        spawn(scope, name.to_owned(), aside)?;
        work()
    })?;
    result.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Transfers stages one after the other. Deltas come after all others of their stage, so that their bases are at hand.
struct Turns<'a> {
    job: &'a Job<'a>,
    window: &'a Window,
    /// The stage before: all of it is written.
    written: &'a [Group],
}

impl<'a> Turns<'a> {
    fn new(job: &'a Job<'a>, window: &'a Window) -> Self {
        Self { job, window, written: &[] }
    }

    fn next(&mut self, stage: &'a [Group]) -> Result<()> {
        let (job, window) = (self.job, self.window);
        if !window.has_deltas {
            return transfer::transfer(job, window, &mut stage.iter());
        }
        let written = std::mem::replace(&mut self.written, stage);
        // Beside the threads that decode: it may wait for the disk.
        let write = || transfer::begin_writeback_of(job, window, written);
        beside("restore-write", write, || {
            transfer::transfer(job, window, &mut stage.iter().filter(|g| !g.is_delta()))?;
            transfer::transfer(job, window, &mut stage.iter().filter(|g| g.is_delta()))
        })
    }
}

/// Cuts the groups, in file order, into stages of at most `groups_max`. If some are deltas a stage is short, so that the
/// old pages they need are those that have just passed by.
fn stages(window: &Window, groups_max: usize) -> Vec<&[Group]> {
    let (mut stages, mut rest, mut bytes) = (Vec::new(), window.groups.as_slice(), 0);
    let mut at = 0;
    while let Some(group) = rest.get(at) {
        bytes += u64::from(group.at.plain_len);
        at += 1;
        if at >= groups_max || window.has_deltas && bytes >= STAGE_BYTES {
            let (stage, behind) = rest.split_at(at);
            stages.push(stage);
            (rest, at, bytes) = (behind, 0, 0);
        }
    }
    if !rest.is_empty() {
        stages.push(rest);
    }
    stages
}

/// Brings the pieces of each chunk together and finds out where it is.
fn group(job: &Job<'_>, window: &mut Window) -> Result<()> {
    // In the order of ordinals each piece of the chunk table is read once.
    window.pieces.sort_unstable_by_key(|p| (p.ordinal, p.in_chunk, p.file, p.in_file));
    let mut groups = Vec::new();
    let mut start = 0;
    for same in window.pieces.chunk_by(|a, b| a.ordinal == b.ordinal) {
        let pieces = start..start + same.len();
        start = pieces.end;
        let Some(first) = same.first() else { continue };
        let named = |e: Error| match window.files.get(first.file as usize) {
            Some(work) => e.during(format!("cannot restore '{}'", job.place.real(&work.entry.path).display())),
            None => e,
        };
        let id = job.manifest.chunk_id(first.ordinal).map_err(named)?;
        let at = job.source.locate(&id).map_err(named)?;
        if let Some(bad) = same.iter().find(|p| p.range().end > at.plain_len as usize) {
            let text = format!("the manifest wants bytes {:?} of chunk {id}, which has {}", bad.range(), at.plain_len);
            return Err(named(Error::refused(Kind::Format, text)));
        }
        groups.push(Group { id, at, pieces, wanted: AtomicBool::new(true) });
    }
    window.has_deltas = groups.iter().any(Group::is_delta);
    if window.has_deltas {
        // Chunks of several backups lie between each other: their places in the files bring base and delta together.
        groups.sort_by_cached_key(|group| {
            let pieces = window.pieces.get(group.pieces.clone()).unwrap_or_default();
            pieces.iter().map(|p| (p.file, p.in_file)).min()
        });
    }
    window.groups = groups;
    Ok(())
}

/// Makes a file of the right size, with its content if that is in the manifest.
fn prepare(job: &Job<'_>, work: &Work) -> Result<()> {
    let (entry, place) = (&work.entry, job.place);
    if job.plan.mode == Mode::Overwrite {
        place.unlink(&entry.path)?;
    }
    if job.plan.mode == Mode::Timestamps
        && !work.left_out
        && let Some(stat) = place.stat(&entry.path)?
        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_size as u64 == entry.size
        && (stat.st_mtime, stat.st_mtime_nsec as u32) == (entry.modified, entry.modified_nanos)
        && stat.st_mode & 0o7777 == entry.mode
    {
        work.skip.store(true, Ordering::Relaxed);
        job.env.observer.add(Counter::Done, entry.size);
        return Ok(());
    }
    let create = || {
        work.fresh.store(true, Ordering::Relaxed);
        work.note_change();
        place.file(&entry.path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    };
    let real = place.real(&entry.path);
    let facts = |file: &File| file.metadata().map_err(FileError::at("stat", &real));
    let mut file = match place.file(&entry.path, OFlags::RDWR) {
        Err(e) if e.source.kind() == ErrorKind::NotFound => create()?,
        // Its mode keeps us out: make another one.
        Err(e) if e.source.kind() == ErrorKind::PermissionDenied => {
            place.unlink(&entry.path)?;
            create()?
        }
        other => other?,
    };
    // What is written to one of several names would appear under the others, wherever they are.
    if facts(&file)?.nlink() > 1 {
        place.unlink(&entry.path)?;
        file = create()?;
    }
    if work.left_out {
        // Whatever is there goes without being read, also if it is nothing but holes.
        file.set_len(0).and_then(|()| file.set_len(entry.size)).map_err(FileError::at("write", &real))?;
        work.note_change();
        return Ok(());
    }
    let len = facts(&file)?.len();
    if len == 0 {
        work.fresh.store(true, Ordering::Relaxed);
    }
    if len != entry.size {
        file.set_len(entry.size).map_err(FileError::at("write", &real))?;
        work.note_change();
    }
    if let Content::Inline(bytes) = &entry.content {
        let mut there = vec![0; bytes.len()];
        file.read_exact_at(&mut there, 0).map_err(FileError::at("read", &real))?;
        if there != *bytes {
            file.write_all_at(bytes, 0).map_err(FileError::at("write", &real))?;
            job.totals.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            work.note_change();
        }
        job.env.observer.add(Counter::Done, bytes.len() as u64);
    }
    Ok(())
}

/// Gives a file its owner, mode and time.
fn finish(job: &Job<'_>, work: &Work) -> Result<()> {
    let entry = &work.entry;
    let changed = work.changed.load(Ordering::Relaxed);
    if !work.skip.load(Ordering::Relaxed) || job.owners.of(entry.user, entry.group).is_some() {
        let file = job.place.file(&entry.path, OFlags::RDONLY)?;
        if work.left_out {
            // Under the backup's time it would be taken for the backup's file: by a restore of everything, and by a backup.
            settle_access(job.place, job.owners, entry, &file)?;
        } else {
            settle(job.place, job.owners, entry, &file)?;
        }
        if job.sync_each && changed {
            file.sync_all().map_err(FileError::at("sync", job.place.real(&entry.path)))?;
        }
    }
    job.env.observer.add(Counter::Files, 1);
    let told = match (work.left_out, changed) {
        (true, _) => ", left out",
        (false, true) => "",
        (false, false) => ", kept",
    };
    if !work.left_out {
        let count = if changed { &job.totals.files_written } else { &job.totals.files_kept };
        count.fetch_add(1, Ordering::Relaxed);
    }
    tracing::debug!(
        target: crate::observe::DETAIL,
        "restore file {} ({} bytes{told})", job.place.real(&entry.path).display(), entry.size
    );
    Ok(())
}

/// Sets owner, mode and time where they differ.
pub(super) fn settle(place: &Place, owners: &Owners, entry: &Entry, file: &File) -> Result<()> {
    let stat = settle_access(place, owners, entry, file)?;
    if (stat.st_mtime, stat.st_mtime_nsec as u32) != (entry.modified, entry.modified_nanos) {
        let time = Timespec { tv_sec: entry.modified, tv_nsec: entry.modified_nanos.into() };
        rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })
            .map_err(at("change time of", place.real(&entry.path)))?;
    }
    Ok(())
}

/// Sets owner and mode where they differ; what was found.
fn settle_access(place: &Place, owners: &Owners, entry: &Entry, file: &File) -> Result<Stat> {
    let real = || place.real(&entry.path);
    let stat = rustix::fs::fstat(file).map_err(at("stat", real()))?;
    let mut mode = stat.st_mode & 0o7777;
    if let Some((uid, gid)) = owners.of(entry.user, entry.group)
        && (stat.st_uid, stat.st_gid) != (uid.as_raw(), gid.as_raw())
    {
        rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(at("change owner of", real()))?;
        // A change of owner may have cleared bits.
        mode = u32::MAX;
    }
    if mode != entry.mode {
        rustix::fs::fchmod(file, Bits::from_raw_mode(entry.mode)).map_err(at("change mode of", real()))?;
    }
    Ok(stat)
}
