//! Backing up a cluster: online or stopped, full, differential or incremental. Every backup stands alone.
//!
//! - `plan`: which backup to compare with and what of it to trust   - `label`: names
//! - `dispatch`: walk and parent become items and tasks   - `task`: what a worker does   - `sequence`: order and packs
//!
//! A crash anywhere leaves no visible backup: the commit record is the last object but one look at the generations. What
//! was uploaded is found in the index by the next run, which therefore resumes, under a session of its own.

mod dispatch;
mod label;
mod plan;
mod sequence;
mod task;
#[cfg(test)]
mod tests;

use self::plan::{Plan, Survey};
use self::sequence::{Copied, Copy};
use self::task::Shared;
use crate::chunk::Gear;
use crate::clock::Clock;
use crate::index::ChunkIndex;
use crate::lock::{Lock, LockName, LockType, check_stopped};
use crate::observe::{Cancel, Counter, Observer};
use crate::pg::datadir::{self, Exclusions, WalkOptions};
use crate::pg::server::{
    ArchiveMode, BackupStart, BackupStop, CheckpointPace, ConnectOptions, Connection, Database, Identity, Tablespace,
};
use crate::repository::manifests::{BuiltEntry, Manifest, ManifestBuilder, ManifestSummary};
use crate::repository::{ChunkSource, Repository, WriterSession};
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::label::BackupLabelFile;
use pgkeep_formats::pg::page::PageCheck;
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::version::Version;
use pgkeep_formats::pg::wal::{WalSegment, WalSegmentSize};
use pgkeep_formats::repo::manifest::{Node, path_cmp};
use pgkeep_formats::repo::records::{BackupType, Commit, DatabaseRef, LinkRef, StanzaHistory, TablespaceRef};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What to back up and how. Plain values, resolved by the caller.
pub struct BackupOptions {
    /// Stanza.
    pub stanza: String,
    /// Data directory.
    pub pgdata: PathBuf,
    /// How to reach the server; `None` backs up a stopped cluster.
    pub server: Option<ConnectOptions>,
    /// Type asked for. Without a backup to build on it becomes a full.
    pub backup_type: BackupType,
    /// Compare content instead of trusting times of change.
    pub delta: bool,
    /// Go on although a server seems to run on a directory that is backed up as a stopped one.
    pub force: bool,
    /// Start with an immediate checkpoint.
    pub start_fast: bool,
    /// Check pages; `None` if the cluster has checksums.
    pub checksum_page: Option<bool>,
    /// Check page headers too.
    pub page_header_check: bool,
    /// Values of the option `exclude`.
    pub exclude: Vec<String>,
    /// Notes to keep with the backup.
    pub annotations: BTreeMap<String, String>,
    /// Wait until the WAL that the backup needs is archived.
    pub archive_check: bool,
    /// How long to wait for each of its segments.
    pub archive_timeout: Duration,
    /// Workers.
    pub process_max: usize,
    /// zstd level.
    pub compress_level: i32,
    /// Directory of lock files.
    pub lock_path: PathBuf,
    /// Name of this run in lock files.
    pub exec_id: String,
    /// Host and process, for messages in the repository.
    pub host: String,
    /// This program's version.
    pub program: String,
    /// Time zone of labels.
    pub zone: jiff::tz::TimeZone,
}

/// What a backup came to.
#[derive(Debug)]
pub struct BackupReport {
    /// Its record.
    pub commit: Commit,
    /// Bytes that were read.
    pub read: u64,
}

/// What must be known of the cluster, from the server or from `pg_control`.
struct Cluster {
    version: Version,
    system_identifier: u64,
    checksums: bool,
    page_size: u32,
    segment_blocks: u32,
    wal_segment_size: WalSegmentSize,
    timeline: TimelineId,
    databases: Vec<Database>,
    tablespaces: Vec<Tablespace>,
}

/// Backs up a cluster into one repository.
///
/// Blocks until the backup is committed. Interrupting it through `cancel` leaves no visible backup.
///
/// # Errors
/// `Stopped`, `LockAcquire`, `BackupMismatch`, `DbConnect`, `DbMismatch`, `PostgresRunning`, `ArchiveTimeout`, ...; what files, server
/// and store said.
pub fn run(
    repository: &Arc<Repository>,
    options: &BackupOptions,
    observer: &dyn Observer,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<BackupReport> {
    // 1. Nobody else on this host, and nobody said stop.
    check_stopped(&options.lock_path, Some(&options.stanza))?;
    let name = LockName { stanza: options.stanza.clone(), lock_type: LockType::Backup, repo_key: repository.key() };
    let lock = Lock::acquire(&options.lock_path, &name, &options.exec_id)?;

    // 2. The cluster is the stanza's.
    let mut server = connect(options, cancel)?;
    let (cluster, mut connection) = look(options, &mut server)?;
    let history = current_history(repository, options, &cluster)?;
    if let Some(connection) = &mut connection {
        connection.lock_backup(repository.key() as i32)?;
    }

    // 3. What it is compared with.
    let existing = repository.backups(&options.stanza)?;
    let same = |c: &&Commit| c.history_id == history.id && c.system_identifier == cluster.system_identifier;
    let candidates: Vec<Commit> = existing.iter().filter(same).cloned().collect();
    let (backup_type, prior) = plan::prior(options.backup_type, &candidates);
    if backup_type != options.backup_type {
        tracing::warn!("no prior backup exists, {} backup has been changed to full", options.backup_type.as_str());
    }
    match prior {
        Some(prior) => tracing::info!("last backup label = {}, version = {}", prior.label, prior.program),
        None => tracing::debug!("no prior backup is needed"),
    }

    // 4. A session, and the start of the backup.
    let mut session = WriterSession::begin(repository, &options.stanza, "backup", &options.host, clock)?;
    let result = (|| {
        let start = match &mut connection {
            Some(connection) => {
                let pace = if options.start_fast { CheckpointPace::Fast } else { CheckpointPace::Spread };
                tracing::info!(
                    "execute non-exclusive backup start: backup begins after the {} checkpoint completes",
                    if options.start_fast { "requested immediate" } else { "next regular" }
                );
                let start =
                    connection.backup_start(&format!("pgkeep backup started at {}", clock.now().as_secs()), pace)?;
                tracing::info!(
                    "backup start archive = {}, lsn = {}",
                    wal_name(&cluster, start.timeline, start.lsn),
                    start.lsn
                );
                Some(start)
            }
            None => None,
        };
        if let Some(start) = &start {
            wait_for_prior(repository, options, &cluster, &history, start, cancel, clock)?;
        }

        // 5. Copy.
        let source = Arc::new(ChunkSource::new(
            Arc::clone(repository),
            Arc::clone(session.index()) as Arc<dyn ChunkIndex>,
            &options.stanza,
        ));
        let parent = candidates.last().filter(|_| prior.is_none()).or(prior);
        let parent_manifest = parent.map(|c| Manifest::open(&source, c)).transpose()?.map(Arc::new);
        let mut plan = make_plan(options, &cluster, start.as_ref())?;
        let now = clock.now();
        let survey = plan::survey(&plan, parent_manifest.as_ref(), now.as_secs() as i64, cancel)?;
        plan.trusted_before =
            prior.and_then(|prior| trusted_before(options, &survey, prior, &cluster, start.is_some()));
        let mut builder = ManifestBuilder::new(&session, cluster.page_size, parent_manifest.clone())?;
        let shared = shared(repository, &session, options, cluster.page_size)?;
        observer.begin("backup", survey.bytes);
        let (jobs, parent) = (options.process_max.max(1), parent_manifest);
        let progress = LockProgress { observer, lock: &lock, total: survey.bytes, done: Default::default() };
        let copied = Copy { plan: &plan, shared: &shared, parent, jobs, observer: &progress, cancel }
            .run(&mut session, &mut builder);
        observer.end();
        let copied = copied?;

        // 6. pg_control last, then the server's label files.
        let control = datadir::read_control(&options.pgdata)?;
        let stop = match &mut connection {
            Some(connection) => {
                tracing::info!("execute non-exclusive backup stop and wait for all WAL segments to archive");
                let stop = connection.backup_stop()?;
                tracing::info!("backup stop archive = {}, lsn = {}", wal_name_before(&cluster, stop.lsn), stop.lsn);
                Some(stop)
            }
            None => None,
        };
        let late = late_entries(options, &control.bytes, stop.as_ref(), clock.now())?;
        let late_bytes: u64 = late.iter().map(|e| e.size).sum();

        // 7. The WAL that makes it consistent is archived.
        let wal = match (&start, &stop) {
            (Some(start), Some(stop)) => {
                Some(wait_for_wal(repository, options, &cluster, &history, start, stop, cancel, clock)?)
            }
            _ => None,
        };
        cancel.check()?;

        // 8. Manifest and commit.
        let summary = builder.finish(&mut session, late)?;
        let full = prior.map(|p| label::full_of(&p.label));
        let start_time = start.as_ref().map_or(now, |s| s.time).as_secs() as i64;
        let stop_time = stop.as_ref().map_or_else(|| clock.now(), |s| s.time).as_secs() as i64;
        let label = label::make(backup_type, full, start_time, &options.zone, &existing)?;
        tracing::info!("new backup label = {label}");
        Ok((start, stop, copied, late_bytes, wal, summary, label, start_time, stop_time, now, source))
    })();
    let (start, stop, copied, late_bytes, wal, summary, label, start_time, stop_time, now, source) = match result {
        Ok(parts) => parts,
        Err(e) => {
            // The session is over in any case; saying so spares the garbage collector the wait.
            if let Err(fence) = session.abandon("the backup failed", clock) {
                tracing::debug!("cannot fence the failed session: {fence}");
            }
            return Err(e);
        }
    };
    let Copied { size, read, errors } = copied;
    let (tablespaces, links) = links(&summary, &cluster);
    let commit = Commit {
        session: session.id(),
        generation: session.generation(),
        label,
        backup_type,
        prior: prior.map(|p| p.label.clone()),
        reference: plan::reference(prior),
        history_id: history.id,
        version: history.version,
        system_identifier: cluster.system_identifier,
        timeline: start.as_ref().map_or(cluster.timeline, |s| s.timeline).0,
        start: start_time,
        stop: stop_time,
        lsn: start.as_ref().zip(stop.as_ref()).map(|(a, b)| (a.lsn.0, b.lsn.0)),
        wal,
        wal_segment_size: cluster.wal_segment_size.bytes(),
        size: size + late_bytes,
        delta: read + late_bytes,
        repository_size: 0,
        repository_delta: 0,
        manifest: summary.manifest.clone(),
        annotations: options.annotations.clone(),
        page_checksums: page_check(options, &cluster).is_some(),
        error_list: errors,
        databases: cluster.databases.iter().map(|d| DatabaseRef { oid: d.oid, name: d.name.clone() }).collect(),
        tablespaces,
        links,
        program: options.program.clone(),
        online: start.is_some(),
        copy_start_nanos: now.as_nanos() as u64,
    };
    let commit = session.commit(
        &mut |each| summary.chunks(&source, each),
        |used, stored| Commit { repository_size: used, repository_delta: stored, ..commit },
        clock,
    )?;
    Ok(BackupReport { commit, read: read + late_bytes })
}

fn connect(options: &BackupOptions, cancel: &Cancel) -> Result<Option<Connection>> {
    match &options.server {
        Some(server) => Ok(Some(Connection::open(server, "backup", cancel)?)),
        None => Ok(None),
    }
}

fn look(options: &BackupOptions, server: &mut Option<Connection>) -> Result<(Cluster, Option<Connection>)> {
    let control = datadir::read_control(&options.pgdata)?.fields;
    let Some(mut connection) = server.take() else {
        if datadir::is_running(&options.pgdata)? && !options.force {
            return Err(Error::refused(
                Kind::PostgresRunning,
                format!("a server runs on '{}': stop it, or back it up online", options.pgdata.display()),
            ));
        }
        return Ok((cluster(&control, Vec::new(), Vec::new()), None));
    };
    let identity = connection.identity()?;
    check_identity(options, &control, &identity)?;
    let (databases, tablespaces) = (connection.databases()?, connection.tablespaces()?);
    let mut cluster = cluster(&control, databases, tablespaces);
    cluster.timeline = identity.timeline;
    Ok((cluster, Some(connection)))
}

fn check_identity(options: &BackupOptions, control: &ControlFile, identity: &Identity) -> Result<()> {
    let mismatch = |text: String| Err(Error::refused(Kind::DbMismatch, text));
    let same_directory = match (std::fs::canonicalize(&identity.data_directory), std::fs::canonicalize(&options.pgdata))
    {
        (Ok(a), Ok(b)) => a == b,
        _ => identity.data_directory == options.pgdata,
    };
    if !same_directory {
        let (theirs, ours) = (identity.data_directory.display(), options.pgdata.display());
        return mismatch(format!("the server's data directory is '{theirs}' but pg1-path is '{ours}'"));
    }
    if control.system_identifier != identity.system_id {
        return mismatch(format!(
            "the server has system identifier {} but '{}' has {}",
            identity.system_id,
            options.pgdata.display(),
            control.system_identifier
        ));
    }
    if identity.in_recovery {
        return mismatch("the server is a standby: back up its primary".to_owned());
    }
    if options.archive_check && identity.archive_mode == ArchiveMode::Off {
        return Err(Error::refused(
            Kind::ArchiveDisabled,
            "archive_mode is off: a backup of a running server needs the WAL written meanwhile",
        ));
    }
    Ok(())
}

fn cluster(control: &ControlFile, databases: Vec<Database>, tablespaces: Vec<Tablespace>) -> Cluster {
    Cluster {
        version: control.version,
        system_identifier: control.system_identifier,
        checksums: control.has_page_checksums(),
        page_size: control.block_size,
        segment_blocks: control.segment_blocks,
        wal_segment_size: control.wal_segment_size,
        timeline: control.timeline,
        databases,
        tablespaces,
    }
}

fn current_history(repository: &Repository, options: &BackupOptions, cluster: &Cluster) -> Result<StanzaHistory> {
    let place = repository.store().describe();
    let history = repository.stanza_history(&options.stanza)?.pop().ok_or_else(|| {
        let text = format!("stanza '{}' does not exist in {place}", options.stanza);
        Error::refused(Kind::FileMissing, text)
    })?;
    if history.version != cluster.version.major() || history.system_identifier != cluster.system_identifier {
        return Err(Error::refused(
            Kind::BackupMismatch,
            format!(
                "PostgreSQL version {}, system identifier {} do not match stanza '{}' in {place}: version {}, system identifier {}",
                cluster.version, cluster.system_identifier, options.stanza, history.version, history.system_identifier
            ),
        ));
    }
    Ok(history)
}

fn page_check(options: &BackupOptions, cluster: &Cluster) -> Option<PageCheck> {
    match (options.checksum_page.unwrap_or(cluster.checksums) && cluster.checksums, options.page_header_check) {
        (true, true) => Some(PageCheck::ChecksumAndHeader),
        (true, false) => Some(PageCheck::ChecksumOnly),
        _ => None,
    }
}

fn make_plan(options: &BackupOptions, cluster: &Cluster, start: Option<&BackupStart>) -> Result<Plan> {
    let exclude = Exclusions::parse(&options.exclude)?;
    Ok(Plan {
        pgdata: options.pgdata.clone(),
        walk: WalkOptions { version: cluster.version, online: start.is_some(), exclude },
        page_size: cluster.page_size,
        segment_blocks: cluster.segment_blocks,
        page_check: page_check(options, cluster),
        backup_start: start.map(|s| s.lsn),
        trusted_before: None,
    })
}

fn trusted_before(
    options: &BackupOptions,
    survey: &Survey,
    prior: &Commit,
    cluster: &Cluster,
    online: bool,
) -> Option<i128> {
    let reason = if options.delta {
        tracing::debug!("all files are compared by content, as option delta asks");
        return None;
    } else if prior.timeline != cluster.timeline.0 {
        Some(format!("the timeline was {} at the prior backup and is {} now", prior.timeline, cluster.timeline.0))
    } else if prior.online != online {
        Some("one of this backup and its prior was online and the other was not".to_owned())
    } else {
        survey.distrust.clone()
    };
    match reason {
        Some(reason) => {
            tracing::warn!("{reason}: enabling delta checksum for this backup");
            None
        }
        None => Some(i128::from(prior.copy_start_nanos)),
    }
}

fn shared(
    repository: &Arc<Repository>,
    session: &WriterSession,
    options: &BackupOptions,
    page_size: u32,
) -> Result<Shared> {
    let cut = repository.config().cut;
    let secret = repository.keyring().cut_key("gear")?;
    Ok(Shared {
        keyring: Arc::clone(repository.keyring()),
        sealer: Arc::clone(session.sealer()),
        index: Arc::clone(session.index()),
        gear: Gear::new(secret.expose(), cut.other_bytes_min, cut.other_bytes_avg, cut.other_bytes_max),
        cut: cut.mode,
        region: cut.region_bytes as usize,
        page_size,
        level: options.compress_level,
    })
}

fn wal_name(cluster: &Cluster, timeline: TimelineId, lsn: pgkeep_formats::pg::lsn::Lsn) -> String {
    WalSegment::at(timeline, lsn, cluster.wal_segment_size).name(cluster.wal_segment_size)
}

fn wal_name_before(cluster: &Cluster, lsn: pgkeep_formats::pg::lsn::Lsn) -> String {
    let number = lsn.segment_number_before(cluster.wal_segment_size);
    WalSegment { timeline: cluster.timeline, number }.name(cluster.wal_segment_size)
}

/// The start of a backup ends a segment. If that one is not archived in time, hours of copying would be in vain.
fn wait_for_prior(
    repository: &Repository,
    options: &BackupOptions,
    cluster: &Cluster,
    history: &StanzaHistory,
    start: &BackupStart,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<()> {
    let number = start.lsn.segment_number(cluster.wal_segment_size);
    if !options.archive_check || number < 2 {
        return Ok(());
    }
    let name = WalSegment { timeline: start.timeline, number: number - 1 }.name(cluster.wal_segment_size);
    tracing::info!("check archive for prior segment {name}");
    repository.wal_wait(&options.stanza, &history.archive_id(), &[name], options.archive_timeout, clock, cancel)
}

#[expect(clippy::too_many_arguments, reason = "the step's inputs, used once")]
fn wait_for_wal(
    repository: &Repository,
    options: &BackupOptions,
    cluster: &Cluster,
    history: &StanzaHistory,
    start: &BackupStart,
    stop: &BackupStop,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<(String, String)> {
    let size = cluster.wal_segment_size;
    let names: Vec<String> =
        WalSegment::range(start.timeline, start.lsn, stop.lsn, size).map(|s| s.name(size)).collect();
    let bounds = match (names.first(), names.last()) {
        (Some(first), Some(last)) => (first.clone(), last.clone()),
        _ => (wal_name(cluster, start.timeline, start.lsn), wal_name_before(cluster, stop.lsn)),
    };
    if options.archive_check {
        tracing::info!("check archive for segment(s) {}:{}", bounds.0, bounds.1);
        repository.wal_wait(&options.stanza, &history.archive_id(), &names, options.archive_timeout, clock, cancel)?;
    }
    Ok(bounds)
}

/// `pg_control` and the label files, in path order.
fn late_entries(
    options: &BackupOptions,
    control: &[u8],
    stop: Option<&BackupStop>,
    now: Duration,
) -> Result<Vec<BuiltEntry>> {
    let file = |path: &str, bytes: Vec<u8>, user: &str, group: &str| BuiltEntry {
        path: path.to_owned(),
        node: Node::File,
        mode: 0o600,
        user: user.to_owned(),
        group: group.to_owned(),
        modified: (now.as_secs() as i64, 0),
        size: bytes.len() as u64,
        inline: Some(bytes),
        unit: 1,
        extents: Vec::new(),
        bad_pages: Vec::new(),
    };
    let (user, group) = owner(options)?;
    let mut out = vec![file("global/pg_control", control.to_vec(), &user, &group)];
    if let Some(stop) = stop {
        // What the server gives must be a label, or the restored cluster would start from the wrong checkpoint.
        BackupLabelFile::parse(stop.label_file.as_bytes()).map_err(Error::damaged("backup_label from the server"))?;
        out.push(file("backup_label", stop.label_file.clone().into_bytes(), &user, &group));
        if !stop.tablespace_map.is_empty() {
            out.push(file("tablespace_map", stop.tablespace_map.clone().into_bytes(), &user, &group));
        }
    }
    out.sort_by(|a, b| path_cmp(&a.path, &b.path));
    Ok(out)
}

fn owner(options: &BackupOptions) -> Result<(String, String)> {
    use std::os::unix::fs::MetadataExt;
    let facts = std::fs::metadata(&options.pgdata).map_err(crate::FileError::at("stat", &options.pgdata))?;
    let names = datadir::names::Names::load();
    let user = names.user(facts.uid()).map_or_else(|| facts.uid().to_string(), str::to_owned);
    Ok((user, names.group(facts.gid()).map_or_else(|| facts.gid().to_string(), str::to_owned)))
}

/// Splits the links of the new manifest into tablespaces and others.
fn links(summary: &ManifestSummary, cluster: &Cluster) -> (Vec<TablespaceRef>, Vec<LinkRef>) {
    let known = |oid: u32| cluster.tablespaces.iter().find(|t| t.oid == oid).map(|t| t.name.clone());
    let (mut tablespaces, mut links) = (Vec::new(), Vec::new());
    for (name, destination) in summary.links.clone() {
        match name.strip_prefix("pg_tblspc/").and_then(|oid| oid.parse().ok()) {
            Some(oid) => {
                let name = known(oid).unwrap_or_else(|| oid.to_string());
                tablespaces.push(TablespaceRef { oid, name, destination });
            }
            None => links.push(LinkRef { name, destination }),
        }
    }
    (tablespaces, links)
}

/// Passes progress on and keeps the lock file's figures fresh, for `info` on this host.
struct LockProgress<'a> {
    observer: &'a dyn Observer,
    lock: &'a Lock,
    total: u64,
    done: std::sync::atomic::AtomicU64,
}

/// Bytes between two updates of the lock file.
const LOCK_PROGRESS_BYTES: u64 = 256 << 20;

impl Observer for LockProgress<'_> {
    fn add(&self, counter: Counter, n: u64) {
        self.observer.add(counter, n);
        if counter != Counter::Done {
            return;
        }
        let before = self.done.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
        if before / LOCK_PROGRESS_BYTES != (before + n) / LOCK_PROGRESS_BYTES {
            let progress = crate::lock::Progress { done: before + n, total: self.total };
            if let Err(e) = self.lock.progress(progress) {
                tracing::debug!("cannot note progress in the lock file: {e}");
            }
        }
    }
}
