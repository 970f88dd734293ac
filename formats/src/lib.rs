//! Bytes to types and back, for pgkeep's repository and for the PostgreSQL files it reads.
//!
//! This crate does no IO, reads no clock, draws no randomness, starts no thread and logs nothing;
//! everything else may use it. Decoders accept arbitrary bytes: they return [`FormatError`] and never
//! panic. The normative description of the repository is `FORMAT.md` beside this crate.
#![forbid(unsafe_code)]

pub mod codec;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod id;
pub mod pg;
pub mod repo;

pub use error::FormatError;
