//! All implementations answer as a map does, and no damage to the cache makes any of them answer otherwise.

mod model;
mod poison;

use super::*;
use pgkeep_formats::id::{PackId, SessionId};
use pgkeep_formats::repo::index::{DOMAIN_DATA, IndexBuilder, IndexEntry};

pub(super) const KEY: [u8; 32] = [0x5a; 32];

pub(super) fn id(n: u64) -> ChunkId {
    ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

pub(super) fn facts(n: u8) -> Arc<PackFacts> {
    Arc::new(PackFacts {
        pack: PackId([n; 32]),
        session: SessionId([n; 16]),
        epoch: 1,
        domain: DOMAIN_DATA,
        scope: [0; 8],
        size: u64::from(u32::MAX),
    })
}

pub(super) fn at(pack: u8, offset: u32) -> ChunkAt {
    ChunkAt {
        pack: facts(pack),
        offset,
        stored_len: 700,
        plain_len: 8192,
        kind: ChunkKind::Relation,
        encoding: Encoding::Zstd,
        ordinal: 0,
    }
}

pub(super) fn payload(chunks: impl IntoIterator<Item = (ChunkId, ChunkAt)>, supersedes: &[&str]) -> Vec<u8> {
    let mut builder = IndexBuilder::new();
    for name in supersedes {
        builder.supersede(*name);
    }
    for (id, at) in chunks {
        let pack = builder.pack(&at.pack).unwrap();
        let ChunkAt { offset, stored_len, plain_len, kind, encoding, .. } = at;
        builder.add(&IndexEntry { id, pack, offset, stored_len, plain_len, kind, encoding, ordinal: 0 }).unwrap();
    }
    builder.encode()
}

pub(super) fn wanted(names: &[&str]) -> Vec<(String, u64)> {
    names.iter().map(|name| ((*name).to_owned(), 1000)).collect()
}
