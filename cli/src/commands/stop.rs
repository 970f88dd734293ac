//! `stop`: creates the stop file; with `--force` also ends what holds locks.
//!
//! A lock file is `<lock-path>/<stanza>-<what>-<repository>.lock`, held with flock(2), its JSON names the
//! holder. A process id counts only while the lock is held, so a reused one is not hit.

use super::{Context, control};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Settings};
use pgkeep_engine::FileError;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// More than any lock file holds.
const LOCK_BYTES_MAX: u64 = 64 * 1024;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let file = control::stop_file(settings);
    let dir = settings.lock_path();
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o770).create(dir).map_err(|e| Failure::file(FileError::at("create", dir)(e)))?;
    match File::options().write(true).create_new(true).mode(0o640).open(&file) {
        Ok(made) => {
            made.sync_all().map_err(|e| Failure::file(FileError::at("sync", &file)(e)))?;
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            tracing::warn!("there is a stop file for {} already", control::scope(settings));
        }
        Err(e) => return Err(Failure::file(FileError::at("open", &file)(e))),
    }
    if settings.flag(Opt::Force) {
        for lock in lock_files(settings)? {
            end_holder(&lock)?;
        }
    }
    Ok(Status::OK)
}

/// The lock files of the stanza, or all.
fn lock_files(settings: &Settings) -> Result<Vec<PathBuf>, Failure> {
    let dir = settings.lock_path();
    let failed = |e| Failure::file(FileError::at("list", dir)(e));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".lock")) else { continue };
        // A stanza's name may have dashes itself, so the two last parts are cut off, not the first compared.
        let stanza = stem.rsplitn(3, '-').nth(2);
        if settings.stanza().is_none_or(|wanted| stanza == Some(wanted)) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Sends TERM to the process that holds a lock; nothing if nobody does.
fn end_holder(path: &Path) -> Result<(), Failure> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Failure::file(FileError::at("open", path)(e))),
    };
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return Ok(());
    }
    let mut text = String::new();
    file.take(LOCK_BYTES_MAX).read_to_string(&mut text).map_err(|e| Failure::file(FileError::at("read", path)(e)))?;
    match holder(&text) {
        Some(pid) => match kill_process(pid, Signal::TERM) {
            Ok(()) => tracing::info!("sent a term signal to process {}", pid.as_raw_nonzero()),
            Err(e) => tracing::warn!("cannot send a term signal to process {}: {e}", pid.as_raw_nonzero()),
        },
        None => tracing::warn!("'{}' is held but does not say by whom", path.display()),
    }
    Ok(())
}

/// The process id in a lock file.
fn holder(text: &str) -> Option<Pid> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    Pid::from_raw(i32::try_from(json.get("pid")?.as_i64()?).ok().filter(|pid| *pid > 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_a_sane_process_id() {
        assert_eq!(holder(r#"{"execId":"1-a","pid":4711}"#), Pid::from_raw(4711));
        for text in ["", "{}", "4711", r#"{"pid":0}"#, r#"{"pid":1}"#, r#"{"pid":-1}"#, r#"{"pid":99999999999}"#] {
            assert_eq!(holder(text), None, "{text}");
        }
    }
}
