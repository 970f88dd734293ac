//! What `repo-stats` counted, for people and for programs.

use crate::size::human_size;
use pgkeep_engine::index::{ChunkKind, Encoding};
use pgkeep_engine::stats::{BackupStats, Breakdown, RepoStats, Tally};
use serde_json::{Map, Value, json};

/// The text: objects, packs, chunks, then the backups asked for, in aligned columns.
#[must_use]
pub fn text(repo: u32, stats: &RepoStats) -> String {
    let (packs, selection) = (&stats.packs, &stats.selection);
    let mut out = format!("repo{repo}: {}\n", human_size(stats.bytes()));
    let mut section = |heading: &str, rows: Vec<Vec<String>>| {
        out.push_str(&format!("\n    {heading}\n"));
        columns(&rows).iter().for_each(|line| out.push_str(&format!("        {line}\n")));
    };

    let mut rows = vec![row(["", "objects", "bytes"])];
    rows.extend(stats.objects.iter().map(|(name, o)| vec![name.clone(), o.count.to_string(), human_size(o.bytes)]));
    section("objects", rows);

    let total = packs.chunks.total();
    let mut rows = vec![tally_head()];
    rows.extend(breakdown(&packs.chunks));
    rows.push(tally("all", total));
    rows.push(tally("distinct", packs.distinct()));
    if let (Some(live), Some(dead)) = (packs.live, packs.dead()) {
        rows.push(tally("live", live));
        rows.push(tally("dead", dead));
    }
    let dead_packs =
        if packs.live.is_some() { format!(", {} with nothing live", packs.dead_packs) } else { String::new() };
    let heading = format!(
        "chunks in {} packs ({}, of which {} are not chunks: page hashes {}){dead_packs}",
        packs.packs.count,
        human_size(packs.packs.bytes),
        human_size(packs.overhead()),
        human_size(packs.page_hashes * 8)
    );
    section(&heading, rows);

    let mut rows = vec![tally_head()];
    rows.extend(breakdown(&selection.chunks));
    rows.push(tally("all", selection.chunks.total()));
    let heading = format!(
        "needed by {} backups of {}, beside WAL of {}",
        selection.backups.len(),
        human_size(selection.logical_bytes),
        human_size(selection.wal_bytes)
    );
    section(&heading, rows);
    let rows = vec![
        vec!["deduplication".to_owned(), ratio(selection.deduplication())],
        vec!["compression".to_owned(), ratio(selection.compression())],
        vec!["both, with metadata".to_owned(), ratio(selection.reduction())],
    ];
    section("ratios", rows);

    let head = [
        "backup",
        "size",
        "added",
        "extents",
        "pages/extent",
        "references",
        "chunks",
        "bases",
        "plain/size",
        "stored/size",
    ];
    let mut rows = vec![row(head)];
    rows.extend(selection.backups.iter().map(backup_row));
    section("backups", rows);
    out
}

fn backup_row(b: &BackupStats) -> Vec<String> {
    vec![
        format!("{} {}", b.stanza, b.label),
        human_size(b.file_bytes),
        human_size(b.added),
        b.extents.to_string(),
        ratio(b.pages_per_extent()),
        b.references.to_string(),
        b.named.chunks.to_string(),
        b.bases.chunks.to_string(),
        ratio(b.read_amplification()),
        ratio(b.fetch_ratio()),
    ]
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn tally_head() -> Vec<String> {
    row(["", "chunks", "plain", "stored", "plain/stored"])
}

fn tally(name: &str, t: Tally) -> Vec<String> {
    let shrunk = (t.stored > 0).then(|| t.plain as f64 / t.stored as f64);
    vec![name.to_owned(), t.chunks.to_string(), human_size(t.plain), human_size(t.stored), ratio(shrunk)]
}

/// A line for each kind and each encoding that occurs.
fn breakdown(chunks: &Breakdown) -> Vec<Vec<String>> {
    let kinds = ChunkKind::ALL.iter().map(|k| (kind(*k), chunks.of_kind(*k)));
    let encodings = Encoding::ALL.iter().map(|e| (encoding(*e), chunks.of_encoding(*e)));
    kinds.chain(encodings).filter(|(_, t)| t.chunks > 0).map(|(name, t)| tally(name, t)).collect()
}

fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"))
}

/// Lines with the first column to the left and the others to the right.
pub(super) fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| rows.iter().filter_map(|r| r.get(n)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let line = |cells: &Vec<String>| {
        let cells = cells.iter().zip(&widths).enumerate();
        let cells = cells.map(|(n, (c, w))| if n == 0 { format!("{c:<w$}") } else { format!("{c:>w$}") });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(|cells| line(cells).trim_end().to_owned()).collect()
}

/// The JSON of one repository: bytes and numbers as they are, ratios with four decimals or null.
#[must_use]
pub fn json(repo: u32, stats: &RepoStats) -> Value {
    let (packs, selection) = (&stats.packs, &stats.selection);
    let objects: Map<_, _> =
        stats.objects.iter().map(|(name, o)| (name.clone(), json!({"count": o.count, "bytes": o.bytes}))).collect();
    json!({
        "repo": repo,
        "bytes": stats.bytes(),
        "object": objects,
        "pack": {
            "count": packs.packs.count,
            "bytes": packs.packs.bytes,
            "overhead-bytes": packs.overhead(),
            "page-hash-bytes": packs.page_hashes * 8,
            "dead": packs.live.map(|_| packs.dead_packs),
            "unreadable": packs.unreadable.len(),
            "chunk": json_breakdown(&packs.chunks),
            "distinct": json_tally(packs.distinct()),
            "copy": json_tally(packs.copies),
            "live-chunk": packs.live.map(json_tally),
            "dead-chunk": packs.dead().map(json_tally),
        },
        "selection": {
            "backup": selection.backups.iter().map(json_backup).collect::<Vec<_>>(),
            "backup-count": selection.backups.len(),
            "logical-bytes": selection.logical_bytes,
            "wal-bytes": selection.wal_bytes,
            "chunk": json_breakdown(&selection.chunks),
            "deduplication": json_ratio(selection.deduplication()),
            "compression": json_ratio(selection.compression()),
            "reduction": json_ratio(selection.reduction()),
        },
    })
}

fn json_backup(b: &BackupStats) -> Value {
    json!({
        "stanza": b.stanza,
        "label": b.label,
        "type": b.backup_type.as_str(),
        "files": b.files,
        "file-bytes": b.file_bytes,
        "inline-bytes": b.inline_bytes,
        "zero-bytes": b.zero_bytes,
        "added-bytes": b.added,
        "extents": b.extents,
        "page-extents": b.page_extents,
        "pages": b.pages,
        "pages-per-extent": json_ratio(b.pages_per_extent()),
        "references": b.references,
        "chunk": json_tally(b.named),
        "base": json_tally(b.bases),
        "metadata": json_tally(b.metadata),
        "read-amplification": json_ratio(b.read_amplification()),
        "fetch-ratio": json_ratio(b.fetch_ratio()),
    })
}

fn json_tally(t: Tally) -> Value {
    json!({"chunks": t.chunks, "plain-bytes": t.plain, "stored-bytes": t.stored})
}

fn json_breakdown(chunks: &Breakdown) -> Value {
    let kinds: Map<_, _> =
        ChunkKind::ALL.iter().map(|k| (kind(*k).to_owned(), json_tally(chunks.of_kind(*k)))).collect();
    let encodings: Map<_, _> =
        Encoding::ALL.iter().map(|e| (encoding(*e).to_owned(), json_tally(chunks.of_encoding(*e)))).collect();
    json!({"kind": kinds, "encoding": encodings, "all": json_tally(chunks.total())})
}

fn json_ratio(value: Option<f64>) -> Option<f64> {
    value.map(|v| (v * 10_000.0).round() / 10_000.0)
}

fn kind(kind: ChunkKind) -> &'static str {
    match kind {
        ChunkKind::Relation => "relation",
        ChunkKind::Other => "other",
        ChunkKind::Metadata => "metadata",
        ChunkKind::Dictionary => "dictionaries",
    }
}

fn encoding(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Raw => "raw",
        Encoding::Zstd => "zstd",
        Encoding::ZstdDictionary => "dictionary",
        Encoding::ZstdPrefix => "prefix",
        Encoding::Patch => "patch",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_engine::stats::{Objects, Selection};
    use pgkeep_formats::repo::records::BackupType;

    fn sample() -> RepoStats {
        let mut stats = RepoStats::default();
        stats.objects.insert("packs".to_owned(), Objects { count: 2, bytes: 5000 });
        stats.objects.insert("wal".to_owned(), Objects { count: 10, bytes: 1 << 20 });
        stats.packs.packs = Objects { count: 2, bytes: 5000 };
        let mut chunks = Breakdown::default();
        chunks.add(ChunkKind::Relation, Encoding::Zstd, 8192, 2048);
        chunks.add(ChunkKind::Relation, Encoding::ZstdPrefix, 8192, 512);
        chunks.add(ChunkKind::Metadata, Encoding::Raw, 200, 224);
        stats.packs.chunks = chunks.clone();
        stats.packs.chunks.add(ChunkKind::Other, Encoding::Raw, 1000, 1024);
        stats.packs.page_hashes = 10;
        stats.packs.live = Some(chunks.total());
        let one = Tally { chunks: 1, plain: 8192, stored: 2048 };
        let backup = BackupStats {
            stanza: "demo".to_owned(),
            label: "20260101-000000F".to_owned(),
            backup_type: BackupType::Full,
            files: 1,
            file_bytes: 24_576,
            inline_bytes: 0,
            zero_bytes: 8192,
            extents: 3,
            page_extents: 3,
            pages: 3,
            references: 2,
            named: one,
            bases: one,
            metadata: Tally { chunks: 1, plain: 200, stored: 224 },
            added: 2784,
        };
        stats.selection = Selection { backups: vec![backup], logical_bytes: 24_576, chunks, wal_bytes: 1 << 20 };
        stats
    }

    #[test]
    fn text_is_aligned() {
        let expected = "\
repo1: 1MB

    objects
               objects  bytes
        packs        2  4.9KB
        wal         10    1MB

    chunks in 2 packs (4.9KB, of which 1.2KB are not chunks: page hashes 80B), 0 with nothing live
                  chunks   plain  stored  plain/stored
        relation       2    16KB   2.5KB          6.40
        other          1   1000B     1KB          0.98
        metadata       1    200B    224B          0.89
        raw            2   1.2KB   1.2KB          0.96
        zstd           1     8KB     2KB          4.00
        prefix         1     8KB    512B         16.00
        all            4  17.2KB   3.7KB          4.62
        distinct       4  17.2KB   3.7KB          4.62
        live           3  16.2KB   2.7KB          5.96
        dead           1   1000B     1KB          0.98

    needed by 1 backups of 24KB, beside WAL of 1MB
                  chunks   plain  stored  plain/stored
        relation       2    16KB   2.5KB          6.40
        metadata       1    200B    224B          0.89
        raw            1    200B    224B          0.89
        zstd           1     8KB     2KB          4.00
        prefix         1     8KB    512B         16.00
        all            3  16.2KB   2.7KB          5.96

    ratios
        deduplication        1.50
        compression          6.40
        both, with metadata  8.83

    backups
        backup                 size  added  extents  pages/extent  references  chunks  bases  plain/size  stored/size
        demo 20260101-000000F  24KB  2.7KB        3          1.00           2       1      1        0.67         0.17
";
        assert_eq!(text(1, &sample()), expected);
    }

    #[test]
    fn json_has_the_numbers_of_the_text() {
        let value = json(1, &sample());
        let at = |pointer: &str| value.pointer(pointer).cloned().unwrap_or_else(|| panic!("{pointer} in {value}"));
        assert_eq!(at("/object/wal"), json!({"count": 10, "bytes": 1 << 20}));
        assert_eq!(at("/pack/overhead-bytes"), json!(5000 - 2048 - 512 - 224 - 1024));
        assert_eq!(at("/pack/chunk/encoding/prefix"), json!({"chunks": 1, "plain-bytes": 8192, "stored-bytes": 512}));
        assert_eq!(at("/pack/chunk/encoding/patch/chunks"), json!(0));
        assert_eq!(at("/pack/dead-chunk/plain-bytes"), json!(1000));
        assert_eq!(at("/selection/deduplication"), json!(1.5));
        assert_eq!(at("/selection/backup/0/read-amplification"), json!(0.6667));
        // Of one backup alone nothing is known to be dead.
        let mut one = sample();
        one.packs.live = None;
        let value = json(1, &one);
        assert!(value["pack"]["dead-chunk"].is_null() && value["pack"]["dead"].is_null());
        assert!(!text(1, &one).contains("dead") && !text(1, &one).contains("live"));
    }
}
