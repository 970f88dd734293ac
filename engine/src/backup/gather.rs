//! Gathering changed pages: of many files, in file order, up to [`PAGES_MAX`] to a chunk, and encoding them against the
//! pages that were there before.
//!
//! The sequencer collects (it alone sees pages in order), workers encode. Depth is one: a page's base is the version that
//! was stored in full, however many deltas lie between. A page of which the delta saves little is stored in full, and is
//! the base from then on. Memory: the open gather and those under way, each at most [`BYTES_MAX`] and as much of old pages.

use super::pages::{ChangedPage, ChangedPages};
use super::stages::Activity;
use super::task::{NamedChunk, NewChunk, Worker};
use crate::Result;
use crate::chunk::delta::encode_prefix;
use crate::index::ChunkIndex;
use crate::pack::BasePages;
use crate::repository::seal_data;
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};

/// Pages of a gathered chunk: a delta of more is hardly smaller, and reading one page reads them all.
const PAGES_MAX: usize = 64;
/// Bytes of a gathered chunk.
const BYTES_MAX: usize = 512 << 10;
/// A delta below this share of its pages is good without a look at each page.
const GOOD_SHARE: usize = 16;
/// Level for judging single pages.
const JUDGE_LEVEL: i32 = 1;

/// Pages to be stored together.
#[derive(Debug)]
pub(super) struct Gather {
    pub(super) number: u64,
    pub(super) changed: ChangedPages,
}

/// Where gathered pages went.
pub(super) struct Gathered {
    /// One chunk or two: deltas, and pages stored in full.
    pub(super) chunks: Vec<NamedChunk>,
    /// For each page the number of its chunk and its page there.
    pub(super) places: Vec<(usize, u32)>,
}

/// The gather that is being filled.
#[derive(Debug, Default)]
pub(super) struct Gatherer {
    open: ChangedPages,
    number: u64,
}

/// A run of pages in a gather.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GatherRun {
    pub(super) number: u64,
    pub(super) first: u32,
    pub(super) pages: u32,
}

impl Gatherer {
    /// Takes pages; full gathers go to `send`. Returns where the pages will be.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        pages: &[ChangedPage],
        page_size: usize,
        send: &mut dyn FnMut(Gather) -> Result<()>,
    ) -> Result<Vec<GatherRun>> {
        let max = PAGES_MAX.min(BYTES_MAX / page_size).max(1);
        let mut runs: Vec<GatherRun> = Vec::new();
        for (content, page) in bytes.chunks(page_size).zip(pages) {
            let at = self.open.push(content, page.hash, page.base) as u32;
            match runs.last_mut() {
                Some(run) if run.number == self.number => run.pages += 1,
                _ => runs.push(GatherRun { number: self.number, first: at, pages: 1 }),
            }
            if self.open.pages.len() >= max {
                self.flush(send)?;
            }
        }
        Ok(runs)
    }

    /// Sends what there is.
    pub(super) fn flush(&mut self, send: &mut dyn FnMut(Gather) -> Result<()>) -> Result<()> {
        if self.open.pages.is_empty() {
            return Ok(());
        }
        let gather = Gather { number: self.number, changed: std::mem::take(&mut self.open) };
        self.number += 1;
        send(gather)
    }

    /// Gathers sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.number
    }
}

/// Encodes a gather.
pub(super) fn encode(worker: &mut Worker<'_>, gather: &Gather) -> Result<Gathered> {
    worker.shared.limits.pace()?;
    let _span = worker.shared.stages.span(Activity::Work);
    let page = worker.shared.page_size as usize;
    let all = &gather.changed;
    let content = |i: usize| all.bytes.get(i * page..(i + 1) * page).unwrap_or_default();
    let based = |i: &usize| worker.shared.old_pages.is_some() && all.pages.get(*i).is_some_and(|p| p.base.is_some());
    let (mut deltas, mut full): (Vec<usize>, Vec<usize>) = (0..all.pages.len()).partition(based);
    let mut gathered = Gathered { chunks: Vec::new(), places: vec![(0, 0); all.pages.len()] };
    let joined = |of: &[usize]| of.iter().flat_map(|i| content(*i)).copied().collect::<Vec<u8>>();
    let place = |gathered: &mut Gathered, of: &[usize], chunk: NamedChunk| {
        for (at, i) in of.iter().enumerate() {
            if let Some(place) = gathered.places.get_mut(*i) {
                *place = (gathered.chunks.len(), at as u32);
            }
        }
        gathered.chunks.push(chunk);
    };
    let hashes = |of: &[usize]| of.iter().filter_map(|i| all.pages.get(*i)).map(|p| p.hash).collect::<Vec<_>>();

    if !deltas.is_empty() {
        let plain = joined(&deltas);
        let id = worker.shared.keyring.chunk_id(ChunkKind::Relation.as_u8(), &plain)?;
        if worker.shared.index.lookup(&id)?.is_some() {
            let chunk = NamedChunk { id, kind: ChunkKind::Relation, plain_len: plain.len() as u32, new: None };
            place(&mut gathered, &deltas, chunk);
        } else if let Some(old) = old_pages(worker, all, &deltas) {
            let mut encoded = Vec::new();
            encode_prefix(&plain, &old, page, worker.shared.level, &mut encoded)?;
            if encoded.len() * GOOD_SHARE <= plain.len() {
                let bases = runs(all, &deltas);
                let chunk = delta_chunk(worker, id, &plain, &encoded, bases, hashes(&deltas))?;
                place(&mut gathered, &deltas, chunk);
            } else {
                let (good, bad) = judge(worker, &plain, &old, page, &deltas)?;
                full.extend(bad);
                full.sort_unstable();
                if !good.is_empty() {
                    let (plain, old) = (joined(&good), pick(&deltas, &good, &old, page));
                    let id = worker.shared.keyring.chunk_id(ChunkKind::Relation.as_u8(), &plain)?;
                    encode_prefix(&plain, &old, page, worker.shared.level, &mut encoded)?;
                    let chunk = delta_chunk(worker, id, &plain, &encoded, runs(all, &good), hashes(&good))?;
                    place(&mut gathered, &good, chunk);
                }
            }
        } else {
            full.append(&mut deltas);
            full.sort_unstable();
        }
    }
    if !full.is_empty() {
        let plain = joined(&full);
        let id = worker.shared.keyring.chunk_id(ChunkKind::Relation.as_u8(), &plain)?;
        let chunk = worker.store(id, &plain, ChunkKind::Relation, Some(hashes(&full)))?;
        place(&mut gathered, &full, chunk);
    }
    Ok(gathered)
}

/// The old versions of these pages, joined; `None` if they cannot be read, and then the pages are stored in full.
fn old_pages(worker: &Worker<'_>, all: &ChangedPages, of: &[usize]) -> Option<Vec<u8>> {
    let source = worker.shared.old_pages.as_ref()?;
    match source.join_pages(&runs(all, of), worker.shared.page_size as usize) {
        Ok(old) => Some(old),
        Err(error) => {
            tracing::warn!("{error}: changed pages are stored in full; 'verify' tells what else the damage concerns");
            None
        }
    }
}

/// The bases of these pages, neighbours as one run.
fn runs(all: &ChangedPages, of: &[usize]) -> Vec<BasePages> {
    let mut runs: Vec<BasePages> = Vec::new();
    for (chunk, first) in of.iter().filter_map(|i| all.pages.get(*i)?.base) {
        match runs.last_mut() {
            Some(run) if run.chunk == chunk && run.first + run.pages == first => run.pages += 1,
            _ => runs.push(BasePages { chunk, first, pages: 1 }),
        }
    }
    runs
}

/// Which pages are worth a delta: each whose delta is at most half of what it is on its own.
fn judge(
    worker: &mut Worker<'_>,
    plain: &[u8],
    old: &[u8],
    page: usize,
    of: &[usize],
) -> Result<(Vec<usize>, Vec<usize>)> {
    let (mut good, mut bad, mut encoded) = (Vec::new(), Vec::new(), Vec::new());
    let pages = of.iter().zip(plain.chunks(page)).zip(old.chunks(page));
    for ((i, new), old) in pages {
        encode_prefix(new, old, page, JUDGE_LEVEL, &mut encoded)?;
        let alone = worker.encoder.encode(new)?.1.len();
        let side = if encoded.len() * 2 <= alone { &mut good } else { &mut bad };
        side.push(*i);
    }
    Ok((good, bad))
}

/// Of the old pages of `from` those of `of`.
fn pick(from: &[usize], of: &[usize], old: &[u8], page: usize) -> Vec<u8> {
    let pages = from.iter().zip(old.chunks(page)).filter(|(i, _)| of.binary_search(i).is_ok());
    pages.flat_map(|(_, p)| p).copied().collect()
}

fn delta_chunk(
    worker: &mut Worker<'_>,
    id: ChunkId,
    plain: &[u8],
    encoded: &[u8],
    bases: Vec<BasePages>,
    hashes: Vec<u64>,
) -> Result<NamedChunk> {
    let (shared, kind, plain_len) = (worker.shared, ChunkKind::Relation, plain.len() as u32);
    let sealed = seal_data(&shared.sealer, id, kind, Encoding::ZstdPrefix, plain_len, encoded)?;
    let new = NewChunk { encoding: Encoding::ZstdPrefix, sealed, bases, hashes };
    Ok(NamedChunk { id, kind, plain_len, new: Some(new) })
}
