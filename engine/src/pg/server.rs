//! A session with a running server: who it is, and the start and stop of a backup.
//!
//! One [`Connection`] is one session for its whole life; it never reconnects, because a non-exclusive
//! backup and the advisory lock die with the session that began them. After the session is gone every
//! call says so. Queries run on the caller's thread; beside each a short-lived thread watches for
//! cancellation and for the time limit and cancels the query on the server. Names of functions are looked
//! up in `pg_catalog` alone, and the timeouts a server may impose on sessions are switched off.
//!
//! Source: PostgreSQL's documentation, "System Administration Functions"; what differs between majors is
//! in `formats::pg::version`.

mod backup;
mod bytes;
mod error;
mod facts;
mod options;
mod password;
mod standby;
mod summarizer;
#[cfg(test)]
mod tests;
mod tls;
mod watch;

pub use backup::{BackupStart, BackupStop, CheckpointPace};
pub use error::ServerError;
pub use facts::{ArchiveMode, Database, Identity, Tablespace};
pub use options::ConnectOptions;
pub use password::password_from_file;
pub use standby::{Checkpoint, Written};
pub use summarizer::SummarizerState;
pub use tls::SslMode;

use crate::observe::Cancel;
use crate::pg::datadir::names;
use bytes::{bytes_of, escaped};
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::version::Version;
use pgkeep_formats::pg::wal::WalSegmentSize;
use postgres::types::ToSql;
use postgres::{Client, NoTls, Row};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long between two looks at whether a query is to end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A peer that is silent for this long while bytes are on their way to it is gone.
const TCP_TIMEOUT: Duration = Duration::from_secs(60);

/// One session. Not shared between threads.
pub struct Connection {
    client: Client,
    tls: Option<MakeRustlsConnect>,
    cancel: Cancel,
    limit: Duration,
    version: Version,
    version_num: u32,
    in_backup: bool,
    lost: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection(version {}, in backup {}, lost {})", self.version_num, self.in_backup, self.lost)
    }
}

impl Connection {
    /// Connects and readies the session.
    ///
    /// `purpose` is shown by the server as `pgkeep [purpose]`. Blocks for the time to connect; after that
    /// any call on the session ends early when `cancel` is raised.
    ///
    /// # Errors
    /// [`ServerError::Connect`], [`ServerError::Tls`], [`ServerError::RootCertificates`], and
    /// [`ServerError::Version`] for a server that is not supported.
    pub fn open(options: &ConnectOptions, purpose: &str, cancel: &Cancel) -> Result<Self, ServerError> {
        let user = options.user.clone().or_else(|| names::user(rustix::process::geteuid().as_raw()));
        let mut config = Client::configure();
        config
            .port(options.port)
            .dbname(&options.database)
            .application_name(&format!("pgkeep [{purpose}]"))
            .connect_timeout(options.connect_timeout)
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(3)
            .tcp_user_timeout(TCP_TIMEOUT)
            .notice_callback(|notice| tracing::debug!("server: {}: {}", notice.severity(), notice.message()));
        if let Some(user) = &user {
            config.user(user);
        }
        if let Some(password) = &options.password {
            config.password(password.as_bytes());
        }
        let server = options.describe(user.as_deref().unwrap_or("unknown"));
        let tls = match &options.host {
            None => {
                config.host_path(options.socket()).ssl_mode(SslMode::Disable.negotiation());
                None
            }
            Some(host) => {
                config.host(host).ssl_mode(options.ssl_mode.negotiation());
                let roots = options.root_certificates.as_ref();
                match options.ssl_mode {
                    SslMode::Disable => None,
                    mode => Some(tls::connector(mode, roots, &server)?),
                }
            }
        };
        let connected = match &tls {
            Some(tls) => config.connect(tls.clone()),
            None => config.connect(NoTls),
        };
        let client = connected.map_err(|source| ServerError::Connect { server, source })?;
        let mut session = Self {
            client,
            tls,
            cancel: cancel.clone(),
            limit: options.query_timeout,
            // Until the server has said which it is.
            version: Version::V13,
            version_num: 0,
            in_backup: false,
            lost: false,
        };
        session.ready()?;
        Ok(session)
    }

    fn ready(&mut self) -> Result<(), ServerError> {
        const DOING: &str = "set up the session";
        // With the simple protocol nothing is looked up before search_path is ours.
        self.run(DOING, |c| c.batch_execute("set search_path = pg_catalog"))?;
        let text: String = self.one(DOING, "select current_setting('server_version_num')", &[], |r| r.try_get(0))?;
        let answer = || ServerError::Answer { doing: DOING, answer: format!("version '{text}'") };
        self.version_num = text.parse().map_err(|_| answer())?;
        let oldest = Version::V13.major();
        self.version = Version::from_server_version_num(self.version_num)
            .map_err(|_| ServerError::Version { found: self.version_num, oldest })?;
        // A setting is tried only where it exists: 14 brought idle_session_timeout, 17 transaction_timeout.
        // Commits wait for no standby: what is written here is a restore point at most.
        self.run(DOING, |c| {
            c.batch_execute(
                "select set_config(name, '0', false) from pg_settings where name in ('statement_timeout',
                    'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout',
                    'transaction_timeout', 'max_parallel_workers_per_gather');
                 set synchronous_commit = local;
                 set default_transaction_read_only = off",
            )
        })
    }

    /// The server's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Asks the server who it is.
    ///
    /// # Errors
    /// As all queries. The user needs `pg_read_all_settings` to see the data directory.
    pub fn identity(&mut self) -> Result<Identity, ServerError> {
        const DOING: &str = "ask the server for its identity";
        let timeline = self.timeline()?;
        let (version, version_num) = (self.version, self.version_num);
        let sql = "select s.system_identifier, s.catalog_version_no, current_setting('data_directory'),
                i.bytes_per_wal_segment, i.database_block_size, i.blocks_per_segment, i.data_page_checksum_version,
                current_setting('archive_mode'), current_setting('archive_command'),
                coalesce(current_setting('archive_library', true), ''), current_setting('wal_level'),
                pg_is_in_recovery()
            from pg_control_system() s, pg_control_init() i";
        let row = self.row(DOING, sql, &[])?;
        let wal_size = |bytes: u32| {
            let answer = || ServerError::Answer { doing: DOING, answer: format!("WAL segment size {bytes}") };
            WalSegmentSize::new(u64::from(bytes)).ok_or_else(answer)
        };
        let segment: i32 = row.try_get(3).map_err(|source| ServerError::Query { doing: DOING, source })?;
        let wal_segment_size = wal_size(segment.cast_unsigned())?;
        let read = |row: &Row| -> Result<Identity, postgres::Error> {
            let size = |at: usize| row.try_get::<_, i32>(at).map(i32::cast_unsigned);
            let mode: &str = row.try_get(7)?;
            let command: String = row.try_get(8)?;
            Ok(Identity {
                version,
                version_num,
                system_id: row.try_get::<_, i64>(0)?.cast_unsigned(),
                catalog_version: size(1)?,
                data_directory: PathBuf::from(row.try_get::<_, String>(2)?),
                wal_segment_size,
                block_size: size(4)?,
                relation_segment_pages: size(5)?,
                checksums: row.try_get::<_, i32>(6)? != 0,
                archive_mode: match mode {
                    "off" => ArchiveMode::Off,
                    "always" => ArchiveMode::Always,
                    _ => ArchiveMode::On,
                },
                // The server shows this for an empty command while archiving is off.
                archive_command: if command == "(disabled)" { String::new() } else { command },
                archive_library: row.try_get(9)?,
                wal_level: row.try_get(10)?,
                in_recovery: row.try_get(11)?,
                timeline,
            })
        };
        read(&row).map_err(|source| ServerError::Query { doing: DOING, source })
    }

    /// The timeline written now; on a standby that of its last restart point.
    ///
    /// # Errors
    /// As all queries.
    pub fn timeline(&mut self) -> Result<TimelineId, ServerError> {
        const DOING: &str = "ask the server for its timeline";
        // Right after a promotion pg_control still has the old timeline, the name of the WAL file never.
        let sql = "select case when pg_is_in_recovery() then null
                else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end,
            (select timeline_id from pg_control_checkpoint())";
        let (file, checkpoint): (Option<String>, i32) =
            self.one(DOING, sql, &[], |r| Ok((r.try_get(0)?, r.try_get(1)?)))?;
        let number = match file {
            None => checkpoint.cast_unsigned(),
            Some(hex) => u32::from_str_radix(&hex, 16)
                .map_err(|_| ServerError::Answer { doing: DOING, answer: format!("timeline '{hex}'") })?,
        };
        Ok(TimelineId(number))
    }

    /// All databases, by number. Bytes of names that are no text are escaped.
    ///
    /// # Errors
    /// As all queries.
    pub fn databases(&mut self) -> Result<Vec<Database>, ServerError> {
        const DOING: &str = "list the databases";
        let database = |r: &Row, name| {
            Ok(Database { oid: r.try_get(0)?, name, allows_connections: r.try_get(2)?, is_template: r.try_get(3)? })
        };
        let sql = |name: &str| format!("select oid, {name}, datallowconn, datistemplate from pg_database order by oid");
        match self.many(DOING, &sql("datname::text"), |r| database(r, r.try_get(1)?)) {
            Err(e @ ServerError::Query { .. }) => {
                tracing::debug!("{e}: reading names as bytes");
                self.many(DOING, &sql(&bytes_of("datname::text")), |r| database(r, escaped(r.try_get(1)?)))
            }
            other => other,
        }
    }

    /// All tablespaces outside the data directory, by number. Bytes of names that are no text are escaped; locations are
    /// as they are.
    ///
    /// # Errors
    /// As all queries.
    pub fn tablespaces(&mut self) -> Result<Vec<Tablespace>, ServerError> {
        const DOING: &str = "list the tablespaces";
        let sql = |name: &str, location: &str| {
            format!(
                "select oid, {name}, {location} from pg_tablespace
                where spcname not in ('pg_default', 'pg_global') order by oid"
            )
        };
        let (name, location) = ("spcname::text", "pg_tablespace_location(oid)");
        let text = self.many(DOING, &sql(name, location), |r| {
            let location = PathBuf::from(r.try_get::<_, String>(2)?);
            Ok(Tablespace { oid: r.try_get(0)?, name: r.try_get(1)?, location })
        });
        match text {
            Err(e @ ServerError::Query { .. }) => {
                tracing::debug!("{e}: reading names as bytes");
                self.many(DOING, &sql(&bytes_of(name), &bytes_of(location)), |r| {
                    let location = PathBuf::from(OsString::from_vec(r.try_get(2)?));
                    Ok(Tablespace { oid: r.try_get(0)?, name: escaped(r.try_get(1)?), location })
                })
            }
            other => other,
        }
    }

    /// Time of the server's clock since the Unix epoch, to the microsecond.
    ///
    /// # Errors
    /// As all queries.
    pub fn current_time(&mut self) -> Result<Duration, ServerError> {
        let sql = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
        let micros: i64 = self.one("ask the server for the time", sql, &[], |r| r.try_get(0))?;
        Ok(Duration::from_micros(micros.max(0).cast_unsigned()))
    }

    /// Writes a named restore point to the WAL and returns its position.
    ///
    /// # Errors
    /// As all queries; a standby refuses.
    pub fn create_restore_point(&mut self, name: &str) -> Result<Lsn, ServerError> {
        self.lsn("create a restore point", "select (pg_create_restore_point($1) - '0/0')::bigint", &[&name])
    }

    /// Ends the current WAL segment and returns the name of the segment that ended.
    ///
    /// Nothing ends if nothing was written since the last switch, and then the name may be that of a
    /// segment archived before: create a restore point first.
    ///
    /// # Errors
    /// As all queries; a standby refuses.
    pub fn switch_wal(&mut self) -> Result<String, ServerError> {
        self.one("switch the WAL segment", "select pg_walfile_name(pg_switch_wal())", &[], |r| r.try_get(0))
    }

    /// Asks the server for a sign of life, so that a long operation notices early that its session is gone.
    ///
    /// # Errors
    /// [`ServerError::Lost`].
    pub fn ping(&mut self) -> Result<(), ServerError> {
        self.run("reach the server", |c| c.simple_query("").map(drop))
    }

    /// Whether the session is protected by TLS, as the server sees it.
    ///
    /// # Errors
    /// As all queries.
    pub fn is_encrypted(&mut self) -> Result<bool, ServerError> {
        let sql = "select coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false)";
        self.one("ask whether the session is encrypted", sql, &[], |r| r.try_get(0))
    }

    fn lsn(&mut self, doing: &'static str, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Lsn, ServerError> {
        self.one(doing, sql, values, |r| r.try_get::<_, i64>(0)).map(|l| Lsn(l.cast_unsigned()))
    }

    fn one<T>(
        &mut self,
        doing: &'static str,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
        read: impl FnOnce(&Row) -> Result<T, postgres::Error>,
    ) -> Result<T, ServerError> {
        let row = self.row(doing, sql, values)?;
        read(&row).map_err(|source| ServerError::Query { doing, source })
    }

    fn row(&mut self, doing: &'static str, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Row, ServerError> {
        self.run(doing, |c| c.query_one(sql, values))
    }

    fn many<T>(
        &mut self,
        doing: &'static str,
        sql: &str,
        read: impl Fn(&Row) -> Result<T, postgres::Error>,
    ) -> Result<Vec<T>, ServerError> {
        let rows = self.run(doing, |c| c.query(sql, &[]))?;
        rows.iter().map(read).collect::<Result<_, _>>().map_err(|source| ServerError::Query { doing, source })
    }
}
