//! From the engine's and the system's failures to what a system call answers.
//!
//! A failed fetch is always EIO: a missing pack must not look like a missing file, and never like zeros.

use fuser::Errno;
use pgkeep_engine::{Error, Kind};

/// What a request ends with when it fails.
pub(crate) type Outcome<T> = Result<T, Errno>;

/// The errno of a failed system call on the backing file system.
pub(crate) fn system(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

/// The errno of a failed operation of the standard library; EIO where the system gave no number.
pub(crate) fn io(error: std::io::Error) -> Errno {
    if error.kind() == std::io::ErrorKind::WriteZero {
        return Errno::ENOSPC;
    }
    Errno::from(error)
}

/// The errno of a failed look-up in a backup.
pub(crate) fn lookup(error: &Error) -> Errno {
    match error.kind() {
        Kind::Absent | Kind::FileMissing | Kind::PathMissing => Errno::ENOENT,
        Kind::Interrupted => Errno::EINTR,
        Kind::Memory => Errno::ENOMEM,
        _ => Errno::EIO,
    }
}

/// An error with its sources, for the one log line a failed request leaves.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Runs a request's handler; a panic in it drops the reply, which answers EIO, and ends here.
pub(crate) fn guard(request: &'static str, handler: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(handler)).is_err() {
        tracing::error!("request '{request}' panicked and was answered with an input/output error");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_and_failure_are_told_apart() {
        assert_eq!(lookup(&Error::refused(Kind::FileMissing, "x")).code(), libc::ENOENT);
        assert_eq!(lookup(&Error::refused(Kind::Service, "x")).code(), libc::EIO);
        assert_eq!(io(std::io::Error::other("x")).code(), libc::EIO);
        assert_eq!(system(rustix::io::Errno::NOSPC).code(), libc::ENOSPC);
    }

    #[test]
    fn a_panic_ends_at_the_guard() {
        guard("test", || panic!("expected by the test"));
    }
}
