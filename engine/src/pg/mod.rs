//! PostgreSQL as it runs and lies on disk.

pub mod datadir;
pub mod identity;
pub mod read;
pub mod server;
pub mod summaries;

pub use identity::ClusterIdentity;
pub use server::ServerError;
