//! `check`: configuration, server and archive, of one stanza or of all that are configured.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{self, Opt, Settings};
use crate::repos;
use pgkeep_engine::check::{self, ArchiveCheck, CheckOptions, ServerRole};
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
    let pgdata = repos::pgdata(settings)?;
    let archive_check = match (settings.flag(Opt::ArchiveCheck), settings.flag(Opt::ArchiveModeCheck)) {
        (false, _) => ArchiveCheck::Off,
        (true, false) => ArchiveCheck::AnyMode,
        (true, true) => ArchiveCheck::Strict,
    };
    let program = settings.exe().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let names = ["pgkeep", "pgbackrest", program.as_str()];
    let options = CheckOptions {
        stanza: settings.stanza_name(),
        pgdata: &pgdata,
        port: settings.pg(1).port(),
        program_names: &names,
        archive_check,
        archive_timeout: settings.time(Opt::ArchiveTimeout),
    };
    let mut server = Connection::open(&repos::server(settings), "check", cancel).map_err(Error::from)?;
    let repositories = repos::open_all(settings)?;
    let report = check::run(&mut server, &repositories, &options, &SystemClock, cancel)?;
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
    Ok(())
}
