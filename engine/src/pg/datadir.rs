//! The data directory.

pub mod names;
