//! What a worker does with a stretch of a file: read, check, cut, name, look up, compress, verify, seal.
//!
//! Files made of pages are compared page by page with the page hashes of earlier backups. A page that did not change keeps its
//! place; one that did is handed on to be gathered with others. Stretches nothing is known of are cut into regions.
//! *Parent* is here the manifest that the new one is built on, as `parent` explains.
//!
//! A task is small enough that a window of them bounds memory, and carries everything it needs, so workers share nothing
//! but the index and the session's counter.

use super::gather::{Gather, Gathered};
use super::old_pages::OldPages;
use super::pages::{ChangedPages, EarlierFile, KnownPages, ParentFile, Sought};
use super::stages::{Activity, Stages};
use super::unread::{GAP_BLOCKS, Part, split};
use crate::Result;
use crate::chunk::{Encoder, Gear};
use crate::crypto::{Keyring, PageHasher, SessionSealer};
use crate::limit::Limits;
use crate::pack::BasePages;
use crate::pg::read::{Original, Pages, RegionReader, is_zero};
use crate::pg::summaries::BlockSet;
use crate::repository::{Repository, RepositoryIndex, seal_data};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use pgkeep_formats::repo::config::CutMode;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of a file in one task.
pub(super) const TASK_BYTES_MAX: usize = 1 << 20;

/// A small file of a pool.
pub(super) struct PoolFile {
    pub(super) source: PathBuf,
    pub(super) pages: Option<Pages>,
    pub(super) size: usize,
    /// The primary's file, if this is a standby's.
    pub(super) original: Option<Arc<Original>>,
    pub(super) earlier: Option<Arc<EarlierFile>>,
}

pub(super) enum Work {
    /// A stretch of one file; `offset` is a multiple of the unit and of the region. With `changed`, all other units are
    /// the parent's.
    Stretch {
        file: Arc<RegionReader>,
        offset: u64,
        len: usize,
        unit: u32,
        earlier: Option<Arc<EarlierFile>>,
        changed: Option<Arc<BlockSet>>,
    },
    /// Small files, to be stored in one chunk.
    Pool { unit: u32, files: Vec<PoolFile> },
}

impl Work {
    /// Says what of a file will be read: a window of tasks ahead of it, so that disk and cores work at once. Small files
    /// are not worth it.
    pub(super) fn announce(&self) {
        let Self::Stretch { file, offset, len, unit, changed, .. } = self else { return };
        let Some(changed) = changed else { return file.will_read(*offset, *len as u64) };
        let (unit, first) = (u64::from(*unit), offset / u64::from(*unit));
        let end = first + (*len as u64).div_ceil(unit);
        for run in changed.runs(first as u32..end as u32, GAP_BLOCKS) {
            file.will_read(u64::from(run.start) * unit, u64::from(run.end - run.start) * unit);
        }
    }
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

impl Piece {
    /// True if one unit more of this goes on with the run.
    fn is_continued_by(&self, next: &What) -> bool {
        match (&self.what, next) {
            (What::Zero, What::Zero) => true,
            (What::Parent { ordinal: a, offset: from }, What::Parent { ordinal: b, offset }) => {
                a == b && from.checked_add(self.units) == Some(*offset)
            }
            (What::Kept { id: a, offset: from }, What::Kept { id: b, offset }) => {
                a == b && from.checked_add(self.units) == Some(*offset)
            }
            (What::Changed { first }, What::Changed { first: next }) => first + self.units as usize == *next,
            _ => false,
        }
    }
}

pub(super) enum What {
    Zero,
    /// As in the parent: its ordinal, and the first unit there.
    Parent {
        ordinal: u32,
        offset: u32,
    },
    /// In a chunk that only the page parent leads to: its name, and the first unit there.
    Kept {
        id: ChunkId,
        offset: u32,
    },
    /// These pages of [`Output::changed`], from this number on.
    Changed {
        first: usize,
    },
    /// A chunk; sealed unless the repository has it.
    Chunk(NamedChunk),
}

/// A chunk's name and, if it is new, what to store.
pub(super) struct NamedChunk {
    pub(super) id: ChunkId,
    pub(super) kind: ChunkKind,
    pub(super) plain_len: u32,
    pub(super) new: Option<NewChunk>,
}

/// A sealed chunk with what its pack says of it.
pub(super) struct NewChunk {
    pub(super) encoding: Encoding,
    pub(super) sealed: Vec<u8>,
    pub(super) bases: Vec<BasePages>,
    pub(super) hashes: Vec<u64>,
    /// Of its sub-blocks, for the base cache; none of a delta.
    pub(super) sub_hashes: Vec<u64>,
}

/// One file of a finished pool.
pub(super) struct PoolPart {
    /// First unit in the pool's chunk.
    pub(super) offset: u32,
    /// Bytes read; `None` if the file had vanished.
    pub(super) len: Option<usize>,
    pub(super) bad_pages: Vec<u32>,
    /// What it is made of, if it was compared with earlier backups; else it is in the pool's chunk.
    pub(super) pieces: Option<Vec<Piece>>,
}

#[derive(Default)]
pub(super) struct Output {
    /// In file order; a pool has one at most.
    pub(super) pieces: Vec<Piece>,
    /// Bytes read of the file, or of all files of the pool.
    pub(super) len: usize,
    pub(super) bad_pages: Vec<u32>,
    pub(super) pool: Vec<PoolPart>,
    /// Pages to be gathered.
    pub(super) changed: ChangedPages,
}

impl Output {
    /// Adds what was read behind this.
    fn append(&mut self, next: Self) {
        let before = self.changed.pages.len();
        self.len += next.len;
        self.bad_pages.extend(next.bad_pages);
        self.changed.bytes.extend(next.changed.bytes);
        self.changed.pages.extend(next.changed.pages);
        self.pieces.extend(next.pieces.into_iter().map(|mut piece| {
            if let What::Changed { first } = &mut piece.what {
                *first += before;
            }
            piece
        }));
    }
}

/// What a worker has done.
pub(super) enum Done {
    Task { sequence: u64, output: Result<Output> },
    Gather { number: u64, gathered: Result<Gathered> },
}

/// What all workers share.
pub(super) struct Shared {
    pub(super) keyring: Arc<Keyring>,
    pub(super) sealer: Arc<SessionSealer>,
    pub(super) index: Arc<RepositoryIndex>,
    pub(super) repository: Arc<Repository>,
    pub(super) gear: Gear,
    pub(super) cut: CutMode,
    pub(super) region: usize,
    pub(super) page_size: u32,
    pub(super) level: i32,
    pub(super) hasher: PageHasher,
    /// There is something to compare with: what is small and new is gathered.
    pub(super) has_parent: bool,
    /// What there is of old pages; `None` if deltas are not wanted.
    pub(super) old_pages: Option<OldPages>,
    pub(super) limits: Arc<Limits>,
    pub(super) stages: Stages,
    /// Bytes that summaries spared reading.
    pub(super) spared: Arc<AtomicU64>,
    /// Bytes of files that were read.
    pub(super) read: AtomicU64,
}

impl Shared {
    /// True if the repository has the chunk, with all it builds on.
    pub(super) fn knows(&self, id: &ChunkId) -> Result<bool> {
        self.index.knows(&self.repository, id)
    }

    fn page_hashes(&self, kind: ChunkKind, plain: &[u8]) -> Vec<u64> {
        let page = self.page_size as usize;
        if kind != ChunkKind::Relation || !plain.len().is_multiple_of(page) {
            return Vec::new();
        }
        plain.chunks(page).map(|p| self.hasher.hash(p)).collect()
    }
}

pub(super) struct Worker<'a> {
    pub(super) shared: &'a Shared,
    pub(super) encoder: Encoder,
    known: KnownPages,
    buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Shared) -> Result<Self> {
        let encoder = Encoder::for_files(shared.level)?;
        Ok(Self { shared, encoder, known: KnownPages::default(), buffer: vec![0; TASK_BYTES_MAX] })
    }

    pub(super) fn run(&mut self, work: &Work) -> Result<Output> {
        self.shared.limits.pace()?;
        let _span = self.shared.stages.span(Activity::Work);
        // Taken out for the time of the task, so that reading and encoding may both borrow.
        let mut buffer = std::mem::take(&mut self.buffer);
        let output = match work {
            Work::Stretch { file, offset, len, unit, earlier, changed } => match (earlier, changed) {
                (Some(earlier), Some(changed)) => {
                    self.changed(&mut buffer, file, *offset, *len, *unit, earlier, changed)
                }
                (earlier, _) => self.stretch(&mut buffer, file, *offset, *len, *unit, earlier.as_deref()),
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
        earlier: Option<&EarlierFile>,
    ) -> Result<Output> {
        let want = buffer.get_mut(..len).unwrap_or_default();
        let region = self.shared.stages.time(Activity::Read, || file.read(offset, want))?;
        self.shared.read.fetch_add(region.len as u64, Ordering::Relaxed);
        let unit_bytes = unit as usize;
        // A file that was cut short in mid-page while it was read: the rest of the page is WAL replay's.
        let padded = if region.len < len { region.len.next_multiple_of(unit_bytes).min(len) } else { region.len };
        want[region.len..padded].fill(0);
        let mut changed = ChangedPages::default();
        let plain = &want[..padded];
        let pieces = if unit == self.shared.page_size && self.shared.has_parent {
            self.pages(plain, offset, earlier, &mut changed)?
        } else {
            self.cut(plain, offset, unit, earlier.and_then(|e| e.own.as_ref()))?
        };
        Ok(Output { pieces, len: padded, bad_pages: region.bad_pages, pool: Vec::new(), changed })
    }

    /// A stretch of which only some units can differ from the prior backup.
    #[expect(clippy::too_many_arguments, reason = "the fields of the task")]
    fn changed(
        &mut self,
        buffer: &mut [u8],
        file: &RegionReader,
        offset: u64,
        len: usize,
        unit: u32,
        earlier: &EarlierFile,
        blocks: &BlockSet,
    ) -> Result<Output> {
        let unit_bytes = u64::from(unit);
        let mut all = Output::default();
        let first = offset / unit_bytes;
        // The prior's, and nobody else's: what changed is known since then.
        let extents = earlier.own.iter().flat_map(|prior| prior.extents_from(first));
        for part in split(extents, blocks, first, (len as u64).div_ceil(unit_bytes)) {
            match part {
                Part::Take { units, what } => {
                    let bytes = u64::from(units) * unit_bytes;
                    self.shared.spared.fetch_add(bytes, Ordering::Relaxed);
                    all.len += bytes as usize;
                    all.pieces.push(Piece { units, what });
                }
                Part::Read { first, units } => {
                    let want = ((units * unit_bytes) as usize).min(len - all.len);
                    let read = self.stretch(buffer, file, first * unit_bytes, want, unit, Some(earlier))?;
                    let short = read.len < want;
                    all.append(read);
                    // Cut short while it was read. What the parent has behind that is gone as well.
                    if short {
                        break;
                    }
                }
            }
        }
        Ok(all)
    }

    /// Compares pages with those of earlier backups.
    fn pages(
        &mut self,
        bytes: &[u8],
        offset: u64,
        earlier: Option<&EarlierFile>,
        changed: &mut ChangedPages,
    ) -> Result<Vec<Piece>> {
        let page_size = self.shared.page_size as usize;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut here = offset;
        for region in bytes.chunks(self.shared.region) {
            let first = here / page_size as u64;
            here += region.len() as u64;
            // Nothing of it is known, and it is worth a chunk of its own.
            let unknown = earlier.is_none_or(|e| e.is_behind(first));
            if unknown && region.len() * 2 >= self.shared.region {
                pieces.extend(self.cut(region, first * page_size as u64, page_size as u32, None)?);
                continue;
            }
            for (page, number) in region.chunks(page_size).zip(first..) {
                let what = self.page(page, number, earlier, changed)?;
                match pieces.last_mut() {
                    Some(last) if last.is_continued_by(&what) => last.units += 1,
                    _ => pieces.push(Piece { units: 1, what }),
                }
            }
        }
        Ok(pieces)
    }

    fn page(
        &mut self,
        page: &[u8],
        number: u64,
        earlier: Option<&EarlierFile>,
        changed: &mut ChangedPages,
    ) -> Result<What> {
        if is_zero(page) {
            return Ok(What::Zero);
        }
        let hash = self.shared.hasher.hash(page);
        let base = match earlier.map(|e| self.known.find(&self.shared.index, e, number, hash)).transpose()? {
            Some(Sought::Unchanged(what)) => return Ok(what),
            Some(Sought::Changed { base }) => base,
            None => None,
        };
        Ok(What::Changed { first: changed.push(page, hash, base) })
    }

    /// Cuts as at first sight. What the parent has in the same place under the same name is its.
    fn cut(&mut self, bytes: &[u8], offset: u64, unit: u32, parent: Option<&ParentFile>) -> Result<Vec<Piece>> {
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
        self.store(id, plain, kind, None).map(What::Chunk)
    }

    /// Seals a chunk that the repository does not have. `hashes` are those of its pages if they are known already.
    pub(super) fn store(
        &mut self,
        id: ChunkId,
        plain: &[u8],
        kind: ChunkKind,
        hashes: Option<Vec<u64>>,
    ) -> Result<NamedChunk> {
        let plain_len = plain.len() as u32;
        if self.shared.knows(&id)? {
            return Ok(NamedChunk { id, kind, plain_len, new: None });
        }
        let hashes = hashes.unwrap_or_else(|| self.shared.page_hashes(kind, plain));
        let old_pages = self.shared.old_pages.as_ref().filter(|_| kind == ChunkKind::Relation);
        let sub_hashes = old_pages.map_or_else(Vec::new, |old| old.hash(plain));
        let _span = self.shared.stages.span(Activity::Encode);
        let (encoding, encoded) = self.encoder.encode(plain)?;
        let sealed = seal_data(&self.shared.sealer, id, kind, encoding, plain_len, encoded)?;
        Ok(NamedChunk {
            id,
            kind,
            plain_len,
            new: Some(NewChunk { encoding, sealed, bases: Vec::new(), hashes, sub_hashes }),
        })
    }

    /// Stores gathered pages.
    pub(super) fn gather(&mut self, gather: &Gather) -> Result<Gathered> {
        super::gather::encode(self, gather)
    }

    fn pool(&mut self, buffer: &mut [u8], unit: u32, files: &[PoolFile]) -> Result<Output> {
        let unit_bytes = unit as usize;
        let (mut at, mut pool) = (0, Vec::with_capacity(files.len()));
        let mut changed = ChangedPages::default();
        let mut compared = 0;
        for file in files {
            let offset = (at / unit_bytes) as u32;
            let Some(reader) = RegionReader::open(&file.source, file.pages)? else {
                pool.push(PoolPart { offset, len: None, bad_pages: Vec::new(), pieces: None });
                continue;
            };
            let room = buffer.get_mut(at..at + file.size).unwrap_or_default();
            let reader = reader.limited(&self.shared.limits).completed_from(file.original.clone());
            let region = self.shared.stages.time(Activity::Read, || reader.read(0, room))?;
            self.shared.read.fetch_add(region.len as u64, Ordering::Relaxed);
            let end = region.len.next_multiple_of(unit_bytes).min(room.len());
            room[region.len..end].fill(0);
            let mut pieces = None;
            if let Some(earlier) = &file.earlier {
                // Its pages have places of their own; the next file takes its room in the pool.
                let content = room.get(..end).unwrap_or_default();
                pieces = Some(self.pages(content, 0, Some(earlier), &mut changed)?);
                compared += end;
            } else {
                at += end;
            }
            pool.push(PoolPart { offset, len: Some(region.len), bad_pages: region.bad_pages, pieces });
        }
        let plain = &buffer[..at];
        let kind = if unit == self.shared.page_size { ChunkKind::Relation } else { ChunkKind::Other };
        let mut pieces = Vec::new();
        if !plain.is_empty() {
            let what = if is_zero(plain) { What::Zero } else { self.chunk(plain, kind, |_| Ok(None))? };
            pieces.push(Piece { units: (at / unit_bytes) as u32, what });
        }
        Ok(Output { pieces, len: at + compared, bad_pages: Vec::new(), pool, changed })
    }
}
