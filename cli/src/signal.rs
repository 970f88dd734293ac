//! Signals: the first asks the operation to stop at its next safe place, a later one ends the process.
//!
//! Whoever stops a command often does so twice at once: a terminal and a supervisor signal the group and the process,
//! `timeout` its child and its own group. What comes together counts as one, or a backup would leave its session behind
//! that it was just about to end.
//!
//! One thread waits for signals. The flag that asks is set by the handler itself, so that it never depends on that thread.

use crate::exit::Status;
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::{Error, Kind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];

/// Signals that come within this time of the first count as the first.
const TOGETHER: Duration = Duration::from_secs(1);

/// Makes TERM, INT and HUP set `cancel`, and one that comes more than a second later end the process with this status, after
/// an ERROR line in the log.
///
/// # Errors
/// If the system refuses a handler or a thread.
pub fn install(cancel: &Cancel, status: Status) -> Result<(), Error> {
    listen(cancel, status, TOGETHER)
}

fn listen(cancel: &Cancel, status: Status, together: Duration) -> Result<(), Error> {
    let status = i32::from(status.0);
    let refused = |e| Error::refused(Kind::Kernel, format!("cannot handle signals: {e}"));
    // If the log itself is what hangs, one more signal ends the process in its handler.
    let ending = Arc::new(AtomicBool::new(false));
    for signal in SIGNALS {
        signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(&ending)).map_err(refused)?;
        signal_hook::flag::register(signal, cancel.flag()).map_err(refused)?;
    }
    let mut signals = Signals::new(SIGNALS).map_err(refused)?;
    let watch = move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            let Some(first) = first else {
                first = Some(Instant::now());
                continue;
            };
            if first.elapsed() >= together {
                ending.store(true, Ordering::SeqCst);
                let name = low_level::signal_name(signal).unwrap_or("a signal");
                let told = Status::TERM;
                tracing::error!("{told}: {name} after another one: ended at once, what was begun is left as it is");
                low_level::exit(status);
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(refused)?;
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
        let Some(together) = std::env::var_os(CHILD) else { return };
        let cancel = Cancel::default();
        let together = if together == "long" { Duration::MAX } else { Duration::ZERO };
        listen(&cancel, Status::TERM, together).unwrap();
        assert!(!cancel.is_cancelled());
        low_level::raise(SIGHUP).unwrap();
        assert!(cancel.is_cancelled() && cancel.check().is_err());
        println!("asked to stop");
        for _ in 0..100 {
            low_level::raise(SIGTERM).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("still alive");
        if together == Duration::ZERO {
            // Signals that are one to who waits for them are at least two here.
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    fn run(together: &str) -> (Option<i32>, String) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", "signal::tests::child", "--nocapture"]).env(CHILD, together).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn the_first_signal_asks_and_a_later_one_ends() {
        let (status, text) = run("short");
        assert_eq!(status, Some(63), "{text}");
        assert!(text.contains("asked to stop"), "{text}");
    }

    #[test]
    fn signals_that_come_together_are_one() {
        let (status, text) = run("long");
        assert_eq!(status, Some(0), "{text}");
        assert!(text.contains("still alive"), "{text}");
    }
}
