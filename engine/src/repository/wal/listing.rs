//! What an archive holds, what it lacks, and waiting for what is to come.
//!
//! All of it works by names alone and opens nothing: an object is there whole or not at all. One list for each
//! directory of 4 GiB of WAL, names of one directory in memory.

use crate::clock::Clock;
use crate::observe::Cancel;
use crate::repository::Repository;
use crate::store::Depth;
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::wal::{SegmentName, WalSegment, WalSegmentSize};
use pgkeep_formats::repo::layout;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// The wait before the second look for a segment; each later one is half as long again. A look into a repository that is
/// near costs next to nothing.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const FIRST_WAIT_NEAR: Duration = Duration::from_millis(5);
/// No wait is longer, so that a stop is heeded soon and an arrival seen soon.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// An archived file, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalEntry {
    /// Its name, as the server gave it.
    pub name: String,
    /// Bytes stored.
    pub size: u64,
    /// When the store took it, seconds since the Unix epoch.
    pub modified: i64,
}

/// Which names to list, both ends included, compared as text: `...03.partial` is behind `...03`.
#[derive(Debug, Clone, Copy, Default)]
pub struct WalRange<'a> {
    /// First name; none begins with the first there is.
    pub from: Option<&'a str>,
    /// Last name; none ends with the last there is.
    pub to: Option<&'a str>,
}

impl WalRange<'_> {
    fn contains(&self, name: &str) -> bool {
        self.from.is_none_or(|from| name >= from) && self.to.is_none_or(|to| name <= to)
    }

    /// Whether a directory may hold a name of the range: all its names begin with its own.
    fn may_hold(&self, directory: &str) -> bool {
        let from = self.from.map(|from| from.get(..directory.len()).unwrap_or(from));
        from.is_none_or(|from| directory >= from) && self.to.is_none_or(|to| directory <= to)
    }
}

impl Repository {
    /// The archives of a stanza, `<version>-<history id>`, in the order of their history ids.
    ///
    /// # Errors
    /// What the store said.
    pub fn wal_archives(&self, stanza: &str) -> Result<Vec<String>> {
        let mut out = Vec::new();
        let prefix = layout::wal_of(stanza);
        self.store.list(&prefix, Depth::Children, &mut |l| {
            out.extend(l.key.strip_prefix(&prefix).and_then(|n| n.strip_suffix('/')).map(str::to_owned));
        })?;
        out.sort_by_key(|id| id.split_once('-').and_then(|(_, n)| n.parse::<u32>().ok()));
        Ok(out)
    }

    /// The files of an archive in the order of their names, whatever they are called, one list a directory. An error of
    /// `each` ends the listing.
    ///
    /// # Errors
    /// What the store or `each` said.
    pub fn wal_list(
        &self,
        stanza: &str,
        archive_id: &str,
        range: WalRange<'_>,
        each: &mut dyn FnMut(WalEntry) -> Result<()>,
    ) -> Result<()> {
        for child in self.wal_children(stanza, archive_id)? {
            match child {
                Child::File(entry) if range.contains(&entry.name) => each(entry)?,
                Child::Directory(name) if range.may_hold(&name) => {
                    let entries = self.wal_directory(stanza, archive_id, &name)?;
                    entries.into_iter().filter(|e| range.contains(&e.name)).try_for_each(&mut *each)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The timelines an archive has a history file of, ascending. Asks for the list of the archive's root only.
    ///
    /// # Errors
    /// What the store said.
    pub fn wal_timelines(&self, stanza: &str, archive_id: &str) -> Result<Vec<TimelineId>> {
        let mut timelines: Vec<_> = (self.wal_children(stanza, archive_id)?.iter())
            .filter_map(|child| match child {
                Child::File(entry) => TimelineId::parse_history_file_name(&entry.name),
                Child::Directory(_) => None,
            })
            .collect();
        timelines.sort_unstable();
        Ok(timelines)
    }

    /// The first and the last complete segment of an archive; none if it has no complete segment. Asks for the list of
    /// directories, and for the content of the first and the last one only.
    ///
    /// # Errors
    /// What the store said.
    pub fn wal_bounds(&self, stanza: &str, archive_id: &str) -> Result<Option<(String, String)>> {
        let children = self.wal_children(stanza, archive_id)?;
        let directories = || children.iter().filter_map(Child::directory);
        let Some(first) = self.wal_extreme(stanza, archive_id, &mut directories(), |names| names.first())? else {
            return Ok(None);
        };
        let last = self.wal_extreme(stanza, archive_id, &mut directories().rev(), |names| names.last())?;
        // Without a last one all have been removed meanwhile.
        Ok(last.map(|last| (first, last)))
    }

    /// The last complete segment of each timeline of an archive, ascending. Asks for the list of directories, and for the
    /// content of one of each timeline, or of more if that has no complete segment.
    ///
    /// # Errors
    /// What the store said.
    pub fn wal_newest(&self, stanza: &str, archive_id: &str) -> Result<Vec<SegmentName>> {
        let children = self.wal_children(stanza, archive_id)?;
        let mut by_timeline: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for directory in children.iter().filter_map(Child::directory) {
            // What others leave there has no such name.
            if let Some(timeline) = directory.get(..8) {
                by_timeline.entry(timeline).or_default().push(directory);
            }
        }
        let mut out = Vec::new();
        for directories in by_timeline.values() {
            let mut newest_first = directories.iter().rev().copied();
            let name = self.wal_extreme(stanza, archive_id, &mut newest_first, |names| names.last())?;
            out.extend(name.and_then(|name| SegmentName::parse(&name).ok()));
        }
        Ok(out)
    }

    fn wal_extreme(
        &self,
        stanza: &str,
        archive_id: &str,
        directories: &mut dyn Iterator<Item = &str>,
        choose: impl Fn(&BTreeSet<String>) -> Option<&String>,
    ) -> Result<Option<String>> {
        for directory in directories {
            let entries = self.wal_directory(stanza, archive_id, directory)?;
            let names: BTreeSet<_> =
                entries.into_iter().map(|e| e.name).filter(|n| SegmentName::parse(n).is_ok()).collect();
            if let Some(name) = choose(&names) {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// Waits until all files of these names are in an archive. Each arrival grants the rest `timeout` anew, as a long
    /// range may take long in all.
    ///
    /// # Errors
    /// `ArchiveTimeout` naming the first that is missing; `Interrupted`; what the store said.
    pub fn wal_wait(
        &self,
        stanza: &str,
        archive_id: &str,
        names: &[String],
        timeout: Duration,
        clock: &dyn Clock,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut missing: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for name in names {
            let key = layout::wal(stanza, archive_id, name);
            let directory = key.strip_suffix(name.as_str()).unwrap_or(&key).to_owned();
            missing.entry(directory).or_default().insert(name);
        }
        let mut last_arrival = clock.now();
        let first_wait = if self.store.is_near() { FIRST_WAIT_NEAR } else { FIRST_WAIT };
        let mut wait = first_wait;
        loop {
            cancel.check()?;
            let mut arrived = false;
            for (directory, names) in &mut missing {
                self.store.list(directory, Depth::Children, &mut |l| {
                    arrived |= l.key.strip_prefix(directory.as_str()).is_some_and(|name| names.remove(name));
                })?;
            }
            missing.retain(|_, names| !names.is_empty());
            let now = clock.now();
            let Some(first) = missing.values().find_map(|names| names.first()) else { return Ok(()) };
            if arrived {
                (last_arrival, wait) = (now, first_wait);
            }
            let left = timeout.saturating_sub(now.saturating_sub(last_arrival));
            if left.is_zero() {
                let (place, ms) = (self.store.describe(), timeout.as_millis());
                let text = format!("WAL segment {first} was not archived to {place} within {ms} ms");
                return Err(Error::refused(Kind::ArchiveTimeout, text));
            }
            clock.sleep(wait.min(left));
            wait = (wait + wait / 2).min(LONGEST_WAIT);
        }
    }

    /// The segments from `first` to `last`, both included, that an archive lacks, in order. `last` is on the timeline of
    /// `first`. Lists a directory when it is come to, so what arrives meanwhile may be reported as missing or not.
    #[must_use]
    pub fn wal_gaps(
        &self,
        stanza: &str,
        archive_id: &str,
        first: WalSegment,
        last: WalSegment,
        size: WalSegmentSize,
    ) -> WalGaps<'_> {
        let directory = (String::new(), HashSet::new());
        let (stanza, archive_id) = (stanza.to_owned(), archive_id.to_owned());
        WalGaps { repository: self, stanza, archive_id, next: Some(first), last: last.number, size, directory }
    }

    fn wal_children(&self, stanza: &str, archive_id: &str) -> Result<Vec<Child>> {
        let prefix = layout::wal_archive(stanza, archive_id);
        let mut out = Vec::new();
        self.store.list(&prefix, Depth::Children, &mut |l| {
            let Some(name) = l.key.strip_prefix(&prefix) else { return };
            out.push(match name.strip_suffix('/') {
                Some(directory) => Child::Directory(directory.to_owned()),
                None => Child::File(WalEntry { name: name.to_owned(), size: l.size, modified: l.modified }),
            });
        })?;
        Ok(out)
    }

    fn wal_directory(&self, stanza: &str, archive_id: &str, directory: &str) -> Result<Vec<WalEntry>> {
        let prefix = format!("{}{directory}/", layout::wal_archive(stanza, archive_id));
        let mut out = Vec::new();
        self.store.list(&prefix, Depth::All, &mut |l| {
            if let Some(name) = l.key.strip_prefix(&prefix) {
                out.push(WalEntry { name: name.to_owned(), size: l.size, modified: l.modified });
            }
        })?;
        Ok(out)
    }
}

enum Child {
    File(WalEntry),
    Directory(String),
}

impl Child {
    fn directory(&self) -> Option<&str> {
        match self {
            Self::Directory(name) => Some(name),
            Self::File(_) => None,
        }
    }
}

/// Missing segments: what [`Repository::wal_gaps`] yields. Ends after an error.
#[derive(Debug)]
pub struct WalGaps<'a> {
    repository: &'a Repository,
    stanza: String,
    archive_id: String,
    next: Option<WalSegment>,
    last: u64,
    size: WalSegmentSize,
    /// The directory read last, and the names in it.
    directory: (String, HashSet<String>),
}

impl Iterator for WalGaps<'_> {
    type Item = Result<SegmentName>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let segment = self.next.take().filter(|s| s.number <= self.last)?;
            let name = segment.segment_name(self.size);
            let directory = name.directory();
            if self.directory.0 != directory {
                match self.repository.wal_directory(&self.stanza, &self.archive_id, &directory) {
                    Ok(entries) => self.directory = (directory, entries.into_iter().map(|e| e.name).collect()),
                    Err(e) => return Some(Err(e)),
                }
            }
            self.next = Some(segment.next());
            if !self.directory.1.contains(&name.to_string()) {
                return Some(Ok(name));
            }
        }
    }
}
