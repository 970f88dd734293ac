//! Which place of the tree a path means. Nothing is looked up here: whether something is there is another question.

use crate::{Error, Kind, Result};
use pgkeep_formats::pg::wal::ArchiveName;
use pgkeep_formats::repo::layout;
use std::fmt;

/// What stands where pgBackRest has the SHA-1 of a segment's content.
const NO_HASH: &str = "-0000000000000000000000000000000000000000";
/// Ends the names of what is compressed.
const COMPRESSED: &str = ".zst";

/// A path in the tree, relative to its root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TreePath(Vec<String>);

impl TreePath {
    /// Reads a path; one `/` at its end makes no difference, and nothing is the root.
    ///
    /// # Errors
    /// `ParamInvalid` if it begins with `/`, has `//`, `.` or `..` in it.
    pub fn parse(text: &str) -> Result<Self> {
        let relative = text.strip_suffix('/').unwrap_or(text);
        if text.is_empty() {
            return Ok(Self::default());
        }
        let components: Vec<_> = relative.split('/').map(str::to_owned).collect();
        if components.iter().any(|part| matches!(part.as_str(), "" | "." | "..")) {
            let text =
                format!("'{text}' is no path in a repository: it begins with '/', or has '//', '.' or '..' in it");
            return Err(Error::refused(Kind::ParamInvalid, text));
        }
        Ok(Self(components))
    }

    /// Its parts.
    pub(super) fn components(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

/// A place in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Root,
    Archives,
    Archive {
        stanza: String,
    },
    ArchiveInfo {
        stanza: String,
    },
    ArchiveId {
        stanza: String,
        archive_id: String,
    },
    WalDirectory {
        stanza: String,
        archive_id: String,
        directory: String,
    },
    /// An archived file by the server's name for it, and how its content is wanted.
    Wal {
        stanza: String,
        archive_id: String,
        name: String,
        form: Form,
    },
    Backups,
    Backup {
        stanza: String,
    },
    BackupInfo {
        stanza: String,
    },
    Set {
        stanza: String,
        label: String,
    },
    Manifest {
        stanza: String,
        label: String,
    },
    /// Where nothing can be.
    Nothing,
}

/// How the content of an archived file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As the server gave it.
    AsGiven,
    /// Compressed.
    Compressed,
}

impl Place {
    /// What a name in this place means.
    pub(super) fn child(&self, name: &str) -> Self {
        let stanza_ok = || layout::check_stanza(name).is_ok();
        match self {
            Self::Root if name == "archive" => Self::Archives,
            Self::Root if name == "backup" => Self::Backups,
            Self::Archives if stanza_ok() => Self::Archive { stanza: name.to_owned() },
            Self::Backups if stanza_ok() => Self::Backup { stanza: name.to_owned() },
            Self::Archive { stanza } if name == "archive.info" => Self::ArchiveInfo { stanza: stanza.clone() },
            Self::Archive { stanza } if is_archive_id(name) => {
                Self::ArchiveId { stanza: stanza.clone(), archive_id: name.to_owned() }
            }
            Self::ArchiveId { stanza, archive_id } if is_wal_directory(name) => Self::WalDirectory {
                stanza: stanza.clone(),
                archive_id: archive_id.clone(),
                directory: name.to_owned(),
            },
            Self::ArchiveId { stanza, archive_id } => wal(stanza, archive_id, None, name),
            Self::WalDirectory { stanza, archive_id, directory } => wal(stanza, archive_id, Some(directory), name),
            Self::Backup { stanza } if name == "backup.info" => Self::BackupInfo { stanza: stanza.clone() },
            Self::Backup { stanza } => Self::Set { stanza: stanza.clone(), label: name.to_owned() },
            Self::Set { stanza, label } if name == "backup.manifest" => {
                Self::Manifest { stanza: stanza.clone(), label: label.clone() }
            }
            _ => Self::Nothing,
        }
    }

    /// Whether a file may be here, and not a directory.
    pub(super) fn is_file(&self) -> bool {
        matches!(
            self,
            Self::ArchiveInfo { .. }
                | Self::Wal { .. }
                | Self::BackupInfo { .. }
                | Self::Manifest { .. }
                | Self::Nothing
        )
    }

    /// The stanza it belongs to.
    pub(super) fn stanza(&self) -> Option<&str> {
        match self {
            Self::Root | Self::Archives | Self::Backups | Self::Nothing => None,
            Self::Archive { stanza }
            | Self::ArchiveInfo { stanza }
            | Self::ArchiveId { stanza, .. }
            | Self::WalDirectory { stanza, .. }
            | Self::Wal { stanza, .. }
            | Self::Backup { stanza }
            | Self::BackupInfo { stanza }
            | Self::Set { stanza, .. }
            | Self::Manifest { stanza, .. } => Some(stanza),
        }
    }
}

/// The name under which an archived file is listed.
pub(super) fn shown(name: &ArchiveName) -> String {
    match name {
        ArchiveName::Segment(_) | ArchiveName::Partial(_) => format!("{name}{NO_HASH}{COMPRESSED}"),
        ArchiveName::Backup { .. } | ArchiveName::History(_) => name.to_string(),
    }
}

/// Whether this is the first half of segments' names and a third quarter: the name of a directory of WAL.
pub(super) fn is_wal_directory(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
}

fn is_archive_id(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.split_once('-').is_some_and(|(version, id)| digits(version) && digits(id))
}

/// The archived file of a listed name; segments also by that name without its `.zst`.
fn wal(stanza: &str, archive_id: &str, directory: Option<&str>, listed: &str) -> Place {
    let (hashed, form) = match listed.strip_suffix(COMPRESSED) {
        Some(hashed) => (hashed, Form::Compressed),
        None => (listed, Form::AsGiven),
    };
    let (bare, has_hash) = hashed.strip_suffix(NO_HASH).map_or((hashed, false), |bare| (bare, true));
    let Ok(name) = ArchiveName::parse(bare) else { return Place::Nothing };
    let is_segment = matches!(name, ArchiveName::Segment(_) | ArchiveName::Partial(_));
    if is_segment != has_hash || (form == Form::Compressed && !is_segment) || name.directory().as_deref() != directory {
        return Place::Nothing;
    }
    Place::Wal { stanza: stanza.to_owned(), archive_id: archive_id.to_owned(), name: bare.to_owned(), form }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Place {
        TreePath::parse(path).unwrap().components().fold(Place::Root, |place, name| place.child(name))
    }

    #[test]
    fn names_that_are_listed_mean_what_they_were_listed_for() {
        let names = [
            "000000010000000000000003",
            "000000010000000000000003.partial",
            "000000010000000000000003.00000028.backup",
            "00000002.history",
        ];
        for name in names {
            let parsed = ArchiveName::parse(name).unwrap();
            let directory = parsed.directory().map(|d| format!("{d}/")).unwrap_or_default();
            let listed = shown(&parsed);
            let form = if listed.ends_with(".zst") { Form::Compressed } else { Form::AsGiven };
            let found = |name: &str, form| Place::Wal {
                stanza: "demo".to_owned(),
                archive_id: "15-1".to_owned(),
                name: name.to_owned(),
                form,
            };
            assert_eq!(place(&format!("archive/demo/15-1/{directory}{listed}")), found(name, form), "{listed}");
            let given = listed.trim_end_matches(".zst");
            assert_eq!(place(&format!("archive/demo/15-1/{directory}{given}")), found(name, Form::AsGiven), "{given}");
        }
    }

    #[test]
    fn other_names_mean_nothing_and_no_name_leaves_the_tree() {
        let segment = format!("000000010000000000000003{NO_HASH}");
        for path in [
            "x",
            "archive/.x",
            "archive/demo/x",
            "archive/demo/15-",
            "archive/demo/15-1/0000000100000000/000000010000000000000003",
            "archive/demo/15-1/0000000100000000/000000010000000000000003.zst",
            "archive/demo/15-1/0000000100000000/00000002.history",
            &format!("archive/demo/15-1/{segment}"),
            &format!("archive/demo/15-1/0000000100000001/{segment}"),
            &format!("archive/demo/15-1/0000000100000000/{}", segment.replace("-0", "-1")),
            "archive/demo/15-1/0000000100000000/000000010000000000000003.00000028.backup.zst",
            "archive/demo/15-1/00000002.history/x",
            "backup/demo/backup.info/x",
            "backup/demo/20260101-000000F/pg_data",
        ] {
            assert_eq!(place(path), Place::Nothing, "{path}");
        }
        for path in ["/", "/archive", "archive//demo", "archive/../keys", "..", "./archive", "archive//"] {
            assert_eq!(TreePath::parse(path).unwrap_err().kind(), Kind::ParamInvalid, "{path}");
        }
        assert_eq!(place(""), Place::Root);
        assert_eq!(place("archive/"), Place::Archives);
    }
}
