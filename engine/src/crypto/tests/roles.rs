//! What each role can and cannot do, and rotation.

use super::*;
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::config::RepositoryConfig;
use pgkeep_formats::repo::envelope::{ChunkHead, Domain, Head, ObjectKind};
use pgkeep_formats::repo::keyrecord::{EpochRecord, WrapRecord};
use pgkeep_formats::repo::keyslot::Role;

const KEY: &str = "wal/main/1/0000000100000000/000000010000000000000001";
const MAIN: Scope<'_> = Scope::Stanza("main");

fn wal(keyring: &Keyring) -> Vec<u8> {
    keyring.seal_embedded(ObjectKind::Wal, Domain::Data, KEY, b"", b"segment").unwrap()
}

fn open_wal(keyring: &Keyring, bytes: &[u8], rewrapped: Option<&[u8]>) -> Result<Opened, CryptoError> {
    keyring.open_embedded(KEY, bytes, &[ObjectKind::Wal], Domain::Data, rewrapped)
}

fn open_refs(keyring: &Keyring, bytes: &[u8]) -> Result<Opened, CryptoError> {
    keyring.open_embedded("refs/1", bytes, &[ObjectKind::Refs], Domain::Gc, None)
}

#[test]
fn writers_cannot_open_data() {
    let all = keyring();
    let writer = Arc::new(all.restrict(Role::Writer, Some(&["main"])).unwrap());
    let sealer = SessionSealer::new(Arc::clone(&writer)).unwrap();
    let head = ChunkHead { kind: 1, encoding: 0, id: ChunkId([0; 32]), plain_len: 4 };
    let mut blob = Vec::new();
    sealer.seal_chunk(&ChunkDomain::Data, &head, b"page", &mut blob).unwrap();
    let wrapped = sealer.wrapped_data_key(1).unwrap();
    // Not even their own, once the sealer is gone; the same for WAL and refs.
    assert!(lacks(&writer.data_opener(&sealer.session(), &wrapped)));
    assert!(lacks(&open_wal(&writer, &wal(&writer), None)));
    let refs = writer.seal_embedded(ObjectKind::Refs, Domain::Gc, "refs/1", b"", b"bitmaps").unwrap();
    assert!(lacks(&open_refs(&writer, &refs)));
    assert!(lacks(&writer.epoch_record(1, 0)));
    // What they need they have, with the same result as everyone.
    assert_eq!(writer.chunk_id(1, b"page").unwrap(), all.chunk_id(1, b"page").unwrap());
    assert_eq!(writer.gear_table().unwrap(), all.gear_table().unwrap());
    // Others read what they wrote.
    let reader = all.restrict(Role::Reader, Some(&["main"])).unwrap();
    let opener = reader.data_opener(&sealer.session(), &wrapped).unwrap();
    assert_eq!(opener.open_chunk(&head, &mut blob).unwrap(), b"page");
    assert_eq!(open_wal(&reader, &wal(&writer), None).unwrap().plaintext, b"segment");
    let gc = all.restrict(Role::Gc, Some(&[])).unwrap();
    assert_eq!(open_refs(&gc, &refs).unwrap().plaintext, b"bitmaps");
}

#[test]
fn scopes_are_kept_apart() {
    let all = keyring();
    let sealer = SessionSealer::new(Arc::clone(&all)).unwrap();
    let main = all.restrict(Role::Reader, Some(&["main"])).unwrap();
    let seal = |scope: &Scope<'_>| sealer.seal_object(ObjectKind::Commit, scope, "k", b"", b"x").unwrap();
    let open = |keyring: &Keyring, scope: &Scope<'_>| {
        keyring.open_object("k", &seal(scope), &[ObjectKind::Commit], scope).map(|_| ())
    };
    for scope in [Scope::Repo, Scope::Index, MAIN] {
        assert!(open(&main, &scope).is_ok() && main.has_scope(&scope));
    }
    assert!(lacks(&open(&main, &Scope::Stanza("other"))) && !main.has_scope(&Scope::Stanza("other")));
    // No stanza can be called so that its scope is one of the repository's.
    assert_ne!(Scope::Stanza("repo").text(), Scope::Repo.text());
    // A restricted keyring gives no more than it has, and no less.
    assert!(main.restrict(Role::Reader, Some(&["main"])).is_ok());
    assert!(lacks(&main.restrict(Role::Reader, Some(&["other"]))));
    assert!(lacks(&main.restrict(Role::Reader, None)));
    assert!(lacks(&main.restrict(Role::Writer, Some(&["main"]))));
    assert!(lacks(&main.restrict(Role::All, Some(&["main"]))));
    assert!(open(&all.restrict(Role::Gc, None).unwrap(), &Scope::Stanza("later")).is_ok());
}

#[test]
fn gc_and_scrubber_hold_little() {
    let all = keyring();
    let gc = all.restrict(Role::Gc, Some(&[])).unwrap();
    assert!(lacks(&gc.chunk_id(1, b"x")) && lacks(&gc.content_hash(b"x")) && lacks(&gc.gear_table()));
    assert!(lacks(&open_wal(&gc, &wal(&all), None)));
    assert!(lacks(&gc.meta_opener(&pgkeep_formats::id::SessionId([0; 16]), &MAIN)));
    let config = RepositoryConfig::new(all.repo(), 1);
    let format = all.seal_config(&config).unwrap();
    assert_eq!(gc.open_config(&format).unwrap(), config);
    let scrubber = all.restrict(Role::Scrubber, None).unwrap();
    assert!(lacks(&scrubber.open_config(&format)) && lacks(&scrubber.mac("x", b"")) && scrubber.epochs().is_empty());
    assert!(lacks(&SessionSealer::new(Arc::new(scrubber)).map(|_| ())));
}

#[test]
fn the_format_object_is_authenticated() {
    let all = keyring();
    let format = all.seal_config(&RepositoryConfig::new(all.repo(), 1)).unwrap();
    for at in 0..format.len() {
        let mut bad = format.clone();
        bad[at] ^= 1;
        assert!(all.open_config(&bad).is_err(), "byte {at}");
    }
    assert!(unauthentic(&keyring().open_config(&format)));
    let elsewhere = RepositoryConfig::new(RepoId([2; 16]), 1);
    assert!(matches!(all.seal_config(&elsewhere), Err(CryptoError::Misplaced { .. })));
}

#[test]
fn names_differ_by_kind_scope_and_repository() {
    let (a, b) = (keyring(), keyring());
    let mut names = vec![a.chunk_id(1, b"x").unwrap(), a.chunk_id(2, b"x").unwrap(), b.chunk_id(1, b"x").unwrap()];
    for scope in [Scope::Index, Scope::Repo, MAIN, Scope::Stanza("main2")] {
        names.push(a.chunk_id_scoped(&scope, 1, b"x").unwrap());
    }
    names.push(ChunkId(a.content_hash(b"x\x01").unwrap()));
    names.push(ChunkId(a.mac("p", b"x\x01").unwrap()));
    assert!((1..names.len()).all(|i| !names[..i].contains(&names[i])));
    let mut hasher = a.content_hasher().unwrap();
    hasher.update(b"ab").update(b"c");
    assert_eq!(hasher.finish(), a.content_hash(b"abc").unwrap());
    assert!(a.mac_matches("p", b"x", &a.mac("p", b"x").unwrap()).unwrap());
    assert!(!a.mac_matches("q", b"x", &a.mac("p", b"x").unwrap()).unwrap());
    assert_ne!(a.subkey("p").unwrap().expose(), a.subkey("q").unwrap().expose());
    assert_ne!(a.cut_key("p").unwrap().expose(), a.subkey("p").unwrap().expose());
    let gear = a.gear_table().unwrap();
    assert!((1..256).all(|i| !gear[..i].contains(&gear[i])));
}

#[test]
fn rotation_needs_no_new_writer_slots_and_no_new_objects() {
    let mut all = Keyring::generate(RepoId([1; 16])).unwrap();
    let old_reader = all.restrict(Role::Reader, None).unwrap();
    let mut writer = all.restrict(Role::Writer, None).unwrap();
    let before = SessionSealer::new(Arc::new(writer.restrict(Role::Writer, None).unwrap())).unwrap();
    let (old_wrap, old_wal) = (before.wrapped_data_key(1).unwrap(), wal(&writer));

    assert_eq!(all.add_epoch().unwrap(), 2);
    let record = all.epoch_record(2, 5).unwrap();
    assert_eq!(writer.adopt_epoch("keys/epoch/2", &record).unwrap(), 2);
    assert_eq!(writer.adopt_epoch("keys/epoch/2", &record).unwrap(), 2);
    let new_wal = wal(&writer);
    assert_eq!(Head::parse(&new_wal).unwrap().header.epoch, 2);
    assert!(open_wal(&all, &new_wal, None).is_ok() && open_wal(&all, &old_wal, None).is_ok());
    assert!(matches!(open_wal(&old_reader, &new_wal, None), Err(CryptoError::NoEpoch { epoch: 2 })));

    let (epoch, new_wrap) = all.rewrap(&old_wrap).unwrap().unwrap();
    assert_eq!((epoch, WrapRecord::decode(&new_wrap).unwrap().context.session), (2, before.session()));
    assert!(all.rewrap(&new_wrap).unwrap().is_none());
    let (_, embedded) = all.rewrap_embedded(&Head::parse(&old_wal).unwrap()).unwrap().unwrap();
    assert!(all.rewrap_embedded(&Head::parse(&new_wal).unwrap()).unwrap().is_none());

    all.retire_epoch(1);
    let reader = all.restrict(Role::Reader, None).unwrap();
    assert!(lacks(&reader.data_opener(&before.session(), &old_wrap)) && lacks(&open_wal(&reader, &old_wal, None)));
    assert!(reader.data_opener(&before.session(), &new_wrap).is_ok());
    assert_eq!(open_wal(&reader, &old_wal, Some(&embedded)).unwrap().plaintext, b"segment");
    // A session's wrap is not an object's, nor one object's another's.
    assert!(matches!(open_wal(&reader, &old_wal, Some(&new_wrap)), Err(CryptoError::Misplaced { .. })));
    assert!(matches!(open_wal(&reader, &new_wal, Some(&embedded)), Err(CryptoError::Misplaced { .. })));
}

#[test]
fn writers_cannot_publish_epochs_of_their_own() {
    let mut all = Keyring::generate(RepoId([1; 16])).unwrap();
    let mut writer = all.restrict(Role::Writer, None).unwrap();
    assert!(lacks(&writer.add_epoch()));
    let mut mallory = Keyring::generate(RepoId([1; 16])).unwrap();
    mallory.add_epoch().unwrap();
    let forged = mallory.epoch_record(2, 0).unwrap();
    assert!(unauthentic(&writer.adopt_epoch("keys/epoch/2", &forged)));
    all.add_epoch().unwrap();
    let record = all.epoch_record(2, 0).unwrap();
    assert!(matches!(writer.adopt_epoch("keys/epoch/3", &record), Err(CryptoError::Misplaced { what: "epoch", .. })));
    for at in 0..record.len() {
        let mut bad = record.clone();
        bad[at] ^= 1;
        assert!(writer.adopt_epoch("keys/epoch/2", &bad).is_err(), "byte {at}");
    }
    assert_eq!(writer.epochs(), [1]);
    // Two administrators who rotate at once: the one whose record lost finds out.
    let mut other = all.restrict(Role::All, None).unwrap();
    all.add_epoch().unwrap();
    other.add_epoch().unwrap();
    let lost = other.adopt_epoch("keys/epoch/3", &all.epoch_record(3, 0).unwrap());
    assert!(matches!(lost, Err(CryptoError::Misplaced { what: "public key", .. })));
    assert_eq!(EpochRecord::decode(&record).unwrap().0.epoch, 2);
}
