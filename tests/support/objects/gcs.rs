//! A fake of what we use of Google Cloud Storage's XML API. There is no emulator that speaks it.

use super::{Answer, BUCKET, Objects, SECRET, Service, date, decoded, escaped, object, parameter, status};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, Request, Response, body::Incoming};
use std::{future::Future, pin::Pin, sync::Arc};

/// Entries of one page.
const PAGE: usize = 500;

#[derive(Debug, Default)]
pub(super) struct Gcs(Arc<Objects>);

impl Service for Gcs {
    fn answer(&self, request: Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(answer(Arc::clone(&self.0), request))
    }
}

async fn answer(objects: Arc<Objects>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return status(400, "IncompleteBody") };
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().expect("headers are text"));
    if header("authorization") != Some(&format!("Bearer {SECRET}")) {
        return status(401, "AuthenticationRequired");
    }
    let path = parts.uri.path().trim_start_matches('/');
    let (bucket, key) = path.split_once('/').map_or((path, String::new()), |(b, key)| (b, decoded(key)));
    if bucket != BUCKET {
        return status(404, "NoSuchBucket");
    }
    match (&parts.method, key.as_str()) {
        (&Method::GET, "") => list(&objects, parts.uri.query().unwrap_or_default()),
        (&Method::GET, key) => object(objects.get(key), header("range"), true),
        (&Method::HEAD, key) => object(objects.get(key), None, true).map(|_| Bytes::new()),
        (&Method::PUT, key) => {
            assert_eq!(header("x-goog-if-generation-match"), Some("0"), "a put that is no creation");
            if !objects.create(key, body.to_bytes()) {
                return status(412, "PreconditionFailed");
            }
            Response::builder().header("etag", "\"1\"").header("x-goog-generation", "1").body(Bytes::new()).expect("ok")
        }
        (&Method::DELETE, key) => match objects.delete(key) {
            true => Response::builder().status(204).body(Bytes::new()).expect("ok"),
            false => status(404, "NoSuchKey"),
        },
        _ => status(405, "MethodNotAllowed"),
    }
}

fn list(objects: &Objects, query: &str) -> Answer {
    let value = |name: &str| parameter(query, name).unwrap_or_default();
    let after = value("continuation-token").max(value("start-after"));
    let (page, next) = objects.page(&value("prefix"), value("delimiter") == "/", &after, PAGE);
    let mut text = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
    for (key, size, time) in page {
        let key = escaped(&key);
        text += &match size {
            Some(size) => {
                let time = jiff::Timestamp::from_second(time as i64).expect("a time");
                format!(
                    "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{time}</LastModified>\
                     <ETag>\"1\"</ETag></Contents>"
                )
            }
            None => format!("<CommonPrefixes><Prefix>{key}</Prefix></CommonPrefixes>"),
        };
    }
    if let Some(next) = next {
        text += &format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(&next));
    }
    text += "</ListBucketResult>";
    Response::builder().header("date", date(0)).body(Bytes::from(text)).expect("ok")
}
