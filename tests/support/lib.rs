//! What the test targets share: real PostgreSQL servers, made-up stopped ones with a repository in memory ([`offline`]), a
//! private world for the `pgkeep` command, a store that misbehaves, seeds, tree comparison.
//!
//! Rules for everything here: nothing is found by luck (a missing prerequisite panics and names the script that
//! installs it), nothing is shared between two tests (own directories, sockets and ports), nothing outlives its owner
//! (`Drop` stops servers, unmounts and deletes; `PGKEEP_TEST_KEEP=1` leaves the directories for a look).
//! As root, servers and `pgkeep` run as the user `postgres`; otherwise as whoever runs the tests ([`account`]).

pub mod account;
pub mod faulty;
pub mod mounts;
pub mod objects;
pub mod offline;
pub mod pg;
pub mod sandbox;
pub mod seed;
pub mod tree;
mod wait;
pub mod world;

pub use pg::{Cluster, Mode, Work, majors, spread};
pub use sandbox::{Run, Running, Sandbox};
pub use wait::{PATIENCE, wait_until};
pub use world::World;
