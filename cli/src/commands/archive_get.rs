//! `archive-get`: what the server's `restore_command` runs. Status 1 only when the file is certainly absent.
//!
//! To the server any status up to 125 means that the archive ends here. When it is not known whether the file exists,
//! `--on-error` decides: `report` gives the error's own number, as pgBackRest does; `abort` gives one above 125, which makes
//! the server stop; `wait` tries until it is known. `restore` writes what the kind of recovery needs.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::Opt;
use crate::repos;
use pgkeep_engine::archive::{self, GetOptions, GetOutcome};
use pgkeep_engine::{Error, Kind};
use std::time::{Duration, Instant};

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let name = settings.param(0).to_string_lossy().into_owned();
    let pg_path = repos::pgdata(settings)?;
    let destination = settings.param(1);
    // The server gives `%p` relative to its data directory.
    let destination = if destination.is_absolute() { destination.to_path_buf() } else { pg_path.join(destination) };
    let options = GetOptions { stanza: settings.stanza_name().to_owned(), name, destination, pg_path };
    if options.name.is_empty() {
        return Err(Error::refused(Kind::ParamRequired, "a WAL file name is required").into());
    }
    let outcome = match get(context, &options) {
        Err(e) if settings.text(Opt::OnError) == Some("abort") => {
            tracing::error!("{}", e.report());
            return Ok(Status::ABORT_RECOVERY);
        }
        other => other?,
    };
    match outcome {
        // Either was logged.
        GetOutcome::Found { .. } => Ok(Status::OK),
        GetOutcome::NotFound => Ok(Status::ABSENT),
    }
}

/// First and longest pause between two tries with `--on-error=wait`.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

fn get(context: &Context<'_>, options: &GetOptions) -> Result<GetOutcome, Failure> {
    let mut pause = PAUSE.0;
    loop {
        // Opened anew each time: what failed may be the opening.
        let outcome = repos::configured(context.settings)
            .and_then(|repositories| archive::get(&repositories, options).map_err(Failure::from));
        match outcome {
            Err(e) if context.settings.text(Opt::OnError) == Some("wait") => {
                tracing::warn!("cannot tell whether {} is in the archive, trying again: {}", options.name, e.report());
                let until = Instant::now() + pause;
                while Instant::now() < until {
                    context.cancel.check()?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                pause = (pause * 2).min(PAUSE.1);
            }
            other => return other,
        }
    }
}
