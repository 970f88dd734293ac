//! `archive-push`: what the server's `archive_command` runs. Its status stays at or below 125: any failure makes the server
//! keep the file and try again.
//!
//! With `archive-async` the file is mostly stored when it is asked for: see `archive_push/ahead.rs`.

mod ahead;

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Role, Settings};
use crate::repos;
use pgkeep_engine::archive::{self, PushOptions, PushReport};
use pgkeep_engine::{Error, Kind};
use std::path::{Path, PathBuf};

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.role() == Role::Async {
        return ahead::run(context);
    }
    let source = resolve(settings.param(0), settings.pg(1).path())?;
    let options = options(settings, source);
    if settings.flag(Opt::ArchiveAsync) && ahead::is_done(context, &options)? {
        return Ok(Status::OK);
    }
    let repositories = repos::configured(settings)?;
    match archive::push(&repositories, &options)? {
        PushReport::Archived(repositories) => {
            let name = settings.param(0).file_name().unwrap_or_default().to_string_lossy();
            for repository in &repositories {
                tracing::debug!("'{name}' is in archive {} on repo{}", repository.archive_id, repository.key);
            }
            tracing::info!("pushed WAL file '{name}' to the archive");
        }
        PushReport::Dropped { .. } => {}
    }
    Ok(Status::OK)
}

fn options(settings: &Settings, source: PathBuf) -> PushOptions {
    PushOptions {
        stanza: settings.stanza_name().to_owned(),
        source,
        pg_path: settings.pg(1).path().map(Path::to_path_buf),
        level: settings.compress_level().unwrap_or(3),
        header_check: settings.flag(Opt::ArchiveHeaderCheck),
        mode_check: settings.flag(Opt::ArchiveModeCheck),
        queue_max: settings.size(Opt::ArchivePushQueueMax),
        lock_path: settings.lock_path().to_path_buf(),
    }
}

/// The server gives `%p` relative to its data directory, which is then also the working directory.
fn resolve(given: &Path, pg_path: Option<&Path>) -> Result<PathBuf, Failure> {
    if given.is_absolute() {
        return Ok(given.to_path_buf());
    }
    let Some(pg_path) = pg_path else {
        let text = format!("option pg1-path is required for the relative path '{}'", given.display());
        return Err(Error::refused(Kind::OptionRequired, text).into());
    };
    let here = std::env::current_dir().ok();
    let same = |a: &Path, b: &Path| a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if !here.as_deref().is_some_and(|here| same(here, pg_path)) {
        let here = here.map_or_else(|| "unknown".to_owned(), |h| h.display().to_string());
        let text = format!("the working directory is '{here}' but option pg1-path is '{}'", pg_path.display());
        return Err(Error::refused(Kind::OptionInvalid, text).into());
    }
    Ok(pg_path.join(given))
}
