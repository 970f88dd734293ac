//! From what came over the wire to [`ServiceFault`].
//!
//! The words are those of S3, GCS (which speaks S3's errors) and Azure; a status decides where a word is not known.

use super::client::{Seen, chain};
use crate::store::{Said, ServiceFault};
use object_store::client::HttpErrorKind;

/// What an operation that failed met with.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) fault: ServiceFault,
    pub(super) said: Said,
    /// Status of the answer, if there was one that is about the store.
    pub(super) status: Option<u16>,
    pub(super) code: String,
}

impl Failure {
    /// A failure of ours to understand an answer that counted as success.
    pub(super) fn of(fault: ServiceFault, text: impl Into<String>) -> Self {
        Self { fault, said: Said(text.into()), status: None, code: String::new() }
    }

    /// From the last request of the operation, and what `object_store` makes of it.
    pub(super) fn new(seen: Option<Seen>, error: &object_store::Error) -> Self {
        match seen {
            Some(Seen::Answer { status, code, message, of_token }) => {
                let fault = if of_token { of_token_service(status) } else { of_answer(status, &code, &message) };
                let words: Vec<_> = [code.as_str(), message.as_str()].into_iter().filter(|w| !w.is_empty()).collect();
                let said = match words.as_slice() {
                    [] => format!("HTTP status {status}"),
                    words => format!("HTTP status {status}, {}", words.join(": ")),
                };
                Self { fault, said: Said(said), status: (!of_token).then_some(status), code }
            }
            Some(Seen::Nothing { text, kind, of_token }) => {
                let fault = if of_token { ServiceFault::NoCredentials } else { of_connection(kind, &text) };
                Self { fault, said: Said(text), status: None, code: String::new() }
            }
            // The headers were good; what failed is the body, or ours to prepare.
            None => {
                let text = chain(error);
                if text.contains("token file") {
                    return Self::of(ServiceFault::NoCredentials, text);
                }
                let is_body = ["error decoding response body", "connection", "body"].iter().any(|w| text.contains(w));
                let fault = if is_body { ServiceFault::Broken } else { ServiceFault::Answer };
                Self::of(fault, text)
            }
        }
    }
}

fn of_answer(status: u16, code: &str, message: &str) -> ServiceFault {
    match code {
        "NoSuchBucket" | "ContainerNotFound" | "InvalidBucketName" | "AccountNotFound" | "ResourceNotFound" => {
            return ServiceFault::NoBucket;
        }
        "RequestTimeTooSkewed" => return ServiceFault::Clock,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "ExpiredToken"
        | "InvalidSecurity"
        | "NotSignedUp"
        | "AuthenticationFailed"
        | "InvalidAuthenticationInfo"
        | "NoAuthenticationInformation"
        | "TokenRefreshRequired" => return ServiceFault::Credentials,
        "AuthorizationHeaderMalformed" if message.contains("region") => return ServiceFault::Region,
        "PermanentRedirect" | "TemporaryRedirect" | "Redirect" | "IllegalLocationConstraintException" => {
            return ServiceFault::Region;
        }
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" | "AccountBeingDisabled" => {
            return ServiceFault::Full;
        }
        "EntityTooLarge" | "RequestBodyTooLarge" => return ServiceFault::TooLarge,
        "NotImplemented" | "UnsupportedHeader" | "UnsupportedRestVersion" => return ServiceFault::Unsupported,
        "SlowDown"
        | "ServerBusy"
        | "OperationTimedOut"
        | "RequestTimeout"
        | "ConditionalRequestConflict"
        | "OperationAborted" => return ServiceFault::Busy,
        _ => {}
    }
    match status {
        301 | 302 | 307 | 308 => ServiceFault::Region,
        401 => ServiceFault::Credentials,
        403 => ServiceFault::Denied,
        408 | 409 | 429 | 503 => ServiceFault::Busy,
        413 => ServiceFault::TooLarge,
        501 | 505 => ServiceFault::Unsupported,
        507 => ServiceFault::Full,
        500.. => ServiceFault::Failed,
        _ => ServiceFault::Refused,
    }
}

/// Whoever hands out credentials has none for us, or is not well today.
fn of_token_service(status: u16) -> ServiceFault {
    match status {
        408 | 429 | 500.. => ServiceFault::NoCredentials,
        _ => ServiceFault::Credentials,
    }
}

fn of_connection(kind: HttpErrorKind, text: &str) -> ServiceFault {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["invalid peer certificate", "UnknownIssuer", "certificate expired", "CertNotValid"]) {
        return ServiceFault::Untrusted;
    }
    match kind {
        HttpErrorKind::Connect => ServiceFault::Unreachable,
        HttpErrorKind::Timeout => ServiceFault::Silent,
        _ => ServiceFault::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_decide_before_statuses() {
        for (status, code, message, expected) in [
            (403, "InvalidAccessKeyId", "", ServiceFault::Credentials),
            (403, "AccessDenied", "", ServiceFault::Denied),
            (403, "", "", ServiceFault::Denied),
            (403, "RequestTimeTooSkewed", "", ServiceFault::Clock),
            (404, "NoSuchBucket", "", ServiceFault::NoBucket),
            (404, "ContainerNotFound", "", ServiceFault::NoBucket),
            (400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'", ServiceFault::Region),
            (400, "AuthorizationHeaderMalformed", "no credential", ServiceFault::Refused),
            (301, "", "", ServiceFault::Region),
            (400, "ExpiredToken", "", ServiceFault::Credentials),
            (409, "ConditionalRequestConflict", "", ServiceFault::Busy),
            (500, "InternalError", "", ServiceFault::Failed),
            (502, "", "", ServiceFault::Failed),
            (503, "SlowDown", "", ServiceFault::Busy),
            (429, "", "", ServiceFault::Busy),
            (507, "", "", ServiceFault::Full),
            (501, "NotImplemented", "", ServiceFault::Unsupported),
            (418, "", "", ServiceFault::Refused),
        ] {
            assert_eq!(of_answer(status, code, message), expected, "{status} {code}");
        }
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        use ServiceFault as F;
        for fault in [F::Unreachable, F::Silent, F::Broken, F::Busy, F::Failed, F::NoCredentials] {
            assert!(!fault.is_permanent(), "{fault:?}");
        }
        for fault in [F::Untrusted, F::Credentials, F::Denied, F::NoBucket, F::Region, F::Clock, F::Full, F::Refused] {
            assert!(fault.is_permanent(), "{fault:?}");
        }
    }
}
