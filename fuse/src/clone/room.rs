//! What a clone leaves free on its file system, for its own server before all: a server that cannot write WAL panics.
//!
//! Pages that nobody has asked for yet leave a twentieth, at most [`UNASKED_MAX`]. Pages that the server reads leave
//! much less, [`ASKED_MAX`] or a fiftieth if that is less: below that they are read as ever and not kept ([`Room`]).
//! Pages that the server writes parts of are kept in any case: they must be somewhere.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most that is left by what nobody has asked for.
const UNASKED_MAX: u64 = 1 << 30;
/// Most that is left by reads: four WAL segments of the usual size.
const ASKED_MAX: u64 = 64 << 20;
/// How long an answer of the file system is taken for true. What the clone itself keeps meanwhile is counted, and what others
/// can write in such a time is less than what is left.
const AGE_MAX: Duration = Duration::from_millis(20);

/// A file system's size and what is free of it, in bytes.
#[derive(Debug, Clone, Copy)]
struct Space {
    total: u64,
    free: u64,
}

impl Space {
    fn of(place: impl std::os::fd::AsFd) -> std::io::Result<Self> {
        let facts = rustix::fs::fstatvfs(place)?;
        let bytes = |blocks: u64| blocks.saturating_mul(facts.f_frsize);
        Ok(Self { total: bytes(facts.f_blocks), free: bytes(facts.f_bavail) })
    }

    fn beyond(self, reserve: u64) -> u64 {
        self.free.saturating_sub(reserve)
    }

    fn beyond_unasked(self) -> u64 {
        self.beyond((self.total / 20).min(UNASKED_MAX))
    }

    fn reserve_asked(self) -> u64 {
        (self.total / 50).min(ASKED_MAX)
    }

    fn beyond_asked(self) -> u64 {
        self.beyond(self.reserve_asked())
    }
}

/// How many bytes may be kept of what nobody has asked for, on the file system of `place`.
pub(super) fn for_unasked(place: impl std::os::fd::AsFd) -> std::io::Result<u64> {
    Space::of(place).map(Space::beyond_unasked)
}

/// How much of what a server reads may be kept.
pub(super) struct Room {
    /// The clone's directory, for messages.
    root: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    asked: Option<Instant>,
    /// Bytes that may be kept until the file system is asked again.
    left: u64,
    /// Bytes that were allowed and may not be on the file system yet.
    under_way: u64,
    /// The end of it was told.
    told: bool,
}

impl Room {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, known: Mutex::default() }
    }

    /// Allows so many bytes to be kept in `file`, or not. The file system is asked if what it said is not quite new.
    pub(super) fn take(&self, file: &File, bytes: u64) -> Option<Taken<'_>> {
        self.take_of(bytes, Instant::now(), || Space::of(file))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_of(&self, bytes: u64, now: Instant, ask: impl FnOnce() -> std::io::Result<Space>) -> Option<Taken<'_>> {
        let mut known = self.lock();
        if known.asked.is_none_or(|at| now.duration_since(at) >= AGE_MAX) {
            known.asked = Some(now);
            match ask() {
                Ok(space) => {
                    known.left = space.beyond_asked().saturating_sub(known.under_way);
                    // Told again only if there was some room in between, not at each page to and fro.
                    known.told &= space.free < 2 * space.reserve_asked();
                }
                Err(error) => {
                    // Then writing tells whether there is room.
                    tracing::debug!("cannot see how much room clone '{}' has: {error}", self.root.display());
                    known.left = u64::MAX;
                }
            }
        }
        if let Some(left) = known.left.checked_sub(bytes) {
            known.left = left;
            known.under_way += bytes;
            return Some(Taken { room: self, bytes });
        }
        let was_told = std::mem::replace(&mut known.told, true);
        drop(known);
        if !was_told {
            tracing::warn!(
                "the file system of clone '{}' is all but full: what is left is for what its server writes; \
                 pages are read from the repository without being kept",
                self.root.display()
            );
        }
        None
    }
}

/// Bytes that are about to be kept, as long as this lives.
pub(super) struct Taken<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.lock().under_way -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn small(free: u64) -> std::io::Result<Space> {
        Ok(Space { total: 100 * MIB, free })
    }

    #[test]
    fn large_file_systems_keep_four_segments_small_ones_a_fiftieth() {
        let beyond = |total, free| Space { total, free }.beyond_asked();
        assert_eq!(beyond(1 << 40, 65 * MIB), MIB);
        assert_eq!(beyond(100 * MIB, 3 * MIB), MIB);
        assert_eq!(beyond(100 * MIB, MIB), 0);
        assert_eq!(Space { total: 100 * MIB, free: 6 * MIB }.beyond_unasked(), MIB);
        assert_eq!(Space { total: 1 << 40, free: 1025 * MIB }.beyond_unasked(), MIB);
    }

    #[test]
    fn what_is_kept_counts_until_the_file_system_is_asked_again() {
        let (room, begin) = (Room::new("clone".into()), Instant::now());
        let unasked = || -> std::io::Result<Space> { panic!("asked again at once") };
        assert!(room.take_of(MIB, begin, || small(4 * MIB)).is_some());
        assert!(room.take_of(MIB, begin, unasked).is_some());
        assert!(room.take_of(1, begin + AGE_MAX / 2, unasked).is_none());
        // Others have taken it, and then given it back.
        assert!(room.take_of(1, begin + AGE_MAX, || small(2 * MIB)).is_none());
        assert!(room.take_of(MIB, begin + 2 * AGE_MAX, || small(50 * MIB)).is_some());
    }

    #[test]
    fn what_is_on_its_way_to_the_file_system_counts_whenever_that_is_asked() {
        let (room, begin) = (Room::new("clone".into()), Instant::now());
        let slow = room.take_of(2 * MIB, begin, || small(5 * MIB));
        assert!(slow.is_some());
        assert!(room.take_of(2 * MIB, begin + AGE_MAX, || small(5 * MIB)).is_none());
        assert!(room.take_of(MIB, begin + AGE_MAX, || small(5 * MIB)).is_some());
        drop(slow);
        assert!(room.take_of(2 * MIB, begin + 2 * AGE_MAX, || small(5 * MIB)).is_some());
    }

    #[test]
    fn the_end_of_the_room_is_told_once_until_there_was_some_again() {
        let (room, begin) = (Room::new("clone".into()), Instant::now());
        let told = || room.lock().told;
        assert!(room.take_of(1, begin, || small(0)).is_none() && told());
        assert!(room.take_of(1, begin + AGE_MAX, || small(0)).is_none() && told());
        assert!(room.take_of(1, begin + 2 * AGE_MAX, || small(3 * MIB)).is_some() && told());
        assert!(room.take_of(1, begin + 3 * AGE_MAX, || small(4 * MIB)).is_some() && !told());
    }

    #[test]
    fn a_file_system_that_does_not_answer_is_left_to_the_write() {
        let room = Room::new("clone".into());
        assert!(room.take_of(MIB, Instant::now(), || Err(std::io::ErrorKind::Unsupported.into())).is_some());
    }
}
