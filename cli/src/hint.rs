//! What to do about a failure. The engine says what happened; remedies are said here only.
//!
//! A status alone says too little: 38 of a restore and 38 of a clone are ended in different ways, and 29 is a damaged
//! object as well as a time that cannot be read. So a remedy hangs on the cause, on the command, and on what the failure
//! is about; where none of these tells what would help, nothing is said.

use crate::option::Command;
use pgkeep_engine::crypto::CryptoError;
use pgkeep_engine::store::{ServiceFault, StoreError};
use pgkeep_engine::{Error, Kind};
use std::io::ErrorKind;

/// Remedies for the failure of a command, each one sentence without a final stop. Without a command those that fit any.
#[must_use]
pub fn of(command: Option<Command>, error: &Error) -> &'static [&'static str] {
    use Command as C;
    let root = error.root();
    let refused = match root {
        Error::Refused { message, .. } => Some(message.as_str()),
        _ => None,
    };
    let says = |text: &str| refused.is_some_and(|message| message.contains(text));
    // A refusal that begins with an option is about that option, and says what it wants.
    if refused.is_some_and(|message| message.starts_with("option ")) {
        return &[];
    }
    if let Error::Store(StoreError::Service { fault, .. }) = root {
        return of_service(*fault);
    }
    match (error.kind(), command) {
        (Kind::Checksum, Some(C::Verify)) => &[
            "take a full backup now: it builds on nothing that was found damaged",
            "what is damaged can be restored from another repository or an older backup",
        ],
        (Kind::Format, Some(C::Verify)) => &[],
        (Kind::Checksum | Kind::Format, Some(C::Backup)) => {
            &["run 'verify' to see everything that is damaged; a full backup after it builds on nothing of that"]
        }
        (Kind::Checksum | Kind::Format, Some(C::Repair | C::RepoStats)) => {
            &["run 'verify' to see which backups need what is damaged"]
        }
        (Kind::Checksum | Kind::Format, Some(C::Restore | C::Clone | C::Mount | C::Extract)) => {
            &["run 'verify' to see everything that is damaged, and restore from another repository or an older backup"]
        }
        (Kind::Checksum | Kind::Format, _) => &["run 'verify' to see everything that is damaged"],
        (Kind::FileInvalid, _) if says("stanza '") => {
            &["is it the right stanza for this cluster? After an upgrade of PostgreSQL run 'stanza-upgrade'"]
        }
        (Kind::OptionInvalidValue, Some(C::ArchiveGet | C::ArchivePush)) if says("working directory") => {
            &["is pg1-path the data directory of the server that runs this command?"]
        }
        (Kind::PostgresRunning, Some(C::Restore)) => {
            &["stop the server first; if it is not running, remove its postmaster.pid"]
        }
        (Kind::PostgresRunning, Some(C::StanzaDelete)) => {
            &["stop the server first, or use --force; if it is not running, remove its postmaster.pid"]
        }
        (Kind::PostgresRunning, Some(C::Backup)) => {
            &["if no server is running, remove its postmaster.pid, or use --force"]
        }
        (Kind::PostgresRunning, Some(C::Clone | C::Mount)) if says("takes '") => &["stop that server first"],
        (Kind::PathNotEmpty, Some(C::Restore)) => not_empty_for_restore(&says),
        (Kind::PathNotEmpty, Some(C::StanzaCreate)) if says("has no history") => {
            &["'repair history' makes a lost history anew; what is left of a deleted stanza must be removed"]
        }
        (Kind::PathNotEmpty, Some(C::StanzaCreate)) => {
            &["is the repository's path right? A repository is made in a directory that is empty or not there yet"]
        }
        (Kind::PathMissing, Some(C::Clone)) if says("is not served") || says("is not mounted") => {
            &["'clone mount' or 'clone start' serves it again"]
        }
        (Kind::PathMissing | Kind::PathNotEmpty | Kind::PathOpen, Some(C::Clone)) => no_clone(error, &says),
        (Kind::PathNotEmpty, Some(C::Mount)) => &["name a directory that is empty or not there yet"],
        (
            Kind::FileOpen | Kind::PathOpen | Kind::FileWrite | Kind::PathCreate | Kind::FileOwner | Kind::FileRead,
            _,
        ) => of_system(error),
        (Kind::ArchiveMismatch, _) => &["do archive_command and the stanza belong to this cluster?"],
        (Kind::ArchiveDuplicate, _) => &[
            "another server, or this one before it went back to an earlier state, wrote WAL of the same name",
            "to keep what this server has: a stanza of its own. To go on from the archive: restore a backup; see \
             docs/operations.md, \"When the archive holds another history\"",
        ],
        (Kind::LockAcquire, _) if says("session") => &["run the command again"],
        (Kind::LockAcquire, Some(C::Clone)) if says("is being made or removed") => {
            &["wait for the other process to end"]
        }
        (Kind::LockAcquire, Some(C::Clone)) => &["'clone list' shows which clones are in use, and by whom"],
        (Kind::LockAcquire, _) => &["wait for the other process to end, or see with 'info' what it does"],
        (Kind::BackupMismatch, Some(C::Backup)) => {
            &["does pg1-path name the right cluster? After an upgrade of PostgreSQL run 'stanza-upgrade'"]
        }
        (Kind::FileMissing, Some(C::Clone)) if says("the clone lacks") => {
            &["mount it with 'clone mount' or 'clone start'; then 'clone promote' fetches what it lacks"]
        }
        (Kind::FileMissing, _) => missing(command, root, &says),
        (Kind::DbConnect, Some(C::Clone)) if says("is promoted") => {
            &["the data directory is whole and no clone any more: start its server as any other's"]
        }
        (Kind::DbConnect, Some(C::Clone)) => &[
            "'pgkeep-clone.log' in the data directory has all that the server said",
            "the clone is there: 'clone start' tries again, 'clone reset' makes it anew, with another --port for example",
        ],
        (Kind::PathMissing, Some(C::ArchiveGet)) => &["'verify' shows what the repository lacks"],
        (Kind::DbConnect, Some(C::Extract | C::Drill)) if says("before configured recovery target was reached") => &[
            "the archive ends before the target, or the target is on another timeline (--target-timeline): 'info' shows \
             how far the archive goes",
        ],
        (Kind::DbConnect, Some(C::Extract | C::Drill)) => &[],
        (Kind::DbMissing, Some(C::Restore)) => {
            &["'info --set=LABEL' lists the databases of a backup with their numbers"]
        }
        (Kind::DbInvalid, Some(C::Restore)) => &["--db-include and --db-exclude name different databases"],
        (Kind::DbInvalid, _) => &["'verify' tells what is damaged in the repository; drill an older backup as well"],
        (Kind::DbConnect, _) if says("no running standby") => &[
            "is the standby up, and configured by pgN-path and pgN-port? With backup-standby=prefer the primary will do",
        ],
        (Kind::DbConnect, Some(C::Backup)) if says("no primary") => &[
            "is the primary up, and configured by pgN-path and pgN-port as well?",
            "with backup-standby=prefer a standby is backed up without its primary",
        ],
        (Kind::DbConnect, _) if says("no primary") => {
            &["is the primary up, and configured by pgN-path and pgN-port as well?"]
        }
        (Kind::DbConnect, _) if says("both primaries") => &["which one was left behind by a failover? Stop that one"],
        (Kind::TablespaceMap, Some(C::Backup)) => {
            &["take the backup again; a tablespace must not come or go while one is taken"]
        }
        (Kind::DbMismatch, Some(C::Backup)) if says("is no copy of the primary") => &[
            "make that standby anew; until then backup-standby=n copies the primary",
            "is its data directory damaged? Do not promote it, and look at its log and its disk",
        ],
        (Kind::DbConnect, _) | (Kind::Config, Some(C::Check)) => {
            &["is the server up, and are pg1-port, pg1-socket-path and pg1-user right?"]
        }
        (Kind::Stopped, _) => &["'start' allows work again"],
        (Kind::BackupSetInvalid, _) => &["'info' lists the backups and the WAL range"],
        (Kind::ArchiveTimeout, Some(C::Verify)) => {
            &["a new backup begins a range of WAL without that gap; until then recovery ends where the report says"]
        }
        (Kind::ArchiveTimeout, Some(C::Check)) if says(" lacks WAL ") => &[
            "take a backup into that repository: it needs none of what is missing",
            "another repository may have it: 'verify' says so of each",
        ],
        (Kind::ArchiveTimeout, Some(C::ArchivePush | C::ArchiveGet)) => &[
            "the log files of archive-async in log-path, '<stanza>-archive-push-async.log' and '<stanza>-archive-get-async.log', \
             say what is done; 'archive-async=n' does without",
            "archive-timeout sets how long to wait",
        ],
        (Kind::ArchiveTimeout, Some(C::Backup)) if says("cannot end a WAL segment") => &[
            "does the primary run and archive? On an idle one set archive_timeout, or run pg_switch_wal() there",
            "archive-timeout sets how long to wait",
        ],
        (Kind::ArchiveTimeout, _) if says("the standby") => &[
            "is its replay paused or delayed, and does it stream from this primary? Its log and pg_stat_wal_receiver tell",
            "archive-timeout sets how long to wait; with backup-standby=prefer the primary will do",
        ],
        (Kind::ArchiveTimeout, _) => {
            &["see the server's log for failures of archive_command", "archive-timeout sets how long to wait"]
        }
        (Kind::ArchiveDisabled, Some(C::Backup)) => &[
            "set archive_mode=on and restart the server",
            "--no-archive-check goes on without, if WAL is kept otherwise",
        ],
        (Kind::ArchiveDisabled, _) => &["set archive_mode=on and restart the server"],
        (Kind::ArchiveCommandInvalid, _) if says("archive_library") => {
            &["reset archive_library, and set archive_command to 'pgkeep --stanza=NAME archive-push %p'"]
        }
        (Kind::ArchiveCommandInvalid, _) => {
            &["set archive_command to 'pgkeep --stanza=NAME archive-push %p' and reload the server"]
        }
        (Kind::Crypto, _) if matches!(root, Error::Crypto(CryptoError::NoSlots { .. })) => &[
            "put 'keys/' back from a copy of the repository, or is not all of it mounted? Without it nobody can read anything \
             in it, with a passphrase or without",
        ],
        (Kind::Crypto, _)
            if matches!(root, Error::Crypto(CryptoError::NoSlotOpens { .. })) || says("no key slot of ") =>
        {
            &["is the passphrase or key file the one this repository was created with?"]
        }
        (Kind::RepoInvalid, Some(C::ArchiveGet | C::ArchivePush)) | (Kind::Command, _) => {
            &["the messages above say what was wrong with each repository"]
        }
        (Kind::FeatureNotSupported, _) if says("archive_mode=always") => {
            &["set archive_mode=on, or use --no-archive-mode-check if no standby archives into the same stanza"]
        }
        (Kind::FeatureNotSupported, _) => &["a newer version of this program may be needed"],
        (Kind::VersionNotSupported, c) if c != Some(C::ArchiveGet) => &["PostgreSQL 13 to 18 are supported"],
        (Kind::Clock, _) => &["set the clock of this host"],
        (Kind::Assert, _) => &["this is a fault of the program: please report it"],
        _ => &[],
    }
}

/// Of a classic restore, or of an instant one, to which the options of the other are no help.
fn not_empty_for_restore(says: &dyn Fn(&str) -> bool) -> &'static [&'static str] {
    if says("neither --delta nor --force") {
        &["move away what is there, or name a directory that is empty or not there yet"]
    } else if says("--force") {
        // The restore of tablespaces and links says so itself.
        &[]
    } else if says("unable to restore to") {
        &["--delta keeps what is right already, --force writes everything; or name a place that is empty"]
    } else if says("' is not empty") {
        &[
            "an instant restore needs an empty directory, also with --delta or --force: move away what is there, or name \
             another directory",
            "without --instant, --delta restores into a data directory that is there, and keeps what is right already",
        ]
    } else {
        &[]
    }
}

/// A directory that is no clone, or should not be one: what it is decides.
fn no_clone(error: &Error, says: &dyn Fn(&str) -> bool) -> &'static [&'static str] {
    const OWN: &[&str] = &["--dir names the clone's own directory: the one in the message"];
    const SEARCH: &str =
        "'clone list' shows the clones that are mounted, 'clone list --dir=DIRECTORY' all in a directory";
    if says("exists already") {
        &["'clone mount' serves it, 'clone destroy' removes it; a further clone needs another directory"]
    } else if says("not its own directory") {
        OWN
    } else if says("but holds some") {
        &["--dir names one of them; of 'clone list' also the directory that holds them"]
    } else if says("is closed to this user") {
        &["run the command as that user, or as root"]
    } else if says("is not complete") {
        &["'clone create' with the same --dir makes it anew, 'clone destroy' removes what is left of it"]
    } else if says("nothing of it is removed") {
        &["--dir names a clone's own directory; what is no clone is removed by other means", SEARCH]
    } else if says("is not a clone: '") || says("is not empty") || says("is mounted on '") {
        &["name a directory that is empty or not there yet"]
    } else if matches!(error.root(), Error::File(_)) {
        of_system(error)
    } else if error.kind() == Kind::PathNotEmpty {
        &[]
    } else {
        &[SEARCH]
    }
}

/// A file, an object or a stanza that is not there: which of them decides.
fn missing(command: Option<Command>, root: &Error, says: &dyn Fn(&str) -> bool) -> &'static [&'static str] {
    match root {
        Error::File(e) if e.path.ends_with("global/pg_control") => &["is pg1-path the data directory of a cluster?"],
        Error::Store(_) => &["run 'verify' to see everything that is missing"],
        _ if says("stop file") => &["run 'stop' first: it keeps archiving and backups away from what is removed"],
        _ if says("chunk") => &["'repair index' looks into all packs for it"],
        _ if says("has no generation record") => {
            &["'repair generation' makes one anew, under which every backup is seen again"]
        }
        _ if says("key of session") || says("generation") => &["run 'verify' to see everything that is missing"],
        _ if command == Some(Command::StanzaCreate) => &[],
        _ if says("stanza '") => &["has 'stanza-create' been run, and are stanza and repository the right ones?"],
        _ if says("repository") => &["is the repository's path right, and has 'stanza-create' been run?"],
        _ => &[],
    }
}

/// By what a service that keeps objects said, or did not say.
fn of_service(fault: ServiceFault) -> &'static [&'static str] {
    use ServiceFault as F;
    match fault {
        F::Unreachable => {
            &["are endpoint, repo-storage-host and repo-storage-port right, and may this host connect there?"]
        }
        F::Untrusted => &[
            "repo-storage-ca-file names the certificate authority of a service of your own; repo-storage-verify-tls=n trusts anybody",
        ],
        F::Silent | F::Busy | F::Failed | F::Broken => {
            &["it was tried again for as long as io-timeout says: run the command again, or see how the service does"]
        }
        F::Credentials => &["are key and secret, token or signature right, of this account, and not expired?"],
        F::Denied => {
            &["the key must be allowed to list the bucket, and to get, put and delete objects below repo-path"]
        }
        F::NoCredentials => &[
            "has this machine a role or identity of its own? Otherwise set the kind of key to the one that is configured",
        ],
        F::NoBucket => {
            &["is its name right? A bucket or container is made by who runs the account, not by this program"]
        }
        F::Region => &["set region, endpoint and uri-style to those of the bucket"],
        F::Clock => &["set the clock of this host: signatures of requests hold for minutes"],
        F::Full => &["make room there, or raise the quota, then run the command again"],
        F::Unsupported => &["a repository needs creation on condition that an object does not exist: If-None-Match"],
        _ => &[],
    }
}

/// By what the system said.
fn of_system(error: &Error) -> &'static [&'static str] {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(at) = cause {
        if let Some(io) = at.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                ErrorKind::PermissionDenied => {
                    &["check owner and mode; the command runs best as the owner of the cluster and the repository"]
                }
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => &["make room there, then run the command again"],
                ErrorKind::ReadOnlyFilesystem => &["the file system is mounted for reading only"],
                _ => &[],
            };
        }
        cause = at.source();
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_engine::FileError;

    fn refused(kind: Kind, text: &str) -> Error {
        Error::refused(kind, text)
    }

    #[test]
    fn hints_are_sentences_without_stop() {
        let commands = crate::option::command::COMMANDS.iter().map(|c| Some(c.command)).chain([None]);
        for command in commands {
            for kind in [Kind::LockAcquire, Kind::Stopped, Kind::ArchiveTimeout, Kind::Assert] {
                let found = of(command, &refused(kind, "x"));
                assert!(!found.is_empty());
                assert!(found.iter().all(|hint| !hint.ends_with('.')), "{found:?}");
            }
        }
    }

    #[test]
    fn whoever_runs_a_bucket_is_told_what_to_look_at() {
        use ServiceFault as F;
        for (fault, part) in [
            (F::Unreachable, "repo-storage-host"),
            (F::Untrusted, "repo-storage-ca-file"),
            (F::Busy, "io-timeout"),
            (F::Credentials, "not expired"),
            (F::Denied, "repo-path"),
            (F::NoCredentials, "kind of key"),
            (F::NoBucket, "its name"),
            (F::Region, "region"),
            (F::Clock, "clock"),
            (F::Full, "quota"),
            (F::Unsupported, "If-None-Match"),
        ] {
            let hints = of_service(fault);
            assert!(
                hints.iter().any(|hint| hint.contains(part)) && !hints.iter().any(|h| h.ends_with('.')),
                "{hints:?}"
            );
        }
    }

    #[test]
    fn what_is_about_an_option_is_not_about_stored_bytes() {
        let target = refused(Kind::Format, "option 'target': 'yesterday' is no time");
        assert!(of(Some(Command::Restore), &target).is_empty());
        let damaged = refused(Kind::Format, "chunk 7 is shorter than the manifest says");
        assert!(of(Some(Command::Restore), &damaged.during("cannot restore"))[0].contains("verify"));
    }

    #[test]
    fn verify_is_not_told_to_verify() {
        for kind in [Kind::Checksum, Kind::Format, Kind::ArchiveTimeout] {
            let found = of(Some(Command::Verify), &refused(kind, "repo1 is damaged"));
            assert!(found.iter().all(|hint| !hint.contains("'verify'") && !hint.contains("timeout")), "{found:?}");
        }
    }

    #[test]
    fn clones_have_hints_of_their_own() {
        let of = |kind, text| of(Some(Command::Clone), &refused(kind, text));
        assert!(of(Kind::PostgresRunning, "a server, process 7, runs on clone '/c'; --force ends it").is_empty());
        let hints =
            [of(Kind::PathMissing, "there is no clone '/c'"), of(Kind::PathNotEmpty, "clone '/c' exists already")];
        for found in hints {
            assert!(found[0].contains("'clone "), "{found:?}");
        }
    }

    #[test]
    fn no_hint_for_a_restore_names_what_was_tried() {
        let of = |text| of(Some(Command::Restore), &refused(Kind::PathNotEmpty, text));
        assert!(of("unable to restore to '/d' because it contains files")[0].starts_with("--delta keeps"));
        // --delta was given.
        let tried = "unable to restore to '/d' because it contains files, which neither --delta nor --force replaces";
        assert!(of(tried).iter().all(|hint| !hint.contains("--")), "{:?}", of(tried));
        // --instant was given, and perhaps --delta.
        let found = of("mountpoint '/d' is not empty");
        assert!(found[0].contains("also with --delta") && found[1].starts_with("without --instant"), "{found:?}");
        assert!(of("'/.d.pgkeep' is not a clone: '/.d.pgkeep/x' is not of one").is_empty());
        assert!(of("unable to restore to '/t': it contains files. Use --force to replace them").is_empty());
    }

    #[test]
    fn what_is_no_clone_has_the_remedy_of_what_it_is() {
        let cases = [
            (Kind::PathMissing, "there is no directory '/c'", "'clone list'"),
            (Kind::PathMissing, "'/c' is not a clone", "'clone list'"),
            (Kind::PathMissing, "'/c' is an ordinary data directory, not a clone", "'clone list'"),
            (Kind::PathMissing, "'/m' is where clone '/c' is mounted, not its own directory", "the one in the message"),
            (Kind::PathMissing, "'/p' is not a clone, but holds some: '/p/c'", "one of them"),
            (Kind::PathMissing, "clone '/c' is not complete: what made or removed it was ended", "'clone destroy'"),
            (Kind::PathMissing, "clone '/c' is not served: it goes on once it is mounted", "serves it again"),
            (Kind::PathOpen, "'/c' is closed to this user: it belongs to user 7", "as that user"),
            (Kind::LockAcquire, "clone '/c' is being made or removed by another process", "wait"),
            (Kind::PathNotEmpty, "'/c' is not a clone: '/c/x' is not of one", "empty"),
            (
                Kind::PathNotEmpty,
                "'/c' is not a clone, and nothing of it is removed: '/c/x' is not of one",
                "other means",
            ),
        ];
        for (kind, text, remedy) in cases {
            let found = of(Some(Command::Clone), &refused(kind, text));
            assert!(found.iter().any(|hint| hint.contains(remedy)), "{text}: {found:?}");
        }
    }

    #[test]
    fn a_missing_thing_has_the_remedy_of_its_kind() {
        let of = |text| of(Some(Command::Backup), &refused(Kind::FileMissing, text));
        assert!(of("stanza 'x' does not exist in '/r'")[0].contains("stanza-create"));
        assert!(of("chunk 00 is in no pack of '/r'")[0].contains("repair index"));
        assert!(of("there is no file 'x' in backup y").is_empty());
        let io = std::io::Error::from(ErrorKind::NotFound);
        let control: Error = FileError::at("open", "/p/global/pg_control")(io).into();
        assert!(super::of(Some(Command::Backup), &control)[0].contains("pg1-path"));
    }

    #[test]
    fn a_full_disk_needs_room_and_not_another_owner() {
        let hint = |kind: ErrorKind| {
            let error: Error = FileError::at("write", "/r/x")(kind.into()).into();
            of(Some(Command::Backup), &error.during("cannot back up"))
        };
        assert!(hint(ErrorKind::StorageFull)[0].contains("room"));
        assert!(hint(ErrorKind::PermissionDenied)[0].contains("owner"));
        assert!(hint(ErrorKind::Interrupted).is_empty());
    }
}
