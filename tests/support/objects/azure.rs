//! A fake of what we use of Azure's Blob REST API, with the account in the path. Signatures are not checked, only whose
//! they say they are; `Azurite`, which checks them, takes Node.js and 110 MB.

use super::{Answer, BUCKET, KEY, Objects, Service, date, decoded, escaped, object, parameter, status};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, Request, Response, body::Incoming};
use std::{future::Future, pin::Pin, sync::Arc};

/// Entries of one page.
const PAGE: usize = 500;

/// What a shared access signature must hold to be taken.
const SIGNATURE: &str = "sig=good";

#[derive(Debug, Default)]
pub(super) struct Azure(Arc<Objects>);

impl Service for Azure {
    fn answer(&self, request: Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(answer(Arc::clone(&self.0), request))
    }
}

async fn answer(objects: Arc<Objects>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else { return status(400, "IncompleteBody") };
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().expect("headers are text"));
    let query = parts.uri.query().unwrap_or_default();
    let is_signed = header("authorization").is_some_and(|text| text.starts_with(&format!("SharedKey {KEY}:")));
    if !is_signed && !query.contains(SIGNATURE) {
        return status(403, "AuthenticationFailed");
    }
    let mut path = parts.uri.path().trim_start_matches('/').splitn(3, '/');
    let (account, container) = (path.next().unwrap_or_default(), path.next().unwrap_or_default());
    let key = decoded(path.next().unwrap_or_default());
    if (account, container) != (KEY, BUCKET) {
        return status(404, "ContainerNotFound");
    }
    let range = header("x-ms-range").or(header("range"));
    match (&parts.method, key.as_str(), parameter(query, "comp").as_deref()) {
        (&Method::GET, "", Some("list")) => list(&objects, query),
        (&Method::POST, "", Some("batch")) => batch(&objects, &String::from_utf8_lossy(&body)),
        (&Method::GET, key, None) => absent(object(objects.get(key), range, false)),
        (&Method::HEAD, key, None) => absent(object(objects.get(key), None, false)).map(|_| Bytes::new()),
        (&Method::PUT, key, None) => {
            assert_eq!(header("if-none-match"), Some("*"), "a put that is no creation");
            if !objects.create(key, body) {
                return status(409, "BlobAlreadyExists");
            }
            Response::builder().status(201).header("etag", "\"1\"").body(Bytes::new()).expect("ok")
        }
        _ => status(405, "UnsupportedHttpVerb"),
    }
}

/// Azure's word for a missing object.
fn absent(answer: Answer) -> Answer {
    if answer.status() == 404 { status(404, "BlobNotFound") } else { answer }
}

/// Several deletes in one request; each part begins with a request line.
fn batch(objects: &Objects, body: &str) -> Answer {
    let mut text = String::new();
    let parts = body.lines().filter_map(|line| line.strip_prefix("DELETE ")?.split(' ').next());
    for (number, path) in parts.enumerate() {
        let path = path.split('?').next().unwrap_or_default();
        // The account is not repeated, unless it is a part of the path.
        let key = path.split_once(&format!("{BUCKET}/")).map_or("", |(_, key)| key);
        let said =
            if objects.delete(&decoded(key)) { "202 Accepted" } else { "404 The specified blob does not exist." };
        let code = if said.starts_with('4') { "x-ms-error-code: BlobNotFound\r\n" } else { "" };
        text += &format!(
            "--batch\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {said}\r\n{code}\
             x-ms-request-id: 1\r\n\r\n\r\n"
        );
    }
    text += "--batch--";
    let answer = Response::builder().status(202).header("content-type", "multipart/mixed; boundary=batch");
    answer.body(Bytes::from(text)).expect("ok")
}

fn list(objects: &Objects, query: &str) -> Answer {
    let value = |name: &str| parameter(query, name).unwrap_or_default();
    // A marker is where the last page ended; a start is where the first begins, itself included.
    let (marker, start) = (value("marker"), value("startFrom"));
    let wanted = |name: &str| name > marker.as_str() && (!marker.is_empty() || name >= start.as_str());
    let (page, next) = objects.page_of(&value("prefix"), value("delimiter") == "/", wanted, PAGE);
    let mut text = String::from("<?xml version=\"1.0\"?><EnumerationResults><Blobs>");
    for (key, size, time) in page {
        let key = escaped(&key);
        text += &match size {
            Some(size) => format!(
                "<Blob><Name>{key}</Name><Properties><Last-Modified>{}</Last-Modified>\
                 <Content-Length>{size}</Content-Length><Content-Type>x/y</Content-Type><Etag>1</Etag></Properties></Blob>",
                date(time)
            ),
            None => format!("<BlobPrefix><Name>{key}</Name></BlobPrefix>"),
        };
    }
    text += &format!("</Blobs><NextMarker>{}</NextMarker></EnumerationResults>", escaped(&next.unwrap_or_default()));
    Response::builder().body(Bytes::from(text)).expect("ok")
}
