//! `archive-get`: what the server's `restore_command` runs. Status 1 only when the file is certainly absent.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::repos;
use pgkeep_engine::archive::{self, GetOptions, GetOutcome};
use pgkeep_engine::{Error, Kind};

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let name = settings.param(0).to_string_lossy().into_owned();
    let pg_path = repos::pgdata(settings)?;
    let destination = settings.param(1);
    // The server gives `%p` relative to its data directory.
    let destination = if destination.is_absolute() { destination.to_path_buf() } else { pg_path.join(destination) };
    let options = GetOptions { stanza: settings.stanza_name().to_owned(), name: name.clone(), destination, pg_path };
    if name.is_empty() {
        return Err(Error::refused(Kind::ParamRequired, "a WAL file name is required").into());
    }
    match archive::get(&repos::configured(settings)?, &options)? {
        GetOutcome::Found { key, archive_id, .. } => {
            tracing::info!("found {name} in the repo{key}: {archive_id} archive");
            Ok(Status::OK)
        }
        GetOutcome::NotFound => {
            tracing::info!("unable to find {name} in the archive");
            Ok(Status::ABSENT)
        }
    }
}
