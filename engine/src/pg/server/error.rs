//! Why the server failed us, with the server, the step and the limit that matter.

use crate::Kind;
use std::path::PathBuf;
use std::time::Duration;

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
    /// The certificates to check the server against cannot be read.
    #[error("cannot read the root certificates in '{}': {reason}", path.display())]
    RootCertificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A password file cannot be read.
    #[error("cannot read the password file '{}'", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The way the connection is to be protected cannot be set up.
    #[error("cannot set up TLS for {server}: {reason}")]
    Tls {
        /// Address and port.
        server: String,
        /// Why.
        reason: String,
    },
    /// The server refuses a query.
    #[error("cannot {doing}")]
    Query {
        /// What the query was for.
        doing: &'static str,
        /// What the server said.
        source: postgres::Error,
    },
    /// The session is gone, and with it the backup it had begun if there was one.
    #[error("the server ended the connection{}, cannot {doing}", if *in_backup { " during the backup" } else { "" })]
    Lost {
        /// What was being asked.
        doing: &'static str,
        /// Whether a backup had been started on this session.
        in_backup: bool,
        /// What the client library said, the first time.
        source: Option<postgres::Error>,
    },
    /// The server answers with something that cannot be.
    #[error("cannot {doing}: the server answered {answer}")]
    Answer {
        /// What was being asked.
        doing: &'static str,
        /// The unusable answer.
        answer: String,
    },
    /// The server did not answer in time. The query was cancelled.
    #[error("cannot {doing} within {} s", limit.as_secs())]
    Timeout {
        /// What was being asked.
        doing: &'static str,
        /// The time it had.
        limit: Duration,
    },
    /// The server is too old.
    #[error("PostgreSQL version {found} is not supported, {oldest} is the oldest")]
    Version {
        /// Its `server_version_num`.
        found: u32,
        /// The oldest supported major.
        oldest: u32,
    },
    /// Another process, on this host or another, holds the advisory lock for backups.
    #[error("another backup of this cluster is running (advisory lock {class}, {scope} is held)")]
    BackupRunning {
        /// First number of the lock.
        class: i32,
        /// Second number of the lock.
        scope: i32,
    },
    /// A backup is stopped which this session has not started, or started twice.
    #[error("backup {step} is out of order on this session")]
    Order {
        /// "start" or "stop".
        step: &'static str,
    },
    /// The caller asked to stop. The running query was cancelled.
    #[error("interrupted")]
    Interrupted,
}

impl ServerError {
    /// The cause, for branching and for the exit status.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Connect { .. } => Kind::DbConnect,
            Self::RootCertificates { .. } => Kind::FileInvalid,
            Self::PasswordFile { .. } => Kind::FileOpen,
            Self::Tls { .. } => Kind::Config,
            Self::Query { .. } | Self::Lost { .. } | Self::Answer { .. } | Self::Timeout { .. } => Kind::DbQuery,
            Self::Version { .. } => Kind::VersionNotSupported,
            Self::BackupRunning { .. } => Kind::LockAcquire,
            Self::Order { .. } => Kind::Assert,
            Self::Interrupted => Kind::Interrupted,
        }
    }
}
