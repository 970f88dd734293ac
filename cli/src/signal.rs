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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const CHILD: &str = "PGKEEP_TEST_SIGNAL_CHILD";

    /// Runs in a process of its own, started by the test below; without its variable it has nothing to do.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let cancel = Cancel::default();
        install(&cancel).unwrap();
        assert!(!cancel.is_cancelled());
        signal_hook::low_level::raise(SIGHUP).unwrap();
        assert!(cancel.is_cancelled() && cancel.check().is_err());
        println!("asked to stop");
        signal_hook::low_level::raise(SIGTERM).unwrap();
        println!("still alive");
    }

    #[test]
    fn the_first_signal_asks_and_the_second_ends() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", "signal::tests::child", "--nocapture"]).env(CHILD, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(63), "{text}");
        assert!(text.contains("asked to stop") && !text.contains("still alive"), "{text}");
    }
}
