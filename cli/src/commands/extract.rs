//! `extract`: tables, schemas or a database as they were at some time, dumped by `pg_dump` from a clone that is made
//! for it and removed after it.
//!
//! A dump that is not whole never looks so: a file has its name only when `pg_dump` has succeeded, another server
//! commits only then, and on standard output the exit status tells.

mod into;
mod output;

use super::Context;
use super::programs::{Ended, Running};
use super::scratch::{Scratch, keeper};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, OptionError, Settings};
use output::Output;
use pgkeep_engine::{Error, Kind};
use std::process::{Command, Stdio};

/// Database of every cluster that is none of its user's.
const MAINTENANCE: &str = "postgres";
/// What `pg_dump` says of a pattern that nothing fits.
const NO_MATCH: &str = "no matching ";

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::ReadyPipe) {
        return keeper::keep(context);
    }
    let output = Output::of(settings)?;
    let mut scratch = Scratch::open(context, &[])?;
    let result = extract(context, &mut scratch, &output);
    // Also after a failure nothing is left, and that is what counts then.
    let removed = scratch.finish();
    result?;
    removed?;
    Ok(Status::OK)
}

fn extract(context: &Context<'_>, scratch: &mut Scratch, output: &Output) -> Result<(), Failure> {
    let (label, repo) = (scratch.recorded("label")?, scratch.recorded("repository")?);
    tracing::info!("recovering a clone of backup {label} of repo{repo}");
    let times = scratch.start(context)?;
    tracing::info!("recovered after {:.1} s", times.recovered.as_secs_f64());
    let database = database(context, scratch)?;
    tracing::info!("dumping from database '{database}'");
    let mut dump = pg_dump(context.settings, scratch, &database);
    match output {
        Output::Stdout => {
            format(&mut dump, context.settings).stdout(Stdio::inherit());
            let ended = Running::start(&mut dump, "pg_dump")?.wait(context.cancel)?;
            checked(ended, &database, scratch, context)?;
        }
        Output::File(file) => {
            let temporary = file.begin()?;
            scratch.also_remove(&temporary)?;
            format(&mut dump, context.settings).arg("--file").arg(&temporary).stdout(Stdio::null());
            let written = Running::start(&mut dump, "pg_dump")
                .and_then(|running| running.wait(context.cancel))
                .and_then(|ended| checked(ended, &database, scratch, context))
                .and_then(|()| file.commit());
            written.inspect_err(|_| file.abandon())?;
            tracing::info!("wrote '{}'", file.path().display());
        }
        Output::Server(conninfo) => {
            let mut restore = pg_restore(context.settings, scratch);
            let ended = into::load(context, &mut dump, &mut restore, conninfo)?;
            checked(ended, &database, scratch, context)?;
        }
    }
    Ok(())
}

/// The database to dump from: the one that is named, or the only one that is its user's.
fn database(context: &Context<'_>, scratch: &Scratch) -> Result<String, Failure> {
    let there = scratch.databases(context)?;
    if let Some(asked) = context.settings.text(Opt::Database) {
        if there.iter().any(|name| name == asked) {
            return Ok(asked.to_owned());
        }
        let text = format!("there was no database '{asked}' then; there were {}", listed(&there));
        return Err(Error::refused(Kind::DbMissing, text).into());
    }
    let mut own = there.iter().filter(|name| *name != MAINTENANCE);
    match (own.next(), own.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => Ok(MAINTENANCE.to_owned()),
        (Some(_), Some(_)) => {
            let message = format!("command extract needs option 'database': there were {}", listed(&there));
            Err(OptionError::new(Status::OPTION_REQUIRED, message).into())
        }
    }
}

fn listed(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
    quoted.join(", ")
}

fn pg_dump(settings: &Settings, scratch: &Scratch, database: &str) -> Command {
    let mut command = scratch.client("pg_dump", database);
    command.args(["--no-password", "--strict-names"]);
    for (flag, given) in
        [("--data-only", settings.flag(Opt::DataOnly)), ("--schema-only", settings.flag(Opt::SchemaOnly))]
    {
        if given {
            command.arg(flag);
        }
    }
    command.args(left_out(settings));
    command.args(settings.list(Opt::Table).iter().map(|table| format!("--table={table}")));
    command.args(settings.list(Opt::Schema).iter().map(|schema| format!("--schema={schema}")));
    command
}

/// Has `pg_dump` write what was asked for.
fn format<'a>(dump: &'a mut Command, settings: &Settings) -> &'a mut Command {
    let format = settings.text(Opt::Format).unwrap_or("plain");
    dump.arg(format!("--format={format}"));
    if format == "directory" {
        dump.arg(format!("--jobs={}", settings.process_max()));
    }
    dump
}

/// What takes a dump into a server. An archive says whose everything was, whatever `pg_dump` was told.
fn pg_restore(settings: &Settings, scratch: &Scratch) -> Command {
    let mut command = Command::new(scratch.program("pg_restore"));
    command.args(left_out(settings));
    command
}

/// What is not to be restored, in the words of both programs.
fn left_out(settings: &Settings) -> impl Iterator<Item = &'static str> {
    let flags = [("--no-owner", !settings.flag(Opt::Owner)), ("--no-privileges", !settings.flag(Opt::Privileges))];
    flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag)
}

/// What became of the dump. A table that is not there is a clear no, and told with where else it might be.
fn checked(ended: Ended, database: &str, scratch: &Scratch, context: &Context<'_>) -> Result<(), Failure> {
    if !ended.status.success() && ended.said.contains(NO_MATCH) {
        let line = ended.said.lines().find(|line| line.contains(NO_MATCH)).unwrap_or_default();
        let line = line.strip_prefix("pg_dump: error: ").unwrap_or(line);
        let there = scratch.databases(context)?;
        let text = format!("database '{database}' did not have it then: {line}; databases were {}", listed(&there));
        return Err(Error::refused(Kind::Absent, text).into());
    }
    ended.success().map(drop)
}
