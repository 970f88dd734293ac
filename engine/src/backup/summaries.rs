//! Whether WAL summaries can tell what changed since the prior backup.
//!
//! They are used for an online incremental or differential backup whose prior was online too. Whatever is in their way
//! is told in the log, and then files are compared by size, time and content.

use super::BackupOptions;
use super::cluster::Cluster;
use crate::Result;
use crate::clock::Clock;
use crate::observe::Cancel;
use crate::pg::server::{BackupStart, Connection};
use crate::pg::summaries::{self, ChangedBlocks, Geometry, Outcome, Since, Until};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::repo::records::Commit;

/// The question, with everything that bears on the answer.
pub(super) struct Ask<'a> {
    pub(super) options: &'a BackupOptions,
    pub(super) cluster: &'a Cluster,
    pub(super) prior: &'a Commit,
    pub(super) start: &'a BackupStart,
    pub(super) cancel: &'a Cancel,
    pub(super) clock: &'a dyn Clock,
}

impl Ask<'_> {
    /// What changed since the prior backup; `None` if that cannot be told. Waits for the server's summarizer.
    ///
    /// `distrust` is why times of files are not trusted. On the timeline of the prior backup that hints at a data
    /// directory that was put back to an earlier state; on another one it is what a restore does.
    pub(super) fn changed(&self, connection: &mut Connection, distrust: Option<&str>) -> Result<Option<ChangedBlocks>> {
        if !self.cluster.version.facts().wal_summaries || self.options.delta {
            return Ok(None);
        }
        let state = match connection.summarizer() {
            Ok(state) => state,
            Err(e) => {
                self.cancel.check()?;
                return Ok(unused(&e.to_string()));
            }
        };
        if !state.is_some_and(|s| s.enabled) {
            tracing::debug!("WAL summaries are not used: summarize_wal is off");
            return Ok(None);
        }
        let (start, stop) = match self.reason(distrust) {
            Ok(lsn) => lsn,
            Err(reason) => return Ok(unused(&reason)),
        };
        let since = Since { timeline: TimelineId(self.prior.timeline), start: Lsn(start), stop: Lsn(stop) };
        let until = Until { timeline: self.start.timeline, start: self.start.lsn };
        let geometry = Geometry { page_size: self.cluster.page_size, segment_blocks: self.cluster.segment_blocks };
        // A server that does not answer any more is noticed by whoever needs the answer.
        let mut state = || connection.summarizer().ok().flatten();
        let place = (&since, &until);
        match summaries::find(&self.cluster.pgdata, place, geometry, &mut state, self.cancel, self.clock)? {
            Outcome::Unknown(reason) => Ok(unused(&reason)),
            Outcome::Known(changed) => {
                tracing::info!(
                    "{} WAL summaries tell what changed between {} and {}",
                    changed.files(),
                    since.start,
                    until.start
                );
                Ok(Some(changed))
            }
        }
    }

    /// Start and stop of the prior backup, or why it is not one to build on.
    fn reason(&self, distrust: Option<&str>) -> Result<(u64, u64), String> {
        let prior = self.prior;
        let lsn = prior.lsn.filter(|_| prior.online);
        let lsn = lsn.ok_or_else(|| format!("backup {} was taken of a stopped server", prior.label))?;
        // Turning checksums on rewrites every page without WAL.
        if self.cluster.checksums && !prior.page_checksums {
            return Err(format!("the cluster has page checksums, and backup {} did not check them", prior.label));
        }
        // Only the archive can tell two histories of one timeline apart.
        if !self.options.archive_check {
            return Err("archive-check is off".to_owned());
        }
        match distrust {
            Some(distrust) if prior.timeline == self.start.timeline.0 => Err(distrust.to_owned()),
            _ => Ok(lsn),
        }
    }
}

fn unused(reason: &str) -> Option<ChangedBlocks> {
    tracing::info!("WAL summaries are not used: {reason}");
    None
}
