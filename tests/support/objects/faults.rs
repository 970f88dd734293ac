//! What can go wrong between a service and us.

use super::{Answer, Asked, Sent, lock, status, whole};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Request, body::Frame, body::Incoming};
use std::{fmt, future::Future, sync::Mutex, time::Duration};

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The service is not asked; this is answered: a status and the service's word for it.
    Say(u16, &'static str),
    /// The service is not asked, and the connection closed.
    Close,
    /// The service does it, and the connection is closed before it answers.
    Lose,
    /// The connection is closed in the middle of the answer's body.
    Cut,
    /// Half of the body comes, and looks whole.
    Shorten,
    /// The answer comes later.
    Wait(Duration),
    /// Nothing more comes: not a byte is read or sent.
    Hang,
}

#[derive(Debug)]
struct Rule {
    method: &'static str,
    part: String,
    after: usize,
    times: usize,
    what: What,
}

/// Rules for requests; the first that fits and is not used up strikes.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<Rule>>);

impl Faults {
    /// The next `times` requests of this method whose path or query contains `part` meet with `what`.
    pub fn next(&self, times: usize, method: &'static str, part: &str, what: What) {
        self.later(0, times, method, part, what);
    }

    /// As [`Self::next`], but `after` such requests pass before.
    pub fn later(&self, after: usize, times: usize, method: &'static str, part: &str, what: What) {
        lock(&self.0).push(Rule { method, part: part.to_owned(), after, times, what });
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    /// How often rules are still to strike.
    pub fn left(&self) -> usize {
        lock(&self.0).iter().map(|rule| rule.times).sum()
    }

    pub(super) fn strike(&self, asked: &Asked) -> Option<What> {
        let mut rules = lock(&self.0);
        for rule in rules.iter_mut() {
            let fits = (rule.method.is_empty() || rule.method == asked.method) && asked.target.contains(&rule.part);
            if fits && rule.after > 0 {
                rule.after -= 1;
            } else if fits && rule.times > 0 {
                rule.times -= 1;
                return Some(rule.what);
            }
        }
        None
    }
}

/// Makes hyper close a connection.
#[derive(Debug)]
pub(crate) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed by the test")
    }
}

impl std::error::Error for Closed {}

pub(super) async fn between<F: Future<Output = Answer>>(
    what: Option<What>,
    request: Request<Incoming>,
    service: impl FnOnce(Request<Incoming>) -> F,
) -> Result<Sent, Closed> {
    match what {
        None => Ok(whole(service(request).await)),
        Some(What::Say(code, word)) => {
            // As services do, which read what was sent before they refuse it.
            _ = request.into_body().collect().await;
            Ok(whole(status(code, word)))
        }
        Some(What::Close) => Err(Closed),
        Some(What::Lose) => {
            service(request).await;
            Err(Closed)
        }
        Some(What::Wait(time)) => {
            tokio::time::sleep(time).await;
            Ok(whole(service(request).await))
        }
        Some(What::Hang) => std::future::pending().await,
        Some(What::Shorten) => {
            let (mut parts, body) = service(request).await.into_parts();
            parts.headers.remove("content-length");
            Ok(whole(Answer::from_parts(parts, body.slice(..body.len() / 2))))
        }
        Some(What::Cut) => {
            let (parts, body) = service(request).await.into_parts();
            let half = body.slice(..body.len() / 2);
            // The pause lets the first half go out before the connection is closed.
            let rest = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(Closed)
            };
            let first = futures_util::stream::once(async move { Ok::<_, Closed>(Frame::data(half)) });
            let body = StreamBody::new(futures_util::StreamExt::chain(first, futures_util::stream::once(rest)));
            Ok(Sent::from_parts(parts, BodyExt::boxed(SyncStream(Box::pin(body)))))
        }
    }
}

/// A body that may be shared between threads, as hyper's box wants.
struct SyncStream<B>(std::pin::Pin<Box<B>>);

// SAFETY: there is no way to reach what is inside through a shared reference.
unsafe impl<B: Send> Sync for SyncStream<B> {}

impl<B: hyper::body::Body<Data = Bytes, Error = Closed> + Send> hyper::body::Body for SyncStream<B> {
    type Data = Bytes;
    type Error = Closed;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Closed>>> {
        self.0.as_mut().poll_frame(cx)
    }
}
