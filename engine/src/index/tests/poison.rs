use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

#[derive(Debug, Clone)]
enum Damage {
    Flip {
        at: f64,
        mask: u8,
    },
    Truncate {
        at: f64,
    },
    Extend {
        by: usize,
    },
    Zero {
        at: f64,
        len: usize,
    },
    /// Overwrite a range with the same range of another segment's copy.
    Splice {
        at: f64,
        len: usize,
    },
    /// Put another segment's whole copy in its place.
    Replace,
    Remove,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (0.0..1.0f64, 1..=255u8).prop_map(|(at, mask)| Damage::Flip { at, mask }),
        2 => (0.0..1.0f64).prop_map(|at| Damage::Truncate { at }),
        1 => (1..100usize).prop_map(|by| Damage::Extend { by }),
        2 => (0.0..1.0f64, 1..5000usize).prop_map(|(at, len)| Damage::Zero { at, len }),
        3 => (0.0..1.0f64, 1..200_000usize).prop_map(|(at, len)| Damage::Splice { at, len }),
        1 => Just(Damage::Replace),
        1 => Just(Damage::Remove),
    ]
}

impl Damage {
    fn apply(&self, path: &Path, other: &[u8]) {
        let mut bytes = fs::read(path).unwrap();
        let place = |at: f64| ((bytes.len() as f64 * at) as usize).min(bytes.len() - 1);
        match *self {
            Self::Flip { at, mask } => {
                let at = place(at);
                bytes[at] ^= mask;
            }
            Self::Truncate { at } => {
                let at = place(at);
                bytes.truncate(at);
            }
            Self::Extend { by } => bytes.extend(std::iter::repeat_n(7, by)),
            Self::Zero { at, len } => {
                let at = place(at);
                let end = (at + len).min(bytes.len());
                bytes[at..end].fill(0);
            }
            Self::Splice { at, len } => {
                let at = place(at);
                let end = (at + len).min(bytes.len()).min(other.len()).max(at);
                if end > at && end <= other.len() {
                    bytes[at..end].copy_from_slice(&other[at..end]);
                }
            }
            Self::Replace => bytes = other.to_vec(),
            Self::Remove => return fs::remove_file(path).unwrap(),
        }
        // Under a new inode, as a mapping of the old one may be open.
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

const CHUNKS: u64 = 6000;

/// Two segments over the same ids with different places, so that any mix-up shows.
fn segments() -> [(&'static str, Vec<u8>); 2] {
    let of = |pack: u8| payload((0..CHUNKS).map(|n| (id(n * 2 + u64::from(pack)), at(pack, n as u32))), &[]);
    [("idx/a", of(1)), ("idx/b", of(2))]
}

fn model() -> BTreeMap<ChunkId, ChunkAt> {
    (0..CHUNKS).flat_map(|n| [1, 2].map(|pack| (id(n * 2 + u64::from(pack)), at(pack, n as u32)))).collect()
}

fn file_of(dir: &Path, object: &str) -> PathBuf {
    segments::path_of(dir, object)
}

struct Source {
    payloads: BTreeMap<String, Vec<u8>>,
    asked: Mutex<Vec<String>>,
}

impl SegmentSource for Source {
    fn payload(&self, object: &str) -> crate::Result<Vec<u8>> {
        self.asked.lock().unwrap().push(object.to_owned());
        let absent = || crate::Error::refused(crate::Kind::Absent, format!("no index object '{object}'"));
        self.payloads.get(object).cloned().ok_or_else(absent)
    }
}

fn source() -> Arc<Source> {
    let payloads = segments().into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    Arc::new(Source { payloads, asked: Mutex::default() })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_copy_never_gives_a_false_answer(damages in proptest::collection::vec(damage(), 1..4), lazy in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let names = wanted(&["idx/b", "idx/a"]);
        let (set, _) = SegmentSet::open(dir.path(), &KEY, &names).unwrap();
        for (name, bytes) in segments() {
            set.install(name, 1000, &bytes).unwrap();
        }
        let (victim, other) = (file_of(dir.path(), "idx/a"), fs::read(file_of(dir.path(), "idx/b")).unwrap());
        for damage in &damages {
            if victim.exists() && fs::metadata(&victim).unwrap().len() > 0 {
                damage.apply(&victim, &other);
            }
        }
        let (set, missing) = SegmentSet::open(dir.path(), &KEY, &names).unwrap();
        prop_assert!(!missing.contains(&"idx/b".to_owned()));
        let model = model();
        let missed = (0..200).map(|n| id(1_000_000 + n));
        if lazy {
            // Without repair: an answer is right, or an error that names what to fetch.
            for id in model.keys().copied().chain(missed) {
                match set.lookup(&id) {
                    Ok(answer) => prop_assert_eq!(answer, model.get(&id).cloned()),
                    Err(e) => prop_assert_eq!(e.rebuild(), Some("idx/a")),
                }
            }
        } else {
            // With repair: always right.
            let index = CombinedIndex::new(Arc::new(MemoryIndex::new()), Arc::new(set), HashSet::new(), Some(source()));
            for id in model.keys().copied().chain(missed) {
                prop_assert_eq!(index.lookup(&id).unwrap(), model.get(&id).cloned());
            }
        }
    }
}

/// Damage that the head's MAC cannot see is found when the block or the filter is first touched.
#[test]
fn every_region_is_authenticated() {
    let dir = tempfile::tempdir().unwrap();
    let names = wanted(&["idx/a"]);
    let [(name, bytes), _] = segments();
    let (set, _) = SegmentSet::open(dir.path(), &KEY, &names).unwrap();
    set.install(name, 1000, &bytes).unwrap();
    let path = file_of(dir.path(), name);
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 97).chain([good.len() - 1, good.len() - 33, good.len() - 65]) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bad).unwrap();
        let (set, missing) = SegmentSet::open(dir.path(), &KEY, &names).unwrap();
        let noticed = !missing.is_empty()
            || (0..CHUNKS).any(|n| matches!(set.lookup(&id(n * 2 + 1)), Err(IndexError::Poisoned { .. })));
        assert!(noticed, "a flip at {at} of {} was not noticed", good.len());
        assert!(!path.exists() && path.with_extension("poisoned").exists());
        set.install(name, 1000, &bytes).unwrap();
        assert!((0..CHUNKS).all(|n| set.lookup(&id(n * 2 + 1)).unwrap().is_some()));
    }
}

#[test]
fn a_copy_made_for_another_repository_or_another_object_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [(name, bytes), _] = segments();
    let install = |key: &[u8; 32]| {
        let (set, _) = SegmentSet::open(dir.path(), key, &wanted(&[name])).unwrap();
        set.install(name, 1000, &bytes).unwrap();
    };
    let missing = |key: &[u8; 32], name: &str, size: u64| {
        SegmentSet::open(dir.path(), key, &[(name.to_owned(), size)]).unwrap().1.len()
    };
    install(&KEY);
    assert_eq!(missing(&KEY, name, 1000), 0);
    assert_eq!(missing(&[1; 32], name, 1000), 1);
    install(&KEY);
    assert_eq!(missing(&KEY, name, 1001), 1);
    install(&KEY);
    fs::rename(file_of(dir.path(), name), file_of(dir.path(), "idx/c")).unwrap();
    assert_eq!(missing(&KEY, "idx/c", 1000), 1);
}

#[test]
fn a_damaged_segment_is_fetched_once_though_many_threads_meet_it() {
    let dir = tempfile::tempdir().unwrap();
    let names = wanted(&["idx/b", "idx/a"]);
    let (set, _) = SegmentSet::open(dir.path(), &KEY, &names).unwrap();
    for (name, bytes) in segments() {
        set.install(name, 1000, &bytes).unwrap();
    }
    let path = file_of(dir.path(), "idx/a");
    let len = fs::metadata(&path).unwrap().len() as usize;
    Damage::Zero { at: 0.3, len: len / 3 }.apply(&path, &[]);
    let (set, missing) = SegmentSet::open(dir.path(), &KEY, &names).unwrap();
    assert!(missing.is_empty());
    let (source, model) = (source(), model());
    let index = CombinedIndex::new(Arc::new(MemoryIndex::new()), Arc::new(set), HashSet::new(), Some(source.clone()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| model.iter().for_each(|(id, at)| assert_eq!(index.lookup(id).unwrap().as_ref(), Some(at))));
        }
    });
    assert_eq!(*source.asked.lock().unwrap(), ["idx/a"]);
}

#[test]
fn a_source_that_fails_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (set, _) = SegmentSet::open(dir.path(), &KEY, &wanted(&["idx/none"])).unwrap();
    let set = Arc::new(set);
    let index = CombinedIndex::new(Arc::new(MemoryIndex::new()), set.clone(), HashSet::new(), Some(source()));
    let error = index.lookup(&id(1)).unwrap_err();
    assert_eq!(error.kind(), crate::Kind::Absent);
    assert!(error.to_string().contains("idx/none"));
    let alone = CombinedIndex::new(Arc::new(MemoryIndex::new()), set, HashSet::new(), None);
    assert_eq!(alone.lookup(&id(1)).unwrap_err().rebuild(), Some("idx/none"));
}

#[test]
fn any_number_of_damaged_segments_is_repaired_in_one_lookup() {
    const SEGMENTS: u8 = 9;
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..SEGMENTS).map(|n| format!("idx/{n}")).collect();
    // The same chunks in all of them, and only the last one's pack may be used: each lookup reads them all.
    let of = |n: u8| payload((0..CHUNKS).map(|c| (id(c), at(n, c as u32))), &[]);
    let payloads: BTreeMap<String, Vec<u8>> = names.iter().cloned().zip((0..SEGMENTS).map(of)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (set, _) = SegmentSet::open(dir.path(), &KEY, &wanted(&names)).unwrap();
    for (name, bytes) in &payloads {
        set.install(name, 1000, bytes).unwrap();
        let path = file_of(dir.path(), name);
        let len = fs::metadata(&path).unwrap().len() as usize;
        Damage::Zero { at: 0.3, len: len / 3 }.apply(&path, &[]);
    }
    let (set, missing) = SegmentSet::open(dir.path(), &KEY, &wanted(&names)).unwrap();
    assert!(missing.is_empty(), "{missing:?}");
    let source = Arc::new(Source { payloads, asked: Mutex::default() });
    let last = SEGMENTS - 1;
    let condemned: HashSet<_> = (0..last).map(|n| at(n, 0).pack.pack).collect();
    let index = CombinedIndex::new(Arc::new(MemoryIndex::new()), Arc::new(set), condemned, Some(source.clone()));
    for c in 0..CHUNKS {
        assert_eq!(index.lookup(&id(c)).unwrap(), Some(at(last, c as u32)));
    }
    // All are damaged at the same place, so one lookup met them all.
    assert_eq!(source.asked.lock().unwrap().len(), usize::from(SEGMENTS));
}
