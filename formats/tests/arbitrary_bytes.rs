//! No decoder panics, whatever it is given: the entry points of `fuzzing` over random bytes and over
//! damaged copies of the golden samples.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly too")]

use pgkeep_formats::fuzzing;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

static SAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let files = files_below(&manifest_dir().join("golden"));
    assert!(files.len() > 50, "golden samples are missing");
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
});

fn manifest_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    let below = |path: PathBuf| if path.is_dir() { files_below(&path) } else { vec![path] };
    entries.into_iter().flat_map(below).collect()
}

fn run_all(bytes: &[u8]) {
    fuzzing::all().for_each(|target| (target.run)(bytes));
}

/// One way to damage a sample. Indexes are scaled to its length.
#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Set(Index, u8),
    Truncate(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    /// The head of this sample, then the tail of another.
    Splice(Index, Index, Index),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |index: &Index, bytes: &[u8]| index.index(bytes.len() + 1);
        match self {
            Self::Flip(index, bit) => {
                let at = at(index, bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Self::Set(index, value) => {
                let at = at(index, bytes);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = *value;
                }
            }
            Self::Truncate(index) => bytes.truncate(at(index, bytes)),
            Self::Remove(index, count) => {
                let start = at(index, bytes);
                let end = (start + count).min(bytes.len());
                bytes.drain(start..end);
            }
            Self::Insert(index, new) => {
                let at = at(index, bytes);
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Splice(index, other, from) => {
                bytes.truncate(at(index, bytes));
                let other = &SAMPLES[other.index(SAMPLES.len())];
                bytes.extend_from_slice(&other[at(from, other)..]);
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(i, b)| Damage::Flip(i, b)),
        4 => (any::<Index>(), any::<u8>()).prop_map(|(i, b)| Damage::Set(i, b)),
        1 => any::<Index>().prop_map(Damage::Truncate),
        1 => (any::<Index>(), 1usize..64).prop_map(|(i, n)| Damage::Remove(i, n)),
        1 => (any::<Index>(), proptest::collection::vec(any::<u8>(), 1..32)).prop_map(|(i, b)| Damage::Insert(i, b)),
        1 => (any::<Index>(), any::<Index>(), any::<Index>()).prop_map(|(i, o, f)| Damage::Splice(i, o, f)),
    ]
}

/// Object names, right or nearly so.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "gen/[+0-9]{18,21}",
        "packs/[0-9a-f]{2}/[0-9a-f]{64}",
        "packs/00/00[0-9a-f]{62}",
        "idx/[0-9a-f]{32}/[+0-9]{7,9}-[0-9a-f]{64}",
        "[0-9a-fA-F]{31,33}",
        "[a-z./:-]{0,130}",
    ]
}

#[test]
fn every_entry_point_has_a_fuzz_target_and_no_more() {
    let fuzz = manifest_dir().join("fuzz");
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let files: BTreeSet<String> = files_below(&fuzz.join("fuzz_targets")).into_iter().map(stem).collect();
    let names: BTreeSet<String> = fuzzing::all().map(|t| t.name.to_owned()).collect();
    assert_eq!(files, names);
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} has no [[bin]]");
    }
}

#[test]
fn samples_as_they_are() {
    SAMPLES.iter().for_each(|bytes| run_all(bytes));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        run_all(&bytes);
    }

    #[test]
    fn random_text(text in "[0-9A-Fa-f/. \t\n\\\\#:()a-z_-]{0,120}") {
        run_all(text.as_bytes());
    }

    #[test]
    fn random_names(names in proptest::collection::vec(name(), 1..6)) {
        run_all(names.join("\n").as_bytes());
    }

    #[test]
    fn damaged_samples(sample in any::<Index>(), damages in proptest::collection::vec(damage(), 1..6)) {
        let mut bytes = SAMPLES[sample.index(SAMPLES.len())].clone();
        damages.iter().for_each(|d| d.apply(&mut bytes));
        run_all(&bytes);
    }
}
