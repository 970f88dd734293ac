//! Which packs and archived files are read, when not all are to be. What is not read is looked for: it must be there, with
//! the size that the index knows, and counts as whole.
//!
//! Of each object that was read and found whole this host keeps when that was, in `verified` below the repository's
//! cache: 16 bytes of the hash of its name, and seconds since the Unix epoch. Objects never change, so what was whole then
//! was the same object. Losing or damaging that file costs time only when it makes less of it true; whoever can write to the
//! cache can have objects left out, as whoever calls the command can. Entries go after [`FORGOTTEN_AFTER`].

use super::VerifyOptions;
use super::report::Findings;
use crate::repository::Repository;
use crate::{FileError, Result};
use pgkeep_formats::id::PackId;
use pgkeep_formats::repo::layout;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const MAGIC: &[u8; 16] = b"pgkeep verified1";
const ENTRY_LEN: usize = 20;
/// Most entries that are kept: some 60 MiB in memory while verifying.
const ENTRIES_MAX: usize = 1 << 20;
/// Nobody wants to know so late.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(400 * 24 * 3600);

type NameHash = [u8; 16];

/// What is read, and what was.
pub(super) struct Selection {
    percent: Option<u8>,
    seed: u64,
    /// What was read since then need not be read again; seconds since the Unix epoch.
    since: Option<u32>,
    now: u32,
    file: Option<PathBuf>,
    earlier: HashMap<NameHash, u32>,
    /// Packs that are marked as damaged: always read.
    marked: HashSet<NameHash>,
    seen: Mutex<Seen>,
}

/// What this run has come to.
#[derive(Default)]
struct Seen {
    picked: HashSet<NameHash>,
    whole: HashSet<NameHash>,
}

impl Selection {
    /// As the options ask.
    ///
    /// # Errors
    /// What the store said when it was asked for marked packs.
    pub(super) fn new(repository: &Repository, options: &VerifyOptions<'_>) -> Result<Self> {
        let now = seconds(options.now);
        let file = repository.cache().map(|dir| dir.join("verified"));
        let earlier = file.as_deref().map(read).unwrap_or_default();
        let marked = repository.marked_packs()?;
        Ok(Self {
            percent: options.sample,
            seed: options.seed,
            since: options.older_than.map(|age| now.saturating_sub(seconds(age))),
            now,
            file,
            earlier,
            marked: marked.into_iter().map(|pack| hash(&layout::pack(pack))).collect(),
            seen: Mutex::default(),
        })
    }

    /// Whether this object is to be read.
    pub(super) fn picks(&self, name: &str) -> bool {
        let hash = hash(name);
        let picked = self.marked.contains(&hash) || self.is_drawn(hash);
        if picked {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).picked.insert(hash);
        }
        picked
    }

    /// Of a sample so small that none of these packs may be drawn, one that is read all the same.
    pub(super) fn at_least_one(&self, packs: impl Iterator<Item = PackId>) -> Option<PackId> {
        self.percent?;
        packs.min_by_key(|pack| *blake3::hash(&[&self.seed.to_le_bytes()[..], &pack.0[..]].concat()).as_bytes())
    }

    fn is_drawn(&self, hash: NameHash) -> bool {
        if let (Some(since), Some(read)) = (self.since, self.earlier.get(&hash))
            && *read >= since
            && *read <= self.now
        {
            return false;
        }
        match self.percent {
            None => true,
            Some(percent) => {
                let drawn = blake3::hash(&[&self.seed.to_le_bytes()[..], &hash[..]].concat());
                let [low, high, ..] = *drawn.as_bytes();
                u32::from(u16::from_le_bytes([low, high])) * 100 < u32::from(percent) << 16
            }
        }
    }

    /// Notes that an object was read and is whole.
    pub(super) fn is_whole(&self, name: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).whole.insert(hash(name));
    }

    /// Keeps what was seen for later runs. That it cannot be kept is a warning.
    pub(super) fn keep(self, findings: &Findings) {
        let Some(file) = self.file else { return };
        let Seen { picked, whole } = self.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.earlier;
        // What was read and is not whole any more is not left out again.
        all.retain(|hash, _| !picked.contains(hash));
        all.extend(whole.into_iter().map(|hash| (hash, self.now)));
        let oldest = self.now.saturating_sub(seconds(FORGOTTEN_AFTER));
        let mut entries: Vec<(NameHash, u32)> = all.into_iter().filter(|(_, read)| *read >= oldest).collect();
        entries.sort_unstable_by_key(|(hash, read)| (std::cmp::Reverse(*read), *hash));
        entries.truncate(ENTRIES_MAX);
        if let Err(e) = write(&file, &entries) {
            findings.warn(format!("what was verified cannot be kept for later runs: {}", e.chain()));
        }
    }
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

fn hash(name: &str) -> NameHash {
    let mut out = [0; 16];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut out);
    out
}

/// What an earlier run kept; nothing if it is not there or not what it should be.
fn read(file: &Path) -> HashMap<NameHash, u32> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) if bytes.len() <= MAGIC.len() + ENTRIES_MAX * ENTRY_LEN => bytes,
        _ => return HashMap::new(),
    };
    let Some(body) = bytes.strip_prefix(MAGIC) else { return HashMap::new() };
    let (entries, _) = body.as_chunks::<ENTRY_LEN>();
    let entry = |bytes: &[u8; ENTRY_LEN]| {
        let (hash, time) = bytes.split_first_chunk::<16>()?;
        Some((*hash, u32::from_le_bytes(time.try_into().ok()?)))
    };
    entries.iter().filter_map(entry).collect()
}

fn write(file: &Path, entries: &[(NameHash, u32)]) -> Result<()> {
    let dir = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(FileError::at("create", dir))?;
    let new = file.with_extension("new");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&new).map_err(FileError::at("create", &new))?);
    let mut all = || -> std::io::Result<()> {
        out.write_all(MAGIC)?;
        for (hash, read) in entries {
            out.write_all(hash)?;
            out.write_all(&read.to_le_bytes())?;
        }
        out.flush()
    };
    all().map_err(FileError::at("write", &new))?;
    std::fs::rename(&new, file).map_err(FileError::at("rename", &new))?;
    Ok(())
}
