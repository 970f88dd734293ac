//! `start`: removes the stop file.

use super::{Context, control};
use crate::error::Failure;
use crate::exit::Status;
use pgkeep_engine::FileError;
use std::io::ErrorKind;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let file = control::stop_file(context.settings);
    match std::fs::remove_file(&file) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            tracing::warn!("there is no stop file for {}", control::scope(context.settings));
        }
        Err(e) => return Err(Failure::file(FileError::at("remove", &file)(e))),
    }
    Ok(Status::OK)
}
