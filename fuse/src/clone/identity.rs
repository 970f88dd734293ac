//! New names belong to who made them, from the first moment on.
//!
//! A daemon that runs as root makes files in the caller's name by taking its file system identity for the one system
//! call, as Linux keeps that identity per thread. Changing the owner afterwards instead would leave a window in which
//! the daemon's death leaves a file PostgreSQL cannot open.

use crate::owner::Owner;

/// Takes another identity until it is dropped.
pub(super) struct Identity {
    before: Option<Owner>,
}

impl Identity {
    /// Acts as `owner` on this thread, if this process may.
    pub(super) fn assume(owner: Owner) -> Self {
        let own = Owner::of_process();
        if own.uid != 0 || owner == own {
            return Self { before: None };
        }
        set(owner);
        Self { before: Some(own) }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // The user first: only root may then change the group back.
            // SAFETY: plain numbers; only this thread's identity changes.
            unsafe {
                libc::setfsuid(before.uid);
                libc::setfsgid(before.gid);
            }
        }
    }
}

fn set(owner: Owner) {
    // SAFETY: plain numbers; only this thread's identity changes. The group first: only root may change it.
    unsafe {
        libc::setfsgid(owner.gid);
        libc::setfsuid(owner.uid);
    }
}
