//! How far the server has summarized its WAL.

use super::{Connection, ServerError};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::TimelineId;

/// State of the process that writes WAL summaries.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SummarizerState {
    /// Whether `summarize_wal` is on.
    pub enabled: bool,
    /// Timeline it is on.
    pub timeline: TimelineId,
    /// Everything before is in files.
    pub summarized: Lsn,
    /// Everything before has been read.
    pub pending: Lsn,
    /// Whether the process runs.
    pub running: bool,
}

impl SummarizerState {
    /// A state of a summarizer that runs.
    #[cfg(test)]
    pub(crate) fn new(enabled: bool, timeline: TimelineId, summarized: Lsn, pending: Lsn) -> Self {
        Self { enabled, timeline, summarized, pending, running: enabled }
    }

    /// False if a summary of the WAL before `end` on `timeline` that is not there yet will not be written: the
    /// summarizer is past it, or off.
    #[must_use]
    pub fn will_reach(&self, timeline: TimelineId, end: Lsn) -> bool {
        // It may be starting again after an error, so that it does not run now says little.
        self.enabled && (self.timeline, self.summarized) < (timeline, end)
    }
}

impl Connection {
    /// Asks how far WAL is summarized; `None` for servers that have no summaries.
    ///
    /// # Errors
    /// As all queries.
    pub fn summarizer(&mut self) -> Result<Option<SummarizerState>, ServerError> {
        if !self.version.facts().wal_summaries {
            return Ok(None);
        }
        let sql = "select current_setting('summarize_wal')::bool, summarized_tli,
                coalesce((summarized_lsn - '0/0')::bigint, 0), coalesce((pending_lsn - '0/0')::bigint, 0),
                summarizer_pid is not null
            from pg_get_wal_summarizer_state()";
        let state = self.one("ask how far WAL is summarized", sql, &[], |r| {
            Ok(SummarizerState {
                enabled: r.try_get(0)?,
                timeline: TimelineId(r.try_get::<_, Option<i64>>(1)?.and_then(|t| u32::try_from(t).ok()).unwrap_or(0)),
                summarized: Lsn(r.try_get::<_, i64>(2)?.cast_unsigned()),
                pending: Lsn(r.try_get::<_, i64>(3)?.cast_unsigned()),
                running: r.try_get(4)?,
            })
        })?;
        Ok(Some(state))
    }
}
