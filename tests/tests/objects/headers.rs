//! What services are told with each request: tags, keys for encryption at rest, another host.

use crate::contract::config;
use pgkeep_engine::store::{
    BucketStore, Range, Store,
    object::{AzureCredentials, Secret, Service},
};
use support::objects::{Kind, Server};

#[test]
fn s3_is_told_what_was_configured_with_every_request() {
    let server = Server::start(Kind::S3);
    let mut with = config(&server, Kind::S3, "r");
    let Service::S3(s3) = &mut with.service else { panic!("{with:?}") };
    s3.requester_pays = true;
    s3.kms_key_id = Some("key-of-kms".to_owned());
    with.tags = vec![("team".to_owned(), "db & more".to_owned())];
    // Bucket in the name of a host that does not exist: the server is reached all the same, under that name.
    with.endpoint = "http://s3.invalid".to_owned();
    with.host_style = true;
    with.connect_to = Some(server.url().trim_start_matches("http://").to_owned());
    let store = BucketStore::open(&with).expect("open");
    // The server knows no buckets in names of hosts, so what it answers is beside the point.
    _ = store.put_if_absent("k", b"x");
    _ = store.get("k", Range::Whole);
    let log = server.log();
    assert_eq!(log.len(), 2, "{log:#?}");
    for asked in &log {
        assert_eq!(asked.headers["host"], "vault.s3.invalid", "{asked:#?}");
        assert_eq!(asked.headers["x-amz-request-payer"], "requester", "{asked:#?}");
        assert_eq!(asked.target, "/r/k", "{asked:#?}");
        assert!(asked.headers["authorization"].contains("/eu-test-1/s3/aws4_request"), "{asked:#?}");
    }
    let put = &log[0].headers;
    assert_eq!(put["x-amz-tagging"], "team=db+%26+more", "{put:#?}");
    assert_eq!(put["x-amz-server-side-encryption"], "aws:kms", "{put:#?}");
    assert_eq!(put["x-amz-server-side-encryption-aws-kms-key-id"], "key-of-kms", "{put:#?}");
    assert_eq!(put["if-none-match"], "*", "{put:#?}");
}

#[test]
fn gcs_is_told_tags_as_metadata_and_who_pays() {
    let server = Server::start(Kind::Gcs);
    let mut with = config(&server, Kind::Gcs, "r");
    let Service::Gcs(gcs) = &mut with.service else { panic!("{with:?}") };
    gcs.user_project = Some("payer".to_owned());
    with.tags = vec![("team".to_owned(), "db".to_owned())];
    let store = BucketStore::open(&with).expect("open");
    store.put_if_absent("k", b"x").expect("put");
    let log = server.log();
    assert_eq!(log[0].headers["x-goog-meta-team"], "db", "{log:#?}");
    assert_eq!(log[0].headers["x-goog-user-project"], "payer", "{log:#?}");
}

#[test]
fn azure_takes_a_shared_access_signature() {
    let server = Server::start(Kind::Azure);
    let mut with = config(&server, Kind::Azure, "r");
    let Service::Azure(azure) = &mut with.service else { panic!("{with:?}") };
    azure.credentials = AzureCredentials::Signature(Secret::new("?sv=2024-01-01&sp=rcwdl&sig=good"));
    with.tags = vec![("team".to_owned(), "db".to_owned())];
    let store = BucketStore::open(&with).expect("open");
    store.put_if_absent("k", b"x").expect("put");
    assert_eq!(store.get("k", Range::Whole).expect("get"), b"x");
    store.delete("k").expect("delete");
    let log = server.log();
    assert_eq!(log[0].headers["x-ms-tags"], "team=db", "{log:#?}");
    assert!(log.iter().all(|asked| asked.target.contains("sig=good")), "{log:#?}");
}
