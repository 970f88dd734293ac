use super::*;
use crate::store::{Fault, FaultStore, RecordingStore, Verb};

fn created(report: Result<PushReport>) -> Vec<bool> {
    match report.unwrap() {
        PushReport::Archived(pushed) => pushed.iter().map(|p| p.created).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_version_takes_its_own_wal_and_no_other() {
    for version in Version::ALL {
        let (_, repositories) = one(version);
        let cluster = Cluster::new(version, SYSTEM);
        let name = cluster.segment(3, 1);
        assert_eq!(created(cluster.push(&repositories, &name)), [true]);
        let id = format!("{version}-1");
        assert!(archived(&repositories[0], &id, &name).unwrap() == cluster.content(segment(3), 1));
        let mut number = 10;
        for other in Version::ALL {
            for system in [SYSTEM, SYSTEM + 1] {
                number += 2;
                let foreign = Cluster::new(other, system);
                let same = other == version && system == SYSTEM;
                // The server's own directory is another cluster's.
                let name = foreign.segment(number, 1);
                let result = foreign.push(&repositories, &name);
                assert_eq!(result.is_ok(), same, "{version} and {other} of {system}");
                if let Err(e) = result {
                    assert_eq!(e.kind(), Kind::RepoInvalid);
                    assert!(e.to_string().contains("\nrepo1: [ArchiveMismatchError] PostgreSQL version"), "{e}");
                    assert!(archived(&repositories[0], &id, &name).is_none());
                }
                // Only the segment is another cluster's.
                let name = foreign.segment(number + 1, 1);
                cluster.file(&name, &foreign.content(segment(number + 1), 1));
                let result = cluster.push(&repositories, &name);
                assert!(same || kind(result) == Kind::ArchiveMismatch, "{version} and {other} of {system}");
                // As for somebody who does not say where the data directory is.
                let mut options = foreign.push_options(&name);
                options.pg_path = None;
                assert!(same || kind(push(&repositories, &options)) == Kind::ArchiveMismatch);
                assert_eq!(archived(&repositories[0], &id, &name).is_some(), same);
            }
        }
        std::fs::remove_dir_all(cluster.path()).unwrap();
    }
}

#[test]
fn wal_goes_to_the_newest_entry_of_the_history() {
    let old = (Version::V15, SYSTEM);
    let new = (Version::V16, SYSTEM + 1);
    let repositories = [create(1, MemoryStore::new(), &[old, new]).into()];
    let upgraded = Cluster::new(Version::V16, SYSTEM + 1);
    let name = upgraded.segment(3, 1);
    upgraded.push(&repositories, &name).unwrap();
    assert!(archived(&repositories[0], "16-2", &name).is_some());
    let former = Cluster::new(Version::V15, SYSTEM);
    assert_eq!(kind(former.push(&repositories, &former.segment(3, 1))), Kind::RepoInvalid);
}

#[test]
fn the_same_again_is_success_and_anything_else_is_refused() {
    let (store, repositories) = one(Version::V17);
    let cluster = Cluster::new(Version::V17, SYSTEM);
    let name = cluster.segment(3, 1);
    let others = ["00000002.history", "000000010000000000000003.00000028.backup", "000000010000000000000004.partial"];
    cluster.file(others[0], b"1\t0/3000000\tno recovery target specified\n");
    cluster.file(others[1], b"START WAL LOCATION: 0/300028\n");
    cluster.file(others[2], &cluster.content(segment(4), 9));
    for name in [name.as_str()].iter().chain(&others) {
        assert_eq!(created(cluster.push(&repositories, name)), [true], "{name}");
        assert_eq!(created(cluster.push(&repositories, name)), [false], "{name}");
        let before = store.snapshot();
        let mut content = std::fs::read(cluster.wal(name)).unwrap();
        *content.last_mut().unwrap() ^= 1;
        cluster.file(name, &content);
        let error = cluster.push(&repositories, name).unwrap_err();
        assert_eq!(error.kind(), Kind::ArchiveDuplicate, "{name}: {error}");
        assert!(error.to_string().contains("repo1"), "{error}");
        assert!(store.snapshot() == before);
    }
    // A complete segment and a partial one of the same number are two files.
    let complete = cluster.segment(4, 1);
    assert_eq!(created(cluster.push(&repositories, &complete)), [true]);
}

#[test]
fn what_is_no_wal_is_refused_unless_asked_not_to_look() {
    let (_, repositories) = one(Version::V15);
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let name = cluster.segment(3, 1);
    let good = std::fs::read(cluster.wal(&name)).unwrap();
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let cases = [
        ("zeros", vec![0; 1 << 20], Kind::VersionNotSupported),
        ("magic", changed(0, 0x77), Kind::VersionNotSupported),
        ("flags", changed(2, 0), Kind::Format),
        ("no page size", changed(37, 0x21), Kind::Format),
        ("another segment", cluster.content(segment(4), 1), Kind::FileInvalid),
        ("a later timeline", cluster.content(WalSegment { timeline: TimelineId(2), number: 3 }, 1), Kind::FileInvalid),
        ("an address between segments", changed(34, 0x20), Kind::Format),
        ("short", good[..good.len() - 8192].to_vec(), Kind::FileInvalid),
        ("half", good[..good.len() / 2].to_vec(), Kind::FileInvalid),
        ("long", [&good[..], b"x"].concat(), Kind::FileInvalid),
        ("empty", Vec::new(), Kind::FileInvalid),
    ];
    for (what, content, expected) in cases {
        cluster.file(&name, &content);
        let error = cluster.push(&repositories, &name).unwrap_err();
        assert_eq!(error.kind(), expected, "{what}: {error}");
        assert!(archived(&repositories[0], "15-1", &name).is_none());
        let unchecked = PushOptions { header_check: false, ..cluster.push_options(&name) };
        let size_is_wrong = content.len() != good.len();
        let without = push(&[create(1, MemoryStore::new(), &[(Version::V15, SYSTEM)]).into()], &unchecked);
        assert_eq!(without.is_err(), size_is_wrong, "{what}");
    }
    let other_size = cluster.segment(4, 1);
    let mut content = cluster.content(segment(4), 1);
    content[34] = 0x20;
    cluster.file(&other_size, &content);
    assert_eq!(kind(cluster.push(&repositories, &other_size)), Kind::FileInvalid);
    // The first segment of a new timeline begins with the old one's pages.
    let branch = "000000020000000000000003";
    cluster.file(branch, &good);
    cluster.push(&repositories, branch).unwrap();
}

#[test]
fn a_source_that_is_not_there_or_not_a_file_is_named() {
    let (_, repositories) = one(Version::V15);
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let error = cluster.push(&repositories, "000000010000000000000009").unwrap_err();
    assert_eq!(error.kind(), Kind::FileMissing);
    assert!(chain(&error).contains("000000010000000000000009"), "{error}");
    std::fs::create_dir(cluster.wal("00000003.history")).unwrap();
    assert_eq!(kind(cluster.push(&repositories, "00000003.history")), Kind::FileInvalid);
    cluster.file("00000004.history", b"");
    assert_eq!(kind(cluster.push(&repositories, "00000004.history")), Kind::FileInvalid);
    cluster.file("00000005.history", b"x");
    assert_eq!(kind(cluster.push(&repositories, "00000005.history")), Kind::FileInvalid);
    let pipe = cluster.wal("000000010000000000000008");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert_eq!(kind(cluster.push(&repositories, "000000010000000000000008")), Kind::FileInvalid);
    for name in ["x", "00000001000000000000000", "00000001000000000000000g", "archive_status", "RECOVERYXLOG", ".."] {
        assert_eq!(kind(cluster.push(&repositories, name)), Kind::ParamInvalid, "{name}");
    }
    std::fs::remove_file(cluster.path().join("global/pg_control")).unwrap();
    let name = cluster.segment(3, 1);
    assert_eq!(kind(cluster.push(&repositories, &name)), Kind::FileMissing);
}

#[test]
fn a_stop_file_keeps_everything_out() {
    let (store, repositories) = one(Version::V15);
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let name = cluster.segment(3, 1);
    let before = store.snapshot();
    for stanza in [Some("main"), None] {
        let lock_path = cluster.push_options(&name).lock_path;
        crate::lock::stop(&lock_path, stanza).unwrap();
        assert_eq!(kind(cluster.push(&repositories, &name)), Kind::Stopped);
        assert!(store.snapshot() == before);
        crate::lock::start(&lock_path, stanza).unwrap();
    }
    crate::lock::stop(&cluster.push_options(&name).lock_path, Some("other")).unwrap();
    cluster.push(&repositories, &name).unwrap();
}

#[test]
fn every_repository_is_tried_and_every_failure_named() {
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let name = cluster.segment(3, 1);
    let own = [(Version::V15, SYSTEM)];
    let broken = || Arc::new(FaultStore::new(MemoryStore::new()));
    let (full, gone) = (broken(), broken());
    let refused = |key| Configured {
        key,
        repository: Err(Error::refused(Kind::Crypto, "no key slot opens").during(format!("cannot open repo{key}"))),
    };
    let repositories = vec![
        refused(1),
        create(2, Arc::clone(&full), &own).into(),
        create(3, MemoryStore::new(), &own).into(),
        create(4, Arc::clone(&gone), &own).into(),
        create(5, MemoryStore::new(), &[(Version::V14, SYSTEM)]).into(),
        create(6, MemoryStore::new(), &[]).into(),
        create(7, MemoryStore::new(), &own).into(),
    ];
    full.fail(Verb::Put, 1, Fault::NoSpace);
    gone.stop_after(0);
    let error = cluster.push(&repositories, &name).unwrap_err();
    assert_eq!(error.kind(), Kind::Command);
    let text = error.to_string();
    let lines: Vec<_> = text.lines().skip(1).map(|l| l.split(']').next().unwrap()).collect();
    let expected = [
        "repo1: [CryptoError",
        "repo2: [FileWriteError",
        "repo4: [PathOpenError",
        "repo5: [ArchiveMismatchError",
        "repo6: [FileMissingError",
    ];
    assert_eq!(lines, expected, "{text}");
    assert!(text.contains("cannot open repo1: no key slot opens"), "{text}");
    assert!(archived(&repositories[2], "15-1", &name).is_some() && archived(&repositories[6], "15-1", &name).is_some());
    // What was refused for other content and failed for another reason besides is a failure of the command.
    cluster.segment(3, 2);
    assert_eq!(kind(cluster.push(&repositories, &name)), Kind::Command);
    assert_eq!(kind(cluster.push(&repositories[2..3], &name)), Kind::ArchiveDuplicate);
    // What keeps all of them shut is a wrong key, and that is what is said.
    assert_eq!(kind(cluster.push(&[refused(1)], &name)), Kind::Crypto);
    assert_eq!(kind(cluster.push(&[refused(1), refused(2)], &name)), Kind::Crypto);
    assert_eq!(kind(cluster.push(&repositories[4..6], &name)), Kind::RepoInvalid);
    assert_eq!(kind(cluster.push(&[], &name)), Kind::RepoInvalid);
}

#[test]
fn a_push_lists_only_the_history_and_puts_once() {
    let store = Arc::new(RecordingStore::new(MemoryStore::new()));
    create(1, Arc::clone(&store), &[(Version::V15, SYSTEM)]);
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let name = cluster.segment(3, 1);
    store.clear();
    let repositories = [open(1, Arc::clone(&store)).into()];
    let opening = store.calls().len();
    assert_eq!(store.keys(Verb::List), [layout::KEY_SLOTS, layout::KEY_EPOCHS]);
    assert!(opening <= 5, "{:?}", store.calls());
    store.clear();
    cluster.push(&repositories, &name).unwrap();
    assert_eq!(store.keys(Verb::List), ["stanzas/main/history/"]);
    assert_eq!(store.keys(Verb::Get), ["stanzas/main/history/0000000001"]);
    assert_eq!(store.keys(Verb::Put), [layout::wal("main", "15-1", &name)]);
    assert_eq!(store.count(Verb::Delete), 0);
}

#[test]
fn two_hosts_that_push_one_name_agree_on_one_content() {
    let (_, repositories) = one(Version::V15);
    let clusters: Vec<_> = (0..4).map(|_| Cluster::new(Version::V15, SYSTEM)).collect();
    let name = segment(3).name(SIZE);
    let results: Vec<_> = std::thread::scope(|scope| {
        let (repositories, name) = (&repositories, &name);
        let running: Vec<_> = clusters
            .iter()
            .enumerate()
            .map(|(i, cluster)| {
                scope.spawn(move || {
                    cluster.segment(3, i as u8 / 2);
                    cluster.push(repositories, name)
                })
            })
            .collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    });
    let stored = archived(&repositories[0], "15-1", &name).unwrap();
    for (i, result) in results.into_iter().enumerate() {
        if stored == clusters[i].content(segment(3), i as u8 / 2) {
            result.unwrap();
        } else {
            assert_eq!(kind(result), Kind::ArchiveDuplicate);
        }
    }
}
