//! From what came over the wire to [`Fault`].
//!
//! The words are those of S3, GCS (which speaks S3's errors) and Azure; a status decides where a word is not known.

use super::client::{Seen, chain};
use crate::store::{Fault, Said};
use object_store::client::HttpErrorKind;

/// What an operation that failed met with.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    pub(super) said: Said,
    /// Status of the answer, if there was one that is about the store.
    pub(super) status: Option<u16>,
    pub(super) code: String,
}

impl Failure {
    /// A failure of ours to understand an answer that counted as success.
    pub(super) fn of(fault: Fault, text: impl Into<String>) -> Self {
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
                let fault = if of_token { Fault::NoCredentials } else { of_connection(kind, &text) };
                Self { fault, said: Said(text), status: None, code: String::new() }
            }
            // The headers were good; what failed is the body, or ours to prepare.
            None => {
                let text = chain(error);
                let is_body = ["error decoding response body", "connection", "body"].iter().any(|w| text.contains(w));
                let fault = if is_body { Fault::Broken } else { Fault::Answer };
                Self::of(fault, text)
            }
        }
    }
}

fn of_answer(status: u16, code: &str, message: &str) -> Fault {
    match code {
        "NoSuchBucket" | "ContainerNotFound" | "InvalidBucketName" | "AccountNotFound" | "ResourceNotFound" => {
            return Fault::NoBucket;
        }
        "RequestTimeTooSkewed" => return Fault::Clock,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "ExpiredToken"
        | "InvalidSecurity"
        | "NotSignedUp"
        | "AuthenticationFailed"
        | "InvalidAuthenticationInfo"
        | "NoAuthenticationInformation"
        | "TokenRefreshRequired" => return Fault::Credentials,
        "AuthorizationHeaderMalformed" if message.contains("region") => return Fault::Region,
        "PermanentRedirect" | "TemporaryRedirect" | "Redirect" | "IllegalLocationConstraintException" => {
            return Fault::Region;
        }
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" | "AccountBeingDisabled" => return Fault::Full,
        "EntityTooLarge" | "RequestBodyTooLarge" => return Fault::TooLarge,
        "NotImplemented" | "UnsupportedHeader" | "UnsupportedRestVersion" => return Fault::Unsupported,
        "SlowDown"
        | "ServerBusy"
        | "OperationTimedOut"
        | "RequestTimeout"
        | "ConditionalRequestConflict"
        | "OperationAborted" => return Fault::Busy,
        _ => {}
    }
    match status {
        301 | 302 | 307 | 308 => Fault::Region,
        401 => Fault::Credentials,
        403 => Fault::Denied,
        408 | 409 | 429 | 503 => Fault::Busy,
        413 => Fault::TooLarge,
        501 | 505 => Fault::Unsupported,
        507 => Fault::Full,
        500.. => Fault::Failed,
        _ => Fault::Refused,
    }
}

/// Whoever hands out credentials has none for us, or is not well today.
fn of_token_service(status: u16) -> Fault {
    match status {
        408 | 429 | 500.. => Fault::NoCredentials,
        _ => Fault::Credentials,
    }
}

fn of_connection(kind: HttpErrorKind, text: &str) -> Fault {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["invalid peer certificate", "UnknownIssuer", "certificate expired", "CertNotValid"]) {
        return Fault::Untrusted;
    }
    match kind {
        HttpErrorKind::Connect => Fault::Unreachable,
        HttpErrorKind::Timeout => Fault::Silent,
        _ => Fault::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_decide_before_statuses() {
        for (status, code, message, expected) in [
            (403, "InvalidAccessKeyId", "", Fault::Credentials),
            (403, "AccessDenied", "", Fault::Denied),
            (403, "", "", Fault::Denied),
            (403, "RequestTimeTooSkewed", "", Fault::Clock),
            (404, "NoSuchBucket", "", Fault::NoBucket),
            (404, "ContainerNotFound", "", Fault::NoBucket),
            (400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'", Fault::Region),
            (400, "AuthorizationHeaderMalformed", "no credential", Fault::Refused),
            (301, "", "", Fault::Region),
            (400, "ExpiredToken", "", Fault::Credentials),
            (409, "ConditionalRequestConflict", "", Fault::Busy),
            (500, "InternalError", "", Fault::Failed),
            (502, "", "", Fault::Failed),
            (503, "SlowDown", "", Fault::Busy),
            (429, "", "", Fault::Busy),
            (507, "", "", Fault::Full),
            (501, "NotImplemented", "", Fault::Unsupported),
            (418, "", "", Fault::Refused),
        ] {
            assert_eq!(of_answer(status, code, message), expected, "{status} {code}");
        }
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        use Fault as F;
        for fault in [F::Unreachable, F::Silent, F::Broken, F::Busy, F::Failed, F::NoCredentials] {
            assert!(!fault.is_permanent(), "{fault:?}");
        }
        for fault in [F::Untrusted, F::Credentials, F::Denied, F::NoBucket, F::Region, F::Clock, F::Full, F::Refused] {
            assert!(fault.is_permanent(), "{fault:?}");
        }
    }
}
