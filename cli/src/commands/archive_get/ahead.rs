//! `archive-async`: segments are fetched by a process in the background, ahead of the server's asking.
//!
//! What is delivered from the queue was authenticated when it was fetched, see [`pgkeep_engine::archive::queue`]. That a
//! segment is absent is believed of a process that looked for this request; anything older is asked for again, unless
//! `archive-missing-retry=n`. Any doubt, failure or lock in the way makes the caller ask the repositories itself, so what the
//! server is told is what it would be told without a queue.

use crate::background::{self, Waited};
use crate::commands::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, Opt};
use crate::repos;
use pgkeep_engine::Kind;
use pgkeep_engine::archive::queue::Wanted;
use pgkeep_engine::archive::spool::Spool;
use pgkeep_engine::archive::{self, GetAheadOptions, GetOptions, GetOutcome, Queue};
use pgkeep_engine::pg::datadir::read_control;
use pgkeep_formats::pg::wal::WalSegment;
use std::ffi::OsStr;
use std::path::Path;

/// What is done with a segment.
enum Answer {
    Taken(u64),
    Missing,
    /// Nobody knows but the repositories.
    Unknown,
}

/// Gets a segment through the queue; none if the repositories are to be asked.
///
/// # Errors
/// `ArchiveTimeout`; `Interrupted`; file errors of the destination.
pub(super) fn get(context: &Context<'_>, options: &GetOptions) -> Result<Option<GetOutcome>, Failure> {
    let settings = context.settings;
    // Clones read what they need from the repository, on hosts of which they shall leave no trace.
    if !settings.flag(Opt::ArchiveAsync) || settings.flag(Opt::ForClone) {
        return Ok(None);
    }
    let control = read_control(&options.pg_path)?.fields;
    let size = control.wal_segment_size;
    // Histories are asked for to learn what is there now.
    let Ok(segment) = WalSegment::parse(&options.name, size) else { return Ok(None) };
    let spool = background::spool(settings);
    let queue = Queue::new(&spool, &options.stanza, &control, &background::identities(settings));
    let queue_max = settings.size(Opt::ArchiveGetQueueMax).unwrap_or(0);
    let answer = match through(context, options, &spool, &queue) {
        Ok(answer) => answer,
        Err(e) if background::is_final(&e) => return Err(e),
        Err(e) => {
            tracing::warn!("cannot use the queue, asking for {} alone: {}", options.name, e.report(None));
            None
        }
    };
    match answer {
        Some(Answer::Taken(size)) => {
            tracing::info!("found {} in the archive asynchronously", options.name);
            let next = Wanted::new(segment.next(), control.wal_segment_size, queue_max);
            if let Some(name) = next.name(0).filter(|_| queue.filled(&next) < next.count().div_ceil(2)) {
                background::nudge(context, &[OsStr::new(&name)]);
            }
            Ok(Some(GetOutcome::Queued { size }))
        }
        Some(Answer::Missing) => {
            tracing::info!("unable to find {} in the archive asynchronously", options.name);
            Ok(Some(GetOutcome::NotFound))
        }
        Some(Answer::Unknown) | None => Ok(None),
    }
}

fn through(
    context: &Context<'_>,
    options: &GetOptions,
    spool: &Spool,
    queue: &Queue,
) -> Result<Option<Answer>, Failure> {
    let (settings, name) = (context.settings, options.name.as_str());
    let take = || queue.take(name, &options.destination);
    if let Some(size) = take()? {
        return Ok(Some(Answer::Taken(size)));
    }
    if queue.take_missing(name)?.is_some() {
        // Of an earlier look, which ends no recovery. Asking again is one get, and surer than a process that looks for many.
        return Ok(None);
    }
    let look = |child: Option<u32>| {
        if let Some(size) = take()? {
            return Ok(Some(Answer::Taken(size)));
        }
        // Whoever was started before this call may have looked before it too.
        Ok(match queue.take_missing(name)? {
            Some(by) if Some(by) == child => Some(Answer::Missing),
            Some(_) => Some(Answer::Unknown),
            None => queue.take_failed(name)?.map(|_| Answer::Unknown),
        })
    };
    let begin = || {
        Spool::prepare(spool.queue())?;
        queue.take_missing(name).and(queue.take_failed(name)).map(drop)
    };
    let may_wait = |holder: &pgkeep_engine::lock::Holder| holder.pid.is_some_and(|pid| queue.is_planned(name, pid));
    let timeout = settings.time(Opt::ArchiveTimeout);
    let what = format!("WAL file '{name}'");
    match background::wait_for(context, &[OsStr::new(name)], timeout, &what, begin, may_wait, look)? {
        Waited::Answer(answer) => Ok(Some(answer)),
        Waited::Alone => Ok(None),
    }
}

/// The process in the background.
pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let Some(_locks) = background::begin(settings)? else { return Ok(Status::of(Kind::LockAcquire)) };
    let options = GetAheadOptions {
        get: GetOptions {
            stanza: settings.stanza_name().to_owned(),
            name: settings.param(0).to_string_lossy().into_owned(),
            destination: Path::new("").to_path_buf(),
            pg_path: repos::pgdata(settings)?,
            sparse: false,
        },
        spool: background::spool(settings),
        repositories: background::identities(settings),
        workers: settings.process_max(),
        queue_max: settings.size(Opt::ArchiveGetQueueMax).unwrap_or(0),
    };
    let repositories = repos::configured(settings)?;
    archive::get_ahead(&repositories, &options, &background::word(Command::ArchiveGet), context.cancel)?;
    Ok(Status::OK)
}
