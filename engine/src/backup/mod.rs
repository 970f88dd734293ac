//! Backing up a cluster: online or stopped, full, differential or incremental. Every backup stands alone.
//!
//! - `plan`: the prior backup and what of it to trust   - `newest`: the one to compare pages with   - `parent`: reading both
//! - `label`: names   - `dispatch`: walk and earlier backups become items and tasks
//! - `task`: what a worker does, with `pages` (what earlier backups know)
//! - `gather`: changed pages together   - `old_pages`: what they can be encoded against   - `sequence`: order and packs
//! - `stages`: how busy each of them was
//! - `summaries`, `unread`: what WAL summaries spare reading
//! - `servers`: which one is the primary   - `standby`: reading files from another one
//! - `tablespaces`: that they stay the same   - `wal_copy`: WAL inside the backup
//!
//! Without a primary a standby is backed up alone (`Cluster::alone`), as PostgreSQL allows it: the server starts and stops
//! the backup at its restart points, its label says so, and `pg_control`, copied last, has the position that replay must
//! reach, since the server notes that there before it writes a page. Files have times of their own, so all are read.
//!
//! A crash anywhere leaves no visible backup: the commit record is the last object but one look at the generations. What
//! was uploaded is found in the index by the next run, which therefore resumes, under a session of its own.

mod cluster;
mod dispatch;
mod finish;
mod gather;
mod label;
mod newest;
mod old_pages;
mod pages;
mod parent;
mod plan;
mod sequence;
mod servers;
mod stages;
mod standby;
mod summaries;
mod tablespaces;
mod task;
#[cfg(test)]
mod tests;
mod unread;
mod wal_copy;

use self::cluster::Cluster;
use self::finish::{Wal, late_entries, links};
pub(crate) use self::label::full_of;
use self::old_pages::OldPages;
pub use self::old_pages::{BASE_CACHE_BYTES, DeltaMode, Deltas};
use self::plan::{Plan, Survey};
use self::sequence::{Copied, Copy, UPLOADERS};
pub use self::servers::Place;
use self::stages::Stages;
use self::standby::Files;
pub use self::standby::StandbyUse;
use self::tablespaces::Tablespaces;
use self::task::Shared;
use self::wal_copy::WalCopy;
use crate::chunk::Gear;
use crate::clock::Clock;
use crate::index::ChunkIndex;
use crate::limit::Limits;
use crate::lock::{Lock, LockName, LockProgress, LockType, check_stopped};
use crate::observe::{Cancel, DETAIL, Observer};
use crate::pg::datadir::{self, Exclusions, WalkOptions};
use crate::pg::server::{BackupStart, CheckpointPace, ConnectOptions, Connection};
use crate::repository::manifests::ManifestBuilder;
use crate::repository::{BACKUP, ChunkSource, Repository, WriterSession};
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::page::PageCheck;
use pgkeep_formats::repo::manifest::path_cmp;
use pgkeep_formats::repo::records::{BackupType, Commit, DatabaseRef};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What to back up and how. Plain values, resolved by the caller.
pub struct BackupOptions {
    /// Stanza.
    pub stanza: String,
    /// Number of the first cluster configured, in messages.
    pub key: u16,
    /// Its data directory.
    pub pgdata: PathBuf,
    /// How to reach its server; `None` backs up a stopped cluster.
    pub server: Option<ConnectOptions>,
    /// Further clusters configured. The primary and its standbys are found out among all of them.
    pub others: Vec<Place>,
    /// Whether files are copied from a standby.
    pub standby: StandbyUse,
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
    /// Keep that WAL in the backup, too. Needs `archive_check`.
    pub archive_copy: bool,
    /// How long to wait for each of its segments.
    pub archive_timeout: Duration,
    /// Workers.
    pub process_max: usize,
    /// What it may take of the machine; of this backup alone, as a failed one ends their waits for good.
    pub limits: Arc<Limits>,
    /// zstd level.
    pub compress_level: i32,
    /// Whether and how changed pages are encoded against old ones.
    pub deltas: Deltas,
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
    /// Bytes of files that were read: of files that summaries tell about, the changed parts only.
    pub read: u64,
    /// Number of files.
    pub files: u64,
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
    let (cluster, mut connection, standby) = Cluster::look(options, cancel)?;
    let history = cluster.history(repository, &options.stanza)?;
    let archive_id = history.archive_id();
    let wal_of = Wal { repository, options, cluster: &cluster, archive_id: archive_id.clone(), cancel, clock };
    if let Some(connection) = &mut connection {
        connection.lock_backup(repository.key() as i32)?;
    }

    // 3. What it is compared with.
    let (existing, unreadable) = repository.backups_readable(&options.stanza)?;
    for e in &unreadable {
        tracing::warn!("a backup is passed over, as its record cannot be read: {}", e.chain());
    }
    let same = |c: &&Commit| c.history_id == history.id && c.system_identifier == cluster.system_identifier;
    let candidates: Vec<Commit> = existing.iter().filter(same).cloned().collect();
    let found = newest::find(repository, &cluster, &options.stanza, &existing)?;
    let (backup_type, prior) = plan::prior(options.backup_type, &candidates);
    if backup_type != options.backup_type {
        tracing::warn!("no prior backup exists, {} backup has been changed to full", options.backup_type.as_str());
    }
    match prior {
        Some(prior) => tracing::info!("last backup label = {}, version = {}", prior.label, prior.program),
        None => tracing::debug!("no prior backup is needed"),
    }

    // 4. A session, and the start of the backup.
    let mut session = WriterSession::begin(repository, &options.stanza, BACKUP, &options.host, clock)?;
    let result = (|| {
        let asked = clock.now();
        let mut standby = standby;
        let mut tablespaces = None;
        let start = match &mut connection {
            Some(connection) => {
                tablespaces = Some(Tablespaces::ask(connection, &cluster.pgdata)?);
                let pace = if options.start_fast { CheckpointPace::Fast } else { CheckpointPace::Spread };
                tracing::info!(
                    "execute non-exclusive backup start: backup begins after the {} checkpoint completes",
                    if options.start_fast { "requested immediate" } else { "next regular" }
                );
                let start =
                    connection.backup_start(&format!("pgkeep backup started at {}", clock.now().as_secs()), pace)?;
                if let (Some(tablespaces), Some(_)) = (&tablespaces, cluster.alone) {
                    let checkpoint = connection.last_checkpoint()?;
                    // A restart point came between: that of the label was earlier, nobody knows when.
                    let time = if checkpoint.redo == start.lsn { checkpoint.time } else { i64::MIN };
                    tablespaces.check_older(&cluster.pgdata, time)?;
                }
                let first = cluster.wal_name(start.timeline, start.lsn);
                tracing::info!("backup start archive = {first}, lsn = {}", start.lsn);
                // Before any of it is waited for: an expire elsewhere must not take it.
                session.needs_wal(&archive_id, &first)?;
                Some(start)
            }
            None => {
                session.needs_no_wal()?;
                None
            }
        };
        // A label that cannot be had is better known before hours of copying.
        let now = clock.now();
        let full = prior.map(|p| full_of(&p.label));
        let start_time = start.as_ref().map_or(now, |s| s.time).as_secs() as i64;
        let label = label::make(backup_type, full, start_time, &options.zone, &existing)?;
        if let (Some(found), Some(start), Some(connection)) = (&mut standby, &start, &mut connection) {
            match found.wait(connection, start, options.archive_timeout, cancel) {
                Err(e) if options.standby == StandbyUse::Prefer && e.kind() != Kind::Interrupted => {
                    tracing::warn!("all files are copied from the primary: {}", e.chain());
                    standby = None;
                }
                other => other?,
            }
        }

        // 5. Copy.
        let source = Arc::new(ChunkSource::new(
            Arc::clone(repository),
            Arc::clone(session.index()) as Arc<dyn ChunkIndex>,
            &options.stanza,
        ));
        // What an earlier manifest takes for granted may be what is lost.
        let earlier = parent::open(&mut session, &source, prior, &found, cancel)?;
        if let Some(prior) = prior.filter(|_| !earlier.is_prior) {
            tracing::warn!("what backup {} holds is not known: all files are read", prior.label);
        }
        // Only what is known of the prior can be trusted.
        let trusted = prior.filter(|_| earlier.is_prior);
        let files = standby.as_ref().map(|s| s.files(cluster.page_size, start.as_ref().map(|start| start.lsn)));
        let mut plan = make_plan(options, &cluster, start.as_ref(), files)?;
        let survey = plan::survey(&plan, earlier.prior(), clock, cancel)?;
        plan.trusted_before =
            trusted.and_then(|prior| trusted_before(options, &survey, prior, &cluster, start.is_some()));
        // Manifests and the survey are read while the segment is on its way.
        if let Some(start) = &start {
            wal_of.wait_for_prior(start).map_err(|e| unless_lost(e, &mut connection))?;
        }
        plan.changed = match (&trusted, &start, &mut connection) {
            (Some(prior), Some(start), Some(connection)) if cluster.alone.is_none() => {
                let ask = summaries::Ask { options, cluster: &cluster, prior, start, cancel, clock };
                ask.changed(connection, survey.distrust.as_deref())?
            }
            _ => None,
        };
        let mut builder = ManifestBuilder::new(&session, cluster.page_size, earlier.own.clone())?;
        let shared = shared(repository, &session, options, &plan, !earlier.is_empty())?;
        let jobs = jobs(options);
        let progress = LockProgress::new(observer, Some(&lock));
        progress.begin("backup", survey.bytes);
        let copied = Copy { plan: &plan, shared: &shared, earlier: &earlier, jobs, observer: &progress, cancel }
            .run(&mut session, &mut builder);
        progress.end();
        let copied = copied?;
        let read = shared.read.load(Ordering::Relaxed);
        tracing::debug!(target: DETAIL, "{}", shared.stages.utilisation(&options.limits.totals()));
        if let Some(old) = &shared.old_pages {
            tracing::debug!(target: DETAIL, "{}", old.pages.told());
        }
        if plan.changed.is_some() {
            let spared = plan.spared.load(Ordering::Relaxed);
            tracing::info!("WAL summaries spared reading {spared} of {} bytes", copied.size);
        }

        let written = match (&mut standby, &start) {
            (Some(standby), Some(start)) => Some(standby.written(start)?),
            _ => None,
        };
        if let Some(files) = &plan.standby {
            tracing::info!("{}", files.told());
        }

        // 6. pg_control last, then the server's label files.
        let control = datadir::read_control(&cluster.pgdata)?;
        if let (Some(key), Some(connection), Some(start)) = (cluster.alone, &mut connection, &start) {
            standby::written(connection, key, start)?;
        }
        let stop = match &mut connection {
            Some(connection) => {
                tracing::info!("execute non-exclusive backup stop and wait for all WAL segments to archive");
                let stop = connection.backup_stop()?;
                tracing::info!(
                    "backup stop archive = {}, lsn = {}",
                    cluster.wal_name_before(cluster.timeline, stop.lsn),
                    stop.lsn
                );
                if let Some(before) = &tablespaces {
                    before.check_same(&Tablespaces::ask(connection, &cluster.pgdata)?)?;
                }
                Some(stop)
            }
            None => None,
        };
        if let (Some(standby), Some(written), Some(stop)) = (&standby, &written, &stop) {
            standby.check_end(written, stop.lsn)?;
        }
        let timeline = start.as_ref().map_or(cluster.timeline, |s| s.timeline);
        let mut late = late_entries(&cluster.pgdata, &control.bytes, stop.as_ref(), timeline, clock.now())?;

        // 7. The WAL that makes it consistent is archived.
        let wal = match (&start, &stop) {
            (Some(start), Some(stop)) => {
                let (bounds, names) =
                    wal_of.wait_for_range(start, stop).map_err(|e| unless_lost(e, &mut connection))?;
                if options.archive_copy {
                    let copy = WalCopy {
                        stanza: &options.stanza,
                        archive_id: &archive_id,
                        cluster: &cluster,
                        level: options.compress_level,
                        now: clock.now(),
                        observer,
                        cancel,
                    };
                    late.extend(copy.run(&mut session, &mut builder, &names)?);
                    late.sort_by(|a, b| path_cmp(&a.path, &b.path));
                }
                Some(bounds)
            }
            _ => None,
        };
        let late_bytes: u64 = late.iter().map(|e| e.size).sum();
        cancel.check()?;

        // 8. Manifest and commit.
        let summary = builder.finish(&mut session, late)?;
        if let Some(tablespaces) = &tablespaces {
            tablespaces.check_found(summary.links.iter().map(|(name, _)| name.as_str()))?;
        }
        let stop_time = stop.as_ref().map_or_else(|| clock.now(), |s| s.time).as_secs() as i64;
        tracing::info!("new backup label = {label}");
        // What summaries spared reading is as it was when the backup started, and a standby's files may be. A file changed
        // between that and the copying is then newer than what is kept of it.
        let from_standby = plan.standby.is_some() || cluster.alone.is_some();
        let copy_start = if plan.changed.is_some() || from_standby { asked } else { now };
        let (tablespaces, links) = links(&summary, tablespaces.as_ref().map_or(&[], |t| &t.known));
        let links = (tablespaces, links);
        Ok((
            start, stop, copied, read, late_bytes, wal, summary, label, start_time, stop_time, copy_start, source,
            links,
        ))
    })();
    let (start, stop, copied, read, late_bytes, wal, summary, label, start_time, stop_time, copy_start, source, links) =
        match result {
            Ok(parts) => parts,
            Err(e) => {
                // The session is over in any case; saying so spares the garbage collector the wait.
                if let Err(fence) = session.abandon("the backup failed", clock) {
                    tracing::debug!("cannot fence the failed session: {fence}");
                }
                return Err(e);
            }
        };
    let Copied { size, delta, errors } = copied;
    let (tablespaces, links) = links;
    let commit = Commit {
        session: session.id(),
        generation: session.generation(),
        label,
        backup_type,
        prior: prior.map(|p| p.label.clone()),
        reference: plan::reference(prior, &existing),
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
        delta: delta + late_bytes,
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
        copy_start_nanos: copy_start.as_nanos() as u64,
        keeps_wal: options.archive_copy && start.is_some(),
    };
    let commit = session.commit(
        &mut |each| summary.chunks(&source, each),
        |used, stored| Commit { repository_size: used, repository_delta: stored, ..commit },
        clock,
    )?;
    Ok(BackupReport { commit, read: read + late_bytes, files: summary.root.files })
}

fn page_check(options: &BackupOptions, cluster: &Cluster) -> Option<PageCheck> {
    match (options.checksum_page.unwrap_or(cluster.checksums) && cluster.checksums, options.page_header_check) {
        (true, true) => Some(PageCheck::ChecksumAndHeader),
        (true, false) => Some(PageCheck::ChecksumOnly),
        _ => None,
    }
}

/// WAL that does not arrive may mean that there is no server any more, and then that is what to say.
fn unless_lost(error: Error, connection: &mut Option<Connection>) -> Error {
    match connection.as_mut().map(Connection::ping) {
        Some(Err(lost)) if error.kind() == Kind::ArchiveTimeout => lost.into(),
        _ => error,
    }
}

fn make_plan(
    options: &BackupOptions,
    cluster: &Cluster,
    start: Option<&BackupStart>,
    standby: Option<Files>,
) -> Result<Plan> {
    let exclude = Exclusions::parse(&options.exclude);
    Ok(Plan {
        pgdata: cluster.pgdata.clone(),
        standby,
        walk: WalkOptions { version: cluster.version, online: start.is_some(), exclude, report: true },
        page_size: cluster.page_size,
        segment_blocks: cluster.segment_blocks,
        page_check: page_check(options, cluster),
        backup_start: start.map(|s| s.lsn),
        trusted_before: None,
        changed: None,
        spared: Arc::default(),
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
    } else if cluster.alone.is_some() {
        tracing::debug!("all files are compared by content: their times are this standby's own");
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
    plan: &Plan,
    has_parent: bool,
) -> Result<Shared> {
    let cut = repository.config().cut;
    let table = repository.keyring().gear_table()?;
    let old_pages =
        OldPages::open(repository, session.index(), &options.stanza, options.deltas, plan.page_size, &options.limits)?;
    Ok(Shared {
        keyring: Arc::clone(repository.keyring()),
        sealer: Arc::clone(session.sealer()),
        index: Arc::clone(session.index()),
        repository: Arc::clone(repository),
        gear: Gear::new(table, cut.other_bytes_min, cut.other_bytes_avg, cut.other_bytes_max),
        cut: cut.mode,
        region: cut.region_bytes as usize,
        page_size: plan.page_size,
        level: options.compress_level,
        hasher: repository.keyring().page_hasher()?,
        has_parent,
        old_pages,
        limits: Arc::clone(&options.limits),
        stages: Stages::new(jobs(options), UPLOADERS),
        spared: Arc::clone(&plan.spared),
        read: AtomicU64::new(0),
    })
}

fn jobs(options: &BackupOptions) -> usize {
    options.limits.workers(options.process_max.max(1))
}
