//! What a data directory says of its cluster, and who runs on it.

use crate::{Error, FileError, Result};
use pgkeep_formats::FormatError;
use pgkeep_formats::pg::control::{CONTROL_FILE_SIZE, ControlFile};
use rustix::process::{Pid, test_kill_process};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often pg_control is read when it is caught in the middle of a write. One write takes microseconds.
const CONTROL_ATTEMPTS: u32 = 20;
/// How long to wait before the next attempt.
const CONTROL_PAUSE: Duration = Duration::from_millis(25);

/// `global/pg_control`, read whole.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Control {
    /// Its fields.
    pub fields: ControlFile,
    /// Its bytes; their checksum has been verified.
    pub bytes: Vec<u8>,
}

/// Reads `global/pg_control`, again if it is being written.
///
/// # Errors
/// [`crate::Kind::FileMissing`] if there is none, [`crate::Kind::Format`] if it is no such file or its
/// checksum stays wrong, [`crate::Kind::FeatureNotSupported`] for a version that is not supported.
pub fn read_control(pgdata: &Path) -> Result<Control> {
    let path = pgdata.join("global/pg_control");
    let mut attempt = 1;
    loop {
        let file = std::fs::File::open(&path).map_err(FileError::at("open", &path))?;
        let mut bytes = Vec::with_capacity(CONTROL_FILE_SIZE);
        // One byte more than there should be, so that a longer file is seen to be one.
        let limit = CONTROL_FILE_SIZE as u64 + 1;
        file.take(limit).read_to_end(&mut bytes).map_err(FileError::at("read", &path))?;
        match ControlFile::parse(&bytes) {
            Ok(fields) => return Ok(Control { fields, bytes }),
            Err(FormatError::BadChecksum { .. }) if attempt < CONTROL_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(CONTROL_PAUSE);
            }
            Err(e) => return Err(Error::damaged(path.display().to_string())(e)),
        }
    }
}

/// What `postmaster.pid` says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Postmaster {
    /// Number of the process; `None` if the file says nothing sensible.
    pub pid: Option<u32>,
    /// Whether a process of that number exists. True when it cannot be told.
    pub alive: bool,
    /// The port it listens on.
    pub port: Option<u16>,
    /// The first directory it has a socket in.
    pub socket_directory: Option<PathBuf>,
}

/// Reads `postmaster.pid`; `None` if there is none.
///
/// # Errors
/// [`crate::Kind::FileOpen`] or [`crate::Kind::FileRead`] if it cannot be read.
pub fn postmaster(pgdata: &Path) -> Result<Option<Postmaster>> {
    let path = pgdata.join("postmaster.pid");
    let bytes = match std::fs::read(&path) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.map_err(FileError::at("open", &path))?,
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let line = |at: usize| lines.get(at).copied().filter(|l| !l.is_empty());
    // A standalone backend writes its number with a minus sign.
    let pid = line(0).and_then(|l| l.trim_start_matches('-').parse::<i32>().ok()).filter(|pid| *pid > 0);
    let alive = match pid.and_then(Pid::from_raw) {
        None => true,
        Some(pid) => !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH)),
    };
    Ok(Some(Postmaster {
        pid: pid.map(i32::cast_unsigned),
        alive,
        port: line(3).and_then(|l| l.parse().ok()),
        socket_directory: line(4).map(PathBuf::from),
    }))
}

/// Whether a server runs on the directory, as far as this host can tell.
///
/// # Errors
/// As [`postmaster`].
pub fn is_running(pgdata: &Path) -> Result<bool> {
    Ok(postmaster(pgdata)?.is_some_and(|p| p.alive))
}
