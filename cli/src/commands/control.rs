//! What `start` and `stop` share: the stop file, which other commands look for before they work.

use crate::option::Settings;
use std::path::PathBuf;

/// Whom a stop file stops, and its name without suffix: the stanza, or `all`.
pub(super) fn scope(settings: &Settings) -> &str {
    settings.stanza().unwrap_or("all")
}

/// The stop file of this host.
pub(super) fn stop_file(settings: &Settings) -> PathBuf {
    settings.lock_path().join(format!("{}.stop", scope(settings)))
}
