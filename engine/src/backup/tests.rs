//! Shared by the unit tests of this module, and a test of what comes last into a manifest.

use crate::clock::SystemClock;
use crate::crypto::Unlock;
use crate::repository::manifests::{BuiltEntry, Manifest, ManifestBuilder};
use crate::repository::testing::blank;
use crate::repository::{ChunkSource, OpenOptions, Repository, WriterSession};
use crate::store::{MemoryStore, Store};
use pgkeep_formats::repo::manifest::{Content, LATE_BYTES_MAX, Node};
use pgkeep_formats::repo::records::{BackupType, Commit};
use std::sync::Arc;

/// A record with a label and nothing else of interest.
pub(super) fn commit(label: &str) -> Commit {
    let backup_type = if label.contains('_') { BackupType::Incr } else { BackupType::Full };
    Commit { label: label.to_owned(), backup_type, system_identifier: 1, start: 0, stop: 0, ..blank() }
}

#[test]
fn a_tablespace_map_of_many_tablespaces_comes_back_and_one_that_no_reader_takes_is_not_written() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let options = || OpenOptions { key: 1, unlock: Unlock::None, cache: None };
    Repository::create(Arc::clone(&store), options(), 1).unwrap();
    let repository = Arc::new(Repository::open(store, options()).unwrap());
    let map = |len: usize| BuiltEntry {
        path: "tablespace_map".to_owned(),
        node: Node::File,
        mode: 0o600,
        user: "postgres".to_owned(),
        group: "postgres".to_owned(),
        modified: (1, 0),
        size: len as u64,
        inline: Some(vec![b'x'; len]),
        unit: 1,
        extents: Vec::new(),
        bad_pages: Vec::new(),
    };
    for (len, fits) in [(1000, true), (70_000, true), (LATE_BYTES_MAX, true), (LATE_BYTES_MAX + 1, false)] {
        let mut session = WriterSession::begin(&repository, "main", "test", "host", &SystemClock).unwrap();
        let builder = ManifestBuilder::new(&session, 8192, None).unwrap();
        let finished = builder.finish(&mut session, vec![map(len)]);
        assert_eq!(finished.is_ok(), fits, "{len}: {finished:?}");
        let Ok(summary) = finished else { continue };
        session.publish().unwrap();
        let index = repository.load_index_to_read().unwrap();
        let source = Arc::new(ChunkSource::new(Arc::clone(&repository), index, "main"));
        let commit = Commit { manifest: summary.manifest, ..commit("20260101-000000F") };
        let found = Arc::new(Manifest::open(&source, &commit).unwrap()).find("tablespace_map").unwrap().unwrap();
        assert_eq!(found.entry.content, Content::Inline(vec![b'x'; len]));
    }
}
