//! The owner of the session: takes results in order, packs them, and completes entries.
//!
//! Threads: one dispatcher, `jobs` workers, [`UPLOADERS`] uploaders, and this one, which runs on the caller's thread.
//! Memory: [`window`] tasks of at most 1 MiB plaintext each are under way, sealed or not; a pack is filled here, and each
//! uploader holds one. A channel that closes is the signal to end; the first error is the one reported.

use super::Plan;
use super::dispatch::{Dispatcher, Item, Wait};
use super::task::{Done, Output, Shared, Task, What, Worker};
use crate::observe::{Cancel, Counter, DETAIL, Observer};
use crate::pack::{FinishedPack, PackedChunk};
use crate::repository::manifests::{Manifest, ManifestBuilder};
use crate::repository::{WriterSession, put_new};
use crate::store::Store;
use crate::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::{Extent, ExtentAt};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

/// Threads that make packs durable. Each holds a pack.
const UPLOADERS: usize = 2;
/// Entries that may wait between dispatcher and sequencer; more than a pool holds back.
const ITEMS_MAX: usize = 2048;

/// What copying came to.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Bytes of all files.
    pub(super) size: u64,
    /// Bytes of the files that were read.
    pub(super) read: u64,
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
    pub(super) parent: Option<Arc<Manifest>>,
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
        let (item_out, item_in) = bounded::<Result<Item>>(ITEMS_MAX);
        let (permit_out, permit_in) = bounded::<()>(window);
        let (pack_out, pack_in) = bounded::<FinishedPack>(0);
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
                parent: self.parent.clone(),
                tasks: task_out,
                items: item_out,
                permits: permit_in,
                cancel: self.cancel,
            };
            named("pgkeep-walk".into()).spawn_scoped(scope, move || dispatcher.run()).map_err(failed)?;
            for n in 1..=self.jobs {
                let (tasks, done, shared) = (task_in.clone(), done_out.clone(), self.shared);
                named(format!("pgkeep-{n:02}"))
                    .spawn_scoped(scope, move || work(shared, &tasks, &done))
                    .map_err(failed)?;
            }
            for n in 1..=UPLOADERS {
                let (packs, durable, store) = (pack_in.clone(), durable_out.clone(), Arc::clone(&store));
                named(format!("pgkeep-up-{n}"))
                    .spawn_scoped(scope, move || upload(&*store, &packs, &durable))
                    .map_err(failed)?;
            }
            // Only the threads hold the other ends now, so each channel closes when its last thread ends.
            drop((task_in, done_out, pack_in, durable_out));
            let sequencer = Sequencer {
                copy: self,
                session,
                builder,
                packs: Some(pack_out),
                permits: permit_out,
                next: 0,
                early: BTreeMap::new(),
                finished: HashMap::new(),
                items: VecDeque::new(),
                uploading: 0,
                copied: Copied::default(),
            };
            // By value: on failure they must be gone before the threads are joined.
            sequencer.run(done_in, item_in, durable_in)
        })
    }
}

fn work(shared: &Shared, tasks: &Receiver<Task>, done: &Sender<Done>) {
    let mut worker = match Worker::new(shared) {
        Ok(worker) => worker,
        Err(e) => return drop(done.send(Done { sequence: 0, output: Err(e) })),
    };
    for task in tasks {
        let output = worker.run(&task.work);
        if done.send(Done { sequence: task.sequence, output }).is_err() {
            return;
        }
    }
}

fn upload(store: &dyn Store, packs: &Receiver<FinishedPack>, durable: &Sender<Result<FinishedPack>>) {
    for mut pack in packs {
        let put = put_new(store, &layout::pack(pack.facts.pack), &pack.bytes);
        pack.bytes = Vec::new();
        if durable.send(put.map(|()| pack)).is_err() {
            return;
        }
    }
}

struct Finished {
    extents: Vec<Extent>,
    output: Output,
}

struct Sequencer<'a> {
    copy: &'a Copy<'a>,
    session: &'a mut WriterSession,
    builder: &'a mut ManifestBuilder,
    packs: Option<Sender<FinishedPack>>,
    permits: Sender<()>,
    /// Number of the next task to be packed.
    next: u64,
    /// Results that came before their turn.
    early: BTreeMap<u64, Output>,
    /// Packed, and waited for by an entry.
    finished: HashMap<u64, Finished>,
    items: VecDeque<Item>,
    uploading: usize,
    copied: Copied,
}

impl Sequencer<'_> {
    fn run(
        mut self,
        mut done: Receiver<Done>,
        mut items: Receiver<Result<Item>>,
        durable: Receiver<Result<FinishedPack>>,
    ) -> Result<Copied> {
        let (mut done_open, mut items_open) = (true, true);
        while done_open || items_open {
            select! {
                recv(done) -> message => match message {
                    Ok(message) => self.result(message)?,
                    Err(_) => (done, done_open) = (never(), false),
                },
                recv(items) -> message => match message {
                    Ok(item) => self.items.push_back(item?),
                    Err(_) => (items, items_open) = (never(), false),
                },
                recv(durable) -> message => self.durable(message)?,
            }
            self.complete_items()?;
        }
        if !self.items.is_empty() || !self.early.is_empty() {
            return Err(Error::refused(Kind::Assert, "a worker ended before its work was done"));
        }
        if let Some(pack) = self.session.finish_data()? {
            self.upload(pack)?;
        }
        self.packs = None;
        while self.uploading > 0 {
            self.durable(durable.recv())?;
        }
        Ok(self.copied)
    }

    fn durable(&mut self, message: Result<Result<FinishedPack>, crossbeam_channel::RecvError>) -> Result<()> {
        let pack =
            message.map_err(|_| Error::refused(Kind::Assert, "an uploader ended before its work was done"))??;
        self.uploading -= 1;
        self.session.note_durable(&pack)
    }

    fn upload(&mut self, pack: FinishedPack) -> Result<()> {
        self.copy.observer.add(Counter::Stored, pack.facts.size);
        let packs = self.packs.as_ref().ok_or_else(|| Error::refused(Kind::Assert, "a pack came after the last"))?;
        packs.send(pack).map_err(|_| Error::refused(Kind::Assert, "no uploader is left"))?;
        self.uploading += 1;
        Ok(())
    }

    fn result(&mut self, message: Done) -> Result<()> {
        self.early.insert(message.sequence, message.output?);
        while let Some(output) = self.early.remove(&self.next) {
            let finished = self.pack(output)?;
            self.finished.insert(self.next, finished);
            self.next += 1;
            // The dispatcher may have ended; then nobody needs the permit.
            let _ = self.permits.try_send(());
        }
        Ok(())
    }

    fn pack(&mut self, mut output: Output) -> Result<Finished> {
        self.copy.observer.add(Counter::Done, output.len as u64);
        let mut extents = Vec::with_capacity(output.pieces.len());
        for piece in std::mem::take(&mut output.pieces) {
            let (ordinal, offset) = match piece.what {
                What::Zero => {
                    extents.push(Extent { units: piece.units, at: ExtentAt::Zero });
                    continue;
                }
                What::Parent { ordinal, offset } => (self.builder.parent_ordinal(self.session, ordinal)?, offset),
                What::Chunk { id, kind, plain_len, sealed } => {
                    if let Some((encoding, sealed)) = sealed
                        && !self.session.knows(&id)?
                    {
                        self.copy.observer.add(Counter::New, plain_len.into());
                        let chunk = PackedChunk { id, kind, encoding, plain_len };
                        if let Some(pack) = self.session.add_data(chunk, &sealed)? {
                            self.upload(pack)?;
                        }
                    }
                    (self.builder.ordinal(self.session, id)?, 0)
                }
            };
            extents.push(Extent { units: piece.units, at: ExtentAt::Chunk { ordinal, offset } });
        }
        Ok(Finished { extents, output })
    }

    fn complete_items(&mut self) -> Result<()> {
        while let Some(item) = self.items.front() {
            let ready = match &item.wait {
                Wait::Ready | Wait::Parent(_) => true,
                Wait::Tasks { first, count } => first + count <= self.next,
                Wait::Pool { sequence, .. } => *sequence < self.next,
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
        let mut read = true;
        match wait {
            Wait::Ready => read = built.inline.is_some(),
            Wait::Parent(extents) => {
                built.extents = self.builder.parent_extents(self.session, &extents)?;
                self.copy.observer.add(Counter::Done, built.size);
                read = false;
            }
            Wait::Tasks { first, count } => {
                let (mut extents, mut size, mut end) = (Vec::new(), 0, 0u64);
                for n in first..first + count {
                    let Some(done) = self.finished.remove(&n) else { continue };
                    let offset = (n - first) * super::task::TASK_BYTES_MAX as u64;
                    // A stretch that read short and is not the last: the file was cut and grew again meanwhile.
                    if done.output.len > 0 && offset > end {
                        let units = ((offset - end) / u64::from(built.unit)) as u32;
                        extents.push(Extent { units, at: ExtentAt::Zero });
                    }
                    if done.output.len > 0 {
                        size = offset + done.output.len as u64;
                        end = size.next_multiple_of(built.unit.into());
                        extents.extend(done.extents);
                    }
                    built.bad_pages.extend(done.output.bad_pages);
                }
                (built.extents, built.size) = (extents, size);
            }
            Wait::Pool { sequence, index } => {
                if !self.complete_pooled(&mut built, sequence, index) {
                    tracing::debug!(target: DETAIL, "skip '{}': it was removed by the server after the backup began", built.path);
                    return Ok(());
                }
            }
        }
        if read {
            self.copied.read += built.size;
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
        self.builder.add(self.session, built)
    }

    /// False if the file had vanished.
    fn complete_pooled(
        &mut self,
        built: &mut crate::repository::manifests::BuiltEntry,
        sequence: u64,
        index: usize,
    ) -> bool {
        let Some(done) = self.finished.get_mut(&sequence) else { return false };
        let Some(part) = done.output.pool.get_mut(index) else { return false };
        let Some(len) = part.len else { return false };
        let units = len.div_ceil(built.unit as usize) as u32;
        if units > 0 {
            let at = match done.extents.first().map(|e| e.at) {
                Some(ExtentAt::Chunk { ordinal, .. }) => ExtentAt::Chunk { ordinal, offset: part.offset },
                _ => ExtentAt::Zero,
            };
            built.extents = vec![Extent { units, at }];
        }
        built.size = len as u64;
        built.bad_pages = std::mem::take(&mut part.bad_pages);
        // Entries of a pool are completed in order, so behind the last one nobody asks again.
        if index + 1 == done.output.pool.len() {
            self.finished.remove(&sequence);
        }
        true
    }
}

fn bad_pages_message(path: &str, pages: &[u32]) -> String {
    let list: Vec<String> = pages.iter().take(16).map(u32::to_string).collect();
    let more = if pages.len() > 16 { format!(" and {} more", pages.len() - 16) } else { String::new() };
    format!("invalid page checksum found in file {path} at pages {}{more}", list.join(", "))
}
