//! Whether a data directory may be recovered from the archive.

use crate::pg::datadir;
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::control::CHECKPOINT_INVALID;
use std::path::Path;

const LABEL: &str = "backup_label";

/// Refuses WAL to a restored online backup that has lost its `backup_label`: recovery would begin anywhere but where the
/// backup did. What cannot be read is left to those who need it.
///
/// # Errors
/// `Format`.
pub fn check_label(pgdata: &Path) -> Result<()> {
    let Ok(control) = datadir::read_control(pgdata) else { return Ok(()) };
    if control.fields.checkpoint != CHECKPOINT_INVALID || pgdata.join(LABEL).exists() {
        return Ok(());
    }
    let text = format!(
        "'{}' is missing, without which a restored backup cannot be recovered: restore it again",
        pgdata.join(LABEL).display()
    );
    Err(Error::refused(Kind::Format, text))
}
