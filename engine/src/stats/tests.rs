//! Counting what made-up repositories hold.

use super::walk::needs;
use super::{Marks, RepoStats, StatsOptions, Tally, run};
use crate::chunk::Encoder;
use crate::clock::SystemClock;
use crate::observe::{Cancel, Silent};
use crate::repository::manifests::Manifest;
use crate::repository::{ChunkSource, WriterSession};
use crate::store::{Depth, Store};
use crate::verify::tests::fixture::{Files, Repo, STANZA, files, kind, noise};
use crate::{Kind, Result};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::chunk::{ChunkKind, Encoding};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::manifest::FREE_BASE;
use pgkeep_formats::repo::pack::{BaseRun, Dependency, Footer, FooterEntry};
use pgkeep_formats::repo::records::Commit;
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::Arc;

/// Bytes of a sealed chunk that are not its encoding.
const SEAL: u64 = pgkeep_formats::repo::pack::SEAL_OVERHEAD as u64;
const PAGE: u64 = 8192;

fn stats(repo: &Repo, options: &StatsOptions<'_>) -> Result<RepoStats> {
    run(&repo.open(), options, &Silent, &Cancel::default())
}

fn all(repo: &Repo) -> RepoStats {
    stats(repo, &StatsOptions::default()).unwrap()
}

/// Bytes of all objects under a prefix, as the store tells.
fn bytes(repo: &Repo, prefix: &str) -> u64 {
    let mut sum = 0;
    repo.store.list(prefix, Depth::All, &mut |l| sum += l.size).unwrap();
    sum
}

#[test]
fn one_backup_is_counted_to_the_byte() {
    let repo = Repo::new();
    repo.backup(STANZA, "A", &files(1), |c| c.repository_delta = 77);
    repo.wal(1, 1);
    let found = all(&repo);
    // 22 pages are 5 chunks of 4 pages and one of 2; 5 pages and 100 bytes are one of 4 and a rest.
    let plain = 22 * PAGE + 5 * PAGE + 100;
    let backup = &found.selection.backups[0];
    assert_eq!((backup.label.as_str(), backup.added, backup.files, backup.file_bytes), ("A", 77, 2, plain));
    assert_eq!((backup.pages, backup.zero_bytes, backup.inline_bytes), (28, 0, 0));
    // One extent a chunk: what was told in two that go on was joined.
    assert_eq!((backup.extents, backup.page_extents, backup.references), (8, 8, 8));
    assert_eq!((backup.named.chunks, backup.named.plain), (8, plain));
    assert_eq!(backup.bases, Tally::default());
    assert_eq!(backup.read_amplification(), Some(1.0));
    assert!(backup.fetch_ratio().unwrap() > 1.0, "noise does not shrink");
    let chunks = &found.selection.chunks;
    assert_eq!(chunks.of_kind(ChunkKind::Relation), backup.named);
    assert_eq!(chunks.of_kind(ChunkKind::Metadata), backup.metadata);
    // What cannot be compressed is raw, and as long as it was.
    assert_eq!(backup.named.stored, plain + 8 * SEAL);
    assert_eq!(
        chunks.of_encoding(Encoding::Raw).chunks + chunks.of_encoding(Encoding::Zstd).chunks,
        chunks.total().chunks
    );
    // Packs are chunks and what surrounds them, and nothing of it is dead.
    let packs = &found.packs;
    assert_eq!(packs.chunks.total(), chunks.total());
    assert_eq!((packs.dead(), packs.dead_packs, packs.copies), (Some(Tally::default()), 0, Tally::default()));
    assert_eq!(packs.packs.bytes, bytes(&repo, "packs/"));
    assert_eq!(packs.chunks.total().stored + packs.overhead(), packs.packs.bytes);
    // Every object is in the table.
    assert_eq!(found.bytes(), bytes(&repo, ""));
    assert_eq!(found.selection.wal_bytes, bytes(&repo, "wal/"));
    for name in ["format", "keys", "packs", "idx", "refs", "ses", "sk", "backups", "stanzas", "wal", "gen"] {
        let objects = found.objects.get(name).unwrap_or_else(|| panic!("{name}: {:?}", found.objects));
        assert!(objects.count > 0 && objects.bytes > 0, "{name}");
    }
}

#[test]
fn what_backups_share_is_counted_once() {
    let repo = Repo::cached();
    repo.backup(STANZA, "A", &files(1), |_| {});
    let mut changed = files(1);
    changed.insert("base_3", noise(8, 200));
    repo.backup(STANZA, "B", &changed, |_| {});
    repo.stanza("other");
    repo.backup("other", "C", &Files::from([("x", noise(4, 50))]), |_| {});
    let found = all(&repo);
    let labels: Vec<_> = found.selection.backups.iter().map(|b| b.label.as_str()).collect();
    assert_eq!(labels, ["A", "B", "C"]);
    let plain: Vec<u64> = found.selection.backups.iter().map(|b| b.named.plain).collect();
    let first = 27 * PAGE + 100;
    assert_eq!(plain, [first, first + 8 * PAGE, 4 * PAGE]);
    assert_eq!(found.selection.logical_bytes, plain.iter().sum::<u64>());
    assert_eq!(found.selection.chunks.data().plain, first + 12 * PAGE);
    let deduplication = (2 * first + 12 * PAGE) as f64 / (first + 12 * PAGE) as f64;
    assert_eq!(found.selection.deduplication(), Some(deduplication));
    // Of one stanza: its backups, and what is dead in all of the repository.
    let of = stats(&repo, &StatsOptions { stanza: Some("other"), set: None }).unwrap();
    assert_eq!(of.selection.backups.len(), 1);
    assert_eq!((of.selection.chunks.data().plain, of.packs.dead()), (4 * PAGE, Some(Tally::default())));
    assert_eq!(of.selection.wal_bytes, 0);
    // Of one backup: what it needs; of the others nothing is known.
    let of = stats(&repo, &StatsOptions { stanza: None, set: Some("B") }).unwrap();
    assert_eq!(of.selection.backups, found.selection.backups[1..2]);
    assert_eq!((of.packs.live, of.packs.dead()), (None, None));
    assert_eq!(of.packs.chunks, found.packs.chunks);
}

#[test]
fn what_no_backup_uses_is_dead() {
    let repo = Repo::new();
    repo.backup(STANZA, "A", &files(1), |_| {});
    let before = all(&repo);
    let gone = repo.backup(STANZA, "B", &Files::from([("x", noise(8, 9))]), |_| {});
    let both = all(&repo);
    // Without its commit it is the rest of an interrupted backup.
    repo.store.delete(&layout::backup(STANZA, gone.session)).unwrap();
    let after = all(&repo);
    assert_eq!(after.packs.live, before.packs.live);
    assert_eq!(after.packs.dead(), Some(both.packs.chunks.total().less(before.packs.chunks.total())));
    assert_eq!(after.packs.dead_packs, both.packs.packs.count - before.packs.packs.count);
    assert_eq!(after.packs.chunks, both.packs.chunks);
    assert_eq!(after.packs.dead().unwrap().plain, 8 * PAGE + gone_metadata(&both));
}

fn gone_metadata(stats: &RepoStats) -> u64 {
    stats.selection.backups.iter().find(|b| b.label == "B").unwrap().metadata.plain
}

#[test]
fn a_second_copy_is_no_distinct_chunk() {
    let repo = Repo::new();
    repo.backup(STANZA, "A", &files(1), |_| {});
    let segments = repo.keys("idx/");
    let hidden: Vec<_> = segments.iter().map(|s| (s, repo.store.get(s, crate::store::Range::Whole).unwrap())).collect();
    // A writer that does not see the first backup's index stores everything again.
    segments.iter().for_each(|s| repo.store.delete(s).unwrap());
    repo.backup(STANZA, "B", &files(1), |_| {});
    for (name, content) in &hidden {
        repo.store.put_if_absent(name, content).unwrap();
    }
    let found = all(&repo);
    let once = 27 * PAGE + 100;
    assert_eq!(found.packs.chunks.data().plain, 2 * once);
    assert_eq!(found.packs.copies.chunks, found.packs.chunks.total().chunks - found.packs.distinct().chunks);
    assert!(
        found.packs.copies.plain >= once && found.packs.copies.plain < once + (64 << 10),
        "{:?}",
        found.packs.copies
    );
    assert_eq!(found.selection.chunks.data().plain, once);
}

#[test]
fn a_damaged_footer_is_told_and_the_rest_counted() {
    let repo = Repo::new();
    repo.backup(STANZA, "A", &files(1), |_| {});
    let whole = all(&repo);
    let name = repo.keys("packs/").remove(0);
    let mut bytes = repo.store.get(&name, crate::store::Range::Whole).unwrap();
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    repo.store.delete(&name).unwrap();
    repo.store.put_if_absent(&name, &bytes).unwrap();
    let found = all(&repo);
    assert_eq!(found.packs.unreadable.len(), 1);
    assert_eq!(layout::pack(found.packs.unreadable[0].0), name);
    assert_eq!(found.packs.packs.count + 1, whole.packs.packs.count);
    assert_eq!(found.selection, whole.selection);
}

#[test]
fn a_free_place_among_the_bases_of_a_manifest_is_no_chunk() {
    let repo = Repo::new();
    let first = repo.backup(STANZA, "A", &files(1), |_| {});
    let repository = repo.open();
    let source = Arc::new(ChunkSource::new(Arc::clone(&repository), repository.load_index_to_read().unwrap(), STANZA));
    let manifest = Manifest::open(&source, &first).unwrap();
    // After many days bases have been given up, and those behind them keep their numbers.
    let mut root = manifest.root().clone();
    root.bases = vec![FREE_BASE, root.tree[0].id];
    let mut session = WriterSession::begin(&repository, STANZA, "test", "test", &SystemClock).unwrap();
    let (id, _) = session.add_metadata(&mut Encoder::new(1).unwrap(), &root.encode()).unwrap();
    let (session_id, generation) = (session.id(), session.generation());
    let commit = Commit { session: session_id, generation, label: "B".to_owned(), manifest: vec![id], ..first };
    let ordinals = 0..root.ids() as u32;
    session
        .commit(
            &mut |each| {
                each(&id)?;
                root.pieces().try_for_each(&mut *each)?;
                ordinals.clone().try_for_each(|n| each(&manifest.chunk_id(n)?))
            },
            |_, _| commit,
            &SystemClock,
        )
        .unwrap();
    let found = all(&repo);
    let [a, b] = &found.selection.backups[..] else { panic!("{:?}", found.selection) };
    assert_eq!((b.metadata.chunks, b.named), (a.metadata.chunks, a.named));
    assert_eq!(found.packs.dead(), Some(Tally::default()));
    let report = repo.verify();
    assert!(report.is_clean(), "{report:#?}");
}

#[test]
fn what_is_not_there_is_refused() {
    let repo = Repo::new();
    repo.backup(STANZA, "A", &files(1), |_| {});
    assert_eq!(kind(stats(&repo, &StatsOptions { stanza: Some("no"), set: None })), Kind::FileMissing);
    assert_eq!(kind(stats(&repo, &StatsOptions { stanza: None, set: Some("no") })), Kind::BackupSetInvalid);
    let cancel = Cancel::default();
    cancel.cancel();
    let stopped = run(&repo.open(), &StatsOptions::default(), &Silent, &cancel);
    assert_eq!(kind(stopped), Kind::Interrupted);
    let empty = all(&Repo::new());
    assert_eq!((empty.selection.backups.len(), empty.selection.deduplication(), empty.packs.packs.count), (0, None, 0));
}

#[test]
fn dependencies_are_those_of_the_footer() {
    let id = |n: u8| ChunkId([n; 32]);
    let entry = |dependency| FooterEntry {
        id: id(9),
        offset: 64,
        stored_len: 100,
        plain_len: 8192,
        kind: ChunkKind::Relation,
        encoding: Encoding::ZstdPrefix,
        dependency,
        page_hashes: 0,
    };
    let run = |base| BaseRun { base, first_page: 0, pages: 1 };
    let footer = Footer { bases: vec![id(1), id(2), id(3)], entries: Vec::new() };
    let told = |dependency| needs(&footer, &entry(dependency)).collect::<Vec<_>>();
    assert_eq!(told(Dependency::None), []);
    assert_eq!(told(Dependency::Dictionary(1)), [id(2)]);
    assert_eq!(told(Dependency::Bases(vec![run(2), run(0), run(2)])), [id(3), id(1), id(3)]);
}

proptest! {
    #[test]
    fn marks_are_a_set(chunks in proptest::collection::vec((any::<u8>(), any::<u16>()), 0..200)) {
        let (mut marks, mut model) = (Marks::default(), HashSet::new());
        for (pack, ordinal) in &chunks {
            prop_assert_eq!(marks.mark(PackId([*pack; 32]), *ordinal), model.insert((*pack, *ordinal)));
        }
        for (pack, ordinal) in &chunks {
            for near in [ordinal.wrapping_sub(1), *ordinal, ordinal.wrapping_add(64)] {
                prop_assert_eq!(marks.contains(PackId([*pack; 32]), near), model.contains(&(*pack, near)));
            }
        }
    }
}
