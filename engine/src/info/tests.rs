//! Repositories in memory with made-up backups, and the JSON they give.

use super::*;
use crate::Kind;
use crate::clock::SystemClock;
use crate::crypto::Unlock;
use crate::lock::{Lock, Progress};
use crate::pg::ClusterIdentity;
use crate::repository::WriterSession;
use crate::repository::wal::WalFile;
use crate::stanza::{RepoTarget, create, upgrade};
use crate::store::MemoryStore;
use pgkeep_formats::repo::records::{Commit, DatabaseRef, LinkRef, TablespaceRef};
use serde_json::{Value, json};
use std::collections::BTreeMap;

mod drills;

const PG15: ClusterIdentity =
    ClusterIdentity { version: 15, system_identifier: 7001, catalog_version: 202_209_061, control_version: 1300 };
const PG16: ClusterIdentity = ClusterIdentity { version: 16, system_identifier: 7002, ..PG15 };

struct Repo {
    key: u32,
    store: MemoryStore,
    cache: tempfile::TempDir,
}

impl Repo {
    fn new(key: u32) -> Self {
        Self { key, store: MemoryStore::new(), cache: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> OpenOptions {
        OpenOptions { key: self.key, unlock: Unlock::None, cache: Some(self.cache.path().to_path_buf()) }
    }

    fn stanza(self, name: &str, clusters: &[ClusterIdentity]) -> Self {
        for (n, identity) in clusters.iter().enumerate() {
            let target = || vec![RepoTarget { store: Arc::new(self.store.clone()), options: self.options() }];
            let outcomes = match n {
                0 => create(target(), name, identity, &SystemClock),
                _ => upgrade(target(), name, identity, &SystemClock),
            };
            outcomes.unwrap().pop().unwrap().result.unwrap();
        }
        self
    }

    fn open(&self) -> Arc<Repository> {
        Arc::new(Repository::open(Arc::new(self.store.clone()), self.options()).unwrap())
    }

    fn wal(&self, stanza: &str, archive_id: &str, names: &[&str]) {
        for name in names {
            self.open().wal_put(stanza, archive_id, name, &WalFile::encode(name.as_bytes(), 1).unwrap()).unwrap();
        }
    }

    fn backup(&self, stanza: &str, change: impl FnOnce(&mut Commit)) {
        let session = WriterSession::begin(&self.open(), stanza, "backup", "test", &SystemClock).unwrap();
        let mut commit = Commit { session: session.id(), generation: session.generation(), ..sample() };
        change(&mut commit);
        session.commit(&mut |_| Ok(()), |_, _| commit, &SystemClock).unwrap();
    }

    fn source(&self) -> RepoSource {
        let access = RepoAccess::open(Arc::new(self.store.clone()), self.options());
        RepoSource { key: self.key, cipher: CipherName::None, access }
    }
}

fn sample() -> Commit {
    Commit {
        session: pgkeep_formats::id::SessionId([0; 16]),
        generation: 0,
        label: "20240101-000000F".into(),
        backup_type: BackupType::Full,
        prior: None,
        reference: vec![],
        history_id: 1,
        version: 15,
        system_identifier: 7001,
        timeline: 1,
        start: 1_704_067_200,
        copy_start_nanos: 0,
        keeps_wal: false,
        stop: 1_704_067_210,
        lsn: Some((0x200_0028, 0x200_0130)),
        wal: Some(("000000010000000000000002".into(), "000000010000000000000002".into())),
        wal_segment_size: 16 << 20,
        size: 31_000_000,
        delta: 31_000_000,
        repository_size: 4_000_000,
        repository_delta: 4_000_100,
        manifest: vec![],
        annotations: BTreeMap::new(),
        page_checksums: true,
        error_list: vec![],
        databases: vec![
            DatabaseRef { oid: 1, name: "template1".into() },
            DatabaseRef { oid: 5, name: "postgres".into() },
        ],
        tablespaces: vec![],
        links: vec![],
        program: "0.1.0".into(),
        online: true,
    }
}

fn incr(commit: &mut Commit) {
    commit.label = "20240101-000000F_20240102-000000I".into();
    commit.backup_type = BackupType::Incr;
    commit.prior = Some("20240101-000000F".into());
    commit.reference = vec!["20240101-000000F".into()];
    (commit.start, commit.stop) = (1_704_153_600, 1_704_153_605);
    (commit.lsn, commit.wal, commit.page_checksums, commit.online) = (None, None, false, false);
    commit.annotations = BTreeMap::from([("source".into(), "demo backup".into()), ("a".into(), "b".into())]);
}

fn show(repos: &[&Repo], options: &InfoOptions<'_>) -> Info {
    gather(&repos.iter().map(|r| r.source()).collect::<Vec<_>>(), options).unwrap()
}

fn codes(info: &Info) -> Vec<(String, u8, Vec<u8>)> {
    let of = |s: &StanzaInfo| s.repos.iter().map(|r| r.status.code as u8).collect();
    info.stanzas.iter().map(|s| (s.name.clone(), s.status.code as u8, of(s))).collect()
}

fn demo() -> InfoOptions<'static> {
    InfoOptions { stanza: Some("demo"), ..InfoOptions::default() }
}

#[test]
fn the_json_is_what_readers_parse() {
    let repo = Repo::new(1).stanza("demo", &[PG15]);
    let segments = ["000000010000000000000001", "000000010000000000000002", "000000010000000000000003"];
    repo.wal("demo", "15-1", &[&segments[..], &["00000002.history"]].concat());
    repo.backup("demo", incr);
    repo.backup("demo", |_| ());
    let text = show(&[&repo], &demo()).to_json().to_string();
    let expected = concat!(
        r#"[{"archive":[{"database":{"id":1,"repo-key":1},"id":"15-1","max":"000000010000000000000003","#,
        r#""min":"000000010000000000000001"}],"#,
        r#""backup":[{"archive":{"start":"000000010000000000000002","stop":"000000010000000000000002"},"#,
        r#""backrest":{"format":5,"version":"0.1.0"},"database":{"id":1,"repo-key":1},"error":false,"#,
        r#""info":{"delta":31000000,"repository":{"delta":4000100,"size":4000000},"size":31000000},"#,
        r#""label":"20240101-000000F","lsn":{"start":"0/2000028","stop":"0/2000130"},"prior":null,"reference":null,"#,
        r#""timestamp":{"start":1704067200,"stop":1704067210},"type":"full"},"#,
        r#"{"annotation":{"a":"b","source":"demo backup"},"archive":{"start":null,"stop":null},"#,
        r#""backrest":{"format":5,"version":"0.1.0"},"database":{"id":1,"repo-key":1},"#,
        r#""info":{"delta":31000000,"repository":{"delta":4000100,"size":4000000},"size":31000000},"#,
        r#""label":"20240101-000000F_20240102-000000I","prior":"20240101-000000F","reference":["20240101-000000F"],"#,
        r#""timestamp":{"start":1704153600,"stop":1704153605},"type":"incr"}],"#,
        r#""cipher":"none","db":[{"id":1,"repo-key":1,"system-id":7001,"version":"15"}],"name":"demo","#,
        r#""repo":[{"cipher":"none","key":1,"status":{"code":0,"message":"ok"}}],"#,
        r#""status":{"code":0,"lock":{"backup":{"held":false},"restore":{"held":false}},"message":"ok"}}]"#,
    );
    assert_eq!(text, expected);
}

fn segment(timeline: u32, number: u32) -> String {
    format!("{timeline:08X}00000000{number:08X}")
}

/// Each hole: first, last, how many, and whether the backup needs it.
fn missing(repo: &Repo, now: Option<i64>) -> Vec<(String, String, u64, bool)> {
    let json = show(&[repo], &InfoOptions { now, ..demo() }).to_json();
    assert_eq!(json[0]["status"]["code"], 0, "readers of the status see what they always saw");
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let Some(holes) = json[0]["archive"][0].get("missing") else { return Vec::new() };
    let holes = holes.as_array().unwrap().iter().map(|h| {
        (text(&h["first"]), text(&h["last"]), h["segments"].as_u64().unwrap(), h["needed"].as_bool().unwrap())
    });
    holes.collect()
}

#[test]
fn wal_that_recovery_from_the_newest_backup_lacks_is_shown_until_another_covers_it() {
    let repo = Repo::new(1).stanza("demo", &[PG15]);
    // What is missing before the newest backup does no harm to it.
    let put = |timeline, numbers: &[u32]| {
        let names: Vec<_> = numbers.iter().map(|n| segment(timeline, *n)).collect();
        repo.wal("demo", "15-1", &names.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let hole = |timeline, first, last, needed| {
        (segment(timeline, first), segment(timeline, last), u64::from(last - first + 1), needed)
    };
    put(1, &[0x10, 0x12, 0x13]);
    repo.backup("demo", |c| c.wal = Some((segment(1, 0x12), segment(1, 0x13))));
    assert_eq!(missing(&repo, None), []);
    put(1, &[0x16, 0x17, 0x19]);
    assert_eq!(missing(&repo, None), [hole(1, 0x14, 0x15, false), hole(1, 0x18, 0x18, false)]);
    // The ones behind them came just now: those may be on their way.
    assert_eq!(missing(&repo, Some(0)), []);
    repo.store.delete(&layout::wal("demo", "15-1", &segment(1, 0x13))).unwrap();
    assert_eq!(missing(&repo, None)[0], hole(1, 0x13, 0x15, true));

    repo.backup("demo", |c| {
        (c.label, c.stop) = ("20240105-000000F".into(), c.stop + 10);
        c.wal = Some((segment(1, 0x19), segment(1, 0x1B)));
    });
    assert_eq!(missing(&repo, None), [hole(1, 0x1A, 0x1B, true)]);
    put(1, &[0x1A, 0x1B, 0x1C, 0x1E]);
    // A server was promoted in 1D: its timeline begins with a copy of that, and the former one ends wherever it does.
    let history = b"1\t0/1D000028\tno recovery target specified\n";
    let file = WalFile::encode(history, 1).unwrap();
    repo.open().wal_put("demo", "15-1", "00000002.history", &file).unwrap();
    put(2, &[0x1D, 0x1E, 0x21]);
    let former = hole(1, 0x1D, 0x1D, false);
    assert_eq!(missing(&repo, None), [former.clone(), hole(2, 0x1F, 0x20, false)]);
    // A backup that keeps its WAL itself gets as far as to what is missing behind that.
    repo.backup("demo", |c| {
        (c.label, c.stop, c.keeps_wal) = ("20240106-000000F".into(), c.stop + 20, true);
        c.wal = Some((segment(1, 0x19), segment(1, 0x1B)));
    });
    repo.store.delete(&layout::wal("demo", "15-1", &segment(1, 0x1A))).unwrap();
    repo.store.delete(&layout::wal("demo", "15-1", &segment(1, 0x1B))).unwrap();
    assert_eq!(missing(&repo, None), [former.clone(), hole(2, 0x1F, 0x20, false)]);
    repo.store.delete(&layout::wal("demo", "15-1", &segment(1, 0x1C))).unwrap();
    assert_eq!(missing(&repo, None)[..2], [hole(1, 0x1C, 0x1C, false), hole(1, 0x1C, 0x1D, false)]);
    put(1, &[0x1A, 0x1B, 0x1C]);
    // Nobody can tell where a timeline without history comes from.
    repo.store.delete(&layout::wal("demo", "15-1", "00000002.history")).unwrap();
    assert_eq!(missing(&repo, None), [former]);
}

#[test]
fn a_stanza_that_does_not_exist_is_a_status_and_no_stanza_is_an_empty_list() {
    let (empty, repo) = (Repo::new(1), Repo::new(1).stanza("other", &[PG15]));
    for repo in [&empty, &repo] {
        let info = show(&[repo], &demo());
        assert_eq!(codes(&info), [("demo".to_owned(), 1, vec![1])]);
        assert_eq!(info.to_json()[0]["status"]["message"], "missing stanza path");
        for key in ["archive", "backup", "db"] {
            assert_eq!(info.to_json()[0][key], json!([]));
        }
    }
    assert_eq!(show(&[&empty], &InfoOptions::default()).to_json(), json!([]));
    let nothing = RepoSource { key: 1, cipher: CipherName::None, access: RepoAccess::Missing };
    assert_eq!(gather(&[nothing], &InfoOptions::default()).unwrap().to_json(), json!([]));
}

#[test]
fn a_stanza_without_backups_says_so_and_shows_its_archive() {
    let repo = Repo::new(1).stanza("demo", &[PG15]);
    let info = show(&[&repo], &InfoOptions::default());
    assert_eq!(codes(&info), [("demo".to_owned(), 2, vec![2])]);
    let json = info.to_json();
    let archive = json!([{"database": {"id": 1, "repo-key": 1}, "id": "15-1", "max": null, "min": null}]);
    assert_eq!(json[0]["archive"], archive);
    assert_eq!(json[0]["repo"][0]["status"]["message"], "no valid backups");
}

#[test]
fn backups_without_history_are_missing_stanza_data() {
    let repo = Repo::new(1).stanza("demo", &[PG15]);
    repo.backup("demo", |_| ());
    repo.store.delete(&layout::stanza_history("demo", 1)).unwrap();
    assert_eq!(codes(&show(&[&repo], &demo())), [("demo".to_owned(), 3, vec![3])]);
}

#[test]
fn repositories_are_merged_and_their_differences_are_statuses() {
    let (one, two) = (Repo::new(1).stanza("demo", &[PG15]), Repo::new(3).stanza("demo", &[PG15]));
    one.backup("demo", |_| ());
    assert_eq!(codes(&show(&[&one, &two], &demo())), [("demo".to_owned(), 4, vec![0, 2])]);
    two.backup("demo", |c| {
        (c.label, c.stop) = ("20240101-000001F".into(), 1_704_067_205);
    });
    one.backup("demo", incr);
    let info = show(&[&one, &two], &demo());
    assert_eq!(codes(&info), [("demo".to_owned(), 0, vec![0, 0])]);
    let order: Vec<_> = info.stanzas[0].backups.iter().map(|b| (b.repo_key, b.commit.stop)).collect();
    assert_eq!(order, [(3, 1_704_067_205), (1, 1_704_067_210), (1, 1_704_153_605)]);
    let three = Repo::new(4).stanza("demo", &[PG15, PG16]);
    let info = show(&[&one, &three], &demo());
    assert_eq!(info.stanzas[0].status.code, Code::DatabaseMismatch);
    let databases: Vec<_> = info.stanzas[0].databases.iter().map(|d| (d.repo_key, d.id, d.version)).collect();
    assert_eq!(databases, [(1, 1, 15), (4, 1, 15), (4, 2, 16)]);
    // The former cluster left no WAL, so it has no archive.
    let archives: Vec<_> = info.stanzas[0].archives.iter().map(|a| (a.repo_key, a.id.as_str())).collect();
    assert_eq!(archives, [(1, "15-1"), (4, "16-2")]);
    three.wal("demo", "15-1", &["000000010000000000000001"]);
    assert_eq!(show(&[&three], &demo()).stanzas[0].archives.len(), 2);
}

#[test]
fn one_backup_is_shown_with_all_its_details() {
    let repo = Repo::new(1).stanza("demo", &[PG15]);
    repo.backup("demo", incr);
    repo.backup("demo", |c| {
        c.error_list = vec!["base/5/1249".into()];
        c.tablespaces = vec![TablespaceRef { oid: 16_400, name: "ts".into(), destination: "/ts".into() }];
    });
    let set = |set| show(&[&repo], &InfoOptions { set: Some(set), ..demo() }).to_json();
    let json = set("20240101-000000F");
    let backups = json[0]["backup"].as_array().unwrap();
    assert_eq!(backups.len(), 1);
    assert_eq!(backups[0]["database-ref"], json!([{"name": "postgres", "oid": 5}]));
    assert_eq!(backups[0]["link"], Value::Null);
    assert_eq!(backups[0]["tablespace"], json!([{"destination": "/ts", "name": "ts", "oid": 16_400}]));
    assert_eq!((&backups[0]["error"], &backups[0]["error-list"]), (&json!(true), &json!(["base/5/1249"])));
    let json = set("20240101-000000F_20240102-000000I");
    assert!(json[0]["backup"][0].get("error-list").is_none());
    let json = set("20200101-000000F");
    assert_eq!((&json[0]["status"]["code"], &json[0]["repo"][0]["status"]["code"]), (&json!(6), &json!(6)));
    assert_eq!((&json[0]["backup"], &json[0]["db"]), (&json!([]), &json!([])));
    let only = show(&[&repo], &InfoOptions { backup_type: Some(BackupType::Incr), ..demo() });
    assert_eq!(only.stanzas[0].backups.len(), 1);
    assert_eq!(only.stanzas[0].backups[0].commit.backup_type, BackupType::Incr);
    repo.backup("demo", |c| {
        c.label = "20240103-000000F".into();
        c.links = vec![LinkRef { name: "pg_wal".into(), destination: "/wal".into() }];
    });
    assert_eq!(set("20240103-000000F")[0]["backup"][0]["link"], json!([{"destination": "/wal", "name": "pg_wal"}]));
}

#[test]
fn a_repository_that_cannot_be_read_is_a_status_beside_the_others() {
    let good = Repo::new(1).stanza("demo", &[PG15]);
    good.backup("demo", |_| ());
    let broken = Error::refused(Kind::Service, "the store is away").during("cannot open repo2");
    let sources =
        |error| [good.source(), RepoSource { key: 2, cipher: CipherName::Sealed, access: RepoAccess::Failed(error) }];
    let info = gather(&sources(broken), &InfoOptions::default()).unwrap();
    assert_eq!(codes(&info), [("demo".to_owned(), 4, vec![0, 99])]);
    let json = info.to_json();
    assert_eq!(json[0]["repo"][1]["status"]["message"], "[ServiceError] cannot open repo2: the store is away");
    assert_eq!(json[0]["cipher"], "mixed");
    assert_eq!(json[0]["repo"][1]["cipher"], "aes-256-cbc");
    let failed = || RepoSource {
        key: 1,
        cipher: CipherName::None,
        access: RepoAccess::Failed(Error::refused(Kind::Crypto, "no key slot opens")),
    };
    let info = gather(&[failed()], &InfoOptions::default()).unwrap();
    assert_eq!(codes(&info), [("[invalid]".to_owned(), 99, vec![99])]);
    assert_eq!(info.to_json()[0]["status"]["message"], "other");
    assert_eq!(codes(&gather(&[failed()], &demo()).unwrap()), [("demo".to_owned(), 99, vec![99])]);
}

#[test]
fn a_damaged_record_is_an_error_that_hides_no_backup() {
    let repo = Repo::new(1).stanza("demo", &[PG15]);
    repo.backup("demo", |_| ());
    repo.backup("demo", incr);
    let session = repo.open().backups("demo").unwrap()[0].session;
    assert!(repo.store.tamper(&layout::backup("demo", session), |bytes| *bytes.last_mut().unwrap() ^= 1));
    let info = show(&[&repo], &demo());
    assert_eq!(codes(&info), [("demo".to_owned(), 99, vec![99])]);
    let message = &info.stanzas[0].repos[0].status.message;
    assert!(message.starts_with("[ChecksumError] ") && message.contains(&session.to_string()), "{message}");
    assert_eq!(info.stanzas[0].backups.len(), 1);
}

#[test]
fn a_store_of_something_else_is_an_error() {
    let repo = Repo::new(1);
    repo.store.put_if_absent("backups/demo/1", b"x").unwrap();
    assert_eq!(codes(&show(&[&repo], &demo())), [("demo".to_owned(), 99, vec![99])]);
}

#[test]
fn locks_of_this_host_are_shown_with_their_progress() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Repo::new(1).stanza("demo", &[PG15]), Repo::new(2).stanza("demo", &[PG15]));
    let acquire = |lock_type, repo_key| {
        Lock::acquire(dir.path(), &LockName { stanza: "demo".into(), lock_type, repo_key }, "run").unwrap()
    };
    let backups = [acquire(LockType::Backup, 1), acquire(LockType::Backup, 2)];
    let options = InfoOptions { lock_path: Some(dir.path()), detail: Detail::Progress, ..demo() };
    let show = || show(&[&one, &two], &options).to_json();
    let json = show();
    assert_eq!(json[0]["status"]["lock"], json!({"backup": {"held": true}, "restore": {"held": false}}));
    assert_eq!(json[0].as_object().unwrap().keys().collect::<Vec<_>>(), ["name", "status"]);
    assert_eq!(json[0]["status"]["code"], 0);
    backups[0].progress(Progress { done: 10, total: 100 }).unwrap();
    backups[1].progress(Progress { done: 30, total: 200 }).unwrap();
    let restore = acquire(LockType::Restore, 1);
    restore.progress(Progress { done: 0, total: 0 }).unwrap();
    let expected = concat!(
        r#"{"backup":{"held":true,"repo":[{"key":1,"size":100,"size-cplt":10},{"key":2,"size":200,"size-cplt":30}],"#,
        r#""size":300,"size-cplt":40},"restore":{"held":true}}"#,
    );
    assert_eq!(show()[0]["status"]["lock"].to_string(), expected);
}
