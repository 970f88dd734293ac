//! What a repository holds and what its backups cost: bytes by kind, by encoding and by use.
//!
//! Two sources, neither of which decodes a data chunk: the manifests of all visible backups, each walked to its end, tell what
//! is used; the footers of all packs tell what is there. Order: the catalogue first, then the index, then the list of
//! objects, so that whatever a backup of the catalogue needs was there when it was looked for. Writes nothing.
//!
//! What is *live* is what a visible backup's manifest names, and what such a chunk is encoded against. The rest is *dead*:
//! left by expired or interrupted backups, a second copy of a chunk, or written by a backup that has not ended yet.
//!
//! Memory: three bits for each chunk in the packs, one for each entry of the chunk table of the backup being walked, some
//! 200 bytes a pack, the footer of one pack, and the local index (on disk if the repository has a cache). One thread; two or
//! three small reads a pack, and as many again for each backup and pack in which it has chunks encoded against others.

mod report;
#[cfg(test)]
mod tests;
mod walk;

pub use report::{BackupStats, Breakdown, Objects, PackStats, RepoStats, Selection, Tally};

use crate::index::{ChunkAt, ChunkIndex};
use crate::observe::{Cancel, Counter, Observer};
use crate::pack::read_footer;
use crate::repository::{Backup, Repository};
use crate::store::Depth;
use crate::{Error, Kind, Result};
use pgkeep_formats::id::PackId;
use pgkeep_formats::repo::layout;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What to count.
#[derive(Debug, Clone, Copy, Default)]
pub struct StatsOptions<'a> {
    /// Only this stanza's backups; none means all.
    pub stanza: Option<&'a str>,
    /// Only this backup. Nothing is then said of what is live, as the others are not walked.
    pub set: Option<&'a str>,
}

/// Chunks by their place: a bit for each chunk of each pack met.
#[derive(Debug, Default)]
struct Marks(HashMap<PackId, Vec<u64>>);

impl Marks {
    /// True if the chunk was not marked yet.
    fn mark(&mut self, pack: PackId, ordinal: u16) -> bool {
        let bits = self.0.entry(pack).or_default();
        let (word, bit) = (usize::from(ordinal) / 64, 1u64 << (ordinal % 64));
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        match bits.get_mut(word) {
            Some(bits) if *bits & bit == 0 => {
                *bits |= bit;
                true
            }
            _ => false,
        }
    }

    fn contains(&self, pack: PackId, ordinal: u16) -> bool {
        let word = |bits: &Vec<u64>| bits.get(usize::from(ordinal) / 64).copied().unwrap_or(0);
        self.0.get(&pack).is_some_and(|bits| word(bits) & (1 << (ordinal % 64)) != 0)
    }
}

/// Distinct chunks and what they come to.
#[derive(Debug, Default)]
struct Used {
    marks: Marks,
    chunks: Breakdown,
}

impl Used {
    /// True if the chunk was not in it yet.
    fn add(&mut self, at: &ChunkAt) -> bool {
        let new = self.marks.mark(at.pack.pack, at.ordinal);
        if new {
            self.chunks.add(at.kind, at.encoding, at.plain_len, at.stored_len);
        }
        new
    }
}

/// What the walk of all backups gathers.
#[derive(Default)]
struct Gathered {
    /// Of all backups that are walked.
    live: Used,
    /// Of those asked for, if they are not all.
    selected: Option<Used>,
    /// Packs with deltas that do not tell what these need.
    unreadable: BTreeMap<PackId, Error>,
}

/// True for a footer that is damaged.
fn is_of_pack(error: &Error) -> bool {
    matches!(error.kind(), Kind::Format | Kind::Checksum)
}

/// Counts.
///
/// # Errors
/// `FileMissing` for an unknown stanza, `BackupSetInvalid` for an unknown backup, `Interrupted`; a manifest that cannot be read;
/// what the store said. A pack whose footer is damaged is in the result.
pub fn run(
    repository: &Arc<Repository>,
    options: &StatsOptions<'_>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<RepoStats> {
    // 1. Which backups.
    let all = stanzas(repository)?;
    let place = || repository.store().describe();
    if let Some(unknown) = options.stanza.filter(|s| !all.iter().any(|name| name == s)) {
        return Err(Error::refused(Kind::FileMissing, format!("stanza '{unknown}' does not exist in {}", place())));
    }
    let chosen = |stanza: &str, b: &Backup| {
        options.stanza.is_none_or(|s| s == stanza) && options.set.is_none_or(|set| b.label == set)
    };
    let mut backups = Vec::new();
    for stanza in &all {
        let visible = repository.backups(stanza)?.into_iter().map(|b| (stanza.as_str(), chosen(stanza, &b), b));
        // Of one backup no more is asked than what it needs itself.
        backups.extend(visible.filter(|(_, chosen, _)| options.set.is_none() || *chosen));
    }
    if let Some(set) = options.set.filter(|_| backups.is_empty()) {
        return Err(Error::refused(Kind::BackupSetInvalid, format!("backup '{set}' does not exist in {}", place())));
    }
    // 2. The index, then the objects.
    let index: Arc<dyn ChunkIndex> = repository.load_index_to_read()?;
    let listing = list(repository, cancel)?;
    // 3. What backups use.
    let whole = backups.iter().all(|(_, chosen, _)| *chosen);
    let mut gathered = Gathered { selected: (!whole).then(Used::default), ..Gathered::default() };
    let mut selection = Selection::default();
    observer.begin("read manifests", backups.iter().map(|(_, _, b)| b.size).sum());
    for (stanza, chosen, backup) in &backups {
        let stats = walk::walk(repository, &index, stanza, backup, *chosen, &mut gathered, cancel)?;
        observer.add(Counter::Done, backup.size);
        if *chosen {
            selection.logical_bytes += stats.file_bytes;
            selection.backups.push(stats);
        }
    }
    observer.end();
    selection.wal_bytes =
        listing.wal.iter().filter(|(s, _)| wanted(options, &backups, s)).map(|(_, bytes)| bytes).sum();
    selection.chunks = gathered.selected.as_ref().unwrap_or(&gathered.live).chunks.clone();
    // 4. What is there.
    let live = options.set.is_none().then_some(&gathered.live);
    observer.begin("read packs", listing.packs.iter().map(|p| p.1).sum());
    let mut packs = count_packs(repository, &*index, &listing.packs, live, observer, cancel)?;
    // Listed or not, a pack without which it is not known what a backup needs is told.
    let counted: BTreeSet<PackId> = packs.unreadable.iter().map(|(pack, _)| *pack).collect();
    packs.unreadable.extend(gathered.unreadable.into_iter().filter(|(pack, _)| !counted.contains(pack)));
    observer.end();
    Ok(RepoStats { objects: listing.objects, packs, selection })
}

/// Whether a stanza's WAL belongs to what was asked for.
fn wanted(options: &StatsOptions<'_>, backups: &[(&str, bool, Backup)], stanza: &str) -> bool {
    match (options.stanza, options.set) {
        (Some(only), _) => stanza == only,
        (None, Some(_)) => backups.iter().any(|(s, _, _)| *s == stanza),
        (None, None) => true,
    }
}

/// All stanzas, also those that lost their history: what they use must not pass for dead.
fn stanzas(repository: &Repository) -> Result<Vec<String>> {
    let mut names: BTreeSet<String> = repository.stanzas()?.into_iter().collect();
    let prefix = "backups/";
    repository.store().list(prefix, Depth::Children, &mut |l| {
        names.extend(l.key.strip_prefix(prefix).and_then(|n| n.strip_suffix('/')).map(str::to_owned));
    })?;
    Ok(names.into_iter().filter(|n| layout::check_stanza(n).is_ok()).collect())
}

#[derive(Default)]
struct Listing {
    objects: BTreeMap<String, Objects>,
    packs: Vec<(PackId, u64)>,
    /// Bytes of WAL by stanza.
    wal: BTreeMap<String, u64>,
}

fn list(repository: &Repository, cancel: &Cancel) -> Result<Listing> {
    let mut out = Listing::default();
    repository.store().list("", Depth::All, &mut |l| {
        let (first, rest) = l.key.split_once('/').unwrap_or((&l.key, ""));
        out.packs.extend(layout::parse_pack(&l.key).zip(Some(l.size)));
        if first == "wal" {
            *out.wal.entry(rest.split('/').next().unwrap_or_default().to_owned()).or_default() += l.size;
        }
        let of = match out.objects.get_mut(first) {
            Some(of) => of,
            None => out.objects.entry(first.to_owned()).or_default(),
        };
        of.count += 1;
        of.bytes += l.size;
    })?;
    cancel.check()?;
    Ok(out)
}

/// Reads all footers.
fn count_packs(
    repository: &Repository,
    index: &dyn ChunkIndex,
    packs: &[(PackId, u64)],
    live: Option<&Used>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<PackStats> {
    let mut out = PackStats::default();
    for (pack, size) in packs {
        cancel.check()?;
        observer.add(Counter::Done, *size);
        let footer = match read_footer(repository, *pack, *size) {
            Ok((_, footer)) => footer,
            // Taken by garbage collection since it was listed.
            Err(e) if e.is_not_found() => continue,
            Err(e) if is_of_pack(&e) => {
                out.unreadable.push((*pack, e));
                continue;
            }
            Err(e) => return Err(e),
        };
        out.packs.count += 1;
        out.packs.bytes += size;
        out.dead_packs += live.map_or(0, |l| u64::from(!l.marks.0.contains_key(pack)));
        for (ordinal, e) in footer.entries.iter().enumerate() {
            out.chunks.add(e.kind, e.encoding, e.plain_len, e.stored_len);
            out.page_hashes += u64::from(e.page_hashes);
            let found = index.lookup(&e.id)?;
            if found.is_none_or(|at| (at.pack.pack, usize::from(at.ordinal)) != (*pack, ordinal)) {
                out.copies.add(e.plain_len, e.stored_len);
            }
        }
    }
    out.live = live.map(|l| l.chunks.total());
    Ok(out)
}
