//! Fetching claimed chunks: neighbours in a pack come with one ranged get, distant ones in parallel.

use super::{ChunkCache, Claim};
use crate::index::ChunkAt;
use crate::repository::{ChunkSource, Plain};
use crate::store::Range;
use crate::{Error, Result};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::layout;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Most stored bytes of one get, unless a single chunk is larger.
const RUN_BYTES: usize = 1 << 20;
/// Most decoded bytes that come from one get: stored bytes may stand for twenty times as many.
const RUN_PLAIN_BYTES: u64 = 4 << 20;
/// Bytes nobody wants that are read rather than asked around: a request costs more than these.
const GAP_BYTES: u64 = 64 << 10;
/// Gets of one reader at a time.
pub(super) const GETS_MAX: usize = 4;

struct Member<'a> {
    claim: Claim<'a>,
    at: ChunkAt,
    /// False for what comes along.
    wanted: bool,
}

/// Chunks near each other in one pack, in pack order.
struct Run<'a> {
    members: Vec<Member<'a>>,
    end: u64,
    plain: u64,
}

impl<'a> Run<'a> {
    fn of(member: Member<'a>) -> Self {
        Self { end: end_of(&member.at), plain: member.at.plain_len.into(), members: vec![member] }
    }

    fn start(&self) -> u64 {
        self.members.first().map_or(0, |m| m.at.offset.into())
    }

    /// True if the chunk can come with the same get.
    fn takes(&self, at: &ChunkAt) -> bool {
        let near = self.members.first().is_some_and(|m| m.at.pack.pack == at.pack.pack)
            && u64::from(at.offset).checked_sub(self.end).is_some_and(|gap| gap <= GAP_BYTES);
        near && end_of(at) - self.start() <= RUN_BYTES as u64 && self.plain + u64::from(at.plain_len) <= RUN_PLAIN_BYTES
    }

    fn push(&mut self, member: Member<'a>) {
        self.end = end_of(&member.at);
        self.plain += u64::from(member.at.plain_len);
        self.members.push(member);
    }
}

fn end_of(at: &ChunkAt) -> u64 {
    u64::from(at.offset) + u64::from(at.stored_len)
}

/// Fetches all `claims` into `found` and the cache. After an error the flights that were not landed are abandoned.
pub(super) fn fetch(
    cache: &ChunkCache,
    source: &ChunkSource,
    claims: Vec<Claim<'_>>,
    ahead: &mut dyn FnMut() -> Option<ChunkId>,
    found: &mut HashMap<ChunkId, Plain>,
) -> Result<()> {
    let last = claims.last().map(|c| c.id);
    let mut members = Vec::with_capacity(claims.len());
    for claim in claims {
        match source.locate(&claim.id) {
            Ok(at) => members.push(Member { claim, at, wanted: true }),
            Err(error) => {
                claim.fail(&error);
                return Err(error);
            }
        }
    }
    members.sort_by_key(|m| (m.at.pack.pack, m.at.offset));
    let mut runs: Vec<Run<'_>> = Vec::new();
    for member in members {
        match runs.last_mut() {
            Some(run) if run.takes(&member.at) => run.push(member),
            _ => runs.push(Run::of(member)),
        }
    }
    if let Some(run) = runs.iter_mut().find(|r| r.members.last().map(|m| m.claim.id) == last) {
        extend(cache, source, run, ahead);
    }
    let mut results = in_parallel(runs, |run| fetch_run(source, run));
    // The first failure counts; what the others brought is in the cache.
    if let Some(at) = results.iter().position(Result::is_err) {
        return results.swap_remove(at).map(|_| ());
    }
    found.extend(results.into_iter().flatten().flatten());
    Ok(())
}

/// Adds what will be wanted next as long as it lies next in the pack.
fn extend<'a>(
    cache: &'a ChunkCache,
    source: &ChunkSource,
    run: &mut Run<'a>,
    ahead: &mut dyn FnMut() -> Option<ChunkId>,
) {
    while let Some(id) = ahead() {
        // A chunk that cannot be located is told to whoever reads it; nobody has asked for it yet.
        let Ok(at) = source.locate(&id) else { return };
        if !run.takes(&at) {
            return;
        }
        let Some(claim) = cache.claim(id) else { return };
        run.push(Member { claim, at, wanted: false });
    }
}

fn fetch_run(source: &ChunkSource, run: Run<'_>) -> Result<Vec<(ChunkId, Plain)>> {
    let (start, end) = (run.start(), run.end);
    let Some(first) = run.members.first() else { return Ok(Vec::new()) };
    let name = layout::pack(first.at.pack.pack);
    let span = Range::Span { offset: start, len: (end - start) as usize };
    let mut blob = match source.store().get(&name, span) {
        Ok(blob) => blob,
        // Something else in the run may be at fault: each chunk has the failure that is its own.
        Err(_) if run.members.len() > 1 => return fetch_singly(source, run),
        Err(error) => {
            let mut out = Vec::new();
            if let Some(member) = run.members.into_iter().next() {
                land_from_elsewhere(source, member, error.into(), &mut out)?;
            }
            return Ok(out);
        }
    };
    let mut out = Vec::new();
    for member in run.members {
        let from = (u64::from(member.at.offset) - start) as usize;
        let sealed = blob.get_mut(from..from + member.at.stored_len as usize).unwrap_or_default();
        land(source, member, sealed, &mut out)?;
    }
    Ok(out)
}

fn fetch_singly(source: &ChunkSource, run: Run<'_>) -> Result<Vec<(ChunkId, Plain)>> {
    let mut out = Vec::new();
    for member in run.members.into_iter().filter(|m| m.wanted) {
        let span = Range::Span { offset: member.at.offset.into(), len: member.at.stored_len as usize };
        match source.store().get(&layout::pack(member.at.pack.pack), span) {
            Ok(mut sealed) => land(source, member, &mut sealed, &mut out)?,
            Err(error) => land_from_elsewhere(source, member, error.into(), &mut out)?,
        }
    }
    Ok(out)
}

/// A chunk whose pack could not be read: the pack may have been rewritten since the index was loaded.
fn land_from_elsewhere(
    source: &ChunkSource,
    member: Member<'_>,
    error: Error,
    out: &mut Vec<(ChunkId, Plain)>,
) -> Result<()> {
    let id = member.claim.id;
    match source.read_elsewhere(&id, member.at.pack.pack, error) {
        Ok(plain) => {
            let plain = Arc::new(plain);
            member.claim.land(&plain);
            out.push((id, plain));
            Ok(())
        }
        Err(error) => {
            member.claim.fail(&error);
            Err(error)
        }
    }
}

/// Opens a chunk. One that only came along and is damaged is left to whoever asks for it.
fn land(source: &ChunkSource, member: Member<'_>, sealed: &mut [u8], out: &mut Vec<(ChunkId, Plain)>) -> Result<()> {
    let id = member.claim.id;
    match source.open(&id, &member.at, sealed) {
        Ok(plain) => {
            let plain = Arc::new(plain);
            member.claim.land(&plain);
            if member.wanted {
                out.push((id, plain));
            }
        }
        Err(error) if member.wanted => {
            member.claim.fail(&error);
            return Err(error);
        }
        Err(error) => tracing::debug!("chunk {id}, which was read ahead, cannot be opened: {error}"),
    }
    Ok(())
}

/// Applies `work` to all `jobs`, on up to [`GETS_MAX`] threads; results come in the order of the jobs.
fn in_parallel<J: Send, T: Send>(jobs: Vec<J>, work: impl Fn(J) -> Result<T> + Sync) -> Vec<Result<T>> {
    if jobs.len() <= 1 {
        return jobs.into_iter().map(work).collect();
    }
    let threads = jobs.len().min(GETS_MAX);
    let jobs: Vec<Mutex<Option<J>>> = jobs.into_iter().map(|j| Mutex::new(Some(j))).collect();
    let results: Vec<Mutex<Option<Result<T>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let take = || {
        while let Some((job, result)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            jobs.get(at).zip(results.get(at))
        } {
            let Some(job) = job.lock().unwrap_or_else(PoisonError::into_inner).take() else { continue };
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(work(job));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without a thread more the others take longer, that is all.
            if let Err(error) = std::thread::Builder::new().name("chunk-get".to_owned()).spawn_scoped(scope, take) {
                tracing::debug!("cannot start a thread to fetch chunks: {error}");
            }
        }
        take();
    });
    results.into_iter().filter_map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}
