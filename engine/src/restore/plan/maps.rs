//! Where links lead: as they did, or as the user maps them.

use super::{LinkKind, Plan, PlanOptions};
use crate::{Error, Kind, Result};
use pgkeep_formats::repo::manifest::{Entry, Node};
use pgkeep_formats::repo::records::TablespaceRef;
use std::path::{Component, Path, PathBuf};

/// The maps of one restore, and which lines of `link-map` were used.
pub(in crate::restore) struct Maps<'a> {
    /// Tablespaces of the backup: they know the names.
    tablespaces: &'a [TablespaceRef],
    tablespace: Vec<(&'a str, &'a Path)>,
    tablespace_all: Option<&'a Path>,
    link: Vec<(&'a str, &'a Path, bool)>,
    link_all: bool,
}

impl<'a> Maps<'a> {
    /// Takes the maps.
    ///
    /// # Errors
    /// `TablespaceMap` for a line that fits no tablespace.
    pub(in crate::restore) fn new(
        tablespaces: &'a [TablespaceRef],
        options: &'a crate::restore::MapOptions,
    ) -> Result<Self> {
        let fits = |key: &String, t: &TablespaceRef| t.name == *key || t.oid.to_string() == *key;
        if let Some((key, _)) = options.tablespace.iter().find(|(key, _)| !tablespaces.iter().any(|t| fits(key, t))) {
            let text = format!("unable to map tablespace '{key}': the backup has none of that name or number");
            return Err(Error::refused(Kind::TablespaceMap, text));
        }
        Ok(Self {
            tablespaces,
            tablespace: options.tablespace.iter().map(|(k, v)| (k.as_str(), v.as_path())).collect(),
            tablespace_all: options.tablespace_all.as_deref(),
            link: options.link.iter().map(|(k, v)| (k.as_str(), v.as_path(), false)).collect(),
            link_all: options.link_all,
        })
    }

    /// Whether a link stands at the entry's path in the target, and its text.
    pub(super) fn link(&mut self, entry: &Entry) -> Result<Option<(LinkKind, PathBuf)>> {
        if let Some(oid) = entry.path.strip_prefix("pg_tblspc/").filter(|rest| !rest.contains('/')) {
            if self.link.iter().any(|(key, ..)| *key == entry.path) {
                let text = format!("tablespace '{}' cannot be moved by link-map, use tablespace-map", entry.path);
                return Err(Error::refused(Kind::LinkMap, text));
            }
            let text = match &entry.node {
                Node::LinkedDirectory(text) => text,
                // Made without a location (developers' servers can): it stays where it is.
                _ => return Ok(None),
            };
            return Ok(Some((LinkKind::Tablespace, self.tablespace(oid, text))));
        }
        let kind = if entry.is_file() { LinkKind::File } else { LinkKind::Directory };
        if let Some((_, to, used)) = self.link.iter_mut().find(|(key, ..)| *key == entry.path) {
            *used = true;
            return Ok(Some((kind, to.to_path_buf())));
        }
        Ok(match &entry.node {
            Node::LinkedDirectory(text) | Node::LinkedFile(text) if self.link_all => Some((kind, PathBuf::from(text))),
            _ => None,
        })
    }

    fn tablespace(&self, oid: &str, text: &str) -> PathBuf {
        let name = self.tablespaces.iter().find(|t| t.oid.to_string() == oid).map_or(oid, |t| t.name.as_str());
        let to = self.tablespace.iter().find(|(key, _)| *key == oid || *key == name).map(|(_, to)| to);
        match (to, self.tablespace_all) {
            (Some(to), _) => to.to_path_buf(),
            (None, Some(all)) => all.join(name),
            (None, None) => PathBuf::from(text),
        }
    }

    /// Refuses lines of `link-map` that fit nothing in the backup.
    pub(super) fn check_used(&self) -> Result<()> {
        if let Some((key, ..)) = self.link.iter().find(|(.., used)| !used) {
            let text = format!("unable to map link '{key}': the backup has no file or directory of that path");
            return Err(Error::refused(Kind::LinkMap, text));
        }
        Ok(())
    }
}

/// The absolute path a link's text stands for. Only the text is interpreted.
pub(super) fn resolve(target: &Path, link: &str, text: &Path) -> Result<PathBuf> {
    let mut path = target.join(link);
    path.pop();
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
    if text.as_os_str().is_empty() || path.parent().is_none() {
        let text = format!("link '{link}' cannot lead to '{}'", text.display());
        return Err(Error::refused(Kind::LinkDestination, text));
    }
    Ok(path)
}

/// Refuses destinations that hold, or lie in, the data directory or each other: two trees would mix.
pub(super) fn check_overlap(plan: &Plan, options: &PlanOptions<'_>) -> Result<()> {
    let real = |path: &Path| deepest_real(path);
    let target = real(options.target);
    let mut seen: Vec<(PathBuf, &str)> = vec![(target, "")];
    for link in &plan.links {
        let mut place = real(&link.destination);
        if link.kind == LinkKind::Tablespace {
            place.push(options.tablespace_directory);
        }
        for (other, path) in &seen {
            if place.starts_with(other) || other.starts_with(&place) {
                let what =
                    if path.is_empty() { "the data directory".to_owned() } else { format!("that of link '{path}'") };
                let text = format!(
                    "link '{}' leads to '{}', which overlaps with {what} in '{}'",
                    link.path,
                    link.destination.display(),
                    other.display()
                );
                return Err(Error::refused(Kind::LinkDestination, text));
            }
        }
        seen.push((place, &link.path));
    }
    Ok(())
}

/// The path with links resolved in the part of it that exists.
fn deepest_real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}
