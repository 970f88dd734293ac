//! `stanza-create`, `stanza-upgrade`, `stanza-delete`.

use super::Context;
use super::failures::Failures;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::Opt;
use crate::repos;
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::lock::{self, Lock, LockName, LockType, check_stopped};
use pgkeep_engine::pg::identity::ClusterIdentity;
use pgkeep_engine::pg::server::Connection;
use pgkeep_engine::stanza::{self, Change, DeleteOptions, RepoOutcome, WhenRunning};
use pgkeep_engine::{Error, Kind};
use std::time::{Duration, Instant};

/// How long to wait for processes in the background that push or get WAL.
const ARCHIVE_WAIT: Duration = Duration::from_secs(10);

pub(super) fn create(context: &Context<'_>) -> Result<Status, Failure> {
    change(context, stanza::create, "created", "already exists and is valid")
}

pub(super) fn upgrade(context: &Context<'_>) -> Result<Status, Failure> {
    change(context, stanza::upgrade, "upgraded", "is already up to date")
}

type Change_ = fn(
    Vec<stanza::RepoTarget>,
    &str,
    &ClusterIdentity,
    &dyn pgkeep_engine::clock::Clock,
) -> pgkeep_engine::Result<Vec<RepoOutcome>>;

fn change(context: &Context<'_>, operation: Change_, done: &str, unchanged: &str) -> Result<Status, Failure> {
    let settings = context.settings;
    let name = settings.stanza_name();
    check_stopped(settings.lock_path(), Some(name))?;
    let _locks = locks(context)?;
    let identity = identity(context)?;
    let (mut targets, mut failures) = (Vec::new(), Failures::among(settings.target_repos().count()));
    for repo in settings.target_repos() {
        targets.extend(failures.take(repo.key(), repos::target(settings, repo))?);
    }
    for outcome in operation(targets, name, &identity, &SystemClock)? {
        match failures.take(outcome.key, outcome.result.map_err(Failure::from))? {
            Some(o) if o.change == Change::Unchanged => {
                tracing::info!("stanza '{name}' {unchanged} on repo{}", outcome.key);
            }
            Some(_) => tracing::info!("stanza '{name}' {done} on repo{}", outcome.key),
            None => {}
        }
    }
    failures.end(context.settings.command())?;
    Ok(Status::OK)
}

pub(super) fn delete(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let repos: Vec<_> = settings.target_repos().collect();
    let [repo] = repos.as_slice() else {
        return Err(Error::refused(Kind::OptionRequired, "option repo is required when there are several").into());
    };
    let _locks = locks(context)?;
    let pgdata = repos::pgdata(settings)?;
    let options = DeleteOptions {
        lock_path: settings.lock_path(),
        pgdata: Some(&pgdata),
        when_running: if settings.flag(Opt::Force) { WhenRunning::Delete } else { WhenRunning::Refuse },
    };
    let deleted = stanza::delete(
        &*repos::open(settings, *repo)?,
        settings.stanza_name(),
        &options,
        context.observer,
        context.cancel,
        &SystemClock,
    )?;
    tracing::info!(
        "stanza '{}' deleted from repo{}: {} backups, {} archived files",
        settings.stanza_name(),
        repo.key(),
        deleted.backups,
        deleted.wal
    );
    // It has served its purpose, and would keep the stanza from being made anew.
    lock::start(settings.lock_path(), settings.stanza())?;
    Ok(Status::OK)
}

/// All locks of the stanza in all repositories: nothing else may run meanwhile.
fn locks(context: &Context<'_>) -> Result<Vec<Lock>, Failure> {
    let settings = context.settings;
    let mut locks = Vec::new();
    for repo in settings.target_repos() {
        for lock_type in [LockType::Archive, LockType::Backup, LockType::Restore] {
            let name = LockName { stanza: settings.stanza_name().to_owned(), lock_type, repo_key: repo.key().into() };
            if lock_type == LockType::Archive {
                wait_for_archive(context, &name)?;
            }
            locks.push(Lock::acquire(settings.lock_path(), &name, &repos::exec_id())?);
        }
    }
    Ok(locks)
}

/// Waits for who pushes or gets WAL in the background: that begins by itself at any time, and mostly ends soon.
fn wait_for_archive(context: &Context<'_>, name: &LockName) -> Result<(), Failure> {
    let begun = Instant::now();
    while begun.elapsed() < ARCHIVE_WAIT && lock::holder(context.settings.lock_path(), name)?.is_some() {
        context.cancel.check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn identity(context: &Context<'_>) -> Result<ClusterIdentity, Failure> {
    let settings = context.settings;
    let pgdata = repos::pgdata(settings)?;
    if !settings.flag(Opt::Online) {
        return Ok(ClusterIdentity::of_directory(&pgdata)?);
    }
    let mut connection = Connection::open(&repos::server(settings), "stanza", context.cancel).map_err(Error::from)?;
    Ok(ClusterIdentity::of_server(&mut connection, &pgdata, settings.pg(1).port())?.0)
}
