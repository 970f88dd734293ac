//! PostgreSQL as it runs and lies on disk.

pub mod datadir;
pub mod read;
pub mod server;

pub use server::ServerError;
