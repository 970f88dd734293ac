//! What a restore will do: one merge of the manifest with what lies in the target, both in path order.
//!
//! Nothing is written here, so a plan can be printed instead of executed. Directories, links and removals are listed;
//! files are only counted, as the execution reads the manifest again: memory grows with directories and with what is
//! to be removed, not with the cluster. `target` decides what may happen to the directory at all, `maps` where links
//! lead, `lister` walks the target.

mod lister;
mod maps;
mod target;

pub(super) use maps::Maps;
pub(super) use target::inspect;

use super::databases::LeftOut;
use super::finish::SETTINGS;
use crate::pg::datadir::path_cmp;
use crate::{Error, FileError, Kind, Result};
use lister::{Found, FoundKind, Lister};
use pgkeep_formats::repo::manifest::{Entry, Node};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};

/// Lies in the target while a restore is under way; its line is the backup's label.
pub const MARKER: &str = "pgkeep.restore";
/// Written last: without it no server starts.
pub(super) const CONTROL: &str = "global/pg_control";
/// Name of the new pg_control until everything else is durable.
pub(super) const CONTROL_TEMPORARY: &str = "global/pg_control.pgkeep.tmp";
/// Links are made from the manifest, so this file would only do harm: the server would make them again, unmapped.
const TABLESPACE_MAP: &str = "tablespace_map";
/// Files that recovery type `preserve` leaves as they are.
const PRESERVED: [&str; 3] = [SETTINGS, "recovery.signal", "standby.signal"];

/// How the target's content is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// There is none.
    Empty,
    /// Everything is written anew.
    Overwrite,
    /// Every byte is compared; what differs is written.
    Delta,
    /// Files of the same size and time of change are taken to be the same; all others are compared as for `Delta`.
    Timestamps,
}

/// A directory to make or to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDirectory {
    /// Path in the manifest; the data directory's is empty.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner: number of its name in the manifest.
    pub user: u32,
    /// Group: number of its name in the manifest.
    pub group: u32,
}

/// What a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// The location of a tablespace: only the directory of this version in it belongs to the cluster.
    Tablespace,
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// A link to make or to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLink {
    /// Path in the manifest.
    pub path: String,
    /// What it leads to.
    pub kind: LinkKind,
    /// Text of the link.
    pub text: PathBuf,
    /// Where that is, absolute.
    pub destination: PathBuf,
    /// True if the link is there and has this text.
    pub present: bool,
}

/// Something in the target that the backup does not have there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Path of its directory in the manifest.
    pub directory: String,
    /// Its name.
    pub name: Vec<u8>,
    /// Where it is.
    pub real: PathBuf,
}

/// What a restore will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How the target's content is treated.
    pub mode: Mode,
    /// The data directory.
    pub target: PathBuf,
    /// Directories, parents first; those that links lead to among them.
    pub directories: Vec<PlannedDirectory>,
    /// Links, in path order.
    pub links: Vec<PlannedLink>,
    /// What is removed.
    pub removals: Vec<Removal>,
    /// Files the backup has.
    pub files: u64,
    /// Of these, how many are there already, with whatever content.
    pub files_present: u64,
    /// Bytes of all files whose content is restored.
    pub bytes: u64,
    /// Files of databases that are left out: they are made, but hold nothing.
    pub files_left_out: u64,
    /// Their sizes in bytes, together.
    pub bytes_left_out: u64,
    /// Type `preserve` found a `postgresql.auto.conf` and keeps it.
    pub preserves_settings: bool,
}

/// What decides a plan besides the manifest and the target's content.
pub(super) struct PlanOptions<'a> {
    pub(super) target: &'a Path,
    pub(super) mode: Mode,
    /// Directory of the cluster's version in a tablespace's location.
    pub(super) tablespace_directory: &'a str,
    /// Recovery type `preserve`.
    pub(super) preserve: bool,
    /// Databases of which no content is restored.
    pub(super) left_out: &'a LeftOut,
}

/// True for entries that are not restored as files like all others.
pub(super) fn is_special(path: &str) -> bool {
    path == TABLESPACE_MAP || path == MARKER || path == CONTROL
}

impl Plan {
    /// True if the file of the target is kept as it is.
    pub(super) fn keeps(&self, path: &str) -> bool {
        self.preserves_settings && path == SETTINGS
    }
}

/// Merges the entries of a manifest, in path order, with the target.
///
/// # Errors
/// `PathNotEmpty` if the mode is [`Mode::Empty`] and something is there; `TablespaceMap`, `LinkMap`, `LinkDestination`
/// for maps and links that do not fit; what `entries` or the file system said.
pub(super) fn build(
    entries: impl Iterator<Item = Result<Entry>>,
    mut maps: Maps<'_>,
    options: &PlanOptions<'_>,
) -> Result<Plan> {
    let mut merge = Merge {
        plan: Plan {
            mode: options.mode,
            target: options.target.to_owned(),
            directories: Vec::new(),
            links: Vec::new(),
            removals: Vec::new(),
            files: 0,
            files_present: 0,
            bytes: 0,
            files_left_out: 0,
            bytes_left_out: 0,
            preserves_settings: false,
        },
        lister: Lister::default(),
        options,
    };
    merge.lister.descend(b"", options.target, None)?;
    for entry in entries {
        let entry = entry?;
        let same = loop {
            let Some(found) = merge.lister.next()? else { break None };
            match path_cmp(&found.path, entry.path.as_bytes()) {
                Ordering::Less => merge.extra(found)?,
                Ordering::Equal => break Some(found),
                Ordering::Greater => {
                    merge.lister.give_back(found);
                    break None;
                }
            }
        };
        merge.wanted(&entry, same, &mut maps)?;
    }
    while let Some(found) = merge.lister.next()? {
        merge.extra(found)?;
    }
    maps.check_used()?;
    maps::check_overlap(&merge.plan, options)?;
    Ok(merge.plan)
}

struct Merge<'a> {
    plan: Plan,
    lister: Lister,
    options: &'a PlanOptions<'a>,
}

impl Merge<'_> {
    /// Takes an entry of the manifest and what the target has in its place.
    fn wanted(&mut self, entry: &Entry, found: Option<Found>, maps: &mut Maps<'_>) -> Result<()> {
        if matches!(entry.path.as_str(), TABLESPACE_MAP | MARKER) {
            return found.map_or(Ok(()), |f| self.extra(f));
        }
        if entry.path.is_empty() {
            self.plan.directories.push(directory(entry));
            return Ok(());
        }
        if let Some(found) = &found {
            self.refuse_if_empty(found)?;
        }
        let is_file = entry.is_file();
        if is_file {
            self.plan.files += 1;
            if self.options.left_out.has_file(&entry.path) {
                self.plan.files_left_out += 1;
                self.plan.bytes_left_out += entry.size;
            } else {
                self.plan.bytes += entry.size;
            }
        } else {
            self.plan.directories.push(directory(entry));
        }
        if let Some((kind, text)) = maps.link(entry)? {
            return self.link(entry, kind, text, found);
        }
        let fits = match &found {
            None => return Ok(()),
            Some(found) => found.kind == if is_file { FoundKind::File } else { FoundKind::Directory },
        };
        match found {
            Some(found) if !fits => self.remove(found),
            Some(_) if is_file => {
                self.plan.files_present += 1;
                self.plan.preserves_settings |= self.options.preserve && entry.path == SETTINGS;
                Ok(())
            }
            Some(found) => self.lister.descend(&found.path, &found.real, None),
            None => Ok(()),
        }
    }

    fn link(&mut self, entry: &Entry, kind: LinkKind, text: PathBuf, found: Option<Found>) -> Result<()> {
        let present = found.as_ref().is_some_and(|f| f.kind == FoundKind::Link(text.clone()));
        let destination = maps::resolve(self.options.target, &entry.path, &text)?;
        if !present {
            self.refuse_if_foreign(entry, kind, &destination, found.as_ref())?;
        }
        if let Some(found) = found.filter(|_| !present) {
            self.remove(found)?;
        }
        match kind {
            LinkKind::File if destination.symlink_metadata().is_ok() => {
                let found = Found::at(entry.path.clone().into_bytes(), destination.clone())?;
                if let Some(found) = found {
                    self.refuse_if_empty(&found)?;
                    if found.kind != FoundKind::File {
                        let shown = destination.display();
                        let text = format!("link '{}' leads to '{shown}', which is not a file", entry.path);
                        return Err(Error::refused(Kind::LinkDestination, text));
                    }
                    self.plan.files_present += 1;
                }
            }
            LinkKind::File => {}
            LinkKind::Directory => self.lister.descend(entry.path.as_bytes(), &destination, None)?,
            LinkKind::Tablespace => {
                let only = Some(self.options.tablespace_directory);
                self.lister.descend(entry.path.as_bytes(), &destination, only)?;
            }
        }
        self.plan.links.push(PlannedLink { path: entry.path.clone(), kind, text, destination, present });
        Ok(())
    }

    /// That the target may be replaced says nothing of a place its links do not lead to: another server may live there.
    fn refuse_if_foreign(
        &self,
        entry: &Entry,
        kind: LinkKind,
        destination: &Path,
        found: Option<&Found>,
    ) -> Result<()> {
        if matches!(self.options.mode, Mode::Empty | Mode::Overwrite | Mode::Timestamps) {
            // In the first, whatever is found there is refused; the others are what `--force` makes.
            return Ok(());
        }
        let place = match kind {
            LinkKind::Tablespace => destination.join(self.options.tablespace_directory),
            LinkKind::Directory | LinkKind::File => destination.to_owned(),
        };
        let used = match Found::at(Vec::new(), place.clone())? {
            None => false,
            Some(Found { kind: FoundKind::Directory, .. }) => {
                std::fs::read_dir(&place).map_err(FileError::at("list", &place))?.next().is_some()
            }
            Some(_) => true,
        };
        if !used {
            return Ok(());
        }
        let link = self.options.target.join(&entry.path);
        let now = match found.map(|f| &f.kind) {
            Some(FoundKind::Link(text)) => format!("leads to '{}'", text.display()),
            Some(_) => "is no link".to_owned(),
            None => "is not there".to_owned(),
        };
        let map = if kind == LinkKind::Tablespace { "tablespace-map" } else { "link-map" };
        let text = format!(
            "unable to restore to '{}': it contains files, and '{}', which shall lead to '{}', {now}: these may be files \
             of another server. Say by --{map} where they shall go, or use --force to replace them",
            place.display(),
            link.display(),
            destination.display()
        );
        Err(Error::refused(Kind::PathNotEmpty, text))
    }

    /// Takes something of the target that the manifest does not have.
    fn extra(&mut self, found: Found) -> Result<()> {
        if found.path == MARKER.as_bytes() && found.kind == FoundKind::File {
            return Ok(());
        }
        self.refuse_if_empty(&found)?;
        let preserved = PRESERVED.iter().any(|p| p.as_bytes() == found.path);
        if self.options.preserve && preserved && found.kind == FoundKind::File {
            self.plan.preserves_settings |= found.path == SETTINGS.as_bytes();
            return Ok(());
        }
        self.remove(found)
    }

    fn remove(&mut self, found: Found) -> Result<()> {
        let slash = found.path.iter().rposition(|b| *b == b'/');
        let (directory, name) = match slash {
            Some(at) => (found.path.get(..at).unwrap_or_default(), found.path.get(at + 1..).unwrap_or_default()),
            None => (&[][..], found.path.as_slice()),
        };
        // Only directories of the manifest are listed, and their paths are text.
        let directory = String::from_utf8_lossy(directory).into_owned();
        self.plan.removals.push(Removal { directory, name: name.to_vec(), real: found.real });
        Ok(())
    }

    fn refuse_if_empty(&self, found: &Found) -> Result<()> {
        if self.options.mode != Mode::Empty {
            return Ok(());
        }
        let directory = found.real.parent().unwrap_or(&found.real).display();
        let text =
            format!("unable to restore to '{directory}' because it contains files, such as '{}'", found.real.display());
        Err(Error::refused(Kind::PathNotEmpty, text))
    }
}

fn directory(entry: &Entry) -> PlannedDirectory {
    PlannedDirectory { path: entry.path.clone(), mode: entry.mode, user: entry.user, group: entry.group }
}

/// True for entries that are files, whether they lie behind a link or not.
pub(super) fn is_file(node: &Node) -> bool {
    matches!(node, Node::File | Node::LinkedFile(_))
}
