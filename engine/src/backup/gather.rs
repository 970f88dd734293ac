//! Gathering changed pages: of many files, in file order, up to [`PAGES_MAX`] to a chunk, and encoding them against the
//! pages that were there before.
//!
//! The sequencer collects (it alone sees pages in order), workers encode. Depth is one: a page's base is the version that
//! was stored in full, however many deltas lie between. A page of which the delta saves little is stored in full, and is
//! the base from then on. Memory: the open gather and those under way, each at most [`BYTES_MAX`] and as much of old pages.

use super::old_pages::{OldPages, Way};
use super::pages::{ChangedPage, ChangedPages};
use super::stages::Activity;
use super::task::{NamedChunk, NewChunk, Worker};
use crate::Result;
use crate::chunk::delta::{bitmap_len, encode_patch, encode_prefix};
use crate::index::{ChunkAt, ChunkIndex};
use crate::pack::BasePages;
use crate::repository::seal_data;
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding as How};
use std::collections::HashMap;

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
    /// Up to three chunks: deltas, patches, and pages stored in full.
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
    Encoding { worker, all: &gather.changed, out: Gathered::new(gather.changed.pages.len()) }.run()
}

impl Gathered {
    fn new(pages: usize) -> Self {
        Self { chunks: Vec::new(), places: vec![(0, 0); pages] }
    }

    /// These pages, in this order, are that chunk.
    fn place(&mut self, of: &[usize], chunk: NamedChunk) {
        for (at, i) in of.iter().enumerate() {
            if let Some(place) = self.places.get_mut(*i) {
                *place = (self.chunks.len(), at as u32);
            }
        }
        self.chunks.push(chunk);
    }
}

/// A gather being encoded. Pages are meant by their numbers in it, in ascending order.
struct Encoding<'a, 'b> {
    worker: &'a mut Worker<'b>,
    all: &'a ChangedPages,
    out: Gathered,
}

impl Encoding<'_, '_> {
    fn run(mut self) -> Result<Gathered> {
        let Some(old) = &self.worker.shared.old_pages else {
            self.full(&(0..self.all.pages.len()).collect::<Vec<_>>())?;
            return Ok(self.out);
        };
        let based = |i: &usize| self.all.pages.get(*i).is_some_and(|p| p.base.is_some());
        let (with, mut full): (Vec<usize>, Vec<usize>) = (0..self.all.pages.len()).partition(based);
        // By a run of this backup that was interrupted, or by one of another stanza.
        if !with.is_empty() && !self.known(&with)? {
            let [mut prefix, mut patch, mut rest] = [const { Vec::new() }; 3];
            let wanted = self.wanted(&with);
            for i in with {
                match self.way(old, i, &wanted)? {
                    Way::Prefix => prefix.push(i),
                    Way::Patch => patch.push(i),
                    Way::Full => rest.push(i),
                }
            }
            match self.prefixes(old, &prefix)? {
                Prefixed::Stored { left } => rest.extend(left),
                Prefixed::Unreadable => {
                    // What does not come from the base cache may still have hashes there.
                    let (hashed, bare): (Vec<usize>, _) =
                        prefix.iter().partition(|i| self.sub_hashes(old, **i).is_some());
                    patch.extend(hashed);
                    patch.sort_unstable();
                    rest.extend(bare);
                }
            }
            rest.extend(self.patches(old, &patch)?);
            full.extend(rest);
            full.sort_unstable();
        }
        old.pages.add(Way::Full, full.len());
        self.full(&full)?;
        Ok(self.out)
    }

    fn page_size(&self) -> usize {
        self.worker.shared.page_size as usize
    }

    fn content(&self, i: usize) -> &[u8] {
        self.all.bytes.get(i * self.page_size()..(i + 1) * self.page_size()).unwrap_or_default()
    }

    fn joined(&self, of: &[usize]) -> Vec<u8> {
        let pages: Vec<&[u8]> = of.iter().map(|i| self.content(*i)).collect();
        pages.concat()
    }

    fn hashes(&self, of: &[usize]) -> Vec<u64> {
        of.iter().filter_map(|i| self.all.pages.get(*i)).map(|p| p.hash).collect()
    }

    fn id(&self, plain: &[u8]) -> Result<ChunkId> {
        Ok(self.worker.shared.keyring.chunk_id(ChunkKind::Relation.as_u8(), plain)?)
    }

    /// Where the old page's bytes are: pack, chunk there, page in it.
    fn old_place(&self, i: usize) -> Result<Option<(ChunkAt, u32)>> {
        let Some((chunk, page)) = self.all.pages.get(i).and_then(|p| p.base) else { return Ok(None) };
        // Depth is one.
        let at = self.worker.shared.index.lookup(&chunk)?.filter(|at| !at.encoding.is_delta());
        Ok(at.map(|at| (at, page)))
    }

    /// How many pages are wanted of each base chunk.
    fn wanted(&self, of: &[usize]) -> HashMap<ChunkId, u32> {
        let mut wanted = HashMap::new();
        for (chunk, _) in of.iter().filter_map(|i| self.all.pages.get(*i)?.base) {
            *wanted.entry(chunk).or_default() += 1;
        }
        wanted
    }

    fn way(&self, old: &OldPages, i: usize, wanted: &HashMap<ChunkId, u32>) -> Result<Way> {
        let base = self.all.pages.get(i).and_then(|p| p.base);
        let wanted = base.and_then(|(chunk, _)| wanted.get(&chunk)).copied().unwrap_or_default();
        Ok(self.old_place(i)?.map_or(Way::Full, |(at, page)| old.way(&at, page, wanted)))
    }

    fn sub_hashes(&self, old: &OldPages, i: usize) -> Option<Vec<u64>> {
        let (at, page) = self.old_place(i).ok().flatten()?;
        old.sub_hashes(at.pack.pack, at.ordinal, page)
    }

    /// Places pages that the repository has as they are.
    fn known(&mut self, of: &[usize]) -> Result<bool> {
        let plain = self.joined(of);
        let id = self.id(&plain)?;
        let found = self.worker.shared.knows(&id)?;
        if found {
            let chunk = NamedChunk { id, kind: ChunkKind::Relation, plain_len: plain.len() as u32, new: None };
            self.out.place(of, chunk);
        }
        Ok(found)
    }

    fn full(&mut self, of: &[usize]) -> Result<()> {
        if of.is_empty() {
            return Ok(());
        }
        let plain = self.joined(of);
        let (id, hashes) = (self.id(&plain)?, self.hashes(of));
        let chunk = self.worker.store(id, &plain, ChunkKind::Relation, Some(hashes))?;
        self.out.place(of, chunk);
        Ok(())
    }

    /// Encodes pages against their old versions. What gains little is left.
    fn prefixes(&mut self, old: &OldPages, of: &[usize]) -> Result<Prefixed> {
        if of.is_empty() {
            return Ok(Prefixed::Stored { left: Vec::new() });
        }
        let before = match old.join(&runs(self.all, of)) {
            Ok(before) => before,
            Err(error) => {
                old.tell(error)?;
                return Ok(Prefixed::Unreadable);
            }
        };
        let (page, level) = (self.page_size(), self.worker.shared.level);
        let (plain, mut encoded) = (self.joined(of), Vec::new());
        self.timed(|| encode_prefix(&plain, &before, page, level, &mut encoded))?;
        if encoded.len() * GOOD_SHARE <= plain.len() {
            self.delta(old, of, &plain, How::ZstdPrefix, &encoded)?;
            return Ok(Prefixed::Stored { left: Vec::new() });
        }
        let (good, left) = judge(self.worker, &plain, &before, page, of)?;
        if !good.is_empty() {
            let (plain, before) = (self.joined(&good), pick(of, &good, &before, page));
            self.timed(|| encode_prefix(&plain, &before, page, level, &mut encoded))?;
            self.delta(old, &good, &plain, How::ZstdPrefix, &encoded)?;
        }
        Ok(Prefixed::Stored { left })
    }

    /// Encodes pages against the hashes of their old versions' sub-blocks. Those that changed too much are returned.
    fn patches(&mut self, old: &OldPages, of: &[usize]) -> Result<Vec<usize>> {
        let page = self.page_size();
        let (mut good, mut left, mut bitmaps) = (Vec::new(), Vec::new(), Vec::new());
        for i in of {
            let now = old.hash(self.content(*i));
            let before = self.sub_hashes(old, *i).filter(|before| before.len() == now.len());
            let changed = |at: usize| before.as_ref().is_none_or(|before| before.get(at) != now.get(at));
            let ones: Vec<usize> = (0..now.len()).filter(|at| changed(*at)).collect();
            if now.is_empty() || ones.len() * 2 > now.len() {
                left.push(*i);
                continue;
            }
            let start = bitmaps.len();
            bitmaps.resize(start + bitmap_len(page), 0u8);
            for at in ones {
                if let Some(byte) = bitmaps.get_mut(start + at / 8) {
                    *byte |= 1 << (at % 8);
                }
            }
            good.push(*i);
        }
        if !good.is_empty() {
            let (plain, level, mut encoded) = (self.joined(&good), self.worker.shared.level, Vec::new());
            self.timed(|| encode_patch(&plain, &bitmaps, page, level, &mut encoded))?;
            self.delta(old, &good, &plain, How::Patch, &encoded)?;
        }
        Ok(left)
    }

    fn timed(&self, encode: impl FnOnce() -> Result<()>) -> Result<()> {
        self.worker.shared.stages.time(Activity::Encode, encode)
    }

    fn delta(&mut self, old: &OldPages, of: &[usize], plain: &[u8], how: How, encoded: &[u8]) -> Result<()> {
        let (id, hashes, bases) = (self.id(plain)?, self.hashes(of), runs(self.all, of));
        let (shared, kind, plain_len) = (self.worker.shared, ChunkKind::Relation, plain.len() as u32);
        // It is there as a delta of which a base is gone: readers choose the copy that is stored in full.
        if shared.index.lookup(&id)?.is_some() && !shared.knows(&id)? {
            return self.full(of);
        }
        old.pages.add(if how == How::Patch { Way::Patch } else { Way::Prefix }, of.len());
        let sealed = seal_data(&shared.sealer, id, kind, how, plain_len, encoded)?;
        let new = NewChunk { encoding: how, sealed, bases, hashes, sub_hashes: Vec::new() };
        self.out.place(of, NamedChunk { id, kind, plain_len, new: Some(new) });
        Ok(())
    }
}

/// What became of pages that were to be encoded against old ones.
enum Prefixed {
    /// They are stored, but for these.
    Stored { left: Vec<usize> },
    /// The old pages cannot be read.
    Unreadable,
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
    let wanted = from.iter().zip(old.chunks(page)).filter(|(i, _)| of.binary_search(i).is_ok());
    let pages: Vec<&[u8]> = wanted.map(|(_, p)| p).collect();
    pages.concat()
}
