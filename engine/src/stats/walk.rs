//! One backup: its manifest from end to end, and the chunks that its chunks are encoded against.

use super::report::{BackupStats, Tally};
use super::{Gathered, Used, is_of_pack};
use crate::Result;
use crate::index::{ChunkAt, ChunkIndex};
use crate::observe::Cancel;
use crate::pack::read_footer;
use crate::repository::manifests::{FileRecord, Manifest};
use crate::repository::{Backup, ChunkSource, Repository};
use pgkeep_formats::id::{ChunkId, PackId};
use pgkeep_formats::repo::chunk::Encoding;
use pgkeep_formats::repo::manifest::{Content, ExtentAt};
use pgkeep_formats::repo::pack::{Dependency, Footer, FooterEntry};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

struct Walk<'a> {
    source: &'a Arc<ChunkSource>,
    gathered: &'a mut Gathered,
    chosen: bool,
    /// What this backup needs.
    used: Used,
    /// Packs in which chunks lie that are encoded against others, with their sizes.
    dependent: HashMap<PackId, u64>,
    /// Ordinals of the chunk table that were met, a bit each.
    ordinals: Vec<u64>,
    stats: BackupStats,
}

/// Walks one backup.
pub(super) fn walk(
    repository: &Arc<Repository>,
    index: &Arc<dyn ChunkIndex>,
    stanza: &str,
    backup: &Backup,
    chosen: bool,
    gathered: &mut Gathered,
    cancel: &Cancel,
) -> Result<BackupStats> {
    let source = Arc::new(ChunkSource::new(Arc::clone(repository), Arc::clone(index), stanza));
    let stats = BackupStats {
        stanza: stanza.to_owned(),
        label: backup.label.clone(),
        backup_type: backup.backup_type,
        files: 0,
        file_bytes: 0,
        inline_bytes: 0,
        zero_bytes: 0,
        extents: 0,
        page_extents: 0,
        pages: 0,
        references: 0,
        named: Tally::default(),
        bases: Tally::default(),
        metadata: Tally::default(),
        added: backup.repository_delta,
    };
    let (used, dependent, ordinals) = (Used::default(), HashMap::new(), Vec::new());
    let mut walk = Walk { source: &source, gathered, chosen, used, dependent, ordinals, stats };
    let manifest = Arc::new(Manifest::open(&source, backup)?);
    walk.metadata(&manifest, backup)?;
    for record in manifest.files() {
        cancel.check()?;
        walk.file(&manifest, &record?)?;
    }
    walk.bases(repository, cancel)?;
    Ok(walk.stats)
}

impl Walk<'_> {
    /// Notes that the backup needs a chunk; what it comes to, nothing if it was known.
    fn need(&mut self, at: &ChunkAt) -> Tally {
        if !self.used.add(at) {
            return Tally::default();
        }
        self.gathered.live.add(at);
        if let Some(selected) = self.gathered.selected.as_mut().filter(|_| self.chosen) {
            selected.add(at);
        }
        if depends(at.encoding) {
            self.dependent.insert(at.pack.pack, at.pack.size);
        }
        Tally { chunks: 1, plain: at.plain_len.into(), stored: at.stored_len.into() }
    }

    fn metadata(&mut self, manifest: &Manifest, backup: &Backup) -> Result<()> {
        for id in backup.manifest.iter().chain(manifest.root().pieces()) {
            let at = self.source.locate(id)?;
            let new = self.need(&at);
            self.stats.metadata += new;
        }
        Ok(())
    }

    fn file(&mut self, manifest: &Manifest, record: &FileRecord) -> Result<()> {
        let entry = &record.entry;
        if !entry.is_file() {
            return Ok(());
        }
        self.stats.files += 1;
        self.stats.file_bytes += entry.size;
        let unit = match &entry.content {
            Content::None => return Ok(()),
            Content::Inline(bytes) => {
                self.stats.inline_bytes += bytes.len() as u64;
                return Ok(());
            }
            Content::Extents { unit, .. } => u64::from(*unit),
        };
        self.stats.extents += record.extents.len() as u64;
        if unit > 1 {
            self.stats.page_extents += record.extents.len() as u64;
            self.stats.pages += record.extents.iter().map(|e| u64::from(e.units)).sum::<u64>();
        }
        let mut end = 0;
        for extent in &record.extents {
            let start = end;
            // The last page of a file may be short.
            end = (start + u64::from(extent.units) * unit).min(entry.size);
            match extent.at {
                ExtentAt::Zero => self.stats.zero_bytes += end - start,
                ExtentAt::Chunk { ordinal, .. } => {
                    self.stats.references += 1;
                    self.ordinal(manifest, ordinal)?;
                }
            }
        }
        Ok(())
    }

    fn ordinal(&mut self, manifest: &Manifest, ordinal: u32) -> Result<()> {
        let (word, bit) = (ordinal as usize / 64, 1u64 << (ordinal % 64));
        if self.ordinals.get(word).is_some_and(|bits| bits & bit != 0) {
            return Ok(());
        }
        let at = self.source.locate(&manifest.chunk_id(ordinal)?)?;
        if self.ordinals.len() <= word {
            self.ordinals.resize(word + 1, 0);
        }
        if let Some(bits) = self.ordinals.get_mut(word) {
            *bits |= bit;
        }
        // Two ordinals may stand for one chunk.
        let new = self.need(&at);
        self.stats.named += new;
        Ok(())
    }

    /// Adds what decoding needs. A base may lie in a pack that was read already and need a dictionary itself: packs are read
    /// until no new one comes up. What the chunks of a pack need that does not tell stays unknown.
    fn bases(&mut self, repository: &Repository, cancel: &Cancel) -> Result<()> {
        while !self.dependent.is_empty() {
            for (pack, size) in std::mem::take(&mut self.dependent) {
                cancel.check()?;
                if self.gathered.unreadable.contains_key(&pack) {
                    continue;
                }
                let footer = match read_footer(repository, pack, size) {
                    Ok((_, footer)) => footer,
                    Err(e) if is_of_pack(&e) || e.is_not_found() => {
                        self.gathered.unreadable.insert(pack, e);
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                let mut wanted = BTreeSet::new();
                for (ordinal, entry) in footer.entries.iter().enumerate() {
                    if self.used.marks.contains(pack, ordinal as u16) {
                        wanted.extend(needs(&footer, entry));
                    }
                }
                for id in wanted {
                    let at = self.source.locate(&id)?;
                    let new = self.need(&at);
                    self.stats.bases += new;
                }
            }
        }
        Ok(())
    }
}

/// Whether a chunk of this encoding can be decoded alone.
fn depends(encoding: Encoding) -> bool {
    match encoding {
        Encoding::Raw | Encoding::Zstd => false,
        Encoding::ZstdDictionary | Encoding::ZstdPrefix | Encoding::Patch => true,
    }
}

/// The chunks that decoding an entry of a footer needs; some of them several times.
pub(super) fn needs<'a>(footer: &'a Footer, entry: &'a FooterEntry) -> impl Iterator<Item = ChunkId> + 'a {
    let (dictionary, runs) = match &entry.dependency {
        Dependency::None => (None, &[][..]),
        Dependency::Dictionary(base) => (Some(*base), &[][..]),
        Dependency::Bases(runs) => (None, runs.as_slice()),
    };
    let bases = dictionary.into_iter().chain(runs.iter().map(|run| run.base));
    // A footer names no base that it does not list: its decoder refuses that.
    bases.filter_map(|base| footer.bases.get(base as usize).copied())
}
