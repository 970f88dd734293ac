use super::*;
use crate::clock::Clock;
use crate::crypto::{KeyFile, Unlock};
use crate::observe::Cancel;
use crate::repository::OpenOptions;
use crate::store::{Fault, FaultStore, LocalStore, MemoryStore, RecordingStore, Store, Verb};
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::wal::{WalSegment, WalSegmentSize};
use pgkeep_formats::repo::keyslot::{Argon2Cost, Role};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

const SEGMENT: &str = "000000010000000000000003";

fn options() -> OpenOptions {
    OpenOptions { key: 1, unlock: Unlock::None, cache: None }
}

fn create(store: impl Store + 'static) -> Repository {
    Repository::create(Arc::new(store), options(), 0).unwrap()
}

fn reopen(store: impl Store + 'static) -> Repository {
    Repository::open(Arc::new(store), options()).unwrap()
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut out);
    out
}

fn put(repository: &Repository, name: &str, content: &[u8]) -> Result<WalPut> {
    repository.wal_put("main", "15-1", name, &WalFile::encode(content, 3)?)
}

fn get(repository: &Repository, name: &str) -> Result<Option<Vec<u8>>> {
    repository.wal_get("main", "15-1", name)
}

fn key() -> String {
    layout::wal("main", "15-1", SEGMENT)
}

#[test]
fn a_name_has_one_content_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let local = LocalStore::create(dir.path().join("repo")).unwrap();
    for repository in [create(MemoryStore::new()), create(local)] {
        assert_eq!(get(&repository, SEGMENT).unwrap(), None);
        assert_eq!(put(&repository, SEGMENT, b"first").unwrap(), WalPut::Created);
        assert_eq!(put(&repository, SEGMENT, b"first").unwrap(), WalPut::SameContent);
        assert_eq!(put(&repository, SEGMENT, b"other").unwrap(), WalPut::Different);
        assert_eq!(put(&repository, SEGMENT, b"").unwrap(), WalPut::Different);
        assert_eq!(get(&repository, SEGMENT).unwrap().unwrap(), b"first");
        // Names are apart by kind, archive and stanza.
        assert_eq!(put(&repository, "000000010000000000000003.partial", b"other").unwrap(), WalPut::Created);
        assert_eq!(put(&repository, "00000002.history", b"1\t0/3000000\tx\n").unwrap(), WalPut::Created);
        assert_eq!(repository.wal_get("main", "15-2", SEGMENT).unwrap(), None);
        assert_eq!(repository.wal_get("other", "15-1", SEGMENT).unwrap(), None);
        assert_eq!(get(&repository, "00000002.history").unwrap().unwrap(), b"1\t0/3000000\tx\n");
    }
}

#[test]
fn a_put_costs_one_request_and_a_repetition_three() {
    let store = Arc::new(RecordingStore::new(MemoryStore::new()));
    let repository = create(Arc::clone(&store));
    let verbs = || {
        let calls: Vec<_> = store.calls().iter().map(|c| c.verb).collect();
        store.clear();
        calls
    };
    verbs();
    put(&repository, SEGMENT, &noise(100_000, 1)).unwrap();
    assert_eq!(verbs(), [Verb::Put]);
    put(&repository, SEGMENT, &noise(100_000, 1)).unwrap();
    assert_eq!(verbs(), [Verb::Put, Verb::Get, Verb::Get]);
    put(&repository, SEGMENT, &noise(100_000, 2)).unwrap();
    let calls = store.calls();
    assert_eq!(verbs(), [Verb::Put, Verb::Get]);
    assert_eq!(calls[1].bytes, OBJECT_LEN_MIN as u64, "a difference is seen in the head");
    get(&repository, SEGMENT).unwrap();
    assert_eq!(verbs(), [Verb::Get]);
}

#[test]
fn no_changed_byte_and_no_cut_goes_unnoticed() {
    let store = MemoryStore::new();
    let repository = create(store.clone());
    let content = [noise(200, 1), vec![7; 200]].concat();
    put(&repository, SEGMENT, &content).unwrap();
    let before = store.snapshot();
    let len = before.get(&key()).unwrap().len();
    let never_the_same = |what: &str| {
        let read = get(&repository, SEGMENT);
        assert!(read.is_err(), "{what}: {read:?}");
        let again = put(&repository, SEGMENT, &content);
        assert!(!matches!(again, Ok(WalPut::SameContent | WalPut::Created)), "{what}: {again:?}");
        store.restore(&before);
    };
    for at in 0..len {
        for bit in [0, 7] {
            store.tamper(&key(), |bytes| bytes[at] ^= 1 << bit);
            never_the_same(&format!("byte {at} bit {bit}"));
        }
    }
    for cut in 0..len {
        store.tamper(&key(), |bytes| bytes.truncate(cut));
        never_the_same(&format!("cut at {cut}"));
    }
    store.tamper(&key(), |bytes| bytes.push(0));
    never_the_same("one byte more");
    assert!(get(&repository, SEGMENT).unwrap().unwrap() == content);
}

#[test]
fn an_object_opens_nowhere_but_at_its_own_name() {
    let (ours, theirs) = (MemoryStore::new(), MemoryStore::new());
    let (repository, foreign) = (create(ours.clone()), create(theirs.clone()));
    put(&repository, SEGMENT, b"content").unwrap();
    put(&foreign, "000000010000000000000005", b"content").unwrap();
    let object = ours.get(&key(), Range::Whole).unwrap();
    let places = [
        layout::wal("main", "15-1", "000000010000000000000004"),
        layout::wal("main", "15-1", "000000010000000000000003.partial"),
        layout::wal("main", "15-2", SEGMENT),
        layout::wal("other", "15-1", SEGMENT),
    ];
    for place in places {
        ours.put_if_absent(&place, &object).unwrap();
        let error = repository.wal_open(&place, &ours.get(&place, Range::Whole).unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::Checksum, "{place}");
        assert!(error.to_string().contains(&place), "{error}");
    }
    // A copy that claims our own content where we push it for the first time is not taken for ours.
    let pushed = put(&repository, "000000010000000000000004", b"content");
    assert_eq!(pushed.unwrap_err().kind(), Kind::Checksum);
    let place = layout::wal("main", "15-1", "000000010000000000000005");
    ours.put_if_absent(&place, &theirs.get(&place, Range::Whole).unwrap()).unwrap();
    assert!(get(&repository, "000000010000000000000005").is_err());
    // Swapped with each other.
    put(&repository, "000000010000000000000006", b"six").unwrap();
    let six = layout::wal("main", "15-1", "000000010000000000000006");
    let other = ours.get(&six, Range::Whole).unwrap();
    ours.tamper(&six, |bytes| *bytes = object.clone());
    ours.tamper(&key(), |bytes| *bytes = other);
    assert!(get(&repository, SEGMENT).is_err() && get(&repository, "000000010000000000000006").is_err());
}

#[test]
fn what_was_sealed_wrong_is_not_returned() {
    let store = MemoryStore::new();
    let repository = create(store.clone());
    let content = noise(1000, 1);
    let right = WalPublic { content_hash: repository.keyring.content_hash(&content).unwrap(), size: 1000 };
    let raw = |plain_len, bytes| Frame { encoding: FrameEncoding::Raw, plain_len, bytes };
    let zstd = |plain_len, bytes| Frame { encoding: FrameEncoding::Zstd, plain_len, bytes };
    let packed = zstd::bulk::compress(&content, 3).unwrap();
    let cases: [(&str, WalPublic, Vec<Frame<'_>>, bool); 8] = [
        ("raw", right, vec![raw(1000, &content)], true),
        ("zstd", right, vec![zstd(1000, &packed)], true),
        ("two frames", right, vec![raw(600, &content[..600]), raw(400, &content[600..])], true),
        ("order", right, vec![raw(400, &content[600..]), raw(600, &content[..600])], false),
        ("hash", WalPublic { content_hash: [1; 32], ..right }, vec![raw(1000, &content)], false),
        ("size", WalPublic { size: 999, ..right }, vec![raw(1000, &content)], false),
        ("raw length", right, vec![raw(1000, &content[..999])], false),
        ("zstd length", right, vec![zstd(999, &packed), raw(1, &content[999..])], false),
    ];
    for (i, (what, public, frames, good)) in cases.into_iter().enumerate() {
        let key = layout::wal("main", "15-1", &format!("{i:024}"));
        let object = repository
            .keyring
            .seal_embedded(ObjectKind::Wal, Domain::Data, &key, &public.encode(), &encode_frames(&frames))
            .unwrap();
        store.put_if_absent(&key, &object).unwrap();
        let read = get(&repository, &format!("{i:024}"));
        assert_eq!(read.is_ok(), good, "{what}: {read:?}");
        assert!(read.is_err() || read.unwrap().unwrap() == content);
    }
}

#[test]
fn a_writer_archives_but_cannot_read() {
    let store = MemoryStore::new();
    let all = create(store.clone());
    let file = || Unlock::KeyFile(KeyFile::new(vec![9; 32]).unwrap());
    let writer = all.keyring.restrict(Role::Writer, Some(&["main"])).unwrap();
    let (slot, bytes) = writer.seal_slot(&file(), Argon2Cost::default(), "writer", 0).unwrap();
    store.put_if_absent(&layout::key_slot(slot), &bytes).unwrap();
    let open = OpenOptions { unlock: file(), ..options() };
    let writer = Repository::open(Arc::new(store.clone()), open).unwrap();
    assert_eq!(writer.keyring.role(), Role::Writer);

    let content = noise(5000, 3);
    assert_eq!(put(&writer, SEGMENT, &content).unwrap(), WalPut::Created);
    assert_eq!(get(&all, SEGMENT).unwrap().unwrap(), content);
    assert_eq!(get(&writer, SEGMENT).unwrap_err().kind(), Kind::Crypto);
    assert_eq!(put(&writer, SEGMENT, &content).unwrap(), WalPut::SameContent);
    assert_eq!(put(&writer, SEGMENT, b"other").unwrap(), WalPut::Different);
    // Any other hash, and any other length, is not acknowledged.
    let before = store.snapshot();
    let head = FIXED_LEN + WRAP_LEN + PUBLIC_LEN;
    for at in (FIXED_LEN + WRAP_LEN)..head {
        store.tamper(&key(), |bytes| bytes[at] ^= 1);
        assert!(!matches!(put(&writer, SEGMENT, &content), Ok(WalPut::SameContent)), "byte {at}");
        store.restore(&before);
    }
    store.tamper(&key(), |bytes| bytes.truncate(bytes.len() - 1));
    assert!(put(&writer, SEGMENT, &content).is_err());
}

#[test]
fn files_outlive_the_epoch_they_were_sealed_in() {
    let store = MemoryStore::new();
    let mut repository = create(store.clone());
    put(&repository, SEGMENT, b"content").unwrap();
    let keyring = Arc::get_mut(&mut repository.keyring).unwrap();
    keyring.add_epoch().unwrap();
    let object = store.get(&key(), Range::Whole).unwrap();
    let head = Head::parse(&object).unwrap();
    let (epoch, wrap) = keyring.rewrap_embedded(&head).unwrap().unwrap();
    keyring.retire_epoch(1);
    assert_eq!(get(&repository, SEGMENT).unwrap_err().kind(), Kind::Crypto);
    store.put_if_absent(&layout::session_key(head.header.session, epoch), &wrap).unwrap();
    assert_eq!(get(&repository, SEGMENT).unwrap().unwrap(), b"content");
    assert_eq!(put(&repository, SEGMENT, b"content").unwrap(), WalPut::SameContent);
}

#[test]
fn whatever_a_put_meets_a_repetition_settles_it() {
    for fault in [Fault::Transient, Fault::Permanent, Fault::NoSpace, Fault::LostReply] {
        let memory = MemoryStore::new();
        let store = Arc::new(FaultStore::new(memory.clone()));
        let repository = create(Arc::clone(&store));
        store.fail(Verb::Put, 1, fault);
        put(&repository, SEGMENT, b"content").unwrap_err();
        let there = get(&reopen(memory), SEGMENT).unwrap();
        assert_eq!(there.is_some(), fault == Fault::LostReply);
        let expected = if there.is_some() { WalPut::SameContent } else { WalPut::Created };
        for verb in [Verb::Get, Verb::Put] {
            // The repetition may fail as well.
            store.fail(verb, 1, Fault::Transient);
            let _ = put(&repository, SEGMENT, b"content");
            store.revive();
        }
        let again = put(&repository, SEGMENT, b"content").unwrap();
        assert!(again == expected || again == WalPut::SameContent);
        assert_eq!(put(&repository, SEGMENT, b"other").unwrap(), WalPut::Different);
        assert_eq!(get(&repository, SEGMENT).unwrap().unwrap(), b"content");
    }
}

const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;

fn segment(timeline: u32, number: u64) -> WalSegment {
    WalSegment { timeline: TimelineId(timeline), number }
}

/// An archive of two timelines with a gap in the first, over three directories.
fn archive(repository: &Repository) {
    let names = (250..260).filter(|n| *n != 257).map(|n| segment(1, n).name(SIZE));
    for name in names.chain((259..262).map(|n| segment(2, n).name(SIZE))) {
        put(repository, &name, name.as_bytes()).unwrap();
    }
    for name in ["00000002.history", "000000010000000100000003.partial", "0000000200000001000000FF.00000028.backup"] {
        put(repository, name, b"x").unwrap();
    }
}

fn listed(repository: &Repository, from: Option<&str>, to: Option<&str>) -> Vec<String> {
    let mut names = Vec::new();
    repository
        .wal_list("main", "15-1", WalRange { from, to }, &mut |e| {
            assert!(e.size > 0);
            names.push(e.name);
            Ok(())
        })
        .unwrap();
    names
}

#[test]
fn a_listing_is_in_order_and_reads_only_the_directories_it_needs() {
    let store = Arc::new(RecordingStore::new(MemoryStore::new()));
    let repository = create(Arc::clone(&store));
    assert_eq!(listed(&repository, None, None), [""; 0]);
    assert_eq!(repository.wal_bounds("main", "15-1").unwrap(), None);
    archive(&repository);
    let all = listed(&repository, None, None);
    assert_eq!(all.len(), 15);
    assert!(all.is_sorted());
    for from in all.iter().map(String::as_str).chain(["", "00000001", "0000000100000001", "z"]) {
        for to in all.iter().map(String::as_str).chain(["00000002", "z"]) {
            let expected: Vec<_> = all.iter().filter(|n| n.as_str() >= from && n.as_str() <= to).cloned().collect();
            assert_eq!(listed(&repository, Some(from), Some(to)), expected, "{from} to {to}");
        }
    }
    store.clear();
    let (from, to) = (segment(1, 254).name(SIZE), segment(1, 255).name(SIZE));
    assert_eq!(listed(&repository, Some(&from), Some(&to)), [from.as_str(), &to]);
    assert_eq!(store.keys(Verb::List), ["wal/main/15-1/", "wal/main/15-1/0000000100000000/"]);

    store.clear();
    let (min, max) = repository.wal_bounds("main", "15-1").unwrap().unwrap();
    assert_eq!((min, max), (segment(1, 250).name(SIZE), segment(2, 261).name(SIZE)));
    assert_eq!(store.count(Verb::List), 3);
    assert_eq!(store.count(Verb::Get), 0);
    assert_eq!(repository.wal_archives("main").unwrap(), ["15-1"]);
}

#[test]
fn bounds_are_those_of_complete_segments() {
    let repository = create(MemoryStore::new());
    for name in ["000000010000000000000001.partial", "000000030000000000000001.00000028.backup", "00000004.history"] {
        put(&repository, name, b"x").unwrap();
        assert_eq!(repository.wal_bounds("main", "15-1").unwrap(), None);
    }
    put(&repository, "000000020000000000000001", b"x").unwrap();
    let name = "000000020000000000000001".to_owned();
    assert_eq!(repository.wal_bounds("main", "15-1").unwrap(), Some((name.clone(), name)));
}

#[test]
fn each_timeline_has_a_newest_segment() {
    let repository = create(MemoryStore::new());
    assert_eq!(repository.wal_newest("main", "15-1").unwrap(), []);
    for name in [
        "000000010000000000000003",
        "0000000100000000000000FE",
        "000000010000000100000000.partial",
        "00000002.history",
        "000000020000000100000002",
        "000000020000000100000007",
    ] {
        put(&repository, name, b"x").unwrap();
    }
    let newest = repository.wal_newest("main", "15-1").unwrap();
    let newest: Vec<_> = newest.iter().map(ToString::to_string).collect();
    assert_eq!(newest, ["0000000100000000000000FE", "000000020000000100000007"]);
}

#[test]
fn gaps_are_found_and_errors_end_the_search() {
    let store = Arc::new(FaultStore::new(MemoryStore::new()));
    let repository = create(Arc::clone(&store));
    archive(&repository);
    let gaps = |timeline, first, last| -> Vec<u64> {
        repository
            .wal_gaps("main", "15-1", segment(timeline, first), segment(timeline, last), SIZE)
            .map(|g| g.unwrap().segment(SIZE).unwrap().number)
            .collect()
    };
    assert_eq!(gaps(1, 250, 259), [257]);
    assert_eq!(gaps(1, 248, 261), [248, 249, 257, 260, 261]);
    assert_eq!(gaps(2, 259, 261), [0; 0]);
    assert_eq!(gaps(2, 261, 259), [0; 0]);
    assert_eq!(gaps(3, 254, 257), [254, 255, 256, 257]);
    store.fail(Verb::List, 2, Fault::Permanent);
    let found: Vec<_> = repository.wal_gaps("main", "15-1", segment(1, 254), segment(1, 259), SIZE).collect();
    assert!(matches!(&found[..], [Err(_)]), "{found:?}");
}

/// A clock on which one more segment arrives with each sleep, as long as there are any.
struct Arrivals<'a> {
    repository: &'a Repository,
    state: Mutex<(Duration, Vec<String>, Duration)>,
}

impl Clock for Arrivals<'_> {
    fn now(&self) -> Duration {
        self.state.lock().unwrap().0
    }

    fn sleep(&self, time: Duration) {
        let mut state = self.state.lock().unwrap();
        let extra = state.2;
        state.0 += time + extra;
        if let Some(name) = state.1.pop() {
            put(self.repository, &name, b"x").unwrap();
        }
    }
}

#[test]
fn waiting_ends_with_the_last_arrival_or_names_the_first_that_is_missing() {
    let store = Arc::new(RecordingStore::new(MemoryStore::new()));
    let repository = create(Arc::clone(&store));
    let names: Vec<_> = (250..260).map(|n| segment(1, n).name(SIZE)).collect();
    let wait = |arriving: &[String], extra: u64, cancel: &Cancel| {
        let state = Mutex::new((Duration::ZERO, arriving.to_vec(), Duration::from_secs(extra)));
        let clock = Arrivals { repository: &repository, state };
        let result = repository.wal_wait("main", "15-1", &names, Duration::from_secs(60), &clock, cancel);
        (result, clock.now())
    };
    let cancelled = Cancel::default();
    cancelled.cancel();
    assert!(matches!(wait(&[], 0, &cancelled).0, Err(Error::Interrupted)));
    // All but the third and the last arrive, in reverse order.
    let some: Vec<_> = names.iter().filter(|n| **n != names[2] && **n != names[9]).cloned().collect();
    let (result, spent) = wait(&some, 0, &Cancel::default());
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::ArchiveTimeout);
    assert!(error.to_string().contains(&names[2]), "{error}");
    assert!(spent >= Duration::from_secs(60) && spent < Duration::from_secs(70), "{spent:?}");
    // Each arrival grants the rest the whole time again.
    let (result, spent) = wait(&[names[9].clone(), names[2].clone()], 50, &Cancel::default());
    result.unwrap();
    assert!(spent > Duration::from_secs(100), "{spent:?}");
    // What is there costs one list for each directory.
    store.clear();
    wait(&[], 0, &Cancel::default()).0.unwrap();
    assert_eq!(store.keys(Verb::List), ["wal/main/15-1/0000000100000000/", "wal/main/15-1/0000000100000001/"]);
    repository.wal_wait("main", "15-1", &[], Duration::ZERO, &crate::clock::SystemClock, &Cancel::default()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_content_comes_back(
        len in prop_oneof![0usize..200_000, (FRAME_BYTES - 2..FRAME_BYTES + 3), Just(2 * FRAME_BYTES), 9_000_000usize..9_000_100],
        seed in any::<u8>(),
        mask in prop_oneof![Just(0xffu8), Just(0x01), Just(0)],
        level in 1i32..4,
    ) {
        let mut content = noise(len, seed);
        content.iter_mut().for_each(|b| *b &= mask);
        let repository = create(MemoryStore::new());
        let file = WalFile::encode(&content, level).unwrap();
        prop_assert_eq!(file.size(), len as u64);
        prop_assert!(file.encoded_size() <= len as u64 + 64);
        prop_assert_eq!(repository.wal_put("main", "15-1", SEGMENT, &file).unwrap(), WalPut::Created);
        prop_assert!(get(&repository, SEGMENT).unwrap().unwrap() == content);
        prop_assert_eq!(put(&repository, SEGMENT, &content).unwrap(), WalPut::SameContent);
    }
}
