//! Which cluster it is: what a stanza's history is compared with, from a running server or from its directory.

use super::datadir::{self, Postmaster};
use super::server::{Connection, Identity};
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::repo::records::StanzaHistory;
use std::fmt;
use std::path::Path;

/// What tells one cluster from another, and from itself before an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// PostgreSQL major.
    pub version: u32,
    /// System identifier.
    pub system_identifier: u64,
    /// Catalog version number.
    pub catalog_version: u32,
    /// `pg_control` version number.
    pub control_version: u32,
}

impl fmt::Display for ClusterIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {} with system identifier {}", self.version, self.system_identifier)
    }
}

impl From<&ControlFile> for ClusterIdentity {
    fn from(control: &ControlFile) -> Self {
        Self {
            version: control.version.major(),
            system_identifier: control.system_identifier,
            catalog_version: control.catalog_version,
            control_version: control.pg_control_version,
        }
    }
}

impl From<&StanzaHistory> for ClusterIdentity {
    fn from(history: &StanzaHistory) -> Self {
        Self {
            version: history.version,
            system_identifier: history.system_identifier,
            catalog_version: history.catalog_version,
            control_version: history.control_version,
        }
    }
}

impl ClusterIdentity {
    /// Reads it from the directory of a cluster, whether its server runs or not.
    ///
    /// # Errors
    /// As [`datadir::read_control`].
    pub fn of_directory(pgdata: &Path) -> Result<Self> {
        Ok(Self::from(&datadir::read_control(pgdata)?.fields))
    }

    /// Asks a running server, and makes sure that it is the one whose directory is configured.
    ///
    /// `port` is the one configured for it.
    ///
    /// # Errors
    /// `DbMismatch` if server and directory are not of one cluster; what the server and the directory said.
    pub fn of_server(server: &mut Connection, pgdata: &Path, port: u16) -> Result<(Self, Identity)> {
        let found = server.identity()?;
        let identity = Self::of_directory(pgdata)?;
        same_cluster(&identity, &found, pgdata, port, datadir::postmaster(pgdata)?.as_ref())?;
        Ok((identity, found))
    }

    /// True if a stanza's history entry is of this cluster: version and system identifier decide, as minor releases may
    /// not change the rest.
    #[must_use]
    pub fn matches(&self, history: &StanzaHistory) -> bool {
        (self.version, self.system_identifier) == (history.version, history.system_identifier)
    }

    /// The history entry of this cluster.
    #[must_use]
    pub fn history(&self, id: u32, created: i64) -> StanzaHistory {
        StanzaHistory {
            id,
            version: self.version,
            system_identifier: self.system_identifier,
            catalog_version: self.catalog_version,
            control_version: self.control_version,
            created,
        }
    }
}

fn same_cluster(
    directory: &ClusterIdentity,
    server: &Identity,
    pgdata: &Path,
    port: u16,
    postmaster: Option<&Postmaster>,
) -> Result<()> {
    let mismatch = |text: String| Err(Error::refused(Kind::DbMismatch, text));
    let (shown, asked) = (pgdata.display(), server.data_directory.display());
    if !same_directory(&server.data_directory, pgdata) {
        return mismatch(format!(
            "the server on port {port} runs on '{asked}', but the directory configured is '{shown}': they are different \
             clusters"
        ));
    }
    if (directory.version, directory.system_identifier) != (server.version.major(), server.system_id) {
        return mismatch(format!(
            "the server on port {port} is PostgreSQL {} with system identifier {}, but '{shown}/global/pg_control' is of \
             {directory}",
            server.version.major(),
            server.system_id
        ));
    }
    match postmaster.and_then(|p| p.port) {
        Some(other) if other != port => {
            mismatch(format!("the server of '{shown}' listens on port {other}, but the port configured is {port}"))
        }
        _ => Ok(()),
    }
}

/// One directory may have several names; the server spells its own as it was started.
fn same_directory(a: &Path, b: &Path) -> bool {
    let real = |p: &Path| std::fs::canonicalize(p).ok();
    a == b || real(a).is_some_and(|a| real(b) == Some(a))
}
