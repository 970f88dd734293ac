//! Keys, and everything sealed or opened with them. The only code that sees key bytes.
//!
//! [`Keyring`] holds the secrets of one role; [`SessionSealer`] seals what one writer's run makes;
//! [`ChunkOpener`] opens chunks of one session. Layouts and derivations: FORMAT.md, "Keys and sealing"; bytes are
//! put together and taken apart in [`pgkeep_formats::repo`].
//!
//! Invariants:
//! - No (key, nonce) pair seals twice. A sealer draws its own session id and no sealer can be made for a given
//!   one; all its keys share one counter. An object with an embedded wrap has a key of its own.
//! - Nothing sealed opens under another name, kind, domain, session or repository.
//! - A type that holds a secret cannot be printed or cloned, and wipes it when dropped. Wiping is best effort:
//!   copies the compiler makes on the stack, and the states of BLAKE3, are out of reach.
//!
//! Threads: all methods taking `&self` may be called from any thread at once. Nothing here blocks, except on
//! Argon2 (a tenth of a second) and on the local file of [`FileKekCache`].

mod aead;
mod error;
mod kek_cache;
mod keyring;
mod opener;
mod sealer;
mod secret;
mod unlock;
mod wrap;

#[cfg(test)]
mod tests;

pub use error::CryptoError;
pub use kek_cache::{FileKekCache, KekCache};
pub use keyring::{ContentHasher, Keyring, Opened, PageHasher, Scope};
pub use opener::ChunkOpener;
pub use sealer::{ChunkDomain, SessionSealer};
pub use secret::SecretBytes;
pub use unlock::{KeyFile, Passphrase, Unlock};
