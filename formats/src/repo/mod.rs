//! The repository format: `FORMAT.md`, one module per kind of object.

pub mod chunk;
pub mod config;
pub mod envelope;
pub mod fields;
pub mod index;
pub mod keyrecord;
pub mod keyslot;
pub mod layout;
pub mod manifest;
pub mod moves;
pub mod pack;
pub mod records;
pub mod refs;
pub mod wal;
