//! S3 by the crate `s3s`, which reads requests, checks their signatures and writes answers; objects are in memory. Its own
//! server over directories is no use here: it creates without being atomic, and fails at a range longer than the object.

use super::{Answer, BUCKET, KEY, Objects, SECRET, Service, status};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming};
use s3s::{
    Body, S3, S3Request, S3Response, S3Result,
    auth::SimpleAuth,
    dto::*,
    s3_error,
    service::{S3Service, S3ServiceBuilder},
};
use std::{
    future::Future,
    pin::Pin,
    time::{Duration, UNIX_EPOCH},
};

/// Entries of one page.
const PAGE: usize = 1000;

pub(super) fn service() -> Amazon {
    let mut builder = S3ServiceBuilder::new(Bucket::default());
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    Amazon(builder.build())
}

pub(super) struct Amazon(S3Service);

impl Service for Amazon {
    fn answer(&self, request: Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let service = self.0.clone();
        Box::pin(async move {
            let Ok(answer) = service.call(request.map(Body::from)).await else { return status(500, "InternalError") };
            let (parts, body) = answer.into_parts();
            match body.collect().await {
                Ok(body) => Response::from_parts(parts, body.to_bytes()),
                Err(_) => status(500, "InternalError"),
            }
        })
    }
}

#[derive(Debug, Default)]
struct Bucket(Objects);

impl Bucket {
    fn object(&self, bucket: &str, key: &str) -> S3Result<(Bytes, Timestamp)> {
        known(bucket)?;
        let (bytes, time) = self.0.get(key).ok_or_else(|| s3_error!(NoSuchKey))?;
        Ok((bytes, timestamp(time)))
    }
}

fn known(bucket: &str) -> S3Result<()> {
    if bucket == BUCKET { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
}

fn timestamp(seconds: u64) -> Timestamp {
    (UNIX_EPOCH + Duration::from_secs(seconds)).into()
}

fn tag() -> Option<ETag> {
    Some(ETag::Strong("1".to_owned()))
}

#[async_trait::async_trait]
impl S3 for Bucket {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        known(&input.bucket)?;
        assert!(input.if_none_match.is_some_and(|condition| condition.is_any()), "a put that is no creation");
        let body = input.body.ok_or_else(|| s3_error!(IncompleteBody))?;
        let bytes = Body::from(body).collect().await.map_err(|_| s3_error!(IncompleteBody))?.to_bytes();
        if !self.0.create(&input.key, bytes) {
            return Err(s3_error!(PreconditionFailed));
        }
        Ok(S3Response::new(PutObjectOutput { e_tag: tag(), ..PutObjectOutput::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let (bytes, time) = self.object(&input.bucket, &input.key)?;
        let size = bytes.len();
        let range = input.range.map(|range| range.check(size as u64)).transpose()?;
        let part = range.clone().map_or(0..size, |range| range.start as usize..range.end as usize);
        if part.is_empty() && range.is_some() {
            return Err(s3_error!(InvalidRange));
        }
        let body = bytes.slice(part);
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(body.len() as i64),
            content_range: range.map(|range| format!("bytes {}-{}/{size}", range.start, range.end - 1)),
            body: Some(StreamingBlob::from(Body::from(body))),
            e_tag: tag(),
            last_modified: Some(time),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let (bytes, time) = self.object(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(bytes.len() as i64),
            e_tag: tag(),
            last_modified: Some(time),
            ..HeadObjectOutput::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        known(&request.input.bucket)?;
        self.0.delete(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        known(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let after = input.continuation_token.or(input.start_after).unwrap_or_default();
        let (page, next) = self.0.page(&prefix, input.delimiter.is_some(), &after, PAGE);
        let mut output = ListObjectsV2Output::default();
        let (mut contents, mut prefixes) = (Vec::new(), Vec::new());
        for (key, size, time) in page {
            match size {
                Some(size) => contents.push(Object {
                    key: Some(key),
                    size: Some(size as i64),
                    e_tag: tag(),
                    last_modified: Some(timestamp(time)),
                    ..Object::default()
                }),
                None => prefixes.push(CommonPrefix { prefix: Some(key) }),
            }
        }
        output.is_truncated = Some(next.is_some());
        output.next_continuation_token = next;
        output.contents = Some(contents);
        output.common_prefixes = Some(prefixes);
        Ok(S3Response::new(output))
    }
}
