//! The repository format: `FORMAT.md`, one module per kind of object.

pub mod chunk;
pub mod index;
