//! What changed between two backups, from the WAL summaries of a server that keeps them (17 on, `summarize_wal`).
//!
//! [`find`] collects the summaries of all WAL from the start of the prior backup to the start of this one, along the
//! path of timelines between the two, and merges them into [`ChangedBlocks`]. That is asked about each relation file:
//! either all of it must be read, or only some blocks, and every other block is what the prior backup holds.
//! Whatever makes the summaries unusable is an [`Outcome::Unknown`] with a reason for a log line, never an error and
//! never a guess: then files are compared the way they are without summaries.
//!
//! **Why an unread block is right.** The prior backup is consistent from its start S₁ on, this one from its start S₂: a
//! restore replays the WAL from there. A block that no WAL record between S₁ and S₂ refers to has at S₂ the content it
//! had at S₁, and the prior backup's copy, taken after S₁, can differ from that in nothing that WAL describes. What
//! follows is case by case what the server does to a file, and the rule that keeps the sentence true.
//!
//! | what happened | what summaries say | what is done |
//! |---|---|---|
//! | block changed by WAL | the block | read |
//! | fork created, dropped, rewritten (`VACUUM FULL`, `REINDEX`, `SET TABLESPACE`, `SET LOGGED`), or its number used again | limit block 0 | all read: the prior backup's file of that name is another one |
//! | relation cut to n blocks, perhaps grown again | limit block n | blocks from n on are read, whether listed or not: pages may have come back as zeros without WAL |
//! | limit block at or before the first block of a later segment | the same | all of that segment is read |
//! | file grown by zero pages, without WAL | nothing | blocks past the length in the prior backup are read |
//! | database created by `FILE_COPY`, moved or dropped | relfilenode 0 | all files of that database in that tablespace are read: no WAL names them |
//! | database created by `WAL_LOG` | relfilenode 0, and every block | the same |
//! | free space map | nothing: it is not logged by block | all read, if size or time changed |
//! | visibility map | some: bits are cleared without a reference to the map's page, and a cut of the heap gives the heap's length as the map's limit | all read, if size or time changed; it is 1/32 000 of the heap |
//! | init fork | all | all read, if size or time changed; it is tiny |
//! | unlogged or temporary relation | nothing | never asked about: neither is in a backup |
//! | hint bits, with checksums or `wal_log_hints` | the block: the first such change of a page after a checkpoint logs an image | read |
//! | hint bits, without either | nothing | kept as they were: see below |
//! | page torn while the prior backup copied it | the block, as what tore it was logged after S₁ (hint bits: see below) | read |
//! | block changed after S₂ | perhaps nothing | read or not: WAL replay brings an image of it, since a backup forces full-page writes |
//! | file created or dropped after S₂ | nothing | replay creates or drops it |
//! | damaged page in the prior backup | nothing | read: the file may have been repaired by hand |
//! | `wal_level = minimal`, summarizer off for a while, summaries expired, `pg_resetwal` | a hole in the covered range | everything is compared |
//! | timeline switch | ranges on both timelines | both are needed, cut at the switch point |
//! | prior backup ended on a branch that was left before that | a switch point before its end | everything is compared |
//! | nine tenths or more of a file changed | that | all read: one sequential pass costs less |
//!
//! **Hint bits.** A hint repeats what the transaction log says: committed, aborted, dead to all. Without checksums and
//! `wal_log_hints` the server writes hints without WAL, so a page restored from the prior backup may lack some. Nothing
//! depends on them: who reads the tuple finds out again and sets them again, and what must not be looked up any more
//! (old transactions that vacuum froze) was changed by a logged record. A standby has pages in exactly this state. A
//! page torn between two states that differ in hints alone is such a state too.
//!
//! Memory: 2 bytes for each changed block while few of 65 536 are, else a bit for each block: at most 16 MiB per TiB of
//! relations touched, and about 150 bytes per relation. Above 128 MiB, or for a summary above 64 MiB, it gives up. The
//! server's own tool keeps the same table.
//!
//! Two histories with the same timeline, as after a file system was rolled back, cannot be told apart here; the archive
//! tells, as it refuses another content under the name of an archived segment.
//!
//! Source: `basebackup_incremental.c` (what the server decides, where this differs it reads more), `walsummarizer.c`.

mod block_set;
mod range;
mod table;
#[cfg(test)]
mod tests;

pub use block_set::BlockSet;

use self::range::{Range, covering, ranges};
use self::table::BlockTable;
use super::server::SummarizerState;
use crate::Result;
use crate::clock::Clock;
use crate::observe::Cancel;
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::path::{Fork, RelationFile};
use pgkeep_formats::pg::summary::{RelationLocator, SummaryName, WalSummary};
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A summary above this size is not read.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// How long between two looks for a summary that is being written.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A summarizer that has not moved for this long is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest wait for one that moves. Reading everything is then the quicker way.
const WAIT_MAX: Duration = Duration::from_secs(1800);

/// The prior backup: where replay of it begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its start.
    pub start: Lsn,
    /// Its stop.
    pub stop: Lsn,
}

/// This backup: where replay of it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Until {
    /// Its timeline.
    pub timeline: TimelineId,
    /// Its start.
    pub start: Lsn,
}

/// Bytes of a page and pages of a segment, which the cluster was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a page.
    pub page_size: u32,
    /// Pages of a relation segment.
    pub segment_blocks: u32,
}

/// What the summaries came to.
#[derive(Debug)]
pub enum Outcome {
    /// They cover everything between the two backups.
    Known(ChangedBlocks),
    /// They do not, and why.
    Unknown(String),
}

/// Why a file must be read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAll {
    /// Its length is not that of a segment of pages.
    Length,
    /// Summaries do not tell of this fork.
    Fork(Fork),
    /// It belongs to a session.
    Temporary,
    /// Its database was created, moved or dropped.
    Database,
    /// It was created, dropped, or cut before its first block.
    Cut,
    /// Nearly all of it changed.
    Most,
}

impl ReadAll {
    /// True if summaries say nothing about the file, so that its size and time may be trusted as without summaries.
    /// Otherwise they say that it changed.
    #[must_use]
    pub fn is_silent(self) -> bool {
        matches!(self, Self::Length | Self::Fork(_) | Self::Temporary)
    }
}

impl fmt::Display for ReadAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "its length is not that of a segment",
            Self::Fork(_) => "summaries do not tell of its fork",
            Self::Temporary => "it is temporary",
            Self::Database => "its database was created or dropped",
            Self::Cut => "it was created, dropped or cut",
            Self::Most => "nearly all of it changed",
        })
    }
}

/// What must be read of a relation file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything.
    ReadAll(ReadAll),
    /// These blocks; the others are the prior backup's, as far as that goes.
    Blocks(BlockSet),
}

/// Which blocks of which relations changed between two backups. See the module for what it knows nothing of.
#[derive(Debug)]
pub struct ChangedBlocks {
    table: BlockTable,
    geometry: Geometry,
    files: usize,
}

impl ChangedBlocks {
    /// Number of summaries this was made of.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files
    }

    /// What must be read of a file that has `size` bytes now. The answer holds for a file that the prior backup has;
    /// any other must be read whole.
    #[must_use]
    pub fn verdict(&self, file: &RelationFile, size: u64) -> Verdict {
        let Geometry { page_size, segment_blocks } = self.geometry;
        let blocks = size / u64::from(page_size.max(1));
        let Some(first) = file
            .first_block(segment_blocks)
            .filter(|_| size.is_multiple_of(page_size.max(1).into()) && blocks <= u64::from(segment_blocks))
        else {
            return Verdict::ReadAll(ReadAll::Length);
        };
        if file.is_temporary() {
            return Verdict::ReadAll(ReadAll::Temporary);
        }
        if file.fork != Fork::Main {
            return Verdict::ReadAll(ReadAll::Fork(file.fork));
        }
        let relation = RelationLocator::of(file);
        if self.table.is_new_database(relation) {
            return Verdict::ReadAll(ReadAll::Database);
        }
        let length = blocks as u32;
        let Some(changes) = self.table.get(relation) else {
            return Verdict::Blocks(BlockSet::unchanged(segment_blocks));
        };
        if changes.limit().is_some_and(|limit| limit <= first) {
            return Verdict::ReadAll(ReadAll::Cut);
        }
        let end = changes.limit().map_or(segment_blocks, |limit| (limit - first).min(segment_blocks));
        let changed = changes.blocks_in(first, first.saturating_add(end.min(length)));
        let set = BlockSet::new(end, changed);
        let read = set.count_in(0..length);
        if u64::from(read) * 10 >= blocks * 9 && read > 0 {
            return Verdict::ReadAll(ReadAll::Most);
        }
        Verdict::Blocks(set)
    }
}

/// Finds out what changed between two backups of one cluster.
///
/// Waits until the summarizer has reached the start of this backup, as long as it moves. `state` asks the server about
/// the summarizer; `None` if it cannot be asked.
///
/// # Errors
/// Only [`Error::Interrupted`](crate::Error::Interrupted).
pub fn find(
    pgdata: &Path,
    (since, until): (&Since, &Until),
    geometry: Geometry,
    state: &mut dyn FnMut() -> Option<SummarizerState>,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<Outcome> {
    let wal = pgdata.join("pg_wal");
    let needed = match history(&wal, since, until).and_then(|history| ranges(&history, since, until)) {
        Ok(needed) => needed,
        Err(reason) => return Ok(Outcome::Unknown(reason)),
    };
    let directory = wal.join("summaries");
    let names = match wait(&directory, &needed, state, cancel, clock)? {
        Ok(names) => names,
        Err(reason) => return Ok(Outcome::Unknown(reason)),
    };
    let mut table = BlockTable::default();
    for name in &names {
        cancel.check()?;
        if let Err(reason) = read(&directory.join(name.to_string()), &mut table) {
            return Ok(Outcome::Unknown(reason));
        }
    }
    table.finish();
    Ok(Outcome::Known(ChangedBlocks { table, geometry, files: names.len() }))
}

/// The history of this backup's timeline. It is needed only if the other is another one.
fn history(wal: &Path, since: &Since, until: &Until) -> Result<TimelineHistory, String> {
    if since.timeline == until.timeline {
        return Ok(TimelineHistory::without_parents(until.timeline));
    }
    let path = wal.join(until.timeline.history_file_name());
    let bytes = std::fs::read(&path).map_err(|e| format!("cannot read '{}': {e}", path.display()))?;
    TimelineHistory::parse(until.timeline, &bytes).map_err(|e| format!("cannot read '{}': {e}", path.display()))
}

/// The summaries that cover all that is needed, once they are there.
fn wait(
    directory: &Path,
    needed: &[Range],
    state: &mut dyn FnMut() -> Option<SummarizerState>,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<Result<Vec<SummaryName>, String>> {
    let started = clock.now();
    let (mut moved, mut seen) = (started, None);
    loop {
        cancel.check()?;
        // Asked before the directory is listed: a summary is there before the server says so.
        let now = state();
        let names = match list(directory) {
            Ok(names) => names,
            Err(reason) => return Ok(Err(reason)),
        };
        let hole = match covering(&names, needed) {
            Ok(found) => return Ok(Ok(found)),
            Err(hole) => hole,
        };
        if !hole.may_be_filled || now.as_ref().is_some_and(|s| !s.will_reach(hole.needed.timeline, hole.needed.end)) {
            return Ok(Err(hole.to_string()));
        }
        if seen.is_none() {
            tracing::info!("wait for the server to summarize WAL up to {}", hole.needed.end);
        }
        let at = (hole.missing, now.map(|s| s.pending));
        let time = clock.now();
        if seen != Some(at) {
            (seen, moved) = (Some(at), time);
        }
        if time.saturating_sub(moved) >= PATIENCE || time.saturating_sub(started) >= WAIT_MAX {
            return Ok(Err(format!("{hole}: the server does not summarize it in time")));
        }
        clock.sleep(POLL_INTERVAL);
    }
}

fn list(directory: &Path) -> Result<Vec<SummaryName>, String> {
    let failed = |e| format!("cannot list '{}': {e}", directory.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().to_str().and_then(SummaryName::parse));
    }
    Ok(names)
}

fn read(path: &PathBuf, table: &mut BlockTable) -> Result<(), String> {
    let failed = |e: &dyn fmt::Display| format!("cannot read '{}': {e}", path.display());
    let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(&"it is too large"));
    }
    let summary = WalSummary::parse(&bytes).map_err(|e| failed(&e))?;
    table.add(&summary).map_err(|e| failed(&e))
}
