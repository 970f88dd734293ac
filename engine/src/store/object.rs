//! Objects in a bucket of S3, GCS or Azure, through the crate `object_store`.
//!
//! The only asynchronous code of the engine: each store owns a runtime of two threads for sockets and timers, and a call
//! blocks its caller on one task. Connections are shared and as many as there are callers at once. Retries are
//! [`RetryStore`]'s, never `object_store`'s: only there is a put told from its own repetition.
//!
//! What differs between services is settled here. A *put* asks with `If-None-Match: *` and takes 412 for "exists" (Azure:
//! 409 of its own name); any other 409 says that somebody else is at it right now, so it is looked whether the object
//! is there, and if not the put is to be tried again. Objects are put whole, in one request, for no service completes an
//! upload in parts under a condition; packs are 32 MiB and services take 5 GiB. *Ranges* must come as they were
//! asked for; what a service sends that is shorter or has another size is an error, and Azure, which knows no range
//! from the end, is asked for the size first. *Lists* must come in order.
//!
//! Each wait is bounded: for headers and for every further piece of a body by the configured time, for a put by that and its
//! size at 128 KiB a second.
//!
//! [`RetryStore`]: super::RetryStore

mod build;
mod client;
mod config;
mod fault;
mod list;
mod requests;

pub use config::{Azure, AzureCredentials, BucketConfig, Gcs, GcsCredentials, S3, S3Credentials, Secret, Service, Tls};
pub use requests::Requests;

use super::{Depth, Listed, Put, Range, ServiceFault, Store, StoreError, key};
use bytes::Bytes;
use client::{Connector, SEEN};
use fault::Failure;
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, TagSet,
};
use requests::Counters;
use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Bytes a second below which an upload counts as stuck.
const SLOWEST: u64 = 128 << 10;

/// Bytes up to which an answer's buffer is made at once; a larger one grows as it comes.
const BUFFER: u64 = 64 << 20;

/// No range is longer; what asks for more means the whole object.
const RANGE_MAX: u64 = 1 << 40;

/// Objects in a bucket.
pub struct BucketStore {
    inner: Arc<dyn ObjectStore>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    counters: Arc<Counters>,
    /// Empty, or ends in `/`.
    prefix: String,
    place: String,
    timeout: Duration,
    gap: Option<u64>,
    put: PutOptions,
    knows_tails: bool,
}

/// What is being done, for messages.
#[derive(Debug, Clone, Copy)]
struct Operation<'a> {
    verb: &'static str,
    key: &'a str,
}

impl BucketStore {
    /// Makes ready to use a bucket. The service is not asked for anything yet.
    ///
    /// # Errors
    /// [`StoreError::Root`] if the configuration cannot work: a certificate, a key file, a URL.
    pub fn open(config: &BucketConfig) -> Result<Self, StoreError> {
        let place = config.describe();
        let refused = |text: String| StoreError::Root {
            verb: "open",
            store: place.clone(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, text),
        };
        let counters = Arc::new(Counters::default());
        let connector = Connector::new(config, Arc::clone(&counters)).map_err(refused)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("bucket")
            .enable_all()
            .build()
            .map_err(|source| StoreError::Root { verb: "open", store: place.clone(), source })?;
        let inner = {
            let _within = runtime.enter();
            build::build(config, connector).map_err(|e| refused(client::chain(&e)))?
        };
        let prefix = config.prefix.trim_matches('/');
        Ok(Self {
            inner,
            runtime: Some(runtime),
            counters,
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            place,
            timeout: config.timeout,
            gap: config.gap,
            put: put_options(config),
            knows_tails: !matches!(config.service, Service::Azure(_)),
        })
    }

    /// The requests sent so far.
    #[must_use]
    pub fn requests(&self) -> Requests {
        self.counters.read()
    }

    fn path(&self, key: &str) -> Result<Path, StoreError> {
        Path::parse(format!("{}{key}", self.prefix)).map_err(|_| StoreError::BadKey { key: key.to_owned() })
    }

    /// The key of an object of ours; `None` for what lies beside or above.
    fn key(&self, path: &Path) -> Option<String> {
        path.as_ref().strip_prefix(&self.prefix).filter(|key| !key.is_empty()).map(str::to_owned)
    }

    /// Runs the task of one operation to its end.
    fn run<T>(&self, _: Operation<'_>, task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(SEEN.scope(RefCell::new(None), task)),
            None => Err(Failure::of(ServiceFault::Refused, "the store is closed")),
        }
    }

    async fn answer<T>(&self, what: impl Future<Output = T>) -> Result<T, Failure> {
        self.answer_within(self.timeout, what).await
    }

    async fn answer_within<T>(&self, time: Duration, what: impl Future<Output = T>) -> Result<T, Failure> {
        let silent = |_| Failure::of(ServiceFault::Silent, format!("no answer within {} s", time.as_secs_f32()));
        tokio::time::timeout(time, what).await.map_err(silent).inspect_err(|_| self.counters.failed())
    }

    /// What a failure of `object_store` is about. Within an operation's task.
    fn failure(&self, error: &object_store::Error) -> Failure {
        let seen = SEEN.try_with(|seen| seen.borrow_mut().take()).ok().flatten();
        Failure::new(seen, error)
    }

    /// Whether the last answer was an error of its own. Within an operation's task.
    fn saw_refusal(&self) -> bool {
        SEEN.try_with(|seen| seen.borrow().is_some()).unwrap_or(false)
    }

    fn error(&self, what: Operation<'_>, failure: Failure) -> StoreError {
        StoreError::Service {
            verb: what.verb,
            key: what.key.to_owned(),
            store: self.place.clone(),
            fault: failure.fault,
            source: failure.said,
        }
    }

    async fn put(&self, path: &Path, bytes: &[u8]) -> Result<Put, Failure> {
        let time = self.timeout + Duration::from_secs(bytes.len() as u64 / SLOWEST);
        let payload = PutPayload::from(Bytes::copy_from_slice(bytes));
        let put = self.inner.put_opts(path, payload, self.put.clone());
        let Err(error) = self.answer_within(time, put).await? else { return Ok(Put::Created) };
        let mut failure = self.failure(&error);
        match (failure.status, failure.code.as_str()) {
            (Some(412 | 304), _) | (Some(409), "BlobAlreadyExists") => Ok(Put::Exists),
            (Some(409), _) => match self.size(path).await {
                Ok(Some(_)) => Ok(Put::Exists),
                Ok(None) => Err(failure),
                Err(other) => Err(other),
            },
            (Some(404), _) => {
                failure.fault = ServiceFault::NoBucket;
                Err(failure)
            }
            _ => Err(failure),
        }
    }

    /// Size of an object; `None` if there is none.
    async fn size(&self, path: &Path) -> Result<Option<u64>, Failure> {
        match self.answer(self.inner.head(path)).await? {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) => absent(self.failure(&error)).map(|()| None),
        }
    }

    /// Bytes of an object and its size; `None` if there is none.
    async fn read(&self, path: &Path, range: Option<GetRange>) -> Result<Option<(Vec<u8>, u64)>, Failure> {
        let options = GetOptions { range, ..GetOptions::default() };
        let result = match self.answer(self.inner.get_opts(path, options)).await? {
            Ok(result) => result,
            Err(error) => return absent_by_name(self.failure(&error)).map(|()| None),
        };
        let (size, len) = (result.meta.size, result.range.end.saturating_sub(result.range.start));
        let mut bytes = Vec::with_capacity(usize::try_from(len.min(BUFFER)).unwrap_or(0));
        let mut body = result.into_stream();
        while let Some(piece) = self.answer(body.next()).await? {
            let piece = piece.map_err(|e| {
                self.counters.failed();
                self.failure(&e)
            })?;
            self.counters.received(piece.len());
            bytes.extend_from_slice(&piece);
        }
        if bytes.len() as u64 != len {
            self.counters.failed();
            let text = format!("{} bytes came in place of {len}", bytes.len());
            return Err(Failure::of(ServiceFault::Broken, text));
        }
        Ok(Some((bytes, size)))
    }

    async fn get_range(&self, path: &Path, range: Range) -> Result<Found, Failure> {
        let asked = match range {
            Range::Whole => None,
            Range::Span { len: 0, .. } | Range::Tail { len: 0 } => return self.look(path, range).await,
            Range::Span { offset, len } => match offset.checked_add(len as u64) {
                Some(end) if end <= RANGE_MAX => Some(GetRange::Bounded(offset..end)),
                _ => return self.look(path, range).await,
            },
            Range::Tail { len } if len as u64 > RANGE_MAX => None,
            Range::Tail { .. } if !self.knows_tails => return self.look(path, range).await,
            Range::Tail { len } => Some(GetRange::Suffix(len as u64)),
        };
        match self.read(path, asked).await {
            Ok(None) => Ok(Found::Nothing),
            Ok(Some((bytes, size))) => Ok(match range.within(size) {
                Ok((_, len)) if len == bytes.len() => Found::Bytes(bytes),
                Ok(_) => return Err(Failure::of(ServiceFault::Answer, "another range came than was asked for")),
                Err(end) => Found::Short(end),
            }),
            // A range that begins behind the end, or of an object of no bytes.
            Err(failure) if failure.status == Some(416) => self.look(path, range).await,
            // Some services send the part there is, and that is an error of theirs no status tells.
            Err(failure) if failure.fault == ServiceFault::Answer => match self.look(path, range).await? {
                Found::Bytes(_) => Err(failure),
                found => Ok(found),
            },
            Err(failure) => Err(failure),
        }
    }

    /// Asks for the size first.
    async fn look(&self, path: &Path, range: Range) -> Result<Found, Failure> {
        let Some(size) = self.size(path).await? else { return Ok(Found::Nothing) };
        match range.within(size) {
            Err(end) => Ok(Found::Short(end)),
            Ok((_, 0)) => Ok(Found::Bytes(Vec::new())),
            Ok((offset, len)) => match self.read(path, Some(GetRange::Bounded(offset..offset + len as u64))).await? {
                Some((bytes, _)) if bytes.len() == len => Ok(Found::Bytes(bytes)),
                Some(_) => Err(Failure::of(ServiceFault::Answer, "another range came than was asked for")),
                None => Ok(Found::Nothing),
            },
        }
    }
}

/// What a read came to.
enum Found {
    Bytes(Vec<u8>),
    Nothing,
    /// It ends before this byte.
    Short(u64),
}

/// Tells "there is no such object" from other failures.
fn absent(failure: Failure) -> Result<(), Failure> {
    if failure.status == Some(404) && failure.fault != ServiceFault::NoBucket { Ok(()) } else { Err(failure) }
}

/// The same of an answer that has words. What stands between us and the service may answer 404 for it, and then nothing is
/// known of the object.
fn absent_by_name(failure: Failure) -> Result<(), Failure> {
    match (failure.status, failure.code.as_str()) {
        (Some(404), "NoSuchKey" | "NoSuchVersion" | "BlobNotFound") => Ok(()),
        (Some(404), _) if failure.fault != ServiceFault::NoBucket => {
            Err(Failure { fault: ServiceFault::Failed, ..failure })
        }
        _ => Err(failure),
    }
}

fn put_options(config: &BucketConfig) -> PutOptions {
    let mut options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match config.service {
        // GCS has no tags of objects; what it has is not searched, but shown.
        Service::Gcs(_) => {
            let mut attributes = Attributes::new();
            for (name, value) in &config.tags {
                attributes.insert(Attribute::Metadata(name.clone().into()), value.clone().into());
            }
            options.attributes = attributes;
        }
        Service::S3(_) | Service::Azure(_) => {
            let mut tags = TagSet::default();
            config.tags.iter().for_each(|(name, value)| tags.push(name, value));
            options.tags = tags;
        }
    }
    options
}

impl Store for BucketStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, StoreError> {
        key::check(key)?;
        let (what, path) = (Operation { verb: "write", key }, self.path(key)?);
        self.run(what, self.put(&path, bytes)).map_err(|failure| self.error(what, failure))
    }

    fn get(&self, key: &str, range: Range) -> Result<Vec<u8>, StoreError> {
        key::check(key)?;
        let (what, path) = (Operation { verb: "read", key }, self.path(key)?);
        match self.run(what, self.get_range(&path, range)) {
            Ok(Found::Bytes(bytes)) => Ok(bytes),
            Ok(Found::Nothing) => Err(StoreError::NotFound { key: key.to_owned(), store: self.place.clone() }),
            Ok(Found::Short(end)) => Err(StoreError::TooShort { key: key.to_owned(), store: self.place.clone(), end }),
            Err(failure) => Err(self.error(what, failure)),
        }
    }

    fn list(&self, prefix: &str, depth: Depth, each: &mut dyn FnMut(Listed)) -> Result<(), StoreError> {
        key::check_prefix(prefix)?;
        self.list_at(prefix, depth, each)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        key::check(key)?;
        let (what, path) = (Operation { verb: "remove", key }, self.path(key)?);
        self.run(what, async {
            match self.answer(self.inner.delete(&path)).await? {
                Ok(()) => Ok(()),
                // Azure answers for each object within an answer that is a success.
                Err(object_store::Error::NotFound { .. }) if !self.saw_refusal() => Ok(()),
                Err(error) => absent(self.failure(&error)),
            }
        })
        .map_err(|failure| self.error(what, failure))
    }

    fn describe(&self) -> String {
        self.place.clone()
    }

    fn gap(&self) -> u64 {
        self.gap.unwrap_or(1 << 20)
    }
}

impl Drop for BucketStore {
    fn drop(&mut self) {
        // A look-up of a name that hangs must not keep the process.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl std::fmt::Debug for BucketStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketStore").field("place", &self.place).finish_non_exhaustive()
    }
}
