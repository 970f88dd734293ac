//! What people and programs see: text, JSON, progress.

pub mod diff;
pub mod expire;
pub mod gc;
pub mod info;
pub mod json;
pub mod metrics;
pub mod progress;
pub mod stats;
pub mod verify;

use crate::error::Failure;
use std::io::Write as _;

/// Writes a command's output to standard output.
///
/// # Errors
/// [`Failure::Output`]; a closed pipe counts as success further up.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}
