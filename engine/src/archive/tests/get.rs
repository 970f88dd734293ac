use super::*;
use crate::store::{Damage, Fault, FaultStore, LocalStore, Verb};
use std::os::unix::fs::PermissionsExt;

const OWN: [(Version, u64); 1] = [(Version::V15, SYSTEM)];

fn found(result: Result<(GetOutcome, Vec<u8>)>) -> (u32, String, Vec<u8>) {
    match result.unwrap() {
        (GetOutcome::Found { key, archive_id, size }, content) => {
            assert_eq!(size, content.len() as u64);
            (key, archive_id, content)
        }
        other => panic!("{:?}", other.0),
    }
}

#[test]
fn what_was_pushed_comes_back_for_every_version() {
    for version in Version::ALL {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::create(dir.path()).unwrap();
        let repositories = [create(1, store, &[(version, SYSTEM)]).into()];
        let cluster = Cluster::new(version, SYSTEM);
        let name = cluster.segment(3, 1);
        cluster.file("00000002.history", b"1\t0/3000000\tx\n");
        assert_eq!(cluster.get(&repositories, &name).unwrap().0, GetOutcome::NotFound);
        assert_eq!(cluster.get(&repositories, "00000002.history").unwrap().0, GetOutcome::NotFound);
        for name in [name.as_str(), "00000002.history"] {
            cluster.push(&repositories, name).unwrap();
            let content = std::fs::read(cluster.wal(name)).unwrap();
            let id = format!("{version}-1");
            assert!(found(cluster.get(&repositories, name)) == (1, id, content));
        }
        // A stopped stanza can be read from.
        crate::lock::stop(&cluster.push_options(&name).lock_path, None).unwrap();
        found(cluster.get(&repositories, &name));
    }
}

#[test]
fn the_file_has_the_servers_mode_and_replaces_what_is_there() {
    let (_, repositories) = one(Version::V15);
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let name = cluster.segment(3, 1);
    cluster.push(&repositories, &name).unwrap();
    let options = |destination: PathBuf| GetOptions {
        stanza: "main".into(),
        name: name.clone(),
        destination,
        pg_path: cluster.path().to_path_buf(),
        sparse: false,
    };
    let destination = cluster.path().join("here");
    std::fs::write(&destination, b"old").unwrap();
    get(&repositories, &options(destination.clone())).unwrap();
    assert_eq!(std::fs::metadata(&destination).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&destination).unwrap().len(), 1 << 20);
    let nowhere = cluster.path().join("no/such/directory");
    assert_eq!(kind(get(&repositories, &options(nowhere))), Kind::FileWrite);
    // A directory in the way: nothing is left beside it.
    let blocked = cluster.path().join("blocked");
    std::fs::create_dir(&blocked).unwrap();
    assert_eq!(kind(get(&repositories, &options(blocked))), Kind::FileMove);
    let left = std::fs::read_dir(cluster.path()).unwrap();
    assert!(left.map(|e| e.unwrap().file_name()).all(|n| !n.to_string_lossy().contains("tmp")));
}

#[test]
fn zeros_at_the_end_can_be_left_out_and_read_as_zeros() {
    let repository = create(1, MemoryStore::new(), &OWN);
    let repositories = [Arc::clone(&repository).into()];
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let mut content = vec![0; 1 << 20];
    for (number, used) in [(1, 0), (2, 1), (3, 300_000), (4, 1 << 20)] {
        content[..used].fill(7);
        let name = segment(number).name(SIZE);
        let file = crate::repository::wal::WalFile::encode(&content, 1).unwrap();
        repository.wal_put("main", "15-1", &name, &file).unwrap();
        let blocks = [false, true].map(|sparse| {
            let destination = cluster.path().join("here");
            let options = GetOptions {
                stanza: "main".into(),
                name: name.clone(),
                destination: destination.clone(),
                pg_path: cluster.path().to_path_buf(),
                sparse,
            };
            get(&repositories, &options).unwrap();
            assert!(std::fs::read(&destination).unwrap() == content);
            std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&destination).unwrap()) * 512
        });
        assert!(blocks[0] >= 1 << 20, "{blocks:?}");
        assert!(blocks[1] <= used as u64 + 8192, "{blocks:?}");
    }
}

#[test]
fn every_entry_of_the_cluster_is_looked_in_and_no_other() {
    let other = (Version::V16, SYSTEM + 1);
    let repository = create(1, MemoryStore::new(), &[OWN[0], other, OWN[0], other]);
    let put = |id: &str, name: &str, content: &[u8]| {
        let file = crate::repository::wal::WalFile::encode(content, 1).unwrap();
        repository.wal_put("main", id, name, &file).unwrap();
    };
    let names: Vec<_> = (1..6).map(|n| segment(n).name(SIZE)).collect();
    put("15-1", &names[0], b"old");
    put("15-3", &names[1], b"new");
    put("15-1", &names[2], b"both, old");
    put("15-3", &names[2], b"both, new");
    put("16-2", &names[3], b"foreign");
    let repositories = [Arc::clone(&repository).into()];
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let got = |name: &str| found(cluster.get(&repositories, name)).2;
    assert_eq!(got(&names[0]), b"old");
    assert_eq!(got(&names[1]), b"new");
    assert_eq!(got(&names[2]), b"both, new");
    assert_eq!(cluster.get(&repositories, &names[3]).unwrap().0, GetOutcome::NotFound);
}

#[test]
fn absence_is_said_only_when_it_is_certain() {
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let name = cluster.segment(3, 1);
    let faulty = Arc::new(FaultStore::new(MemoryStore::new()));
    let good = || -> Configured { create(1, MemoryStore::new(), &OWN).into() };
    let closed = || Configured { key: 2, repository: Err(Error::refused(Kind::Service, "no route to host")) };
    let unknown = || -> Configured { create(2, MemoryStore::new(), &[]).into() };
    let foreign = || -> Configured { create(2, MemoryStore::new(), &[(Version::V15, 1)]).into() };
    let unreadable = || -> Configured { open(2, Arc::clone(&faulty)).into() };
    create(2, Arc::clone(&faulty), &OWN);

    assert_eq!(cluster.get(&[good(), good()], &name).unwrap().0, GetOutcome::NotFound);
    for (bad, expected) in
        [(closed(), Kind::Service), (unknown(), Kind::FileMissing), (foreign(), Kind::ArchiveMismatch)]
    {
        let error = cluster.get(&[good(), bad], &name).unwrap_err();
        assert_eq!(error.kind(), expected, "{error}");
        assert!(error.to_string().contains("repo2: ["), "{error}");
    }
    for (bad, expected) in [(closed(), "Service"), (unknown(), "FileMissing"), (foreign(), "ArchiveMismatch")] {
        let error = cluster.get(&[bad], &name).unwrap_err();
        assert_eq!(error.kind(), Kind::RepoInvalid);
        assert!(error.to_string().contains(&format!("repo2: [{expected}Error]")), "{error}");
    }
    assert_eq!(kind(cluster.get(&[], &name)), Kind::RepoInvalid);
    let bad = [unreadable()];
    for (verb, call, fault) in [(Verb::List, 1, Fault::Transient), (Verb::Get, 1, Fault::Permanent)] {
        faulty.fail(verb, call, fault);
        assert_eq!(kind(cluster.get(&bad, &name)), Kind::RepoInvalid);
    }
    faulty.fail(Verb::Get, 2, Fault::Transient);
    assert_eq!(kind(cluster.get(&bad, &name)), Kind::FileRead);
    // One good repository is enough, wherever it stands.
    let holder = good();
    cluster.push(std::slice::from_ref(&holder), &name).unwrap();
    let all = [closed(), unknown(), foreign(), holder];
    assert_eq!(found(cluster.get(&all, &name)).0, 1);
}

#[test]
fn a_damaged_copy_is_passed_over_and_never_handed_out() {
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let name = cluster.segment(3, 1);
    let key = layout::wal("main", "15-1", &name);
    let stores: Vec<_> = (0..2).map(|_| Arc::new(FaultStore::new(MemoryStore::new()))).collect();
    let repositories: Vec<Configured> =
        stores.iter().enumerate().map(|(i, s)| create(i as u32 + 1, Arc::clone(s), &OWN).into()).collect();
    cluster.push(&repositories, &name).unwrap();
    for damage in [Damage::Flip(3), Damage::Flip(60), Damage::Flip(140), Damage::Flip(400), Damage::Truncate(300)] {
        stores[0].damage(&key, damage);
        let (from, _, content) = found(cluster.get(&repositories, &name));
        assert!(from == 2 && content == cluster.content(segment(3), 1), "{damage:?}");
        stores[1].damage(&key, damage);
        let error = cluster.get(&repositories, &name).unwrap_err();
        assert!(matches!(error.kind(), Kind::Checksum | Kind::Format), "{error}");
        assert!(error.to_string().contains("repo1") && error.to_string().contains("repo2"), "{error}");
        stores.iter().for_each(|s| s.heal());
    }
    stores[1].stop_after(0);
    assert_eq!(found(cluster.get(&repositories, &name)).0, 1);
    // A damaged copy here, and none there, is no absence.
    let empty: Configured = create(3, MemoryStore::new(), &OWN).into();
    stores[0].damage(&key, Damage::Flip(200));
    let two = [create(2, MemoryStore::new(), &OWN).into(), empty];
    assert_eq!(cluster.get(&two, &name).unwrap().0, GetOutcome::NotFound);
    let mixed: Vec<_> = repositories.into_iter().take(1).chain(two).collect();
    assert_eq!(kind(cluster.get(&mixed, &name)), Kind::Checksum);
}

#[test]
fn names_and_targets_are_checked_first() {
    let (_, repositories) = one(Version::V15);
    let cluster = Cluster::new(Version::V15, SYSTEM);
    for name in ["", "x", "../../etc/passwd", "00000001000000000000000z", "000000010000000000000003.tmp", "2.history"] {
        assert_eq!(kind(cluster.get(&repositories, name)), Kind::ParamInvalid, "{name}");
    }
    let name = segment(3).name(SIZE);
    let control = cluster.path().join("global/pg_control");
    std::fs::write(&control, vec![0; 8192]).unwrap();
    assert_eq!(kind(cluster.get(&repositories, &name)), Kind::FeatureNotSupported);
    std::fs::write(&control, b"short").unwrap();
    assert_eq!(kind(cluster.get(&repositories, &name)), Kind::Format);
    std::fs::remove_file(&control).unwrap();
    assert_eq!(kind(cluster.get(&repositories, &name)), Kind::FileMissing);
}

#[test]
fn nothing_is_certainly_absent_from_an_archive_that_is_not_mounted() {
    let (store, repositories) = one(Version::V15);
    let cluster = Cluster::new(Version::V15, SYSTEM);
    let name = cluster.segment(3, 1);
    assert_eq!(cluster.get(&repositories, &name).unwrap().0, GetOutcome::NotFound, "a new stanza has no WAL");
    // Something that stands for a backup: with one that cannot be read nothing is certain.
    let session = pgkeep_formats::id::SessionId([7; 16]);
    store.put_if_absent(&layout::backup("main", session), b"a record").unwrap();
    assert_eq!(kind(cluster.get(&repositories, &name)), Kind::PathMissing);
    cluster.push(&repositories, &name).unwrap();
    let other = cluster.segment(4, 1);
    assert_eq!(cluster.get(&repositories, &other).unwrap().0, GetOutcome::NotFound);
}
