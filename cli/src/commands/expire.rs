//! `expire`, and what `backup` does of it at its end: every repository by itself; 104 if any of them failed.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Repo, Settings};
use crate::render::{self, json};
use crate::size::human_size;
use crate::{repos, zone};
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::expire::{
    self, ArchiveFate, Ask, ExpireOptions, ExpireReport, FullRetention, Period, Retention, WalKeep, WhyAll,
};
use pgkeep_engine::lock::{Lock, LockName, LockType, check_stopped};
use pgkeep_engine::repository::Repository;
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::records::BackupType;
use std::sync::Arc;

/// Options of which one at most says what to expire.
const ASKS: [Opt; 3] = [Opt::Set, Opt::Oldest, Opt::ArchiveExpireBefore];

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    // Who only looks may do so at any time.
    if !is_dry(settings) {
        check_stopped(settings.lock_path(), settings.stanza())?;
    }
    let ask = ask(settings)?;
    let (mut done, mut failed, mut uncollected) = (Vec::new(), Vec::new(), Vec::new());
    for repo in settings.target_repos() {
        let outcome = repos::open(settings, repo).and_then(|repository| one(context, repo, &repository, ask));
        match outcome {
            Ok((report, collected)) => {
                done.push((repo.key(), report));
                uncollected.extend(collected.err().map(|e| (repo.key(), e)));
            }
            Err(Failure::Engine(e)) if e.kind() == Kind::Interrupted => return Err(e.into()),
            Err(e) => failed.push((repo.key(), e)),
        }
    }
    match settings.text(Opt::Output) {
        Some("json") => render::print(&json::to_text(render::expire::json(&done)))?,
        Some("text") => render::print(&render::expire::text(&done, &zone::local()))?,
        _ if settings.flag(Opt::Explain) => render::print(&render::expire::text(&done, &zone::local()))?,
        _ => {}
    }
    for (key, e) in &uncollected {
        tracing::error!("repo{key}: gc failed: [{:03}]: {}", e.status().0, repos::chain(e));
    }
    match finish(failed, &done, ask) {
        Ok(_) if !uncollected.is_empty() => {
            let text = format!("gc failed in {} of {} repositories; expire is complete", uncollected.len(), done.len());
            Err(Error::refused(Kind::Command, text).into())
        }
        other => other,
    }
}

/// Retention of the repository that a backup has just been made in, with the options of the backup, unless `expire-auto` is off.
///
/// # Errors
/// 104 if it failed. The backup is complete all the same, and that is said. What is said and no failure is that space could
/// not be given back: nothing depends on when that is done.
pub(super) fn after_backup(
    context: &Context<'_>,
    repo: Repo<'_>,
    repository: &Arc<Repository>,
) -> Result<Status, Failure> {
    if !context.settings.flag(Opt::ExpireAuto) {
        return Ok(Status::OK);
    }
    match one(context, repo, repository, Ask::Rules) {
        Ok((_, Ok(()))) => Ok(Status::OK),
        Ok((_, Err(e))) => {
            let key = repo.key();
            tracing::warn!(
                "repo{key}: gc failed, and is left to the next run: [{:03}]: {}",
                e.status().0,
                repos::chain(&e)
            );
            Ok(Status::OK)
        }
        Err(Failure::Engine(e)) if e.kind() == Kind::LockAcquire => {
            tracing::warn!("repo{}: retention is left to the next backup or expire: {}", repo.key(), repos::chain(&e));
            Ok(Status::OK)
        }
        Err(e) => {
            tracing::info!("the backup is complete; what failed is to expire older ones");
            if matches!(&e, Failure::Engine(e) if e.kind() == Kind::Interrupted) {
                return Err(e);
            }
            finish(vec![(repo.key(), e)], &[], Ask::Rules)
        }
    }
}

fn finish(mut failed: Vec<(u16, Failure)>, done: &[(u16, ExpireReport)], ask: Ask<'_>) -> Result<Status, Failure> {
    if matches!(ask, Ask::Set(_)) && !done.is_empty() {
        // It is enough that one repository has it.
        failed.retain(|(key, e)| match e {
            Failure::Engine(e) if e.kind() == Kind::BackupSetInvalid && e.to_string().ends_with("does not exist") => {
                tracing::warn!("repo{key}: {e}");
                false
            }
            _ => true,
        });
    }
    for (key, e) in &failed {
        tracing::error!("repo{key}: [{:03}]: {}", e.status().0, repos::chain(e));
    }
    match failed.len() {
        0 => Ok(Status::OK),
        n => {
            let text = format!("expire failed in {n} of {} repositories", n + done.len());
            // Where another process is all that is in the way, waiting will do.
            let is_lock = |e: &Failure| matches!(e, Failure::Engine(e) if e.kind() == Kind::LockAcquire);
            let kind = if failed.iter().all(|(_, e)| is_lock(e)) { Kind::LockAcquire } else { Kind::Command };
            Err(Error::refused(kind, text).into())
        }
    }
}

/// What an expire came to, and what the collection behind it did, if that was asked for.
type Expired = (ExpireReport, Result<(), Failure>);

fn one(context: &Context<'_>, repo: Repo<'_>, repository: &Arc<Repository>, ask: Ask<'_>) -> Result<Expired, Failure> {
    let settings = context.settings;
    let stanza = settings.stanza_name();
    let name = LockName { stanza: stanza.to_owned(), lock_type: LockType::Backup, repo_key: repo.key().into() };
    let dry_run = is_dry(settings);
    let lock = match dry_run {
        true => None,
        false => Some(Lock::acquire(settings.lock_path(), &name, &repos::exec_id())?),
    };
    let retention = retention(settings, repo);
    let force = ask != Ask::Rules && settings.flag(Opt::Force);
    let options = ExpireOptions { stanza, retention: &retention, ask, force, dry_run, zone: &zone::local() };
    let report = expire::run(repository, &options, context.observer, context.cancel, &SystemClock)?;
    tell(repo.key(), &report, dry_run, ask);
    // Collecting needs no lock.
    drop(lock);
    let gone = report.backups.iter().any(|b| !b.fate.stays());
    if dry_run || !settings.flag(Opt::GcAuto) {
        return Ok((report, Ok(())));
    }
    match super::gc::after_expire(context, repo, repository, gone) {
        Err(Failure::Engine(e)) if e.kind() == Kind::Interrupted => Err(e.into()),
        collected => Ok((report, collected)),
    }
}

/// Whether nothing is to be changed. `backup` has none of these options.
fn is_dry(settings: &Settings) -> bool {
    settings.flag(Opt::DryRun) || settings.flag(Opt::Explain)
}

fn ask(settings: &Settings) -> Result<Ask<'_>, Failure> {
    let given: Vec<&str> = ASKS.iter().filter(|opt| settings.is_given(**opt)).map(|opt| opt.def().name).collect();
    if let [first, second, ..] = given.as_slice() {
        let text = format!("option '{first}' is not valid with option '{second}'");
        return Err(Error::refused(Kind::OptionInvalid, text).into());
    }
    Ok(match (settings.text(Opt::Set), settings.text(Opt::ArchiveExpireBefore)) {
        (Some(label), _) => {
            super::annotate::check_label(label)?;
            Ask::Set(label)
        }
        (_, Some(segment)) => Ask::WalBefore(segment),
        _ if settings.flag(Opt::Oldest) => Ask::Oldest,
        _ => Ask::Rules,
    })
}

fn retention(settings: &Settings, repo: Repo<'_>) -> Retention {
    let number = |opt| repo.int(opt).and_then(|n| u32::try_from(n).ok());
    let by_time = repo.text(Opt::RepoRetentionFullType) == Some("time");
    let full = number(Opt::RepoRetentionFull);
    let keep = [
        Opt::RepoKeepLast,
        Opt::RepoKeepHourly,
        Opt::RepoKeepDaily,
        Opt::RepoKeepWeekly,
        Opt::RepoKeepMonthly,
        Opt::RepoKeepYearly,
    ];
    Retention {
        full: full.map(|n| if by_time { FullRetention::Days(n) } else { FullRetention::Count(n) }),
        diff: number(Opt::RepoRetentionDiff),
        archive: number(Opt::RepoRetentionArchive),
        archive_type: match repo.text(Opt::RepoRetentionArchiveType) {
            Some("diff") => Some(BackupType::Diff),
            Some("incr") => Some(BackupType::Incr),
            _ => None,
        },
        spare_dependents: !settings.flag(Opt::ExpireDependents),
        keep: Period::ALL.into_iter().zip(keep).filter_map(|(period, opt)| Some((period, number(opt)?))).collect(),
        // What is no policy was refused with the options.
        policy: repo.text(Opt::RepoRetentionPolicy).and_then(|text| text.parse().ok()),
        minimum: number(Opt::RepoRetentionMinimum).unwrap_or(0),
    }
}

fn tell(key: u16, report: &ExpireReport, dry_run: bool, ask: Ask<'_>) {
    let dry = if dry_run { "[DRY-RUN] " } else { "" };
    let newest = report.backups.last();
    if let Some(newest) = newest.filter(|b| !b.fate.stays() && ask != Ask::Rules) {
        let has = if dry_run { "would expire" } else { "has expired" };
        tracing::warn!("{dry}repo{key}: the newest backup, {}, {has}", newest.backup.label);
    }
    let (dead, silent): (Vec<_>, Vec<_>) = report.fenced.iter().partition(|session| session.is_dead);
    for session in dead {
        tracing::info!(
            "{dry}repo{key}: the backup of {} that began at {} was killed and is given up",
            session.host,
            seconds(session.started)
        );
    }
    for session in silent {
        tracing::warn!(
            "{dry}repo{key}: the backup of {} that began at {} gave no sign of life for three days and is given up",
            session.host,
            seconds(session.started)
        );
    }
    for session in &report.unfinished {
        tracing::info!(
            "{dry}repo{key}: a backup of {} that began at {} has not ended: WAL it needs is kept",
            session.host,
            seconds(session.started)
        );
    }
    for archive in &report.archives {
        tell_archive(&format!("{dry}repo{key}: {}", archive.archive_id), archive);
    }
}

fn tell_archive(place: &str, archive: &ArchiveFate) {
    match &archive.keep {
        WalKeep::All(why) => tracing::info!("{place} archive is kept: {}", why_all(why)),
        _ if archive.removed.files == 0 => tracing::info!("{place} no archive to remove"),
        _ => tracing::info!("{place} removed {} files, {}", archive.removed.files, human_size(archive.removed.bytes)),
    }
}

/// Why nothing is removed of an archive.
pub(crate) fn why_all(why: &WhyAll) -> String {
    match why {
        WhyAll::NotConfigured => "no option says for how many backups".to_owned(),
        WhyAll::TooFewBackups { of, found, wanted } => {
            let of = match of {
                BackupType::Full => "full backups",
                BackupType::Diff => "full and differential backups",
                BackupType::Incr => "backups",
            };
            format!("there are {found} {of}, and the WAL of {wanted} is to be kept")
        }
        WhyAll::NoBackup => "there is no backup".to_owned(),
        WhyAll::Offline(label) => {
            format!("backup {label} was taken from a stopped server, so its place in WAL is not known")
        }
        WhyAll::Begun { host, started } => {
            format!("a backup of {host} has begun at {} and has not said yet what it needs", seconds(*started))
        }
    }
}

fn seconds(time: i64) -> String {
    render::expire::time(time, &zone::local())
}
