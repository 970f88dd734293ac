//! What has to be known of a bucket before it can be used: plain values, resolved by the caller.
//!
//! Nothing here reads the environment or a file, save the files of credentials that are named.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

/// A secret of a service: not shown, and wiped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Keeps it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// A place for objects in a bucket (or container) of a service.
#[derive(Debug, Clone)]
pub struct BucketConfig {
    /// Which service, and what it has to be told.
    pub service: Service,
    /// The bucket; with Azure the container.
    pub bucket: String,
    /// What all keys begin with, without slashes at its ends; empty for the root of the bucket.
    pub prefix: String,
    /// URL of the service: scheme, host and perhaps a port, without the bucket.
    pub endpoint: String,
    /// Whether the bucket (Azure: the account) is a part of the host's name rather than of the path.
    pub host_style: bool,
    /// Host and port to connect to in place of the endpoint's, which is asked for all the same.
    pub connect_to: Option<String>,
    /// How the service's certificate is checked.
    pub tls: Tls,
    /// Longest wait for an answer, and for the next bytes of one.
    pub timeout: Duration,
    /// Tags of every object, as name and value.
    pub tags: Vec<(String, String)>,
    /// See [`Store::gap`](super::Store::gap); `None` for the usual one.
    pub gap: Option<u64>,
}

/// How a certificate is checked.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Not at all.
    pub accept_any: bool,
    /// Files with certificates in PEM to trust in place of the system's.
    pub authorities: Vec<PathBuf>,
}

/// A service and what is particular to it.
#[derive(Debug, Clone)]
pub enum Service {
    /// S3 of Amazon, and those that speak the same.
    S3(S3),
    /// Google Cloud Storage.
    Gcs(Gcs),
    /// Azure Blob Storage.
    Azure(Azure),
}

/// What S3 has to be told.
#[derive(Debug, Clone)]
pub struct S3 {
    /// The region, a part of every signature.
    pub region: String,
    /// Who asks.
    pub credentials: S3Credentials,
    /// Key of the key service that encrypts objects at rest.
    pub kms_key_id: Option<String>,
    /// Key, in base64, with which the service encrypts objects at rest and which it does not keep.
    pub customer_key: Option<Secret>,
    /// The requester pays.
    pub requester_pays: bool,
}

/// Where credentials for S3 come from.
#[derive(Debug, Clone)]
pub enum S3Credentials {
    /// They are given.
    Static {
        /// Name of the key.
        key: Secret,
        /// The key.
        secret: Secret,
        /// Token of a session, with temporary ones.
        token: Option<Secret>,
    },
    /// From the machine's metadata service.
    Instance,
    /// From the token service, for a signed token in a file.
    WebIdentity {
        /// File with the token.
        token_file: String,
        /// Role to take on.
        role: String,
        /// URL of the token service; `None` for the region's.
        endpoint: Option<String>,
    },
    /// From the agent of a Kubernetes node.
    Pod {
        /// URL of the agent.
        url: String,
        /// File with the token that it wants.
        token_file: String,
    },
}

/// What GCS has to be told.
#[derive(Debug, Clone)]
pub struct Gcs {
    /// Who asks.
    pub credentials: GcsCredentials,
    /// Project that pays.
    pub user_project: Option<String>,
}

/// Where credentials for GCS come from.
#[derive(Debug, Clone)]
pub enum GcsCredentials {
    /// A service account's key, in a file of JSON.
    Service(PathBuf),
    /// A token that is sent as it is.
    Token(Secret),
    /// From the machine's metadata service.
    Instance,
}

/// What Azure has to be told.
#[derive(Debug, Clone)]
pub struct Azure {
    /// The storage account.
    pub account: String,
    /// Who asks.
    pub credentials: AzureCredentials,
}

/// Where credentials for Azure come from.
#[derive(Debug, Clone)]
pub enum AzureCredentials {
    /// The account's key, in base64.
    Key(Secret),
    /// A shared access signature: the query that is appended to every URL.
    Signature(Secret),
    /// The machine's managed identity.
    Instance,
}

impl BucketConfig {
    /// A name for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        let (kind, bucket) = match &self.service {
            Service::S3(_) => ("S3", "bucket"),
            Service::Gcs(_) => ("GCS", "bucket"),
            Service::Azure(_) => ("Azure", "container"),
        };
        let at = self.connect_to.as_ref().unwrap_or(&self.endpoint);
        format!("{kind} {bucket} '{}' at {at}, path '/{}'", self.bucket, self.prefix)
    }

    /// URL under which the bucket's objects are: of the bucket for S3, of the account for Azure, of the service for GCS.
    pub(super) fn base_url(&self) -> String {
        let endpoint = self.endpoint.trim_end_matches('/');
        let name = match &self.service {
            Service::S3(_) => &self.bucket,
            Service::Azure(azure) => &azure.account,
            Service::Gcs(_) => return endpoint.to_owned(),
        };
        match endpoint.split_once("://") {
            Some((scheme, host)) if self.host_style => format!("{scheme}://{name}.{host}"),
            // object_store appends an S3 bucket itself.
            _ if matches!(self.service, Service::S3(_)) => endpoint.to_owned(),
            _ => format!("{endpoint}/{name}"),
        }
    }
}
