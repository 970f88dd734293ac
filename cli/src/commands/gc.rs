//! `gc`, and what `expire` does of it at its end: every repository by itself; 104 if one of several failed.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Repo};
use crate::render::{self, json};
use crate::repos;
use crate::size::human_size;
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::gc::{self, GcOptions, GcReport, Rewrite, Tally};
use pgkeep_engine::lock::check_stopped;
use pgkeep_engine::repository::Repository;
use pgkeep_engine::{Error, Kind};
use std::sync::Arc;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let host = repos::host();
    let dry_run = settings.flag(Opt::DryRun);
    let options = GcOptions { dry_run, rewrite: Rewrite::Always, host: &host, ..GcOptions::default() };
    if !options.dry_run {
        check_stopped(settings.lock_path(), None)?;
    }
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for repo in settings.target_repos() {
        let outcome = repos::open(settings, repo).and_then(|repository| one(context, repo, &repository, &options));
        match outcome {
            Ok(report) => done.push((repo.key(), report)),
            Err(Failure::Engine(e)) if e.kind() == Kind::Interrupted => return Err(e.into()),
            Err(e) => failed.push((repo.key(), e)),
        }
    }
    match settings.text(Opt::Output) {
        Some("json") => render::print(&json::to_text(render::gc::json(&done)))?,
        Some("text") => render::print(&render::gc::text(&done))?,
        _ => {}
    }
    match (failed.len(), done.len()) {
        (0, _) => Ok(Status::OK),
        (1, 0) => Err(failed.remove(0).1),
        (some, others) => {
            for (key, e) in &failed {
                tracing::error!("repo{key}: [{:03}]: {}", e.status().0, repos::chain(e));
            }
            let text = format!("gc failed in {some} of {} repositories", some + others);
            Err(Error::refused(Kind::Command, text).into())
        }
    }
}

/// Collects in a repository where retention has just been applied, if there is anything to collect: backups have gone, or
/// an earlier collection left something that was still in use.
///
/// # Errors
/// As [`gc::run`]; but that others collect at the same time is none.
pub(super) fn after_expire(
    context: &Context<'_>,
    repo: Repo<'_>,
    repository: &Arc<Repository>,
    gone: bool,
) -> Result<(), Failure> {
    if !gone && repository.newest_generation()?.condemned.is_empty() {
        return Ok(());
    }
    let host = repos::host();
    match one(context, repo, repository, &GcOptions { host: &host, ..GcOptions::default() }) {
        Err(Failure::Engine(e)) if e.kind() == Kind::LockAcquire => {
            tracing::warn!("repo{}: collection is left to the next run: {}", repo.key(), repos::chain(&e));
            Ok(())
        }
        other => other.map(drop),
    }
}

fn one(
    context: &Context<'_>,
    repo: Repo<'_>,
    repository: &Arc<Repository>,
    options: &GcOptions<'_>,
) -> Result<GcReport, Failure> {
    let report = gc::run(repository, options, context.observer, context.cancel, &SystemClock)?;
    tell(repo.key(), &report, options.dry_run);
    Ok(report)
}

fn tell(key: u16, report: &GcReport, dry_run: bool) {
    let dry = if dry_run { "[DRY-RUN] " } else { "" };
    let (dead, silent): (Vec<_>, Vec<_>) = report.fenced.iter().partition(|session| session.is_dead);
    for session in dead {
        let (purpose, host, stanza) = (&session.purpose, &session.host, &session.stanza);
        tracing::info!("{dry}repo{key}: the {purpose} of {host} in stanza '{stanza}' was killed and is given up");
    }
    for session in silent {
        tracing::warn!(
            "{dry}repo{key}: the {} of {} in stanza '{}' gave no sign of life for three days and is given up",
            session.purpose,
            session.host,
            session.stanza
        );
    }
    let packs = |tally: &Tally| format!("{} packs, {}", tally.packs, human_size(tally.bytes));
    let gone = if report.deleted.packs == 0 { "nothing".to_owned() } else { packs(&report.deleted) };
    tracing::info!("{dry}repo{key}: removed {gone}, of {}", packs(&report.packs));
    if report.rewritten.packs > 0 {
        tracing::info!(
            "{dry}repo{key}: rewrote {}, which were partly dead, to {}",
            packs(&report.rewritten),
            human_size(report.rewritten_to)
        );
    }
    if report.waiting.packs > 0 {
        tracing::info!(
            "{dry}repo{key}: {} may be used by a backup that is running, and wait for a later collection",
            packs(&report.waiting)
        );
    }
}
