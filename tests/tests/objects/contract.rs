//! What every store must do, asked of each service over the network.

use pgkeep_engine::store::{
    BucketStore,
    contract::Rig,
    object::{Azure, AzureCredentials, BucketConfig, Gcs, GcsCredentials, S3, S3Credentials, Secret, Service, Tls},
};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use support::objects::{BUCKET, KEY, Kind, SECRET, Server};

/// A store of this server below a prefix.
pub(crate) fn config(server: &Server, kind: Kind, prefix: &str) -> BucketConfig {
    let service = match kind {
        Kind::S3 => Service::S3(S3 {
            region: "eu-test-1".to_owned(),
            credentials: S3Credentials::Static { key: Secret::new(KEY), secret: Secret::new(SECRET), token: None },
            kms_key_id: None,
            customer_key: None,
            requester_pays: false,
        }),
        Kind::Gcs => Service::Gcs(Gcs { credentials: GcsCredentials::Token(Secret::new(SECRET)), user_project: None }),
        Kind::Azure => {
            Service::Azure(Azure { account: KEY.to_owned(), credentials: AzureCredentials::Key(Secret::new(SECRET)) })
        }
        Kind::Tokens => panic!("that is no store"),
    };
    BucketConfig {
        service,
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: server.url(),
        host_style: false,
        connect_to: None,
        tls: Tls::default(),
        timeout: Duration::from_secs(20),
        tags: Vec::new(),
        gap: None,
    }
}

fn rig(kind: Kind) -> Rig {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let server = Server::start(kind);
    // Every second one at the root of its bucket.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let prefix = if number.is_multiple_of(2) { String::new() } else { format!("r/{number}") };
    let store = BucketStore::open(&config(&server, kind, &prefix)).expect("cannot open a store");
    // Three pages of the fakes, two of S3.
    Rig { keep: Some(Box::new(server)), many: 1_200, ..Rig::of(store) }
}

pgkeep_engine::store_contract!(s3, || rig(Kind::S3));
pgkeep_engine::store_contract!(gcs, || rig(Kind::Gcs));
pgkeep_engine::store_contract!(azure, || rig(Kind::Azure));
