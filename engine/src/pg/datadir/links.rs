//! What links in a data directory may point to.
//!
//! A restore makes links again from their destinations. That is possible only if each destination holds
//! one thing and lies outside: so no links to links, none back into the data directory, and no two that
//! contain one another. The last rule also ends any circle of links.

use crate::{Error, FileError, Kind, Result};
use std::path::{Component, Path, PathBuf};

/// A link found in the data directory.
#[derive(Debug)]
pub(super) struct Link {
    /// Its text.
    pub(super) text: PathBuf,
    /// Where that is, absolute.
    pub(super) target: PathBuf,
    /// Facts about what is there.
    pub(super) facts: std::fs::Metadata,
}

/// The links of one walk so far.
#[derive(Debug)]
pub(super) struct Links {
    root: PathBuf,
    /// Real directory, and the link that leads to it.
    directories: Vec<(PathBuf, PathBuf)>,
}

impl Links {
    /// `root` is the data directory, without links in its path.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, directories: Vec::new() }
    }

    /// Reads a link and checks where it leads. `None` if the link has vanished. `inside` is the part of a
    /// directory that will be walked, if not all of it.
    pub(super) fn follow(&mut self, link: &Path, inside: Option<&str>) -> Result<Option<Link>> {
        let text = match std::fs::read_link(link) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(FileError::at("stat", link))?,
        };
        let refuse = |why: String| {
            let message = format!("link '{}' points to '{}', {why}", link.display(), text.display());
            Err(Error::refused(Kind::LinkDestination, message))
        };
        let target = resolve(link, &text);
        let facts = match std::fs::symlink_metadata(&target) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // The server may have dropped a tablespace since, and then the link is gone as well.
                if !link.is_symlink() {
                    return Ok(None);
                }
                let message = format!("link '{}' points to '{}', which is missing", link.display(), text.display());
                return Err(Error::refused(Kind::FileOpen, message));
            }
            other => other.map_err(FileError::at("stat", &target))?,
        };
        if facts.is_symlink() {
            return refuse("which is a link itself".to_owned());
        }
        let real = std::fs::canonicalize(&target).map_err(FileError::at("stat", &target))?;
        if real.starts_with(&self.root) {
            return refuse(format!("which is inside the data directory '{}'", self.root.display()));
        }
        if facts.is_dir() {
            let real = inside.map_or(real.clone(), |part| real.join(part));
            if inside.is_none() && self.root.starts_with(&real) {
                return refuse(format!("which contains the data directory '{}'", self.root.display()));
            }
            if let Some((_, other)) = self.directories.iter().find(|(d, _)| d.starts_with(&real) || real.starts_with(d))
            {
                return refuse(format!("which overlaps with that of link '{}'", other.display()));
            }
            self.directories.push((real, link.to_path_buf()));
        }
        Ok(Some(Link { text, target, facts }))
    }
}

/// The absolute path a link's text stands for. Only the text is interpreted: what else is a link on the way
/// stays so.
fn resolve(link: &Path, text: &Path) -> PathBuf {
    let mut path = link.parent().map(Path::to_path_buf).unwrap_or_default();
    for part in text.components() {
        match part {
            Component::RootDir | Component::Prefix(_) => path = PathBuf::from("/"),
            Component::CurDir => {}
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(name) => path.push(name),
        }
    }
    path
}
