//! Reading a file of a backup: from an offset to extents, to chunks, to bytes.

use super::Content;
use super::backup::Shared;
use super::cache::WANTED_MAX;
use crate::repository::manifests::FileRecord;
use crate::{Error, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{self, ExtentAt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the file that are read at once: what a reader of large stretches holds in its hands is bounded.
const STEP_BYTES: u64 = 2 << 20;
/// A read that begins within this many times its length of the end of the one before goes on with it: the kernel reads
/// ahead with several requests at a time, which do not arrive in order.
const SEQUENTIAL_READS: u64 = 2;
/// Who reads this much at a time asks ahead himself, and should not wait for what he has not asked for.
const AHEAD_BELOW_BYTES: u64 = 256 << 10;

/// Where a file's bytes are.
pub(super) struct FileMap {
    size: u64,
    body: Body,
}

enum Body {
    Inline(Vec<u8>),
    Extents {
        unit: u64,
        /// First unit of each extent.
        starts: Vec<u64>,
        at: Vec<ExtentAt>,
    },
}

/// A piece of a read.
struct Part {
    /// Bytes of the buffer.
    len: usize,
    /// Number among the step's chunks and first byte there; `None` for zeros.
    chunk: Option<(usize, u64)>,
}

/// What one step of a read needs.
#[derive(Default)]
struct Step {
    parts: Vec<Part>,
    ordinals: Vec<u32>,
    bytes: u64,
    /// The first extent behind it.
    next_extent: usize,
}

impl FileMap {
    pub(super) fn new(record: FileRecord) -> Result<Self, FormatError> {
        let size = record.entry.size;
        let body = match record.entry.content {
            manifest::Content::Inline(bytes) => Body::Inline(bytes),
            manifest::Content::None => Body::Inline(Vec::new()),
            manifest::Content::Extents { unit, .. } => {
                let (mut starts, mut at, mut start) = (Vec::new(), Vec::new(), 0);
                for extent in record.extents {
                    starts.push(start);
                    at.push(extent.at);
                    start += u64::from(extent.units);
                }
                let unit = u64::from(unit);
                if start != size.div_ceil(unit) {
                    return Err(FormatError::OutOfRange { offset: 0, what: "length of extents", found: start });
                }
                Body::Extents { unit, starts, at }
            }
        };
        match &body {
            Body::Inline(bytes) if bytes.len() as u64 != size => {
                Err(FormatError::OutOfRange { offset: 0, what: "size of a file without extents", found: size })
            }
            _ => Ok(Self { size, body }),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of memory, about.
    pub(super) fn weight(&self) -> usize {
        128 + match &self.body {
            Body::Inline(bytes) => bytes.len(),
            Body::Extents { starts, .. } => starts.len() * (size_of::<u64>() + size_of::<ExtentAt>()),
        }
    }
}

/// What `len` bytes from `offset` are made of, or as many of them as one step may take. The file does not end before.
fn step(unit: u64, starts: &[u64], at: &[ExtentAt], size: u64, offset: u64, len: u64) -> Step {
    let mut step = Step::default();
    let len = len.min(STEP_BYTES);
    let mut index = starts.partition_point(|s| *s <= offset / unit).saturating_sub(1);
    while step.bytes < len
        && let (Some(start), Some(place)) = (starts.get(index), at.get(index))
    {
        let here = offset + step.bytes;
        let end = starts.get(index + 1).map_or(size, |s| s * unit);
        let take = end.saturating_sub(here).min(len - step.bytes);
        let chunk = match place {
            ExtentAt::Zero => None,
            ExtentAt::Chunk { ordinal, offset } => {
                let number = match step.ordinals.iter().position(|o| o == ordinal) {
                    Some(number) => number,
                    None if step.ordinals.len() == WANTED_MAX => break,
                    None => {
                        step.ordinals.push(*ordinal);
                        step.ordinals.len() - 1
                    }
                };
                Some((number, u64::from(*offset) * unit + (here - start * unit)))
            }
        };
        step.parts.push(Part { len: take as usize, chunk });
        step.bytes += take;
        index += 1;
    }
    step.next_extent = index;
    step
}

/// An open file of a backup.
pub(super) struct FileContent {
    shared: Arc<Shared>,
    path: String,
    size: u64,
    /// Where the last read ended.
    last_end: AtomicU64,
}

impl FileContent {
    pub(super) fn new(shared: Arc<Shared>, path: &str, size: u64) -> Self {
        Self { shared, path: path.to_owned(), size, last_end: AtomicU64::new(0) }
    }

    fn read(&self, map: &FileMap, offset: u64, buffer: &mut [u8], sequential: bool) -> Result<()> {
        let (unit, starts, at) = match &map.body {
            Body::Inline(bytes) => {
                let from = offset as usize;
                let source = bytes.get(from..from + buffer.len()).unwrap_or_default();
                buffer.copy_from_slice(source);
                return Ok(());
            }
            Body::Extents { unit, starts, at } => (*unit, starts.as_slice(), at.as_slice()),
        };
        let mut rest = buffer;
        let mut here = offset;
        while !rest.is_empty() {
            let step = step(unit, starts, at, map.size, here, rest.len() as u64);
            let (now, later) = rest.split_at_mut((step.bytes as usize).min(rest.len()));
            // The last of a read may go on where it ends; the others are followed by a step of their own.
            let behind = if sequential && later.is_empty() { at.get(step.next_extent..) } else { None };
            self.fill(&step, now, behind.unwrap_or_default())?;
            if step.bytes == 0 {
                return Err(self.damaged("extents", here));
            }
            here += step.bytes;
            rest = later;
        }
        Ok(())
    }

    /// Reads one step; `behind` are extents that will be wanted next.
    fn fill(&self, step: &Step, mut buffer: &mut [u8], behind: &[ExtentAt]) -> Result<()> {
        let manifest = &self.shared.manifest;
        let wanted = step.ordinals.iter().map(|o| manifest.chunk_id(*o)).collect::<Result<Vec<_>>>()?;
        // Two ordinals may stand for one chunk.
        let mut distinct: Vec<ChunkId> = Vec::with_capacity(wanted.len());
        let places: Vec<usize> = wanted
            .iter()
            .map(|id| match distinct.iter().position(|d| d == id) {
                Some(at) => at,
                None => {
                    distinct.push(*id);
                    distinct.len() - 1
                }
            })
            .collect();
        let mut behind = behind.iter();
        let mut ahead = || loop {
            match behind.next()? {
                ExtentAt::Zero => {}
                ExtentAt::Chunk { ordinal, .. } if step.ordinals.contains(ordinal) => {}
                // What cannot be named is told to whoever reads it.
                ExtentAt::Chunk { ordinal, .. } => return manifest.chunk_id(*ordinal).ok(),
            }
        };
        let plains = self.shared.cache.get(manifest.source(), &distinct, &mut ahead)?;
        for part in &step.parts {
            let (target, rest) = buffer.split_at_mut(part.len.min(buffer.len()));
            match part.chunk {
                None => target.fill(0),
                Some((number, from)) => {
                    let plain = places.get(number).and_then(|at| plains.get(*at));
                    let from_usize = usize::try_from(from).unwrap_or(usize::MAX);
                    let range = from_usize..from_usize.saturating_add(target.len());
                    let source =
                        plain.and_then(|p| p.get(range)).ok_or_else(|| self.damaged("offset in chunk", from))?;
                    target.copy_from_slice(source);
                }
            }
            buffer = rest;
        }
        Ok(())
    }

    fn damaged(&self, what: &'static str, found: u64) -> Error {
        let error = FormatError::OutOfRange { offset: 0, what, found };
        Error::damaged(format!("'{}' in the manifest of {}", self.path, self.shared.label))(error)
    }
}

impl Content for FileContent {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let len = self.size.saturating_sub(offset).min(buffer.len() as u64);
        let Some(target) = buffer.get_mut(..len as usize).filter(|b| !b.is_empty()) else { return Ok(0) };
        let last_end = self.last_end.swap(offset + len, Ordering::Relaxed);
        let sequential =
            len < AHEAD_BELOW_BYTES && last_end != 0 && offset.abs_diff(last_end) <= SEQUENTIAL_READS * len;
        let doing = || {
            format!("cannot read bytes {offset} to {} of '{}' in backup {}", offset + len, self.path, self.shared.label)
        };
        let map = self.shared.map(&self.path).map_err(|e| e.during(doing()))?;
        match map {
            Some(map) if map.size() == self.size => {
                self.read(&map, offset, target, sequential).map_err(|e| e.during(doing()))?;
            }
            _ => return Err(self.damaged("size", self.size)),
        }
        Ok(len as usize)
    }
}
