//! Passwords and TLS over TCP.

use super::chain;
use super::cluster::{Cluster, run};
use crate::Kind;
use crate::pg::server::{ConnectOptions, SslMode, password_from_file};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Password with characters that must not be mistaken for syntax anywhere.
const PASSWORD: &str = r"s3:cr\et's";

fn with_password(initdb: &[&str], settings: &[&str]) -> Cluster {
    let cluster = Cluster::start(initdb, settings);
    let quoted = PASSWORD.replace('\'', "''");
    let sql = format!("set standard_conforming_strings = on; alter role postgres password '{quoted}'");
    cluster.connect().client.batch_execute(&sql).unwrap();
    cluster
}

#[test]
fn a_password_opens_and_a_wrong_one_does_not() {
    let cluster = with_password(&[], &[]);
    let mut session = cluster.try_connect(&cluster.tcp(PASSWORD)).unwrap();
    assert!(!session.is_encrypted().unwrap());
    let refused = cluster.try_connect(&cluster.tcp("wrong")).unwrap_err();
    assert_eq!(refused.kind(), Kind::DbConnect);
    assert!(chain(&refused).contains("password authentication failed"), "{}", chain(&refused));
    assert!(!chain(&refused).contains("wrong"));
    let none = cluster.try_connect(&ConnectOptions { password: None, ..cluster.tcp("") }).unwrap_err();
    assert_eq!(none.kind(), Kind::DbConnect);
    assert!(!format!("{:?}", cluster.tcp(PASSWORD)).contains("cr"));
}

#[test]
fn a_password_file_is_used_unless_others_may_read_it() {
    let cluster = with_password(&[], &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pgpass");
    let line = format!("*:{}:*:postgres:{}\n", cluster.port(), PASSWORD.replace('\\', r"\\").replace(':', r"\:"));
    std::fs::write(&file, line).unwrap();
    let options = ConnectOptions { password: None, ..cluster.tcp("") };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(password_from_file(&file, &options, "postgres").unwrap().is_none());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(password_from_file(&file, &options, "other").unwrap().is_none());
    let password = password_from_file(&file, &options, "postgres").unwrap();
    assert_eq!(password.as_ref().map(|p| p.as_str()), Some(PASSWORD));
    cluster.try_connect(&ConnectOptions { password, ..options }).unwrap();
    assert!(password_from_file(&dir.path().join("none"), &cluster.options(), "x").unwrap().is_none());
}

struct Certificates(TempDir);

impl Certificates {
    /// Two authorities, a certificate for localhost signed by the first, and a self-signed one.
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("names"), "subjectAltName=DNS:localhost\n").unwrap();
        let openssl = |arguments: &str| {
            run(Command::new("openssl").args(arguments.split(' ')).current_dir(dir.path()));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        for name in ["ca", "other"] {
            openssl(&format!("req -x509 {key} -subj /CN={name} -keyout {name}.key -out {name}.crt"));
        }
        openssl(&format!("req {key} -subj /CN=localhost -keyout server.key -out server.csr"));
        openssl(
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt",
        );
        openssl(&format!(
            "req -x509 {key} -subj /CN=self -addext subjectAltName=DNS:localhost -keyout self.key -out self.crt"
        ));
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn server(&self, name: &str) -> Cluster {
        let cluster = with_password(&[], &[]);
        for kind in ["crt", "key"] {
            cluster.put(&format!("server.{kind}"), &std::fs::read(self.path(&format!("{name}.{kind}"))).unwrap());
        }
        let mut session = cluster.connect();
        session.client.batch_execute("alter system set ssl = on").unwrap();
        session.client.batch_execute("select pg_reload_conf()").unwrap();
        // The reload is asynchronous; a connection that demands TLS tells when it is done.
        let options = ConnectOptions { ssl_mode: SslMode::Require, ..cluster.tcp(PASSWORD) };
        while cluster.try_connect(&options).is_err() {
            let log = std::fs::read_to_string(cluster.data().with_file_name("log")).unwrap();
            assert!(!log.contains("not loaded"), "{log}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        cluster
    }
}

/// Connects and says whether the session is encrypted, or why not.
fn attempt(cluster: &Cluster, host: &str, mode: SslMode, root: Option<&Path>) -> Result<bool, (Kind, String)> {
    let options = ConnectOptions {
        host: Some(host.to_owned()),
        ssl_mode: mode,
        root_certificates: root.map(Path::to_path_buf),
        ..cluster.tcp(PASSWORD)
    };
    let mut session = cluster.try_connect(&options).map_err(|e| (e.kind(), chain(&e)))?;
    Ok(session.is_encrypted().unwrap())
}

#[test]
fn tls_checks_the_server_as_far_as_asked() {
    let files = Certificates::make();
    let cluster = files.server("server");
    let (ca, other) = (files.path("ca.crt"), files.path("other.crt"));
    let (ca, other) = (Some(ca.as_path()), Some(other.as_path()));
    assert_eq!(attempt(&cluster, "localhost", SslMode::Disable, None), Ok(false));
    assert_eq!(attempt(&cluster, "localhost", SslMode::Prefer, None), Ok(true));
    assert_eq!(attempt(&cluster, "localhost", SslMode::Require, None), Ok(true));
    assert_eq!(attempt(&cluster, "localhost", SslMode::VerifyFull, ca), Ok(true));
    // The certificate names localhost, not the address.
    assert_eq!(attempt(&cluster, "127.0.0.1", SslMode::VerifyCa, ca), Ok(true));
    let (kind, text) = attempt(&cluster, "127.0.0.1", SslMode::VerifyFull, ca).unwrap_err();
    assert_eq!(kind, Kind::DbConnect);
    assert!(text.contains("not valid for name"), "{text}");
    for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        let (kind, text) = attempt(&cluster, "localhost", mode, other).unwrap_err();
        assert_eq!(kind, Kind::DbConnect);
        assert!(text.contains("UnknownIssuer"), "{text}");
    }
    assert_eq!(attempt(&cluster, "localhost", SslMode::VerifyFull, None).unwrap_err().0, Kind::Config);
    let (kind, text) = attempt(&cluster, "localhost", SslMode::VerifyCa, Some(&files.path("ca.key"))).unwrap_err();
    assert_eq!(kind, Kind::FileInvalid);
    assert!(text.contains("holds no certificate"), "{text}");
}

#[test]
fn a_self_signed_certificate_is_its_own_root() {
    let files = Certificates::make();
    let cluster = files.server("self");
    let own = files.path("self.crt");
    assert_eq!(attempt(&cluster, "localhost", SslMode::VerifyFull, Some(&own)), Ok(true));
    assert_eq!(attempt(&cluster, "127.0.0.1", SslMode::VerifyCa, Some(&own)), Ok(true));
    assert!(attempt(&cluster, "127.0.0.1", SslMode::VerifyFull, Some(&own)).is_err());
    assert!(attempt(&cluster, "localhost", SslMode::VerifyCa, Some(&files.path("ca.crt"))).is_err());
}

#[test]
fn a_server_without_tls_is_refused_when_tls_is_demanded() {
    let cluster = with_password(&[], &[]);
    assert_eq!(attempt(&cluster, "localhost", SslMode::Prefer, None), Ok(false));
    let (kind, text) = attempt(&cluster, "localhost", SslMode::Require, None).unwrap_err();
    assert_eq!(kind, Kind::DbConnect);
    assert!(text.contains("TLS"), "{text}");
}
