//! Services that keep objects, in this process, on ports of their own: S3 by the crate `s3s`, which checks signatures, and
//! fakes of GCS's XML API and of Azure's Blob REST API; and what can go wrong between them and us.
//!
//! A [`Server`] answers over real sockets. Before a request reaches the service, and after it has answered, [`Faults`] may
//! come between: an answer of its own, a wait, silence, a connection closed before, in the middle of or instead
//! of the answer. Rules count, so a test says exactly which requests they hit, and [`Server::log`] tells what came.

mod azure;
mod faults;
mod gcs;
mod s3;
mod tokens;

pub use faults::{Faults, What};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    runtime::Runtime,
};
use tokio_rustls::TlsAcceptor;

/// The bucket (or container) of every service.
pub const BUCKET: &str = "vault";
/// Name of the key with which S3 is asked, and account of Azure.
pub const KEY: &str = "testkey";
/// Secret of the key for S3, token for GCS; in base64, as Azure's keys are.
pub const SECRET: &str = "dGVzdC1zZWNyZXQtb2YtdGhlLWtleQ==";

/// The answer of a service, whole.
pub(crate) type Answer = Response<Bytes>;
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What answers one request.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers.
    fn answer(&self, request: Request<Incoming>) -> Answering;
}

/// Which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// S3.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
    /// What hands out credentials for S3: a token service, and a Kubernetes node's agent.
    Tokens,
}

/// One request that came: method, path with query, headers.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Headers by name; of several of one name the last.
    pub headers: BTreeMap<String, String>,
}

/// A running service.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    scheme: &'static str,
    kind: Kind,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Shared {
    faults: Faults,
    log: Mutex<Vec<Asked>>,
}

impl Server {
    /// Starts one, with an empty [`BUCKET`].
    ///
    /// # Panics
    /// When there is no port for it.
    pub fn start(kind: Kind) -> Self {
        Self::with(kind, None)
    }

    /// As [`Self::start`], with TLS: a certificate and its key, files in PEM.
    ///
    /// # Panics
    /// Also when the files do not hold these.
    pub fn protected(kind: Kind, certificate: &Path, key: &Path) -> Self {
        let read = |path: &Path| std::fs::read(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let chain = rustls_pemfile::certs(&mut &*read(certificate)).collect::<Result<_, _>>().expect("certificates");
        let key = rustls_pemfile::private_key(&mut &*read(key)).expect("a key").expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate and its key");
        Self::with(kind, Some(TlsAcceptor::from(Arc::new(config))))
    }

    fn with(kind: Kind, tls: Option<TlsAcceptor>) -> Self {
        let service: Arc<dyn Service> = match kind {
            Kind::S3 => Arc::new(s3::service()),
            Kind::Gcs => Arc::new(gcs::Gcs::default()),
            Kind::Azure => Arc::new(azure::Azure::default()),
            Kind::Tokens => Arc::new(tokens::Tokens),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("cannot start threads");
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).expect("cannot listen");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared::default());
        let scheme = if tls.is_some() { "https" } else { "http" };
        runtime.spawn(serve(listener, tls, service, Arc::clone(&shared)));
        Self { address, scheme, kind, shared, runtime: Some(runtime) }
    }

    /// Its URL, without a path; with TLS by the name that certificates are made for.
    pub fn url(&self) -> String {
        match self.scheme {
            "https" => format!("https://localhost:{}", self.address.port()),
            scheme => format!("{scheme}://{}", self.address),
        }
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// The requests so far.
    pub fn log(&self) -> Vec<Asked> {
        lock(&self.shared.log).clone()
    }

    /// The options of a repository in it, below a path of the bucket.
    pub fn options(&self, path: &str) -> Vec<(&'static str, String)> {
        let bucket = BUCKET.to_owned();
        let mut options = match self.kind {
            Kind::S3 => vec![
                ("repo1-type", "s3".to_owned()),
                ("repo1-s3-bucket", bucket),
                ("repo1-s3-endpoint", self.url()),
                ("repo1-s3-region", "eu-test-1".to_owned()),
                ("repo1-s3-uri-style", "path".to_owned()),
                ("repo1-s3-key", KEY.to_owned()),
                ("repo1-s3-key-secret", SECRET.to_owned()),
            ],
            Kind::Gcs => vec![
                ("repo1-type", "gcs".to_owned()),
                ("repo1-gcs-bucket", bucket),
                ("repo1-gcs-endpoint", self.url()),
                ("repo1-gcs-key-type", "token".to_owned()),
                ("repo1-gcs-key", SECRET.to_owned()),
            ],
            Kind::Azure => vec![
                ("repo1-type", "azure".to_owned()),
                ("repo1-azure-container", bucket),
                ("repo1-azure-endpoint", self.url()),
                ("repo1-azure-uri-style", "path".to_owned()),
                ("repo1-azure-account", KEY.to_owned()),
                ("repo1-azure-key", SECRET.to_owned()),
            ],
            Kind::Tokens => Vec::new(),
        };
        options.push(("repo1-path", path.to_owned()));
        options
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, service: Arc<dyn Service>, shared: Arc<Shared>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        // Small answers must not wait for an acknowledgement of the one before.
        _ = socket.set_nodelay(true);
        let (tls, service, shared) = (tls.clone(), Arc::clone(&service), Arc::clone(&shared));
        tokio::spawn(async move {
            match tls {
                None => converse(socket, service, shared).await,
                // Who does not trust us hangs up.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(socket).await {
                        converse(stream, service, shared).await;
                    }
                }
            }
        });
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(stream: S, service: Arc<dyn Service>, shared: Arc<Shared>) {
    let each = service_fn(|request| one(Arc::clone(&service), Arc::clone(&shared), request));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new());
    // An error here is a connection that was closed, by either side.
    _ = builder.serve_connection(TokioIo::new(stream), each).await;
}

type Sent = Response<BoxBody<Bytes, faults::Closed>>;

async fn one(
    service: Arc<dyn Service>,
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Sent, faults::Closed> {
    let asked = Asked {
        method: request.method().to_string(),
        target: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
        headers: request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
    };
    let what = shared.faults.strike(&asked);
    lock(&shared.log).push(asked);
    faults::between(what, request, |request| service.answer(request)).await
}

/// A whole answer as a body.
fn whole(answer: Answer) -> Sent {
    answer.map(|bytes| Full::new(bytes).map_err(|never| match never {}).boxed())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What fakes keep.
#[derive(Debug, Default)]
pub(crate) struct Objects(Mutex<BTreeMap<String, (Bytes, u64)>>);

impl Objects {
    /// False if there is one already.
    pub(crate) fn create(&self, key: &str, bytes: Bytes) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut objects = lock(&self.0);
        if objects.contains_key(key) {
            return false;
        }
        objects.insert(key.to_owned(), (bytes, now));
        true
    }

    pub(crate) fn get(&self, key: &str) -> Option<(Bytes, u64)> {
        lock(&self.0).get(key).cloned()
    }

    /// False if there is none.
    pub(crate) fn delete(&self, key: &str) -> bool {
        lock(&self.0).remove(key).is_some()
    }

    /// One page: entries behind `after` below `prefix`, as key, size and time, size `None` for a common prefix; and the last
    /// one if there are more.
    pub(crate) fn page(&self, prefix: &str, delimiter: bool, after: &str, most: usize) -> (Vec<Entry>, Option<String>) {
        self.page_of(prefix, delimiter, |name| name > after, most)
    }

    /// As [`Self::page`], of the entries that are wanted.
    pub(crate) fn page_of(
        &self,
        prefix: &str,
        delimiter: bool,
        wanted: impl Fn(&str) -> bool,
        most: usize,
    ) -> (Vec<Entry>, Option<String>) {
        let objects = lock(&self.0);
        let mut page: Vec<Entry> = Vec::new();
        for (key, (bytes, time)) in objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let common = key[prefix.len()..].find('/').filter(|_| delimiter).map(|at| &key[..prefix.len() + at + 1]);
            let name = common.unwrap_or(key);
            if !wanted(name) || page.last().is_some_and(|last| last.0 == name) {
                continue;
            }
            if page.len() == most {
                let last = page.last().map(|last| last.0.clone());
                return (page, last);
            }
            page.push((name.to_owned(), common.is_none().then_some(bytes.len()), *time));
        }
        (page, None)
    }
}

/// Key, size unless it is a common prefix, time.
pub(crate) type Entry = (String, Option<usize>, u64);

/// The answer to a get or head of an object, with the range that was asked for.
pub(crate) fn object(found: Option<(Bytes, u64)>, range: Option<&str>, tails: bool) -> Answer {
    let Some((bytes, time)) = found else { return status(404, "NoSuchKey") };
    let (size, answer) = (bytes.len(), Response::builder().header("etag", "\"1\"").header("last-modified", date(time)));
    let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
        return answer.header("content-length", size).body(bytes).expect("an answer");
    };
    let (first, last) = range.split_once('-').expect("a range has a dash");
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), last) => (first, last.map_or(size as u64, |last| last.saturating_add(1).min(size as u64))),
        (Err(_), Ok(len)) if tails => ((size as u64).saturating_sub(len), size as u64),
        _ => return status(400, "InvalidRange"),
    };
    if start >= end {
        return status(416, "InvalidRange");
    }
    let part = bytes.slice(start as usize..end as usize);
    answer
        .status(206)
        .header("content-range", format!("bytes {start}-{}/{size}", end - 1))
        .header("content-length", part.len())
        .body(part)
        .expect("an answer")
}

/// An answer that says no, as S3 and GCS say it.
pub(crate) fn status(status: u16, code: &str) -> Answer {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>said by the test</Message></Error>");
    let answer = Response::builder().status(status).header("x-ms-error-code", code).header("etag", "\"1\"");
    answer.body(Bytes::from(text)).expect("an answer")
}

/// A time as HTTP has it.
pub(crate) fn date(seconds: u64) -> String {
    let time = jiff::Timestamp::from_second(seconds as i64).expect("a time");
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// The value of a parameter of a query, decoded.
pub(crate) fn parameter(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(&value.replace('+', " "))).next()
}

/// Without `%XX`.
pub(crate) fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, code) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).expect("keys are UTF-8")
}

/// For a document.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
