//! What was counted.

use crate::Error;
use pgkeep_formats::id::PackId;
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use pgkeep_formats::repo::records::BackupType;
use std::collections::BTreeMap;

/// What there is to say of a repository.
#[derive(Debug, Default)]
pub struct RepoStats {
    /// Everything under the repository, by the first part of its name.
    pub objects: BTreeMap<String, Objects>,
    /// What all packs hold.
    pub packs: PackStats,
    /// The backups asked for.
    pub selection: Selection,
}

impl RepoStats {
    /// Bytes of all objects.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects.values().map(|o| o.bytes).sum()
    }
}

/// A number of chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub chunks: u64,
    /// Bytes of their plaintexts.
    pub plain: u64,
    /// Bytes that they take in packs, sealed.
    pub stored: u64,
}

impl Tally {
    /// Adds a chunk.
    pub fn add(&mut self, plain_len: u32, stored_len: u32) {
        *self += Self { chunks: 1, plain: plain_len.into(), stored: stored_len.into() };
    }

    /// What is left without another, which is not larger.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self {
            chunks: self.chunks.saturating_sub(other.chunks),
            plain: self.plain.saturating_sub(other.plain),
            stored: self.stored.saturating_sub(other.stored),
        }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.chunks += other.chunks;
        self.plain += other.plain;
        self.stored += other.stored;
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, each| {
            sum += each;
            sum
        })
    }
}

/// Chunks by kind and by encoding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Breakdown(pub BTreeMap<(ChunkKind, Encoding), Tally>);

impl Breakdown {
    /// Adds a chunk.
    pub fn add(&mut self, kind: ChunkKind, encoding: Encoding, plain_len: u32, stored_len: u32) {
        self.0.entry((kind, encoding)).or_default().add(plain_len, stored_len);
    }

    /// All chunks.
    #[must_use]
    pub fn total(&self) -> Tally {
        self.0.values().copied().sum()
    }

    /// Those of a kind.
    #[must_use]
    pub fn of_kind(&self, kind: ChunkKind) -> Tally {
        self.0.iter().filter(|((k, _), _)| *k == kind).map(|(_, t)| *t).sum()
    }

    /// Those of an encoding.
    #[must_use]
    pub fn of_encoding(&self, encoding: Encoding) -> Tally {
        self.0.iter().filter(|((_, e), _)| *e == encoding).map(|(_, t)| *t).sum()
    }

    /// Those that hold bytes of files, or what decoding them needs: all but metadata.
    #[must_use]
    pub fn data(&self) -> Tally {
        self.total().less(self.of_kind(ChunkKind::Metadata))
    }
}

/// Objects of the repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Objects {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What all packs hold, whoever uses it.
#[derive(Debug, Default)]
pub struct PackStats {
    /// Packs whose footers were read.
    pub packs: Objects,
    /// The chunks in them.
    pub chunks: Breakdown,
    /// Of these, the ones that no look-up leads to: further copies, and chunks of sessions that published no index.
    pub copies: Tally,
    /// Page hashes beside the chunks, of eight bytes each.
    pub page_hashes: u64,
    /// What visible backups need; none if only one backup was looked at. Without what only chunks of `unreadable` packs are
    /// encoded against.
    pub live: Option<Tally>,
    /// Packs with nothing live; meaningless without `live`.
    pub dead_packs: u64,
    /// Packs whose footers are damaged, or with what backups need and not there. Nothing of them is in the other numbers
    /// of packs.
    pub unreadable: Vec<(PackId, Error)>,
}

impl PackStats {
    /// What no visible backup needs.
    #[must_use]
    pub fn dead(&self) -> Option<Tally> {
        self.live.map(|live| self.chunks.total().less(live))
    }

    /// Every chunk once.
    #[must_use]
    pub fn distinct(&self) -> Tally {
        self.chunks.total().less(self.copies)
    }

    /// Bytes of packs that are no chunk: headers, footers, trailers, page hashes.
    #[must_use]
    pub fn overhead(&self) -> u64 {
        self.packs.bytes.saturating_sub(self.chunks.total().stored)
    }
}

/// The backups asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Each, by stanza and label.
    pub backups: Vec<BackupStats>,
    /// Bytes of all their files, as if each had been copied.
    pub logical_bytes: u64,
    /// The distinct chunks that they need.
    pub chunks: Breakdown,
    /// Bytes of archived WAL of their stanzas.
    pub wal_bytes: u64,
}

impl Selection {
    /// Bytes of files for each byte of distinct plaintext.
    #[must_use]
    pub fn deduplication(&self) -> Option<f64> {
        ratio(self.logical_bytes, self.chunks.data().plain)
    }

    /// Bytes of plaintext for each byte stored.
    #[must_use]
    pub fn compression(&self) -> Option<f64> {
        ratio(self.chunks.data().plain, self.chunks.data().stored)
    }

    /// Bytes of files for each byte stored, metadata included.
    #[must_use]
    pub fn reduction(&self) -> Option<f64> {
        ratio(self.logical_bytes, self.chunks.total().stored)
    }
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStats {
    /// Its stanza.
    pub stanza: String,
    /// Its label.
    pub label: String,
    /// Its type.
    pub backup_type: BackupType,
    /// Number of files.
    pub files: u64,
    /// Bytes of all files.
    pub file_bytes: u64,
    /// Of these, bytes that are in the manifest itself.
    pub inline_bytes: u64,
    /// Of these, zeros that are stored nowhere.
    pub zero_bytes: u64,
    /// Runs of files: of zeros or in a chunk.
    pub extents: u64,
    /// Of these, those of files made of pages.
    pub page_extents: u64,
    /// Pages of these files.
    pub pages: u64,
    /// Extents that name a chunk.
    pub references: u64,
    /// Distinct chunks so named.
    pub named: Tally,
    /// Further chunks that those are encoded against, as far as the packs that are readable tell.
    pub bases: Tally,
    /// Chunks of the manifest.
    pub metadata: Tally,
    /// Bytes it added to the repository when it was made.
    pub added: u64,
}

impl BackupStats {
    /// Pages for each extent of files made of pages.
    #[must_use]
    pub fn pages_per_extent(&self) -> Option<f64> {
        ratio(self.pages, self.page_extents)
    }

    /// Plaintext that must be made for each byte of its files, if every chunk is decoded once.
    #[must_use]
    pub fn read_amplification(&self) -> Option<f64> {
        ratio(self.named.plain + self.bases.plain, self.file_bytes)
    }

    /// Stored bytes that must be fetched for each byte of its files, if every chunk is fetched once.
    #[must_use]
    pub fn fetch_ratio(&self) -> Option<f64> {
        ratio(self.named.stored + self.bases.stored, self.file_bytes)
    }
}

fn ratio(a: u64, b: u64) -> Option<f64> {
    (b > 0).then(|| a as f64 / b as f64)
}
