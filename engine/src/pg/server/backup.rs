//! Start and stop of a non-exclusive backup, and the lock that keeps two of them apart.

use super::{Connection, ServerError};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::TimelineId;
use std::time::Duration;

/// First number of our advisory locks; "pgk" and a byte for what is locked.
const LOCK_CLASS: i32 = 0x7067_6B01;

/// What the server said at the start of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupStart {
    /// Where replay of a restore of this backup begins: the redo position of its checkpoint.
    pub lsn: Lsn,
    /// The timeline at the start; on a standby that of its last restart point, the label file decides.
    pub timeline: TimelineId,
    /// The server's time before the start, since the Unix epoch.
    pub time: Duration,
}

/// What the server said at the end of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupStop {
    /// Replay must get here before the files are consistent.
    pub lsn: Lsn,
    /// Content of the file `backup_label`.
    pub label_file: String,
    /// Content of the file `tablespace_map`; empty if there are no tablespaces.
    pub tablespace_map: String,
    /// The server's time after the end, since the Unix epoch.
    pub time: Duration,
}

impl Connection {
    /// Takes the advisory lock for backups under `scope`, for the life of the session.
    ///
    /// It keeps backups apart that lock files cannot: those of other hosts. Backups with different scopes
    /// may run at once. Sessions exclude each other only within one database.
    ///
    /// # Errors
    /// [`ServerError::BackupRunning`] if another session holds it, and as all queries.
    pub fn lock_backup(&mut self, scope: i32) -> Result<(), ServerError> {
        let sql = "select pg_try_advisory_lock($1, $2)";
        match self.one("lock the cluster for a backup", sql, &[&LOCK_CLASS, &scope], |r| r.try_get(0))? {
            true => Ok(()),
            false => Err(ServerError::BackupRunning { class: LOCK_CLASS, scope }),
        }
    }

    /// Starts a backup. Blocks until the server has made a checkpoint: at once if `pace` says so, else within
    /// its checkpoint timeout.
    ///
    /// The backup belongs to this session; if it ends, so does the backup, and [`Self::backup_stop`] says so.
    ///
    /// # Errors
    /// As all queries, and [`ServerError::Order`] if the session has started one already.
    pub fn backup_start(&mut self, label: &str, pace: CheckpointPace) -> Result<BackupStart, ServerError> {
        const DOING: &str = "start the backup";
        if self.in_backup {
            return Err(ServerError::Order { step: "start" });
        }
        let time = self.current_time()?;
        let functions = self.version.facts().backup_functions;
        let exclusive = if functions.takes_exclusive { ", false" } else { "" };
        let sql = format!("select ({}($1, $2{exclusive}) - '0/0')::bigint", functions.start);
        let lsn = self.lsn(DOING, &sql, &[&label, &(pace == CheckpointPace::Fast)])?;
        self.in_backup = true;
        Ok(BackupStart { lsn, timeline: self.timeline()?, time })
    }

    /// Ends the backup. Does not wait for the archive; that is the caller's, who knows the repository.
    ///
    /// # Errors
    /// [`ServerError::Lost`] if the session was lost since the start, [`ServerError::Order`] if none was
    /// started, and as all queries, among them the server's refusal when a standby was promoted meanwhile.
    pub fn backup_stop(&mut self) -> Result<BackupStop, ServerError> {
        const DOING: &str = "stop the backup";
        if !self.in_backup {
            return Err(ServerError::Order { step: "stop" });
        }
        let functions = self.version.facts().backup_functions;
        let arguments = if functions.takes_exclusive { "false, false" } else { "false" };
        let sql = format!(
            "select (lsn - '0/0')::bigint, labelfile, coalesce(spcmapfile, '') from {}({arguments})",
            functions.stop
        );
        let (lsn, label_file, tablespace_map): (i64, String, String) =
            self.one(DOING, &sql, &[], |r| Ok((r.try_get(0)?, r.try_get(1)?, r.try_get(2)?)))?;
        let time = self.current_time()?;
        self.in_backup = false;
        Ok(BackupStop { lsn: Lsn(lsn.cast_unsigned()), label_file, tablespace_map, time })
    }
}

/// How fast the checkpoint at the start of a backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointPace {
    /// At once, with the burst of writes that costs.
    Fast,
    /// Spread, as the server spreads its own: minutes.
    Spread,
}
