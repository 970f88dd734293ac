//! The cluster to be backed up: that it is the one configured, and the stanza's.

use super::BackupOptions;
use super::servers::{self, Servers};
use super::standby::{Standby, StandbyUse};
use crate::check;
use crate::observe::Cancel;
use crate::pg::datadir;
use crate::pg::server::{Connection, Database};
use crate::repository::Repository;
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::version::Version;
use pgkeep_formats::pg::wal::{WalSegment, WalSegmentSize};
use pgkeep_formats::repo::records::StanzaHistory;
use std::path::{Path, PathBuf};

/// What must be known of the cluster, from the server and from `pg_control`.
pub(super) struct Cluster {
    /// Its data directory; of a running one the primary's.
    pub(super) pgdata: PathBuf,
    pub(super) version: Version,
    pub(super) system_identifier: u64,
    pub(super) checksums: bool,
    pub(super) page_size: u32,
    pub(super) segment_blocks: u32,
    pub(super) wal_segment_size: WalSegmentSize,
    pub(super) timeline: TimelineId,
    pub(super) databases: Vec<Database>,
    /// The number of the standby that this is, if no primary takes part.
    pub(super) alone: Option<u16>,
}

impl Cluster {
    /// Looks at the cluster and, unless it is backed up as a stopped one, connects to its primary and, if files are to be
    /// copied from there, a standby.
    pub(super) fn look(
        options: &BackupOptions,
        cancel: &Cancel,
    ) -> Result<(Self, Option<Connection>, Option<Standby>)> {
        let Some(server) = &options.server else {
            if datadir::is_running(&options.pgdata)? && !options.force {
                return Err(Error::refused(
                    Kind::PostgresRunning,
                    format!("a server runs on '{}': stop it, or back it up online", options.pgdata.display()),
                ));
            }
            if !options.force {
                refuse_unrecovered(&options.pgdata)?;
            }
            if options.standby != StandbyUse::No {
                tracing::warn!("option backup-standby has no effect on the backup of a stopped server");
            }
            return Ok((Self::of(&options.pgdata)?, None, None));
        };
        let Servers { pgdata, mut connection, identity: found, standby, alone } =
            servers::find(options, server, cancel)?;
        // Now and not after the copying: what the backup needs would never arrive. What a standby is set to says nothing
        // of its primary's archiving.
        if options.archive_check && alone.is_none() {
            check::archives(&found)
                .map_err(|e| e.during("a backup of a running server needs the WAL written meanwhile"))?;
        }
        let mut cluster = Self::of(&pgdata)?;
        (cluster.timeline, cluster.alone) = (found.timeline, alone);
        cluster.databases = connection.databases()?;
        Ok((cluster, Some(connection), standby))
    }

    fn of(pgdata: &Path) -> Result<Self> {
        let control = datadir::read_control(pgdata)?.fields;
        Ok(Self {
            pgdata: pgdata.to_owned(),
            version: control.version,
            system_identifier: control.system_identifier,
            checksums: control.has_page_checksums(),
            page_size: control.block_size,
            segment_blocks: control.segment_blocks,
            wal_segment_size: control.wal_segment_size,
            timeline: control.timeline,
            databases: Vec::new(),
            alone: None,
        })
    }

    /// The stanza's current history entry, which must be this cluster's.
    pub(super) fn history(&self, repository: &Repository, stanza: &str) -> Result<StanzaHistory> {
        let place = repository.store().describe();
        let history = repository
            .stanza_history(stanza)?
            .pop()
            .ok_or_else(|| Error::refused(Kind::FileMissing, format!("stanza '{stanza}' does not exist in {place}")))?;
        if (history.version, history.system_identifier) != (self.version.major(), self.system_identifier) {
            return Err(Error::refused(
                Kind::BackupMismatch,
                format!(
                    "PostgreSQL version {}, system identifier {} do not match stanza '{stanza}' in {place}: version {}, \
                     system identifier {}",
                    self.version, self.system_identifier, history.version, history.system_identifier
                ),
            ));
        }
        Ok(history)
    }

    /// Name of the WAL segment that holds a position.
    pub(super) fn wal_name(&self, timeline: TimelineId, lsn: Lsn) -> String {
        WalSegment::at(timeline, lsn, self.wal_segment_size).name(self.wal_segment_size)
    }

    /// Name of the WAL segment that holds the byte before a position.
    pub(super) fn wal_name_before(&self, timeline: TimelineId, lsn: Lsn) -> String {
        let number = lsn.segment_number_before(self.wal_segment_size);
        WalSegment { timeline, number }.name(self.wal_segment_size)
    }
}

/// A directory that a server would have to recover first is no cluster that was stopped: its label files are not backed
/// up, and without them what is restored would start from the wrong checkpoint, or not at all.
fn refuse_unrecovered(pgdata: &Path) -> Result<()> {
    for name in ["backup_label", crate::restore::MARKER] {
        let path = pgdata.join(name);
        if std::fs::symlink_metadata(&path).is_ok() {
            return Err(Error::refused(
                Kind::FileInvalid,
                format!(
                    "'{}' is there: '{}' was restored and has not been recovered; start and stop its server first",
                    path.display(),
                    pgdata.display()
                ),
            ));
        }
    }
    Ok(())
}
