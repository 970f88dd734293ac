//! `check`: configuration, server and archive, of one stanza or of all that are configured.

use super::failures::Failures;
use super::{Context, backup};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{self, Command, Opt, Settings};
use crate::repos;
use pgkeep_engine::backup::StandbyUse;
use pgkeep_engine::check::{self, ArchiveCheck, CheckOptions, CheckReport, ServerRole};
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::pg::server::Connection;
use pgkeep_engine::{Error, Kind};

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.stanza().is_some() {
        one(settings, context.cancel)?;
        return Ok(Status::OK);
    }
    let stanzas = settings.configured_stanzas();
    if stanzas.is_empty() {
        return Err(
            Error::refused(Kind::OptionRequired, "no stanza is configured, and option stanza is not given").into()
        );
    }
    for name in stanzas {
        one(&option::load(&context.invocation.for_stanza(name))?.settings, context.cancel)?;
    }
    Ok(Status::OK)
}

fn one(settings: &Settings, cancel: &Cancel) -> Result<(), Failure> {
    let archive_check = match (settings.flag(Opt::ArchiveCheck), settings.flag(Opt::ArchiveModeCheck)) {
        (false, _) => ArchiveCheck::Off,
        (true, false) => ArchiveCheck::AnyMode,
        (true, true) => ArchiveCheck::Strict,
    };
    let program = settings.exe().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let names = ["pgkeep", "pgbackrest", program.as_str()];
    let mut servers = Vec::new();
    let mut unreachable = None;
    let alone = settings.pgs().count() == 1;
    for pg in settings.pgs() {
        match Connection::open(&repos::server_of(settings, pg), "check", cancel).map_err(Error::from) {
            Ok(server) => servers.push((pg, server)),
            Err(e) if e.kind() == Kind::DbConnect && !alone => {
                tracing::warn!("pg{} is passed over: {}", pg.key(), e.chain());
                unreachable.get_or_insert(e);
            }
            Err(e) => return Err(none_found(e).into()),
        }
    }
    if let (true, Some(e)) = (servers.is_empty(), unreachable) {
        return Err(none_found(e).into());
    }
    let (mut repositories, mut failures) = (Vec::new(), Failures::among(settings.target_repos().count()));
    for repo in settings.target_repos() {
        repositories.extend(failures.take(repo.key(), repos::open(settings, repo))?);
    }
    if repositories.is_empty() {
        return failures.end(Command::Check);
    }
    let (mut primary, mut standby) = (None, None);
    for (pg, server) in &mut servers {
        let pgdata = repos::pgdata_of(*pg)?;
        let options = CheckOptions {
            stanza: settings.stanza_name(),
            pgdata: &pgdata,
            port: pg.port(),
            program_names: &names,
            archive_check,
            archive_timeout: settings.time(Opt::ArchiveTimeout),
        };
        let report = check::run(server, &repositories, &options, &SystemClock, cancel)?;
        tell(&report);
        for (key, e) in report.failures {
            failures.take(key, Err::<(), _>(e.into()))?;
        }
        if report.role == ServerRole::Standby {
            standby.get_or_insert(pg.key());
        } else if let Some(other) = primary.replace(pg.key()) {
            let text = format!("pg{other} and pg{} are both primaries: a stanza has one", pg.key());
            return Err(Error::refused(Kind::DbConnect, text).into());
        }
    }
    failures.end(Command::Check)?;
    match backup::standby(settings) {
        StandbyUse::Required if standby.is_none() => {
            let text = "no running standby was found among the clusters configured, to copy files from";
            Err(Error::refused(Kind::DbConnect, text).into())
        }
        StandbyUse::Prefer if standby.is_none() => {
            tracing::warn!("no running standby was found: backups copy all files from the primary");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Where no server answers there is nothing to check: for pgBackRest a matter of configuration (27).
fn none_found(error: Error) -> Error {
    match error.kind() {
        Kind::DbConnect => Error::refused(Kind::Config, format!("no database found: {}", error.chain())),
        _ => error,
    }
}

fn tell(report: &CheckReport) {
    if report.role == ServerRole::Standby {
        tracing::info!("switch wal not performed because this is a standby");
    }
    for repo in &report.repos {
        tracing::info!("check repo{} configuration: ok", repo.key);
        if let Some(archived) = &repo.archived {
            tracing::info!(
                "WAL segment {} successfully archived to '{}' on repo{}",
                archived.segment,
                archived.place,
                repo.key
            );
        }
    }
}
