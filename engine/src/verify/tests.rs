//! Repositories made by hand and damaged on purpose: every damage must be found, named and traced, and nothing else said.

mod damage;
pub(crate) mod fixture;
mod gaps;
mod partial;
mod wal;
