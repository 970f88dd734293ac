//! S3 by `s3s-fs`: signatures are checked, objects are files.

use super::{Answer, BUCKET, KEY, SECRET, Service, status};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming};
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use std::{future::Future, path::Path, pin::Pin};

pub(super) fn service(root: &Path) -> S3 {
    std::fs::create_dir(root.join(BUCKET)).expect("cannot create a bucket");
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).expect("cannot serve a directory"));
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    S3(builder.build())
}

pub(super) struct S3(S3Service);

impl Service for S3 {
    fn answer(&self, request: Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let service = self.0.clone();
        Box::pin(async move {
            let Ok(answer) = service.call(request.map(s3s::Body::from)).await else {
                return status(500, "InternalError");
            };
            let (parts, body) = answer.into_parts();
            match body.collect().await {
                Ok(body) => Response::from_parts(parts, Bytes::from(body.to_bytes())),
                Err(_) => status(500, "InternalError"),
            }
        })
    }
}
