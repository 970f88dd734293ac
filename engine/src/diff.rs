//! What differs between two backups of one cluster, told from their manifests and from the hashes of pages beside chunks: no
//! page is read, but of the few chunks that have no such hashes.
//!
//! Both manifests are merged in path order, file by file, run of pages by run of pages. Where both refer to the same place
//! in the same chunk nothing is looked up. Memory: some 100 bytes a relation, and what tells of the
//! packs of some hundred chunks of each backup.

use crate::crypto::PageHasher;
use crate::observe::{Cancel, Counter, Observer};
use crate::pack::PackContents;
use crate::repository::manifests::{FileRecord, Manifest};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::pg::path::{PathClass, RelationFile, classify};
use pgkeep_formats::repo::manifest::{Content, Entry, Extent, ExtentAt, path_cmp};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Chunks of either backup whose hashes are at hand.
const CHUNKS_MAX: usize = 256;

/// Files of at most so many bytes are compared by reading them if places differ.
const SMALL_BYTES: u64 = 16 << 10;

/// A relation: what all its segments and forks have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationKey {
    /// Oid of the database; 0 for shared relations.
    pub database_oid: u32,
    /// Oid of the tablespace; `None` for the default one and for shared relations.
    pub tablespace_oid: Option<u32>,
    /// Number in the file name.
    pub filenode: u32,
}

/// How something differs. All but pages are bytes; forks are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// Size in the first backup; `None` if it was not there.
    pub before: Option<u64>,
    /// Size in the second; `None` if it is not there any more.
    pub after: Option<u64>,
    /// Pages that both have and whose content differs.
    pub pages_changed: u64,
    /// Pages behind the end of a file of the first backup.
    pub pages_added: u64,
    /// Pages behind the end of a file of the second.
    pub pages_removed: u64,
}

impl Change {
    fn is_none(&self) -> bool {
        self.before == self.after && self.pages_changed + self.pages_added + self.pages_removed == 0
    }

    /// Pages that are not as they were, gone ones among them.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages_changed + self.pages_added + self.pages_removed
    }

    fn add(&mut self, other: &Self) {
        let sum = |a: Option<u64>, b: Option<u64>| if a.is_none() { b } else { Some(a? + b.unwrap_or(0)) };
        (self.before, self.after) = (sum(self.before, other.before), sum(self.after, other.after));
        self.pages_changed += other.pages_changed;
        self.pages_added += other.pages_added;
        self.pages_removed += other.pages_removed;
    }
}

/// Sums over everything that was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Relations of either backup.
    pub relations: u64,
    /// Those of them that differ.
    pub relations_changed: u64,
    /// Of all relations.
    pub change: Change,
    /// Files of either backup that are no relations.
    pub files: u64,
    /// Those of them that differ.
    pub files_changed: u64,
}

/// What differs between two backups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Size of a page in bytes.
    pub page_size: u32,
    /// Relations that differ.
    pub relations: BTreeMap<RelationKey, Change>,
    /// Other files that differ, by path, with their sizes; pages are not counted.
    pub files: BTreeMap<String, Change>,
    /// Sums.
    pub totals: Totals,
}

/// Compares two backups of one repository.
///
/// # Errors
/// `Format` if their pages are not of one size; what the store, the cipher or the decoder said; [`Error::Interrupted`].
pub fn run(before: &Arc<Manifest>, after: &Arc<Manifest>, observer: &dyn Observer, cancel: &Cancel) -> Result<Diff> {
    let page_size = after.root().page_size;
    if before.root().page_size != page_size {
        let text = format!("one backup has pages of {} bytes, the other of {page_size}", before.root().page_size);
        return Err(Error::refused(Kind::Format, text));
    }
    let hasher = after.source().repository().keyring().page_hasher()?;
    let zero = hasher.hash(&vec![0; page_size as usize]);
    let side = |manifest| Side {
        manifest: Arc::clone(manifest),
        chunks: HashMap::new(),
        hasher: &hasher,
        page_size,
        read: None,
    };
    let mut work = Work { sides: (side(before), side(after)), zero, found: Found::default() };
    observer.begin("diff", after.root().bytes);
    let result = work.merge(observer, cancel);
    observer.end();
    result?;
    Ok(work.found.diff(page_size))
}

/// What was found of everything, changed or not.
#[derive(Default)]
struct Found {
    relations: BTreeMap<RelationKey, Change>,
    files: BTreeMap<String, Change>,
    files_seen: u64,
}

impl Found {
    fn diff(self, page_size: u32) -> Diff {
        let mut totals = Totals { relations: self.relations.len() as u64, files: self.files_seen, ..Totals::default() };
        for change in self.relations.values() {
            totals.change.add(change);
        }
        let mut relations = self.relations;
        relations.retain(|_, change| !change.is_none());
        totals.relations_changed = relations.len() as u64;
        totals.files_changed = self.files.len() as u64;
        Diff { page_size, relations, files: self.files, totals }
    }
}

/// Hashes of the pages of a chunk.
enum Hashes {
    Beside(Arc<PackContents>, u16),
    Computed(Vec<u64>),
}

impl Hashes {
    fn get(&self, page: usize) -> Option<u64> {
        match self {
            Self::Beside(contents, ordinal) => contents.hashes(*ordinal).get(page).copied(),
            Self::Computed(all) => all.get(page).copied(),
        }
    }
}

/// One of the two backups.
struct Side<'a> {
    manifest: Arc<Manifest>,
    chunks: HashMap<u32, (ChunkId, Option<Arc<Hashes>>)>,
    hasher: &'a PageHasher,
    page_size: u32,
    /// The chunk read last.
    read: Option<(ChunkId, Vec<u8>)>,
}

impl Side<'_> {
    fn id(&mut self, ordinal: u32) -> Result<ChunkId> {
        if let Some((id, _)) = self.chunks.get(&ordinal) {
            return Ok(*id);
        }
        if self.chunks.len() >= CHUNKS_MAX {
            self.chunks.clear();
        }
        let id = self.manifest.chunk_id(ordinal)?;
        self.chunks.insert(ordinal, (id, None));
        Ok(id)
    }

    /// The hash of a page of a chunk; `zero` of one that is a hole.
    fn hash(&mut self, at: ExtentAt, page: u32, zero: u64) -> Result<u64> {
        let ExtentAt::Chunk { ordinal, offset } = at else { return Ok(zero) };
        let id = self.id(ordinal)?;
        let known = self.chunks.get(&ordinal).and_then(|(_, hashes)| hashes.clone());
        let hashes = match known {
            Some(hashes) => hashes,
            None => {
                let hashes = Arc::new(self.hashes(&id)?);
                self.chunks.insert(ordinal, (id, Some(Arc::clone(&hashes))));
                hashes
            }
        };
        let page = offset.saturating_add(page);
        hashes.get(page as usize).ok_or_else(|| {
            Error::refused(Kind::Format, format!("the manifest wants page {page} of chunk {id}, which has fewer"))
        })
    }

    /// The bytes of a small file.
    fn content(&mut self, record: &FileRecord) -> Result<Vec<u8>> {
        let unit = match &record.entry.content {
            Content::None => return Ok(Vec::new()),
            Content::Inline(bytes) => return Ok(bytes.clone()),
            Content::Extents { unit, .. } => u64::from(*unit),
        };
        let (mut content, size) = (Vec::new(), record.entry.size as usize);
        for extent in &record.extents {
            let len = (u64::from(extent.units) * unit) as usize;
            match extent.at {
                ExtentAt::Zero => content.resize(content.len().saturating_add(len).min(size), 0),
                ExtentAt::Chunk { ordinal, offset } => {
                    let id = self.id(ordinal)?;
                    if self.read.as_ref().is_none_or(|(read, _)| *read != id) {
                        self.read = Some((id, self.manifest.source().read(&id)?));
                    }
                    let from = (u64::from(offset) * unit) as usize;
                    // The last unit may be cut short by the end of the file.
                    let bytes = self.read.as_ref().and_then(|(_, plain)| plain.get(from..plain.len().min(from + len)));
                    content.extend_from_slice(bytes.ok_or_else(|| {
                        Error::refused(Kind::Format, format!("the manifest wants bytes from {from} on of chunk {id}"))
                    })?);
                }
            }
        }
        if content.len() < size {
            let text = format!("'{}' has {size} bytes but {} in the manifest", record.entry.path, content.len());
            return Err(Error::refused(Kind::Format, text));
        }
        content.truncate(size);
        Ok(content)
    }

    fn hashes(&self, id: &ChunkId) -> Result<Hashes> {
        let source = self.manifest.source();
        let at = source.locate(id)?;
        let contents = source.repository().pack_contents(&at.pack)?;
        let beside = contents.hashes(at.ordinal);
        if contents.id(at.ordinal) == Some(*id)
            && !beside.is_empty()
            && at.plain_len as usize / beside.len() == self.page_size as usize
        {
            return Ok(Hashes::Beside(contents, at.ordinal));
        }
        let plain = source.read(id)?;
        Ok(Hashes::Computed(plain.chunks(self.page_size as usize).map(|page| self.hasher.hash(page)).collect()))
    }
}

struct Work<'a> {
    sides: (Side<'a>, Side<'a>),
    /// Hash of a page of zeros.
    zero: u64,
    found: Found,
}

impl Work<'_> {
    fn merge(&mut self, observer: &dyn Observer, cancel: &Cancel) -> Result<()> {
        let (mut before, mut after) = (self.sides.0.manifest.files(), self.sides.1.manifest.files());
        let (mut a, mut b) = (before.next().transpose()?, after.next().transpose()?);
        loop {
            cancel.check()?;
            let order = match (&a, &b) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => path_cmp(&a.entry.path, &b.entry.path),
            };
            let old =
                if order == Ordering::Greater { None } else { std::mem::replace(&mut a, before.next().transpose()?) };
            let new = if order == Ordering::Less { None } else { std::mem::replace(&mut b, after.next().transpose()?) };
            observer.add(Counter::Done, new.as_ref().map_or(0, |r| r.entry.size));
            self.pair(old.as_ref(), new.as_ref())?;
        }
    }

    fn pair(&mut self, old: Option<&FileRecord>, new: Option<&FileRecord>) -> Result<()> {
        let is_file = |r: &&FileRecord| r.entry.is_file();
        let (old, new) = (old.filter(is_file), new.filter(is_file));
        let Some(entry) = new.or(old).map(|r| &r.entry) else { return Ok(()) };
        let size = |r: Option<&FileRecord>| r.map(|r| r.entry.size);
        let mut change = Change { before: size(old), after: size(new), ..Change::default() };
        if let PathClass::Relation(RelationFile { tablespace_oid, database_oid, filenode, temporary: None, .. }) =
            classify(&entry.path)
        {
            let pages = |size: Option<u64>| size.unwrap_or(0).div_ceil(u64::from(self.sides.0.page_size));
            let (before, after) = (pages(change.before), pages(change.after));
            change.pages_added = after.saturating_sub(before);
            change.pages_removed = before.saturating_sub(after);
            if let (Some(old), Some(new)) = (old, new) {
                change.pages_changed = self.pages_changed(old, new, before.min(after))?;
            }
            let key = RelationKey { database_oid, tablespace_oid, filenode };
            self.found.relations.entry(key).or_default().add(&change);
            return Ok(());
        }
        self.found.files_seen += 1;
        let same = match (old, new) {
            (Some(old), Some(new)) => {
                let same_size = old.entry.size == new.entry.size;
                // Small files are stored together, and anew when one of them changed.
                same_size && (self.is_same(old, new)? || new.entry.size <= SMALL_BYTES && self.reads_same(old, new)?)
            }
            _ => false,
        };
        if !same {
            self.found.files.insert(entry.path.clone(), change);
        }
        Ok(())
    }

    /// Whether two files of one size are made of the same bytes, as far as that is told without reading them.
    fn is_same(&mut self, old: &FileRecord, new: &FileRecord) -> Result<bool> {
        let unit = |entry: &Entry| match entry.content {
            Content::Extents { unit, .. } => Some(unit),
            _ => None,
        };
        if unit(&old.entry) != unit(&new.entry) || unit(&old.entry).is_none() {
            return Ok(old.entry.content == new.entry.content);
        }
        let (mut a, mut b) = (Runs::new(&old.extents), Runs::new(&new.extents));
        while let (Some(x), Some(y)) = (a.current(), b.current()) {
            if !self.same_place(x.0, y.0)? {
                return Ok(false);
            }
            let step = x.1.min(y.1);
            a.skip(step);
            b.skip(step);
        }
        Ok(true)
    }

    /// Whether two files of one size hold the same bytes.
    fn reads_same(&mut self, old: &FileRecord, new: &FileRecord) -> Result<bool> {
        Ok(self.sides.0.content(old)? == self.sides.1.content(new)?)
    }

    /// Whether two places are the same part of the same chunk, or zeros.
    fn same_place(&mut self, old: ExtentAt, new: ExtentAt) -> Result<bool> {
        match (old, new) {
            (ExtentAt::Zero, ExtentAt::Zero) => Ok(true),
            (ExtentAt::Chunk { ordinal: a, offset: x }, ExtentAt::Chunk { ordinal: b, offset: y }) => {
                Ok(x == y && self.sides.0.id(a)? == self.sides.1.id(b)?)
            }
            _ => Ok(false),
        }
    }

    /// How many of the first `common` pages differ.
    fn pages_changed(&mut self, old: &FileRecord, new: &FileRecord, common: u64) -> Result<u64> {
        let in_pages =
            |entry: &Entry| matches!(entry.content, Content::Extents { unit, .. } if unit == self.sides.0.page_size);
        if !in_pages(&old.entry) || !in_pages(&new.entry) {
            // Too small for extents, or of a damaged size: all or nothing.
            let same = old.entry.content == new.entry.content && self.is_same(old, new)?;
            return Ok(if same { 0 } else { common });
        }
        let (mut a, mut b) = (Runs::new(&old.extents), Runs::new(&new.extents));
        let (mut left, mut changed) = (common, 0);
        while let (Some(x), Some(y)) = (a.current(), b.current())
            && left > 0
        {
            let step = x.1.min(y.1).min(u32::try_from(left).unwrap_or(u32::MAX));
            if !self.same_place(x.0, y.0)? {
                for page in 0..step {
                    let (old, new) =
                        (self.sides.0.hash(x.0, page, self.zero)?, self.sides.1.hash(y.0, page, self.zero)?);
                    changed += u64::from(old != new);
                }
            }
            a.skip(step);
            b.skip(step);
            left -= u64::from(step);
        }
        Ok(changed)
    }
}

/// A walk over extents that may stop within one.
struct Runs<'a> {
    rest: std::slice::Iter<'a, Extent>,
    /// Place and units left of the extent at hand.
    at: Option<(ExtentAt, u32)>,
}

impl<'a> Runs<'a> {
    fn new(extents: &'a [Extent]) -> Self {
        let mut runs = Self { rest: extents.iter(), at: None };
        runs.next();
        runs
    }

    fn next(&mut self) {
        self.at = self.rest.find(|extent| extent.units > 0).map(|extent| (extent.at, extent.units));
    }

    fn current(&self) -> Option<(ExtentAt, u32)> {
        self.at
    }

    fn skip(&mut self, units: u32) {
        let Some((at, left)) = self.at else { return };
        if units >= left {
            return self.next();
        }
        let at = match at {
            ExtentAt::Zero => at,
            ExtentAt::Chunk { ordinal, offset } => ExtentAt::Chunk { ordinal, offset: offset.saturating_add(units) },
        };
        self.at = Some((at, left - units));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_stops_within_extents_and_passes_over_empty_ones() {
        let chunk = |ordinal, offset| ExtentAt::Chunk { ordinal, offset };
        let extents = [
            Extent { units: 3, at: chunk(7, 10) },
            Extent { units: 0, at: ExtentAt::Zero },
            Extent { units: 2, at: ExtentAt::Zero },
        ];
        let mut runs = Runs::new(&extents);
        assert_eq!(runs.current(), Some((chunk(7, 10), 3)));
        runs.skip(1);
        assert_eq!(runs.current(), Some((chunk(7, 11), 2)));
        runs.skip(2);
        assert_eq!(runs.current(), Some((ExtentAt::Zero, 2)));
        runs.skip(1);
        assert_eq!(runs.current(), Some((ExtentAt::Zero, 1)));
        runs.skip(9);
        assert_eq!(runs.current(), None);
    }

    #[test]
    fn sums_tell_what_was_not_there_from_what_was_empty() {
        let mut sum = Change::default();
        sum.add(&Change { before: None, after: Some(8192), pages_added: 1, ..Change::default() });
        sum.add(&Change { before: Some(0), after: Some(0), ..Change::default() });
        assert_eq!((sum.before, sum.after, sum.pages()), (Some(0), Some(8192), 1));
        assert!(!sum.is_none() && Change::default().is_none());
    }
}
