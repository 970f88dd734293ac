//! The log file: appended to, begun with a banner once the first line comes.

use pgkeep_engine::FileError;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Mutex;

const BANNER: &str = "-------------------PROCESS START-------------------\n";

/// An open log file.
pub(super) struct LogFile {
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
        let file =
            File::options().append(true).create(true).mode(0o640).open(&path).map_err(FileError::at("open", &path))?;
        Ok(Self { file: Mutex::new((file, true)) })
    }

    /// Appends one line, ended by a newline. A line that cannot be written is lost: the command goes on.
    pub(super) fn append(&self, line: &str) {
        let Ok(mut guard) = self.file.lock() else { return };
        let (file, is_new) = &mut *guard;
        if std::mem::take(is_new) {
            let gap = if file.metadata().is_ok_and(|m| m.len() > 0) { "\n" } else { "" };
            drop(file.write_all(format!("{gap}{BANNER}{line}").as_bytes()));
        } else {
            drop(file.write_all(line.as_bytes()));
        }
    }
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
    fn a_place_that_cannot_be_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(LogFile::open(&dir.path().join("file"), "x.log").is_err());
        assert!(LogFile::open(&dir.path().join("file/below"), "x.log").is_err());
    }
}
