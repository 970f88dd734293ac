//! Promise: a backup of a live server is taken whole, or visibly not at all, whatever happens meanwhile.
//!
//! That what was taken comes back is the promise of the target `restore`.

mod alone;
mod chain;
mod content;
mod faults;
mod progress;
mod refusals;
mod standby;
mod tablespaces;
mod wal_copy;
