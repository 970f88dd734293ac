//! `repo-sync FROM TO`: what one repository has of the stanza and another lacks.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, OptionError, Repo, Settings};
use crate::render::{self, json};
use crate::repos;
use crate::size::human_size;
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::lock::{Lock, LockName, LockType, check_stopped};
use pgkeep_engine::repository::Repository;
use pgkeep_engine::sync::{self, SyncOptions, SyncReport, Which};
use pgkeep_engine::{Error, Kind};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let (from, to) = (repo(settings, 0)?, repo(settings, 1)?);
    if from.key() == to.key() {
        let text = format!("repo{} cannot be copied to itself", from.key());
        return Err(OptionError::new(Status::PARAM_INVALID, text).into());
    }
    let dry_run = settings.flag(Opt::DryRun);
    let (source, target) = (repos::open(settings, from)?, repos::open(settings, to)?);
    let which = settings.text(Opt::Set).map_or(Which::Wanted, Which::Only);
    let mut report = copy(context, &source, &target, &Ask { to, which, dry_run })?;
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(value(&report, from, to)))?;
    }
    tell(&report, from, to, dry_run);
    if let Some(e) = told_failures(&mut report, to) {
        return Err(e.into());
    }
    if !report.unreadable.is_empty() {
        let text = format!("{} backups of repo{} cannot be read", report.unreadable.len(), from.key());
        return Err(Error::refused(Kind::FileInvalid, text).into());
    }
    Ok(Status::OK)
}

/// What could not be copied: the first is returned, of several each is told.
pub(super) fn told_failures(report: &mut SyncReport, to: Repo<'_>) -> Option<Error> {
    let failed = std::mem::take(&mut report.failed);
    if failed.len() > 1 {
        failed.iter().for_each(|e| tracing::error!("repo{}: {}", to.key(), e.chain()));
    }
    failed.into_iter().next()
}

/// What to copy, and where to.
pub(super) struct Ask<'a> {
    pub(super) to: Repo<'a>,
    pub(super) which: Which<'a>,
    pub(super) dry_run: bool,
}

/// Copies under the lock of a backup of the other repository.
pub(super) fn copy(
    context: &Context<'_>,
    source: &Arc<Repository>,
    target: &Arc<Repository>,
    ask: &Ask<'_>,
) -> Result<SyncReport, Failure> {
    let settings = context.settings;
    let stanza = settings.stanza_name();
    let _lock = match ask.dry_run {
        true => None,
        false => {
            check_stopped(settings.lock_path(), Some(stanza))?;
            let (stanza, repo_key) = (stanza.to_owned(), ask.to.key().into());
            let name = LockName { stanza, lock_type: LockType::Backup, repo_key };
            Some(Lock::acquire(settings.lock_path(), &name, &repos::exec_id())?)
        }
    };
    let options = SyncOptions {
        stanza,
        which: ask.which,
        deltas: ask.to.text(Opt::RepoDelta) != Some("off"),
        dry_run: ask.dry_run,
        process_max: settings.process_max(),
        compress_level: settings.compress_level().unwrap_or(3),
        host: &repos::host(),
    };
    Ok(sync::run(source, target, &options, context.observer, context.cancel, &SystemClock)?)
}

/// The repository that a parameter names: its number, with or without `repo` in front.
fn repo(settings: &Settings, at: usize) -> Result<Repo<'_>, Failure> {
    let text = settings.param(at).to_string_lossy();
    let key = text.strip_prefix("repo").unwrap_or(&text).parse::<u16>().ok();
    let found = settings.repos().find(|repo| Some(repo.key()) == key);
    found.ok_or_else(|| {
        let keys: Vec<String> = settings.repos().map(|repo| repo.key().to_string()).collect();
        let text = format!("'{text}' is not the number of a repository");
        OptionError::new(Status::PARAM_INVALID, text).hint(format!("configured: {}", keys.join(", "))).into()
    })
}

pub(super) fn tell(report: &SyncReport, from: Repo<'_>, to: Repo<'_>, dry_run: bool) {
    let (from, to) = (from.key(), to.key());
    let dry = if dry_run { "[DRY-RUN] " } else { "" };
    for backup in &report.backups {
        let stored =
            if dry_run { String::new() } else { format!(", new in repository = {}", human_size(backup.stored)) };
        tracing::info!("{dry}repo{to}: backup {}, size = {}{stored}", backup.label, human_size(backup.size));
    }
    for label in &report.strange {
        tracing::warn!(
            "backup {label} is of a cluster that the stanza of repo{to} never had: it stays on repo{from} only"
        );
    }
    for label in &report.namesakes {
        tracing::warn!("each repository has a backup {label} of its own, taken in the same second: none is copied");
    }
    for e in &report.unreadable {
        tracing::warn!("repo{from}: a backup is passed over, as its record cannot be read: {}", e.chain());
    }
    tracing::info!("{dry}repo{to}: {} backup(s) and {} WAL file(s) of repo{from}", report.backups.len(), report.wal);
}

fn value(report: &SyncReport, from: Repo<'_>, to: Repo<'_>) -> Value {
    let backups = report.backups.iter().map(|b| json!({"label": b.label, "size": b.size, "stored": b.stored}));
    json!({
        "from": from.key(),
        "to": to.key(),
        "backup": backups.collect::<Vec<_>>(),
        "wal": report.wal,
        "skipped": report.strange.iter().chain(&report.namesakes).collect::<Vec<_>>(),
        "unreadable": report.unreadable.len(),
    })
}
