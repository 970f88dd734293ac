//! `archive-async`: the file is stored by a process in the background, with all that is ready behind it.
//!
//! What is acknowledged here was said by that process of this very file, see [`pgkeep_engine::archive::spool`]. Whatever
//! keeps it from saying anything, a spool that cannot be written above all, the file is pushed as without it.

use crate::background::{self, Waited};
use crate::commands::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, Opt, Settings};
use crate::repos;
use pgkeep_engine::archive::spool::{self, Binding, Outcome, Spool};
use pgkeep_engine::archive::{self, PushAheadOptions, PushOptions, Words};
use pgkeep_engine::lock::check_stopped;
use pgkeep_engine::pg::datadir::read_control;
use pgkeep_engine::{Error, Kind};
use std::path::Path;

/// The greatest status that leaves the server's archiver alive.
const STATUS_MAX: u8 = 125;

/// Waits until the file is stored, or given up; false if it is to be pushed from here.
///
/// # Errors
/// `ArchiveTimeout`; what the process in the background said of the file, or of all.
pub(super) fn is_done(context: &Context<'_>, options: &PushOptions) -> Result<bool, Failure> {
    check_stopped(&options.lock_path, Some(&options.stanza))?;
    let (Some(wal), Some(name)) = (options.source.parent(), options.source.file_name().and_then(|n| n.to_str())) else {
        return Ok(false);
    };
    // The server marks what it asks for. What somebody else asks for is in no list.
    if !archive::is_ready(wal, name)? {
        tracing::debug!("'{name}' is not marked ready: it is pushed alone");
        return Ok(false);
    }
    let settings = context.settings;
    let spool = background::spool(settings);
    match wait(context, options, wal, name, &spool) {
        Ok(Some(told)) => answer(name, told).map(|()| true),
        Ok(None) => Ok(false),
        Err(e) if background::is_final(&e) => Err(e),
        Err(e) => {
            tracing::warn!("cannot push in the background, pushing '{name}' alone: {}", e.report(None));
            Ok(false)
        }
    }
}

fn wait(
    context: &Context<'_>,
    options: &PushOptions,
    wal: &Path,
    name: &str,
    spool: &Spool,
) -> Result<Option<Told>, Failure> {
    let settings = context.settings;
    let control = options.pg_path.as_deref().map(|path| read_control(path).map(|c| c.fields)).transpose()?;
    let binding = Binding::new(&options.stanza, control.as_ref(), &background::identities(settings));
    let good = || archive::look(spool, name, &options.source, &binding).map(|status| status.map(Told::Good));
    if let Some(told) = good()? {
        return Ok(Some(told));
    }
    // What is said of failures counts from the second look on: it may be of an earlier run.
    let mut looks = 0;
    let look = |_| {
        looks += 1;
        Ok(match good()? {
            None if looks > 1 => spool.error(name)?.map(Told::Bad),
            told => told,
        })
    };
    let begin = || Spool::prepare(spool.out()).and_then(|()| spool.forget_errors(name));
    let timeout = settings.time(Opt::ArchiveTimeout);
    let what = format!("WAL file '{name}'");
    match background::wait_for(context, &[wal.as_os_str()], timeout, &what, begin, |_| true, look)? {
        Waited::Answer(told) => Ok(Some(told)),
        Waited::Alone => Ok(None),
    }
}

/// What the process in the background said.
enum Told {
    /// The server may go on.
    Good(spool::Status),
    /// The server must keep the file.
    Bad(spool::Status),
}

/// Passes on what was said.
fn answer(name: &str, told: Told) -> Result<(), Failure> {
    let (Told::Good(status) | Told::Bad(status)) = &told;
    let message = &status.message;
    match (&told, status.outcome) {
        (Told::Good(_), Outcome::Pushed) => {
            message.lines().for_each(|line| tracing::warn!("{line}"));
            tracing::info!("pushed WAL file '{name}' to the archive asynchronously");
        }
        (Told::Good(_), Outcome::Dropped) => tracing::error!("{message}"),
        (Told::Good(_), Outcome::Failed(code)) => tracing::warn!(
            "WAL file '{name}' is NOT in the archive and is passed over, since its error was renamed in the spool: \
             recovery past it needs a new backup: [{code:03}]: {message}"
        ),
        (Told::Bad(_), outcome) => {
            let code = if let Outcome::Failed(code) = outcome { code } else { 0 };
            let status = Status(if (1..=STATUS_MAX).contains(&code) { code } else { STATUS_MAX });
            return Err(Failure::Relayed { status, message: message.clone() });
        }
    }
    Ok(())
}

/// What was said of files that wait, for who pushes one alone.
pub(super) fn words(settings: &Settings) -> Words {
    Words { spool: background::spool(settings), repositories: background::identities(settings) }
}

/// The process in the background.
pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let Some(_locks) = background::begin(settings)? else { return Ok(Status::of(Kind::LockAcquire)) };
    let push = super::options(settings, settings.param(0).to_path_buf());
    let spool = background::spool(settings);
    let options = PushAheadOptions {
        push,
        spool: spool.clone(),
        repositories: background::identities(settings),
        workers: settings.process_max(),
        batch_bytes: settings.size(Opt::ArchivePushBatchSize).unwrap_or(u64::MAX),
    };
    let word = background::word(Command::ArchivePush);
    let outcome = repos::configured(settings)
        .and_then(|repositories| Ok(archive::push_ahead(&repositories, &options, &word, context.cancel)?));
    match outcome {
        Ok(_) => Ok(Status::OK),
        Err(Failure::Engine(e)) => {
            if e.kind() != Kind::Interrupted {
                say_of_all(&spool, &e, &word);
            }
            Err(e.into())
        }
        Err(other) => Err(other),
    }
}

fn say_of_all(spool: &Spool, error: &Error, word: archive::Word<'_>) {
    let (code, message) = word(error);
    if let Err(e) = spool.say_of_all(&spool::Status::new(Outcome::Failed(code), message, None)) {
        // Who waits sees this process end, and pushes by itself.
        tracing::warn!("{}", e.chain());
    }
}
