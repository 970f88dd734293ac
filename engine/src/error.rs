//! The crate's error, and the causes a caller may branch on.
//!
//! Subsystems have enums of their own ([`crate::store::StoreError`], [`crate::crypto::CryptoError`],
//! [`crate::pg::ServerError`], ...). This one stands above them. A [`Kind`] is the cause without its
//! details; `cli` maps each to an exit status in one table. Text names this layer only; the source chain
//! is printed once, by `cli`, which also adds remedies.

use pgkeep_formats::FormatError;
use std::path::{Path, PathBuf};

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed, for branching and for the exit status. Names follow pgBackRest's error list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A clear "no": what was asked for is certainly not there.
    Absent,
    /// Stored bytes differ from what was recorded.
    Checksum,
    /// Configuration is contradictory.
    Config,
    /// A file's content is not what it must be.
    FileInvalid,
    /// Bytes cannot be parsed.
    Format,
    /// An option is not valid here.
    OptionInvalid,
    /// An option's value is not valid.
    OptionInvalidValue,
    /// A needed option is missing.
    OptionRequired,
    /// PostgreSQL runs on the directory.
    PostgresRunning,
    /// A directory that must be empty is not.
    PathNotEmpty,
    /// A file cannot be opened.
    FileOpen,
    /// A file cannot be read.
    FileRead,
    /// A file cannot be written.
    FileWrite,
    /// A file cannot be synced.
    FileSync,
    /// A file cannot be removed.
    FileRemove,
    /// A file cannot be renamed.
    FileMove,
    /// A file that must be there is not.
    FileMissing,
    /// A file exists that must not.
    FileExists,
    /// A file's owner is wrong.
    FileOwner,
    /// A file's mode is wrong.
    FileMode,
    /// A file's facts cannot be read.
    FileInfo,
    /// A directory cannot be created.
    PathCreate,
    /// A directory cannot be opened or listed.
    PathOpen,
    /// A directory that must be there is not.
    PathMissing,
    /// A directory cannot be removed.
    PathRemove,
    /// A parameter is missing.
    ParamRequired,
    /// A parameter is not valid.
    ParamInvalid,
    /// WAL belongs to another cluster or version.
    ArchiveMismatch,
    /// WAL of that name exists with other content.
    ArchiveDuplicate,
    /// PostgreSQL's version is not supported.
    VersionNotSupported,
    /// Another process holds the lock.
    LockAcquire,
    /// The cluster is not the stanza's.
    BackupMismatch,
    /// The server cannot be reached, or refuses the connection.
    DbConnect,
    /// The server refuses a query.
    DbQuery,
    /// The server is not the one configured, or a timeline does not fit.
    DbMismatch,
    /// The stanza is stopped.
    Stopped,
    /// Ended by a signal.
    Interrupted,
    /// `archive_command` does not call this program.
    ArchiveCommandInvalid,
    /// Something that must be a link is not.
    LinkExpected,
    /// A link points where it must not.
    LinkDestination,
    /// A tablespace map does not fit the backup.
    TablespaceMap,
    /// A link map does not fit the backup.
    LinkMap,
    /// No backup fits what was asked.
    BackupSetInvalid,
    /// A database is not in the backup.
    DbMissing,
    /// A recovered cluster does not pass a check.
    DbInvalid,
    /// A WAL segment did not arrive in time.
    ArchiveTimeout,
    /// Archiving is off.
    ArchiveDisabled,
    /// A program that was run has failed.
    Execute,
    /// A user is not known.
    UserMissing,
    /// Decryption failed, or no key opens.
    Crypto,
    /// No usable repository.
    RepoInvalid,
    /// The repository or feature is of a version this program cannot use.
    FeatureNotSupported,
    /// One or more repositories failed.
    Command,
    /// The clock is wrong.
    Clock,
    /// A system call failed.
    Kernel,
    /// A store failed or is unreachable.
    Service,
    /// Memory ran out.
    Memory,
    /// Our own mistake.
    Assert,
    /// Any other failure at run time.
    Runtime,
}

/// An IO error with what was being done and to what.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} '{}'", path.display())]
pub struct FileError {
    /// What was being done: "open", "read", "write", "sync", "create", "rename", "remove", "list", "stat", ...
    pub verb: &'static str,
    /// To what.
    pub path: PathBuf,
    /// What the system said.
    pub source: std::io::Error,
}

impl FileError {
    /// For `map_err`: `.map_err(FileError::at("open", path))`.
    pub fn at(verb: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self { verb, path: path.as_ref().to_path_buf(), source }
    }

    /// The cause, by verb and by what the system said.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.verb {
            "open" if self.source.kind() == std::io::ErrorKind::NotFound => Kind::FileMissing,
            "open" => Kind::FileOpen,
            "read" => Kind::FileRead,
            "write" | "truncate" => Kind::FileWrite,
            "sync" => Kind::FileSync,
            "rename" => Kind::FileMove,
            "remove" => Kind::FileRemove,
            "create" => Kind::PathCreate,
            "list" if self.source.kind() == std::io::ErrorKind::NotFound => Kind::PathMissing,
            "list" => Kind::PathOpen,
            "stat" if self.source.kind() == std::io::ErrorKind::NotFound => Kind::FileMissing,
            "stat" => Kind::FileInfo,
            "change owner of" => Kind::FileOwner,
            "change mode of" => Kind::FileMode,
            _ => Kind::Kernel,
        }
    }
}

/// Any failure of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// Cryptography failed.
    #[error(transparent)]
    Crypto(#[from] crate::crypto::CryptoError),
    /// PostgreSQL failed us.
    #[error(transparent)]
    Server(#[from] crate::pg::ServerError),
    /// The local chunk index failed.
    #[error(transparent)]
    Index(#[from] crate::index::IndexError),
    /// A local file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// An object cannot be decoded.
    #[error("'{object}' is damaged")]
    Damaged {
        /// Name of the object or file.
        object: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// An operation decided against going on.
    #[error("{message}")]
    Refused {
        /// The cause.
        kind: Kind,
        /// What, which object, expected and found.
        message: String,
    },
    /// A failure, with what was being done when it happened.
    #[error("{doing}")]
    While {
        /// What was being done: "cannot ..."
        doing: String,
        /// The failure.
        source: Box<Error>,
    },
    /// A signal or the caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An operation's decision not to go on.
    pub fn refused(kind: Kind, message: impl Into<String>) -> Self {
        Self::Refused { kind, message: message.into() }
    }

    /// The same failure, with what was being done.
    #[must_use]
    pub fn during(self, doing: impl Into<String>) -> Self {
        Self::While { doing: doing.into(), source: Box::new(self) }
    }

    /// For `map_err` on decoders: names the object whose bytes are wrong.
    pub fn damaged(object: impl Into<String>) -> impl FnOnce(FormatError) -> Self {
        move |source| Self::Damaged { object: object.into(), source }
    }

    /// The failure itself, whatever was being done. Branch on this, so that a context added below changes nothing.
    #[must_use]
    pub fn root(&self) -> &Self {
        match self {
            Self::While { source, .. } => source.root(),
            other => other,
        }
    }

    /// The failure and its causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Transparent layers say the same as what they hold.
            if !text.ends_with(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        text
    }

    /// Whether an object is certainly not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.root(), Self::Store(crate::store::StoreError::NotFound { .. }))
    }

    /// Whether an object is not what was written, whatever else may be wrong.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self.root(), Self::Store(crate::store::StoreError::TooShort { .. }))
            || matches!(self.kind(), Kind::Format | Kind::Checksum)
    }

    /// True for failures that say nothing of the object at hand: the store is not there, memory is short, or somebody
    /// wants the run to end. What passes objects over must not pass these over.
    #[must_use]
    pub fn concerns_the_run(&self) -> bool {
        use crate::store::StoreError;
        matches!(self.root(), Self::Store(StoreError::Root { .. } | StoreError::Service { .. }))
            || matches!(self.kind(), Kind::Interrupted | Kind::Memory)
    }

    /// The cause, for branching and for the exit status.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Store(e) => e.kind(),
            Self::Crypto(e) => e.kind(),
            Self::Server(e) => e.kind(),
            Self::Index(e) => e.kind(),
            Self::File(e) => e.kind(),
            Self::Damaged { source: FormatError::BadVersion { .. }, .. } => Kind::FeatureNotSupported,
            Self::Damaged { .. } => Kind::Format,
            Self::Refused { kind, .. } => *kind,
            Self::While { source, .. } => source.kind(),
            Self::Interrupted => Kind::Interrupted,
        }
    }
}
