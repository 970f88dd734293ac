//! Those who hand out credentials for S3 to whoever shows a token.

use super::{Answer, KEY, SECRET, Service, parameter, status};
use bytes::Bytes;
use hyper::{Request, Response, body::Incoming};
use std::{future::Future, pin::Pin};

/// Until when what is handed out is good.
const EXPIRATION: &str = "2999-01-01T00:00:00Z";

#[derive(Debug)]
pub(super) struct Tokens;

impl Service for Tokens {
    fn answer(&self, request: Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        let query = request.uri().query().unwrap_or_default();
        let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let text = match (request.uri().path(), parameter(query, "WebIdentityToken").as_deref(), header) {
            ("/agent", _, Some("good")) => Some(format!(
                r#"{{"AccessKeyId":"{KEY}","SecretAccessKey":"{SECRET}","Token":"session","Expiration":"{EXPIRATION}"}}"#
            )),
            ("/", Some("good"), _) => Some(format!(
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                 <AccessKeyId>{KEY}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>\
                 <SessionToken>session</SessionToken><Expiration>{EXPIRATION}</Expiration>\
                 </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            )),
            _ => None,
        };
        Box::pin(async move {
            match text {
                Some(text) => Response::new(Bytes::from(text)),
                None => status(403, "AccessDenied"),
            }
        })
    }
}
