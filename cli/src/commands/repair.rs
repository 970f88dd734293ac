//! `repair index`: a new chunk index from the footers of packs, for when index objects are lost or damaged.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::OptionError;
use crate::repos;
use pgkeep_engine::lock::check_stopped;
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::layout;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let what = settings.param(0);
    if what != "index" {
        let message = format!("'{}' is nothing that can be repaired", what.display());
        return Err(OptionError::new(Status::PARAM_INVALID, message).hint("it is 'index'").into());
    }
    check_stopped(settings.lock_path(), None)?;
    let mut unreadable = 0;
    for repo in settings.target_repos() {
        let repository = repos::open(settings, repo)?;
        let rebuilt = repository.rebuild_index(context.observer, context.cancel)?;
        for (pack, error) in &rebuilt.unreadable {
            tracing::warn!("repo{}: '{}' is damaged: {}", repo.key(), layout::pack(*pack), repos::chain(error));
        }
        tracing::info!(
            "repo{}: {} chunks of {} packs are in the new index, which replaces {} index objects",
            repo.key(),
            rebuilt.chunks,
            rebuilt.packs,
            rebuilt.superseded.len()
        );
        unreadable += rebuilt.unreadable.len();
    }
    if unreadable > 0 {
        let text = format!("{unreadable} packs do not tell what they hold; for those the old index stays in force");
        return Err(Error::refused(Kind::Checksum, text).into());
    }
    Ok(Status::OK)
}
