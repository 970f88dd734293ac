//! What a worker does with a stretch of a file: read, check, cut, name, look up, compress, verify, seal.
//!
//! A task is small enough that a window of them bounds memory, and carries everything it needs, so workers share nothing
//! but the index and the session's counter.

use super::unread::{Part, split};
use crate::Result;
use crate::chunk::{Encoder, Gear};
use crate::crypto::{Keyring, SessionSealer};
use crate::index::ChunkIndex;
use crate::pg::read::{Pages, RegionReader, is_zero};
use crate::pg::summaries::BlockSet;
use crate::repository::manifests::Manifest;
use crate::repository::{RepositoryIndex, seal_data};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use pgkeep_formats::repo::config::CutMode;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of a file in one task.
pub(super) const TASK_BYTES_MAX: usize = 1 << 20;

/// A file as the parent has it, for finding out that a stretch did not change.
pub(super) struct ParentFile {
    manifest: Arc<Manifest>,
    /// First unit of each extent, and the extent.
    extents: Vec<(u64, Extent)>,
}

impl ParentFile {
    pub(super) fn new(manifest: &Arc<Manifest>, extents: &[Extent]) -> Self {
        let mut start = 0;
        let place = |e: &Extent| {
            let at = start;
            start += u64::from(e.units);
            (at, *e)
        };
        Self { manifest: Arc::clone(manifest), extents: extents.iter().map(place).collect() }
    }

    /// The extents from the one that holds `unit` on, each with its first unit.
    pub(super) fn extents_from(&self, unit: u64) -> impl Iterator<Item = (u64, Extent)> {
        let at = self.extents.partition_point(|(start, e)| start + u64::from(e.units) <= unit);
        self.extents.get(at..).unwrap_or_default().iter().copied()
    }

    /// The parent's ordinal of these very units, if it is chunk `id` there.
    fn ordinal_of(&self, start: u64, units: u32, id: &ChunkId) -> Result<Option<u32>> {
        let Ok(at) = self.extents.binary_search_by_key(&start, |w| w.0) else { return Ok(None) };
        match self.extents.get(at) {
            Some((_, Extent { units: n, at: ExtentAt::Chunk { ordinal, offset: 0 } })) if *n == units => {
                Ok((self.manifest.chunk_id(*ordinal)? == *id).then_some(*ordinal))
            }
            _ => Ok(None),
        }
    }
}

/// A small file of a pool.
pub(super) struct PoolFile {
    pub(super) source: PathBuf,
    pub(super) pages: Option<Pages>,
    pub(super) size: usize,
}

pub(super) enum Work {
    /// A stretch of one file; `offset` is a multiple of the unit and of the region. With `changed`, all other units are
    /// the parent's.
    Stretch {
        file: Arc<RegionReader>,
        offset: u64,
        len: usize,
        unit: u32,
        parent: Option<Arc<ParentFile>>,
        changed: Option<Arc<BlockSet>>,
    },
    /// Small files, to be stored in one chunk.
    Pool { unit: u32, files: Vec<PoolFile> },
}

pub(super) struct Task {
    pub(super) sequence: u64,
    pub(super) work: Work,
}

/// A run of units and what it turned out to be.
pub(super) struct Piece {
    pub(super) units: u32,
    pub(super) what: What,
}

pub(super) enum What {
    Zero,
    /// As in the parent: units from `offset` on of the chunk with this ordinal there.
    Parent {
        ordinal: u32,
        offset: u32,
    },
    /// A chunk; sealed unless the repository has it.
    Chunk {
        id: ChunkId,
        kind: ChunkKind,
        plain_len: u32,
        sealed: Option<(Encoding, Vec<u8>)>,
    },
}

/// One file of a finished pool.
pub(super) struct PoolPart {
    /// First unit in the pool's chunk.
    pub(super) offset: u32,
    /// Bytes read; `None` if the file had vanished.
    pub(super) len: Option<usize>,
    pub(super) bad_pages: Vec<u32>,
}

pub(super) struct Output {
    /// In file order; a pool has one at most.
    pub(super) pieces: Vec<Piece>,
    /// Bytes read of the file, or of all files of the pool.
    pub(super) len: usize,
    pub(super) bad_pages: Vec<u32>,
    pub(super) pool: Vec<PoolPart>,
}

pub(super) struct Done {
    pub(super) sequence: u64,
    pub(super) output: Result<Output>,
}

/// What all workers share.
pub(super) struct Shared {
    pub(super) keyring: Arc<Keyring>,
    pub(super) sealer: Arc<SessionSealer>,
    pub(super) index: Arc<RepositoryIndex>,
    pub(super) gear: Gear,
    pub(super) cut: CutMode,
    pub(super) region: usize,
    pub(super) page_size: u32,
    pub(super) level: i32,
    /// Bytes that summaries spared reading.
    pub(super) spared: Arc<AtomicU64>,
}

pub(super) struct Worker<'a> {
    shared: &'a Shared,
    encoder: Encoder,
    buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Shared) -> Result<Self> {
        Ok(Self { shared, encoder: Encoder::for_files(shared.level)?, buffer: vec![0; TASK_BYTES_MAX] })
    }

    pub(super) fn run(&mut self, work: &Work) -> Result<Output> {
        // Taken out for the time of the task, so that reading and encoding may both borrow.
        let mut buffer = std::mem::take(&mut self.buffer);
        let output = match work {
            Work::Stretch { file, offset, len, unit, parent, changed } => match (parent, changed) {
                (Some(parent), Some(changed)) => self.changed(&mut buffer, file, *offset, *len, *unit, parent, changed),
                (parent, _) => self.stretch(&mut buffer, file, *offset, *len, *unit, parent.as_deref()),
            },
            Work::Pool { unit, files } => self.pool(&mut buffer, *unit, files),
        };
        self.buffer = buffer;
        output
    }

    fn stretch(
        &mut self,
        buffer: &mut [u8],
        file: &RegionReader,
        offset: u64,
        len: usize,
        unit: u32,
        parent: Option<&ParentFile>,
    ) -> Result<Output> {
        let want = buffer.get_mut(..len).unwrap_or_default();
        let region = file.read(offset, want)?;
        let unit_bytes = unit as usize;
        // A file that was cut short in mid-page while it was read: the rest of the page is WAL replay's.
        let padded = if region.len < len { region.len.next_multiple_of(unit_bytes).min(len) } else { region.len };
        want[region.len..padded].fill(0);
        let (pieces, len) = (self.pieces(&want[..padded], offset, unit, parent)?, padded);
        Ok(Output { pieces, len, bad_pages: region.bad_pages, pool: Vec::new() })
    }

    /// A stretch of which only some units can differ from the parent.
    #[expect(clippy::too_many_arguments, reason = "the fields of the task")]
    fn changed(
        &mut self,
        buffer: &mut [u8],
        file: &RegionReader,
        offset: u64,
        len: usize,
        unit: u32,
        parent: &ParentFile,
        changed: &BlockSet,
    ) -> Result<Output> {
        let unit_bytes = u64::from(unit);
        let mut all = Output { pieces: Vec::new(), len: 0, bad_pages: Vec::new(), pool: Vec::new() };
        let first = offset / unit_bytes;
        for part in split(parent.extents_from(first), changed, first, (len as u64).div_ceil(unit_bytes)) {
            match part {
                Part::Take { units, what } => {
                    let bytes = u64::from(units) * unit_bytes;
                    self.shared.spared.fetch_add(bytes, Ordering::Relaxed);
                    all.len += bytes as usize;
                    all.pieces.push(Piece { units, what });
                }
                Part::Read { first, units } => {
                    let want = ((units * unit_bytes) as usize).min(len - all.len);
                    let read = self.stretch(buffer, file, first * unit_bytes, want, unit, Some(parent))?;
                    all.len += read.len;
                    all.pieces.extend(read.pieces);
                    all.bad_pages.extend(read.bad_pages);
                    // Cut short while it was read. What the parent has behind that is gone as well.
                    if read.len < want {
                        break;
                    }
                }
            }
        }
        Ok(all)
    }

    fn pieces(&mut self, bytes: &[u8], offset: u64, unit: u32, parent: Option<&ParentFile>) -> Result<Vec<Piece>> {
        let unit_bytes = unit as usize;
        let kind = if unit == self.shared.page_size { ChunkKind::Relation } else { ChunkKind::Other };
        let (mut pieces, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let cut = match (kind, self.shared.cut) {
                (ChunkKind::Relation, CutMode::Aligned) => rest.len().min(self.shared.region),
                (ChunkKind::Relation, CutMode::PageCdc) => {
                    self.shared.gear.cut_pages(rest, unit_bytes, self.shared.region)
                }
                _ => self.shared.gear.cut(rest),
            };
            let (plain, units) = (&rest[..cut], cut.div_ceil(unit_bytes) as u32);
            let what = if is_zero(plain) {
                What::Zero
            } else {
                self.chunk(plain, kind, |id| match parent {
                    Some(parent) => parent.ordinal_of((offset + at as u64) / u64::from(unit), units, id),
                    None => Ok(None),
                })?
            };
            pieces.push(Piece { units, what });
            at += cut;
        }
        Ok(pieces)
    }

    fn chunk(
        &mut self,
        plain: &[u8],
        kind: ChunkKind,
        in_parent: impl FnOnce(&ChunkId) -> Result<Option<u32>>,
    ) -> Result<What> {
        let id = self.shared.keyring.chunk_id(kind.as_u8(), plain)?;
        if let Some(ordinal) = in_parent(&id)? {
            return Ok(What::Parent { ordinal, offset: 0 });
        }
        let plain_len = plain.len() as u32;
        if self.shared.index.lookup(&id)?.is_some() {
            return Ok(What::Chunk { id, kind, plain_len, sealed: None });
        }
        let (encoding, encoded) = self.encoder.encode(plain)?;
        let sealed = seal_data(&self.shared.sealer, id, kind, encoding, plain_len, encoded)?;
        Ok(What::Chunk { id, kind, plain_len, sealed: Some((encoding, sealed)) })
    }

    fn pool(&mut self, buffer: &mut [u8], unit: u32, files: &[PoolFile]) -> Result<Output> {
        let unit_bytes = unit as usize;
        let (mut at, mut pool) = (0, Vec::with_capacity(files.len()));
        for file in files {
            let offset = (at / unit_bytes) as u32;
            let Some(reader) = RegionReader::open(&file.source, file.pages)? else {
                pool.push(PoolPart { offset, len: None, bad_pages: Vec::new() });
                continue;
            };
            let room = buffer.get_mut(at..at + file.size).unwrap_or_default();
            let region = reader.read(0, room)?;
            let end = region.len.next_multiple_of(unit_bytes).min(room.len());
            room[region.len..end].fill(0);
            at += end;
            pool.push(PoolPart { offset, len: Some(region.len), bad_pages: region.bad_pages });
        }
        let plain = &buffer[..at];
        let kind = if unit == self.shared.page_size { ChunkKind::Relation } else { ChunkKind::Other };
        let mut pieces = Vec::new();
        if !plain.is_empty() {
            let what = if is_zero(plain) { What::Zero } else { self.chunk(plain, kind, |_| Ok(None))? };
            pieces.push(Piece { units: (at / unit_bytes) as u32, what });
        }
        Ok(Output { pieces, len: at, bad_pages: Vec::new(), pool })
    }
}
