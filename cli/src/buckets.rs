//! From options to a bucket: S3, GCS and Azure under pgBackRest's names.

use crate::error::Failure;
use crate::option::{Opt, Repo, Settings};
use pgkeep_engine::store::BucketStore;
use pgkeep_engine::store::object::{
    Azure, AzureCredentials, BucketConfig, Gcs, GcsCredentials, Requests, S3, S3Credentials, Secret, Service, Tls,
};
use pgkeep_engine::{Error, FileError, Kind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Makes ready to use the bucket of a repository.
///
/// # Errors
/// Missing credentials of the environment, and what cannot work: a certificate, a key file, an address.
pub(crate) fn open(settings: &Settings, repo: Repo<'_>) -> Result<BucketStore, Failure> {
    Ok(BucketStore::open(&config(settings, repo)?).map_err(Error::from)?)
}

/// Buckets in use, to be asked at the end what they were sent.
static USED: Mutex<Vec<(u16, Arc<BucketStore>)>> = Mutex::new(Vec::new());

/// Has the requests to a bucket counted in [`requests`].
pub(crate) fn count(key: u16, store: &Arc<BucketStore>) {
    USED.lock().unwrap_or_else(PoisonError::into_inner).push((key, Arc::clone(store)));
}

/// What this process has asked of each repository in a bucket, a line each: services bill by the request.
pub(crate) fn requests() -> Vec<String> {
    let mut by_repo = BTreeMap::<u16, Requests>::new();
    for (key, store) in USED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        *by_repo.entry(*key).or_default() += store.requests();
    }
    by_repo.into_iter().map(|(key, requests)| line(key, &requests)).collect()
}

fn line(key: u16, r: &Requests) -> String {
    let kinds = [(r.puts, "put"), (r.gets, "get"), (r.lists, "list"), (r.heads, "head"), (r.deletes, "delete")];
    let kinds: Vec<_> = kinds.iter().map(|(n, kind)| format!("{n} {kind}")).collect();
    let again = if r.failed > 0 { format!(", {} of them in vain", r.failed) } else { String::new() };
    format!(
        "repo{key}: {} requests ({}{again}), {} bytes sent, {} received",
        r.total(),
        kinds.join(", "),
        r.sent,
        r.received
    )
}

fn config(settings: &Settings, repo: Repo<'_>) -> Result<BucketConfig, Failure> {
    let (service, bucket, style) = match repo.kind() {
        "s3" => (s3(repo)?, Opt::RepoS3Bucket, Opt::RepoS3UriStyle),
        "gcs" => (gcs(repo)?, Opt::RepoGcsBucket, Opt::RepoGcsBucket),
        _ => (azure(repo)?, Opt::RepoAzureContainer, Opt::RepoAzureUriStyle),
    };
    let address = Address::of(repo).map_err(|text| Error::refused(Kind::OptionInvalidValue, text))?;
    Ok(BucketConfig {
        service,
        bucket: required(repo, bucket)?.to_owned(),
        prefix: repo.path().to_string_lossy().trim_matches('/').to_owned(),
        endpoint: address.endpoint,
        host_style: repo.text(style) == Some("host"),
        connect_to: address.connect_to,
        tls: tls(repo)?,
        // Half, so that one connection that has died leaves time for another.
        timeout: (settings.time(Opt::IoTimeout) / 2).max(Duration::from_millis(100)),
        tags: repo.pairs(Opt::RepoStorageTag).to_vec(),
        gap: repo.is_given(Opt::RepoStorageReadOver).then(|| repo.size(Opt::RepoStorageReadOver)).flatten(),
    })
}

fn s3(repo: Repo<'_>) -> Result<Service, Failure> {
    let variable = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.ok_or_else(|| {
            let option = Opt::RepoS3KeyType.def().display(repo.key());
            let kind = repo.text(Opt::RepoS3KeyType).unwrap_or_default();
            Error::refused(Kind::OptionInvalid, format!("option '{option}' is '{kind}', but '{name}' is not set"))
        })
    };
    let credentials = match repo.text(Opt::RepoS3KeyType) {
        Some("auto") => S3Credentials::Instance,
        Some("web-id") => S3Credentials::WebIdentity {
            role: repo.text(Opt::RepoS3Role).map_or_else(|| variable("AWS_ROLE_ARN"), |role| Ok(role.to_owned()))?,
            token_file: variable("AWS_WEB_IDENTITY_TOKEN_FILE")?,
            endpoint: repo.text(Opt::RepoS3StsHost).map(with_scheme),
        },
        Some("pod-id") => S3Credentials::Pod {
            url: variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")?,
            token_file: variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")?,
        },
        _ => S3Credentials::Static {
            key: Secret::new(required(repo, Opt::RepoS3Key)?),
            secret: Secret::new(required(repo, Opt::RepoS3KeySecret)?),
            token: repo.text(Opt::RepoS3Token).map(Secret::new),
        },
    };
    Ok(Service::S3(S3 {
        region: required(repo, Opt::RepoS3Region)?.to_owned(),
        credentials,
        kms_key_id: repo.text(Opt::RepoS3KmsKeyId).map(str::to_owned),
        customer_key: repo.text(Opt::RepoS3SseCustomerKey).map(Secret::new),
        requester_pays: repo.flag(Opt::RepoS3RequesterPays),
    }))
}

fn gcs(repo: Repo<'_>) -> Result<Service, Failure> {
    let credentials = match repo.text(Opt::RepoGcsKeyType) {
        Some("auto") => GcsCredentials::Instance,
        Some("token") => GcsCredentials::Token(Secret::new(required(repo, Opt::RepoGcsKey)?)),
        _ => GcsCredentials::Service(PathBuf::from(required(repo, Opt::RepoGcsKey)?)),
    };
    Ok(Service::Gcs(Gcs { credentials, user_project: repo.text(Opt::RepoGcsUserProject).map(str::to_owned) }))
}

fn azure(repo: Repo<'_>) -> Result<Service, Failure> {
    let credentials = match repo.text(Opt::RepoAzureKeyType) {
        Some("auto") => AzureCredentials::Instance,
        Some("sas") => AzureCredentials::Signature(Secret::new(required(repo, Opt::RepoAzureKey)?)),
        _ => AzureCredentials::Key(Secret::new(required(repo, Opt::RepoAzureKey)?)),
    };
    Ok(Service::Azure(Azure { account: required(repo, Opt::RepoAzureAccount)?.to_owned(), credentials }))
}

fn required(repo: Repo<'_>, opt: Opt) -> Result<&str, Error> {
    let missing =
        || Error::refused(Kind::OptionRequired, format!("option {} is required", opt.def().display(repo.key())));
    repo.text(opt).ok_or_else(missing)
}

fn tls(repo: Repo<'_>) -> Result<Tls, Failure> {
    let mut authorities: Vec<PathBuf> = repo.text(Opt::RepoStorageCaFile).map(PathBuf::from).into_iter().collect();
    if let Some(dir) = repo.text(Opt::RepoStorageCaPath).map(Path::new) {
        let failed = |e| Failure::file(FileError::at("list", dir)(e));
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // Beside certificates such directories hold lists of revoked ones, and links to all of them by hash.
            let is_pem = path.extension().is_some_and(|ext| ["pem", "crt", "cer", "0"].iter().any(|e| ext == *e));
            if is_pem && path.is_file() {
                authorities.push(path);
            }
        }
        if authorities.is_empty() {
            let text = format!("there are no certificates (*.pem, *.crt, *.cer) in '{}'", dir.display());
            return Err(Error::refused(Kind::FileMissing, text).into());
        }
        authorities.sort();
    }
    Ok(Tls { accept_any: !repo.flag(Opt::RepoStorageVerifyTls), authorities })
}

fn with_scheme(host: &str) -> String {
    if host.contains("://") { host.to_owned() } else { format!("https://{host}") }
}

/// Where requests go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// URL of the service.
    endpoint: String,
    /// Host and port in its place.
    connect_to: Option<String>,
}

impl Address {
    /// From the endpoint and the host of a repository. Either may be a URL; the port of one that names none is
    /// `repo-storage-port`.
    pub(crate) fn of(repo: Repo<'_>) -> Result<Self, String> {
        let opt = match repo.kind() {
            "s3" => Opt::RepoS3Endpoint,
            "gcs" => Opt::RepoGcsEndpoint,
            _ => Opt::RepoAzureEndpoint,
        };
        let port = repo.is_given(Opt::RepoStoragePort).then(|| repo.int(Opt::RepoStoragePort)).flatten();
        let parsed = |opt: Opt| {
            let text = repo.text(opt).unwrap_or_default();
            let bad = |why| format!("'{text}' is not valid for option '{}': {why}", opt.def().display(repo.key()));
            Url::parse(text).map_err(bad)
        };
        let endpoint = parsed(opt)?;
        let host = repo.text(Opt::RepoStorageHost).map(|_| parsed(Opt::RepoStorageHost)).transpose()?;
        Ok(Self::from_parts(&endpoint, host.as_ref(), port))
    }

    fn from_parts(endpoint: &Url<'_>, host: Option<&Url<'_>>, port: Option<i64>) -> Self {
        let port = port.map(|port| port.to_string());
        let scheme = host.and_then(|host| host.scheme).or(endpoint.scheme).unwrap_or("https");
        // A port that goes without saying is left out of what is signed.
        let usual = if scheme == "http" { "80" } else { "443" };
        let with = |host: &str, port: Option<&str>| match port.filter(|port| *port != usual) {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        match host {
            None => {
                let authority = with(endpoint.host, endpoint.port.or(port.as_deref()));
                Self { endpoint: format!("{scheme}://{authority}"), connect_to: None }
            }
            Some(host) => Self {
                endpoint: format!("{scheme}://{}", with(endpoint.host, endpoint.port)),
                connect_to: Some(with(host.host, host.port.or(port.as_deref()))),
            },
        }
    }

    /// Whether data and credentials pass a network where others can read along.
    pub(crate) fn is_exposed(&self) -> bool {
        let Some(rest) = self.endpoint.strip_prefix("http://") else { return false };
        let host = Url::parse(self.connect_to.as_deref().unwrap_or(rest)).map_or("", |url| url.host);
        !(host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback()) || host == "[::1]")
    }
}

/// The parts of an address: `[scheme://]host[:port]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Url<'a> {
    scheme: Option<&'a str>,
    host: &'a str,
    port: Option<&'a str>,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str) -> Result<Self, &'static str> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest),
            Some(_) => return Err("neither http nor https"),
            None => (None, text),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            // In brackets colons belong to the address.
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (rest, None),
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
        if host.is_empty() || !host.chars().all(is_host) || (host.contains(':') && !host.starts_with('[')) {
            return Err("not a host");
        }
        if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
            return Err("not a port");
        }
        Ok(Self { scheme, host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(endpoint: &str, host: Option<&str>, port: Option<i64>) -> (String, Option<String>) {
        let host = host.map(|host| Url::parse(host).unwrap());
        let address = Address::from_parts(&Url::parse(endpoint).unwrap(), host.as_ref(), port);
        (address.endpoint, address.connect_to)
    }

    #[test]
    fn endpoint_host_and_port_make_an_address() {
        let to = |host: &str| Some(host.to_owned());
        for (endpoint, host, port, expected) in [
            ("s3.eu-west-1.amazonaws.com", None, None, ("https://s3.eu-west-1.amazonaws.com", None)),
            ("minio.local", None, Some(9000), ("https://minio.local:9000", None)),
            ("https://minio.local:9001/", None, Some(9000), ("https://minio.local:9001", None)),
            ("http://127.0.0.1:9000", None, None, ("http://127.0.0.1:9000", None)),
            ("minio.local", None, Some(443), ("https://minio.local", None)),
            ("http://minio.local:80", None, None, ("http://minio.local", None)),
            ("http://minio.local", None, Some(443), ("http://minio.local:443", None)),
            ("[::1]:9000", None, None, ("https://[::1]:9000", None)),
            ("s3.aws", Some("10.0.0.1"), None, ("https://s3.aws", to("10.0.0.1"))),
            ("s3.aws", Some("10.0.0.1"), Some(9000), ("https://s3.aws", to("10.0.0.1:9000"))),
            ("s3.aws", Some("http://10.0.0.1:9"), Some(9000), ("http://s3.aws", to("10.0.0.1:9"))),
        ] {
            let (url, connect_to) = address(endpoint, host, port);
            assert_eq!((url.as_str(), connect_to), expected, "{endpoint} {host:?} {port:?}");
        }
        for bad in ["", "ftp://x", "a b", "x:0", "x:70000", "http://", "::1", "a/b", "user@host"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_is_not_exposed() {
        for (endpoint, connect_to, expected) in [
            ("https://s3.aws", None, false),
            ("http://s3.aws", None, true),
            ("http://127.0.0.1:9000", None, false),
            ("http://localhost", None, false),
            ("http://[::1]:9000", None, false),
            ("http://s3.aws", Some("127.0.0.1:9000"), false),
            ("http://127.0.0.1", Some("10.0.0.1"), true),
        ] {
            let address = Address { endpoint: endpoint.to_owned(), connect_to: connect_to.map(str::to_owned) };
            assert_eq!(address.is_exposed(), expected, "{address:?}");
        }
    }
}
