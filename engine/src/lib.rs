//! Everything that moves data: blocking, on threads, without terminal, environment or arguments.
//!
//! `ARCHITECTURE.md` beside this crate has the layers, the budgets of threads and memory, and the crash
//! reasoning. Lower modules never name higher ones; operations do not call each other.

pub mod archive;
pub mod backup;
pub mod check;
pub mod chunk;
pub mod classic;
pub mod clock;
pub mod crypto;
pub mod diff;
mod error;
pub mod expire;
pub mod gc;
pub mod index;
pub mod info;
pub mod limit;
pub mod lock;
pub mod observe;
pub mod pack;
pub mod pg;
mod process;
pub mod repository;
pub mod restore;
pub mod size;
pub mod stanza;
pub mod stats;
pub mod store;
pub mod sync;
pub mod verify;
pub mod view;

pub use error::{Error, FileError, Kind, Result};
