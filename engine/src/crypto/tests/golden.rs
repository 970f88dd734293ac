//! Samples made from fixed secrets. They must be made and opened alike for ever: a change here is a change of the
//! format. The secrets are written out below and in the golden directory's README.

use super::*;
use crate::crypto::keyring::{EmbeddedRandom, Roots, SlotRandom};
use pgkeep_formats::id::{ChunkId, SessionId, SlotId};
use pgkeep_formats::repo::config::RepositoryConfig;
use pgkeep_formats::repo::envelope::{ChunkHead, Domain, ObjectKind};
use pgkeep_formats::repo::keyslot::{Argon2Cost, Role};
use std::fmt::Write;
use std::path::{Path, PathBuf};

const REPO: RepoId = RepoId([0x11; 16]);
const SESSION: SessionId = SessionId([0x21; 16]);
const COMMIT: &str = "backups/main/21212121212121212121212121212121";
const WAL: &str = "wal/main/15-1/0000000100000000/000000010000000000000001";
const REFS: &str = "refs/21212121212121212121212121212121";
const CHUNK: ChunkHead = ChunkHead { kind: 1, encoding: 0, id: ChunkId([0x77; 32]), plain_len: 13 };
const CREATED: i64 = 1_700_000_000;

fn secret(byte: u8) -> SecretBytes<32> {
    SecretBytes::copy_from(&[byte; 32])
}

fn fixed() -> Keyring {
    let roots = Roots { id_key: secret(1), cut_secret: secret(2), meta_master: secret(3), epoch_signer: secret(4) };
    let mut keyring = Keyring::from_roots(REPO, roots).unwrap();
    keyring.add_epoch_of(secret(5), secret(6)).unwrap();
    keyring
}

fn passphrase() -> Unlock {
    Unlock::Passphrase(Passphrase::new("correct horse".into()))
}

fn key_file() -> Unlock {
    Unlock::KeyFile(KeyFile::new((0..64).collect()).unwrap())
}

/// All samples, by file name.
fn made() -> Vec<(&'static str, Vec<u8>)> {
    let keyring = Arc::new(fixed());
    let slot = |keyring: &Keyring, unlock: &Unlock, byte: u8| {
        let cost = Argon2Cost { memory_kib: 256, passes: 2, lanes: 1 };
        let random = SlotRandom { slot: SlotId([byte; 16]), nonce: [byte + 1; 24], salt: [byte + 2; 16] };
        keyring.seal_slot_with(unlock, cost, "golden", CREATED, random).unwrap()
    };
    let embedded = |kind, domain, name, public: &[u8], plaintext: &[u8], byte: u8| {
        let (key, ephemeral) = (secret(byte + 1), secret(byte + 2));
        let random = EmbeddedRandom { id: SessionId([byte; 16]), key, ephemeral };
        keyring.seal_embedded_with(kind, domain, name, public, plaintext, &random).unwrap()
    };
    let sealer = SessionSealer::with(Arc::clone(&keyring), SESSION, secret(0x22)).unwrap();
    let stanza = Scope::Stanza("main");
    let commit = sealer.seal_object(ObjectKind::Commit, &stanza, COMMIT, b"", b"commit record").unwrap();
    let mut data = Vec::new();
    sealer.seal_chunk(&ChunkDomain::Data, &CHUNK, b"thirteen byte", &mut data).unwrap();
    let mut meta = Vec::new();
    sealer.seal_chunk(&ChunkDomain::Meta(Scope::Index), &CHUNK, b"thirteen byte", &mut meta).unwrap();
    let writer = keyring.restrict(Role::Writer, Some(&["main"])).unwrap();
    vec![
        ("format.bin", keyring.seal_config(&RepositoryConfig::new(REPO, CREATED)).unwrap()),
        ("slot-open.bin", slot(&keyring, &Unlock::None, 0x30)),
        ("slot-passphrase.bin", slot(&keyring, &passphrase(), 0x40)),
        ("slot-key-file-writer.bin", slot(&writer, &key_file(), 0x50)),
        ("epoch-1.bin", keyring.epoch_record(1, CREATED).unwrap()),
        ("wrapped-key.bin", sealer.wrapped_data_key_with(1, &secret(0x23)).unwrap()),
        ("object-commit.bin", commit),
        ("object-wal.bin", embedded(ObjectKind::Wal, Domain::Data, WAL, b"public", b"wal segment", 0x60)),
        ("object-refs.bin", embedded(ObjectKind::Refs, Domain::Gc, REFS, b"", b"refs", 0x70)),
        ("chunk-data.bin", data),
        ("chunk-meta.bin", meta),
        ("names.txt", names(&keyring).into_bytes()),
    ]
}

/// Derived names and keys, one a line.
fn names(keyring: &Keyring) -> String {
    let mut out = String::new();
    let mut line = |name: &str, bytes: &[u8; 32]| writeln!(out, "{name} {}", ChunkId(*bytes)).unwrap();
    line("chunk_id(1,abc)", &keyring.chunk_id(1, b"abc").unwrap().0);
    line("chunk_id_scoped(stanza/main,1,abc)", &keyring.chunk_id_scoped(&Scope::Stanza("main"), 1, b"abc").unwrap().0);
    line("content_hash(abc)", &keyring.content_hash(b"abc").unwrap());
    line("mac(purpose,abc)", &keyring.mac("purpose", b"abc").unwrap());
    line("subkey(purpose)", keyring.subkey("purpose").unwrap().expose());
    line("cut_key(purpose)", keyring.cut_key("purpose").unwrap().expose());
    let gear = keyring.gear_table().unwrap();
    writeln!(out, "gear[0] {:016x}\ngear[255] {:016x}", gear[0], gear[255]).unwrap();
    out
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/golden/repo/sealed-v1")
}

fn stored(name: &str) -> Vec<u8> {
    let path = directory().join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("golden sample {}: {e}", path.display()))
}

#[test]
fn samples_are_made_as_they_always_were() {
    let made = made();
    for (name, bytes) in &made {
        assert!(*bytes == stored(name), "{name} is not made as it was");
    }
    for entry in std::fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || made.iter().any(|(known, _)| *known == name), "{name} is not listed");
    }
}

#[test]
fn samples_open_from_their_slots_alone() {
    let slots: Vec<(String, Vec<u8>)> =
        [(0x30, "slot-open.bin"), (0x40, "slot-passphrase.bin"), (0x50, "slot-key-file-writer.bin")]
            .map(|(byte, name)| (format!("keys/slot/{}", SlotId([byte; 16])), stored(name)))
            .into();
    let open = |unlock: &Unlock| Keyring::open_slots(REPO, &slots, unlock, None).unwrap();
    let mut writer = open(&key_file());
    assert_eq!(writer.role(), Role::Writer);
    assert_eq!(writer.adopt_epoch("keys/epoch/1", &stored("epoch-1.bin")).unwrap(), 1);
    for keyring in [open(&Unlock::None), open(&passphrase())] {
        assert_eq!(keyring.open_config(&stored("format.bin")).unwrap(), RepositoryConfig::new(REPO, CREATED));
        let stanza = Scope::Stanza("main");
        let commit = keyring.open_object(COMMIT, &stored("object-commit.bin"), &[ObjectKind::Commit], &stanza).unwrap();
        assert_eq!(commit.plaintext, b"commit record");
        let open =
            |kind, domain, name, file| keyring.open_embedded(name, &stored(file), &[kind], domain, None).unwrap();
        let wal = open(ObjectKind::Wal, Domain::Data, WAL, "object-wal.bin");
        assert_eq!((&wal.public[..], &wal.plaintext[..]), (&b"public"[..], &b"wal segment"[..]));
        assert_eq!(open(ObjectKind::Refs, Domain::Gc, REFS, "object-refs.bin").plaintext, b"refs");
        let data = keyring.data_opener(&SESSION, &stored("wrapped-key.bin")).unwrap();
        assert_eq!(data.open_chunk(&CHUNK, &mut stored("chunk-data.bin")).unwrap(), b"thirteen byte");
        let meta = keyring.meta_opener(&SESSION, &Scope::Index).unwrap();
        assert_eq!(meta.open_chunk(&CHUNK, &mut stored("chunk-meta.bin")).unwrap(), b"thirteen byte");
    }
}

#[test]
#[ignore = "writes samples that do not exist yet; for a new version of the format"]
fn write_missing_samples() {
    std::fs::create_dir_all(directory()).unwrap();
    for (name, bytes) in made() {
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(directory().join(name));
        if let Ok(mut file) = file {
            std::io::Write::write_all(&mut file, &bytes).unwrap();
        }
    }
}
