//! What a data directory or a backup of it holds, in memory.

use pgkeep_engine::Result;
use pgkeep_engine::repository::manifests::Manifest;
use pgkeep_engine::repository::{ChunkSource, Plain};
use pgkeep_formats::id::ChunkId;
use pgkeep_formats::repo::manifest::{Content, ExtentAt, Node};
use pgkeep_formats::repo::records::Commit;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// One entry: its mode and what it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    mode: u32,
    /// Where it was found to point, if it is a link.
    link: Option<String>,
    /// None for directories.
    bytes: Option<Vec<u8>>,
}

/// All entries by path relative to PGDATA; what lies behind links is below the link.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Tree(BTreeMap<String, Kept>);

impl Tree {
    /// A plain copy of the files as they are now.
    ///
    /// # Panics
    /// If one cannot be read.
    #[must_use]
    pub fn of_files(pgdata: &Path) -> Self {
        let mut tree = Self::default();
        tree.gather(pgdata, String::new());
        tree
    }

    fn gather(&mut self, root: &Path, name: String) {
        let path = root.join(&name);
        let link = std::fs::read_link(&path).ok().map(|to| to.to_string_lossy().into_owned());
        let facts = std::fs::metadata(&path).unwrap_or_else(|e| panic!("cannot look at {name}: {e}"));
        let mode = facts.mode() & 0o7777;
        if !facts.is_dir() {
            let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("cannot read {name}: {e}"));
            self.0.insert(name, Kept { mode, link, bytes: Some(bytes) });
            return;
        }
        for entry in std::fs::read_dir(&path).unwrap_or_else(|e| panic!("cannot list {name}: {e}")) {
            let child = entry.expect("cannot list").file_name().to_string_lossy().into_owned();
            self.gather(root, if name.is_empty() { child } else { format!("{name}/{child}") });
        }
        self.0.insert(name, Kept { mode, link, bytes: None });
    }

    /// How another tree differs, entry by entry; nothing if they are equal.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, ours) in &self.0 {
            match other.0.get(path) {
                None => found.push(format!("'{path}' is missing")),
                Some(theirs) if theirs == ours => {}
                Some(theirs) => {
                    let (a, b) = (ours.bytes.as_deref().unwrap_or(&[]), theirs.bytes.as_deref().unwrap_or(&[]));
                    let at = a.iter().zip(b).position(|(a, b)| a != b);
                    let (lens, modes) = ((a.len(), b.len()), (ours.mode, theirs.mode));
                    found.push(format!("'{path}' differs: lengths {lens:?}, first at {at:?}, modes {modes:?}"));
                }
            }
        }
        found
            .extend(other.0.keys().filter(|path| !self.0.contains_key(*path)).map(|path| format!("'{path}' is extra")));
        found
    }

    /// Paths of its files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, kept)| kept.bytes.is_some()).map(|(path, _)| path.as_str())
    }
}

/// Reads a whole backup, every extent through its chunk. `seen` keeps chunks between backups of one repository.
///
/// # Errors
/// What the engine said of the first thing that cannot be read.
pub fn read_back(source: &Arc<ChunkSource>, commit: &Commit, seen: &mut HashMap<ChunkId, Plain>) -> Result<Tree> {
    let manifest = Arc::new(Manifest::open(source, commit)?);
    let mut tree = Tree::default();
    for record in manifest.files() {
        let record = record?;
        let entry = record.entry;
        let mut bytes = Vec::new();
        if let Content::Inline(inline) = &entry.content {
            bytes.extend_from_slice(inline);
        }
        if let Content::Extents { unit, .. } = entry.content {
            let unit = unit as usize;
            for extent in record.extents {
                let len = extent.units as usize * unit;
                let rest = usize::try_from(entry.size).expect("small") - bytes.len();
                match extent.at {
                    ExtentAt::Zero => bytes.resize(bytes.len() + len.min(rest), 0),
                    ExtentAt::Chunk { ordinal, offset } => {
                        let id = manifest.chunk_id(ordinal)?;
                        let plain = match seen.get(&id) {
                            Some(plain) => Arc::clone(plain),
                            None => Arc::new(source.read(&id)?),
                        };
                        let from = offset as usize * unit;
                        bytes.extend_from_slice(&plain[from..from + len.min(rest)]);
                        seen.insert(id, plain);
                    }
                }
            }
        }
        let (link, is_file) = match &entry.node {
            Node::Directory => (None, false),
            Node::LinkedDirectory(to) => (Some(to.clone()), false),
            Node::File => (None, true),
            Node::LinkedFile(to) => (Some(to.clone()), true),
        };
        assert_eq!(bytes.len() as u64, if is_file { entry.size } else { 0 }, "length of '{}'", entry.path);
        let kept = Kept { mode: entry.mode, link, bytes: is_file.then_some(bytes) };
        assert!(tree.0.insert(entry.path.clone(), kept).is_none(), "'{}' twice", entry.path);
    }
    Ok(tree)
}
