//! A clone that has everything is served without its repository: nothing is asked of the backup.

use crate::error::Failure;
use pgkeep_engine::view::{Content, Entry, Snapshot};
use pgkeep_engine::{Error, Kind, Result};
use pgkeep_fuse::clone::{self, CloneInfo, HydrationState};
use std::path::Path;
use std::sync::Arc;

/// A backup that cannot be read.
struct Absent {
    page_size: u32,
    why: String,
}

impl Absent {
    fn refuse<T>(&self) -> Result<T> {
        // A clone that has everything asks for nothing; what the host lost in a crash it may.
        Err(Error::refused(
            Kind::FileMissing,
            format!("the backup could not be read when the clone was mounted: {}", self.why),
        ))
    }
}

impl Snapshot for Absent {
    fn page_size(&self) -> u32 {
        self.page_size
    }

    fn entries(&self, _: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        self.refuse()
    }

    fn lookup(&self, _: &str) -> Result<Option<Entry>> {
        self.refuse()
    }

    fn children(&self, _: &str) -> Result<Vec<Entry>> {
        self.refuse()
    }

    fn open(&self, _: &str) -> Result<Arc<dyn Content>> {
        self.refuse()
    }
}

/// What stands for the backup of a clone that is known to have all of it.
///
/// # Errors
/// `failure`, why the backup cannot be read, if the clone may still need it.
pub(super) fn of_hydrated(
    dir: &Path,
    info: &CloneInfo,
    failure: Failure,
) -> std::result::Result<Arc<dyn Snapshot>, Failure> {
    if !clone::hydration(dir).is_ok_and(|found| found.is_some_and(|h| h.state == HydrationState::Done)) {
        return Err(failure);
    }
    let why = failure.to_string();
    tracing::warn!("clone '{}' is served without its backup, of which it has everything: {why}", dir.display());
    Ok(Arc::new(Absent { page_size: info.page_size, why }))
}
