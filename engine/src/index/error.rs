//! Why the local index cannot answer. None of it concerns the repository: every cause here is cured by
//! fetching an index segment again, or by publishing what the head holds.

use crate::{FileError, Kind};
use pgkeep_formats::FormatError;
use std::path::PathBuf;

/// A failure of the local chunk index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// A cached segment is not what was written: it has been moved away and must be fetched again.
    #[error("cached index segment '{object}' is damaged: {detail}")]
    Poisoned {
        /// Name of the index object whose copy it was.
        object: String,
        /// What did not match.
        detail: &'static str,
    },
    /// The chunk was not found, but a wanted segment is not installed and might hold it.
    #[error("index segment '{object}' is not installed")]
    Incomplete {
        /// Name of one index object that must be installed.
        object: String,
    },
    /// The payload of an index object cannot be decoded.
    #[error("index object '{object}' is damaged")]
    Payload {
        /// Name of the index object.
        object: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// An index object cannot be fetched.
    #[error("cannot fetch index object '{object}'")]
    Fetch {
        /// Name of the index object.
        object: String,
        /// What failed.
        source: Box<crate::Error>,
    },
    /// The head holds as many chunks as one segment takes: publish it before inserting more.
    #[error("the head of the index is full: {entries} chunks")]
    Full {
        /// Chunks it holds.
        entries: u64,
    },
    /// Chunks that were inserted into the head cannot be read back: take them from the packs' footers.
    #[error("the head of the index lost {lost} of {entries} chunks")]
    Lost {
        /// Chunks that were inserted.
        entries: u64,
        /// How many of them are gone or were tampered with.
        lost: u64,
    },
    /// A chunk's place does not fit the format.
    #[error("a chunk's place does not fit the index")]
    Place {
        /// Which field, and why.
        source: FormatError,
    },
    /// Operations on the head were called in the wrong order.
    #[error("{0}")]
    Misuse(&'static str),
    /// A local file failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl IndexError {
    /// The index object that must be fetched and installed before the same question is asked again.
    #[must_use]
    pub fn rebuild(&self) -> Option<&str> {
        match self {
            Self::Poisoned { object, .. } | Self::Incomplete { object } => Some(object),
            _ => None,
        }
    }

    /// The cause, for branching and for the exit status.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Poisoned { .. } | Self::Incomplete { .. } | Self::Lost { .. } => Kind::Checksum,
            Self::Payload { source: FormatError::BadVersion { .. }, .. } => Kind::FeatureNotSupported,
            Self::Payload { .. } | Self::Place { .. } => Kind::Format,
            Self::Fetch { source, .. } => source.kind(),
            Self::Full { .. } | Self::Misuse(_) => Kind::Assert,
            Self::File(e) => e.kind(),
        }
    }
}

/// For `map_err`: an IO error as an [`IndexError`].
pub(super) fn io(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> IndexError {
    let path = path.into();
    move |source| IndexError::File(FileError { verb, path, source })
}
