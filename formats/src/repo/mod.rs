//! The repository format: `FORMAT.md`, one module per kind of object.

pub mod config;
pub mod envelope;
pub mod keyrecord;
pub mod keyslot;
