//! The bench `bounds` in small: one process does everything and stays below what one operation may have.

use pgkeep_benches::bounded::{Ground, bound, peak, watch};
use pgkeep_formats::repo::records::BackupType;

const FILES: u64 = 10_000;
const CHUNKS: u64 = 1 << 17;

#[test]
fn many_files_and_many_chunks_take_bounded_memory() {
    watch();
    let dir = tempfile::tempdir().expect("a directory");
    let files = Ground::new(&dir.path().join("files"));
    files.make_files(FILES);
    assert!(files.backup_files(BackupType::Full) >= FILES);
    assert!(files.backup_files(BackupType::Incr) >= FILES);
    assert!(files.list() > FILES);
    files.read_file(FILES / 2 + 9);
    files.verify();
    let chunks = Ground::new(&dir.path().join("chunks"));
    chunks.make_chunks(CHUNKS);
    chunks.find_chunks();
    chunks.next_chunks();
    chunks.find_chunks();
    assert_eq!(chunks.list(), CHUNKS / 4096);
    let peak = peak();
    println!("{} MiB, with mapped files {} MiB", peak.own >> 20, peak.resident >> 20);
    assert!(peak.own < bound(1), "{} MiB", peak.own >> 20);
}
