//! From a configuration to a client of `object_store`, whose own retries are off.

use super::client::Connector;
use super::config::{AzureCredentials, BucketConfig, GcsCredentials, S3Credentials, Service};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use std::sync::Arc;
use std::time::Duration;

/// Makes the client. Nothing is asked of the service yet.
pub(super) fn build(config: &BucketConfig, connector: Connector) -> object_store::Result<Arc<dyn ObjectStore>> {
    // Whether a URL may go unprotected is decided where options are.
    let options = ClientOptions::new().with_allow_http(true);
    let retry =
        RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::from_secs(0) };
    Ok(match &config.service {
        Service::S3(s3) => {
            let mut builder = AmazonS3Builder::new()
                .with_bucket_name(&config.bucket)
                .with_region(&s3.region)
                .with_endpoint(config.base_url())
                .with_virtual_hosted_style_request(config.host_style)
                .with_request_payer(s3.requester_pays)
                // One object a request: compatibles differ in how they take many.
                .with_disable_bulk_delete(true);
            builder = match &s3.credentials {
                S3Credentials::Static { key, secret, token } => {
                    let builder = builder.with_access_key_id(key.expose()).with_secret_access_key(secret.expose());
                    match token {
                        Some(token) => builder.with_token(token.expose()),
                        None => builder,
                    }
                }
                S3Credentials::Instance => builder,
                S3Credentials::WebIdentity { token_file, role, endpoint } => {
                    let builder = builder
                        .with_config(Key::WebIdentityTokenFile, token_file)
                        .with_config(Key::RoleArn, role)
                        .with_config(Key::RoleSessionName, "pgkeep");
                    match endpoint {
                        Some(endpoint) => builder.with_config(Key::StsEndpoint, endpoint),
                        None => builder,
                    }
                }
                S3Credentials::Pod { url, token_file } => builder
                    .with_config(Key::ContainerCredentialsFullUri, url)
                    .with_config(Key::ContainerAuthorizationTokenFile, token_file),
            };
            if let Some(key) = &s3.kms_key_id {
                builder = builder.with_sse_kms_encryption(key);
            }
            if let Some(key) = &s3.customer_key {
                builder = builder.with_ssec_encryption(key.expose());
            }
            Arc::new(builder.with_client_options(options).with_retry(retry).with_http_connector(connector).build()?)
        }
        Service::Gcs(gcs) => {
            let builder =
                GoogleCloudStorageBuilder::new().with_bucket_name(&config.bucket).with_base_url(&config.base_url());
            let builder = match &gcs.credentials {
                GcsCredentials::Service(path) => builder.with_service_account_path(path.to_string_lossy()),
                GcsCredentials::Token(token) => builder.with_bearer_token(token.expose()),
                GcsCredentials::Instance => builder,
            };
            Arc::new(builder.with_client_options(options).with_retry(retry).with_http_connector(connector).build()?)
        }
        Service::Azure(azure) => {
            let builder = MicrosoftAzureBuilder::new()
                .with_account(&azure.account)
                .with_container_name(&config.bucket)
                .with_endpoint(config.base_url());
            let builder = match &azure.credentials {
                AzureCredentials::Key(key) => builder.with_access_key(key.expose()),
                AzureCredentials::Signature(query) => builder
                    .with_config(object_store::azure::AzureConfigKey::SasKey, query.expose().trim_start_matches('?')),
                AzureCredentials::Instance => builder,
            };
            Arc::new(builder.with_client_options(options).with_retry(retry).with_http_connector(connector).build()?)
        }
    })
}
