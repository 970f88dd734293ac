//! Copying files from a standby, so that the primary's disk is left to its users.
//!
//! The primary alone starts and stops the backup, and its directory alone is walked: names, sizes, times and links in the
//! manifest are the primary's, as are all files that replay does not keep. Of the others (relations, their maps,
//! `pg_xact` and `pg_multixact`) the content is read where the standby has them. One that the standby does not have,
//! because it was created since or was never logged, is read from the primary.
//!
//! **Why this is a backup.** A restore replays the WAL from the backup's start S to its end E. It asks of every file
//! that it (1) holds all that was logged before S, (2) holds nothing of any history but this, and (3) nothing that was
//! logged after E; what was logged between may be there or not, page by page, torn or whole, since the first change of
//! each page after S has its image in the WAL. The primary's own files have these properties by its checkpoint at S. For
//! the standby's each is made sure of:
//!
//! 1. Before anything is read, the standby has replayed S *and* made a restart point at or after S ([`Standby::wait`]):
//!    what it replayed before is then in its files and not in its memory alone.
//! 2. The checkpoint of that restart point is one that the primary made: the same position, redo, timeline and time.
//!    So both have one history up to there, whatever either went through before. After the copying the standby must
//!    still be in recovery, and what it has written be of the same timeline ([`Standby::written`]).
//! 3. A standby notes in its `pg_control` how far its WAL must be replayed before it writes a page that needs it. What it
//!    has noted after the copying must be at or before E.
//!
//! **Sizes.** A file has the size in the backup that it had on the primary when that was walked. Pages that the standby
//! has behind that were logged after S. Pages that it lacks are read from the primary's file, as in a backup without a
//! standby; they were logged after S, or never. One that was logged before tells that the standby has lost the tail of a
//! file, and fails the backup ([`Original`]). Replay extends and cuts files as it did on the standby. (Were the standby's
//! size recorded beside the primary's time, the next backup would see a file that changed its size without changing its
//! time, and trust no time at all.)
//!
//! **What later backups may believe of this one.** A file whose time on the primary is older than the prior backup's
//! copying is not read again. If the prior's came from a standby, the primary may have written a change to its file
//! after S and before the copying, which the standby had not; so the record says that copying began when the backup was
//! asked for: a change logged after S is written after that. What WAL summaries tell is counted from the prior's S, and
//! does not depend on whose files were read. Sizes and times are the primary's in both backups; after a failover the
//! timeline is another, and everything is read. Page hashes compare what was read with what was stored.
//!
//! **Torn pages.** A page that fails its check is read again, and accepted if its position is after S, as on the
//! primary: the standby writes a page after the restart point only if replay has changed it since.

use crate::observe::Cancel;
use crate::pg::datadir::{self, EntryKind};
use crate::pg::read::Original;
use crate::pg::server::{BackupStart, Checkpoint, Connection, Written};
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::path::{Fork, PathClass, Slru, classify};
use std::io::ErrorKind;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at how far the standby is.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a standby may take before the segment is ended for it: one that streams has the WAL at once, one that only
/// reads the archive gets whole segments.
const STREAMS_WITHIN: Duration = Duration::from_secs(2);
/// Checkpoints of the primary that are remembered, to be recognized on the standby: it makes one in minutes.
const CHECKPOINTS_MAX: usize = 1024;

/// Whether files are copied from a standby: `backup-standby`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StandbyUse {
    /// All files come from the primary.
    #[default]
    No,
    /// From a standby if one runs and has caught up.
    Prefer,
    /// From a standby, or the backup fails.
    Required,
}

/// A running standby.
pub(super) struct Standby {
    key: u16,
    pgdata: PathBuf,
    connection: Connection,
}

impl Standby {
    pub(super) fn new(key: u16, pgdata: PathBuf, connection: Connection) -> Self {
        Self { key, pgdata, connection }
    }

    /// Where its files are. The backup started at `start`.
    pub(super) fn files(&self, page_size: u32, start: Option<Lsn>) -> Files {
        Files {
            key: self.key,
            pgdata: self.pgdata.clone(),
            page_size,
            start,
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Waits until all that was logged before the start of the backup is in the standby's files.
    ///
    /// # Errors
    /// `ArchiveTimeout` if it has not replayed the start within `limit`; what the servers said.
    pub(super) fn wait(
        &mut self,
        primary: &mut Connection,
        start: &BackupStart,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<()> {
        let key = self.key;
        tracing::info!("wait for replay on the standby, pg{key}, to reach {}", start.lsn);
        let (began, mut ended, mut seen) = (Instant::now(), false, Vec::<Checkpoint>::new());
        loop {
            cancel.check()?;
            let checkpoint = primary.last_checkpoint()?;
            if checkpoint.redo >= start.lsn && !seen.contains(&checkpoint) && seen.len() < CHECKPOINTS_MAX {
                seen.push(checkpoint);
            }
            let replayed = self.connection.replay_lsn()?;
            if replayed.is_some_and(|lsn| lsn >= start.lsn) {
                self.connection.checkpoint()?;
                let found = self.connection.last_checkpoint()?;
                if seen.contains(&found) {
                    tracing::info!("replay on the standby, pg{key}, reached {}", found.lsn);
                    return Ok(());
                }
            }
            if began.elapsed() > limit {
                return Err(self.late(replayed, start.lsn, limit));
            }
            if !ended && began.elapsed() > STREAMS_WITHIN {
                tracing::debug!("the standby does not stream: a segment is ended for it");
                primary.switch_wal()?;
                ended = true;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn late(&self, replayed: Option<Lsn>, start: Lsn, limit: Duration) -> Error {
        let (key, limit) = (self.key, limit.as_secs());
        let text = match replayed {
            None => {
                format!("the standby, pg{key}, has replayed nothing within {limit} s: the backup starts at {start}")
            }
            Some(lsn) if lsn < start => {
                format!("the standby, pg{key}, has replayed up to {lsn} within {limit} s: the backup starts at {start}")
            }
            Some(lsn) => format!(
                "the standby, pg{key}, has replayed up to {lsn}, behind the start of the backup at {start}, but has made no \
                 restart point within {limit} s at a checkpoint that the primary knows: does it follow this primary?"
            ),
        };
        Error::refused(Kind::ArchiveTimeout, text)
    }

    /// How far the standby's files are, asked after all were copied and before the backup is stopped.
    ///
    /// # Errors
    /// As [`written`].
    pub(super) fn written(&mut self, start: &BackupStart) -> Result<Written> {
        written(&mut self.connection, self.key, start)
    }

    /// Checks that nothing that was copied is from behind the end of the backup.
    ///
    /// # Errors
    /// `DbMismatch` with both positions.
    pub(super) fn check_end(&self, written: &Written, stop: Lsn) -> Result<()> {
        if written.lsn <= stop {
            return Ok(());
        }
        let (key, lsn) = (self.key, written.lsn);
        let text = format!("the standby, pg{key}, has written up to {lsn}, but the primary ended the backup at {stop}");
        Err(Error::refused(Kind::DbMismatch, text))
    }
}

/// How far a standby's files are, if it follows its primary still.
///
/// # Errors
/// `DbMismatch` if it does not follow the primary any more; what the server said.
pub(super) fn written(connection: &mut Connection, key: u16, start: &BackupStart) -> Result<Written> {
    let written = connection.written()?;
    if !written.in_recovery {
        let text = format!("the standby, pg{key}, was promoted while its files were copied");
        return Err(Error::refused(Kind::DbMismatch, text));
    }
    if written.timeline != start.timeline {
        let text = format!(
            "the standby, pg{key}, has gone to timeline {} while its files were copied; the backup is of timeline {}",
            written.timeline.0, start.timeline.0
        );
        return Err(Error::refused(Kind::DbMismatch, text));
    }
    Ok(written)
}

/// The files of a standby, and how many of them were taken.
pub(super) struct Files {
    key: u16,
    pgdata: PathBuf,
    page_size: u32,
    start: Option<Lsn>,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Files {
    /// Lets an entry of the primary be read from the standby, if that has it and replay keeps it. Returns the primary's, for
    /// what the standby lacks of it.
    ///
    /// # Errors
    /// What the file system said of the standby's directory.
    pub(super) fn redirect(&self, path: &str, entry: &mut datadir::Entry) -> Result<Option<Original>> {
        // Of a file that is a link by itself it is not known where the standby has it.
        if !is_replayed(path) || entry.kind != EntryKind::File {
            return Ok(None);
        }
        let there = self.pgdata.join(path);
        if !is_file(&there)? {
            return Ok(None);
        }
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(entry.size, Ordering::Relaxed);
        let path = std::mem::replace(&mut entry.source, there);
        Ok(Some(self.original(path, entry)))
    }

    fn original(&self, source: PathBuf, entry: &datadir::Entry) -> Original {
        let page = NonZero::new(self.page_size as usize).filter(|_| entry.size.is_multiple_of(self.page_size.into()));
        let start = match std::str::from_utf8(&entry.path).map(classify) {
            // The maps of free space and visibility change without WAL.
            Ok(PathClass::Relation(relation)) if matches!(relation.fork, Fork::Main | Fork::Init) => self.start,
            _ => None,
        };
        Original { path: source, size: entry.size, page, start, standby: self.key }
    }

    /// What was taken, for a line in the log.
    pub(super) fn told(&self) -> String {
        let bytes = crate::size::human_size(self.bytes.load(Ordering::Relaxed));
        let files = self.files.load(Ordering::Relaxed);
        format!("{files} files were copied from the standby, pg{}: size = {bytes}", self.key)
    }
}

fn is_file(path: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(facts) => Ok(facts.is_file()),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(FileError::at("stat", path)(e).into()),
    }
}

/// True for files that are on a standby what replay makes of them.
fn is_replayed(path: &str) -> bool {
    matches!(
        classify(path),
        PathClass::Relation(_)
            | PathClass::RelationMap
            | PathClass::Slru(Slru::Xact | Slru::MultixactMembers | Slru::MultixactOffsets)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_replay_does_not_keep_is_the_primarys() {
        for path in [
            "base/16384/2619",
            "base/16384/2619_vm.1",
            "base/16384/pg_filenode.map",
            "global/1262",
            "global/pg_filenode.map",
            "pg_tblspc/16400/PG_15_202209061/16384/2619",
            "pg_xact/0000",
            "pg_multixact/members/0000",
            "pg_multixact/offsets/0000",
        ] {
            assert!(is_replayed(path), "{path}");
        }
        for path in [
            "PG_VERSION",
            "base/16384/PG_VERSION",
            "base/16384/odd",
            "global/pg_control",
            "pg_commit_ts/0000",
            "pg_logical/replorigin_checkpoint",
            "pg_twophase/00000300",
            "pg_wal/000000010000000000000001",
            "postgresql.conf",
        ] {
            assert!(!is_replayed(path), "{path}");
        }
    }

    #[test]
    fn a_file_is_read_where_the_standby_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (primary, standby) = (dir.path().join("primary"), dir.path().join("standby"));
        std::fs::create_dir_all(standby.join("base/5")).unwrap();
        std::fs::write(standby.join("base/5/1"), b"its").unwrap();
        std::os::unix::fs::symlink("1", standby.join("base/5/3")).unwrap();
        let files = Files {
            key: 2,
            pgdata: standby.clone(),
            page_size: 8192,
            start: None,
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        let source = |path: &str| {
            let mut entry = datadir::Entry {
                path: path.as_bytes().to_vec(),
                kind: EntryKind::File,
                mode: 0o600,
                uid: 0,
                gid: 0,
                user: None,
                group: None,
                size: 10,
                mtime: 0,
                mtime_nanos: 0,
                source: primary.join(path),
            };
            let original = files.redirect(path, &mut entry).unwrap().map(|original| original.path);
            assert_eq!(original, entry.source.starts_with(&standby).then(|| primary.join(path)));
            entry.source
        };
        assert_eq!(source("base/5/1"), standby.join("base/5/1"));
        for path in ["base/5/2", "base/5/3", "base/6/1", "base/5/1/1", "PG_VERSION"] {
            assert_eq!(source(path), primary.join(path));
        }
        assert_eq!(files.told(), "1 files were copied from the standby, pg2: size = 10B");
    }
}
