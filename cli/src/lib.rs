//! The face of pgkeep: what is typed, configured, logged, shown and returned to the shell.
//!
//! The only crate that prints, reads the environment, sets up logging or handles signals. A command file in
//! [`commands`] is thin: options in, one engine operation, its result out. [`run`] is the way of every command:
//! load options, log the beginning, dispatch, log the end, exit status.

mod background;
mod buckets;
pub mod commands;
mod daemon;
pub mod error;
pub mod exit;
pub mod hint;
pub mod log;
mod made;
mod mounts;
pub mod option;
mod pattern;
pub mod render;
mod repos;
mod run;
mod servers;
pub mod signal;
pub mod size;
pub mod zone;

pub use run::run;

/// Our version, `major.minor.patch`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
