//! A few threads that take work from one list until it is empty or one of them fails.

use crate::observe::Cancel;
use crate::{Error, Kind, Result};
use std::sync::{Mutex, PoisonError};

/// Calls `work` for each item, on `jobs` threads. The first error ends all; the others finish the item they have.
///
/// # Errors
/// That of `work`; `Interrupted`; `Kernel` if no thread can be started.
pub(super) fn each<T: Send>(
    jobs: usize,
    items: impl Iterator<Item = T> + Send,
    cancel: &Cancel,
    work: impl Fn(T) -> Result<()> + Sync,
) -> Result<()> {
    let items = Mutex::new(items);
    let failed = Mutex::new(None);
    let one = || {
        loop {
            let item = {
                let mut items = items.lock().unwrap_or_else(PoisonError::into_inner);
                let stop = failed.lock().unwrap_or_else(PoisonError::into_inner).is_some();
                if stop { None } else { items.next() }
            };
            let Some(item) = item else { return };
            if let Err(e) = cancel.check().and_then(|()| work(item)) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for n in 0..jobs.max(1) {
            let spawned = std::thread::Builder::new().name(format!("pgkeep-verify-{n}")).spawn_scoped(scope, one);
            if let (Err(e), 0) = (spawned, n) {
                let error = Error::refused(Kind::Kernel, format!("cannot start a thread: {e}"));
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None => Ok(()),
    }
}
