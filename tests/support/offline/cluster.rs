//! A data directory that looks like PostgreSQL's, of a server that was shut down.

use super::{TestClock, VERSION};
use crate::seed::Seed;
use pgkeep_engine::clock::Clock;
use pgkeep_formats::pg::control::fabricate;
use pgkeep_formats::pg::page::checksum;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Bytes of a page.
const PAGE: usize = 8192;
/// Tables of more than a megabyte, beside the one of the size asked for.
const LARGE: [(&str, u32); 2] = [("base/5/16384", 192), ("base/5/16385", 150)];
/// Small relations of each database.
const SMALL: u64 = 12;

/// A page of a relation with a valid checksum, whose content follows from the seed. Every fourth compresses well.
#[must_use]
pub fn page(seed: &mut Seed, block: u32) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let bits = seed.bits();
    if bits.is_multiple_of(4) {
        let words = format!("row {bits:x} of a table that repeats itself; ");
        page[64..].iter_mut().zip(words.bytes().cycle()).for_each(|(to, from)| *to = from);
    } else {
        seed.fill(&mut page[64..]);
    }
    page[..8].copy_from_slice(&[0, 0, 0, 0, 0x28, 0, 0, 1]);
    let fields: [(usize, u16); 4] = [(12, 64), (14, 64), (16, PAGE as u16), (18, PAGE as u16 | 4)];
    fields.iter().for_each(|(at, value)| page[*at..*at + 2].copy_from_slice(&value.to_le_bytes()));
    let sum = checksum(&page, block);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    page
}

/// The directory. Every change gives the file a time of its own; the clock moves on.
pub struct FakeCluster {
    pgdata: PathBuf,
    tablespace: PathBuf,
    clock: Arc<TestClock>,
    seed: Mutex<Seed>,
}

impl FakeCluster {
    pub(super) fn new(world: &Path, clock: Arc<TestClock>, seed: u64, megabytes: u64) -> Self {
        let (pgdata, tablespace) = (world.join("data"), world.join("space"));
        let cluster = Self { pgdata, tablespace, clock, seed: Mutex::new(Seed::of(seed)) };
        let facts = VERSION.facts();
        for name in ["", "base", "base/1", "base/5", "global", "pg_xact", "pg_multixact/offsets", "pg_tblspc"] {
            cluster.directory(name);
        }
        // Empty, and empty in every backup.
        for name in ["pg_notify", "pg_replslot", "pg_stat_tmp", "pg_twophase", "pg_wal/archive_status", "log"] {
            cluster.directory(name);
        }
        let own = format!("{}/5", facts.tablespace_directory);
        fs::create_dir_all(cluster.tablespace.join(&own)).expect("cannot make a directory");
        symlink(&cluster.tablespace, cluster.pgdata.join("pg_tblspc/16400")).expect("cannot make a link");
        fs::create_dir_all(world.join("etc")).expect("cannot make a directory");
        fs::write(world.join("etc/ident.conf"), "# elsewhere\n".repeat(50)).expect("cannot write");
        symlink(world.join("etc/ident.conf"), cluster.pgdata.join("pg_ident.conf")).expect("cannot make a link");
        cluster.touch("pg_ident.conf");

        for name in ["PG_VERSION", "base/1/PG_VERSION", "base/5/PG_VERSION"] {
            cluster.write(name, format!("{}\n", VERSION.major()).as_bytes());
        }
        cluster.write("global/pg_control", &fabricate(VERSION, seed));
        cluster.random("global/pg_filenode.map", 512);
        cluster.relation("global/1262", 1);
        for database in [1, 5] {
            (0..SMALL).for_each(|n| cluster.relation(&format!("base/{database}/{}", 2600 + n), 1 + n as u32 % 3));
            cluster.write(&format!("base/{database}/2600_vm"), &[0; PAGE]);
            cluster.relation(&format!("base/{database}/2600_fsm"), 3);
        }
        LARGE.iter().for_each(|(name, pages)| cluster.relation(name, *pages));
        cluster.relation("base/5/16386", (megabytes << 20) as u32 / PAGE as u32);
        cluster.write("base/5/16387", &[]);
        cluster.hole("base/5/16385", 40, 60);
        cluster.relation(&format!("pg_tblspc/16400/{own}/16390"), 40);
        cluster.random("pg_xact/0000", 3 * PAGE);
        cluster.random("pg_multixact/offsets/0000", PAGE);
        cluster.random("pg_wal/000000010000000000000001", 100_000);
        cluster.write("postgresql.conf", "# a comment like any other\n".repeat(900).as_bytes());
        cluster.write("pg_hba.conf", b"local all all trust\n");
        cluster.write("postgresql.auto.conf", b"");
        cluster
    }

    /// PGDATA.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.pgdata
    }

    /// Where the tablespace's link points.
    #[must_use]
    pub fn tablespace(&self) -> &Path {
        &self.tablespace
    }

    fn directory(&self, name: &str) {
        let path = self.pgdata.join(name);
        fs::create_dir_all(&path).expect("cannot make a directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("cannot change a mode");
    }

    /// Replaces a file.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.pgdata.join(name);
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("cannot write {name}: {e}"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("cannot change a mode");
        self.touch(name);
    }

    /// Sets a file's time of change to the clock's, which then moves on.
    fn touch(&self, name: &str) {
        let file = File::options().write(true).open(self.pgdata.join(name)).expect("cannot open");
        file.set_modified(SystemTime::UNIX_EPOCH + self.clock.now()).expect("cannot change a time");
        self.clock.advance(1);
    }

    /// A relation of so many fresh pages.
    pub fn relation(&self, name: &str, pages: u32) {
        let mut seed = self.seed.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = (0..pages).flat_map(|block| page(&mut seed, block)).collect();
        drop(seed);
        self.write(name, &bytes);
    }

    /// A file of random bytes.
    pub fn random(&self, name: &str, len: usize) {
        let mut bytes = vec![0; len];
        self.seed.lock().unwrap_or_else(PoisonError::into_inner).fill(&mut bytes);
        self.write(name, &bytes);
    }

    /// New content for some pages of a relation; grows it if they lie behind its end.
    pub fn update(&self, name: &str, blocks: &[u32]) {
        let mut bytes = fs::read(self.pgdata.join(name)).expect("cannot read");
        let mut seed = self.seed.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks {
            let at = *block as usize * PAGE;
            bytes.resize(bytes.len().max(at + PAGE), 0);
            bytes[at..at + PAGE].copy_from_slice(&page(&mut seed, *block));
        }
        drop(seed);
        self.write(name, &bytes);
    }

    /// Changes a few bytes of some pages, as updates of rows do. Pages behind the end, and new ones, stay as they are.
    pub fn edit(&self, name: &str, blocks: &[u32]) {
        let mut bytes = fs::read(self.pgdata.join(name)).expect("cannot read");
        let mut seed = self.seed.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks {
            let at = *block as usize * PAGE;
            let Some(page) = bytes.get_mut(at..at + PAGE).filter(|page| page.iter().any(|b| *b != 0)) else { continue };
            let row = 64 + seed.below(PAGE as u64 - 128) as usize;
            seed.fill(&mut page[row..row + 24]);
            let sum = checksum(page, *block);
            page[8..10].copy_from_slice(&sum.to_le_bytes());
        }
        drop(seed);
        self.write(name, &bytes);
    }

    /// Makes some pages new: all zeros.
    pub fn hole(&self, name: &str, first: usize, pages: usize) {
        let mut bytes = fs::read(self.pgdata.join(name)).expect("cannot read");
        let end = ((first + pages) * PAGE).min(bytes.len());
        bytes[(first * PAGE).min(end)..end].fill(0);
        self.write(name, &bytes);
    }

    /// Cuts a relation to so many pages, if it has more.
    pub fn truncate(&self, name: &str, pages: usize) {
        let mut bytes = fs::read(self.pgdata.join(name)).expect("cannot read");
        bytes.truncate(pages * PAGE);
        self.write(name, &bytes);
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.pgdata.join(name)).unwrap_or_else(|e| panic!("cannot remove {name}: {e}"));
    }

    /// What a server does between two backups: pages here and there, a new table, one less, a configuration.
    pub fn churn(&self) {
        self.update("base/5/16384", &[3, 4, 77, 192, 193]);
        self.relation("base/5/16388", 140);
        self.remove("base/5/2603");
        self.relation("base/5/2604", 2);
        self.hole("base/5/16386", 2, 33);
        self.random("pg_xact/0000", 3 * PAGE);
        self.write("postgresql.auto.conf", b"work_mem = '8MB'\n");
    }

    /// Changes that can be made again and again.
    pub fn churn_more(&self) {
        self.update("base/5/16384", &[3, 4, 77]);
        self.relation("base/5/16388", 140);
        self.random("pg_xact/0000", 3 * PAGE);
    }
}
