//! Entry points into the decoders of the repository's records.
//!
//! Fixed layouts have one encoding for each value, so what was read is written back to the same bytes. Tagged fields and
//! paths do not: there the value must survive.

use super::Target;
use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::{ChunkId, IndexId, PackId, RepoId, SessionId, SlotId};
use crate::repo::config::RepositoryConfig;
use crate::repo::envelope::{HEAD_LEN_MAX, Head, Sealed, object_aad};
use crate::repo::fields::Fields;
use crate::repo::index::{IndexBuilder, IndexView};
use crate::repo::keyrecord::{EpochRecord, WrapRecord};
use crate::repo::keyslot::{Slot, secrets::Secrets};
use crate::repo::layout;
use crate::repo::manifest::{
    Extent, ExtentAt, Leaf, ManifestRoot, PieceReader, PieceWriter, Record, check_path, path_cmp,
};
use crate::repo::moves::Moves;
use crate::repo::pack::{Footer, HEADER_LEN, PackHeader, PackTrailer, TRAILER_LEN};
use crate::repo::records::{Commit, Drill, Fence, Generation, Heartbeat, Note, SessionOpen, StanzaHistory, Trace};
use crate::repo::refs::Refs;
use crate::repo::wal::{WalPublic, decode_frames, encode_frames};
use std::collections::HashSet;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "repo_codec", run: codec },
    Target { name: "repo_commit", run: commit },
    Target { name: "repo_envelope", run: envelope },
    Target { name: "repo_format", run: format },
    Target { name: "repo_index", run: index },
    Target { name: "repo_key_records", run: key_records },
    Target { name: "repo_key_slot", run: key_slot },
    Target { name: "repo_manifest_root", run: manifest_root },
    Target { name: "repo_names", run: names },
    Target { name: "repo_pack", run: pack },
    Target { name: "repo_pack_footer", run: pack_footer },
    Target { name: "repo_records", run: records },
    Target { name: "repo_moves", run: moves },
    Target { name: "repo_refs", run: refs },
    Target { name: "repo_role_secrets", run: role_secrets },
    Target { name: "repo_tree_piece", run: tree_piece },
    Target { name: "repo_wal", run: wal },
];

/// Integers, blobs and tagged fields.
pub fn codec(bytes: &[u8]) {
    let mut r = Reader::new(bytes);
    while let Ok(value) = r.varint("varint") {
        let mut w = Writer::new();
        w.varint(value);
        let end = r.offset();
        assert_eq!(bytes.get(end - w.len()..end), Some(w.as_bytes()));
    }
    let mut r = Reader::new(bytes);
    while r.text("text").is_ok() {}
    let version = bytes.first().copied().unwrap_or(0);
    if let Ok(fields) = Fields::parse(bytes, version, &[1, 3], "fields") {
        let _ = (fields.int(1), fields.int_or(2, 7), fields.text(3), fields.text_maybe(4));
        let _ = fields.list(6, 1, |r| r.varint("item"));
    }
}

/// The `format` object.
pub fn format(bytes: &[u8]) {
    if let Ok((config, found)) = RepositoryConfig::decode(bytes) {
        assert_eq!(config.encode().as_deref(), Ok(found.covered));
        let _ = (config.check_read().is_ok(), config.check_write().is_ok(), config.check_gc().is_ok());
    }
}

/// Key slots.
pub fn key_slot(bytes: &[u8]) {
    if let Ok(slot) = Slot::parse(bytes) {
        assert_eq!(slot.header.encode(slot.ciphertext.len()).as_deref(), Ok(slot.head));
        assert_eq!([slot.head, slot.ciphertext, slot.tag].concat(), bytes);
    }
}

/// What a slot seals.
pub fn role_secrets(bytes: &[u8]) {
    if let Ok(secrets) = Secrets::decode(bytes) {
        let mut again = Vec::new();
        assert!(secrets.encode(&mut again).is_ok() && again == bytes && again.len() == secrets.encoded_len());
    }
}

/// Epochs and wrapped keys.
pub fn key_records(bytes: &[u8]) {
    if let Ok((epoch, signed, signature)) = EpochRecord::decode(bytes) {
        assert_eq!(epoch.encode(), signed);
        assert_eq!([signed, signature].concat(), bytes);
    }
    if let Ok(wrap) = WrapRecord::decode(bytes) {
        assert_eq!(wrap.encode(), bytes);
    }
}

/// The head of a sealed object, and the whole of one.
pub fn envelope(bytes: &[u8]) {
    if let Ok(head) = Head::parse(bytes) {
        assert!(head.bytes.len() <= HEAD_LEN_MAX && bytes.starts_with(head.bytes));
        let _ = (head.object_len(), object_aad(&RepoId([0; 16]), "wal/a", head.bytes).is_ok());
    }
    if let Ok(sealed) = Sealed::parse(bytes) {
        assert_eq!(sealed.head.header.encode(sealed.head.public).as_deref(), Ok(sealed.head.bytes));
        assert_eq!(sealed.head.object_len(), Some(bytes.len() as u64));
    }
}

/// Headers and trailers of packs.
pub fn pack(bytes: &[u8]) {
    if let Ok(header) = PackHeader::decode(bytes) {
        assert_eq!(Some(&header.encode()[..]), bytes.get(..HEADER_LEN));
    }
    check_trailer(bytes, bytes.len() as u64);
    // A damaged one almost never keeps its checksum or the size it was made for, so both are also made right.
    let mut repaired = bytes.to_vec();
    let Some(tail) = repaired.last_chunk_mut::<TRAILER_LEN>() else { return };
    let word = |at: usize| tail.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b));
    let size = u64::from(word(4)) + u64::from(word(8)) + TRAILER_LEN as u64;
    let crc = crc32c::crc32c(tail.first_chunk::<20>().map_or(&[], |facts| &facts[..]));
    if let Some(field) = tail.get_mut(20..24) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    check_trailer(&repaired, size);
}

fn check_trailer(bytes: &[u8], size: u64) {
    if let Ok(trailer) = PackTrailer::decode(bytes, size) {
        assert_eq!(PackTrailer::decode(&trailer.encode(), size), Ok(trailer));
        assert!(trailer.hashes_offset <= trailer.footer_offset && u64::from(trailer.footer_offset) < size);
    }
}

/// Footers of packs.
pub fn pack_footer(bytes: &[u8]) {
    if let Ok(footer) = Footer::decode(bytes) {
        assert_eq!(footer.encode(), bytes);
        let ends = footer.entries.iter().map(|e| e.offset + e.stored_len);
        assert!(ends.zip(footer.entries.iter().skip(1)).all(|(end, next)| end == next.offset));
    }
}

/// Index segments.
pub fn index(bytes: &[u8]) {
    let Ok(view) = IndexView::parse(bytes) else { return };
    for entry in view.iter() {
        assert_eq!(view.lookup(&entry.id), Some(entry));
        assert!(view.pack_of(&entry).is_some());
    }
    let names: HashSet<PackId> = view.packs().iter().map(|p| p.pack).collect();
    if names.len() == view.packs().len() {
        let mut builder = IndexBuilder::new();
        view.supersedes().iter().for_each(|name| builder.supersede(*name));
        let packs = view.packs().iter().all(|p| builder.pack(p).is_ok());
        let entries = view.iter().all(|e| builder.add(&e).is_ok());
        assert!(packs && entries && builder.encode() == bytes);
    }
}

/// Roots of manifests.
pub fn manifest_root(bytes: &[u8]) {
    survives(bytes, ManifestRoot::decode, ManifestRoot::encode);
}

/// Pieces of trees, alone and as the late piece of a root.
pub fn tree_piece(bytes: &[u8]) {
    check_piece(bytes);
    if let Ok(root) = ManifestRoot::decode(bytes) {
        check_piece(&root.late);
    }
}

fn check_piece(bytes: &[u8]) {
    let base = [
        Extent { units: 1000, at: ExtentAt::Chunk { ordinal: 1, offset: u32::MAX - 500 } },
        Extent { units: 24, at: ExtentAt::Zero },
    ];
    let Ok(reader) = PieceReader::new(bytes) else { return };
    let mut writer = PieceWriter::default();
    let mut records = Vec::new();
    for record in reader.flatten() {
        if let Record::Leaf(leaf @ Leaf::Patch { .. }) = &record {
            let _ = leaf.clone().resolve(&base).map(|extents| extents.len());
        }
        writer.push(&record);
        records.push(record);
    }
    let again = writer.finish();
    let read: Result<Vec<_>, _> = PieceReader::new(&again).and_then(Iterator::collect);
    assert_eq!(read, Ok(records));
    assert!(again.len() <= bytes.len());
}

/// What backups use.
pub fn refs(bytes: &[u8]) {
    if let Ok(refs) = Refs::decode(bytes) {
        assert_eq!(refs.encode(), bytes);
        let _ = (refs.chunks(), refs.packs().count());
    }
}

/// What was moved.
pub fn moves(bytes: &[u8]) {
    if let Ok(moves) = Moves::decode(bytes) {
        assert_eq!(Moves::decode(&moves.encode()).as_ref(), Ok(&moves));
        let places = moves.sources().filter_map(|pack| moves.find(pack, 0)).count();
        assert!(places <= moves.chunks() as usize);
    }
}

/// Small records: histories, sessions, fences, generations, notes, markers, heartbeats, drills, traces.
pub fn records(bytes: &[u8]) {
    survives(bytes, StanzaHistory::decode, StanzaHistory::encode);
    survives(bytes, SessionOpen::decode, SessionOpen::encode);
    survives(bytes, Fence::decode, Fence::encode);
    survives(bytes, Generation::decode, Generation::encode);
    survives(bytes, Note::decode, Note::encode);
    survives(bytes, Heartbeat::decode, Heartbeat::encode);
    survives(bytes, Drill::decode, Drill::encode);
    survives(bytes, Trace::decode, Trace::encode);
}

/// Commit records.
pub fn commit(bytes: &[u8]) {
    survives(bytes, Commit::decode, Commit::encode);
}

fn survives<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    if let Ok(value) = decode(bytes) {
        let again = encode(&value);
        assert_eq!(decode(&again), Ok(value));
    }
}

/// Archived files: the public part and the frames.
pub fn wal(bytes: &[u8]) {
    if let Ok(public) = WalPublic::decode(bytes) {
        assert_eq!(public.encode(), bytes);
    }
    if let Ok(frames) = decode_frames(bytes) {
        assert_eq!(encode_frames(&frames), bytes);
    }
}

/// Names of objects, ids, stanzas, paths; one a line.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut before = "";
    for line in text.lines() {
        if let Some(id) = layout::parse_pack(line) {
            assert_eq!(layout::pack(id), line);
        }
        if let Some((session, sequence, id)) = layout::parse_index_segment(line) {
            assert_eq!(layout::index_segment(session, sequence, id), line);
        }
        if let Some(n) = layout::parse_generation(line) {
            assert_eq!(layout::generation(n), line);
        }
        for parsed in [
            RepoId::parse(line).map(|id| id.to_string()),
            SessionId::parse(line).map(|id| id.to_string()),
            SlotId::parse(line).map(|id| id.to_string()),
            ChunkId::parse(line).map(|id| id.to_string()),
            IndexId::parse(line).map(|id| id.to_string()),
        ] {
            assert!(parsed.is_err() || parsed.as_deref() == Ok(line));
        }
        let stanza = layout::check_stanza(line).is_ok();
        assert!(!stanza || layout::backups(line).split('/').count() == 3);
        assert!(layout::wal("main", "17-1", line).ends_with(line));
        if check_path(line).is_ok() && !line.is_empty() {
            assert!(line.split('/').all(|part| !part.is_empty() && part != ".."));
        }
        assert_eq!(path_cmp(before, line), path_cmp(line, before).reverse());
        before = line;
    }
}
