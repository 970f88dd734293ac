//! What is checked on every cluster: where recovery has ended, tables and indexes, page checksums.

use super::end::ArchiveEnd;
use crate::commands::Context;
use crate::commands::programs::{Ended, Running};
use crate::commands::scratch::Scratch;
use crate::error::Failure;
use crate::exit::Status;
use pgkeep_engine::pg::datadir;
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_formats::pg::control::DbState;
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use pgkeep_formats::repo::records::{CheckResult, Drill};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

/// What a check came to, and what to tell of it.
pub(super) type Found = Result<(CheckResult, String), Failure>;

/// Databases that are checked: all that let connections in, templates too. Of one with limit -2 only a part is there, as
/// `DROP DATABASE` was interrupted: nobody can connect to it.
const DATABASES: &str =
    "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1";
const EXTENSION: &str = "CREATE EXTENSION IF NOT EXISTS amcheck; ALTER EXTENSION amcheck UPDATE";
/// What the server says of an extension whose files are not installed.
const NO_EXTENSION: [&str; 2] = ["extension control file", "is not available"];
/// Any database will do to ask for settings.
const TEMPLATE: &str = "template1";
/// `pg_amcheck` answers so if it found something wrong, and 1 if it could not do its work.
const FAILED: CheckResult = CheckResult::Failed;

/// Where recovery has ended.
pub(super) fn reached(context: &Context<'_>, scratch: &Scratch, end: Option<&ArchiveEnd>, drill: &mut Drill) -> Found {
    let sql = "SELECT coalesce(pg_last_wal_replay_lsn(), pg_current_wal_lsn()), timeline_id, \
               coalesce(pg_last_xact_replay_timestamp()::text, '') FROM pg_control_checkpoint()";
    let answer = match scratch.ask(context, TEMPLATE, sql) {
        Ok(answer) => answer,
        Err(failure) => return failed(failure),
    };
    let mut fields = answer.trim_end().split('|');
    let (lsn, timeline, last) = (fields.next(), fields.next(), fields.next());
    drill.lsn = lsn.and_then(|text| Lsn::parse(text).ok()).map_or(0, |lsn| lsn.0);
    let last = last.filter(|text| !text.is_empty());
    let last = last.map_or_else(|| "no transaction replayed".to_owned(), |t| format!("last transaction at {t}"));
    let detail =
        format!("replayed to {}, {last}; now on timeline {}", lsn.unwrap_or_default(), timeline.unwrap_or_default());
    let Some(end) = end else { return Ok((CheckResult::Passed, detail)) };
    let history = timeline.and_then(|t| t.parse().ok()).map(TimelineId);
    let history = match history.map(|own| history_of(context, scratch, own)) {
        Some(Ok(history)) => history,
        Some(Err(failure)) => return failed(failure),
        None => return Ok((FAILED, format!("the server does not tell its timeline: {detail}"))),
    };
    Ok(match end.missed(&history)? {
        Some(missed) => (FAILED, format!("{detail}; {missed}")),
        None => (CheckResult::Passed, detail),
    })
}

/// How the server came to the timeline it is on.
fn history_of(context: &Context<'_>, scratch: &Scratch, own: TimelineId) -> Result<TimelineHistory, Failure> {
    let file = format!("pg_wal/{}", own.history_file_name());
    let text = scratch.ask(context, TEMPLATE, &format!("SELECT pg_read_file('{file}')"))?;
    Ok(TimelineHistory::parse(own, text.as_bytes()).map_err(Error::damaged(file))?)
}

/// Tables and B-tree indexes of all databases, by `pg_amcheck`.
pub(super) fn amcheck(context: &Context<'_>, scratch: &Scratch) -> Found {
    let program = scratch.program("pg_amcheck");
    if !program.is_file() {
        let text = format!("there is no '{}': PostgreSQL has it from 14 on", program.display());
        return Ok((CheckResult::Skipped, text));
    }
    let databases = match scratch.ask(context, TEMPLATE, DATABASES) {
        Ok(databases) => databases,
        Err(failure) => return failed(failure),
    };
    for database in databases.lines() {
        match scratch.ask(context, database, EXTENSION) {
            Ok(_) => {}
            Err(failure) if NO_EXTENSION.iter().any(|words| failure.to_string().contains(words)) => {
                let text = format!("the extension amcheck is not installed with these programs: {failure}");
                return Ok((CheckResult::Skipped, text));
            }
            Err(failure) => return failed(failure),
        }
    }
    let mut command = scratch.client("pg_amcheck", TEMPLATE);
    // The maintenance database may be gone; this one is in every cluster.
    command.args(["--all", "--no-password", "--maintenance-db", TEMPLATE]);
    command.arg(format!("--jobs={}", context.settings.process_max()));
    let ended = Running::start_to_ask(&mut command, "pg_amcheck")?.wait(context.cancel)?;
    let databases = databases.lines().collect::<Vec<_>>().join(", ");
    Ok(outcome(&ended, format!("databases {databases}")))
}

/// Every page of every relation, by `pg_checksums`, when the server has stopped in order.
pub(super) fn page_checksums(context: &Context<'_>, scratch: &Scratch) -> Found {
    if let Err(failure) = scratch.stop() {
        return failed(failure);
    }
    let control = match datadir::read_control(scratch.data()) {
        Ok(control) => control,
        Err(error) => return failed(error.into()),
    };
    if control.fields.state != DbState::ShutDown {
        let text = "the server has not shut down in order, so its pages on disk are not all there are";
        return Ok((FAILED, text.to_owned()));
    }
    if control.fields.data_checksum_version == 0 {
        return Ok((CheckResult::Skipped, "the cluster has no page checksums".to_owned()));
    }
    let program = scratch.program("pg_checksums");
    if !program.is_file() {
        return Ok((CheckResult::Skipped, format!("there is no '{}'", program.display())));
    }
    let data = scratch.data();
    let owner = std::fs::metadata(data).map_err(|e| Failure::file(FileError::at("stat", data)(e)))?;
    let mut command = Command::new(program);
    command.args(["--check", "-D"]).arg(data).env("LC_ALL", "C").stdin(Stdio::null()).current_dir("/");
    // Like the server it does not run as root.
    if rustix::process::geteuid().is_root() && owner.uid() != 0 {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let ended = Running::start_to_ask(&mut command, "pg_checksums")?.wait(context.cancel)?;
    let answer = String::from_utf8_lossy(&ended.answer).into_owned();
    let fact = |name: &str| answer.lines().find_map(|l| l.strip_prefix(name)).map(|n| n.trim().to_owned());
    let blocks = fact("Blocks scanned:").map_or_else(String::new, |blocks| format!("{blocks} pages"));
    Ok(outcome(&ended, blocks))
}

/// A refusal of the clone's server or file system is what is wrong, unless the command was asked to stop, or a program
/// could not be run.
pub(super) fn failed(failure: Failure) -> Found {
    let not_found_out = [Status::TERM, Status::of(Kind::Execute), Status::of(Kind::Kernel)];
    if not_found_out.contains(&failure.status()) { Err(failure) } else { Ok((FAILED, failure.to_string())) }
}

fn outcome(ended: &Ended, if_passed: String) -> (CheckResult, String) {
    if ended.status.success() {
        return (CheckResult::Passed, if_passed);
    }
    let printed = String::from_utf8_lossy(&ended.answer);
    (FAILED, [ended.said.trim(), printed.trim()].join("\n").trim().to_owned())
}
