//! Owners: names as a backup records them, numbers as the system wants them.

use std::collections::HashMap;
use std::ffi::{CString, c_char};

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Owner {
    /// The owner that files made by this process get.
    #[must_use]
    pub fn of_process() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// A user's number and its primary group; `None` if the system does not know the name.
    #[must_use]
    pub fn of_user(name: &str) -> Option<Self> {
        user(name).map(|(uid, gid)| Self { uid, gid })
    }
}

/// Remembers what names resolve to; names the system does not know become `fallback`.
pub(crate) struct Owners {
    fallback: Owner,
    users: HashMap<String, u32>,
    groups: HashMap<String, u32>,
}

impl Owners {
    pub(crate) fn new(fallback: Owner) -> Self {
        Self { fallback, users: HashMap::new(), groups: HashMap::new() }
    }

    /// The numbers of a recorded user and group.
    pub(crate) fn resolve(&mut self, user_name: &str, group_name: &str) -> Owner {
        let fallback = self.fallback;
        let uid = *self.users.entry(user_name.to_owned()).or_insert_with(|| {
            user_name.parse().ok().or_else(|| user(user_name).map(|found| found.0)).unwrap_or(fallback.uid)
        });
        let gid = *self
            .groups
            .entry(group_name.to_owned())
            .or_insert_with(|| group_name.parse().ok().or_else(|| group(group_name)).unwrap_or(fallback.gid));
        Owner { uid, gid }
    }
}

/// Room for one entry of the user database; entries with long member lists need more.
const ENTRY_BYTES_FIRST: usize = 4096;
/// Where growing that room ends.
const ENTRY_BYTES_MAX: usize = 1 << 20;

fn user(name: &str) -> Option<(u32, u32)> {
    let name = CString::new(name).ok()?;
    with_room(|room| {
        let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are valid for the call, the room's length is passed, `entry` is read only if `found` says
        // that it was filled.
        let status = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                room.as_mut_ptr().cast::<c_char>(),
                room.len(),
                &raw mut found,
            )
        };
        if status == libc::ERANGE {
            return None;
        }
        if status != 0 || found.is_null() {
            return Some(None);
        }
        // SAFETY: `found` is not null, so the call filled `entry`.
        let entry = unsafe { entry.assume_init() };
        Some(Some((entry.pw_uid, entry.pw_gid)))
    })
}

fn group(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    with_room(|room| {
        let mut entry = std::mem::MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: as in `user`.
        let status = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                entry.as_mut_ptr(),
                room.as_mut_ptr().cast::<c_char>(),
                room.len(),
                &raw mut found,
            )
        };
        if status == libc::ERANGE {
            return None;
        }
        if status != 0 || found.is_null() {
            return Some(None);
        }
        // SAFETY: `found` is not null, so the call filled `entry`.
        Some(Some(unsafe { entry.assume_init() }.gr_gid))
    })
}

/// Calls `query` with more and more room until it no longer answers `None`.
fn with_room<T>(mut query: impl FnMut(&mut [u8]) -> Option<Option<T>>) -> Option<T> {
    let mut bytes = ENTRY_BYTES_FIRST;
    while bytes <= ENTRY_BYTES_MAX {
        let mut room = vec![0u8; bytes];
        if let Some(answer) = query(&mut room) {
            return answer;
        }
        bytes *= 4;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_strangers() {
        let mut owners = Owners::new(Owner { uid: 77, gid: 78 });
        assert_eq!(owners.resolve("root", "root"), Owner { uid: 0, gid: 0 });
        assert_eq!(owners.resolve("1234", "5678"), Owner { uid: 1234, gid: 5678 });
        assert_eq!(owners.resolve("no-such-user", "no-such-group"), Owner { uid: 77, gid: 78 });
        assert_eq!(Owner::of_user("root").map(|owner| owner.uid), Some(0));
    }
}
