//! Which pages may be believed: syncing, and what follows from a failure.

use super::{BaseFile, lock};
use crate::clone::bitmap::Bitmap;
use crate::clone::files::SyncScope;
use crate::clone::nodes::OpenFile;
use crate::errno::{self, Outcome};
use fuser::Errno;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a sync makes durable.
struct Before {
    generation: u64,
    limit: u64,
    bits: Bitmap,
    /// The server had changed something.
    changed: bool,
    unrecorded: bool,
}

impl BaseFile {
    /// Changes when pages that are not durable are given up.
    pub(in crate::clone) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// True once something the server wrote is lost.
    pub(in crate::clone) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// True while memory knows what the stored maps do not.
    pub(in crate::clone) fn is_unsettled(&self) -> bool {
        self.queued.load(Ordering::Acquire) || self.settling.load(Ordering::Acquire) || self.has_failed()
    }

    /// True if what was read of `range` since the generation was `generation` is what was written there.
    pub(in crate::clone) fn vouches(&self, open: &OpenFile, range: Range<u64>, generation: u64) -> bool {
        // A page that became durable since it was read was good then.
        if !self.durable.covers(self.pages(range)) {
            self.check(open);
        }
        self.generation() == generation
    }

    /// Keeps the file open until the background has synced it. Called after every change.
    pub(super) fn enqueue(self: &Arc<Self>, open: &Arc<OpenFile>) {
        if self.queued.load(Ordering::Acquire) {
            return;
        }
        let mut anchor = lock(&self.anchor);
        if !self.queued.swap(true, Ordering::AcqRel) {
            *anchor = Some(Arc::clone(open));
            self.shared.queue.add(Arc::clone(self));
        }
    }

    /// The background's sync.
    pub(in crate::clone) fn settle(&self) {
        let _one_at_a_time = lock(&self.syncing);
        self.settling.store(true, Ordering::Release);
        let open = {
            let mut anchor = lock(&self.anchor);
            self.queued.store(false, Ordering::Release);
            anchor.take()
        };
        if let Some(open) = open {
            let has_name = rustix::fs::fstat(&open.file).map_or(true, |stat| stat.st_nlink > 0);
            if has_name && let Err(error) = self.sync_alone(&open, SyncScope::Data) {
                tracing::debug!("'{}' is not durable (errno {})", self.entry.path, error.code());
            }
        }
        self.settling.store(false, Ordering::Release);
    }

    /// Makes durable, and records as durable, what was present before the call.
    pub(in crate::clone) fn sync(&self, open: &OpenFile, scope: SyncScope) -> Outcome<()> {
        let _one_at_a_time = lock(&self.syncing);
        self.sync_alone(open, scope)
    }

    /// The server may have written without this process seeing it: a sync that fails has lost that.
    pub(in crate::clone) fn suspect_change(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// From now on the server may write without this process seeing it.
    pub(in crate::clone) fn expect_unseen(&self) {
        self.unseen.store(true, Ordering::Release);
        self.shared.recorder.opened_unseen(&self.entry.path, &self.seen, self.limit());
    }

    fn sync_alone(&self, open: &OpenFile, scope: SyncScope) -> Outcome<()> {
        if self.has_failed() {
            return Err(Errno::EIO);
        }
        let before = {
            let _fill = lock(&self.fill);
            Before {
                generation: self.generation(),
                limit: self.limit(),
                changed: self.changed.swap(false, Ordering::AcqRel),
                unrecorded: self.unrecorded.swap(false, Ordering::AcqRel),
                bits: self.bits.snapshot(),
            }
        };
        if let Err(error) = self.shared.disk.sync(open.witness.as_ref().unwrap_or(&open.file), scope) {
            let verdict = lock(&self.verdict);
            // The failure is known: the other descriptor need not tell it again.
            let known = self.shared.disk.check(&open.file);
            tracing::debug!("failure of '{}' on the other descriptor: {known:?}", self.entry.path);
            self.give_up(&error, before.changed);
            drop(verdict);
            return Err(errno::io(error));
        }
        let result = self.record(&before);
        if result.is_err() {
            self.unrecorded.store(true, Ordering::Release);
            // What could not be recorded is not durable for the next session.
            self.changed.fetch_or(before.changed, Ordering::AcqRel);
        }
        result
    }

    fn record(&self, before: &Before) -> Outcome<()> {
        let (cut, words) = {
            // Whoever is told of a failure has acted upon it once this lock is free.
            let _verdict = lock(&self.verdict);
            let _fill = lock(&self.fill);
            if self.generation() != before.generation {
                // A reader was told of the failure, the sync was not.
                self.failed.fetch_or(before.changed || self.unseen.load(Ordering::Acquire), Ordering::AcqRel);
                return Err(Errno::EIO);
            }
            self.told.store(false, Ordering::Release);
            if !before.unrecorded {
                return Ok(());
            }
            (self.entry.size - before.limit, before.bits.to_bytes())
        };
        let mut block = cut.to_le_bytes().to_vec();
        block.extend_from_slice(&words);
        self.shared.maps.record(self.entry.block, &block).map_err(|error| {
            tracing::error!("cannot record what is durable of '{}': {error}", self.entry.path);
            errno::io(error)
        })?;
        // Whatever failed since then, these bytes were on the disk.
        let _fill = lock(&self.fill);
        self.durable.add_all(&before.bits);
        self.durable_limit.fetch_min(before.limit, Ordering::AcqRel);
        self.stored.add_all(&before.bits);
        self.bits.add_all(&before.bits);
        self.store_present().map_err(errno::io)
    }

    /// Writes the file's block of `present`. The fill lock is held.
    fn store_present(&self) -> std::io::Result<()> {
        let mut block = (self.entry.size - self.limit()).to_le_bytes().to_vec();
        block.extend_from_slice(&self.stored.to_bytes());
        self.shared.maps.present.write_all_at(&block, self.entry.block)
    }

    /// Asks whether some page could not be written, and acts upon it.
    pub(super) fn check(&self, open: &OpenFile) {
        let _verdict = lock(&self.verdict);
        let Err(error) = self.shared.disk.check(&open.file) else { return };
        if let Some(witness) = &open.witness {
            let known = self.shared.disk.check(witness);
            tracing::debug!("failure of '{}' on the other descriptor: {known:?}", self.entry.path);
        }
        self.give_up(&error, false);
    }

    /// Trusts durable pages only. `verdict` is held; `changed` if the server's changes are under way to the disk.
    fn give_up(&self, error: &std::io::Error, changed: bool) {
        let _fill = lock(&self.fill);
        let written = self.stored.present_pages() != self.durable.present_pages();
        if self.changed.load(Ordering::Acquire) || self.unseen.load(Ordering::Acquire) || changed || written {
            self.failed.store(true, Ordering::Release);
        }
        self.bits.become_equal(&self.durable);
        self.stored.become_equal(&self.durable);
        self.unrecorded.store(true, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.shared.doubt.raise();
        if let Err(error) = self.store_present() {
            tracing::error!("cannot write the page map of '{}': {error}", self.entry.path);
        }
        if !self.told.swap(true, Ordering::AcqRel) {
            let outcome = if self.has_failed() {
                "what was written to it is lost; it cannot be synced until the clone is served anew"
            } else {
                "its pages are fetched again"
            };
            tracing::error!("the disk behind the clone failed a write to '{}': {error}; {outcome}", self.entry.path);
        }
    }
}
