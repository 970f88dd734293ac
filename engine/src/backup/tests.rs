//! Shared by the unit tests of this module.

use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::records::{BackupType, Commit};

/// A record with a label and nothing else of interest.
pub(super) fn commit(label: &str) -> Commit {
    Commit {
        session: SessionId([0; 16]),
        generation: 0,
        label: label.to_owned(),
        backup_type: if label.contains('_') { BackupType::Incr } else { BackupType::Full },
        prior: None,
        reference: Vec::new(),
        history_id: 1,
        version: 15,
        system_identifier: 1,
        timeline: 1,
        start: 0,
        stop: 0,
        lsn: None,
        wal: None,
        wal_segment_size: 16 << 20,
        size: 0,
        delta: 0,
        repository_size: 0,
        repository_delta: 0,
        manifest: Vec::new(),
        annotations: [].into(),
        page_checksums: false,
        error_list: Vec::new(),
        databases: Vec::new(),
        tablespaces: Vec::new(),
        links: Vec::new(),
        program: String::new(),
        online: true,
        copy_start_nanos: 0,
    }
}
