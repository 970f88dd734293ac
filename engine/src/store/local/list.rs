//! Listing in key order, with the names of one directory at a time in each level's memory.
//!
//! Order is that of whole keys: `a-b` comes before `a/x`, so a directory's name sorts with its slash. Directories
//! without objects below are not there, as in an object store; finding that out costs [`Depth::Children`] one
//! directory read for each child directory.

use super::{LocalStore, OPEN_DIR};
use crate::store::{Depth, Listed, StoreError, key};
use rustix::fs::{AtFlags, Dir, FileType, Mode};
use rustix::io::{Errno, retry_on_intr};

/// An entry of a directory. Entries whose names no key can have are not ours and not reported.
pub(super) struct Name {
    /// With a slash at its end if it is a directory.
    pub(super) name: String,
}

impl LocalStore {
    pub(super) fn list_below(
        &self,
        prefix: &str,
        depth: Depth,
        each: &mut dyn FnMut(Listed),
    ) -> Result<(), StoreError> {
        let names = self.names(prefix).map_err(self.error("list", prefix))?.unwrap_or_default();
        for Name { name } in names {
            let key = format!("{prefix}{name}");
            if !name.ends_with('/') {
                if let Some(listed) = self.stat(key)? {
                    each(listed);
                }
            } else if key == "lost+found/" {
                // The file system's own; `key` keeps objects out of it.
            } else if depth == Depth::All {
                self.list_below(&key, depth, each)?;
            } else if self.has_objects(&key)? {
                each(Listed { key, size: 0, modified: 0 });
            }
        }
        Ok(())
    }

    /// The entries of a directory in key order; `None` if there is no such directory.
    pub(super) fn names(&self, dir: &str) -> Result<Option<Vec<Name>>, Errno> {
        let path = if dir.is_empty() { "." } else { dir };
        let opened = match retry_on_intr(|| rustix::fs::openat(&self.root, path, OPEN_DIR, Mode::empty())) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in Dir::new(opened)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().ok().filter(|name| key::is_component(name)) else { continue };
            let kind = match entry.file_type() {
                FileType::Symlink | FileType::Unknown => self.file_type(&format!("{path}/{name}"))?,
                known => Some(known),
            };
            match kind {
                Some(FileType::RegularFile) => names.push(Name { name: name.to_owned() }),
                Some(FileType::Directory) => names.push(Name { name: format!("{name}/") }),
                _ => (),
            }
        }
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(names))
    }

    fn has_objects(&self, dir: &str) -> Result<bool, StoreError> {
        let names = self.names(dir).map_err(self.error("list", dir))?.unwrap_or_default();
        if names.iter().any(|n| !n.name.ends_with('/')) {
            return Ok(true);
        }
        for Name { name } in names {
            if self.has_objects(&format!("{dir}{name}"))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn file_type(&self, path: &str) -> Result<Option<FileType>, Errno> {
        match rustix::fs::statat(&self.root, path, AtFlags::empty()) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn stat(&self, key: String) -> Result<Option<Listed>, StoreError> {
        match rustix::fs::statat(&self.root, &*key, AtFlags::empty()) {
            Ok(stat) => {
                Ok(Some(Listed { key, size: u64::try_from(stat.st_size).unwrap_or(0), modified: stat.st_mtime }))
            }
            // Removed since its directory was read, perhaps with its directory.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.error("list", &key)(errno)),
        }
    }
}
