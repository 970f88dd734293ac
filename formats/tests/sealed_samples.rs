//! The sealed samples come apart, and their heads are put together to the same bytes, without any key.

use pgkeep_formats::id::{RepoId, SessionId, SlotId};
use pgkeep_formats::repo::config::{CutParameters, RepositoryConfig};
use pgkeep_formats::repo::envelope::{Domain, KeySource, ObjectKind, Sealed};
use pgkeep_formats::repo::keyrecord::{EpochRecord, WrapPurpose, WrapRecord};
use pgkeep_formats::repo::keyslot::{Argon2Cost, Role, Slot, SlotKind};

macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/golden/repo/sealed-v1/", $name)).as_slice()
    };
}

#[test]
fn the_format_object() {
    let bytes = sample!("format.bin");
    let (config, authenticated) = RepositoryConfig::decode(bytes).unwrap();
    assert_eq!((config.repo, config.created), (RepoId([0x11; 16]), 1_700_000_000));
    assert_eq!((config.cut, config.pack_bytes), (CutParameters::default(), 32 << 20));
    assert_eq!([&config.encode().unwrap()[..], &authenticated.mac[..]].concat(), bytes);
}

#[test]
fn slots() {
    let cost = Argon2Cost { memory_kib: 256, passes: 2, lanes: 1 };
    for (bytes, byte, role, kind) in [
        (sample!("slot-open.bin"), 0x30, Role::All, SlotKind::Open),
        (sample!("slot-passphrase.bin"), 0x40, Role::All, SlotKind::Passphrase { cost, salt: [0x42; 16] }),
        (sample!("slot-key-file-writer.bin"), 0x50, Role::Writer, SlotKind::KeyFile),
    ] {
        let slot = Slot::parse(bytes).unwrap();
        assert_eq!((slot.header.slot, slot.header.role, &slot.header.kind), (SlotId([byte; 16]), role, &kind));
        let head = slot.header.encode(slot.ciphertext.len()).unwrap();
        assert_eq!([&head[..], slot.ciphertext, slot.tag].concat(), bytes);
    }
}

#[test]
fn epochs_and_wrapped_keys() {
    let (epoch, signed, _) = EpochRecord::decode(sample!("epoch-1.bin")).unwrap();
    assert_eq!((epoch.epoch, &epoch.encode()[..]), (1, signed));
    let record = WrapRecord::decode(sample!("wrapped-key.bin")).unwrap();
    assert_eq!((record.context.session, record.context.purpose), (SessionId([0x21; 16]), WrapPurpose::Session));
    assert_eq!(record.encode(), sample!("wrapped-key.bin"));
}

#[test]
fn objects() {
    for (bytes, kind, domain, public) in [
        (sample!("object-commit.bin"), ObjectKind::Commit, Domain::Meta, &b""[..]),
        (sample!("object-wal.bin"), ObjectKind::Wal, Domain::Data, b"public"),
        (sample!("object-refs.bin"), ObjectKind::Refs, Domain::Gc, b""),
    ] {
        let sealed = Sealed::parse(bytes).unwrap();
        let header = &sealed.head.header;
        assert_eq!((header.kind, header.domain, sealed.head.public), (kind, domain, public));
        assert_eq!(matches!(header.source, KeySource::Embedded(_)), domain != Domain::Meta);
        assert_eq!([&header.encode(public).unwrap()[..], sealed.ciphertext, sealed.tag].concat(), bytes);
    }
}
