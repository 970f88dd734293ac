//! What an object key may be. One rule for every store, so that what one takes no other refuses.
//!
//! A key is 1 to [`MAX`] bytes of UTF-8: components of 1 to [`MAX_COMPONENT`] bytes, joined by single `/`. A component
//! is not `.` or `..`, does not begin with [`TEMPORARY`] (the local store's own directory), and has no control
//! characters. The first component is not `lost+found`, which belongs to the file system when a store is the root
//! of one. No key may be the directory part of another: a store on a file system cannot hold `a` beside `a/b`.

use super::StoreError;

/// Longest key, in bytes: the least of what the supported stores take.
pub const MAX: usize = 1024;

/// Longest component, in bytes: what a file name may be.
pub const MAX_COMPONENT: usize = 255;

/// What no component begins with, and where the local store keeps files that are being written.
pub const TEMPORARY: &str = ".tmp";

/// Checks a key.
///
/// # Errors
/// [`StoreError::BadKey`].
pub fn check(key: &str) -> Result<(), StoreError> {
    let lost = key.split('/').next() == Some("lost+found");
    if key.len() <= MAX && !lost && key.split('/').all(is_component) {
        Ok(())
    } else {
        Err(StoreError::BadKey { key: key.to_owned() })
    }
}

/// Checks a prefix for listing: empty, or a key followed by `/`.
///
/// # Errors
/// [`StoreError::BadKey`].
pub fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    match prefix.strip_suffix('/') {
        Some(key) => check(key).map_err(|_| StoreError::BadKey { key: prefix.to_owned() }),
        None if prefix.is_empty() => Ok(()),
        None => Err(StoreError::BadKey { key: prefix.to_owned() }),
    }
}

/// True if `name` may stand between two slashes of a key.
#[must_use]
pub fn is_component(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_COMPONENT
        && name != "."
        && name != ".."
        && !name.starts_with(TEMPORARY)
        && !name.contains('/')
        && !name.chars().any(char::is_control)
}

/// The key without its last component; empty for a key of one component.
pub(super) fn parent(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_could_leave_or_collide_is_refused() {
        let long = "x".repeat(256);
        let deep = "x/".repeat(512) + "x";
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/..",
            "../a",
            "a/./b",
            ".tmp",
            ".tmp/a",
            "a/.tmpx",
            "a\nb",
            "a\0",
            "a\u{7f}",
            "\u{85}",
            "lost+found",
            "lost+found/a",
            &long,
            &deep,
        ] {
            assert!(matches!(check(bad), Err(StoreError::BadKey { key }) if key == bad), "{bad:?}");
        }
        for good in ["a", "...", ".a", "a/.b", "é/ü", "a b", "-", "a/tmp", "a/lost+found", "日本/語", "*?\\:\"<>|"]
        {
            assert!(check(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_prefix_is_empty_or_ends_in_a_slash() {
        for good in ["", "a/", "a/b/"] {
            assert!(check_prefix(good).is_ok(), "{good:?}");
        }
        for bad in ["a", "/", "a//", "../", ".tmp/", "a/b"] {
            assert!(check_prefix(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_key_stays_below_any_root(key in "[a-z./ ~-]{0,40}") {
            if check(&key).is_ok() {
                let path = std::path::Path::new(&key);
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert_eq!(path.components().count(), key.split('/').count());
            }
        }
    }
}
