//! Which configuration files are read, and their text.

use super::error::OptionError;
use super::program::{PGBACKREST, Program};
use crate::exit::Status;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Where the command line or the environment says that configuration is.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// `--config`.
    pub(super) config: Option<PathBuf>,
    /// `--no-config`.
    pub(super) no_config: bool,
    /// `--config-include-path`.
    pub(super) include: Option<PathBuf>,
    /// `--config-path`.
    pub(super) base: Option<PathBuf>,
}

/// A file's text, which may hold secrets.
pub(super) struct ConfigText {
    pub(super) name: String,
    pub(super) text: Zeroizing<String>,
}

/// The files' texts in the order of reading, and what to say if they are pgBackRest's in place of ours.
pub(super) struct Loaded {
    pub(super) texts: Vec<ConfigText>,
    pub(super) stand_in: Option<String>,
}

/// Reads what `places` and the program's defaults under `etc` mean: the main file, then `conf.d/*.conf` by name.
///
/// # Errors
/// Statuses of missing or unreadable files (55, 73, 41, 42), 29 for a file that is no UTF-8.
pub(super) fn load(places: &Places, program: &Program, etc: &Path) -> Result<Loaded, OptionError> {
    let nothing_said =
        places.config.is_none() && !places.no_config && places.include.is_none() && places.base.is_none();
    let mut loaded = load_of(places, program, etc)?;
    // A host that still runs pgBackRest: read what it has rather than nothing.
    if nothing_said && *program != PGBACKREST && loaded.is_none() {
        let theirs = load_of(places, &PGBACKREST, etc)?;
        if let Some(found) = theirs {
            let names: Vec<_> = found.iter().map(|t| t.name.as_str()).collect();
            let own = etc.join(program.name).join(format!("{}.conf", program.name));
            let text = format!(
                "'{}' does not exist: pgBackRest's configuration is read instead, '{}'",
                own.display(),
                names.join("', '")
            );
            return Ok(Loaded { texts: found, stand_in: Some(text) });
        }
        loaded = None;
    }
    Ok(Loaded { texts: loaded.unwrap_or_default(), stand_in: None })
}

/// As [`load`], for one program's defaults. `None` if there was no file and no directory.
fn load_of(places: &Places, program: &Program, etc: &Path) -> Result<Option<Vec<ConfigText>>, OptionError> {
    let base = places.base.clone().unwrap_or_else(|| etc.join(program.name));
    let mut texts = Vec::new();
    let mut present = false;
    if let Some(path) = &places.config {
        texts.push(read(path)?.ok_or_else(|| missing(Status::FILE_MISSING, "file", path))?);
        present = true;
    } else if !places.no_config {
        let file = format!("{}.conf", program.name);
        let mut found = read(&base.join(&file))?;
        if found.is_none() && places.base.is_none() && *program == PGBACKREST {
            found = read(&etc.join(&file))?;
        }
        present |= found.is_some();
        texts.extend(found);
    }
    // A file named alone stands alone.
    if places.config.is_none() || places.include.is_some() || places.base.is_some() {
        let directory = places.include.clone().unwrap_or_else(|| base.join("conf.d"));
        match list(&directory)? {
            Some(paths) => {
                present = true;
                for path in paths {
                    texts.extend(read(&path)?);
                }
            }
            None if places.include.is_some() => return Err(missing(Status::PATH_MISSING, "directory", &directory)),
            None => {}
        }
    }
    Ok(present.then_some(texts))
}

/// Whether every user of the host can read a file: its mode says so, and that of every directory on the way.
pub(super) fn is_exposed(path: &Path) -> bool {
    let allows = |path: &Path, bit: u32| std::fs::metadata(path).is_ok_and(|m| m.mode() & bit != 0);
    // Links lead through other directories than their names say.
    let Ok(path) = path.canonicalize() else { return false };
    path.is_file() && allows(&path, 0o004) && path.ancestors().skip(1).all(|directory| allows(directory, 0o001))
}

/// What to say about a file that [`is_exposed`]; `what` says why that matters.
pub(super) fn exposed(name: &str, what: &str) -> String {
    format!("'{name}' {what}, and every user of this host can read it: chmod 600 '{name}'")
}

fn missing(status: Status, what: &str, path: &Path) -> OptionError {
    OptionError::new(status, format!("configuration {what} '{}' is missing", path.display()))
}

fn failed(status: Status, verb: &str, path: &Path, error: &std::io::Error) -> OptionError {
    OptionError::new(status, format!("cannot {verb} '{}': {error}", path.display()))
}

/// Largest configuration file; real ones have a few KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The bytes of a regular file of bearable size. `/dev/null` is an empty one, as people use it to say "none".
fn contents(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    if path == Path::new("/dev/null") {
        return Ok(bytes);
    }
    // Before it is opened: opening a pipe waits for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// The text of a file, `None` if there is none.
fn read(path: &Path) -> Result<Option<ConfigText>, OptionError> {
    let bytes = match contents(path) {
        Ok(bytes) => bytes,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(failed(Status::FILE_OPEN, "open", path, &e)),
        Err(e) => return Err(failed(Status::FILE_READ, "read", path, &e)),
    };
    let name = path.display().to_string();
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Some(ConfigText { name, text: Zeroizing::new(text.to_owned()) })),
        Err(_) => Err(OptionError::new(Status::FORMAT, format!("'{name}' is not valid text"))),
    }
}

/// The `*.conf` files of a directory by name, `None` if there is no such directory.
fn list(directory: &Path) -> Result<Option<Vec<PathBuf>>, OptionError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(failed(Status::FILE_OPEN, "list", directory, &e)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| failed(Status::FILE_READ, "list", directory, &e))?.path();
        if path.extension().is_some_and(|e| e == "conf") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(Some(paths))
}
