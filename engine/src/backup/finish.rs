//! The end of a backup: the WAL it needs, `pg_control`, the server's label files, and what the record says of links.

use super::BackupOptions;
use super::cluster::Cluster;
use crate::archive::check_own;
use crate::clock::Clock;
use crate::observe::Cancel;
use crate::pg::datadir;
use crate::pg::server::{BackupStart, BackupStop, Tablespace};
use crate::repository::Repository;
use crate::repository::manifests::{BuiltEntry, ManifestSummary};
use crate::repository::wal::path::{path, timeline_at};
use crate::{Error, FileError, Kind, Result};
use pgkeep_formats::pg::label::BackupLabelFile;
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use pgkeep_formats::pg::wal::WalSegment;
use pgkeep_formats::repo::manifest::{LATE_BYTES_MAX, Node, path_cmp};
use pgkeep_formats::repo::records::{LinkRef, TablespaceRef};
use std::path::Path;
use std::time::Duration;

/// Names of the first and the last segment.
pub(super) type WalBounds = (String, String);

/// Where the WAL of this backup is archived, and how long to wait for it.
pub(super) struct Wal<'a> {
    pub(super) repository: &'a Repository,
    pub(super) options: &'a BackupOptions,
    pub(super) cluster: &'a Cluster,
    pub(super) archive_id: String,
    pub(super) cancel: &'a Cancel,
    pub(super) clock: &'a dyn Clock,
}

impl Wal<'_> {
    /// Waits for segments, unless nobody wants to, and checks that those that are there are this server's.
    fn wait(&self, names: &[String]) -> Result<()> {
        let (stanza, timeout) = (&self.options.stanza, self.options.archive_timeout);
        if self.options.archive_check {
            let waited = self.repository.wal_wait(stanza, &self.archive_id, names, timeout, self.clock, self.cancel);
            waited.map_err(|e| self.of_the_primary(e))?;
        }
        for (number, name) in names.iter().enumerate() {
            self.cancel.check()?;
            // Of those that the server counts as archived the ends tell: a server may keep very many.
            let is_end = number == 0 || number + 1 == names.len();
            check_own(self.repository, stanza, &self.archive_id, &self.cluster.pgdata, name, is_end)?;
        }
        Ok(())
    }

    /// WAL that a standby's backup needs is the primary's to end and to archive.
    fn of_the_primary(&self, error: Error) -> Error {
        match self.cluster.alone {
            Some(key) if error.kind() == Kind::ArchiveTimeout => Error::refused(
                Kind::ArchiveTimeout,
                format!("{}; the standby, pg{key}, cannot end a WAL segment: its primary does", error.chain()),
            ),
            _ => error,
        }
    }

    /// The start of a backup ends a segment. If that one is not archived in time, hours of copying would be in vain.
    pub(super) fn wait_for_prior(&self, start: &BackupStart) -> Result<()> {
        let size = self.cluster.wal_segment_size;
        let number = start.lsn.segment_number(size);
        if number < 2 {
            return Ok(());
        }
        let name = WalSegment { timeline: self.timeline_of(start.timeline, number - 1), number: number - 1 }.name(size);
        if self.options.archive_check {
            tracing::info!("check archive for prior segment {name}");
        }
        self.wait(&[name])
    }

    /// The timeline that a segment is of: an ancestor's, if it lies before the one in which the timeline began, as a standby
    /// may have it that nobody has written to since it was promoted.
    fn timeline_of(&self, timeline: TimelineId, number: u64) -> TimelineId {
        let file = self.cluster.pgdata.join("pg_wal").join(timeline.history_file_name());
        // Without it, nothing is known of ancestors: the first timeline has none.
        let history = std::fs::read(file).ok().and_then(|bytes| TimelineHistory::parse(timeline, &bytes).ok());
        let parts = path(timeline.0, history.as_ref(), self.cluster.wal_segment_size);
        TimelineId(timeline_at(&parts, number))
    }

    /// Waits for every segment that makes the backup consistent; returns the first and the last, and all of them.
    pub(super) fn wait_for_range(&self, start: &BackupStart, stop: &BackupStop) -> Result<(WalBounds, Vec<String>)> {
        let size = self.cluster.wal_segment_size;
        let range = WalSegment::range(start.timeline, start.lsn, stop.lsn, size);
        let names: Vec<String> = range.map(|s| s.name(size)).collect();
        let bounds = match (names.first(), names.last()) {
            (Some(first), Some(last)) => (first.clone(), last.clone()),
            _ => {
                let first = self.cluster.wal_name(start.timeline, start.lsn);
                (first, self.cluster.wal_name_before(start.timeline, stop.lsn))
            }
        };
        if self.options.archive_check {
            tracing::info!("check archive for segment(s) {}:{}", bounds.0, bounds.1);
        }
        self.wait(&names)?;
        Ok((bounds, names))
    }
}

/// `pg_control` and the label files, in path order.
pub(super) fn late_entries(
    pgdata: &Path,
    control: &[u8],
    stop: Option<&BackupStop>,
    timeline: TimelineId,
    now: Duration,
) -> Result<Vec<BuiltEntry>> {
    let file = |path: &str, bytes: Vec<u8>| -> Result<BuiltEntry> {
        Ok(BuiltEntry { size: bytes.len() as u64, inline: Some(bytes), ..late_file(pgdata, path, now)? })
    };
    let mut out = vec![file("global/pg_control", control.to_vec())?];
    if let Some(stop) = stop {
        // What the server gives must be a label, or the restored cluster would start from the wrong checkpoint.
        let label = BackupLabelFile::parse(stop.label_file.as_bytes())
            .map_err(Error::damaged("backup_label from the server"))?;
        // A standby tells its timeline at the start by what it knows then.
        if label.timeline != timeline {
            let text = format!("the backup began on timeline {}, its label names {}", timeline.0, label.timeline.0);
            return Err(Error::refused(Kind::DbMismatch, text));
        }
        out.push(file("backup_label", stop.label_file.clone().into_bytes())?);
        if !stop.tablespace_map.is_empty() {
            out.push(file("tablespace_map", stop.tablespace_map.clone().into_bytes())?);
        }
    }
    if let Some(large) = out.iter().find(|e| e.size > LATE_BYTES_MAX as u64) {
        let text = format!("'{}' has {} bytes, of which a backup can hold {LATE_BYTES_MAX}", large.path, large.size);
        return Err(Error::refused(Kind::FileInvalid, text));
    }
    out.sort_by(|a, b| path_cmp(&a.path, &b.path));
    Ok(out)
}

/// A file that the server's directory did not have when it was walked: empty, of the directory's owner.
pub(super) fn late_file(pgdata: &Path, path: &str, now: Duration) -> Result<BuiltEntry> {
    let (user, group) = owner(pgdata)?;
    Ok(BuiltEntry {
        path: path.to_owned(),
        node: Node::File,
        mode: 0o600,
        user,
        group,
        modified: (now.as_secs() as i64, 0),
        size: 0,
        inline: None,
        unit: 1,
        extents: Vec::new(),
        bad_pages: Vec::new(),
    })
}

fn owner(pgdata: &Path) -> Result<(String, String)> {
    use std::os::unix::fs::MetadataExt;
    let facts = std::fs::metadata(pgdata).map_err(FileError::at("stat", pgdata))?;
    let names = datadir::names::Names::load();
    let user = names.user(facts.uid()).map_or_else(|| facts.uid().to_string(), str::to_owned);
    Ok((user, names.group(facts.gid()).map_or_else(|| facts.gid().to_string(), str::to_owned)))
}

/// Splits the links of the new manifest into tablespaces and others.
pub(super) fn links(summary: &ManifestSummary, known: &[Tablespace]) -> (Vec<TablespaceRef>, Vec<LinkRef>) {
    let known = |oid: u32| known.iter().find(|t| t.oid == oid).map(|t| t.name.clone());
    let (mut tablespaces, mut links) = (Vec::new(), Vec::new());
    for (name, destination) in summary.links.clone() {
        match name.strip_prefix("pg_tblspc/").and_then(|oid| oid.parse().ok()) {
            Some(oid) => {
                let name = known(oid).unwrap_or_else(|| oid.to_string());
                tablespaces.push(TablespaceRef { oid, name, destination });
            }
            None => links.push(LinkRef { name, destination }),
        }
    }
    (tablespaces, links)
}
