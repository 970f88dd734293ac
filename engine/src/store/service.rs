//! Why a service that keeps objects did not do what it was asked: what branches on it, and what it said.

use crate::Kind;

/// The cause, as far as it can be told from what a service answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceFault {
    /// No connection came about.
    Unreachable,
    /// Its certificate is not trusted.
    Untrusted,
    /// No answer in time.
    Silent,
    /// The connection ended before the answer did.
    Broken,
    /// It asks to be asked less often, or another request for the same object is under way.
    Busy,
    /// It failed by its own account.
    Failed,
    /// It does not know who asks: a wrong key, signature or token.
    Credentials,
    /// It knows who asks, and does not allow it.
    Denied,
    /// There are no credentials to ask with.
    NoCredentials,
    /// There is no such bucket or container.
    NoBucket,
    /// The bucket is in another region, or under another address.
    Region,
    /// The clocks of host and service differ too much.
    Clock,
    /// There is no room, or a quota is used up.
    Full,
    /// The object is larger than it takes.
    TooLarge,
    /// It does not know how to do what was asked.
    Unsupported,
    /// Its answer is none that can be understood.
    Answer,
    /// It refused for another reason.
    Refused,
}

impl ServiceFault {
    /// True if trying again cannot help.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        !matches!(
            self,
            Self::Unreachable | Self::Silent | Self::Broken | Self::Busy | Self::Failed | Self::NoCredentials
        )
    }

    /// For branching and for the exit status.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::NoBucket => Kind::PathMissing,
            Self::Clock => Kind::Clock,
            Self::Unsupported => Kind::FeatureNotSupported,
            _ => Kind::Service,
        }
    }
}

impl std::fmt::Display for ServiceFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "it cannot be reached",
            Self::Untrusted => "its certificate is not trusted",
            Self::Silent => "it does not answer in time",
            Self::Broken => "the connection broke",
            Self::Busy => "it is busy",
            Self::Failed => "it failed",
            Self::Credentials => "it does not accept the credentials",
            Self::Denied => "it does not allow this",
            Self::NoCredentials => "no credentials can be had",
            Self::NoBucket => "there is no such bucket or container",
            Self::Region => "the bucket belongs to another region or address",
            Self::Clock => "the clocks of this host and of the service differ too much",
            Self::Full => "there is no room",
            Self::TooLarge => "the object is too large for it",
            Self::Unsupported => "it cannot do this",
            Self::Answer => "its answer makes no sense",
            Self::Refused => "it refused",
        })
    }
}

/// What a service said, word for word as far as it is short, or what the connection met with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Said(pub String);
