//! The steps of a restore, in their order.

use super::databases::{self, LeftOut};
use super::delta::Incomparable;
use super::owners::Owners;
use super::place::{Place, at};
use super::plan::{self, CONTROL, LinkKind, Maps, Plan, PlanOptions, PlannedDirectory};
use super::recovery::{RecoveryOptions, RecoveryType};
use super::select::{Candidates, Selection, check_timeline, read_time, select};
use super::window::{Job, Totals, restore_files};
use super::{Env, RestoreOptions, RestoreReport, finish};
use crate::lock::{Lock, LockName, LockProgress, LockType};
use crate::observe::Counter;
use crate::repository::manifests::Manifest;
use crate::repository::{ChunkSource, Repository};
use crate::store::Depth;
use crate::{Error, FileError, Kind, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use pgkeep_formats::pg::version::Version;
use pgkeep_formats::pg::wal::{WalSegment, WalSegmentSize};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::Commit;
use rustix::fs::Mode as Bits;
use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a restore holds its backup at the most: one that was killed holds it no longer.
const PINNED_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Restores a backup from the first of `repositories` that has the right one.
///
/// Blocks until the cluster is durable and can be started, or nothing of it can. After a failure or a kill at any moment
/// the same call, on the same target, goes on.
///
/// # Errors
/// `LockAcquire` if another restore of the stanza runs; `BackupSetInvalid` if no backup fits, `DbMismatch` if it cannot reach the target timeline; those of the guards
/// (`PostgresRunning`, `PathNotEmpty`, `PathOpen`) and maps (`TablespaceMap`, `LinkMap`, `LinkDestination`), and for databases `DbMissing` and `DbInvalid`, before
/// anything is changed; `Checksum`, `FileMissing`, `Crypto` naming file and chunk for a damaged repository; `FileWrite`
/// naming the file; [`Error::Interrupted`].
pub fn run(repositories: &[Arc<Repository>], options: &RestoreOptions, env: &Env<'_>) -> Result<RestoreReport> {
    let started = env.clock.now();
    options.recovery.validate()?;

    // 1. May the target be used, and how?
    let locks = lock(repositories, options)?;
    let uid = rustix::process::geteuid().as_raw();
    let target = plan::inspect(&options.target, options.delta, options.force, uid)?;

    // 2. Which backup?
    let Opened { choice: Choice { repository, backup, recovery }, source, manifest } =
        open_first(repositories, options)?;
    let label = &backup.label;
    tracing::info!("repo{}: restore backup set {label}", repository.key());

    // It may expire meanwhile.
    let _pin = match options.dry_run {
        true => None,
        false => repository.try_pin(&options.stanza, backup.session, "restore", PINNED_FOR, env.clock)?,
    };

    // 3. What will be done?
    let version = Version::from_major(backup.version).map_err(Error::damaged(format!("backup {label}")))?;
    let left_out = LeftOut::new(&options.databases, &backup, version.facts(), &manifest)?;
    let plan_options = PlanOptions {
        target: &options.target,
        mode: target.mode,
        tablespace_directory: version.facts().tablespace_directory,
        preserve: recovery.recovery_type == RecoveryType::Preserve,
        left_out: &left_out,
    };
    let maps = Maps::new(&backup.tablespaces, &options.maps)?;
    let entries = manifest.files().map(|r| r.map(|r| r.entry));
    let plan = plan::build(entries, maps, &plan_options)?;
    let mut report = RestoreReport {
        label: label.clone(),
        repository: repository.key(),
        bytes: plan.bytes,
        removed: plan.removals.len() as u64,
        plan,
        written: 0,
        fetched: 0,
        files_kept: 0,
        files_written: 0,
        elapsed_ms: 0,
    };
    let recovery = match left_out.told(&backup) {
        Some(databases) => {
            tracing::info!("databases left out, to be dropped later: {databases}");
            databases::with_invalid_pages(recovery, &backup)
        }
        None => recovery,
    };
    if options.dry_run {
        return Ok(report);
    }
    let plan = &report.plan;
    env.cancel.check()?;

    // 4. From here on nothing starts.
    let owners = Owners::new(&manifest.root().names, uid, target.owner);
    make_all(&plan.target)?;
    let mut place = Place::open(&plan.target)?;
    open_links(&mut place, plan)?;
    finish::disarm(&place, plan, label)?;
    let control = manifest.find(CONTROL)?;
    let control = control.map(|r| finish::read_small(&manifest, &r).map(|bytes| (r.entry, bytes))).transpose()?;
    let control = match control {
        // WAL in pg_wal would let a server that has lost backup_label recover from a wrong place.
        Some((entry, bytes)) if backup.online => {
            Some((entry, ControlFile::without_checkpoint(&bytes, version).map_err(Error::damaged(CONTROL))?))
        }
        other => other,
    };

    // 5. The tree without content.
    for removal in &plan.removals {
        tracing::debug!(target: crate::observe::DETAIL, "remove '{}'", removal.real.display());
        place.remove(&removal.directory, &removal.name)?;
    }
    place.forget();
    make_tree(&place, plan, &owners)?;
    let whole = finish::syncs_whole(&place)?;

    // 6. Content.
    let of_this = repositories.iter().zip(&locks).find(|(r, _)| r.key() == repository.key());
    let progress = LockProgress::new(env.observer, of_this.map(|(_, lock)| lock));
    let env = &Env { observer: &progress, ..*env };
    let (totals, incomparable) = (Totals::default(), Incomparable::default());
    let threads = options.process_max.max(1);
    let job = Job {
        plan,
        place: &place,
        manifest: &manifest,
        source: &source,
        owners: &owners,
        left_out: &left_out,
        threads,
        sync_each: !whole,
        env,
        totals: &totals,
        incomparable: &incomparable,
    };
    env.observer.begin("restore", plan.bytes);
    let restored = restore_files(&job);
    env.observer.add(Counter::Done, control.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64));
    env.observer.end();
    restored?;

    // 7. What the server shall do with it; then everything durable, and pg_control.
    let now = Timestamp::from_second(env.clock.now().as_secs().try_into().unwrap_or(0)).unwrap_or_default();
    let now = now.to_zoned(options.time_zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
    finish::recovery_files(&place, plan, &recovery, &options.restore_command, &now)?;
    settle_directories(&place, plan, &owners, Modes::Final)?;
    finish::sync(&place, plan, whole)?;
    if control.is_none() {
        tracing::warn!("backup set {label} has no '{CONTROL}': no server can start on it");
    }
    finish::arm(&place, &owners, control)?;

    report.written = totals.written.load(Ordering::Relaxed);
    report.fetched = totals.fetched.load(Ordering::Relaxed) + source.base_bytes();
    report.files_kept = totals.files_kept.load(Ordering::Relaxed);
    report.files_written = totals.files_written.load(Ordering::Relaxed);
    report.elapsed_ms = u64::try_from(env.clock.now().saturating_sub(started).as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

/// What a restore takes.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The repository.
    pub repository: Arc<Repository>,
    /// The backup.
    pub backup: Commit,
    /// How it is recovered.
    pub recovery: RecoveryOptions,
}

/// The backup of this label, or the newest without one, and the first repository that has it; for those who only look.
///
/// # Errors
/// `BackupSetInvalid` if there is none; what a repository said.
pub fn find_backup(
    repositories: &[Arc<Repository>],
    stanza: &str,
    set: Option<&str>,
) -> Result<(Arc<Repository>, Commit)> {
    let recovery = RecoveryOptions::of(RecoveryType::Default);
    choose(repositories, stanza, &Selection { set, recovery: &recovery, force: false, time_zone: &TimeZone::UTC })
}

/// Chooses as [`run`] does, for those who do something else with the backup. Of the options `stanza`, `set`, `force`,
/// `recovery` and `time_zone` count.
///
/// # Errors
/// `BackupSetInvalid` if no backup fits, `DbMismatch` if it cannot reach the target timeline; those of
/// [`RecoveryOptions::validate`]; what a repository said.
pub fn choose_backup(repositories: &[Arc<Repository>], options: &RestoreOptions) -> Result<Choice> {
    options.recovery.validate()?;
    let by = Selection {
        set: options.set.as_deref(),
        recovery: &options.recovery,
        force: options.force,
        time_zone: &options.time_zone,
    };
    let (repository, backup) = choose(repositories, &options.stanza, &by)?;
    let recovery = with_instant(effective_recovery(&options.recovery, &backup), &options.time_zone);
    check_history(&repository, &options.stanza, &backup, &recovery)?;
    match hole_behind(&repository, &options.stanza, &backup, &recovery) {
        Ok(None) => {}
        Ok(Some(Hole { missing, is_next: true })) => tracing::warn!(
            "WAL segment {missing}, the first behind backup {}, is not in the archive, which goes on after it: recovery ends \
             with the backup, whatever the target; retention makes such holes behind backups that it keeps for themselves",
            backup.label
        ),
        Ok(Some(Hole { missing, is_next: false })) => tracing::warn!(
            "WAL segment {missing} is not in the archive, which goes on after it: recovery ends there at the latest, whatever \
             the target"
        ),
        Err(e) => tracing::warn!("it cannot be told how far WAL behind backup {} goes: {}", backup.label, e.chain()),
    }
    Ok(Choice { repository, backup, recovery })
}

/// A segment behind a backup that is missing.
struct Hole {
    missing: String,
    /// It is the first one.
    is_next: bool,
}

/// The first segment behind a backup that is missing although later ones of its timeline are there, if recovery wants it.
fn hole_behind(
    repository: &Repository,
    stanza: &str,
    backup: &Commit,
    recovery: &RecoveryOptions,
) -> Result<Option<Hole>> {
    let goes_on = recovery.recovery_type.reads_archive()
        && !matches!(recovery.recovery_type, RecoveryType::Immediate | RecoveryType::Standby);
    let (Some((_, last)), Some(size)) = (&backup.wal, WalSegmentSize::new(backup.wal_segment_size)) else {
        return Ok(None);
    };
    let Ok(last) = WalSegment::parse(last, size) else { return Ok(None) };
    if !goes_on {
        return Ok(None);
    }
    let (archive_id, next) = (backup.archive_id(), last.next());
    let newest = repository.wal_newest(stanza, &archive_id)?;
    let mut own = newest.iter().filter_map(|name| name.segment(size).ok()).filter(|s| s.timeline == last.timeline);
    let Some(end) = own.next().filter(|end| end.number > next.number) else { return Ok(None) };
    // Where a later timeline has begun, recovery may leave this one before it comes to a hole.
    let is_left = newest.iter().any(|name| name.timeline > last.timeline);
    let end = if is_left { next } else { end };
    let gap = repository.wal_gaps(stanza, &archive_id, next, end, size).next().transpose()?;
    Ok(gap.map(|name| Hole { is_next: name == next.segment_name(size), missing: name.to_string() }))
}

/// A chosen backup whose manifest can be read.
struct Opened {
    choice: Choice,
    source: Arc<ChunkSource>,
    manifest: Arc<Manifest>,
}

/// Chooses and opens. A repository whose index or manifest cannot be read is passed over while there is another.
fn open_first(repositories: &[Arc<Repository>], options: &RestoreOptions) -> Result<Opened> {
    let mut left = repositories.to_vec();
    let mut failed = None;
    loop {
        let choice = match choose_backup(&left, options) {
            Ok(choice) => choice,
            // None of the others has it: what keeps it from being read where it is says more.
            Err(e) => return Err(failed.unwrap_or(e)),
        };
        let open = || -> Result<_> {
            let index = choice.repository.load_index_of_what_is_there()?;
            let source = Arc::new(ChunkSource::new(Arc::clone(&choice.repository), index, &options.stanza));
            let manifest = Arc::new(Manifest::open(&source, &choice.backup)?);
            Ok((source, manifest))
        };
        let e = match open() {
            Ok((source, manifest)) => return Ok(Opened { choice, source, manifest }),
            Err(e) => e,
        };
        let key = choice.repository.key();
        left.retain(|r| r.key() != key);
        if left.is_empty() || e.kind() == Kind::Interrupted {
            return Err(failed.unwrap_or(e));
        }
        let label = &choice.backup.label;
        tracing::warn!("repo{key}: backup set {label} cannot be read, trying the next repository: {}", e.chain());
        failed.get_or_insert(e);
    }
}

/// What one repository has to choose from. Records that cannot be read are told and left out.
fn candidates(repository: &Repository, stanza: &str, unreadable: &mut Vec<String>) -> Result<Candidates> {
    let (backups, problems) = repository.backups_readable(stanza)?;
    let history = repository.stanza_history(stanza).unwrap_or_else(|e| {
        tracing::warn!("repo{}: the history of stanza '{stanza}' cannot be read: {}", repository.key(), e.chain());
        Vec::new()
    });
    for e in problems {
        let text = e.chain();
        tracing::warn!("repo{}: a backup is passed over, as its record cannot be read: {text}", repository.key());
        unreadable.push(text);
    }
    // Each backup tells which entry it belongs to; that is what there is to go by if the history is lost.
    let newest = history.iter().map(|h| h.id).max();
    let history_id = newest.or(backups.iter().map(|b| b.history_id).max()).unwrap_or(0);
    Ok(Candidates { backups, history_id })
}

fn choose(repositories: &[Arc<Repository>], stanza: &str, by: &Selection<'_>) -> Result<(Arc<Repository>, Commit)> {
    let (mut from, mut unreadable, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (number, repository) in repositories.iter().enumerate() {
        match candidates(repository, stanza, &mut unreadable) {
            Ok(candidates) => from.push(candidates),
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => {
                failed.push((number, e));
                from.push(Candidates { backups: Vec::new(), history_id: 0 });
            }
        }
    }
    if failed.len() == repositories.len()
        && let Some((_, e)) = failed.pop()
    {
        return Err(e);
    }
    for (number, e) in &failed {
        let key = repositories.get(*number).map_or(0, |r| r.key());
        let text = e.chain();
        tracing::warn!("repo{key} is passed over, as its backups cannot be read: {text}");
        unreadable.push(text);
    }
    let mut candidates = from;
    let (number, at) = select(&candidates, by).map_err(|e| match unreadable.first() {
        Some(first) if e.kind() == Kind::BackupSetInvalid => {
            let text = format!("{e}; {} records could not be read, such as: {first}", unreadable.len());
            Error::refused(Kind::BackupSetInvalid, text)
        }
        _ => e,
    })?;
    for (before, repository) in repositories.iter().enumerate().take(number) {
        if !failed.iter().any(|(n, _)| *n == before) {
            tracing::warn!("repo{} has no backup that fits what is asked: taking one of another", repository.key());
        }
    }
    let backup = candidates.get_mut(number).map(|c| c.backups.swap_remove(at));
    match (repositories.get(number), backup) {
        (Some(repository), Some(backup)) => Ok((Arc::clone(repository), backup)),
        _ => Err(Error::refused(Kind::Assert, "a backup was chosen that is not there")),
    }
}

/// A time without zone is meant, and was taken for the choice, as this host's; the server would take it as its own. So it
/// is told the offset.
fn with_instant(recovery: RecoveryOptions, zone: &TimeZone) -> RecoveryOptions {
    let Some(text) = recovery.target.as_deref().filter(|_| recovery.recovery_type == RecoveryType::Time) else {
        return recovery;
    };
    match read_time(text, zone) {
        Ok(time) => {
            tracing::info!("recovery target time is {}, which is {}", time.text, time.instant);
            RecoveryOptions { target: Some(time.text), ..recovery }
        }
        Err(_) => {
            let text = text.escape_debug();
            tracing::warn!("the target time '{text}' is left to the server, which reads it in its own time zone");
            recovery
        }
    }
}

/// A backup of a stopped server is consistent as it is: nothing is recovered unless asked for.
fn effective_recovery(asked: &RecoveryOptions, backup: &Commit) -> RecoveryOptions {
    if backup.online || asked.recovery_type != RecoveryType::Default || !asked.settings.is_empty() {
        return asked.clone();
    }
    let archive_mode_off = asked.archive_mode_off;
    RecoveryOptions { archive_mode_off, ..RecoveryOptions::of(RecoveryType::None) }
}

/// Makes a directory and what leads to it. Others must get through what root makes on the way, whatever root's umask is.
fn make_all(path: &Path) -> Result<()> {
    let missing: Vec<&Path> = path.ancestors().skip(1).filter(|p| std::fs::symlink_metadata(p).is_err()).collect();
    std::fs::create_dir_all(path).map_err(FileError::at("create", path))?;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for made in missing {
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(made, mode).map_err(FileError::at("change mode of", made))?;
    }
    Ok(())
}

/// Makes what links lead to and opens it, so that the paths below the links can be reached, or replaced, there.
fn open_links(place: &mut Place, plan: &Plan) -> Result<()> {
    for link in &plan.links {
        let directory = match link.kind {
            LinkKind::File => link.destination.parent().unwrap_or(Path::new("/")),
            LinkKind::Directory | LinkKind::Tablespace => &link.destination,
        };
        make_all(directory)?;
        match link.kind {
            LinkKind::File => place.add_file(&link.path, &link.destination)?,
            LinkKind::Directory | LinkKind::Tablespace => place.add_root(&link.path, &link.destination)?,
        }
    }
    Ok(())
}

/// Directories and links, in path order, so that each finds its parent.
fn make_tree(place: &Place, plan: &Plan, owners: &Owners) -> Result<()> {
    let mut links = plan.links.iter().peekable();
    let linked: HashSet<&str> = plan.links.iter().map(|l| l.path.as_str()).collect();
    for directory in &plan.directories {
        let before = |path: &str| pgkeep_formats::repo::manifest::path_cmp(path, &directory.path).is_le();
        while let Some(link) = links.next_if(|l| before(&l.path)) {
            if !link.present {
                place.make_link(&link.path, &link.text)?;
            }
        }
        if !directory.path.is_empty() && !linked.contains(directory.path.as_str()) {
            place.make_directory(&directory.path)?;
        }
    }
    for link in links.filter(|l| !l.present) {
        place.make_link(&link.path, &link.text)?;
    }
    settle_directories(place, plan, owners, Modes::Writable)
}

/// Which modes directories get.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Modes {
    /// Those of the backup, and open to their owner as long as files are made in them.
    Writable,
    /// Those of the backup.
    Final,
}

fn settle_directories(place: &Place, plan: &Plan, owners: &Owners, modes: Modes) -> Result<()> {
    let settle = |d: &PlannedDirectory| -> Result<()> {
        let mode = if modes == Modes::Writable { d.mode | 0o700 } else { d.mode };
        // The second time only what the first could not do is left.
        if modes == Modes::Final && d.mode & 0o700 == 0o700 {
            return Ok(());
        }
        let (fd, real) = (place.directory(&d.path)?, place.real(&d.path));
        let stat = rustix::fs::fstat(&*fd).map_err(at("stat", &real))?;
        let mut now = stat.st_mode & 0o7777;
        if let Some((uid, gid)) = owners.of(d.user, d.group)
            && (stat.st_uid, stat.st_gid) != (uid.as_raw(), gid.as_raw())
        {
            rustix::fs::fchown(&*fd, Some(uid), Some(gid)).map_err(at("change owner of", &real))?;
            now = u32::MAX;
        }
        if now != mode {
            rustix::fs::fchmod(&*fd, Bits::from_raw_mode(mode)).map_err(at("change mode of", &real))?;
        }
        Ok(())
    };
    plan.directories.iter().try_for_each(settle)
}

/// Checks the backup against the histories of timelines in its archive.
fn check_history(repository: &Repository, stanza: &str, backup: &Commit, recovery: &RecoveryOptions) -> Result<()> {
    let archive_id = backup.archive_id();
    let prefix = layout::wal_archive(stanza, &archive_id);
    let mut newest = None;
    repository.store().list(&prefix, Depth::Children, &mut |l| {
        newest = newest.max(l.key.strip_prefix(&prefix).and_then(TimelineId::parse_history_file_name));
    })?;
    check_timeline(backup, recovery, newest, &mut |timeline| {
        let name = timeline.history_file_name();
        let Some(bytes) = repository.wal_get(stanza, &archive_id, &name)? else { return Ok(None) };
        Ok(Some(TimelineHistory::parse(timeline, &bytes).map_err(Error::damaged(format!("{prefix}{name}")))?))
    })
}

/// One restore of a stanza at a time, from each repository it may read.
fn lock(repositories: &[Arc<Repository>], options: &RestoreOptions) -> Result<Vec<Lock>> {
    let Some(lock_path) = &options.lock_path else { return Ok(Vec::new()) };
    let take = |repository: &Arc<Repository>| {
        let name =
            LockName { stanza: options.stanza.clone(), lock_type: LockType::Restore, repo_key: repository.key() };
        Lock::acquire(lock_path, &name, &options.exec_id)
    };
    repositories.iter().map(take).collect()
}
