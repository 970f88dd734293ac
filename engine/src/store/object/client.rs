//! The HTTP client below `object_store`: our timeouts and certificates, another host to connect to, counters, and what
//! the service said when it refused.
//!
//! `object_store` makes errors of answers before they can be judged: a 409 is to it an object that exists, a missing bucket
//! a missing object. So the answer to the last request of an operation is kept beside it, in a task-local that
//! the operation's own task reads when it has failed.

use super::config::{BucketConfig, Tls};
use super::requests::{Counters, Purpose};
use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::uri::{Authority, Uri};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

/// No service's error document is longer that has something to say.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// How long to wait for a connection, if the timeout is not shorter.
const CONNECT: Duration = Duration::from_secs(10);

/// What came of the last request of an operation.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    /// An answer that is no success.
    Answer {
        /// Status of HTTP.
        status: u16,
        /// The service's own word for it; may be empty.
        code: String,
        /// What it says about it; may be empty.
        message: String,
        /// Whether this was about credentials, with another service.
        of_token: bool,
    },
    /// No answer.
    Nothing {
        /// Errors and their causes.
        text: String,
        /// What kind of failure.
        kind: HttpErrorKind,
        /// Whether this was about credentials, with another service.
        of_token: bool,
    },
}

tokio::task_local! {
    /// See [`Seen`]. An operation of the store is one task, and asks one thing after the other.
    pub(super) static SEEN: RefCell<Option<Seen>>;
}

fn note(seen: Option<Seen>) {
    // Outside of an operation there is nobody to tell.
    let _ = SEEN.try_with(|place| *place.borrow_mut() = seen);
}

/// Makes the client, for `object_store` to ask for as often as it likes.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    client: reqwest::Client,
    counters: Arc<Counters>,
    /// Authority of the store's own URL: others are asked for credentials.
    store: Authority,
    connect_to: Option<Authority>,
    user_project: Option<HeaderValue>,
}

impl Connector {
    pub(super) fn new(config: &BucketConfig, counters: Arc<Counters>) -> Result<Self, String> {
        let url: Uri = config.base_url().parse().map_err(|e| format!("'{}' is no URL: {e}", config.base_url()))?;
        let store = url.authority().ok_or_else(|| format!("'{}' names no host", config.endpoint))?.clone();
        let connect_to = config.connect_to.as_ref().map(|to| to.parse().map_err(|e| format!("'{to}' is no host: {e}")));
        let user_project = match &config.service {
            super::Service::Gcs(gcs) => gcs.user_project.as_ref(),
            _ => None,
        };
        let user_project = user_project.map(|p| p.parse().map_err(|_| format!("'{p}' is no project")));
        Ok(Self {
            client: client(config)?,
            counters,
            store,
            connect_to: connect_to.transpose()?,
            user_project: user_project.transpose()?,
        })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl HttpService for Connector {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let of_token = request.uri().authority() != Some(&self.store);
        let query = request.uri().query().unwrap_or_default();
        let purpose = if of_token { Purpose::Token } else { Purpose::of(request.method(), query) };
        if !of_token {
            self.redirect(&mut request);
        }
        self.counters.request(purpose);
        if purpose == Purpose::Put {
            self.counters.sent(request.body().content_length());
        }
        note(None);
        let answer = match HttpService::call(&self.client, request).await {
            Ok(answer) if answer.status().is_success() => return Ok(answer),
            Ok(answer) => answer,
            Err(e) => {
                self.counters.failed();
                note(Some(Seen::Nothing { text: chain(&e), kind: e.kind(), of_token }));
                return Err(e);
            }
        };
        let status = answer.status();
        if status.is_server_error() || status.as_u16() == 429 {
            self.counters.failed();
        }
        let (parts, body) = answer.into_parts();
        let header = parts.headers.get("x-ms-error-code").and_then(|code| code.to_str().ok());
        // What cannot be read of it is not worth another error: the status says enough.
        let body = beginning(body).await;
        let text = String::from_utf8_lossy(&body);
        let code = header.map(str::to_owned).or_else(|| element(&text, "Code")).unwrap_or_default();
        let message = element(&text, "Message").unwrap_or_default();
        note(Some(Seen::Answer { status: status.as_u16(), code, message, of_token }));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(body)))
    }
}

impl Connector {
    /// Sends a request for the store to another host. The store's name stays in the header that says who is meant, and in
    /// the signature.
    fn redirect(&self, request: &mut HttpRequest) {
        if let Some(project) = &self.user_project {
            request.headers_mut().insert("x-goog-user-project", project.clone());
        }
        let Some(to) = &self.connect_to else { return };
        let mut parts = request.uri().clone().into_parts();
        let host = parts.authority.as_ref().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
        parts.authority = Some(to.clone());
        if let (Ok(uri), Some(host)) = (Uri::from_parts(parts), host) {
            *request.uri_mut() = uri;
            request.headers_mut().insert(HOST, host);
        }
    }
}

fn client(config: &BucketConfig) -> Result<reqwest::Client, String> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("pgkeep/", env!("CARGO_PKG_VERSION")))
        // Where a request ends up is the administrator's choice: redirects show a wrong region, and proxies of the
        // environment are for browsers.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only()
        .connect_timeout(config.timeout.min(CONNECT))
        // Finds the dead peer of an upload, of which nothing else is heard until it ends.
        .tcp_user_timeout(config.timeout)
        .tcp_keepalive(config.timeout)
        .pool_idle_timeout(Duration::from_secs(30))
        .tls_danger_accept_invalid_certs(config.tls.accept_any);
    let authorities = authorities(&config.tls)?;
    let builder = if authorities.is_empty() { builder } else { builder.tls_certs_only(authorities) };
    builder.build().map_err(|e| format!("cannot set up TLS: {}", chain(&e)))
}

fn authorities(tls: &Tls) -> Result<Vec<reqwest::Certificate>, String> {
    let mut found = Vec::new();
    for path in &tls.authorities {
        let shown = path.display();
        let pem = std::fs::read(path).map_err(|e| format!("cannot read certificates in '{shown}': {e}"))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|e| format!("'{shown}' does not hold certificates in PEM: {}", chain(&e)))?;
        if certificates.is_empty() {
            return Err(format!("'{shown}' holds no certificate"));
        }
        found.extend(certificates);
    }
    Ok(found)
}

/// The first bytes of a body, as far as they come.
async fn beginning(mut body: HttpResponseBody) -> Bytes {
    use http_body_util::BodyExt;
    let mut found = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            found.extend_from_slice(data.get(..data.len().min(ERROR_BYTES_MAX - found.len())).unwrap_or_default());
        }
        if found.len() >= ERROR_BYTES_MAX {
            break;
        }
    }
    found.into()
}

/// Text of the first element of a name in a document; all services say what is wrong in this form.
fn element(document: &str, name: &str) -> Option<String> {
    let (_, rest) = document.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once("</")?;
    let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (!one_line.is_empty()).then(|| one_line.chars().filter(|c| !c.is_control()).take(400).collect())
}

/// An error and its causes, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
