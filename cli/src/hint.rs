//! What to do about a failure, by its cause. The engine says what happened; remedies are said here only.

use pgkeep_engine::Kind;

/// Remedies for a cause, each one sentence without a final stop.
#[must_use]
pub fn of(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Checksum | Kind::Format => &[
            "run 'verify' to see everything that is damaged, and restore from another repository or an older backup",
            "a full backup after 'verify' is whole: it builds on nothing that was found damaged",
        ],
        Kind::FileInvalid => &[
            "if it is about a stanza: is it the right one for this cluster? After an upgrade of PostgreSQL run 'stanza-upgrade'",
        ],
        Kind::PostgresRunning => &["stop the server first; if it is not running, remove its postmaster.pid"],
        Kind::PathNotEmpty => {
            &["'restore' goes on with --delta or --force; everything else wants a place that is empty or not there yet"]
        }
        Kind::FileOpen | Kind::PathOpen | Kind::FileWrite | Kind::PathCreate | Kind::FileOwner => {
            &["check owner, mode and free space; the command runs best as the owner of the cluster and the repository"]
        }
        Kind::ArchiveMismatch => &["do archive_command and the stanza belong to this cluster?"],
        Kind::ArchiveDuplicate => &[
            "another server, or this one after a recovery, wrote WAL of the same name: give each cluster its own stanza",
        ],
        Kind::LockAcquire => &["wait for the other process to end, or see with 'info' what it does"],
        Kind::BackupMismatch => {
            &["does pg1-path name the right cluster? After an upgrade of PostgreSQL run 'stanza-upgrade'"]
        }
        Kind::FileMissing => &[
            "if it is about a stanza or a path: has 'stanza-create' been run, and is the path right?",
            "if it is about a chunk: 'repair index' looks into all packs for it",
        ],
        Kind::PathMissing => &["has 'stanza-create' been run, and is the path right?"],
        Kind::DbConnect => &["is the server up, and are pg1-port, pg1-socket-path and pg1-user right?"],
        Kind::Stopped => &["'start' allows work again"],
        Kind::BackupSetInvalid => &["'info' lists the backups and the WAL range"],
        Kind::ArchiveTimeout => {
            &["see the server's log for failures of archive_command", "archive-timeout sets how long to wait"]
        }
        Kind::ArchiveDisabled => &["set archive_mode=on and restart the server"],
        Kind::ArchiveCommandInvalid => &["set archive_command to 'pgkeep --stanza=NAME archive-push %p'"],
        Kind::Crypto => &["is the passphrase or key file the one this repository was created with?"],
        Kind::RepoInvalid | Kind::Command => &["the messages above say what was wrong with each repository"],
        Kind::FeatureNotSupported => &["a newer version of this program may be needed"],
        Kind::VersionNotSupported => &["PostgreSQL 13 to 18 are supported"],
        Kind::Clock => &["set the clock of this host"],
        Kind::Assert => &["this is a fault of the program: please report it"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_sentences_without_stop() {
        for kind in [Kind::LockAcquire, Kind::Stopped, Kind::ArchiveTimeout, Kind::Assert, Kind::Crypto] {
            assert!(!of(kind).is_empty());
            assert!(of(kind).iter().all(|h| !h.ends_with('.') && !h.contains('\n')));
        }
        assert!(of(Kind::Interrupted).is_empty());
    }
}
