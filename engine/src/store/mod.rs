//! Where objects live. Only four things are asked of a store, the rest is advice; each object is created once and
//! never changed.
//!
//! Keys are relative, `/`-separated, without empty, `.` or `..` components; [`pgkeep_formats::repo::layout`] is the
//! only place that spells them. Guarantees asked: read after write, list after write, atomic create-if-absent,
//! and durability before `put_if_absent` returns. [`key`] has the rules for keys; every store applies the same.
//!
//! [`LocalStore`], [`BucketStore`] and [`MemoryStore`] hold objects, [`RetryStore`] wraps another store. With the feature
//! `test-support` there are also `RecordingStore` (counts), `FaultStore` (breaks) and `contract`, the one suite
//! that every store passes.

use crate::Kind;
use std::sync::Arc;

#[cfg(any(test, feature = "test-support"))]
pub mod contract;
#[cfg(any(test, feature = "test-support"))]
mod fault;
pub mod key;
mod local;
mod memory;
pub mod object;
#[cfg(any(test, feature = "test-support"))]
mod record;
mod retry;
mod service;

#[cfg(any(test, feature = "test-support"))]
pub use fault::{Damage, Fault, FaultStore};
pub use local::LocalStore;
pub use memory::{MemoryStore, Snapshot};
pub use object::BucketStore;
#[cfg(any(test, feature = "test-support"))]
pub use record::{Call, RecordingStore, Verb};
pub use retry::{RetryPolicy, RetryStore};
pub use service::{Said, ServiceFault};

/// Which bytes of an object to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// All of them.
    Whole,
    /// Exactly `len` bytes from `offset`; an object that ends before is an error.
    Span {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: usize,
    },
    /// The last `len` bytes, or the whole object if it is shorter.
    Tail {
        /// Number of bytes.
        len: usize,
    },
}

impl Range {
    /// First byte and number of bytes of this range in an object of `size` bytes.
    ///
    /// # Errors
    /// The end that was asked for, if the object ends before it.
    pub fn within(self, size: u64) -> Result<(u64, usize), u64> {
        match self {
            Self::Whole => Ok((0, usize::try_from(size).map_err(|_| size)?)),
            Self::Span { offset, len } => {
                let end = offset.saturating_add(len as u64);
                if end <= size { Ok((offset, len)) } else { Err(end) }
            }
            Self::Tail { len } => {
                let start = size.saturating_sub(len as u64);
                Ok((start, usize::try_from(size - start).map_err(|_| size)?))
            }
        }
    }
}

/// What came of a create-if-absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is durable under its key, and this call made it.
    Created,
    /// An object of that key was there already; nothing was changed.
    Exists,
}

/// How deep to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All objects whose key begins with the prefix.
    All,
    /// The prefix's direct children: objects, and one entry for each next component (its key ends in `/`).
    Children,
}

/// One listed object or, with [`Depth::Children`], one common prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The whole key; ends in `/` if it stands for objects below it.
    pub key: String,
    /// Bytes; 0 for a prefix.
    pub size: u64,
    /// Last change as the store tells it, seconds since the Unix epoch; 0 for a prefix.
    pub modified: i64,
}

/// A place for objects.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Creates an object unless its key exists. When this returns `Created` the object is durable.
    ///
    /// # Errors
    /// [`StoreError`]; the object may or may not exist afterwards.
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError>;

    /// Reads an object or a part of it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if there is no such object, [`StoreError::TooShort`] for a span past its end.
    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError>;

    /// Lists in key order. `prefix` is empty or ends in `/`; a prefix under which nothing is lists nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError>;

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// A name for messages: the path or URL.
    fn describe(&self) -> String;

    /// Tells that these spans (first byte, number of bytes) of an object will be asked for soon, one after the other. A favour:
    /// a store that can bring them nearer meanwhile does so, and nothing comes of it if it cannot.
    fn will_get(&self, _key: &str, _spans: &[(u64, usize)]) {}

    /// Tells that this span of an object is not what was stored. True if it may come from elsewhere when it is asked for
    /// again: what was kept of it is forgotten.
    fn doubt(&self, _key: &str, _offset: u64, _len: usize) -> bool {
        false
    }

    /// Unwanted bytes between two spans of an object up to which one get of all is better than two.
    fn gap(&self) -> u64 {
        1 << 20
    }

    /// Whether reading costs little but time of a disk: nothing is paid by the request or the byte, and it is not far.
    fn is_near(&self) -> bool {
        false
    }
}

impl<S: Store + ?Sized> Store for Arc<S> {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        (**self).put_if_absent(key, bytes)
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        (**self).get(key, range)
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        (**self).list(prefix, depth, each)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        (**self).delete(key)
    }

    fn describe(&self) -> String {
        (**self).describe()
    }

    fn will_get(&self, key: &str, spans: &[(u64, usize)]) {
        (**self).will_get(key, spans);
    }

    fn doubt(&self, key: &str, offset: u64, len: usize) -> bool {
        (**self).doubt(key, offset, len)
    }

    fn gap(&self) -> u64 {
        (**self).gap()
    }

    fn is_near(&self) -> bool {
        (**self).is_near()
    }
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The object is not there.
    #[error("object '{key}' is not in {store}")]
    NotFound {
        /// The object.
        key: String,
        /// The store.
        store: String,
    },
    /// The object ends before the bytes asked for.
    #[error("object '{key}' in {store} ends before byte {end}")]
    TooShort {
        /// The object.
        key: String,
        /// The store.
        store: String,
        /// End of the span asked for.
        end: u64,
    },
    /// A key that could leave the store or collide with its own files.
    #[error("'{key}' is not a valid object key")]
    BadKey {
        /// The key.
        key: String,
    },
    /// The store as a whole is not there or cannot be used.
    #[error("cannot {verb} {store}")]
    Root {
        /// What was being done: "open" or "create".
        verb: &'static str,
        /// The store.
        store: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system or the network said no.
    #[error("cannot {verb} object '{key}' in {store}")]
    Io {
        /// What was being done.
        verb: &'static str,
        /// The object or prefix.
        key: String,
        /// The store.
        store: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A service did not do it, or did not answer.
    #[error("cannot {verb} '{key}' in {store}: {fault}")]
    Service {
        /// What was being done.
        verb: &'static str,
        /// The object or prefix.
        key: String,
        /// The store.
        store: String,
        /// Why, as far as that can be told.
        fault: ServiceFault,
        /// What it said.
        source: Said,
    },
}

impl StoreError {
    /// True if trying again cannot help.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        use std::io::ErrorKind as K;
        match self {
            Self::NotFound { .. } | Self::TooShort { .. } | Self::BadKey { .. } => true,
            // What was written before a failed sync may be lost whatever a second one says.
            Self::Io { verb: "sync", .. } => true,
            Self::Service { fault, .. } => fault.is_permanent(),
            Self::Root { source, .. } | Self::Io { source, .. } => {
                matches!(
                    source.kind(),
                    K::PermissionDenied
                        | K::ReadOnlyFilesystem
                        | K::StorageFull
                        | K::QuotaExceeded
                        | K::NotADirectory
                        | K::IsADirectory
                        | K::CrossesDevices
                        | K::InvalidFilename
                        | K::Unsupported
                ) || matches!(self, Self::Root { source, .. } if source.kind() == K::NotFound)
            }
        }
    }

    /// The cause, for branching and for the exit status.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::FileMissing,
            Self::TooShort { .. } => Kind::FileRead,
            Self::BadKey { .. } => Kind::Assert,
            Self::Root { verb: "create", .. } => Kind::PathCreate,
            Self::Root { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Kind::PathMissing,
            Self::Root { .. } => Kind::PathOpen,
            Self::Io { verb: "read", .. } => Kind::FileRead,
            Self::Io { verb: "write" | "create", .. } => Kind::FileWrite,
            Self::Io { verb: "sync", .. } => Kind::FileSync,
            Self::Io { verb: "list", .. } => Kind::PathOpen,
            Self::Io { verb: "remove", .. } => Kind::FileRemove,
            Self::Io { .. } => Kind::Service,
            Self::Service { fault, .. } => fault.kind(),
        }
    }
}
