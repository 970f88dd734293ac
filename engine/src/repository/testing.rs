//! Repositories in memory with made-up backups, for tests.

use super::{Backup, OpenOptions, Repository, WriterSession};
use crate::clock::SystemClock;
use crate::crypto::Unlock;
use crate::pg::ClusterIdentity;
use crate::stanza::{RepoTarget, create};
use crate::store::{MemoryStore, Store};
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::records::{BackupType, Commit};
use std::sync::Arc;

/// The cluster of the stanza.
pub(crate) const CLUSTER: ClusterIdentity =
    ClusterIdentity { version: 15, system_identifier: 7001, catalog_version: 202_209_061, control_version: 1300 };

/// A repository with a stanza.
pub(crate) fn in_memory(stanza: &str) -> Arc<Repository> {
    on(&MemoryStore::new(), stanza)
}

/// A repository in this store, with a stanza; both are made unless they are there.
pub(crate) fn on(store: &(impl Store + Clone + 'static), stanza: &str) -> Arc<Repository> {
    let options = || OpenOptions { key: 1, unlock: Unlock::None, cache: None };
    let target = RepoTarget { store: Arc::new(store.clone()), options: options() };
    create(vec![target], stanza, &CLUSTER, &SystemClock).unwrap().remove(0).result.unwrap();
    Arc::new(Repository::open(Arc::new(store.clone()), options()).unwrap())
}

/// Opens a session as a backup does.
pub(crate) fn session(repository: &Arc<Repository>, stanza: &str) -> WriterSession {
    WriterSession::begin(repository, stanza, "backup", "test", &SystemClock).unwrap()
}

/// Commits a backup of nothing; `change` makes of its record what the test needs.
pub(crate) fn committed(repository: &Arc<Repository>, stanza: &str, change: impl FnOnce(&mut Commit)) -> Backup {
    commit(session(repository, stanza), change)
}

/// Commits a session, with nothing in it.
pub(crate) fn commit(session: WriterSession, change: impl FnOnce(&mut Commit)) -> Backup {
    let mut record = record(&session);
    change(&mut record);
    session.commit(&mut |_| Ok(()), |_, _| record, &SystemClock).unwrap()
}

/// The record of a session's backup of nothing.
pub(crate) fn record(session: &WriterSession) -> Commit {
    Commit { session: session.id(), generation: session.generation(), ..blank() }
}

/// The record of a backup that no session has made.
pub(crate) fn blank() -> Commit {
    Commit {
        session: SessionId([0; 16]),
        generation: 0,
        label: "20260101-000000F".to_owned(),
        backup_type: BackupType::Full,
        prior: None,
        reference: Vec::new(),
        history_id: 1,
        version: CLUSTER.version,
        system_identifier: CLUSTER.system_identifier,
        timeline: 1,
        start: 1,
        copy_start_nanos: 0,
        keeps_wal: false,
        stop: 2,
        lsn: None,
        wal: None,
        wal_segment_size: 16 << 20,
        size: 0,
        delta: 0,
        repository_size: 0,
        repository_delta: 0,
        manifest: Vec::new(),
        annotations: Default::default(),
        page_checksums: false,
        error_list: Vec::new(),
        databases: Vec::new(),
        tablespaces: Vec::new(),
        links: Vec::new(),
        program: "test".to_owned(),
        online: true,
    }
}
