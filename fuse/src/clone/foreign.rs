//! Which directories are clones. Of one that is not nothing is changed, and it is said what it is instead.

use super::lock;
use super::promote;
use super::state::{self, Layout};
use pgkeep_engine::{Error, FileError, Kind, Result};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Refuses what is no complete clone.
///
/// # Errors
/// `PathMissing` if there is no clone, or not a whole one, `LockAcquire` if it is being made at this moment, `PathOpen` if
/// this user may not look; the text says which.
pub(super) fn check_complete(layout: &Layout) -> Result<()> {
    if layout.is_complete() {
        return Ok(());
    }
    let (root, shown) = (&layout.root, layout.root.display());
    let missing = |text| Err(Error::refused(Kind::PathMissing, text));
    let facts = match std::fs::metadata(root) {
        Ok(facts) if !facts.is_dir() => return missing(format!("'{shown}' is no directory")),
        Ok(facts) => facts,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return missing(format!("there is no directory '{shown}'"));
        }
        Err(e) => return Err(FileError::at("list", root)(e).into()),
    };
    match std::fs::metadata(layout.meta()) {
        // Clones are closed to others, so who may not look cannot know.
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let text = format!("'{shown}' is closed to this user: it belongs to user {}", facts.uid());
            Err(Error::refused(Kind::PathOpen, text))
        }
        _ if !lock::is_marked(layout) => missing(format!("'{shown}' is not a clone")),
        _ if lock::is_held(layout)? => Err(Error::refused(
            Kind::LockAcquire,
            format!("clone '{shown}' is being made or removed by another process"),
        )),
        _ => missing(format!("clone '{shown}' is not complete: what made or removed it was ended")),
    }
}

/// Refuses to put a clone where something else is. Only what an earlier trial has left is removed.
///
/// # Errors
/// `PathNotEmpty`; what the file system said.
pub(super) fn check_place(layout: &Layout) -> Result<()> {
    let Found { foreign, trials } = look(layout)?;
    if let Some(path) = foreign {
        let text = format!("'{}' is not a clone: '{}' is not of one", layout.root.display(), path.display());
        return Err(Error::refused(Kind::PathNotEmpty, text));
    }
    remove(trials)
}

/// Refuses to remove what is not a clone, or the rest of one.
///
/// # Errors
/// `PathNotEmpty` if it holds something else, `PathMissing` if it holds nothing of a clone; what the file system said.
pub(super) fn check_own(layout: &Layout) -> Result<()> {
    let nothing = |kind, why: String| {
        let text = format!("'{}' is not a clone, and nothing of it is removed: {why}", layout.root.display());
        Err(Error::refused(kind, text))
    };
    match look(layout)?.foreign {
        Some(path) => nothing(Kind::PathNotEmpty, format!("'{}' is not of one", path.display())),
        // The lock is the first that is made and the last that is removed.
        None if !layout.file("lock").exists() => nothing(Kind::PathMissing, "it holds nothing of one".to_owned()),
        None => Ok(()),
    }
}

/// Removes what trials have left in a clone that is going to be removed.
pub(super) fn remove_trials(layout: &Layout) -> Result<()> {
    remove(look(layout)?.trials)
}

fn remove(trials: Vec<PathBuf>) -> Result<()> {
    for trial in trials {
        std::fs::remove_dir(&trial).map_err(FileError::at("remove", &trial))?;
    }
    Ok(())
}

struct Found {
    /// Something that is not of a clone.
    foreign: Option<PathBuf>,
    /// Directories that trials of promotion have left.
    trials: Vec<PathBuf>,
}

/// What a directory holds. It is ours if that is at most `meta` and `data`, `meta` only files of ours, and the mark that
/// says so. Before the mark is made there is nothing but an empty `meta`, or one with an empty lock.
fn look(layout: &Layout) -> Result<Found> {
    let mut trials = Vec::new();
    let foreign = |path: PathBuf| Ok(Found { foreign: Some(path), trials: Vec::new() });
    for (path, meta) in entries(&layout.root)? {
        if meta.is_dir() && promote::is_trial(&path) && entries(&path)?.is_empty() {
            trials.push(path);
        } else if !(meta.is_dir() && (path == layout.meta() || path == layout.data())) {
            return foreign(path);
        }
    }
    let mut is_begun = false;
    if layout.meta().is_dir() {
        for (path, meta) in entries(&layout.meta())? {
            let is_known = path.file_name().is_some_and(|name| state::META_NAMES.iter().any(|known| name == *known));
            if !(is_known && meta.is_file()) {
                return foreign(path);
            }
            is_begun |= path != layout.file("lock") || meta.len() > 0;
        }
    }
    if (is_begun || layout.data().is_dir()) && !lock::is_marked(layout) {
        return foreign(if layout.data().is_dir() { layout.data() } else { layout.meta() });
    }
    Ok(Found { foreign: None, trials })
}

/// What a directory holds; links are not followed.
fn entries(directory: &Path) -> Result<Vec<(PathBuf, Metadata)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(FileError::at("list", directory))? {
        let path = entry.map_err(FileError::at("list", directory))?.path();
        match std::fs::symlink_metadata(&path) {
            // Who serves the clone gives its records other names.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            meta => found.push((path.clone(), meta.map_err(FileError::at("stat", &path))?)),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("d"));
        (dir, layout)
    }

    #[test]
    fn each_way_of_not_being_a_clone_is_told_apart() {
        let (_dir, layout) = layout();
        let told = |kind, text: &str| {
            let error = check_complete(&layout).unwrap_err();
            assert!(error.kind() == kind && error.to_string().contains(text), "{error}");
        };
        told(Kind::PathMissing, "there is no directory '");
        std::fs::write(&layout.root, "").unwrap();
        told(Kind::PathMissing, "is no directory");
        std::fs::remove_file(&layout.root).unwrap();
        std::fs::create_dir(&layout.root).unwrap();
        told(Kind::PathMissing, "is not a clone");
        std::fs::create_dir(layout.meta()).unwrap();
        let held = lock::take(&layout).unwrap();
        told(Kind::LockAcquire, "is being made or removed by another process");
        drop(held);
        told(Kind::PathMissing, "is not complete");
        std::fs::write(layout.file("complete"), "").unwrap();
        check_complete(&layout).unwrap();
    }

    #[test]
    fn what_is_not_a_clone_is_not_ours_to_remove() {
        let (_dir, layout) = layout();
        let own = || check_own(&layout).map_err(|e| e.kind());
        std::fs::create_dir(&layout.root).unwrap();
        assert_eq!(own(), Err(Kind::PathMissing), "an empty directory");
        // As a cluster's may look, and names that promotion uses.
        for name in ["data", "meta", ".pgkeep-promote-1"] {
            std::fs::create_dir(layout.root.join(name)).unwrap();
        }
        assert_eq!(own(), Err(Kind::PathNotEmpty));
        assert!(check_place(&layout).is_err() && layout.root.join(".pgkeep-promote-1").exists());
        drop(lock::take(&layout).unwrap());
        assert_eq!(own(), Ok(()));
        check_place(&layout).unwrap();
        assert!(!layout.root.join(".pgkeep-promote-1").exists());
        std::fs::write(layout.root.join("mine"), "").unwrap();
        assert_eq!(own(), Err(Kind::PathNotEmpty));
    }
}
