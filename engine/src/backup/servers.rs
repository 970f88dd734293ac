//! Which of the configured servers is the primary, and which standby files are copied from.
//!
//! Nobody is told which is which: roles change with every failover, and configurations should not have to. Servers are
//! looked at in the order of their numbers, and only until what is wanted was found.

use super::standby::Standby;
use super::{BackupOptions, StandbyUse};
use crate::observe::Cancel;
use crate::pg::ClusterIdentity;
use crate::pg::server::{ConnectOptions, Connection, Identity};
use crate::{Error, Kind, Result};
use std::path::{Path, PathBuf};

/// A cluster of the configuration: `pgN`.
pub struct Place {
    /// N.
    pub key: u16,
    /// Data directory.
    pub pgdata: PathBuf,
    /// How to reach its server.
    pub server: ConnectOptions,
}

/// What a backup works with.
pub(super) struct Servers {
    /// Data directory of the primary; without one, of the standby.
    pub(super) pgdata: PathBuf,
    pub(super) connection: Connection,
    pub(super) identity: Identity,
    /// A running standby, if one is wanted.
    pub(super) standby: Option<Standby>,
    /// The number of the standby that all of this is of, as there is no primary.
    pub(super) alone: Option<u16>,
}

/// A server that runs: its number and directory, a session with it, and what it says of itself.
type Found<'a> = (u16, &'a Path, Connection, Identity);

/// Finds the primary and, if one is wanted, a standby; if one is preferred and there is no primary, the standby alone.
///
/// # Errors
/// `DbConnect` if there is no primary, more than one, or no standby although one is required; `DbMismatch` for a standby of
/// another cluster, and as [`ClusterIdentity::of_server`].
pub(super) fn find(options: &BackupOptions, server: &ConnectOptions, cancel: &Cancel) -> Result<Servers> {
    let places = std::iter::once((options.key, options.pgdata.as_path(), server));
    let places: Vec<_> = places.chain(options.others.iter().map(|p| (p.key, p.pgdata.as_path(), &p.server))).collect();
    let wanted = options.standby != StandbyUse::No;
    let (mut primary, mut standby): (Option<Found<'_>>, Option<Found<'_>>) = (None, None);
    let mut unreachable = None;
    for (key, pgdata, server) in &places {
        if primary.is_some() && (!wanted || standby.is_some()) {
            break;
        }
        let (connection, identity) = match look(pgdata, server, cancel) {
            Ok(found) => found,
            Err(e) if e.kind() == Kind::DbConnect && places.len() > 1 => {
                tracing::warn!("pg{key} is passed over: {}", e.chain());
                unreachable.get_or_insert(e);
                continue;
            }
            Err(e) => return Err(e),
        };
        if identity.in_recovery {
            standby.get_or_insert((*key, *pgdata, connection, identity));
        } else if let Some((other, ..)) = &primary {
            let text = format!("pg{other} and pg{key} are both primaries: a stanza has one");
            return Err(Error::refused(Kind::DbConnect, text));
        } else {
            primary = Some((*key, *pgdata, connection, identity));
        }
    }
    let Some((key, pgdata, connection, identity)) = primary else {
        if let (StandbyUse::Prefer, Some((key, pgdata, connection, identity))) = (options.standby, standby) {
            tracing::warn!("no primary was found: the backup is of the standby, pg{key}, alone");
            let pgdata = pgdata.to_owned();
            return Ok(Servers { pgdata, connection, identity, standby: None, alone: Some(key) });
        }
        return Err(match unreachable {
            Some(e) => e.during("no primary was found among the clusters configured"),
            None if places.len() == 1 => Error::refused(
                Kind::DbConnect,
                format!("the server of pg{} is a standby: no primary is configured", options.key),
            ),
            None => Error::refused(Kind::DbConnect, "no primary was found: all servers configured are standbys"),
        });
    };
    let found = standby.filter(|_| wanted);
    if let Some((of, _, _, standby)) = &found {
        same(key, &identity, *of, standby)?;
    }
    let standby = found.map(|(key, pgdata, connection, _)| Standby::new(key, pgdata.to_owned(), connection));
    match options.standby {
        StandbyUse::Required if standby.is_none() => {
            let text = "no running standby was found among the clusters configured, to copy files from";
            return Err(Error::refused(Kind::DbConnect, text));
        }
        StandbyUse::Prefer if standby.is_none() => {
            tracing::warn!("no running standby was found: all files are copied from the primary, pg{key}");
        }
        _ => {}
    }
    if places.len() > 1 {
        tracing::debug!("the primary is pg{key}");
    }
    Ok(Servers { pgdata: pgdata.to_owned(), connection, identity, standby, alone: None })
}

fn look(pgdata: &Path, server: &ConnectOptions, cancel: &Cancel) -> Result<(Connection, Identity)> {
    let mut connection = Connection::open(server, "backup", cancel)?;
    let (_, identity) = ClusterIdentity::of_server(&mut connection, pgdata, server.port)?;
    Ok((connection, identity))
}

/// Refuses what is no copy of the primary, page for page.
fn same(primary: u16, of_primary: &Identity, standby: u16, of_standby: &Identity) -> Result<()> {
    let mismatch = |text: String| Err(Error::refused(Kind::DbMismatch, text));
    if of_standby.system_id != of_primary.system_id {
        return mismatch(format!(
            "pg{standby} is a standby with system identifier {}, but the primary, pg{primary}, has {}",
            of_standby.system_id, of_primary.system_id
        ));
    }
    if of_standby.checksums != of_primary.checksums {
        return mismatch(format!(
            "of pg{primary} and pg{standby} only one has page checksums: 'pg_checksums' was run on one of them"
        ));
    }
    Ok(())
}
