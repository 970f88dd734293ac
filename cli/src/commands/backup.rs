//! `backup`: into one repository, or into all that are configured (`backup/several.rs`).

mod several;

use super::{Context, expire};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Pg, Repo, Settings};
use crate::size::{cpus, human_size};
use crate::{VERSION, repos, zone};
use pgkeep_engine::backup::{self, BackupOptions, Deltas, Place, StandbyUse};
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::limit::Limits;
use pgkeep_engine::repository::Repository;
use pgkeep_formats::repo::records::{BackupType, Commit};
use std::num::NonZero;
use std::sync::Arc;

/// Number of the cluster that is always configured.
const FIRST: u16 = 1;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let targets: Vec<Repo<'_>> = settings.target_repos().collect();
    let &[repo] = targets.as_slice() else { return several::run(context, &targets) };
    let repository = repos::open(settings, repo)?;
    take(context, repo, &repository)?;
    expire::after_backup(context, repo, &repository)
}

/// Backs up into one repository.
fn take(context: &Context<'_>, repo: Repo<'_>, repository: &Arc<Repository>) -> Result<Commit, Failure> {
    let settings = context.settings;
    let options = BackupOptions {
        stanza: settings.stanza_name().to_owned(),
        key: FIRST,
        pgdata: repos::pgdata(settings)?,
        server: settings.flag(Opt::Online).then(|| repos::server(settings)),
        others: others(settings)?,
        standby: standby(settings),
        backup_type: match settings.text(Opt::Type) {
            Some("full") => BackupType::Full,
            Some("diff") => BackupType::Diff,
            _ => BackupType::Incr,
        },
        delta: settings.flag(Opt::Delta),
        force: settings.flag(Opt::Force),
        start_fast: settings.flag(Opt::StartFast),
        checksum_page: settings.flag_if_set(Opt::ChecksumPage),
        page_header_check: settings.flag(Opt::PageHeaderCheck),
        exclude: settings.list(Opt::Exclude).to_vec(),
        annotations: settings.pairs(Opt::Annotation).iter().cloned().collect(),
        archive_check: settings.flag(Opt::ArchiveCheck),
        archive_copy: settings.flag(Opt::ArchiveCopy),
        archive_timeout: settings.time(Opt::ArchiveTimeout),
        process_max: settings.process_max(),
        limits: Limits::new(
            settings.size(Opt::IoLimit).and_then(NonZero::new),
            settings.cpus(Opt::CpuLimit).and_then(|share| NonZero::new(share.thousandths(cpus()))),
            context.cancel,
        ),
        compress_level: settings.compress_level().unwrap_or(3),
        deltas: Deltas {
            // The option's words are the type's.
            mode: repo.text(Opt::RepoDelta).and_then(|word| word.parse().ok()).unwrap_or_default(),
            cache_bytes: repo.size(Opt::RepoDeltaCacheSize),
        },
        lock_path: settings.lock_path().to_path_buf(),
        exec_id: repos::exec_id(),
        host: repos::host(),
        program: VERSION.to_owned(),
        zone: zone::local(),
    };
    let began = std::time::Instant::now();
    let report = backup::run(repository, &options, context.observer, context.cancel, &SystemClock)?;
    let commit = &report.commit;
    let seconds = began.elapsed().as_secs_f64();
    tracing::info!(
        "{} backup size = {}, read = {}, new in repository = {}, file total = {}, {:.1} s",
        commit.backup_type.as_str(),
        human_size(commit.size),
        human_size(report.read),
        human_size(commit.repository_delta),
        report.files,
        seconds
    );
    Ok(report.commit)
}

/// The clusters beside the first.
fn others(settings: &Settings) -> Result<Vec<Place>, Failure> {
    let place =
        |pg: Pg<'_>| Ok(Place { key: pg.key(), pgdata: repos::pgdata_of(pg)?, server: repos::server_of(settings, pg) });
    settings.pgs().filter(|pg| pg.key() != FIRST).map(place).collect()
}

/// What option `backup-standby` asks for.
pub(super) fn standby(settings: &Settings) -> StandbyUse {
    match settings.text(Opt::BackupStandby) {
        Some("y") => StandbyUse::Required,
        Some("prefer") => StandbyUse::Prefer,
        _ => StandbyUse::No,
    }
}
