//! The repositories that files go to, and what became of a file in each.
//!
//! Each is tried, whatever becomes of the others. One that failed in a way that other files would meet too is *down*: it is
//! left alone for the rest of the run, so that not every file waits for the same time-outs, and nothing goes there behind a file
//! that was not compared with what is there. Where files are given up it is tried again with one file after [`TRY_AGAIN`].
//!
//! One that has other content under the name of a segment gets none of that timeline that follows it: after a data directory
//! was put back to an earlier state, a server writes another history under the same names, and the end of one behind the
//! beginning of the other may well replay.

use super::{Configured, Failure, joined, unusable};
use crate::repository::Repository;
use crate::repository::wal::{WalFile, WalPut, WalRange};
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::wal::{ArchiveName, SegmentName, WalHeader};
use pgkeep_formats::repo::records::StanzaHistory;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub(super) const PANICKED: &str = "a thread of archive-push panicked";
/// How long a repository that failed is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// What came of it in one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Number of the repository.
    pub key: u32,
    /// The archive the file went to.
    pub archive_id: String,
    /// False if it held the file already.
    pub created: bool,
}

/// What came of it in all.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    /// Repositories that hold it durably.
    pub(super) pushed: Vec<Pushed>,
    /// What the others said.
    pub(super) failures: Vec<Failure>,
}

impl Delivered {
    /// What is told of the file if it is not in every repository.
    ///
    /// # Errors
    /// `ArchiveDuplicate` if all that failed was that other content is archived under the name; otherwise `Command` with a
    /// line for each repository that failed.
    pub(super) fn everywhere(mut self, name: &str) -> Result<Vec<Pushed>> {
        if self.failures.is_empty() {
            return Ok(self.pushed);
        }
        self.failures.sort_by_key(|f| f.key);
        let all_duplicate = self.failures.iter().all(|f| f.kind == Kind::ArchiveDuplicate);
        let kind = if all_duplicate { Kind::ArchiveDuplicate } else { Kind::Command };
        Err(joined(kind, &format!("archive-push of '{name}' failed"), &self.failures))
    }

    /// Numbers of the repositories that hold it.
    pub(super) fn held(&self) -> BTreeSet<u32> {
        self.pushed.iter().map(|p| p.key).collect()
    }
}

/// The repositories that can take files, and why the others cannot.
pub(super) struct Targets {
    usable: Vec<Target>,
    failures: Vec<Failure>,
    bars: Arc<Bars>,
    /// Whether one that is down is tried again.
    retries: bool,
}

/// What is known for a whole run, whose looks at what is ready each make targets anew.
#[derive(Debug, Default)]
pub(super) struct Bars {
    /// By repository and timeline: the first segment that was found there with other content.
    first: Mutex<BTreeMap<(u32, TimelineId), SegmentName>>,
    /// Repositories that are down, and why.
    out: Mutex<BTreeMap<u32, Failure>>,
}

impl Bars {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u32, TimelineId), SegmentName>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn out(&self) -> MutexGuard<'_, BTreeMap<u32, Failure>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing that follows this one goes there any more.
    fn bar(&self, key: u32, name: &ArchiveName) {
        let ArchiveName::Segment(segment) = name else { return };
        let mut bars = self.lock();
        let first = bars.entry((key, segment.timeline)).or_insert(*segment);
        *first = *segment.min(first);
    }

    /// Why a file may not go there.
    fn why(&self, key: u32, name: &ArchiveName) -> Option<Failure> {
        let (ArchiveName::Segment(segment) | ArchiveName::Partial(segment)) = name else { return None };
        let first = *self.lock().get(&(key, segment.timeline))?;
        let message = format!(
            "WAL file '{name}' cannot follow '{first}' in the repo{key} archive, which is of another history: it exists there \
             with different content"
        );
        (*segment > first).then_some(Failure { key, kind: Kind::ArchiveDuplicate, message })
    }
}

/// A repository that can take files, and the entry of the stanza's history they belong to.
struct Target {
    repository: Arc<Repository>,
    entry: StanzaHistory,
    down: Mutex<Option<Down>>,
    /// Whether it took a file again after it had been left alone.
    is_back: AtomicBool,
}

/// Why and since when a repository is left alone.
struct Down {
    since: Instant,
    why: Failure,
}

impl Targets {
    /// Looks at each repository, side by side.
    ///
    /// # Errors
    /// `RepoInvalid` with a line for each repository if none can be used; `Crypto` if that is what keeps all of them shut.
    pub(super) fn of(repositories: &[Configured], stanza: &str, control: Option<&ControlFile>) -> Result<Self> {
        let targets: Vec<_> = thread::scope(|scope| {
            let checks: Vec<_> =
                repositories.iter().map(|r| (r.key, scope.spawn(|| check_repository(r, stanza, control)))).collect();
            let joined = checks.into_iter().map(|(key, check)| check.join().unwrap_or_else(|_| Err(panicked(key))));
            joined.collect()
        });
        let (mut usable, mut failures) = (Vec::new(), Vec::new());
        for target in targets {
            match target {
                Ok(target) => usable.push(target),
                Err(failure) => failures.push(failure),
            }
        }
        if usable.is_empty() {
            return Err(unusable(&failures));
        }
        Ok(Self { usable, failures, bars: Arc::default(), retries: false })
    }

    /// The same as part of a run. With `retries`, one that was down is tried again.
    pub(super) fn in_run(mut self, bars: &Arc<Bars>, retries: bool) -> Self {
        (self.bars, self.retries) = (Arc::clone(bars), retries);
        if !retries {
            let mut out = bars.out();
            for target in &self.usable {
                let down = out.get(&target.key()).map(|why| Down { since: Instant::now(), why: why.clone() });
                *target.lock() = down;
            }
            out.extend(self.failures.iter().map(|failure| (failure.key, failure.clone())));
        }
        self
    }

    /// How long one that is down is left alone.
    fn patience(&self) -> Duration {
        if self.retries { TRY_AGAIN } else { Duration::MAX }
    }

    /// Numbers of the repositories that work, as far as is known.
    pub(super) fn working(&self) -> BTreeSet<u32> {
        self.usable.iter().filter(|t| t.down(self.patience()).is_none()).map(Target::key).collect()
    }

    /// What keeps the others from working.
    pub(super) fn failures(&self) -> Vec<Failure> {
        let down = self.usable.iter().filter_map(|t| t.down(self.patience()));
        self.failures.iter().cloned().chain(down).collect()
    }

    /// Numbers of all, whether they work or not.
    pub(super) fn keys(&self) -> BTreeSet<u32> {
        self.usable.iter().map(Target::key).chain(self.failures.iter().map(|f| f.key)).collect()
    }

    /// Whether a repository that was left alone takes files again: what it missed can be tried once more.
    pub(super) fn is_one_back(&self) -> bool {
        self.usable.iter().any(|t| t.is_back.load(Ordering::Relaxed))
    }

    /// Which of these files a repository has that is not known to hold them. They are to be put first and in order, those that
    /// none has behind them. One that cannot be asked is down.
    pub(super) fn known<'f>(
        &self,
        stanza: &str,
        files: impl Iterator<Item = (&'f str, &'f BTreeSet<u32>)> + Clone,
    ) -> HashSet<String> {
        let mut ranges: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        for (name, _) in files.clone().filter(|(name, _)| SegmentName::parse(name).is_ok()) {
            let range = ranges.entry(name.get(..8).unwrap_or_default()).or_insert((name, name));
            *range = (range.0.min(name), range.1.max(name));
        }
        let held: HashMap<&str, &BTreeSet<u32>> = files.collect();
        let mut known = HashSet::new();
        for target in self.usable.iter().filter(|t| t.down(self.patience()).is_none()) {
            let key = target.key();
            for (from, to) in ranges.values() {
                let range = WalRange { from: Some(from), to: Some(to) };
                let listed = target.repository.wal_list(stanza, &target.entry.archive_id(), range, &mut |entry| {
                    if held.get(entry.name.as_str()).is_some_and(|held| !held.contains(&key)) {
                        known.insert(entry.name);
                    }
                    Ok(())
                });
                if let Err(e) = listed {
                    target.goes_down(Failure::new(key, &e), &self.bars);
                    break;
                }
            }
        }
        known
    }

    /// Stores a file, durably: first in those that are not known to hold it, and only if all others have it then in those
    /// that are, which makes sure of it.
    pub(super) fn deliver(
        &self,
        stanza: &str,
        name: &ArchiveName,
        file: &WalFile<'_>,
        held: &BTreeSet<u32>,
    ) -> Delivered {
        let mut delivered = Delivered { pushed: Vec::new(), failures: self.failures.clone() };
        self.put_all(stanza, name, file, |key| !held.contains(&key), &mut delivered);
        if delivered.failures.is_empty() {
            self.put_all(stanza, name, file, |key| held.contains(&key), &mut delivered);
        } else {
            let known = self.usable.iter().filter(|t| held.contains(&t.key()));
            delivered.pushed.extend(known.map(|t| t.pushed(false)));
        }
        delivered
    }

    /// Puts the file into the chosen ones side by side; the last one on this thread.
    fn put_all(
        &self,
        stanza: &str,
        name: &ArchiveName,
        file: &WalFile<'_>,
        chosen: impl Fn(u32) -> bool,
        delivered: &mut Delivered,
    ) {
        let targets: Vec<_> = self.usable.iter().filter(|t| chosen(t.key())).collect();
        let patience = self.patience();
        let put = |t: &Target| match self.bars.why(t.key(), name) {
            // What it has already it may have.
            Some(why) if !t.has(stanza, name, file) => Err(why),
            _ => t.put(stanza, name, file, &self.bars, patience),
        };
        let Some((last, others)) = targets.split_last() else { return };
        let results: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> = others.iter().map(|t| (t.key(), scope.spawn(|| put(t)))).collect();
            let own = put(last);
            let joined = running.into_iter().map(|(key, r)| r.join().unwrap_or_else(|_| Err(panicked(key))));
            joined.chain([own]).collect()
        });
        for result in results {
            match result {
                Ok(pushed) => delivered.pushed.push(pushed),
                Err(failure) => delivered.failures.push(failure),
            }
        }
    }

    /// Refuses a file whose header is of another cluster than they are.
    ///
    /// # Errors
    /// `ArchiveMismatch`.
    pub(super) fn check_header(
        &self,
        name: &ArchiveName,
        header: Option<&WalHeader>,
        control: Option<&ControlFile>,
    ) -> Result<()> {
        let Some(h) = header else { return Ok(()) };
        let expected = self.usable.iter().map(|t| (t.entry.version, t.entry.system_identifier));
        let expected = expected.chain(control.map(|c| (c.version.major(), c.system_identifier)));
        for (version, system_identifier) in expected {
            if (h.major(), h.system_identifier) != (version, system_identifier) {
                return Err(Error::refused(
                    Kind::ArchiveMismatch,
                    format!(
                        "WAL file '{name}' version {}, system-id {} do not match stanza version {version}, system-id \
                         {system_identifier}",
                        h.version, h.system_identifier
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl Target {
    fn key(&self) -> u32 {
        self.repository.key()
    }

    /// Whether this very file is there, as far as can be told.
    fn has(&self, stanza: &str, name: &ArchiveName, file: &WalFile<'_>) -> bool {
        let has = self.repository.wal_has(stanza, &self.entry.archive_id(), &name.to_string(), file.content());
        has.is_ok_and(|has| has == Some(true))
    }

    fn goes_down(&self, why: Failure, bars: &Bars) {
        bars.out().insert(self.key(), why.clone());
        *self.lock() = Some(Down { since: Instant::now(), why });
    }

    fn pushed(&self, created: bool) -> Pushed {
        Pushed { key: self.key(), archive_id: self.entry.archive_id(), created }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Down>> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it is left alone, if it is.
    fn down(&self, try_again: Duration) -> Option<Failure> {
        self.lock().as_ref().filter(|down| down.since.elapsed() < try_again).map(|down| down.why.clone())
    }

    /// Stores the file, unless the repository is left alone.
    fn put(
        &self,
        stanza: &str,
        name: &ArchiveName,
        file: &WalFile<'_>,
        bars: &Bars,
        patience: Duration,
    ) -> std::result::Result<Pushed, Failure> {
        let is_try = match self.lock().as_mut() {
            Some(down) if down.since.elapsed() < patience => return Err(down.why.clone()),
            Some(down) => {
                // Others do not wait for what comes of it.
                down.since = Instant::now();
                true
            }
            None => false,
        };
        let key = self.key();
        match self.repository.wal_put(stanza, &self.entry.archive_id(), &name.to_string(), file) {
            Ok(put @ (WalPut::Created | WalPut::SameContent)) => {
                // One that was under way when the repository failed proves nothing.
                if is_try {
                    *self.lock() = None;
                    self.is_back.store(true, Ordering::Relaxed);
                }
                Ok(self.pushed(put == WalPut::Created))
            }
            Ok(WalPut::Different) => {
                bars.bar(key, name);
                let message =
                    format!("WAL file '{name}' already exists in the repo{key} archive with different content");
                Err(Failure { key, kind: Kind::ArchiveDuplicate, message })
            }
            Err(e) => {
                let why = Failure::new(key, &e);
                // An object that is damaged, or of a newer version, is no trouble of other files.
                if !matches!(e.kind(), Kind::Checksum | Kind::Format | Kind::FeatureNotSupported) {
                    self.goes_down(why.clone(), bars);
                }
                Err(why)
            }
        }
    }
}

fn check_repository(
    configured: &Configured,
    stanza: &str,
    control: Option<&ControlFile>,
) -> std::result::Result<Target, Failure> {
    let key = configured.key;
    let repository = configured.repository.as_ref().map_err(|e| Failure::new(key, e))?;
    let check = || {
        repository.check_writable()?;
        let entry = repository.stanza_history(stanza)?.pop().ok_or_else(|| {
            let place = repository.store().describe();
            Error::refused(Kind::FileMissing, format!("stanza '{stanza}' does not exist in {place}"))
        })?;
        match control {
            Some(c) if !is_of(c.version.major(), c.system_identifier, &entry) => Err(Error::refused(
                Kind::ArchiveMismatch,
                format!(
                    "PostgreSQL version {}, system-id {} do not match repo{key} stanza version {}, system-id {}",
                    c.version, c.system_identifier, entry.version, entry.system_identifier
                ),
            )),
            _ => Ok(Target {
                repository: Arc::clone(repository),
                entry,
                down: Mutex::new(None),
                is_back: AtomicBool::new(false),
            }),
        }
    };
    check().map_err(|e| Failure::new(key, &e))
}

fn is_of(version: u32, system_identifier: u64, entry: &StanzaHistory) -> bool {
    (version, system_identifier) == (entry.version, entry.system_identifier)
}

fn panicked(key: u32) -> Failure {
    Failure { key, kind: Kind::Assert, message: PANICKED.into() }
}
