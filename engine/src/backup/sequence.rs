//! The owner of the session: takes results in order, gathers changed pages, packs chunks, and completes entries.
//!
//! Threads: one dispatcher, `jobs` workers, [`UPLOADERS`] uploaders, one that announces old pages to the store, and this one,
//! which runs on the caller's thread. Memory: [`window`] tasks of at most 1 MiB plaintext each are under way, sealed or not,
//! and as many gathers of half of that, up to three times as many when the results of a whole window come in order at last,
//! which are then no tasks any more; a pack is filled here, and each uploader holds one. Results of tasks wait in their
//! channel, which has room for
//! all that permits allow, while too many gathers are under way: so workers never wait for this thread, nor it for them.
//! A channel that closes is the signal to end; the first error is the one reported.

use super::Plan;
use super::dispatch::{Dispatcher, Item, Wait};
use super::gather::{Gather, GatherRun, Gathered, Gatherer};
use super::parent::Earlier;
use super::stages::Activity;
use super::task::{Done, NamedChunk, Output, Piece, Shared, Task, What, Worker};
use crate::observe::{Cancel, Counter, DETAIL, Observer};
use crate::pack::{FinishedPack, PackedChunk};
use crate::repository::manifests::ManifestBuilder;
use crate::repository::{WriterSession, put_new};
use crate::store::Store;
use crate::{Error, Kind, Result};
use crossbeam_channel::{Receiver, RecvError, Sender, bounded, never, select, select_biased, unbounded};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt, push_extent};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Threads that make packs durable. Each holds a pack.
pub(super) const UPLOADERS: usize = 2;
/// Entries that may wait between dispatcher and sequencer; more than a pool holds back.
const ITEMS_MAX: usize = 2048;
/// Entries that may wait for an open gather to fill.
const WAITING_MAX: usize = 4096;

/// What copying came to.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Bytes of all files.
    pub(super) size: u64,
    /// Bytes of the files that were not taken over from the prior backup as they are.
    pub(super) delta: u64,
    /// Files with damaged pages.
    pub(super) errors: Vec<String>,
}

/// Tasks under way at once.
fn window(jobs: usize) -> usize {
    4 * jobs + 4
}

pub(super) struct Copy<'a> {
    pub(super) plan: &'a Plan,
    pub(super) shared: &'a Shared,
    pub(super) earlier: &'a Earlier,
    pub(super) jobs: usize,
    pub(super) observer: &'a dyn Observer,
    pub(super) cancel: &'a Cancel,
}

impl Copy<'_> {
    /// Copies the cluster: every entry goes to `builder`, every new chunk is durable when this returns.
    pub(super) fn run(&self, session: &mut WriterSession, builder: &mut ManifestBuilder) -> Result<Copied> {
        let window = window(self.jobs);
        let (task_out, task_in) = bounded::<Task>(window);
        let (done_out, done_in) = bounded::<Done>(window);
        let (gather_out, gather_in) = unbounded::<Gather>();
        let (gathered_out, gathered_in) = unbounded::<Done>();
        let (item_out, item_in) = bounded::<Result<Item>>(ITEMS_MAX);
        let (permit_out, permit_in) = bounded::<()>(window);
        let (pack_out, pack_in) = bounded::<FinishedPack>(0);
        let (ahead_out, ahead_in) = bounded::<Vec<(ChunkId, u32)>>(window);
        let (durable_out, durable_in) = unbounded::<Result<FinishedPack>>();
        for _ in 0..window {
            // The channel has room for all of them.
            let _ = permit_out.send(());
        }
        let store = Arc::clone(session.repository().store());
        std::thread::scope(|scope| {
            let named = |name: String| std::thread::Builder::new().name(name);
            let failed = |e| Error::refused(Kind::Kernel, format!("cannot start a thread: {e}"));
            let dispatcher = Dispatcher {
                plan: self.plan,
                shared: self.shared,
                earlier: self.earlier,
                tasks: task_out,
                items: item_out,
                permits: permit_in,
                cancel: self.cancel,
            };
            named("pgkeep-walk".into()).spawn_scoped(scope, move || dispatcher.run()).map_err(failed)?;
            for n in 1..=self.jobs {
                let (tasks, done, shared) = (task_in.clone(), done_out.clone(), self.shared);
                let (gathers, gathered) = (gather_in.clone(), gathered_out.clone());
                named(format!("pgkeep-{n:02}"))
                    .spawn_scoped(scope, move || work(shared, tasks, &done, gathers, &gathered))
                    .map_err(failed)?;
            }
            let announcing = self.shared.old_pages.as_ref().filter(|old| old.announces());
            if let Some(old) = announcing {
                let announce = move || ahead_in.iter().for_each(|bases| old.announce(&bases));
                named("pgkeep-ahead".into()).spawn_scoped(scope, announce).map_err(failed)?;
            }
            for n in 1..=UPLOADERS {
                let (packs, durable, store) = (pack_in.clone(), durable_out.clone(), Arc::clone(&store));
                let shared = self.shared;
                named(format!("pgkeep-up-{n}"))
                    .spawn_scoped(scope, move || upload(shared, &*store, &packs, &durable))
                    .map_err(failed)?;
            }
            // Only the threads hold the other ends now, so each channel closes when its last thread ends.
            drop((task_in, done_out, gather_in, gathered_out, pack_in, durable_out));
            let sequencer = Sequencer {
                copy: self,
                session,
                builder,
                packs: Some(pack_out),
                permits: permit_out,
                page_size: self.plan.page_size as usize,
                tasks: 0,
                next: 0,
                early: BTreeMap::new(),
                finished: HashMap::new(),
                items: VecDeque::new(),
                gatherer: Gatherer::default(),
                gathers: Some(Gathers { workers: gather_out, ahead: announcing.map(|_| ahead_out) }),
                next_gather: 0,
                early_gathers: BTreeMap::new(),
                gathered: HashMap::new(),
                uploading: 0,
                copied: Copied::default(),
            };
            // By value: on failure they must be gone before the threads are joined.
            // Nor is anybody to wait any longer for his turn to read.
            sequencer.run(done_in, gathered_in, item_in, durable_in).inspect_err(|_| self.shared.limits.end())
        })
    }
}

/// Tasks that a worker takes before a gather that waits: meanwhile the disk brings the old pages that were announced with it.
/// More would only hold back what waits for the gather.
const TASKS_FIRST: u32 = 8;

/// Tasks first, but no more than [`TASKS_FIRST`] in a row while a gather waits.
fn work(
    shared: &Shared,
    mut tasks: Receiver<Task>,
    done: &Sender<Done>,
    mut gathers: Receiver<Gather>,
    gathered: &Sender<Done>,
) {
    let mut worker = match Worker::new(shared) {
        Ok(worker) => worker,
        Err(e) => return drop(done.send(Done::Task { sequence: 0, output: Err(e) })),
    };
    let (mut tasks_open, mut gathers_open) = (true, true);
    let mut in_a_row = 0;
    while tasks_open || gathers_open {
        let took = if in_a_row < TASKS_FIRST {
            select_biased! {
                recv(tasks) -> message => Took::Task(message),
                recv(gathers) -> message => Took::Gather(message),
            }
        } else {
            select_biased! {
                recv(gathers) -> message => Took::Gather(message),
                recv(tasks) -> message => Took::Task(message),
            }
        };
        let sent = match took {
            Took::Task(Ok(task)) => {
                in_a_row = (in_a_row + 1).min(TASKS_FIRST);
                done.send(Done::Task { sequence: task.sequence, output: worker.run(&task.work) }).is_ok()
            }
            Took::Gather(Ok(gather)) => {
                in_a_row = 0;
                let (number, result) = (gather.number, worker.gather(&gather));
                gathered.send(Done::Gather { number, gathered: result }).is_ok()
            }
            Took::Task(Err(_)) => {
                (tasks, tasks_open) = (never(), false);
                true
            }
            Took::Gather(Err(_)) => {
                (gathers, gathers_open) = (never(), false);
                true
            }
        };
        if !sent {
            return;
        }
    }
}

/// What a worker is given; an error is the end of the channel.
enum Took {
    Task(Result<Task, RecvError>),
    Gather(Result<Gather, RecvError>),
}

fn upload(shared: &Shared, store: &dyn Store, packs: &Receiver<FinishedPack>, durable: &Sender<Result<FinishedPack>>) {
    for mut pack in packs {
        let put = shared.stages.time(Activity::Upload, || put_new(store, &layout::pack(pack.facts.pack), &pack.bytes));
        if let (Ok(()), Some(old)) = (&put, &shared.old_pages) {
            shared.stages.time(Activity::Upload, || old.keep(&pack));
        }
        pack.bytes = Vec::new();
        if durable.send(put.map(|()| pack)).is_err() {
            return;
        }
    }
}

/// Where a run of units is, or will be.
enum Placed {
    At(Extent),
    Gathered(GatherRun),
}

/// Units of zeros, which may be more than one extent can have.
fn gap(mut units: u64) -> impl Iterator<Item = Placed> {
    std::iter::from_fn(move || {
        let now = u32::try_from(units).unwrap_or(u32::MAX);
        units -= u64::from(now);
        (now > 0).then_some(Placed::At(Extent { units: now, at: ExtentAt::Zero }))
    })
}

struct Finished {
    placed: Vec<Placed>,
    /// Of each file of a pool that was compared with earlier backups.
    pool: Vec<Option<Vec<Placed>>>,
    output: Output,
    /// The last gather that something of it is in, and one.
    gathers: u64,
}

/// Where the pages of a gather are.
struct Places {
    /// Ordinal, and page there.
    places: Vec<(u32, u32)>,
    /// Pages no entry has asked for yet. Each is asked for once.
    left: usize,
}

struct Sequencer<'a> {
    copy: &'a Copy<'a>,
    session: &'a mut WriterSession,
    builder: &'a mut ManifestBuilder,
    packs: Option<Sender<FinishedPack>>,
    permits: Sender<()>,
    page_size: usize,
    /// Number of tasks that the items so far wait for.
    tasks: u64,
    /// Number of the next task to be packed.
    next: u64,
    /// Results that came before their turn.
    early: BTreeMap<u64, Output>,
    /// Packed, and waited for by an entry.
    finished: HashMap<u64, Finished>,
    items: VecDeque<Item>,
    gatherer: Gatherer,
    gathers: Option<Gathers>,
    /// Number of the next gather to be packed.
    next_gather: u64,
    early_gathers: BTreeMap<u64, Gathered>,
    /// Gathers of which entries have not asked for every page yet.
    gathered: HashMap<u64, Places>,
    uploading: usize,
    copied: Copied,
}

impl Sequencer<'_> {
    fn run(
        mut self,
        done: Receiver<Done>,
        gathered: Receiver<Done>,
        mut items: Receiver<Result<Item>>,
        durable: Receiver<Result<FinishedPack>>,
    ) -> Result<Copied> {
        let gathers_max = window(self.copy.jobs) as u64;
        let lost = || Error::refused(Kind::Assert, "a worker ended before its work was done");
        let mut items_open = true;
        loop {
            self.session.keep_alive()?;
            if !items_open && self.next == self.tasks {
                self.flush_gather()?;
                if self.next_gather == self.gatherer.sent() {
                    break;
                }
            }
            let under_way = self.gatherer.sent() - self.next_gather;
            // Nothing is taken up that would gather still more.
            let hold = never();
            let done = if under_way < gathers_max { &done } else { &hold };
            select! {
                recv(done) -> message => self.result(message.map_err(|_| lost())?)?,
                recv(gathered) -> message => self.result(message.map_err(|_| lost())?)?,
                recv(items) -> message => match message {
                    Ok(item) => self.item(item?)?,
                    Err(_) => (items, items_open) = (never(), false),
                },
                recv(durable) -> message => self.durable(message)?,
            }
            self.complete_items()?;
        }
        self.complete_items()?;
        if !self.items.is_empty() || !self.early.is_empty() {
            return Err(lost());
        }
        self.gathers = None;
        if let Some(pack) = self.session.finish_data()? {
            self.upload(pack)?;
        }
        self.packs = None;
        while self.uploading > 0 {
            self.durable(durable.recv())?;
        }
        Ok(self.copied)
    }

    fn item(&mut self, item: Item) -> Result<()> {
        match item.wait {
            Wait::Tasks { first, count } => self.tasks = self.tasks.max(first + count),
            Wait::Pool { sequence, .. } => self.tasks = self.tasks.max(sequence + 1),
            Wait::Ready | Wait::Parent => {}
        }
        self.items.push_back(item);
        if self.items.len().is_multiple_of(WAITING_MAX) { self.flush_gather() } else { Ok(()) }
    }

    fn flush_gather(&mut self) -> Result<()> {
        let gathers = &self.gathers;
        self.gatherer.flush(&mut |gather| send(gathers.as_ref(), gather))
    }

    fn durable(&mut self, message: Result<Result<FinishedPack>, RecvError>) -> Result<()> {
        let pack =
            message.map_err(|_| Error::refused(Kind::Assert, "an uploader ended before its work was done"))??;
        let _span = self.copy.shared.stages.span(Activity::Sequence);
        self.uploading -= 1;
        self.session.note_durable(&pack)
    }

    fn upload(&mut self, pack: FinishedPack) -> Result<()> {
        self.copy.observer.add(Counter::Stored, pack.facts.size);
        let packs = self.packs.as_ref().ok_or_else(|| Error::refused(Kind::Assert, "a pack came after the last"))?;
        let stages = &self.copy.shared.stages;
        stages
            .time(Activity::SequenceRoom, || packs.send(pack))
            .map_err(|_| Error::refused(Kind::Assert, "no uploader is left"))?;
        self.uploading += 1;
        Ok(())
    }

    fn result(&mut self, message: Done) -> Result<()> {
        let _span = self.copy.shared.stages.span(Activity::Sequence);
        match message {
            Done::Task { sequence, output } => drop(self.early.insert(sequence, output?)),
            Done::Gather { number, gathered } => drop(self.early_gathers.insert(number, gathered?)),
        }
        while let Some(output) = self.early.remove(&self.next) {
            let finished = self.pack(output)?;
            self.finished.insert(self.next, finished);
            self.next += 1;
            // The dispatcher may have ended; then nobody needs the permit.
            let _ = self.permits.try_send(());
        }
        while let Some(gathered) = self.early_gathers.remove(&self.next_gather) {
            let Gathered { chunks, places } = gathered;
            let ordinals = chunks.into_iter().map(|c| self.add(c)).collect::<Result<Vec<_>>>()?;
            let place = |(chunk, page): (usize, u32)| Some((*ordinals.get(chunk)?, page));
            let places: Vec<_> = places.into_iter().filter_map(place).collect();
            self.gathered.insert(self.next_gather, Places { left: places.len(), places });
            self.next_gather += 1;
        }
        Ok(())
    }

    /// Packs a chunk if it is new, and gives it its ordinal.
    fn add(&mut self, chunk: NamedChunk) -> Result<u32> {
        let NamedChunk { id, kind, plain_len, new } = chunk;
        // Another worker may have sealed the same meanwhile.
        if let Some(new) = new
            && !self.session.knows(&id)?
        {
            self.copy.observer.add(Counter::New, plain_len.into());
            if let Some(old) = &self.copy.shared.old_pages {
                old.note(id, new.sub_hashes);
            }
            let chunk = PackedChunk { id, kind, encoding: new.encoding, plain_len };
            if let Some(pack) = self.session.add_data(chunk, &new.sealed, &new.bases, &new.hashes)? {
                self.upload(pack)?;
            }
        }
        self.builder.ordinal(self.session, id)
    }

    fn pack(&mut self, mut output: Output) -> Result<Finished> {
        self.copy.observer.add(Counter::Done, output.len as u64);
        let pieces = std::mem::take(&mut output.pieces);
        let mut gathers = 0;
        let placed = self.place(pieces, &output, &mut gathers)?;
        let mut pool = Vec::with_capacity(output.pool.len());
        for n in 0..output.pool.len() {
            let pieces = output.pool.get_mut(n).and_then(|part| part.pieces.take());
            pool.push(pieces.map(|pieces| self.place(pieces, &output, &mut gathers)).transpose()?);
        }
        output.changed = Default::default();
        Ok(Finished { placed, pool, output, gathers })
    }

    fn place(&mut self, pieces: Vec<Piece>, output: &Output, gathers: &mut u64) -> Result<Vec<Placed>> {
        let mut placed = Vec::with_capacity(pieces.len());
        for Piece { units, what } in pieces {
            let at = match what {
                What::Zero => ExtentAt::Zero,
                What::Parent { ordinal, offset } => {
                    ExtentAt::Chunk { ordinal: self.builder.parent_ordinal(self.session, ordinal)?, offset }
                }
                What::Kept { id, offset } => {
                    ExtentAt::Chunk { ordinal: self.builder.ordinal(self.session, id)?, offset }
                }
                What::Chunk(chunk) => ExtentAt::Chunk { ordinal: self.add(chunk)?, offset: 0 },
                What::Changed { first } => {
                    let end = first + units as usize;
                    let bytes = output.changed.bytes.get(first * self.page_size..end * self.page_size);
                    let pages = output.changed.pages.get(first..end).unwrap_or_default();
                    let channel = &self.gathers;
                    let mut send = |gather| send(channel.as_ref(), gather);
                    let runs = self.gatherer.push(bytes.unwrap_or_default(), pages, self.page_size, &mut send)?;
                    *gathers = runs.last().map_or(*gathers, |run| run.number + 1);
                    placed.extend(runs.into_iter().map(Placed::Gathered));
                    continue;
                }
            };
            placed.push(Placed::At(Extent { units, at }));
        }
        Ok(placed)
    }

    /// Whether all gathers a task's result needs are packed.
    fn is_gathered(&self, sequence: u64) -> bool {
        self.finished.get(&sequence).is_none_or(|f| f.gathers <= self.next_gather)
    }

    /// Where units are, now that it is known.
    fn extents(&mut self, placed: &[Placed]) -> Result<Vec<Extent>> {
        let mut out: Vec<Extent> = Vec::with_capacity(placed.len());
        // Neighbours in one chunk are one extent, wherever their stretches were cut.
        for place in placed {
            match place {
                Placed::At(extent) => push_extent(&mut out, *extent),
                Placed::Gathered(run) => {
                    let end = (run.first + run.pages) as usize;
                    let lost = || Error::refused(Kind::Assert, "a gathered page has no place");
                    let gather = self.gathered.get_mut(&run.number).ok_or_else(lost)?;
                    for (ordinal, offset) in gather.places.get(run.first as usize..end).ok_or_else(lost)? {
                        let at = ExtentAt::Chunk { ordinal: *ordinal, offset: *offset };
                        push_extent(&mut out, Extent { units: 1, at });
                    }
                    gather.left = gather.left.saturating_sub(run.pages as usize);
                    if gather.left == 0 {
                        self.gathered.remove(&run.number);
                    }
                }
            }
        }
        Ok(out)
    }

    fn complete_items(&mut self) -> Result<()> {
        let _span = self.copy.shared.stages.span(Activity::Sequence);
        while let Some(item) = self.items.front() {
            let ready = match &item.wait {
                Wait::Ready | Wait::Parent => true,
                Wait::Tasks { first, count } => {
                    first + count <= self.next && (*first..first + count).all(|n| self.is_gathered(n))
                }
                Wait::Pool { sequence, .. } => *sequence < self.next && self.is_gathered(*sequence),
            };
            if !ready {
                return Ok(());
            }
            if let Some(item) = self.items.pop_front() {
                self.complete(item)?;
            }
        }
        Ok(())
    }

    fn complete(&mut self, item: Item) -> Result<()> {
        let Item { mut built, wait } = item;
        let (mut read, mut unchanged) = (true, false);
        match wait {
            Wait::Ready => read = built.inline.is_some(),
            Wait::Parent => {
                self.copy.observer.add(Counter::Done, built.size);
                (read, unchanged) = (false, true);
            }
            Wait::Tasks { first, count } => {
                let (mut placed, mut size, mut end) = (Vec::new(), 0, 0u64);
                for n in first..first + count {
                    let Some(done) = self.finished.remove(&n) else { continue };
                    let offset = (n - first) * super::task::TASK_BYTES_MAX as u64;
                    // A stretch that read short and is not the last: the file was cut and grew again meanwhile.
                    if done.output.len > 0 && offset > end {
                        placed.extend(gap((offset - end) / u64::from(built.unit)));
                    }
                    if done.output.len > 0 {
                        size = offset + done.output.len as u64;
                        end = size.next_multiple_of(built.unit.into());
                        placed.extend(done.placed);
                    }
                    built.bad_pages.extend(done.output.bad_pages);
                }
                (built.extents, built.size) = (self.extents(&placed)?, size);
            }
            Wait::Pool { sequence, index } => {
                if !self.complete_pooled(&mut built, sequence, index)? {
                    tracing::debug!(target: DETAIL, "skip '{}': it was removed by the server after the backup began", built.path);
                    return Ok(());
                }
            }
        }
        if read {
            self.copied.delta += built.size;
            tracing::debug!(target: DETAIL, "backup file {} ({} bytes)", built.path, built.size);
        }
        if !built.bad_pages.is_empty() {
            if read {
                tracing::warn!("{}", bad_pages_message(&built.path, &built.bad_pages));
            }
            self.copied.errors.push(built.path.clone());
        }
        self.copied.size += built.size;
        self.copy.observer.add(Counter::Files, 1);
        if unchanged { self.builder.add_unchanged(self.session, built) } else { self.builder.add(self.session, built) }
    }

    /// False if the file had vanished.
    fn complete_pooled(
        &mut self,
        built: &mut crate::repository::manifests::BuiltEntry,
        sequence: u64,
        index: usize,
    ) -> Result<bool> {
        // Entries of a pool are completed in order, so behind the last one nobody asks again.
        let Some(mut done) = self.finished.remove(&sequence) else { return Ok(false) };
        let last = index + 1 == done.output.pool.len();
        let part = done.output.pool.get_mut(index);
        let there = match part.and_then(|p| Some((p.len?, p.offset, std::mem::take(&mut p.bad_pages)))) {
            None => false,
            Some((len, offset, bad_pages)) => {
                let units = len.div_ceil(built.unit as usize) as u32;
                if let Some(placed) = done.pool.get(index).and_then(Option::as_ref) {
                    built.extents = self.extents(placed)?;
                } else if units > 0 {
                    let at = match done.placed.first() {
                        Some(Placed::At(Extent { at: ExtentAt::Chunk { ordinal, .. }, .. })) => {
                            ExtentAt::Chunk { ordinal: *ordinal, offset }
                        }
                        _ => ExtentAt::Zero,
                    };
                    built.extents = vec![Extent { units, at }];
                }
                built.size = len as u64;
                built.bad_pages = bad_pages;
                true
            }
        };
        if !last {
            self.finished.insert(sequence, done);
        }
        Ok(there)
    }
}

/// Where gathers go.
struct Gathers {
    workers: Sender<Gather>,
    /// Who tells the store what they need; `None` if nobody does.
    ahead: Option<Sender<Vec<(ChunkId, u32)>>>,
}

fn send(gathers: Option<&Gathers>, gather: Gather) -> Result<()> {
    if let Some(ahead) = gathers.and_then(|g| g.ahead.as_ref()) {
        // Who cannot keep up is of no use to this one.
        let _ = ahead.try_send(gather.changed.pages.iter().filter_map(|p| p.base).collect());
    }
    let sent = gathers.map(|g| g.workers.send(gather).is_ok());
    if sent == Some(true) { Ok(()) } else { Err(Error::refused(Kind::Assert, "no worker is left to gather pages")) }
}

fn bad_pages_message(path: &str, pages: &[u32]) -> String {
    let list: Vec<String> = pages.iter().take(16).map(u32::to_string).collect();
    let more = if pages.len() > 16 { format!(" and {} more", pages.len() - 16) } else { String::new() };
    format!("invalid page checksum found in file {path} at pages {}{more}", list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_as_long_as_it_is() {
        for units in [0, 1, u64::from(u32::MAX), 1 << 32, (3 << 32) + 7] {
            let placed: Vec<_> = gap(units).collect();
            let sum: u64 = placed
                .iter()
                .map(|place| match place {
                    Placed::At(Extent { units, at: ExtentAt::Zero }) if *units > 0 => u64::from(*units),
                    _ => panic!("no zeros"),
                })
                .sum();
            assert_eq!(sum, units);
        }
    }
}
