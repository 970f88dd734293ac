//! How to reach a server.

use super::SslMode;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Where servers put their sockets unless told otherwise: distributions, then the original.
const SOCKET_PATHS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// How to reach a server.
pub struct ConnectOptions {
    /// Name or address for TCP; `None` is the socket.
    pub host: Option<String>,
    /// Directory of the socket; `None` is the first of the usual ones that has a socket for the port.
    pub socket_path: Option<PathBuf>,
    /// Port; also part of the socket's name.
    pub port: u16,
    /// Database user; `None` is the user of this process.
    pub user: Option<String>,
    /// Database.
    pub database: String,
    /// Password, from wherever the caller has it.
    pub password: Option<Zeroizing<String>>,
    /// Protection of TCP connections.
    pub ssl_mode: SslMode,
    /// Root certificates in PEM form, for the modes that check the server. The system's store is a file too.
    pub root_certificates: Option<PathBuf>,
    /// Limit of the time to connect, for each address of the host.
    pub connect_timeout: Duration,
    /// Limit of the time of one query. The start of a backup waits for a checkpoint, so give it half an hour.
    pub query_timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            host: None,
            socket_path: None,
            port: 5432,
            user: None,
            database: "postgres".to_owned(),
            password: None,
            ssl_mode: SslMode::default(),
            root_certificates: None,
            connect_timeout: Duration::from_secs(60),
            query_timeout: Duration::from_secs(30 * 60),
        }
    }
}

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConnectOptions({})", self.describe(self.user.as_deref().unwrap_or("")))
    }
}

impl ConnectOptions {
    pub(super) fn describe(&self, user: &str) -> String {
        let place = match &self.host {
            Some(host) => format!("host '{host}' port {}", self.port),
            None => format!("socket '{}' port {}", self.socket().display(), self.port),
        };
        format!("{place} database '{}' user '{user}'", self.database)
    }

    pub(super) fn socket(&self) -> PathBuf {
        let usual = || {
            let found = SOCKET_PATHS.iter().find(|d| Path::new(d).join(format!(".s.PGSQL.{}", self.port)).exists());
            PathBuf::from(found.unwrap_or(&SOCKET_PATHS[0]))
        };
        self.socket_path.clone().unwrap_or_else(usual)
    }
}
