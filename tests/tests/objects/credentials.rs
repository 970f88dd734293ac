//! Credentials that are asked for: of a token service, and of a Kubernetes node's agent.

use crate::contract::config;
use pgkeep_engine::store::{
    BucketStore, Put, ServiceFault, Store, StoreError,
    object::{S3Credentials, Service},
};
use std::path::Path;
use support::objects::{Kind, Server, What};

/// A store in S3 for whoever has these.
fn store(s3: &Server, credentials: S3Credentials) -> BucketStore {
    let mut with = config(s3, Kind::S3, "r");
    let Service::S3(service) = &mut with.service else { panic!("{with:?}") };
    service.credentials = credentials;
    BucketStore::open(&with).expect("open")
}

/// Both ways, with a token in a file.
fn both(tokens: &Server, file: &Path) -> [S3Credentials; 2] {
    let token_file = file.display().to_string();
    [
        S3Credentials::WebIdentity {
            token_file: token_file.clone(),
            role: "arn:aws:iam::1:role/keeper".to_owned(),
            endpoint: Some(tokens.url()),
        },
        S3Credentials::Pod { url: format!("{}/agent", tokens.url()), token_file },
    ]
}

fn fault_of(result: Result<Put, StoreError>) -> (ServiceFault, String) {
    match result {
        Err(StoreError::Service { fault, source, .. }) => (fault, source.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_is_exchanged_for_credentials_once() {
    let (s3, tokens) = (Server::start(Kind::S3), Server::start(Kind::Tokens));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "good").expect("write");
    for (number, credentials) in both(&tokens, file.path()).into_iter().enumerate() {
        let store = store(&s3, credentials);
        for key in ["a", "b"] {
            assert_eq!(store.put_if_absent(&format!("{number}{key}"), b"x").expect("put"), Put::Created);
        }
        let requests = store.requests();
        assert_eq!((requests.tokens, requests.puts, requests.total()), (1, 2, 2), "{requests:?}");
    }
    assert!(s3.log().iter().all(|asked| asked.headers["x-amz-security-token"] == "session"), "{:#?}", s3.log());
    assert!(tokens.log()[0].target.contains("RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fkeeper"), "{:#?}", tokens.log());
}

#[test]
fn who_gets_none_is_told_why() {
    let (s3, tokens) = (Server::start(Kind::S3), Server::start(Kind::Tokens));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "bad").expect("write");
    for credentials in both(&tokens, file.path()) {
        let (fault, said) = fault_of(store(&s3, credentials.clone()).put_if_absent("k", b"x"));
        assert_eq!(fault, ServiceFault::Credentials, "{said}");
        tokens.faults().next(1, "", "", What::Say(500, "InternalError"));
        let (fault, said) = fault_of(store(&s3, credentials).put_if_absent("k", b"x"));
        assert_eq!(fault, ServiceFault::NoCredentials, "{said}");
    }
    for credentials in both(&tokens, Path::new("/none/token")) {
        let (fault, said) = fault_of(store(&s3, credentials).put_if_absent("k", b"x"));
        assert!(fault == ServiceFault::NoCredentials && said.contains("/none/token"), "{fault:?} {said}");
    }
    assert!(s3.log().is_empty(), "{:#?}", s3.log());
}
