//! Promise: a backup of a live server is taken whole, or visibly not at all, whatever happens meanwhile.
//!
//! That what was taken comes back is the promise of the target `restore`.

mod chain;
mod content;
mod faults;
mod refusals;
mod standby;
