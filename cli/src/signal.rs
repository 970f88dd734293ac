//! Signals: the first asks the operation to stop at its next safe place, the second ends the process.

use crate::exit::Status;
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::{Error, Kind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Makes TERM, INT and HUP set `cancel`, and a second one of them exit with [`Status::TERM`] at once.
///
/// # Errors
/// If the system refuses a handler.
pub fn install(cancel: &Cancel) -> Result<(), Error> {
    let refused = |e| Error::refused(Kind::Kernel, format!("cannot handle signals: {e}"));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        // Handlers run in order of registration: the first call of this one finds the flag still down.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(Status::TERM.0), cancel.flag())
            .map_err(refused)?;
        signal_hook::flag::register(signal, cancel.flag()).map_err(refused)?;
    }
    Ok(())
}
