//! Peak memory of operations on a million files, on sixteen million chunks, and of the collection of a million chunks. Bound: 256 MiB and 64 MiB a job, of which
//! there is one, without mapped index segments: the system takes their pages back when it needs them, so they are only
//! told. Takes some 5 GB of disk below the temporary directory (`TMPDIR`) and up to an hour; smaller numbers may be given,
//! none as 0.
//!
//! `cargo bench --profile release -p pgkeep-benches --bench bounds -- [files] [chunks] [garbage]`

use pgkeep_benches::bounded::{Ground, bound, peak, watch};
use pgkeep_formats::repo::records::BackupType;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if let [ONE, dir, step, count] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        watch();
        run(&Ground::new(Path::new(dir)), step, count.parse().expect("a number"));
        let peak = peak();
        println!("{} {}", peak.own, peak.resident);
        return;
    }
    let number = |at: usize| arguments.get(at).and_then(|a| a.parse::<u64>().ok());
    let files = number(0).unwrap_or(1_000_000);
    let chunks = number(1).unwrap_or(16 << 20);
    let garbage = number(2).unwrap_or(1 << 20);
    let mut over = Vec::new();
    println!("step             count     own memory   with mapped     time");
    for (steps, count) in [(FILES, files), (CHUNKS, chunks), (GARBAGE, garbage)] {
        let dir = tempfile::Builder::new().prefix("pgkeep-bounds-").tempdir().expect("a directory");
        for step in steps.iter().filter(|_| count > 0) {
            let begun = Instant::now();
            let program = std::env::current_exe().expect("this program");
            let output = Command::new(program).arg(ONE).arg(dir.path()).arg(step).arg(count.to_string()).output();
            let output = output.expect("a process");
            assert!(output.status.success(), "{step}: {}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8_lossy(&output.stdout);
            let numbers: Vec<u64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            let [own, resident] = numbers[..] else { panic!("{step} printed {text}") };
            let seconds = begun.elapsed().as_secs();
            println!("{step:12} {count:9} {:8} MiB {:8} MiB {seconds:6} s", own >> 20, resident >> 20);
            if own > bound(1) {
                over.push(*step);
            }
        }
    }
    assert!(over.is_empty(), "more than {} MiB: {}", bound(1) >> 20, over.join(", "));
}

/// First argument of a process that does one step.
const ONE: &str = "one";

const FILES: &[&str] = &["make-files", "full", "list", "read-file", "incr", "verify"];
const CHUNKS: &[&str] = &["make-chunks", "list", "find-chunks", "next-chunks", "find-chunks", "verify"];
const GARBAGE: &[&str] = &["make-garbage", "gc"];

fn run(ground: &Ground, step: &str, count: u64) {
    match step {
        "make-files" => ground.make_files(count),
        "full" => assert!(ground.backup_files(BackupType::Full) >= count),
        "incr" => assert!(ground.backup_files(BackupType::Incr) >= count),
        "list" => drop(ground.list()),
        "read-file" => ground.read_file(count / 20 * 10 + 9),
        "verify" => ground.verify(),
        "make-chunks" => ground.make_chunks(count),
        "make-garbage" => ground.make_garbage(count),
        "gc" => ground.collect(count),
        "next-chunks" => ground.next_chunks(),
        "find-chunks" => ground.find_chunks(),
        _ => panic!("there is no step '{step}'"),
    }
}
