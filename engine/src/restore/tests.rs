//! Restores of fabricated trees: what comes back, what is refused, what an interruption leaves.

mod content;
mod crash;
mod databases;
mod fallback;
mod guards;
mod links;
pub(super) mod selection;

use super::testing::{TreeOptions, back_up_tree};
use super::{Env, RestoreOptions, RestoreReport, run};
use crate::Result;
use crate::clock::SystemClock;
use crate::crypto::Unlock;
use crate::observe::{Cancel, Silent};
use crate::repository::{OpenOptions, Repository};
use crate::store::{MemoryStore, Store};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// Stanza of all tests.
const STANZA: &str = "demo";

/// A directory in memory where there is one: every restore syncs the file system it lies on.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A repository, a tree to back up, and room for targets.
struct Rig {
    room: TempDir,
    store: MemoryStore,
    repository: Arc<Repository>,
}

impl Rig {
    fn new() -> Self {
        let room = scratch();
        let store = MemoryStore::new();
        let options = open_options(&room.path().join("cache"));
        let repository = Arc::new(Repository::create(Arc::new(store.clone()), options, 0).unwrap());
        std::fs::create_dir(room.path().join("source")).unwrap();
        Self { room, store, repository }
    }

    /// A rig whose tree has a few files of every kind.
    fn with_tree() -> Self {
        let rig = Self::new();
        rig.file("PG_VERSION", b"15\n");
        rig.file("global/pg_control", &noise(8192, 1));
        rig.file("base/5/1259", &noise(8192 * 21 + 100, 2));
        rig.file("base/5/1260", &[0; 8192 * 3]);
        rig.file("pg_xact/0000", &noise(50_000, 3));
        rig.file("empty", b"");
        rig
    }

    fn source(&self) -> PathBuf {
        self.room.path().join("source")
    }

    fn target(&self) -> PathBuf {
        self.room.path().join("target")
    }

    fn file(&self, path: &str, content: &[u8]) {
        put(&self.source().join(path), content);
    }

    fn back_up(&self, options: &TreeOptions) {
        back_up_tree(&self.repository, STANZA, &self.source(), options).unwrap();
    }

    fn options(&self) -> RestoreOptions {
        RestoreOptions { process_max: 2, ..RestoreOptions::new(STANZA, self.target()) }
    }

    fn restore(&self, options: &RestoreOptions) -> Result<RestoreReport> {
        restore(&self.repository, options)
    }

    /// The same repository through another store.
    fn reopened(&self, store: Arc<dyn Store>) -> Arc<Repository> {
        Arc::new(Repository::open(store, open_options(&self.room.path().join("cache2"))).unwrap())
    }
}

fn open_options(cache: &Path) -> OpenOptions {
    OpenOptions { key: 1, unlock: Unlock::None, cache: Some(cache.to_owned()) }
}

fn restore(repository: &Arc<Repository>, options: &RestoreOptions) -> Result<RestoreReport> {
    let env = Env { observer: &Silent, cancel: &Cancel::default(), clock: &SystemClock };
    run(std::slice::from_ref(repository), options, &env)
}

fn put(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut out);
    out
}

/// Everything a restore must bring back of a tree, by path. Links are not followed.
fn facts(root: &Path) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let m = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let what = if m.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            "directory".to_owned()
        } else if m.is_symlink() {
            out.insert(name, format!("link to {}", std::fs::read_link(&path).unwrap().display()));
            continue;
        } else {
            let hash = blake3::hash(&std::fs::read(&path).unwrap());
            format!("file {} {hash} {}.{}", m.len(), m.mtime(), m.mtime_nsec())
        };
        out.insert(name, format!("{what} {:o} {}:{}", m.mode() & 0o7777, m.uid(), m.gid()));
    }
    out
}

#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (facts(a), facts(b));
    for (path, fact) in &a {
        assert_eq!(Some(fact), b.get(path), "{path}");
    }
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
}
