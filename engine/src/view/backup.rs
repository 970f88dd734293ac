//! The tree of a backup in a repository.
//!
//! Holds the manifest's root, some pieces of it, the children of directories listed lately and the extents of files read
//! lately: bounded, whatever the size of the cluster. An open file is a path and two numbers; its extents are looked up
//! again when others have pushed them out.

use super::content::{FileContent, FileMap};
use super::recent::Recent;
use super::{ChunkCache, Content, Entry, EntryKind, Snapshot};
use crate::repository::ChunkSource;
use crate::repository::manifests::{FileRecord, Manifest};
use crate::{Error, Kind, Result};
use pgkeep_formats::repo::manifest::{self, Node, path_cmp};
use pgkeep_formats::repo::records::Commit;
use std::cmp::Ordering;
use std::sync::Arc;

/// Entries of directories kept at hand: some 200 bytes each.
const ENTRIES_MAX: usize = 1 << 16;
/// Bytes of extents kept at hand: those of half a terabyte of 256 KiB chunks.
const MAP_BYTES_MAX: usize = 48 << 20;
/// Most extents of a file that are kept when it is come by: those of 16 MiB in chunks of 256 KiB.
const PASSED_EXTENTS_MAX: usize = 64;
/// Entries passed over one by one before a directory is left by a search.
const SKIP_MAX: usize = 64;

/// The tree of one backup.
pub struct BackupSnapshot {
    shared: Arc<Shared>,
    directories: Recent<Vec<Entry>>,
}

/// What open files need of their backup.
pub(super) struct Shared {
    pub(super) manifest: Arc<Manifest>,
    pub(super) cache: Arc<ChunkCache>,
    pub(super) label: String,
    maps: Recent<FileMap>,
}

impl Shared {
    /// The extents of a file; `None` if there is no such file.
    pub(super) fn map(&self, path: &str) -> Result<Option<Arc<FileMap>>> {
        if let Some(map) = self.maps.get(path) {
            return Ok(Some(map));
        }
        let Some(record) = self.manifest.find(path)?.filter(|r| r.entry.is_file()) else { return Ok(None) };
        self.keep_map(record).map(Some)
    }

    fn keep_map(&self, record: FileRecord) -> Result<Arc<FileMap>> {
        let path = record.entry.path.clone();
        let name = format!("'{path}' in the manifest of {}", self.label);
        let map = Arc::new(FileMap::new(record).map_err(Error::damaged(name))?);
        self.maps.keep(&path, &map, map.weight());
        Ok(map)
    }
}

impl BackupSnapshot {
    /// Opens a backup's tree; reads the root of its manifest.
    ///
    /// # Errors
    /// What the store, the cipher or the decoder said.
    pub fn open(source: Arc<ChunkSource>, commit: &Commit, cache: Arc<ChunkCache>) -> Result<Self> {
        let manifest = Manifest::open(&source, commit)
            .map_err(|e| e.during(format!("cannot open the manifest of backup {}", commit.label)))?;
        let shared = Shared {
            manifest: Arc::new(manifest),
            cache,
            label: commit.label.clone(),
            maps: Recent::new(MAP_BYTES_MAX),
        };
        Ok(Self { shared: Arc::new(shared), directories: Recent::new(ENTRIES_MAX) })
    }

    fn entry(&self, entry: manifest::Entry) -> Entry {
        let name = |index| self.shared.manifest.name(index).to_owned();
        let (user, group) = (name(entry.user), name(entry.group));
        let is_file = entry.is_file();
        let kind = match entry.node {
            Node::Directory => EntryKind::Directory,
            Node::LinkedDirectory(destination) => EntryKind::LinkedDirectory { destination },
            Node::File => EntryKind::File,
            Node::LinkedFile(destination) => EntryKind::LinkedFile { destination },
        };
        let size = if is_file { entry.size } else { 0 };
        Entry { path: entry.path, kind, mode: entry.mode, user, group, modified: entry.modified, size }
    }

    /// The entry of a record that was come by. Who lists files reads some of them next, and finding one by its path costs
    /// as much as all the way to it.
    fn passed(&self, record: FileRecord) -> Result<Entry> {
        let entry = self.entry(record.entry.clone());
        if record.entry.is_file() && record.extents.len() <= PASSED_EXTENTS_MAX {
            self.shared.keep_map(record)?;
        }
        Ok(entry)
    }

    fn list(&self, directory: &str) -> Result<Vec<Entry>> {
        let manifest = &self.shared.manifest;
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let mut children = Vec::new();
        // Entries below this path are passed over.
        let mut floor = directory.to_owned();
        let mut reader = manifest.files_from(&floor);
        let mut skipped = 0;
        while let Some(record) = reader.next() {
            let record = record?;
            let entry = &record.entry;
            if path_cmp(&entry.path, &floor) == Ordering::Less || entry.path == directory {
                continue;
            }
            let Some(below) = entry.path.strip_prefix(&prefix) else { break };
            match below.split_once('/') {
                None => {
                    skipped = 0;
                    children.push(self.passed(record)?);
                }
                Some((name, _)) => {
                    skipped += 1;
                    if skipped > SKIP_MAX {
                        // What is in a directory comes directly behind it: below everything that its name begins.
                        floor = format!("{prefix}{name}\u{1}");
                        reader = manifest.files_from(&floor);
                        skipped = 0;
                    }
                }
            }
        }
        Ok(children)
    }
}

impl Snapshot for BackupSnapshot {
    fn page_size(&self) -> u32 {
        self.shared.manifest.root().page_size
    }

    fn entries(&self, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        for record in self.shared.manifest.files() {
            each(self.passed(record?)?)?;
        }
        Ok(())
    }

    fn lookup(&self, path: &str) -> Result<Option<Entry>> {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        if !path.is_empty()
            && let Some(children) = self.directories.get(parent)
        {
            let found = children.binary_search_by(|e| path_cmp(&e.path, path));
            return Ok(found.ok().and_then(|at| children.get(at)).cloned());
        }
        Ok(self.shared.manifest.find(path)?.map(|record| self.entry(record.entry)))
    }

    fn children(&self, directory: &str) -> Result<Vec<Entry>> {
        if let Some(children) = self.directories.get(directory) {
            return Ok(children.as_ref().clone());
        }
        let children = Arc::new(self.list(directory)?);
        self.directories.keep(directory, &children, children.len().max(1));
        Ok(children.as_ref().clone())
    }

    fn open(&self, path: &str) -> Result<Arc<dyn Content>> {
        let map = self.shared.map(path)?.ok_or_else(|| {
            Error::refused(Kind::FileMissing, format!("there is no file '{path}' in backup {}", self.shared.label))
        })?;
        Ok(Arc::new(FileContent::new(Arc::clone(&self.shared), path, map.size())))
    }
}
