//! What a standby and its primary say of how far the files of the standby are.

use super::{Connection, ServerError};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::TimelineId;

/// The last checkpoint in `pg_control`; on a standby the one its last restart point was made at. Two servers that name the
/// same one have the same history up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where its record is.
    pub lsn: Lsn,
    /// Where replay from it begins: all that was logged before is in the files.
    pub redo: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
    /// When it began, seconds since the Unix epoch, by the clock of the server that logged it.
    pub time: i64,
}

/// How far what a standby has written to its files goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// False once it was promoted.
    pub in_recovery: bool,
    /// No file has anything that was logged behind this: what it has noted as needed, or replayed if that is more.
    pub lsn: Lsn,
    /// The timeline of that.
    pub timeline: TimelineId,
}

impl Connection {
    /// Whether the server is a primary now.
    ///
    /// # Errors
    /// As all queries.
    pub fn is_primary(&mut self) -> Result<bool, ServerError> {
        self.one("ask whether the server is in recovery", "select not pg_is_in_recovery()", &[], |r| r.try_get(0))
    }

    /// Up to where a standby has replayed; `None` on a primary and before the first record.
    ///
    /// # Errors
    /// As all queries.
    pub fn replay_lsn(&mut self) -> Result<Option<Lsn>, ServerError> {
        let sql = "select (pg_last_wal_replay_lsn() - '0/0')::bigint";
        let lsn: Option<i64> = self.one("ask how far the standby has replayed", sql, &[], |r| r.try_get(0))?;
        Ok(lsn.map(|l| Lsn(l.cast_unsigned())))
    }

    /// Writes a checkpoint, on a standby a restart point if it has replayed a checkpoint since the last one.
    ///
    /// # Errors
    /// As all queries. The user must be allowed to: a superuser or, from 15 on, a member of `pg_checkpoint`.
    pub fn checkpoint(&mut self) -> Result<(), ServerError> {
        self.run("write a checkpoint", |c| c.batch_execute("checkpoint"))
    }

    /// The last checkpoint in the server's `pg_control`.
    ///
    /// # Errors
    /// As all queries.
    pub fn last_checkpoint(&mut self) -> Result<Checkpoint, ServerError> {
        let sql = "select (checkpoint_lsn - '0/0')::bigint, (redo_lsn - '0/0')::bigint, timeline_id,
                extract(epoch from checkpoint_time)::bigint
            from pg_control_checkpoint()";
        self.one("ask the server for its last checkpoint", sql, &[], |r| {
            Ok(Checkpoint {
                lsn: Lsn(r.try_get::<_, i64>(0)?.cast_unsigned()),
                redo: Lsn(r.try_get::<_, i64>(1)?.cast_unsigned()),
                timeline: TimelineId(r.try_get::<_, i32>(2)?.cast_unsigned()),
                time: r.try_get(3)?,
            })
        })
    }

    /// How far what a standby has written goes: it notes that in `pg_control` before it writes a page.
    ///
    /// # Errors
    /// As all queries.
    pub fn written(&mut self) -> Result<Written, ServerError> {
        let sql = "select pg_is_in_recovery(),
                (greatest(min_recovery_end_lsn, pg_last_wal_replay_lsn()) - '0/0')::bigint, min_recovery_end_timeline
            from pg_control_recovery()";
        self.one("ask the standby how far its files are", sql, &[], |r| {
            Ok(Written {
                in_recovery: r.try_get(0)?,
                lsn: Lsn(r.try_get::<_, i64>(1)?.cast_unsigned()),
                timeline: TimelineId(r.try_get::<_, i32>(2)?.cast_unsigned()),
            })
        })
    }
}
