//! `restore`.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, OptionError, Settings, restore_command};
use crate::size::human_size;
use crate::{repos, zone};
use pgkeep_engine::archive::spool::Spool;
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::repository::Repository;
use pgkeep_engine::restore::recovery::{OnError, RecoveryOptions, RecoveryType, TargetAction};
use pgkeep_engine::restore::{self, DatabaseOptions, Env, MapOptions, RestoreOptions};
use std::path::PathBuf;
use std::sync::Arc;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::Instant) {
        return super::clone::instant::run(context);
    }
    if settings.flag(Opt::Foreground) {
        let message = "option foreground is not valid without option 'instant'";
        return Err(OptionError::new(Status::OPTION_INVALID, message).into());
    }
    let repositories = repos::usable(settings)?;
    empty_spool(settings);
    let recovery = recovery(settings);
    tell_who_is_not_asked(settings, &repositories, &recovery);
    let paths = |pairs: &[(String, String)]| pairs.iter().map(|(k, v)| (k.clone(), PathBuf::from(v))).collect();
    let options = RestoreOptions {
        stanza: settings.stanza_name().to_owned(),
        target: repos::pgdata(settings)?,
        set: settings.text(Opt::Set).map(str::to_owned),
        delta: settings.flag(Opt::Delta),
        force: settings.flag(Opt::Force),
        dry_run: false,
        process_max: settings.process_max(),
        maps: MapOptions {
            tablespace: paths(settings.pairs(Opt::TablespaceMap)),
            tablespace_all: settings.text(Opt::TablespaceMapAll).map(PathBuf::from),
            link: paths(settings.pairs(Opt::LinkMap)),
            link_all: settings.flag(Opt::LinkAll),
        },
        databases: DatabaseOptions {
            include: settings.list(Opt::DbInclude).to_vec(),
            exclude: settings.list(Opt::DbExclude).to_vec(),
        },
        restore_command: command(settings, recovery.recovery_type)?,
        recovery,
        lock_path: Some(settings.lock_path().to_path_buf()),
        exec_id: repos::exec_id(),
        time_zone: zone::local(),
    };
    let env = Env { observer: context.observer, cancel: context.cancel, clock: &SystemClock };
    let report = restore::run(&repositories, &options, &env)?;
    if report.plan.files_left_out > 0 {
        tracing::info!(
            "left out are {} files, which hold nothing: size = {}",
            report.plan.files_left_out,
            human_size(report.plan.bytes_left_out)
        );
    }
    tracing::info!(
        "restored backup set {} from repo{}: size = {}, written = {}, fetched = {}, files written = {}, kept = {}, removed = {}, {:.1} s",
        report.label,
        report.repository,
        human_size(report.bytes),
        human_size(report.written),
        human_size(report.fetched),
        report.files_written,
        report.files_kept,
        report.removed,
        report.elapsed_ms as f64 / 1000.0
    );
    Ok(Status::OK)
}

/// A server that is to recover to an end does not take for the end what only some repositories say.
fn tell_who_is_not_asked(settings: &Settings, usable: &[Arc<Repository>], recovery: &RecoveryOptions) {
    let kind = recovery.recovery_type;
    let is_used = |key: u16| usable.iter().any(|r| r.key() == u32::from(key));
    let lacking = settings.target_repos().find(|repo| !is_used(repo.key()));
    if let (Some(repo), Some(first)) = (lacking, usable.first())
        && kind.reads_archive()
        && kind != RecoveryType::Standby
    {
        tracing::warn!(
            "recovery will stop at the first WAL file that no other repository has, as long as repo{} cannot be asked: to go \
             without it, restore with --repo={}",
            repo.key(),
            first.key()
        );
    }
}

/// Removes what processes of `archive-async` have left for the stanza: it is about a cluster that is no more.
///
/// Nothing depends on it, since nothing there is believed about other files than those it was said of.
pub(in crate::commands) fn empty_spool(settings: &Settings) {
    let Some(path) = settings.path(Opt::SpoolPath) else { return };
    match Spool::wipe(path, settings.stanza_name()) {
        Ok(0) => {}
        Ok(files) => tracing::info!("removed {files} file(s) from the spool of the stanza in '{}'", path.display()),
        Err(e) => tracing::warn!("cannot empty the spool of the stanza: {}", e.chain()),
    }
}

/// What the options say of recovery.
pub(super) fn recovery(settings: &Settings) -> RecoveryOptions {
    let recovery_type = settings.text(Opt::Type).and_then(RecoveryType::parse).unwrap_or(RecoveryType::Default);
    let action = settings.text(Opt::TargetAction).and_then(TargetAction::parse);
    RecoveryOptions {
        target: settings.text(Opt::Target).map(str::to_owned),
        action: action.filter(|_| settings.is_given(Opt::TargetAction)),
        exclusive: settings.flag(Opt::TargetExclusive),
        timeline: settings.text(Opt::TargetTimeline).map(str::to_owned),
        settings: recovery_settings(settings, recovery_type),
        archive_mode_off: settings.text(Opt::ArchiveMode) == Some("off")
            && (recovery_type != RecoveryType::Preserve || settings.is_said(Opt::ArchiveMode)),
        ..RecoveryOptions::of(recovery_type)
    }
}

/// Settings that go with the type: those of a configuration file are for the types that read the archive.
fn recovery_settings(settings: &Settings, recovery_type: RecoveryType) -> Vec<(String, String)> {
    let is_for_others = !recovery_type.reads_archive() && !settings.is_said(Opt::RecoveryOption);
    if is_for_others { Vec::new() } else { settings.pairs(Opt::RecoveryOption).to_vec() }
}

/// The `restore_command` of a recovery. A target must be reached, so not knowing must stop the server; a standby can wait.
pub(super) fn command(settings: &Settings, recovery_type: RecoveryType) -> Result<String, Failure> {
    let on_error = match recovery_type {
        RecoveryType::Standby => OnError::Wait,
        _ => OnError::Abort,
    };
    Ok(restore_command(settings, Some(on_error))?)
}
