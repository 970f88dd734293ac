//! Random lives of a cluster and its repository, compared with plain copies taken when each backup was made.
//!
//! A life is a sequence of changes, backups, crashes in mid-backup, damage to the cache, rebuilt indexes. At any time every
//! visible backup holds exactly what the files held, and every invariant of `support::offline` holds.

use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::store::{FaultStore, Store};
use pgkeep_formats::repo::records::BackupType;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use support::offline::{Ledger, STANZA, Tree, World, invariants, open, open_with, text};
use support::seed::Seed;

/// Things done in one life.
const STEPS: usize = 16;
/// More mutations than the backup of such a cluster needs, so that some are not stopped at all.
const MUTATIONS: u64 = 14;

struct Life {
    world: World,
    seed: Seed,
    cache: PathBuf,
    /// Relations beside the fixed ones.
    tables: Vec<String>,
    next_table: u32,
    expected: BTreeMap<String, Tree>,
    ledger: Ledger,
    log: Vec<String>,
}

impl Life {
    fn new(mut seed: Seed) -> Self {
        let world = World::new(seed.bits() >> 1 | 1, 1);
        let cache = world.path("cache");
        let (expected, ledger) = (BTreeMap::new(), Ledger::default());
        let tables = vec!["base/5/16386".to_owned(), "base/5/2605".to_owned(), "base/1/2606".to_owned()];
        Self { world, seed, cache, tables, next_table: 17000, expected, ledger, log: Vec::new() }
    }

    fn note(&mut self, what: String) {
        println!("  {what}");
        self.log.push(what);
    }

    fn change(&mut self) {
        let table = self.seed.below(self.tables.len() as u64) as usize;
        let name = self.tables[table].clone();
        let cluster = &self.world.cluster;
        let pages = fs::metadata(cluster.path().join(&name)).map_or(0, |f| f.len() / 8192);
        let what = self.seed.below(11);
        match what {
            0 => {
                let name = format!("base/{}/{}", [1, 5][self.seed.below(2) as usize], self.next_table);
                cluster.relation(&name, self.seed.below(200) as u32);
                self.next_table += 1;
                self.tables.push(name);
            }
            1 if self.tables.len() > 2 => {
                cluster.remove(&name);
                self.tables.remove(table);
            }
            2 => cluster.truncate(&name, self.seed.below(pages + 1) as usize),
            3 => cluster.hole(&name, self.seed.below(pages + 1) as usize, self.seed.below(70) as usize),
            4 => cluster.random("pg_xact/0000", 1 + self.seed.below(60_000) as usize),
            5 => {
                let text = format!("setting = {}\n", self.seed.bits()).repeat(self.seed.below(1500) as usize);
                cluster.write("postgresql.auto.conf", text.as_bytes());
            }
            8..=10 => {
                let blocks: Vec<u32> =
                    (0..1 + self.seed.below(90)).map(|_| self.seed.below(pages + 1) as u32).collect();
                cluster.edit(&name, &blocks);
            }
            _ => {
                let blocks: Vec<u32> =
                    (0..1 + self.seed.below(6)).map(|_| self.seed.below(pages + 20) as u32).collect();
                cluster.update(&name, &blocks);
            }
        }
        self.note(format!("change {what} of {name}"));
    }

    fn kind(&mut self) -> BackupType {
        *self.seed.pick(&[BackupType::Full, BackupType::Diff, BackupType::Incr, BackupType::Incr])
    }

    fn cache(&mut self) -> Option<PathBuf> {
        match self.seed.below(4) {
            0 => None,
            1 => {
                fs::remove_dir_all(&self.cache).expect("cannot clear the cache");
                fs::create_dir(&self.cache).expect("cannot make a directory");
                Some(self.cache.clone())
            }
            _ => Some(self.cache.clone()),
        }
    }

    /// Backs up, and crashes after so many mutations if the backup needs them.
    fn backup(&mut self, stop: Option<u64>) {
        let (kind, cache) = (self.kind(), self.cache());
        let tree = Tree::of_files(self.world.cluster.path());
        let store = Arc::new(FaultStore::new(self.world.store.clone()));
        stop.into_iter().for_each(|n| store.stop_after(n));
        let result = self.world.backup_to(Arc::clone(&store) as Arc<dyn Store>, cache.as_deref(), kind);
        let outcome = match &result {
            Ok(report) => report.commit.label.clone(),
            Err(e) => text(e),
        };
        self.note(format!("{kind:?}, cache {}, stop {stop:?}: {outcome}", cache.is_some()));
        assert!(result.is_ok() || store.is_stopped(), "a backup must succeed: {outcome}");
        // A crash behind the commit leaves a backup that nobody was told of.
        let visible = open(&self.world.store).and_then(|r| r.backups(STANZA)).expect("the backups must be listed");
        let new: Vec<String> =
            visible.into_iter().map(|c| c.label).filter(|l| !self.expected.contains_key(l)).collect();
        assert!(new.len() <= 1 && result.is_ok() <= !new.is_empty(), "{new:?}");
        self.expected.extend(new.into_iter().map(|label| (label, tree.clone())));
    }

    fn rebuild(&mut self) {
        let store = Arc::new(self.world.store.clone());
        let repository = open_with(store, Some(&self.cache)).expect("the repository must open");
        let rebuilt = repository.rebuild_index(&Silent, &Cancel::default()).expect("the index must be made anew");
        assert!(rebuilt.unreadable.is_empty());
        self.note(format!("rebuild the index: {} packs, {} chunks", rebuilt.packs, rebuilt.chunks));
    }

    /// Flips a bit of every file in the cache.
    fn poison(&mut self) {
        let mut dirs = vec![self.cache.clone()];
        let mut count = 0;
        while let Some(dir) = dirs.pop() {
            for path in fs::read_dir(dir).expect("cannot list").map(|e| e.expect("cannot list").path()) {
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                let mut bytes = fs::read(&path).expect("cannot read");
                if !bytes.is_empty() {
                    let at = self.seed.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << self.seed.below(8);
                    fs::write(&path, bytes).expect("cannot write");
                    count += 1;
                }
            }
        }
        self.note(format!("poison {count} files of the cache"));
    }

    fn live(&mut self) {
        for _ in 0..STEPS {
            match self.seed.below(16) {
                0..6 => self.change(),
                6..10 => self.backup(None),
                10..14 => {
                    let n = self.seed.below(MUTATIONS);
                    self.backup(Some(n));
                }
                14 => self.rebuild(),
                _ => self.poison(),
            }
        }
        self.backup(None);
        let labels = invariants(&self.world.store, &self.expected, &mut self.ledger);
        assert_eq!(labels.len(), self.expected.len(), "a backup has vanished");
    }
}

fn lives(count: usize) {
    let mut seed = Seed::new();
    for n in 0..count {
        println!("life {n}");
        Life::new(Seed::of(seed.bits())).live();
    }
}

#[test]
fn every_backup_of_a_random_life_is_what_the_files_were() {
    lives(12);
}
