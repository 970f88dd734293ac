//! The face of pgkeep: what is typed, configured, logged, shown and returned to the shell.
//!
//! The only crate that prints, reads the environment, sets up logging or handles signals. A command file in
//! [`commands`] is thin: options in, one engine operation, its result out.

pub mod exit;
pub mod option;
pub mod size;
