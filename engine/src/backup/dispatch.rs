//! From the walk and the manifests of earlier backups to items and tasks, in path order.
//!
//! What need not be read is the prior's; what is read is compared with all there is (`parent`).
//!
//! One thread. Items say what an entry of the new manifest waits for; tasks are numbered, and only as many are under way as
//! there are permits. Small files wait for a pool to fill, but never for longer than [`POOL_ITEMS_MAX`] entries, so the
//! entries held back behind them stay few.

use super::Plan;
use super::pages::{EarlierFile, ParentFile};
use super::parent::Earlier;
use super::stages::Activity;
use super::task::{PoolFile, Shared, TASK_BYTES_MAX, Task, Work};
use super::unread::Known;
use crate::observe::Cancel;
use crate::pg::datadir::{self, EntryKind, WalkOptions};
use crate::pg::read::{Original, Pages, RegionReader};
use crate::repository::manifests::{BuiltEntry, FileRecord, Manifest, ManifestReader};
use crate::{Error, Kind, Result};
use crossbeam_channel::{Receiver, Sender};
use pgkeep_formats::pg::path::{PathClass, classify};
use pgkeep_formats::repo::manifest::{Content, INLINE_BYTES_MAX, Node, path_cmp};
use std::cmp::Ordering;
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering as AtomicOrdering;

/// Largest file that goes into a pool.
const POOL_FILE_MAX: u64 = 16 << 10;
/// A pool is full at this many bytes.
const POOL_BYTES_MAX: usize = 256 << 10;
/// A pool is stored at the latest after this many entries.
const POOL_ITEMS_MAX: usize = 1000;

/// What an entry waits for.
pub(super) enum Wait {
    /// Nothing: its content is inline, empty, or the parent's.
    Ready,
    /// Nothing: its content is the parent's.
    Parent,
    /// These tasks, one after the other.
    Tasks { first: u64, count: u64 },
    /// One file of a pool.
    Pool { sequence: u64, index: usize },
}

/// An entry of the new manifest.
pub(super) struct Item {
    pub(super) built: BuiltEntry,
    pub(super) wait: Wait,
}

struct Pool {
    unit: u32,
    files: Vec<PoolFile>,
    bytes: usize,
    items: Vec<BuiltEntry>,
}

/// Items in path order whose number in a pool is not known until the pool is sent hold all later ones back.
enum Held {
    Item(Box<Item>),
    InPool { unit: u32, index: usize },
}

pub(super) struct Dispatcher<'a> {
    pub(super) plan: &'a Plan,
    pub(super) shared: &'a Shared,
    pub(super) earlier: &'a Earlier,
    pub(super) tasks: Sender<Task>,
    pub(super) items: Sender<Result<Item>>,
    pub(super) permits: Receiver<()>,
    pub(super) cancel: &'a Cancel,
}

struct State {
    own: Option<Peekable<ManifestReader>>,
    newest: Option<Peekable<ManifestReader>>,
    sequence: u64,
    pools: [Pool; 2],
    held: std::collections::VecDeque<Held>,
}

/// The receiver is gone: the operation has failed elsewhere, and that error is the one to report.
fn gone<T>(_: T) -> Error {
    Error::Interrupted
}

impl Dispatcher<'_> {
    /// Runs to the end of the walk. What goes wrong is sent as the last item.
    pub(super) fn run(self) {
        let _span = self.shared.stages.span(Activity::Walk);
        if let Err(e) = self.walk() {
            // If nobody listens any more, the operation has ended with an error of its own.
            drop(self.items.send(Err(e)));
        }
    }

    fn walk(&self) -> Result<()> {
        let pool = |unit| Pool { unit, files: Vec::new(), bytes: 0, items: Vec::new() };
        let mut state = State {
            own: self.earlier.own.as_ref().map(|m| m.files().peekable()),
            newest: self.earlier.newest.as_ref().map(|m| m.files().peekable()),
            sequence: 0,
            pools: [pool(self.plan.page_size), pool(1)],
            held: std::collections::VecDeque::new(),
        };
        // The survey has told what is left out.
        let quiet = WalkOptions { report: false, ..self.plan.walk.clone() };
        datadir::walk(&self.plan.pgdata, &quiet, self.cancel, |entry| self.entry(&mut state, entry))?;
        self.flush(&mut state)
    }

    fn entry(&self, state: &mut State, mut entry: datadir::Entry) -> Result<()> {
        let path = path_text(&entry.path)?;
        if self.plan.is_late(&path) {
            return Ok(());
        }
        let record = parent_record(state.own.as_mut(), &path)?;
        let built = built_entry(&entry, path)?;
        if !entry.kind.is_file() || entry.size == 0 {
            return self.send(state, Item { built, wait: Wait::Ready });
        }
        let record = record.filter(|r| r.entry.is_file());
        let mut changed = None;
        if let Some(record) = record.as_ref().filter(|_| self.earlier.is_prior) {
            let unchanged = match self.plan.known(&built.path, &entry, record) {
                Known::Nothing => self.plan.is_unchanged(&entry, &record.entry),
                Known::Unchanged => {
                    self.plan.spared.fetch_add(entry.size, AtomicOrdering::Relaxed);
                    true
                }
                Known::Other => false,
                Known::Changed(blocks) => {
                    changed = Some(blocks);
                    false
                }
            };
            if unchanged {
                return self.send_unchanged(state, built, record);
            }
        }
        let original = match &self.plan.standby {
            Some(standby) => standby.redirect(&built.path, &mut entry)?.map(Arc::new),
            None => None,
        };
        let pages = self.plan.pages_of(&built.path, entry.size);
        let unit = if pages.is_some() || is_paged(&built.path, entry.size, self.plan.page_size) {
            self.plan.page_size
        } else {
            1
        };
        let mut built = BuiltEntry { unit, ..built };
        if entry.size <= INLINE_BYTES_MAX as u64 && unit == 1 {
            return match read_small(&entry, original)? {
                Some(bytes) => {
                    self.shared.limits.charge(bytes.len());
                    self.shared.read.fetch_add(bytes.len() as u64, AtomicOrdering::Relaxed);
                    built.size = bytes.len() as u64;
                    built.inline = Some(bytes);
                    self.send(state, Item { built, wait: Wait::Ready })
                }
                None => {
                    vanished(&built.path);
                    Ok(())
                }
            };
        }
        let earlier = self.earlier_file(state, &built.path, record.as_ref(), unit)?;
        if entry.size <= POOL_FILE_MAX {
            let earlier = earlier.filter(|_| unit == self.plan.page_size);
            let size = entry.size as usize;
            return self.pool(state, built, PoolFile { source: entry.source, pages, size, original, earlier });
        }
        let Some(file) = RegionReader::open(&entry.source, pages)? else {
            vanished(&built.path);
            return Ok(());
        };
        let file = Arc::new(file.limited(&self.shared.limits).completed_from(original));
        let first = state.sequence;
        let count = entry.size.div_ceil(TASK_BYTES_MAX as u64);
        // The item goes first: tasks of one file may be more than there are permits.
        state.sequence += count;
        self.send(state, Item { built, wait: Wait::Tasks { first, count } })?;
        for n in 0..count {
            let offset = n * TASK_BYTES_MAX as u64;
            let len = (entry.size - offset).min(TASK_BYTES_MAX as u64) as usize;
            let work = Work::Stretch {
                file: Arc::clone(&file),
                offset,
                len,
                unit,
                earlier: earlier.clone(),
                changed: changed.clone(),
            };
            self.issue(Task { sequence: first + n, work })?;
        }
        Ok(())
    }

    /// The file in earlier backups; `record` is that of the manifest that is built on.
    fn earlier_file(
        &self,
        state: &mut State,
        path: &str,
        record: Option<&FileRecord>,
        unit: u32,
    ) -> Result<Option<Arc<EarlierFile>>> {
        let of = |manifest: &Option<Arc<Manifest>>, record: Option<&FileRecord>| match (manifest, record) {
            (Some(manifest), Some(r)) if matches!(r.entry.content, Content::Extents { unit: u, .. } if u == unit) => {
                Some(ParentFile::new(manifest, &r.extents))
            }
            _ => None,
        };
        let own = of(&self.earlier.own, record);
        let newest = match parent_record(state.newest.as_mut(), path) {
            Ok(record) => of(&self.earlier.newest, record.filter(|r| r.entry.is_file()).as_ref()),
            Err(e) if e.concerns_the_run() => return Err(e),
            // It was read before copying began, and is not needed now.
            Err(e) => {
                tracing::warn!("{}: from '{path}' on, pages are not compared with that backup", e.chain());
                state.newest = None;
                None
            }
        };
        Ok((own.is_some() || newest.is_some()).then(|| Arc::new(EarlierFile { own, newest })))
    }

    fn issue(&self, task: Task) -> Result<()> {
        self.shared.stages.time(Activity::WalkRoom, || self.permits.recv()).map_err(gone)?;
        self.cancel.check()?;
        task.work.announce();
        self.tasks.send(task).map_err(gone)
    }

    fn send_unchanged(&self, state: &mut State, built: BuiltEntry, record: &FileRecord) -> Result<()> {
        let bad_pages = record.entry.bad_pages.clone();
        let size = record.entry.size;
        let (inline, unit, wait) = match &record.entry.content {
            Content::None => (None, 1, Wait::Ready),
            Content::Inline(bytes) => (Some(bytes.clone()), 1, Wait::Ready),
            Content::Extents { unit, .. } => (None, *unit, Wait::Parent),
        };
        self.send(state, Item { built: BuiltEntry { inline, unit, size, bad_pages, ..built }, wait })
    }

    fn pool(&self, state: &mut State, built: BuiltEntry, file: PoolFile) -> Result<()> {
        let which = usize::from(built.unit == 1);
        if state.pools[which].bytes + file.size > POOL_BYTES_MAX {
            self.flush(state)?;
        }
        let pool = &mut state.pools[which];
        pool.bytes += file.size;
        pool.files.push(file);
        pool.items.push(built);
        let (unit, index) = (pool.unit, pool.items.len() - 1);
        state.held.push_back(Held::InPool { unit, index });
        self.release_if_many(state)
    }

    fn send(&self, state: &mut State, item: Item) -> Result<()> {
        if state.held.is_empty() {
            return self.hand_on(item);
        }
        state.held.push_back(Held::Item(Box::new(item)));
        self.release_if_many(state)
    }

    fn release_if_many(&self, state: &mut State) -> Result<()> {
        if state.held.len() >= POOL_ITEMS_MAX { self.flush(state) } else { Ok(()) }
    }

    /// Sends both pools and everything that was held back behind them.
    fn flush(&self, state: &mut State) -> Result<()> {
        let mut sent = [(0, Vec::new()), (0, Vec::new())];
        for (pool, sent) in state.pools.iter_mut().zip(&mut sent) {
            if pool.files.is_empty() {
                continue;
            }
            *sent = (state.sequence, std::mem::take(&mut pool.items).into_iter().map(Some).collect());
            let work = Work::Pool { unit: pool.unit, files: std::mem::take(&mut pool.files) };
            pool.bytes = 0;
            state.sequence += 1;
            self.issue(Task { sequence: sent.0, work })?;
        }
        for held in state.held.drain(..) {
            let item = match held {
                Held::Item(item) => *item,
                Held::InPool { unit, index } => {
                    let (sequence, items) = &mut sent[usize::from(unit == 1)];
                    let Some(built) = items.get_mut(index).and_then(Option::take) else { continue };
                    Item { built, wait: Wait::Pool { sequence: *sequence, index } }
                }
            };
            self.hand_on(item)?;
        }
        Ok(())
    }

    fn hand_on(&self, item: Item) -> Result<()> {
        self.shared.stages.time(Activity::WalkRoom, || self.items.send(Ok(item)).map_err(gone))
    }
}

fn vanished(path: &str) {
    tracing::debug!(target: crate::observe::DETAIL, "skip '{path}': it was removed by the server after the backup began");
}

pub(super) fn path_text(path: &[u8]) -> Result<String> {
    String::from_utf8(path.to_vec()).map_err(|e| {
        let path = String::from_utf8_lossy(e.as_bytes()).into_owned();
        Error::refused(Kind::FileInvalid, format!("the name of '{path}' is not UTF-8: rename it or exclude it"))
    })
}

/// Moves a manifest's records forward to `path`.
pub(super) fn parent_record(records: Option<&mut Peekable<ManifestReader>>, path: &str) -> Result<Option<FileRecord>> {
    let Some(records) = records else { return Ok(None) };
    loop {
        let order = match records.peek() {
            None => return Ok(None),
            Some(Err(_)) => Ordering::Equal,
            Some(Ok(r)) => path_cmp(&r.entry.path, path),
        };
        match order {
            Ordering::Less => drop(records.next()),
            Ordering::Equal => return records.next().transpose(),
            Ordering::Greater => return Ok(None),
        }
    }
}

/// True for files whose content is pages of the cluster's size though they are no relation: transaction status and the like.
fn is_paged(path: &str, size: u64, page_size: u32) -> bool {
    matches!(classify(path), PathClass::Relation(_)) && size.is_multiple_of(page_size.into())
}

/// A file small enough to keep in its entry; `None` if it has vanished.
fn read_small(entry: &datadir::Entry, original: Option<Arc<Original>>) -> Result<Option<Vec<u8>>> {
    let Some(reader) = RegionReader::open(&entry.source, None)? else { return Ok(None) };
    let reader = reader.completed_from(original);
    let mut bytes = vec![0; entry.size as usize];
    let region = reader.read(0, &mut bytes)?;
    bytes.truncate(region.len);
    Ok(Some(bytes))
}

/// The text of a link, which the manifest can hold only if it is UTF-8.
pub(super) fn link_text(entry: &datadir::Entry) -> Result<Option<&str>> {
    let (EntryKind::LinkToDirectory { destination } | EntryKind::LinkToFile { destination }) = &entry.kind else {
        return Ok(None);
    };
    destination.to_str().map(Some).ok_or_else(|| {
        let (path, text) = (String::from_utf8_lossy(&entry.path), destination.display());
        let text = format!("link '{path}' leads to '{text}', which is not UTF-8: let it lead elsewhere or exclude it");
        Error::refused(Kind::FileInvalid, text)
    })
}

pub(super) fn built_entry(entry: &datadir::Entry, path: String) -> Result<BuiltEntry> {
    let text = link_text(entry)?.unwrap_or_default().to_owned();
    let name = |name: &Option<Arc<str>>, id: u32| name.as_ref().map_or_else(|| id.to_string(), |n| n.to_string());
    Ok(BuiltEntry {
        path,
        node: match &entry.kind {
            EntryKind::Directory => Node::Directory,
            EntryKind::File => Node::File,
            EntryKind::LinkToDirectory { .. } => Node::LinkedDirectory(text),
            EntryKind::LinkToFile { .. } => Node::LinkedFile(text),
        },
        mode: entry.mode & 0o7777,
        user: name(&entry.user, entry.uid),
        group: name(&entry.group, entry.gid),
        modified: (entry.mtime, entry.mtime_nanos),
        size: if entry.kind.is_file() { entry.size } else { 0 },
        inline: None,
        unit: 1,
        extents: Vec::new(),
        bad_pages: Vec::new(),
    })
}

impl Plan {
    /// How the pages of a relation file are checked; `None` if it has none or they are not checked.
    fn pages_of(&self, path: &str, size: u64) -> Option<Pages> {
        let check = self.page_check?;
        let PathClass::Relation(relation) = classify(path) else { return None };
        if relation.is_temporary() || !size.is_multiple_of(self.page_size.into()) {
            return None;
        }
        let first_block = relation.first_block(self.segment_blocks)?;
        let size = std::num::NonZero::new(self.page_size as usize)?;
        Some(Pages { size, first_block, check, backup_start: self.backup_start })
    }
}
