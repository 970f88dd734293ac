//! The record of a backup that was made up.

use pgkeep_engine::repository::WriterSession;
use pgkeep_engine::repository::manifests::ManifestSummary;
use pgkeep_formats::repo::records::{BackupType, Commit};
use std::collections::BTreeMap;

/// A record for a manifest; `number` orders it among others.
#[must_use]
pub fn commit_record(session: &WriterSession, summary: &ManifestSummary, number: i64) -> Commit {
    Commit {
        session: session.id(),
        generation: session.generation(),
        label: format!("20260101-{number:06}F"),
        backup_type: BackupType::Full,
        prior: None,
        reference: Vec::new(),
        history_id: 1,
        version: 15,
        system_identifier: 1,
        timeline: 1,
        start: number,
        copy_start_nanos: 0,
        keeps_wal: false,
        stop: number,
        lsn: None,
        wal: None,
        wal_segment_size: 16 << 20,
        size: summary.root.bytes,
        delta: 0,
        repository_size: 0,
        repository_delta: 0,
        manifest: summary.manifest.clone(),
        annotations: BTreeMap::new(),
        page_checksums: false,
        error_list: Vec::new(),
        databases: Vec::new(),
        tablespaces: Vec::new(),
        links: Vec::new(),
        program: "bench".to_owned(),
        online: false,
    }
}
