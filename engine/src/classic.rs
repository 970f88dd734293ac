//! The tree of files that readers of pgBackRest's repositories ask for: which backups there are, which WAL, since when.
//!
//! Our objects have names of their own (FORMAT.md, "Objects"). What monitoring looks for in a repository is shown under
//! the names it knows, and nothing else is:
//!
//! ```text
//! archive/<stanza>/archive.info                                            made up
//! archive/<stanza>/<archive id>/<timeline>.history                         as the server gave it
//! archive/<stanza>/<archive id>/<16 digits>/<segment>-<40 digits>.zst      a segment, `.partial` before the dash
//! archive/<stanza>/<archive id>/<16 digits>/<segment>.<offset>.backup      as the server gave it
//! backup/<stanza>/backup.info                                              made up
//! backup/<stanza>/latest                                                   a link to the newest label
//! backup/<stanza>/<label>/backup.manifest                                  made up, without files
//! ```
//!
//! The forty digits are zeros. pgBackRest has the content's SHA-1 there; ours knows a content by a keyed hash that stands
//! in the object, and a name must not cost an object's read. Zeros are taken for a checksum by nobody.
//!
//! Cost: names, sizes and times of WAL come from lists, one for each 4 GiB, and one directory of them is in memory at a
//! time. Labels stand in commit records, so listing backups reads these, as `info` does. Submodules: `path` (which place a
//! path means), `text` (what is made up).

mod path;
#[cfg(test)]
mod tests;
mod text;

pub use path::TreePath;

use crate::repository::{Backup, Repository};
use crate::store::{Depth, Range};
use crate::{Error, Kind, Result};
use path::{Form, Place};
use pgkeep_formats::pg::wal::ArchiveName;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::StanzaHistory;
use std::cell::RefCell;
use std::rc::Rc;

/// Level of what is compressed to be printed: whoever asks for it wants it once, and soon.
const PRINT_LEVEL: i32 = 1;

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, relative to what was listed; `.` is that itself.
    pub name: String,
    /// What it is.
    pub node: Node,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Path,
    /// A file.
    File {
        /// Bytes: stored, of what is archived; of what is made up the bytes that [`Tree::read`] gives.
        size: u64,
        /// Last change, seconds since the Unix epoch.
        time: i64,
    },
    /// A link.
    Link {
        /// The name beside it that it leads to.
        destination: String,
    },
}

/// In which order names come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By name, a directory before what is in it.
    Ascending,
    /// The other way round.
    Descending,
}

/// The tree of one repository. Made for one command: of the stanza asked for last it keeps what it has read.
#[derive(Debug)]
pub struct Tree<'a> {
    repository: &'a Repository,
    history: RefCell<Option<Of<StanzaHistory>>>,
    backups: RefCell<Option<Of<Backup>>>,
}

/// A stanza's name and records.
type Of<T> = (String, Rc<[T]>);

impl<'a> Tree<'a> {
    /// The tree of a repository. Reads nothing.
    #[must_use]
    pub fn new(repository: &'a Repository) -> Self {
        Self { repository, history: RefCell::default(), backups: RefCell::default() }
    }

    /// Lists a file, or what is in a directory, with `.` for itself first. A place where nothing is lists as an empty
    /// directory, as pgBackRest has it. An error of `each` ends the listing.
    ///
    /// # Errors
    /// What the store, the cipher, the decoder or `each` said.
    pub fn list(
        &self,
        path: &TreePath,
        recurse: bool,
        order: Order,
        each: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        let place = self.resolve(path)?;
        let node = if place.is_file() { self.stat(&place)? } else { None };
        let is_file = node.is_some();
        each(Entry { name: ".".to_owned(), node: node.unwrap_or(Node::Path) })?;
        if is_file { Ok(()) } else { self.walk(&place, "", recurse, order, each) }
    }

    fn walk(
        &self,
        place: &Place,
        prefix: &str,
        recurse: bool,
        order: Order,
        each: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        let mut children = self.children(place)?;
        children.sort_by(|a, b| a.name.cmp(&b.name));
        if order == Order::Descending {
            children.reverse();
        }
        for child in children {
            let below = (recurse && child.node == Node::Path).then(|| place.child(&child.name));
            let entry = Entry { name: format!("{prefix}{}", child.name), ..child };
            let inner = format!("{}/", entry.name);
            if order == Order::Ascending {
                each(entry)?;
                if let Some(below) = below {
                    self.walk(&below, &inner, recurse, order, each)?;
                }
            } else {
                if let Some(below) = below {
                    self.walk(&below, &inner, recurse, order, each)?;
                }
                each(entry)?;
            }
        }
        Ok(())
    }

    /// The content of a file: of archived files what the server gave, of a name that ends in `.zst` the same compressed; of
    /// others what is made up. With `raw`, the object as it is stored, of archived files only. None if there is no such file.
    ///
    /// # Errors
    /// `FileRead` for a directory; `OptionInvalid` for `raw` of what is made up; what the store, the cipher or the decoder
    /// said.
    pub fn read(&self, path: &TreePath, raw: bool) -> Result<Option<Vec<u8>>> {
        let place = self.resolve(path)?;
        if let Place::Wal { stanza, archive_id, name, form } = &place {
            return self.read_wal(stanza, archive_id, name, *form, raw);
        }
        if !place.is_file() {
            let is_there = place == Place::Root || !self.children(&place)?.is_empty();
            let text = format!("'{path}' is a directory");
            return if is_there { Err(Error::refused(Kind::FileRead, text)) } else { Ok(None) };
        }
        let content = self.made_up(&place)?.map(|(text, _)| text);
        if raw && content.is_some() {
            let text = format!(
                "option 'raw' is about stored objects, and '{path}' is none: it is made up when it is asked for"
            );
            return Err(Error::refused(Kind::OptionInvalid, text));
        }
        Ok(content.map(String::into_bytes))
    }

    fn read_wal(&self, stanza: &str, archive_id: &str, name: &str, form: Form, raw: bool) -> Result<Option<Vec<u8>>> {
        if raw {
            return match self.repository.store().get(&layout::wal(stanza, archive_id, name), Range::Whole) {
                Ok(object) => Ok(Some(object)),
                Err(e) if e.kind() == Kind::FileMissing => Ok(None),
                Err(e) => Err(e.into()),
            };
        }
        let content = self.repository.wal_get(stanza, archive_id, name)?;
        match (content, form) {
            (Some(content), Form::Compressed) => {
                let failed = |e| Error::refused(Kind::Memory, format!("cannot compress '{name}': {e}"));
                zstd::bulk::compress(&content, PRINT_LEVEL).map(Some).map_err(failed)
            }
            (content, Form::AsGiven) => Ok(content),
            (None, Form::Compressed) => Ok(None),
        }
    }

    /// The names in a directory, in any order; none of what is not there.
    fn children(&self, place: &Place) -> Result<Vec<Entry>> {
        let path = |name: String| Entry { name, node: Node::Path };
        Ok(match place {
            Place::Root => ["archive", "backup"].map(|name| path(name.to_owned())).into(),
            Place::Archives | Place::Backups => self.repository.stanzas()?.into_iter().map(path).collect(),
            Place::Archive { stanza } => {
                let mut out: Vec<_> = self.repository.wal_archives(stanza)?.into_iter().map(path).collect();
                out.extend(self.entry(place, "archive.info")?);
                out
            }
            Place::ArchiveId { stanza, archive_id } => self.wal_entries(&layout::wal_archive(stanza, archive_id))?,
            Place::WalDirectory { stanza, archive_id, directory } => {
                self.wal_entries(&format!("{}{directory}/", layout::wal_archive(stanza, archive_id)))?
            }
            Place::Backup { stanza } => {
                let backups = self.backups(stanza)?;
                let mut out: Vec<_> = backups.iter().map(|b| path(b.label.clone())).collect();
                out.extend(self.entry(place, "backup.info")?);
                let link = |newest: &Backup| Node::Link { destination: newest.label.clone() };
                out.extend(newest(&backups).map(|b| Entry { name: "latest".to_owned(), node: link(b) }));
                out
            }
            Place::Set { .. } => self.entry(place, "backup.manifest")?.into_iter().collect(),
            Place::ArchiveInfo { .. }
            | Place::Wal { .. }
            | Place::BackupInfo { .. }
            | Place::Manifest { .. }
            | Place::Nothing => Vec::new(),
        })
    }

    /// The archived files under a prefix, and the directories of them. What others leave there is none of ours.
    fn wal_entries(&self, prefix: &str) -> Result<Vec<Entry>> {
        let directory = prefix.trim_end_matches('/').rsplit('/').next().filter(|name| path::is_wal_directory(name));
        let mut out = Vec::new();
        self.repository.store().list(prefix, Depth::Children, &mut |l| {
            let Some(name) = l.key.strip_prefix(prefix) else { return };
            if let Some(below) = name.strip_suffix('/') {
                let known = directory.is_none() && path::is_wal_directory(below);
                out.extend(known.then(|| Entry { name: below.to_owned(), node: Node::Path }));
            } else if let Ok(name) = ArchiveName::parse(name)
                && name.directory().as_deref() == directory
            {
                out.push(Entry { name: path::shown(&name), node: Node::File { size: l.size, time: l.modified } });
            }
        })?;
        Ok(out)
    }

    fn entry(&self, place: &Place, name: &str) -> Result<Option<Entry>> {
        Ok(self.stat(&place.child(name))?.map(|node| Entry { name: name.to_owned(), node }))
    }

    /// Size and time of a file; none if it is not there.
    fn stat(&self, place: &Place) -> Result<Option<Node>> {
        if let Place::Wal { stanza, archive_id, name, .. } = place {
            let key = layout::wal(stanza, archive_id, name);
            let directory = key.rsplit_once('/').map(|(directory, _)| format!("{directory}/")).unwrap_or_default();
            let mut found = None;
            self.repository.store().list(&directory, Depth::Children, &mut |l| {
                if l.key == key {
                    found = Some(Node::File { size: l.size, time: l.modified });
                }
            })?;
            return Ok(found);
        }
        let Some((content, time)) = self.made_up(place)? else { return Ok(None) };
        Ok(Some(Node::File { size: content.len() as u64, time }))
    }

    /// The text of a file that no object holds, and when that last changed; none if it is not there, or no such file.
    fn made_up(&self, place: &Place) -> Result<Option<(String, i64)>> {
        let Some(stanza) = place.stanza() else { return Ok(None) };
        let history = self.history(stanza)?;
        let Some(created) = history.last().map(|h| h.created) else { return Ok(None) };
        Ok(match place {
            Place::ArchiveInfo { .. } => Some((text::archive_info(&history), created)),
            Place::BackupInfo { .. } => {
                let backups = self.backups(stanza)?;
                let changed = newest(&backups).map_or(created, |b| b.stop.max(created));
                Some((text::backup_info(&history, &backups), changed))
            }
            Place::Manifest { label, .. } => {
                let backups = self.backups(stanza)?;
                backups.iter().find(|b| b.label == *label).map(|b| (text::manifest(&history, b), b.stop))
            }
            _ => None,
        })
    }

    /// The place that a path means, `latest` as the label it stands for.
    fn resolve(&self, path: &TreePath) -> Result<Place> {
        let mut place = Place::Root;
        for name in path.components() {
            place = match &place {
                Place::Backup { stanza } if name == "latest" => {
                    newest(&self.backups(stanza)?).map_or(Place::Nothing, |newest| place.child(&newest.label))
                }
                _ => place.child(name),
            };
        }
        Ok(place)
    }

    /// Clusters of a stanza; none if it does not exist.
    fn history(&self, stanza: &str) -> Result<Rc<[StanzaHistory]>> {
        kept(&self.history, stanza, || self.repository.stanza_history(stanza))
    }

    /// Backups of a stanza by label; none if it does not exist.
    fn backups(&self, stanza: &str) -> Result<Rc<[Backup]>> {
        kept(&self.backups, stanza, || match self.history(stanza)?.is_empty() {
            true => Ok(Vec::new()),
            false => {
                let mut backups = self.repository.backups(stanza)?;
                let mut notes = self.repository.annotate(stanza, &mut backups)?;
                match notes.unreadable.pop() {
                    Some((_, e)) => Err(e),
                    None => Ok(backups),
                }
            }
        })
    }
}

/// What was read for a stanza, or reads it.
fn kept<T>(cell: &RefCell<Option<Of<T>>>, stanza: &str, read: impl FnOnce() -> Result<Vec<T>>) -> Result<Rc<[T]>> {
    if let Some((_, found)) = cell.borrow().as_ref().filter(|(name, _)| name == stanza) {
        return Ok(Rc::clone(found));
    }
    let found: Rc<[T]> = read()?.into();
    *cell.borrow_mut() = Some((stanza.to_owned(), Rc::clone(&found)));
    Ok(found)
}

/// What the link `latest` leads to.
fn newest(backups: &[Backup]) -> Option<&Backup> {
    backups.iter().max_by_key(|b| b.stop)
}
