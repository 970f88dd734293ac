//! A repository in memory with WAL and made-up backups, and what is shown of it.

use super::*;
use crate::clock::SystemClock;
use crate::crypto::Unlock;
use crate::repository::testing::{CLUSTER, record};
use crate::repository::wal::WalFile;
use crate::repository::{OpenOptions, WriterSession};
use crate::stanza::{RepoTarget, create};
use crate::store::{MemoryStore, RecordingStore, Store as _, Verb};
use pgkeep_formats::repo::records::{BackupType, Commit, DatabaseRef, TablespaceRef};
use std::sync::Arc;

const FULL: &str = "20240101-000000F";
const INCR: &str = "20240101-000000F_20240102-000000I";
const ZEROS: &str = "-0000000000000000000000000000000000000000.zst";

fn commit(session: &WriterSession, label: &str, backup_type: BackupType, stop: i64) -> Commit {
    Commit {
        label: label.into(),
        backup_type,
        prior: (backup_type == BackupType::Incr).then(|| FULL.into()),
        reference: if backup_type == BackupType::Incr { vec![FULL.into()] } else { vec![] },
        start: stop - 10,
        stop,
        lsn: Some((0x300_0028, 0x300_0100)),
        wal: Some(("000000010000000000000003".into(), "000000010000000000000003".into())),
        size: 100,
        delta: 50,
        repository_size: 30,
        repository_delta: 20,
        annotations: [("source".to_owned(), "demo backup".to_owned())].into(),
        page_checksums: true,
        databases: vec![DatabaseRef { oid: 5, name: "postgres".into() }],
        tablespaces: vec![TablespaceRef { oid: 16400, name: "ts".into(), destination: "/ts".into() }],
        program: "0.1.0".into(),
        ..record(session)
    }
}

/// A stanza with two backups and WAL of two directories, and what strangers left there.
fn repository() -> (Arc<Repository>, Arc<RecordingStore>) {
    let store = Arc::new(RecordingStore::new(MemoryStore::new()));
    let options = || OpenOptions { key: 1, unlock: Unlock::None, cache: None };
    let target = RepoTarget { store: Arc::<RecordingStore>::clone(&store), options: options() };
    create(vec![target], "demo", &CLUSTER, &SystemClock).unwrap().pop().unwrap().result.unwrap();
    let repository = Arc::new(Repository::open(Arc::<RecordingStore>::clone(&store), options()).unwrap());
    for name in [
        "000000010000000000000003",
        "000000010000000000000003.00000028.backup",
        "000000010000000100000000",
        "000000010000000100000001.partial",
        "00000002.history",
    ] {
        repository.wal_put("demo", "15-1", name, &WalFile::encode(name.as_bytes(), 1).unwrap()).unwrap();
    }
    for stray in ["wal/demo/15-1/x", "wal/demo/15-1/0000000100000000/x", "wal/demo/15-1/x/000000010000000000000004"] {
        store.put_if_absent(stray, b"x").unwrap();
    }
    for (label, kind, stop) in [(FULL, BackupType::Full, 100), (INCR, BackupType::Incr, 200)] {
        let session = WriterSession::begin(&repository, "demo", "backup", "test", &SystemClock).unwrap();
        let commit = commit(&session, label, kind, stop);
        session.commit(&mut |_| Ok(()), |_, _| commit, &SystemClock).unwrap();
    }
    (repository, store)
}

fn list(repository: &Repository, path: &str, recurse: bool, order: Order) -> Vec<Entry> {
    let mut out = Vec::new();
    let path = TreePath::parse(path).unwrap();
    Tree::new(repository)
        .list(&path, recurse, order, &mut |entry| {
            out.push(entry);
            Ok(())
        })
        .unwrap();
    out
}

fn names(repository: &Repository, path: &str, recurse: bool, order: Order) -> Vec<String> {
    list(repository, path, recurse, order).into_iter().map(|entry| entry.name).collect()
}

fn read(repository: &Repository, path: &str, raw: bool) -> Result<Option<Vec<u8>>> {
    Tree::new(repository).read(&TreePath::parse(path).unwrap(), raw)
}

#[test]
fn the_tree_has_the_names_readers_know_in_both_orders() {
    let (repository, _) = repository();
    assert_eq!(names(&repository, "", false, Order::Ascending), [".", "archive", "backup"]);
    let mut all = vec![
        "15-1".to_owned(),
        "15-1/0000000100000000".into(),
        format!("15-1/0000000100000000/000000010000000000000003{ZEROS}"),
        "15-1/0000000100000000/000000010000000000000003.00000028.backup".into(),
        "15-1/0000000100000001".into(),
        format!("15-1/0000000100000001/000000010000000100000000{ZEROS}"),
        format!("15-1/0000000100000001/000000010000000100000001.partial{ZEROS}"),
        "15-1/00000002.history".into(),
        "archive.info".into(),
    ];
    let dot = || vec![".".to_owned()];
    assert_eq!(names(&repository, "archive/demo", true, Order::Ascending), [dot(), all.clone()].concat());
    all.reverse();
    assert_eq!(names(&repository, "archive/demo", true, Order::Descending), [dot(), all].concat());
    let backup = [".", FULL, INCR, "backup.info", "latest"];
    assert_eq!(names(&repository, "backup/demo/", false, Order::Ascending), backup);
    assert_eq!(names(&repository, "backup/demo/latest", false, Order::Ascending), [".", "backup.manifest"]);
    for nothing in ["x", "archive/nobody", "archive/demo/16-2", "backup/demo/20250101-000000F", "backup/nobody/latest"]
    {
        assert_eq!(list(&repository, nothing, true, Order::Ascending), [Entry { name: ".".into(), node: Node::Path }]);
    }
}

#[test]
fn listed_files_can_be_read_and_have_the_size_that_is_listed() {
    let (repository, store) = repository();
    for entry in list(&repository, "", true, Order::Ascending) {
        let Node::File { size, time } = entry.node else { continue };
        let is_archived = entry.name.starts_with("archive/") && !entry.name.ends_with(".info");
        let content = read(&repository, &entry.name, is_archived).unwrap().unwrap();
        assert_eq!(content.len() as u64, size, "{}", entry.name);
        assert!(time > 0, "{}", entry.name);
        let itself = list(&repository, &entry.name, true, Order::Ascending);
        assert_eq!(itself, [Entry { name: ".".into(), node: Node::File { size, time } }], "{}", entry.name);
    }
    let segment = "archive/demo/15-1/0000000100000000/000000010000000000000003";
    let given = read(&repository, &format!("{segment}{}", ZEROS.trim_end_matches(".zst")), false).unwrap().unwrap();
    assert_eq!(given, b"000000010000000000000003");
    let compressed = read(&repository, &format!("{segment}{ZEROS}"), false).unwrap().unwrap();
    assert_eq!(zstd::decode_all(&compressed[..]).unwrap(), given);
    assert_eq!(read(&repository, "archive/demo/15-1/00000002.history", false).unwrap().unwrap(), b"00000002.history");
    let raw = read(&repository, &format!("{segment}{ZEROS}"), true).unwrap().unwrap();
    assert_eq!(raw, store.get("wal/demo/15-1/0000000100000000/000000010000000000000003", Range::Whole).unwrap());
}

#[test]
fn what_is_no_file_and_what_is_not_stored_is_told_apart() {
    let (repository, _) = repository();
    for missing in [
        "x",
        "backup/nobody",
        "archive/demo/15-1/00000003.history",
        "backup/demo/x/backup.manifest",
        "backup/x/backup.info",
    ] {
        assert_eq!(read(&repository, missing, false).unwrap(), None, "{missing}");
        assert_eq!(read(&repository, missing, true).unwrap(), None, "{missing}");
    }
    for directory in ["", "archive", "backup/demo", "archive/demo/15-1", "backup/demo/latest"] {
        assert_eq!(read(&repository, directory, false).unwrap_err().kind(), Kind::FileRead, "{directory}");
    }
    assert_eq!(read(&repository, "backup/demo/backup.info", true).unwrap_err().kind(), Kind::OptionInvalid);
}

#[test]
fn made_up_files_say_what_info_says() {
    let (repository, _) = repository();
    let text = |path: &str| String::from_utf8(read(&repository, path, false).unwrap().unwrap()).unwrap();
    let archive = text("archive/demo/archive.info");
    assert!(archive.starts_with("[backrest]\nbackrest-format=5\nbackrest-version=\""), "{archive}");
    assert!(archive.contains("\n[db]\ndb-id=1\ndb-system-id=7001\ndb-version=\"15\"\n"), "{archive}");
    assert!(archive.ends_with("\n[db:history]\n1={\"db-id\":7001,\"db-version\":\"15\"}\n"), "{archive}");
    let backup = text("backup/demo/backup.info");
    let line = backup.lines().find(|line| line.starts_with(INCR)).unwrap();
    let facts: serde_json::Value = serde_json::from_str(line.split_once('=').unwrap().1).unwrap();
    assert_eq!(facts["backup-archive-start"], "000000010000000000000003");
    assert_eq!(facts["backup-prior"], FULL);
    assert_eq!(facts["backup-timestamp-stop"], 200);
    assert_eq!(facts["backup-annotation"]["source"], "demo backup");
    assert_eq!(facts["backup-error"], false);
    let manifest = text("backup/demo/latest/backup.manifest");
    for line in [
        format!("backup-label=\"{INCR}\"").as_str(),
        &format!("backup-reference=\"{FULL},{INCR}\""),
        "backup-lsn-stop=\"0/3000100\"",
        "db-catalog-version=202209061",
        "pg_tblspc/16400={\"path\":\"/ts\",\"tablespace-id\":\"16400\",\"tablespace-name\":\"ts\",\"type\":\"link\"}",
        "postgres={\"db-id\":5}",
    ] {
        assert!(manifest.lines().any(|found| found == line), "{line}\n{manifest}");
    }
}

#[test]
fn listing_wal_opens_nothing_of_it() {
    let (repository, store) = repository();
    store.clear();
    list(&repository, "archive/demo/15-1", true, Order::Ascending);
    let calls = store.calls();
    assert!(calls.iter().all(|call| call.verb == Verb::List), "{calls:?}");
    // The archive's root and two directories.
    assert_eq!(calls.len(), 3, "{calls:?}");
    store.clear();
    list(&repository, "archive", true, Order::Ascending);
    assert!(store.calls().iter().all(|call| !call.key.starts_with("wal/") || call.verb == Verb::List));
}

#[test]
fn notes_made_since_are_shown() {
    let (repository, _) = repository();
    let full = repository.backups("demo").unwrap().remove(0);
    let mut change = |note: &mut pgkeep_formats::repo::records::Note| {
        note.annotations = [("later".to_owned(), "noted".to_owned())].into();
        Ok(true)
    };
    repository.change_note("demo", &full, &mut change).unwrap();
    for path in ["backup/demo/backup.info", &format!("backup/demo/{}/backup.manifest", full.label)] {
        let content = Tree::new(&repository).read(&TreePath::parse(path).unwrap(), false).unwrap().unwrap();
        let text = String::from_utf8(content).unwrap();
        assert!(text.contains(r#"{"later":"noted"}"#), "{path}: {text}");
    }
}
