//! `archive-push`: what the server's `archive_command` runs. Its status stays at or below 125: any failure makes the server
//! keep the file and try again.
//!
//! With `archive-async` the file is mostly stored when it is asked for: see `archive_push/ahead.rs`.

mod ahead;

use super::{Context, server_path};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Role, Settings};
use crate::repos;
use pgkeep_engine::archive::{self, PushOptions, PushReport};
use std::path::{Path, PathBuf};

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.role() == Role::Async {
        return ahead::run(context);
    }
    let source = server_path(settings.param(0), settings.pg(1).path())?;
    let mut options = options(settings, source);
    if settings.flag(Opt::ArchiveAsync) {
        if ahead::is_done(context, &options)? {
            return Ok(Status::OK);
        }
        options.words = Some(ahead::words(settings));
    }
    let repositories = repos::configured(settings)?;
    match archive::push(&repositories, &options)? {
        PushReport::Archived(repositories) => {
            let name = settings.param(0).file_name().unwrap_or_default().to_string_lossy();
            for repository in &repositories {
                tracing::debug!("'{name}' is in archive {} on repo{}", repository.archive_id, repository.key);
            }
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
        words: None,
    }
}
