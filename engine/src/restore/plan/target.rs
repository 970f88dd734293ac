//! What may be done to the target directory: the guards of a restore.

use super::{CONTROL, MARKER, Mode};
use crate::pg::datadir;
use crate::{Error, FileError, Kind, Result};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What was found and decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::restore) struct Target {
    /// How its content is treated.
    pub(in crate::restore) mode: Mode,
    /// Owner and group of the directory, if it exists.
    pub(in crate::restore) owner: Option<(u32, u32)>,
    /// An interrupted restore left it.
    pub(in crate::restore) interrupted: bool,
}

/// Looks at the target and decides how to treat it. `uid` is who restores.
///
/// # Errors
/// `PostgresRunning` if there is a `postmaster.pid`; `PathOpen` if the directory belongs to somebody else;
/// `PathNotEmpty` if it holds something and neither option allows to replace that, or nothing shows that it is a cluster.
pub(in crate::restore) fn inspect(target: &Path, delta: bool, force: bool, uid: u32) -> Result<Target> {
    let shown = target.display();
    if !target.is_absolute() {
        return Err(Error::refused(Kind::OptionInvalidValue, format!("the target '{shown}' is not an absolute path")));
    }
    let facts = match std::fs::metadata(target) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Ok(Target { mode: Mode::Empty, owner: None, interrupted: false });
        }
        other => other.map_err(FileError::at("stat", target))?,
    };
    if !facts.is_dir() {
        return Err(Error::refused(Kind::PathOpen, format!("unable to restore to '{shown}': it is not a directory")));
    }
    if uid != 0 && facts.uid() != uid {
        let text =
            format!("unable to restore to '{shown}': it belongs to user {}, not to this one ({uid})", facts.uid());
        return Err(Error::refused(Kind::PathOpen, text));
    }
    if let Some(postmaster) = datadir::postmaster(target)? {
        let pid = postmaster.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
        let state = if postmaster.alive { "PostgreSQL may be running" } else { "its process is not running here" };
        let text = format!("unable to restore to '{shown}' while it holds 'postmaster.pid' (process {pid}): {state}");
        return Err(Error::refused(Kind::PostgresRunning, text));
    }
    let owner = Some((facts.uid(), facts.gid()));
    let mut entries = std::fs::read_dir(target).map_err(FileError::at("list", target))?;
    if entries.next().transpose().map_err(FileError::at("list", target))?.is_none() {
        return Ok(Target { mode: Mode::Empty, owner, interrupted: false });
    }
    let has = |name: &str| target.join(name).symlink_metadata().is_ok();
    // With pg_control in place the restore that left the marker was complete but for removing it.
    let interrupted = has(MARKER) && !has(CONTROL);
    if !interrupted && (delta || force) && !has("PG_VERSION") {
        tracing::warn!(
            "--delta or --force was specified but '{shown}' has neither 'PG_VERSION' nor '{MARKER}', so it is not seen \
             to be a PostgreSQL directory: --delta and --force have been disabled and the restore will fail if there \
             are files"
        );
    }
    let mode = match (delta, force) {
        // What an interrupted restore wrote need not have the content that its time says.
        (true, _) | (false, false) if interrupted => Mode::Delta,
        (false, true) if interrupted => Mode::Overwrite,
        (true, true) if has("PG_VERSION") => Mode::Timestamps,
        (true, false) if has("PG_VERSION") => Mode::Delta,
        (false, true) if has("PG_VERSION") => Mode::Overwrite,
        _ => {
            let mut text = format!("unable to restore to '{shown}' because it contains files");
            if delta || force {
                text.push_str(", which neither --delta nor --force replaces where no cluster is seen to be");
            }
            return Err(Error::refused(Kind::PathNotEmpty, text));
        }
    };
    if interrupted {
        tracing::info!("'{shown}' was left by an interrupted restore: only what is not right yet will be written");
    }
    Ok(Target { mode, owner, interrupted })
}
