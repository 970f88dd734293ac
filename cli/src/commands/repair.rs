//! `repair index`: a new chunk index from the footers of packs, for when index objects are lost or damaged.
//! `repair history`: entries of stanzas' histories that are lost, from the backups that belong to them.
//! `repair generation`: another generation record where all are lost, without which no command knows what is visible.

use super::Context;
use super::failures::Failures;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, OptionError, Repo, Settings};
use crate::repos;
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::gc;
use pgkeep_engine::lock::check_stopped;
use pgkeep_engine::stanza::rebuild_history;
use pgkeep_engine::store::Depth;
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::layout;
use std::path::Path;

/// Prefix of all stanzas' backups.
const BACKUPS: &str = "backups/";

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let what = settings.param(0);
    if !["index", "history", "generation"].iter().any(|word| what == Path::new(word)) {
        let message = format!("'{}' is nothing that can be repaired", what.display());
        return Err(OptionError::new(Status::PARAM_INVALID, message)
            .hint("it is 'index', 'history' or 'generation'")
            .into());
    }
    check_stopped(settings.lock_path(), None)?;
    if what != Path::new("index") {
        let mut failures = Failures::among(settings.target_repos().count());
        for repo in settings.target_repos() {
            let done = if what == Path::new("history") { history(settings, repo) } else { generation(context, repo) };
            failures.take(repo.key(), done)?;
        }
        failures.end(Command::Repair)?;
        return Ok(Status::OK);
    }
    let (mut unreadable, mut failures) = (0, Failures::among(settings.target_repos().count()));
    for repo in settings.target_repos() {
        unreadable += failures.take(repo.key(), index(context, repo))?.unwrap_or(0);
    }
    failures.end(Command::Repair)?;
    if unreadable > 0 {
        let text = format!("{unreadable} packs do not tell what they hold; for those the old index stays in force");
        return Err(Error::refused(Kind::Checksum, text).into());
    }
    Ok(Status::OK)
}

/// A new index of one repository; how many packs do not tell what they hold.
fn index(context: &Context<'_>, repo: Repo<'_>) -> Result<usize, Failure> {
    let rebuilt = repos::open(context.settings, repo)?.rebuild_index(context.observer, context.cancel)?;
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
    Ok(rebuilt.unreadable.len())
}

/// Another generation, if one repository has none.
fn generation(context: &Context<'_>, repo: Repo<'_>) -> Result<(), Failure> {
    let (key, repository) = (repo.key(), repos::open(context.settings, repo)?);
    let Some(made) = gc::refound(&repository, context.cancel, &SystemClock)? else {
        tracing::info!("repo{key}: there is a generation record");
        return Ok(());
    };
    for error in &made.unreadable {
        tracing::warn!("repo{key}: passed over: {}", repos::chain(error));
    }
    tracing::info!(
        "repo{key}: made anew: '{}', with {} backups; nothing builds any more on {} packs that none is known to use",
        layout::generation(made.generation),
        made.backups,
        made.condemned
    );
    Ok(())
}

/// The histories of all stanzas of one repository that have backups.
fn history(settings: &Settings, repo: Repo<'_>) -> Result<(), Failure> {
    let repository = repos::open(settings, repo)?;
    let mut stanzas = Vec::new();
    repository
        .store()
        .list(BACKUPS, Depth::Children, &mut |l| {
            stanzas.extend(l.key.strip_prefix(BACKUPS).and_then(|n| n.strip_suffix('/')).map(str::to_owned));
        })
        .map_err(Error::from)?;
    for stanza in stanzas.iter().filter(|s| layout::check_stanza(s).is_ok()) {
        match rebuild_history(&repository, stanza, &SystemClock)?.as_slice() {
            [] => tracing::info!("repo{}: the history of stanza '{stanza}' lacks nothing", repo.key()),
            made => {
                let made: Vec<String> = made.iter().map(|id| layout::stanza_history(stanza, *id)).collect();
                tracing::info!("repo{}: made anew: {}", repo.key(), made.join(", "));
            }
        }
    }
    Ok(())
}
