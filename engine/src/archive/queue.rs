//! WAL that was fetched ahead, in `<spool path>/archive/<stanza>/in`.
//!
//! A segment lies there under its name, with its hash and what it belongs to in `<name>.sum`; `<name>.ok` says that it
//! was not in the archive, and for which process, `<name>.error` why it could not be fetched, and `plan` which segments the
//! process fetches that holds the archive lock.
//!
//! *Invariant.* What is taken out was authenticated when it was fetched, for this cluster out of these repositories, and is
//! byte for byte what was put in. Nothing is synced: what a crash tears has another hash. As a name has one content for
//! ever in an archive, a segment that was fetched long ago is as good as one fetched now, also while the repository cannot be
//! reached. Only its absence is not: of that a process is believed that was started for this request, and nobody else.

use super::spool::{self, Binding, Outcome, RepositoryIdentity, Spool, Status};
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::wal::{WalSegment, WalSegmentSize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// File that says what is being fetched.
pub(super) const PLAN: &str = "plan";
/// Ends the name of the file that describes a segment.
pub(super) const SUM: &str = ".sum";
/// Permission bits of segments: the server's own for WAL.
const SEGMENT_MODE: u32 = 0o600;
const WORD_MODE: u32 = 0o640;
/// Comes before what a segment belongs to.
const FOR: &str = " for=";
/// Fewest segments that are fetched ahead: with one, nothing would be.
const SEGMENTS_MIN: u64 = 2;

/// Consecutive segments of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    first: WalSegment,
    count: u64,
    size: WalSegmentSize,
}

impl Wanted {
    /// As many from `first` on as a queue of `queue_max` bytes holds, at least two.
    #[must_use]
    pub fn new(first: WalSegment, size: WalSegmentSize, queue_max: u64) -> Self {
        Self { first, count: (queue_max / size.bytes()).max(SEGMENTS_MIN), size }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The name of one of them, counted from 0.
    #[must_use]
    pub fn name(&self, number: u64) -> Option<String> {
        let number = (number < self.count).then(|| self.first.number.checked_add(number))??;
        let segment = WalSegment { timeline: self.first.timeline, number };
        // Behind the last position there is no WAL, and names would begin anew.
        (number <= u64::MAX / self.size.bytes()).then(|| segment.name(self.size))
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        WalSegment::parse(name, self.size).is_ok_and(|s| {
            let behind = s.number.checked_sub(self.first.number);
            s.timeline == self.first.timeline && behind.is_some_and(|n| n < self.count)
        })
    }
}

/// The queue of one stanza, for one cluster out of these repositories.
#[derive(Debug, Clone)]
pub struct Queue {
    dir: PathBuf,
    binding: Binding,
    size: WalSegmentSize,
}

impl Queue {
    /// The queue in a spool. `repositories` tells those that are asked from others.
    #[must_use]
    pub fn new(spool: &Spool, stanza: &str, control: &ControlFile, repositories: &[RepositoryIdentity]) -> Self {
        Self {
            dir: spool.queue().to_path_buf(),
            binding: Binding::new(stanza, Some(control), repositories),
            size: control.wal_segment_size,
        }
    }

    /// Moves a segment out of the queue to its destination; its size, or none if it is not there. Never fails for what is
    /// wrong with the queue: that is a warning, and the segment can be fetched.
    ///
    /// # Errors
    /// File errors of the destination.
    pub fn take(&self, name: &str, destination: &Path) -> Result<Option<u64>> {
        let claimed = self.claim(name).map(|path| path.map(|path| (self.read(name, &path), path)));
        let (content, path) = match claimed {
            Ok(None) => return Ok(None),
            Ok(Some((Ok(content), path))) => (content, path),
            Ok(Some((Err(e), path))) => {
                self.remove(&path);
                self.clear(&format!("{name}{SUM}"));
                return Ok(self.cannot_use(name, &e));
            }
            Err(e) => return Ok(self.cannot_use(name, &e)),
        };
        // Another file system, or gone: the content is at hand. What is wrong with the destination is found out there.
        if std::fs::rename(&path, destination).is_err() {
            if let Err(e) = super::get::write(destination, &content, false) {
                // For the next request. If it cannot be, it is fetched anew.
                let _ = std::fs::rename(&path, self.dir.join(name));
                return Err(e);
            }
            self.remove(&path);
        }
        self.clear(&format!("{name}{SUM}"));
        Ok(Some(content.len() as u64))
    }

    fn cannot_use(&self, name: &str, error: &Error) -> Option<u64> {
        tracing::warn!("cannot use what was fetched of {name}, fetching it anew: {}", error.chain());
        None
    }

    /// Gives a queued segment a name that only this call knows: whatever is put into the queue from now on, what is checked
    /// is what is delivered. None if it is not there, or not ours.
    fn claim(&self, name: &str) -> Result<Option<PathBuf>> {
        let Some(sum) = spool::read(&self.dir.join(format!("{name}{SUM}")))? else { return Ok(None) };
        if !self.is_ours(&sum) {
            // Nothing is wrong with it.
            tracing::debug!("{name} was fetched for another cluster or from other repositories");
            return Ok(None);
        }
        let (from, to) = (self.dir.join(name), spool::temporary_path(&self.dir, name));
        match std::fs::rename(&from, &to) {
            Ok(()) => Ok(Some(to)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(FileError::at("rename", &from)(e).into()),
        }
    }

    /// The content of a claimed segment, checked against what it was when it was fetched.
    fn read(&self, name: &str, path: &Path) -> Result<Vec<u8>> {
        let content = std::fs::read(path).map_err(FileError::at("read", path))?;
        let sum = spool::read(&self.dir.join(format!("{name}{SUM}")))?;
        if sum.is_some_and(|sum| self.is_ours(&sum) && sum.starts_with(&facts(&content))) {
            return Ok(content);
        }
        let text = format!("'{}' is not what was fetched", self.dir.join(name).display());
        Err(Error::refused(Kind::Checksum, text))
    }

    /// Whether the description of a segment says that it was fetched for this cluster out of these repositories.
    fn is_ours(&self, sum: &str) -> bool {
        let of = sum.rsplit_once(FOR).and_then(|(_, of)| of.strip_suffix('\n'));
        of.is_some_and(|of| self.binding.may_be(of))
    }

    /// Puts a segment into the queue.
    ///
    /// # Errors
    /// File errors of the queue; `FileInvalid` for content that is no segment of the cluster.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        if content.len() as u64 != self.size.bytes() {
            let (has, size) = (content.len(), self.size.bytes());
            let text = format!("WAL file '{name}' has {has} bytes in the archive, but segments of this cluster {size}");
            return Err(Error::refused(Kind::FileInvalid, text));
        }
        // A segment without its sum is believed as little as one with the sum of another.
        spool::put(
            &self.dir,
            &format!("{name}{SUM}"),
            format!("{}{FOR}{}\n", facts(content), self.binding).as_bytes(),
            WORD_MODE,
        )?;
        spool::put(&self.dir, name, content, SEGMENT_MODE)
    }

    /// Whether a segment waits in the queue, as far as can be told without reading it.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let sum = spool::read(&self.dir.join(format!("{name}{SUM}")));
        let size = std::fs::metadata(self.dir.join(name)).map_or(0, |facts| facts.len());
        matches!(sum, Ok(Some(sum)) if self.is_ours(&sum)) && size == self.size.bytes()
    }

    /// How many of the wanted segments wait, up to the first that does not.
    #[must_use]
    pub fn filled(&self, wanted: &Wanted) -> u64 {
        let mut names = (0..).map_while(|number| wanted.name(number));
        names.position(|name| !self.has(&name)).map_or(wanted.count, |n| n as u64)
    }

    /// Says that a segment is not in the archive.
    ///
    /// # Errors
    /// File errors of the queue.
    pub fn say_missing(&self, name: &str) -> Result<()> {
        spool::put(&self.dir, &format!("{name}.ok"), self.word(Outcome::Pushed, "").as_bytes(), WORD_MODE)
    }

    /// Says why a segment could not be fetched.
    ///
    /// # Errors
    /// File errors of the queue.
    pub fn say_failed(&self, name: &str, code: u8, message: &str) -> Result<()> {
        let word = self.word(Outcome::Failed(code), message);
        spool::put(&self.dir, &format!("{name}.error"), word.as_bytes(), WORD_MODE)
    }

    fn word(&self, outcome: Outcome, message: &str) -> String {
        let by = std::process::id();
        format!("{}by={by}{FOR}{}\n", Status::new(outcome, message, None).encode(), self.binding)
    }

    /// Which process has said that a segment was not in the archive, if one has; the word is taken away.
    ///
    /// # Errors
    /// File errors of the queue.
    pub fn take_missing(&self, name: &str) -> Result<Option<u32>> {
        self.take_word(&format!("{name}.ok"))
    }

    /// Which process has said that a segment could not be fetched, if one has; the word is taken away.
    ///
    /// # Errors
    /// File errors of the queue.
    pub fn take_failed(&self, name: &str) -> Result<Option<u32>> {
        self.take_word(&format!("{name}.error"))
    }

    fn take_word(&self, file: &str) -> Result<Option<u32>> {
        let path = self.dir.join(file);
        let Some(text) = spool::read(&path)? else { return Ok(None) };
        spool::remove(&path)?;
        let by = text.lines().last().and_then(|line| line.strip_prefix("by=")?.split_once(FOR)?.0.parse().ok());
        Ok(by.filter(|_| self.is_ours(&text)))
    }

    /// Removes all but wanted segments of this cluster and these repositories, and says what is being fetched. For who holds
    /// the archive lock.
    ///
    /// # Errors
    /// File errors of the queue.
    pub fn settle(&self, wanted: &Wanted) -> Result<()> {
        for file in spool::list(&self.dir)? {
            let name = file.strip_suffix(SUM).unwrap_or(&file);
            if !(wanted.contains(name) && self.has(name)) {
                spool::remove(&self.dir.join(&file))?;
            }
        }
        let first = wanted.name(0).unwrap_or_default();
        let plan = format!("{} {first} {}\n", std::process::id(), wanted.count);
        spool::put(&self.dir, PLAN, plan.as_bytes(), WORD_MODE)
    }

    /// Whether the process that holds the archive lock fetches a segment.
    #[must_use]
    pub fn is_planned(&self, name: &str, holder: i32) -> bool {
        let Ok(Some(plan)) = spool::read(&self.dir.join(PLAN)) else { return false };
        let mut words = plan.split_whitespace();
        let (pid, first, count) = (words.next(), words.next(), words.next());
        let wanted = || {
            let first = WalSegment::parse(first?, self.size).ok()?;
            Some(Wanted { first, count: count?.parse().ok()?, size: self.size })
        };
        pid.and_then(|pid| pid.parse().ok()) == Some(holder) && wanted().is_some_and(|w| w.contains(name))
    }

    /// Nothing depends on whether what has served its purpose goes: it is not believed a second time, or is.
    fn clear(&self, file: &str) {
        self.remove(&self.dir.join(file));
    }

    fn remove(&self, path: &Path) {
        if let Err(e) = spool::remove(path) {
            tracing::debug!("{}", e.chain());
        }
    }
}

/// What tells a content from others.
fn facts(content: &[u8]) -> String {
    format!("blake3={} size={}", blake3::hash(content).to_hex(), content.len())
}

#[cfg(test)]
mod tests;
