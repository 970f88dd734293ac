//! Programs that a test starts while others of its process serve clones.
//!
//! Until a child executes its program it has open what this process has, the locks of clones too. So a program is never
//! being started while a lock is taken: one that was given back would seem to be held.

use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

static STARTING: Mutex<()> = Mutex::new(());

/// Does something that takes the lock of a clone, while no program is being started.
pub fn alone<T>(act: impl FnOnce() -> T) -> T {
    let _guard = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    act()
}

/// Starts a program; on return it executes.
pub fn spawn(command: &mut Command) -> Child {
    alone(|| command.spawn()).unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a program that must succeed, and returns what it printed.
pub fn run(command: &mut Command) -> String {
    let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let output = child.wait_with_output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{complained}", output.status);
    said.into_owned()
}
