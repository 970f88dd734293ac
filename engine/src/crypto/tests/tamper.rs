//! Altered, swapped, renamed, re-typed, truncated, replayed.

use super::*;
use pgkeep_formats::id::{ChunkId, SessionId};
use pgkeep_formats::repo::envelope::{CHUNK_OVERHEAD, ChunkHead, Domain, ObjectKind};
use proptest::prelude::*;
use std::collections::HashSet;

const KEY: &str = "backups/main/0123";
const STANZA: Scope<'_> = Scope::Stanza("main");

fn commit(sealer: &SessionSealer) -> Vec<u8> {
    sealer.seal_object(ObjectKind::Commit, &STANZA, KEY, b"public", b"content").unwrap()
}

fn head() -> ChunkHead {
    ChunkHead { kind: 1, encoding: 2, id: ChunkId([7; 32]), plain_len: 999 }
}

fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len() * 8).map(|bit| {
        let mut bad = bytes.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        bad
    })
}

#[test]
fn meta_objects_open_only_as_they_are() {
    let keyring = keyring();
    let sealer = SessionSealer::new(Arc::clone(&keyring)).unwrap();
    let bytes = commit(&sealer);
    let kinds = [ObjectKind::Commit, ObjectKind::Fence];
    let open = |key: &str, bytes: &[u8]| keyring.open_object(key, bytes, &kinds, &STANZA);
    let opened = open(KEY, &bytes).unwrap();
    assert_eq!((&opened.public[..], &opened.plaintext[..]), (&b"public"[..], &b"content"[..]));
    assert_eq!((opened.header.kind, opened.header.session), (ObjectKind::Commit, sealer.session()));
    assert!(flips(&bytes).all(|bad| open(KEY, &bad).is_err()));
    assert!((0..bytes.len()).all(|short| open(KEY, &bytes[..short]).is_err()));
    assert!(open(KEY, &[&bytes[..], &[0]].concat()).is_err());
    // Under another name, of another stanza or scope, in another repository.
    assert!(unauthentic(&open("backups/main/0124", &bytes)));
    for scope in [Scope::Stanza("other"), Scope::Repo, Scope::Index] {
        assert!(unauthentic(&keyring.open_object(KEY, &bytes, &kinds, &scope)));
    }
    let other = Keyring::generate(RepoId([1; 16])).unwrap();
    assert!(unauthentic(&other.open_object(KEY, &bytes, &kinds, &STANZA)));
    // As another kind: by its own word, and against it. A commit whose kind byte says fence is a changed byte.
    assert!(matches!(
        keyring.open_object(KEY, &bytes, &[ObjectKind::Session], &STANZA),
        Err(CryptoError::Misplaced { what: "kind", .. })
    ));
    let mut fence = bytes.clone();
    fence[6] = ObjectKind::Fence as u8;
    assert!(unauthentic(&open(KEY, &fence)));
    // As of another session of the same writer, whose key differs.
    let mut replayed = bytes;
    replayed[16..32].copy_from_slice(&SessionSealer::new(Arc::clone(&keyring)).unwrap().session().0);
    assert!(unauthentic(&open(KEY, &replayed)));
}

#[test]
fn heads_and_contents_of_two_objects_do_not_mix() {
    let sealer = SessionSealer::new(keyring()).unwrap();
    let (a, b) = (commit(&sealer), commit(&sealer));
    let head = a.len() - 7 - 16;
    let mixed = [&a[..head], &b[head..]].concat();
    assert!(unauthentic(&sealer.keyring().open_object(KEY, &mixed, &[ObjectKind::Commit], &STANZA)));
    assert_ne!(a, b);
}

#[test]
fn embedded_objects_open_only_as_they_are() {
    let keyring = keyring();
    for (kind, domain) in [(ObjectKind::Wal, Domain::Data), (ObjectKind::Refs, Domain::Gc)] {
        let bytes = keyring.seal_embedded(kind, domain, KEY, b"hash", b"content").unwrap();
        let open = |key: &str, bytes: &[u8]| keyring.open_embedded(key, bytes, &[kind], domain, None);
        assert_eq!(open(KEY, &bytes).unwrap().plaintext, b"content");
        assert!(flips(&bytes).all(|bad| open(KEY, &bad).is_err()));
        assert!((0..bytes.len()).all(|short| open(KEY, &bytes[..short]).is_err()));
        assert!(unauthentic(&open("wal/elsewhere", &bytes)));
        // The wrap of one object in another.
        let other = keyring.seal_embedded(kind, domain, KEY, b"hash", b"content").unwrap();
        let mixed = [&bytes[..52], &other[52..132], &bytes[132..]].concat();
        assert!(unauthentic(&open(KEY, &mixed)));
    }
    assert!(keyring.seal_embedded(ObjectKind::Wal, Domain::Meta, KEY, b"", b"").is_err());
    let wal = keyring.seal_embedded(ObjectKind::Wal, Domain::Data, KEY, b"", b"").unwrap();
    assert!(matches!(
        keyring.open_embedded(KEY, &wal, &[ObjectKind::Wal], Domain::Gc, None),
        Err(CryptoError::Misplaced { what: "domain", .. })
    ));
}

#[test]
fn knowing_the_public_keys_is_not_enough_to_make_objects() {
    // A store may take the epoch's public keys, and its repository id, from plaintext objects.
    let victim = Keyring::generate(RepoId([1; 16])).unwrap();
    let mut forger = Keyring::generate(RepoId([1; 16])).unwrap();
    forger.borrow_epochs(&victim);
    let wal = forger.seal_embedded(ObjectKind::Wal, Domain::Data, KEY, b"hash", b"forged").unwrap();
    assert!(unauthentic(&victim.open_embedded(KEY, &wal, &[ObjectKind::Wal], Domain::Data, None)));
    let sealer = SessionSealer::new(Arc::new(forger)).unwrap();
    let mut blob = Vec::new();
    sealer.seal_chunk(&ChunkDomain::Data, &head(), b"forged", &mut blob).unwrap();
    let opener = victim.data_opener(&sealer.session(), &sealer.wrapped_data_key(1).unwrap()).unwrap();
    assert!(unauthentic(&opener.open_chunk(&head(), &mut blob)));
}

#[test]
fn chunks_open_only_as_they_are() {
    let keyring = keyring();
    let sealer = SessionSealer::new(Arc::clone(&keyring)).unwrap();
    let data = keyring.data_opener(&sealer.session(), &sealer.wrapped_data_key(1).unwrap()).unwrap();
    let meta = keyring.meta_opener(&sealer.session(), &Scope::Index).unwrap();
    for (domain, opener, foreign) in
        [(ChunkDomain::Data, &data, &meta), (ChunkDomain::Meta(Scope::Index), &meta, &data)]
    {
        let mut out = b"before".to_vec();
        sealer.seal_chunk(&domain, &head(), b"encoded", &mut out).unwrap();
        assert_eq!(&out[..6], b"before");
        let blob = out.split_off(6);
        assert_eq!(blob.len(), 7 + CHUNK_OVERHEAD);
        let open = |head: &ChunkHead, blob: &[u8]| {
            let mut copy = blob.to_vec();
            let in_place = opener.open_chunk(head, &mut copy).map(|bytes| bytes.to_vec());
            let mut apart = vec![1, 2, 3];
            let to = opener.open_chunk_to(head, blob, &mut apart);
            assert_eq!(in_place.is_ok(), to.is_ok());
            assert_eq!(in_place.as_deref().unwrap_or_default(), apart);
            in_place
        };
        assert_eq!(open(&head(), &blob).unwrap(), b"encoded");
        assert!(flips(&blob).all(|bad| unauthentic(&open(&head(), &bad))));
        assert!((0..blob.len()).all(|short| unauthentic(&open(&head(), &blob[..short]))));
        let others = [
            ChunkHead { kind: 2, ..head() },
            ChunkHead { encoding: 1, ..head() },
            ChunkHead { id: ChunkId([8; 32]), ..head() },
            ChunkHead { plain_len: 998, ..head() },
        ];
        assert!(others.iter().all(|other| unauthentic(&open(other, &blob))));
        assert!(unauthentic(&foreign.open_chunk(&head(), &mut blob.clone())));
    }
    let next = SessionSealer::new(Arc::clone(&keyring)).unwrap();
    assert!(keyring.data_opener(&next.session(), &sealer.wrapped_data_key(1).unwrap()).is_err());
    let stanza = keyring.meta_opener(&sealer.session(), &STANZA).unwrap();
    let mut blob = Vec::new();
    sealer.seal_chunk(&ChunkDomain::Meta(Scope::Index), &head(), b"", &mut blob).unwrap();
    assert!(unauthentic(&stanza.open_chunk(&head(), &mut blob)));
}

#[test]
fn wrapped_data_keys_are_bound_to_their_session() {
    let keyring = keyring();
    let sealer = SessionSealer::new(Arc::clone(&keyring)).unwrap();
    let wrapped = sealer.wrapped_data_key(1).unwrap();
    assert!(flips(&wrapped).all(|bad| keyring.data_opener(&sealer.session(), &bad).is_err()));
    let mut renamed = wrapped.clone();
    let session = SessionId([9; 16]);
    renamed[24..40].copy_from_slice(&session.0);
    assert!(unauthentic(&keyring.data_opener(&session, &renamed)));
    assert_ne!(wrapped, sealer.wrapped_data_key(1).unwrap());
    assert!(matches!(sealer.wrapped_data_key(2), Err(CryptoError::NoEpoch { epoch: 2 })));
}

#[test]
fn sealing_in_place_needs_room_for_the_counter() {
    let sealer = SessionSealer::new(keyring()).unwrap();
    for start in [0, 5, 99] {
        let mut buffer = vec![0; 7];
        assert!(sealer.seal_chunk_in_place(&ChunkDomain::Data, &head(), &mut buffer, start).is_err());
    }
    let mut buffer = [&b"before"[..], &[0; 8], b"encoded"].concat();
    sealer.seal_chunk_in_place(&ChunkDomain::Data, &head(), &mut buffer, 6).unwrap();
    let opener = sealer.keyring().data_opener(&sealer.session(), &sealer.wrapped_data_key(1).unwrap()).unwrap();
    assert_eq!(opener.open_chunk(&head(), &mut buffer[6..]).unwrap(), b"encoded");
}

#[test]
fn a_failed_seal_leaves_the_buffer_as_it_was() {
    let writer = keyring().restrict(pgkeep_formats::repo::keyslot::Role::Writer, Some(&[])).unwrap();
    let sealer = SessionSealer::new(Arc::new(writer)).unwrap();
    let mut out = b"before".to_vec();
    assert!(lacks(&sealer.seal_chunk(&ChunkDomain::Meta(STANZA), &head(), b"x", &mut out)));
    assert_eq!(out, b"before");
}

#[test]
fn no_counter_is_given_out_twice() {
    const THREADS: usize = 8;
    const EACH: usize = 500;
    let sealer = SessionSealer::new(keyring()).unwrap();
    let seal = |thread: usize| {
        let mut counters = Vec::new();
        for i in 0..EACH {
            // Of all keys of the session, and of objects: they share the counter.
            let domain = [ChunkDomain::Data, ChunkDomain::Meta(Scope::Index), ChunkDomain::Meta(STANZA)][i % 3];
            let mut out = Vec::new();
            sealer.seal_chunk(&domain, &head(), b"x", &mut out).unwrap();
            counters.push(u64::from_le_bytes(out[..8].try_into().unwrap()));
            if (i + thread).is_multiple_of(7) {
                let object = sealer.seal_object(ObjectKind::Heartbeat, &Scope::Repo, KEY, b"", b"").unwrap();
                counters.push(u64::from_le_bytes(object[32..40].try_into().unwrap()));
            }
        }
        counters
    };
    let all: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|t| scope.spawn(move || seal(t))).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert!(all.len() > THREADS * EACH);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
}

#[test]
fn sessions_never_share_keys() {
    let keyring = keyring();
    let (a, b) = (SessionSealer::new(Arc::clone(&keyring)).unwrap(), SessionSealer::new(keyring).unwrap());
    assert_ne!(a.session(), b.session());
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for domain in [ChunkDomain::Data, ChunkDomain::Meta(Scope::Index)] {
        a.seal_chunk(&domain, &head(), &[0; 64], &mut first).unwrap();
        b.seal_chunk(&domain, &head(), &[0; 64], &mut second).unwrap();
    }
    // Equal counters and equal plaintext, so equal keystreams would show.
    assert_eq!(first[..8], second[..8]);
    assert_ne!(first[8..72], second[8..72]);
    assert_ne!(first[8..72], first[96..160]);
}

proptest! {
    #[test]
    fn contents_round_trip(content in proptest::collection::vec(any::<u8>(), 0..5000), public in proptest::collection::vec(any::<u8>(), 0..100)) {
        let keyring = keyring();
        let wal = keyring.seal_embedded(ObjectKind::Wal, Domain::Data, KEY, &public, &content).unwrap();
        let opened = keyring.open_embedded(KEY, &wal, &[ObjectKind::Wal], Domain::Data, None).unwrap();
        prop_assert_eq!(&opened.plaintext, &content);
        prop_assert_eq!(&opened.public, &public);
    }

    #[test]
    fn arbitrary_bytes_never_open(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let keyring = Keyring::generate(RepoId([1; 16])).unwrap();
        prop_assert!(keyring.open_object(KEY, &bytes, &[ObjectKind::Commit], &STANZA).is_err());
        prop_assert!(keyring.open_embedded(KEY, &bytes, &[ObjectKind::Wal], Domain::Data, Some(&bytes)).is_err());
        prop_assert!(keyring.data_opener(&SessionId([0; 16]), &bytes).is_err());
        prop_assert!(keyring.open_config(&bytes).is_err());
        prop_assert!(keyring.rewrap(&bytes).is_err());
        let opener = keyring.meta_opener(&SessionId([0; 16]), &STANZA).unwrap();
        prop_assert!(opener.open_chunk(&head(), &mut bytes.clone()).is_err());
        let slots = [("keys/slot/00".to_owned(), bytes)];
        prop_assert!(Keyring::open_slots(RepoId([1; 16]), &slots, &Unlock::None, None).is_err());
    }
}
