//! The log file: appended to, begun with a banner once the first line comes.
//!
//! It may be rotated under a process that lives long: by renaming or removing it, which each line looks for, or by truncating
//! it, which appending allows for.

use pgkeep_engine::FileError;
use rustix::fs::{FileType, Stat};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const BANNER: &str = "-------------------PROCESS START-------------------\n";

/// An open log file.
pub(super) struct LogFile {
    path: PathBuf,
    /// The file, and whether the banner is still to be written.
    file: Mutex<(File, bool)>,
}

impl LogFile {
    /// Opens `name` in `dir` for appending; makes both if they are missing.
    pub(super) fn open(dir: &Path, name: &str) -> Result<Self, FileError> {
        if !dir.is_dir() {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o750).create(dir).map_err(FileError::at("create", dir))?;
        }
        let path = dir.join(name);
        let file = appended(&path).map_err(FileError::at("open", &path))?;
        Ok(Self { path, file: Mutex::new((file, true)) })
    }

    /// Appends one line, ended by a newline. A line that cannot be written is lost: the command goes on.
    pub(super) fn append(&self, line: &str) {
        let Ok(mut guard) = self.file.lock() else { return };
        let (file, is_new) = &mut *guard;
        // If it cannot be made again, the file that was renamed still takes the line.
        if self.was_rotated(file)
            && let Ok(other) = appended(&self.path)
        {
            *file = other;
        }
        if std::mem::take(is_new) {
            let gap = if file.metadata().is_ok_and(|m| m.len() > 0) { "\n" } else { "" };
            drop(file.write_all(format!("{gap}{BANNER}{line}").as_bytes()));
        } else {
            drop(file.write_all(line.as_bytes()));
        }
    }

    /// Whether the path names another file than the open one, or none.
    fn was_rotated(&self, file: &File) -> bool {
        let identity = |s: Stat| (s.st_dev, s.st_ino);
        match (rustix::fs::fstat(file), rustix::fs::stat(&self.path)) {
            (Ok(open), Ok(named)) => identity(open) != identity(named),
            (Ok(open), Err(rustix::io::Errno::NOENT)) => FileType::from_raw_mode(open.st_mode).is_file(),
            _ => false,
        }
    }
}

fn appended(path: &Path) -> std::io::Result<File> {
    File::options().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_begins_with_a_banner() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        for line in ["one\n", "two\n"] {
            let log = LogFile::open(&deep, "x.log").unwrap();
            log.append(line);
            log.append("end\n");
        }
        drop(LogFile::open(&deep, "x.log").unwrap());
        let text = std::fs::read_to_string(deep.join("x.log")).unwrap();
        assert_eq!(text, format!("{BANNER}one\nend\n\n{BANNER}two\nend\n"));
    }

    #[test]
    fn a_file_that_was_rotated_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("x.log"), dir.path().join("x.log.1"));
        let log = LogFile::open(dir.path(), "x.log").unwrap();
        log.append("one\n");
        std::fs::rename(&path, &old).unwrap();
        log.append("two\n");
        assert_eq!(std::fs::read_to_string(&old).unwrap(), format!("{BANNER}one\n"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        // As `create` of logrotate does, and `copytruncate`.
        std::fs::rename(&path, &old).unwrap();
        std::fs::write(&path, "").unwrap();
        log.append("three\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        File::options().write(true).truncate(true).open(&path).unwrap();
        log.append("four\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n");
        // Nowhere to make it: the old one goes on.
        std::fs::rename(dir.path(), dir.path().with_extension("gone")).unwrap();
        log.append("five\n");
        let gone = dir.path().with_extension("gone");
        assert_eq!(std::fs::read_to_string(gone.join("x.log")).unwrap(), "four\nfive\n");
        std::fs::rename(gone, dir.path()).unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(LogFile::open(&dir.path().join("file"), "x.log").is_err());
        assert!(LogFile::open(&dir.path().join("file/below"), "x.log").is_err());
    }
}
