//! Opening slots.

use super::*;
use pgkeep_formats::id::SlotId;
use pgkeep_formats::repo::envelope::Cipher;
use pgkeep_formats::repo::keyslot::{Argon2Cost, Role, Slot, SlotHeader, SlotKind};
use std::sync::Mutex;

const CHEAP: Argon2Cost = Argon2Cost { memory_kib: 64, passes: 1, lanes: 1 };
const REPO: RepoId = RepoId([1; 16]);

fn passphrase(text: &str) -> Unlock {
    Unlock::Passphrase(Passphrase::new(text.to_owned()))
}

fn key_file(byte: u8) -> Unlock {
    Unlock::KeyFile(KeyFile::new(vec![byte; 32]).unwrap())
}

fn seal(keyring: &Keyring, unlock: &Unlock) -> (String, Vec<u8>) {
    seal_at(keyring, unlock, 0)
}

fn seal_at(keyring: &Keyring, unlock: &Unlock, created: i64) -> (String, Vec<u8>) {
    let (slot, bytes) = keyring.seal_slot(unlock, CHEAP, "label", created).unwrap();
    (format!("keys/slot/{slot}"), bytes)
}

fn open(slots: &[(String, Vec<u8>)], unlock: &Unlock) -> Result<Keyring, CryptoError> {
    Keyring::open_slots(REPO, slots, unlock, None)
}

fn none_opens<T>(result: &Result<T, CryptoError>) -> bool {
    matches!(result, Err(CryptoError::NoSlotOpens { .. }))
}

fn same(a: &Keyring, b: &Keyring) -> bool {
    a.role() == b.role()
        && a.epochs() == b.epochs()
        && a.mac("x", b"y").unwrap() == b.mac("x", b"y").unwrap()
        && a.chunk_id(1, b"y").ok() == b.chunk_id(1, b"y").ok()
        && a.gear_table().ok() == b.gear_table().ok()
        && a.epoch_record(1, 0).ok() == b.epoch_record(1, 0).ok()
}

#[test]
fn each_kind_opens_with_what_it_was_made_for() {
    let keyring = keyring();
    let slots: Vec<_> = [Unlock::None, passphrase("right"), key_file(7)].iter().map(|u| seal(&keyring, u)).collect();
    for unlock in [Unlock::None, passphrase("right"), key_file(7)] {
        assert!(same(&open(&slots, &unlock).unwrap(), &keyring));
    }
    for unlock in [passphrase("wrong"), passphrase(""), passphrase("right "), key_file(8)] {
        assert!(none_opens(&open(&slots, &unlock)));
    }
    assert!(matches!(open(&[], &Unlock::None), Err(CryptoError::NoSlots { .. })));
    assert!(none_opens(&Keyring::open_slots(RepoId([2; 16]), &slots, &Unlock::None, None)));
}

#[test]
fn a_passphrase_never_accepts_a_slot_without_secrecy() {
    let slots = [seal(&keyring(), &Unlock::None)];
    assert!(none_opens(&open(&slots, &passphrase("any"))));
    assert!(none_opens(&open(&slots, &key_file(1))));
}

#[test]
fn every_role_survives_its_slot() {
    let mut all = Keyring::generate(REPO).unwrap();
    all.add_epoch().unwrap();
    for role in [Role::All, Role::Writer, Role::Reader, Role::Gc] {
        for stanzas in [None, Some(&["main", "b"][..]), Some(&[][..])] {
            let part = all.restrict(role, stanzas).unwrap();
            let opened = open(&[seal(&part, &Unlock::None)], &Unlock::None).unwrap();
            assert!(same(&opened, &part));
            assert_eq!(opened.has_scope(&Scope::Stanza("b")), stanzas != Some(&[]));
            assert!(opened.has_scope(&Scope::Index));
        }
    }
    let scrubber = all.restrict(Role::Scrubber, None).unwrap();
    assert_eq!(open(&[seal(&scrubber, &Unlock::None)], &Unlock::None).unwrap().role(), Role::Scrubber);
}

#[test]
fn the_best_and_newest_slot_wins() {
    let mut all = Keyring::generate(REPO).unwrap();
    let (unlock, writer) = (passphrase("p"), all.restrict(Role::Writer, None).unwrap());
    let mut slots = vec![seal_at(&writer, &unlock, 900), seal_at(&all, &unlock, 100)];
    all.add_epoch().unwrap();
    slots.push(seal_at(&all, &unlock, 200));
    slots.push(("keys/slot/damaged".into(), b"PGKS?".to_vec()));
    for _ in 0..slots.len() {
        slots.rotate_left(1);
        let opened = open(&slots, &unlock).unwrap();
        assert_eq!((opened.role(), opened.epochs()), (Role::All, vec![1, 2]));
    }
}

#[test]
fn altered_and_renamed_slots_do_not_open() {
    let (name, bytes) = seal(&keyring(), &key_file(3));
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(open(&[(name.clone(), bad)], &key_file(3)).is_err(), "byte {at}");
    }
    assert!(none_opens(&open(&[(format!("keys/slot/{}", SlotId([0; 16])), bytes)], &key_file(3))));
}

#[test]
fn kinds_of_slots_not_known_are_named() {
    let header = SlotHeader {
        slot: SlotId([1; 16]),
        role: Role::All,
        created: 0,
        label: String::new(),
        kind: SlotKind::Other { number: 4, parameters: b"fetch".to_vec() },
        cipher: Cipher::ChaCha20Poly1305,
        nonce: [0; 24],
    };
    let mut bytes = header.encode(3).unwrap();
    bytes.extend_from_slice(&[0; 3 + 16]);
    assert!(Slot::parse(&bytes).is_ok());
    let mut slots = vec![(format!("keys/slot/{}", header.slot), bytes)];
    let e = open(&slots, &passphrase("p")).err().unwrap();
    assert!(matches!(e, CryptoError::SlotNotSupported { kind: "external command", .. }));
    assert_eq!(e.kind(), crate::Kind::FeatureNotSupported);
    slots.push(seal(&keyring(), &passphrase("p")));
    assert!(open(&slots, &passphrase("p")).is_ok());
    assert!(none_opens(&open(&slots, &passphrase("q"))));
}

#[test]
fn key_files_have_a_size() {
    for len in [0, 31, (1 << 20) + 1] {
        assert!(matches!(KeyFile::new(vec![0; len]), Err(CryptoError::KeyFileSize { .. })));
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("key");
    assert_eq!(KeyFile::read(&path).err().unwrap().kind(), crate::Kind::FileMissing);
    std::fs::write(&path, [7; 32]).unwrap();
    let slots = [seal(&keyring(), &key_file(7))];
    assert!(open(&slots, &Unlock::KeyFile(KeyFile::read(&path).unwrap())).is_ok());
}

/// Counts, and may hand out a wrong key.
#[derive(Default)]
struct Spy {
    kept: Mutex<Option<[u8; 32]>>,
    puts: Mutex<usize>,
}

impl KekCache for Spy {
    fn get(&self, _: &SlotId, _: &Passphrase) -> Option<SecretBytes<32>> {
        self.kept.lock().unwrap().as_ref().map(SecretBytes::copy_from)
    }

    fn put(&self, _: &SlotId, _: &Passphrase, kek: &SecretBytes<32>) -> Result<(), crate::Error> {
        *self.puts.lock().unwrap() += 1;
        *self.kept.lock().unwrap() = Some(*kek.expose());
        Ok(())
    }
}

#[test]
fn the_cache_is_believed_only_if_it_opens_the_slot() {
    let slots = [seal(&keyring(), &passphrase("p"))];
    let spy = Spy::default();
    let open = |text: &str| Keyring::open_slots(REPO, &slots, &passphrase(text), Some(&spy));
    let puts = || *spy.puts.lock().unwrap();
    assert!(none_opens(&open("wrong")));
    assert_eq!(puts(), 0);
    assert!(open("p").is_ok() && open("p").is_ok());
    assert_eq!(puts(), 1);
    *spy.kept.lock().unwrap() = Some([0; 32]);
    assert!(open("p").is_ok());
    assert_eq!(puts(), 2);
}

#[test]
fn the_file_cache_serves_the_next_process_and_may_fail() {
    let slots = [seal(&keyring(), &passphrase("p"))];
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("kek");
    let open = |text: &str, cache: &FileKekCache| Keyring::open_slots(REPO, &slots, &passphrase(text), Some(cache));
    assert!(open("p", &FileKekCache::new(&directory)).is_ok());
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    assert!(open("p", &FileKekCache::new(&directory)).is_ok());
    assert!(none_opens(&open("wrong", &FileKekCache::new(&directory))));
    let occupied = home.path().join("occupied");
    std::fs::write(&occupied, b"a file, not a directory").unwrap();
    assert!(open("p", &FileKekCache::new(&occupied)).is_ok());
}
