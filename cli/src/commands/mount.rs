//! `mount`: all backups of a stanza as a read-only tree.

use super::Context;
use crate::daemon::{self, Served};
use crate::error::Failure;
use crate::exit::Status;
use crate::mounts;
use crate::repos;
use pgkeep_engine::clock::SystemClock;
use pgkeep_engine::repository::{Backup, ChunkSource, PinGuard, Repository};
use pgkeep_engine::view::{BackupSnapshot, ChunkCache, Snapshot};
use pgkeep_engine::{Error, Kind, Result};
use pgkeep_fuse::MountOptions;
use pgkeep_fuse::tree::{self, Catalog};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the list of backups is taken to be what it was: making it reads a record of each.
const LIST_AGE_MAX: Duration = Duration::from_secs(10);
/// How long a backup stays at the most for a tree whose process was killed.
const PINNED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    daemon::run(context, serve)
}

fn serve(context: &Context<'_>) -> Result<Served, Failure> {
    let settings = context.settings;
    let stanza = settings.stanza_name();
    mounts::refuse_inside(settings, &mounts::resolved(settings.param(0)))?;
    let repo = settings.target_repos().next();
    let repo = repo.ok_or_else(|| Error::refused(Kind::OptionRequired, "no repository is configured"))?;
    let repository = repos::open(settings, repo)?;
    if repository.stanza_history(stanza)?.is_empty() {
        let place = repository.store().describe();
        return Err(Error::refused(Kind::FileMissing, format!("stanza '{stanza}' does not exist in {place}")).into());
    }
    let mountpoint = mounts::prepare(settings.param(0))?;
    let catalog = Backups::new(repository, stanza);
    catalog.backups()?;
    let options = MountOptions { source: format!("pgkeep:{stanza}"), ..MountOptions::default() };
    let _claim = mounts::claim(&mountpoint)?;
    let session = tree::serve(catalog, &mountpoint, &options)?;
    let text = format!(
        "backups of stanza '{stanza}' are mounted on {0}\nto unmount: umount {0}\n",
        session.mountpoint().display()
    );
    Ok(Served { session, clone: None, text, becomes_plain: false })
}

/// The backups of a stanza. The index is loaded with the first backup that is opened, and again for one that is newer.
struct Backups {
    repository: Arc<Repository>,
    stanza: String,
    cache: Arc<ChunkCache>,
    list: Mutex<Option<(Instant, Arc<Vec<Backup>>)>>,
    source: Mutex<Option<Arc<ChunkSource>>>,
    /// What keeps the backups that somebody has looked into.
    pins: Mutex<HashMap<String, Option<PinGuard>>>,
}

impl Backups {
    fn new(repository: Arc<Repository>, stanza: &str) -> Self {
        Self {
            repository,
            stanza: stanza.to_owned(),
            cache: Arc::default(),
            list: Mutex::default(),
            source: Mutex::default(),
            pins: Mutex::default(),
        }
    }

    fn backups(&self) -> Result<Arc<Vec<Backup>>> {
        let known = self.list.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, list)) = known.filter(|(at, _)| at.elapsed() < LIST_AGE_MAX) {
            return Ok(list);
        }
        let (mut list, problems) = self.repository.backups_readable(&self.stanza)?;
        for problem in problems {
            tracing::error!("a backup is not shown: {}", repos::chain(&problem));
        }
        list.sort_by(|a, b| (a.stop, &a.label).cmp(&(b.stop, &b.label)));
        let list = Arc::new(list);
        *self.list.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&list)));
        Ok(list)
    }

    fn load(&self) -> Result<Arc<ChunkSource>> {
        let index = self.repository.load_index_of_what_is_there()?;
        let source = Arc::new(ChunkSource::new(Arc::clone(&self.repository), index, &self.stanza));
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&source));
        Ok(source)
    }
}

impl Catalog for Backups {
    fn labels(&self) -> Result<Vec<String>> {
        Ok(self.backups()?.iter().map(|b| b.label.clone()).collect())
    }

    fn open(&self, label: &str) -> Result<Arc<dyn Snapshot>> {
        let list = self.backups()?;
        let backup = list.iter().find(|b| b.label == label);
        let backup = backup.ok_or_else(|| Error::refused(Kind::Absent, format!("there is no backup {label}")))?;
        // Before anything is read of it; once, and until the tree is unmounted.
        let is_pinned = self.pins.lock().unwrap_or_else(PoisonError::into_inner).contains_key(label);
        if !is_pinned {
            let pin = self.repository.try_pin(&self.stanza, backup.session, "mount", PINNED_FOR, &SystemClock)?;
            self.pins.lock().unwrap_or_else(PoisonError::into_inner).insert(label.to_owned(), pin);
        }
        let open = |source| BackupSnapshot::open(source, backup, Arc::clone(&self.cache));
        let known = self.source.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(source) = known {
            match open(source) {
                // Its chunks may be in a part of the index that was not there yet.
                Err(error) if error.kind() == Kind::FileMissing => {}
                other => return Ok(Arc::new(other?)),
            }
        }
        Ok(Arc::new(open(self.load()?)?))
    }
}
