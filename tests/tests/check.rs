//! `check` and `stanza-create` against real servers: what they find, and what they say of each thing that is wrong.
//!
//! The server archives into a directory; a thread carries what arrives there into the repositories, as `archive-push` would.

use pgkeep_engine::check::{ArchiveCheck, CheckOptions, CheckReport, ServerRole, run};
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::crypto::Unlock;
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::pg::ClusterIdentity;
use pgkeep_engine::pg::server::{ConnectOptions, Connection};
use pgkeep_engine::repository::wal::WalFile;
use pgkeep_engine::repository::{OpenOptions, Repository};
use pgkeep_engine::stanza::{Change, RepoTarget, create};
use pgkeep_engine::store::{LocalStore, MemoryStore, Store};
use pgkeep_engine::{Error, Kind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::{Cluster, majors, spread};

fn open_options(key: u32) -> OpenOptions {
    OpenOptions { key, unlock: Unlock::None, cache: None }
}

fn connect(cluster: &Cluster) -> Connection {
    let options = ConnectOptions {
        socket_path: Some(cluster.socket_dir().to_path_buf()),
        port: cluster.port(),
        user: Some("postgres".to_owned()),
        ..ConnectOptions::default()
    };
    Connection::open(&options, "check", &Cancel::default()).expect("connect")
}

fn archiving(major: u32) -> (Cluster, std::path::PathBuf) {
    let mut cluster = Cluster::builder(major).setting("archive_mode", "on").init();
    let dir = cluster.side_dir("archived");
    cluster.configure("archive_command", &format!("cp %p {0}/tmp && mv {0}/tmp {0}/%f # pgkeep", dir.display()));
    cluster.start();
    (cluster, dir)
}

fn make(stores: &[Arc<dyn Store>], identity: &ClusterIdentity) -> Vec<Arc<Repository>> {
    let target = |(n, store): (usize, &Arc<dyn Store>)| RepoTarget {
        store: Arc::clone(store),
        options: open_options(n as u32 + 1),
    };
    let outcomes = create(stores.iter().enumerate().map(target).collect(), "demo", identity, &SystemClock).unwrap();
    assert!(outcomes.iter().all(|o| o.result.as_ref().is_ok_and(|r| r.change == Change::Created)));
    let open = |(n, store): (usize, &Arc<dyn Store>)| Repository::open(Arc::clone(store), open_options(n as u32 + 1));
    stores.iter().enumerate().map(open).map(|r| Arc::new(r.unwrap())).collect()
}

fn options<'a>(cluster: &'a Cluster, pgdata: &'a Path) -> CheckOptions<'a> {
    CheckOptions {
        stanza: "demo",
        pgdata,
        port: cluster.port(),
        program_names: &["pgkeep"],
        archive_check: ArchiveCheck::Strict,
        archive_timeout: Duration::from_secs(60),
    }
}

/// Runs a check while `carry` says to which repositories archived files go.
fn check(
    cluster: &Cluster,
    dir: &Path,
    repositories: &[Arc<Repository>],
    carry: &[Arc<Repository>],
    options: &CheckOptions<'_>,
) -> Result<CheckReport, Error> {
    let done = Cancel::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut carried = std::collections::BTreeSet::new();
            while !done.is_cancelled() {
                for entry in std::fs::read_dir(dir).unwrap() {
                    let entry = entry.unwrap();
                    let name = entry.file_name().into_string().unwrap();
                    if name.len() < 24 || !carried.insert(name.clone()) {
                        continue;
                    }
                    let content = std::fs::read(entry.path()).unwrap();
                    for repository in carry {
                        let id = repository.stanza_history("demo").unwrap()[0].archive_id();
                        repository.wal_put("demo", &id, &name, &WalFile::encode(&content, 1).unwrap()).unwrap();
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let report = run(&mut connect(cluster), repositories, options, &SystemClock, &Cancel::default());
        done.cancel();
        let mut report = report?;
        // The first thing that is wrong.
        if report.failures.is_empty() { Ok(report) } else { Err(report.failures.remove(0).1) }
    })
}

fn kind(result: Result<CheckReport, Error>) -> (Kind, String) {
    let error = result.expect_err("the check must fail");
    (error.kind(), error.to_string())
}

#[test]
fn a_segment_reaches_every_repository_or_the_check_names_what_is_missing() {
    for major in spread() {
        let (cluster, dir) = archiving(major);
        let data = cluster.data_dir().to_path_buf();
        let repo_dir = cluster.side_dir("repo");
        let stores: [Arc<dyn Store>; 2] =
            [Arc::new(LocalStore::open(&repo_dir).unwrap()), Arc::new(MemoryStore::new())];
        let (identity, _) = ClusterIdentity::of_server(&mut connect(&cluster), &data, cluster.port()).unwrap();
        assert_eq!(identity, ClusterIdentity::of_directory(&data).unwrap());
        let repositories = make(&stores, &identity);

        let report = check(&cluster, &dir, &repositories, &repositories, &options(&cluster, &data)).unwrap();
        assert_eq!(report.role, ServerRole::Primary);
        assert_eq!(report.repos.iter().map(|r| r.key).collect::<Vec<_>>(), [1, 2]);
        let archived = report.repos[0].archived.as_ref().unwrap();
        let object =
            format!("{}/wal/demo/{major}-1/{}/{}", repo_dir.display(), &archived.segment[..16], archived.segment);
        assert_eq!(archived.place, object);
        assert!(Path::new(&archived.place).is_file());

        // An idle server ends a segment of its own for every check.
        let again = check(&cluster, &dir, &repositories, &repositories, &options(&cluster, &data)).unwrap();
        assert!(again.repos[0].archived.as_ref().unwrap().segment > archived.segment);

        let short = CheckOptions { archive_timeout: Duration::from_millis(200), ..options(&cluster, &data) };
        let (found, text) = kind(check(&cluster, &dir, &repositories, &[], &short));
        assert_eq!(found, Kind::ArchiveTimeout);
        assert!(text.contains("was not archived to repo1 before the 200 ms timeout"), "{text}");
        let off = CheckOptions { archive_check: ArchiveCheck::Off, ..options(&cluster, &data) };
        let report = check(&cluster, &dir, &repositories, &[], &off).unwrap();
        assert!(report.repos.iter().all(|r| r.archived.is_none()));
    }
}

#[test]
fn another_cluster_another_directory_and_wrong_settings_are_told_apart() {
    let major = majors()[0];
    let (cluster, dir) = archiving(major);
    let data = cluster.data_dir().to_path_buf();
    let identity = ClusterIdentity::of_directory(&data).unwrap();
    let other = Cluster::builder(major).init();
    let stores: [Arc<dyn Store>; 1] = [Arc::new(MemoryStore::new())];
    let foreign = make(&stores, &ClusterIdentity::of_directory(other.data_dir()).unwrap());

    let (found, text) = kind(check(&cluster, &dir, &foreign, &foreign, &options(&cluster, &data)));
    assert_eq!(found, Kind::FileInvalid);
    assert!(text.contains(&identity.system_identifier.to_string()), "{text}");
    let unknown = CheckOptions { stanza: "nobody", ..options(&cluster, &data) };
    assert_eq!(kind(check(&cluster, &dir, &foreign, &foreign, &unknown)).0, Kind::FileMissing);
    let elsewhere = options(&cluster, other.data_dir());
    let (found, text) = kind(check(&cluster, &dir, &foreign, &foreign, &elsewhere));
    assert_eq!(found, Kind::DbMismatch);
    assert!(text.contains(&other.data_dir().display().to_string()), "{text}");
    let port = CheckOptions { port: cluster.port() ^ 1, ..options(&cluster, &data) };
    assert_eq!(kind(check(&cluster, &dir, &foreign, &foreign, &port)).0, Kind::DbMismatch);
    let renamed = CheckOptions { program_names: &["no-such-program"], ..options(&cluster, &data) };
    assert_eq!(kind(check(&cluster, &dir, &foreign, &foreign, &renamed)).0, Kind::ArchiveCommandInvalid);
    // The same directory under another name is the same cluster.
    let link = cluster.side_dir("names").join("link");
    std::os::unix::fs::symlink(&data, &link).unwrap();
    ClusterIdentity::of_server(&mut connect(&cluster), &link, cluster.port()).unwrap();
}

#[test]
fn a_standby_is_checked_without_a_wal_switch() {
    let major = majors()[0];
    let (primary, dir) = archiving(major);
    let copy = primary.side_dir("standby-root").join("data");
    let status = support::account::command(primary.binaries().own("pg_basebackup"))
        .args(["-h", primary.socket_dir().to_str().unwrap(), "-p", &primary.port().to_string(), "-U", "postgres"])
        .args(["-R", "-c", "fast", "-D"])
        .arg(&copy)
        .status()
        .unwrap();
    assert!(status.success());
    let mut standby = Cluster::adopt(major, &copy);
    standby.start();
    let stores: [Arc<dyn Store>; 1] = [Arc::new(MemoryStore::new())];
    let repositories = make(&stores, &ClusterIdentity::of_directory(&copy).unwrap());
    let report = check(&standby, &dir, &repositories, &[], &options(&standby, &copy)).unwrap();
    assert_eq!(report.role, ServerRole::Standby);
    assert_eq!(report.repos[0].archived, None);
}
