//! From packs into files: fetch ranges of packs, open every chunk once, write it wherever it belongs.
//!
//! Fetching threads read *spans*, up to [`SPAN_BYTES_MAX`] of one pack with gaps as large as the store says, in the order
//! of the files; a bounded channel carries them to decoding threads, which open, check and write. In flight are at most a
//! span a fetching thread, a decoding thread and a place in the channel: [`IN_FLIGHT_BYTES_MAX`] together. What is still at
//! hand decoded, since deltas before needed it, is not fetched again.

use super::place::Place;
use super::plan::Mode;
use super::window::{Group, Job, Piece, Window};
use super::workers::{Failure, spawn};
use crate::index::ChunkKind;
use crate::observe::Counter;
use crate::repository::Plain;
use crate::store::{Range, StoreError};
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::id::PackId;
use pgkeep_formats::repo::layout;
use rustix::fs::OFlags;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Largest span: enough to hide the latency of a request, few enough to spread the work.
const SPAN_BYTES_MAX: u64 = 4 << 20;
/// Smallest limit of a span, whatever the number of threads: a chunk's sealed bytes.
const SPAN_BYTES_MIN: u64 = 1 << 20;
/// A span with this much to decode takes no more where there are deltas: they may have a hundred times its size, one thread
/// decodes a span, and at the end of each stage the threads wait for each other.
const SPAN_PLAIN_MAX: u64 = 4 << 20;
/// Bytes of all spans in flight together.
const IN_FLIGHT_BYTES_MAX: u64 = 128 << 20;
/// Fetching threads: enough for the latency of a remote store, harmless for a local one.
const FETCHERS_MAX: usize = 8;
/// What is compared and written as one in files that are there already: a page.
const BLOCK: usize = 8192;

/// A range of a pack and the groups whose chunks are in it.
struct Span<'a> {
    pack: PackId,
    offset: u64,
    len: u64,
    /// Bytes its chunks have when they are decoded.
    plain: u64,
    /// By offset.
    groups: Vec<&'a Group>,
}

/// Fetches and writes those of these groups of a window that are wanted.
pub(super) fn transfer<'a>(
    job: &Job<'_>,
    window: &'a Window,
    groups: &mut dyn Iterator<Item = &'a Group>,
) -> Result<()> {
    let fetchers = (job.threads * 2).clamp(2, FETCHERS_MAX);
    let in_flight = (2 * fetchers + job.threads) as u64;
    let (mut ready, mut missing) = (Vec::new(), Vec::new());
    for group in groups.filter(|g| g.wanted.load(Ordering::Relaxed)) {
        match window.has_deltas.then(|| job.source.kept_base(&group.id)).flatten() {
            Some(plain) => ready.push((group, plain)),
            None => missing.push(group),
        }
    }
    let span_bytes_max = (IN_FLIGHT_BYTES_MAX / in_flight).clamp(SPAN_BYTES_MIN, SPAN_BYTES_MAX);
    let span_plain_max = if window.has_deltas { SPAN_PLAIN_MAX } else { u64::MAX };
    let spans = spans(&missing, span_bytes_max, span_plain_max, job.source.store().gap());
    let failure = Failure::new(job.env.cancel);
    let (next, next_ready) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (send, receive) = crossbeam_channel::bounded::<(&Span<'_>, Vec<u8>)>(fetchers);
    std::thread::scope(|scope| {
        for n in 0..fetchers.min(spans.len()) {
            let (send, spans, next, failure) = (send.clone(), &spans, &next, &failure);
            let fetch = move || {
                while let Some(span) = spans.get(next.fetch_add(1, Ordering::Relaxed))
                    && !failure.is_stopped()
                {
                    let bytes = match fetch(job, window, span) {
                        Ok(bytes) => bytes,
                        Err(e) => return failure.note(e),
                    };
                    // No decoding thread is left: one has failed.
                    if send.send((span, bytes)).is_err() {
                        return;
                    }
                }
            };
            if let Err(e) = spawn(scope, format!("restore-fetch-{n}"), fetch) {
                failure.note(e);
            }
        }
        drop(send);
        for n in 0..job.threads.min(spans.len().max(ready.len())) {
            let (receive, failure, ready, next_ready) = (receive.clone(), &failure, &ready, &next_ready);
            let decode = move || {
                let mut writer = Writer { job, window, open: None, there: Vec::new(), order: Vec::new() };
                while let Some((group, plain)) = ready.get(next_ready.fetch_add(1, Ordering::Relaxed))
                    && !failure.is_stopped()
                {
                    if let Err(e) = writer.group(group, plain) {
                        return failure.note(e);
                    }
                }
                for (span, mut bytes) in receive {
                    if failure.is_stopped() {
                        return;
                    }
                    if let Err(e) = writer.span(span, &mut bytes) {
                        return failure.note(e);
                    }
                }
            };
            if let Err(e) = spawn(scope, format!("restore-decode-{n}"), decode) {
                failure.note(e);
            }
        }
        drop(receive);
    });
    failure.result()
}

/// Joins chunks to spans. Packs come in the order in which the files need them.
fn spans<'a>(groups: &[&'a Group], span_bytes_max: u64, span_plain_max: u64, gap: u64) -> Vec<Span<'a>> {
    let mut ranks: HashMap<PackId, usize> = HashMap::new();
    let mut order: Vec<(usize, u32, &Group)> = Vec::new();
    for group in groups {
        let rank = ranks.len();
        let rank = *ranks.entry(group.at.pack.pack).or_insert(rank);
        order.push((rank, group.at.offset, *group));
    }
    order.sort_by_key(|(rank, offset, _)| (*rank, *offset));
    let mut spans: Vec<Span<'_>> = Vec::new();
    for (_, offset, group) in order {
        let (offset, end) = (u64::from(offset), u64::from(offset) + u64::from(group.at.stored_len));
        if let Some(last) = spans.last_mut()
            && last.pack == group.at.pack.pack
            && offset <= last.offset + last.len + gap
            && end - last.offset <= span_bytes_max
            && last.plain < span_plain_max
        {
            last.len = last.len.max(end - last.offset);
            last.plain += u64::from(group.at.plain_len);
            last.groups.push(group);
            continue;
        }
        let plain = group.at.plain_len.into();
        spans.push(Span { pack: group.at.pack.pack, offset, len: end - offset, plain, groups: vec![group] });
    }
    spans
}

fn fetch(job: &Job<'_>, window: &Window, span: &Span<'_>) -> Result<Vec<u8>> {
    let range = Range::Span { offset: span.offset, len: span.len as usize };
    let bytes = match job.source.store().get(&layout::pack(span.pack), range) {
        // Its chunks may have been moved since the index was loaded.
        Err(StoreError::NotFound { .. }) => return Ok(Vec::new()),
        bytes => bytes.map_err(|e| {
            let name = span.groups.first().map_or_else(String::new, |g| window.name_of(g, job.place));
            Error::from(e).during(format!("cannot restore '{name}'"))
        })?,
    };
    job.totals.fetched.fetch_add(span.len, Ordering::Relaxed);
    job.env.observer.add(Counter::Stored, span.len);
    Ok(bytes)
}

/// One decoding thread.
struct Writer<'a> {
    job: &'a Job<'a>,
    window: &'a Window,
    /// The file written last.
    open: Option<(u32, File)>,
    there: Vec<u8>,
    order: Vec<Piece>,
}

impl Writer<'_> {
    fn span(&mut self, span: &Span<'_>, bytes: &mut [u8]) -> Result<()> {
        let window = self.window;
        let mut last: Option<(u32, Plain)> = None;
        for group in &span.groups {
            // A chunk that has two ordinals was opened in place already.
            if last.as_ref().is_none_or(|(offset, _)| *offset != group.at.offset) {
                let plain = self
                    .plain(span, group, bytes)
                    .map_err(|e| e.during(format!("cannot restore '{}'", window.name_of(group, self.job.place))))?;
                let plain = Arc::new(plain);
                if window.has_deltas && group.at.kind == ChunkKind::Relation && !group.is_delta() {
                    self.job.source.offer_base(group.id, &plain);
                }
                last = Some((group.at.offset, plain));
            }
            if let Some((_, plain)) = &last {
                self.group(group, plain)?;
            }
        }
        Ok(())
    }

    /// A chunk of a span that was fetched; without its bytes, the pack was not there.
    fn plain(&self, span: &Span<'_>, group: &Group, bytes: &mut [u8]) -> Result<Vec<u8>> {
        let (source, name) = (&self.job.source, layout::pack(span.pack));
        if bytes.is_empty() {
            let store = source.store().describe();
            return source.read_elsewhere(&group.id, span.pack, StoreError::NotFound { key: name, store }.into());
        }
        let start = (u64::from(group.at.offset) - span.offset) as usize;
        let short = || Error::refused(Kind::FileRead, format!("'{name}' ended early"));
        let sealed = bytes.get_mut(start..start + group.at.stored_len as usize).ok_or_else(short)?;
        source.open(&group.id, &group.at, sealed)
    }

    fn group(&mut self, group: &Group, plain: &[u8]) -> Result<()> {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend_from_slice(self.window.pieces(group));
        order.sort_unstable_by_key(|p| (p.file, p.in_file));
        for piece in &order {
            let bytes = plain.get(piece.range()).ok_or_else(|| {
                Error::refused(Kind::Format, format!("chunk {} is shorter than the manifest says", group.id))
            })?;
            self.piece(piece, bytes)?;
        }
        self.order = order;
        Ok(())
    }

    fn piece(&mut self, piece: &Piece, bytes: &[u8]) -> Result<()> {
        let work = self.window.file(piece.file)?;
        let path = &work.entry.path;
        let file = match &mut self.open {
            Some((number, file)) if *number == piece.file => file,
            open => &mut open.insert((piece.file, self.job.place.file(path, OFlags::RDWR)?)).1,
        };
        let compare = matches!(self.job.plan.mode, Mode::Delta | Mode::Timestamps) && !work.is_fresh();
        let written = if compare {
            self.there.resize(bytes.len(), 0);
            read(file, self.job.place, path, &mut self.there, piece.in_file)?;
            write_differing(file, self.job.place, path, bytes, &self.there, piece.in_file)?
        } else {
            write(file, self.job.place, path, bytes, piece.in_file)?;
            bytes.len()
        };
        if written > 0 {
            if !self.window.has_deltas {
                begin_writeback(file, piece.in_file, bytes.len() as u64);
            }
            work.note_change();
            self.job.totals.written.fetch_add(written as u64, Ordering::Relaxed);
            self.job.env.observer.add(Counter::New, written as u64);
        }
        self.job.env.observer.add(Counter::Done, bytes.len() as u64);
        Ok(())
    }
}

/// Reads bytes that the file must have.
pub(super) fn read(file: &File, place: &Place, path: &str, out: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(out, offset).map_err(|e| FileError::at("read", place.real(path))(e).into())
}

fn write(file: &File, place: &Place, path: &str, bytes: &[u8], offset: u64) -> Result<()> {
    Ok(file.write_all_at(bytes, offset).map_err(FileError::at("write", place.real(path)))?)
}

/// Has the system begin to write out what was written for these groups. Pages of a window with deltas fall here and there,
/// so this waits until those between them have come: written one by one they would lie on the disk so.
pub(super) fn begin_writeback_of(job: &Job<'_>, window: &Window, groups: &[Group]) -> Result<()> {
    let mut ranges: BTreeMap<u32, std::ops::Range<u64>> = BTreeMap::new();
    for group in groups.iter().filter(|g| g.wanted.load(Ordering::Relaxed)) {
        for piece in window.pieces(group) {
            let (start, end) = (piece.in_file, piece.in_file + u64::from(piece.len));
            let range = ranges.entry(piece.file).or_insert(start..end);
            *range = range.start.min(start)..range.end.max(end);
        }
    }
    for (number, range) in ranges {
        let file = job.place.file(&window.file(number)?.entry.path, OFlags::RDWR)?;
        begin_writeback(&file, range.start, range.end - range.start);
    }
    Ok(())
}

/// Has the system begin to write out what was just written. Left to itself it waits for memory to fill or for the sync at
/// the end, and the disk idles while chunks are decoded.
fn begin_writeback(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the descriptor is open for the call, and the call touches no memory of ours. What it says does not matter:
    // a failure to write is told by the sync that makes the restore durable.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Writes the blocks that differ from what is there, neighbours as one, and returns how many bytes that were.
fn write_differing(file: &File, place: &Place, path: &str, bytes: &[u8], there: &[u8], offset: u64) -> Result<usize> {
    let (mut at, mut written) = (0, 0);
    let differs: Vec<bool> = bytes.chunks(BLOCK).zip(there.chunks(BLOCK)).map(|(a, b)| a != b).collect();
    for run in differs.chunk_by(|a, b| a == b) {
        let len = (run.len() * BLOCK).min(bytes.len() - at);
        if run.first() == Some(&true) {
            write(file, place, path, bytes.get(at..at + len).unwrap_or_default(), offset + at as u64)?;
            written += len;
        }
        at += len;
    }
    Ok(written)
}
