//! Whom we trust: the authorities that were named, and them only.

use crate::contract::config;
use pgkeep_engine::store::{BucketStore, Put, ServiceFault, Store, StoreError, object::Tls};
use std::{path::Path, process::Command};
use support::objects::{Kind, Server};

/// Two authorities, and a certificate for localhost signed by the first.
fn certificates(dir: &Path) {
    std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost\n").expect("write");
    let openssl = |arguments: &str| {
        let run = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().expect("openssl");
        assert!(run.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&run.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for name in ["ca", "other"] {
        openssl(&format!("req -x509 {key} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"));
    }
    openssl(&format!("req {key} -subj /CN=localhost -keyout server.key -out server.csr"));
    openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt");
}

#[test]
fn only_authorities_that_were_named_are_trusted() {
    let dir = tempfile::tempdir().expect("a directory");
    certificates(dir.path());
    let server = Server::protected(Kind::S3, &dir.path().join("server.crt"), &dir.path().join("server.key"));
    let put = |tls: Tls, connect_to: Option<&str>, key: &str| {
        let mut with = config(&server, Kind::S3, "r");
        with.tls = tls;
        with.connect_to = connect_to.map(|host| server.url().replace("https://localhost", host));
        BucketStore::open(&with).expect("open").put_if_absent(key, b"x")
    };
    let of = |name: &str| Tls { accept_any: false, authorities: vec![dir.path().join(name)] };
    assert_eq!(put(of("ca.crt"), None, "a").expect("put"), Put::Created);
    assert_eq!(put(Tls { accept_any: true, authorities: Vec::new() }, None, "b").expect("put"), Put::Created);
    // The system's authorities, another one, and a host that the certificate does not name.
    for (tls, connect_to) in [(Tls::default(), None), (of("other.crt"), None), (of("ca.crt"), Some("127.0.0.1"))] {
        match put(tls.clone(), connect_to, "c") {
            Err(e @ StoreError::Service { fault: ServiceFault::Untrusted, .. }) => assert!(e.is_permanent()),
            other => panic!("{tls:?} {connect_to:?}: {other:?}"),
        }
    }
    assert_eq!(server.log().len(), 2, "something was sent to who is not trusted: {:#?}", server.log());

    let mut with = config(&server, Kind::S3, "r");
    with.tls = of("server.key");
    assert!(BucketStore::open(&with).is_err(), "a key was taken for a certificate");
}
