//! What can go wrong between a service and us, one by one, through the store that the commands use.

use crate::contract::config;
use pgkeep_engine::{
    Kind as Cause,
    clock::SystemClock,
    store::{
        BucketStore, Depth, Put, Range, RetryPolicy, RetryStore, ServiceFault, Store, StoreError,
        contract::{keys, read},
    },
};
use std::{sync::Arc, time::Duration};
use support::objects::{Kind, Server, What};

/// A server, a store of it, and the same with retries that do not dawdle.
struct Rig {
    server: Server,
    bare: Arc<BucketStore>,
    store: RetryStore,
}

fn rig(kind: Kind) -> Rig {
    patient(kind, Duration::from_secs(20))
}

/// A rig whose requests wait this long.
fn patient(kind: Kind, timeout: Duration) -> Rig {
    let server = Server::start(kind);
    let mut config = config(&server, kind, "r");
    config.timeout = timeout;
    let bare = Arc::new(BucketStore::open(&config).expect("cannot open a store"));
    let wait = Duration::from_millis(1);
    let policy = RetryPolicy { tries: 6, total: Duration::from_secs(120), first_wait: wait, longest_wait: wait };
    let store = RetryStore::new(Arc::clone(&bare), Arc::new(SystemClock), policy);
    Rig { server, bare, store }
}

const KINDS: [Kind; 3] = [Kind::S3, Kind::Gcs, Kind::Azure];

fn fault_of<T: std::fmt::Debug>(result: Result<T, StoreError>) -> (ServiceFault, StoreError) {
    match result {
        Err(StoreError::Service { fault, verb, key, store, source }) => {
            (fault, StoreError::Service { fault, verb, key, store, source })
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_passes_is_sat_out() {
    let faults = [
        What::Say(500, "InternalError"),
        What::Say(503, "SlowDown"),
        What::Say(429, "TooManyRequests"),
        What::Close,
        What::Hang,
        What::Wait(Duration::from_secs(2)),
    ];
    for kind in KINDS {
        let rig = patient(kind, Duration::from_millis(250));
        for (number, what) in faults.into_iter().enumerate() {
            let key = format!("a/{number}");
            for method in ["PUT", "GET", "DELETE"] {
                // Azure deletes in batches.
                let method = if kind == Kind::Azure && method == "DELETE" { "POST" } else { method };
                // Silence costs time.
                let times = if matches!(what, What::Hang | What::Wait(_)) { 1 } else { 2 };
                rig.server.faults().next(times, method, "", what);
                match method {
                    "PUT" => assert_eq!(rig.store.put_if_absent(&key, b"content").expect("put"), Put::Created),
                    "GET" => assert_eq!(read(&rig.store, &key), b"content"),
                    _ => rig.store.delete(&key).expect("delete"),
                }
                assert_eq!(rig.server.faults().left(), 0, "{kind:?} {what:?} {method}: it was not met");
                rig.server.faults().clear();
            }
        }
        assert!(rig.bare.requests().failed >= 24, "{:?}", rig.bare.requests());
    }
}

#[test]
fn a_put_whose_reply_was_lost_is_ours_and_one_of_another_is_not() {
    for kind in KINDS {
        let rig = rig(kind);
        rig.server.faults().next(1, "PUT", "", What::Lose);
        assert_eq!(rig.store.put_if_absent("ours", b"ours").expect("put"), Put::Created, "{kind:?}");
        assert_eq!(read(&rig.store, "ours"), b"ours");

        assert_eq!(rig.bare.put_if_absent("theirs", b"theirs").expect("put"), Put::Created);
        rig.server.faults().next(1, "PUT", "", What::Say(500, "InternalError"));
        assert_eq!(rig.store.put_if_absent("theirs", b"mine").expect("put"), Put::Exists, "{kind:?}");
        assert_eq!(read(&rig.store, "theirs"), b"theirs");
    }
}

#[test]
fn another_creation_under_way_is_waited_for() {
    let rig = rig(Kind::S3);
    rig.server.faults().next(2, "PUT", "", What::Say(409, "ConditionalRequestConflict"));
    assert_eq!(rig.store.put_if_absent("k", b"1").expect("put"), Put::Created);
    // There it is: whatever 409 means to this service, the answer is known.
    rig.server.faults().next(1, "PUT", "", What::Say(409, "OperationAborted"));
    assert_eq!(rig.bare.put_if_absent("k", b"2").expect("put"), Put::Exists);
    assert_eq!(read(&rig.store, "k"), b"1");
}

#[test]
fn a_body_that_breaks_off_is_read_again() {
    let bytes: Vec<u8> = (0..250u8).cycle().take(3 << 20).collect();
    for kind in KINDS {
        let rig = rig(kind);
        rig.store.put_if_absent("k", &bytes).expect("put");
        rig.server.faults().next(2, "GET", "k", What::Cut);
        assert!(read(&rig.store, "k") == bytes, "{kind:?}");
        for what in [What::Cut, What::Shorten] {
            rig.server.faults().next(2, "GET", "k", what);
            let part = rig.store.get("k", Range::Span { offset: 999, len: 2 << 20 }).expect("get");
            assert!(part == bytes[999..][..2 << 20], "{kind:?} {what:?}");
            assert_eq!(rig.server.faults().left(), 0);
        }
    }
}

#[test]
fn a_list_goes_on_behind_the_page_that_failed() {
    for kind in KINDS {
        let rig = rig(kind);
        let expected: Vec<String> = (0..1100).map(|n| format!("l/{n:05}")).collect();
        std::thread::scope(|scope| {
            for part in expected.chunks(100) {
                let store = &rig.store;
                scope.spawn(move || part.iter().for_each(|key| _ = store.put_if_absent(key, b"").expect("put")));
            }
        });
        let before = rig.bare.requests().lists;
        assert_eq!(keys(&rig.store, "l/", Depth::All), expected, "{kind:?}");
        let pages = rig.bare.requests().lists - before;
        for what in [What::Say(503, "SlowDown"), What::Cut] {
            rig.server.faults().later(1, 2, "GET", "prefix=", what);
            let before = rig.bare.requests().lists;
            // Without retries around it.
            assert_eq!(keys(&*rig.bare, "l/", Depth::All), expected, "{kind:?} {what:?}");
            assert_eq!(rig.server.faults().left(), 0);
            assert_eq!(rig.bare.requests().lists - before, pages + 2, "{kind:?} {what:?}: pages were asked for again");
        }
        // What fails from the start is left to who retries.
        rig.server.faults().next(1, "GET", "prefix=", What::Say(500, "InternalError"));
        assert_eq!(fault_of(rig.bare.list("l/", Depth::All, &mut |_| ())).0, ServiceFault::Failed, "{kind:?}");
    }
}

#[test]
fn a_refusal_is_told_at_once_and_by_its_cause() {
    let rig = rig(Kind::S3);
    for (status, code, fault, cause) in [
        (403, "InvalidAccessKeyId", ServiceFault::Credentials, Cause::Service),
        (403, "SignatureDoesNotMatch", ServiceFault::Credentials, Cause::Service),
        (400, "ExpiredToken", ServiceFault::Credentials, Cause::Service),
        (403, "AccessDenied", ServiceFault::Denied, Cause::Service),
        (403, "RequestTimeTooSkewed", ServiceFault::Clock, Cause::Clock),
        (404, "NoSuchBucket", ServiceFault::NoBucket, Cause::PathMissing),
        (301, "PermanentRedirect", ServiceFault::Region, Cause::Service),
        (507, "InsufficientStorage", ServiceFault::Full, Cause::Service),
        (501, "NotImplemented", ServiceFault::Unsupported, Cause::FeatureNotSupported),
        (418, "Teapot", ServiceFault::Refused, Cause::Service),
    ] {
        for method in ["PUT", "GET", "DELETE"] {
            rig.server.faults().next(1, method, "", What::Say(status, code));
            let before = rig.server.log().len();
            let (found, error) = match method {
                "PUT" => fault_of(rig.store.put_if_absent("k", b"x")),
                "GET" => fault_of(rig.store.get("k", Range::Whole)),
                _ => fault_of(rig.store.delete("k")),
            };
            assert_eq!((found, error.kind()), (fault, cause), "{status} {code} {method}");
            assert_eq!(rig.server.log().len(), before + 1, "{status} {code} {method}: it was asked again");
            let text = format!("{error}: {}", std::error::Error::source(&error).expect("what it said"));
            for part in ["'k'", "S3 bucket 'vault'", code, &status.to_string()] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}

#[test]
fn an_upload_that_nobody_reads_ends() {
    let rig = patient(Kind::S3, Duration::from_millis(500));
    let bytes = vec![7; 32 << 20];
    rig.server.faults().next(1, "PUT", "", What::Hang);
    assert_eq!(rig.store.put_if_absent("k", &bytes).expect("put"), Put::Created);
}

#[test]
fn nobody_there_is_told_as_that() {
    let rig = rig(Kind::S3);
    drop(rig.server);
    let (fault, error) = fault_of(rig.bare.get("k", Range::Whole));
    assert_eq!((fault, error.kind()), (ServiceFault::Unreachable, Cause::Service), "{error}");
    assert!(!error.is_permanent());
}
