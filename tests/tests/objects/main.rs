//! Promise: a repository in a bucket is as good as one in a directory, whatever the network and the service do.

mod contract;
mod credentials;
mod faults;
mod headers;
mod tls;
mod whole;
