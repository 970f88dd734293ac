//! Where a dump goes, and how a file of it gets its name.

use super::into;
use crate::error::Failure;
use crate::exit::Status;
use crate::mounts;
use crate::option::{Opt, OptionError, Settings};
use pgkeep_engine::{Error, FileError, Kind};
use std::fs::File;
use std::io::{ErrorKind, IsTerminal as _};
use std::path::{Path, PathBuf};

/// Where a dump goes.
pub(super) enum Output {
    Stdout,
    /// A file or, in format directory, a directory.
    File(Target),
    /// A server, by its connection string.
    Server(String),
}

/// A file or directory that gets its name when it is whole.
pub(super) struct Target {
    path: PathBuf,
    temporary: PathBuf,
    is_dir: bool,
}

impl Output {
    /// As the options say.
    ///
    /// # Errors
    /// What contradicts, before anything is done; `FileExists` or `PathNotEmpty` if something else is in the place.
    pub(super) fn of(settings: &Settings) -> Result<Self, Failure> {
        let invalid = |message: &str| Err(OptionError::new(Status::OPTION_INVALID, message).into());
        let format = settings.text(Opt::Format).unwrap_or("plain");
        if settings.flag(Opt::DataOnly) && settings.flag(Opt::SchemaOnly) {
            return invalid("options 'data-only' and 'schema-only' exclude each other");
        }
        if settings.is_given(Opt::Table) && settings.is_given(Opt::Schema) {
            return invalid(
                "options 'table' and 'schema' exclude each other: --table='NAME.*' takes all tables of a schema",
            );
        }
        match (settings.path(Opt::File), settings.text(Opt::Into)) {
            (Some(_), Some(_)) => invalid("options 'file' and 'into' exclude each other"),
            (None, Some(_)) if format != "plain" => {
                invalid("option 'format' is not for 'into': the server takes the dump at once")
            }
            (None, Some(conninfo)) => {
                into::check(conninfo)?;
                Ok(Self::Server(conninfo.to_owned()))
            }
            (Some(path), None) => Ok(Self::File(Target::of(path, format == "directory")?)),
            (None, None) if format == "directory" => invalid("option 'format' = directory needs option 'file'"),
            (None, None) if format == "custom" && std::io::stdout().is_terminal() => {
                invalid("option 'format' = custom is not for a terminal: name a file by 'file'")
            }
            (None, None) => Ok(Self::Stdout),
        }
    }
}

impl Target {
    fn of(path: &Path, is_dir: bool) -> Result<Self, Failure> {
        let path = mounts::resolved(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::refused(Kind::OptionInvalidValue, "option 'file' names no file").into());
        };
        if !parent.is_dir() {
            let text = format!("there is no directory '{}' to write to", parent.display());
            return Err(Error::refused(Kind::PathMissing, text).into());
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".pgkeep-{}", std::process::id()));
        let target = Self { temporary: parent.join(hidden), path, is_dir };
        target.check_free()?;
        Ok(target)
    }

    /// A dump may replace a file, as a shell's redirection does, and an empty directory.
    fn check_free(&self) -> Result<(), Failure> {
        let on = self.path.display();
        let facts = match std::fs::symlink_metadata(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| Failure::file(FileError::at("stat", &self.path)(e)))?,
        };
        if self.is_dir && facts.is_dir() {
            let mut entries =
                std::fs::read_dir(&self.path).map_err(|e| Failure::file(FileError::at("list", &self.path)(e)))?;
            if entries.next().is_some() {
                return Err(Error::refused(Kind::PathNotEmpty, format!("directory '{on}' is not empty")).into());
            }
        } else if self.is_dir {
            let text = format!("'{on}' is there and is no directory, which --format=directory writes");
            return Err(Error::refused(Kind::FileExists, text).into());
        } else if !facts.is_file() {
            let text = format!("'{on}' is there and is no file; without --file the dump goes to standard output");
            return Err(Error::refused(Kind::FileExists, text).into());
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The name to write to: beside the final one, after what is left of an earlier process of this number is removed.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn begin(&self) -> Result<PathBuf, Failure> {
        self.remove().map_err(|e| Failure::file(FileError::at("remove", &self.temporary)(e)))?;
        Ok(self.temporary.clone())
    }

    /// Gives what is whole its name, durably; its content was synced by `pg_dump`.
    ///
    /// # Errors
    /// What the file system said.
    pub(super) fn commit(&self) -> Result<(), Failure> {
        std::fs::rename(&self.temporary, &self.path)
            .map_err(|e| Failure::file(FileError::at("rename", &self.temporary)(e)))?;
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| Failure::file(FileError::at("sync", parent)(e)))
    }

    /// Removes what is not whole.
    pub(super) fn abandon(&self) {
        if let Err(e) = self.remove() {
            tracing::warn!("cannot remove '{}', which is not whole: {e}", self.temporary.display());
        }
    }

    fn remove(&self) -> std::io::Result<()> {
        let removed = match std::fs::symlink_metadata(&self.temporary) {
            Ok(facts) if facts.is_dir() => std::fs::remove_dir_all(&self.temporary),
            Ok(_) => std::fs::remove_file(&self.temporary),
            Err(e) => Err(e),
        };
        removed.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_when_it_is_whole_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sql");
        std::fs::write(&path, "old").unwrap();
        let target = Target::of(&path, false).unwrap();
        let temporary = target.begin().unwrap();
        std::fs::write(&temporary, "new").unwrap();
        target.abandon();
        assert!(!temporary.exists());
        std::fs::write(target.begin().unwrap(), "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        target.commit().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_in_the_place_stays_unless_it_can_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, is_dir| Target::of(&dir.path().join(name), is_dir).map_err(|e| e.status().0).err();
        assert_eq!(of("new", false), None);
        assert_eq!(of("none/new", false), Some(73));
        std::fs::create_dir(dir.path().join("d")).unwrap();
        assert_eq!((of("d", true), of("d", false)), (None, Some(93)));
        std::fs::write(dir.path().join("d/f"), "").unwrap();
        assert_eq!((of("d", true), of("d/f", true), of("d/f", false)), (Some(40), Some(93), None));
    }
}
