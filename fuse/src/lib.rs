//! The FUSE faces of a repository: the read-only tree of all backups, and the writable clone of one.
//!
//! Owns everything the kernel's FUSE protocol asks for, mounting and unmounting, and the clone directory. Backups are
//! seen only through `pgkeep_engine::view`; stores, keys and formats are not known here.
//!
//! Threads: the kernel's requests are answered by the threads of a session ([`MountOptions::threads`]); a read that has
//! to fetch from a backup moves to a small pool, so that a slow store never keeps requests waiting that need no store.
//! No handler lets a panic out: the request is answered EIO and the session goes on.

pub mod clone;
mod errno;
mod memory;
mod mount;
mod owner;
mod pool;
pub mod tree;

pub use mount::{IfUsed, Left, MountOptions, Mounted, Session, clear_stale, unmount};
pub use owner::Owner;
