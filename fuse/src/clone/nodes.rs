//! The inode table of a clone: what the kernel knows, by number, without a file descriptor each.
//!
//! Numbers are handed out once and never again, so that a file the backing system gives a used inode number is never
//! taken for its predecessor. A node knows its backing inode and the names it was seen under, as (parent, name): a
//! renamed directory moves everything below it at no cost. Names are hints: whoever follows one compares the backing
//! inode. The table's lock is held for look-ups only, never across a system call.

use super::base::BaseFile;
use super::modes::Opens;
use crate::errno::Outcome;
use fuser::Errno;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// The root's number in FUSE.
pub(super) const ROOT: u64 = 1;

/// One open backing file, shared by all handles of a node.
pub(super) struct OpenFile {
    pub(super) file: File,
    /// The same file opened once more, for base-backed ones: a failed write is told once to each, so that one can be
    /// asked while the other is being synced (see [`super::disk`]).
    pub(super) witness: Option<File>,
    pub(super) writable: bool,
}

/// What is known of a regular file beyond its names.
pub(super) struct FileState {
    /// The shared open file, while any handle is open.
    pub(super) open: Mutex<Weak<OpenFile>>,
    /// Filled by the first open; `None` for files born on the clone.
    pub(super) base: OnceLock<Option<Arc<BaseFile>>>,
    /// Something fdatasync must write.
    pub(super) dirty_data: AtomicBool,
    /// Something only fsync must write.
    pub(super) dirty_facts: AtomicBool,
    /// It was written to, by this session or perhaps by one that died.
    written: AtomicBool,
    /// What is written to it is not seen: every sync is done, whatever the flags above say.
    unseen: AtomicBool,
    /// The kernel's handles.
    pub(super) opens: Mutex<Opens>,
    /// Once a sync failed it fails for ever.
    pub(super) failed: AtomicBool,
    /// One sync at a time: the second must not return before the first is done.
    pub(super) sync: Mutex<()>,
}

impl FileState {
    fn new(dirty: bool) -> Self {
        Self {
            open: Mutex::new(Weak::new()),
            base: OnceLock::new(),
            dirty_data: AtomicBool::new(dirty),
            dirty_facts: AtomicBool::new(dirty),
            written: AtomicBool::new(dirty),
            unseen: AtomicBool::new(false),
            opens: Mutex::default(),
            failed: AtomicBool::new(false),
            sync: Mutex::new(()),
        }
    }

    /// Called after data changed and before that is acknowledged.
    pub(super) fn touch_data(&self) {
        self.written.store(true, Ordering::Release);
        self.dirty_data.store(true, Ordering::Release);
        self.dirty_facts.store(true, Ordering::Release);
    }

    /// Called after owner, mode, times or names changed and before that is acknowledged.
    pub(super) fn touch_facts(&self) {
        self.dirty_facts.store(true, Ordering::Release);
    }

    /// True once data changed, or may have changed unseen.
    pub(super) fn was_written(&self) -> bool {
        self.written.load(Ordering::Acquire)
    }

    /// Called before a handle is given out whose writes are not seen.
    pub(super) fn open_unseen(&self) {
        self.unseen.store(true, Ordering::Release);
        if let Some(Some(base)) = self.base.get() {
            base.expect_unseen();
        }
        // A file born on the clone is told from one that nobody has written to by this alone, so its node is kept. Of a
        // base-backed one the durable map tells, so its node may be forgotten.
        if self.base.get().is_some_and(Option::is_none) {
            self.touch_data();
        }
    }

    /// True if nobody here knows whether there is something to sync.
    pub(super) fn is_unseen(&self) -> bool {
        self.unseen.load(Ordering::Acquire)
    }

    /// True if forgetting this node would forget something the next fsync needs.
    fn is_needed(&self) -> bool {
        self.dirty_data.load(Ordering::Acquire)
            || self.dirty_facts.load(Ordering::Acquire)
            || self.failed.load(Ordering::Acquire)
            // A second state of the same file would know nothing of the pages that are not stored as present yet.
            || self.base.get().and_then(Option::as_ref).is_some_and(|base| base.is_unsettled())
            // Whoever holds this lock is opening the file; waiting for it here would lock in the wrong order.
            || self.open.try_lock().map_or(true, |open| open.strong_count() > 0)
    }
}

/// A name of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) parent: u64,
    pub(super) name: OsString,
}

impl Link {
    pub(super) fn new(parent: u64, name: &OsStr) -> Self {
        Self { parent, name: name.to_os_string() }
    }
}

/// What the table knows of one inode.
#[derive(Clone)]
pub(super) struct Node {
    /// The backing file system's inode number.
    pub(super) backing: u64,
    pub(super) links: Vec<Link>,
    /// For regular files.
    pub(super) file: Option<Arc<FileState>>,
    lookups: u64,
    /// False once its last name is gone.
    alive: bool,
}

struct Inner {
    next: u64,
    nodes: HashMap<u64, Node>,
    by_backing: HashMap<u64, u64>,
}

/// The table.
pub(super) struct Nodes {
    inner: Mutex<Inner>,
    /// Whether files seen for the first time may have unsynced writes of an earlier session.
    dirty_at_start: bool,
}

impl Nodes {
    pub(super) fn new(root_backing: u64, dirty_at_start: bool) -> Self {
        let root = Node { backing: root_backing, links: Vec::new(), file: None, lookups: 1, alive: true };
        let inner = Inner {
            next: ROOT + 1,
            nodes: HashMap::from([(ROOT, root)]),
            by_backing: HashMap::from([(root_backing, ROOT)]),
        };
        Self { inner: Mutex::new(inner), dirty_at_start }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, number: u64) -> Outcome<Node> {
        self.lock().nodes.get(&number).cloned().ok_or(Errno::ESTALE)
    }

    /// The file of a number.
    pub(super) fn file(&self, number: u64) -> Outcome<Arc<FileState>> {
        let inner = self.lock();
        let node = inner.nodes.get(&number).ok_or(Errno::ESTALE)?;
        node.file.clone().ok_or(Errno::EINVAL)
    }

    /// The number a backing inode has, if it has one.
    pub(super) fn number_of(&self, backing: u64) -> Option<u64> {
        self.lock().by_backing.get(&backing).copied()
    }

    /// The kernel looked `link` up and found `backing`: one more reference to its node.
    pub(super) fn looked_up(&self, link: Link, backing: u64, kind: Regular) -> u64 {
        self.enter(link, backing, kind, self.dirty_at_start)
    }

    /// A file was born as `link`.
    pub(super) fn born(&self, link: Link, backing: u64, kind: Regular) -> u64 {
        self.enter(link, backing, kind, true)
    }

    fn enter(&self, link: Link, backing: u64, kind: Regular, dirty: bool) -> u64 {
        let mut inner = self.lock();
        let known = inner.by_backing.get(&backing).copied();
        let number = known.unwrap_or(inner.next);
        if known.is_none() {
            inner.next += 1;
            inner.by_backing.insert(backing, number);
        }
        let node = inner.nodes.entry(number).or_insert_with(|| Node {
            backing,
            links: Vec::new(),
            file: (kind == Regular::Yes).then(|| Arc::new(FileState::new(dirty))),
            lookups: 0,
            alive: true,
        });
        node.lookups += 1;
        if !node.links.contains(&link) {
            node.links.push(link);
        }
        number
    }

    /// The kernel dropped `count` references.
    pub(super) fn forget(&self, number: u64, count: u64) {
        let mut inner = self.lock();
        let Some(node) = inner.nodes.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        let needed = node.alive && node.file.as_ref().is_some_and(|file| file.is_needed());
        if number != ROOT && node.lookups == 0 && !needed {
            let backing = node.backing;
            inner.nodes.remove(&number);
            if inner.by_backing.get(&backing) == Some(&number) {
                inner.by_backing.remove(&backing);
            }
        }
    }

    /// A name of `backing` is gone; `last` if it was the only one.
    pub(super) fn unlinked(&self, backing: u64, link: &Link, last: LastName) {
        let mut inner = self.lock();
        let Some(number) = inner.by_backing.get(&backing).copied() else { return };
        if last == LastName::Yes {
            inner.by_backing.remove(&backing);
        }
        let Some(node) = inner.nodes.get_mut(&number) else { return };
        node.links.retain(|known| known != link);
        if last == LastName::Yes {
            node.alive = false;
            if node.lookups == 0 {
                inner.nodes.remove(&number);
            }
        }
    }

    /// A name of `backing` became another one.
    pub(super) fn renamed(&self, backing: u64, from: &Link, to: Link) {
        let mut inner = self.lock();
        let Some(number) = inner.by_backing.get(&backing).copied() else { return };
        let Some(node) = inner.nodes.get_mut(&number) else { return };
        node.links.retain(|known| known != from && *known != to);
        node.links.push(to);
        if let Some(file) = &node.file {
            file.touch_facts();
        }
    }
}

/// Whether an inode is a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Regular {
    Yes,
    No,
}

/// Whether a removed name was the inode's only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastName {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str) -> Link {
        Link::new(ROOT, OsStr::new(name))
    }

    #[test]
    fn a_reused_backing_inode_is_another_node() {
        let nodes = Nodes::new(100, false);
        let first = nodes.looked_up(link("a"), 200, Regular::Yes);
        nodes.unlinked(200, &link("a"), LastName::Yes);
        let second = nodes.looked_up(link("b"), 200, Regular::Yes);
        assert_ne!(first, second);
        assert!(nodes.get(first).is_ok_and(|node| node.links.is_empty()));
        nodes.forget(first, 1);
        assert!(nodes.get(first).is_err());
        assert_eq!(nodes.number_of(200), Some(second));
    }

    #[test]
    fn renames_keep_the_number_and_hard_links_share_it() {
        let nodes = Nodes::new(100, false);
        let number = nodes.looked_up(link("a"), 200, Regular::Yes);
        assert_eq!(nodes.looked_up(link("b"), 200, Regular::Yes), number);
        nodes.renamed(200, &link("a"), link("c"));
        assert_eq!(nodes.get(number).unwrap().links, [link("b"), link("c")]);
        nodes.unlinked(200, &link("b"), LastName::No);
        assert_eq!(nodes.get(number).unwrap().links, [link("c")]);
    }

    #[test]
    fn forgotten_nodes_go_unless_a_sync_needs_them() {
        let nodes = Nodes::new(100, false);
        let clean = nodes.looked_up(link("a"), 200, Regular::Yes);
        let dirty = nodes.born(link("b"), 201, Regular::Yes);
        nodes.forget(clean, 1);
        nodes.forget(dirty, 1);
        assert!(nodes.get(clean).is_err());
        assert_eq!(nodes.looked_up(link("b"), 201, Regular::Yes), dirty);
        nodes.forget(ROOT, 1);
        assert!(nodes.get(ROOT).is_ok());
    }
}
