//! Tests of the whole: what was sealed opens in its place and nowhere else.

mod golden;
mod roles;
mod slots;
mod tamper;

use super::*;
use pgkeep_formats::id::RepoId;
use std::sync::Arc;

fn keyring() -> Arc<Keyring> {
    Arc::new(Keyring::generate(RepoId([1; 16])).unwrap())
}

fn unauthentic<T>(result: &Result<T, CryptoError>) -> bool {
    matches!(result, Err(CryptoError::Unauthentic { .. }))
}

fn lacks<T>(result: &Result<T, CryptoError>) -> bool {
    matches!(result, Err(CryptoError::RoleLacks { .. }))
}
