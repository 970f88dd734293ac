//! To be written.
use crate::Kind;

/// Why the server failed us.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// It cannot be reached or refuses the connection.
    #[error("cannot connect to PostgreSQL at {server}")]
    Connect {
        /// Socket or address, port, database and user.
        server: String,
        /// What the client library said.
        source: postgres::Error,
    },
}

impl ServerError {
    /// The cause, for branching and for the exit status.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::DbConnect
    }
}
